"""The command line: it runs from train to evaluate, and bad input is one line and an exit code."""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_tasks import draw_folder

import jaxmeta
from jaxmeta import adapt, cli, evaluate, fit, losses, mask_by_path, memory, metric, nn, presets
from jaxmeta.cli import _commands
from jaxmeta.cli._arguments import Train
from jaxmeta.cli._commands import _train_options, _train_settings, set_up_jax
from jaxmeta.training import Evaluation


def run(*words: str) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def sinusoid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sinusoid"
    words = ("--steps", "2000", "--meta-batch", "4", "--episodes", "20", "--out", out, "--resume")
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert run("train", *words) == 0
    assert f"{out} has no checkpoint to resume from: training starts at step 0" in told.getvalue()
    return out


def test_its_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert (stop.value.code, capsys.readouterr().out) == (0, f"jaxmeta {jaxmeta.__version__}\n")


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


def test_a_run_is_loaded_in_python(sinusoid_run: Path, tmp_path: Path) -> None:
    settings, setup, params, step = presets.load(sinusoid_run)
    assert (settings.method, step) == ("maml", 2000)
    found = evaluate(setup.test_learner, params, setup.test_source, episodes=20)
    assert found.mean == pytest.approx(json.loads((sinusoid_run / "result.json").read_text())["mean"], rel=1e-5)
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"addressing": "lrua"}}))
    with pytest.raises(ValueError, match="has no settings: the run was not made by jaxmeta train"):
        presets.load(tmp_path)


def test_one_in_a_hundred_episodes_may_diverge_and_that_is_told(
    sinusoid_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sinusoid_run, tmp_path / "run")

    def judged(*args: Any, may_diverge: float, **settings: Any) -> Evaluation:
        assert may_diverge == 0.01
        found = evaluate(*args, **settings)
        return found._replace(values=np.append(found.values[1:], np.inf), diverged=1)

    monkeypatch.setattr("jaxmeta.training.evaluate", judged)
    assert run("evaluate", tmp_path / "run") == 0
    assert "without 1 of the episodes, where adaptation diverged" in capsys.readouterr().out
    (file,) = (tmp_path / "run").glob("evaluation-*.json")
    assert (found := json.loads(file.read_text()))["diverged"] == 1
    assert found["values"][-1] is None


def test_evaluate_reads_the_run_and_overwrites_nothing(sinusoid_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((sinusoid_run / "result.json").read_text())
    assert run("evaluate", sinusoid_run) == 0
    assert f"{before['mean']:.3f}" in capsys.readouterr().out, "the same episodes give the same number"
    assert run("evaluate", sinusoid_run, "--ways", "7") == 2
    assert "--ways 7, but sinusoid is a regression, which has no classes" in capsys.readouterr().err
    assert run("evaluate", sinusoid_run, "--inner-steps", "0") == 0
    capsys.readouterr()
    assert run("evaluate", sinusoid_run, "--shots", "20", "--inner-steps", "3", "--episodes", "30") == 0
    out = capsys.readouterr().out
    assert "30 unseen episodes, 20 shots, transductive" in out
    assert "predicting zero" in out
    assert json.loads((sinusoid_run / "result.json").read_text()) == before
    assert run("evaluate", sinusoid_run, "--shots", "20", "--inner-steps", "3", "--episodes", "30", "--no-by-step") == 0
    assert "predicting zero" in capsys.readouterr().out
    written = [json.loads(path.read_text()) for path in sinusoid_run.glob("evaluation-*.json")]
    assert sorted((result["episodes"], result["inner_steps"]) for result in written) == [(20, 0), (20, 10), (30, 3)]
    assert all(result["step"] == 2000 for result in written)
    assert [len(result["by_step"]) - 1 for result in written] == [result["inner_steps"] for result in written]
    for result in (before, *written):
        assert len(result["values"]) == result["episodes"]
        assert np.mean(result["values"]) == pytest.approx(result["mean"], abs=1e-5)


def test_a_finished_run_resumes_to_its_result(sinusoid_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (sinusoid_run / "metrics.jsonl").read_bytes()
    words = ("--steps", "2000", "--meta-batch", "4", "--episodes", "20", "--out", str(sinusoid_run), "--resume")
    assert run("train", *words) == 0
    assert (sinusoid_run / "metrics.jsonl").read_bytes() == before
    assert "no checkpoint" not in capsys.readouterr().err


# One of each kind; `test_every_preset_starts` has all.
KINDS = ("maml", "reptile", "lstm_meta_learner", "relation", "mann")


@pytest.mark.parametrize("method", KINDS)
def test_a_method_trains_on_images_of_ones_own(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_folder(tmp_path / "letters", dict.fromkeys(("a", "b", "c", "d", "e", "f", "g", "h"), 12))
    few = ("--ways", 2, "--queries", 1, "--train-queries", 1, "--steps", 2, "--episodes", 4, "--meta-batch", 2)
    assert run("train", method, "--dataset", tmp_path / "letters", *few, "--out", tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metric"] == "accuracy"
    assert result["source"]["name"] == "letters"
    assert (tmp_path / "run" / "episode.png").exists()
    assert run("evaluate", tmp_path / "run", "--query-mode", "inductive", "--no-by-step") == 0
    used = json.loads((tmp_path / "run" / "config.json").read_text())["source"]["ways"]
    assert used == (6 if presets.settings(method, str(tmp_path / "letters")).train_ways else 2), "a preset's ways fit"
    if method == "prototypical":
        for given in (7, 60):
            assert run("train", method, "--dataset", tmp_path / "letters", *few, "--train-ways", given) == 2
        error = capsys.readouterr().err
        assert "training episodes: ways=7, but there are 6 classes" in error
        assert "--train-ways 60, but there are only 6 classes to train on" in error
    if method == "maml":
        draw_folder(tmp_path / "letters", {"late": 12})
        assert run("evaluate", tmp_path / "run") == 2
        assert "are not those that" in capsys.readouterr().err


STARTS = [(m, d) for m in presets.METHODS for d in presets.datasets_of(m) if d != "omniglot"]


@pytest.mark.parametrize(("method", "dataset"), STARTS)
def test_every_preset_starts(method: str, dataset: str) -> None:
    setup = presets.build(presets.settings(method, dataset))
    episode = setup.train_source.sample(setup.train_source.data, jax.random.key(0))
    params = jax.eval_shape(setup.learner.init, jax.random.key(1), episode)
    jax.eval_shape(setup.learner.meta_grad, params, episode, jax.random.key(2))
    support, query = setup.test_source.sample(setup.test_source.data, jax.random.key(0))
    found = jax.eval_shape(setup.test_learner.predict, params, support, query.x, jax.random.key(2))
    assert found.shape[0] == len(query.x)


@pytest.mark.parametrize("method", [m for m in presets.METHODS if "sinusoid" in presets.datasets_of(m)])
def test_every_preset_on_sinusoids_stays_finite(method: str) -> None:
    """What `jaxmeta train METHOD` does first; `fit` stops at what is not finite."""
    setup = presets.build(presets.settings(method, "sinusoid"))
    numbers = {"steps": 20, "meta_batch": 5, "log_every": 20}
    found = fit(setup.learner, setup.train_source, setup.optimizer, progress=False, **numbers)
    assert found.history[-1].get("inner_residual", 0.0) < 0.5, "iMAML's inner loop comes near its solution"
    assert evaluate(setup.test_learner, found.params, setup.test_source, episodes=20).mean < 20


def test_metanet_s_preset_is_as_the_table_of_results_says() -> None:
    """32 channels, five queries of each class, and training episodes of as many shots as those of the test."""
    preset = presets.settings("metanet", "omniglot")
    assert (preset.train_shots, preset.train_queries) == (1, 5)
    assert presets.settings("metanet", "omniglot", shots=5).train_shots == 5
    setup = presets.build(presets.settings("metanet", "glyphs"))
    episode = setup.train_source.sample(setup.train_source.data, jax.random.key(0))
    params = jax.eval_shape(setup.learner.init, jax.random.key(1), episode)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 81_860


@pytest.mark.parametrize("method", ["siamese", "mann", "metanet", "prototypical", "maml"])
def test_training_images_are_augmented_where_settings_say_so(method: str, monkeypatch) -> None:
    preset = presets.settings(method, "omniglot")
    assert preset.augment == (method in ("siamese", "mann", "metanet"))
    family = presets.family_of(method)._replace(augment=lambda x, key: 0 * x)
    monkeypatch.setattr(presets._build, "family_of", lambda method: family)
    small = dataclasses.replace(presets.settings(method, "glyphs"), train_ways=None, train_queries=1)
    losses = []
    for augment in (False, True):
        setup = presets.build(dataclasses.replace(small, augment=augment))
        episode = setup.train_source.sample(setup.train_source.data, jax.random.key(0))
        params = jax.jit(setup.learner.init)(jax.random.key(1), episode)
        _, metrics = jax.jit(setup.learner.meta_grad)(params, episode, jax.random.key(2))
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1]


def test_sinusoids_are_not_augmented() -> None:
    with pytest.raises(ValueError, match="augment changes images, but sinusoid is a regression"):
        presets.build(dataclasses.replace(presets.settings("maml", "sinusoid"), augment=True))


def test_a_metric_method_is_judged_on_other_ways_than_it_was_trained_on(tmp_path: Path, capsys) -> None:
    words = ("--dataset", "glyphs", "--train-ways", 6, "--train-queries", 1, "--queries", 1, "--steps", 2)
    words = (*words, "--episodes", 4, "--halve-every", 1, "--augment", True)
    assert run("train", "prototypical", *words, "--out", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["augment"] is True
    assert "5 ways, 1 shots" in capsys.readouterr().out
    assert all((tmp_path / "run" / name).exists() for name in ("embedding.png", "kernel.png", "episode.png"))
    assert not (tmp_path / "run" / "adaptation.png").exists()
    assert run("evaluate", tmp_path / "run", "--ways", 7, "--shots", 2, "--queries", 3) == 0
    assert "7 ways, 2 shots" in capsys.readouterr().out
    (written,) = (json.loads(path.read_text()) for path in (tmp_path / "run").glob("evaluation-*.json"))
    assert (written["source"]["ways"], written["source"]["queries"], written["inner_steps"]) == (7, 3, None)
    assert run("evaluate", tmp_path / "run", "--inner-steps", 2) == 2
    assert "--inner-steps is not for prototypical, which does not adapt" in capsys.readouterr().err


def test_a_network_with_an_output_for_each_class_keeps_its_ways() -> None:
    settings = dataclasses.replace(presets.settings("maml", "glyphs"), train_ways=5, ways=7)
    with pytest.raises(ValueError, match="ways=7, but maml has one output for each of the 5 classes of its training"):
        presets.build(settings)


@pytest.mark.parametrize("method", ["prototypical", "maml", "imaml", "lstm_meta_learner", "mann", "metanet"])
def test_the_outer_rate_is_halved(method: str) -> None:
    settings = dataclasses.replace(presets.settings(method, "glyphs"), halve_every=2, outer_lr=1e-3)
    optimizer, slope = presets.build(settings).optimizer, jnp.array(1.0)
    state, steps = optimizer.init(slope), []
    for _ in range(6):
        update, state = optimizer.update(slope, state)
        steps.append(-float(update))
    np.testing.assert_allclose(steps, np.repeat([1e-3, 5e-4, 2.5e-4], 2), rtol=5e-3)


@pytest.mark.parametrize(("method", "steps"), [("maml", 10), ("lstm_meta_learner", 2), ("imaml", 2), ("maml_pp", 2)])
def test_inner_steps_are_those_of_judging_where_the_preset_has_one_number(method: str, steps: int) -> None:
    command = cli._parse(["train", method, "--inner-steps", "2"])
    assert isinstance(command, Train)
    settings = _train_settings(command)
    assert (settings.inner_steps, settings.eval_inner_steps) == (2, steps)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_mann_reads_at_the_temperature_of_its_settings(temperature: float) -> None:
    settings = dataclasses.replace(presets.settings("mann", "glyphs"), temperature=temperature, image_size=16)
    assert presets.settings("mann", "glyphs").temperature == 0.1
    setup, model = presets.build(settings), memory.MANN(input_scale=4.0, strength=1 / temperature)
    key = jax.random.key(0)
    support, query = setup.test_source.sample(setup.test_source.data, key)
    params = model.init(key, support.x, jnp.zeros((len(support.x), settings.ways)))
    learner = memory.mann(model, ways=settings.ways)
    answers = [one.predict(params, support, query.x, key) for one in (setup.test_learner, learner)]
    np.testing.assert_array_equal(*answers)


def test_relation_s_gradients_are_clipped_apart() -> None:
    optimizer = presets.build(presets.settings("relation", "glyphs")).optimizer
    grads = metric.RelationParams(jnp.full(4, 50.0), jnp.full(4, 1e-3))
    _, state = optimizer.update(grads, optimizer.init(grads))
    (adam,) = (part for part in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(part))
    np.testing.assert_allclose(adam.mu.encoder, 0.1 * 0.25, rtol=1e-5)  # 0.5 over the root of 4 entries
    np.testing.assert_allclose(adam.mu.relation, 0.1 * 1e-3, rtol=1e-5)


@pytest.mark.parametrize(("method", "norm"), [("mann", 10.0), ("metanet", 10.0), ("lstm_meta_learner", 0.25)])
def test_gradients_of_what_recurs_are_clipped(method: str, norm: float) -> None:
    optimizer, grads = presets.build(presets.settings(method, "glyphs")).optimizer, jnp.full(4, 50.0)
    _, state = optimizer.update(grads, optimizer.init(grads))
    (adam,) = (part for part in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(part))
    np.testing.assert_allclose(adam.mu, 0.1 * norm / 2, rtol=1e-5)


def is_adam(node: object) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def test_ones_own_images_are_not_turned_and_are_found_from_anywhere(tmp_path, monkeypatch) -> None:
    draw_folder(tmp_path / "letters", {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path)
    preset = presets.settings("maml", "letters", ways=2)
    assert preset.dataset == str(tmp_path / "letters")
    assert (preset.train_rotations, preset.test_rotations) == ("none", "none")


def test_maml_s_preset_leaves_the_offsets_of_batch_normalisation_out_of_the_inner_loop() -> None:
    setup = presets.build(presets.settings("maml", "glyphs"))
    support, query = setup.train_source.sample(setup.train_source.data, jax.random.key(0))
    model = nn.Conv4(5, pool="stride", readout="mean", norm_scale=False)
    params = model.init(jax.random.key(1), support.x)
    adapted = adapt(
        lambda p, batch: losses.cross_entropy(model.apply(p, batch.x), batch.y),
        params,
        support,
        optimizer=optax.sgd(2.0),
        steps=3,
        mask=mask_by_path(lambda path: not path.startswith("params/norm_")),
    )
    found = setup.learner.predict(params, support, query.x, jax.random.key(2))
    np.testing.assert_allclose(found, model.apply(adapted.params, query.x), rtol=1e-3, atol=1e-3)


def test_reptile_s_preset_moves_epsilon_of_the_way_falling_to_none() -> None:
    settings = dataclasses.replace(presets.settings("reptile", "sinusoid"), steps=10)
    optimizer, direction = presets.build(settings).optimizer, jnp.array(1 / settings.inner_lr)
    state, steps = optimizer.init(direction), []
    for _ in range(11):
        update, state = optimizer.update(direction, state)
        steps.append(-float(update))
    np.testing.assert_allclose(steps, np.linspace(0.1, 0.0, 11), atol=1e-7)


def test_the_seed_seeds_training_and_test_episodes(tmp_path: Path) -> None:
    words = ("train", "--steps", "2", "--meta-batch", "2", "--episodes", "4", "--seed")
    results = {}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        assert run(*words, seed, "--out", tmp_path / name) == 0
        found = json.loads((tmp_path / name / "result.json").read_text())
        metrics = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        results[name] = (found["episode_hash"], found["mean"], metrics["loss"])
    assert results["a"] == results["b"]
    assert all(one != other for one, other in zip(results["a"], results["c"], strict=True))


def test_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    listed = {line.split()[0] for line in out.splitlines() if line}
    assert set(presets.METHODS) <= listed, "each in a column of its own"
    assert "0.01" in next(line for line in out.splitlines() if line.startswith("maml  "))
    learned = [line for line in out.splitlines() if line.startswith(("lstm_meta_learner", "meta_sgd"))]
    assert learned
    assert all(line.split()[-2] == "-" for line in learned), "rates that are learned are none of the settings"


def test_the_split_is_an_option_for_omniglot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train_options(Train("maml", "omniglot", split="vinyals"))["split"] == "vinyals"
    assert run("train", "maml", "--dataset", "glyphs", "--split", "lake", "--out", str(tmp_path / "run")) == 2
    assert "--split is for omniglot, but --dataset is glyphs" in capsys.readouterr().err


TRAIN_OPTIONS = (
    *("dataset", "ways", "shots", "queries", "steps", "inner-steps", "inner-lr"),
    *("meta-batch", "outer-lr", "seed", "out", "resume", "devices", "data-dir"),
    *("train-ways", "train-queries", "halve-every", "temperature", "image-size", "split", "rotations"),
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
        ("train --dataset=", "dataset '' is none of sinusoid, glyphs, omniglot, and there is no folder at ''"),
        ("train --ways 5", "ways=5, but sinusoid is a regression, which has no classes"),
        ("train --dataset glyphs --ways 81", "test episodes: ways=81, but there are 80 classes"),
        (
            "train --dataset glyphs --shots 15 --queries 6",
            "training episodes: shots=15 and queries=6 want 21 examples of every class",
        ),
        (
            "train reptile --dataset glyphs --shots 10 --queries 11",
            "test episodes: shots=10 and queries=11 want 21 examples of every class, but class glyph_320 has 20",
        ),
        ("train --ways five", "invalid literal for int() with base 10: 'five'"),
        ("train --steps 0", "steps must be 1 or more, but is 0"),
        ("train --meta-batch -1", "meta_batch must be 1 or more, but is -1"),
        ("train --inner-steps -2", "inner_steps must be 0 or more, but is -2"),
        ("train --inner-lr 0", "inner_lr must be positive and finite, but is 0.0"),
        (
            "train meta_sgd --inner-lr 0.1",
            "--inner-lr is not for meta_sgd, which draws its inner rates and learns them",
        ),
        (
            "train prototypical",
            "prototypical classifies, and sinusoid is a regression: --dataset takes glyphs, omniglot, or the path of a",
        ),
        ("train relation --dataset glyphs --inner-lr 0.1", "--inner-lr is not for relation, which does not adapt by"),
        ("train siamese --dataset glyphs --temperature 2", "--temperature is not for siamese, whose kernel has none"),
        ("train reptile --halve-every 9", "--halve-every is not for reptile, whose outer rate has a course of its own"),
        ("train maml --train-ways 20", "--train-ways is not for maml, whose network has one output for each class"),
        (
            "train metanet --dataset glyphs --temperature 2",
            "--temperature is not for metanet, whose attention has none",
        ),
        ("train matching --dataset glyphs --temperature 0", "temperature must be positive and finite, but is 0"),
        ("train prototypical --dataset glyphs --train-ways 0", "train_ways must be 1 or more, but is 0"),
        ("train --shots 0", "shots must be 1 or more, but is 0"),
        ("train --queries 0", "queries must be 1 or more, but is 0"),
        ("train ---x", "---x"),
        ("train --episodes 1", "episodes must be 2 or more, but is 1"),
        ("train --devices 0", "--devices must be 1 or more, but is 0"),
        ("train --query-mode both", "query-mode"),
        ("train --banana 3", "Unrecognized options: --banana"),
        ("bake", "Unrecognized options: bake"),
        ("", "Expected one of {{train, evaluate, compare, taylor, list}}"),
        ("evaluate", "Missing from jaxmeta evaluate: PATH The run's folder."),
        ("evaluate {tmp}/nowhere", "no run at {tmp}/nowhere: want a folder with config.json"),
        (
            "train --out {tmp}/full",
            "run folder {tmp}/full is not empty: continue it with resume (--resume), or choose another",
        ),
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
    few, many = (presets.settings("imaml", "omniglot", ways=ways) for ways in (5, 20))
    assert (few.inner_lr, few.proximal, few.inner_steps, few.meta_batch, few.steps) == (0.1, 2.0, 16, 32, 20_000)
    assert (many.inner_steps, many.eval_inner_steps, many.meta_batch) == (25, 25, 32)
    boil, pp = (presets.settings(method, "omniglot") for method in ("boil", "maml_pp"))
    assert (boil.inner_lr, boil.inner_steps) == (0.5, 1)
    assert (pp.inner_lr, pp.inner_steps, pp.eval_inner_steps, pp.meta_batch, pp.steps) == (0.1, 5, 5, 8, 100 * 500)
    assert presets.settings("meta_sgd", "omniglot").inner_steps == 1
    reptile = presets.settings("reptile", "omniglot", shots=5)
    assert (reptile.train_shots, reptile.shots, reptile.inner_batch, reptile.meta_batch) == (10, 5, 10, 5)
    assert (reptile.train_subset, reptile.train_rotations, reptile.test_rotations) == ("trainval", "classes", "none")
    more = presets.settings("maml", "omniglot", shots=5)
    assert (more.train_shots, more.train_queries, more.shots, more.queries) == (5, 5, 5, 5)
    more = presets.settings("maml", "omniglot", shots=15, queries=3)
    assert (more.train_shots, more.train_queries, more.shots, more.queries) == (15, 3, 15, 3)
    proto = presets.settings("prototypical", "omniglot", shots=5)
    assert (proto.train_ways, proto.train_shots, proto.train_queries, proto.shots, proto.queries) == (60, 5, 5, 5, 15)
    assert (proto.halve_every, proto.outer_lr, proto.meta_batch, proto.train_subset) == (2000, 1e-3, 1, "trainval")
    queries = {(5, 1): 19, (5, 5): 15, (20, 1): 10, (20, 5): 5}
    for (ways, shots), expected in queries.items():
        assert presets.settings("relation", "omniglot", ways=ways, shots=shots).train_queries == expected
    siamese = presets.settings("siamese", "omniglot")
    assert (siamese.split, siamese.within_groups, siamese.ways, siamese.image_size) == ("lake", True, 20, 105)
    assert siamese.train_rotations == "per_episode_mirrored", "an alphabet stands in one turn, as in its trials"
    sinusoid = presets.settings("maml", "sinusoid")
    assert (sinusoid.train_shots, sinusoid.shots, sinusoid.steps, sinusoid.meta_batch) == (10, 5, 70_000, 25)


SMALLER = {
    "train": {"--steps": "2", "--episodes": "4"},
    "evaluate": {"--episodes": "4"},
    "compare": {"--repeats": "1", "--meta-batch": "2"},
    "taylor": {"--k": "2"},
    "list": {},
}


@pytest.mark.usefixtures("tfds_dir")
def test_the_readme_s_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, each with a small budget."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    lines = [line.split("#")[0].split() for line in readme.splitlines() if line.startswith("jaxmeta ")]
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "path/to/class/folders", {f"class_{i}": 3 for i in range(20)})
    for _, command, *words in lines:
        for option, value in SMALLER[command].items():
            if option in words:
                words[words.index(option) + 1] = value
            else:
                words += [option, value]
        assert run(command, *words) == 0, (command, words)
    assert (tmp_path / "runs/proto/embedding.png").is_file()
    assert {command for _, command, *_ in lines} == SMALLER.keys()


@pytest.mark.parametrize("chosen", [None, "tensorfloat32"])
@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_accelerators_multiply_in_full_unless_told_otherwise(monkeypatch, backend: str, chosen: str | None) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", chosen)
    try:
        set_up_jax()
        expected = chosen or (None if backend == "cpu" else "float32")
        assert jax.config.jax_default_matmul_precision == expected
    finally:
        jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize("words", ["train", "evaluate runs/none", "compare"])
def test_every_command_sets_jax_up_first(monkeypatch, words: str) -> None:
    class Reached(BaseException):
        """Not an error that the command line reports."""

    def reach(devices: int | None = None) -> None:
        raise Reached

    monkeypatch.setattr(_commands, "set_up_jax", reach)
    with pytest.raises(Reached):
        run(*words.split())


def test_without_inner_steps_nothing_is_truncated() -> None:
    settings = presets.settings("maml", "glyphs")
    names = {steps: set(presets.estimators(dataclasses.replace(settings, inner_steps=steps))[0]) for steps in (0, 4)}
    assert names[4] - names[0] == {"truncated_1", "truncated_2", "reptile"}
