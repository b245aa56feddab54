"""The command line: it runs from train to evaluate, and bad input is one line and an exit code."""

import json
from pathlib import Path

import pytest
from test_tasks import draw_folder

from jaxmeta import cli, presets


def run(*words: str) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def sinusoid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sinusoid"
    assert run("train", "--steps", "2000", "--meta-batch", "4", "--episodes", "20", "--out", out) == 0
    return out


def test_without_a_method_it_is_maml_on_sinusoids(sinusoid_run: Path) -> None:
    names = {path.name for path in sinusoid_run.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "result.json",
        "training.png",
        "adaptation.png",
        "curves.png",
    }
    config = json.loads((sinusoid_run / "config.json").read_text())
    assert (config["settings"]["method"], config["settings"]["dataset"]) == ("maml", "sinusoid")
    result = json.loads((sinusoid_run / "result.json").read_text())
    assert (result["metric"], result["episodes"], len(result["by_step"])) == ("mse", 20, 11)
    assert all((sinusoid_run / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith(".png"))


def test_evaluate_reads_the_run_and_overwrites_nothing(sinusoid_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((sinusoid_run / "result.json").read_text())
    assert run("evaluate", sinusoid_run) == 0
    assert f"{before['mean']:.3f}" in capsys.readouterr().out, "the same episodes give the same number"
    assert run("evaluate", sinusoid_run, "--inner-steps", "0") == 0
    capsys.readouterr()
    assert run("evaluate", sinusoid_run, "--shots", "20", "--inner-steps", "3", "--episodes", "30") == 0
    out = capsys.readouterr().out
    assert "30 unseen episodes, 20 shots, transductive" in out
    assert "predicting zero" in out
    assert json.loads((sinusoid_run / "result.json").read_text()) == before
    written = [json.loads(path.read_text()) for path in sinusoid_run.glob("evaluation-*.json")]
    assert sorted((result["episodes"], result["inner_steps"]) for result in written) == [(20, 0), (20, 10), (30, 3)]
    assert all(result["step"] == 2000 for result in written)


def test_a_finished_run_resumes_to_its_result(sinusoid_run: Path) -> None:
    before = (sinusoid_run / "metrics.jsonl").read_bytes()
    words = ("--steps", "2000", "--meta-batch", "4", "--episodes", "20", "--out", str(sinusoid_run), "--resume")
    assert run("train", *words) == 0
    assert (sinusoid_run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("method", presets.METHODS)
def test_every_method_trains_on_images_of_ones_own(method: str, tmp_path: Path) -> None:
    draw_folder(tmp_path / "letters", dict.fromkeys(("a", "b", "c", "d", "e", "f", "g", "h"), 12))
    words = ["--dataset", str(tmp_path / "letters"), "--ways", "2", "--steps", "2", "--episodes", "4"]
    assert run("train", method, *words, "--meta-batch", "2", "--out", tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metric"] == "accuracy"
    assert result["source"]["name"] == "letters"
    assert (tmp_path / "run" / "episode.png").exists()
    assert run("evaluate", tmp_path / "run", "--query-mode", "inductive") == 0


def test_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    assert all(method in out for method in presets.METHODS)


TRAIN_OPTIONS = (
    *("dataset", "ways", "shots", "queries", "steps", "inner-steps", "inner-lr"),
    *("meta-batch", "outer-lr", "seed", "out", "resume", "devices", "data-dir"),
)


@pytest.mark.parametrize("command", [(), ("train",), ("evaluate",), ("list",)])
def test_help_is_complete(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*command, "--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    wanted = {
        (): ["train", "evaluate", "list"],
        ("train",): [f"--{word}" for word in TRAIN_OPTIONS],
        ("evaluate",): ["shots", "query-mode", "episodes"],
        ("list",): ["usage"],
    }[command]
    assert all(word in out for word in wanted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train mamel", "unknown method 'mamel'; the methods are maml, fomaml, reptile"),
        ("train --dataset mnist", "dataset 'mnist' is none of sinusoid, glyphs, omniglot, and there is no folder at"),
        ("train --dataset glyphs --ways 81", "ways=81, but there are 80 classes"),
        ("train --dataset glyphs --shots 15 --queries 6", "shots=15 and queries=15 want 30 examples of every class"),
        (
            "train --dataset glyphs --shots 10 --queries 11",
            "want 21 examples of every class, but class glyph_320 has 20",
        ),
        ("train --ways five", "invalid literal for int() with base 10: 'five'"),
        ("train --steps 0", "steps must be 1 or more, but is 0"),
        ("train --meta-batch -1", "meta_batch must be 1 or more, but is -1"),
        ("train --inner-steps -2", "inner_steps must be 0 or more, but is -2"),
        ("train --inner-lr 0", "inner_lr must be positive and finite, but is 0.0"),
        ("train --queries 0", "queries must be 1 or more, but is 0"),
        ("train ---x", "---x"),
        ("train --episodes 1", "episodes must be 2 or more, but is 1"),
        ("train --devices 0", "--devices must be 1 or more, but is 0"),
        ("train --query-mode both", "query-mode"),
        ("train --banana 3", "Unrecognized options: --banana"),
        ("bake", "Unrecognized options: bake"),
        ("", "Expected one of {{train, evaluate, list}}"),
        ("evaluate", "Missing from jaxmeta evaluate: PATH The run's folder."),
        ("evaluate {tmp}/nowhere", "no run at {tmp}/nowhere: want a folder with config.json"),
        ("train --out {tmp}/full", "run folder {tmp}/full is not empty: resume it, or choose another"),
        ("train --out {tmp}/full/file", "run folder {tmp}/full/file is a file"),
        ("train --out /proc/run", "run folder /proc/run cannot be written"),
        ("train --dataset omniglot --data-dir {tmp}/data", "no prepared omniglot below {tmp}/data, and downloading"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("something")
    assert run(*words.format(tmp=tmp_path).split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("jaxmeta: error: ")
    assert shown.err.count("\n") == 1
    assert message.format(tmp=tmp_path) in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) in (["full"], ["data", "full"])


def offline(*args: object, **kwargs: object) -> None:
    import urllib.error

    raise urllib.error.URLError("no network")


def test_presets_are_the_papers() -> None:
    """Spot checks against the papers' tables; the mean loss makes MAML's 0.4 (5-way) and 0.1 (20-way) both 2.0."""
    five, twenty = (presets.settings("maml", "omniglot", ways=ways) for ways in (5, 20))
    assert (five.inner_lr, five.inner_steps, five.eval_inner_steps, five.meta_batch) == (0.4 * 5, 1, 3, 32)
    assert (twenty.inner_lr, twenty.inner_steps, twenty.eval_inner_steps, twenty.meta_batch) == (0.1 * 20, 5, 5, 16)
    reptile = presets.settings("reptile", "omniglot", shots=5)
    assert (reptile.train_shots, reptile.shots, reptile.inner_batch, reptile.meta_batch) == (10, 5, 10, 5)
    assert presets.settings("maml", "omniglot", shots=5).train_queries == 5
    sinusoid = presets.settings("maml", "sinusoid")
    assert (sinusoid.train_shots, sinusoid.shots, sinusoid.steps, sinusoid.meta_batch) == (10, 5, 70_000, 25)
