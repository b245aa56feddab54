"""Networks that make fast weights from gradients, one coordinate like another.

m is a perceptron with two hidden layers on one gradient; d an LSTM over a sequence of them, and a linear map of its
last state.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.inner import log_sign
from jaxmeta.nn import lstm_update

_SMALL = 0.01  # of the last layer's weights at the start: fast weights begin near zero


class ExampleGenerator(NamedTuple):
    """m: kernels `[2, h]`, `[h, h]`, `[h, 1]` and their biases."""

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]


class TaskGenerator(NamedTuple):
    """d: an LSTM's pre-activations from (gradient, h), `[2 + h, 4 h]`, its bias, and the map out of it, `[h, 1]`."""

    kernel: jax.Array
    bias: jax.Array
    out_kernel: jax.Array
    out_bias: jax.Array


def init_example(key: jax.Array, hidden: int) -> ExampleGenerator:
    """A perceptron with two hidden layers."""
    sizes, keys = ((2, hidden), (hidden, hidden), (hidden, 1)), jax.random.split(key, 3)
    scales = (2**-0.5, hidden**-0.5, _SMALL)
    kernels = (scale * jax.random.normal(k, size) for scale, k, size in zip(scales, keys, sizes, strict=True))
    return ExampleGenerator(tuple(kernels), tuple(jnp.zeros(out) for _, out in sizes))


def init_task(key: jax.Array, hidden: int) -> TaskGenerator:
    """An LSTM and a linear map."""
    kernel_key, out_key = jax.random.split(key)
    kernel = (2 + hidden) ** -0.5 * jax.random.normal(kernel_key, (2 + hidden, 4 * hidden))
    out = _SMALL * jax.random.normal(out_key, (hidden, 1))
    return TaskGenerator(kernel, jnp.zeros(4 * hidden), out, jnp.zeros(1))


def from_each(generator: ExampleGenerator, grads: Any, p: float) -> Any:
    """M of every gradient: a tree of `[n, ...]` to fast weights of the same shapes."""

    def one(leaf: jax.Array) -> jax.Array:
        h = log_sign(leaf, p).reshape(-1, 2)
        *hidden, last = zip(generator.kernels, generator.biases, strict=True)
        for kernel, bias in hidden:
            h = jax.nn.relu(h @ kernel + bias)
        return (h @ last[0] + last[1]).reshape(leaf.shape)

    return jax.tree.map(one, grads)


def from_sequence(generator: TaskGenerator, grads: Any, p: float) -> Any:
    """D of a sequence of gradients: a tree of `[steps, ...]` to fast weights `[...]`."""

    def one(leaf: jax.Array) -> jax.Array:
        inputs = log_sign(leaf, p).reshape(len(leaf), -1, 2)
        blank = jnp.zeros((inputs.shape[1], len(generator.out_kernel)), leaf.dtype)

        # Computed again in the backward pass: all coordinates' gates take longer to fetch from memory than to compute.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def advance(
            generator: TaskGenerator, state: tuple[jax.Array, jax.Array], x: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            hidden, cell = state
            gates = jnp.concatenate([x, hidden], axis=1) @ generator.kernel + generator.bias
            return lstm_update(gates, cell)

        (hidden, _), _ = jax.lax.scan(lambda state, x: (advance(generator, state, x), None), (blank, blank), inputs)
        return (hidden @ generator.out_kernel + generator.out_bias).reshape(leaf.shape[1:])

    return jax.tree.map(one, grads)
