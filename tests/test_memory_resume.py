"""Learners whose parameters are nested tuples continue like any other, and are judged on the same episodes."""

import json
import shutil
from pathlib import Path

import jax
import optax
import pytest
from helpers import assert_trees_equal

from jaxmeta import MetaLearner, evaluate, fit, lstm_meta_learner, mann, memory, metanet, nn, tasks

SOURCE = tasks.episodes(tasks.glyphs("train", classes=20, image_size=8), ways=3, shots=1, queries=2)
LEARNERS = {
    "mann": mann(memory.MANN(features=8, slots=6, width=4, reads=2), ways=3),
    "metanet": metanet(memory.AugmentedConv(3, features=4, convolutions=1, key_features=8, fast_layers=2), hidden=4),
    "lstm_meta_learner": lstm_meta_learner(nn.MLP((8,), 3), steps=2, hidden=4),
}


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)
def test_a_run_cut_short_continues_bit_for_bit(learner: MetaLearner, tmp_path: Path) -> None:
    def train(resume: bool):
        return fit(
            learner,
            SOURCE,
            optax.adam(1e-2),
            steps=4,
            meta_batch=2,
            log_every=2,
            checkpoint_every=2,
            run_dir=tmp_path / "run",
            resume=resume,
            progress=False,
        )

    whole = train(resume=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # as if killed after the second step
    metrics = tmp_path / "run" / "metrics.jsonl"
    first = {**json.loads(metrics.read_text().splitlines()[0]), "kept": True}
    metrics.write_text(json.dumps(first) + "\n")
    resumed = train(resume=True)
    assert_trees_equal(resumed.params, whole.params)
    assert_trees_equal(resumed.opt_state, whole.opt_state)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert rows[0] == first, "it went on, and did not begin again"
    assert [row["step"] for row in rows] == [2, 4]


def test_all_are_judged_on_the_same_episodes() -> None:
    hashes = set()
    for learner in LEARNERS.values():
        params = learner.init(jax.random.key(0), SOURCE.sample(SOURCE.data, jax.random.key(1)))
        for mode in ("transductive", "inductive"):
            found = evaluate(learner, params, SOURCE, episodes=4, query_mode=mode)
            hashes.add(found.episode_hash)
    assert len(hashes) == 1
