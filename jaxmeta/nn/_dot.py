"""A matrix product whose derivatives stay fast where matrices are small.

The gradient of a kernel is X^T G. On CPU, XLA takes longer over such products of small matrices, one for each task,
than over transposing every X and multiplying. So the product is an operation of its own,
`_trilinear` with

    T(x, w, g) = sum_{n, i, o}  g[n, o] x[n, i] w[i, o],

of which the kind "w" transposes first. The kind "x" of a few rows and one kernel for all, of which the derivative of a
recurrent network is made, is for the same reason the transpose of W G^T. All else, and all of it on accelerators, is as
JAX does it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.nn._trilinear import Kind, default_precision, trilinear

# Where X takes more than this, about a quarter of a core's first-level cache, transposing it costs more than it saves.
_SMALL_BYTES = 2**13
# By a transposed kernel that all share, so few rows are slower than that kernel is by their transpose.
_FEW_ROWS = 16

_KINDS: dict[Any, Kind] = {
    (((1,), (0,)), ((), ())): "y",
    (((1,), (1,)), ((), ())): "x",
    (((0,), (0,)), ((), ())): "w",
}
# The axis of each operand that the product keeps.
_KEPT: dict[Kind, tuple[int, int]] = {"y": (-2, -1), "x": (-2, -2), "w": (-1, -1)}


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    out_sharding: Any = None,
) -> jax.Array:
    """`jax.lax.dot_general`, in forms that are fast to differentiate where they are the same thing.

    Pass it to Flax, `nn.Dense(40, dot_general=jaxmeta.nn.dot_general)`: a meta-gradient of the sinusoid network then
    takes 0.49 ms in place of 0.71 on two CPU cores (`python benchmarks/derivatives.py`). Products of two
    floating-point matrices of one type along one axis of each take the fast forms, and so do more axes of `lhs` before
    the last, as `nn.Dense` has them; everything else falls back to JAX's own operation. A policy of `jax.checkpoint`
    that looks for JAX's products, such as `dots_saveable`, does not see these, and `jax.experimental.jet` has no rule
    for them.

    Args:
        lhs: `[n, i]` for a product along its last axis, or `[i, n]`.
        rhs: `[i, o]` for a product along its first axis, or `[o, i]`.
        dimension_numbers: as in JAX: `(((1,), (0,)), ((), ()))` is `lhs @ rhs`.
        precision: as in JAX.
        preferred_element_type: as in JAX; falls back unless None.
        out_sharding: as in JAX; falls back unless None, and in a mesh with explicit axes.

    Returns:
        `[n, o]`.

    Raises:
        TypeError, ValueError: as `jax.lax.dot_general`.

    >>> dot_general(jnp.ones((2, 3)), jnp.ones((3, 1)), (((1,), (0,)), ((), ()))).tolist()
    [[3.0], [3.0]]
    """
    precision = tuple(precision) if isinstance(precision, list) else precision
    if preferred_element_type is None and out_sharding is None and _plain(lhs, rhs):
        contracted, batched = (tuple(map(tuple, axes)) for axes in dimension_numbers)
        before, matrix = lhs.shape[:-1], lhs
        if lhs.ndim != 2 and contracted == ((lhs.ndim - 1,), (0,)):
            matrix, contracted = lhs.reshape(math.prod(before), *lhs.shape[-1:]), ((1,), (0,))
        kind = _KINDS.get((contracted, batched)) if matrix.ndim == rhs.ndim == 2 else None
        if kind:
            found = _dot(matrix, rhs, kind=kind, precision=default_precision(precision))
            return found if matrix is lhs else found.reshape(*before, rhs.shape[1])
    return jax.lax.dot_general(
        lhs, rhs, dimension_numbers, precision, preferred_element_type, out_sharding=out_sharding
    )


def _plain(lhs: Any, rhs: Any) -> bool:
    """Whether they are floating-point arrays of one type, and no mesh's explicit axes are part of their types."""
    if not all(isinstance(operand, jax.Array) for operand in (lhs, rhs)):
        return False
    axes = {kind for operand in (lhs, rhs) for kind in jax.typeof(operand).sharding.mesh.axis_types}
    same = lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating)
    return same and jax.sharding.AxisType.Explicit not in axes


def _as_jax_does(a: jax.Array, b: jax.Array, *, kind: Kind, precision: Any) -> jax.Array:
    """Any kind, with leading axes that both share."""
    a, b = a.mT if kind == "w" else a, b.mT if kind == "x" else b
    return jnp.matmul(a, b, precision=precision)


def _for_cpu(a: jax.Array, b: jax.Array, *, kind: Kind, precision: Any) -> jax.Array:
    """Any kind; the kind "w" of small matrices transposed first, which XLA would undo."""
    constant = all(isinstance(size, int) for size in a.shape)  # as it is not in an exported program of any size
    if kind == "w" and constant and math.prod(a.shape[-2:]) * a.dtype.itemsize <= _SMALL_BYTES:
        return jnp.matmul(jax.lax.optimization_barrier(a.mT), b, precision=precision)
    if kind == "x" and constant and a.ndim == 2 and len(a) <= _FEW_ROWS:
        return jax.lax.optimization_barrier(jnp.matmul(b, a.mT, precision=precision)).mT
    return _as_jax_does(a, b, kind=kind, precision=precision)


def _batch(args: tuple[jax.Array, jax.Array], axes: tuple[Any, Any], **params: Any) -> tuple[jax.Array, int]:
    if None not in axes:
        a, b = (jnp.moveaxis(operand, axis, 0) for operand, axis in zip(args, axes, strict=True))
        return _dot(a, b, **params), 0
    # An axis that one operand has alone joins the one that the product keeps of it.
    which = int(axes[0] is None)
    kept, operands = _KEPT[params["kind"]][which], list(args)
    moved = jnp.moveaxis(operands[which], axes[which], kept - 1)
    at = moved.ndim + kept - 1
    joined = moved.shape[at : at + 2]
    operands[which] = moved.reshape(*moved.shape[:at], math.prod(joined), *moved.shape[at + 2 :])
    found = _dot(*operands, **params)
    at = found.ndim - 2 + which
    return found.reshape(*found.shape[:at], *joined, *found.shape[at + 1 :]), at


_dot = trilinear("dot", form=_as_jax_does, on_cpu=_for_cpu, batch=_batch, static=("precision",))
