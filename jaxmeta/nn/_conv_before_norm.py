"""Convolutions that batch normalisation follows, and the first of a network in one pass with it.

From images of one channel, each of 64 features takes nine products: on CPU less time than to store it and read it
again, which normalisation, pooling and their derivatives do a dozen times. The mean of its values is known in advance,

    mean_{n, p} sum_{d, c} x[n, s p + d, c] w[d, c, o] = mean_p sum_{d, c} (mean_n x[n, s p + d, c]) w[d, c, o],

so that one slice of images after another can be convolved, centred, squared and pooled while a cache holds it. Only
what is pooled is stored, and derivatives convolve again.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.nn._conv import conv_general_dilated
from jaxmeta.nn._conv2d import few_products

# So that a slice's values are still in a cache when they are read again.
_SLICE_BYTES = 2**21


class ConvBeforeNorm(nn.Module):
    """A 3x3 convolution for `BatchNorm` to follow.

    That takes any constant away with the mean, so the bias is a parameter, as in the literature, but is not added: the
    values are the same, and its gradient is exactly zero.

    Attributes:
        features: channels of the result.
        stride: the step along both spatial axes.
        padding: `"SAME"` or `"VALID"`.
        kernel_init: initialiser of the kernel; the bias starts at 0.
    """

    features: int
    stride: int = 1
    padding: str = "SAME"
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> "jax.Array | Streamed":
        """Convolves images x `[n, height, width, channels]`, or leaves that to `BatchNorm` where it pays."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features), jnp.float32)
        self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = x.astype(jnp.promote_types(x.dtype, kernel.dtype))
        convolution = Streamed(x, kernel, self.stride, self.padding)
        captured = self.is_mutable_collection("intermediates")  # somebody wants to see the values
        return convolution if convolution.pays() and not captured else convolution.of(x)


class Streamed(NamedTuple):
    """A convolution that is still to be done, of images `[n, height, width, channels]`."""

    images: jax.Array
    kernel: jax.Array
    stride: int
    padding: str

    @property
    def shape(self) -> tuple[int, ...]:
        """That of its values, `[n, out_height, out_width, features]`."""
        return jax.eval_shape(self.of, self.images).shape

    def pays(self) -> bool:
        """Whether its values are two slices or more, and cheap; not for images of unknown number or on many devices."""
        plain = all(isinstance(n, int) for n in self.images.shape) and not any(jax.typeof(self.images).sharding.spec)
        exact = self.kernel.dtype.itemsize >= 4  # the gradients of slices are added in that type
        cheap = jax.default_backend() == "cpu" and few_products(self.kernel)
        return plain and exact and cheap and len(self.images) >= 2 * self._slice()

    def of(self, images: jax.Array) -> jax.Array:
        """The values of some images."""
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        return conv_general_dilated(images, self.kernel, strides, self.padding, dimension_numbers=layout)

    def centred(self, keep: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        """What `keep` makes of the centred values, image by image, and their variance in each channel."""
        mean = self.of(self.images.mean(0, keepdims=True)).mean((0, 1, 2), keepdims=True)

        @jax.checkpoint
        def part(image: jax.Array) -> tuple[jax.Array, jax.Array]:
            centred = self.of(image[None]) - mean
            return keep(centred)[0], (centred**2).mean((0, 1, 2))

        kept, variances = jax.lax.map(part, self.images, batch_size=self._slice())
        return kept, variances.mean(0).reshape(mean.shape)

    def _slice(self) -> int:
        """How many images have their values, and what these are products of, in the cache."""
        _, height, width, features = self.shape
        wider = max(features, math.prod(self.kernel.shape[:-1]))
        return max(1, _SLICE_BYTES // max(1, height * width * wider * self.images.dtype.itemsize))
