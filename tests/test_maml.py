"""MAML's and FOMAML's gradients against independent oracles."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    assert_trees_close,
    classification_problem,
    inner_product,
    random_direction,
    regression_problem,
    stencil_derivative,
    to_float64,
)

from jaxmeta import (
    Batch,
    Episode,
    adapt,
    clip_by_global_norm,
    fomaml,
    fomaml_grad,
    losses,
    maml,
    maml_grad,
    mask_by_path,
    nn,
)
from jaxmeta.inner import check_differentiable

PROBLEMS = {"mlp_mse": (regression_problem, 0.05, 1e-3), "conv4_cross_entropy": (classification_problem, 0.1, 1e-6)}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_maml_grad_matches_finite_differences(problem: str, steps: int) -> None:
    make, rate, h = PROBLEMS[problem]
    loss_fn, params, episode = make(jax.random.key(3))
    params, episode = to_float64((params, episode))
    optimizer = optax.sgd(rate)

    @jax.jit
    def objective(theta):
        return loss_fn(adapt(loss_fn, theta, episode.support, optimizer=optimizer, steps=steps).params, episode.query)

    grads, metrics = jax.jit(lambda p: maml_grad(loss_fn, p, episode, optimizer=optimizer, steps=steps))(params)
    assert float(metrics["loss"]) == pytest.approx(float(objective(params)), rel=1e-12)
    for seed in range(3):
        # Along the gradient as well as at random: a random direction of a large net sees little of it.
        direction = jax.tree.map(lambda g, r: g / optax.tree.norm(grads) + r, grads, random_direction(params, seed))
        expected = stencil_derivative(objective, params, direction, h)
        assert inner_product(grads, direction) == pytest.approx(expected, rel=1e-7)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_fomaml_grad_is_the_query_gradient_at_the_adapted_parameters(problem: str) -> None:
    make, rate, _ = PROBLEMS[problem]
    loss_fn, params, episode = make(jax.random.key(0))
    params, episode = to_float64((params, episode))
    theta = params
    for _ in range(3):  # the inner loop, written out
        theta = jax.tree.map(lambda p, g: p - rate * g, theta, jax.grad(loss_fn)(theta, episode.support))
    grads, metrics = fomaml_grad(loss_fn, params, episode, optimizer=optax.sgd(rate), steps=3)
    assert_trees_close(grads, jax.grad(loss_fn)(theta, episode.query), rtol=1e-9, atol=1e-12)
    assert float(metrics["loss"]) == pytest.approx(float(loss_fn(theta, episode.query)), rel=1e-12)


def quadratic(params: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    curvature, centre = batch
    return curvature * (params - centre) ** 2


@pytest.mark.usefixtures("float64")
def test_worked_example() -> None:
    """L1 = (phi - 1)^2, L2 = 1.5 (phi + 2)^2 at phi = 0 with alpha = 0.1: 5.28 and 6.6, by hand."""
    episode = Episode(support=(1.0, 1.0), query=(1.5, -2.0))  # pyright: ignore
    maml_value, _ = maml_grad(quadratic, jnp.array(0.0), episode, optimizer=optax.sgd(0.1), steps=1)
    fomaml_value, _ = fomaml_grad(quadratic, jnp.array(0.0), episode, optimizer=optax.sgd(0.1), steps=1)
    np.testing.assert_allclose([maml_value, fomaml_value], [5.28, 6.6], rtol=1e-15)


@pytest.mark.usefixtures("float64")
def test_maml_on_a_quadratic_has_its_closed_form() -> None:
    """With Hessians A and B: (I - alpha A)^K B (phi_K - c)."""
    rng = np.random.default_rng(0)
    a, b = (m @ m.T for m in rng.normal(size=(2, 4, 4)))
    centre, theta = rng.normal(size=(2, 4))
    alpha, steps = 0.02, 7
    shrink = np.linalg.matrix_power(np.eye(4) - alpha * a, steps)
    expected = shrink @ b @ (shrink @ theta - centre)

    def loss_fn(params, batch):
        hessian, at = batch
        return 0.5 * (params - at) @ hessian @ (params - at)

    episode = Episode((jnp.asarray(a), jnp.zeros(4)), (jnp.asarray(b), jnp.asarray(centre)))  # pyright: ignore
    grads, _ = maml_grad(loss_fn, jnp.asarray(theta), episode, optimizer=optax.sgd(alpha), steps=steps)
    np.testing.assert_allclose(grads, expected, rtol=1e-12)


def test_fomaml_is_maml_where_the_inner_hessian_is_zero() -> None:
    episode = Episode(jnp.arange(3.0), jnp.ones(3))  # pyright: ignore
    params = jnp.array([0.3, -1.0, 2.0])

    def loss_fn(params, batch):  # linear on the support set, curved on the query set
        return jnp.where(batch[0] == 1.0, jnp.sum(jnp.sin(params) * batch), jnp.sum(params * batch))

    exact, _ = maml_grad(loss_fn, params, episode, optimizer=optax.sgd(0.5), steps=3)
    first_order, _ = fomaml_grad(loss_fn, params, episode, optimizer=optax.sgd(0.5), steps=3)
    np.testing.assert_allclose(exact, first_order, rtol=1e-6)


@pytest.mark.parametrize("estimator", [maml_grad, fomaml_grad])
def test_without_adaptation_the_gradient_is_joint(estimator) -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(1))
    joint = jax.grad(loss_fn)(params, episode.query)
    for optimizer, steps in ((optax.sgd(0.0), 3), (optax.sgd(0.1), 0)):
        grads, _ = estimator(loss_fn, params, episode, optimizer=optimizer, steps=steps)
        assert_trees_close(grads, joint, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("float64")
def test_inner_rate_on_the_mean_loss_is_ways_times_that_of_the_reference_code() -> None:
    """MAML's code differentiates the vector of N*K cross-entropies divided by K, that is, their sum over K."""
    loss_fn, params, episode = classification_problem(jax.random.key(5))
    params, episode = to_float64((params, episode))
    ways, shots, rate = 3, 2, 0.4

    model = nn.Conv4(3, features=4, pool="stride", readout="mean")

    def summed(params, batch):
        log_p = jax.nn.log_softmax(model.apply(params, batch.x))
        return -sum(log_p[i, label] for i, label in enumerate(batch.y.tolist())) / shots

    here = adapt(loss_fn, params, episode.support, optimizer=optax.sgd(ways * rate), steps=2)
    there = adapt(summed, params, episode.support, optimizer=optax.sgd(rate), steps=2)
    assert_trees_close(here.params, there.params, rtol=1e-9, atol=1e-12)


def test_frozen_parameters_receive_their_direct_gradient() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(2))
    head_only = mask_by_path(lambda path: "head" in path)
    grads, _ = maml_grad(loss_fn, params, episode, optimizer=optax.sgd(0.1), steps=2, mask=head_only)

    def split_objective(body, head):  # the same objective, with the body outside the inner loop
        def head_loss(h, batch):
            return loss_fn({"params": {**body, "head": h}}, batch)

        return head_loss(
            adapt(head_loss, head, episode.support, optimizer=optax.sgd(0.1), steps=2).params, episode.query
        )

    body = {name: leaf for name, leaf in params["params"].items() if name != "head"}
    expected = jax.grad(split_objective, (0, 1))(body, params["params"]["head"])
    assert_trees_close({**grads["params"]}, {**expected[0], "head": expected[1]}, rtol=1e-4, atol=1e-6)


def test_metrics_of_the_query_set_are_passed_on() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(0))

    def scored(params, batch):
        loss = loss_fn(params, batch)
        return loss, {"root": jnp.sqrt(loss)}

    for estimator in (maml_grad, fomaml_grad):
        _, metrics = estimator(scored, params, episode, optimizer=optax.sgd(0.1), steps=1, has_aux=True)
        assert set(metrics) == {"loss", "root"}
        assert float(metrics["root"]) ** 2 == pytest.approx(float(metrics["loss"]), rel=1e-5)


def test_compile_time_does_not_grow_with_steps() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(0))

    def size(steps: int) -> int:
        estimate = jax.make_jaxpr(lambda p: maml_grad(loss_fn, p, episode, optimizer=optax.sgd(0.1), steps=steps))
        return len(str(estimate(params)))

    assert size(50) < 1.05 * size(2)


@pytest.mark.parametrize("factory", [maml, fomaml])
def test_predict_path_starts_before_adaptation_and_ends_at_predict(factory) -> None:
    model = nn.MLP((8,), 3)
    learner = factory(model, inner_optimizer=optax.sgd(0.5), steps=1, eval_steps=4)
    key = jax.random.key(0)
    batch = Batch(jax.random.normal(key, (6, 4)), jnp.repeat(jnp.arange(3), 2))
    params = learner.init(key, Episode(batch, batch))
    path = learner.predict_path(params, batch, batch.x, key)
    assert path.shape == (5, 6, 3)
    np.testing.assert_allclose(path[0], model.apply(params, batch.x), rtol=1e-6)
    np.testing.assert_allclose(path[-1], learner.predict(params, batch, batch.x, key), rtol=1e-5)
    assert losses.cross_entropy(path[-1], batch.y) < losses.cross_entropy(path[0], batch.y)


def test_a_model_with_running_state_is_refused() -> None:
    import flax.linen as fnn

    class WithState(fnn.Module):
        @fnn.compact
        def __call__(self, x):
            return fnn.Dense(2)(fnn.BatchNorm(use_running_average=False)(x))

    batch = Batch(jnp.ones((4, 3)), jnp.arange(4) % 2)
    learner = maml(WithState(), inner_optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"model keeps state beside its parameters \(batch_stats\)"):
        learner.init(jax.random.key(0), Episode(batch, batch))


def test_a_model_without_init_or_with_random_numbers_is_refused() -> None:
    import flax.linen as fnn

    class WithDropout(fnn.Module):
        @fnn.compact
        def __call__(self, x):
            return fnn.Dropout(0.5, deterministic=False)(fnn.Dense(2)(x))

    batch = Batch(jnp.ones((4, 3)), jnp.arange(4) % 2)
    episode, key = Episode(batch, batch), jax.random.key(0)
    with pytest.raises(ValueError, match="model draws random numbers, as dropout does"):
        maml(WithDropout(), inner_optimizer=optax.sgd(0.1)).init(key, episode)
    with pytest.raises(TypeError, match=r"model must have init\(key, x\) and apply\(params, x\)"):
        maml(lambda params, x: x, inner_optimizer=optax.sgd(0.1)).init(key, episode)  # type: ignore


def test_no_metric_is_named_as_the_loss_is() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(0))
    named = lambda p, b: (loss_fn(p, b), {"loss": 0.0})  # noqa: E731
    with pytest.raises(ValueError, match='no metric may be named "loss"'):
        maml_grad(named, params, episode, optimizer=optax.sgd(0.1), steps=1, has_aux=True)


def test_unknown_parameter_containers_pass_through() -> None:
    """Any pytree and any callable: no Flax in the estimators."""
    params = (jnp.ones(2), [jnp.zeros(()), {"w": jnp.ones((2, 2))}])
    episode = Episode(jnp.ones(2), jnp.arange(2.0))  # pyright: ignore

    def loss_fn(params, batch):
        a, (b, c) = params
        return jnp.sum((c["w"] @ a + b - batch) ** 2)

    grads, _ = maml_grad(loss_fn, params, episode, optimizer=optax.adam(0.1, eps_root=1e-8), steps=3)
    chex.assert_trees_all_equal_structs(grads, params)
    chex.assert_tree_all_finite(grads)


def curved_task() -> tuple[nn.MLP, Episode]:
    key = jax.random.key(0)
    batches = [Batch(jax.random.normal(k, (6, 4)), jnp.repeat(jnp.arange(3), 2)) for k in jax.random.split(key)]
    episode = Episode(*batches)
    return nn.MLP((8,), 3, activation=jnp.tanh), to_float64(episode) if jax.config.jax_enable_x64 else episode


HEAD = mask_by_path(lambda path: "head" in path)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("factory", "estimator"), [(maml, maml_grad), (fomaml, fomaml_grad)])
@pytest.mark.parametrize("mask", [None, HEAD])
def test_the_factory_hands_everything_on_to_its_estimator(factory, estimator, mask) -> None:
    model, episode = curved_task()
    learner = factory(model, inner_optimizer=optax.sgd(0.3), steps=3, mask=mask)
    params = to_float64(learner.init(jax.random.key(1), episode))
    found, metrics = learner.meta_grad(params, episode, jax.random.key(2))

    def loss_fn(p, batch):
        return losses.cross_entropy(model.apply(p, batch.x), batch.y)

    expected, _ = estimator(loss_fn, params, episode, optimizer=optax.sgd(0.3), steps=3, mask=mask)
    assert_trees_close(found, expected, rtol=1e-10, atol=1e-13)
    adapted = adapt(loss_fn, params, episode.support, optimizer=optax.sgd(0.3), steps=3, mask=mask).params
    logits = model.apply(adapted, episode.query.x)
    assert float(metrics["accuracy"]) == float(losses.accuracy(logits, episode.query.y))
    np.testing.assert_allclose(
        learner.predict(params, episode.support, episode.query.x, jax.random.key(0)), logits, rtol=1e-10
    )


@pytest.mark.usefixtures("float64")
def test_estimators_differ_on_a_curved_task() -> None:
    model, episode = curved_task()
    learners = [factory(model, inner_optimizer=optax.sgd(0.3), steps=3) for factory in (maml, fomaml)]
    params = to_float64(learners[0].init(jax.random.key(1), episode))
    exact, first = (learner.meta_grad(params, episode, jax.random.key(2))[0] for learner in learners)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, exact, first))
    assert difference > 0.01 * optax.tree.norm(exact)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", [None, (True, False)])
def test_estimators_with_minibatches_are_the_loop_written_out(mask) -> None:
    """One target a step; parameters (w, v), of which v may stay."""
    params = (jnp.array(0.5), jnp.array(-0.3))
    episode = Episode(jnp.array([1.0, -2.0, 0.7]), jnp.array(0.4))  # pyright: ignore

    def loss_fn(p, target):
        w, v = p
        return jnp.sin(w * v + target) + (w - target * v) ** 2

    def written_out(p, stop):
        start = p
        for target in episode.support:
            grads = jax.grad(loss_fn)(p, target)
            if stop:
                grads = jax.lax.stop_gradient(grads)
            w, v = (a - 0.05 * g for a, g in zip(p, grads, strict=True))
            p = (w, start[1] if mask else v)
        return loss_fn(p, episode.query)

    for estimator, stop in ((maml_grad, False), (fomaml_grad, True)):
        found, _ = estimator(loss_fn, params, episode, optimizer=optax.sgd(0.05), steps=3, minibatched=True, mask=mask)
        np.testing.assert_allclose(found, jax.grad(written_out)(params, stop), rtol=1e-12)


def test_adam_wants_eps_root_where_a_gradient_is_exactly_zero() -> None:
    """A parameter that the support set never touches: the square root of its second moment has no derivative."""
    params, episode = jnp.array([1.0, 2.0]), Episode(jnp.array([1.0, 0.0]), jnp.ones(2))  # pyright: ignore

    def loss_fn(p, x):
        return jnp.sum((p * x - 1.0) ** 2) + jnp.sum(p * x)

    grads, _ = maml_grad(loss_fn, params, episode, optimizer=optax.adam(0.1, eps_root=1e-8), steps=2)
    assert jnp.isfinite(grads).all()
    turned = optax.stateless(lambda updates, _: jnp.array([[0.0, 1.0], [1.0, 0.0]]) @ updates)  # of two entries alone
    chained = optax.chain(turned, optax.adam(0.1))
    functions = {name: staticmethod(getattr(chained, name)) for name in ("init", "update")}
    unhashable = type("Inner", (), {"__hash__": None, **functions})()
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    for inner in (optax.adam(0.1), clipped, chained, unhashable):
        with pytest.raises(ValueError, match=r"no finite derivative where gradients are zero.* eps_root=1e-8"):
            jax.jit(lambda p, inner=inner: maml_grad(loss_fn, p, episode, optimizer=inner, steps=2))(params)
        first_order, _ = fomaml_grad(loss_fn, params, episode, optimizer=inner, steps=2)
        assert jnp.isfinite(first_order).all()


def test_an_optimiser_that_cannot_be_differentiated_is_refused_with_a_learned_rate_too() -> None:
    loss_fn, episode = lambda p, x: jnp.sum((p * x - 1.0) ** 2), Episode(jnp.array([1.0, 0.0]), jnp.ones(2))

    @jax.jit
    def with_rate(rate):
        return maml_grad(loss_fn, jnp.ones(2), episode, optimizer=optax.adam(rate), steps=2)[0]  # pyright: ignore

    with pytest.raises(ValueError, match=r"no finite derivative where gradients are zero"):
        with_rate(0.1)
    with pytest.raises(ValueError, match=r"searches in a loop: take one that does not, such as optax.sgd"):
        maml_grad(loss_fn, jnp.ones(2), episode, optimizer=optax.lbfgs(), steps=2)  # pyright: ignore


def test_optimisers_are_asked_at_real_shapes_and_away_from_zero() -> None:
    ask = functools.partial(check_differentiable, params={"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"gradients are zero and itself is not.* such as optax.lars\(.., eps=1e-8\)"):
        ask(optax.lars(0.1))
    ask(optax.lars(0.1, eps=1e-8))

    def standardised(divide):
        return optax.stateless(lambda updates, _: jax.tree.map(lambda g: (g - g.mean()) * divide(g), updates))

    ask(standardised(lambda g: jax.lax.rsqrt(g.var(ddof=1) + 1e-6)))  # NaN of a single entry, but only there
    with pytest.raises(ValueError, match="no finite derivative where gradients are zero, and"):
        ask(standardised(lambda g: 1 / g.std() if g.size > 1 else 1.0))


def test_an_optimiser_that_cannot_be_asked_is_let_through() -> None:
    plain = lambda updates, state, params=None: (updates, state)  # noqa: E731
    check_differentiable(optax.GradientTransformation(lambda params: int(params[0]), plain), jnp.ones(2))


def test_asking_whether_an_optimiser_can_be_differentiated_keeps_nothing_of_a_trace() -> None:
    loss_fn, episode = lambda p, x: jnp.sum((p * x - 1.0) ** 2), Episode(jnp.array([1.0, 0.0]), jnp.ones(2))
    with jax.checking_leaks():
        jax.jit(lambda r: maml_grad(loss_fn, jnp.ones(2), episode, optimizer=optax.sgd(r), steps=2)[0])(0.1)  # pyright: ignore

        def holds(rate):  # in its state alone
            keeps = optax.GradientTransformation(
                lambda params: rate, lambda updates, state, params=None: (updates, state)
            )
            check_differentiable(keeps, jnp.ones(2))
            return rate

        jax.jit(holds)(0.1)


def test_metrics_come_as_a_dict() -> None:
    episode = Episode(*[Batch(jnp.ones(2), jnp.ones(2))] * 2)
    with pytest.raises(TypeError, match=r"aux to be a dict of metrics, but it is"):
        maml_grad(
            lambda p, b: (jnp.sum((p - b.x) ** 2), p),
            jnp.ones(2),
            episode,
            optimizer=optax.sgd(0.1),
            steps=1,
            has_aux=True,
        )


def test_clipping_by_norm_is_optaxs_and_has_a_derivative_at_zero() -> None:
    ours, theirs = clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    for scale in (0.1, 10.0):
        grads = {"a": scale * jnp.array([1.0, -2.0]), "b": scale * jnp.array(0.5)}
        assert_trees_close(ours.update(grads, None)[0], theirs.update(grads, optax.EmptyState())[0], rtol=1e-6)
    halves, _ = ours.update(jnp.array([300.0, 400.0], jnp.float16), None)  # whose squares overflow
    np.testing.assert_allclose(halves, [0.6, 0.8], rtol=2e-3)
    slope = jax.jacobian(lambda g: ours.update(g, None)[0])(jnp.zeros(3))
    np.testing.assert_array_equal(slope, jnp.eye(3))
    with pytest.raises(ValueError, match="max_norm must be positive, but is 0"):
        clip_by_global_norm(0)


def test_transformations_that_want_the_loss_get_it() -> None:
    adapted = adapt(
        lambda w, t: jnp.sum((w - t) ** 2), jnp.zeros(2), jnp.ones(2), optimizer=optax.polyak_sgd(), steps=20
    )
    assert float(adapted.losses[-1]) < 1e-3


def test_episodes_that_a_model_cannot_learn_from_are_named() -> None:
    model, episode = curved_task()
    learner = maml(model, inner_optimizer=optax.sgd(0.3))
    params = learner.init(jax.random.key(0), episode)
    empty = episode._replace(query=jax.tree.map(lambda leaf: leaf[:0], episode.query))
    with pytest.raises(ValueError, match="query holds no examples"):
        learner.meta_grad(params, empty, jax.random.key(0))
    small = maml(nn.MLP((8,), 2), inner_optimizer=optax.sgd(0.3))
    with pytest.raises(ValueError, match=r"the model has 2 outputs, but the labels are 0\.\.2"):
        small.init(jax.random.key(0), episode)
