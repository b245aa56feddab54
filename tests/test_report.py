"""The reproduction report says what the result files say, and its commands are ones that the command line takes."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

from jaxmeta import Evaluation, presets
from jaxmeta.cli._arguments import Evaluate, Train
from jaxmeta.cli._commands import _train_options

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cells  # noqa: E402
import lstm_against_sgd  # noqa: E402
import mann  # noqa: E402
import metanet  # noqa: E402
import ranking  # noqa: E402
import report  # noqa: E402
import reproduce  # noqa: E402


def test_it_is_what_the_results_give() -> None:
    assert (BENCHMARKS / "REPORT.md").read_text() == report.build(), "run: python benchmarks/reproduce.py"


def test_the_script_without_names_builds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "HERE", tmp_path)
    reproduce.main(tyro.cli(reproduce.Arguments, args=[]))
    assert (tmp_path / "REPORT.md").read_text() == report.build()


def settings_of(words: list[str]) -> presets.Settings:
    """The settings that `jaxmeta train WORDS` makes."""
    options = tyro.cli(Train, args=words)
    preset = presets.settings(
        options.method, options.dataset, ways=options.ways, shots=options.shots, queries=options.queries
    )
    return dataclasses.replace(preset, query_mode=options.query_mode, **_train_options(options))


@pytest.mark.parametrize("name", sorted(cells.CELLS))
def test_commands_are_accepted(name: str) -> None:
    cell = cells.CELLS[name]
    for command in (cell.train, *cell.judge):
        program, kind, *words = shlex.split(command)
        if program == "python":
            script = (BENCHMARKS.parent / kind).read_text()
            assert all(f'"{word}"' in script for word in words if word.startswith("--"))
        elif kind == "evaluate":
            tyro.cli(Evaluate, args=words)
        else:
            settings_of(words)


def made_by(program: str, words: list[str]) -> dict[str, object]:
    """The settings that a training command makes."""
    match program, *words:
        case "jaxmeta", _, *options:
            return dataclasses.asdict(settings_of(options))
        case "python", "benchmarks/mann.py", *options:
            return vars(mann.arguments([*options, "--out", "RUN"]))
        case _, "benchmarks/metanet.py", *options:
            given = metanet.arguments([*options, "--out", "RUN"])
            return {**dataclasses.asdict(metanet.settings(given)), "without": given.without}
    raise ValueError(f"no settings are known of {program} {words}")


@pytest.mark.parametrize("name", sorted(cells.CELLS))
def test_a_result_was_made_by_its_cell(name: str) -> None:
    """The settings of every result are those that the cell's command makes; older results lack what came later."""
    program, *words = shlex.split(cells.CELLS[name].train)
    made = made_by(program, words)
    for result in report.results(name):
        told = {"augment" if option == "distort" else option: value for option, value in result["settings"].items()}
        told |= {"without": result["without"]} if "without" in result else {}
        assert not {k: v for k, v in told.items() if k not in ("data_dir", "seed") and made.get(k, v) != v}
        assert result["fit"]["steps"] == made["steps"]
        assert ("without" in made) == ("without" in told)


def test_the_ranking_s_rows_were_made_by_its_commands_or_a_cell_s() -> None:
    commands = [*ranking.TRAININGS.values(), *(cell.train for cell in cells.CELLS.values())]
    made = [
        dataclasses.asdict(settings_of(words))
        for program, _, *words in map(shlex.split, commands)
        if program == "jaxmeta" and "omniglot" in words
    ]
    for row in json.loads((report.RESULTS / "ranking.json").read_text())["rows"]:
        settings = {key: value for key, value in row["settings"].items() if key != "data_dir"}
        own = [one for one in made if one["method"] == row["method"]]
        assert any(all(one.get(key, value) == value for key, value in settings.items()) for one in own), row["method"]
        assert row["step"] == settings["steps"]


def test_the_readme_s_numbers_are_the_report_s() -> None:
    readme, found = (
        (path / name).read_text() for path, name in ((BENCHMARKS.parent, "README.md"), (BENCHMARKS, "REPORT.md"))
    )
    intervals = set(re.findall(r"\d+\.\d+ ± \d+\.\d+", readme))
    assert len(intervals) > 10
    assert not {interval for interval in intervals if interval not in found}
    rows = [line for line in readme.splitlines() if re.match(r"\| .*\d ± \d", line)]
    assert len(rows) > 8
    for row in rows:
        method = re.split(r",| on | \*| \|", row[2:])[0]
        own = [line for line in found.splitlines() if line.startswith(f"| {method}")]
        for interval in re.findall(r"\d+\.\d+ ± \d+\.\d+", row):
            assert any(interval in line for line in own), (method, interval)
    errors = re.findall(r"\d: (0\.\d{3}) / (0\.\d{3}) / (0\.\d{3})", readme)
    files = report.results("maml-sinusoid")
    assert errors == [tuple(f"{file['result']['by_step'][steps][0]:.3f}" for steps in (1, 5, 10)) for file in files]


def run_folder(path: Path) -> Path:
    """What `jaxmeta train` and `evaluate` leave of a run of 40 steps."""
    path.mkdir()
    settings = {"eval_inner_steps": 3}
    files = {
        "config": {"settings": settings, "fit": {"steps": 40, "meta_batch": 2, "seed": 0}, "versions": {}},
        "result": evaluation(0.9),
        "evaluation-step40-inner3-inductive-b": evaluation(0.8, mode="inductive"),
        "evaluation-step20-inner3-inductive-a": evaluation(0.1, mode="inductive", step=20),
        "evaluation-step40-inner1-inductive-c": evaluation(0.2, mode="inductive", inner=1),
        "evaluation-step40-inner3-inductive-d": evaluation(0.3, mode="inductive", seed=5),
    }
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    rows = [{"step": i, "tasks_per_second": 10.0} for i in range(1, 41)]
    (path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return path


def evaluation(mean: float, *, mode: str = "transductive", step: int = 40, inner: int = 3, seed: int = 0) -> dict:
    found = {"mean": mean, "interval": 0.01, "source": {"ways": 5, "shots": 1}, "query_mode": mode}
    return {**found, "step": step, "inner_steps": inner, "seed": seed}


def test_a_record_holds_the_evaluations_of_the_last_step(tmp_path: Path) -> None:
    found = reproduce.record(run_folder(tmp_path / "run"))
    assert [one["mean"] for one in found["evaluations"]] == [0.8]
    assert cells.Accuracy(5, 1, None, "inductive").find(found) == pytest.approx((80, 1))
    assert [found["history"][i]["step"] for i in (0, -1)] == [1, 40], "the curve ends where training ends"
    assert found["wall_seconds"] == 8, "40 steps of 2 tasks, 10 a second"
    with pytest.raises(ValueError, match="there are 2 evaluations on"):
        cells.Accuracy(5, 1, None, "inductive").find({**found, "evaluations": 2 * found["evaluations"]})


def test_commits_are_noted_once_and_without_git_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "runs" / "m.commits"
    file.parent.mkdir()
    file.write_text("abc\n")
    run = run_folder(tmp_path / "run")
    assert reproduce.is_trained(run)
    assert not reproduce.is_trained(tmp_path / "nowhere")
    assert reproduce.note_commit(file, trained=True) == ["abc"]
    said = {"rev-parse": "def\n", "status": " M ../jaxmeta/learner.py\n"}
    monkeypatch.setattr(subprocess, "run", lambda w, **_: subprocess.CompletedProcess(w, 0, said[w[1]]))
    assert [reproduce.note_commit(file, trained=False) for _ in range(2)] == [["abc", "def+"]] * 2

    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fail)
    assert reproduce.note_commit(tmp_path / "other.commits", trained=False) == []


def test_gradient_descent_is_tuned_by_validation_and_compared_by_episode() -> None:
    tried = {0.05: [0.1, 0.5, 0.6], 0.1: [0.2, 0.7, 0.3]}
    assert lstm_against_sgd.choose(tried, range(3)) == (0.1, 1)
    assert lstm_against_sgd.choose(tried, [2]) == (0.05, 2)

    def judged(*values: float) -> Evaluation:
        found = np.array(values)
        return Evaluation("accuracy", found.mean(), 0.0, None, "transductive", len(found), 3, "hash", {}, found)

    def descend(rate: float, steps: int, source: object, episodes: int, seed: int) -> Evaluation:
        assert (rate, steps, source, episodes, seed) == (0.05, 2, "source", 600, 3)
        return judged(0.5, 0.7, 0.6)

    found = lstm_against_sgd.against(judged(0.6, 0.9, 0.9), 0.05, 2, descend, "source")  # pyright: ignore[reportArgumentType]
    assert found["best"] == {"rate": 0.05, "steps": 2, "rate_at_the_edge": True}
    assert found["mean"] == pytest.approx(0.6)
    assert found["lstm_minus_sgd"] == pytest.approx({"mean": 0.2, "interval": 1.96 * 0.1 / 3**0.5})
    result = {"against_sgd": {"sgd_of_as_many_steps": {**found, "interval": 0.01}}}
    assert cells.Descent("as many").find(result) == pytest.approx((60, 1))
    assert cells.Lead("as many").find(result) == pytest.approx((20, 19.6 / 3**0.5))


def test_numbers_are_read_from_where_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "result": evaluation(0.9),
        "evaluations": [evaluation(0.8, mode="inductive")],
        "lake": {
            "accuracy": 0.7,
            "interval": 0.02,
            "query_mode": "transductive",
            "inductive": {"accuracy": 0.6, "interval": 0.03},
            "turned": {"accuracy": 0.8, "interval": 0.02},
            "verification": {"accuracy": 0.9, "interval": 0.01},
        },
        "by_instance": {"mean": [0.2, 0.6], "interval": [0.01, 0.03]},
    }
    assert cells.Accuracy(5, 1, None).find(found) == pytest.approx((90, 1))
    assert cells.Accuracy(5, 1, None, query_mode="inductive").find(found) == pytest.approx((80, 1))
    assert cells.Accuracy(20, 1, None).find(found) is None
    grouped, within = cells.Accuracy(5, 1, None, within_groups=True), {"ways": 5, "shots": 1, "within_groups": True}
    assert grouped.what == "5 ways of one alphabet, 1 shot, transductive, %"
    assert grouped.find(found) is None
    assert grouped.find({"result": {**evaluation(0.7), "source": within}}) == pytest.approx((70, 1))
    assert cells.OneShot("92.0").find(found) == pytest.approx((70, 2))
    assert cells.OneShot(None, "inductive").find(found) == pytest.approx((60, 3))
    assert cells.OneShot(None, "turned").find(found) == pytest.approx((80, 2))
    assert cells.Verification().find(found) == pytest.approx((90, 1))
    assert cells.Presentation(2, None).find(found) == pytest.approx((60, 3))
    assert cells.Error(1, None).find({"result": {"by_step": [[3, 1], [2, 0.5]]}}) == (2, 0.5)
    cell = cells.Cell("M", "Omniglot", "jaxmeta train m", (), (cells.Accuracy(5, 1, "91.0 ± 0.1"),), "a paper", 2000)
    paces = [{"tasks_per_second": pace} for pace in (1.0, *[5.0] * 18, 9.0)]
    run = {**found, "fit": {"steps": 60, "meta_batch": 10}, "history": paces, "versions": {"backend": "cpu"}}
    monkeypatch.setattr(report, "RESULTS", tmp_path)

    def columns() -> list[str]:
        return report.line(cell, cell.rows[0], report.results("m")).strip("| ").split(" | ")

    (tmp_path / "m.json").write_text(json.dumps(run))
    task = "Omniglot, 5 ways, 1 shot, transductive, %"
    assert columns() == ["M", task, "91.0 ± 0.1", "90.00 ± 1.00", "-1.00", "600, 30 %", "2.0"]
    (tmp_path / "m.json").write_text(json.dumps({**run, "result": {**evaluation(0.9), "diverged": 2}}))
    assert columns()[3] == "90.00 ± 1.00, without 2 that diverged"
    (tmp_path / "m.json").write_text(json.dumps({**run, "versions": {"backend": "gpu"}}))
    assert columns()[-1] == "2.0 (GPU)"
    (tmp_path / "m-seed1.json").write_text(json.dumps({**run, "result": evaluation(0.96)}))
    (tmp_path / "m-seed2.json").write_text(json.dumps({**run, "result": evaluation(0.91)}))
    (tmp_path / "m-seed3.json").write_text(json.dumps({**run, "result": None}))
    assert columns()[3:5] == ["91.00 (90.00, 96.00, 91.00)", "+0.00"], "the median, and each that was judged"
