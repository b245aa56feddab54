"""Reproduces published numbers: trains, judges, and writes `results/NAME.json` and `REPORT.md`.

    python benchmarks/reproduce.py                          # rebuilds REPORT.md from the results
    python benchmarks/reproduce.py maml-omniglot-5w1s       # trains first; continues what was cut short
    python benchmarks/reproduce.py maml-sinusoid --seed 1   # another seed, results/maml-sinusoid-seed1.json

`cells.py` has the names.
"""

import dataclasses
import functools
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro
from cells import CELLS
from common import wall_seconds
from machine import machine
from report import build

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Reproduce published numbers."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; none rebuilds the report alone."""
    seed: int = 0
    """Of initialisation, training and test episodes."""
    runs: Path = Path("runs/reproduce")
    """Where run folders are."""


def main(arguments: Arguments) -> None:
    unknown = set(arguments.names) - set(CELLS)
    if unknown:
        raise ValueError(f"no such cells: {sorted(unknown)}; want some of {sorted(CELLS)}")
    for name in arguments.names:
        name_of_run = f"{name}-seed{arguments.seed}"
        run_dir = arguments.runs.absolute() / name_of_run
        commits = note_commit(run_dir.with_suffix(".commits"), trained=is_trained(run_dir))
        commands = [f"{CELLS[name].train} --seed {arguments.seed} --out RUN", *CELLS[name].judge]
        for command in commands:
            run(command, run_dir)
        file = HERE / "results" / f"{name if arguments.seed == 0 else name_of_run}.json"
        origin = {"commands": commands, "commits": commits, "judged_by": commit()}
        file.write_text(json.dumps({**origin, **record(run_dir)}, indent=2) + "\n")
        print(f"Written to {file}")
    (HERE / "REPORT.md").write_text(build())


def run(command: str, run_dir: Path) -> None:
    """Runs `jaxmeta ..` or `python ..` with this Python, from the project's folder."""
    program, *words = shlex.split(command.replace("RUN", shlex.quote(str(run_dir))))
    if words[0] == "train" and (run_dir / "config.json").exists():
        words.append("--resume")
    start = [sys.executable] if program == "python" else [sys.executable, "-m", "jaxmeta"]
    print("+", command, flush=True)
    subprocess.run([*start, *words], check=True, cwd=HERE.parent)


def record(run_dir: Path) -> dict[str, Any]:
    """What a run folder holds."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(run_dir.glob("*.json"))}
    for file in files.values():
        file.pop("values", None)  # of single episodes
    config = files.pop("config")
    evaluations = [files.pop(name) for name in list(files) if name.startswith("evaluation-")]
    steps, seed = config["fit"]["steps"], config["fit"]["seed"]
    inner = {None, config["settings"].get("eval_inner_steps")}
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    every = max(1, len(rows) // 20)
    return {
        # Those of the last step, and not what somebody asked of an earlier checkpoint.
        "evaluations": [
            one for one in evaluations if (one["step"], one["seed"]) == (steps, seed) and one["inner_steps"] in inner
        ],
        **files,
        "machine": {**machine(), "python": platform.python_version()},
        **config,
        "wall_seconds": round(wall_seconds(rows, config["fit"]["meta_batch"])),
        "history": [*rows[: len(rows) - 1 : every], rows[-1]],
    }


def is_trained(run_dir: Path) -> bool:
    """Whether nothing is left to train."""
    metrics = run_dir / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    steps = json.loads((run_dir / "config.json").read_text())["fit"]["steps"] if rows else 0
    return bool(rows) and json.loads(rows[-1])["step"] == steps


def note_commit(file: Path, *, trained: bool) -> list[str]:
    """The commits that a run was trained by, one for each time it was begun or resumed."""
    commits = file.read_text().split() if file.exists() else []
    now = None if trained else commit()
    if now is not None and now not in commits:
        commits.append(now)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(commits) + "\n")
    return commits


def commit() -> str | None:
    """The commit at hand; `+` says: and changes of code. None without git or a clone."""
    git = functools.partial(subprocess.run, capture_output=True, text=True, check=True, cwd=HERE)
    try:
        head = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changes = git(["git", "status", "--porcelain", "--", "../jaxmeta", "*.py"]).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changes)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
