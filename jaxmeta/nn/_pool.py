"""Max-pooling that is cheap to differentiate, twice."""

import functools
import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta._stored import stored


def max_pool(
    x: jax.Array, window_shape: Sequence[int], strides: Sequence[int] | None = None, padding: str = "VALID"
) -> jax.Array:
    """Max-pooling, with the signature, values and derivatives of `flax.linen.max_pool`.

    Windows that do not overlap are compared corner by corner, and derivatives are selections; the general windowed
    reduction, whose derivatives are slow, serves only where windows overlap or padding is of another kind.

    Args:
        x: `[..., *spatial, channels]`; as in Flax, the axes before may be none, one or several.
        window_shape: extent of the window along each spatial axis.
        strides: step along each spatial axis; None for 1, as in Flax.
        padding: `"VALID"` drops what does not fill a window, `"SAME"` pads with minus infinity.

    Returns:
        `[..., *pooled, channels]`. Among equal entries the derivative goes to the first, as in the general form.

    Raises:
        ValueError: `window_shape` has more entries than x has spatial axes, or `strides` another number of them, or
            `padding` is unknown.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    window, steps = tuple(window_shape), tuple(strides or (1,) * len(window_shape))
    if len(window) != len(steps) or x.ndim < len(window) + 1:
        raise ValueError(
            f"window_shape and strides want one entry for each spatial axis of x, whose shape is {x.shape}, but are "
            f"{window} and {steps}"
        )
    batch, spatial = x.shape[: -len(window) - 1], x.shape[-len(window) - 1 : -1]
    if len(batch) != 1:
        pooled = max_pool(x.reshape(-1, *x.shape[len(batch) :]), window, steps, padding)
        return pooled.reshape(*batch, *pooled.shape[1:])
    if isinstance(padding, str) and padding not in ("VALID", "SAME", "SAME_LOWER"):
        raise ValueError(f'padding must be "VALID", "SAME", "SAME_LOWER" or explicit pairs, but is {padding!r}')
    if window != steps or padding not in ("VALID", "SAME"):
        return nn.max_pool(x, window, strides=steps, padding=padding)
    if padding == "SAME":
        pads = jax.lax.padtype_to_pads(spatial, window, steps, padding)
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf) if any(map(any, pads)) else x
    ends = (slice(0, size - size % step) for size, step in zip(x.shape[1:-1], steps, strict=True))
    return _largest(x[(slice(None), *ends)], window)


# As the networks of the literature halve an image.
max_pool_2x2 = functools.partial(max_pool, window_shape=(2, 2), strides=(2, 2))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """The largest entry of each window; windows lie side by side and fill x."""
    return stored(_largest_and_place(x, window)[0])


@_largest.defjvp
def _largest_jvp(
    window: tuple[int, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Picks the tangents at the places of the largest entries, by a mask over x as a whole.

    Left to itself, JAX would write the cotangent of each corner of the windows into zeros of its own, and add these up.
    """
    (x,), (tangent,) = primals, tangents
    place = stored(_largest_and_place(x, window)[1])
    inside = tuple(range(2, 2 + 2 * len(window), 2))
    for axis, k in zip(inside, window, strict=True):  # one by one: JAX knows how to shard that
        before, (size, *after) = tangent.shape[: axis - 1], tangent.shape[axis - 1 :]
        tangent = tangent.reshape(*before, size // k, k, *after)
    corner = jnp.arange(math.prod(window), dtype=place.dtype).reshape([k for size in window for k in (1, size)] + [1])
    picked = jnp.where(jnp.expand_dims(place, inside) == corner, tangent, 0).sum(inside)
    return _largest(x, window), picked


def _largest_and_place(x: jax.Array, window: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The largest entry of each window, and the number of the corner that it is in: the first, if several are equal.

    NaN counts as larger than everything.
    """
    starts = itertools.product(*(range(k) for k in window))
    corners = [x[(slice(None), *(slice(o, None, k) for o, k in zip(start, window, strict=True)))] for start in starts]
    largest, place = corners[0], jnp.zeros(corners[0].shape, np.min_scalar_type(len(corners)))
    for number, corner in enumerate(corners[1:], 1):
        larger = (corner > largest) | (corner != corner)
        largest, place = jnp.where(larger, corner, largest), jnp.where(larger, number, place)
    return largest, place
