"""Values that are computed once and read from memory.

XLA's CPU compiler fuses elementwise operations into each of their readers, and computes them again there, for every
element that is read; `jax.lax.optimization_barrier` is gone by then. Two things come out slower by it:

- a small result that many elements read, such as which entry of a window is the largest, or that a transposed copy
  reads out of order;
- a loop's slice of stacked values, since code that looks up a step's number for every element is not vectorised.

A conditional, whose condition is behind a barrier until nobody looks at it any more, is nothing that can be fused.
"""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def stored(tree: Any) -> Any:
    """The same arrays, and the same derivatives; compiled for CPU, what they hold is written to memory, once.

    >>> float(jax.grad(lambda x: stored(x**2))(3.0))
    6.0
    """
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(_primitive.bind(*leaves)) if leaves else tree


def _itself(*leaves: jax.Array) -> list[jax.Array]:
    return list(leaves)


def _on_cpu(*leaves: jax.Array) -> list[jax.Array]:
    hidden = jax.lax.optimization_barrier  # of each leaf by itself: together, they would vary over the same mesh axes
    return jax.lax.cond(hidden(True), _itself, lambda *same: [hidden(leaf) for leaf in same], *leaves)


def _transpose(cotangents: list[Any], *leaves: Any) -> list[Any]:
    return [ct if ad.is_undefined_primal(leaf) else None for ct, leaf in zip(cotangents, leaves, strict=True)]


_primitive = Primitive("stored")
_primitive.multiple_results = True
_primitive.def_impl(_itself)
_primitive.def_abstract_eval(_itself)
ad.primitive_jvps[_primitive] = lambda primals, tangents: (_primitive.bind(*primals), tangents)
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = lambda args, axes: (_primitive.bind(*args), axes)
mlir.register_lowering(_primitive, mlir.lower_fun(_itself, multiple_results=True))
mlir.register_lowering(_primitive, mlir.lower_fun(_on_cpu, multiple_results=True), platform="cpu")
