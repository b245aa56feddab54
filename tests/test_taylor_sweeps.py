"""Coefficients measured by sweeps over the inner rate, for every kind of expansion, and `jaxmeta taylor`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import nn
from jaxmeta.analysis import taylor

from helpers import network_problem, picked, small_problem  # isort: skip
from test_cli import run  # isort: skip

METHODS = ("maml", "fomaml", "reptile")
pytestmark = pytest.mark.usefixtures("float64")

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
    problem = network_problem(nn.MLP((6,), 3, activation=jnp.tanh), (4,), 5, n=8)
    check_all(problem, range(1, 9), order=2, size=0.01)


def test_every_k_on_conv4_with_cross_entropy() -> None:
    """Conv4 as it is, with ReLU: at rates so small that no unit changes sides."""
    problem = network_problem(nn.Conv4(3, features=4, pool="stride", readout="flatten"), (16, 16, 1), 6, n=8)
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
    # Here coefficients of first order can be measured, but what is left after them cannot be seen.
    wrong = plan._replace(coefficients={**plan.coefficients, "T:abb": 1.5})
    for prediction, order, top in (
        (wrong, 2, 1e-8),
        (wrong, 2, 1e-7),
        (plan, 2, 1e-5),
        (plan, 1, 1e-8),
        (plan, 1, 1e-7),
    ):
        verdict = taylor.verify_expansion(*problem, prediction, alphas=ladder(top), order=order)
        assert (verdict.range, verdict.accepted) == ("too small", False)


def test_an_order_that_bends_the_next_one_s_slope_asks_for_smaller_alphas() -> None:
    """The ladder looks at the first two orders; where the third is large beside the second, it starts too high."""
    bent = 0
    for seed in range(6):
        loss, w, pool = small_problem(4, d=4, seed=seed)
        plan, means = taylor.expansion("maml", 3), taylor.terms(loss, w, pool)
        verdict = taylor.verify_expansion(loss, w, pool, plan, size=0.1)
        assert verdict.accepted, (seed, verdict.reasons)
        first, second = means["g"], plan.avg_grad_inner * means["Hg:ab"]
        bent += verdict.alphas[0] < 0.09 * jnp.linalg.norm(first) / jnp.linalg.norm(second)
    assert bent, "some of these ladders start too high"


def test_it_says_what_cannot_be_told_apart() -> None:
    plan = taylor.expansion("fomaml", 3)
    line = lambda w, b: jnp.sum(b[0] * jnp.cosh(w - b[1]))  # noqa: E731
    one = taylor.verify_expansion(
        line, jnp.array([0.2]), (jnp.array([1.0, 1.5, 0.5]), jnp.array([1.0, -2.0, 0.5])), plan
    )
    loss, w, pool = small_problem(3)
    alike = taylor.verify_expansion(loss, w, jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 3), pool), plan)
    for verdict in (one, alike):
        (reason,) = verdict.reasons
        assert reason.startswith("Hg:ab and Hg:aa are parallel at params")
        assert [c.uncertainty for c in verdict.coefficients[1:]] == [np.inf, np.inf]
        assert [c["measured"] for c in taylor.summary(verdict)["coefficients"][1:]] == [None, None]
    flat = taylor.verify_expansion(lambda w, b: jnp.sum(b[1] * w), w, pool, plan)
    assert [reason for reason in flat.reasons if reason.startswith("Hg:ab and Hg:aa vanish at params")]


def test_idle_steps_change_nothing() -> None:
    """Steps of rate 0, which let one program serve many k, are no steps: against a loop written out."""
    loss, w, pool = small_problem(4)
    grad, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    rows, alpha = taylor.orderings(4, 3), 0.05
    for method in METHODS:
        total = np.zeros(3)
        for row in rows.tolist():
            steps, phi, jacobian, path = row if method == "reptile" else row[:-1], w, np.eye(3), []
            for i in steps:
                path.append(grad(phi, picked(pool, i)))
                jacobian = jacobian @ (np.eye(3) - alpha * hessian(phi, picked(pool, i)))
                phi = phi - alpha * path[-1]
            last = grad(phi, picked(pool, row[-1]))
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
    axes = taylor.plot_verdicts(verdicts).axes
    assert len(axes) == 3
    assert [len(axis.get_lines()) > 3 for axis in axes] == [True] * 3


# Bad input.


def test_what_cannot_be_verified_is_named() -> None:
    loss, w, pool = small_problem(3)
    plan = taylor.expansion("maml", 2)
    verify = lambda **given: taylor.verify_expansion(  # noqa: E731
        given.pop("loss", loss), given.pop("w", w), given.pop("pool", pool), given.pop("plan", plan), **given
    )
    with pytest.raises(ValueError, match="k=4 wants 4 different mini-batches, but batches holds 3"):
        verify(plan=taylor.expansion("maml", 4))
    with pytest.raises(ValueError, match="alphas must be positive"):
        verify(alphas=jnp.array([1e-3, 1e-4, 0.0, 1e-5]))
    with pytest.raises(ValueError, match="alphas must be at least four"):
        verify(alphas=[1e-3, 1e-4, 1e-5])
    with pytest.raises(TypeError, match=r"params must be float64, .* but are float32"):
        verify(w=w.astype(jnp.float32))
    with pytest.raises(ValueError, match="order must be 1 or 2, but is 3"):
        verify(order=3)
    with pytest.raises(ValueError, match="size must lie between 0 and 1, but is 0"):
        verify(size=0.0)
    with pytest.raises(FloatingPointError, match="the loss of mini-batch 1 is nan at params"):
        verify(pool=(pool[0], pool[1].at[1].set(jnp.nan), pool[2]))
    with pytest.raises(FloatingPointError, match="the mean gradient of maml is not finite at alpha"):
        verify(loss=lambda w, b: jnp.sum(jnp.exp(w**2)) + loss(w, b), alphas=[1e3, 1e2, 1e1, 1.0])
    with pytest.raises(TypeError, match=r"loss_fn must return a float64 scalar, but returns .*float32"):
        verify(loss=lambda w, b: loss(w, b).astype(jnp.float32))
    with pytest.raises(TypeError, match=r"loss_fn must return a float64 scalar, but returns \("):
        verify(loss=lambda w, b: (loss(w, b), w))
    with pytest.raises(TypeError, match="loss_fn must compute in double precision, but converts float64 to float32"):
        verify(loss=lambda w, b: loss(jax.jit(lambda w: w.astype(jnp.float32))(w), b))
    for tolerance in (0.0, np.nan, 10.0):
        with pytest.raises(ValueError, match=f"tolerance must lie between 0 and 1, but is {tolerance}"):
            verify(tolerance=tolerance)
    for coefficients in ({"g": 1.0}, {**plan.coefficients, "Hg:aa": np.nan}):
        with pytest.raises(ValueError, match="expansion must have a finite coefficient of each word, but has none of"):
            verify(plan=plan._replace(coefficients=coefficients))
    assert not verify(plan=plan._replace(coefficients={**plan.coefficients, "g": 0.0})).accepted
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
    for alpha in (0.0, -1e-3):
        with pytest.raises(ValueError, match=f"alpha must be positive, but is {alpha}"):
            taylor.mean_gradient(loss, w, pool, plan, alpha, taylor.orderings(3, 2))
    with pytest.raises(ValueError, match=r"rows must be \[orderings, 2 or more\].* but is \[3, 1\]"):
        taylor.mean_gradient(loss, w, pool, plan, 1e-3, taylor.orderings(3, 1))
    with pytest.raises(ValueError, match=r"rows must name mini-batches 0 \.\. 2, but name 0 \.\. 3"):
        taylor.mean_gradient(loss, w, pool, plan, 1e-3, taylor.orderings(4, 2))


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


def test_the_command_line_measures_a_network_on_omniglot(tmp_path: Path, tfds_dir: Path, capsys) -> None:
    with jax.enable_x64(False):
        words = ("--model", "conv4", "--dataset", "omniglot", "--features", 2, "--data-dir", tfds_dir)
        assert run("taylor", "--k", 2, "--ways", 3, "--out", tmp_path / "out", *words) == 0
    assert capsys.readouterr().out.count("agrees") == 4  # Reptile with 2 as well


def test_the_command_line_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        ("--k", "0"): "--k must name numbers of 1 or more, but is 0",
        ("--k", "17"): "--k must be 16 at most, but is 17",
        ("--model", "conv4", "--dataset", "sinusoid"): "--model conv4 wants images",
        ("--model", "conv4", "--order", "2"): "--order 2 wants a loss without kinks",
        ("--model", "conv4", "--features", "0"): "--features must be 1 or more, but is 0",
        ("--features", "4"): "--features is for --model conv4",
        ("--ways", "4"): "--ways is for images",
    }.items():
        assert run("taylor", *words) == 2
        assert message in capsys.readouterr().err
