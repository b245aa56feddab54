"""The reproduction report says what the result files say, and its commands are ones that the command line takes."""

import dataclasses
import itertools
import json
import shlex
import sys
from pathlib import Path

import pytest
import tyro

from jaxmeta import presets
from jaxmeta.cli._arguments import Evaluate, Train
from jaxmeta.cli._commands import _train_options

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cells  # noqa: E402
import report  # noqa: E402


def test_it_is_what_the_results_give() -> None:
    assert (BENCHMARKS / "REPORT.md").read_text() == report.build(), "run: python benchmarks/reproduce.py"


@pytest.mark.parametrize("name", sorted(cells.CELLS))
def test_commands_are_accepted(name: str) -> None:
    cell = cells.CELLS[name]
    for command in (cell.train, *cell.judge):
        program, kind, *words = shlex.split(command)
        if program == "python":
            assert (BENCHMARKS.parent / kind).is_file()
        elif kind == "evaluate":
            tyro.cli(Evaluate, args=words)
        else:
            options = tyro.cli(Train, args=words)
            settings = presets.settings(
                options.method, options.dataset, ways=options.ways, shots=options.shots, queries=options.queries
            )
            dataclasses.replace(settings, **_train_options(options))


@pytest.mark.parametrize("name", sorted(cells.CELLS))
def test_a_result_was_made_by_its_cell(name: str) -> None:
    """Steps and method of every result are those that the cell's command asks for."""
    for result in report.results(name):
        words = shlex.split(cells.CELLS[name].train)
        given = dict(itertools.pairwise(words))
        if "--steps" in given:
            assert result["fit"]["steps"] == int(given["--steps"])
        if words[0] == "jaxmeta":
            assert result["settings"]["method"] == words[2]


def test_numbers_are_read_from_where_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"ways": 5, "shots": 1}
    judged = {"mean": 0.9, "interval": 0.01, "source": source, "query_mode": "transductive"}
    other = {**judged, "mean": 0.8, "query_mode": "inductive"}
    found = {
        "result": judged,
        "evaluations": [other],
        "lake": {"accuracy": 0.7, "interval": 0.02},
        "by_instance": {"mean": [0.2, 0.6], "interval": [0.01, 0.03]},
    }
    assert cells.Accuracy(5, 1, None).find(found) == pytest.approx((90, 1))
    assert cells.Accuracy(5, 1, None, query_mode="inductive").find(found) == pytest.approx((80, 1))
    assert cells.Accuracy(20, 1, None).find(found) is None
    assert cells.OneShot(92.0).find(found) == pytest.approx((70, 2))
    assert cells.Presentation(2, None).find(found) == pytest.approx((60, 3))
    assert cells.Error(1, None).find({"result": {"by_step": [[3, 1], [2, 0.5]]}}) == (2, 0.5)
    cell = cells.Cell("M", "Omniglot", "jaxmeta train m", (), (cells.Accuracy(5, 1, 91.0),), "a paper", 2000)
    run = {**found, "fit": {"steps": 100, "meta_batch": 10}, "training_seconds": 3600.0}
    (tmp_path / "m.json").write_text(json.dumps(run))
    (tmp_path / "m-seed1.json").write_text(json.dumps({**run, "result": {**judged, "mean": 0.96}}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    columns = report.line(cell, cell.rows[0], report.results("m")).strip("| ").split(" | ")
    task = "Omniglot, 5 ways, 1 shot, transductive, %"
    assert columns == ["M", task, "91", "93.00 (90.00 to 96.00)", "+2.00", "2", "1,000, 50 %", "1.00"]
