"""iMAML against closed forms, converged unrolling, and what can go wrong in a solver."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, regression_problem, to_float64

from jaxmeta import Episode, imaml, imaml_grad, losses, maml_grad, mask_by_path, nn
from jaxmeta.optimization._imaml import proximal_loss

LAMBDA = 2.0


def quadratic(seed: int, size: int = 6):
    """L_S = phi A phi / 2 + b phi with A positive definite; L_Q = |phi - c|^2 / 2."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    a, b, c = jnp.asarray(root @ root.T / size), jnp.asarray(rng.normal(size=size)), jnp.asarray(rng.normal(size=size))

    def loss_fn(phi, kind):
        return jnp.where(kind == 0, phi @ a @ phi / 2 + b @ phi, jnp.sum((phi - c) ** 2) / 2)

    return loss_fn, a, b, c, Episode(jnp.array(0), jnp.array(1))  # pyright: ignore


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(3))
def test_a_quadratic_has_its_closed_form(seed: int) -> None:
    loss_fn, a, b, c, episode = quadratic(seed)
    theta = jnp.linspace(-1.0, 1.0, 6)
    grads, metrics = imaml_grad(
        loss_fn, theta, episode, optimizer=optax.sgd(0.2), steps=300, proximal=LAMBDA, solver_steps=6
    )
    matrix = jnp.eye(6) + a / LAMBDA
    phi = jnp.linalg.solve(matrix, theta - b / LAMBDA)
    np.testing.assert_allclose(grads, jnp.linalg.solve(matrix, phi - c), rtol=1e-10)
    assert float(metrics["inner_residual"]) < 1e-12
    assert float(metrics["solver_residual"]) < 1e-10
    assert float(metrics["solver_stopped"]) == 0
    assert float(metrics["loss"]) == pytest.approx(float(jnp.sum((phi - c) ** 2) / 2), rel=1e-10)


@pytest.mark.usefixtures("float64")
def test_damping_is_in_the_equation_and_neumann_is_its_series() -> None:
    loss_fn, a, b, c, episode = quadratic(0)
    theta = jnp.linspace(-1.0, 1.0, 6)
    settings = {"optimizer": optax.sgd(0.05), "steps": 600}
    damped, _ = imaml_grad(loss_fn, theta, episode, proximal=LAMBDA, damping=0.5, solver_steps=6, **settings)
    phi = jnp.linalg.solve(jnp.eye(6) + a / LAMBDA, theta - b / LAMBDA)
    np.testing.assert_allclose(damped, jnp.linalg.solve(1.5 * jnp.eye(6) + a / LAMBDA, phi - c), rtol=1e-9)
    strong = 10.0
    phi = jnp.linalg.solve(jnp.eye(6) + a / strong, theta - b / strong)
    series = sum(jnp.linalg.matrix_power(-a / strong, i) @ (phi - c) for i in range(5))
    settings |= {"proximal": strong, "solver": "neumann", "solver_steps": 4}
    found, metrics = imaml_grad(loss_fn, theta, episode, **settings)
    np.testing.assert_allclose(found, series, rtol=1e-9)
    residual = jnp.linalg.norm((jnp.eye(6) + a / strong) @ series - (phi - c)) / jnp.linalg.norm(phi - c)
    assert float(metrics["solver_residual"]) == pytest.approx(float(residual), rel=1e-6)


def converged_problem():
    loss_fn, params, episode = regression_problem(jax.random.key(4))
    return loss_fn, *to_float64((params, episode))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", [None, mask_by_path(lambda path: "dense_0" not in path)])
def test_on_a_solved_problem_it_is_the_gradient_through_the_solution(mask) -> None:
    """The proximal objective descended in a loop and differentiated through: once solved, the start is forgotten."""
    loss_fn, params, episode = converged_problem()
    found, metrics = jax.jit(
        lambda p: imaml_grad(
            loss_fn, p, episode, optimizer=optax.sgd(0.1), steps=400, proximal=LAMBDA, solver_steps=20, mask=mask
        )
    )(params)
    assert float(metrics["inner_residual"]) < 1e-10

    def unrolled(theta):
        moves = mask(theta) if mask else jax.tree.map(lambda _: True, theta)

        def step(phi, _):
            grads = jax.grad(proximal_loss(loss_fn, theta, LAMBDA))(phi, episode.support)
            return jax.tree.map(lambda p, g, m, t: p - 0.1 * g if m else t, phi, grads, moves, theta), None

        return loss_fn(jax.lax.scan(step, theta, length=400)[0], episode.query)

    expected = jax.jit(jax.grad(unrolled))(params)
    distance = optax.tree.norm(jax.tree.map(jnp.subtract, found, expected)) / optax.tree.norm(expected)
    assert float(distance) < 1e-7
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(found))


def test_five_conjugate_gradient_steps_come_within_five_ten_thousandths() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(4))
    few, many = (
        imaml_grad(
            loss_fn, params, episode, optimizer=optax.sgd(0.1), steps=64, proximal=LAMBDA, solver_steps=solver_steps
        )[0]
        for solver_steps in (5, 20)
    )
    distance = optax.tree.norm(jax.tree.map(jnp.subtract, few, many)) / optax.tree.norm(many)
    assert float(distance) < 5e-4


def test_memory_does_not_grow_with_inner_steps() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(4))

    def temp(steps):
        step = jax.jit(
            lambda p: imaml_grad(loss_fn, p, episode, optimizer=optax.sgd(0.1), steps=steps, proximal=LAMBDA)[0]
        )
        return step.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temp(32) == temp(64)


@pytest.mark.usefixtures("float64")
def test_solvers_survive_being_done_and_meeting_no_curvature() -> None:
    loss_fn, _, _, _, episode = quadratic(1, size=2)
    settings = {"optimizer": optax.sgd(0.2), "steps": 200}
    grads, metrics = imaml_grad(loss_fn, jnp.ones(2), episode, proximal=LAMBDA, solver_steps=40, **settings)
    assert jnp.isfinite(grads).all()
    assert float(metrics["solver_residual"]) < 1e-12

    # At a query loss of no slope there is nothing to solve.
    flat, metrics = imaml_grad(
        lambda p, k: jnp.where(k == 0, jnp.sum(p**2), 0.0 * jnp.sum(p)),
        jnp.ones(2),
        episode,
        proximal=LAMBDA,
        **settings,
    )
    np.testing.assert_array_equal(flat, jnp.zeros(2))
    assert float(metrics["solver_residual"]) == 0

    # -2 |phi|^2 outweighs the proximal term: the matrix is 1 - 4 / 2 < 0, and the first-order gradient is left.
    concave, metrics = imaml_grad(
        lambda p, k: jnp.where(k == 0, -2 * jnp.sum(p**2), jnp.sum((p - 1) ** 2)),
        jnp.full(2, 0.1),
        episode,
        optimizer=optax.sgd(0.01),
        steps=1,
        proximal=LAMBDA,
    )
    assert float(metrics["solver_stopped"]) == 1
    phi = 0.1 + 0.01 * 4 * 0.1
    np.testing.assert_allclose(concave, 2 * (phi - 1), rtol=1e-12)


def test_a_diverged_task_does_not_pass_for_a_solved_one() -> None:
    _, metrics = imaml_grad(
        lambda p, k: jnp.where(k == 0, jnp.sum(p**2), jnp.nan * jnp.sum(p)),
        jnp.ones(2),
        Episode(jnp.array(0), jnp.array(1)),  # pyright: ignore
        optimizer=optax.sgd(0.1),
        steps=2,
        proximal=LAMBDA,
    )
    assert np.isnan(metrics["solver_residual"])


def test_parameters_of_two_precisions_keep_theirs() -> None:
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    loss_fn = lambda p, k: jnp.sum(p["a"].astype(jnp.float32) ** 2) + jnp.sum((p["b"] - 2) ** 2)  # noqa: E731
    episode = Episode(jnp.array(0), jnp.array(1))  # pyright: ignore
    grads, _ = imaml_grad(loss_fn, params, episode, optimizer=optax.sgd(0.1), steps=4, proximal=LAMBDA)
    assert (grads["a"].dtype, grads["b"].dtype) == (jnp.bfloat16, jnp.float32)


def test_it_is_not_maml_s_gradient() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(4))
    implicit, _ = imaml_grad(loss_fn, params, episode, optimizer=optax.sgd(0.1), steps=1, proximal=LAMBDA)
    exact, _ = maml_grad(loss_fn, params, episode, optimizer=optax.sgd(0.1), steps=1)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, implicit, exact))) > 1e-3


def test_the_residual_of_sixteen_bits_is_that_of_more() -> None:
    def residual(dtype):
        loss_fn = lambda w, target: jnp.sum((w - target) ** 2).astype(dtype)  # noqa: E731
        episode = Episode(jnp.full(100, 9000.0, dtype) / 100, jnp.zeros(100, dtype))
        args = {"optimizer": optax.sgd(0.01), "steps": 2, "proximal": 0.5, "solver_steps": 1}
        return imaml_grad(loss_fn, jnp.full(100, -9000.0, dtype) / 100, episode, **args)[1]["inner_residual"]

    np.testing.assert_allclose(residual(jnp.float16), residual(jnp.float32), rtol=2e-2)


def test_the_factory_hands_its_solver_on() -> None:
    model = nn.MLP((4,), 1, activation=jnp.tanh)
    _, _, episode = regression_problem(jax.random.key(4))
    shared = {"proximal": LAMBDA, "damping": 0.0, "solver": "neumann", "solver_steps": 2}
    loss_fn = lambda p, b: losses.mean_squared_error(model.apply(p, b.x), b.y)  # noqa: E731
    for changed in ({}, {"solver_steps": 1}, {"solver": "cg"}, {"solver": "cg", "damping": 1.0}):
        given = {**shared, **changed}
        learner = imaml(model, inner_optimizer=optax.sgd(0.1), steps=2, loss=losses.mean_squared_error, **given)
        params = learner.init(jax.random.key(0), episode)
        found = learner.meta_grad(params, episode, jax.random.key(0))[0]
        expected = imaml_grad(loss_fn, params, episode, optimizer=optax.sgd(0.1), steps=2, **given)[0]
        assert_trees_close(found, expected, rtol=1e-5, atol=1e-7)


def test_predictions_come_from_the_proximal_problem() -> None:
    model = nn.MLP((4,), 1, activation=jnp.tanh)
    _, _, episode = regression_problem(jax.random.key(4))
    loss = lambda values, targets: jnp.mean((values - targets) ** 2)  # noqa: E731
    strong, weak = (
        imaml(model, inner_optimizer=optax.sgd(0.5 / p), steps=20, proximal=p, loss=loss) for p in (50.0, 5.0)
    )
    params = strong.init(jax.random.key(0), episode)
    start = model.apply(params, episode.query.x)
    moved = [
        float(jnp.abs(learner.predict(params, episode.support, episode.query.x, jax.random.key(0)) - start).max())
        for learner in (strong, weak)
    ]
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"proximal": 0.0}, "proximal must be positive and finite, but is 0.0"),
        ({"proximal": jnp.inf}, "proximal must be positive and finite, but is inf"),
        ({"solver": "lu"}, r"solver must be one of \('cg', 'neumann'\), but is 'lu'"),
        ({"solver_steps": 0}, "solver_steps must be 1 or more, but is 0"),
        ({"damping": -1.0}, "damping must be 0 or more"),
        ({"damping": 1.0, "solver": "neumann"}, 'and 0 with solver="neumann", but is 1.0'),
    ],
)
def test_bad_arguments_are_named(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imaml(nn.MLP((4,), 1), inner_optimizer=optax.sgd(0.1), **kwargs)


def test_the_smallest_gradients_are_solved_for_too() -> None:
    """Squares of theirs are nothing in single precision."""
    curvature = jnp.array([1.0, 3.0])
    task = Episode(jnp.array(1.0), jnp.array(1e-20))

    def loss_fn(w, scale):
        return scale * jnp.where(scale == 1, curvature @ w**2 / 2, w.sum())

    for solver, steps in (("cg", 2), ("neumann", 60)):
        grads, metrics = imaml_grad(
            loss_fn,
            jnp.ones(2),
            task,
            optimizer=optax.sgd(0.1),
            steps=2,
            proximal=4.0,
            solver=solver,
            solver_steps=steps,
        )
        np.testing.assert_allclose(grads, 1e-20 / (1 + curvature / 4), rtol=1e-5)
        assert float(metrics["solver_residual"]) < 1e-6


def test_the_reports_names_are_taken() -> None:
    loss_fn = lambda w, batch: (jnp.sum((w - batch) ** 2), {"solver_stopped": 1.0})  # noqa: E731
    task = Episode(jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match="must not call a metric 'solver_stopped': imaml_grad reports its own"):
        imaml_grad(loss_fn, jnp.zeros(1), task, optimizer=optax.sgd(0.1), steps=1, proximal=1.0, has_aux=True)
