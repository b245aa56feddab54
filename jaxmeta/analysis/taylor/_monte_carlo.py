"""The same means where tasks and mini-batches are drawn, with standard errors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.analysis.taylor._terms import LossFn, gradient_agreement, pool_length, terms


class Estimate(NamedTuple):
    """A mean over draws.

    Attributes:
        mean: of each coordinate.
        standard_error: of `mean`, of the same structure; 1.96 of them make a 95 % interval.
    """

    mean: Any
    standard_error: Any


def estimate_terms(
    loss_fn: LossFn, params: Any, draw: Callable[[jax.Array], Any], key: jax.Array, *, samples: int
) -> dict[str, Estimate]:
    """AvgGrad, AvgGradInner, Self and the gradient agreement, estimated over tasks and mini-batches.

    Each draw is one task with n mini-batches, over which the means are exact (unbiased where these are independent
    given the task, or different ones of a pool); the standard error is that of the mean over draws. Memory does not
    grow with their number.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where, any pytree of floating-point arrays.
        draw: `key -> batches`, a task's mini-batches, every array `[n, ...]`, n >= 2.
        key: split into one key for each draw.
        samples: how many draws, at least two.

    Returns:
        By name: an `Estimate` of `"g"`, `"Hg:ab"`, `"Hg:aa"` and `"agreement"`; not finite where one draw's is not.

    Raises:
        ValueError: `samples` is less than 2, or `draw` gives fewer than two mini-batches.

    >>> loss = lambda w, target: jnp.sum((w - target) ** 2)
    >>> def draw(key):  # a task, and two mini-batches about it
    ...     task_key, noise_key = jax.random.split(key)
    ...     return jax.random.normal(task_key) + 0.1 * jax.random.normal(noise_key, (2, 1))
    >>> found = estimate_terms(loss, jnp.array([1.0]), draw, jax.random.key(0), samples=500)
    >>> mean, error = found["g"]
    >>> bool(jnp.abs(mean[0] - 2.0) < 4 * error[0])  # E[2 (w - target)]
    True
    """
    if samples < 2:
        raise ValueError(f"samples must be 2 or more for a standard error, but is {samples}")
    pool_length(jax.eval_shape(draw, key), least=2)

    def one(key: jax.Array) -> dict[str, Any]:
        batches = draw(key)
        found = terms(loss_fn, params, batches, order=1)
        return {**found, "agreement": gradient_agreement(loss_fn, params, batches)}

    def step(carry: tuple[Any, Any, Any], key: jax.Array) -> tuple[tuple[Any, Any, Any], None]:
        """Welford's update of means and sums of squared deviations."""
        count, mean, squares = carry
        value, count = one(key), count + 1
        moved = jax.tree.map(lambda m, v: m + (v - m) / count, mean, value)
        squares = jax.tree.map(lambda s, v, m, new: s + (v - m) * (v - new), squares, value, mean, moved)
        return (count, moved, squares), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, key))
    (_, mean, squares), _ = jax.lax.scan(step, (0, zeros, zeros), jax.random.split(key, samples))
    error = jax.tree.map(lambda s: jnp.sqrt(s / (samples - 1) / samples), squares)
    return {word: Estimate(mean[word], error[word]) for word in mean}
