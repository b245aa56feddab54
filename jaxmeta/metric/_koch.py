"""Koch's twin network, and a small one."""

from collections.abc import Sequence
from typing import Any

import flax.linen as fnn
import jax
import jax.numpy as jnp

from jaxmeta import nn
from jaxmeta.learner import check_int
from jaxmeta.nn._conv_before_norm import ConvBeforeNorm
from jaxmeta.nn._pool import max_pool_2x2


def _biases(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    return 0.5 + 0.01 * jax.random.normal(key, shape, dtype)


def _check_images(x: jax.Array, least: int) -> None:
    """Raises if x is not a batch of images, or they are too small to leave a position after the last layer."""
    if x.ndim != 4 or min(x.shape[1:3]) < least:
        raise ValueError(
            f"x must hold images [n, height, width, channels], at least {least}x{least}, but has shape {x.shape}"
        )


class KochTwin(fnn.Module):
    """The twin of Koch's siamese network: four convolutions without padding, and 4,096 sigmoid units.

    38,947,648 parameters on 105x105 images, 38,951,745 with the head of `siamese`. Kernels of convolutions start with
    standard deviation 0.01, those of the dense layer with 0.2, biases near 0.5, as in the paper.

    Attributes:
        features: channels of the four convolutions.
        windows: their heights and widths; all but the last are followed by a 2x2 max-pool.
        width: sigmoid units; the difference of a pair is taken after the sigmoid.
    """

    features: Sequence[int] = (64, 128, 128, 256)
    windows: Sequence[int] = (10, 7, 4, 4)
    width: int = 4096

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images x `[n, height, width, channels]` to `[n, width]`, in (0, 1).

        Raises:
            ValueError: x is not a batch of images, or they are too small; `features` and `windows` differ in length.
        """
        if len(self.features) != len(self.windows):
            raise ValueError(
                f"features and windows must be of as many convolutions, but are {self.features} and {self.windows}"
            )
        _check_images(x, self._least())
        last = len(self.features) - 1
        for i, (features, window) in enumerate(zip(self.features, self.windows, strict=True)):
            x = fnn.Conv(
                features,
                (window, window),
                padding="VALID",
                kernel_init=fnn.initializers.normal(0.01),
                bias_init=_biases,
                conv_general_dilated=nn.conv_general_dilated,
                name=f"conv_{i}",
            )(x)
            x = fnn.relu(x)
            x = max_pool_2x2(x) if i < last else x
        x = jax.lax.collapse(x, 1)
        dense = fnn.Dense(self.width, kernel_init=fnn.initializers.normal(0.2), bias_init=_biases, name="dense")
        return jax.nn.sigmoid(dense(x))

    def _least(self) -> int:
        """The smallest images that leave one position after the last convolution."""
        size = 1
        for i, window in enumerate(reversed(self.windows)):
            size = (size if i == 0 else 2 * size) + window - 1
        return size


class SmallTwin(fnn.Module):
    """A twin for small images: six 3x3 convolutions, batch-normalised, the first two pooled and a third as wide.

    Koch's network has no normalisation; this one sees the rest of its batch. Like Koch's it compares where strokes
    are: at 7x7 positions of a 28x28 image, where Koch's has 6x6 of 105x105. It has no dense layer.

    Attributes:
        features: channels of the last four convolutions, a multiple of 3; a sigmoid follows the last, ReLUs the others.
        block: height and width, in pixels, of the blocks that the first convolution sees in place of pixels, with a
            channel for each of theirs. With 3, an image of 84x84 is compared at as many positions as one of 28x28.

    >>> twin, images = SmallTwin(features=6), jnp.ones((2, 28, 28, 1))
    >>> jax.eval_shape(twin.init_with_output, jax.random.key(0), images)[0].shape  # 7 x 7 x 6
    (2, 294)
    >>> fine = SmallTwin(features=6, block=3)
    >>> jax.eval_shape(fine.init_with_output, jax.random.key(0), jnp.ones((2, 84, 84, 1)))[0].shape
    (2, 294)
    """

    features: int = 96
    block: int = 1

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images x `[n, height, width, channels]` to `[n, positions * features]`, in (0, 1).

        Raises:
            TypeError: `block` is no int.
            ValueError: x is not a batch of images, they have fewer than 4x4 blocks, `block` is less than 1 or does not
                divide them, or 3 does not divide `features`.
        """
        if self.features < 3 or self.features % 3:
            raise ValueError(f"features must be a multiple of 3, but is {self.features}")
        if check_int("block", self.block) < 1:
            raise ValueError(f"block must be 1 or more, but is {self.block}")
        _check_images(x, 4 * self.block)
        x = _in_blocks(x, self.block)
        for i in range(6):
            width = self.features // 3 if i < 2 else self.features
            convolved = ConvBeforeNorm(width, name=f"conv_{i}")(x)
            x = nn.BatchNorm(epsilon=1e-5, name=f"norm_{i}")(convolved, max_pool_2x2 if i < 2 else None)
            x = fnn.relu(x) if i < 5 else jax.nn.sigmoid(x)
        return jax.lax.collapse(x, 1)


def _in_blocks(x: jax.Array, block: int) -> jax.Array:
    """Images `[n, height, width, channels]` as blocks `[n, height / block, width / block, block^2 * channels]`."""
    n, height, width, channels = x.shape
    if height % block or width % block:
        raise ValueError(f"block={block} must divide the images, but they have {height}x{width} pixels")
    x = x.reshape(n, height // block, block, width // block, block, channels)
    return x.swapaxes(2, 3).reshape(n, height // block, width // block, block**2 * channels)
