"""MANN: a network with an external memory that learns to bind what it sees to labels that come one step late.

    input at step t: (x_t, y_{t-1}),    target: y_t,    memory empty at the start of every episode

The first time a class comes up it can but guess. A step later it is told, and has to store what it saw under a key
that it finds again. Nothing is adapted by gradients in an episode: reading the sequence is the learning.

As a `MetaLearner`, a training episode is support and query together in one random order, as in the paper, with a loss
on every answer. In `predict` the support set is read in a random order, and each query is answered from the memory
that leaves, on its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta._gradient import outer_gradient
from jaxmeta.episode import Batch, Episode, check_batch, check_episode, check_inputs, concatenate
from jaxmeta.learner import MetaLearner, Metrics, Params
from jaxmeta.memory._cell import MANN, CellState, Trace
from jaxmeta.memory._labels import Code, Words, by_instance, check_labels, one_step_late, words

_REPORTED = (1, 2, 3, 5, 10)


class Reading(NamedTuple):
    """What came of reading one episode as a sequence.

    Attributes:
        labels: `[n]`, in the order they were read.
        right: `[n]`, whether each answer was right, given before its label was shown.
        loss: the mean loss of the answers.
        trace: what the memory did; None without one.
    """

    labels: jax.Array
    right: jax.Array
    loss: jax.Array
    trace: Trace | None


def read_episode(
    model: MANN, params: Params, batch: Batch, key: jax.Array, *, ways: int, code: Code = "one_hot"
) -> Reading:
    """Reads labelled examples in a random order, and answers for each before its label is shown.

    Args:
        model: the network.
        params: its parameters.
        batch: x `[n, ...]` and labels `[n]`, all of one episode.
        key: draws the order, and the words that stand for classes.
        ways: classes in the episode.
        code: how classes are shown and answered: `"one_hot"`, or `"strings"` of five letters.

    Returns:
        A `Reading`. `by_instance(reading.right, reading.labels, k)` is its accuracy by presentation.

    Raises:
        TypeError: the targets are not integer labels.
        ValueError: there are fewer examples than classes, a label is out of range, or `ways` or `code` is.

    >>> from jaxmeta.memory import MANN
    >>> batch, model = Batch(jnp.eye(4), jnp.array([0, 1, 0, 1])), MANN(features=8, slots=6, width=3, reads=1)
    >>> params = model.init(jax.random.key(0), batch.x, jnp.zeros((4, 2)))
    >>> read_episode(model, params, batch, jax.random.key(0), ways=2).trace.usage.shape
    (4, 6)

    References:
        Santoro, Bartunov, Botvinick, Wierstra, Lillicrap 2016, arXiv:1605.06065, section 2.
    """
    order_key, word_key = jax.random.split(key)
    batch, spelled = _shuffle("batch", batch, ways, order_key), words(code, ways, word_key)
    outputs, _, trace = _run(model, params, batch.x, one_step_late(spelled.write(batch.y)))
    return Reading(batch.y, spelled.right(outputs, batch.y), spelled.loss(outputs, batch.y), trace)


def mann(model: MANN, *, ways: int, code: Code = "one_hot") -> MetaLearner:
    """A memory-augmented network as a learner.

    Args:
        model: the network; `MANN(written="key")` writes as the paper's equation does, `MANN(addressing="none")` is its
            LSTM baseline.
        ways: classes in an episode.
        code: how classes are shown and answered: `"one_hot"`, or `"strings"` of five letters that are drawn for
            each episode.

    Returns:
        A `MetaLearner`. Metrics: `loss`, summed over letters; `accuracy`, over all presentations; `instance_k`,
        accuracy at the k-th presentation of a class, for those k of 1, 2, 3, 5 and 10 that a class has on average. With
        strings an answer is right if all letters are; `predict` chooses among the episode's classes. All of it is
        differentiable in reverse mode, not in forward mode.

    Raises:
        ValueError: `ways` is less than 2 or more than there are strings, `code` is unknown, an episode is shorter
            than its classes are many, a support set lacks a class, or a label is out of range.
        TypeError: targets are not integer labels.

    >>> learner = mann(MANN(features=8, slots=6, width=3, reads=2), ways=5)

    References:
        Santoro, Bartunov, Botvinick, Wierstra, Lillicrap 2016, arXiv:1605.06065. Its equations leave several heads
        open; see `jaxmeta.memory.lrua_step` for what is done here.
    """
    if ways < 2:
        raise ValueError(f"ways must be 2 or more, but is {ways}")
    words(code, ways, jax.random.key(0))

    def init(key: jax.Array, episode: Episode) -> Params:
        check_episode(episode, ways=ways)
        check_labels(episode.support)
        x = episode.support.x
        return model.init(key, x, words(code, ways, key).write(jnp.zeros(len(x), int)))

    def meta_grad(params: Params, episode: Episode, key: jax.Array) -> tuple[Params, Metrics]:
        check_episode(episode, ways=ways)
        batch = concatenate(*episode)

        def objective(params: Params) -> tuple[jax.Array, Metrics]:
            reading = read_episode(model, params, batch, key, ways=ways, code=code)
            return reading.loss, _metrics(reading, ways)

        return outer_gradient(objective, params)

    def predict(params: Params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        order_key, word_key = jax.random.split(key)
        support, spelled = _shuffle("support", support, ways, order_key), words(code, ways, word_key)
        check_inputs(support.x, query_x)
        written = spelled.write(support.y)
        _, state, _ = _run(model, params, support.x, one_step_late(written))
        return _answer_each(model, params, state, written[-1], spelled)(query_x)

    return MetaLearner(init, meta_grad, predict)


def _run(
    model: MANN, params: Params, x: jax.Array, labels: jax.Array, state: CellState | None = None
) -> tuple[jax.Array, CellState, Trace | None]:
    found: Any = model.apply(params, x, labels, state)
    return found


def _answer_each(
    model: MANN, params: Params, state: CellState, last: jax.Array, spelled: Words
) -> Callable[[jax.Array], Any]:
    """Answers queries from one memory: each beside the last support label, and on a memory of its own."""

    def answer(x: jax.Array) -> jax.Array:
        outputs, _, _ = _run(model, params, x[None], last[None], state)
        return spelled.class_scores(outputs)[0]

    return jax.vmap(answer)


def _metrics(reading: Reading, ways: int) -> Metrics:
    most = len(reading.labels) // ways
    accuracies = by_instance(reading.right, reading.labels, most)
    reported = {f"instance_{k}": accuracies[k - 1] for k in _REPORTED if k <= most}
    return {"loss": reading.loss, "accuracy": reading.right.mean(), **reported}


def _shuffle(name: str, batch: Batch, ways: int, key: jax.Array) -> Batch:
    check_batch(name, batch, ways)
    check_labels(batch)
    if len(batch.y) < ways:
        raise ValueError(f"the sequence has {len(batch.y)} examples, fewer than its ways={ways} classes")
    order = jax.random.permutation(key, len(batch.y))
    return Batch(batch.x[order], batch.y[order])
