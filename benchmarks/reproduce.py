"""Reproduces published numbers: trains, judges, and writes `results/NAME.json` and `REPORT.md`.

    python benchmarks/reproduce.py                          # rebuilds REPORT.md from the results
    python benchmarks/reproduce.py maml-omniglot-5w1s       # trains first; continues what was cut short
    python benchmarks/reproduce.py maml-sinusoid --seed 1   # another seed, results/maml-sinusoid-seed1.json

`cells.py` has the names.
"""

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro
from cells import CELLS
from common import training_seconds
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
        commands = [f"{CELLS[name].train} --seed {arguments.seed} --out RUN", *CELLS[name].judge]
        for command in commands:
            run(command, run_dir)
        file = HERE / "results" / f"{name if arguments.seed == 0 else name_of_run}.json"
        file.write_text(json.dumps(record(run_dir, commands), indent=2) + "\n")
        print(f"Written to {file}")
    (HERE / "REPORT.md").write_text(build())


def run(command: str, run_dir: Path) -> None:
    """Runs `jaxmeta ..` or `python ..` with this Python, from the project's folder."""
    program, *words = shlex.split(command.replace("RUN", shlex.quote(str(run_dir))))
    if words[0] == "train" and (run_dir / "config.json").exists():
        words.append("--resume")
    start = [sys.executable] if program == "python" else [sys.executable, "-m", "jaxmeta.cli"]
    print("+", command, flush=True)
    subprocess.run([*start, *words], check=True, cwd=HERE.parent)


def record(run_dir: Path, commands: list[str]) -> dict[str, Any]:
    """What a run folder holds, and what it takes to repeat it."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(run_dir.glob("*.json"))}
    config = files.pop("config")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "commands": commands,
        "evaluations": [files.pop(name) for name in list(files) if name.startswith("evaluation-")],
        **files,
        "training_seconds": training_seconds(rows, config["fit"]["meta_batch"]),
        "commit": commit(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        **config,
        "history": rows[:: max(1, len(rows) // 20)],
    }


def commit() -> str:
    """The commit that was run; a `+` says that the tree has changes."""
    words = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
