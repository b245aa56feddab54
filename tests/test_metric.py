"""The metric family against loops in NumPy, in double precision, and what its papers are often misread on."""

import functools
import itertools
import sys
from pathlib import Path

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import inner_product, random_direction, stencil_derivative, to_float64
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jaxmeta as jm
from jaxmeta import Batch, Episode, metric, nn, tasks
from jaxmeta.metric import _kernels
from jaxmeta.metric._siamese import _weighted_l1, verification_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "peers"))
from compare_prototypical import relative_difference

KEY = jax.random.key(0)
LABELS = np.array([2, 0, 1, 0, 2, 1, 1])  # three classes, in no order, of unequal sizes
ENCODER = nn.MLP((6,), 4, activation=jnp.tanh)


def vectors(seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    support = Batch(jnp.asarray(rng.normal(size=(7, 5))), jnp.asarray(LABELS))
    return Episode(support, Batch(jnp.asarray(rng.normal(size=(9, 5))), jnp.asarray(np.arange(9) % 3)))


def images(size: int = 10, labels: np.ndarray = np.repeat(np.arange(3), 2)) -> Episode:  # noqa: B008
    rng = np.random.default_rng(1)
    support = Batch(jnp.asarray(rng.uniform(size=(len(labels), size, size, 1))), jnp.asarray(labels))
    return Episode(support, Batch(jnp.asarray(rng.uniform(size=(4, size, size, 1))), jnp.asarray([0, 1, 2, 0])))


def started(learner: jm.MetaLearner, episode: Episode):
    return to_float64(jax.jit(learner.init)(KEY, episode))


def mlp(params, x: np.ndarray) -> np.ndarray:
    """`ENCODER`, by hand."""
    weights = jax.tree.map(np.asarray, params["params"])
    hidden = np.tanh(x @ weights["dense_0"]["kernel"] + weights["dense_0"]["bias"])
    return hidden @ weights["head"]["kernel"] + weights["head"]["bias"]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def kl(z: np.ndarray, c: np.ndarray) -> float:
    """The Bregman distance of sum_j exp(z_j)."""
    return float(np.sum(np.exp(z) - np.exp(c) - (z - c) * np.exp(c)))


DISTANCES = {
    "squared_euclidean": ("squared_euclidean", lambda z, c: np.sum((z - c) ** 2)),
    "cosine": ("cosine", lambda z, c: 1 - z @ c / np.linalg.norm(z) / np.linalg.norm(c)),
    "bregman": (metric.bregman(lambda z: jnp.exp(z).sum()), kl),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", DISTANCES)
def test_prototypical_is_the_loop(name: str) -> None:
    """Means of embeddings, not of distances; the distance neither rooted nor divided by the dimension."""
    distance, by_hand = DISTANCES[name]
    episode, learner = vectors(), jm.prototypical(ENCODER, distance=distance, ways=3)
    params = started(learner, episode)
    embedded, queries = (mlp(params, np.asarray(batch.x)) for batch in episode)
    prototypes = [embedded[c == LABELS].mean(0) for c in range(3)]
    probs = softmax(np.array([[-by_hand(q, c) for c in prototypes] for q in queries]))
    found = jax.jit(learner.predict)(params, episode.support, episode.query.x, KEY)
    np.testing.assert_allclose(found, np.log(probs), rtol=1e-10, atol=1e-10)
    loss = -np.mean(np.log(probs[np.arange(9), np.arange(9) % 3]))
    np.testing.assert_allclose(jax.jit(learner.meta_grad)(params, episode, KEY)[1]["loss"], loss, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_prototypes_are_a_linear_classifier() -> None:
    episode, learner = vectors(), jm.prototypical(ENCODER, ways=3)
    params = started(learner, episode)
    assert learner.compare is not None
    found = jax.jit(learner.compare)(params, episode.support, episode.query.x, KEY)
    linear = found.queries @ (2 * found.references.T) - jnp.sum(found.references**2, axis=1)
    np.testing.assert_allclose(found.log_kernel, jax.nn.log_softmax(linear), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_matching_is_the_loop(temperature: float) -> None:
    episode, learner = vectors(), jm.matching(ENCODER, temperature=temperature, ways=3)
    params = started(learner, episode)
    embedded, queries = (mlp(params, np.asarray(batch.x)) for batch in episode)
    probs = np.zeros((9, 3))
    for q, f in enumerate(queries):
        cosines = np.array([f @ g / np.linalg.norm(f) / np.linalg.norm(g) for g in embedded])
        for i, a in enumerate(softmax(cosines / temperature)):
            probs[q, LABELS[i]] += a
    found = jax.jit(learner.predict)(params, episode.support, episode.query.x, KEY)
    np.testing.assert_allclose(np.exp(found), probs, rtol=1e-10)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-12)
    loss = -np.mean(np.log(probs[np.arange(9), np.arange(9) % 3]))
    np.testing.assert_allclose(jax.jit(learner.meta_grad)(params, episode, KEY)[1]["loss"], loss, rtol=1e-10)


@pytest.mark.parametrize(("ways", "ceiling", "signed"), [(5, 0.405, 0.649), (20, 0.125, 0.280)])
def test_a_cosine_softmax_has_a_ceiling(ways: int, ceiling: float, signed: float) -> None:
    """At temperature 1: e / (e + N - 1) with features that are not negative, e / (e + (N - 1) / e) with others."""
    learner = jm.matching(Untouched(), ways=ways)
    plain = Batch(jnp.eye(ways), jnp.arange(ways))
    found = jnp.exp(learner.predict({}, plain, plain.x, KEY))
    np.testing.assert_allclose(found.max(), np.e / (np.e + ways - 1), rtol=1e-5)
    np.testing.assert_allclose(found.max(), ceiling, atol=1e-3)
    opposed = Batch(jnp.ones((ways, 1)).at[1:].set(-1.0), jnp.arange(ways))
    found = jnp.exp(learner.predict({}, opposed, opposed.x[:1], KEY))
    np.testing.assert_allclose(found.max(), signed, atol=1e-3)
    sharp = jm.matching(Untouched(), temperature=0.05, ways=ways).predict({}, plain, plain.x, KEY)
    assert jnp.exp(sharp).max() > 0.99


class Untouched(fnn.Module):
    """An embedding that leaves vectors as they are."""

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def lstm(kernel: np.ndarray, bias: np.ndarray, joined: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    f, i, o, u = np.split(joined @ kernel + bias, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
    return sigmoid(o) * np.tanh(c), c


@pytest.mark.usefixtures("float64")
def test_full_context_is_the_loop() -> None:
    episode, learner = vectors(), jm.matching_fce(ENCODER, read_steps=3, temperature=0.3, ways=3)
    params = started(learner, episode)
    w = jax.tree.map(np.asarray, params.context["params"])
    order = np.asarray(jax.random.permutation(KEY, 7))
    plain, queries = (mlp(params.encoder, np.asarray(batch.x)) for batch in episode)
    context = {}
    for direction, sequence in (("forward", order), ("backward", order[::-1])):
        h = c = np.zeros(4)
        for i in sequence:
            joined = np.concatenate([plain[i], h])
            h, c = lstm(w[f"{direction}_kernel"], w[f"{direction}_bias"], joined, c)
            context[direction, i] = h
    g = np.stack([context["forward", i] + context["backward", i] + plain[i] for i in range(7)])
    probs = np.zeros((9, 3))
    for q, f in enumerate(queries):
        h = c = np.zeros(4)
        for _ in range(3):
            read = sum(a * row for a, row in zip(softmax(g @ h), g, strict=True))  # a dot product, not a cosine
            h, c = lstm(w["read_kernel"], w["read_bias"], np.concatenate([f, h, read]), c)
            h = h + f
        cosines = g @ h / np.linalg.norm(h) / np.linalg.norm(g, axis=1)
        for i, a in enumerate(softmax(cosines / 0.3)):
            probs[q, LABELS[i]] += a
    found = jax.jit(learner.predict)(params, episode.support, episode.query.x, KEY)
    np.testing.assert_allclose(np.exp(found), probs, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_without_read_steps_queries_embed_plainly() -> None:
    episode, learner = vectors(), jm.matching_fce(ENCODER, read_steps=0, ways=3)
    params = started(learner, episode)
    assert learner.compare is not None
    found = jax.jit(learner.compare)(params, episode.support, episode.query.x, KEY)
    np.testing.assert_allclose(found.queries, mlp(params.encoder, np.asarray(episode.query.x)), rtol=1e-10)


TINY = (metric.RelationEncoder(features=2), metric.RelationModule(features=2, hidden=3))
MAKE = {
    "prototypical": lambda encoder, ways: jm.prototypical(encoder, ways=ways),
    "cosine": lambda encoder, ways: jm.prototypical(encoder, distance="cosine", ways=ways),
    "matching": lambda encoder, ways: jm.matching(encoder, temperature=0.1, ways=ways),
    "siamese": lambda encoder, ways: jm.siamese(encoder, ways=ways),
    "matching_fce": lambda encoder, ways: jm.matching_fce(encoder, ways=ways),
    "relation": lambda encoder, ways: jm.relation(*TINY, ways=ways),  # it compares images alone
}
LEARNERS = {name: make(ENCODER, 3) for name, make in MAKE.items()}


def episode_of(name: str) -> Episode:
    return images(22, labels=LABELS) if name == "relation" else vectors()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LEARNERS)
def test_the_order_of_the_support_set_matters_to_full_context_alone(name: str) -> None:
    episode, learner = episode_of(name), LEARNERS[name]
    params, order, predict = (
        started(learner, episode),
        np.random.default_rng(3).permutation(7),
        jax.jit(learner.predict),
    )
    shuffled = jax.tree.map(lambda leaf: leaf[order], episode.support)
    plain, moved = (predict(params, s, episode.query.x, KEY) for s in (episode.support, shuffled))
    assert plain.std(1).min() > 1e-6, "it tells the classes apart"
    same = np.allclose(plain, moved, rtol=1e-10, atol=1e-12)
    assert same == (name != "matching_fce")
    renamed = episode.support._replace(y=(episode.support.y + 1) % 3)
    turned = predict(params, renamed, episode.query.x, KEY)
    np.testing.assert_allclose(jnp.roll(plain, 1, axis=1), turned, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LEARNERS)
def test_gradients_are_those_of_the_loss(name: str) -> None:
    episode, learner = episode_of(name), LEARNERS[name]
    params = started(learner, episode)
    step = jax.jit(learner.meta_grad)
    grads, _ = step(params, episode, KEY)
    direction = random_direction(params, seed=2)
    h = 1e-5 if name == "relation" else 1e-3  # closer together than its kinks
    slope = stencil_derivative(lambda p: step(p, episode, KEY)[1]["loss"], params, direction, h=h)
    np.testing.assert_allclose(inner_product(grads, direction), slope, rtol=1e-7)


@pytest.mark.parametrize("name", LEARNERS)
def test_rows_of_zeros_poison_nothing(name: str) -> None:
    """All inputs are zeros, and so with zero biases are all embeddings, but one."""
    learner = LEARNERS[name] if name == "relation" else MAKE[name](Scale(), 3)
    episode = to_float32(episode_of(name))
    blank = jax.tree.map(lambda x: x.at[1:].set(0.0) if x.ndim > 1 else x, episode)
    params = jax.jit(learner.init)(KEY, blank)
    grads, metrics = jax.jit(learner.meta_grad)(params, blank, KEY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, metrics)))
    assert np.isfinite(jax.jit(learner.predict)(params, blank.support, blank.query.x, KEY)).all()


class Scale(fnn.Module):
    """An embedding that turns zeros to zeros."""

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", fnn.initializers.ones, x.shape[-1:])


def to_float32(episode: Episode) -> Episode:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.ndim > 1 else x, episode)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "relation"])
def test_the_number_of_ways_changes_no_probability(name: str) -> None:
    """Told nothing, a learner leaves room for as many classes as there are examples; those without one get 0."""
    episode = to_float32(vectors())
    told, untold = LEARNERS[name], MAKE[name](ENCODER, None)
    params = jax.jit(told.init)(KEY, episode)
    narrow, wide = (jax.jit(one.predict)(params, episode.support, episode.query.x, KEY) for one in (told, untold))
    np.testing.assert_allclose(wide[:, :3], narrow, rtol=1e-5, atol=1e-6)
    assert (wide[:, 3:] == -jnp.inf).all()
    grads = [jax.jit(one.meta_grad)(params, episode, KEY)[0] for one in (told, untold)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *grads)


def windows(x: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))  # [n, h, w, c, height, width]


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, pad: int = 0) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return np.einsum("nhwcij,ijco->nhwo", windows(padded, *kernel.shape[:2]), kernel) + bias


def pooled(x: np.ndarray) -> np.ndarray:
    return windows(x, 2, 2)[:, ::2, ::2].max((-2, -1))


def normed(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def spread(params, seed: int):
    """Parameters of the same shapes, none of them at a special value such as 0 or 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.2, 0.6, leaf.shape)), params)


@pytest.mark.usefixtures("float64")
def test_koch_s_twin_is_the_loop() -> None:
    """A ReLU after each convolution, a pool after all but the last, sigmoids at the end."""
    twin = metric.KochTwin(features=(2, 3, 2), windows=(3, 2, 2), width=5)
    x = np.random.default_rng(0).normal(size=(3, 15, 16, 2))
    params = spread(jax.eval_shape(twin.init, KEY, x), seed=2)
    w, by_hand, negative = jax.tree.map(np.asarray, params["params"]), x, []
    for i in range(3):
        by_hand = convolved(by_hand, **w[f"conv_{i}"])
        negative.append((by_hand < 0).mean())
        by_hand = pooled(relu(by_hand)) if i < 2 else relu(by_hand)
    assert min(negative) > 0.05, "the ReLU has something to do"
    by_hand = sigmoid(by_hand.reshape(3, -1) @ w["dense"]["kernel"] + w["dense"]["bias"])
    np.testing.assert_allclose(jax.jit(twin.apply)(params, x), by_hand, rtol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("block", "channels"), [(1, 1), (2, 1), (2, 3)])
def test_the_small_twin_is_the_loop(block: int, channels: int) -> None:
    twin = metric.SmallTwin(features=6, block=block)
    x = np.random.default_rng(0).normal(size=(4, 9 * block, 8 * block, channels))
    params = spread(jax.eval_shape(twin.init, KEY, x), seed=2)
    w = jax.tree.map(np.asarray, params["params"])
    by_hand = np.concatenate([x[:, i::block, j::block] for i in range(block) for j in range(block)], axis=-1)
    for i in range(6):
        by_hand = normed(convolved(by_hand, **w[f"conv_{i}"], pad=1), **w[f"norm_{i}"])
        by_hand = relu(by_hand) if i < 5 else by_hand
        by_hand = pooled(by_hand) if i < 2 else by_hand
    np.testing.assert_allclose(jax.jit(twin.apply)(params, x), sigmoid(by_hand.reshape(4, -1)), rtol=1e-9)


def encoded(params, x: np.ndarray) -> np.ndarray:
    """`RelationEncoder`, by hand: pools after the first two blocks, which do not pad; pads in the others."""
    w = jax.tree.map(np.asarray, params["params"])
    for i in range(4):
        x = relu(normed(convolved(x, **w[f"conv_{i}"], pad=i // 2), **w[f"norm_{i}"]))
        x = pooled(x) if i < 2 else x
    return x


@pytest.mark.usefixtures("float64")
def test_relation_scores_the_joined_sums() -> None:
    """The score of class c is the module's on [sum of the class's maps, the query's map], convolved as one image."""
    learner, episode = LEARNERS["relation"], episode_of("relation")
    params = spread(jax.eval_shape(learner.init, KEY, episode), seed=3)
    w = jax.tree.map(np.asarray, params.relation["params"])
    support, queries = (encoded(params.encoder, np.asarray(batch.x)) for batch in episode)  # in passes of their own
    sums = [support[c == LABELS].sum(0) for c in range(3)]
    pairs = np.stack([np.concatenate([c, q], axis=-1) for q in queries for c in sums])
    x = pooled(relu(normed(convolved(pairs, w["conv_0_kernel"], w["conv_0_bias"], pad=1), **w["norm_0"])))
    x = pooled(relu(normed(convolved(x, **w["conv_1"], pad=1), **w["norm_1"])))
    x = relu(x.reshape(len(pairs), -1) @ w["dense_0"]["kernel"] + w["dense_0"]["bias"])
    scores = sigmoid(x @ w["dense_1"]["kernel"] + w["dense_1"]["bias"]).reshape(4, 3)
    found = jax.jit(learner.predict)(params, episode.support, episode.query.x, KEY)
    np.testing.assert_allclose(np.exp(found), scores, rtol=1e-10)
    loss = np.mean((scores - np.eye(3)[np.asarray(episode.query.y)]) ** 2)
    np.testing.assert_allclose(jax.jit(learner.meta_grad)(params, episode, KEY)[1]["loss"], loss, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_equal_support_images_count_as_often_as_they_come() -> None:
    """The sum over shots, not the mean: K equal images are K times the feature map of one."""
    one, learner = images(22, np.arange(3)), LEARNERS["relation"]
    params = started(learner, one)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, axis=0), one.support)
    assert learner.compare is not None
    compare = jax.jit(learner.compare)
    single, triple = (compare(params, s, one.query.x, KEY) for s in (one.support, repeated))
    np.testing.assert_allclose(triple.references, 3 * single.references, rtol=1e-10)
    logits = TINY[1].apply(params.relation, 3 * single.references, single.queries)
    np.testing.assert_allclose(triple.log_kernel, jax.nn.log_sigmoid(logits), rtol=1e-9)
    assert not np.allclose(triple.log_kernel, single.log_kernel)


@pytest.mark.parametrize("length", [1.0, 1e-13, 1e-15, 1e-18, 1e-20, 0.0])
def test_short_rows_have_finite_cosines_and_derivatives(length: float) -> None:
    row = jnp.array([[3.0, -4.0, 0.0, 12.0]]) / 13
    value, gradient = jax.jit(jax.value_and_grad(lambda x: _kernels.unit(x)[0, 0]))(row * length)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    tangent = np.array([[160.0, 12.0, 0.0, -36.0]]) / 13**2  # the part of the first axis across the row
    if length == 1.0:
        np.testing.assert_allclose(value, 3 / 13, rtol=1e-6)
        np.testing.assert_allclose(gradient, tangent, rtol=1e-5, atol=1e-7)
    if length == 0.0:
        assert value == 0
        assert (gradient == 0).all()


def test_distances_do_not_lose_their_digits_far_from_the_origin() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(1000, 1, size=(n, 16)).astype(np.float32) for n in (200, 50))
    exact = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1)
    found = jax.jit(metric.squared_euclidean)(a, b)
    np.testing.assert_allclose(found, exact, rtol=2e-5)
    np.testing.assert_array_equal(found.argmin(1), exact.argmin(1))
    near = jax.jit(metric.squared_euclidean)(a - 1000, b - 1000)
    np.testing.assert_allclose(near, ((a - 1000)[:, None].astype(float) - (b - 1000)) ** 2 @ np.ones(16), rtol=2e-5)


def test_distances_between_equal_rows_are_0_with_all_their_derivatives() -> None:
    b = jnp.asarray(np.random.default_rng(1).normal(1, 1, size=(40, 5)), jnp.float32)
    found = jax.jit(metric.squared_euclidean)(b, b)
    assert (found >= 0).all()
    np.testing.assert_allclose(jnp.diag(found), 0, atol=1e-5)

    def own(a: jax.Array) -> jax.Array:
        return jnp.trace(metric.squared_euclidean(a, b[:3]))

    np.testing.assert_allclose(jax.jit(jax.grad(own))(b[:3]), 0, atol=1e-6)
    curvature = jax.jit(jax.hessian(own))(b[:3]).reshape(15, 15)
    np.testing.assert_allclose(curvature, 2 * np.eye(15), atol=1e-6)
    both = jax.jit(jax.grad(lambda b: jnp.sum(metric.squared_euclidean(b[:2] + 1, b) ** 2)))(b)
    loop = jax.jit(jax.grad(lambda b: jnp.sum(jnp.sum(((b[:2] + 1)[:, None] - b) ** 2, -1) ** 2)))(b)
    np.testing.assert_allclose(both, loop, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_siamese_is_the_loop() -> None:
    """L1 after the twin, weights of any sign, half the loss to pairs of one class, L2 by layer."""
    l2 = {"dense_0": 1e-2, "head": 3e-3, "alpha": 5e-3}  # the twin's last layer is named head
    episode, learner = vectors(), jm.siamese(ENCODER, l2=l2, ways=3)
    params = started(learner, episode)
    embedded, queries = (mlp(params.encoder, np.asarray(batch.x)) for batch in episode)
    alpha, b = (np.asarray(params.head[name]) for name in ("kernel", "bias"))
    p = np.array([[sigmoid(alpha @ np.abs(f - g) + b) for g in embedded] for f in queries])
    same = np.asarray(episode.query.y)[:, None] == LABELS
    weights = jax.tree.map(np.asarray, params.encoder["params"])
    penalty = 1e-2 * (weights["dense_0"]["kernel"] ** 2).sum()
    penalty += 3e-3 * (weights["head"]["kernel"] ** 2).sum() + 5e-3 * (alpha**2).sum()
    loss = -np.log(p[same]).mean() / 2 - np.log(1 - p[~same]).mean() / 2 + penalty
    np.testing.assert_allclose(jax.jit(learner.meta_grad)(params, episode, KEY)[1]["loss"], loss, rtol=1e-10)
    best = np.stack([p[:, c == LABELS].max(1) for c in range(3)], axis=1)
    found = jax.jit(learner.predict)(params, episode.support, episode.query.x, KEY)
    np.testing.assert_allclose(np.exp(found), best, rtol=1e-10)
    verified = metric.verify(ENCODER, params, episode.query.x[:7], episode.support.x)
    np.testing.assert_allclose(verified, p[np.arange(7), np.arange(7)], rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_siamese_differences_have_the_derivatives_of_their_absolute_values() -> None:
    rng = np.random.default_rng(0)
    args = tuple(jnp.asarray(rng.normal(size=shape)) for shape in [(4,), (3, 4), (2, 4)])

    def plain(weights: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.abs(a[:, None] - b[None]) @ weights

    check_grads(_weighted_l1, args, order=2)
    for function in (jax.jacfwd, jax.jacrev):
        found, expected = (jax.jit(function(f, (0, 1, 2)))(*args) for f in (_weighted_l1, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)
    alike = jax.jit(jax.jacrev(_weighted_l1, (1, 2)))(args[0], args[1], args[1])
    assert all((jacobian[i, i] == 0).all() for jacobian in alike for i in range(2))


@pytest.mark.usefixtures("float64")
def test_one_weight_of_l2_is_of_every_kernel() -> None:
    episode, plain, weighted = vectors(), jm.siamese(ENCODER, ways=3), jm.siamese(ENCODER, l2=0.3, ways=3)
    params = started(plain, episode)
    losses = [learner.meta_grad(params, episode, KEY)[1]["loss"] for learner in (plain, weighted)]
    kernels = [params.head["kernel"], *(layer["kernel"] for layer in params.encoder["params"].values())]
    np.testing.assert_allclose(losses[1] - losses[0], 0.3 * sum((k**2).sum() for k in kernels), rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_distances_are_divided_by_the_temperature() -> None:
    episode = vectors()
    for make in (jm.prototypical, lambda *a, **k: jm.prototypical_zero_shot(*a, ENCODER, **k)):
        learners = [make(ENCODER, temperature=temperature, ways=3) for temperature in (1.0, 0.25)]
        support = episode.support if make is jm.prototypical else jax.tree.map(lambda leaf: leaf[:3], episode.support)
        params = started(learners[0], episode._replace(support=support))
        plain, sharp = (learner.compare(params, support, episode.query.x, KEY).log_kernel for learner in learners)
        np.testing.assert_allclose(sharp, jax.nn.log_softmax(4 * plain), rtol=1e-9)


def test_short_rows_have_a_direction_in_half_precision() -> None:
    row = jnp.full((1, 64), 0.004, jnp.float16)
    found = metric.cosine_similarity(row, row)
    assert found.dtype == jnp.float16
    assert float(found[0, 0]) == pytest.approx(1, abs=2e-3)


def test_distances_in_half_precision_are_taken_in_single() -> None:
    a = 40 * jnp.eye(2, 64, dtype=jnp.float16).at[:, 2:].set(1)  # squares add up to 100,000
    found = metric.squared_euclidean(a, -a)
    np.testing.assert_allclose(found, metric.squared_euclidean(a.astype(jnp.float32), -a.astype(jnp.float32)))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("method", ["prototypical", "matching", "matching_fce", "siamese"])
def test_encoders_may_answer_in_half_precision(method: str) -> None:
    class Half(fnn.Module):
        @fnn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return fnn.Dense(4, dtype=jnp.bfloat16)(x.reshape(len(x), -1))

    episode = to_float32(episode_of(method))
    learner = getattr(jm, method)(Half(), ways=3)
    params = learner.init(KEY, episode)
    grads, metrics = learner.meta_grad(params, episode, KEY)
    assert np.isfinite(metrics["loss"])
    assert jax.tree.map(lambda leaf: leaf.dtype, grads) == jax.tree.map(lambda leaf: leaf.dtype, params)


@pytest.mark.parametrize("method", ["prototypical", "matching", "matching_fce", "siamese", "relation"])
def test_no_queries_have_no_predictions(method: str) -> None:
    episode = to_float32(episode_of(method))
    params = jax.eval_shape(LEARNERS[method].init, KEY, episode)
    predict = functools.partial(jax.eval_shape, LEARNERS[method].predict, params)
    assert predict(episode.support, episode.query.x[:0], KEY).shape == (0, 3)


def test_pairs_of_one_kind_have_a_finite_loss() -> None:
    """With one pair in all, as with many."""
    for shape in ((1, 1), (2, 3)):
        for same in (jnp.ones(shape, bool), jnp.zeros(shape, bool)):
            loss, slope = jax.value_and_grad(verification_loss)(jnp.zeros(shape), same)
            assert 0.3 < loss < 0.7
            assert np.isfinite(slope).all()
    episode = Episode(*(Batch(jnp.ones((1, 5)), jnp.zeros(1, int)) for _ in range(2)))
    learner = jm.siamese(ENCODER)
    _, metrics = jax.jit(learner.meta_grad)(jax.jit(learner.init)(KEY, episode), episode, KEY)
    assert np.isfinite(metrics["loss"])


def count(shapes) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def test_parameter_counts_are_the_papers() -> None:
    """Section by section; shapes alone, nothing is allocated."""
    pixels = {size: Batch(jnp.zeros((2, size, size, 1)), jnp.arange(2)) for size in (28, 105)}
    episodes = {size: Episode(batch, batch) for size, batch in pixels.items()}
    assert count(jax.eval_shape(jm.prototypical(nn.Conv4(None)).init, KEY, episodes[28])) == 111_936
    found = jax.eval_shape(jm.relation(ways=2).init, KEY, episodes[28])
    assert (count(found.encoder), count(found.relation)) == (111_936, 111_505)
    colour = jnp.zeros((2, 84, 84, 3))
    mini = jm.relation(relation_module=metric.RelationModule(padding="VALID"), ways=2)
    batch = Batch(colour, jnp.arange(2))
    assert count(jax.eval_shape(mini.init, KEY, Episode(batch, batch)).relation) == 115_601
    found = jax.eval_shape(jm.siamese(metric.KochTwin()).init, KEY, episodes[105])
    assert count(found.encoder) == 38_947_648
    assert count(found) == 38_951_745
    small = jax.eval_shape(metric.SmallTwin().init, KEY, jnp.ones((2, 28, 28, 1)))
    convolutions = 10 * 32 + 289 * 32 + 289 * 96 + 3 * 865 * 96
    assert count(small) == convolutions + 2 * (2 * 32 + 4 * 96) == 287_328


def test_initial_values_are_the_papers() -> None:
    episode = jax.tree.map(lambda x: x.astype(jnp.float32) if x.ndim > 1 else x, images(28, np.arange(3)))
    params = jax.jit(jm.relation(ways=3).init)(KEY, episode)
    for layer in ("dense_0", "dense_1"):
        assert (params.relation["params"][layer]["bias"] == 1).all()
    kernel = params.encoder["params"]["conv_1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.02)
    twin = jax.jit(metric.KochTwin(features=(8, 8), windows=(3, 3), width=32).init)(KEY, episode.support.x)["params"]
    np.testing.assert_allclose(twin["dense"]["kernel"].std(), 0.2, rtol=0.02)
    np.testing.assert_allclose(twin["conv_1"]["kernel"].std(), 0.01, rtol=0.1)
    np.testing.assert_allclose(twin["conv_1"]["bias"].mean(), 0.5, atol=0.02)


def test_zero_shot_prototypes_come_from_descriptions() -> None:
    """Classes never seen in training are told from their descriptions, and prototypes have length 1."""
    source = described_classes()
    learner = jm.prototypical_zero_shot(nn.MLP((), 8), nn.MLP((), 8), ways=5)
    result = jm.fit(learner, source, optax.adam(3e-2), steps=100, meta_batch=2, log_every=100, progress=False)
    found = jm.evaluate(learner, result.params, source._replace(data=jnp.array(1)), episodes=50)
    assert found.mean > 0.8
    episode = source.sample(source.data, KEY)
    assert learner.compare is not None
    references = learner.compare(result.params, episode.support, episode.query.x, KEY).references
    np.testing.assert_allclose(jnp.linalg.norm(references, axis=1), 1.0, rtol=1e-5)


def described_classes() -> tasks.Source:
    """Classes with a description of 6 numbers, whose examples are a fixed linear map of it and noise."""
    mixing = jax.random.normal(jax.random.key(7), (6, 12))

    def sample(data: jax.Array, key: jax.Array) -> Episode:
        class_key, noise_key = jax.random.split(jax.random.fold_in(key, data))
        v = jax.random.normal(class_key, (5, 6))
        labels = jnp.arange(15) % 5
        x = v[labels] @ mixing + 0.3 * jax.random.normal(noise_key, (15, 12))
        return Episode(Batch(v, jnp.arange(5)), Batch(x, labels))

    return tasks.Source(sample, jnp.array(0), {"ways": 5, "shots": 0})


BAD = {
    "lacks a class": (lambda e: e._replace(support=e.support._replace(y=jnp.zeros(7, int))), "ways=3, but the support"),
    "label out of range": (
        lambda e: e._replace(support=e.support._replace(y=e.support.y + 1)),
        r"must lie in \[0, 3\)",
    ),
    "query of no class": (lambda e: e._replace(query=e.query._replace(y=e.query.y + 5)), "labels .5, 6, 7., which no"),
    "labels too few": (
        lambda e: e._replace(query=e.query._replace(y=e.query.y[:3])),
        r"query\.x holds \d examples, but",
    ),
    "no queries": (lambda e: e._replace(query=jax.tree.map(lambda x: x[:0], e.query)), "query holds no examples"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("method", ["prototypical", "matching_fce", "siamese", "relation"])
def test_a_bad_episode_is_named(name: str, method: str) -> None:
    spoil, message = BAD[name]
    episode = to_float32(episode_of(method))
    params = jax.eval_shape(LEARNERS[method].init, KEY, episode)
    with pytest.raises(ValueError, match=message):
        LEARNERS[method].meta_grad(params, spoil(episode), KEY)


@pytest.mark.parametrize("method", LEARNERS)
def test_under_jit_a_label_that_is_no_class_makes_the_loss_nan(method: str) -> None:
    episode, learner = to_float32(episode_of(method)), LEARNERS[method]
    params, step = jax.jit(learner.init)(KEY, episode), jax.jit(learner.meta_grad)
    for part, label in itertools.product(("support", "query"), (-1, 7)):
        batch = getattr(episode, part)
        strange = episode._replace(**{part: batch._replace(y=batch.y.at[0].set(label))})
        grads, metrics = step(params, strange, KEY)
        assert np.isnan(metrics["loss"])
        for path, leaf in jax.tree.leaves_with_path(grads):
            name = jax.tree_util.keystr(path)
            if method == "relation" and "conv" in name and "bias" in name:  # a normalisation follows
                np.testing.assert_array_equal(leaf, 0, name)
            else:
                assert np.isnan(leaf).any(), name
        answers = jax.jit(learner.predict)(params, strange.support, strange.query.x, KEY)
        assert np.isnan(answers).any() == (part == "support")


@pytest.mark.parametrize("method", ["prototypical", "matching_fce", "siamese", "relation"])
def test_initialising_for_other_ways_is_refused(method: str) -> None:
    episode = to_float32(episode_of(method))
    more = episode._replace(support=episode.support._replace(y=episode.support.y.at[0].set(4)))
    with pytest.raises(ValueError, match=r"ways=3, so support\.y must lie in \[0, 3\), but holds labels 0\.\.4"):
        LEARNERS[method].init(KEY, more)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(
        ValueError, match=r'distance must be "squared_euclidean", "cosine" or a function .* but is .l2.'
    ):
        jm.prototypical(ENCODER, distance="l2")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="temperature must be positive and finite, but is 0"):
        jm.matching(ENCODER, temperature=0)
    for distance, name in ((metric.squared_euclidean, "squared_euclidean"), (metric.cosine_similarity, "cosine")):
        with pytest.raises(ValueError, match=f'of all rows of two matrices: for that distance say distance="{name}"'):
            jm.prototypical(ENCODER, distance=distance)
        with pytest.raises(ValueError, match=f'say distance="{name}"'):
            jm.prototypical_zero_shot(ENCODER, ENCODER, distance=distance)
    episode, vector = to_float32(vectors()), jm.prototypical(ENCODER, distance=lambda z, c: (z - c) ** 2, ways=3)
    with pytest.raises(ValueError, match=r"map two vectors \[d\] to a scalar, but maps \(4,\) and \(4,\) to \(4,\)"):
        vector.predict(LEARNERS["prototypical"].init(KEY, episode), episode.support, episode.query.x, KEY)
    with pytest.raises(ValueError, match="read_steps must be 0 or more, but is -1"):
        jm.matching_fce(ENCODER, read_steps=-1)
    with pytest.raises(TypeError, match=r"read_steps must be an int, but is 1\.5"):
        jm.matching_fce(ENCODER, read_steps=1.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="ways must be 2 or more, but is 1"):
        jm.relation(ways=1)
    with pytest.raises(ValueError, match="l2 must be finite and not negative, but is -1"):
        jm.siamese(ENCODER, l2=-1.0)
    with pytest.raises(ValueError, match=r"l2 must be finite and not negative, but is .*nan"):
        jm.siamese(ENCODER, l2={"dense_0": 1.0, "alpha": float("nan")})
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'ways'"):
        jm.relation()  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="ways must be a number: relation scores all classes together"):
        jm.relation(ways=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"l2 names \['conv_9'\], but the layers with kernels are \['alpha', 'dense_0', 'head'\]"
    ):
        jax.eval_shape(jm.siamese(ENCODER, l2={"conv_9": 1.0}).init, KEY, to_float32(vectors()))
    bare = {"init": lambda key, x: {"w": jnp.eye(5)}, "apply": lambda params, x: x @ params["w"]}
    with pytest.raises(ValueError, match=r"l2=0\.5 is of weights named kernel, but the encoder has none"):
        jm.siamese(type("Bare", (), {name: staticmethod(f) for name, f in bare.items()}), l2=0.5).init(KEY, vectors())
    listed = Batch(jnp.eye(5), LABELS.tolist())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"support\.y must be an array with an example axis, but is of type list"):
        LEARNERS["matching"].predict({}, listed, jnp.eye(5), KEY)
    episode = tasks.sinusoid(shots=5).sample((), KEY)
    with pytest.raises(TypeError, match=r"support\.y must hold integer class labels"):
        LEARNERS["matching"].predict({}, episode.support, episode.query.x, KEY)


def test_images_of_the_wrong_size_are_named() -> None:
    episode = to_float32(images(3))
    for learner, least in (
        (jm.relation(ways=3), "10x10"),
        (jm.siamese(metric.KochTwin(), ways=3), "65x65"),
        (jm.siamese(metric.SmallTwin(), ways=3), "4x4"),
    ):
        with pytest.raises(ValueError, match=f"at least {least}, but has shape"):
            jax.eval_shape(learner.init, KEY, episode)
    with pytest.raises(ValueError, match=r"features and windows .* are \(2, 3\) and \(3, 3, 2\)"):
        jax.eval_shape(metric.KochTwin((2, 3), (3, 3, 2)).init, KEY, episode.support.x)
    with pytest.raises(ValueError, match="features must be a multiple of 3, but is 64"):
        jax.eval_shape(metric.SmallTwin(64).init, KEY, jnp.ones((2, 28, 28, 1)))
    with pytest.raises(ValueError, match="block=3 must divide the images, but they have 28x28 pixels"):
        jax.eval_shape(metric.SmallTwin(block=3).init, KEY, jnp.ones((2, 28, 28, 1)))
    with pytest.raises(TypeError, match=r"block must be an int, but is 2\.0"):
        jax.eval_shape(metric.SmallTwin(block=2.0).init, KEY, jnp.ones((2, 28, 28, 1)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="block must be 1 or more, but is 0"):
        jax.eval_shape(metric.SmallTwin(block=0).init, KEY, jnp.ones((2, 28, 28, 1)))
    with pytest.raises(TypeError, match="query_x must be an array with an example axis, but is of type list"):
        LEARNERS["matching"].predict({}, episode.support, [0.0], KEY)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must hold inputs of one shape"):
        LEARNERS["matching"].predict({}, episode.support, episode.query.x[:, :2], KEY)
    learner, big = jm.prototypical(metric.RelationEncoder(features=2), ways=3), to_float32(images(10))
    maps = r"the encoder must return embeddings \[n, d\], but returns shape \((6|10), 1, 1, 2\)"
    params = jax.eval_shape(learner.init, KEY, big)
    with pytest.raises(ValueError, match=maps):
        jax.eval_shape(learner.predict, params, big.support, big.query.x, KEY)
    with pytest.raises(ValueError, match=maps):
        jax.eval_shape(jm.matching_fce(TINY[0], ways=3).init, KEY, big)


def test_descriptions_and_inputs_of_two_shapes_are_judged_together() -> None:
    episode = Episode(Batch(jnp.eye(3), jnp.arange(3)), Batch(jnp.ones((3, 5)), jnp.arange(3)))
    source = tasks.Source(lambda data, key: episode, (), {"name": "described"})
    learner = jm.prototypical_zero_shot(nn.MLP((), 2), nn.MLP((), 2), ways=3)
    params = learner.init(KEY, episode)
    assert np.isfinite(jm.evaluate(learner, params, source, episodes=2).mean)
    with pytest.raises(ValueError, match=r'beside the support inputs.* \(5,\) and \(3,\): want query_mode="trans'):
        jm.evaluate(learner, params, source, episodes=2, query_mode="inductive")


def test_zero_shot_encoders_embed_to_one_width() -> None:
    described = Batch(jnp.eye(3), jnp.arange(3))
    episode = Episode(described, Batch(jnp.ones((6, 4)), jnp.arange(6) % 3))
    with pytest.raises(ValueError, match="encoder and class_encoder must embed to one width, but to 2 and 5"):
        jax.eval_shape(jm.prototypical_zero_shot(nn.MLP((), 2), nn.MLP((), 5), ways=3).init, KEY, episode)
    spatial = jm.prototypical_zero_shot(nn.MLP((), 2), Maps(), ways=3)
    with pytest.raises(ValueError, match=r"the class_encoder must return embeddings \[n, d\], but returns shape"):
        jax.eval_shape(spatial.init, KEY, episode)


class Maps(fnn.Module):
    """An embedding that is no vector."""

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x[:, None, None]


def relative_entropy(z: jax.Array) -> jax.Array:
    return jnp.sum(z * jnp.log(z))


class OnSimplex(fnn.Module):
    """An embedding of positive numbers that add to 1."""

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.softmax(fnn.Dense(4)(x))


ENTROPY = metric.bregman(relative_entropy)
WITHOUT_CLASS = {
    **LEARNERS,
    "relative entropy": jm.prototypical(OnSimplex(), distance=ENTROPY, ways=3),
    "zero-shot": jm.prototypical_zero_shot(OnSimplex(), OnSimplex(), distance=ENTROPY, ways=3),
}


@pytest.mark.parametrize("name", WITHOUT_CLASS)
def test_a_class_without_support_gets_no_probability_where_labels_are_not_known(name: str) -> None:
    episode, learner = to_float32(episode_of(name)), WITHOUT_CLASS[name]
    params = jax.jit(learner.init)(KEY, episode)
    lacking = jax.tree.map(lambda x: jnp.minimum(x, 1) if x.ndim == 1 else x, episode)
    found = jax.jit(learner.predict)(params, lacking.support, episode.query.x, KEY)
    assert (found[:, 2] == -jnp.inf).all()
    assert np.isfinite(found[:, :2]).all()
    grads, metrics = jax.jit(learner.meta_grad)(params, lacking, KEY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, metrics)))


def test_peers_whose_gradients_differ_are_not_raced() -> None:
    ours = {"w": np.array([1.0, -2.0])}
    np.testing.assert_allclose(relative_difference(ours, {"w": ours["w"] + 1e-11}), 5e-12, rtol=1e-3)
    for theirs in (ours["w"] + 1e-9, ours["w"] * np.nan):
        with pytest.raises(ValueError, match=r"the gradients differ by .* is not raced"):
            relative_difference(ours, {"w": theirs})
    for theirs in ({"w": ours["w"].astype(np.float32)}, {"v": ours["w"]}):
        with pytest.raises(ValueError, match="gradients must be of the same parameters in float64"):
            relative_difference(ours, theirs)


def test_batch_normalisation_sees_support_and_queries_as_one_batch() -> None:
    episode, encoder = vectors(), nn.MLP((6,), 4, norm=True)
    learner = jm.prototypical(encoder, ways=3)
    params = learner.init(KEY, episode)
    assert learner.compare is not None
    found = learner.compare(params, episode.support, episode.query.x, KEY)
    together = encoder.apply(params, jnp.concatenate([episode.support.x, episode.query.x]))
    np.testing.assert_allclose(found.queries, together[7:], rtol=1e-5)
    assert np.abs(found.queries - encoder.apply(params, episode.query.x)).max() > 1e-3


def test_inside_shard_map_no_gradient_is_summed_over_devices() -> None:
    mesh, learner = jax.sharding.Mesh(jax.devices()[:2], ("tasks",)), jm.prototypical(ENCODER, ways=3)
    episode = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.ndim > 1 else leaf, vectors())
    params, two = learner.init(KEY, episode), jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), episode)

    def mean_gradient(params, two):
        return jax.lax.pmean(learner.meta_grad(params, jax.tree.map(lambda leaf: leaf[0], two), KEY)[0], "tasks")

    specs = {"mesh": mesh, "in_specs": (P(), P("tasks")), "out_specs": P()}
    with pytest.raises(ValueError, match=r"the mesh axes \('tasks',\) and params do not"):
        jax.jit(jax.shard_map(mean_gradient, **specs))(params, two)
    found = jax.jit(jax.shard_map(mean_gradient, check_vma=False, **specs))(params, two)
    expected = jax.jit(learner.meta_grad)(params, episode, KEY)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
