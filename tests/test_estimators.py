"""Truncated MAML, ANIL, BOIL, Meta-SGD and MAML++ against loops written out, finite differences and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    assert_trees_close,
    assert_trees_equal,
    inner_product,
    random_direction,
    regression_problem,
    stencil_derivative,
    to_float64,
)

from jaxmeta import (
    Batch,
    Episode,
    anil,
    boil,
    descended,
    fomaml,
    fomaml_grad,
    imaml_grad,
    losses,
    maml,
    maml_grad,
    maml_pp,
    mask_by_path,
    meta_sgd,
    meta_sgd_grad,
    nn,
    outer_step,
    truncated_maml_grad,
)
from jaxmeta.inner import sgd
from jaxmeta.optimization import WithRates, multi_step_weights

pytestmark = pytest.mark.usefixtures("float64")
KEY = jax.random.key(0)


def small_problem():
    loss_fn, params, episode = regression_problem(jax.random.key(4))
    return loss_fn, *to_float64((params, episode))


def small_classification(ways: int = 3):
    keys = jax.random.split(jax.random.key(1), 2)
    labels = jnp.repeat(jnp.arange(ways), 2)
    return Episode(*(Batch(jax.random.normal(key, (2 * ways, 5), jnp.float64), labels) for key in keys))


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.05), optax.adam(0.05, eps_root=1e-8), optax.contrib.schedule_free_sgd(0.05)],
    ids=["sgd", "adam", "a state that holds parameters"],
)
def test_truncation_runs_from_first_order_to_exact(optimizer) -> None:
    loss_fn, params, episode = small_problem()

    def truncated(m):
        return truncated_maml_grad(loss_fn, params, episode, optimizer=optimizer, steps=4, backprop_steps=m)[0]

    def written_out(theta, m):
        state = optimizer.init(theta)
        for i in range(4):
            grads = jax.grad(loss_fn)(theta, episode.support)
            updates, state = optimizer.update(grads, state, theta)
            moved = optax.apply_updates(theta, updates)
            if i < 4 - m:  # as if this step moved every start alike
                moved = jax.tree.map(lambda a, b: a + jax.lax.stop_gradient(b - a), theta, moved)
                state = jax.lax.stop_gradient(state)
            theta = moved
        return loss_fn(theta, episode.query)

    for m in (0, 2, 4):
        assert_trees_close(truncated(m), jax.grad(written_out)(params, m), rtol=1e-9, atol=1e-12)
    for estimator, m in ((fomaml_grad, 0), (maml_grad, 4)):
        expected = estimator(loss_fn, params, episode, optimizer=optimizer, steps=4)[0]
        assert_trees_close(truncated(m), expected, rtol=1e-9, atol=1e-12)


def test_truncation_with_minibatches_sees_each_slice_once() -> None:
    loss_fn, params, episode = small_problem()
    support = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 3 * leaf]), episode.support)
    settings = {"optimizer": optax.sgd(0.01), "steps": 3, "minibatched": True}
    found, metrics = truncated_maml_grad(loss_fn, params, Episode(support, episode.query), backprop_steps=3, **settings)
    expected, also = maml_grad(loss_fn, params, Episode(support, episode.query), **settings)
    assert_trees_close(found, expected, rtol=1e-9)
    part, same = truncated_maml_grad(loss_fn, params, Episode(support, episode.query), backprop_steps=1, **settings)
    np.testing.assert_allclose([metrics["loss"], same["loss"]], [also["loss"]] * 2, rtol=1e-12)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, part, expected))) > 1e-6


@pytest.mark.parametrize(("factory", "moves"), [(anil, "head"), (boil, "dense_0")])
def test_anil_moves_the_head_and_boil_all_else(factory, moves: str) -> None:
    model, episode = nn.MLP((4,), 3, activation=jnp.tanh), small_classification()
    learner = factory(model, inner_optimizer=optax.sgd(0.5), steps=3)
    params = to_float64(learner.init(KEY, episode))
    grads, _ = learner.meta_grad(params, episode, KEY)
    by_mask = maml(model, inner_optimizer=optax.sgd(0.5), steps=3, mask=mask_by_path(lambda path: f"/{moves}/" in path))
    assert_trees_close(grads, by_mask.meta_grad(params, episode, KEY)[0], rtol=1e-12)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))
    stays = "dense_0" if moves == "head" else "head"
    moved_later = jax.tree.map(jnp.copy, params)
    moved_later["params"][stays]["kernel"] *= 1.1
    other, _ = learner.meta_grad(moved_later, episode, KEY)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, other, grads))) > 0


def test_a_head_that_is_not_there_is_named() -> None:
    model, episode = nn.MLP((4,), 3), small_classification()
    params = model.init(KEY, episode.support.x)
    for factory in (anil, boil):
        learner = factory(model, inner_optimizer=optax.sgd(0.5), head="top")
        with pytest.raises(ValueError, match="head='top' is a component of no parameter's path"):
            learner.meta_grad(params, episode, KEY)


def test_meta_sgd_with_one_rate_is_maml_and_its_rates_have_their_derivative() -> None:
    loss_fn, params, episode = small_problem()
    rates = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.05), params)
    grads, metrics = meta_sgd_grad(loss_fn, WithRates(params, rates), episode, steps=3)
    expected, also = maml_grad(loss_fn, params, episode, optimizer=optax.sgd(0.05), steps=3)
    assert_trees_close(grads.params, expected, rtol=1e-9, atol=1e-12)
    assert float(metrics["loss"]) == pytest.approx(float(also["loss"]), rel=1e-12)

    def objective(rates):
        theta = params
        for _ in range(3):
            step = jax.grad(loss_fn)(theta, episode.support)
            theta = jax.tree.map(lambda t, r, g: t - r * g, theta, rates, step)
        return loss_fn(theta, episode.query)

    direction = random_direction(params, 0)
    derivative = stencil_derivative(jax.jit(objective), rates, direction, 1e-3)
    assert inner_product(grads.rates, direction) == pytest.approx(derivative, rel=1e-7)


def test_meta_sgd_can_take_more_steps_in_test() -> None:
    episode, model = small_classification(), nn.MLP((4,), 3)
    few, further, many = meta_sgd(model, steps=1), meta_sgd(model, steps=1, eval_steps=3), meta_sgd(model, steps=3)
    params = few.init(KEY, episode)
    found = [learner.predict(params, episode.support, episode.query.x, KEY) for learner in (few, further, many)]
    np.testing.assert_array_equal(found[1], found[2])
    assert not np.allclose(found[0], found[1])


def test_meta_parameters_are_one_pytree() -> None:
    """Initialisation, rates and weights of the support's examples, learned together."""
    loss_fn, params, episode = small_problem()
    model = nn.MLP((16, 16), 1, activation=jnp.tanh)
    theta = {"network": params, "loss_weights": jnp.linspace(0.5, 1.5, 10)}
    meta = WithRates(theta, jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.05), theta))

    def weighted(p, batch):  # the support's targets come with a mark; the query's loss is the plain one
        targets, inner = batch.y
        errors = (model.apply(p["network"], batch.x) - targets) ** 2
        return jnp.where(inner, (p["loss_weights"][:, None] * errors).mean(), errors.mean())

    marked = Episode(
        *(Batch(part.x, (part.y, jnp.array(inner))) for part, inner in zip(episode, (True, False), strict=True))
    )
    adapting = mask_by_path(lambda path: "network" in path)
    grads, _ = meta_sgd_grad(weighted, meta, marked, steps=2, mask=adapting)

    def objective(meta):
        network = meta.params["network"]
        for _ in range(2):
            step = jax.grad(lambda n: weighted({**meta.params, "network": n}, marked.support))(network)
            network = jax.tree.map(lambda t, r, g: t - r * g, network, meta.rates["network"], step)
        return loss_fn(network, episode.query)

    assert_trees_close(grads, jax.grad(objective)(meta), rtol=1e-9, atol=1e-12)
    assert float(jnp.abs(grads.params["loss_weights"]).min()) > 0
    direction = random_direction(meta, 0)
    derivative = stencil_derivative(jax.jit(objective), meta, direction, 1e-3)
    assert inner_product(grads, direction) == pytest.approx(derivative, rel=1e-7)


def test_meta_sgd_draws_its_rates_and_leaves_out_what_does_not_adapt() -> None:
    episode = small_classification()
    mask = mask_by_path(lambda path: "head" in path)
    learner = meta_sgd(nn.MLP((4,), 3), rates=(0.1, 0.2), mask=mask)
    meta = learner.init(KEY, episode)
    rates = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(meta.rates)])
    assert 0.1 <= rates.min() < rates.max() <= 0.2
    grads, _ = learner.meta_grad(to_float64(meta), episode, KEY)
    assert float(jnp.abs(grads.rates["params"]["dense_0"]["kernel"]).max()) == 0
    assert float(jnp.abs(grads.rates["params"]["head"]["kernel"]).max()) > 0
    with pytest.raises(ValueError, match=r"rates must be a range \(low, high\), but is \(1, 0\)"):
        meta_sgd(nn.MLP((4,), 3), rates=(1, 0))


def pp(**kwargs):
    model = nn.MLP((4,), 3, norm=True, activation=jnp.tanh)
    learner = maml_pp(model, **{"steps": 3, "inner_lr": 0.4, "epoch": 2, "multi_step_epochs": 2, **kwargs})
    episode = small_classification()
    meta = to_float64(learner.init(KEY, episode))
    noise = random_direction(descended(meta), 3)
    meta = jax.tree.map(lambda a, b: a + b, descended(meta), noise)._replace(outer_step=meta.outer_step)
    return model, learner, episode, meta


def written_out_maml_pp(model, meta, episode, weights, steps: int, stop: bool = False):
    """The paper's equations, one step at a time."""

    def at(params, j):
        return {"params": {**params["params"], "norm_0": jax.tree.map(lambda g: g[j], params["params"]["norm_0"])}}

    def value(params, j, batch):
        return losses.cross_entropy(model.apply(at(params, j), batch.x), batch.y)

    theta, total, found = meta.params, 0.0, []
    for j in range(steps):
        step = jax.grad(value)(theta, j, episode.support)
        step = jax.lax.stop_gradient(step) if stop else step
        moved = {
            name: jax.tree.map(lambda t, r, g, j=j: t - r[j] * g, theta["params"][name], rates, step["params"][name])
            for name, rates in meta.rates["params"].items()
            if name != "norm_0"
        }
        theta = {"params": {**theta["params"], **moved}}
        found.append(value(theta, j, episode.query))
        total += weights[j] * found[-1]
    return total, found


@pytest.mark.parametrize(
    ("outer_steps", "weights", "stop"),
    [
        (0, [1 / 3, 1 / 3, 1 / 3], True),  # epoch 0: equal weights; first order for one epoch
        (2, [1 / 6, 1 / 6, 2 / 3], False),  # epoch 1 of 2
        (4, [0.0, 0.0, 1.0], False),  # annealed: the last step alone
    ],
)
def test_maml_pp_is_the_paper_s_equations(outer_steps: int, weights, stop: bool) -> None:
    model, learner, episode, meta = pp(first_order_epochs=1)
    meta = meta._replace(outer_step=meta.outer_step._replace(value=jnp.array(outer_steps)))
    grads, metrics = jax.jit(learner.meta_grad)(meta, episode, KEY)

    def objective(learned):
        return written_out_maml_pp(model, meta._replace(**learned), episode, weights, 3, stop)

    learned = {"params": meta.params, "rates": meta.rates}
    (total, found), expected = jax.value_and_grad(objective, has_aux=True)(learned)
    assert_trees_close(grads.params, expected["params"], rtol=1e-9, atol=1e-12)
    assert_trees_close(grads.rates, expected["rates"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose((metrics["meta_loss"], metrics["loss"]), (total, found[-1]), rtol=1e-12)
    path = learner.predict_path(meta, episode.support, episode.query.x, KEY)
    judged = [losses.cross_entropy(logits, episode.query.y) for logits in path[1:]]
    np.testing.assert_allclose(judged, found, rtol=1e-9)


def test_maml_pp_counts_its_outer_steps_and_learns_a_normalisation_for_each_inner_one() -> None:
    _, learner, episode, meta = pp()
    optimizer = optax.sgd(0.1)
    state = optimizer.init(descended(meta))
    for expected in (1, 2):
        grads, _ = learner.meta_grad(meta, episode, KEY)
        meta, state = outer_step(optimizer, meta, grads, state)
        assert int(meta.outer_step.value) == expected
    offsets = meta.params["params"]["norm_0"]["bias"]
    assert offsets.shape == (3, 4)
    assert len({tuple(np.round(row, 6)) for row in np.asarray(offsets)}) == 3
    assert meta.rates["params"]["head"]["kernel"].shape == (3,)


def test_maml_pp_without_its_additions_is_maml() -> None:
    model, learner, episode, _ = pp(multi_step_epochs=0)
    meta = to_float64(learner.init(KEY, episode))
    grads, _ = learner.meta_grad(meta, episode, KEY)
    mask = mask_by_path(lambda path: "norm_" not in path)
    plain = maml(model, inner_optimizer=optax.sgd(0.4), steps=3, mask=mask)
    params = to_float64(plain.init(KEY, episode))
    expected, _ = plain.meta_grad(params, episode, KEY)
    summed = grads.params["params"]
    summed = {"params": {**summed, "norm_0": jax.tree.map(lambda g: g.sum(0), summed["norm_0"])}}
    assert_trees_close(summed, expected, rtol=1e-6, atol=1e-8)  # 0.4 comes in single precision
    args = (episode.support, episode.query.x, KEY)
    np.testing.assert_allclose(learner.predict(meta, *args), plain.predict(params, *args), rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, but is 0"),
        ({"inner_lr": 0.0}, "inner_lr must be positive, but is 0.0"),
        ({"epoch": 0}, "epoch must be 1 or more, but is 0"),
        ({"multi_step_epochs": -1}, "multi_step_epochs must be 0 or more, but is -1"),
        ({"first_order_epochs": -1}, "first_order_epochs must be 0 or more, but is -1"),
    ],
)
def test_maml_pp_refuses_numbers_out_of_range(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maml_pp(nn.MLP((4,), 3), **kwargs)


def test_maml_pp_wants_to_know_what_normalises() -> None:
    episode = small_classification()
    with pytest.raises(ValueError, match="norm='norm_' begins no component"):
        maml_pp(nn.MLP((4,), 3)).init(KEY, episode)
    learner = maml_pp(nn.MLP((4,), 3), norm=None)
    meta = learner.init(KEY, episode)
    args = episode.support, episode.query.x, KEY
    np.testing.assert_array_equal(learner.predict(jax.device_get(meta), *args), learner.predict(meta, *args))
    assert meta.params["params"]["head"]["kernel"].shape == (4, 3)


def test_steps_beyond_the_rates_are_not_a_number() -> None:
    optimizer = sgd(jnp.array([0.1, 0.2]), per_step=True)
    state, found = optimizer.init(jnp.array(1.0)), []
    for _ in range(3):
        update, state = optimizer.update(jnp.array(1.0), state)
        found.append(float(update))
    np.testing.assert_array_equal(found, [-0.1, -0.2, np.nan])
    given = sgd(np.array([0.1, 0.2]), per_step=True)
    np.testing.assert_array_equal(given.update(jnp.array(1.0), jnp.array(1))[0], found[1])


def test_rates_that_are_all_alike_behave_like_optax_s_sgd() -> None:
    grads = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    ours = sgd(jax.tree.map(lambda _: jnp.array(0.1), grads))
    updates, _ = ours.update(grads, ours.init(grads))
    assert_trees_close(updates, optax.sgd(0.1).update(grads, optax.sgd(0.1).init(grads))[0], rtol=1e-12)
    assert_trees_equal(jax.tree.structure(updates), jax.tree.structure(grads))
    with pytest.raises(ValueError, match=r"rates must be a tree .* optax.sgd takes one rate for all"):
        sgd(0.1).update(grads, ours.init(grads))


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    "estimate",
    [
        functools.partial(maml_grad, optimizer=optax.sgd(0.25)),
        functools.partial(fomaml_grad, optimizer=optax.sgd(0.25)),
        functools.partial(truncated_maml_grad, optimizer=optax.sgd(0.25), backprop_steps=0),
        functools.partial(imaml_grad, optimizer=optax.sgd(0.25), proximal=1.0),
        lambda loss, params, *args, steps: meta_sgd_grad(
            loss, WithRates(params, 0.25 * jnp.ones(1)), *args, steps=steps
        )[0],
    ],
    ids=["maml", "fomaml", "truncated", "imaml", "meta_sgd"],
)
def test_inside_shard_map_no_outer_gradient_is_summed_over_devices(estimate, steps) -> None:
    """Two devices, a query set each on one support set: shared parameters would get the sum of both gradients."""
    mesh, queries = jax.sharding.Mesh(jax.devices()[:2], ("tasks",)), jnp.array([[1.0], [-2.0]])
    specs = {"mesh": mesh, "in_specs": (jax.P(), jax.P("tasks")), "out_specs": jax.P("tasks")}

    def gradient(params, query):
        loss = lambda w, target: jnp.sum((w - target) ** 2)  # noqa: E731
        return estimate(loss, params, Episode(jnp.ones(1), query[0]), steps=steps)[0][None]

    with pytest.raises(ValueError, match=r"the mesh axes \('tasks',\) and params do not.* check_vma=False"):
        jax.jit(jax.shard_map(gradient, **specs))(jnp.zeros(1), queries)
    alone = [gradient(jnp.zeros(1), query)[0] for query in queries[:, None]]
    divided = jax.shard_map(gradient, check_vma=False, **specs)
    np.testing.assert_allclose(jax.jit(divided)(jnp.zeros(1), queries), alone, rtol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        (maml_grad, {"optimizer": optax.sgd(0.1)}),
        (fomaml_grad, {"optimizer": optax.sgd(0.1)}),
        (truncated_maml_grad, {"optimizer": optax.sgd(0.1), "backprop_steps": 1}),
        (imaml_grad, {"optimizer": optax.sgd(0.1), "proximal": 1.0}),
        (meta_sgd_grad, {}),
    ],
)
def test_a_pair_is_no_episode(estimator, options) -> None:
    with pytest.raises(TypeError, match=r"episode must be a jaxmeta.Episode\(support, query\), but is a tuple"):
        estimator(lambda w, batch: w * batch, jnp.array(1.0), (jnp.array(1.0), jnp.array(2.0)), steps=1, **options)


def test_bad_factories_are_refused_where_they_are_made() -> None:
    for factory in (maml, fomaml, anil, boil):
        with pytest.raises(TypeError, match=r"must be an Optax transformation, such as optax.sgd\(0.1\), but is 0.1"):
            factory(nn.MLP((4,), 3), inner_optimizer=0.1)
        with pytest.raises(ValueError, match="eval_steps must be 0 or more, but is -2"):
            factory(nn.MLP((4,), 3), inner_optimizer=optax.sgd(0.1), eval_steps=-2)


def test_maml_pp_in_half_precision() -> None:
    learner = maml_pp(nn.MLP((4,), 3), steps=2, inner_lr=0.1, norm=None)
    x, y = jnp.ones((6, 2), jnp.bfloat16), jnp.arange(6) % 3
    episode = Episode(Batch(x, y), Batch(x, y))
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf,
        learner.init(jax.random.key(0), episode),
    )
    grads, metrics = learner.meta_grad(params, episode, jax.random.key(1))
    assert metrics["loss"].dtype == jnp.bfloat16
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_maml_pp_weights_of_early_steps_have_a_floor() -> None:
    """0.03 / K, however many epochs the annealing takes."""
    weights = multi_step_weights(jnp.array(98), steps=5, epochs=100)
    np.testing.assert_allclose(weights, [0.006] * 4 + [0.976], rtol=1e-6)


def test_steps_and_losses_that_are_none_are_refused_by_the_factory() -> None:
    with pytest.raises(TypeError, match="steps must be an int, but is None"):
        maml(nn.MLP((4,), 2), inner_optimizer=sgd(0.1), steps=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"loss must be a function .* but is 'mse'"):
        maml(nn.MLP((4,), 2), inner_optimizer=sgd(0.1), loss="mse")  # pyright: ignore[reportArgumentType]
