"""Estimators of the meta-gradient side by side: the same parameters, the same tasks, the same program around them."""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxmeta._precision import widened
from jaxmeta.analysis._inspect import inspect_compiled
from jaxmeta.episode import Episode
from jaxmeta.learner import MetaLearner, Metrics, Params, descended
from jaxmeta.meta_batch import batch_meta_grad

# Of the inner objective's gradient, what may be left at the end of the inner loop.
_FAR = 0.25

MetaGrad = Callable[[Params, Episode, jax.Array], tuple[Params, Metrics]]


class EstimatorRow(NamedTuple):
    """One estimator against the reference.

    Attributes:
        name: the estimator's.
        cosine: of the angle between its gradient and the reference's.
        norm_ratio: its norm over the reference's.
        relative_error: the norm of their difference over the reference's.
        loss: its metric `loss`, the mean over tasks; NaN if it has none.
        flops: floating-point operations of matrix products and convolutions, loops multiplied out.
        temp_bytes: the compiled program's temporaries, on each device.
        compile_seconds: time that compilation took.
        step_seconds: the median time of a run.
        warnings: what is needlessly slow in it, see `inspect`; and of `imaml`, that its inner loop ends far from the
            solution.
    """

    name: str
    cosine: float
    norm_ratio: float
    relative_error: float
    loss: float
    flops: float
    temp_bytes: int
    compile_seconds: float
    step_seconds: float
    warnings: tuple[str, ...]


def compare(
    estimators: Mapping[str, MetaLearner | MetaGrad],
    params: Params,
    episodes: Episode,
    key: jax.Array,
    *,
    reference: str = "maml",
    repeats: int = 10,
    chunk: int | None = None,
    devices: int | None = None,
) -> list[EstimatorRow]:
    """Compares estimators of the mean meta-gradient over one batch of tasks.

    Args:
        estimators: by name, methods, or functions `(params, episode, key) -> (grads, metrics)` of one episode such as
            `lambda p, e, key: maml_grad(loss_fn, p, e, optimizer=inner, steps=5)` makes of any loss. All are given
            the same `params`.
        params: where to take the gradients.
        episodes: an `Episode` whose arrays carry a leading task axis.
        key: split into one key for each task.
        reference: the name of the estimator that others are measured against.
        repeats: runs that are timed, in turns; 0 for none, and a time of NaN.
        chunk: tasks mapped at once; see `batch_meta_grad`.
        devices: how many devices; see `batch_meta_grad`.

    Returns:
        An `EstimatorRow` for each estimator, in the order given.

    Raises:
        KeyError: `reference` is not among the estimators.
        ValueError: `repeats` is negative, or an estimator's gradients do not have the structure of the reference's.

    >>> from jaxmeta import Batch, fomaml_grad, maml_grad
    >>> import jax.numpy as jnp
    >>> loss = lambda w, batch: jnp.mean((w - batch.x) ** 2)
    >>> settings = {"optimizer": optax.sgd(0.25), "steps": 1}
    >>> found = compare(
    ...     {
    ...         "maml": lambda w, episode, key: maml_grad(loss, w, episode, **settings),
    ...         "fomaml": lambda w, episode, key: fomaml_grad(loss, w, episode, **settings),
    ...     },
    ...     jnp.ones(1),
    ...     Episode(*[Batch(jnp.zeros((4, 3, 1)), jnp.zeros((4, 3, 1)))] * 2),
    ...     jax.random.key(0),
    ...     devices=1,
    ... )
    >>> [(row.name, round(row.cosine, 4), round(row.norm_ratio, 4)) for row in found]
    [('maml', 1.0, 1.0), ('fomaml', 1.0, 2.0)]
    """
    if reference not in estimators:
        raise KeyError(f"reference={reference!r} is not among the estimators, {', '.join(estimators)}")
    if repeats < 0:
        raise ValueError(f"repeats must be 0 or more, but is {repeats}")
    inspections, runs, results = {}, {}, {}
    for name, estimator in estimators.items():
        inspections[name], runs[name] = inspect_compiled(
            _mean_over_tasks(estimator, chunk, devices), params, episodes, key
        )
        results[name] = jax.block_until_ready(runs[name](params, episodes, key))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in list(runs)[:: 1 if repeat % 2 == 0 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(runs[name](params, episodes, key))
            seconds[name].append(time.perf_counter() - began)
    exact = descended(results[reference][0])
    return [
        EstimatorRow(
            name,
            *_distance(name, descended(grads), exact),
            float(metrics.get("loss", math.nan)),
            inspections[name].flops,
            inspections[name].temp_bytes,
            inspections[name].compile_seconds,
            statistics.median(seconds[name]) if repeats else float("nan"),
            (*inspections[name].warnings, *_unsolved(metrics)),
        )
        for name, (grads, metrics) in results.items()
    ]


def _mean_over_tasks(estimator: MetaLearner | MetaGrad, chunk: int | None, devices: int | None) -> MetaGrad:
    if not isinstance(estimator, MetaLearner):

        def nothing(*_: Any) -> Any:
            raise NotImplementedError("this estimator has a meta-gradient alone")

        estimator = MetaLearner(nothing, estimator, nothing)
    return lambda params, episodes, key: batch_meta_grad(estimator, params, episodes, key, chunk=chunk, devices=devices)


def _unsolved(metrics: Metrics) -> tuple[str, ...]:
    """A warning where an implicit gradient was taken far from the solution, at which alone it holds."""
    residual = float(metrics.get("inner_residual", 0.0))
    if residual <= _FAR:
        return ()
    return (
        f"inner_residual={residual:.2g}, far from the solution at which its gradient holds: take more or larger steps",
    )


def _distance(name: str, grads: Params, exact: Params) -> tuple[float, float, float]:
    """Cosine, ratio of norms and relative error of gradients against the exact ones."""
    if jax.tree.structure(grads) != jax.tree.structure(exact):
        raise ValueError(
            f"the gradients of {name!r} have the structure {jax.tree.structure(grads)}, and the reference's "
            f"{jax.tree.structure(exact)}: all estimators must differentiate the same parameters"
        )
    grads, exact = widened(grads), widened(exact)
    norm, exact_norm = float(optax.tree.norm(grads)), float(optax.tree.norm(exact))
    if not norm or not exact_norm:
        return float("nan"), float("nan") if not exact_norm else 0.0, float("nan") if not exact_norm else 1.0
    # Of unit vectors, so that tiny gradients do not underflow.
    unit, exact_unit = (jax.tree.map(lambda g, n=n: g / n, tree) for tree, n in ((grads, norm), (exact, exact_norm)))
    error = float(optax.tree.norm(jax.tree.map(lambda a, b: (a - b) / exact_norm, grads, exact)))
    cosine = sum(float((a * b).sum()) for a, b in zip(*map(jax.tree.leaves, (unit, exact_unit)), strict=True))
    return float(np.clip(cosine, -1, 1)), norm / exact_norm, error


def table(rows: list[EstimatorRow]) -> str:
    """A comparison as text, with warnings below."""
    names = {"cosine": 9, "norm ratio": 12, "rel. error": 12, "MFLOP": 10, "temp MiB": 10, "compile s": 11, "ms": 9}
    lines = [f"{'estimator':16}" + "".join(f"{name:>{width}}" for name, width in names.items())]
    for row in rows:
        lines.append(
            f"{row.name:16}{row.cosine:>9.4f}{row.norm_ratio:>12.4f}{row.relative_error:>12.2e}{row.flops / 1e6:>10.1f}"
            f"{row.temp_bytes / 2**20:>10.2f}{row.compile_seconds:>11.2f}{1e3 * row.step_seconds:>9.2f}"
        )
    return "\n".join(lines + [f"{row.name}: {warning}" for row in rows for warning in row.warnings])


def plot_comparison(path: str | os.PathLike[str], rows: list[EstimatorRow], title: str = "") -> None:
    """Draws a comparison as bars: cosine, norm ratio, arithmetic, memory and time.

    Args:
        path: where to write the picture; its suffix names the format.
        rows: what `compare` returned.
        title: what stands above.
    """
    from matplotlib.figure import Figure

    panels = {
        "cosine to reference": [row.cosine for row in rows],
        "norm / reference": [row.norm_ratio for row in rows],
        "MFLOP": [row.flops / 1e6 for row in rows],
        "temporaries, MiB": [row.temp_bytes / 2**20 for row in rows],
        "time, ms": [1e3 * row.step_seconds for row in rows],
    }
    figure = Figure(figsize=(2.4 * len(panels), 0.9 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        axis.barh([row.name for row in rows], values, color="0.4")
        axis.set_xlabel(label)
    axes[0].invert_yaxis()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
