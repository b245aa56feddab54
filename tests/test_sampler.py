"""Episodes from labelled examples: what must hold for every draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta import tasks
from jaxmeta.tasks import Classes

CLASSES, MOST = 9, 7
COUNTS = np.array([7, 6, 7, 7, 5, 7, 7, 6, 7], np.int32)


def numbered() -> Classes:
    """Every example holds its own class and place, so that a draw can be traced back; unfilled places hold -1."""
    ids = np.arange(CLASSES)[:, None] * 100 + np.arange(MOST)
    ids = np.where(np.arange(MOST) < COUNTS[:, None], ids, -1).astype(np.float32)
    return Classes(ids[..., None], COUNTS, tuple(f"c{i}" for i in range(CLASSES)), {"name": "numbered"})


NUMBERED = numbered()
FIVE_WAY = tasks.episodes(NUMBERED, ways=5, shots=2, queries=2)
SAMPLE_FIVE_WAY = jax.jit(FIVE_WAY.sample)
sizes = st.tuples(st.integers(2, CLASSES), st.integers(1, 3), st.integers(0, 2))


@given(seed=st.integers(0, 2**31 - 1), size=sizes)
def test_every_episode_is_well_formed(seed: int, size: tuple[int, int, int]) -> None:
    ways, shots, queries = size
    source = tasks.episodes(NUMBERED, ways=ways, shots=shots, queries=queries)
    support, query = source.sample(source.data, jax.random.key(seed))
    assert support.x.shape == (ways * shots, 1)
    assert query.x.shape == (ways * queries, 1)
    ids = np.concatenate([support.x, query.x])[:, 0].astype(int)
    assert (ids >= 0).all(), "an unfilled place was drawn"
    assert len(set(ids)) == len(ids), "an example was drawn twice, or support and query share one"
    drawn = {}  # label -> class
    for label, example in zip(np.concatenate([support.y, query.y]).tolist(), ids, strict=True):
        assert drawn.setdefault(label, example // 100) == example // 100, "a label stands for two classes"
    assert sorted(drawn) == list(range(ways)), "labels are not a permutation"
    assert len(set(drawn.values())) == ways, "a class was drawn twice"
    assert np.bincount(support.y).tolist() == [shots] * ways


@given(seed=st.integers(0, 2**31 - 1))
def test_the_key_makes_the_episode(seed: int) -> None:
    source = FIVE_WAY
    first = SAMPLE_FIVE_WAY(source.data, jax.random.key(seed))
    assert_trees_equal(first, source.sample(source.data, jax.random.key(seed)))
    other = SAMPLE_FIVE_WAY(source.data, jax.random.key(seed + 1))
    assert not np.array_equal(first.support.x, other.support.x)


def test_all_classes_and_examples_are_drawn_evenly() -> None:
    source = tasks.episodes(NUMBERED, ways=3, shots=1, queries=1)
    batch = jax.vmap(source.sample, (None, 0))(source.data, jax.random.split(jax.random.key(0), 6000))
    ids = np.asarray(batch.support.x[..., 0]).astype(int)
    per_class = np.bincount(ids.ravel() // 100, minlength=CLASSES) / 6000
    np.testing.assert_allclose(per_class, 3 / CLASSES, atol=0.03)
    first_class = ids[ids // 100 == 4] % 100
    np.testing.assert_allclose(np.bincount(first_class) / len(first_class), 1 / 5, atol=0.04)
    labels_of_class_zero = np.argwhere(ids // 100 == 0)[:, 1]
    np.testing.assert_allclose(np.bincount(labels_of_class_zero) / len(labels_of_class_zero), 1 / 3, atol=0.04)


def arrows(classes: int = 4, per_class: int = 4) -> Classes:
    """Images whose turn can be told: a class's number in one corner."""
    images = np.zeros((classes, per_class, 6, 6, 1), np.uint8)
    images[:, :, 0, 0, 0] = (np.arange(classes) + 1)[:, None] * 50
    counts = np.full(classes, per_class, np.int32)
    return Classes(images, counts, tuple(map(str, range(classes))), {"name": "arrows"})


def turns_and_classes(x: jax.Array) -> list[tuple[int, int]]:
    corners = np.stack([x[:, 0, 0, 0], x[:, 5, 0, 0], x[:, 5, 5, 0], x[:, 0, 5, 0]], -1)
    return [(int(np.argmax(row)), round(float(row.max()) * 255 / 50) - 1) for row in corners]


@given(seed=st.integers(0, 2**31 - 1))
def test_rotation_policies(seed: int) -> None:
    found = {}
    for policy in ("none", "classes", "per_class", "per_episode"):
        source = tasks.episodes(arrows(), ways=4, shots=2, queries=1, rotations=policy)
        support, query = source.sample(source.data, jax.random.key(seed))
        seen = turns_and_classes(support.x)
        assert seen[::2] == seen[1::2] == turns_and_classes(query.x), "a class is turned alike within an episode"
        found[policy] = seen[::2]
    assert {turn for turn, _ in found["none"]} == {0}
    assert len(set(found["classes"])) == 4
    assert len({number for _, number in found["per_class"]}) == 4, "no character meets itself"
    assert len({turn for turn, _ in found["per_episode"]}) == 1


def test_turns_are_drawn_evenly() -> None:
    for policy in ("per_class", "per_episode", "classes"):
        source = tasks.episodes(arrows(), ways=4, shots=1, queries=0, rotations=policy)
        keys = jax.random.split(jax.random.key(0), 500)
        x = jax.vmap(source.sample, (None, 0))(source.data, keys).support.x
        turns = [turn for turn, _ in turns_and_classes(x.reshape(-1, 6, 6, 1))]
        np.testing.assert_allclose(np.bincount(turns, minlength=4) / len(turns), 0.25, atol=0.06)


def test_half_of_the_episodes_are_mirrored() -> None:
    images = np.zeros((4, 2, 6, 6, 1), np.uint8)
    images[:, :, 0, 0, 0], images[:, :, 0, 5, 0] = 100, 200  # a dark corner, and a light one to its right
    classes = arrows(per_class=2)._replace(examples=images)
    source = tasks.episodes(classes, ways=4, shots=1, queries=1, rotations="per_episode_mirrored")
    found = jax.vmap(source.sample, (None, 0))(source.data, jax.random.split(jax.random.key(0), 800))
    x = np.concatenate([found.support.x, found.query.x], axis=1)
    assert (x == x[:, :1]).all(), "an episode is turned and mirrored as one"
    inks = np.rint(255 * x[:, 0]).astype(int).reshape(800, 36)
    symmetries, which = np.unique(inks, axis=0, return_inverse=True)
    views = [np.rot90(view, k).ravel() for view in (images[0, 0], images[0, 0, :, ::-1]) for k in range(4)]
    np.testing.assert_array_equal(symmetries, np.unique(views, axis=0))
    assert len(symmetries) == 8
    np.testing.assert_allclose(np.bincount(which.ravel()) / 800, 1 / 8, atol=0.05)


def test_rotations_as_classes_let_one_character_meet_itself() -> None:
    source = tasks.episodes(arrows(2), ways=8, shots=1, queries=1, rotations="classes")
    support, _ = source.sample(source.data, jax.random.key(0))
    assert sorted(turns_and_classes(support.x)) == [(turn, number) for turn in range(4) for number in range(2)]


def test_images_are_scaled_and_other_types_are_left() -> None:
    source = tasks.episodes(arrows(), ways=2, shots=1, queries=1)
    support, _ = source.sample(source.data, jax.random.key(0))
    assert support.x.dtype == jnp.float32
    assert support.y.dtype == jnp.int32
    assert 0 < float(support.x.max()) <= 200 / 255


def test_the_data_are_an_argument_and_not_a_constant_of_the_program() -> None:
    classes = tasks.glyphs("train", classes=20)
    source = tasks.episodes(classes, ways=5, shots=1, queries=1)
    program = jax.jit(source.sample).lower(source.data, jax.random.key(0)).as_text()
    assert len(program) < classes.examples.size / 4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ways": 10}, "ways=10, but there are 9 classes"),
        ({"ways": 1}, "must be at least 2, 1 and 0"),
        ({"shots": 4, "queries": 2}, "shots=4 and queries=2 want 6 examples of every class, but class c4 has 5"),
        ({"shots": 0}, "must be at least 2, 1 and 0"),
        ({"rotations": "per_class"}, "wants square images"),
        ({"rotations": "sometimes"}, "rotations must be one of"),
    ],
)
def test_episodes_that_cannot_be_are_refused(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.episodes(NUMBERED, **{"ways": 5, "shots": 1, "queries": 1, **kwargs})


def test_bytes_are_scaled_where_they_are_images_and_only_there() -> None:
    labels = [0, 0, 1, 1]
    drawn = []
    for shape in ((4, 3), (4, 2, 2, 1)):
        source = tasks.episodes(tasks.from_arrays(np.full(shape, 51, np.uint8), labels), ways=2, shots=1, queries=1)
        drawn.append(source.sample(source.data, jax.random.key(0)).query.x)
    assert drawn[0].dtype == np.uint8
    assert (np.asarray(drawn[0]) == 51).all()
    np.testing.assert_allclose(drawn[1], 0.2, rtol=1e-6)


def test_images_of_zeros_and_ones_are_not_scaled_away() -> None:
    ones = np.eye(8, dtype=np.uint8)[None, :, :, None].repeat(4, 0)
    with pytest.raises(ValueError, match="x must hold uint8 images of 0 to 255, but its largest value is 1"):
        tasks.from_arrays(ones, [0, 0, 1, 1])
