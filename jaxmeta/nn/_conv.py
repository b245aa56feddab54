"""Convolution that stays fast when every task has its own weights.

`jax.vmap` turns a convolution with per-task kernels into a grouped one, whose derivatives are slow for small images on
a GPU, and grow with the square of the number of tasks on CPU. Written as slices and one matrix product,

    y[n, p, o] = sum_{d, c} x[n, s p + d, c] w[d, c, o] = (patches of x) @ w,

the same sum is a batched matrix product under `vmap`, and so are all its derivatives. One task at a time, plain
convolutions are faster still: `_conv2d` has both.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.nn._conv2d import conv2d, product
from jaxmeta.nn._trilinear import default_precision


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, in forms that are fast to differentiate where they are the same thing.

    Pass it to Flax, `nn.Conv(64, (3, 3), conv_general_dilated=jaxmeta.nn.conv_general_dilated)`: parameters
    and outputs stay those of `nn.Conv`. Channels-last convolutions without groups or input dilation take the
    fast forms; everything else falls back to JAX's own operation, and so do windows larger than the padded input and
    negative padding.

    Args:
        lhs: inputs `[n, *spatial, channels]`. Two floating-point types are promoted to one.
        rhs: kernels `[*window, channels, features]`.
        window_strides: steps along each spatial axis.
        padding: `"SAME"`, `"VALID"` or explicit pairs.
        lhs_dilation: falls back unless all 1.
        rhs_dilation: dilation of the kernel.
        dimension_numbers: the layout; falls back unless channels-last.
        feature_group_count: falls back unless 1.
        batch_group_count: falls back unless 1.
        precision: as in JAX.
        preferred_element_type: as in JAX.

    Returns:
        `[n, *out, features]`.

    Raises:
        TypeError, ValueError: as `jax.lax.conv_general_dilated`.

    >>> import jax.numpy as jnp
    >>> images, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
    >>> conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0, 0, 0]
    Array([9., 9.], dtype=float32)
    """
    if lhs.dtype != rhs.dtype and all(jnp.issubdtype(part.dtype, jnp.floating) for part in (lhs, rhs)):
        lhs, rhs = (part.astype(jnp.promote_types(lhs.dtype, rhs.dtype)) for part in (lhs, rhs))
    stock = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    jax.eval_shape(stock, lhs, rhs)  # for its errors
    spatial = lhs.ndim - 2
    layout = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    last = (0, spatial + 1, *range(1, spatial + 1))
    channels_last = layout == jax.lax.ConvDimensionNumbers(last, (spatial + 1, spatial, *range(spatial)), last)
    ungrouped = feature_group_count == batch_group_count == 1
    window, strides, dilation = rhs.shape[:spatial], tuple(window_strides), tuple(rhs_dilation or (1,) * spatial)
    if not channels_last or not ungrouped or any(d != 1 for d in lhs_dilation or ()):
        return stock(lhs, rhs)
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    sizes = lhs.shape[1:-1]
    pads = jax.lax.padtype_to_pads(sizes, reach, strides, padding) if isinstance(padding, str) else padding
    pads = tuple((int(low), int(high)) for low, high in pads)
    if any(n + sum(pad) < r or min(pad) < 0 for n, pad, r in zip(sizes, pads, reach, strict=True)):
        return stock(lhs, rhs)
    precision = default_precision(precision)
    if spatial == 2 and set(dilation) == {1} and preferred_element_type is None:
        return conv2d(lhs, rhs, strides, pads, precision)
    return product(
        lhs, rhs, strides, pads, dilation, precision=precision, preferred_element_type=preferred_element_type
    )
