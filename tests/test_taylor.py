"""The Taylor expansion of meta-gradients: its terms and coefficients against sums written out, and against sweeps."""

import collections
import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxmeta import Batch, losses, nn
from jaxmeta.analysis import nearest_solution, projection_angles, taylor
from jaxmeta.analysis.taylor._expansion import WORDS, word_of
from jaxmeta.analysis.taylor._orderings import exact_orderings

from helpers import assert_trees_close, to_float64  # isort: skip
from test_cli import run  # isort: skip

METHODS = ("maml", "fomaml", "reptile")
pytestmark = pytest.mark.usefixtures("float64")


def small_loss(w, batch):
    """Neither quadratic nor even: all derivatives up to the third matter."""
    a, c, s = batch
    return 0.5 * w @ a @ a.T @ w + c @ w + jnp.sum(jnp.sin(s * w)) + jnp.sum(s * w**3) / 3


def small_problem(n: int, d: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    pool = tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((n, d, d), (n, d), (n, d)))
    return small_loss, jnp.asarray(rng.normal(size=d)), pool


def picked(pool, i: int):
    return jax.tree.map(lambda leaf: leaf[i], pool)


def network(model, shape: tuple[int, ...], size: int, n: int, outputs: int = 3):
    """A classifier's cross-entropy on a pool of random images: `(loss_fn, params, batches)`."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.uniform(keys[0], (n, size, *shape), jnp.float64)
    y = jax.random.randint(keys[1], (n, size), 0, outputs)
    params = to_float64(model.init(keys[2], jnp.zeros((size, *shape), jnp.float32)))
    return lambda p, b: losses.cross_entropy(model.apply(p, b.x), b.y), params, Batch(x, y)


# Orderings.


@pytest.mark.parametrize(("n", "strength"), [(3, 2), (4, 2), (7, 2), (8, 2), (4, 3), (5, 3), (6, 3), (8, 3), (9, 3)])
def test_few_orderings_show_every_tuple_equally_often(n: int, strength: int) -> None:
    rows = taylor.orderings(n, n, strength=strength)
    q = n + 2 - strength
    assert len(rows) == (q * (q - 1) if strength == 2 else (q + 1) * q * (q - 1))
    assert (np.sort(rows, axis=1) == np.arange(n)).all(), "each row is a permutation"
    for positions in itertools.permutations(range(n), strength):
        seen = collections.Counter(map(tuple, rows[:, positions].tolist()))
        assert set(seen.values()) == {1}
        assert len(seen) == math.perm(n, strength)


def test_all_orderings_are_all() -> None:
    rows = taylor.orderings(5, 3)
    assert len(rows) == len({tuple(row) for row in rows.tolist()}) == math.perm(5, 3)


@pytest.mark.parametrize(("n", "k", "strength"), [(7, 3, 2), (6, 4, 3)])
def test_averages_over_few_orderings_are_those_over_all(n: int, k: int, strength: int) -> None:
    """Order by order: with strength t they differ from alpha^t on, and not before."""
    loss, w, pool = small_problem(n)
    plan, few = taylor.expansion("maml", k), taylor.orderings(n, k, strength=strength)
    gaps = []
    for alpha in (2e-3, 1e-3):
        found = [taylor.mean_gradient(loss, w, pool, plan, alpha, rows) for rows in (few, taylor.orderings(n, k))]
        gaps.append(float(jnp.linalg.norm(found[0] - found[1])))
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(strength, abs=0.1)


# Terms.


def test_terms_are_the_means_they_name() -> None:
    """Against Hessians and third derivatives formed whole, for every choice of batches."""
    loss, w, pool = small_problem(4)
    grads, hessians, thirds = [], [], []
    for i in range(4):
        f = lambda w, i=i: loss(w, picked(pool, i))  # noqa: E731
        grads.append(jax.grad(f)(w))
        hessians.append(jax.hessian(f)(w))
        thirds.append(jax.jacfwd(jax.hessian(f))(w))
    sums = collections.defaultdict(list)
    for a, b in itertools.product(range(4), repeat=2):
        sums[word_of("Hg", a, b)].append(hessians[a] @ grads[b])
    for a, b, c in itertools.product(range(4), repeat=3):
        sums[word_of("HHg", a, b, c)].append(hessians[a] @ hessians[b] @ grads[c])
        sums[word_of("T", a, b, c)].append(thirds[a] @ grads[b] @ grads[c])
    found = taylor.terms(loss, w, pool, order=2)
    assert list(found) == [word for words in WORDS for word in words]
    np.testing.assert_allclose(found["g"], np.mean(grads, 0), rtol=1e-12)
    for word, values in sums.items():
        np.testing.assert_allclose(found[word], np.mean(values, 0), rtol=1e-11, atol=1e-11, err_msg=word)


def test_both_forms_of_avg_grad_inner_are_one_on_any_pytree() -> None:
    loss, params, batches = network(nn.MLP((6,), 3, activation=jnp.tanh), (4,), 5, n=4)
    forms = [taylor.avg_grad_inner(loss, params, batches, form=form) for form in ("hessian", "agreement")]
    assert_trees_close(*forms, rtol=1e-10, atol=1e-14)
    grads = [jax.grad(loss)(params, picked(batches, i)) for i in range(4)]
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    products = [
        jax.jvp(jax.grad(lambda p, a=a: loss(p, picked(batches, a))), (params,), (grads[b],))[1] for a, b in pairs
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(pairs), *products)
    assert_trees_close(forms[0], mean, rtol=1e-9, atol=1e-13)
    squares = lambda p: sum(jnp.sum(ravel_pytree(jax.grad(loss)(p, picked(batches, i)))[0] ** 2) for i in range(4)) / 8  # noqa: E731
    assert_trees_close(taylor.self_term(loss, params, batches), jax.grad(squares)(params), rtol=1e-9, atol=1e-13)


# Coefficients.


@pytest.mark.parametrize("k", range(1, 9))
def test_coefficients_in_closed_form(k: int) -> None:
    expected = {
        "maml": (1, -2 * (k - 1), 2 * (k - 1) * (k - 2), k - 1, (k - 1) * (k - 2), (k - 1) / 2),
        "fomaml": (1, -(k - 1), (k - 1) * (k - 2) / 2, 0, (k - 1) * (k - 2) / 2, (k - 1) / 2),
        "reptile": (k, -k * (k - 1) / 2, math.comb(k, 3), 0, math.comb(k, 3), k * (k - 1) / 4),
    }
    for method, values in expected.items():
        words = ("g", "Hg:ab", "HHg:abc", "HHg:aba", "T:abc", "T:abb")
        found = taylor.expansion(method, k).coefficients
        assert tuple(found[word] for word in words) == pytest.approx(values)
        assert not any(value for word, value in found.items() if word not in words)


def test_who_counts_the_test_batch() -> None:
    first = lambda *args, **kwargs: taylor.expansion(*args, **kwargs)[-1]  # noqa: E731
    for s in (1, 3, 5):
        for method in ("maml", "fomaml"):
            separate = taylor.expansion(method, s, test_batch="separate")
            assert separate == taylor.expansion(method, s + 1)
            assert separate.avg_grad_inner == (-2 * s if method == "maml" else -s)
        assert first("reptile", s, test_batch="separate") == first("reptile", s)
        normalised = taylor.expansion("reptile", s, normalised=True)
        assert (normalised.avg_grad, normalised.avg_grad_inner) == pytest.approx((1, -(s - 1) / 2))


S, K = 3, 5
R = (0.5, 1.0, 2.0, 1.5, 0.7)
CASES = {
    # name: (arguments, AvgGrad, AvgGradInner, Self)
    "maml, rates": (("maml", K, {"rates": R[:-1]}), 1, -2 * sum(R[:-1]), 0),
    "fomaml, rates": (("fomaml", K, {"rates": R[:-1]}), 1, -sum(R[:-1]), 0),
    "reptile, rates": (
        ("reptile", K, {"rates": R}),
        sum(R),
        -sum(R[i] * R[j] for i in range(K) for j in range(i)),
        0,
    ),
    "maml, separate": (("maml", S, {"test_batch": "separate"}), 1, -2 * S, 0),
    "fomaml, separate": (("fomaml", S, {"test_batch": "separate"}), 1, -S, 0),
    "reptile, query too": (("reptile", S + 1, {}), S + 1, -S * (S + 1) / 2, 0),
    "reptile, normalised": (("reptile", K, {"normalised": True}), 1, -(K - 1) / 2, 0),
    "maml, one batch": (("maml", K, {"batches": (0,) * K}), 1, 0, -2 * (K - 1)),
    "fomaml, one batch": (("fomaml", K, {"batches": (0,) * K}), 1, 0, -(K - 1)),
    "reptile, one batch": (("reptile", K, {"batches": (0,) * K}), K, 0, -K * (K - 1) / 2),
    "maml, support": (("maml", S + 1, {"batches": taylor.reused_support(S)}), 1, -2 * S, 0),
    "fomaml, support": (("fomaml", S + 1, {"batches": taylor.reused_support(S)}), 1, -S, 0),
    "reptile, support": (("reptile", S + 1, {"batches": taylor.reused_support(S)}), S + 1, -S, -S * (S - 1) / 2),
    **{
        f"{method}, tail {m}": (
            (method, K, {"batches": taylor.shared_tail(K, m)}),
            1,
            -double * (K - 1 - m),
            -double * m,
        )
        for method, double in (("maml", 2), ("fomaml", 1))
        for m in (1, 3)
    },
    **{
        f"reptile, {n} cycled to {k}": (
            ("reptile", k, {"batches": taylor.cycling(k, n)}),
            k,
            -sum(i % n != j % n for i in range(k) for j in range(i)),
            -sum(i % n == j % n for i in range(k) for j in range(i)),
        )
        for n, k in ((2, 4), (3, 4), (4, 8))
    },
}


@pytest.mark.parametrize("name", CASES)
def test_rates_and_reused_batches(name: str) -> None:
    """Predicted as derived by hand, and measured to be so, to second order."""
    (method, k, options), *expected = CASES[name]
    plan = taylor.expansion(method, k, **options)
    assert (plan.avg_grad, plan.avg_grad_inner, plan.self_term) == pytest.approx(tuple(expected))
    loss, w, pool = small_problem(8 if len(set(plan.batches)) > 4 else 4)
    verdict = taylor.verify_expansion(loss, w, pool, plan, order=2)
    assert verdict.accepted, verdict.reasons
    np.testing.assert_allclose([c.measured for c in verdict.coefficients], expected, atol=1e-6)
    assert verdict.slopes == pytest.approx((1, 2, 3), abs=0.05)


# Sweeps over alpha.


def check_all(problem, ks, *, order: int, size: float) -> None:
    for method in METHODS:
        for k in ks:
            plan = taylor.expansion(method, k)
            verdict = taylor.verify_expansion(*problem, plan, order=order, size=size)
            assert verdict.accepted, (method, k, verdict.reasons)
            grad, inner, own = verdict.coefficients
            expected = {"maml": (1, -2 * (k - 1)), "fomaml": (1, 1 - k), "reptile": (k, -k * (k - 1) / 2)}[method]
            np.testing.assert_allclose((grad.measured, inner.measured, own.measured), (*expected, 0), atol=1e-4)
            for c in verdict.coefficients:
                assert abs(c.error) <= max(c.uncertainty, 1e-9) < 1e-4
            slopes = (1, 2, 3)[: order + 1] if k > 1 else (np.inf,) * (order + 1)
            assert verdict.slopes == pytest.approx(slopes, abs=0.05)


def test_every_k_on_an_mlp_to_second_order() -> None:
    problem = network(nn.MLP((6,), 3, activation=jnp.tanh), (4,), 5, n=8)
    check_all(problem, range(1, 9), order=2, size=0.01)


def test_every_k_on_conv4_with_cross_entropy() -> None:
    """Conv4 as it is, with ReLU: at rates so small that no unit changes sides."""
    problem = network(nn.Conv4(3, features=4, pool="stride", readout="flatten"), (16, 16, 1), 6, n=8)
    check_all(problem, range(1, 9), order=1, size=1e-5)


def test_the_worked_example_to_the_last_digit() -> None:
    loss = lambda w, b: b[0] * (w - b[1]) ** 2  # noqa: E731
    pool = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0]))
    forward = taylor.orderings(2, 2)[:1]
    exact = [
        float(taylor.mean_gradient(loss, jnp.array(0.0), pool, taylor.expansion(m, 2), 0.1, forward)) for m in METHODS
    ]
    np.testing.assert_allclose(exact, (5.28, 6.6, 4.6), rtol=1e-15)
    (g1, g2), (h1, h2) = (-2.0, 6.0), (2.0, 3.0)  # at w = 0
    first_order = (g2 - 0.1 * (h1 * g2 + h2 * g1), g2 - 0.1 * h2 * g1, g1 + g2 - 0.1 * h2 * g1)
    np.testing.assert_allclose(first_order, (5.4, 6.6, 4.6), rtol=1e-15)
    assert exact[0] - first_order[0] == pytest.approx(0.1**2 * h1 * h2 * g1, abs=1e-14)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_reptile_with_two_avg_grads_is_rejected_unless_k_is_two(k: int) -> None:
    plan = taylor.expansion("reptile", k)
    verdict = taylor.verify_expansion(*small_problem(5), plan._replace(coefficients={**plan.coefficients, "g": 2.0}))
    assert verdict.accepted == (k == 2)
    if k != 2:
        assert any(reason.startswith(f"g: predicted 2, measured {k} ±") for reason in verdict.reasons)
        assert verdict.slopes[0] == pytest.approx(0, abs=0.05)
        assert verdict.range == "fit", "the sweep is sound; the prediction is not"


def test_other_wrong_coefficients_are_rejected_too() -> None:
    for word, wrong in (("Hg:ab", -2.999), ("Hg:aa", 0.001)):
        plan = taylor.expansion("reptile", 3)
        plan = plan._replace(coefficients={**plan.coefficients, word: wrong})
        assert not taylor.verify_expansion(*small_problem(5), plan).accepted
    plan = taylor.expansion("maml", 3)
    plan = plan._replace(coefficients={**plan.coefficients, "T:abb": 1.1})
    verdict = taylor.verify_expansion(*small_problem(5), plan, order=2)
    assert [reason for reason in verdict.reasons if "after order 2" in reason], "second order counts as well"
    assert len(verdict.reasons) == 1


def test_it_says_when_alpha_is_out_of_range() -> None:
    problem, plan = small_problem(5), taylor.expansion("fomaml", 3)
    ladder = lambda top: [top * 0.5**i for i in range(6)]  # noqa: E731
    large = taylor.verify_expansion(*problem, plan, alphas=ladder(0.2))
    assert (large.range, large.accepted, large.reasons[0]) == ("too large", False, "alpha is too large")
    small = taylor.verify_expansion(*problem, plan, alphas=ladder(1e-11))
    assert (small.range, small.accepted, small.reasons[0]) == ("too small", False, "alpha is too small")
    assert taylor.verify_expansion(*problem, plan, alphas=ladder(1e-3)).accepted


def test_idle_steps_change_nothing() -> None:
    """Steps of rate 0, which let one program serve many k, are no steps: against a loop written out."""
    loss, w, pool = small_problem(4)
    rows, alpha = taylor.orderings(4, 3), 0.05
    for method in METHODS:
        total = np.zeros(3)
        for row in rows.tolist():
            steps, phi, jacobian, path = row if method == "reptile" else row[:-1], w, jnp.eye(3), []
            for i in steps:
                f = lambda p, i=i: loss(p, picked(pool, i))  # noqa: E731
                path.append(jax.grad(f)(phi))
                jacobian = jacobian @ (jnp.eye(3) - alpha * jax.hessian(f)(phi))
                phi = phi - alpha * path[-1]
            last = jax.grad(loss)(phi, picked(pool, row[-1]))
            total += {"maml": jacobian @ last, "fomaml": last, "reptile": sum(path)}[method]
        found = taylor.mean_gradient(loss, w, pool, taylor.expansion(method, 3), alpha, rows)
        np.testing.assert_allclose(found, total / len(rows), rtol=1e-13)


def test_a_table_a_summary_and_a_picture(tmp_path: Path) -> None:
    verdicts = [taylor.verify_expansion(*small_problem(5), taylor.expansion(m, 3)) for m in METHODS]
    wrong = verdicts[0].expansion._replace(coefficients={**verdicts[0].expansion.coefficients, "g": 3.0})
    verdicts.append(taylor.verify_expansion(*small_problem(5), wrong))
    text = taylor.table(verdicts)
    assert text.count("agrees") == 3
    assert "REJECTED" in text
    assert "maml, k=3: g: predicted 3, measured 1 ±" in text
    found = taylor.summary(verdicts[2])
    assert [c["of"] for c in found["coefficients"]] == ["AvgGrad", "AvgGradInner", "Self"]
    taylor.plot_verdicts(tmp_path / "a.png", verdicts)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# Estimates, directions, manifolds.


def test_95_percent_intervals_hold_the_exact_value_in_at_least_90_of_100() -> None:
    """Pairs of mini-batches drawn from the pools of 20 tasks, 200 draws, 100 seeds, every coordinate."""
    loss, w, pools = small_loss, jnp.asarray([0.3, -0.2, 0.5]), small_problem(20 * 6)[2]
    pools = jax.tree.map(lambda leaf: leaf.reshape(20, 6, *leaf.shape[1:]), pools)

    def draw(key):
        task_key, pair_key = jax.random.split(key)
        task = jax.random.randint(task_key, (), 0, 20)
        pair = jax.random.permutation(pair_key, 6)[:2]
        return jax.tree.map(lambda leaf: leaf[task, pair], pools)

    def exact(function):
        return np.mean([function(loss, w, picked(pools, t)) for t in range(20)], axis=0)

    truth = {
        "g": exact(taylor.avg_grad),
        "Hg:ab": exact(taylor.avg_grad_inner),
        "Hg:aa": exact(taylor.self_term),
        "agreement": exact(taylor.gradient_agreement),
    }
    run = jax.jit(jax.vmap(lambda key: taylor.estimate_terms(loss, w, draw, key, samples=200)))
    found = run(jax.random.split(jax.random.key(0), 100))
    for word, value in truth.items():
        mean, error = found[word]
        held = (np.abs(mean - value) <= 1.96 * error).sum(0)
        assert (held >= 90).all(), (word, held)
        assert (held < 100).all(), "intervals so wide say nothing"


def test_more_draws_and_a_draw_without_spread() -> None:
    loss, w, pool = small_problem(3)
    still = taylor.estimate_terms(loss, w, lambda key: pool, jax.random.key(0), samples=3)
    np.testing.assert_allclose(still["Hg:ab"].mean, taylor.avg_grad_inner(loss, w, pool), rtol=1e-12)
    np.testing.assert_allclose(still["g"].standard_error, 0, atol=1e-12)


def test_directions_over_training() -> None:
    """At small alpha the shares in every update are the expansion's coefficients."""

    def loss(w, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ w) - y) ** 2)

    def draw(key):
        task_key, x_key, noise_key = jax.random.split(key, 3)
        truth, x = jax.random.normal(task_key, (4,)), jax.random.normal(x_key, (3, 6, 4))
        return x, jnp.tanh(x @ truth) + 0.1 * jax.random.normal(noise_key, (3, 6))

    settings = {"alpha": 1e-3, "steps": 4, "every": 2, "tasks": 4, "probes": 16}
    for method in METHODS:
        plan = taylor.expansion(method, 3)
        found = taylor.track_directions(
            loss, jnp.ones(4) / 2, draw, plan, optax.sgd(0.1), jax.random.key(0), **settings
        )
        assert [point.step for point in found] == [0, 2, 4]
        for point in found:
            assert (point.share_grad, point.share_inner) == pytest.approx(
                (plan.avg_grad, plan.avg_grad_inner), rel=0.02
            )
            assert point.unexplained < 1e-4
            assert point.cosine_grad == pytest.approx(1, abs=0.01)
            assert point.agreement < 0 or point.cosine_agreement > 0
            assert -1 <= point.cosine_inner <= 1
            assert point.cosine_agreement <= 1
        assert found[-1].loss < found[0].loss


def test_reptile_goes_straight_to_the_nearest_solution() -> None:
    rng = np.random.default_rng(0)
    a, b, w = (jnp.asarray(rng.normal(size=shape)) for shape in ((3, 8), (3,), (8,)))
    nearest = nearest_solution(a, b, w)
    np.testing.assert_allclose(nearest, w - np.linalg.pinv(a) @ (a @ w - b), rtol=1e-12)
    _, s, v = np.linalg.svd(np.asarray(a), full_matrices=False)
    alpha, way = 3 / s[0] ** 2, w - nearest
    angles = projection_angles(a, b, w, inner_lr=alpha, steps=200)
    for k in (1, 2, 10, 50):
        went = v.T @ ((1 - (1 - alpha * s**2 / 3) ** k) * (v @ way))
        cosine = went @ way / np.linalg.norm(went) / np.linalg.norm(way)
        assert float(jnp.cos(angles[k - 1])) == pytest.approx(cosine, abs=1e-10)
    assert (np.diff(angles) < 0).all()
    assert float(angles[-1]) < 1e-3 < float(angles[0])


# Bad input.


def test_what_cannot_be_expanded_is_named() -> None:
    with pytest.raises(ValueError, match="k must be 1 or more, but is 0"):
        taylor.expansion("maml", 0)
    with pytest.raises(ValueError, match=r"method must be one of .* but is 'mamll'"):
        taylor.expansion("mamll", 2)  # pyright: ignore
    with pytest.raises(ValueError, match="batches must name 3 mini-batches for k=3, but names 2"):
        taylor.expansion("reptile", 3, batches=(0, 1))
    with pytest.raises(ValueError, match="rates must hold 2 positive numbers"):
        taylor.expansion("maml", 3, rates=(1.0, -1.0))
    with pytest.raises(ValueError, match="normalised=True divides Reptile by k, but method='maml'"):
        taylor.expansion("maml", 3, normalised=True)
    with pytest.raises(ValueError, match="test_batch must be"):
        taylor.expansion("maml", 3, test_batch="other")  # pyright: ignore
    with pytest.raises(ValueError, match="m=4 must lie between 0 and the number of earlier batches, 3"):
        taylor.shared_tail(4, 4)
    with pytest.raises(ValueError, match="n must be 1 or more, but is 0"):
        taylor.cycling(4, 0)


def test_what_cannot_be_verified_is_named() -> None:
    loss, w, pool = small_problem(3)
    plan = taylor.expansion("maml", 2)
    verify = lambda **given: taylor.verify_expansion(  # noqa: E731
        given.pop("loss", loss), given.pop("w", w), given.pop("pool", pool), given.pop("plan", plan), **given
    )
    with pytest.raises(ValueError, match="k=4 wants 4 different mini-batches, but batches holds 3"):
        verify(plan=taylor.expansion("maml", 4))
    with pytest.raises(ValueError, match="alphas must be positive"):
        verify(alphas=[1e-3, 1e-4, 0.0, 1e-5])
    with pytest.raises(ValueError, match="alphas must be at least four"):
        verify(alphas=[1e-3, 1e-4, 1e-5])
    with pytest.raises(TypeError, match=r"params must be float64, .* but are float32"):
        verify(w=w.astype(jnp.float32))
    with pytest.raises(ValueError, match="order must be 1 or 2, but is 3"):
        verify(order=3)
    with pytest.raises(FloatingPointError, match="the loss of mini-batch 1 is nan at params"):
        verify(pool=(pool[0], pool[1].at[1].set(jnp.nan), pool[2]))
    with pytest.raises(FloatingPointError, match="the mean gradient of maml is not finite at alpha"):
        verify(loss=lambda w, b: jnp.sum(jnp.exp(w**2)) + loss(w, b), alphas=[1e3, 1e2, 1e1, 1.0])
    with pytest.raises(ValueError, match="AvgGrad is zero at params"):
        verify(loss=lambda w, b: jnp.sum(0.0 * w * b[1]))
    with pytest.raises(ValueError, match="one leading axis for all arrays, but the lengths of that axis are"):
        verify(pool=(pool[0], pool[1][:2], pool[2]))
    with pytest.raises(ValueError, match="at least 2 mini-batches"):
        taylor.avg_grad_inner(loss, w, jax.tree.map(lambda leaf: leaf[:1], pool))
    with pytest.raises(ValueError, match="form must be"):
        taylor.avg_grad_inner(loss, w, pool, form="other")  # pyright: ignore
    with pytest.raises(ValueError, match="order must be 0, 1 or 2, but is 3"):
        taylor.terms(loss, w, pool, order=3)
    with pytest.raises(ValueError, match="samples must be 2 or more"):
        taylor.estimate_terms(loss, w, lambda key: pool, jax.random.key(0), samples=1)


def test_what_cannot_be_ordered_is_named() -> None:
    with pytest.raises(ValueError, match="k=4 must lie between 1 and the number of mini-batches in the pool, 3"):
        taylor.orderings(3, 4)
    with pytest.raises(ValueError, match=r"n=6; pool_size\(4, strength=2\) is 4"):
        taylor.orderings(6, 4, strength=2)
    with pytest.raises(ValueError, match="strength must be None, 2 or 3, but is 4"):
        taylor.orderings(6, 4, strength=4)
    with pytest.raises(ValueError, match="k=5 of 15 mini-batches have 360360 orderings; a pool of 5 needs few"):
        exact_orderings(15, 5, 1)


def test_what_cannot_be_projected_is_named() -> None:
    with pytest.raises(ValueError, match="a must be \\["):
        nearest_solution(jnp.ones((3, 2)), jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match=r"steps=0 and inner_lr=1\.0 must be"):
        projection_angles(jnp.ones((1, 2)), jnp.ones(1), jnp.zeros(2), inner_lr=1.0, steps=0)


# The command line, which goes into double precision and out of it by itself.


def test_the_command_line_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with jax.enable_x64(False):
        words = ("--k", "1", "3", "--out", tmp_path / "out")
        assert run("taylor", *words) == 0
        assert not jax.config.jax_enable_x64
        out = capsys.readouterr().out
        assert out.count("agrees") == 6
        assert "k=3: measured 3.00000000, 2 is off by 1.000000: rejected" in out
        found = json.loads((tmp_path / "out" / "taylor.json").read_text())
        assert [(v["method"], v["k"], v["accepted"]) for v in found["verdicts"]] == [
            (method, k, True) for k in (1, 3) for method in METHODS
        ]
        assert [v["accepted"] for v in found["reptile_as_often_printed"]] == [False, False]
        assert (tmp_path / "out" / "taylor.png").read_bytes().startswith(b"\x89PNG")
        assert run("taylor", *words) == 2
        assert "is there already" in capsys.readouterr().err


def test_the_command_line_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        ("--k", "0"): "--k must name numbers of 1 or more, but is 0",
        ("--k", "17"): "--k must be 16 at most, but is 17",
        ("--model", "conv4", "--dataset", "sinusoid"): "--model conv4 wants images",
        ("--model", "conv4", "--order", "2"): "--order 2 wants a loss without kinks",
    }.items():
        assert run("taylor", *words) == 2
        assert message in capsys.readouterr().err
