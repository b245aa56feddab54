"""Training: it is what a hand-written loop does, it survives a kill, it stops at NaN, it keeps its folder."""

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, assert_trees_equal, to_float64

from jaxmeta import Episode, MetaLearner, batch_meta_grad, fit, losses, maml, nn, prototypical, tasks
from jaxmeta.learner import Carried, Replacement
from jaxmeta.training import load_params
from jaxmeta.training._interrupt import held_interrupt

MODEL = nn.MLP((8,), 1, activation=jnp.tanh)
LEARNER = maml(MODEL, inner_optimizer=optax.sgd(0.02), loss=losses.mean_squared_error)
SOURCE = tasks.sinusoid(shots=5)
OPTIMIZER = optax.adam(1e-2)


def train(**kwargs):
    return fit(LEARNER, SOURCE, OPTIMIZER, **{"meta_batch": 4, "log_every": 5, "progress": False, **kwargs})


def test_fit_is_the_hand_written_loop() -> None:
    init_key, train_key = jax.random.split(jax.random.key(7))
    params = LEARNER.init(init_key, SOURCE.sample((), init_key))
    state, seen = OPTIMIZER.init(params), []
    for i in range(10):
        sample_key, grad_key = jax.random.split(jax.random.fold_in(train_key, i))
        episodes = jax.vmap(SOURCE.sample, (None, 0))((), jax.random.split(sample_key, 4))
        grads, metrics = batch_meta_grad(LEARNER, params, episodes, grad_key, devices=1)
        updates, state = OPTIMIZER.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(metrics["loss"]))
    result = train(steps=10, seed=7)
    assert_trees_close(result.params, params, rtol=1e-4, atol=1e-5)
    assert [row["step"] for row in result.history] == [5, 10]
    np.testing.assert_allclose([row["loss"] for row in result.history], np.reshape(seen, (2, 5)).mean(1), rtol=1e-5)


def test_devices_and_chunks_give_the_same_training() -> None:
    one, two = (train(steps=5, devices=d, chunk=c) for d, c in ((1, 1), (2, 2)))
    assert_trees_close(one.params, two.params, rtol=1e-4, atol=1e-6)


def test_given_parameters_are_where_it_starts_and_are_left_alone() -> None:
    params = LEARNER.init(jax.random.key(3), SOURCE.sample((), jax.random.key(3)))
    before = jax.tree.map(np.asarray, params)
    result = fit(LEARNER, SOURCE, optax.sgd(0.0), steps=2, params=params, log_every=1, progress=False)
    assert_trees_close(result.params, before, rtol=0)
    assert_trees_equal(params, before)


def test_given_parameters_do_not_hide_labels_that_the_learner_lacks() -> None:
    source = tasks.episodes(tasks.glyphs("train", classes=8), ways=4, shots=1, queries=1)
    learner = prototypical(nn.MLP((), 4), ways=3)
    params = nn.MLP((), 4).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    with pytest.raises(ValueError, match=r"ways=3, so support\.y must lie in \[0, 3\), but holds labels 0\.\.3"):
        fit(learner, source, optax.sgd(0.1), steps=1, params=params, log_every=1, progress=False)


def test_a_run_folder_holds_what_it_should_and_resumes_exactly(tmp_path: Path) -> None:
    whole = train(steps=20, checkpoint_every=10, run_dir=tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
    ]
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert rows == whole.history
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["fit"]["steps"] == 20
    assert config["source"]["name"] == "sinusoid"
    assert config["versions"]["jax"] == jax.__version__

    # A finished run resumes to itself, from its last checkpoint.
    again = train(steps=20, checkpoint_every=10, run_dir=tmp_path / "whole", resume=True)
    assert_trees_equal(again.params, whole.params)
    assert again.history == whole.history
    params, step = load_params(tmp_path / "whole", jax.eval_shape(lambda: whole.params), OPTIMIZER)
    assert step == 20
    assert_trees_equal(params, whole.params)


KILLED = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
sys.path.insert(0, sys.argv[1])
from test_fit import train
train(steps=300, log_every=5, checkpoint_every=5, run_dir=sys.argv[2], resume=True)
"""


def test_a_killed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    """`kill -9`, three times, at moments that fall where they may; then the run is let finish."""
    run_dir = tmp_path / "killed"
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(run_dir)]
    rng, reached = np.random.default_rng(), []
    for _ in range(3):
        before = lines(run_dir)
        process = subprocess.Popen(words, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while lines(run_dir) < before + 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
        reached.append(lines(run_dir))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # a line that the kill tore
    result = train(steps=300, checkpoint_every=5, run_dir=run_dir, resume=True)
    whole = train(steps=300, checkpoint_every=5)
    assert 0 < reached[-1] < 60, f"the kills should fall inside the run, but it had logged {reached} windows"
    assert_trees_equal(result.params, whole.params)
    assert_trees_equal(result.opt_state, whole.opt_state)
    timeless = [
        [{k: v for k, v in row.items() if k != "tasks_per_second"} for row in r.history] for r in (result, whole)
    ]
    assert timeless[0] == timeless[1]
    assert lines(run_dir) == 60


def lines(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    train(steps=5, run_dir=tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="is not empty: continue it with resume"):
        train(steps=5, run_dir=tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"was started with fit.seed=0, which does not match fit.seed=1; resume with the same settings"
    ):
        train(steps=5, seed=1, run_dir=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds no config.json: it is not a run"):
        train(steps=5, run_dir=tmp_path / "other", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        train(steps=5, run_dir=tmp_path / "file")
    with pytest.raises(OSError, match=r"run folder /proc/run cannot be written"):
        train(steps=5, run_dir="/proc/run")


def breaking_at(step: int) -> MetaLearner:
    """A learner whose gradient is 1 until its parameter has taken `step - 1` steps of size 1, and then NaN."""

    def meta_grad(params, episode: Episode, key):
        broken = params <= -(step - 1) + 0.5
        return jnp.where(broken, jnp.nan, 1.0), {"loss": jnp.where(broken, jnp.nan, params)}

    return MetaLearner(lambda key, episode: jnp.array(0.0), meta_grad, lambda *_: jnp.array(0.0))


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"outer step 13: grad_norm=nan, loss=nan, param_norm=nan. Try a smaller"
    ):
        fit(
            breaking_at(13),
            SOURCE,
            optax.sgd(1.0),
            steps=20,
            log_every=5,
            checkpoint_every=5,
            run_dir=tmp_path,
            progress=False,
        )
    params, step = load_params(tmp_path, jnp.array(0.0), optax.sgd(1.0))
    assert (float(params), step) == (-10.0, 10)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [5, 10]


def test_parameters_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The gradient is sound and the step is not: an outer rate that turns to NaN."""
    broken = optax.sgd(lambda count: jnp.where(count >= 7, jnp.nan, 1e-2))
    with pytest.raises(FloatingPointError, match=r"outer step 8: param_norm=nan"):
        fit(LEARNER, SOURCE, broken, steps=10, log_every=5, checkpoint_every=5, run_dir=tmp_path, progress=False)
    like = jax.eval_shape(LEARNER.init, jax.random.key(0), SOURCE.sample((), jax.random.key(0)))
    params, step = load_params(tmp_path, like, broken)
    assert step == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_what_would_not_continue_bit_for_bit_is_refused(tmp_path: Path) -> None:
    train(steps=5, devices=2, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"was started with fit.devices=2, which does not match fit.devices=1"):
        train(steps=5, devices=1, run_dir=tmp_path, resume=True)


@pytest.mark.parametrize("what", ["backend", "device", "matmul_precision"])
def test_a_run_of_another_arithmetic_is_refused(tmp_path: Path, what: str) -> None:
    train(steps=5, run_dir=tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["versions"][what] = "another"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"was started with versions.{what}='another', which does not match"):
        train(steps=5, run_dir=tmp_path, resume=True)
    del config["versions"][what]  # as a run before this was recorded
    path.write_text(json.dumps(config))
    assert train(steps=5, run_dir=tmp_path, resume=True).history[-1]["step"] == 5


def test_a_checkpoint_of_another_model_is_told_in_one_line(tmp_path: Path) -> None:
    train(steps=5, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint 5 in .* cannot be read as this learner's state"):
        load_params(tmp_path, [jnp.zeros(3)], OPTIMIZER)


def test_steps_that_are_no_multiple_of_the_window(tmp_path: Path) -> None:
    result = train(steps=7, run_dir=tmp_path)
    assert [row["step"] for row in result.history] == [5, 7]
    assert load_params(tmp_path, result.params, OPTIMIZER)[1] == 7


INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a parent in the background may have had ignored
""" + KILLED.replace("steps=300, log_every=5, checkpoint_every=5", "steps=1500, log_every=5, checkpoint_every=1500")


def test_ctrl_c_saves_what_was_done(tmp_path: Path) -> None:
    """Between checkpoints, which the run would else go back to; then it is let finish."""
    run_dir = tmp_path / "interrupted"
    words = [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parent), str(run_dir)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while lines(run_dir) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT, errors.decode()
    assert "interrupted: stopping after these steps, to save them" in errors.decode()
    (saved,) = (int(path.name) for path in (run_dir / "checkpoints").iterdir())
    assert saved == 5 * lines(run_dir) < 1500
    result = train(steps=1500, checkpoint_every=1500, run_dir=run_dir, resume=True)
    assert_trees_equal(result.params, train(steps=1500).params)


def test_a_second_ctrl_c_stops_at_once_and_the_first_at_the_end_of_training_at_the_latest() -> None:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = []

    def twice() -> None:
        with held_interrupt() as interrupted:
            steps.append(interrupted())
            signal.raise_signal(signal.SIGINT)
            steps.append(interrupted())
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            steps.append("end")

    try:
        with pytest.raises(KeyboardInterrupt):
            twice()
        assert steps == [False, True, "end"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another's choice stays
        with held_interrupt() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            (LEARNER.meta_grad, SOURCE, OPTIMIZER),
            "learner must be a MetaLearner, with init and meta_grad, but is of type function",
        ),
        (
            (LEARNER, SOURCE.sample, OPTIMIZER),
            r"source must be a tasks.Source\(sample, data, info\), with sample, but is of type function",
        ),
        ((LEARNER, SOURCE, 1e-3), "optimizer must be an Optax transformation, .* but is of type float"),
    ],
)
def test_parts_of_another_kind_are_named(parts, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fit(*parts, steps=1)


def test_parameters_to_start_from_that_are_not_the_learner_s_are_named() -> None:
    params = LEARNER.init(jax.random.key(3), SOURCE.sample((), jax.random.key(3)))
    with pytest.raises(
        ValueError, match=r"params\['params'\]\['dense_0'\]\['bias'\] must have shape \(8,\), but has \(1, 8\)"
    ):
        train(steps=1, params=jax.tree.map(lambda leaf: leaf[None], params))
    with pytest.raises(ValueError, match="params must have the structure of the learner's"):
        train(steps=1, params=params["params"])


def test_a_metric_cannot_take_the_name_of_training_s_own() -> None:
    def meta_grad(params, episode, key):
        return params, {"loss": params, "step": params}

    learner = MetaLearner(lambda key, episode: jnp.ones(()), meta_grad, lambda *_: None)
    with pytest.raises(ValueError, match=r"metrics of the learner must not be called \['step'\]"):
        fit(learner, SOURCE, OPTIMIZER, steps=1, progress=False)


@pytest.mark.parametrize("devices", [1, 2])
def test_validation_is_recorded_and_changes_nothing(tmp_path: Path, devices: int) -> None:
    kept = {}

    def validate(step: int, params) -> dict[str, jax.Array]:
        kept[step] = params
        return {"validation": jnp.float32(step) / 2} if step != 10 else {}

    settings = {"steps": 15, "checkpoint_every": 5, "devices": devices}
    plain, result = train(**settings), train(**settings, validate=validate, run_dir=tmp_path)
    assert_trees_equal(result.params, plain.params)
    assert [row.get("validation") for row in result.history] == [2.5, None, 7.5]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == result.history
    # What it keeps is of its own step, outlives the next one, and goes with arrays of any device.
    assert_trees_equal(kept[5], train(steps=5, devices=devices).params)
    assert_trees_equal(kept[15], plain.params)
    for device in jax.devices():
        jax.block_until_ready(jax.tree.map(jnp.add, kept[15], jax.device_put(plain.params, device)))


def test_a_resumed_run_validates_what_is_left(tmp_path: Path) -> None:
    seen = []

    def validate(step: int, params) -> dict[str, float]:
        if step == 10 and 10 not in seen:
            seen.append(step)
            raise RuntimeError("no room on the disk")
        seen.append(step)
        return {"validation": float(step)}

    settings = {"steps": 15, "checkpoint_every": 15, "validate": validate, "run_dir": tmp_path}
    with pytest.raises(RuntimeError, match="no room"):
        train(**settings)
    # What was done until it failed is kept, and not done again.
    result = train(**settings, resume=True)
    assert seen == [5, 10, 15]
    assert [row.get("validation") for row in result.history] == [5.0, None, 15.0]
    assert_trees_equal(result.params, train(steps=15).params)
    train(**settings, resume=True)
    assert seen == [5, 10, 15]


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ({"loss": 1.0}, ValueError, r"metrics of validate must not be called \['loss'\]"),
        (
            {"validation": float("nan")},
            FloatingPointError,
            r"validate after outer step 5 returned \{'validation': nan\}",
        ),
        (0.5, TypeError, "validate must return a dict of metrics, .* but returned 0.5"),
        ({1: 0.5}, TypeError, "validate must return a dict of metrics"),
        ({"metric": "accuracy"}, TypeError, "validate returned metric='accuracy', which is no number"),
        ({"each": [0.5, 0.5]}, TypeError, "validate returned each=.*, which is no number"),
        ({"none": None}, TypeError, "validate returned none=None, which is no number"),
    ],
)
def test_what_validation_cannot_return_is_named(returned, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(steps=5, validate=lambda step, params: returned)


def test_validation_is_a_function() -> None:
    with pytest.raises(TypeError, match=r"validate must be a function \(step, params\) -> metrics, but is 0\.5"):
        train(steps=5, validate=0.5)


def test_a_record_of_half_precision_is_the_mean_of_all_steps() -> None:
    """A sum of ones in bfloat16 never exceeds 256, and a square in float16 never 65,504."""

    def meta_grad(params: jax.Array, episode: Episode, key: jax.Array):
        return jnp.zeros_like(params), {"loss": jnp.ones((), jnp.bfloat16)}

    for dtype, norm in ((jnp.bfloat16, 16.0), (jnp.float16, 4096.0)):
        start = jnp.full(16, norm / 4, dtype)
        learner = MetaLearner(lambda key, episode, start=start: start, meta_grad, lambda *args: args[2])
        (row,) = fit(learner, SOURCE, optax.sgd(0.1), steps=600, log_every=600, progress=False).history
        assert row["loss"] == 1.0
        assert row["param_norm"] == norm


def test_numbers_may_be_where_training_starts(tmp_path: Path) -> None:
    meta_grad = lambda w, episode, key: (w - 1.0, {"loss": w})  # noqa: E731
    learner = MetaLearner(lambda key, episode: jnp.zeros(()), meta_grad, lambda *args: args[2])
    settings = {"log_every": 1, "checkpoint_every": 1, "progress": False, "run_dir": tmp_path, "params": 0.5}
    whole = fit(learner, SOURCE, optax.sgd(0.1), steps=2, **settings)
    again = fit(learner, SOURCE, optax.sgd(0.1), steps=2, resume=True, **settings)
    assert_trees_equal(whole.params, again.params)


def test_an_outer_optimiser_may_want_the_loss() -> None:
    """With a rate of 0 the loss stays as it is, which is a plateau."""
    learner = MetaLearner(lambda key, episode: jnp.ones(()), lambda w, *_: (w, {"loss": w}), lambda *_: None)
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    found = fit(learner, SOURCE, optax.chain(optax.sgd(0.0), plateau), steps=6, log_every=6, progress=False)
    assert float(optax.tree.get(found.opt_state, "scale")) < 1


def test_a_run_that_fails_before_it_keeps_anything_leaves_its_folder_free(tmp_path: Path) -> None:
    broken = maml(MODEL, inner_optimizer=optax.sgd(1e30), loss=losses.mean_squared_error)
    with pytest.raises(FloatingPointError, match=r"outer step 1: .*The data or the first meta-parameters may hold it"):
        fit(
            broken,
            SOURCE,
            OPTIMIZER,
            steps=5,
            log_every=5,
            checkpoint_every=5,
            run_dir=tmp_path / "run",
            progress=False,
        )
    assert train(steps=5, checkpoint_every=5, run_dir=tmp_path / "run").history[-1]["step"] == 5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, but is 0"),
        ({"steps": 1, "meta_batch": 0}, "meta_batch must be 1 or more, but is 0"),
        ({"steps": 1, "log_every": 0}, "log_every must be 1 or more"),
        (
            {"steps": 1, "checkpoint_every": 7, "run_dir": "never-made"},
            "checkpoint_every=7 must be a multiple of log_every=5",
        ),
    ],
)
def test_bad_numbers_are_named(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(**kwargs)


def test_what_is_no_whole_number_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"meta_batch must be an int, but is 2\.0"):
        train(steps=1, meta_batch=2.0)
    for config in ({"x": float("nan")}, {"x": jnp.ones(2)}):
        with pytest.raises((TypeError, ValueError), match=r"config and source\.info must be JSON-able, but are"):
            train(steps=1, run_dir=tmp_path / "run", config=config)
    with pytest.raises(TypeError, match=r"source\.info must be a dict .* but is None"):
        fit(LEARNER, SOURCE._replace(info=None), OPTIMIZER, steps=1)  # pyright: ignore[reportArgumentType]
    train(steps=np.int64(5), run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["fit"]["steps"] == 5


def test_what_is_carried_along_has_to_be_finite() -> None:
    def meta_grad(params, episode, key):
        del episode, key
        return {"w": params["w"], "count": Replacement(params["count"].value * 1e30)}, {"loss": params["w"]}

    learner = MetaLearner(
        lambda key, episode: {"w": jnp.ones(()), "count": Carried(jnp.ones(()))}, meta_grad, lambda p, s, x, k: x
    )
    with pytest.raises(FloatingPointError, match="outer step 2: param_norm=nan"):
        fit(learner, SOURCE, optax.sgd(0.1), steps=3, meta_batch=1, log_every=3, progress=False)


def test_runs_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the run has not reached its first"):
        load_params(tmp_path, jnp.array(0.0), OPTIMIZER)


def test_the_data_set_is_not_compiled_into_the_training_step() -> None:
    from jaxmeta.training._fit import TrainState, train_window

    source = tasks.episodes(tasks.glyphs("train", classes=100, image_size=16), ways=5, shots=1, queries=1)
    learner = maml(nn.MLP((4,), 5), inner_optimizer=optax.sgd(0.1))
    params = learner.init(jax.random.key(0), source.sample(source.data, jax.random.key(0)))
    state = TrainState(params, OPTIMIZER.init(params))
    lowered = train_window(one_device=False).lower(
        learner, source.sample, OPTIMIZER, 2, None, None, 3, state, source.data, jax.random.key(0), 0
    )
    assert len(lowered.as_text()) < source.data[0].size


@pytest.mark.usefixtures("float64")
def test_one_device_convolves_otherwise_to_the_same_steps() -> None:
    from jaxmeta.training._fit import TrainState, train_window

    source = tasks.episodes(tasks.glyphs("train", classes=20), ways=3, shots=1, queries=1)
    learner = maml(nn.Conv4(3, features=32), inner_optimizer=optax.sgd(0.1))
    params = to_float64(learner.init(jax.random.key(1), source.sample(source.data, jax.random.key(0))))
    programs, moved, shared = [], [], []
    for one_device in (False, True):
        window = train_window(one_device=one_device)
        state = TrainState(jax.tree.map(jnp.array, params), OPTIMIZER.init(params))
        traced = window.trace(
            learner, source.sample, OPTIMIZER, 1, None, 1, 2, state, source.data, jax.random.key(0), 0
        )
        compiled = traced.lower().compile()
        shared.append("shared_cores=True" in str(traced.jaxpr))
        programs.append(compiled.as_text())
        moved.append(compiled(state, source.data, jax.random.key(0), 0)[0].params)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params)), "the state was to be given away"
    assert shared == [False, jax.default_backend() == "cpu"]
    assert (programs[0] != programs[1]) == (jax.default_backend() == "cpu"), "has the option another name in this XLA?"
    assert_trees_close(*moved, 1e-8, 1e-10)


def test_a_user_s_own_choice_of_convolutions_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxmeta.nn._conv2d import shared_cores
    from jaxmeta.training import _fit

    found = []
    monkeypatch.setattr(_fit, "_window", lambda *args: found.append(shared_cores.value))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    assert _fit._on_every_core() is None
    _fit.train_window.__wrapped__(one_device=True).trace(*range(8))
    assert found == [False]


def test_episodes_drawn_ahead_are_those_drawn_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxmeta.training import _fit

    source = tasks.sinusoid(shots=3)
    learner = maml(nn.MLP((4,), 1), inner_optimizer=optax.sgd(0.1), loss=losses.mean_squared_error)
    params = learner.init(jax.random.key(1), source.sample((), jax.random.key(0)))
    state, programs, ran = _fit.TrainState(params, OPTIMIZER.init(params)), [], []
    for limit in (_fit._AHEAD_BYTES, 0):
        monkeypatch.setattr(_fit, "_AHEAD_BYTES", limit)
        window = functools.partial(_fit._window, learner, source.sample, OPTIMIZER, 3, None, 1, 5)
        traced = jax.jit(window).trace(state, (), jax.random.key(0), jnp.asarray(2))
        programs.append(str(traced.jaxpr))
        ran.append(traced.lower().compile()(state, (), jax.random.key(0), jnp.asarray(2)))
    assert programs[0] != programs[1]
    assert_trees_close(*ran, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("impl", "held", "ahead"), [("threefry2x32", 1, True), ("rbg", 1, False), ("threefry2x32", 10**5, False)]
)
def test_episodes_are_drawn_ahead_where_that_changes_and_takes_nothing(impl: str, held: int, ahead: bool) -> None:
    """Other generators draw other numbers under `vmap`, and what a source holds while it draws would be held often."""
    from jaxmeta.training import _fit

    source = tasks.sinusoid(shots=3)

    def sample(data, key):
        scale = jax.random.permutation(key, held).max() * 0.0 + 1.0
        episode = source.sample(data, key)
        return jax.tree.map(lambda leaf: leaf * scale, episode)

    learner = maml(nn.MLP((4,), 1), inner_optimizer=optax.sgd(0.1), loss=losses.mean_squared_error)
    params = learner.init(jax.random.key(1), source.sample((), jax.random.key(0)))
    state = _fit.TrainState(params, OPTIMIZER.init(params))
    window = functools.partial(_fit._window, learner, sample, OPTIMIZER, 3, None, 1, 100)
    program = jax.make_jaxpr(window)(state, (), jax.random.key(0, impl=impl), jnp.asarray(0))
    outside = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name != "scan"]
    assert ("random_bits" in str(outside)) == ahead
