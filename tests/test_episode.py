"""Episodes and what is wrong with them."""

import jax
import jax.numpy as jnp
import pytest

from jaxmeta import Batch, Episode, check_episode, losses


def batch(n: int = 4, shape: tuple[int, ...] = (3,), labels=None) -> Batch:
    return Batch(jnp.zeros((n, *shape)), jnp.arange(n) % 2 if labels is None else jnp.asarray(labels))


def test_a_good_episode_passes_inside_and_outside_jit() -> None:
    episode = Episode(batch(4), batch(6))
    check_episode(episode, ways=2)
    jax.jit(lambda e: check_episode(e, ways=2))(episode)
    check_episode(Episode(Batch(jnp.zeros((0, 1)), jnp.zeros((0, 1))), Batch(jnp.zeros((5, 1)), jnp.zeros((5, 1)))))


@pytest.mark.parametrize(
    ("episode", "error", "message"),
    [
        ((batch(4, labels=[0, 1, 0]), batch()), ValueError, r"support.x holds 4 examples, but support.y holds 3"),
        ((batch(), batch(shape=(2,))), ValueError, r"support input has shape \(3,\) and a query input \(2,\)"),
        ((batch(), batch(labels=[0.5] * 4)), TypeError, "support.y and query.y must both be integer"),
        ((batch(), batch(labels=[0, 1, 2, 1])), ValueError, r"ways=2, so query.y must lie in \[0, 2\), but .* 0..2"),
        ((batch(labels=[1, 1, 1, 1]), batch()), ValueError, "ways=2, but the support set has 1 distinct labels"),
        ((Batch(jnp.ones((0, 3)), jnp.zeros(0, int)), batch()), ValueError, "ways=2, but the support set has 0 exam"),
        ((batch(), batch(labels=[0, -1, 1, 1])), ValueError, "query.y must lie in .* -1..1"),
        ((batch(labels=[[0], [1], [0], [1]]), batch()), ValueError, r"support.y .* must be \[n\], but is \(4, 1\)"),
        (((jnp.zeros(3), jnp.zeros(3)), batch()), TypeError, "support must be a jaxmeta.Batch.* but is a tuple"),
        ((batch(), Batch(jnp.zeros((4, 3)), 1)), TypeError, "query.y must be an array with an example axis"),
        (
            (Batch(jnp.zeros((2, 1)), jnp.zeros((2, 1))), Batch(jnp.zeros((2, 1)), jnp.zeros((2, 2)))),
            ValueError,
            "hold targets of one shape",
        ),
    ],
)
def test_what_is_wrong_is_named(episode, error, message: str) -> None:
    with pytest.raises(error, match=message):
        check_episode(Episode(*episode), ways=2)


@pytest.mark.parametrize(("given", "kind"), [((batch(), batch()), "tuple"), (batch(), "Batch")])
def test_a_task_is_an_episode(given, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"episode must be a jaxmeta.Episode\(support, query\), but is a {kind}"):
        check_episode(given)


def test_losses_name_targets_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match=r"targets must be integer labels \[n\], but have dtype float32"):
        losses.cross_entropy(jnp.zeros((4, 2)), jnp.zeros(4))
    with pytest.raises(TypeError, match="targets must be real targets"):
        losses.mean_squared_error(jnp.zeros((4, 1)), jnp.zeros((4, 1), jnp.int32))
    # The classic silent broadcast: [n, 1] predictions against [n] targets.
    with pytest.raises(ValueError, match=r"predictions of shape \(4, 1\) want targets of shape \(4, 1\)"):
        losses.mean_squared_error(jnp.zeros((4, 1)), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"targets hold no examples to take a mean over: their shape is \(0,\)"):
        losses.cross_entropy(jnp.zeros((0, 2)), jnp.zeros(0, jnp.int32))
    with pytest.raises(ValueError, match=r"want targets of shape \(4,\), but they have \(5,\)"):
        losses.accuracy(jnp.zeros((4, 2)), jnp.zeros(5, jnp.int32))


def test_losses_have_their_values() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    assert float(losses.cross_entropy(logits, jnp.array([0, 2]))) == pytest.approx((0.693147 + 2.302585) / 2, rel=1e-5)
    assert float(losses.accuracy(logits, jnp.array([0, 2]))) == 0.5
    assert float(losses.mean_squared_error(jnp.array([[1.0], [3.0]]), jnp.array([[0.0], [1.0]]))) == 2.5
    assert losses.score(logits, jnp.array([0, 1]))[0] == "accuracy"
    assert losses.score(logits, logits)[0] == "mse"
