"""Batch normalisation without memory."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


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
    def __call__(self, x: jax.Array, pool: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
        """Normalises x `[..., channels]` over all its other axes.

        Args:
            x: the batch.
            pool: a max-pooling to follow; None for none. The result is that of `pool(norm(x))`, with the mean and
                variance of all of x, but no more is normalised than pooling keeps: the largest entries, and in channels
                of a negative scale the smallest. For another kind of pooling, that is not the same.

        Returns:
            The normalised batch, pooled if `pool` is given. At a scale of exactly zero, where all entries of a window
            are equal, its derivative is that from above.
        """
        axes = tuple(range(x.ndim - 1))
        centred = x - x.mean(axes, keepdims=True)
        factor = jax.lax.rsqrt((centred**2).mean(axes, keepdims=True) + self.epsilon)
        sign = 1
        if self.use_scale:
            scale = self._channels(x, "scale", nn.initializers.ones)
            factor, sign = factor * scale, jnp.where(scale < 0, -1, 1)
        if pool is not None:
            centred = sign * pool(sign * centred)
        y = centred * factor
        return y + self._channels(x, "bias", nn.initializers.zeros) if self.use_bias else y

    def _channels(self, x: jax.Array, name: str, init: Callable[..., jax.Array]) -> jax.Array:
        """A parameter `[channels]`, shaped to meet x without implicit broadcasting of ranks."""
        return self.param(name, init, x.shape[-1:], jnp.float32).reshape((1,) * (x.ndim - 1) + x.shape[-1:])
