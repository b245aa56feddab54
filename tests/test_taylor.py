"""The Taylor expansion of meta-gradients: its terms and coefficients against sums written out, and against sweeps."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import nn
from jaxmeta.analysis import nearest_solution, projection_angles, taylor
from jaxmeta.analysis.taylor._expansion import WORDS, word_of
from jaxmeta.analysis.taylor._orderings import exact_orderings

from helpers import assert_trees_close, network_problem, picked, small_loss, small_problem  # isort: skip

METHODS = ("maml", "fomaml", "reptile")
pytestmark = pytest.mark.usefixtures("float64")


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
    derivatives = (jax.grad(loss), jax.hessian(loss), jax.jacfwd(jax.hessian(loss)))
    grads, hessians, thirds = (np.asarray(jax.jit(jax.vmap(f, (None, 0)))(w, pool)) for f in derivatives)
    sums = collections.defaultdict(list)
    for a, b in itertools.product(range(4), repeat=2):
        sums[word_of("Hg", a, b)].append(hessians[a] @ grads[b])
    for a, b, c in itertools.product(range(4), repeat=3):
        sums[word_of("HHg", a, b, c)].append(hessians[a] @ hessians[b] @ grads[c])
        sums[word_of("T", a, b, c)].append(thirds[a] @ grads[b] @ grads[c])
    found = jax.jit(lambda w: taylor.terms(loss, w, jax.device_get(pool), order=2))(w)
    found = {word: found[word] for words in WORDS for word in words}
    assert len(found) == 12
    np.testing.assert_allclose(found["g"], np.mean(grads, 0), rtol=1e-12)
    for word, values in sums.items():
        np.testing.assert_allclose(found[word], np.mean(values, 0), rtol=1e-11, atol=1e-11, err_msg=word)


def test_both_forms_of_avg_grad_inner_are_one_on_any_pytree() -> None:
    loss, params, batches = network_problem(nn.MLP((6,), 3, activation=jnp.tanh), (4,), 5, n=4)

    @jax.jit
    def pairs(params):
        """E[H_a G_b] over a != b, and E[H_a G_a], pair by pair."""
        grads = [jax.grad(loss)(params, picked(batches, i)) for i in range(4)]
        product = lambda a, b: jax.jvp(lambda p: jax.grad(loss)(p, picked(batches, a)), (params,), (grads[b],))[1]  # noqa: E731
        mean = lambda chosen: jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *[product(*c) for c in chosen])  # noqa: E731
        return mean(itertools.permutations(range(4), 2)), mean((i, i) for i in range(4))

    @jax.jit
    def ours(params):
        forms = [taylor.avg_grad_inner(loss, params, batches, form=form) for form in ("hessian", "agreement")]
        return (*forms, taylor.self_term(loss, params, batches))

    inner, own = pairs(params)
    for found, expected in zip(ours(params), (inner, inner, own), strict=True):
        assert_trees_close(found, expected, rtol=1e-9, atol=1e-13)


def centred_loss(w, batch):
    """A mini-batch's loss, the mean over its examples: every array `[examples, ...]`."""
    return jax.vmap(small_loss, (None, 0))(w, batch).mean()


def pool_of(examples, batches):
    """Mini-batches by the numbers of their examples, `[n, size]`."""
    return jax.tree.map(lambda leaf: leaf[jnp.asarray(batches)], examples)


@jax.jit
def variance_gradient(w, examples):
    """The gradient of the trace of the covariance of the examples' gradients, over them all."""

    def trace(w):
        grads = jax.vmap(jax.grad(small_loss), (None, 0))(w, examples)
        return jnp.sum((grads - grads.mean(0)) ** 2) / len(grads)

    return jax.grad(trace)(w)


def test_where_a_mini_batch_meets_itself_variance_takes_the_place_of_agreement() -> None:
    """Self - AvgGradInner = Cov(H, g) = the gradient of half the variance; of B examples each, a B-th of theirs."""
    size, (_, w, examples) = 2, small_problem(4)
    pool = pool_of(examples, list(itertools.product(range(4), repeat=size)))  # all draws with replacement

    @jax.jit
    def gaps(w):
        one = taylor.self_term(small_loss, w, examples) - taylor.avg_grad_inner(small_loss, w, examples)
        return one, taylor.self_term(centred_loss, w, pool) - whole(w, examples)

    one, several = gaps(w)
    variance = variance_gradient(w, examples)
    np.testing.assert_allclose(one, variance / 2 * 4 / 3, rtol=1e-10)
    np.testing.assert_allclose(several, variance / (2 * size), rtol=1e-10)


def whole(w, examples):
    """H g of all examples as one batch."""
    return jax.hessian(centred_loss)(w, examples) @ jax.grad(centred_loss)(w, examples)


def test_mini_batches_of_a_finite_data_set() -> None:
    """Disjoint ones lose C / (n - 1), C the covariance of (H, g) over n examples; the same one gains a share."""
    n, size, (_, w, examples) = 6, 2, small_problem(6)
    partitions = [
        three
        for three in itertools.combinations(itertools.combinations(range(n), size), 3)
        if len(set(itertools.chain(*three))) == n
    ]
    assert len(partitions) == 15
    every = pool_of(examples, list(itertools.combinations(range(n), size)))
    pools = pool_of(examples, partitions)

    @jax.jit
    def means(w):
        mean = lambda term: jax.vmap(lambda pool: term(centred_loss, w, pool))(pools).mean(0)  # noqa: E731
        pairs = [f(centred_loss, w, every) for f in (taylor.avg_grad_inner, taylor.self_term)]
        covariance = taylor.self_term(small_loss, w, examples) - whole(w, examples)
        return mean(taylor.avg_grad_inner), mean(taylor.self_term), pairs, whole(w, examples), covariance

    disjoint, same, (different, alike), replaced, covariance = means(w)
    # Two batches drawn independently of the fifteen are one and the same in a fifteenth of all cases.
    np.testing.assert_allclose((14 * different + alike) / 15, replaced, rtol=1e-10)
    np.testing.assert_allclose(disjoint, replaced - covariance / (n - 1), rtol=1e-10)
    np.testing.assert_allclose(same, replaced + covariance / size * (n - size) / (n - 1), rtol=1e-10)


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
    # What is to be seen at the first look, term by term.
    probes = jax.vmap(draw)(jax.random.split(jax.random.split(jax.random.key(0))[1], settings["probes"]))
    at = jnp.ones(4) / 2
    over_tasks = lambda term: jax.jit(jax.vmap(lambda pool: term(loss, at, pool)))(probes).mean(0)  # noqa: E731
    grad, inner = over_tasks(taylor.avg_grad), over_tasks(taylor.avg_grad_inner)
    adapted = float(jax.vmap(lambda pool: after_two_steps(loss, at, pool, settings["alpha"]))(probes).mean())
    agreement = float(over_tasks(taylor.gradient_agreement))
    square = float(over_tasks(lambda *given: squares(*given).mean()))
    predicted = lambda plan: plan.avg_grad * grad + plan.avg_grad_inner * settings["alpha"] * inner  # noqa: E731
    cosine = lambda a, b: float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))  # noqa: E731
    for method in METHODS:
        plan = taylor.expansion(method, 3)
        found = taylor.track_directions(loss, at, draw, plan, optax.sgd(0.1), jax.random.key(0), **settings)
        assert [point.step for point in found] == [0, 2, 4]
        for point in found:
            assert (point.share_grad, point.share_inner) == pytest.approx(
                (plan.avg_grad, plan.avg_grad_inner), rel=0.02
            )
            assert point.unexplained < 1e-4
        assert found[-1].loss < found[0].loss
        assert found[0].cosine_grad == pytest.approx(cosine(predicted(plan), grad), abs=1e-5)
        assert found[0].cosine_inner == pytest.approx(cosine(predicted(plan), -inner), abs=1e-4)
        assert found[0].adapted_loss == pytest.approx(adapted, rel=1e-9)
        assert found[0].agreement == pytest.approx(agreement, rel=1e-6)
        assert found[0].cosine_agreement == pytest.approx(agreement / square, rel=1e-6)


def after_two_steps(loss, w, pool, alpha):
    """The third mini-batch's loss after a step on each of the first two."""
    w = w - alpha * jax.grad(loss)(w, picked(pool, 0))
    return loss(w - alpha * jax.grad(loss)(w, picked(pool, 1)), picked(pool, 2))


def squares(loss, w, pool):
    """|G_a|^2 of each mini-batch."""
    return (jax.vmap(jax.grad(loss), (None, 0))(w, pool) ** 2).sum(-1)


def test_training_that_diverges_is_told() -> None:
    loss = lambda w, target: jnp.sum((w - target) ** 4)  # noqa: E731
    draw = lambda key: jax.random.normal(key, (2, 3))  # noqa: E731
    plan, settings = taylor.expansion("fomaml", 2), {"alpha": 1e-3, "steps": 8, "every": 4, "probes": 2}
    with pytest.raises(FloatingPointError, match=r"training is not finite after 4 outer steps: .*loss"):
        taylor.track_directions(loss, jnp.ones(3), draw, plan, optax.sgd(50.0), jax.random.key(0), **settings)


def test_reptile_goes_straight_to_the_nearest_solution() -> None:
    rng = np.random.default_rng(0)
    a, b, w = (jnp.asarray(rng.normal(size=shape)) for shape in ((3, 8), (3,), (8,)))
    nearest = nearest_solution(a, b, w)
    np.testing.assert_allclose(nearest, w - np.linalg.pinv(a) @ (a @ w - b), rtol=1e-12)
    _, s, v = np.linalg.svd(np.asarray(a), full_matrices=False)
    alpha, way = 3 / s[0] ** 2, w - nearest
    angles = projection_angles(a, b, w, inner_lr=alpha, steps=60)
    for k in (1, 2, 10, 50):
        went = v.T @ ((1 - (1 - alpha * s**2 / 3) ** k) * (v @ way))
        cosine = float(went @ way / np.linalg.norm(went) / np.linalg.norm(way))
        assert float(jnp.cos(angles[k - 1])) == pytest.approx(cosine, abs=1e-10)
    assert (np.diff(angles) < 0).all()
    assert float(angles[-1]) < 1e-3 < float(angles[0])


# Bad input.


def test_what_cannot_be_expanded_is_named() -> None:
    for k in (0, 2.5, float("nan")):
        with pytest.raises(ValueError, match=f"k must be a whole number, 1 or more, but is {k}"):
            taylor.expansion("maml", k)
    with pytest.raises(ValueError, match=r"method must be one of .* but is 'mamll'"):
        taylor.expansion("mamll", 2)  # pyright: ignore
    with pytest.raises(ValueError, match="batches must name 3 mini-batches for k=3, but names 2"):
        taylor.expansion("reptile", 3, batches=(0, 1))
    for rate in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="rates must hold 2 positive finite numbers"):
            taylor.expansion("maml", 3, rates=(1.0, rate))
    with pytest.raises(ValueError, match="normalised=True divides Reptile by k, but method='maml'"):
        taylor.expansion("maml", 3, normalised=True)
    with pytest.raises(ValueError, match="test_batch must be"):
        taylor.expansion("maml", 3, test_batch="other")  # pyright: ignore
    with pytest.raises(ValueError, match="m=4 must be whole and lie between 0 and the number of earlier batches, 3"):
        taylor.shared_tail(4, 4)
    for n in (0, 2.5):
        with pytest.raises(ValueError, match=f"n must be a whole number, 1 or more, but is {n}"):
            taylor.cycling(4, n)
    with pytest.raises(ValueError, match="k must be a whole number, 1 or more, but is 0"):
        taylor.cycling(0, 2)
    with pytest.raises(ValueError, match="k must be a whole number, 1 or more, but is 0"):
        taylor.shared_tail(0, 0)
    with pytest.raises(ValueError, match="steps must be a whole number, 1 or more, but is -3"):
        taylor.reused_support(-3)


def test_what_cannot_be_ordered_is_named() -> None:
    with pytest.raises(ValueError, match="k=4 must lie between 1 and the number of mini-batches in the pool, 3"):
        taylor.orderings(3, 4)
    with pytest.raises(ValueError, match=r"n=6; pool_size\(4, strength=2\) is 4"):
        taylor.orderings(6, 4, strength=2)
    with pytest.raises(ValueError, match="strength must be None, 2 or 3, but is 4"):
        taylor.orderings(6, 4, strength=4)
    with pytest.raises(ValueError, match="k=5 of 15 mini-batches have 360360 orderings; a pool of 5 needs few"):
        exact_orderings(15, 5, 1)
    with pytest.raises(ValueError, match="a prime, 4, 8 or 16, but n=32"):
        taylor.orderings(32, 4, strength=2)
    with pytest.raises(ValueError, match="strength must be 2 or 3, but is 4"):
        taylor.pool_size(2, strength=4)
    with pytest.raises(ValueError, match="k must be 1 or more, but is 0"):
        taylor.pool_size(0, strength=2)


def test_as_few_orderings_as_are_known() -> None:
    assert [len(exact_orderings(8, k, 1)) for k in (1, 2, 3)] == [8, 56, 56]
    assert [len(exact_orderings(9, k, 2)) for k in (2, 4)] == [72, 504]


def test_what_cannot_be_projected_is_named() -> None:
    with pytest.raises(ValueError, match="a must be \\["):
        nearest_solution(jnp.ones((3, 2)), jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match=r"steps=0 and inner_lr=1\.0 must be"):
        projection_angles(jnp.ones((1, 2)), jnp.ones(1), jnp.zeros(2), inner_lr=1.0, steps=0)
    for start, rate, steps in ((jnp.array([1.0, 0.0]), 0.1, 2), (jnp.zeros(2), 100.0, 400)):
        with pytest.raises(FloatingPointError, match="params is a solution already, or descent at inner_lr="):
            projection_angles(jnp.ones((1, 2)), jnp.ones(1), start, inner_lr=rate, steps=steps)


def test_equations_that_say_the_same_have_a_nearest_solution() -> None:
    a, b, w = jnp.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]), jnp.array([1.0, 2.0]), jnp.ones(3)
    np.testing.assert_allclose(nearest_solution(a, b, w), w - np.linalg.pinv(a) @ (a @ w - b), rtol=1e-12)
    np.testing.assert_allclose(a @ nearest_solution(a, b, w), b, rtol=1e-12)
