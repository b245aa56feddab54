"""The inner loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, assert_trees_equal, regression_problem
from jax.sharding import PartitionSpec as P

from jaxmeta import adapt, mask_by_path
from jaxmeta.inner import merge, partition


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.adam(0.01, eps_root=1e-8)])
def test_adapt_is_the_hand_written_loop(optimizer: optax.GradientTransformation) -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(0))
    theta, state, seen, points = params, optimizer.init(params), [], [params]
    for _ in range(4):
        value, grads = jax.value_and_grad(loss_fn)(theta, episode.support)
        updates, state = optimizer.update(grads, state, theta)
        theta = optax.apply_updates(theta, updates)
        seen.append(value)
        points.append(theta)
    adapted = adapt(loss_fn, params, episode.support, optimizer=optimizer, steps=4, return_path=True)
    assert_trees_close(adapted.params, theta, rtol=1e-5, atol=1e-6)
    assert_trees_close(adapted.opt_state, state, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(adapted.losses, seen, rtol=1e-5)
    assert_trees_close(adapted.path, jax.tree.map(lambda *p: jnp.stack(p), *points), rtol=1e-5, atol=1e-6)


def test_minibatched_steps_see_their_own_slice() -> None:
    targets = jnp.array([1.0, 2.0, 3.0])
    adapted = adapt(
        lambda w, t: 0.5 * (w - t) ** 2, jnp.array(0.0), targets, optimizer=optax.sgd(1.0), steps=3, minibatched=True
    )
    assert float(adapted.params) == 3.0
    assert adapted.losses.tolist() == [0.5, 0.5, 0.5]


def test_no_steps_change_nothing() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(0))
    adapted = adapt(loss_fn, params, episode.support, optimizer=optax.sgd(0.1), steps=0, return_path=True)
    assert_trees_equal(adapted.params, params)
    assert adapted.losses.shape == (0,)
    assert_trees_equal(jax.tree.map(lambda leaf: leaf[0], adapted.path), params)


def test_state_can_be_carried_from_one_loop_to_the_next() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(0))
    optimizer = optax.adam(0.01)
    first = adapt(loss_fn, params, episode.support, optimizer=optimizer, steps=2)
    second = adapt(loss_fn, first.params, episode.support, optimizer=optimizer, steps=3, opt_state=first.opt_state)
    whole = adapt(loss_fn, params, episode.support, optimizer=optimizer, steps=5)
    assert_trees_close(second.params, whole.params, rtol=1e-5, atol=1e-6)


def test_a_mask_freezes_bit_for_bit_and_fills_the_path() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(0))
    head_only = mask_by_path(lambda path: path.startswith("params/head"))
    optimizer = optax.adamw(0.1)  # weight decay would move what merely has no gradient
    adapted = adapt(loss_fn, params, episode.support, optimizer=optimizer, steps=3, mask=head_only, return_path=True)
    for name, before in params["params"].items():
        after = adapted.params["params"][name]
        if name == "head":
            assert not np.array_equal(before["kernel"], after["kernel"])
        else:
            assert_trees_equal(before, after)
            assert adapted.path["params"][name]["kernel"].shape == (4, *before["kernel"].shape)
    assert_trees_equal(jax.tree.map(lambda leaf: leaf[-1], adapted.path), adapted.params)


def test_partition_and_merge_are_inverse() -> None:
    params = {"a": jnp.ones(2), "b": {"c": jnp.zeros(3)}}
    parts = partition(params, {"a": False, "b": {"c": True}})
    assert_trees_equal(merge(*parts), params)
    assert [leaf.shape for leaf in jax.tree.leaves(parts[0])] == [(3,)]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be 0 or more, but is -1"),
        ({"steps": 3, "minibatched": True}, ValueError, r"leading axis of length steps=3 .* shapes are \[\(2,\)\]"),
        ({"steps": 1, "mask": [True]}, ValueError, "mask must have the structure of params"),
        ({"steps": 1, "mask": {"w": False}}, ValueError, "mask is False everywhere"),
        ({"steps": 1, "mask": {"w": 1}}, TypeError, "mask must hold Python bools.* but holds 1"),
        ({"steps": 2.0}, TypeError, r"steps must be an int, but is 2\.0"),
        ({"steps": 1, "has_aux": True}, TypeError, r"wants loss_fn to return \(loss, aux\), but it returned"),
    ],
)
def test_bad_input_is_named(kwargs, error, message: str) -> None:
    params = {"w": jnp.ones(2)}
    with pytest.raises(error, match=message):
        adapt(lambda p, b: jnp.sum(p["w"] * b), params, jnp.ones(2), optimizer=optax.sgd(0.1), **kwargs)


def test_python_s_numbers_are_parameters_too() -> None:
    found = adapt(
        lambda p, b: (p - b) ** 2, 0.0, 1.0, optimizer=optax.sgd(0.25), steps=2, return_path=True, remat="auto"
    )
    assert found.path.tolist() == [0.0, 0.5, 0.75]


def test_what_a_mask_keeps_still_need_be_no_array() -> None:
    params, mask = {"w": 2.0, "power": 3, "act": jnp.tanh}, {"w": True, "power": False, "act": False}

    @jax.jit
    def adapted(w):
        loss = lambda p, b: p["act"](p["w"]) ** len(range(p["power"]))  # noqa: E731
        return adapt(loss, {**params, "w": w}, None, optimizer=optax.sgd(1.0), steps=np.int64(1), mask=mask).params["w"]

    w = np.tanh(2.0)
    assert float(adapted(2.0)) == pytest.approx(2 - 3 * w**2 * (1 - w**2), rel=1e-5)


def test_inside_shard_map_no_inner_gradient_is_summed_over_devices() -> None:
    """Two devices, a task each. JAX sums derivatives for what devices share: such parameters are refused."""
    mesh, targets = jax.sharding.Mesh(jax.devices()[:2], ("tasks",)), jnp.array([[1.0], [-2.0]])

    def adapted(params, target):
        loss = lambda p, t: jnp.sum((p - t) ** 2)  # noqa: E731
        return adapt(loss, params, target[0], optimizer=optax.sgd(0.25), steps=2).params[None]

    def varying(params, target):
        return adapted(jax.lax.pcast(params, ("tasks",), to="varying"), target)

    specs = {"mesh": mesh, "in_specs": (P(), P("tasks")), "out_specs": P("tasks")}
    with pytest.raises(ValueError, match=r"the mesh axes \('tasks',\) and params do not.* check_vma=False"):
        jax.jit(jax.shard_map(adapted, **specs))(jnp.zeros(1), targets)
    still = jax.shard_map(
        lambda p, t: adapt(lambda p, t: jnp.sum((p - t) ** 2), p, t[0], optimizer=optax.sgd(0.25), steps=0).params,
        **{**specs, "out_specs": P()},
    )
    np.testing.assert_array_equal(jax.jit(still)(jnp.zeros(1), targets), [0.0])
    for divided in (jax.shard_map(varying, **specs), jax.shard_map(adapted, check_vma=False, **specs)):
        np.testing.assert_allclose(jax.jit(divided)(jnp.zeros(1), targets), 0.75 * targets)


def test_a_loss_that_is_not_a_scalar_is_named() -> None:
    with pytest.raises(ValueError, match=r"loss_fn must return a scalar, but returned an array of shape \(2,\)"):
        adapt(lambda p, b: p * b, jnp.ones(2), jnp.ones(2), optimizer=optax.sgd(0.1), steps=1)


@pytest.mark.parametrize("minibatched", [False, True])
def test_one_step_is_no_loop_and_equal_to_a_loop_of_one(minibatched: bool) -> None:
    """A loop's carry would be copied for each task before its only step."""
    w, targets = jnp.arange(3.0), jnp.ones((4, 1, 3) if minibatched else (4, 3))
    loss = lambda w, target: (jnp.sum((w - target) ** 2), {"most": (w - target).max()})  # noqa: E731
    kwargs = {"optimizer": optax.sgd(0.25), "minibatched": minibatched, "has_aux": True, "return_path": True}
    mapped = jax.vmap(lambda target: adapt(loss, w, target, steps=1, **kwargs))
    assert "scan" not in str(jax.make_jaxpr(mapped)(targets))
    found = mapped(targets)
    np.testing.assert_allclose(found.params, np.tile(0.5 * np.arange(3.0) + 0.5, (4, 1)))
    np.testing.assert_allclose(found.losses, np.full((4, 1), 2.0))
    np.testing.assert_allclose(found.aux["most"], np.full((4, 1), 1.0))
    np.testing.assert_allclose(found.path, np.stack([np.tile(np.arange(3.0), (4, 1)), found.params], axis=1))


def test_one_step_tells_of_an_update_of_another_shape_as_a_loop_does() -> None:
    broadcasting = optax.stateless(lambda updates, params: jax.tree.map(lambda u: jnp.ones((3, *u.shape)), updates))
    with pytest.raises(TypeError, match="carry"):
        adapt(lambda w, _: jnp.sum(w**2), jnp.ones(2), None, optimizer=broadcasting, steps=1)
