"""The command line: `jaxmeta train`, `jaxmeta evaluate`, `jaxmeta list`."""

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Train:
    """Meta-train a method with its paper's settings, evaluate it, and draw what it learned.

    Without arguments: MAML on sinusoids, the paper's whole budget, in well under two minutes on two cores.
    """

    method: tyro.conf.Positional[str] = "maml"
    """What to train; `jaxmeta list` names the methods."""
    dataset: str = "sinusoid"
    """sinusoid, glyphs (synthetic characters, no download), omniglot, or the path of a folder of class folders; a
    quarter of these, drawn at random, is kept for the test episodes."""
    ways: int | None = None
    """Classes in an episode. Default: 5."""
    shots: int | None = None
    """Support examples of each class. Default: the paper's."""
    queries: int | None = None
    """Query examples of each class (MAML: in training and in test episodes). Default: the paper's."""
    steps: int | None = None
    """Outer steps. Default: the paper's."""
    inner_steps: int | None = None
    """Inner gradient steps in training. Default: the paper's."""
    inner_lr: float | None = None
    """Inner learning rate, on the mean loss. Default: the paper's."""
    meta_batch: int | None = None
    """Episodes in an outer step. Default: the paper's."""
    outer_lr: float | None = None
    """Outer learning rate (Reptile: the first outer step size). Default: the paper's."""
    episodes: int | None = None
    """Test episodes. Default: the paper's."""
    query_mode: Literal["transductive", "inductive"] = "transductive"
    """Whether test queries are seen together, or each alone with the support set."""
    seed: int = 0
    """Of initialisation, training and test episodes."""
    out: Path | None = None
    """Run folder. Default: runs/METHOD-DATASET-seedSEED."""
    resume: bool = False
    """Continue the run in the run folder, bit for bit."""
    devices: int | None = None
    """CPU devices to divide the tasks among. Default: $JAX_NUM_CPU_DEVICES, or one for each core."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps Omniglot. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's newest checkpoint, perhaps on other episodes than it was trained for."""

    run_dir: tyro.conf.Positional[Path]
    """The run's folder."""
    shots: int | None = None
    """Support examples of each class. Default: the run's."""
    queries: int | None = None
    """Query examples of each class. Default: the run's."""
    inner_steps: int | None = None
    """Adaptation steps. Default: the run's."""
    episodes: int | None = None
    """Test episodes. Default: the run's."""
    query_mode: Literal["transductive", "inductive"] | None = None
    """Whether test queries are seen together, or each alone with the support set. Default: the run's."""
    seed: int | None = None
    """Of the test episodes. Default: the run's."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps Omniglot. Default: the run's."""


@dataclasses.dataclass(frozen=True)
class List:
    """List the methods and data sets, with the papers' settings."""


Command = Annotated[Train | Evaluate | List, tyro.conf.ConsolidateSubcommandArgs]

_DESCRIPTION = "Meta-learning in JAX with exact second-order gradients."
_USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, OverflowError)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command. Bad input prints one line on standard error and returns 2.

    Args:
        args: the words after `jaxmeta`; None for the process's own.
    """
    try:
        command = _parse(args)
        match command:
            case Train():
                _train(command)
            case Evaluate():
                _evaluate(command)
            case List():
                _list()
    except _USER_ERRORS as error:
        print(f"jaxmeta: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxmeta: interrupted; continue with the same command and --resume", file=sys.stderr)
        return 130
    return 0


def _parse(args: Sequence[str] | None) -> Train | Evaluate | List:
    """Parses the command line; a mistake in it is a `ValueError` of one line."""
    mistakes = io.StringIO()
    try:
        with contextlib.redirect_stderr(mistakes):
            return tyro.cli(Command, prog="jaxmeta", description=_DESCRIPTION, args=args)  # pyright: ignore
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_first_sentence(mistakes.getvalue())) from None


def _first_sentence(box: str) -> str:
    """The message of tyro's framed error: what stands between the title's rule and the next."""
    parts = re.split(r"^\W*(?:[─-]+ [\w ]+ )?[─-]{3,}\W*$", box, flags=re.MULTILINE)
    message = parts[1] if len(parts) > 1 else box
    return " ".join(re.sub(r"[│|]", " ", message).split()) + " (see jaxmeta --help)"


def _use_cores(devices: int | None) -> None:
    """Gives JAX a CPU device for each core, so that tasks run side by side; an accelerator is left as it is."""
    import jax

    if devices is not None and devices < 1:
        raise ValueError(f"--devices must be 1 or more, but is {devices}")
    if devices is not None or "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX already runs, in a notebook say: its devices are what they are
            jax.config.update("jax_num_cpu_devices", devices or _cores())


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train(command: Train) -> None:
    _use_cores(command.devices)
    from jaxmeta import presets
    from jaxmeta.training import _plots, _run, evaluate, fit

    preset = presets.settings(
        command.method, command.dataset, ways=command.ways, shots=command.shots, queries=command.queries
    )
    asked = {
        name: value
        for name in ("steps", "inner_steps", "inner_lr", "meta_batch", "outer_lr", "episodes", "data_dir")
        if (value := getattr(command, name)) is not None
    }
    settings = dataclasses.replace(preset, query_mode=command.query_mode, **asked)
    run_dir = command.out or Path("runs") / f"{settings.method}-{Path(settings.dataset).name}-seed{command.seed}"
    setup = presets.build(settings)
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
    )
    evaluation = evaluate(
        setup.learner,
        result.params,
        setup.test_source,
        episodes=settings.episodes,
        seed=command.seed,
        query_mode=command.query_mode,
    )
    _run.write_json(run_dir / "result.json", {"step": settings.steps, **evaluation.summary()})
    if result.history:
        _plots.plot_history(run_dir / "training.png", result.history)
    _plots.plot_steps(run_dir / "adaptation.png", evaluation)
    if settings.dataset == "sinusoid":
        _plots.plot_curves(run_dir / "curves.png", setup.learner, result.params, setup.test_source, seed=command.seed)
    else:
        _plots.plot_episode(run_dir / "episode.png", setup.test_source, seed=command.seed)
    print(_table(settings.method, settings.dataset, evaluation))
    print(f"Run folder: {run_dir} ({', '.join(sorted(path.name for path in run_dir.glob('*.png')))})")


def _evaluate(command: Evaluate) -> None:
    _use_cores(None)
    import jax

    from jaxmeta import presets
    from jaxmeta.training import _run, evaluate, load_params

    config = _run.read_config(command.run_dir)
    if "settings" not in config:
        raise ValueError(f"{command.run_dir / 'config.json'} has no settings: the run was not made by jaxmeta train")
    asked = {
        name: value
        for name, value in {
            "shots": command.shots,
            "queries": command.queries,
            "eval_inner_steps": command.inner_steps,
            "episodes": command.episodes,
            "query_mode": command.query_mode,
            "data_dir": command.data_dir,
        }.items()
        if value is not None
    }
    settings = dataclasses.replace(presets.Settings(**config["settings"]), **asked)
    setup = presets.build(settings)

    episode = setup.train_source.sample(setup.train_source.data, jax.random.key(0))
    like = jax.eval_shape(setup.learner.init, jax.random.key(0), episode)
    params, step = load_params(command.run_dir, like, setup.optimizer)
    evaluation = evaluate(
        setup.learner,
        params,
        setup.test_source,
        episodes=settings.episodes,
        seed=config["fit"]["seed"] if command.seed is None else command.seed,
        query_mode=settings.query_mode,  # pyright: ignore[reportArgumentType]
    )
    found = {"step": step, "inner_steps": settings.eval_inner_steps, **evaluation.summary()}
    name = (
        f"evaluation-step{step}-inner{settings.eval_inner_steps}-{evaluation.query_mode}-"
        f"{evaluation.episode_hash[:12]}.json"
    )
    _run.write_json(command.run_dir / name, found)
    print(_table(settings.method, settings.dataset, evaluation))
    print(f"Written to {command.run_dir / name} (checkpoint of step {step})")


def _list() -> None:
    from jaxmeta import presets

    print("Methods and the papers' settings; --dataset also takes the path of a folder of class folders.\n")
    print(f"{'method':10}{'dataset':11}{'steps':>8}{'tasks':>7}{'inner steps':>13}{'inner rate':>12}{'outer rate':>12}")
    for method in presets.METHODS:
        for dataset in presets.DATASETS:
            s = presets.settings(method, dataset)
            print(
                f"{method:10}{dataset:11}{s.steps:>8}{s.meta_batch:>7}{s.inner_steps:>13}{s.inner_lr:>12g}"
                f"{s.outer_lr:>12g}"
            )


def _table(method: str, dataset: str, evaluation: Any) -> str:
    percent = evaluation.metric == "accuracy"
    shown = (lambda value: f"{100 * value:.2f} %") if percent else (lambda value: f"{value:.3f}")
    lines = [
        f"{method} on {dataset}: {evaluation.episodes} unseen episodes, {evaluation.source['shots']} shots, "
        f"{evaluation.query_mode} (seed {evaluation.seed}, episodes {evaluation.episode_hash[:12]})",
        f"{'adaptation steps':>18}{evaluation.metric:>12}{'95 % interval':>18}",
    ]
    steps = evaluation.by_step or [(evaluation.mean, evaluation.interval)]
    last = len(steps) - 1
    for step in sorted({0, min(1, last), min(5, last), last}):
        mean, interval = steps[step]
        lines.append(f"{step:>18}{shown(mean):>12}{'± ' + shown(interval):>18}")
    if dataset == "sinusoid":
        lines.append(f"{'predicting zero':>18}{'4.252':>12}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
