"""Evaluation on a frozen list of episodes.

The list is made from a seed, and named in the result by the SHA-256 of its contents: two results with one hash
judged the very same episodes. The interval is 1.96 sigma / sqrt(episodes), over episodes. Where some were left out, as
`may_diverge` allows, both are over the others, which are not the same for every learner: compare `values` then.
"""

import functools
import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxmeta.episode import Episode, are_classes, check_is_episode, is_classification
from jaxmeta.learner import MetaLearner, Params, check_int, check_parts
from jaxmeta.losses import score
from jaxmeta.meta_batch import count_tasks, divide
from jaxmeta.tasks import Source
from jaxmeta.training._checks import check_source
from jaxmeta.training._run import unbound

QueryMode = Literal["transductive", "inductive"]

_BLOCK = 50


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        metric: `"accuracy"` (share, in [0, 1]) or `"mse"` (squared target units).
        mean: the metric's mean over episodes.
        interval: half the width of its 95 % interval.
        by_step: `(mean, interval)` after 0, 1, .., K adaptation steps; None if the learner does not adapt in steps, or
            with `by_step=False`.
        query_mode: how queries shared a batch.
        episodes: how many there are on the list.
        seed: what the list of episodes was made from.
        episode_hash: SHA-256 of the list's contents.
        source: the description of the source.
        values: the metric of each episode, `[episodes]`.
        diverged: how many episodes all means leave out, because their squared error is not finite after some step; 0
            unless `evaluate` was told that it may be.
    """

    metric: str
    mean: float
    interval: float
    by_step: list[tuple[float, float]] | None
    query_mode: QueryMode
    episodes: int
    seed: int
    episode_hash: str
    source: Mapping[str, Any]
    values: np.ndarray
    diverged: int = 0

    def summary(self) -> dict[str, Any]:
        """Everything but the value of each episode, JSON-able."""
        return {name: value for name, value in self._asdict().items() if name != "values"}


def evaluate(
    learner: MetaLearner,
    params: Params,
    source: Source,
    *,
    episodes: int = 600,
    seed: int = 0,
    query_mode: QueryMode = "transductive",
    by_step: bool = True,
    may_diverge: float = 0.0,
    chunk: int | None = None,
) -> Evaluation:
    """Judges meta-parameters on a frozen list of episodes.

    Args:
        learner: the method.
        params: its meta-parameters.
        source: the distribution of test episodes.
        episodes: how many to draw.
        seed: what to draw them from.
        query_mode: `"transductive"`: the learner sees all queries of an episode at once, as in MAML's code, so
            batch normalisation shares information among them. `"inductive"`: it sees each query alone with the
            support inputs, so that a prediction does not depend on the company its query keeps. Methods that embed both
            sets as one batch then normalise by the support inputs twice, and the query once.
        by_step: judge after every adaptation step, where the learner adapts in steps, and not after the last alone.
            The queries are predicted once for each, which takes longer than to adapt where inductive ones are many.
        may_diverge: the share of episodes, in [0, 1), on which adaptation may make the mean squared error infinite or
            NaN. All means then leave them out, at every step, with a warning that tells how many they are; two always
            have to be left.
        chunk: episodes mapped at once; None chooses, see `batch_meta_grad`.

    Returns:
        An `Evaluation`.

    Raises:
        TypeError: `learner` or `source` is of another kind, `episodes` or `chunk` no int, or the source gives no
            `Episode`.
        ValueError: `episodes` is less than 2, `chunk` less than 1, `may_diverge` no share, `query_mode` is unknown, or
            the source's episodes have no queries, or labels that the learner has no answer for, or, judged inductively,
            support inputs and queries of two shapes.
        FloatingPointError: at a step that is judged, the mean squared error of an episode is not finite, on more
            episodes than `may_diverge` says or before any adaptation, or a query's scores are no answer: NaN, or minus
            infinity for all classes, or infinity for several.

    >>> import optax
    >>> from jaxmeta import losses, maml, nn, tasks
    >>> learner = maml(nn.MLP((4,), 1), inner_optimizer=optax.sgd(0.01), loss=losses.mean_squared_error)
    >>> source = tasks.sinusoid(shots=5)
    >>> params = learner.init(jax.random.key(0), source.sample(source.data, jax.random.key(0)))
    >>> found = evaluate(learner, params, source, episodes=4)
    >>> found.metric, len(found.by_step), found.values.shape
    ('mse', 2, (4,))
    """
    check_parts("learner", learner, ("predict",), "a MetaLearner")
    check_source(source)
    episodes = check_int("episodes", episodes)
    if episodes < 2:
        raise ValueError(f"episodes must be 2 or more for an interval, but is {episodes}")
    if chunk is not None and check_int("chunk", chunk) < 1:
        raise ValueError(f"chunk must be 1 or more, but is {chunk}")
    if not 0 <= may_diverge < 1:
        raise ValueError(f"may_diverge must be a share in [0, 1), but is {may_diverge}")
    root = jax.random.key(seed)
    keys = jax.random.split(root, episodes)
    adapt_keys = jax.random.split(jax.random.fold_in(jax.random.clone(root), 1), episodes)
    parts = [slice(start, start + _BLOCK) for start in range(0, episodes, _BLOCK)]
    blocks = ((_sample(source.sample, source.data, keys[part]), adapt_keys[part]) for part in parts)
    return _judge(learner, params, blocks, query_mode, by_step, chunk, seed, source.info, may_diverge)


def evaluate_runs(
    learner: MetaLearner,
    params: Params,
    runs: Episode,
    *,
    seed: int = 0,
    query_mode: QueryMode = "transductive",
    by_step: bool = True,
    info: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Judges meta-parameters on given episodes, such as Lake's one-shot runs.

    Args:
        learner: the method.
        params: its meta-parameters.
        runs: episodes with a leading axis: x `[runs, n, ...]`, as `tasks.lake_runs` and `tasks.draw_runs` give them.
        seed: of the keys that the learner draws from.
        query_mode: as in `evaluate`.
        by_step: as in `evaluate`.
        info: what describes the runs in the result, JSON-able.

    Returns:
        An `Evaluation`; with n queries a run, the share of right answers among `runs * n` trials is its `mean`.

    Raises:
        TypeError: `learner` is no `MetaLearner`, or `runs` no `Episode`.
        ValueError: there are fewer than two runs, or they have no queries, or labels that the learner has no answer
            for, `query_mode` is unknown, or with `"inductive"` queries have another shape than support examples.
        FloatingPointError: as `evaluate`.

    >>> from jaxmeta import nn, prototypical, tasks
    >>> letters = tasks.glyphs("test", classes=50, image_size=16)._replace(groups=("one",) * 10)
    >>> runs = tasks.draw_runs(letters, runs=2, ways=4)
    >>> learner = prototypical(nn.MLP((), 8), ways=4)
    >>> params = learner.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], runs))
    >>> found = evaluate_runs(learner, params, runs)
    >>> found.metric, found.episodes
    ('accuracy', 2)
    """
    check_parts("learner", learner, ("predict",), "a MetaLearner")
    check_is_episode(runs, "runs")
    count = count_tasks(runs)
    if count < 2:
        raise ValueError(f"runs must be 2 or more for an interval, but are {count}")
    keys = jax.random.split(jax.random.key(seed), count)
    return _judge(learner, params, [(runs, keys)], query_mode, by_step, None, seed, info or {})


def _judge(
    learner: MetaLearner,
    params: Params,
    blocks: Iterable[tuple[Episode, jax.Array]],
    query_mode: QueryMode,
    by_step: bool,
    chunk: int | None,
    seed: int,
    info: Mapping[str, Any],
    may_diverge: float = 0.0,
) -> Evaluation:
    """What comes of blocks of episodes and the keys that the learner draws from in them."""
    if query_mode not in get_args(QueryMode):
        raise ValueError(f"query_mode must be one of {get_args(QueryMode)}, but is {query_mode!r}")
    adapts = learner.predict_path is not None
    if not by_step:
        learner = learner._replace(predict_path=None)
    digest, tables, params, metric = hashlib.sha256(), [], unbound(params), ""
    for block, keys in blocks:
        check_is_episode(block)
        if block.query.x.shape[1] == 0:
            raise ValueError("the episodes have no queries to judge by: give them 1 or more")
        block = unbound(block)  # from the device that its source's data may be bound to
        for leaf in jax.tree.leaves(block):
            digest.update(np.asarray(leaf).tobytes())
        metric = "accuracy" if is_classification(block.query.y) else "mse"
        table, beyond = (np.asarray(found) for found in _scores(learner, query_mode, chunk, params, block, keys))
        if beyond.any():
            raise ValueError(
                f"the learner chooses among {beyond.max()} classes, but the episodes have labels from "
                f"{min(int(part.y.min()) for part in block)} to {max(int(part.y.max()) for part in block)}"
            )
        tables.append(table)
    table = np.concatenate(tables)
    finite = _finite(metric, table, adapts, by_step, may_diverge)
    steps = [_mean_interval(column) for column in table[finite].T] if adapts and by_step else None
    mean, interval = _mean_interval(table[finite, -1])
    described = (query_mode, len(table), seed, digest.hexdigest(), dict(info))
    return Evaluation(metric, mean, interval, steps, *described, table[:, -1], int((~finite).sum()))


def _mean_interval(values: np.ndarray) -> tuple[float, float]:
    values = values.astype(np.float64)
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def _finite(metric: str, table: np.ndarray, adapts: bool, by_step: bool, may_diverge: float) -> np.ndarray:
    """Which episodes have a finite metric at every step; raises unless all have, or all but those that may diverge."""
    broken = ~np.isfinite(table)
    if broken.any():
        (episode, step), count = np.argwhere(broken)[0], broken.any(1).sum()
        found = (
            f"{metric} is {table[episode, step]} on episode {episode}"
            f"{f' after adaptation step {step}' if adapts and by_step else ''}: what is predicted there is no "
            f"answer, on {count} of {len(table)} episodes"
        )
        remedy = "; an inner loop that diverges wants a smaller inner learning rate" if adapts else ""
        unadapted = adapts and by_step and broken[:, 0].any()
        too_many = count / len(table) > may_diverge or count > len(table) - 2
        if metric != "mse" or not adapts or unadapted or too_many:
            raise FloatingPointError(found + remedy)
        warnings.warn(f"{found}, which the means leave out{remedy}", stacklevel=4)
    return np.all(~broken, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _sample(sample: Any, data: Any, keys: jax.Array) -> Episode:
    return jax.vmap(sample, in_axes=(None, 0))(data, keys)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scores(
    learner: MetaLearner, query_mode: QueryMode, chunk: int | None, params: Params, block: Episode, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The metric of each episode after each adaptation step, `[episodes, steps + 1]` (or `[episodes, 1]`).

    And the number of classes that predictions are among, `[episodes]`, where labels are beyond them; 0 elsewhere.
    """

    def one(params: Params, episode: Episode, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        path, targets = _predictions(learner, query_mode, params, episode, key), episode.query.y
        beyond = 0
        if is_classification(targets):
            labels = jnp.concatenate([episode.support.y, targets])
            beyond = path.shape[-1] * ~are_classes(labels, path.shape[-1]).all()
        return jax.vmap(lambda predictions: _score(predictions, targets))(path), jnp.asarray(beyond, int)

    def share(params: Params, block: Episode, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.map(lambda item: one(params, *item), (block, keys), batch_size=chunk or fitting)

    mesh, fitting = divide(len(keys), None, None, one, params, *jax.tree.map(lambda leaf: leaf[0], (block, keys)))
    specs = (P(), P("tasks"), P("tasks"))
    divided = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=P("tasks"), check_vma=False)
    return divided(params, block, keys)


def _score(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """The metric; NaN where a prediction is no answer, which `argmax` would take for one class or another."""
    _, found = score(predictions, targets)
    if not is_classification(targets):
        return found
    # A class may be impossible, or certain; but not all of them the one, nor two the other.
    answers = (predictions.max(-1) > -jnp.inf) & (jnp.isposinf(predictions).sum(-1) <= 1)  # False where any is NaN
    return jnp.where(answers.all(), found, jnp.nan)


def _predictions(
    learner: MetaLearner, query_mode: QueryMode, params: Params, episode: Episode, key: jax.Array
) -> jax.Array:
    """Predictions for an episode's queries after each adaptation step, `[steps + 1, q, ...]`."""
    support, query = episode

    def predict(query_x: jax.Array) -> jax.Array:
        if learner.predict_path is not None:
            return learner.predict_path(params, support, query_x, key)
        return learner.predict(params, support, query_x, key)[None]

    if query_mode == "transductive":
        return predict(query.x)
    if support.x.shape[1:] != query.x.shape[1:]:
        raise ValueError(
            'query_mode="inductive" shows each query beside the support inputs, but these have shapes '
            f'{query.x.shape[1:]} and {support.x.shape[1:]}: want query_mode="transductive"'
        )
    return jax.vmap(lambda x: predict(jnp.concatenate([support.x, x[None]]))[:, -1], out_axes=1)(query.x)
