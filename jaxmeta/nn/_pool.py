"""Max-pooling that is cheap to differentiate, twice."""

import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


def max_pool(
    x: jax.Array, window_shape: Sequence[int], strides: Sequence[int] | None = None, padding: str = "VALID"
) -> jax.Array:
    """Max-pooling, with the signature, values and derivatives of `flax.linen.max_pool`.

    Windows that do not overlap are compared slice by slice, so that derivatives are selections; the general
    windowed reduction, whose derivatives are slow, serves only where windows overlap or padding is of another kind.

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
    ends = [size - size % step for size, step in zip(x.shape[1:-1], steps, strict=True)]
    corners = [
        x[(slice(None), *(slice(o, end, s) for o, end, s in zip(offset, ends, steps, strict=True)))]
        for offset in itertools.product(*(range(size) for size in window))
    ]
    return functools.reduce(_first_max, corners)


def _first_max(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger entry; a where they are equal; NaN where either is."""
    return jnp.where((b > a) | (b != b), b, a)
