"""A run folder: everything one training leaves behind, and what it needs to go on after a kill.

config.json      what was asked for; a resumed run must ask for the same
metrics.jsonl    one line for each logged window of steps
checkpoints/     the newest states, written whole or not at all
result.json      the evaluation
*.png            pictures
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.learner import Params, descended

_KEPT = 2


# What a resumed run must share to continue bit for bit, of what `versions` says.
_ARITHMETIC = ("versions.backend", "versions.device", "versions.matmul_precision")


class TrainState(NamedTuple):
    """What training carries from step to step, and a checkpoint holds."""

    params: Params
    opt_state: optax.OptState


def start_run(run_dir: Path, config: Mapping[str, Any], *, resume: bool) -> None:
    """Creates a run folder, or checks that an existing one may go on.

    Raises:
        FileExistsError: the folder holds something and `resume` is False.
        NotADirectoryError: a file is in the way.
        PermissionError: the folder cannot be written.
        ValueError: the folder's run was asked for with another configuration.
    """
    try:
        asked = {**json.loads(json.dumps(config, allow_nan=False)), "versions": versions()}
    except (TypeError, ValueError) as error:
        raise type(error)(f"config and source.info must be JSON-able, but are {config}: {error}") from error
    path = run_dir / "config.json"
    check_free(run_dir, resume=resume)
    if run_dir.is_dir() and any(run_dir.iterdir()):
        if path.is_file():
            _check_same(read_config(run_dir), asked, run_dir)
            return
        if any(child.name != "config.json.part" for child in run_dir.iterdir()):
            raise FileExistsError(f"run folder {run_dir} is not empty and holds no config.json: it is not a run")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
    except OSError as error:
        raise type(error)(f"run folder {run_dir} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def discarded_if_bare(run_dir: Path) -> Iterator[None]:
    """Empties the folder of a run that fails before it has kept anything, so that its name is free again."""
    try:
        yield
    except Exception:
        checkpoints = run_dir / "checkpoints"
        if {child.name for child in run_dir.iterdir()} <= {"config.json", "checkpoints"}:
            with contextlib.suppress(OSError):  # it holds a checkpoint
                checkpoints.rmdir()
            if not checkpoints.exists():
                (run_dir / "config.json").unlink(missing_ok=True)
        raise


def check_free(run_dir: Path, *, resume: bool) -> None:
    """Raises if a run cannot start in a folder, or, to be resumed, has lost its checkpoints.

    Raises:
        FileExistsError: the folder holds something and `resume` is False, or results without the checkpoints they
            came from.
        NotADirectoryError: a file is in the way.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise NotADirectoryError(f"run folder {run_dir} is a file")
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return
    if not resume:
        raise FileExistsError(
            f"run folder {run_dir} is not empty: continue it with resume (--resume), or choose another"
        )
    if (run_dir / "result.json").exists() and not (run_dir / "checkpoints").is_dir():
        raise FileExistsError(f"run folder {run_dir} has a result but no checkpoints to resume from; choose another")


def _check_same(before: dict[str, Any], now: dict[str, Any], run_dir: Path) -> None:
    before, now = _flat(before), _flat(now)
    for name in sorted(before.keys() | now.keys()):
        bound = name in _ARITHMETIC and name in before  # older runs have not recorded all of it
        free = name.endswith("data_dir") or (name.startswith("versions.") and not bound)
        if before.get(name) != now.get(name) and not free:
            raise ValueError(
                f"run folder {run_dir} was started with {name}={before.get(name)!r}, which does not match "
                f"{name}={now.get(name)!r}; resume with the same settings, or choose another folder"
            )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict with dotted names."""
    flat = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def versions() -> dict[str, str]:
    """What the numbers depend on: versions, the backend, the kind of device, and the precision of its products."""
    packages = ("jaxmeta", "jax", "flax", "optax")
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    device = {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind}
    return {**{name: version(name) for name in packages}, **device, "matmul_precision": precision or "default"}


def read_config(run_dir: Path) -> dict[str, Any]:
    """What a run was asked for.

    Raises:
        FileNotFoundError: the folder is not a run's.
        ValueError: its config.json is not JSON.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no run at {run_dir}: want a folder with config.json, as training writes it")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(part, path)


def read_metrics(run_dir: Path, *, until: int) -> list[dict[str, Any]]:
    """The logged windows up to a step, dropping later ones and a torn last line from the file."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            kept.append(json.loads(line))
    kept = [row for row in kept if row["step"] <= until]
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(part, path)
    return kept


def append_metrics(run_dir: Path, row: Mapping[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def checkpointer(run_dir: Path, *, training: bool) -> Iterator[Any]:
    """The run's Orbax checkpointer, keeping the newest states.

    Only training clears away checkpoints that a kill left half-written: a reader might take away what a training
    that is still running is about to finish.
    """
    from orbax.checkpoint import v1 as ocp

    # Typed loosely: Orbax's policies do not match its own protocols for a type checker.
    policy: Any = ocp.training.preservation_policies.LatestN(_KEPT)
    always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    with ocp.training.Checkpointer(
        str((run_dir / "checkpoints").absolute()),
        save_decision_policy=always,
        preservation_policy=policy,
        cleanup_tmp_directories=training,
    ) as saver:
        yield saver


def load_latest(saver: Any, like: TrainState) -> tuple[int, TrainState] | None:
    """The newest checkpoint's step and state; None when there is none.

    Raises:
        ValueError: its arrays are not like those of `like`.
    """
    if saver.latest is None:
        return None
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
    step = saver.latest.step
    try:
        return step, unbound(saver.load(step, abstract))
    except Exception as error:  # Orbax raises many kinds, with the whole tree in the message
        raise ValueError(
            f"checkpoint {step} in {saver.directory} cannot be read as this learner's state "
            f"({type(error).__name__}): it is damaged, or of another model or outer optimiser; once its folder is "
            "taken away, an earlier one is used, where there is one"
        ) from error


def unbound(tree: Any) -> Any:
    """A copy that is not bound to the devices it came from, and so goes where a computation wants it."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


def load_params(
    run_dir: str | os.PathLike[str], params: Params, optimizer: optax.GradientTransformation
) -> tuple[Params, int]:
    """Loads the meta-parameters of a run's newest checkpoint.

    Args:
        run_dir: the run's folder.
        params: meta-parameters with the structure and shapes to expect, arrays or `jax.ShapeDtypeStruct`s, as
            `jax.eval_shape(learner.init, key, episode)` gives.
        optimizer: the outer optimiser of the run.

    Returns:
        `(params, step)`.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the checkpoint is damaged, or of another model.
    """
    path = Path(run_dir)
    if not (path / "checkpoints").is_dir():
        raise FileNotFoundError(f"no checkpoints at {path / 'checkpoints'}: the run has not reached its first")
    with checkpointer(path, training=False) as saver:
        found = load_latest(saver, TrainState(params, jax.eval_shape(optimizer.init, descended(params))))
    if found is None:
        raise FileNotFoundError(f"no checkpoint in {path / 'checkpoints'}: the run has not reached its first")
    step, state = found
    return state.params, step
