"""MAML's and FOMAML's gradients against independent oracles."""

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

from jaxmeta import Batch, Episode, adapt, fomaml, fomaml_grad, losses, maml, maml_grad, mask_by_path, nn

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
    """MAML's code differentiates a sum over N*K examples divided by K: 0.4 there is N * 0.4 on the mean."""
    loss_fn, params, episode = classification_problem(jax.random.key(5))
    params, episode = to_float64((params, episode))
    ways, shots, rate = 3, 2, 0.4

    def summed(params, batch):
        return loss_fn(params, batch) * batch.y.shape[0] / shots

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
