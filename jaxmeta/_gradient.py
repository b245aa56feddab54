"""Gradients that no `jax.shard_map` sums over devices.

Inside one, JAX sums the derivative with respect to what all devices share. A gradient step of one device would then
descend the tasks of all, and an outer gradient be of all tasks where that of one was asked for.
"""

from collections.abc import Callable
from typing import Any

import jax


def outer_gradient(outer: Callable[[Any], tuple[jax.Array, Any]], params: Any) -> tuple[Any, Any]:
    """The gradient of an outer loss `params -> (scalar, metrics)`, and the metrics.

    Raises:
        ValueError: inside `jax.shard_map`, the loss differs between devices and `params` do not.

    >>> grads, metrics = outer_gradient(lambda w: (w**2, {"error": w}), 3.0)
    >>> float(grads), float(metrics["error"])
    (6.0, 3.0)
    """

    def checked(params: Any) -> tuple[jax.Array, Any]:
        found = outer(params)
        check_varies_alike(found[0], params)
        return found

    return jax.grad(checked, has_aux=True)(params)


def check_varies_alike(loss: Any, params: Any) -> None:
    """Raises if a `jax.shard_map` would sum the gradients over devices."""
    axes = jax.typeof(loss).mat.varying if isinstance(loss, jax.Array) else frozenset()
    if any(alone := axes - jax.typeof(leaf).mat.varying for leaf in jax.tree.leaves(params)):
        names = tuple(sorted(alone))
        raise ValueError(
            f"inside jax.shard_map the loss differs along the mesh axes {names} and params do not, so that JAX would "
            f"sum gradients over them: give params as jax.lax.pcast(params, {names}, to='varying'), or shard_map "
            "check_vma=False"
        )
