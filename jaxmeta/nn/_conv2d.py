"""A convolution that is closed under differentiation.

It is `_trilinear` with

    T(x, w, g) = sum_{n, p, d, c, o}  g[n, p, o] x[n, s p + d, c] w[d, c, o].

Each kind runs as the ordinary convolution or product that is fastest for it. On accelerators that is what reverse mode
makes of it, a convolution with its axes transposed, for which their libraries have kernels; a CPU runs such a one as
scalar code inside a loop.

Mapped over kernels by `jax.vmap`, each kind becomes slices and matrix products, whose cost grows as the tasks do.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.nn._trilinear import Kind, trilinear

Pads = tuple[tuple[int, int], ...]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# On CPU, kernel gradients take up to twice as long once a slice of images leaves a core's own cache, and up to three
# times as long image by image: a few are taken together while the cache that cores share holds them.
_SLICE_BYTES = 2**18
_FEW_IMAGES, _FEW_BYTES = 4, 2**20
# Where all cores share a convolution, they want more, and images in multiples of a vector's length.
_SHARED_SLICE_BYTES, _VECTOR = 2**22, 16
# While a cache holds the patches, a sum of few products is faster as a matrix product.
_FEW_PRODUCTS, _PATCHES_BYTES = 100, 2**22

# Whether what is being traced is for a compiler whose convolutions share all cores of a CPU.
shared_cores = jax.make_user_context(False)


def conv2d(x: jax.Array, w: jax.Array, strides: tuple[int, ...], pads: Pads, precision: Any) -> jax.Array:
    """Convolves images `[n, h, w, c]` with a kernel `[kh, kw, c, o]`, of one type, to `[n, h', w', o]`."""
    shape = {"strides": strides, "pads": pads, "sizes": x.shape[1:3], "window": w.shape[:2]}
    return _conv2d(x, w, kind="y", **shape, precision=precision, shared_cores=shared_cores.value)


def patches(x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Any, dilation: Any) -> jax.Array:
    """What each output sees: `[n, *spatial, channels]` to `[n, *out, prod(window) * channels]`."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    out = [(size - r) // s + 1 for size, r, s in zip(x.shape[1:-1], reach, strides, strict=True)]
    taps = []
    for tap in itertools.product(*(range(k) for k in window)):
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        ranges = (slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, out, strides, strict=True))
        taps.append(x[(slice(None), *ranges)])
    return jnp.concatenate(taps, axis=-1)


def few_products(kernel: jax.Array) -> bool:
    """Whether the values of a convolution are sums of few products each: on CPU, less work than to store them."""
    return math.prod(kernel.shape[:-1]) <= _FEW_PRODUCTS


def product(x: jax.Array, w: jax.Array, strides: Any, pads: Any, dilation: Any, **kwargs: Any) -> jax.Array:
    """The convolution as slices and one matrix product."""
    seen = patches(x, w.shape[:-2], strides, pads, dilation)
    return jnp.matmul(seen, w.reshape(math.prod(w.shape[:-1]), w.shape[-1]), **kwargs)


def _of_value(value: Callable[..., jax.Array], a: jax.Array, b: jax.Array, *, kind: Kind, **params: Any) -> jax.Array:
    """Any kind: `value(x, w)`, or one of its two transposes."""
    if kind == "y":
        return value(a, b)
    if kind == "x":
        like = jax.ShapeDtypeStruct((a.shape[0], *params["sizes"], b.shape[2]), a.dtype)
        return jax.linear_transpose(lambda x: value(x, b), like)(a)[0]
    like = jax.ShapeDtypeStruct((*params["window"], a.shape[3], b.shape[3]), a.dtype)
    return jax.linear_transpose(lambda w: value(a, w), like)(b)[0]


def _as_products(a: jax.Array, b: jax.Array, **params: Any) -> jax.Array:
    """Any kind as slices and products."""
    strides, pads, precision = (params[name] for name in ("strides", "pads", "precision"))
    return _of_value(lambda x, w: product(x, w, strides, pads, (1, 1), precision=precision), a, b, **params)


def _as_jax_does(a: jax.Array, b: jax.Array, **params: Any) -> jax.Array:
    """Any kind as JAX's own convolution, transposed where need be."""
    strides, pads, precision = (params[name] for name in ("strides", "pads", "precision"))
    convolve = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=_LAYOUT, precision=precision)
    return _of_value(lambda x, w: convolve(x, w, strides, pads), a, b, **params)


def _for_cpu(a: jax.Array, b: jax.Array, *, kind: Kind, **params: Any) -> jax.Array:
    """Any kind as a convolution with its axes in the usual order; the kind "w" in slices of the images."""
    strides, pads, sizes, window = (params[name] for name in ("strides", "pads", "sizes", "window"))
    convolve = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=_LAYOUT, precision=params["precision"])
    if kind == "y":
        known = all(isinstance(n, int) for n in a.shape)
        if known and few_products(b) and a.nbytes * math.prod(window) // math.prod(strides) <= _PATCHES_BYTES:
            return _as_products(a, b, kind=kind, **params)
        return convolve(a, b, strides, pads)
    if kind == "x":
        if strides != (1, 1):  # input dilation multiplies mostly zeros
            return _as_products(a, b, kind=kind, **params)
        flipped = b[::-1, ::-1].swapaxes(2, 3)
        back = [
            (k - 1 - low, size + k - 1 - out - (k - 1 - low))
            for k, (low, _), size, out in zip(window, pads, sizes, a.shape[1:3], strict=True)
        ]
        return convolve(a, flipped, (1, 1), back)
    return _over_slices(a, b, **params)


def _over_slices(x: jax.Array, g: jax.Array, *, shared_cores: bool, **params: Any) -> jax.Array:
    """The kind "w" as a sum over slices of the images, each of a size that a cache holds."""
    wide = jnp.promote_types(x.dtype, jnp.float32)  # 16 bits are too few to add slices in

    def part(x: jax.Array, g: jax.Array) -> jax.Array:
        return _channels_as_images(x, g, **params).astype(wide)

    images = x.shape[0]
    if not images:
        return _channels_as_images(x, g, **params)
    size = min(images, _slice(max(x.nbytes, g.nbytes, 1) / images, shared_cores))
    whole = images - images % size
    slices = tuple(operand[:whole].reshape(-1, size, *operand.shape[1:]) for operand in (x, g))
    if whole == size:
        total = part(slices[0][0], slices[1][0])
    else:
        like = jnp.zeros((*params["window"], x.shape[3], g.shape[3]), wide)
        total = jax.lax.scan(lambda sum_, slice_: (sum_ + part(*slice_), None), like, slices)[0]
    return (total if whole == images else total + part(x[whole:], g[whole:])).astype(x.dtype)


def _slice(image_bytes: float, shared_cores: bool) -> int:
    """How many images of so many bytes to take together."""
    fitting, few, shared = (int(limit / image_bytes) for limit in (_SLICE_BYTES, _FEW_BYTES, _SHARED_SLICE_BYTES))
    if shared_cores:
        return max(1, shared - shared % _VECTOR if shared > _VECTOR else shared)
    return max(1, fitting, min(few, _FEW_IMAGES))


def _channels_as_images(
    x: jax.Array, g: jax.Array, *, strides: Any, pads: Pads, sizes: Any, window: Any, precision: Any
) -> jax.Array:
    """The kind "w" as a convolution in which channels take the place of images, and images that of channels."""
    reach = [(out - 1) * s + k for out, s, k in zip(g.shape[1:3], strides, window, strict=True)]
    over = [(low, r - size - low) for (low, _), r, size in zip(pads, reach, sizes, strict=True)]
    found = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        over,
        rhs_dilation=strides,
        dimension_numbers=_LAYOUT,
        precision=precision,
    )
    return found.transpose(1, 2, 0, 3)


def _batch(args: tuple[jax.Array, jax.Array], axes: tuple[Any, Any], **params: Any) -> tuple[jax.Array, int]:
    mapped = [axis is not None for axis in axes]
    first = [jnp.moveaxis(a, axis, 0) if m else a for a, axis, m in zip(args, axes, mapped, strict=True)]
    if all(a.shape[0] == 1 for a, m in zip(first, mapped, strict=True) if m):  # a chunk of one task
        return _conv2d(*(a[0] if m else a for a, m in zip(first, mapped, strict=True)), **params)[None], 0
    if params["kind"] != "w" and not mapped[1]:  # one kernel for all: they are so many more images
        a, b = first
        found = _conv2d(a.reshape(-1, *a.shape[2:]), b, **params)
        return found.reshape(*a.shape[:2], *found.shape[1:]), 0
    each = jax.vmap(lambda a, b: _as_products(a, b, **params), tuple(0 if m else None for m in mapped))
    return each(*first), 0


_conv2d = trilinear(
    "conv2d",
    form=_as_jax_does,
    on_cpu=_for_cpu,
    batch=_batch,
    static=("strides", "pads", "sizes", "window", "precision", "shared_cores"),
)
