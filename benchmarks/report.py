"""Builds `REPORT.md` from the files in `results/`."""

import json
from pathlib import Path
from typing import Any

from cells import CELLS, Cell, Row

RESULTS = Path(__file__).parent / "results"

HEAD = """# Reproduction report

Published numbers beside those found here. `python benchmarks/reproduce.py NAME` trains, judges and rebuilds this page;
`results/NAME.json` has the commands, settings, seed, curve, interval, hash of the test episodes, versions and machine.

± is the 95 % interval over test episodes, the paper's as it prints it. With several seeds, the mean is followed by the
lowest and the highest. Budget: tasks seen in training, and their share of the paper's. Hours are those of training on
two CPU cores, often beside other work.
"""


def build() -> str:
    """The page."""
    found = {name: results(name) for name in CELLS}
    lines = [HEAD, "| method | task | paper | here | difference | seeds | budget | hours |", "|---|" + "---|" * 7]
    for name, cell in CELLS.items():
        if found[name]:
            lines += [line(cell, row, found[name]) for row in cell.rows]
    lines += ["", "## What differs, and where the numbers are printed", ""]
    lines += [f"- `{name}`: {cell.source}. {cell.differs}".rstrip() for name, cell in CELLS.items() if found[name]]
    missing = [f"`{name}`" for name in CELLS if not found[name]]
    if missing:
        lines += ["", "## Not run", "", f"There are commands for these, and no results yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def results(name: str) -> list[dict[str, Any]]:
    """The results of a cell, one for each seed."""
    paths = [RESULTS / f"{name}.json", *sorted(RESULTS.glob(f"{name}-seed*.json"))]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def line(cell: Cell, row: Row, found: list[dict[str, Any]]) -> str:
    """One row of the table."""
    judged = [pair for pair in map(row.find, found) if pair is not None]
    digits = 2
    paper = "-" if row.paper is None else f"{row.paper:g}" + (f" ± {row.spread:g}" if row.spread else "")
    here = difference = "not judged"
    if judged:
        mean = sum(value for value, _ in judged) / len(judged)
        values = [value for value, _ in judged]
        about = f"± {judged[0][1]:.{digits}f}" if len(judged) == 1 else f"({min(values):.2f} to {max(values):.2f})"
        here = f"{mean:.{digits}f} {about}"
        difference = "-" if row.paper is None else f"{mean - row.paper:+.{digits}f}"
    tasks = found[0]["fit"]["steps"] * found[0]["fit"]["meta_batch"]
    share = "" if cell.paper_tasks is None else f", {100 * tasks / cell.paper_tasks:.0f} %"
    hours = sum(result["training_seconds"] for result in found) / 3600 / len(found)
    columns = (cell.method, f"{cell.dataset}, {row.what}", paper, here, difference, str(len(found)))
    return f"| {' | '.join(columns)} | {tasks:,}{share} | {hours:.2f} |"
