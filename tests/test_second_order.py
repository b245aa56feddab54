"""How a meta-gradient is computed never changes it: forward over reverse, checkpoints, and what they keep."""

import functools
import os

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, classification_problem, regression_problem, to_float64

from jaxmeta import Batch, Episode, adapt, batch_meta_grad, losses, maml, maml_grad, nn
from jaxmeta.inner._remat import scan


class Recurrent(fnn.Module):
    """An LSTM over the rows of an image, and a head on its last output."""

    @fnn.compact
    def __call__(self, x):
        rows = x.reshape(x.shape[0], 16, 16)
        return fnn.Dense(3, name="head")(fnn.RNN(fnn.LSTMCell(4, param_dtype=x.dtype))(rows)[:, -1])


class Attention(fnn.Module):
    """One block of a transformer over the rows of an image, and a head on its mean."""

    @fnn.compact
    def __call__(self, x):
        h = fnn.Dense(8)(x.reshape(x.shape[0], 16, 16))
        h = h + fnn.MultiHeadDotProductAttention(num_heads=2)(fnn.LayerNorm()(h))
        h = h + fnn.Dense(8)(fnn.gelu(fnn.Dense(16)(fnn.LayerNorm()(h))))
        return fnn.Dense(3, name="head")(h.mean(1))


MODELS = {
    "mlp": nn.MLP((16, 16), 3, activation=jnp.tanh),
    "conv4_stride": nn.Conv4(3, features=4, pool="stride", readout="mean"),
    "conv4_max": nn.Conv4(3, features=4),
    "lstm": Recurrent(),
    "attention": Attention(),
}
STEPS = 5
# `conftest.py` has fused operations emitted the older way, which rounds otherwise than users' programs do.
OLDER = "xla_cpu_use_fusion_emitters"
USERS_ROUNDING = {OLDER: True} if f"{OLDER}=false" in os.environ["XLA_FLAGS"] else None
FORMS = [("forward_over_reverse", 0), ("forward_over_reverse", 2), ("reverse_over_reverse", 3), (None, "auto")]


def gradient(model, params, episode, optimizer, hvp, remat):
    loss_fn = lambda p, batch: losses.cross_entropy(model.apply(p, batch.x), batch.y)  # noqa: E731
    return maml_grad(loss_fn, params, episode, optimizer=optimizer, steps=STEPS, hvp=hvp, remat=remat)[0]


def problem(name: str):
    _, _, episode = classification_problem(jax.random.key(2))
    return MODELS[name], jax.jit(MODELS[name].init)(jax.random.key(3), episode.support.x), episode


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MODELS)
def test_every_form_gives_the_same_gradient_in_double_precision(name: str) -> None:
    model, params, episode = problem(name)
    params, episode = to_float64((params, episode))
    optimizer = optax.sgd(0.1)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def form(hvp, remat):
        return gradient(model, params, episode, optimizer, hvp, remat)

    stock = form("reverse_over_reverse", 0)
    for hvp, remat in FORMS[1:3] if name.startswith("conv") else FORMS:  # which take long to compile
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(stock))
        assert_trees_close(form(hvp, remat), stock, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("name", MODELS)
def test_every_form_gives_the_same_gradient_in_single_precision(name: str) -> None:
    model, params, episode = problem(name)
    optimizer = optax.adam(1e-2, eps_root=1e-8)
    jit = functools.partial(jax.jit, compiler_options=USERS_ROUNDING)
    stock = jit(lambda p: gradient(model, p, episode, optimizer, "reverse_over_reverse", 0))(params)
    ruled = jit(lambda p: gradient(model, p, episode, optimizer, "forward_over_reverse", 2))(params)
    distance = optax.tree.norm(jax.tree.map(jnp.subtract, stock, ruled)) / optax.tree.norm(stock)
    assert float(distance) < 1e-5


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MODELS)
def test_the_forms_agree_under_every_task_strategy(name: str) -> None:
    """All tasks at once, one after the other, and in chunks on two devices; of what takes long to compile, the last."""
    model, params, episode = problem(name)
    episodes = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]] * 2), episode)
    params, episodes = to_float64((params, episodes))
    forward, reverse = "forward_over_reverse", "reverse_over_reverse"
    strategies = [(reverse, 4, 1), (forward, 4, 1), (forward, 1, 1), (forward, 1, 2), (forward, 2, 2)]

    def found(hvp, chunk, devices):
        learner = maml(model, inner_optimizer=optax.sgd(0.1), steps=STEPS, hvp=hvp)
        step = functools.partial(batch_meta_grad, learner, chunk=chunk, devices=devices)
        return jax.jit(step)(params, episodes, jax.random.key(0))[0]

    stock = found(reverse, 1, 1)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(stock))
    for strategy in strategies if name == "mlp" else strategies[-1:]:
        assert_trees_close(found(*strategy), stock, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("optimizer", [optax.sgd, lambda rate: optax.adam(rate, eps_root=1e-8)], ids=["sgd", "adam"])
def test_all_that_enters_the_inner_loss_gets_its_derivative(optimizer, steps: int) -> None:
    """Data, weights of examples, a learned penalty, a learned rate; inner losses count in the outer objective."""
    loss_fn, params, episode = regression_problem(jax.random.key(4))
    model = nn.MLP((16, 16), 1, activation=jnp.tanh)
    params, episode = to_float64((params, episode))
    weights = jnp.linspace(0.5, 1.5, 10)[:, None]

    def outer(meta, hvp, remat):
        params, x, weights, penalty, rate = meta

        def inner(p, target):
            errors = weights * (model.apply(p, x) - target) ** 2
            return errors.mean() + penalty * optax.tree.norm(p, squared=True), {"largest": errors.max()}

        adapted = adapt(
            inner,
            params,
            episode.support.y,
            optimizer=optimizer(rate),
            steps=steps,
            has_aux=True,
            hvp=hvp,
            remat=remat,
        )
        assert adapted.aux["largest"].shape == (steps,)
        # What comes beside the loss has no derivative, in either form.
        return loss_fn(adapted.params, episode.query) + 0.1 * adapted.losses.sum() + adapted.aux["largest"].sum()

    meta = (params, episode.support.x, weights, jnp.array(0.01), jnp.array(0.05))
    differentiate = jax.jit(jax.grad(outer), static_argnums=(1, 2))
    stock = differentiate(meta, "reverse_over_reverse", 0)
    assert all(float(jnp.abs(leaf).max()) > 1e-5 for leaf in jax.tree.leaves(stock))
    for remat in (0, 2):
        assert_trees_close(differentiate(meta, "forward_over_reverse", remat), stock, rtol=1e-9, atol=1e-12)
    each = jax.vmap(jax.grad(lambda rate: outer((*meta[:4], rate), "forward_over_reverse", 0)))(jnp.array([0.01, 0.05]))
    np.testing.assert_allclose(each[1], stock[4], rtol=1e-9)


def curved(steps: int, hvp):
    """`theta -> scalar`, through an inner loop."""

    def value(theta):
        inner = lambda p, _: jnp.sum(jnp.sin(p) ** 2) + 0.1 * jnp.sum(p**4)  # noqa: E731
        adapted = adapt(inner, theta, None, optimizer=optax.sgd(0.1), steps=steps, hvp=hvp)
        return jnp.sum(jnp.cos(adapted.params) * jnp.arange(1.0, 4.0))

    return value


@pytest.mark.usefixtures("float64")
def test_the_rule_can_be_differentiated_again() -> None:
    """Hessian-vector products of the meta-objective, third derivatives, and an inner loop inside an inner loop."""
    theta, v = jnp.array([0.3, -0.5, 1.1]), jnp.array([1.0, 2.0, -1.0])
    results = {}
    for hvp in ("forward_over_reverse", "reverse_over_reverse"):
        value = curved(3, hvp)
        product = jax.jvp(jax.grad(value), (theta,), (v,))[1]
        third = jax.grad(lambda t, value=value: jax.grad(lambda u: jax.grad(value)(u) @ v)(t) @ v)(theta)

        def nested(theta, value=value, hvp=hvp):
            inner = adapt(lambda p, _: value(p), theta, None, optimizer=optax.sgd(0.1), steps=2, hvp=hvp)
            return jnp.sum(inner.params**2)

        results[hvp] = (product, third, jax.jit(jax.grad(nested))(theta))
    assert_trees_close(*results.values(), rtol=1e-12)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(curved(3, None), (theta,), (v,))
    jax.jvp(curved(3, "reverse_over_reverse"), (theta,), (v,))


def test_a_cached_trace_serves_calls_that_differentiate_different_things() -> None:
    """One jitted inner loop, called twice in one objective: once with learned data, once with given ones."""
    p, x, w = jnp.array([0.3, 0.7]), jnp.array([1.0, 2.0]), jnp.array([0.5, 1.5])

    def gradients(hvp):
        @jax.jit
        def value(p, x, w):
            inner = lambda q, _: jnp.sum(w * jnp.sin(q * x) ** 2)  # noqa: E731
            return jnp.sum(adapt(inner, p, None, optimizer=optax.sgd(0.1), steps=3, hvp=hvp).params ** 2)

        both = jax.grad(lambda p, x: value(p, x, w) + value(p, jnp.ones(2), w), (0, 1))(p, x)
        (_, first), (_, second) = (
            jax.vjp(lambda *a, i=i: value(*a[:i], *(p, x, w)[i:]), *(p, x, w)[:i]) for i in (2, 3)
        )
        return both, first(1.0), second(1.0)

    ours, stock = gradients("forward_over_reverse"), gradients("reverse_over_reverse")
    assert_trees_close(ours, stock, rtol=1e-5, atol=1e-7)
    assert float(jnp.abs(ours[0][1]).min()) > 1e-3


@pytest.mark.usefixtures("float64")
def test_the_losses_of_an_inner_loop_that_exchanges_among_tasks_have_their_derivative() -> None:
    """The gradient of such a loss is a sum over tasks, which the derivative of its value is not."""
    starts, weights = jnp.array([0.5, 1.2]), jnp.array([1.0, 3.0])

    def outer(start, weight, hvp):
        loss = lambda w, _: (w - jax.lax.pmean(w, "t")) ** 2 + jnp.sin(w)  # noqa: E731
        found = adapt(loss, start, None, optimizer=optax.sgd(0.1), steps=2, hvp=hvp)
        return found.params**2 + weight * found.losses.sum()

    ours, stock = (
        jax.jit(jax.vmap(jax.grad(functools.partial(outer, hvp=hvp)), axis_name="t"))(starts, weights)
        for hvp in ("forward_over_reverse", "reverse_over_reverse")
    )
    np.testing.assert_allclose(ours, stock, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_losses_have_their_derivative_inside_shard_map() -> None:
    """Parameters differ between devices, and what all share of the loss gets the sum."""
    mesh, starts = jax.sharding.Mesh(jax.devices()[:2], ("t",)), jnp.array([0.5, 1.2])

    def one(penalty, start, hvp):
        found = adapt(lambda w, _: penalty * w**2 + jnp.sin(w), start, None, optimizer=optax.sgd(0.1), steps=2, hvp=hvp)
        return found.params**2 + found.losses.sum()

    def divided(penalty, starts, hvp):
        share = lambda penalty, start: jax.lax.psum(one(penalty, start[0], hvp), "t")  # noqa: E731
        return jax.shard_map(share, mesh=mesh, in_specs=(jax.P(), jax.P("t")), out_specs=jax.P())(penalty, starts)

    def plain(penalty, starts):
        return sum(one(penalty, start, "reverse_over_reverse") for start in starts)

    args = jnp.array(0.7), starts
    found = jax.jit(jax.grad(functools.partial(divided, hvp="forward_over_reverse"), (0, 1)))(*args)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, jax.grad(plain, (0, 1))(*args))


def test_low_precision_parameters_keep_their_type() -> None:
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}

    def objective(p, hvp):
        inner = lambda q, _: jnp.sum(jnp.sin(q["a"].astype(jnp.float32)) ** 2) + jnp.sum(q["b"] ** 2)  # noqa: E731
        adapted = adapt(inner, p, None, optimizer=optax.sgd(0.1), steps=3, hvp=hvp)
        return adapted.losses.sum() + inner(adapted.params, None)

    ours, stock = (jax.grad(objective)(params, hvp) for hvp in ("forward_over_reverse", "reverse_over_reverse"))
    assert ours["a"].dtype == jnp.bfloat16
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=2e-2), ours, stock)


def test_memory_grows_by_one_set_of_parameters_a_step_or_less() -> None:
    """The compiler's bytes of temporaries, Conv4-64 on 28x28 images, 5-way 1-shot with 15 queries."""
    model = nn.Conv4(5, pool="stride", readout="mean", norm_scale=False)
    episode = Episode(*(Batch(jnp.ones((n, 28, 28, 1)), jnp.arange(n) % 5) for n in (5, 15)))
    params = model.init(jax.random.key(1), episode.support.x)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def temp_bytes(hvp, remat, steps: int) -> int:
        def objective(p):
            loss_fn = lambda p, b: losses.cross_entropy(model.apply(p, b.x), b.y)  # noqa: E731
            adapted = adapt(loss_fn, p, episode.support, optimizer=optax.sgd(0.01), steps=steps, hvp=hvp, remat=remat)
            return loss_fn(adapted.params, episode.query)

        return jax.jit(jax.grad(objective)).lower(params).compile().memory_analysis().temp_size_in_bytes

    plain, default, segments, automatic = (
        temp_bytes(hvp, remat, 64) for hvp, remat in (("reverse_over_reverse", 0), (None, 0), (None, 2), (None, "auto"))
    )
    assert default - temp_bytes(None, 0, 16) <= 1.2 * 48 * size
    assert default <= plain / 5
    assert segments <= plain / 15
    assert automatic <= default / 3


def test_a_thousand_steps_run_and_a_hundred_are_those_of_plain_reverse() -> None:
    loss_fn, params, episode = regression_problem(jax.random.key(4))
    grads, _ = jax.jit(lambda p: maml_grad(loss_fn, p, episode, optimizer=optax.sgd(0.01), steps=1000, remat=2))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    with jax.enable_x64(True):
        params, episode = to_float64((params, episode))
        ours, stock = (
            jax.jit(
                lambda p, hvp=hvp, remat=remat: maml_grad(
                    loss_fn, p, episode, optimizer=optax.sgd(0.01), steps=100, hvp=hvp, remat=remat
                )[0]
            )(params)
            for hvp, remat in ((None, "auto"), ("reverse_over_reverse", 0))
        )
        assert_trees_close(ours, stock, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("length", [1, 2, 5, 12, 13])
@pytest.mark.parametrize("levels", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("step_residuals", [False, True])
def test_the_checkpointed_scan_is_a_scan(length: int, levels: int, step_residuals: bool) -> None:
    xs = jnp.arange(1.0, length + 1)

    def step(carry, x):
        return jnp.sin(carry) + x, carry * x

    found = scan(step, jnp.array(0.5), xs, length=length, levels=levels, step_residuals=step_residuals)
    np.testing.assert_array_equal(found[1], jax.lax.scan(step, jnp.array(0.5), xs)[1])
    np.testing.assert_array_equal(found[0], jax.lax.scan(step, jnp.array(0.5), xs)[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"hvp": "forward"},
            r"hvp must be one of \('forward_over_reverse', 'reverse_over_reverse'\), but is 'forward'",
        ),
        ({"remat": -1}, r'remat must be a number of levels in \[0, 8\] or "auto", but is -1'),
        ({"remat": True}, "but is True"),
        ({"remat": "sqrt"}, "but is 'sqrt'"),
    ],
)
def test_unknown_forms_are_named(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(lambda p, _: p**2, jnp.array(1.0), None, optimizer=optax.sgd(0.1), steps=2, **kwargs)
