"""Pictures of what memories and learned optimisers do. Nothing here touches Matplotlib's global state."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxmeta.memory import Reading
from jaxmeta.optimization import LSTMAdapted


def plot_reading(reading: Reading) -> Any:
    """One episode as a memory saw it: write weights, read weights and usage, a column for each step.

    Weights are summed over heads. Below stand the labels in the order they were read; an answer that was right, before
    its label was shown, is marked.

    Args:
        reading: from `jaxmeta.memory.read_episode`, of a network with a memory.

    Returns:
        A Matplotlib figure.

    Raises:
        ValueError: the network had no memory.

    >>> from jaxmeta import Batch
    >>> from jaxmeta.memory import MANN, read_episode
    >>> import jax.numpy as jnp
    >>> batch, model = Batch(jnp.eye(4), jnp.array([0, 1, 0, 1])), MANN(features=8, slots=6, width=3, reads=1)
    >>> params = model.init(jax.random.key(0), batch.x, jnp.zeros((4, 2)))
    >>> len(plot_reading(read_episode(model, params, batch, jax.random.key(0), ways=2)).axes)
    6
    """
    if reading.trace is None:
        raise ValueError("reading has no trace: the network was built without a memory")
    trace = reading.trace
    panels = {
        "write weights": trace.write_weights.sum(1),
        "read weights": trace.read_weights.sum(1),
        "usage": trace.usage,
    }
    figure, axes = _figure(len(panels), width=max(5.0, 0.16 * len(reading.labels)))
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        shown = axis.imshow(np.asarray(values).T, aspect="auto", cmap="magma", interpolation="nearest")
        figure.colorbar(shown, ax=axis)
        axis.set(ylabel=f"slot ({name})")
    marks = [
        f"{label}\n{'•' if right else ''}"
        for label, right in zip(np.asarray(reading.labels), np.asarray(reading.right), strict=True)
    ]
    axes[-1].set_xticks(range(len(marks)), marks, fontsize="x-small")
    axes[-1].set(xlabel="label read at each step; • answered right")
    return figure


def plot_instances(history: Sequence[dict[str, Any]]) -> Any:
    """Accuracy at each presentation of a class, over training.

    Args:
        history: of a `FitResult`, or the rows of a run's `metrics.jsonl`.

    Returns:
        A Matplotlib figure.

    Raises:
        ValueError: the history has no accuracies by presentation.

    >>> len(plot_instances([{"step": 1, "instance_1": 0.2, "instance_2": 0.4}]).axes)
    1
    """
    names = [name for name in history[0] if name.startswith("instance_")] if history else []
    if not names:
        raise ValueError("history has no metrics named instance_1, instance_2, ..: was it mann that was trained?")
    figure, (axis,) = _figure(1, width=5.0)
    for name in sorted(names, key=lambda name: int(name.split("_")[1])):
        axis.plot([row["step"] for row in history], [row[name] for row in history], label=name.split("_")[1])
    axis.set(xlabel="outer step", ylabel="training accuracy", ylim=(0, 1))
    axis.legend(title="presentation", fontsize="small")
    return figure


def plot_attention(attention: jax.Array, support_y: jax.Array, query_y: jax.Array) -> Any:
    """How much each query attends to each support example.

    Args:
        attention: `[q, n]`, from `jaxmeta.memory.recall`.
        support_y: labels `[n]`.
        query_y: labels `[q]`.

    Returns:
        A Matplotlib figure.

    Raises:
        ValueError: the shapes do not fit each other.

    >>> import jax.numpy as jnp
    >>> len(plot_attention(jnp.eye(3), jnp.arange(3), jnp.arange(3)).axes)
    2
    """
    if attention.shape != (len(query_y), len(support_y)):
        raise ValueError(
            f"attention has shape {attention.shape}, but there are {len(query_y)} queries and {len(support_y)} "
            "support examples"
        )
    figure, (axis,) = _figure(1, width=4.0, height=3.2)
    shown = axis.imshow(np.asarray(attention), cmap="magma", vmin=0)
    figure.colorbar(shown, ax=axis)
    axis.set_xticks(range(len(support_y)), np.asarray(support_y).tolist())
    axis.set_yticks(range(len(query_y)), np.asarray(query_y).tolist())
    axis.set(xlabel="support example, by label", ylabel="query, by label")
    return figure


def plot_gates(adapted: LSTMAdapted) -> Any:
    """The gates f and i of the LSTM meta-learner over steps, averaged over each tensor of the learner.

    Args:
        adapted: from `jaxmeta.optimization.lstm_adapt`.

    Returns:
        A Matplotlib figure.

    >>> import jax.numpy as jnp
    >>> gates = {"w": jnp.ones((3, 2))}
    >>> len(plot_gates(LSTMAdapted(None, jnp.zeros(3), gates, gates, None)).axes)
    2
    """
    figure, axes = _figure(2, width=6.0)
    gates = {"forget gate f": adapted.forget_gates, "input gate i": adapted.input_gates}
    for axis, (name, tree) in zip(axes, gates.items(), strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            label = jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/")
            means = np.asarray(leaf).reshape(len(leaf), -1).mean(1)
            axis.plot(np.arange(1, len(means) + 1), means, marker="o", markersize=3, label=label)
        axis.set(xlabel="inner step", ylabel=name)
    axes[0].legend(fontsize="x-small", ncols=2)
    return figure


def _figure(rows: int, *, width: float, height: float = 2.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained", dpi=110)
    return figure, figure.subplots(rows, 1, squeeze=False).ravel()
