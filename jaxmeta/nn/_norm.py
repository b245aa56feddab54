"""Batch normalisation without memory."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.nn._conv_before_norm import Streamed


class BatchNorm(nn.Module):
    """Normalises each channel by the mean and variance of the batch at hand, always.

    There are no running statistics, in training or in test, as in the reference code of MAML and Reptile.
    What a prediction depends on is therefore who shares its batch; `jaxmeta.evaluate` names that choice.

    Attributes:
        use_scale: learn a factor gamma for each channel. MAML's code has none.
        use_bias: learn an offset beta for each channel.
        epsilon: added to the variance.

    References:
        Ioffe, Szegedy 2015, arXiv:1502.03167.
    """

    use_scale: bool = True
    use_bias: bool = True
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array | Streamed, pool: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
        """Normalises x `[..., channels]` over all its other axes.

        Args:
            x: the batch, or a convolution that is yet to make it.
            pool: a max-pooling to follow; None for none. The result is that of `pool(norm(x))`, with the mean and
                variance of all of x, but no more is normalised than pooling keeps: the largest entries, and in channels
                of a negative scale the smallest. For another kind of pooling, that is not the same.

        Returns:
            The normalised batch, pooled if `pool` is given. At a scale of exactly zero, where all entries of a window
            are equal, its derivative is that from above.
        """
        scale = self._channels(x.shape, "scale", nn.initializers.ones) if self.use_scale else 1
        sign = jnp.where(scale < 0, -1, 1) if self.use_scale else 1

        def keep(centred: jax.Array) -> jax.Array:
            return sign * pool(sign * centred) if pool else centred

        centred, variance = x.centred(keep) if isinstance(x, Streamed) else _centred(x, keep)
        y = centred * (jax.lax.rsqrt(variance + self.epsilon) * scale)
        return y + self._channels(x.shape, "bias", nn.initializers.zeros) if self.use_bias else y

    def _channels(self, shape: tuple[int, ...], name: str, init: Callable[..., jax.Array]) -> jax.Array:
        """A parameter `[channels]`, shaped to meet the batch without implicit broadcasting of ranks."""
        return self.param(name, init, shape[-1:], jnp.float32).reshape((1,) * (len(shape) - 1) + shape[-1:])


def _centred(x: jax.Array, keep: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
    """What `keep` makes of the centred x, and the variance of each channel."""
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axes, keepdims=True)
    return keep(centred), (centred**2).mean(axes, keepdims=True)
