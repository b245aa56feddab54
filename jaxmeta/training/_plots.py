"""Pictures of a run. Nothing here touches Matplotlib's global state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta import analysis
from jaxmeta.episode import Episode
from jaxmeta.learner import MetaLearner, Params
from jaxmeta.tasks import Source
from jaxmeta.training._evaluate import Evaluation


def plot_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Training loss and score against outer steps, one panel each; a validation may have left some rows out."""
    others = ("step", "tasks_per_second", "grad_norm", "param_norm")
    names = [name for name in dict.fromkeys(name for row in history for name in row) if name not in others]
    figure, axes = _figure(1, len(names))
    for axis, name in zip(axes, names, strict=True):
        axis.plot(*zip(*((row["step"], row[name]) for row in history if name in row), strict=True))
        axis.set(xlabel="outer step", ylabel=f"training {name}")
    figure.savefig(path)


def plot_steps(path: Path, evaluation: Evaluation) -> None:
    """The score after each adaptation step, with 95 % intervals."""
    if evaluation.by_step is None:
        return
    means, intervals = np.array(evaluation.by_step).T
    figure, (axis,) = _figure(1, 1)
    axis.errorbar(np.arange(len(means)), means, intervals, marker="o", markersize=3, capsize=2)
    axis.set(xlabel="adaptation steps", ylabel=f"test {evaluation.metric}")
    figure.savefig(path)


def plot_curves(path: Path, learner: MetaLearner, params: Params, source: Source, *, seed: int, tasks: int = 3) -> None:
    """Functions of one variable, before, during and after adaptation, beside the truth and the support points."""
    figure, axes = _figure(1, tasks)
    for axis, key in zip(axes, jax.random.split(jax.random.key(seed), tasks), strict=True):
        episode: Episode = source.sample(source.data, key)
        order = np.argsort(episode.query.x[:, 0])
        x = episode.query.x[order]
        axis.plot(x, episode.query.y[order], color="black", label="truth")
        axis.plot(episode.support.x, episode.support.y, "^", color="black", label="support")
        assert learner.predict_path is not None
        curves = learner.predict_path(params, episode.support, x, key)
        for step in sorted({0, 1, len(curves) - 1}):
            axis.plot(x, curves[step], "--", label=f"{step} steps")
        axis.set(xlabel="x")
    axes[0].legend(fontsize="small")
    figure.savefig(path)


def plot_episode(path: Path, source: Source, *, seed: int) -> None:
    """The support images of one episode, a column for each class, and one query image below."""
    episode: Episode = source.sample(source.data, jax.random.key(seed))
    support, query = (np.asarray(batch.x) for batch in episode)
    ways = source.info["ways"]
    rows = [*support.reshape(ways, -1, *support.shape[1:]).swapaxes(0, 1)[:4]]
    rows.append(query.reshape(ways, -1, *query.shape[1:])[:, 0])
    figure, axes = _figure(len(rows), ways, size=1.0)
    for axis, image in zip(axes, np.concatenate(rows), strict=True):
        axis.imshow(image, cmap="gray_r" if image.shape[-1] == 1 else None)
        axis.set(xticks=[], yticks=[])
    axes[0].set_ylabel("support")
    axes[-ways].set_ylabel("query")
    figure.savefig(path)


def plot_embedding(path: Path, learner: MetaLearner, params: Params, source: Source, *, seed: int) -> None:
    """The embeddings of one episode, as `analysis.plot_embedding` shows them."""
    assert learner.compare is not None
    key = jax.random.key(seed)
    episode: Episode = source.sample(source.data, key)
    found = learner.compare(params, episode.support, episode.query.x, key)
    analysis.plot_embedding(found, episode.support.y, episode.query.y).savefig(path)


def plot_kernel(path: Path, learner: MetaLearner, params: Params, source: Source, *, seed: int) -> None:
    """k(x, x_i) of one episode: a row for each query, in the order of classes, a column for each reference."""
    assert learner.compare is not None
    key = jax.random.key(seed)
    episode: Episode = source.sample(source.data, key)
    found = learner.compare(params, episode.support, episode.query.x, key)
    figure, (axis,) = _figure(1, 1, size=4.0)
    picture = axis.imshow(np.exp(np.asarray(found.log_kernel)), aspect="auto", cmap="viridis", vmin=0.0)
    axis.set(xlabel="class" if found.labels is None else "support example", ylabel="query, class by class")
    figure.colorbar(picture, label="k(x, x_i)")
    figure.savefig(path)


def _figure(rows: int, columns: int, size: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size * columns * 1.25, size * rows), layout="constrained", dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()
