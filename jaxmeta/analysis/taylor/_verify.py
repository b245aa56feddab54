"""Whether a method's mean meta-gradient is what its expansion says, measured in double precision.

The library's own `maml_grad`, `fomaml_grad` and `reptile_grad` are averaged, exactly, over the orderings of a pool of
mini-batches, at several alpha. With G(alpha) that mean and P_0, P_1, P_2 what is predicted order by order,

    fit        G(alpha) = V_0 + alpha V_1 + .. + alpha^d V_d, coordinate by coordinate
    measured   V_0 ~ c AvgGrad,   V_1 ~ c' AvgGradInner + c'' Self,   by least squares over coordinates
    residual   |G(alpha) - P_0|,  |G(alpha) - P_0 - alpha P_1|, ..    which must fall like alpha, alpha^2, ..

The measured coefficients owe nothing to the predicted ones. Their uncertainty is what the fit of the next lower degree
would change, and what rounding can.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxmeta.analysis.taylor._expansion import WORDS, Expansion
from jaxmeta.analysis.taylor._mean_gradient import mean_gradient
from jaxmeta.analysis.taylor._orderings import exact_orderings
from jaxmeta.analysis.taylor._terms import LossFn, pool_length, terms

_POINTS, _DEGREE = 6, 5
_EPS = 4 * np.finfo(np.float64).eps
_SEEN = 30  # what is to be told from rounding is so many times larger
_TRIES, _SHRINK = 4, 1 / 3  # of alpha, where it is chosen here and too large
_CURVED = 0.25  # an order is told from the next where the next is smaller than this share of it
_SLOPE_TOLERANCE = 0.05


class Coefficient(NamedTuple):
    """A coefficient, predicted and measured.

    Attributes:
        word: of which mean; see `Expansion.coefficients`.
        predicted: what the expansion says.
        measured: what the sweep over alpha says.
        uncertainty: how far `measured` may be off, by truncation and rounding.
    """

    word: str
    predicted: float
    measured: float
    uncertainty: float

    @property
    def error(self) -> float:
        """Measured less predicted."""
        return self.measured - self.predicted


class Verdict(NamedTuple):
    """What a sweep over alpha found.

    Attributes:
        expansion: what was predicted.
        coefficients: of AvgGrad, AvgGradInner and Self.
        alphas: the inner rates, `[points]`, falling.
        residuals: what is left after the predicted terms of order 0, 0..1 and, with order 2, 0..2, relative to the
            gradient, `[orders, points]`.
        slopes: log-log slopes of the residuals against alpha, one more than the order; infinite where nothing is left
            but rounding.
        orderings: how many orderings of the pool were averaged over.
        range: whether alpha was "fit", "too large" for the expansion, or "too small" for the precision.
        reasons: why it is not accepted; empty if it is.
    """

    expansion: Expansion
    coefficients: tuple[Coefficient, ...]
    alphas: np.ndarray
    residuals: np.ndarray
    slopes: tuple[float, ...]
    orderings: int
    range: Literal["fit", "too large", "too small"]
    reasons: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether prediction and measurement agree."""
        return not self.reasons


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
        TypeError: `params` are not all float64.
        ValueError: the pool has fewer mini-batches than the expansion names, an alpha is not positive, there are fewer
            than four, `order` is neither 1 nor 2, or AvgGrad is zero.
        FloatingPointError: a loss or a gradient is not finite.

    >>> from jaxmeta.analysis.taylor import expansion
    >>> with jax.enable_x64(True):
    ...     pool = (jnp.array([1.0, 1.5, 0.5]), jnp.array([1.0, -2.0, 0.5]))
    ...     loss = lambda w, b: jnp.sum(b[0] * jnp.cosh(w - b[1]))
    ...     verdict = verify_expansion(loss, jnp.array([0.0, 0.3]), pool, expansion("reptile", 3))
    >>> verdict.accepted, [round(c.measured, 6) + 0.0 for c in verdict.coefficients]
    (True, [3.0, -3.0, 0.0])
    """
    _check_inputs(params, batches, expansion, alphas, order)
    losses, found = _losses_and_terms(loss_fn, params, batches, order)
    if not np.isfinite(losses).all():
        bad = int(np.argmin(np.isfinite(losses)))
        raise FloatingPointError(f"the loss of mini-batch {bad} is {losses[bad]} at params")
    means = {word: _flat(mean) for word, mean in found.items()}
    if not np.linalg.norm(means["g"]) > 0:
        raise ValueError("AvgGrad is zero at params, so nothing can be measured against it: choose other params")
    predicted = [_predicted(expansion, means, words) for words in WORDS[: order + 1]]
    chosen = exact_orderings(pool_length(batches), len(set(expansion.batches)), order)
    rows = jnp.asarray(chosen[:, list(expansion.batches)])

    def sweep(rates: np.ndarray) -> Verdict:
        found = np.stack([_measure(loss_fn, expansion, params, batches, rows, alpha) for alpha in rates])
        return _judge(expansion, means, predicted, rates, found, len(chosen), tolerance)

    if alphas is not None:
        return sweep(np.sort(np.array(alphas, np.float64))[::-1])
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
    loss_fn: LossFn, expansion: Expansion, params: Any, batches: Any, rows: jax.Array, alpha: float
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
    ratios = [high / low for low, high in itertools.pairwise(sizes) if low and high]
    curvature = max((np.linalg.norm(means[w]) / sizes[0] for w in WORDS[1] if w in means), default=1.0)
    return size / (max(ratios, default=curvature) or 1.0) * 0.5 ** np.arange(_POINTS)


class _Fit(NamedTuple):
    vectors: np.ndarray  # V_0 .. V_d, [d + 1, size]
    noise: np.ndarray  # what rounding may have added to their norms, [d + 1]


def _judge(
    expansion: Expansion,
    means: dict[str, np.ndarray],
    predicted: list[np.ndarray],
    alphas: np.ndarray,
    sweep: np.ndarray,
    orderings: int,
    tolerance: float,
) -> Verdict:
    noise = _EPS * np.linalg.norm(sweep, axis=1)
    degree = min(len(alphas) - 1, _DEGREE)
    fits = [_fit(alphas, sweep, noise, d) for d in (degree, degree - 1)]
    found = [
        pair for power, words in enumerate(WORDS[:2]) for pair in _coefficients(expansion, means, fits, words, power)
    ]
    coefficients = tuple(coefficient for coefficient, _ in found)
    residuals = []
    for power, vector in enumerate(predicted):
        sweep = sweep - alphas[:, None] ** power * vector
        residuals.append(np.linalg.norm(sweep, axis=1))
    slopes = tuple(_slope(alphas, row, noise) for row in residuals)
    rounding = max(share for _, share in found)
    range_ = _range(alphas[0], fits[0], coefficients, rounding, len(predicted), tolerance)
    reasons = [f"alpha is {range_}"] if range_ != "fit" else []
    for c in coefficients:
        if not abs(c.error) <= tolerance:
            reasons.append(f"{c.word}: predicted {c.predicted:g}, measured {c.measured:.6g} ± {c.uncertainty:.1g}")
    for order, slope in enumerate(slopes):
        if not (slope == np.inf or abs(slope - order - 1) <= _SLOPE_TOLERANCE):
            reasons.append(f"what is left after order {order} falls like alpha^{slope:.2f}, not alpha^{order + 1}")
    scale = np.linalg.norm(fits[0].vectors[0])
    return Verdict(
        expansion, coefficients, alphas, np.stack(residuals) / scale, slopes, orderings, range_, tuple(reasons)
    )


def _fit(alphas: np.ndarray, sweep: np.ndarray, noise: np.ndarray, degree: int) -> _Fit:
    """A polynomial in alpha, coordinate by coordinate."""
    powers = np.arange(degree + 1)
    weights = np.linalg.pinv((alphas[:, None] / alphas[0]) ** powers) / alphas[0] ** powers[:, None]
    return _Fit(weights @ sweep, np.abs(weights) @ noise)


def _coefficients(
    expansion: Expansion, means: dict[str, np.ndarray], fits: Sequence[_Fit], words: Sequence[str], power: int
) -> list[tuple[Coefficient, float]]:
    """Each word's share of V_power, with the part of its uncertainty that rounding makes."""
    words = [word for word in words if word in means]
    solve = np.linalg.pinv(np.stack([means[word] for word in words], axis=1))
    best, lower = (solve @ fit.vectors[power] for fit in fits)
    rounding = fits[0].noise[power] * np.linalg.norm(solve, axis=1)
    return [
        (Coefficient(word, expansion.coefficients[word], float(b), float(abs(b - low) + r)), float(r))
        for word, b, low, r in zip(words, best, lower, rounding, strict=True)
    ]


def _slope(alphas: np.ndarray, residuals: np.ndarray, noise: np.ndarray) -> float:
    """Of log residual against log alpha, where the residual is more than rounding; infinite where it never is."""
    seen = residuals > _SEEN * noise
    if not seen.any():
        return np.inf
    return float(np.polyfit(np.log(alphas[seen]), np.log(residuals[seen]), 1)[0]) if seen.sum() > 2 else np.nan


def _range(
    top: float, fit: _Fit, coefficients: Sequence[Coefficient], rounding: float, orders: int, tolerance: float
) -> Literal["fit", "too large", "too small"]:
    """Whether orders stand apart at the largest alpha, and above rounding."""
    if rounding > tolerance:
        return "too small"
    if max(c.uncertainty for c in coefficients) > tolerance:
        return "too large"
    sizes = np.linalg.norm(fit.vectors, axis=1)
    for order in range(1, min(orders, len(sizes) - 2) + 1):
        if sizes[order] > _SEEN * fit.noise[order] and top * sizes[order + 1] > _CURVED * sizes[order]:
            return "too large"
    return "fit"


def _check_inputs(params: Any, batches: Any, expansion: Expansion, alphas: Sequence[float] | None, order: int) -> None:
    n, wanted = pool_length(batches), len(set(expansion.batches))
    if n < wanted:
        raise ValueError(f"k={expansion.k} wants {wanted} different mini-batches, but batches holds {n}")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, but is {order}")
    if alphas is not None and not all(alpha > 0 for alpha in alphas):
        raise ValueError(f"alphas must be positive, but are {list(alphas)}")
    if alphas is not None and len(set(alphas)) < 4:
        raise ValueError(f"alphas must be at least four, to tell orders apart, but are {list(alphas)}")
    if odd := {str(jnp.asarray(leaf).dtype) for leaf in jax.tree.leaves(params)} - {"float64"}:
        raise TypeError(
            f"params must be float64, to tell orders of alpha apart, but are {', '.join(sorted(odd))}: run under "
            "jax.enable_x64(True) and convert them"
        )


def _flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])
