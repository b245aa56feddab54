"""A convolutional network whose last layers have fast weights beside their slow ones."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.learner import Params
from jaxmeta.nn import conv_general_dilated
from jaxmeta.nn._pool import max_pool_2x2

Layer = dict[str, jax.Array]


class AugmentedConv(nn.Module):
    """Convolutions, a dense layer whose output is the key, and a linear head; both networks of MetaNet.

    A layer with slow weights (W, c) and fast weights (W*, c*) gives relu(h W + c) + relu(h W* + c*), the head the sum
    of its two linear maps. The key is the sum of the dense layer's two linear maps, without relu: between keys of one
    sign no cosine is negative, and attention over n of them never exceeds e / (e + n - 1).

    Attributes:
        outputs: width of the head, the ways.
        features: channels of each convolution.
        convolutions: how many, each 3x3 and followed by 2x2 max-pooling.
        key_features: width of the dense layer.
        fast_layers: how many of the last layers carry fast weights, the head included. The head comes after the keys,
            so that task-level fast weights, which keys are made with, are those of the layers before it.

    References:
        Munkhdalai, Yu 2017, arXiv:1703.00837.
    """

    outputs: int
    features: int = 64
    convolutions: int = 5
    key_features: int = 64
    fast_layers: int = 3

    def fast_names(self) -> tuple[str, ...]:
        """The names of the layers with fast weights."""
        names = (*(f"conv_{i}" for i in range(self.convolutions)), "dense", "head")
        if not 1 <= self.fast_layers <= len(names):
            raise ValueError(f"fast_layers must be between 1 and {len(names)} layers, but is {self.fast_layers}")
        return names[-self.fast_layers :]

    @nn.compact
    def __call__(self, x: jax.Array, fast: dict[str, Layer] | None = None) -> tuple[jax.Array, jax.Array]:
        """Maps images `[n, height, width, channels]` to `(logits [n, outputs], keys [n, key_features])`.

        Raises:
            ValueError: x does not hold images, or a size is out of its range.
        """
        if x.ndim != 4:
            raise ValueError(f"x must hold images [n, height, width, channels], but has shape {x.shape}")
        for name, least in (("outputs", 1), ("features", 1), ("convolutions", 0), ("key_features", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, but is {getattr(self, name)}")
        fast = fast or {}
        for i in range(self.convolutions):
            name = f"conv_{i}"
            slow = self._slow(name, (3, 3, x.shape[-1], self.features))
            x = _total([nn.relu(_conv(x, layer)) for layer in _both(slow, fast.get(name))])
            x = max_pool_2x2(x, padding="SAME")
        x = jax.lax.collapse(x, 1)
        slow = self._slow("dense", (x.shape[1], self.key_features))
        parts = [_dense(x, layer) for layer in _both(slow, fast.get("dense"))]
        x = _total([nn.relu(part) for part in parts])
        slow = self._slow("head", (self.key_features, self.outputs))
        return _total([_dense(x, layer) for layer in _both(slow, fast.get("head"))]), _total(parts)

    def _slow(self, name: str, shape: tuple[int, ...]) -> Layer:
        init = nn.initializers.he_normal()
        return self.param(name, lambda key: {"kernel": init(key, shape), "bias": jnp.zeros(shape[-1])})


def logits(model: AugmentedConv, slow: Params, x: jax.Array, fast: Any = None) -> jax.Array:
    """The network's predictions `[n, outputs]`."""
    found: Any = model.apply(slow, x, fast)
    return found[0]


def embed(model: AugmentedConv, slow: Params, x: jax.Array, fast: Any = None) -> jax.Array:
    """The network's keys `[n, key_features]`."""
    found: Any = model.apply(slow, x, fast)
    return found[1]


def fast_part(model: AugmentedConv, slow: Params, *, head: bool) -> dict[str, Layer]:
    """The slow weights of those layers that have fast ones, with or without the head, which no key depends on."""
    return {name: slow["params"][name] for name in model.fast_names() if head or name != "head"}


def with_part(slow: Params, part: dict[str, Layer]) -> Params:
    """Slow weights with some layers replaced."""
    return {"params": {**slow["params"], **part}}


def _total(parts: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, parts)


def _both(slow: Layer, fast: Layer | None) -> list[Layer]:
    return [slow] if fast is None else [slow, fast]


def _conv(x: jax.Array, layer: Layer) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, layer["kernel"].dtype))  # of pixels, which may be whole numbers
    y = conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer["bias"][None, None, None, :]


def _dense(x: jax.Array, layer: Layer) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"][None, :]
