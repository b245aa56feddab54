"""Sums of many numbers in 32 bits at least: with 16 they overflow early, and depend on how they are divided."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def wide(dtype: Any) -> Any:
    """The type to add many numbers of a type in: that with 32 bits for floating-point types of fewer."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def widened(tree: Any) -> Any:
    """All arrays of a tree in types to add them in."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(wide(jnp.result_type(leaf))), tree)


def wide_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves of a tree together."""
    return optax.tree.norm(widened(tree))
