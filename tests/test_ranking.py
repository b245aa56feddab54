"""The ranking judges a run on episodes that it cannot have seen, and refuses what it cannot judge."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import pytest

from jaxmeta import cli, presets

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import ranking


@pytest.mark.usefixtures("tfds_dir")
def test_alphabets_too_small_for_an_episode_are_not_counted() -> None:
    """Of 964 background characters, turned and mirrored, 61 are of the four alphabets with fewer than 20."""
    settings = dataclasses.replace(presets.settings("siamese", "omniglot"), image_size=28)
    assert ranking.classes_of_training(settings, presets.build(settings).train_source) == 8 * (964 - 61)


@pytest.mark.usefixtures("tfds_dir")
def test_a_run_becomes_a_row_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("prototypical", "--dataset", "omniglot", "--train-ways", "5", "--steps", "2", "--episodes", "2")
    assert cli.main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    monkeypatch.setattr(ranking, "EPISODES", 3)
    row = ranking.judge(tmp_path / "run")
    assert (row["method"], row["step"], row["seed"], row["classes"]) == ("prototypical", 2, 0, 4 * 1200)
    assert (row["parameters"], row["trained_on"]) == (111_936, "cpu")
    for mode in ("transductive", "inductive"):
        found = row[mode]
        assert (found["query_mode"], found["episodes"], found["source"]["subset"]) == (mode, 3, "test")
        assert (found["source"]["ways"], found["source"]["shots"], found["source"]["queries"]) == (5, 1, 15)
    assert row["transductive"]["episode_hash"] == row["inductive"]["episode_hash"]
    logits = ranking.prediction(row)()
    assert logits.shape == (75, 5)
    row = {**row, "adaptation_ms": 1.0}
    assert len(ranking.shown(row)) == len(ranking.COLUMNS)
    ranking.draw([row, row], tmp_path / "ranking.png")
    assert (tmp_path / "ranking.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("tfds_dir")
def test_the_rows_are_of_the_networks_that_the_code_has() -> None:
    rows = json.loads((Path(ranking.__file__).parent / "results" / "ranking.json").read_text())["rows"]
    for row in rows:
        settings = dataclasses.replace(presets.Settings(**row["settings"]), ways=ranking.WAYS, data_dir=None)
        source, learner = ranking.unseen(settings), presets.build(settings).test_learner
        episode = jax.eval_shape(source.sample, source.data, jax.random.key(0))
        network = jax.eval_shape(learner.init, jax.random.key(0), episode)
        assert ranking.count(network) == row["parameters"], row["method"]


def test_methods_without_a_run_keep_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    means = {"maml": 0.9, "mann": 0.5}
    before = [{"method": name, "inductive": {"mean": mean, "episodes": 600}} for name, mean in means.items()]
    monkeypatch.setattr(ranking, "judge", lambda run: {"method": "mann", "inductive": {"mean": 0.95}, "run": run})
    again, kept = ranking.ranked([tmp_path], before)
    assert again == {"method": "mann", "inductive": {"mean": 0.95}, "run": tmp_path}
    assert kept == before[0]
    with pytest.raises(ValueError, match="there are several runs of mann"):
        ranking.ranked([tmp_path, tmp_path], before)
    monkeypatch.setattr(ranking, "EPISODES", 1000)
    with pytest.raises(ValueError, match="rows of maml are not of 1000 episodes: give their runs too"):
        ranking.ranked([tmp_path], before)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"settings": {"addressing": "lrua"}}, "the run was not made by jaxmeta train"),
        (
            {"settings": {"method": "metanet", "dataset": "omniglot"}, "without": "task"},
            "was trained without its task level, which no settings tell",
        ),
        (
            {"settings": {"method": "maml", "dataset": "omniglot", "split": "maml"}},
            "want omniglot with --split vinyals",
        ),
        ({"settings": {"method": "maml", "dataset": "glyphs"}}, "was trained on glyphs"),
    ],
)
def test_other_runs_are_refused(tmp_path: Path, config: dict, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ranking.judge(tmp_path)
