"""Random changes of training inputs: the maps against a loop, their bounds, and who sees them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import Batch, Episode, augmented, averaged, evaluate, maml, mann, memory, nn, prototypical, tasks


def mapped(image: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Where each point of the result comes from, and what is there, in between by two linear interpolations."""
    turn, shear_x, shear_y, scale_x, scale_y, shift_x, shift_y = parts
    height, width, _ = image.shape
    found = np.zeros_like(image)
    # A point (x, y) about the centre, y down: scaled, sheared, then turned counter-clockwise.
    scaling = np.array([[1 + scale_x, 0], [0, 1 + scale_y]])
    shearing = np.array([[1, shear_x], [shear_y, 1]])
    turning = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for row in range(height):
        for column in range(width):
            moved = [column - (width - 1) / 2 - shift_x * width, row - (height - 1) / 2 - shift_y * height]
            x, y = np.linalg.solve(turning @ shearing @ scaling, moved) + np.array([width - 1, height - 1]) / 2
            for r in (int(np.floor(y)), int(np.floor(y)) + 1):
                for c in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        found[row, column] += (1 - abs(y - r)) * (1 - abs(x - c)) * image[r, c]
    return found


@pytest.mark.usefixtures("float64")
def test_an_affine_map_is_the_loop() -> None:
    rng, apply = np.random.default_rng(0), jax.jit(tasks.affine)
    image = rng.uniform(size=(9, 7, 2))
    for parts in (np.array([0.3, 0.2, -0.25, 0.15, -0.1, 0.11, -0.07]), *rng.uniform(-0.3, 0.3, size=(3, 7))):
        np.testing.assert_allclose(apply(image, parts), mapped(image, parts), atol=1e-12)
    np.testing.assert_allclose(apply(image, np.zeros(7)), image, atol=1e-12)
    square = image[:7]
    np.testing.assert_allclose(apply(square, np.array([np.pi / 2, *[0.0] * 6])), np.rot90(square), atol=1e-12)
    moved = apply(square, np.array([0, 0, 0, 0, 0, 2 / 7, 0]))
    np.testing.assert_allclose(moved, np.pad(square[:, :-2], ((0, 0), (2, 0), (0, 0))), atol=1e-12)


def test_distortions_are_within_the_paper_s_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn within 10 degrees, shears within 0.3, scales in [0.8, 1.2], shifts within 2 pixels of 105, each or not."""
    monkeypatch.setattr("jaxmeta.tasks._augment.affine", lambda image, parts: parts)
    parts = np.asarray(tasks.affine_distortions(jnp.zeros((4000, 2, 2, 1)), jax.random.key(0)))
    bounds = np.array([np.deg2rad(10), 0.3, 0.3, 0.2, 0.2, 2 / 105, 2 / 105])
    taken = parts != 0
    np.testing.assert_allclose(taken.mean(0), 0.5, atol=0.03)
    for extreme in (parts.max(0), -parts.min(0)):
        assert (extreme <= bounds * (1 + 1e-6)).all()
        assert (extreme > 0.98 * bounds).all()
    np.testing.assert_allclose(np.abs(parts).sum(0) / taken.sum(0), bounds / 2, rtol=0.05)  # uniform
    assert np.abs(np.corrcoef(taken.T) - np.eye(7)).max() < 0.06
    assert np.abs(np.corrcoef(parts.T) - np.eye(7)).max() < 0.06


def test_turns_and_shifts_are_each_image_s_own() -> None:
    images = jnp.zeros((2, 9, 9, 1)).at[:, 4, 4].set(1.0)
    moved = tasks.turns_and_shifts(0.0, 0.3)(images, jax.random.key(0))
    assert not np.allclose(moved, images, atol=0.1)
    assert not np.allclose(moved[0], moved[1], atol=0.1), "each by its own"
    line = jnp.zeros((2, 9, 9, 1)).at[:, 4].set(1)
    turned = tasks.turns_and_shifts(0.5, 0.0)(line, jax.random.key(0))
    assert np.abs(turned - line).max((1, 2, 3)).min() > 0.2
    assert np.abs(turned[0] - turned[1]).max() > 0.2
    for turn in (-1, jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match=rf"turn={turn} and shift=0.1 must be finite and not negative"):
            tasks.turns_and_shifts(turn)


def test_training_alone_is_augmented_and_support_and_query_by_maps_of_their_own() -> None:
    """Moved alike, the two would keep their differences, and the loss."""
    learner = prototypical(nn.MLP((), 4), ways=3)

    def shift(x: jax.Array, key: jax.Array) -> jax.Array:
        return x + jax.random.normal(key, x.shape[1:])

    x = jax.random.normal(jax.random.key(0), (2, 6, 5))
    episode = Episode(*(Batch(each, jnp.arange(6) % 3) for each in x))
    params, key = learner.init(jax.random.key(1), episode), jax.random.key(2)
    changed = augmented(learner, shift)
    plain, one, again = (float(each.meta_grad(params, episode, key)[1]["loss"]) for each in (learner, changed, changed))
    other = float(changed.meta_grad(params, episode, jax.random.key(3))[1]["loss"])
    assert abs(plain - one) > 0.01
    assert one == again != other
    answers = (each.predict(params, episode.support, episode.query.x, key) for each in (learner, changed))
    np.testing.assert_array_equal(*answers)


def test_a_memory_augmented_network_sees_what_was_changed() -> None:
    """Public code computed a shift and threw it away."""
    x = jax.random.normal(jax.random.key(1), (2, 6, 5))
    episode = Episode(*(Batch(each, jnp.arange(6) % 3) for each in x))
    learner, key = mann(memory.MANN(features=7, slots=6, width=4, reads=2), ways=3), jax.random.key(0)
    params = learner.init(key, episode)
    plain, blanked = (
        one.meta_grad(params, episode, key)[0]["params"]["input"]["kernel"]
        for one in (learner, augmented(learner, lambda x, key: 0 * x))
    )
    assert np.abs(plain).max() > 0
    assert not np.asarray(blanked).any(), "blank inputs have no gradient"


def test_augmentation_keeps_the_shape_of_inputs() -> None:
    learner = augmented(prototypical(nn.MLP((), 4)), lambda x, key: x[1:])
    episode = Episode(*2 * (Batch(jnp.ones((3, 2)), jnp.arange(3)),))
    params = learner.init(jax.random.key(0), episode)
    with pytest.raises(ValueError, match=r"augment must return inputs of shape \(3, 2\), as .* but gave \(2, 2\)"):
        learner.meta_grad(params, episode, jax.random.key(0))
    with pytest.raises(TypeError, match=r"episode must be a jaxmeta.Episode\(support, query\), but is a tuple"):
        learner.meta_grad(params, tuple(episode), jax.random.key(0))
    for augment in (tasks.turns_and_shifts(), tasks.affine_distortions):
        with pytest.raises(ValueError, match=r"images must have shape .* but have \(3, 2\)"):
            augment(episode.support.x, jax.random.key(0))


def test_averaged_predictions_are_the_mean_over_views_of_the_whole_episode() -> None:
    x, key = jax.random.normal(jax.random.key(0), (2, 6, 3, 3, 1)), jax.random.key(1)
    support, query = episode = Episode(*(Batch(each, jnp.arange(6) % 3) for each in x))
    for learner in (prototypical(nn.MLP((), 4), ways=3), maml(nn.MLP((), 3), inner_optimizer=optax.sgd(0.1), steps=2)):
        mean, params = averaged(learner, tasks.quarter_turns), learner.init(key, episode)
        for predict in ("predict", "predict_path"):
            one, over = getattr(learner, predict), getattr(mean, predict)
            assert (one is None) == (over is None)
            if one is not None:
                turned = [[jnp.rot90(x, k, axes=(1, 2)) for x in (support.x, query.x)] for k in range(4)]
                each = [one(params, support._replace(x=s), q, key) for s, q in turned]
                np.testing.assert_allclose(over(params, support, query.x, key), np.mean(each, axis=0), atol=1e-6)
        assert mean.compare is None
        assert mean.meta_grad is learner.meta_grad


def test_averaged_learners_are_judged_each_query_alone_too() -> None:
    source = tasks.episodes(tasks.glyphs("train", classes=8, image_size=8), ways=3, shots=1, queries=2)
    learner = prototypical(nn.MLP((), 4), ways=3)
    params = learner.init(jax.random.key(0), source.sample(source.data, jax.random.key(0)))
    modes: tuple[Any, ...] = ("transductive", "inductive")
    mean = averaged(learner, tasks.quarter_turns)
    found = [evaluate(mean, params, source, episodes=4, query_mode=mode).values for mode in modes]
    np.testing.assert_array_equal(*found)


def test_views_are_of_all_inputs() -> None:
    x, learner = jnp.ones((3, 2)), prototypical(nn.MLP((), 4))
    support, _ = episode = Episode(*2 * (Batch(x, jnp.arange(3)),))
    params = learner.init(jax.random.key(0), episode)
    for views, message in (
        (lambda x: x, r"views must return one or more views of inputs \(3, 2\), but gave \(3, 2\)"),
        (lambda x: x[None][:0], r"one or more views of inputs \(3, 2\), but gave \(0, 3, 2\)"),
        (lambda x: jnp.stack(len(x) * [x]), "as many views of all inputs, but gave 3 of 3 inputs and 2 of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            averaged(learner, views).predict(params, support, x[:2], jax.random.key(0))
    with pytest.raises(TypeError, match=r"support must be a jaxmeta.Batch\(x, y\), but is a tuple"):
        averaged(learner, lambda x: x[None]).predict(params, tuple(support), x, jax.random.key(0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="learner must be a MetaLearner, with meta_grad and predict, but is of type"):
        averaged(None, lambda x: x[None])  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"images must have shape \[n, size, size, channels\], but have \(1, 2, 3, 1\)"
    ):
        tasks.quarter_turns(jnp.ones((1, 2, 3, 1)))
