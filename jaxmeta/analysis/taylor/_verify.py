"""Whether a method's mean meta-gradient is what its expansion says, measured in double precision.

The library's own `maml_grad`, `fomaml_grad` and `reptile_grad` are averaged, exactly, over the orderings of a pool of
mini-batches, at several alpha. What they come to is judged in `_verdict`.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxmeta._memory import subprograms
from jaxmeta.analysis.taylor._expansion import WORDS, Expansion
from jaxmeta.analysis.taylor._mean_gradient import mean_gradient
from jaxmeta.analysis.taylor._orderings import exact_orderings
from jaxmeta.analysis.taylor._terms import LossFn, pool_length, terms
from jaxmeta.analysis.taylor._verdict import Verdict, judge

_POINTS = 6
_TRIES, _SHRINK = 4, 1 / 3  # of alpha, where it is chosen here and too large


def verify_expansion(
    loss_fn: LossFn,
    params: Any,
    batches: Any,
    expansion: Expansion,
    *,
    alphas: Sequence[float] | None = None,
    order: Literal[1, 2] = 1,
    size: float = 0.01,
    tolerance: float = 1e-4,
) -> Verdict:
    """Measures a method's coefficients by a sweep over the inner rate, and compares them with an expansion's.

    Args:
        loss_fn: `(params, batch) -> scalar`, smooth near `params`: with kinks, as of ReLU, alpha must be so small that
            none is crossed.
        params: where, any pytree of float64 arrays.
        batches: the pool of one task's mini-batches, every array `[n, ...]`. With n a `pool_size`, few orderings
            average like all.
        expansion: what is predicted.
        alphas: inner rates, at least four; None for six, each half the one before, from where each predicted order is
            at most `size` of the one below it, or where that is too large, from a third of it, a ninth, or a 27th.
        order: up to which the prediction is compared; 2 differentiates the loss three times.
        size: see `alphas`. For losses with kinks, such as ReLU's, 1e-5.
        tolerance: how far a coefficient may be off.

    Returns:
        A `Verdict`.

    Raises:
        TypeError: `params` are not all float64, or the loss is no float64 scalar or computed in less on the way.
        ValueError: the pool has fewer mini-batches than the expansion names, or no few of its orderings average like
            all; a coefficient is missing or not finite; an alpha is not positive, or there are fewer than four;
            `order` is neither 1 nor 2, `size` or `tolerance` is out of range, or AvgGrad is zero.
        FloatingPointError: a loss or a gradient is not finite.

    >>> from jaxmeta.analysis.taylor import expansion
    >>> with jax.enable_x64(True):
    ...     pool = (jnp.array([1.0, 1.5, 0.5]), jnp.array([1.0, -2.0, 0.5]))
    ...     loss = lambda w, b: jnp.sum(b[0] * jnp.cosh(w - b[1]))
    ...     verdict = verify_expansion(loss, jnp.array([0.0, 0.3]), pool, expansion("reptile", 3))
    >>> verdict.accepted, [round(c.measured, 6) + 0.0 for c in verdict.coefficients]
    (True, [3.0, -3.0, 0.0])
    """
    _check_inputs(params, batches, expansion, order, size, tolerance)
    _check_loss(loss_fn, params, batches)
    rates = None if alphas is None else _checked_alphas(alphas)
    losses, found = _losses_and_terms(loss_fn, params, batches, order)
    if not np.isfinite(losses).all():
        bad = int(np.argmin(np.isfinite(losses)))
        raise FloatingPointError(f"the loss of mini-batch {bad} is {losses[bad]} at params")
    means = {word: _flat(mean) for word, mean in found.items()}
    for word, mean in means.items():
        if not np.isfinite(mean).all():
            raise FloatingPointError(f"the mean {word!r} of the losses' derivatives is not finite at params")
    if not np.linalg.norm(means["g"]) > 0:
        raise ValueError("AvgGrad is zero at params, so nothing can be measured against it: choose other params")
    predicted = [_predicted(expansion, means, words) for words in WORDS[: order + 1]]
    rows = exact_orderings(pool_length(batches), expansion.different, order)

    def sweep(rates: np.ndarray) -> Verdict:
        found = np.stack([_measure(loss_fn, expansion, params, batches, rows, alpha) for alpha in rates])
        return judge(expansion, means, predicted, rates, found, len(rows), tolerance)

    if rates is not None:
        return sweep(rates)
    ladder = _ladder(predicted, means, size)
    verdict = sweep(ladder)
    for attempt in range(1, _TRIES):
        if verdict.range == "too large":
            verdict = sweep(ladder * _SHRINK**attempt)
    return verdict


@functools.partial(jax.jit, static_argnums=(0, 3))
def _losses_and_terms(loss_fn: LossFn, params: Any, batches: Any, order: int) -> tuple[jax.Array, dict[str, Any]]:
    return jax.vmap(loss_fn, (None, 0))(params, batches), terms(loss_fn, params, batches, order=order)


def _measure(
    loss_fn: LossFn, expansion: Expansion, params: Any, batches: Any, rows: np.ndarray, alpha: float
) -> np.ndarray:
    found = _flat(mean_gradient(loss_fn, params, batches, expansion, alpha, rows))
    if not np.isfinite(found).all():
        raise FloatingPointError(f"the mean gradient of {expansion.method} is not finite at alpha={alpha:g}")
    return found


def _predicted(expansion: Expansion, means: dict[str, np.ndarray], words: Sequence[str]) -> np.ndarray:
    zero = np.zeros_like(means["g"])
    return sum((expansion.coefficients[w] * means[w] for w in words if expansion.coefficients[w]), zero)


def _ladder(predicted: list[np.ndarray], means: dict[str, np.ndarray], size: float) -> np.ndarray:
    """Six halving rates, the first such that each order is at most `size` of the one below it."""
    sizes = [float(np.linalg.norm(vector)) for vector in predicted]
    sizes[0] = sizes[0] or float(np.linalg.norm(means["g"]))
    ratios = [high / low for low, high in itertools.pairwise(sizes) if low and high]
    curvature = max((np.linalg.norm(means[w]) / sizes[0] for w in WORDS[1] if w in means), default=1.0)
    return size / (max(ratios, default=curvature) or 1.0) * 0.5 ** np.arange(_POINTS)


def _check_inputs(params: Any, batches: Any, expansion: Expansion, order: int, size: float, tolerance: float) -> None:
    n, wanted = pool_length(batches), expansion.different
    if n < wanted:
        raise ValueError(f"k={expansion.k} wants {wanted} different mini-batches, but batches holds {n}")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, but is {order}")
    if not 0 < size < 1:
        raise ValueError(f"size must lie between 0 and 1, but is {size}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, but is {tolerance}")
    named = {word for words in WORDS for word in words}
    if bad := sorted(w for w in named if not np.isfinite(expansion.coefficients.get(w, np.nan))):
        raise ValueError(f"expansion must have a finite coefficient of each word, but has none of {', '.join(bad)}")
    if odd := {str(jnp.asarray(leaf).dtype) for leaf in jax.tree.leaves(params)} - {"float64"}:
        raise TypeError(
            f"params must be float64, to tell orders of alpha apart, but are {', '.join(sorted(odd))}: run under "
            "jax.enable_x64(True) and convert them"
        )


def _check_loss(loss_fn: LossFn, params: Any, batches: Any) -> None:
    traced, loss = jax.make_jaxpr(loss_fn, return_shape=True)(params, jax.tree.map(lambda leaf: leaf[0], batches))
    if not isinstance(loss, jax.ShapeDtypeStruct) or loss.shape or loss.dtype != np.float64:
        raise TypeError(f"loss_fn must return a float64 scalar, but returns {loss}")
    if narrow := sorted(set(_narrowed(traced.jaxpr))):
        raise TypeError(f"loss_fn must compute in double precision, but converts float64 to {', '.join(narrow)} inside")


def _narrowed(jaxpr: Any) -> Iterator[str]:
    """Types of less precision that float64 values are converted to."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == np.float64:
            new = eqn.params["new_dtype"]
            if jnp.issubdtype(new, jnp.floating) and new != np.float64:
                yield str(new)
        for sub in subprograms(eqn):
            yield from _narrowed(sub)


def _checked_alphas(alphas: Sequence[float]) -> np.ndarray:
    """Falling, each once."""
    found = np.unique(np.asarray(alphas, np.float64))[::-1]
    if not ((found > 0) & (found < np.inf)).all():
        raise ValueError(f"alphas must be positive and finite, but are {np.asarray(alphas).tolist()}")
    if len(found) < 4:
        raise ValueError(f"alphas must be at least four, to tell orders apart, but are {np.asarray(alphas).tolist()}")
    return found


def _flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])
