"""The contract of every method, and the one place where tasks are mapped.

A method is three pure functions over one episode:

    params            <- init(key, episode)
    grads, metrics    <- meta_grad(params, episode, key)
    predictions       <- predict(params, support, query_x, key)

and the meta-gradient of a meta-batch of T tasks is the mean

    G = 1/T sum_t meta_grad(params, episode_t, key_t).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxmeta._memory import peak_bytes
from jaxmeta.episode import Batch, Episode

Params = Any
Metrics = dict[str, jax.Array]

# A chunk of tasks should stay in a core's second-level cache: larger chunks only move memory.
_CACHE_BYTES = 2 * 2**20


class Model(Protocol):
    """A network as a pair of pure functions. Every stateless Flax Linen module is one."""

    def init(self, key: jax.Array, x: jax.Array, /) -> Params:
        """Parameters for inputs like x `[n, ...]`."""
        ...

    def apply(self, params: Params, x: jax.Array, /) -> jax.Array:
        """Logits `[n, ways]` or values `[n, d]` for inputs x `[n, ...]`."""
        ...


class MetaLearner(NamedTuple):
    """Something that learns to learn: pure functions over one unbatched episode.

    Attributes:
        init: `(key, episode) -> params`, the meta-parameters, any pytree. Uses shapes only.
        meta_grad: `(params, episode, key) -> (grads, metrics)`. `grads` has the structure of `params`
            and is what the outer optimiser descends; it need not be the gradient of anything (Reptile's
            is not). `metrics` is a flat dict of scalars with at least `loss`.
        predict: `(params, support, query_x, key) -> predictions`: logits `[q, ways]` or values `[q, d]`.
        predict_path: like `predict`, but after 0, 1, .., K adaptation steps: `[K + 1, q, ...]`, the last
            being `predict`'s. None for methods that do not adapt in steps.
    """

    init: Callable[[jax.Array, Episode], Params]
    meta_grad: Callable[[Params, Episode, jax.Array], tuple[Params, Metrics]]
    predict: Callable[[Params, Batch, jax.Array, jax.Array], jax.Array]
    predict_path: Callable[[Params, Batch, jax.Array, jax.Array], jax.Array] | None = None


def batch_meta_grad(
    learner: MetaLearner, params: Params, episodes: Episode, key: jax.Array, *, chunk: int | None = None
) -> tuple[Params, Metrics]:
    """Mean meta-gradient and metrics over a meta-batch of episodes.

    Tasks are taken `chunk` at a time: `jax.vmap` inside a chunk, `jax.lax.scan` over chunks, with the
    gradients summed inside the loop, so memory does not grow with the number of chunks. `chunk` changes
    what the gradient costs, never what it is.

    Args:
        learner: the method.
        params: its meta-parameters.
        episodes: an `Episode` whose arrays carry a leading task axis: x `[tasks, n, ...]`.
        key: split into one key for each task.
        chunk: tasks mapped at once; a divisor of the number of tasks. None chooses: on accelerators all
            of them; on CPU as many as keep the chunk's live memory near 2 MiB, which is all of them for a
            small MLP and one at a time for a convolutional network.

    Returns:
        `(grads, metrics)`, each averaged over the tasks.

    Raises:
        ValueError: the arrays of `episodes` disagree on the number of tasks, or `chunk` does not divide it.
    """
    tasks = count_tasks(episodes)
    keys = jax.random.split(key, tasks)
    if chunk is None:
        chunk = choose_chunk(learner.meta_grad, tasks, (params,), (episodes, keys))
    if chunk < 1 or tasks % chunk:
        raise ValueError(f"chunk={chunk} must divide the number of tasks, which is {tasks}")

    def chunk_sum(part: tuple[Episode, jax.Array]) -> tuple[Params, Metrics]:
        results = jax.vmap(learner.meta_grad, in_axes=(None, 0, 0))(params, *part)
        return jax.tree.map(lambda leaf: leaf.sum(0), results)

    if chunk == tasks:
        total = chunk_sum((episodes, keys))
    else:
        parts = jax.tree.map(lambda leaf: leaf.reshape(tasks // chunk, chunk, *leaf.shape[1:]), (episodes, keys))
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(chunk_sum, jax.tree.map(lambda leaf: leaf[0], parts)),
        )
        total, _ = jax.lax.scan(lambda acc, part: (jax.tree.map(jnp.add, acc, chunk_sum(part)), None), zeros, parts)
    return jax.tree.map(lambda leaf: leaf / tasks, total)


def count_tasks(episodes: Episode) -> int:
    """The length of the leading task axis that every array of a batch of episodes shares.

    Raises:
        ValueError: the arrays disagree on it, or there are no tasks.
    """
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(episodes)}
    if len(sizes) != 1 or sizes <= {None, 0}:
        shapes = jax.tree.map(lambda leaf: leaf.shape, episodes)
        raise ValueError(f"episodes must share one leading task axis, of length at least 1, but have shapes {shapes}")
    return sizes.pop()


def choose_chunk(fn: Callable[..., Any], tasks: int, shared: tuple[Any, ...], mapped: tuple[Any, ...]) -> int:
    """How many tasks to map at once: the rule behind `chunk=None`.

    Args:
        fn: a function of one task, `fn(*shared, *one_task)`.
        tasks: the length of the leading axis of `mapped`.
        shared: arguments that all tasks share.
        mapped: arguments with a leading task axis.

    Returns:
        A divisor of `tasks`: all of them on an accelerator, on CPU as many as fit the cache.
    """
    if jax.default_backend() != "cpu" or tasks == 1:
        return tasks
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), mapped)
    fitting = max(1, _CACHE_BYTES // peak_bytes(fn, *shared, *one))
    return max(size for size in range(1, tasks + 1) if tasks % size == 0 and size <= fitting)
