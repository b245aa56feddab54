"""Evaluation over frozen episodes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import Batch, Episode, MetaLearner, evaluate, losses, maml, nn, tasks

GLYPHS = tasks.episodes(tasks.glyphs("test", classes=60, image_size=16), ways=5, shots=1, queries=3)
LEARNER = maml(nn.MLP((16,), 5, norm=True), inner_optimizer=optax.sgd(1.0), steps=1, eval_steps=3)
PARAMS = LEARNER.init(jax.random.key(0), GLYPHS.sample(GLYPHS.data, jax.random.key(0)))


def nearest(params, support: Batch, query_x, key):
    """The support label of the nearest support image, as logits."""
    distance = jnp.sum((query_x[:, None] - support.x[None]) ** 2, axis=(2, 3, 4))
    return jax.nn.one_hot(support.y[jnp.argmin(distance, 1)], 5)


NEAREST = MetaLearner(lambda key, episode: (), lambda *_: ((), {}), nearest)

MODES = ("transductive", "inductive")


def test_mean_and_interval_are_those_of_the_episodes() -> None:
    found = evaluate(NEAREST, (), GLYPHS, episodes=70, seed=3)
    scores = []
    for key in jax.random.split(jax.random.key(3), 70):
        support, query = GLYPHS.sample(GLYPHS.data, key)
        scores.append(float(losses.accuracy(nearest((), support, query.x, key), query.y)))
    assert found.metric == "accuracy"
    np.testing.assert_allclose(found.values, scores, rtol=1e-6)
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.interval == pytest.approx(1.96 * np.std(scores, ddof=1) / np.sqrt(70))
    assert found.by_step is None


def test_the_list_of_episodes_is_frozen_by_its_seed_and_named_by_its_hash() -> None:
    first, again = (evaluate(NEAREST, (), GLYPHS, episodes=20, seed=1) for _ in range(2))
    other = evaluate(LEARNER, PARAMS, GLYPHS, episodes=20, seed=1)
    assert first.episode_hash == again.episode_hash == other.episode_hash
    assert len(first.episode_hash) == 64
    assert evaluate(NEAREST, (), GLYPHS, episodes=20, seed=2).episode_hash != first.episode_hash
    assert evaluate(NEAREST, (), GLYPHS, episodes=21, seed=1).episode_hash != first.episode_hash


def test_values_after_each_step_end_in_the_result() -> None:
    found = evaluate(LEARNER, PARAMS, GLYPHS, episodes=20)
    assert found.by_step is not None
    assert len(found.by_step) == 4
    assert found.by_step[-1] == (found.mean, found.interval)
    assert found.by_step[0][0] < 0.4 < found.by_step[-1][0]


def test_the_summary_is_json_and_says_how() -> None:
    found = evaluate(LEARNER, PARAMS, GLYPHS, episodes=5, seed=9, query_mode="inductive").summary()
    assert set(json.loads(json.dumps(found))) == set(found)
    assert (found["query_mode"], found["seed"], found["episodes"]) == ("inductive", 9, 5)
    assert found["source"]["name"] == "glyphs"
    assert "values" not in found


@pytest.mark.parametrize("mode", MODES)
def test_the_last_step_alone_is_the_last_of_all(mode: str) -> None:
    every = evaluate(LEARNER, PARAMS, GLYPHS, episodes=20, query_mode=mode)
    once = LEARNER._replace(predict_path=lambda *_: pytest.fail("every step is predicted"))
    last = evaluate(once, PARAMS, GLYPHS, episodes=20, query_mode=mode, by_step=False)
    np.testing.assert_array_equal(last.values, every.values)
    assert last.summary() == {**every.summary(), "by_step": None}


def test_modes_differ_where_the_batch_matters_and_only_there() -> None:
    scores = {mode: evaluate(LEARNER, PARAMS, GLYPHS, episodes=40, query_mode=mode).values for mode in MODES}
    assert not np.array_equal(scores["transductive"], scores["inductive"]), "batch normalisation mixes the queries"
    scores = {mode: evaluate(NEAREST, (), GLYPHS, episodes=40, query_mode=mode).values for mode in MODES}
    np.testing.assert_array_equal(scores["transductive"], scores["inductive"])


def test_an_inductive_query_sees_the_support_set_and_no_other_query() -> None:
    episodes = [GLYPHS.sample(GLYPHS.data, key) for key in jax.random.split(jax.random.key(0), 6)]
    predict = jax.jit(lambda s, x: LEARNER.predict(PARAMS, s, jnp.concatenate([s.x, x[None]]), jax.random.key(0))[-1])
    scores = []
    for support, query in episodes:
        logits = jnp.stack([predict(support, x) for x in query.x])
        scores.append(float(losses.accuracy(logits, query.y)))
    found = evaluate(LEARNER, PARAMS, GLYPHS, episodes=6, query_mode="inductive")
    np.testing.assert_allclose(found.values, scores, atol=1e-6)


def test_a_learner_cannot_rebuild_the_episode_from_its_key() -> None:
    """The key that samples an episode is not the one that is handed to the learner."""
    source = tasks.sinusoid("reptile", shots=5)
    cheat = MetaLearner(
        lambda key, episode: (), lambda *_: ((), {}), lambda p, s, x, key: source.sample((), key).query.y
    )
    assert evaluate(cheat, (), source, episodes=100).mean > 4.0


def test_chunks_do_not_change_the_result() -> None:
    whole, ones = (evaluate(LEARNER, PARAMS, GLYPHS, episodes=10, chunk=chunk).values for chunk in (5, 1))
    np.testing.assert_allclose(whole, ones, atol=1e-6)


def test_regression_is_judged_by_squared_error() -> None:
    zero = MetaLearner(lambda key, episode: (), lambda *_: ((), {}), lambda p, s, x, k: jnp.zeros_like(x))
    found = evaluate(zero, (), tasks.sinusoid(shots=50), episodes=600)
    assert found.metric == "mse"
    assert abs(found.mean - 4.2517) < 2 * found.interval


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"episodes": 1}, "episodes must be 2 or more for an interval, but is 1"),
        ({"query_mode": "both"}, "query_mode must be one of"),
        ({"source": tasks.episodes(tasks.glyphs("test", classes=60), ways=5, shots=1, queries=0)}, "have no queries"),
    ],
)
def test_bad_arguments_are_named(kwargs, message: str) -> None:
    arguments = {"source": GLYPHS, **kwargs}
    with pytest.raises(ValueError, match=message):
        evaluate(NEAREST, (), arguments.pop("source"), **arguments)


def test_episodes_are_a_whole_number() -> None:
    with pytest.raises(TypeError, match=r"episodes must be an int, but is 4\.0"):
        evaluate(NEAREST, (), GLYPHS, episodes=4.0)  # pyright: ignore[reportArgumentType]


def test_data_may_be_bound_to_any_device() -> None:
    bound = GLYPHS._replace(data=jax.device_put(GLYPHS.data, jax.devices()[1]))
    np.testing.assert_array_equal(
        evaluate(NEAREST, (), bound, episodes=4).values, evaluate(NEAREST, (), GLYPHS, episodes=4).values
    )


def test_a_source_of_pairs_is_refused() -> None:
    pairs = GLYPHS._replace(sample=lambda data, key: tuple(GLYPHS.sample(data, key)))
    with pytest.raises(TypeError, match=r"episode must be a jaxmeta.Episode\(support, query\), but is a tuple"):
        evaluate(LEARNER, PARAMS, pairs, episodes=2)


def test_a_function_is_no_source() -> None:
    with pytest.raises(TypeError, match=r"source must be a tasks.Source\(sample, data, info\), with sample, but is"):
        evaluate(LEARNER, PARAMS, GLYPHS.sample)  # pyright: ignore[reportArgumentType]


def test_divergence_is_told_and_not_averaged() -> None:
    wild = maml(nn.MLP((16,), 1), inner_optimizer=optax.sgd(1e6), steps=9, loss=losses.mean_squared_error)
    source = tasks.sinusoid(shots=5)
    params = wild.init(jax.random.key(0), source.sample((), jax.random.key(0)))
    with pytest.raises(FloatingPointError, match=r"mse is (nan|inf) on episode 0 after adaptation step \d"):
        evaluate(wild, params, source, episodes=5)
    with pytest.raises(FloatingPointError, match=r"mse is (nan|inf) on episode 0: .* wants a smaller inner learning"):
        evaluate(wild, params, source, episodes=5, by_step=False)


def test_means_leave_out_the_episodes_that_may_diverge() -> None:
    source = tasks.sinusoid(shots=5)
    keys = jax.random.split(jax.random.key(0), 100)
    largest = np.sort(jax.vmap(lambda key: source.sample((), key).support.x.max())(keys))

    def learner(largest_right: float) -> MetaLearner:
        """Predicts zero, and infinity after a step where a support input is larger than that."""

        def path(params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
            last = jnp.where(support.x.max() > largest_right, jnp.inf, 0.0)
            return jnp.stack([0.0, last])[:, None, None] * jnp.ones_like(query_x)

        return MetaLearner(lambda key, episode: (), lambda *_: ((), {}), lambda *a: path(*a)[-1], path)

    whole = evaluate(learner(np.inf), (), source, episodes=100)
    assert whole.diverged == 0
    with pytest.warns(
        UserWarning, match=r"mse is \S+ on episode \d+ after adaptation step 1: .*, which the means leave"
    ):
        found = evaluate(learner(largest[-2]), (), source, episodes=100, may_diverge=0.01)
    left = whole.values[np.isfinite(found.values)]
    assert (found.diverged, len(left)) == (1, 99)
    assert found.mean == pytest.approx(left.mean())
    assert found.by_step == [pytest.approx((left.mean(), 1.96 * left.std(ddof=1) / 99**0.5))] * 2
    with pytest.raises(FloatingPointError, match="on 2 of 100 episodes; an inner loop that diverges"):
        evaluate(learner(largest[-3]), (), source, episodes=100, may_diverge=0.01)
    with pytest.raises(FloatingPointError, match="on 1 of 100 episodes; an inner loop that diverges"):
        evaluate(learner(largest[-2]), (), source, episodes=100)
    for allowed, largest_right in ((0.29, largest[-30]), (0.57, largest[-58])):  # 0.29 * 100 < 29 in floats
        with pytest.warns(UserWarning, match="which the means leave out"):
            spared = evaluate(learner(largest_right), (), source, episodes=100, may_diverge=allowed)
        assert spared.diverged == round(100 * allowed)

    def broken(params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.full((2, *query_x.shape), jnp.where(support.x.max() > largest[-2], jnp.nan, 0.0))

    with pytest.raises(FloatingPointError, match=r"mse is nan on episode \d+ after adaptation step 0"):
        evaluate(learner(np.inf)._replace(predict_path=broken), (), source, episodes=100, may_diverge=0.5)
    with pytest.raises(ValueError, match=r"may_diverge must be a share in \[0, 1\), but is 1"):
        evaluate(learner(largest[-2]), (), source, episodes=100, may_diverge=1)


def test_predictions_that_are_none_are_told_and_not_taken_for_class_0() -> None:
    wild = maml(nn.MLP((16,), 5), inner_optimizer=optax.sgd(1e30), steps=3)
    params = wild.init(jax.random.key(0), GLYPHS.sample(GLYPHS.data, jax.random.key(0)))
    with pytest.raises(FloatingPointError, match=r"accuracy is nan on episode 0 after adaptation step [123]: what is"):
        evaluate(wild, params, GLYPHS, episodes=5)


@pytest.mark.parametrize(
    ("scores", "answers"),
    [
        ((0.0, -jnp.inf, -jnp.inf), True),
        ((jnp.inf, 0.0, -jnp.inf), True),
        ((jnp.inf, jnp.inf, 0.0), False),
        ((-jnp.inf, -jnp.inf, -jnp.inf), False),
        ((0.0, jnp.nan, 1.0), False),
    ],
)
def test_a_class_may_be_impossible_or_certain_but_there_must_be_an_answer(scores, answers: bool) -> None:
    def predict(params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.tile(jnp.array([*scores, -jnp.inf, -jnp.inf]), (len(query_x), 1))

    learner = MetaLearner(lambda key, episode: (), lambda *_: ((), {}), predict)
    if answers:
        assert evaluate(learner, (), GLYPHS, episodes=5).mean == pytest.approx(0.2)
        return
    with pytest.raises(FloatingPointError, match="accuracy is nan on episode 0: what is predicted there is no answer"):
        evaluate(learner, (), GLYPHS, episodes=5)


def test_labels_that_the_learner_does_not_choose_among_are_refused() -> None:
    narrow = MetaLearner(lambda key, episode: (), lambda *_: ((), {}), lambda p, s, x, k: jnp.zeros((len(x), 3)))
    with pytest.raises(ValueError, match="chooses among 3 classes, but the episodes have labels from 0 to 4"):
        evaluate(narrow, (), GLYPHS, episodes=5)


@pytest.mark.parametrize("part", ["support", "query"])
def test_labels_below_zero_are_refused(part: str) -> None:
    """Indexing would take them for the last classes."""

    def sample(data, key) -> Episode:
        episode = GLYPHS.sample(data, key)
        return episode._replace(**{part: getattr(episode, part)._replace(y=getattr(episode, part).y - 1)})

    with pytest.raises(ValueError, match="chooses among 5 classes, but the episodes have labels from -1 to 4"):
        evaluate(NEAREST, (), GLYPHS._replace(sample=sample), episodes=5)


def test_an_episode_without_a_support_set_of_its_shape_is_named() -> None:
    broken = GLYPHS._replace(
        sample=lambda data, key: Episode(GLYPHS.sample(data, key).support, Batch(jnp.zeros((2, 3)), jnp.zeros(3, int)))
    )
    with pytest.raises(ValueError, match=r"query\.x holds 2 examples, but query.y holds 3 targets"):
        LEARNER.meta_grad(PARAMS, broken.sample(GLYPHS.data, jax.random.key(0)), jax.random.key(0))
