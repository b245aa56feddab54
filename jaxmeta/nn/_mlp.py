"""Multi-layer perceptrons."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.nn._dot import dot_general
from jaxmeta.nn._norm import BatchNorm


class MLP(nn.Module):
    """A multi-layer perceptron on flattened inputs.

    `MLP((40, 40), 1)` is MAML's sinusoid network (1,761 parameters on scalar inputs), `MLP((64, 64), 1,
    activation=jnp.tanh)` that of Reptile's released script (4,353).

    Weights and biases start uniform in +-1/sqrt(fan-in), so that the units of the first layer bend at different
    inputs; with zero biases they would all bend at x = 0. After MAML's training on sinusoids a few tasks diverge
    within ten inner steps on five points, and the start decides how many:
    `benchmarks/sinusoid_init.py` counts them, for this one, for others, and for that of MAML's released code
    (truncated-normal weights with standard deviation 0.01, zero biases).

    Attributes:
        features: widths of the hidden layers.
        outputs: width of the output layer.
        activation: applied after each hidden layer.
        norm: put a `BatchNorm` (offset only) before each activation, as in MAML's network for Omniglot without
            convolutions, `MLP((256, 128, 64, 64), ways, norm=True)`.
        kernel_init: initialiser of all weight matrices; None for uniform in +-1/sqrt(fan-in).
        bias_init: initialiser of all biases; None for the same.
    """

    features: Sequence[int]
    outputs: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    norm: bool = False
    kernel_init: Callable[..., jax.Array] | None = None
    bias_init: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x `[n, ...]` to `[n, outputs]`."""
        x = jax.lax.collapse(x, 1)
        for i, width in enumerate(self.features):
            x = self._dense(x, width, f"dense_{i}")
            if self.norm:
                x = BatchNorm(use_scale=False, name=f"norm_{i}")(x)
            x = self.activation(x)
        return self._dense(x, self.outputs, "head")

    def _dense(self, x: jax.Array, width: int, name: str) -> jax.Array:
        bound = x.shape[-1] ** -0.5

        def uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel_init, bias_init = self.kernel_init or uniform, self.bias_init or uniform
        dense = nn.Dense(width, kernel_init=kernel_init, bias_init=bias_init, dot_general=dot_general, name=name)
        return dense(x)
