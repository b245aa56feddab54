"""Sinusoids, glyphs, and your own data."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmeta import tasks


@pytest.mark.parametrize(("variant", "zero"), [("maml", 4.2517), ("reptile", 4.2517)])
def test_predicting_zero_has_its_known_error(variant, zero: float) -> None:
    source = tasks.sinusoid(variant, shots=10)
    batch = jax.jit(jax.vmap(lambda key: source.sample((), key)))(jax.random.split(jax.random.key(0), 40_000))
    # Reptile's evenly spaced grid holds the ends of the interval, whose mean differs a little.
    assert float(jnp.mean(batch.query.y**2)) == pytest.approx(zero, rel=0.02)


def test_the_best_function_of_x_alone_leaves_its_known_error() -> None:
    """E[A] E[sin(x - phi)] over phi in [0, pi] is 2.55 * (-2 cos x) / pi; what is left is 3.0057."""
    source = tasks.sinusoid(shots=10)
    batch = jax.jit(jax.vmap(lambda key: source.sample((), key)))(jax.random.split(jax.random.key(1), 40_000))
    best = 2.55 * -2 / jnp.pi * jnp.cos(batch.query.x)
    assert float(jnp.mean((batch.query.y - best) ** 2)) == pytest.approx(3.0057, rel=0.02)


def test_support_and_query_come_from_one_sinusoid() -> None:
    source = tasks.sinusoid(shots=400, queries=400)
    support, query = source.sample((), jax.random.key(0))
    design = lambda x: np.concatenate([np.sin(x), np.cos(x)], 1)  # noqa: E731
    fitted, *_ = np.linalg.lstsq(design(support.x), np.asarray(support.y))
    np.testing.assert_allclose(design(query.x) @ fitted, query.y, atol=1e-4)
    assert 0.1 <= np.linalg.norm(fitted) <= 5.0
    assert fitted[1] <= 0  # y = A sin(x - phi) with phi in [0, pi]


@pytest.mark.parametrize(("variant", "sign", "end"), [("maml", -1, np.pi), ("reptile", 1, 2 * np.pi)])
def test_amplitudes_and_phases_fill_their_ranges_evenly(variant, sign: int, end: float) -> None:
    """y = A sin(x + sign phi), A from [0.1, 5] and phi from [0, end]: deciles of 4,000 tasks, each solved for both."""
    keys = jax.random.split(jax.random.key(0), 4000)
    x, y = (
        np.asarray(leaf) for leaf in jax.jit(jax.vmap(lambda key: tasks.sinusoid(variant).sample((), key)))(keys).query
    )
    solved = np.linalg.pinv(np.concatenate([np.sin(x), np.cos(x)], -1)) @ y
    amplitude = np.linalg.norm(solved[..., 0], axis=1)
    phase = sign * np.arctan2(solved[:, 1, 0], solved[:, 0, 0]) % (2 * np.pi)
    np.testing.assert_allclose(np.quantile(amplitude, np.linspace(0, 1, 11)), np.linspace(0.1, 5, 11), atol=0.15)
    np.testing.assert_allclose(np.quantile(phase, np.linspace(0, 1, 11)), np.linspace(0, end, 11), atol=0.03 * end)


def test_reptiles_points_lie_on_its_grid() -> None:
    support, query = tasks.sinusoid("reptile", shots=10).sample((), jax.random.key(0))
    np.testing.assert_allclose(query.x[:, 0], np.linspace(-5, 5, 50), atol=1e-6)
    assert set(np.asarray(support.x)[:, 0]) <= set(np.asarray(query.x)[:, 0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"variant": "cosine"}, 'variant must be "maml" or "reptile", but is'),
        ({"shots": 0}, "shots=0 and queries=0 must be at least 1 and 1"),
        ({"variant": "reptile", "queries": 10}, "queries=10, but .* judges on all 50 points"),
    ],
)
def test_sinusoids_that_cannot_be_are_refused(args, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.sinusoid(**args)


def test_glyphs_are_made_by_their_seed_and_differ_between_classes_more_than_within() -> None:
    first, again = tasks.glyphs("train", classes=20), tasks.glyphs("train", classes=20)
    np.testing.assert_array_equal(first.examples, again.examples)
    assert not np.array_equal(first.examples, tasks.glyphs("train", classes=20, seed=1).examples)
    x = first.examples.astype(np.float32)
    ink = (x > 127).mean()
    assert 0.02 < ink < 0.3
    assert len(np.unique(x.reshape(-1, 28 * 28), axis=0)) == x.shape[0] * x.shape[1], "no two drawings are alike"
    means = x.mean(1)
    within = ((x - means[:, None]) ** 2).mean()
    between = ((means[:, None] - means[None]) ** 2).mean() * len(means) / (len(means) - 1)
    assert between > 0.7 * within


def test_glyph_subsets_share_no_character() -> None:
    names = [tasks.glyphs(subset, classes=50, drawings=1).names for subset in ("train", "val", "test")]
    assert [len(n) for n in names] == [32, 8, 10]
    assert len(set().union(*names)) == 50


@pytest.mark.parametrize("kwargs", [{"subset": "all"}, {"classes": 4}, {"drawings": 0}, {"image_size": 7}])
def test_glyphs_that_cannot_be_are_refused(kwargs) -> None:
    with pytest.raises(ValueError, match="must be"):
        tasks.glyphs(**kwargs)


def test_arrays_become_classes() -> None:
    x = np.arange(5, dtype=np.float64)[:, None]
    classes = tasks.from_arrays(x, [7, 3, 7, 3, 7])
    assert classes.names == ("3", "7")
    assert classes.counts.tolist() == [2, 3]
    assert classes.examples[..., 0].tolist() == [[1.0, 3.0, 0.0], [0.0, 2.0, 4.0]]
    assert classes.examples.dtype == np.float32


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), [0, 1], r"y must hold one integer label .* shape \(2,\)"),
        (np.zeros((2, 2)), [0.0, 1.0], "dtype float64"),
        (np.zeros((0, 2)), np.zeros(0, int), "at least one example"),
        (np.array([[np.nan], [0.0]]), [0, 1], "x must be finite"),
        (np.array([[1e300], [0.0]]), [0, 1], "x must be finite in 32 bits"),
        (np.array([[2**40], [0]]), [0, 1], r"x must fit 32-bit integers, but lies in \[0, 1099511627776\]"),
    ],
)
def test_arrays_that_cannot_be_are_refused(x, y, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.from_arrays(x, y)


def test_examples_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="x must hold numbers, but has dtype <U1"):
        tasks.from_arrays(np.array(["a", "b"]), [0, 1])


def draw_folder(root: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((30, 40), 10 * i + len(name), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_a_folder_of_class_folders_becomes_classes(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"bb": 3, "a": 2})
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / "empty").mkdir()
    classes = tasks.from_folder(tmp_path, image_size=12)
    assert classes.names == ("a", "bb")
    assert classes.counts.tolist() == [2, 3]
    assert classes.examples.shape == (2, 3, 12, 12, 1)
    assert classes.examples[1, :, 5, 5, 0].tolist() == [2, 12, 22]
    assert tasks.from_folder(tmp_path, grayscale=False).examples.shape == (2, 3, 28, 28, 3)


def test_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nowhere"):
        tasks.from_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no sub-folder with images"):
        tasks.from_folder(tmp_path)
    draw_folder(tmp_path, {"a": 1})
    ink = np.zeros((30, 30, 4), np.uint8)
    ink[10:20, :, 3] = 255  # black ink on nothing
    Image.fromarray(ink).save(tmp_path / "a" / "0.png")
    seen = tasks.from_folder(tmp_path).examples[0, 0]
    assert (seen.min(), seen.max()) == (0, 255)
    (tmp_path / ".cache").mkdir()
    Image.fromarray(ink).save(tmp_path / ".cache" / "0.png")
    assert tasks.from_folder(tmp_path).names == ("a",)
    (tmp_path / "__MACOSX" / "a").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "a" / "._0.png").write_bytes(b"no image")
    assert tasks.from_folder(tmp_path).names == ("a",)
    draw_folder(tmp_path / "train", {"c": 1})
    with pytest.raises(ValueError, match=r"train holds folders of images: want one sub-folder of images for each"):
        tasks.from_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / ".train")
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*broken.png as an image"):
        tasks.from_folder(tmp_path)


def test_images_of_more_than_eight_bits_are_refused_and_hidden_files_are_not_images(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"a": 2})
    (tmp_path / "a" / "._0.png").write_bytes(b"not an image")
    assert tasks.from_folder(tmp_path).counts.tolist() == [2]
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png as an image: it has more than 8 bits a channel \(mode I;16\)"):
        tasks.from_folder(tmp_path)


def test_what_was_read_has_a_digest(tmp_path: Path) -> None:
    x = np.zeros((4, 2))
    first, same, other = (tasks.from_arrays(values, [0, 0, 1, 1]).info["sha256"] for values in (x, x.copy(), x + 1))
    assert first == same != other


def test_classes_are_divided_without_overlap() -> None:
    classes = tasks.from_arrays(np.zeros((20, 1)), np.arange(20) % 10)
    train, test = tasks.split_classes(classes, test_share=0.3)
    assert (len(train.names), len(test.names)) == (7, 3)
    assert sorted(train.names + test.names, key=int) == list(classes.names)
    assert tasks.split_classes(classes, test_share=0.3)[1].names == test.names
    with pytest.raises(ValueError, match="test_share must lie between 0 and 1, but is 1"):
        tasks.split_classes(classes, test_share=1)
    with pytest.raises(ValueError, match="at least two classes"):
        tasks.split_classes(tasks.from_arrays(np.zeros((2, 1)), [0, 0]), test_share=0.5)
