"""Episodes: what every method learns from.

An episode is one few-shot task, cut in two:

    support  S = {(x_i, y_i)}   what the learner may adapt on,
    query    Q = {(x_j, y_j)}   what it is judged by.

Everything here is unbatched: one episode. A batch of episodes is an `Episode` whose arrays have one more axis in front.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Batch(NamedTuple):
    """Labelled examples.

    Attributes:
        x: inputs `[n, ...]`.
        y: integer class labels `[n]`, or real targets `[n, d]`.
    """

    x: jax.Array
    y: jax.Array


class Episode(NamedTuple):
    """One task: a support set to adapt on and a query set to be judged by.

    Attributes:
        support: the support set, `[ways * shots, ...]` for classification.
        query: the query set, `[ways * queries, ...]` for classification.
    """

    support: Batch
    query: Batch


def is_classification(y: jax.Array) -> bool:
    """Whether targets are class labels (integers) rather than real values.

    >>> is_classification(jnp.arange(3)), is_classification(jnp.ones((3, 1)))
    (True, False)
    """
    return jnp.issubdtype(y.dtype, jnp.integer)


def concatenate(first: Batch, second: Batch) -> Batch:
    """Joins two batches along their example axis: `[n, ...]` and `[m, ...]` to `[n + m, ...]`."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def check_episode(episode: Episode, *, ways: int | None = None) -> None:
    """Raises if an episode is not one well-formed, unbatched task.

    Shapes and dtypes are checked at trace time. Label values are checked too where they are known,
    that is, outside `jax.jit`.

    Args:
        episode: the episode to check.
        ways: number of classes that labels must fall into, and that the support set must show; None to leave label
            values unchecked.

    Raises:
        TypeError: `episode` is no `Episode`, a part is no `Batch`, or support and query disagree on the kind of target.
        ValueError: lengths or shapes disagree, a label falls outside `[0, ways)`, or a class has no support example.

    >>> import jax.numpy as jnp
    >>> batch = Batch(jnp.zeros((5, 3)), jnp.arange(4))
    >>> check_episode(Episode(batch, batch))
    Traceback (most recent call last):
      ...
    ValueError: support.x holds 5 examples, but support.y holds 4 targets (shapes (5, 3) and (4,))
    """
    check_is_episode(episode)
    for name, batch in zip(Episode._fields, episode, strict=True):
        check_batch(name, batch, ways)
    support, query = episode
    check_inputs(support.x, query.x, "query.x")
    if is_classification(support.y) != is_classification(query.y):
        raise TypeError(
            "support.y and query.y must both be integer labels or both be real targets, but have dtypes "
            f"{support.y.dtype} and {query.y.dtype}"
        )
    if support.y.shape[1:] != query.y.shape[1:]:
        raise ValueError(
            "support.y and query.y must hold targets of one shape, but a support target has shape "
            f"{support.y.shape[1:]} and a query target {query.y.shape[1:]}"
        )


def are_classes(labels: jax.Array, ways: int) -> jax.Array:
    """Which labels are in [0, ways), told in 32 bits: eight may not hold the number of ways.

    Args:
        labels: integers, any shape.
        ways: classes in the episode.

    >>> are_classes(jnp.array([0, 3, -1]), 3).tolist()
    [True, False, False]
    """
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    return (labels >= 0) & (labels < ways)


def check_is_episode(episode: Any, name: str = "episode") -> None:
    """Raises if what is given for an episode is something else, such as a pair."""
    if not isinstance(episode, Episode):
        raise TypeError(f"{name} must be a jaxmeta.Episode(support, query), but is a {type(episode).__name__}")


def check_inputs(support_x: jax.Array, query_x: jax.Array, name: str = "query_x") -> None:
    """Raises if a support set's inputs and those to predict for are no arrays, or have different shapes."""
    if not isinstance(query_x, jax.Array | np.ndarray) or query_x.ndim == 0:
        raise TypeError(f"{name} must be an array with an example axis, but {_kind(query_x)}")
    if support_x.shape[1:] != query_x.shape[1:]:
        raise ValueError(
            f"support.x and {name} must hold inputs of one shape, but a support input has shape "
            f"{support_x.shape[1:]} and a query input {query_x.shape[1:]}"
        )


def check_batch(name: str, batch: Any, ways: int | None) -> None:
    """Raises what `check_episode` does if its part of that name is not a well-formed batch."""
    if not isinstance(batch, Batch):
        raise TypeError(f"{name} must be a jaxmeta.Batch(x, y), but is a {type(batch).__name__}")
    for part in Batch._fields:
        value = getattr(batch, part)
        if not isinstance(value, jax.Array | np.ndarray) or value.ndim == 0:
            raise TypeError(f"{name}.{part} must be an array with an example axis, but {_kind(value)}")
    if batch.x.shape[0] != batch.y.shape[0]:
        raise ValueError(
            f"{name}.x holds {batch.x.shape[0]} examples, but {name}.y holds {batch.y.shape[0]} targets "
            f"(shapes {batch.x.shape} and {batch.y.shape})"
        )
    if is_classification(batch.y):
        _check_labels(name, batch.y, ways)


def _kind(value: Any) -> str:
    return "has no axis" if isinstance(value, jax.Array | np.ndarray) else f"is of type {type(value).__name__}"


def _check_labels(name: str, labels: jax.Array, ways: int | None) -> None:
    if labels.ndim != 1:
        raise ValueError(f"{name}.y holds integer labels, so its shape must be [n], but is {labels.shape}")
    if name == "support" and ways is not None and len(labels) < ways:
        raise ValueError(f"ways={ways}, but the support set has {len(labels)} examples")
    if ways is None or labels.size == 0 or isinstance(labels, Tracer):
        return
    known = np.asarray(labels)  # with JAX's own operations, values known inside a trace would become unknown
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= ways:
        raise ValueError(f"ways={ways}, so {name}.y must lie in [0, {ways}), but holds labels {low}..{high}")
    if name == "support" and (found := len(np.unique(known))) < ways:
        raise ValueError(f"ways={ways}, but the support set has {found} distinct labels")
