"""Splitting a pytree into the part that adapts and the part that stays.

A mask is a pytree of Python bools with the structure of the parameters: True adapts, False stays. The two
parts keep that structure, with `optax.MaskedNode()`, an empty subtree, where a leaf went to the other part,
so that any Optax transformation sees the names and nesting it expects.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

_HOLE = optax.MaskedNode()


def mask_by_path(adapts: Callable[[str], bool]) -> Callable[[Any], Any]:
    """A mask made from each parameter's path.

    Args:
        adapts: given a path such as `"params/norm_0/bias"`, whether that parameter adapts.

    Returns:
        A function from parameters to their mask, as the `mask` argument of `adapt` and of the factories takes.

    >>> mask_by_path(lambda path: "norm" not in path)({"conv": {"kernel": 0.0}, "norm": {"bias": 0.0}})
    {'conv': {'kernel': True}, 'norm': {'bias': False}}
    """

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: bool(adapts(jax.tree_util.keystr(path, simple=True, separator="/"))), params
        )

    return mask


def partition(params: Any, mask: Any) -> tuple[Any, Any]:
    """Splits parameters into `(adapting, staying)`.

    Args:
        params: any pytree.
        mask: a pytree of bools with the structure of `params`, a function that makes one from them, or None
            when everything adapts.

    Raises:
        ValueError: the mask's structure is not that of `params`, or no leaf adapts.
        TypeError: a leaf of the mask is not a Python bool.
    """
    if mask is None:
        return params, None
    mask = mask(params) if callable(mask) else mask
    if jax.tree.structure(mask) != jax.tree.structure(params):
        raise ValueError(
            f"mask must have the structure of params, {jax.tree.structure(params)}, but has {jax.tree.structure(mask)}"
        )
    leaves = jax.tree.leaves(mask)
    if wrong := [leaf for leaf in leaves if not isinstance(leaf, bool)]:
        raise TypeError(f"mask must hold Python bools, True where a parameter adapts, but holds {wrong[0]!r}")
    if not any(leaves):
        raise ValueError("mask is False everywhere: no parameter would adapt")
    adapting = jax.tree.map(lambda leaf, keep: leaf if keep else _HOLE, params, mask)
    staying = jax.tree.map(lambda leaf, keep: _HOLE if keep else leaf, params, mask)
    return adapting, staying


def merge(adapting: Any, staying: Any) -> Any:
    """Undoes `partition`."""
    if staying is None:
        return adapting
    return jax.tree.map(
        lambda a, b: b if isinstance(a, optax.MaskedNode) else a,
        adapting,
        staying,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
