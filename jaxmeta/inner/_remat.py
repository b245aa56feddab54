"""A scan that recomputes instead of remembering.

Reverse mode through K steps keeps something of every step. With n levels of checkpoints it keeps about n K^(1/n)
carries instead, and runs every step up to n times more:

    levels  0    K steps' residuals
            1    K carries, and one step's residuals: each step runs again
            2    2 sqrt(K) carries: segments of sqrt(K) steps run again
            n    n K^(1/n) carries: segments of segments
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmeta._memory import peak_bytes

Remat = int | Literal["auto"]

_MOST_LEVELS = 8

Step = Callable[[Any, Any], tuple[Any, Any]]


def scan(step: Step, carry: Any, xs: Any, *, length: int, levels: int, step_residuals: bool) -> tuple[Any, Any]:
    """`jax.lax.scan` with `levels` of checkpoints.

    Args:
        step: `(carry, x) -> (carry, y)`.
        carry: where to start.
        xs: arrays with a leading axis of `length`, or None.
        length: the number of steps.
        levels: of checkpoints, 0 or more.
        step_residuals: whether a step keeps more than its carry, so that the steps of an innermost segment are worth
            a checkpoint each.

    Returns:
        `(carry, ys)`, as `jax.lax.scan`.
    """
    levels = min(levels, max(1, length.bit_length() - 1))  # of segments of two steps or more
    if length == 1:  # without a loop, whose carry `jax.vmap` would copy for each task before the only step
        moved, y = step(carry, jax.tree.map(lambda leaf: leaf[0], xs))
        if jax.tree.map(jax.typeof, moved) == jax.tree.map(jax.typeof, carry):  # else the loop tells what is wrong
            return moved, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], y)
    if levels == 0 or length <= 1:
        return jax.lax.scan(step, carry, xs, length=length)
    if levels == 1:
        return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, xs, length=length)
    size = _segment(length, levels)
    count, rest = divmod(length, size)
    inner = levels - 1 if levels > 2 or step_residuals else 0

    def segments(carry: Any, xs: Any, size: int, count: int) -> tuple[Any, Any]:
        def segment(carry: Any, xs: Any) -> tuple[Any, Any]:
            return scan(step, carry, xs, length=size, levels=inner, step_residuals=step_residuals)

        parts = jax.tree.map(lambda leaf: leaf.reshape(count, size, *leaf.shape[1:]), xs)
        carry, ys = jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), carry, parts, length=count)
        return carry, jax.tree.map(lambda leaf: leaf.reshape(count * size, *leaf.shape[2:]), ys)

    whole = size * count
    carry, ys = segments(carry, jax.tree.map(lambda leaf: leaf[:whole], xs), size, count)
    if not rest:
        return carry, ys
    carry, last = segments(carry, jax.tree.map(lambda leaf: leaf[whole:], xs), rest, 1)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)


def _segment(length: int, levels: int) -> int:
    """Steps in a segment of the outermost level, of which there are K^(1/n), and two at least."""
    return -(-length // max(2, round(length ** (1 / levels))))


def choose_levels(remat: Remat, gradient: Callable[..., Any], carry: Any, *, length: int, step_residuals: bool) -> int:
    """How many levels of checkpoints to use.

    Args:
        remat: a number of levels, or `"auto"` for the fewest with which what is kept takes no more memory than one
            step does on its own.
        gradient: one step's gradient, a function of `carry`, for measuring what it needs.
        carry: what a step hands on.
        length: the number of steps.
        step_residuals: whether a step without a checkpoint keeps about all it computes, and not its carry alone.

    Raises:
        ValueError: `remat` is neither a number of levels nor `"auto"`.
    """
    if isinstance(remat, int) and not isinstance(remat, bool) and 0 <= remat <= _MOST_LEVELS:
        return remat
    if remat != "auto":
        raise ValueError(f'remat must be a number of levels in [0, {_MOST_LEVELS}] or "auto", but is {remat!r}')
    if length <= 1:
        return 0
    one = peak_bytes(gradient, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), carry))
    handed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
    kept = {0: length * (one if step_residuals else handed), 1: length * handed}
    kept |= {n: n * length ** (1 / n) * handed for n in range(2, _MOST_LEVELS + 1)}
    return next((levels for levels, size in kept.items() if size <= one), min(kept, key=lambda n: kept[n]))
