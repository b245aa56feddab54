"""Builds `REPORT.md` from the files in `results/`."""

import json
import statistics
from pathlib import Path
from typing import Any

import ranking
from cells import CELLS, Cell, Row
from common import minutes, undisturbed_seconds

RESULTS = Path(__file__).parent / "results"

HEAD = """# Reproduction report

Published numbers beside those found here. `python benchmarks/reproduce.py NAME` trains, judges and rebuilds this page;
`results/NAME.json` has the commands, settings, seed, curve, interval, hash of the test episodes, versions and machine;
a commit with a + had changes beside it.

± is the 95 % interval over test episodes, the paper's where it prints one. With several seeds, their median, and each
in brackets. Budget: tasks seen in training, and their share of the paper's. Minutes: an estimate of those that training
takes on two CPU cores, or where it says so on a GPU, at the pace of the fastest tenth of its stretches: most trainings
shared the machine and took longer. Below the table stands how long by the clock, where that was recorded.
"""


def build() -> str:
    """The page."""
    found = {name: results(name) for name in CELLS}
    lines = [HEAD, "| method | task | paper | here | difference | budget | minutes |", "|---|" + "---|" * 6]
    for name, cell in CELLS.items():
        if found[name]:
            lines += [line(cell, row, found[name]) for row in cell.rows]
    lines += ["", "## What differs, and where the numbers are printed", ""]
    lines += [f"- `{name}`: {notes(cell, found[name])}" for name, cell in CELLS.items() if found[name]]
    lines += ranked()
    missing = [f"`{name}`" for name in CELLS if not found[name]]
    if missing:
        lines += ["", "## Not run", "", f"There are commands for these, and no results yet: {', '.join(missing)}."]
    lines += ["", "iMAML, ANIL, BOIL, Meta-SGD and MAML++ have settings (`jaxmeta list`), and no command here."]
    return "\n".join(lines) + "\n"


def notes(cell: Cell, found: list[dict[str, Any]]) -> str:
    """Where the paper prints it, what differs, and what the results do not tell."""
    unknown = "" if all(result.get("commits") for result in found) else "The commit was not recorded."
    walls = [
        minutes(result["wall_seconds"], result["versions"]["backend"]) for result in found if "wall_seconds" in result
    ]
    spent = f"By the clock, training took {', '.join(walls)} minutes." if walls else ""
    return " ".join(part for part in (f"{cell.source}.", cell.differs, unknown, spent) if part)


def ranked() -> list[str]:
    """The section on `ranking.py`, if it has run."""
    path = RESULTS / "ranking.json"
    if not path.exists():
        return []
    rows = json.loads(path.read_text())["rows"]
    columns = ["| " + " | ".join(words) + " |" for words in (ranking.COLUMNS, *map(ranking.shown, rows))]
    return [
        "",
        f"## {len(rows)} methods on the same episodes",
        "",
        "5 ways, 1 shot, 15 queries of each class, 600 episodes of Vinyals' test characters",
        "(`python benchmarks/ranking.py RUN ..`), MANN's images smaller than the others' and the siamese",
        "network's larger. Classes are those of training, turned and mirrored too; a task is one `predict` with 75",
        "queries, on two CPU cores, all methods in turns.",
        "All networks but MetaNet's and MANN's normalise by the batch at hand: in training with as many queries of",
        "each class as the row tells (Reptile trains on shots alone), transductive with 15, inductive with the",
        "support set and one query, where the methods that embed both sets as one batch count the support set twice.",
        "",
        "Trainings are those of the table above but for MAML's, first-order MAML's and Reptile's, which had to leave",
        "these characters out, of half as many episodes, and MANN's, of two thirds and at a rate that does not fall:",
        "",
        *(f"- `{command}`" for command in ranking.TRAININGS.values()),
        "",
        "MAML's and MetaNet's ran on a busier machine, first-order MAML's, Reptile's and MANN's on a slower one, the",
        "siamese network's on a faster one.",
        "",
        columns[0],
        "|" + "---|" * len(ranking.COLUMNS),
        *columns[1:],
        "",
        "![Accuracy of each method, transductive and inductive](results/ranking.png)",
    ]


def results(name: str) -> list[dict[str, Any]]:
    """The results of a cell, one for each seed."""
    paths = [RESULTS / f"{name}.json", *sorted(RESULTS.glob(f"{name}-seed*.json"))]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def line(cell: Cell, row: Row, found: list[dict[str, Any]]) -> str:
    """One row of the table."""
    judged = [(result, pair) for result in found if (pair := row.find(result)) is not None]
    columns = [cell.method, f"{cell.dataset}, {row.what}", row.paper or "-"]
    if not judged:
        return f"| {' | '.join([*columns, 'not judged', '-', '-', '-'])} |"
    values = [value for _, (value, _) in judged]
    middle = statistics.median(values)
    left_out = [(result.get("result") or {}).get("diverged", 0) for result, _ in judged]
    about = f"± {judged[0][1][1]:.2f}" if len(values) == 1 else f"({', '.join(f'{value:.2f}' for value in values)})"
    difference = "-" if row.paper is None else f"{round(middle - float(row.paper.split()[0]), 2) + 0.0:+.2f}"
    tasks = judged[0][0]["fit"]["steps"] * judged[0][0]["fit"]["meta_batch"]
    share = "" if cell.paper_tasks is None else f", {100 * tasks / cell.paper_tasks:.0f} %"
    seconds = statistics.median(
        undisturbed_seconds(result["history"], result["fit"]["steps"], result["fit"]["meta_batch"])
        for result, _ in judged
    )
    spent = minutes(seconds, judged[0][0]["versions"]["backend"])
    about += f", without {sum(left_out)} that diverged" if any(left_out) else ""
    columns += [f"{middle:.2f} {about}", difference, f"{tasks:,}{share}", spent]
    return f"| {' | '.join(columns)} |"
