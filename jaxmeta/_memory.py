"""How much memory a function needs, estimated from its trace alone (nothing is compiled)."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def peak_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Estimates the peak of live temporaries when `fn(*args)` runs, in bytes.

    Walks the traced program in order and counts every intermediate from where it is made to where it is
    last read. XLA fuses element-wise operations, so this is an upper estimate; it is meant for choosing
    between "a few kilobytes" and "many megabytes", not for accounting.

    Args:
        fn: any traceable function.
        *args: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
        Bytes, arguments excluded.
    """
    return max(1, _peak(jax.make_jaxpr(fn)(*args).jaxpr))


def _peak(jaxpr: core.Jaxpr) -> int:
    last_use = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars if isinstance(var, core.Var)}
    last_use |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if isinstance(var, core.Var)}
    dying: dict[int, int] = {}
    live = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        inner = max((_peak(sub) for sub in subprograms(eqn)), default=0)
        for var in eqn.outvars:
            size = _size(var)
            live += size
            end = max(i, last_use.get(var, i))
            dying[end] = dying.get(end, 0) + size
        peak = max(peak, live + inner)
        live -= dying.pop(i, 0)
    return peak


def subprograms(eqn: Any) -> list[core.Jaxpr]:
    """The programs that an equation of a program holds, such as a loop's body."""
    found = []
    for param in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
        if hasattr(param, "eqns"):
            found.append(getattr(param, "jaxpr", param))
    return found


def _size(var: Any) -> int:
    aval = var.aval
    return aval.size * aval.dtype.itemsize if hasattr(aval, "dtype") and hasattr(aval, "size") else 0
