"""The contract of every method, and the one place where tasks are mapped.

A method is three pure functions over one episode:

    params            <- init(key, episode)
    grads, metrics    <- meta_grad(params, episode, key)
    predictions       <- predict(params, support, query_x, key)

and the meta-gradient of a meta-batch of T tasks is the mean

    G = 1/T sum_t meta_grad(params, episode_t, key_t).

Training and every comparison map tasks here and nowhere else; `jaxmeta.evaluate` maps test episodes by the same rule.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from jaxmeta._memory import peak_bytes
from jaxmeta.episode import Batch, Episode

Params = Any
Metrics = dict[str, jax.Array]

# A chunk of tasks should stay in a core's second-level cache: larger chunks only move memory.
_CACHE_BYTES = 2 * 2**20

# So many terms of so many entries together are added one by one.
_FEW, _LARGE = 32, 2**18


class Model(Protocol):
    """A network as a pair of pure functions. Every stateless Flax Linen module is one."""

    def init(self, key: jax.Array, x: jax.Array, /) -> Params:
        """Parameters for inputs like x `[n, ...]`."""
        ...

    def apply(self, params: Params, x: jax.Array, /) -> Any:
        """Logits `[n, ways]` or values `[n, d]` for inputs x `[n, ...]`."""
        ...


def init_stateless(model: Model, key: jax.Array, x: jax.Array) -> Params:
    """Initialises a model for inputs like x `[n, ...]`, and refuses one with mutable state.

    Raises:
        ValueError: the model keeps state beside its parameters, such as running statistics.
    """
    params = model.init(key, x)
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        extra = sorted(set(params) - {"params"})
        raise ValueError(
            f"model keeps state beside its parameters ({', '.join(extra)}), which training would lose; "
            "use a layer without running state, such as jaxmeta.nn.BatchNorm"
        )
    return params


class Comparison(NamedTuple):
    """How a method that classifies by P(y | x, S) = sum_i k(x, x_i) y_i came to its prediction.

    Attributes:
        support: embeddings of the support examples `[s, ...]`.
        queries: embeddings of the queries `[q, ...]`.
        references: what queries are compared with, the x_i `[r, ...]`: the support embeddings, or one for each class.
        labels: class of each reference `[r]`; None where reference c stands for class c.
        log_kernel: log k(x, x_i) `[q, r]`.
    """

    support: jax.Array
    queries: jax.Array
    references: jax.Array
    labels: jax.Array | None
    log_kernel: jax.Array


class MetaLearner(NamedTuple):
    """Something that learns to learn: pure functions over one unbatched episode.

    Attributes:
        init: `(key, episode) -> params`, the meta-parameters, any pytree. Of the episode it uses the
            shapes, and checks the labels where they are known.
        meta_grad: `(params, episode, key) -> (grads, metrics)`. `grads` has the structure of `params`
            and is what the outer optimiser descends; it need not be the gradient of anything (Reptile's
            is not). Where `params` has a `Carried`, `grads` has the `Replacement`. `metrics` is a flat dict of
            scalars with at least `loss`.
        predict: `(params, support, query_x, key) -> predictions`: logits `[q, ways]` or values `[q, d]`.
        predict_path: like `predict`, but after 0, 1, .., K adaptation steps: `[K + 1, q, ...]`, the last
            being `predict`'s. None for methods that do not adapt in steps.
        compare: `(params, support, query_x, key) -> Comparison`: how `predict` came about. None for methods that do
            not classify by comparison.
    """

    init: Callable[[jax.Array, Episode], Params]
    meta_grad: Callable[[Params, Episode, jax.Array], tuple[Params, Metrics]]
    predict: Callable[[Params, Batch, jax.Array, jax.Array], jax.Array]
    predict_path: Callable[[Params, Batch, jax.Array, jax.Array], jax.Array] | None = None
    compare: Callable[[Params, Batch, jax.Array, jax.Array], Comparison] | None = None


class Carried(NamedTuple):
    """A part of meta-parameters that no optimiser descends: it is carried along and replaced at every outer step.

    What an inner optimiser remembers from task to task is one. `outer_step` replaces it by the `Replacement` that
    stands in its place among the gradients. The two are different pytrees, so that an outer step which forgets the
    difference fails, instead of descending a memory.

    Attributes:
        value: any pytree of numeric arrays.
    """

    value: Any


class Replacement(NamedTuple):
    """The next value of a `Carried`, in its place among the gradients.

    Attributes:
        value: a pytree with the structure of the `Carried`'s; over a meta-batch, its mean over the tasks.
    """

    value: Any


def descended(params: Params) -> Params:
    """The part of meta-parameters or gradients that an outer optimiser descends: all but what is `Carried`.

    >>> descended({"weights": 1.0, "memory": Carried(2.0)})
    {'memory': MaskedNode(), 'weights': 1.0}
    """
    return jax.tree.map(lambda node: optax.MaskedNode() if _is_carried(node) else node, params, is_leaf=_is_carried)


def outer_step(
    optimizer: optax.GradientTransformation, params: Params, grads: Params, opt_state: optax.OptState
) -> tuple[Params, optax.OptState]:
    """One outer step: descends the gradients, and replaces what is `Carried`.

    Where nothing is carried this is `optimizer.update` followed by `optax.apply_updates`.

    Args:
        optimizer: the outer optimiser, any Optax transformation.
        params: meta-parameters.
        grads: what `batch_meta_grad` returned for them.
        opt_state: the outer optimiser's state, at first `optimizer.init(descended(params))`.

    Returns:
        `(params, opt_state)` after the step.

    >>> import optax
    >>> params = {"weights": jnp.array(1.0), "memory": Carried(jnp.array(2.0))}
    >>> grads = {"weights": jnp.array(3.0), "memory": Replacement(jnp.array(5.0))}
    >>> optimizer = optax.sgd(0.1)
    >>> moved, _ = outer_step(optimizer, params, grads, optimizer.init(descended(params)))
    >>> round(float(moved["weights"]), 4), float(moved["memory"].value)
    (0.7, 5.0)
    """
    weights = descended(params)
    updates, opt_state = optimizer.update(descended(grads), opt_state, weights)
    moved = optax.apply_updates(weights, updates)

    def join(before: Any, after: Any, grad: Any) -> Any:
        if not _is_carried(before):
            return after
        return Carried(jax.tree.map(_as_before, before.value, grad.value))

    return jax.tree.map(join, params, moved, grads, is_leaf=_is_carried), opt_state


def _as_before(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new value in the type of the old: a mean of equal integers is that integer, whatever its last bit says."""
    return (jnp.rint(new) if jnp.issubdtype(old.dtype, jnp.integer) else new).astype(old.dtype)


def _is_carried(node: Any) -> bool:
    return isinstance(node, Carried | Replacement)


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
        episodes: an `Episode` whose arrays carry a leading task axis: x `[tasks, n, ...]`.
        key: split into one key for each task.
        chunk: tasks that a device maps at once; a divisor of its share. None chooses: on accelerators all of
            them; on CPU as many as keep the chunk's live memory near 2 MiB, which is all of them for a small MLP
            and one at a time for a convolutional network.
        devices: how many of `jax.devices()` to divide the tasks among; a divisor of their number. None for the
            most that divide it; but for one on CPU where all tasks together are so small that one chunk holds them,
            as then the exchange costs more than it saves.

    Returns:
        `(grads, metrics)`, each averaged over the tasks.

    Raises:
        ValueError: the arrays of `episodes` disagree on the number of tasks, or `chunk` or `devices` does not
            divide what it must.

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
    tasks = count_tasks(episodes)
    parts = (episodes, jax.random.split(key, tasks))
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), parts)
    mesh, chunk = divide(tasks, devices, chunk, learner.meta_grad, params, *one)

    def chunk_sum(params: Params, part: tuple[Episode, jax.Array]) -> tuple[Params, Metrics]:
        results = jax.vmap(learner.meta_grad, in_axes=(None, 0, 0))(params, *part)
        return jax.tree.map(_sum_tasks, results)

    def narrow(mean: tuple[Params, Metrics]) -> tuple[Params, Metrics]:
        """In the types that one task's come in, where parameters have fewer than the 32 bits of sums."""
        if all(_wide(dtype := jnp.result_type(leaf)) == dtype for leaf in jax.tree.leaves(params)):
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


def _wide(dtype: Any) -> Any:
    """The type to add many numbers of a type in: with 16 bits, a sum would depend on how it is divided."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _sum_tasks(leaf: jax.Array) -> jax.Array:
    """Sums over the leading axis; a few large terms one by one, since a CPU is ten times slower at that reduction."""
    leaf = leaf.astype(_wide(leaf.dtype))
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
        ValueError: the arrays disagree on it, or there are no tasks.
    """
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
        ValueError: `devices` or `chunk` does not divide what it must.
    """
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
