"""Comparing estimators, and looking into programs."""

import json
from pathlib import Path

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxmeta import (
    Batch,
    Carried,
    Episode,
    analysis,
    fomaml_grad,
    imaml_grad,
    losses,
    maml,
    maml_grad,
    maml_pp,
    nn,
    reptile,
    tasks,
)
from jaxmeta.analysis._compare import table

from test_cli import run  # isort: skip

SOURCE = tasks.sinusoid(shots=5, queries=5)
MODEL = nn.MLP((8, 8), 1, activation=jnp.tanh)
SETTINGS = {"inner_optimizer": optax.sgd(0.05), "steps": 3, "loss": losses.mean_squared_error}


def batch(count: int = 4) -> Episode:
    return jax.vmap(SOURCE.sample, (None, 0))((), jax.random.split(jax.random.key(0), count))


def test_rows_say_how_far_each_is_from_the_reference() -> None:
    params, episodes, key = MODEL.init(jax.random.key(1), jnp.zeros((1, 1))), batch(), jax.random.key(2)

    def task_loss(p, b):
        return losses.mean_squared_error(MODEL.apply(p, b.x), b.y)

    def doubled(p, episode, key):
        del key
        grads, metrics = maml_grad(task_loss, p, episode, optimizer=optax.sgd(0.05), steps=3)
        return jax.tree.map(lambda g: 2 * g, grads), metrics

    rows = analysis.compare(
        {"maml": maml(MODEL, **SETTINGS), "doubled": doubled, "reptile": reptile(MODEL, inner_lr=0.05, **SETTINGS)},
        params,
        episodes,
        key,
        repeats=3,
    )
    assert [row.name for row in rows] == ["maml", "doubled", "reptile"]
    np.testing.assert_allclose((rows[0].cosine, rows[0].norm_ratio, rows[0].relative_error), (1, 1, 0), atol=1e-6)
    found = (rows[1].cosine, rows[1].norm_ratio, rows[1].relative_error)
    np.testing.assert_allclose(found, (1, 2, 1), rtol=1e-5)

    def mean_gradient(estimator):
        each = [estimator(jax.tree.map(lambda leaf, i=i: leaf[i], episodes)) for i in range(4)]
        return ravel_pytree(jax.tree.map(lambda *grads: sum(grads) / 4, *each))[0]

    learner = reptile(MODEL, inner_lr=0.05, **SETTINGS)
    theirs = mean_gradient(lambda e: learner.meta_grad(params, e, key)[0])
    exact = mean_gradient(lambda e: maml_grad(task_loss, params, e, optimizer=optax.sgd(0.05), steps=3)[0])
    cosine = theirs @ exact / jnp.linalg.norm(theirs) / jnp.linalg.norm(exact)
    error = jnp.linalg.norm(theirs - exact) / jnp.linalg.norm(exact)
    np.testing.assert_allclose((rows[2].cosine, rows[2].relative_error), (cosine, error), rtol=1e-4)
    assert all(row.step_seconds > 0 and row.compile_seconds > 0 and row.temp_bytes > 0 for row in rows)
    assert rows[0].flops > rows[2].flops > 0
    text = table(rows)
    assert all(row.name in text for row in rows)


def test_what_is_carried_is_no_gradient() -> None:
    """MAML++ counts its outer steps among its meta-parameters: the count has no part in an angle."""
    learner = maml_pp(
        nn.MLP((8,), 5, norm=True), steps=1, inner_lr=0.1, epoch=1, multi_step_epochs=1, first_order_epochs=0
    )
    source = tasks.episodes(tasks.glyphs("train", classes=60, image_size=8), ways=5, shots=1, queries=1)
    episodes = jax.vmap(source.sample, (None, 0))(source.data, jax.random.split(jax.random.key(0), 2))
    params = learner.init(jax.random.key(1), jax.tree.map(lambda leaf: leaf[0], episodes))
    params = params._replace(outer_step=Carried(jnp.array(10_000)))

    def opposite(params, episode, key):
        grads, metrics = learner.meta_grad(params, episode, key)
        weights = jax.tree.map(lambda g: -g, grads._replace(outer_step=None))
        return weights._replace(outer_step=grads.outer_step), metrics

    estimators = {"maml_pp": learner, "opposite": opposite}
    rows = analysis.compare(estimators, params, episodes, jax.random.key(2), reference="maml_pp", repeats=0)
    found = (rows[1].cosine, rows[1].norm_ratio, rows[1].relative_error)
    np.testing.assert_allclose(found, (-1, 1, 2), rtol=1e-5)


def test_gradients_of_sixteen_bits_are_compared_in_more() -> None:
    scaled = lambda scale: lambda p, e, k: (scale * p, {"loss": jnp.zeros(())})  # noqa: E731
    params = jnp.full(400, 4096.0, jnp.float16)  # the norm, 81,920, has no float16
    estimators = {"maml": scaled(1), "other": scaled(1.25)}
    rows = analysis.compare(estimators, params, batch(), jax.random.key(0), repeats=0)
    found = [(row.cosine, row.norm_ratio, row.relative_error) for row in rows]
    np.testing.assert_allclose(found, [(1, 1, 0), (1, 1.25, 0.25)], rtol=1e-3, atol=1e-6)


def test_a_picture_of_it(tmp_path: Path) -> None:
    row = analysis.EstimatorRow("maml", 1.0, 1.0, 0.0, 0.5, 1e6, 1000, 0.1, 0.01, ())
    analysis.plot_comparison(tmp_path / "a.png", [row, row._replace(name="fomaml")], "two")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_gradient_of_nothing_has_no_angle() -> None:
    def still(p, episode, key):
        return jax.tree.map(jnp.zeros_like, p), {"loss": jnp.zeros(())}

    params = jnp.ones(2)
    moving = lambda p, episode, key: (p, {"loss": jnp.zeros(())})  # noqa: E731
    _, row = analysis.compare({"maml": moving, "still": still}, params, batch(), jax.random.key(0), repeats=0)
    assert np.isnan(row.cosine)
    assert (row.norm_ratio, row.relative_error) == (0.0, 1.0)
    assert np.isnan(row.step_seconds)


def test_what_cannot_be_compared_is_named() -> None:
    args = (jnp.ones(2), batch(), jax.random.key(0))
    one = lambda p, e, k: (p, {"loss": jnp.zeros(())})  # noqa: E731
    other = lambda p, e, k: ({"w": p}, {"loss": jnp.zeros(())})  # noqa: E731
    with pytest.raises(KeyError, match="reference='maml' is not among the estimators, fomaml"):
        analysis.compare({"fomaml": one}, *args)
    with pytest.raises(ValueError, match="the gradients of 'odd' have the structure"):
        analysis.compare({"maml": one, "odd": other}, *args, repeats=0)
    broken = lambda p, e, k: (p * jnp.nan, {"loss": jnp.zeros(())})  # noqa: E731
    _, row = analysis.compare({"maml": one, "broken": broken}, *args, repeats=0)
    assert np.isnan(row.cosine)
    (silent,) = analysis.compare({"maml": lambda p, e, k: (p, {})}, *args, repeats=0)
    assert np.isnan(silent.loss)
    with pytest.raises(ValueError, match="repeats must be 0 or more, but is -1"):
        analysis.compare({"maml": one}, *args, repeats=-1)


def test_arithmetic_is_counted_with_loops_multiplied_out() -> None:
    """A K-step inner loop of a linear model on n examples of d features: closed form."""
    n, d, steps = 7, 5, 6
    x, w = jnp.ones((n, d)), jnp.ones(d)

    def first_order(w):
        episode = Episode(Batch(x, jnp.ones(n)), Batch(x, jnp.ones(n)))
        loss = lambda w, b: jnp.mean((b.x @ w - b.y) ** 2)  # noqa: E731
        return fomaml_grad(loss, w, episode, optimizer=optax.sgd(0.1), steps=steps)

    product = 2 * n * d  # forward, and as much for the gradient
    assert analysis.inspect(first_order, w).flops == 2 * product * (steps + 1)
    unused = analysis.inspect(lambda w: (x @ w, jnp.exp(x @ w))[1], w)
    assert unused.flops == 2 * n * d, "what no result needs is not counted"

    kernel, image = jnp.ones((3, 3, 4, 8)), jnp.ones((2, 10, 10, 4))
    layout = ("NHWC", "HWIO", "NHWC")
    stock = lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)  # noqa: E731
    ours = lambda x: nn.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)  # noqa: E731
    expected = 2 * (2 * 10 * 10 * 8) * (3 * 3 * 4)
    assert analysis.inspect(stock, image).flops == analysis.inspect(ours, image).flops == expected
    # Two kernels, each for its half of the images; and one for each image, as `jax.vmap` makes of per-task kernels.
    halves = lambda x: jax.lax.conv_general_dilated(  # noqa: E731
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, batch_group_count=2
    )
    assert analysis.inspect(halves, image).flops == expected / 2
    each = [jnp.ones((5, *leaf.shape)) for leaf in (image, kernel)]

    def per_task(convolve):
        loss = lambda x, w: convolve(x, w, (1, 1), "SAME", dimension_numbers=layout).sum()  # noqa: E731
        return analysis.inspect(jax.vmap(jax.grad(loss, (0, 1))), *each).flops

    assert per_task(jax.lax.conv_general_dilated) == per_task(nn.conv_general_dilated)
    branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: 2 * x, lambda x: x @ x.T @ x, x)  # noqa: E731
    assert analysis.inspect(branches, x).flops == 2 * (2 * n * n * d)


@pytest.mark.parametrize("ours", [False, True])
def test_what_is_slow_under_per_task_weights_is_told_with_its_remedy(ours: bool) -> None:
    class Net(fnn.Module):
        @fnn.compact
        def __call__(self, x):
            hook = {"conv_general_dilated": nn.conv_general_dilated} if ours else {}
            x = fnn.relu(fnn.Conv(2, (3, 3), **hook)(x))
            x = (nn.max_pool if ours else fnn.max_pool)(x, (2, 2), (2, 2))
            return fnn.Dense(2)(x.reshape(len(x), -1))

    labels = jnp.array([0, 1])
    episodes = Episode(*[Batch(jnp.ones((4, 2, 6, 6, 1)), jnp.tile(labels, (4, 1)))] * 2)
    learner = maml(Net(), inner_optimizer=optax.sgd(0.1), steps=2)
    params = Net().init(jax.random.key(0), jnp.ones((2, 6, 6, 1)))
    (row,) = analysis.compare({"maml": learner}, params, episodes, jax.random.key(0), repeats=0, chunk=4, devices=1)
    if ours:
        assert row.warnings == ()
        return
    told = "\n".join(row.warnings)
    assert "a convolution in 4 groups" in told
    assert "conv_general_dilated=jaxmeta.nn.conv_general_dilated" in told
    assert "take jaxmeta.nn.max_pool for flax.linen.max_pool" in told


def test_the_command_line_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--inner-steps", "2", "--meta-batch", "2", "--repeats", "1", "--out", tmp_path / "out")
    assert run("compare", *words) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    names = [row["name"] for row in found["estimators"]]
    assert names == ["maml", "fomaml", "truncated_1", "reptile", "anil", "boil", "imaml"]
    assert all(name in out for name in names)
    assert found["estimators"][0]["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert (tmp_path / "out" / "compare.png").exists()
    assert run("compare", *words) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_command_line_compares_where_a_run_has_come_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--steps", "2", "--meta-batch", "2", "--episodes", "2", "--out", tmp_path / "run") == 0
    words = ("--inner-steps", "1", "--meta-batch", "2", "--repeats", "0", "--run", tmp_path / "run")
    assert run("compare", *words, "--out", tmp_path / "out") == 0
    assert f"at step 2 of {tmp_path / 'run'}" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["settings"]["method"] = "reptile"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert run("compare", *words, "--out", tmp_path / "other") == 2
    assert "--run wants a run of maml or fomaml, but" in capsys.readouterr().err


@pytest.mark.parametrize("contracted", [((1,), (0,)), ((1,), (1,)), ((0,), (0,))])
def test_products_count_as_jax_s_do(contracted) -> None:
    x, w = (jnp.ones((3, 4, n) if along == (0,) else (3, n, 4)) for n, along in zip((2, 5), contracted, strict=True))

    def flops(dot):
        loss = lambda x, w: jnp.sin(dot(x, w, (contracted, ((), ())))).sum()  # noqa: E731
        return analysis.inspect(jax.vmap(jax.grad(loss, (0, 1))), x, w).flops

    assert flops(nn.dot_general) == flops(jax.lax.dot_general) > 0


def test_an_implicit_gradient_far_from_its_solution_is_told() -> None:
    loss = lambda w, batch: jnp.sum((w - batch.y) ** 2)  # noqa: E731
    params, tasks_ = jnp.ones(1), Episode(*[Batch(jnp.zeros((2, 3, 1)), jnp.full((2, 3, 1), 5.0))] * 2)

    def implicit(steps):
        return lambda w, episode, key: imaml_grad(
            loss, w, episode, optimizer=optax.sgd(0.01), steps=steps, proximal=2.0
        )

    found = analysis.compare(
        {"near": implicit(60), "far": implicit(2)}, params, tasks_, jax.random.key(0), reference="near", devices=1
    )
    assert [len(row.warnings) for row in found] == [0, 1]
    assert "far from the solution" in table(found)
