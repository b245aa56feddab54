"""The LSTM meta-learner against a loop in NumPy, gradient descent, finite differences, and its own options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, inner_product, random_direction, stencil_derivative, to_float64
from jax.flatten_util import ravel_pytree

from jaxmeta import Batch, Episode, adapt, losses, lstm_meta_learner, nn
from jaxmeta.inner import log_sign
from jaxmeta.optimization import Affine, MetaLSTM, lstm_adapt

HIDDEN, WAYS = 3, 3


def episode() -> Episode:
    keys = jax.random.split(jax.random.key(0))
    return Episode(*(Batch(jax.random.normal(key, (6, 4)), jnp.repeat(jnp.arange(WAYS), 2)) for key in keys))


def quadratic(w: Any, batch: Any) -> jax.Array:
    return ((w["a"] - batch) ** 2).sum() / 2 + jnp.cos(w["b"]).sum()


def random_meta(seed: int = 0) -> tuple[MetaLSTM, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 8)
    start = {"a": jax.random.normal(keys[0], (2, 2)), "b": jax.random.normal(keys[1], (3,))}
    layer = Affine(jax.random.normal(keys[2], (4 + HIDDEN, 4 * HIDDEN)), jax.random.normal(keys[3], (4 * HIDDEN,)))
    gates = (Affine(jax.random.normal(key, (HIDDEN + 2,)), jnp.array(0.3)) for key in keys[4:6])
    return MetaLSTM(start, layer, *gates), jax.random.normal(keys[6], (2, 2))


def test_preprocessing_is_the_worked_example() -> None:
    found = log_sign(jnp.array([1.0, -0.1, np.exp(-10.0), 1e-5, 0.0]))
    expected = [[0, 1], [-0.230259, -1], [-1, 1], [-1, 0.220265], [-1, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.isfinite(jax.vmap(jax.grad(lambda x: log_sign(x).sum()))(jnp.array([0.0, 1e-9, -2.0]))).all()
    edge = np.exp(-7.0)
    below, above = log_sign(jnp.array([edge * (1 - 1e-6), edge * (1 + 1e-6)]), 7.0)
    np.testing.assert_allclose(below, above, atol=1e-5)
    assert np.isfinite(log_sign(jnp.zeros(1), 80.0)).all()
    for p in (0, 100, np.nan):
        with pytest.raises(ValueError, match=rf"p must be in \(0, 80\], but is {p}"):
            log_sign(jnp.zeros(2), p)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def told(x: float) -> list[float]:
    return [np.log(abs(x)) / 10, np.sign(x)] if abs(x) >= np.exp(-10) else [-1, np.exp(10) * x]


def loop(meta: MetaLSTM, batch: Any, steps: int, feedback: str, scale: float) -> Any:
    """Coordinate by coordinate, step by step, in float64."""
    p = jax.tree.map(np.asarray, meta)
    theta = np.concatenate([p.start["a"].ravel(), p.start["b"]])
    states = [(np.zeros(HIDDEN), np.zeros(HIDDEN), 0.0, 0.0) for _ in theta]
    gates = np.zeros((steps, 2, len(theta)))
    for t in range(steps):
        a, b = theta[:4].reshape(2, 2), theta[4:]
        loss = ((a - batch) ** 2).sum() / 2 + np.cos(b).sum()
        grad = scale * np.concatenate([(a - batch).ravel(), -np.sin(b)])
        for j in range(len(theta)):
            h, c, fed_f, fed_i = states[j]
            x = np.concatenate([told(loss), told(grad[j]), h])
            f, i, o, u = np.split(x @ p.layer.kernel + p.layer.bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
            h = sigmoid(o) * np.tanh(c)
            raw_f = np.concatenate([h, [theta[j], fed_f]]) @ p.forget.kernel + p.forget.bias
            raw_i = np.concatenate([h, [theta[j], fed_i]]) @ p.input.kernel + p.input.bias
            gates[t, :, j] = sigmoid(raw_f), sigmoid(raw_i)
            theta[j] = gates[t, 0, j] * theta[j] - gates[t, 1, j] * grad[j]
            states[j] = (h, c, *((raw_f, raw_i) if feedback == "pre_sigmoid" else gates[t, :, j]))
    return theta, gates


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("feedback", ["gate", "pre_sigmoid"])
def test_adaptation_is_the_loop(feedback: Any) -> None:
    meta, batch = to_float64(random_meta())
    found = lstm_adapt(quadratic, meta, batch, steps=7, feedback=feedback, gradient_scale=0.5)
    theta, gates = loop(meta, np.asarray(batch), 7, feedback, 0.5)
    np.testing.assert_allclose(ravel_pytree(found.params)[0], theta, rtol=0, atol=1e-10)
    for tree, expected in zip((found.forget_gates, found.input_gates), gates.swapaxes(0, 1), strict=True):
        flat = np.concatenate([tree["a"].reshape(7, -1), tree["b"]], axis=1)
        np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-10)
    assert_trees_close(jax.tree.map(lambda leaf: leaf[-1], found.path), found.params, rtol=0)


@pytest.mark.usefixtures("float64")
def test_the_two_feedbacks_differ_from_the_second_step_on() -> None:
    meta, batch = to_float64(random_meta())
    one, other = (lstm_adapt(quadratic, meta, batch, steps=2, feedback=f).path["a"] for f in ("gate", "pre_sigmoid"))
    np.testing.assert_array_equal(one[1], other[1])
    assert not np.allclose(one[2], other[2], atol=1e-6)


def test_with_f_one_and_i_a_half_it_is_gradient_descent_exactly() -> None:
    meta, batch = random_meta()
    off = jax.tree.map(jnp.zeros_like, meta)._replace(start=meta.start)
    descent = off._replace(forget=Affine(off.forget.kernel, jnp.array(100.0)))
    found = lstm_adapt(quadratic, descent, batch, steps=5)
    expected = adapt(quadratic, meta.start, batch, optimizer=optax.sgd(0.5), steps=5, return_path=True)
    assert_trees_close(found.path, expected.path, rtol=0)
    assert_trees_close(found.losses, expected.losses, rtol=0)
    alpha = descent._replace(input=Affine(off.input.kernel, jnp.log(0.1 / 0.9)))
    found = lstm_adapt(quadratic, alpha, batch, steps=5)
    expected = adapt(quadratic, meta.start, batch, optimizer=optax.sgd(0.1), steps=5)
    assert_trees_close(found.params, expected.params, rtol=1e-5, atol=1e-6)


def test_constant_gradients_are_so_of_all_that_enters_the_loss() -> None:
    """By hand, with f = 1 and i = 1/2: the weight 1 comes to 1/4 + 3/4 of the target after two steps."""
    off = lambda bias: Affine(jnp.zeros(3), jnp.array(bias))  # noqa: E731
    descent = MetaLSTM(jnp.array(1.0), Affine(jnp.zeros((5, 4)), jnp.zeros(4)), off(100.0), off(0.0))

    def end(target: jax.Array, differentiate: bool) -> jax.Array:
        loss = lambda w, batch: (w - batch) ** 2 / 2  # noqa: E731
        return lstm_adapt(loss, descent, target, steps=2, differentiate=differentiate).params

    assert [float(jax.grad(end)(0.0, flag)) for flag in (True, False)] == [0.75, 0.0]


@pytest.mark.usefixtures("float64")
def test_derivatives_go_through_gradients_by_argument() -> None:
    """Differentiated through, the gradient is that of the value; held constant, that with the gradients frozen."""
    meta, batch = to_float64(random_meta())

    def value(meta: MetaLSTM, differentiate: bool) -> jax.Array:
        return quadratic(lstm_adapt(quadratic, meta, batch, steps=4, differentiate=differentiate).params, batch + 1)

    direction = random_direction(meta, 1)
    through, constant = (jax.grad(value)(meta, flag) for flag in (True, False))
    expected = stencil_derivative(jax.jit(lambda m: value(m, True)), meta, direction, 1e-4)
    assert inner_product(through, direction) == pytest.approx(expected, rel=1e-6)

    recorded = lstm_adapt(quadratic, meta, batch, steps=4)
    grads = jax.vmap(lambda p: jax.grad(quadratic)(p, batch))(jax.tree.map(lambda leaf: leaf[:-1], recorded.path))

    def frozen(meta: MetaLSTM) -> jax.Array:
        counter = iter(range(4))
        with jax.disable_jit():  # the scan as a Python loop, so that step t finds its own recording

            @jax.custom_vjp
            def replayed(w: Any, batch: Any) -> jax.Array:
                return quadratic(w, batch)

            def forward(w: Any, batch: Any) -> Any:
                t = next(counter)
                return recorded.losses[t], t

            replayed.defvjp(forward, lambda t, ct: (jax.tree.map(lambda leaf: ct * leaf[t], grads), None))
            return quadratic(lstm_adapt(replayed, meta, batch, steps=4).params, batch + 1)

    expected = stencil_derivative(frozen, meta, direction, 1e-4)
    assert inner_product(constant, direction) == pytest.approx(expected, rel=1e-6)
    assert abs(inner_product(through, direction) - expected) > 1e-3 * abs(expected)


def test_the_learner_passes_its_options_on() -> None:
    model, (support, query) = nn.MLP((4,), WAYS), episode()
    options: dict[str, Any] = {"feedback": "pre_sigmoid", "gradient_scale": 0.5}
    learner = lstm_meta_learner(model, steps=3, eval_steps=2, hidden=HIDDEN, input_bias=(0.0, 0.0), **options)
    params = learner.init(jax.random.key(0), episode())
    assert float(params.input.bias) == 0

    def task_loss(w: Any, batch: Batch) -> jax.Array:
        return losses.cross_entropy(model.apply(w, batch.x), batch.y)

    adapted = {n: lstm_adapt(task_loss, params, support, steps=n, **options).params for n in (2, 3)}
    found = learner.predict(params, support, query.x, jax.random.key(0))
    np.testing.assert_allclose(found, model.apply(adapted[2], query.x), atol=1e-6)
    _, metrics = learner.meta_grad(params, episode(), jax.random.key(0))
    assert float(metrics["loss"]) == pytest.approx(float(task_loss(adapted[3], query)), rel=1e-6)
    plain = lstm_adapt(task_loss, params, support, steps=2).params
    assert not np.allclose(found, model.apply(plain, query.x), atol=1e-4)
    for flag in (False, True):
        other = lstm_meta_learner(model, steps=3, hidden=HIDDEN, differentiate=flag)
        grads, _ = other.meta_grad(params, episode(), jax.random.key(0))

        def outer(params: MetaLSTM, flag: bool = flag) -> jax.Array:
            adapted = lstm_adapt(task_loss, params, support, steps=3, differentiate=flag)
            return task_loss(adapted.params, query)

        assert_trees_close(grads, jax.grad(outer)(params), rtol=1e-5, atol=1e-7)


def test_gates_start_near_one_and_near_zero() -> None:
    learner = lstm_meta_learner(nn.MLP((4,), WAYS), hidden=HIDDEN, steps=2)
    params = learner.init(jax.random.key(0), episode())
    assert 4 <= float(params.forget.bias) <= 5
    assert -5 <= float(params.input.bias) <= -4
    for kernel in (params.layer.kernel, params.forget.kernel, params.input.kernel):
        assert 0.002 < float(jnp.abs(kernel).max()) <= 0.01
    wide = lstm_meta_learner(nn.MLP((4,), WAYS), steps=2).init(jax.random.key(0), episode())
    assert float(wide.layer.kernel.std()) == pytest.approx(0.01 / 3**0.5, rel=0.05)
    assert params.layer.kernel.shape == (4 + HIDDEN, 4 * HIDDEN)
    assert params.forget.kernel.shape == (HIDDEN + 2,)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.usefixtures("float64")
def test_weights_of_any_precision_are_adapted_in_their_own(dtype: Any) -> None:
    """Under `jax_enable_x64`, Flax's weights are in single precision, and what is drawn by default is not."""
    learner = lstm_meta_learner(nn.MLP((4,), WAYS), hidden=HIDDEN, steps=2)
    own = to_float64(episode())
    params = learner.init(jax.random.key(0), own)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    params = params._replace(start=jax.tree.map(lambda leaf: leaf.astype(dtype), params.start))
    grads, metrics = jax.jit(learner.meta_grad)(params, own, jax.random.key(1))
    assert [leaf.dtype for leaf in jax.tree.leaves(grads)] == [leaf.dtype for leaf in jax.tree.leaves(params)]
    exact, expected = jax.jit(learner.meta_grad)(to_float64(params), own, jax.random.key(1))
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-2 if dtype == jnp.float16 else 1e-6)
    assert inner_product(to_float64(grads), exact) == pytest.approx(inner_product(exact, exact), rel=1e-2)


def test_relabelling_classes_permutes_answers_with_the_head_s_columns() -> None:
    learner = lstm_meta_learner(nn.MLP((4,), WAYS), hidden=HIDDEN, steps=3, input_bias=(-1.0, -1.0))
    support, query = episode()
    params = learner.init(jax.random.key(0), episode())
    order = jnp.array([2, 0, 1])
    head = params.start["params"]["head"]
    moved = {
        "kernel": head["kernel"].at[:, order].set(head["kernel"]),
        "bias": head["bias"].at[order].set(head["bias"]),
    }
    renamed = params._replace(start={"params": {**params.start["params"], "head": moved}})
    before = learner.predict(params, support, query.x, jax.random.key(0))
    after = learner.predict(renamed, Batch(support.x, order[support.y]), query.x, jax.random.key(0))
    np.testing.assert_allclose(after[:, order], before, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be 0 or more, but is -1"),
        ({"eval_steps": -1}, "eval_steps must be 0 or more, but is -1"),
        ({"hidden": 0}, "hidden must be 1 or more, but is 0"),
        ({"forget_bias": (5.0, 4.0)}, r"forget_bias must be a range \(low, high\) .* but is \(5.0, 4.0\)"),
        ({"forget_bias": (4.0, np.inf)}, r"forget_bias must be a range .* of finite numbers, but is \(4.0, inf\)"),
        ({"input_bias": -4.0}, r"input_bias must be a range \(low, high\) of finite numbers, but is -4.0"),
        ({"feedback": "both"}, "feedback must be one of .* but is 'both'"),
        ({"gradient_scale": 0.0}, "gradient_scale must be positive and finite, but is 0.0"),
    ],
)
def test_bad_input_is_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lstm_meta_learner(nn.MLP((4,), WAYS), **options)


@pytest.mark.parametrize("part", ["support", "query"])
def test_labels_without_an_output_are_named(part: str) -> None:
    learner, given = lstm_meta_learner(nn.MLP((4,), WAYS), steps=1, hidden=HIDDEN), episode()
    params = learner.init(jax.random.key(0), given)
    batch = getattr(given, part)
    strange = given._replace(**{part: batch._replace(y=batch.y.at[0].set(7))})
    with pytest.raises(ValueError, match=r"the model has 3 outputs, but the labels are 0\.\.7"):
        learner.meta_grad(params, strange, jax.random.key(0))
