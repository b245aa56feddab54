"""What the commands do. JAX is imported when a command runs, after its number of devices is settled."""

import contextlib
import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from jaxmeta.cli._arguments import Compare, Evaluate, Train

# Trained on one inner step, MAML ends ten with an error above 20 on about one sinusoid in a thousand
# (`benchmarks/sinusoid_init.py`). Now and then one of these is infinite: the rounding of a processor decides on which.
_MAY_DIVERGE = 0.01


def set_up_jax(devices: int | None = None) -> None:
    """Gives JAX a CPU device for each core, so that tasks run side by side, and an accelerator its full precision.

    Left to itself, JAX multiplies single-precision matrices in shorter formats on GPUs and TPUs, and meta-gradients
    came out a fifth and more off (`benchmarks/precision.py`). What the user has set stays: `JAX_NUM_CPU_DEVICES`, and
    `JAX_DEFAULT_MATMUL_PRECISION`, whose value `default` means JAX's own.
    """
    import jax

    if devices is not None and devices < 1:
        raise ValueError(f"--devices must be 1 or more, but is {devices}")
    if devices is not None or "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX already runs, in a notebook say: its devices are what they are
            jax.config.update("jax_num_cpu_devices", devices or _cores())
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if precision is None and jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "float32")


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train(command: Train) -> None:
    """`jaxmeta train`."""
    set_up_jax(command.devices)
    from jaxmeta import presets
    from jaxmeta.training import _plots, _run, fit
    from jaxmeta.training import evaluate as judge

    settings = _train_settings(command)
    run_dir = command.out or Path("runs") / f"{settings.method}-{Path(settings.dataset).name}-seed{command.seed}"
    _run.check_free(run_dir, resume=command.resume)
    if command.resume and not any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*")):
        print(f"jaxmeta: {run_dir} has no checkpoint to resume from: training starts at step 0", file=sys.stderr)
    setup = presets.build(settings)
    used = setup.train_source.info.get("ways")
    if command.train_ways not in (None, used):
        raise ValueError(f"--train-ways {command.train_ways}, but there are only {used} classes to train on")
    result = fit(
        setup.learner,
        setup.train_source,
        setup.optimizer,
        steps=settings.steps,
        meta_batch=settings.meta_batch,
        seed=command.seed,
        run_dir=run_dir,
        resume=command.resume,
        config={"settings": dataclasses.asdict(settings)},
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        chunk=_chunk(settings),
    )
    evaluation = judge(
        setup.test_learner,
        result.params,
        setup.test_source,
        episodes=settings.episodes,
        seed=command.seed,
        query_mode=command.query_mode,
        may_diverge=_MAY_DIVERGE,
    )
    _run.write_json(run_dir / "result.json", {"step": settings.steps, **_judged(evaluation)})
    if result.history:
        _plots.plot_history(run_dir / "training.png", result.history)
    _plots.plot_steps(run_dir / "adaptation.png", evaluation)
    if settings.dataset == "sinusoid":
        _plots.plot_curves(run_dir / "curves.png", setup.learner, result.params, setup.test_source, seed=command.seed)
    else:
        _plots.plot_episode(run_dir / "episode.png", setup.test_source, seed=command.seed)
    if setup.test_learner.compare is not None:
        shown = (setup.test_learner, result.params, setup.test_source)
        _plots.plot_embedding(run_dir / "embedding.png", *shown, seed=command.seed)
        _plots.plot_kernel(run_dir / "kernel.png", *shown, seed=command.seed)
    print(_table(settings.method, settings.dataset, evaluation))
    print(f"Run folder: {run_dir} ({', '.join(sorted(path.name for path in run_dir.glob('*.png')))})")


def evaluate(command: Evaluate) -> None:
    """`jaxmeta evaluate`."""
    set_up_jax()
    from jaxmeta import presets
    from jaxmeta.training import _run
    from jaxmeta.training import evaluate as judge

    config = _run.read_config(command.run_dir)
    settings, setup, params, step = presets.load(
        command.run_dir, _evaluate_settings(command, presets.settings_of(command.run_dir))
    )
    evaluation = judge(
        setup.test_learner,
        params,
        setup.test_source,
        episodes=settings.episodes,
        seed=config["fit"]["seed"] if command.seed is None else command.seed,
        query_mode=settings.query_mode,  # pyright: ignore[reportArgumentType]
        by_step=command.by_step,
        may_diverge=_MAY_DIVERGE,
    )
    inner_steps = settings.eval_inner_steps if setup.learner.predict_path is not None else None
    found = {"step": step, "inner_steps": inner_steps, **_judged(evaluation)}
    inner = "" if inner_steps is None else f"-inner{inner_steps}"
    name = f"evaluation-step{step}{inner}-{evaluation.query_mode}-{evaluation.episode_hash[:12]}.json"
    file = command.run_dir / name
    if not command.by_step and file.exists():  # the same judgement: what it holds of the steps before stays
        found["by_step"] = json.loads(file.read_text())["by_step"]
    _run.write_json(file, found)
    print(_table(settings.method, settings.dataset, evaluation))
    print(f"Written to {file} (checkpoint of step {step})")


def compare(command: Compare) -> None:
    """`jaxmeta compare`."""
    set_up_jax(command.devices)
    import jax

    from jaxmeta import analysis, presets
    from jaxmeta.analysis._compare import table
    from jaxmeta.training import _run

    preset = presets.settings("maml", command.dataset, ways=command.ways, shots=command.shots, queries=command.queries)
    asked = _given(command, "inner_steps", "inner_lr", "meta_batch", "data_dir")
    settings = dataclasses.replace(preset, **asked)
    out = command.out or Path("runs") / f"compare-{Path(settings.dataset).name}-seed{command.seed}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already: choose another folder with --out")
    learners, source = presets.estimators(settings)
    init_key, task_key, key = jax.random.split(jax.random.key(command.seed), 3)
    episodes = jax.vmap(source.sample, (None, 0))(source.data, jax.random.split(task_key, settings.meta_batch))
    first = jax.tree.map(lambda leaf: leaf[0], episodes)
    params = learners["maml"].init(init_key, first)
    step = None
    if command.run is not None:
        params, step = _maml_params(command.run, params)
    rows = analysis.compare(learners, params, episodes, key, repeats=command.repeats)
    title = f"{settings.meta_batch} tasks of {settings.dataset}, {settings.inner_steps} inner steps"
    print(f"{title}, rate {settings.inner_lr:g}, at {f'step {step} of {command.run}' if step else 'the start'}")
    print(table(rows))
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "settings": dataclasses.asdict(settings),
        "seed": command.seed,
        "run": None if command.run is None else str(command.run),
        "step": step,
        "devices": len(jax.devices()),
        "versions": _run.versions(),
        "estimators": [row._asdict() for row in rows],
    }
    _run.write_json(out / "compare.json", report)
    analysis.plot_comparison(out / "compare.png", rows, title)
    print(f"Written to {out} (compare.json, compare.png)")


def _maml_params(run_dir: Path, like: Any) -> tuple[Any, int]:
    """The newest meta-parameters of a run of MAML or first-order MAML."""
    import jax

    from jaxmeta import presets
    from jaxmeta.training import _run, load_params

    config = _run.read_config(run_dir)
    method = config.get("settings", {}).get("method")
    if method not in ("maml", "fomaml"):
        raise ValueError(f"--run wants a run of maml or fomaml, but {run_dir} is one of {method}")
    optimizer = presets.build(presets.Settings(**config["settings"])).optimizer
    return load_params(run_dir, jax.eval_shape(lambda: like), optimizer)


def _train_settings(command: Train) -> Any:
    """The method's preset, changed by the options of its training."""
    from jaxmeta import presets

    preset = presets.settings(
        command.method, command.dataset, ways=command.ways, shots=command.shots, queries=command.queries
    )
    settings = dataclasses.replace(preset, query_mode=command.query_mode, **_train_options(command))
    if preset.eval_inner_steps != preset.inner_steps:
        return settings
    return dataclasses.replace(settings, eval_inner_steps=settings.inner_steps)  # one number for both, as in the preset


def _train_options(command: Train) -> dict[str, Any]:
    """The settings that the options of a training change, and a complaint about those that its method would ignore."""
    from jaxmeta import presets

    names = (
        *("train_ways", "train_shots", "train_queries", "steps", "inner_steps", "inner_lr", "meta_batch", "outer_lr"),
        *("halve_every", "temperature", "image_size", "split", "rotations", "augment", "episodes", "data_dir"),
    )
    asked = _given(command, *names)
    for name, reason in presets.family_of(command.method).refused(command.method).items():
        if name in asked:
            raise ValueError(f"--{name.replace('_', '-')} is not for {command.method}, {reason}")
    if "split" in asked and command.dataset != "omniglot":
        raise ValueError(f"--split is for omniglot, but --dataset is {command.dataset}")
    if "rotations" in asked:
        asked["train_rotations"] = asked["test_rotations"] = asked.pop("rotations")
    return asked


def _evaluate_settings(command: Evaluate, settings: Any) -> Any:
    """The settings of a run, changed by the options of its evaluation."""
    from jaxmeta import presets

    asked = _given(command, "ways", "shots", "queries", "episodes", "query_mode", "data_dir")
    if settings.dataset == "sinusoid" and "ways" in asked:
        raise ValueError(f"--ways {command.ways}, but sinusoid is a regression, which has no classes")
    if command.inner_steps is not None:
        if settings.method == "maml_pp":
            raise ValueError("--inner-steps is not for maml_pp, which takes the steps whose rates it has learned")
        if not presets.family_of(settings.method).regression:
            raise ValueError(f"--inner-steps is not for {settings.method}, which does not adapt by gradient steps")
        asked["eval_inner_steps"] = command.inner_steps
    return dataclasses.replace(settings, **asked)


def _chunk(settings: Any) -> int | None:
    """The settings' chunk, or less where it does not divide a device's share of the meta-batch."""
    from jaxmeta.meta_batch import task_mesh

    share = settings.meta_batch // task_mesh(settings.meta_batch).size
    return None if settings.chunk is None else math.gcd(settings.chunk, share)


def _given(command: Any, *names: str) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name in names if (value := getattr(command, name)) is not None}


def list_presets() -> None:
    """`jaxmeta list`."""
    from jaxmeta import presets

    print("Methods and their settings: the papers', where they tell them (`jaxmeta.presets` says what is not theirs).")
    print("--dataset also takes the path of a folder of class folders.\n")
    print(f"{'method':19}{'dataset':10}{'steps':>9}{'tasks':>7}{'inner steps':>13}{'inner rate':>12}{'outer rate':>12}")
    for method in presets.METHODS:
        for dataset in presets.datasets_of(method):
            s = presets.settings(method, dataset)
            refused = presets.family_of(method).refused(method)
            steps, rate = ("-" if n in refused else f"{getattr(s, n):g}" for n in ("inner_steps", "inner_lr"))
            print(f"{method:19}{dataset:10}{s.steps:>9}{s.meta_batch:>7}{steps:>13}{rate:>12}{s.outer_lr:>12g}")


def _judged(evaluation: Any) -> dict[str, Any]:
    """An evaluation with each episode's value, to compare runs episode by episode."""
    values = [round(float(value), 6) if math.isfinite(value) else None for value in evaluation.values]
    return {**evaluation.summary(), "values": values}


def _table(method: str, dataset: str, evaluation: Any) -> str:
    percent = evaluation.metric == "accuracy"
    ways = f"{evaluation.source['ways']} ways, " if percent else ""
    shown = (lambda value: f"{100 * value:.2f} %") if percent else (lambda value: f"{value:.3f}")
    lines = [
        f"{method} on {dataset}: {evaluation.episodes} unseen episodes, {ways}{evaluation.source['shots']} shots, "
        f"{evaluation.query_mode} (seed {evaluation.seed}, episodes {evaluation.episode_hash[:12]})",
    ]
    if evaluation.by_step is None:
        lines.append(f"{evaluation.metric} {shown(evaluation.mean)} ± {shown(evaluation.interval)}")
    else:
        lines.append(f"{'adaptation steps':>18}{evaluation.metric:>12}{'95 % interval':>18}")
        steps, last = evaluation.by_step, len(evaluation.by_step) - 1
        for step in sorted({0, min(1, last), min(5, last), last}):
            mean, interval = steps[step]
            lines.append(f"{step:>18}{shown(mean):>12}{'± ' + shown(interval):>18}")
    if evaluation.diverged:
        lines.append(f"without {evaluation.diverged} of the episodes, where adaptation diverged")
    if dataset == "sinusoid":
        lines.append(f"{'predicting zero':>18}{'4.252':>12}")
    return "\n".join(lines)
