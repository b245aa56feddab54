"""Pictures of memories and learned optimisers, and what they refuse."""

import jax
import jax.numpy as jnp
import pytest

from jaxmeta import Batch, analysis
from jaxmeta.learner import Comparison
from jaxmeta.memory import MANN, Reading, read_episode


def reading(model: MANN) -> Reading:
    batch = Batch(jnp.eye(6), jnp.array([0, 1, 2, 0, 1, 2]))
    params = model.init(jax.random.key(0), batch.x, jnp.zeros((6, 3)))
    return read_episode(model, params, batch, jax.random.key(1), ways=3)


def test_a_reading_is_drawn_step_by_step() -> None:
    figure = analysis.plot_reading(reading(MANN(features=4, slots=5, width=3, reads=2)))
    assert [image.get_array().shape for axis in figure.axes for image in axis.images] == [(5, 6)] * 3
    with pytest.raises(ValueError, match="reading has no trace"):
        analysis.plot_reading(reading(MANN(features=4, addressing="none")))


def test_presentations_are_in_order() -> None:
    history = [{"step": s, "loss": 1.0, "instance_10": 0.9, "instance_2": 0.5} for s in (1, 2)]
    figure = analysis.plot_instances(history)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["2", "10"]
    for bad in ([], [{"step": 1, "loss": 0.0}]):
        with pytest.raises(ValueError, match="history has no metrics named instance_1"):
            analysis.plot_instances(bad)


def test_attention_must_fit_its_labels() -> None:
    with pytest.raises(ValueError, match=r"attention has shape \(2, 3\), but there are 2 queries and 4"):
        analysis.plot_attention(jnp.zeros((2, 3)), jnp.arange(4), jnp.arange(2))


def test_an_embedding_shows_class_references_where_there_are_any() -> None:
    """Feature maps too; what stands for a class is not called a prototype, for it may be a sum."""
    maps, y = jnp.arange(24.0).reshape(6, 2, 2, 1) ** 2, jnp.arange(6) % 3
    found = Comparison(maps, maps[:3], maps[:3], None, jnp.zeros((3, 3)))
    for given, names in (
        (found, ["query", "support", "class reference"]),
        (found._replace(references=maps, labels=y), ["query", "support"]),
    ):
        (axis,) = analysis.plot_embedding(given, y, y[:3]).axes
        assert [text.get_text() for text in axis.get_legend().get_texts()] == names
        shown = {tuple(colour) for points in axis.collections for colour in points.to_rgba(points.get_array())}
        assert len(shown) == 3, "a class has one colour in all sets"
    with pytest.raises(ValueError, match="found holds 6 support and 3 query embeddings, but there are 5 and 3 labels"):
        analysis.plot_embedding(found, y[:5], y[:3])
