"""Coefficients and slopes from a sweep over alpha, and what to think of them.

With G(alpha) the mean gradient and P_0, P_1, P_2 what is predicted order by order,

    fit        G(alpha) = V_0 + alpha V_1 + .. + alpha^d V_d, coordinate by coordinate
    measured   V_0 ~ c AvgGrad,   V_1 ~ c' AvgGradInner + c'' Self,   by least squares over coordinates
    residual   |G(alpha) - P_0|,  |G(alpha) - P_0 - alpha P_1|, ..    which must fall like alpha, alpha^2, ..

The measured coefficients owe nothing to the predicted ones. Their uncertainty is what the fit of the next lower degree
would change, and what rounding can.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxmeta.analysis.taylor._expansion import WORDS, Expansion

_DEGREE = 5
_EPS = 4 * np.finfo(np.float64).eps
_SEEN = 30  # what is to be told from rounding is so many times larger
_CURVED = 0.1  # an order is told from the next where the next is smaller than this share of it
_SLOPE_TOLERANCE = 0.05
_PARALLEL = 1e-6  # the sine of the angle below which two means point the same way


class Coefficient(NamedTuple):
    """A coefficient, predicted and measured.

    Attributes:
        word: of which mean; see `Expansion.coefficients`.
        predicted: what the expansion says.
        measured: what the sweep over alpha says.
        uncertainty: how far `measured` may be off, by truncation and rounding; infinite where it cannot be measured.
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


class _Fit(NamedTuple):
    vectors: np.ndarray  # V_0 .. V_d, [d + 1, size]
    noise: np.ndarray  # what rounding may have added to their norms, [d + 1]


def judge(
    expansion: Expansion,
    means: dict[str, np.ndarray],
    predicted: list[np.ndarray],
    alphas: np.ndarray,
    sweep: np.ndarray,
    orderings: int,
    tolerance: float,
) -> Verdict:
    """What a sweep shows: mean gradients `[points, size]` at alphas `[points]`, against predictions order by order."""
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
    hidden = np.isnan(slopes).any() or any(
        slope == np.inf and 0 < size <= _SEEN * noise[0]
        for slope, size in zip(slopes, _sizes_left(alphas[0], predicted), strict=True)
    )
    rounding = np.inf if hidden else max(share for _, share in found)
    range_ = _range(alphas[0], fits[0], coefficients, rounding, len(predicted), tolerance)
    reasons = [f"alpha is {range_}"] if range_ != "fit" else []
    if unclear := _unmeasurable(means):
        reasons.append(unclear)
    for c in coefficients:
        if np.isfinite(c.uncertainty) and not abs(c.error) <= tolerance:
            reasons.append(f"{c.word}: predicted {c.predicted:g}, measured {c.measured:.6g} ± {c.uncertainty:.1g}")
    for order, slope in enumerate(slopes):
        if np.isnan(slope):
            reasons.append(f"what is left after order {order} stands out of rounding at too few alphas for a slope")
        elif not (slope == np.inf or abs(slope - order - 1) <= _SLOPE_TOLERANCE):
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
    if power and _unmeasurable(means):
        return [(Coefficient(word, expansion.coefficients[word], np.nan, np.inf), 0.0) for word in words]
    solve = np.linalg.pinv(np.stack([means[word] for word in words], axis=1))
    best, lower = (solve @ fit.vectors[power] for fit in fits)
    rounding = fits[0].noise[power] * np.linalg.norm(solve, axis=1)
    return [
        (Coefficient(word, expansion.coefficients[word], float(b), float(abs(b - low) + r)), float(r))
        for word, b, low, r in zip(words, best, lower, rounding, strict=True)
    ]


def _unmeasurable(means: dict[str, np.ndarray]) -> str:
    """Why the coefficients of first order cannot be measured at this point; empty if they can."""
    sizes = {word: float(np.linalg.norm(means[word])) for word in WORDS[1] if word in means}
    if zero := [word for word, size in sizes.items() if not size]:
        return f"{' and '.join(zero)} vanish at params, so their coefficients cannot be measured"
    columns = np.stack([means[word] / size for word, size in sizes.items()], axis=1)
    if len(sizes) == 2 and np.linalg.svd(columns, compute_uv=False)[1:].sum() < _PARALLEL:
        return "Hg:ab and Hg:aa are parallel at params, as always in one dimension: not to be told apart"
    return ""


def _sizes_left(top: float, predicted: Sequence[np.ndarray]) -> list[float]:
    """How large what is left after each order should be at the largest alpha; after the last, if orders go on so."""
    sizes = [top**power * float(np.linalg.norm(vector)) for power, vector in enumerate(predicted)]
    return [*sizes[1:], sizes[0] * (sizes[1] / (sizes[0] or np.inf)) ** len(sizes)]


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
    if max(c.uncertainty for c in coefficients if np.isfinite(c.uncertainty)) > tolerance:
        return "too large"
    sizes = np.linalg.norm(fit.vectors, axis=1)
    for order in range(1, min(orders, len(sizes) - 2) + 1):
        if sizes[order] > _SEEN * fit.noise[order] and top * sizes[order + 1] > _CURVED * sizes[order]:
            return "too large"
    return "fit"
