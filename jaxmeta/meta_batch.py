"""The one place where tasks are mapped.

    G = 1/T sum_t meta_grad(params, episode_t, key_t)          the meta-gradient of a meta-batch of T tasks

Training and every comparison map tasks here and nowhere else; `jaxmeta.evaluate` maps test episodes by the same rule.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxmeta._memory import peak_bytes
from jaxmeta._precision import wide
from jaxmeta.episode import Batch, Episode, is_classification
from jaxmeta.learner import MetaLearner, Metrics, Params, check_int, check_parts

# A chunk of tasks should stay in a core's second-level cache: larger chunks only move memory.
_CACHE_BYTES = 2 * 2**20

# So many terms of so many entries together are added one by one.
_FEW, _LARGE = 32, 2**18


def batch_meta_grad(
    learner: MetaLearner,
    params: Params,
    episodes: Episode,
    key: jax.Array,
    *,
    chunk: int | None = None,
    devices: int | None = None,
) -> tuple[Params, Metrics]:
    """Mean meta-gradient and metrics over a meta-batch of episodes.

    Tasks are divided among devices, and each device takes its own `chunk` at a time: `jax.vmap` inside a chunk,
    a loop over chunks, with the gradients summed inside it, so memory does not grow with the number
    of chunks. `chunk` and `devices` change what the gradient costs, never what it is.

    Args:
        learner: the method.
        params: its meta-parameters.
        episodes: an `Episode` whose arrays carry a leading task axis: x `[tasks, n, ...]`. Shapes alone do not always
            tell: one episode of n real targets `[n, d]` would be taken for n tasks.
        key: split into one key for each task.
        chunk: tasks that a device maps at once; a divisor of its share. None chooses: on accelerators all of
            them; on CPU as many as keep the chunk's live memory near 2 MiB, which is all of them for a small MLP
            and one at a time for a convolutional network.
        devices: how many of `jax.devices()` to divide the tasks among; a divisor of their number. Arrays that
            `jax.device_put` has bound to one device want 1. None for the most that divide it; but for one on CPU where
            all tasks together are so small that one chunk holds them, as then the exchange costs more than it saves.

    Returns:
        `(grads, metrics)`, each averaged over the tasks.

    Raises:
        TypeError: `learner` has no `meta_grad`, or `chunk` or `devices` is no int.
        ValueError: the arrays of `episodes` disagree on the number of tasks, or `chunk` or `devices` does not
            divide what it must.

    >>> from jaxmeta.episode import Batch
    >>> learner = MetaLearner(
    ...     init=lambda key, episode: jnp.zeros(()),
    ...     meta_grad=lambda w, episode, key: (w - episode.query.x.mean(), {"loss": w}),
    ...     predict=lambda w, support, query_x, key: query_x,
    ... )
    >>> tasks = Batch(jnp.array([[1.0], [5.0]]), jnp.zeros((2, 1)))
    >>> grads, _ = batch_meta_grad(learner, jnp.zeros(()), Episode(tasks, tasks), jax.random.key(0), devices=1)
    >>> float(grads)
    -3.0
    """
    check_parts("learner", learner, ("meta_grad",), "a MetaLearner")
    tasks = count_tasks(episodes)
    parts = (episodes, jax.random.split(key, tasks))
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), parts)
    mesh, chunk = divide(tasks, devices, chunk, learner.meta_grad, params, *one)

    def chunk_sum(params: Params, part: tuple[Episode, jax.Array]) -> tuple[Params, Metrics]:
        results = jax.vmap(learner.meta_grad, in_axes=(None, 0, 0))(params, *part)
        return jax.tree.map(_sum_tasks, results)

    def narrow(mean: tuple[Params, Metrics]) -> tuple[Params, Metrics]:
        """In the types that one task's come in, where parameters have fewer than the 32 bits of sums."""
        if all(wide(dtype := jnp.result_type(leaf)) == dtype for leaf in jax.tree.leaves(params)):
            return mean
        types = jax.eval_shape(learner.meta_grad, params, *one)
        floats = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype) if floats(like) else leaf, mean, types)

    def share_mean(params: Params, parts: tuple[Episode, jax.Array]) -> tuple[Params, Metrics]:
        total = sum_over_chunks(functools.partial(chunk_sum, params), parts, chunk)
        total = jax.lax.psum(total, "tasks") if mesh.size > 1 else total
        return jax.tree.map(lambda leaf: leaf / tasks, total)

    if mesh.size == 1:
        return narrow(share_mean(params, parts))
    # check_vma=False: with the check, the inner gradients of replicated parameters would be summed over devices.
    divided = jax.shard_map(share_mean, mesh=mesh, in_specs=(P(), P("tasks")), out_specs=P(), check_vma=False)
    return narrow(divided(params, parts))


def _sum_tasks(leaf: jax.Array) -> jax.Array:
    """Sums over the leading axis; a few large terms one by one, since a CPU is ten times slower at that reduction."""
    leaf = leaf.astype(wide(leaf.dtype))
    if len(leaf) <= _FEW and leaf.size >= _LARGE:
        return functools.reduce(jnp.add, leaf)
    return leaf.sum(0)


def sum_over_chunks(chunk_sum: Callable[[Any], Any], parts: Any, chunk: int) -> Any:
    """Sums `chunk_sum` over consecutive chunks of the leading axis, keeping one sum in memory."""
    tasks = jax.tree.leaves(parts)[0].shape[0]
    if chunk == tasks:
        return chunk_sum(parts)

    # Slices of the arrays as they are: with an axis of chunks made by reshaping, the compiler copies them whole.
    def take(number: jax.Array | int) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number * chunk, chunk), parts)

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: chunk_sum(take(0))))
    return jax.lax.fori_loop(
        0, tasks // chunk, lambda number, total: jax.tree.map(jnp.add, total, chunk_sum(take(number))), zeros
    )


def task_mesh(tasks: int, devices: int | None = None) -> jax.sharding.Mesh:
    """A mesh with one axis, `"tasks"`, to divide that many tasks over.

    Args:
        tasks: how many tasks there are.
        devices: how many devices; None for the most of `jax.devices()` that divide `tasks`.

    Raises:
        ValueError: there are not that many devices, or they do not divide the tasks.
    """
    present = jax.devices()
    if devices is None:
        devices = max(size for size in range(1, len(present) + 1) if tasks % size == 0)
    if not 1 <= devices <= len(present) or tasks % devices:
        raise ValueError(
            f"devices={devices} must divide the number of tasks, {tasks}, and be among the {len(present)} present"
        )
    return jax.sharding.Mesh(np.array(present[:devices]), ("tasks",))


def count_tasks(episodes: Episode) -> int:
    """The length of the leading task axis that every array of a batch of episodes shares.

    Raises:
        ValueError: the arrays disagree on it, there are no tasks, or labels have one axis, as those of one episode.
    """
    for name, part in zip(Episode._fields, episodes, strict=False):
        if isinstance(part, Batch) and jnp.ndim(part.y) == 1 and is_classification(part.y):
            raise ValueError(
                "episodes must have a leading task axis, as jax.vmap(source.sample, (None, 0)) gives, but "
                f"{name}.y has shape {jnp.shape(part.y)}, which is that of a single one"
            )
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(episodes)}
    if len(sizes) != 1 or 0 in sizes:
        shapes = jax.tree.map(lambda leaf: leaf.shape, episodes)
        raise ValueError(f"episodes must share one leading task axis, of length at least 1, but have shapes {shapes}")
    return sizes.pop()


def divide(
    tasks: int, devices: int | None, chunk: int | None, fn: Callable[..., Any], *args: Any
) -> tuple[jax.sharding.Mesh, int]:
    """How tasks are divided among devices, and how many each maps at once: the rules behind `None`.

    On an accelerator a device maps its whole share. On CPU it maps as many tasks as fit the cache; and where all of
    them fit, one device takes them, since the exchange would cost more than it saves.

    Args:
        tasks: how many there are.
        devices: how many devices; None chooses.
        chunk: tasks that a device maps at once; None chooses.
        fn: a function of one task.
        *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
        `(mesh, chunk)`: a mesh as of `task_mesh`, and a divisor of each device's share of the tasks.

    Raises:
        TypeError: `devices` or `chunk` is no int.
        ValueError: `devices` or `chunk` does not divide what it must.
    """
    devices, chunk = (
        given if given is None else check_int(name, given) for name, given in (("devices", devices), ("chunk", chunk))
    )
    fitting = tasks
    if jax.default_backend() == "cpu" and tasks > 1 and (devices is None or chunk is None):
        fitting = max(1, _CACHE_BYTES // peak_bytes(fn, *args))
        devices = 1 if devices is None and tasks <= fitting else devices
    mesh = task_mesh(tasks, devices)
    share = tasks // mesh.size
    if chunk is None:
        chunk = max(size for size in range(1, share + 1) if share % size == 0 and size <= fitting)
    if chunk < 1 or share % chunk:
        raise ValueError(f"chunk={chunk} must divide the number of tasks on a device, which is {share}")
    return mesh, chunk
