"""One table of methods, and what must hold for each of them. A new method is a new row."""

import functools
import inspect
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, assert_trees_equal, to_float64

from jaxmeta import (
    Batch,
    Episode,
    MetaLearner,
    anil,
    batch_meta_grad,
    boil,
    descended,
    evaluate,
    fit,
    fomaml,
    imaml,
    losses,
    lstm_meta_learner,
    maml,
    maml_pp,
    mann,
    matching,
    matching_fce,
    memory,
    meta_sgd,
    metanet,
    metric,
    nn,
    prototypical,
    relation,
    reptile,
    siamese,
    tasks,
    truncated_maml,
)

WAYS = 5
GLYPHS = tasks.episodes(
    tasks.glyphs("train", classes=60, image_size=8), ways=WAYS, shots=1, queries=2, rotations="per_class"
)
SINUSOID = tasks.sinusoid(shots=5, queries=5)


class Row(NamedTuple):
    name: str
    learner: MetaLearner
    source: tasks.Source
    optimizer: optax.GradientTransformation
    # Share of the loss that 200 outer steps of 4 tasks must at least take away. Modest: the nets are tiny.
    learns: float = 0.1
    # What a classifier's accuracy on a query must gain by them.
    gains: float = 0.05
    # Whether the meta-gradient draws from its key.
    uses_key: bool = False


CLASSIFIER = nn.MLP((16,), WAYS, norm=True)
EMBEDDER = nn.MLP((16,), 16, norm=True)
# Relation networks compare images.
IMAGES = tasks.episodes(tasks.glyphs("train", classes=60, image_size=22), ways=WAYS, shots=1, queries=2)
REGRESSOR = nn.MLP((16, 16), 1, activation=jnp.tanh)
METHODS = [
    Row("maml", maml(CLASSIFIER, inner_optimizer=optax.sgd(0.3), steps=2), GLYPHS, optax.adam(1e-2)),
    Row("fomaml", fomaml(CLASSIFIER, inner_optimizer=optax.sgd(0.3), steps=2), GLYPHS, optax.adam(1e-2)),
    Row(
        "maml_regression",
        maml(REGRESSOR, inner_optimizer=optax.sgd(0.02), steps=2, loss=losses.mean_squared_error),
        SINUSOID,
        optax.adam(1e-2),
    ),
    Row(
        "truncated_maml",
        truncated_maml(CLASSIFIER, inner_optimizer=optax.sgd(0.1), steps=3, backprop_steps=2),
        GLYPHS,
        optax.adam(1e-2),
    ),
    Row("anil", anil(CLASSIFIER, inner_optimizer=optax.sgd(0.3), steps=2), GLYPHS, optax.adam(1e-2)),
    Row("boil", boil(CLASSIFIER, inner_optimizer=optax.sgd(0.3), steps=2), GLYPHS, optax.adam(1e-2)),
    Row(
        "imaml",
        imaml(CLASSIFIER, inner_optimizer=optax.sgd(0.1), steps=8, proximal=2.0, damping=1.0),
        GLYPHS,
        optax.adam(1e-2),
    ),
    Row("meta_sgd", meta_sgd(CLASSIFIER, steps=2, rates=(0.1, 0.3)), GLYPHS, optax.adam(1e-2)),
    Row(
        "maml_pp",
        maml_pp(CLASSIFIER, steps=3, inner_lr=0.3, epoch=40, multi_step_epochs=3, first_order_epochs=1),
        GLYPHS,
        optax.adam(1e-2),
    ),
    Row(
        "reptile",
        reptile(
            CLASSIFIER,
            # At 1e-8 it would make steps of what is zero but for rounding: biases before a normalisation.
            inner_optimizer=optax.adam(1e-2, b1=0.0, eps=1e-4),
            inner_lr=1e-2,
            steps=4,
            batch_size=6,
            persistent=True,
        ),
        GLYPHS,
        optax.sgd(0.5e-2),
        uses_key=True,
    ),
    Row(
        "reptile_regression",
        reptile(
            REGRESSOR,
            inner_optimizer=optax.sgd(0.02),
            inner_lr=0.02,
            steps=4,
            loss=losses.mean_squared_error,
        ),
        SINUSOID,
        optax.sgd(0.01),
    ),
    Row(
        "mann",
        mann(memory.MANN(features=32, slots=8, width=8, reads=1), ways=WAYS),
        GLYPHS,
        optax.adam(1e-2),
        learns=0.03,
        gains=-0.1,  # to bind labels to what was seen takes longer: see test_mann
        uses_key=True,
    ),
    Row(
        "metanet",
        metanet(memory.AugmentedConv(WAYS, features=8, convolutions=2, key_features=16, fast_layers=2), hidden=8),
        GLYPHS,
        optax.adam(3e-2),
        uses_key=True,
    ),
    Row(
        "lstm_meta_learner",
        lstm_meta_learner(CLASSIFIER, steps=3, hidden=6, input_bias=(-1.0, -1.0)),
        GLYPHS,
        optax.adam(1e-2),
    ),
    Row("prototypical", prototypical(EMBEDDER, ways=WAYS), GLYPHS, optax.adam(3e-3)),
    Row("matching", matching(EMBEDDER, temperature=0.1, ways=WAYS), GLYPHS, optax.adam(3e-3)),
    Row(
        "matching_fce",
        matching_fce(EMBEDDER, read_steps=2, temperature=0.1, ways=WAYS),
        GLYPHS,
        optax.adam(3e-3),
        uses_key=True,
    ),
    Row(
        "relation",
        relation(metric.RelationEncoder(features=4), metric.RelationModule(features=4), ways=WAYS),
        IMAGES,
        optax.adam(1e-2),
    ),
    Row("siamese", siamese(EMBEDDER, ways=WAYS), GLYPHS, optax.adam(3e-3)),
]


ONE_OF_EACH_KIND = ("maml", "reptile", "mann", "prototypical")  # for what takes long
one_of_each_kind = pytest.mark.parametrize(
    "row", [row for row in METHODS if row.name in ONE_OF_EACH_KIND], ids=lambda row: row.name
)

adapted_classifiers = pytest.mark.parametrize(
    "row",
    [row for row in METHODS if row.learner.predict_path is not None and row.source is not SINUSOID],
    ids=lambda row: row.name,
)


@pytest.fixture(params=METHODS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def problem(row: Row, count: int = 4):
    keys = jax.random.split(jax.random.key(0), count)
    episodes = jax.jit(jax.vmap(row.source.sample, (None, 0)))(row.source.data, keys)
    params = jax.jit(row.learner.init)(jax.random.key(1), jax.tree.map(lambda leaf: leaf[0], episodes))
    return params, episodes


def test_gradients_have_their_structure_their_key_and_one_trace(row: Row) -> None:
    params, episodes = problem(row)
    traces = []

    @jax.jit
    def step(params, episodes, key):
        traces.append(row.name)
        return batch_meta_grad(row.learner, params, episodes, key)

    first, again, other = (step(params, episodes, jax.random.key(i)) for i in (2, 2, 3))
    assert len(traces) == 1
    grads, metrics = first
    chex.assert_trees_all_equal_shapes(descended(grads), descended(params))
    chex.assert_tree_all_finite((grads, metrics))
    assert metrics.keys() >= {"loss", "mse" if row.source is SINUSOID else "accuracy"}
    assert all(value.shape == () for value in metrics.values())
    assert_trees_equal(first, again)
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))
    assert same != row.uses_key


def test_a_pair_is_no_episode(row: Row) -> None:
    pair = (Batch(jnp.zeros((WAYS, 8, 8, 1)), jnp.arange(WAYS)),) * 2
    for refuse in (lambda key: row.learner.init(key, pair), lambda key: row.learner.meta_grad(None, pair, key)):
        with pytest.raises(TypeError, match=r"episode must be a jaxmeta.Episode\(support, query\), but is a tuple"):
            refuse(jax.random.key(0))


def test_inside_shard_map_no_gradient_is_summed_over_devices(row: Row) -> None:
    """A task on each of two devices: with respect to parameters that they share, JAX would give the sum.

    Where a network's own state would come to differ between devices in a loop, JAX itself refuses.
    """
    params, episodes = problem(row, 2)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("tasks",))

    def one(params, episodes):
        return row.learner.meta_grad(params, jax.tree.map(lambda leaf: leaf[0], episodes), jax.random.key(2))[0]

    divided = jax.shard_map(one, mesh=mesh, in_specs=(jax.P(), jax.P("tasks")), out_specs=jax.P())
    refused = r"the mesh axes \('tasks',\) and params do not"
    if row.name in ("mann", "lstm_meta_learner"):
        refused = "so the manual axis types do not match"
    with pytest.raises((ValueError, TypeError), match=refused):
        jax.eval_shape(divided, params, episodes)


@pytest.mark.usefixtures("float64")
@one_of_each_kind
def test_jit_is_eager(row: Row) -> None:
    params, episodes = to_float64(problem(row, 1))
    episode, key = jax.tree.map(lambda leaf: leaf[0], episodes), jax.random.key(2)
    eager = row.learner.meta_grad(params, episode, key)
    assert_same_to_rounding(jax.jit(row.learner.meta_grad)(params, episode, key), eager)


def assert_same_to_rounding(found, expected) -> None:
    """Gradients in double precision; metrics in single, which a share of right answers comes in."""
    assert_trees_close(found[0], expected[0], rtol=1e-9, atol=1e-11)
    assert_trees_close(found[1], expected[1], rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_vmap_is_the_loop(row: Row) -> None:
    params, episodes = to_float64(problem(row))
    one = jax.jit(row.learner.meta_grad)
    singles = [
        one(params, jax.tree.map(lambda leaf, i=i: leaf[i], episodes), key)
        for i, key in enumerate(jax.random.split(jax.random.key(2), 4))
    ]
    looped = jax.tree.map(lambda *leaves: sum(leaves) / 4, *singles)
    for chunk, devices in ((4, 1), (1, 2)):
        step = functools.partial(batch_meta_grad, row.learner, chunk=chunk, devices=devices)
        assert_same_to_rounding(jax.jit(step)(params, episodes, jax.random.key(2)), looped)


def test_predictions_fit_the_task_and_end_the_path(row: Row) -> None:
    params, episodes = problem(row, 1)
    support, query = jax.tree.map(lambda leaf: leaf[0], episodes)
    predictions = jax.jit(row.learner.predict)(params, support, query.x, jax.random.key(0))
    assert predictions.shape == (query.y.shape if row.source is SINUSOID else (len(query.x), WAYS))
    if row.learner.predict_path is not None:
        path = jax.jit(row.learner.predict_path)(params, support, query.x, jax.random.key(0))
        np.testing.assert_allclose(path[-1], predictions, rtol=5e-3, atol=1e-4)


@adapted_classifiers
def test_labels_that_a_network_has_no_output_for_are_refused(row: Row) -> None:
    params, _ = problem(row, 1)
    support, query = row.source.sample(row.source.data, jax.random.key(3))
    for label in (WAYS + 2, -5):
        strange = support._replace(y=support.y.at[0].set(label))
        low, high = int(strange.y.min()), int(strange.y.max())
        message = re.escape(f"the model has {WAYS} outputs, but the labels are {low}..{high}")
        for answer in (row.learner.predict, row.learner.predict_path):
            with pytest.raises(ValueError, match=message):
                answer(params, strange, query.x, jax.random.key(0))
        for episode in (Episode(strange, query), Episode(support, query._replace(y=query.y.at[0].set(label)))):
            with pytest.raises(ValueError, match=f"the model has {WAYS} outputs, but the labels are"):
                row.learner.meta_grad(params, episode, jax.random.key(0))


def test_inductive_predictions_do_not_depend_on_the_company(row: Row) -> None:
    """A query judged alone scores as it does among others; transductively, batch normalisation lets them mix."""
    params, _ = problem(row, 1)
    small = row.source._replace(sample=lambda data, key: keep_queries(row.source.sample(data, key), 1))
    whole = evaluate_each(row, params, row.source)
    alone = evaluate_each(row, params, small)
    np.testing.assert_allclose(whole[:, :1], alone, rtol=1e-3, atol=1e-4)


def keep_queries(episode, count: int):
    return episode._replace(query=jax.tree.map(lambda leaf: leaf[:count], episode.query))


def evaluate_each(row: Row, params, source) -> np.ndarray:
    from jaxmeta.training._evaluate import _predictions

    episode = source.sample(source.data, jax.random.key(3))
    path = jax.jit(lambda p: _predictions(row.learner, "inductive", p, episode, jax.random.key(0)))(params)
    return np.asarray(path)


def test_it_learns(row: Row) -> None:
    result = fit(row.learner, row.source, row.optimizer, steps=200, meta_batch=4, seed=1, log_every=20, progress=False)
    first, last = (np.mean([w["loss"] for w in part]) for part in (result.history[:1], result.history[-3:]))
    assert last < (1 - row.learns) * first
    before = row.learner.init(jax.random.key(0), jax.jit(row.source.sample)(row.source.data, jax.random.key(0)))
    scores = [evaluate(row.learner, p, row.source, episodes=50).mean for p in (before, result.params)]
    assert scores[1] < scores[0] if row.source is SINUSOID else scores[1] > scores[0] + row.gains


# What each paper, or its code, says; a default that drifts would change results without an error.
PAPERS_DEFAULTS = [
    (memory.MANN, {"features": 200, "slots": 128, "width": 40, "reads": 4, "decay": 0.99, "strength": 1.0}),
    (lstm_meta_learner, {"steps": 12, "hidden": 20, "forget_bias": (4.0, 5.0), "input_bias": (-5.0, -4.0)}),
    (lstm_meta_learner, {"differentiate": False, "gradient_scale": 1.0}),
    (imaml, {"steps": 16, "proximal": 2.0, "solver": "cg", "solver_steps": 5, "damping": 0.0}),
    (meta_sgd, {"steps": 1, "rates": (0.005, 0.1)}),
    (maml_pp, {"steps": 5, "inner_lr": 0.1, "epoch": 500, "multi_step_epochs": 10, "first_order_epochs": 0}),
    (reptile, {"replacement": False, "persistent": False, "batch_size": None}),
    (prototypical, {"distance": "squared_euclidean", "temperature": 1.0}),
    (matching, {"temperature": 1.0}),
    (matching_fce, {"temperature": 1.0}),
]


@pytest.mark.parametrize(("factory", "said"), PAPERS_DEFAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_defaults_are_the_papers(factory, said) -> None:
    parameters = inspect.signature(factory).parameters
    assert {name: parameters[name].default for name in said} == said
