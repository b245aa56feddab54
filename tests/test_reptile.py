"""Reptile's direction and its factory against hand-written loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, assert_trees_equal, regression_problem, to_float64

from jaxmeta import (
    Batch,
    Carried,
    Episode,
    Replacement,
    batch_meta_grad,
    descended,
    minibatches,
    nn,
    outer_step,
    reptile,
    reptile_grad,
    tasks,
)
from jaxmeta.inner import minibatch_indices
from jaxmeta.losses import mean_squared_error


@pytest.mark.usefixtures("float64")
def test_worked_example() -> None:
    """L1 = (phi - 1)^2, L2 = 1.5 (phi + 2)^2 at phi = 0 with alpha = 0.1: 4.6, by hand."""
    batches = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0]))
    grads, _ = reptile_grad(
        lambda w, batch: batch[0] * (w - batch[1]) ** 2,
        jnp.array(0.0),
        batches,
        optimizer=optax.sgd(0.1),
        inner_lr=0.1,
        steps=2,
        minibatched=True,
    )
    np.testing.assert_allclose(grads, 4.6, rtol=1e-15)


@pytest.mark.usefixtures("float64")
def test_with_sgd_the_direction_is_the_sum_of_inner_gradients() -> None:
    loss_fn, params, episode = to_float64_problem()
    theta, total = params, jax.tree.map(jnp.zeros_like, params)
    for _ in range(4):
        gradient = jax.grad(loss_fn)(theta, episode.support)
        total = jax.tree.map(jnp.add, total, gradient)
        theta = jax.tree.map(lambda p, g: p - 0.05 * g, theta, gradient)
    grads, metrics = reptile_grad(loss_fn, params, episode.support, optimizer=optax.sgd(0.05), inner_lr=0.05, steps=4)
    assert_trees_close(grads, total, rtol=1e-9, atol=1e-12)
    assert float(metrics["loss"]) > 0


@pytest.mark.usefixtures("float64")
def test_one_step_is_joint_training() -> None:
    loss_fn, params, episode = to_float64_problem()
    grads, _ = reptile_grad(loss_fn, params, episode.support, optimizer=optax.sgd(0.05), inner_lr=0.05, steps=1)
    assert_trees_close(grads, jax.grad(loss_fn)(params, episode.support), rtol=1e-9, atol=1e-12)


def to_float64_problem():
    loss_fn, params, episode = regression_problem(jax.random.key(4))
    return loss_fn, *to_float64((params, episode))


def test_outer_step_of_one_lands_on_the_adapted_parameters() -> None:
    """eps = 1 and one task: phi becomes W."""
    learner, episode, params = small_reptile()
    grads, _ = learner.meta_grad(params, episode, jax.random.key(7))
    moved = optax.apply_updates(params, jax.tree.map(lambda g: -0.01 * g, grads))
    data = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *episode)
    batches = minibatches(jax.random.key(7), data, batch_size=4, steps=3)
    expected, state, optimizer = params, optax.sgd(0.01).init(params), optax.sgd(0.01)
    model = nn.MLP((8,), 1)
    for i in range(3):
        x, y = batches.x[i], batches.y[i]
        gradient = jax.grad(lambda p, x=x, y=y: mean_squared_error(model.apply(p, x), y))(expected)
        updates, state = optimizer.update(gradient, state)
        expected = optax.apply_updates(expected, updates)
    assert_trees_close(moved, expected, rtol=1e-4, atol=1e-6)


def small_reptile(persistent: bool = False, **kwargs):
    inner = kwargs.pop("inner_optimizer", optax.sgd(0.01))
    learner = reptile(
        nn.MLP((8,), 1),
        inner_optimizer=inner,
        inner_lr=0.01,
        steps=3,
        batch_size=4,
        loss=mean_squared_error,
        persistent=persistent,
        **kwargs,
    )
    episode = tasks.sinusoid(shots=5, queries=5).sample((), jax.random.key(0))
    return learner, episode, learner.init(jax.random.key(1), episode)


def test_serial_and_batched() -> None:
    """A meta-batch's direction is the mean over its tasks of (phi - W) / alpha."""
    learner, _, params = small_reptile()
    source = tasks.sinusoid(shots=5, queries=5)
    keys = jax.random.split(jax.random.key(3), 4)
    episodes = jax.vmap(source.sample, (None, 0))((), keys)
    grads, _ = batch_meta_grad(learner, params, episodes, jax.random.key(9))
    singles = [
        learner.meta_grad(params, jax.tree.map(lambda leaf, i=i: leaf[i], episodes), key)[0]
        for i, key in enumerate(jax.random.split(jax.random.key(9), 4))
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *singles)
    assert_trees_close(grads, mean, rtol=1e-4, atol=1e-5)


def test_adam_with_beta1_zero_takes_its_textbook_steps() -> None:
    """Second moments only: w -= lr * g / (sqrt(v / (1 - beta2^t)) + eps)."""
    learner, episode, params = small_reptile(inner_optimizer=optax.adam(0.01, b1=0.0))
    grads, _ = learner.meta_grad(params, episode, jax.random.key(2))
    data = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *episode)
    batches = minibatches(jax.random.key(2), data, batch_size=4, steps=3)
    w, v = params, jax.tree.map(jnp.zeros_like, params)
    model = nn.MLP((8,), 1)
    for t in range(3):
        gradient = jax.grad(lambda p, t=t: mean_squared_error(model.apply(p, batches.x[t]), batches.y[t]))(w)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g**2, v, gradient)
        correction = 1 - 0.999 ** (t + 1)
        w = jax.tree.map(lambda p, g, a, c=correction: p - 0.01 * g / (jnp.sqrt(a / c) + 1e-8), w, gradient, v)
    expected = jax.tree.map(lambda a, b: (a - b) / 0.01, params, w)
    assert_trees_close(grads, expected, rtol=2e-3, atol=2e-3)


def test_persistent_state_carries_over_and_is_replaced_not_descended() -> None:
    learner, episode, params = small_reptile(persistent=True, inner_optimizer=optax.adam(0.01, b1=0.0))
    outer = optax.sgd(0.5)
    state = outer.init(descended(params))
    counts = []
    for i in range(3):
        grads, _ = batch_meta_grad(
            learner, params, jax.tree.map(lambda leaf: leaf[None].repeat(2, 0), episode), jax.random.key(i)
        )
        params, state = outer_step(outer, params, grads, state)
        counts.append(int(params.inner_state.value[0].count))
        assert params.inner_state.value[0].count.dtype == jnp.int32
    assert counts == [3, 6, 9]
    assert max(float(leaf.max()) for leaf in jax.tree.leaves(params.inner_state.value[0].nu)) > 0
    before = jax.tree.map(jnp.copy, params)
    learner.predict(params, episode.support, episode.query.x, jax.random.key(0))
    assert_trees_equal(params, before)  # evaluation starts from the state and leaves it


@pytest.mark.parametrize("tasks_in_all", [2, 41])
def test_a_mean_of_equal_integers_is_that_integer(tasks_in_all: int) -> None:
    """41 times a 41st is a little less than 1."""
    before, optimizer = {"w": jnp.zeros(()), "count": Carried(jnp.array(0))}, optax.sgd(0.1)
    mean = sum(jnp.ones(()) for _ in range(tasks_in_all)) * jnp.float32(1 / tasks_in_all)
    for value in (mean, jnp.nextafter(mean, 0.0)):
        grads = {"w": jnp.zeros(()), "count": Replacement(value)}
        after, _ = outer_step(optimizer, before, grads, optimizer.init(descended(before)))
        assert int(after["count"].value) == 1


def test_an_outer_step_that_forgets_the_inner_state_fails_instead_of_descending_it() -> None:
    learner, episode, params = small_reptile(persistent=True, inner_optimizer=optax.adam(0.01, b1=0.0))
    assert isinstance(params.inner_state, Carried)
    grads, _ = learner.meta_grad(params, episode, jax.random.key(0))
    with pytest.raises(ValueError, match="Carried"):
        optax.apply_updates(params, grads)
    with pytest.raises(ValueError, match="Carried"):
        optax.adam(0.1).update(grads, optax.adam(0.1).init(params), params)


def test_a_state_that_cannot_be_averaged_is_refused() -> None:
    noisy = optax.chain(optax.add_noise(0.1, 0.55, jax.random.key(0)), optax.sgd(0.01))
    with pytest.raises(TypeError, match=r"averages the inner optimiser's state .* but holds key<fry>"):
        small_reptile(persistent=True, inner_optimizer=noisy)


def test_metrics_are_those_of_the_last_inner_step_and_the_rate_may_be_traced() -> None:
    def loss_fn(w, target):
        return (w - target) ** 2, {"distance": abs(w - target)}

    def direction(rate):
        return reptile_grad(
            loss_fn, jnp.array(0.0), jnp.array(1.0), optimizer=optax.sgd(0.25), inner_lr=rate, steps=2, has_aux=True
        )

    grads, metrics = jax.jit(direction)(0.25)
    np.testing.assert_allclose(grads, -0.75 / 0.25)
    np.testing.assert_allclose((metrics["loss"], metrics["distance"]), (0.25, 0.5))


def test_reptile_uses_every_example_of_the_episode() -> None:
    """Support and query are one pool; an empty support set is fine."""
    learner, _, params = small_reptile()
    grid = tasks.sinusoid("reptile", shots=0).sample((), jax.random.key(0))
    assert grid.support.x.shape == (0, 1)
    swapped = Episode(grid.query, Batch(grid.support.x, grid.support.y))
    a, _ = learner.meta_grad(params, grid, jax.random.key(1))
    b, _ = learner.meta_grad(params, swapped, jax.random.key(1))
    assert_trees_equal(a, b)


def test_minibatches_pass_through_the_data_before_repeating() -> None:
    indices = np.asarray(minibatch_indices(jax.random.key(0), 10, batch_size=4, steps=5))
    assert indices.shape == (5, 4)
    for start in (0, 10):  # two whole passes, the third mini-batch straddling them
        assert sorted(indices.ravel()[start : start + 10]) == list(range(10))
    assert list(indices.ravel()[:10]) != list(indices.ravel()[10:])


def test_minibatches_of_numpy_arrays_may_be_drawn_in_a_map() -> None:
    data, keys = np.arange(6.0), jax.random.split(jax.random.key(0), 2)
    draw = functools.partial(minibatches, batch=data, batch_size=3, steps=2)
    np.testing.assert_array_equal(np.sort(jax.vmap(lambda key: draw(key))(keys).reshape(2, -1)), [data, data])
    with pytest.raises(ValueError, match=r"batch must hold arrays \[n, \.\.\.\], but one has no axis"):
        draw(keys[0], batch=np.float32(1))


def test_minibatches_with_replacement_are_drawn_one_by_one() -> None:
    indices = np.asarray(minibatch_indices(jax.random.key(0), 10, batch_size=8, steps=6, replacement=True))
    assert indices.shape == (6, 8)
    assert all(len(set(row)) == 8 for row in indices.tolist())


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_size_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={size} must lie between 1 and the number of examples, 10"):
        minibatch_indices(jax.random.key(0), 10, batch_size=size, steps=1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"inner_lr": 0.0, "steps": 1}, "inner_lr must be positive, but is 0.0"),
        ({"inner_lr": 0.1, "steps": 0}, "steps must be 1 or more, but is 0"),
    ],
)
def test_bad_numbers_are_refused(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reptile(nn.MLP((8,), 1), inner_optimizer=optax.sgd(0.1), **kwargs)
    with pytest.raises(ValueError, match=message):
        reptile_grad(lambda p, b: p**2, jnp.array(1.0), None, optimizer=optax.sgd(0.1), **kwargs)


def test_persistent_state_is_averaged_over_tasks_and_predict_starts_from_it() -> None:
    learner, _, params = small_reptile(
        persistent=True, inner_optimizer=optax.adam(0.01, b1=0.0), eval_steps=2, eval_batch_size=3
    )
    source = tasks.sinusoid(shots=5, queries=5)
    episodes = jax.vmap(source.sample, (None, 0))((), jax.random.split(jax.random.key(3), 2))
    grads, _ = batch_meta_grad(learner, params, episodes, jax.random.key(9))
    outer = optax.sgd(0.5)
    moved, _ = outer_step(outer, params, grads, outer.init(descended(params)))
    model, inner = nn.MLP((8,), 1), optax.adam(0.01, b1=0.0)

    def steps(weights, state, batch, key, size, count):
        batches = minibatches(key, batch, batch_size=size, steps=count)
        for i in range(count):
            gradient = jax.grad(lambda p: mean_squared_error(model.apply(p, batches.x[i]), batches.y[i]))(weights)  # noqa: B023
            updates, state = inner.update(gradient, state, weights)
            weights = optax.apply_updates(weights, updates)
        return weights, state

    ends = []
    for i, key in enumerate(jax.random.split(jax.random.key(9), 2)):
        episode = jax.tree.map(lambda leaf, i=i: leaf[i], episodes)
        pool = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *episode)
        ends.append(steps(params.params, params.inner_state.value, pool, key, 4, 3)[1][0].nu)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *ends)
    assert_trees_close(moved.inner_state.value[0].nu, expected, rtol=1e-4, atol=1e-9)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, *ends))) > 0

    support, query = jax.tree.map(lambda leaf: leaf[0], episodes)
    adapted, _ = steps(moved.params, moved.inner_state.value, support, jax.random.key(4), 3, 2)
    found = learner.predict(moved, support, query.x, jax.random.key(4))
    np.testing.assert_allclose(found, model.apply(adapted, query.x), rtol=1e-4, atol=1e-5)


def test_the_key_draws_the_minibatches() -> None:
    learner, episode, params = small_reptile()
    one, other = (learner.meta_grad(params, episode, jax.random.key(i))[0] for i in (0, 1))
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, one, other))) > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, but is 0"),
        ({"eval_batch_size": -1}, "eval_batch_size must be 1 or more, but is -1"),
        ({"eval_steps": -1}, "eval_steps must be 0 or more, but is -1"),
    ],
)
def test_the_factory_refuses_sizes_out_of_range(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reptile(nn.MLP((8,), 1), inner_optimizer=optax.sgd(0.1), inner_lr=0.1, **kwargs)


def test_what_reptile_cannot_use_is_named() -> None:
    learner, episode, params = small_reptile()
    empty = jax.tree.map(lambda leaf: leaf[:0], episode)
    with pytest.raises(ValueError, match="support and query hold no examples"):
        learner.meta_grad(params, empty, jax.random.key(0))
    with pytest.raises(ValueError, match=r"arrays of one length, but their lengths are \[2, 3\]"):
        minibatches(jax.random.key(0), (jnp.ones(2), jnp.ones(3)), batch_size=1, steps=1)
