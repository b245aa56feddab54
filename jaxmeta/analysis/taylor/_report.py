"""Verdicts as a table, as JSON and as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmeta.analysis.taylor._verdict import Verdict

_NAMES = {"g": "AvgGrad", "Hg:ab": "AvgGradInner", "Hg:aa": "Self"}
PRINTED = 2.0  # Reptile's coefficient of AvgGrad as many notes on the paper have it, for every k
_NUMBERS = ("predicted", "measured", "uncertainty", "error")
_METHODS = ("maml", "fomaml", "reptile")


def table(verdicts: Sequence[Verdict]) -> str:
    """Verdicts as text: predicted, measured and slopes, and below what is wrong.

    Args:
        verdicts: what `verify_expansion` returned.
    """
    columns = {"AvgGrad": 9, "measured": 22, "AvgGradInner": 14, "measured ": 24, "slopes": 24, "verdict": 10}
    lines = [f"{'method':9}{'k':>3}" + "".join(f"{name:>{width}}" for name, width in columns.items())]
    for verdict in verdicts:
        cells = []
        for word, width in (("g", 9), ("Hg:ab", 14)):
            found = [c for c in verdict.coefficients if c.word == word]
            shown = [(f"{c.predicted:g}", f"{round(c.measured, 8) + 0.0:.8f} ± {c.uncertainty:.0e}") for c in found]
            predicted, measured = shown[0] if shown else ("-", "-")
            cells.append(f"{predicted:>{width}}{measured:>{22 if word == 'g' else 24}}")
        slopes = ", ".join("-" if np.isinf(slope) else f"{slope:.3f}" for slope in verdict.slopes)
        ending = f"{slopes:>24}{'agrees' if verdict.accepted else 'REJECTED':>10}"
        lines.append(f"{verdict.expansion.method:9}{verdict.expansion.k:>3}" + "".join(cells) + ending)
    for verdict in verdicts:
        lines += [f"{verdict.expansion.method}, k={verdict.expansion.k}: {reason}" for reason in verdict.reasons]
    return "\n".join(lines)


def summary(verdict: Verdict) -> dict[str, Any]:
    """A verdict, JSON-able: what is infinite or was not measured is None.

    Args:
        verdict: what `verify_expansion` returned.
    """
    plan = verdict.expansion
    return {
        "method": plan.method,
        "k": plan.k,
        "batches": list(plan.batches),
        "rates": list(plan.rates),
        "coefficients": [
            {"of": _NAMES[c.word], "word": c.word, **{name: _finite(getattr(c, name)) for name in _NUMBERS}}
            for c in verdict.coefficients
        ],
        "slopes": [_finite(slope) for slope in verdict.slopes],
        "alphas": verdict.alphas.tolist(),
        "residuals": verdict.residuals.tolist(),
        "orderings": verdict.orderings,
        "range": verdict.range,
        "accepted": verdict.accepted,
        "reasons": list(verdict.reasons),
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def plot_verdicts(verdicts: Sequence[Verdict], title: str = "") -> Any:
    """Draws the coefficients against k, and the residuals of the largest k against alpha with their slopes.

    Args:
        verdicts: what `verify_expansion` returned, of one method or several.
        title: what stands above.

    Returns:
        A Matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained", dpi=120)
    grad_axis, inner_axis, residual_axis = figure.subplots(1, 3)
    for color, method in enumerate(_METHODS):
        rows = [v for v in verdicts if v.expansion.method == method]
        for axis, word in ((grad_axis, "g"), (inner_axis, "Hg:ab")):
            _draw_coefficients(axis, rows, word, f"C{color}", method)
        if rows:
            _draw_residuals(residual_axis, max(rows, key=lambda v: v.expansion.k), f"C{color}")
    grad_axis.axhline(PRINTED, color="k", ls=":", lw=0.8, label="reptile, as often printed")
    grad_axis.set(xlabel="k", ylabel="coefficient of AvgGrad")
    inner_axis.set(xlabel="k", ylabel="coefficient of alpha AvgGradInner")
    residual_axis.set(xlabel="alpha", ylabel="what is left, relative", xscale="log", yscale="log")
    for axis in (grad_axis, residual_axis):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small")
    figure.suptitle(title)
    return figure


def _draw_coefficients(axis: Any, rows: Sequence[Verdict], word: str, color: str, label: str) -> None:
    found = [(v.expansion.k, c) for v in rows for c in v.coefficients if c.word == word]
    if not found:
        return
    k, coefficients = zip(*sorted(found, key=lambda pair: pair[0]), strict=True)
    axis.plot(k, [c.predicted for c in coefficients], color=color, lw=0.8, label=f"{label}, predicted")
    axis.errorbar(
        k,
        [c.measured for c in coefficients],
        [c.uncertainty for c in coefficients],
        fmt="o",
        capsize=3,
        color=color,
        label=f"{label}, measured",
    )


def _draw_residuals(axis: Any, verdict: Verdict, color: str) -> None:
    for order, (row, slope) in enumerate(zip(verdict.residuals, verdict.slopes, strict=True)):
        if np.isfinite(slope):
            label = f"{verdict.expansion.method}, k={verdict.expansion.k}, after order {order}: slope {slope:.3f}"
            axis.plot(verdict.alphas, row, "o" + ("-", "--", ":")[order], color=color, ms=3, label=label)
