"""Copies what a finished run of `jaxmeta train` found into `benchmarks/results/`, with what it takes to repeat it.

jaxmeta train maml --dataset omniglot --steps 16000 --out runs/maml
python benchmarks/record.py runs/maml maml-omniglot-5w1s --command "jaxmeta train maml --dataset omniglot --steps 16000"
"""

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Annotated

import tyro
from common import training_seconds


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Record a run's result."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    name: tyro.conf.Positional[str]
    """The result file's name."""
    command: str
    """The command that trained it."""
    note: str = ""
    """What a reader should know, such as the paper's number, or what else the machine was doing."""


def main(arguments: Arguments) -> None:
    run_dir = arguments.run_dir
    config = json.loads((run_dir / "config.json").read_text())
    result = json.loads((run_dir / "result.json").read_text())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    seconds = training_seconds(rows, config["settings"]["meta_batch"])
    report = {
        "command": arguments.command,
        "note": arguments.note,
        "evaluations": [json.loads(path.read_text()) for path in sorted(run_dir.glob("evaluation-*.json"))],
        "result": result,
        "training_seconds": seconds,
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        **config,
        "history": [row for row in rows if row["step"] % max(1, rows[-1]["step"] // 20) == 0],
    }
    if (run_dir / "lake.json").exists():
        report["lake"] = json.loads((run_dir / "lake.json").read_text())
    path = Path(__file__).parent / "results" / f"{arguments.name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"{path}: {result['metric']} {result['mean']:.4f} +- {result['interval']:.4f} after {seconds:.0f} s of training"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
