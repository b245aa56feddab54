"""A method's meta-gradient, averaged over orderings of a pool: the library's own estimators at work."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxmeta.analysis.taylor._expansion import Expansion, Method
from jaxmeta.analysis.taylor._terms import LossFn, pool_length
from jaxmeta.episode import Episode
from jaxmeta.meta_batch import divide, sum_over_chunks
from jaxmeta.optimization import fomaml_grad, maml_grad, reptile_grad

_BLOCK = 8  # steps of rate 0 are put first until there are as many: one compiled program then serves k = 1 .. 8


def mean_gradient(loss_fn: LossFn, params: Any, batches: Any, expansion: Expansion, alpha: Any, rows: Any) -> Any:
    """A method's meta-gradient at one alpha, averaged over orderings.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where.
        batches: the pool, every array `[n, ...]`.
        expansion: names the method, its rates and its scale.
        alpha: the inner rate.
        rows: orderings of the pool, `[orderings, different]`, as `orderings` makes them: mini-batch b of the expansion
            is the b-th of each row.

    Returns:
        A pytree like `params`.

    Raises:
        ValueError: `alpha` is not positive, a row is shorter than the expansion's different mini-batches, or names one
            that the pool has not.

    >>> from jaxmeta.analysis.taylor import expansion, orderings
    >>> pool, loss = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0])), lambda w, b: b[0] * (w - b[1]) ** 2
    >>> forward = orderings(2, 2)[:1]  # L_1, then L_2
    >>> plans = [expansion(method, 2) for method in ("maml", "fomaml", "reptile")]
    >>> [round(float(mean_gradient(loss, jnp.array(0.0), pool, plan, 0.1, forward)), 4) for plan in plans]
    [5.28, 6.6, 4.6]
    """
    rows, n = np.asarray(rows), pool_length(batches)
    if not isinstance(alpha, Tracer) and not alpha > 0:
        raise ValueError(f"alpha must be positive, but is {alpha}")
    if rows.ndim != 2 or not len(rows) or rows.shape[1] < expansion.different:
        raise ValueError(
            f"rows must be [orderings, {expansion.different} or more], a column for each different mini-batch of the "
            f"expansion, but is {list(rows.shape)}"
        )
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(f"rows must name mini-batches 0 .. {n - 1}, but name {rows.min()} .. {rows.max()}")
    rates = np.array(expansion.rates)
    idle = -len(rates) % _BLOCK or (_BLOCK if not len(rates) else 0)
    rates = jnp.asarray(np.concatenate([np.zeros(idle), rates]))
    rows = jnp.asarray(np.pad(rows[:, list(expansion.batches)], ((0, 0), (idle, 0)), mode="edge"))
    return jax.tree.map(
        lambda leaf: expansion.scale * leaf, _mean(loss_fn, expansion.method, params, batches, rows, rates, alpha)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mean(
    loss_fn: LossFn, method: Method, params: Any, batches: Any, rows: jax.Array, rates: jax.Array, alpha: jax.Array
) -> Any:
    def one(row: jax.Array) -> Any:
        return sequence_gradient(loss_fn, method, params, jax.tree.map(lambda leaf: leaf[row], batches), rates, alpha)

    _, chunk = divide(len(rows), 1, None, one, rows[0])
    total = sum_over_chunks(lambda part: jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(one)(part)), rows, chunk)
    return jax.tree.map(lambda leaf: leaf / len(rows), total)


def sequence_gradient(loss_fn: LossFn, method: Method, params: Any, sequence: Any, rates: jax.Array, alpha: Any) -> Any:
    """The library's own estimator of one sequence of mini-batches `[k, ...]`, with a rate for each adaptation step."""
    padded = jnp.append(rates, 0.0)  # so that there is one to look at where no step is taken
    inner = optax.sgd(lambda count: alpha * padded[count])
    settings = {"optimizer": inner, "steps": len(rates), "minibatched": True}
    start = jax.tree.map(jnp.zeros_like, params)

    def away(step: Any, batch: Any) -> jax.Array:
        """The loss as a function of the way from params, so that Reptile's displacement keeps all its digits."""
        return loss_fn(jax.tree.map(jnp.add, params, step), batch)

    if method == "reptile":
        return reptile_grad(away, start, sequence, inner_lr=alpha, **settings)[0]
    task = Episode(*(jax.tree.map(lambda leaf, part=part: leaf[part], sequence) for part in (slice(-1), -1)))
    return (maml_grad if method == "maml" else fomaml_grad)(away, start, task, **settings)[0]
