"""The outer loop.

    theta <- theta - Optimizer( 1/T sum_t meta_grad(theta, episode_t) ),    episode_t ~ source

Many outer steps run in one dispatch: a `jax.lax.scan` whose body samples the episodes, unless they are so small that
all are drawn before it, takes the meta-gradient and applies the optimiser, with the state's buffers donated. Step i
draws its randomness from (seed, i) alone, so a run that is killed and resumed continues bit for bit.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmeta._memory import peak_bytes
from jaxmeta._precision import wide_norm
from jaxmeta.learner import MetaLearner, Params, carried, check_parts, descended, outer_step
from jaxmeta.meta_batch import batch_meta_grad, divide
from jaxmeta.nn._conv2d import shared_cores
from jaxmeta.tasks import Source
from jaxmeta.training import _run
from jaxmeta.training._checks import check_like, check_metrics, check_numbers, check_source, validation_metrics
from jaxmeta.training._interrupt import held_interrupt
from jaxmeta.training._run import TrainState

# A window's episodes are drawn before its first step where drawing them takes no more than this.
_AHEAD_BYTES = 2**25

_OWN_METRICS = {"step", "grad_norm", "param_norm", "tasks_per_second"}


class FitResult(NamedTuple):
    """What training returns.

    Attributes:
        params: the meta-parameters after the last step.
        opt_state: the outer optimiser's state after the last step.
        history: one dict for each logged window: `step`, the mean over the window of each metric, and what `validate`
            returned at its end.
    """

    params: Params
    opt_state: optax.OptState
    history: list[dict[str, Any]]


def fit(
    learner: MetaLearner,
    source: Source,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    meta_batch: int = 1,
    seed: int = 0,
    params: Params | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    chunk: int | None = None,
    devices: int | None = None,
    validate: Callable[[int, Params], Mapping[str, Any]] | None = None,
    progress: bool = True,
) -> FitResult:
    """Meta-trains a learner on a distribution of tasks.

    On GPU and TPU, JAX multiplies single-precision matrices in shorter formats, in which meta-gradients lose their last
    digits and more, unless `jax_default_matmul_precision` is set, to `"float32"` for all digits.

    Args:
        learner: the method.
        source: the distribution of training episodes.
        optimizer: the outer optimiser, any Optax transformation; it is given the loss, as
            `optax.contrib.reduce_on_plateau` wants, but nothing to search a line with, as `optax.lbfgs` does.
        steps: outer steps in all, counting those before a resume.
        meta_batch: episodes in an outer step.
        seed: of initialisation and training.
        params: meta-parameters to start from; None for the learner's own initialisation, which looks at an episode of
            the source in either case, and raises if the two do not fit.
        run_dir: folder for configuration, metrics and checkpoints; None to keep nothing. A run that fails before it
            has kept anything leaves it empty.
        resume: continue the run in `run_dir` from its newest checkpoint, whatever `params` are; from the start where
            there is none yet. That it is the same run is told by the numbers here, `source.info` and `config`: a
            learner's or an optimiser's own settings belong in the last.
        config: more to record in `config.json`, JSON-able; a resumed run must bring the same.
        log_every: outer steps in one dispatch, and in one line of metrics.
        checkpoint_every: outer steps between checkpoints, a multiple of `log_every`. The last step is always
            saved, and so are, at Ctrl-C, the steps of the dispatch that it falls into.
        chunk: tasks that a device maps at once; see `batch_meta_grad`.
        devices: how many devices to divide the meta-batch among; see `batch_meta_grad`.
        validate: `(step, params) -> metrics`, called at the end of each dispatch, with a copy of the meta-parameters,
            which it may keep. The numbers that it returns are recorded beside training's; an empty dict where there is
            nothing to record. A resumed run calls it for the steps that are left to do. Ctrl-C waits for it; where it
            fails, what was done is saved first.
        progress: show a progress bar on standard error.

    Returns:
        A `FitResult`.

    Raises:
        FileExistsError: `run_dir` is not empty and `resume` is False.
        FloatingPointError: a metric, the meta-gradient or a meta-parameter is not finite, or a number of `validate`'s.
            Checkpoints before that step stay.
        KeyboardInterrupt: after Ctrl-C; with a `run_dir`, once what was done is saved.
        TypeError: `learner`, `source` or `optimizer` is of another kind, or `validate` or what it returns; a number is
            no int, or `config` or `source.info` not JSON-able.
        ValueError: a number is out of range, or not finite in `config`, a resumed run brings another configuration,
            `resume` has no `run_dir`, the episodes or `params` do not fit the learner, or a metric of the learner or of
            `validate` has a name that is taken.

    >>> from jaxmeta import losses, maml, nn, tasks
    >>> learner = maml(nn.MLP((4,), 1), inner_optimizer=optax.sgd(0.01), loss=losses.mean_squared_error)
    >>> result = fit(learner, tasks.sinusoid(shots=5), optax.adam(1e-3), steps=4, log_every=2, progress=False)
    >>> [row["step"] for row in result.history]
    [2, 4]
    """
    check_parts("learner", learner, ("init", "meta_grad"), "a MetaLearner")
    check_source(source)
    check_parts("optimizer", optimizer, ("init", "update"), "an Optax transformation, such as optax.adam(1e-3)")
    if validate is not None and not callable(validate):
        raise TypeError(f"validate must be a function (step, params) -> metrics, but is {validate!r}")
    steps, meta_batch, log_every, checkpoint_every = check_numbers(
        steps, meta_batch, log_every, checkpoint_every if run_dir is not None else log_every
    )
    if resume and run_dir is None:
        raise ValueError("resume=True wants the run_dir to resume from, but it is None")
    init_key, train_key = jax.random.split(jax.random.key(seed))
    episode = jax.jit(source.sample)(source.data, jax.random.fold_in(init_key, 0))
    initial = learner.init(init_key, episode)  # for its errors, too
    start_at: Any = initial if params is None else params
    check_like(start_at, initial)
    start_at = jax.tree.map(jnp.asarray, start_at)
    mesh, each = divide(meta_batch, devices, chunk, learner.meta_grad, start_at, episode, train_key)
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = TrainState(start_at, optimizer.init(descended(start_at)))
    compiled = train_window(one_device=mesh.size == 1)
    window = functools.partial(compiled, learner, source.sample, optimizer, meta_batch, each, mesh.size)
    data = jax.device_put(source.data, everywhere)
    run = functools.partial(_train, window, data, train_key, steps, log_every, meta_batch, validate, progress)

    def place(state: TrainState) -> TrainState:  # a copy, since the first window donates it
        return jax.device_put(jax.tree.map(jnp.array, state), everywhere)

    if run_dir is None:
        return run(place(state), 0, [], lambda step, state, row, failed: None)

    run_dir = Path(run_dir)
    asked = {"steps": steps, "meta_batch": meta_batch, "seed": seed, "log_every": log_every, "chunk": chunk}
    asked["devices"] = mesh.size  # a sum over devices has its own order, and so its own last bits
    _run.start_run(run_dir, {**(config or {}), "fit": asked, "source": dict(source.info)}, resume=resume)
    with (
        _run.discarded_if_bare(run_dir),
        _run.checkpointer(run_dir, training=True) as saver,
        held_interrupt() as interrupted,
    ):
        start, state = _run.load_latest(saver, state) or (0, state)
        history = _run.read_metrics(run_dir, until=start)

        def keep(step: int, state: TrainState, row: dict[str, Any], failed: bool) -> None:
            _run.append_metrics(run_dir, row)
            stop = interrupted()
            if failed or stop or step % checkpoint_every == 0 or step == steps:
                saver.save(step, state)
            if stop:
                raise KeyboardInterrupt

        return run(place(state), start, history, keep)


def _train(
    window: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    data: Any,
    key: jax.Array,
    steps: int,
    log_every: int,
    meta_batch: int,
    validate: Callable[[int, Params], Mapping[str, Any]] | None,
    progress: bool,
    state: TrainState,
    start: int,
    history: list[dict[str, Any]],
    keep: Callable[[int, TrainState, dict[str, Any], bool], None],
) -> FitResult:
    """Runs windows of steps from `start` to `steps`, checking and keeping what each returns."""
    from tqdm import tqdm

    with tqdm(total=steps, initial=start, unit="step", disable=not progress, dynamic_ncols=True) as bar:
        step = start
        while step < steps:
            began = time.perf_counter()
            length = min(log_every, steps - step)
            state, metrics = window(length, state, data, key, jnp.asarray(step))
            # In double precision: a mean in 16 bits would be of the first few values.
            metrics = {name: np.asarray(values).astype(np.float64) for name, values in metrics.items()}
            check_metrics(metrics, step)
            step += length
            row = {"step": step, **{name: float(values.mean()) for name, values in metrics.items()}}
            row["tasks_per_second"] = round(meta_batch * length / (time.perf_counter() - began), 1)
            if validate is not None:
                try:  # with a copy, since the next window takes the state's buffers
                    found = validate(step, jax.tree.map(jnp.array, _run.unbound(state.params)))
                    row |= validation_metrics(found, row)
                except BaseException:  # a second Ctrl-C, too
                    keep(step, state, row, True)
                    raise
            history.append(row)
            keep(step, state, row, False)
            bar.update(length)
            bar.set_postfix({name: f"{value:.4g}" for name, value in row.items() if name != "step"})
    return FitResult(_run.unbound(state.params), _run.unbound(state.opt_state), history)


@functools.cache
def train_window(*, one_device: bool) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`_window`, compiled for one device or for several; the state that it is given is gone after."""
    options = _on_every_core() if one_device else None

    @functools.partial(jax.jit, static_argnums=tuple(range(7)), donate_argnums=7, compiler_options=options)
    @functools.wraps(_window)
    def window(*args: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        with shared_cores(options is not None):
            return _window(*args)

    return window


def _on_every_core() -> dict[str, Any] | None:
    """Compiler options for a training step that one CPU device does alone; None elsewhere.

    XLA's convolutions from YNNPACK, its default on CPU, keep one core busy; its older ones use all. Several devices,
    each on a core of its own, are faster with YNNPACK's.
    """
    option = "xla_cpu_experimental_ynn_fusion_type"
    if jax.default_backend() != "cpu" or option in os.environ.get("XLA_FLAGS", ""):
        return None
    options = {option: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # another XLA may not know the option
        return None
    return options


def _window(
    learner: MetaLearner,
    sample: Callable[[Any, jax.Array], Any],
    optimizer: optax.GradientTransformation,
    meta_batch: int,
    chunk: int | None,
    devices: int | None,
    length: int,
    state: TrainState,
    data: Any,
    key: jax.Array,
    first: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`length` outer steps from step `first` on; metrics come back with a leading step axis."""

    def draw(step: jax.Array) -> tuple[Any, jax.Array]:
        sample_key, grad_key = jax.random.split(jax.random.fold_in(key, step))
        return jax.vmap(sample, in_axes=(None, 0))(data, jax.random.split(sample_key, meta_batch)), grad_key

    # Random numbers are many small operations on CPU, and for a whole window hardly more than for one step. Other
    # generators than threefry draw other numbers under `jax.vmap`.
    steps = first + jnp.arange(length)
    ahead = "threefry" in str(jax.random.key_impl(key)) and peak_bytes(jax.vmap(draw), steps) <= _AHEAD_BYTES

    def train_step(state: TrainState, drawn: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        episodes, grad_key = drawn if ahead else draw(drawn)
        grads, metrics = batch_meta_grad(learner, state.params, episodes, grad_key, chunk=chunk, devices=devices)
        if taken := sorted(metrics.keys() & _OWN_METRICS):
            raise ValueError(f"metrics of the learner must not be called {taken}, which training records by itself")
        params, opt_state = outer_step(optimizer, state.params, grads, state.opt_state, value=metrics.get("loss"))
        norms = {"grad_norm": wide_norm(descended(grads)), "param_norm": _param_norm(params)}
        return TrainState(params, opt_state), {**metrics, **norms}

    return jax.lax.scan(train_step, state, jax.vmap(draw)(steps) if ahead else steps)


def _param_norm(params: Params) -> jax.Array:
    """The norm of what is descended; NaN where anything that is carried along is not finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(carried(params))]
    norm = wide_norm(descended(params))
    return jnp.where(jnp.stack(finite).all(), norm, jnp.nan) if finite else norm
