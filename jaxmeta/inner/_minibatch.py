"""Mini-batches for an inner loop, drawn as Reptile draws them (arXiv:1803.02999 and its code)."""

from typing import Any

import jax
import jax.numpy as jnp


def minibatch_indices(
    key: jax.Array, examples: int, *, batch_size: int, steps: int, replacement: bool = False
) -> jax.Array:
    """Indices of each step's mini-batch.

    Without replacement, mini-batches are consecutive slices of a shuffled list of the examples, which is
    reshuffled at each pass; what is left over at the end of a pass opens the next mini-batch, so one
    mini-batch can straddle two passes. With replacement, each mini-batch is drawn on its own from all
    examples, without repeats inside it.

    Args:
        key: the random key.
        examples: how many examples there are.
        batch_size: examples in a mini-batch.
        steps: how many mini-batches.
        replacement: draw each mini-batch independently of the others.

    Returns:
        Integers in `[0, examples)`, `[steps, batch_size]`.

    Raises:
        ValueError: `batch_size` is not in `[1, examples]`, or `steps` is negative.
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size={batch_size} must lie between 1 and the number of examples, {examples}")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, but is {steps}")
    total = steps * batch_size
    shuffles = steps if replacement else -(-total // examples)
    keys = jax.random.split(key, max(shuffles, 1))
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, examples))(keys)
    if replacement:
        return shuffled[:steps, :batch_size]
    return jnp.ravel(shuffled)[:total].reshape(steps, batch_size)


def minibatches(key: jax.Array, batch: Any, *, batch_size: int, steps: int, replacement: bool = False) -> Any:
    """Mini-batches of a batch, for `adapt(..., minibatched=True)`.

    Args:
        key: the random key.
        batch: any pytree of arrays `[n, ...]`.
        batch_size: examples in a mini-batch.
        steps: how many mini-batches.
        replacement: see `minibatch_indices`.

    Returns:
        The same pytree with arrays `[steps, batch_size, ...]`.

    Raises:
        ValueError: the arrays differ in length, or one has no axis, or as `minibatch_indices`.

    >>> drawn = minibatches(jax.random.key(0), jnp.arange(6.0), batch_size=3, steps=2)
    >>> drawn.shape, sorted(drawn.ravel().tolist())
    ((2, 3), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    """
    batch = jax.tree.map(jnp.asarray, batch)
    if any(leaf.ndim == 0 for leaf in jax.tree.leaves(batch)):
        raise ValueError("batch must hold arrays [n, ...], but one has no axis")
    sizes = sorted({leaf.shape[0] for leaf in jax.tree.leaves(batch)})
    if len(sizes) != 1:
        raise ValueError(f"batch must hold arrays of one length, but their lengths are {sizes}")
    (examples,) = sizes
    indices = minibatch_indices(key, examples, batch_size=batch_size, steps=steps, replacement=replacement)
    return jax.tree.map(lambda leaf: leaf[indices], batch)
