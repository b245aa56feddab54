"""Lake's one-shot protocol, on a folder that the test draws itself, and on the real alphabets where they are."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxmeta as jm
from jaxmeta import Batch, MetaLearner, nn, presets, tasks

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import lake

SIZE, WAYS = 21, 4


def draw_runs_folder(root: Path, runs: int = 2) -> list[list[int]]:
    """A folder like `all_runs`: bars of their own length and place, shifted in the tests. Returns the answers."""
    answers = []
    for run in range(1, runs + 1):
        order = np.random.default_rng(run).permutation(WAYS)
        lines = []
        for kind in ("training", "test"):
            (root / f"run{run:02d}" / kind).mkdir(parents=True)
        for item, answer in enumerate(order):
            for name, number, shift in (("training/class", answer, 0), ("test/item", item, 3)):
                image = np.full((SIZE, SIZE), 255, np.uint8)
                image[4 + shift : 6 + shift, 2 : 6 + 3 * answer] = 0  # black ink on white
                Image.fromarray(image).convert("1").save(root / f"run{run:02d}" / f"{name}{number + 1:02d}.png")
            lines.append(f"run{run:02d}/test/item{item + 1:02d}.png run{run:02d}/training/class{answer + 1:02d}.png")
        (root / f"run{run:02d}" / "class_labels.txt").write_text("\n".join(reversed(lines)) + "\n")
        answers.append(order.tolist())
    return answers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_runs_folder(tmp_path / "all_runs")
    return tmp_path / "all_runs"


def nearest() -> MetaLearner:
    """A learner without parameters: the support image with the most ink in common, after centring."""

    def centred(x: jax.Array) -> jax.Array:
        return jnp.sort(x.sum(1).reshape(len(x), -1), axis=1)

    def predict(params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        return -jnp.abs(centred(query_x)[:, None] - centred(support.x)[None]).sum(-1)

    return MetaLearner(lambda key, episode: {}, lambda params, episode, key: ({}, {}), predict)


def test_the_official_layout_is_read(tmp_path: Path) -> None:
    answers = draw_runs_folder(tmp_path / "all_runs")
    runs = tasks.lake_runs(tmp_path / "all_runs", image_size=SIZE)
    assert runs.support.x.shape == runs.query.x.shape == (2, WAYS, SIZE, SIZE, 1)
    assert runs.query.y.tolist() == answers
    assert runs.support.y.tolist() == [list(range(WAYS))] * 2
    assert set(np.unique(runs.support.x)) == {0.0, 1.0}
    assert runs.support.x.mean() < 0.2, "ink is 1"


def test_a_learner_is_judged_on_turned_runs_too(folder: Path) -> None:
    """One that sees how tall ink is at most, alike in all bars as they lie, and their length where they stand."""

    def predict(params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        tallest, others = (x.sum((1, 3)).max(1) for x in (query_x, support.x))
        return -jnp.abs(tallest[:, None] - others[None])

    runs = tasks.lake_runs(folder, image_size=SIZE)
    found, beside = lake.judge(nearest()._replace(predict=predict), {}, runs, "transductive", 0)
    assert found.mean == beside["inductive"]["accuracy"] == 1 / WAYS
    assert beside["turned"] == {"accuracy": 1.0, "interval": 0.0}


def test_the_baseline_finds_what_is_only_shifted(folder: Path) -> None:
    runs = tasks.lake_runs(folder, image_size=SIZE)
    np.testing.assert_array_equal(tasks.hausdorff_baseline(runs), [0, 0])
    wrong = runs._replace(query=runs.query._replace(y=(runs.query.y + 1) % WAYS))
    np.testing.assert_array_equal(tasks.hausdorff_baseline(wrong), [1, 1])
    with pytest.raises(ValueError, match=rf"a leading axis of runs, but support.y has shape \({WAYS},\)"):
        tasks.hausdorff_baseline(jax.tree.map(lambda leaf: leaf[0], runs))


def test_the_distance_is_the_loop() -> None:
    rng = np.random.default_rng(0)
    images = [rng.uniform(size=(7, 9)) > 0.7 for _ in range(2)]
    sets = [np.argwhere(image) - np.argwhere(image).mean(0) for image in images]
    one, other = (np.mean([min(np.hypot(*(p - q)) for q in to) for p in of]) for of, to in (sets, sets[::-1]))
    np.testing.assert_allclose(tasks.modified_hausdorff(*images), max(one, other), rtol=1e-12)
    with pytest.raises(ValueError, match="an image has no ink"):
        tasks.modified_hausdorff(images[0], np.zeros((7, 9)))
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], but one lies in \[0.0, 255.0\]"):
        tasks.modified_hausdorff(images[0], 255.0 * images[1])
    with pytest.raises(ValueError, match=r"must have shape \[h, w\] or \[h, w, 1\], but one has \(7, 9, 3\)"):
        tasks.modified_hausdorff(images[0], np.ones((7, 9, 3)))
    faint = np.where(images[0], 0.6, 0.4)  # what is above 0.5 is ink
    np.testing.assert_allclose(tasks.modified_hausdorff(faint, images[1]), max(one, other), rtol=1e-12)


def test_any_learner_is_judged(folder: Path) -> None:
    runs = tasks.lake_runs(folder, image_size=SIZE)
    found = jm.evaluate_runs(nearest(), {}, runs, info={"name": "all_runs"})
    assert (found.metric, found.mean, found.episodes) == ("accuracy", 1.0, 2)
    shifted = runs.query.y.at[0].set((runs.query.y[0] + 1) % 4)  # every label of the first run is another class's
    assert jm.evaluate_runs(nearest(), {}, runs._replace(query=runs.query._replace(y=shifted))).mean == 0.5
    with pytest.raises(ValueError, match="runs must be 2 or more"):
        jm.evaluate_runs(nearest(), {}, jax.tree.map(lambda leaf: leaf[:1], runs))
    with pytest.raises(TypeError, match=r"learner must be a MetaLearner"):
        jm.evaluate_runs(None, {}, runs)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"runs must be a jaxmeta\.Episode\(support, query\), but is a tuple"):
        jm.evaluate_runs(nearest(), {}, tuple(runs))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda root: None, FileNotFoundError, "no one-shot runs at"),
        (lambda root: (root / "run01/test/item02.png").unlink(), FileNotFoundError, r"item02\.png, which is not there"),
        (lambda root: (root / "run02/class_labels.txt").write_text("one\n"), ValueError, "line 1: want a test image"),
        (
            lambda root: repeat_line(root / "run02/class_labels.txt"),
            ValueError,
            r"each training image should come once, but run02/training/class0\d\.png comes twice",
        ),
        (
            lambda root: swap(root / "run02/class_labels.txt", "item01", "item02"),
            ValueError,
            r"each test image should come once, but run02/test/item02\.png comes twice",
        ),
        (
            lambda root: turn_columns(root / "run02/class_labels.txt"),
            ValueError,
            r"line 1: want a test image and its training image, but found \['run02/training",
        ),
        (lambda root: (root / "run02/class_labels.txt").write_bytes(b"\xff\xfe"), ValueError, "labels.txt is no text"),
        (lambda root: (root / "run02/class_labels.txt").write_text(" \n"), ValueError, r"class_labels\.txt is empty"),
        (lambda root: (root / "run02/class_labels.txt").unlink(), FileNotFoundError, r"run02/class_labels\.txt is not"),
        (
            lambda root: Image.new("L", (SIZE, 30)).save(root / "run01/test/item02.png"),
            ValueError,
            r"item02\.png should be square, but is 21 pixels wide and 30 high",
        ),
        (
            lambda root: (root / "run01/training/class02.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"broken" * 9),
            ValueError,
            r"cannot read .*class02\.png as an image",
        ),
        (
            lambda root: cut(root / "run01/training/class02.png"),
            ValueError,
            r"cannot read .*class02\.png as an image",
        ),
        (lambda root: drop_line(root / "run02/class_labels.txt"), ValueError, "as many classes and trials"),
    ],
)
def test_a_bad_folder_is_named(spoil, error, message: str, folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    root = tmp_path / "nowhere" if "no one-shot" in message else folder
    with pytest.raises(error, match=message):
        tasks.lake_runs(root, image_size=SIZE)


def test_drawings_are_resized_by_lanczos_s_filter(folder: Path) -> None:
    with Image.open(folder / "run01/training/class01.png") as image:
        paper = image.convert("L").resize((12, 12), Image.Resampling.LANCZOS)
    found = tasks.lake_runs(folder, image_size=12).support.x[0, 0, :, :, 0]
    assert tasks.lake_runs(folder).support.x.shape[2:] == (105, 105, 1)
    # The ink is resized, and not the paper, which differ by rounding alone.
    np.testing.assert_allclose(found, 1 - np.asarray(paper, float) / 255, atol=2 / 255)
    with pytest.raises(ValueError, match="image_size must be 1 or more, but is 0"):
        tasks.lake_runs(folder, image_size=0)


def test_only_numbered_runs_count(folder: Path) -> None:
    shutil.copytree(folder / "run01", folder / "run01_copy")
    (folder / "run_notes.txt").write_text("what the runs are")
    assert tasks.lake_runs(folder, image_size=SIZE).support.y.shape == (2, WAYS)


def swap(file: Path, before: str, after: str) -> None:
    file.write_text(file.read_text().replace(before, after))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def repeat_line(file: Path) -> None:
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")


def turn_columns(file: Path) -> None:
    lines = [" ".join(reversed(line.split())) for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")


def drop_line(file: Path) -> None:
    file.write_text("\n".join(file.read_text().splitlines()[1:]) + "\n")


def grouped() -> tasks.Classes:
    """Two alphabets, of 4 and of 8 letters; a drawing's only value tells its letter and its drawer: see `read`."""
    examples = (20 * np.arange(12)[:, None] + np.arange(5)).astype(np.uint8)
    examples = np.broadcast_to(examples[..., None, None, None], (12, 5, 2, 2, 1))
    groups = ("small",) * 4 + ("large",) * 8
    return tasks.Classes(examples, np.full(12, 5, np.int32), tuple(map(str, range(12))), {"name": "grouped"}, groups)


def read(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The letters and the drawers of images `[runs, n, 2, 2, 1]`."""
    return np.divmod(np.rint(np.asarray(x)[..., 0, 0, 0] * 255).astype(int), 20)


def test_drawn_runs_keep_to_an_alphabet() -> None:
    runs = tasks.draw_runs(grouped(), runs=6, ways=4)
    (letters, drawers), (queries, others) = read(runs.support.x), read(runs.query.x)
    np.testing.assert_array_equal(letters, queries)
    np.testing.assert_array_equal(runs.support.y, np.tile(np.arange(4), (6, 1)))
    np.testing.assert_array_equal(runs.query.y, runs.support.y)
    assert (drawers != others).all(), "no query is a support image"
    assert len(np.unique(drawers)) > 3, "any drawing may be drawn"
    assert all(len(set(run)) == 4 and len({letter < 4 for letter in run}) == 1 for run in letters.tolist())
    assert {bool(run[0] < 4) for run in letters} == {True, False}
    plain = grouped()._replace(examples=grouped().examples.astype(np.float32) / 255)
    floats = tasks.draw_runs(plain, runs=6, ways=4)
    np.testing.assert_allclose(runs.query.x, floats.query.x, rtol=1e-6, err_msg="what is no uint8 stays as it is")
    five, _ = read(tasks.draw_runs(grouped(), runs=4, ways=5).support.x)
    assert (five >= 4).all(), "alphabets with fewer letters are left out"


def test_drawn_runs_set_one_drawer_against_another() -> None:
    """Each character's drawings stand in an order of its own."""
    order = np.random.default_rng(0).permuted(np.tile(np.arange(5), (12, 1)), axis=1)
    classes = grouped()
    shuffled = np.take_along_axis(classes.examples, order[..., None, None, None], axis=1)
    known = classes._replace(examples=shuffled, drawers=order + 1)
    runs = tasks.draw_runs(known, runs=20, ways=4)
    (letters, drawers), (queries, others) = read(runs.support.x), read(runs.query.x)
    np.testing.assert_array_equal(letters, queries)
    assert (drawers == drawers[:, :1]).all()
    assert (others == others[:, :1]).all()
    assert (drawers[:, 0] != others[:, 0]).all()
    assert set(drawers[:, 0].tolist()) == set(range(5))
    half, _ = tasks.split_classes(known, test_share=0.5)
    np.testing.assert_array_equal(half.drawers, half.examples[..., 0, 0, 0] % 20 + 1)
    strangers = known._replace(drawers=order + 5 * np.arange(12)[:, None])
    with pytest.raises(ValueError, match="two drawers of all its characters, but its 4 have 0"):
        tasks.draw_runs(strangers, runs=1, ways=4)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ways": 9}, "ways=9, but no group has more than 8 classes"),
        ({"ways": 1}, "runs=20 and ways=1 must be at least 1 and 2"),
        ({"runs": 0, "ways": 4}, "runs=0 and ways=4 must be at least 1 and 2"),
    ],
)
def test_runs_that_cannot_be_drawn_are_named(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.draw_runs(grouped(), **sizes)
    with pytest.raises(ValueError, match="the classes have no groups"):
        tasks.draw_runs(grouped()._replace(groups=None))
    with pytest.raises(ValueError, match="want two drawings of every class"):
        tasks.draw_runs(grouped()._replace(counts=np.full(12, 1, np.int32)), ways=4)


def test_episodes_can_keep_to_a_group() -> None:
    source = tasks.episodes(grouped(), ways=4, shots=1, queries=1, within_groups=True)
    keys = jax.random.split(jax.random.key(0), 40)
    found = jax.jit(jax.vmap(source.sample, (None, 0)))(source.data, keys)
    (letters, drawers), (queries, others) = read(found.support.x), read(found.query.x)
    np.testing.assert_array_equal(letters, queries)
    assert (drawers != others).all()
    assert all(len(set(run)) == 4 and len({letter < 4 for letter in run}) == 1 for run in letters.tolist())
    assert 8 < sum(run[0] < 4 for run in letters.tolist()) < 32  # groups are alike likely, whatever their size
    large = tasks.episodes(grouped(), ways=5, shots=1, queries=1, within_groups=True)
    five, _ = read(jax.jit(jax.vmap(large.sample, (None, 0)))(large.data, keys).support.x)
    assert (five >= 4).all()
    with pytest.raises(ValueError, match="ways=9, but no group has more than 8 classes"):
        tasks.episodes(grouped(), ways=9, shots=1, queries=1, within_groups=True)
    with pytest.raises(ValueError, match="within_groups=True, but the classes have no groups"):
        tasks.episodes(grouped()._replace(groups=None), ways=2, shots=1, queries=1, within_groups=True)


@pytest.mark.parametrize(
    ("dataset", "changes", "refused"),
    [
        ("omniglot", {}, False),
        ("omniglot", {"split": "vinyals"}, True),
        ("glyphs", {"split": "lake"}, True),
    ],
)
def test_the_benchmark_refuses_runs_that_have_seen_its_characters(dataset, changes, refused, tmp_path: Path) -> None:
    settings = dataclasses.replace(presets.settings("siamese", dataset, ways=5), **changes)
    (tmp_path / "config.json").write_text(json.dumps({"settings": dataclasses.asdict(settings)}))
    if refused:
        with pytest.raises(ValueError, match="may be among the evaluation characters"):
            lake.judged_settings(tmp_path)
    else:
        assert lake.judged_settings(tmp_path) == dataclasses.replace(settings, ways=20)


def test_the_benchmark_says_what_repeats_it() -> None:
    drawn = lake.Arguments(Path("runs/a"), runs=8, pairs=30, seed=2)
    assert lake.command(drawn) == "python benchmarks/lake.py RUN --runs 8 --pairs 30 --seed 2"
    official = dataclasses.replace(drawn, all_runs=Path("somewhere/all_runs"))
    assert lake.command(official) == "python benchmarks/lake.py RUN --all-runs ALL_RUNS --pairs 30 --seed 2"


def test_pairs_to_verify_are_of_one_alphabet_and_two_drawers() -> None:
    known = grouped()._replace(drawers=np.tile(np.arange(1, 6), (12, 1)))
    pairs, same = lake.draw_pairs(known, 60, seed=0)
    letters, drawers = read(pairs)
    np.testing.assert_array_equal(letters[:, 0] == letters[:, 1], same)
    assert same.sum() == 30
    small = letters[:, 0] < 4
    assert all(set(small[kind].tolist()) == {True, False} for kind in (same, ~same)), "alphabets do not tell"
    assert (drawers[:, 0] != drawers[:, 1]).all()
    np.testing.assert_array_equal(*(letters < 4).T)


def test_verification_tells_its_interval_and_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs taken for alike: half of them are."""
    monkeypatch.setattr(lake, "characters", lambda settings, size: grouped())
    monkeypatch.setattr(lake.metric, "verify", lambda twin, params, a, b: jnp.ones(len(a)))
    found = lake.verification({}, presets.settings("siamese", "glyphs"), lake.Arguments(Path("run"), pairs=100))
    assert (found["accuracy"], found["pairs"]) == (0.5, 100)
    np.testing.assert_allclose(found["interval"], 1.96 * 0.5 / 10, rtol=0.01)
    for pairs in (0, 60):
        with pytest.raises(ValueError, match=f"pairs must be a multiple of 50, but is {pairs}"):
            lake.verification({}, presets.settings("siamese", "glyphs"), lake.Arguments(Path("run"), pairs=pairs))


def test_the_real_alphabets_serve(tfds_dir: Path) -> None:
    """The baseline on runs drawn from the evaluation alphabets errs about as often as on the official ones."""
    classes = tasks.omniglot("lake", "test", image_size=28, data_dir=tfds_dir)
    assert classes.groups is not None
    assert len(set(classes.groups)) == 20
    assert (np.sort(classes.drawers) == np.arange(1, 21)).all()
    runs = tasks.draw_runs(classes, runs=4, seed=1)
    errors = tasks.hausdorff_baseline(runs)
    assert 0.2 < errors.mean() < 0.6
    learner = jm.prototypical(nn.MLP((), 16, norm=True), ways=20)
    params = learner.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], runs))
    assert jm.evaluate_runs(learner, params, runs).mean > 0.1
