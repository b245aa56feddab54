"""The one place where tasks are mapped: every strategy gives the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, to_float64

from jaxmeta import Batch, Episode, MetaLearner, batch_meta_grad, losses, maml, nn, tasks
from jaxmeta._memory import peak_bytes
from jaxmeta.meta_batch import count_tasks, divide

LEARNER = maml(
    nn.MLP((8, 8), 1, activation=jnp.tanh),
    inner_optimizer=optax.sgd(0.05),
    steps=2,
    loss=losses.mean_squared_error,
)
SOURCE = tasks.sinusoid(shots=5)


def problem(count: int):
    episodes = jax.vmap(SOURCE.sample, (None, 0))((), jax.random.split(jax.random.key(0), count))
    params = LEARNER.init(jax.random.key(1), jax.tree.map(lambda leaf: leaf[0], episodes))
    return to_float64((params, episodes)) if jax.config.jax_enable_x64 else (params, episodes)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("chunk", "devices"), [(None, None), (1, 1), (2, 1), (3, 2), (1, 2), (6, 1)])
def test_every_way_to_map_tasks_is_the_plain_loop(chunk, devices) -> None:
    params, episodes = problem(6)
    key = jax.random.key(2)
    singles = [
        LEARNER.meta_grad(params, jax.tree.map(lambda leaf, i=i: leaf[i], episodes), k)
        for i, k in enumerate(jax.random.split(key, 6))
    ]
    expected = jax.tree.map(lambda *leaves: sum(leaves) / 6, *singles)
    found = jax.jit(lambda p, e: batch_meta_grad(LEARNER, p, e, key, chunk=chunk, devices=devices))(params, episodes)
    assert_trees_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("float64")
def test_a_convolutional_network_gives_the_same_alone_mapped_and_divided() -> None:
    """One task at a time it runs as convolutions, mapped as products: Conv4, a whole meta-gradient."""
    model = nn.Conv4(3, features=2, pool="stride", readout="mean")
    learner = maml(model, inner_optimizer=optax.sgd(0.1), steps=1)
    x = jax.random.uniform(jax.random.key(0), (4, 2, 3, 16, 16, 1), jnp.float64)
    labels = jnp.tile(jnp.arange(3), (4, 1))
    episodes = Episode(Batch(x[:, 0], labels), Batch(x[:, 1], labels))
    params = to_float64(model.init(jax.random.key(1), x[0, 0]))
    found = [
        jax.jit(functools.partial(batch_meta_grad, learner, chunk=chunk, devices=devices))(
            params, episodes, jax.random.key(2)
        )[0]
        for chunk, devices in ((1, 1), (4, 1), (1, 2))
    ]
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[0]))
    for other in found[1:]:
        assert_trees_close(other, found[0], rtol=1e-10, atol=1e-10 * scale)


def test_means_of_sixteen_bits_do_not_depend_on_the_chunk() -> None:
    ones = MetaLearner(
        init=lambda key, episode: jnp.zeros((), jnp.bfloat16),
        meta_grad=lambda w, episode, key: (jnp.ones_like(w), {"loss": jnp.float16(1000.0)}),
        predict=lambda w, support, query_x, key: query_x,
    )
    _, episodes = problem(512)
    for chunk, devices in ((1, 1), (512, 1), (8, 2)):
        grads, metrics = batch_meta_grad(
            ones, jnp.zeros((), jnp.bfloat16), episodes, jax.random.key(0), chunk=chunk, devices=devices
        )
        assert (float(grads), grads.dtype) == (1.0, jnp.bfloat16)
        assert (float(metrics["loss"]), metrics["loss"].dtype) == (1000.0, jnp.float16)


def test_memory_does_not_grow_with_the_number_of_tasks() -> None:
    """The gradient is taken inside the loop, and reads the tasks where they are: 32, one at a time, need what 4 do."""

    wide = maml(nn.MLP((64, 64), 1), inner_optimizer=optax.sgd(0.05), steps=2, loss=losses.mean_squared_error)

    def temp_bytes(count: int) -> int:
        _, episodes = problem(count)  # and as wide as to weigh something, if they were copied
        episodes = Episode(*(batch._replace(x=jnp.tile(batch.x, (1, 1, 500))) for batch in episodes))
        params = wide.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], episodes))
        step = jax.jit(lambda p, e: batch_meta_grad(wide, p, e, jax.random.key(0), chunk=1, devices=1))
        return step.lower(params, episodes).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes(32) <= 1.05 * temp_bytes(4)


def test_small_models_are_mapped_whole_and_convolutions_one_by_one() -> None:
    params, episodes = problem(24)
    one = jax.tree.map(lambda leaf: leaf[0], episodes)
    mesh, chunk = divide(24, None, None, LEARNER.meta_grad, params, one, jax.random.key(0))
    assert (mesh.size, chunk) == (1, 24)
    mesh, chunk = divide(24, 2, None, LEARNER.meta_grad, params, one, jax.random.key(0))
    assert (mesh.size, chunk) == (2, 12)

    conv = maml(nn.Conv4(5, pool="stride"), inner_optimizer=optax.sgd(0.4))
    classes = tasks.from_arrays(np.zeros((10, 28, 28, 1), np.uint8), np.arange(10) % 5)
    source = tasks.episodes(classes, ways=5, shots=1, queries=1)
    episode = source.sample(source.data, jax.random.key(0))
    shapes = jax.eval_shape(conv.init, jax.random.key(0), episode)
    mesh, chunk = divide(32, None, None, conv.meta_grad, shapes, episode, jax.random.key(0))
    assert (mesh.size, chunk) == (2, 1)


def test_the_memory_estimate_counts_what_is_alive() -> None:
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)

    def chain(x):  # each intermediate dies at once
        for _ in range(50):
            x = jnp.sin(x)
        return x

    def fan(x):  # all intermediates live to the end
        return sum(jnp.sin(x + i) for i in range(50))

    assert 4096 <= peak_bytes(chain, x) <= 2 * 4096
    assert peak_bytes(lambda x: jnp.stack([jnp.sin(x + i) for i in range(50)]), x) >= 100 * 4096
    assert peak_bytes(fan, x) <= 4 * 4096
    inside = peak_bytes(lambda x: jax.lax.scan(lambda c, _: (jnp.cumsum(jnp.outer(c, c), 0)[0], None), x, None, 3), x)
    assert inside >= 2 * 1024 * 1024 * 4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"chunk": 4}, "chunk=4 must divide the number of tasks on a device, which is 6"),
        ({"chunk": 4, "devices": 2}, "chunk=4 must divide the number of tasks on a device, which is 3"),
        ({"chunk": 0}, "chunk=0 must divide"),
        ({"devices": 4}, "devices=4 must divide the number of tasks, 6, and be among the 2 present"),
        ({"devices": 0}, "devices=0 must divide"),
    ],
)
def test_what_does_not_divide_is_named(kwargs, message: str) -> None:
    params, episodes = problem(6)
    with pytest.raises(ValueError, match=message):
        batch_meta_grad(LEARNER, params, episodes, jax.random.key(0), **kwargs)


@pytest.mark.parametrize("name", ["chunk", "devices"])
def test_numbers_of_tasks_and_devices_are_whole(name: str) -> None:
    params, episodes = problem(6)
    with pytest.raises(TypeError, match=f"{name} must be an int, but is 2.0"):
        batch_meta_grad(LEARNER, params, episodes, jax.random.key(0), **{name: 2.0})


def test_arrays_that_disagree_on_the_tasks_are_named() -> None:
    params, episodes = problem(6)
    broken = episodes._replace(query=jax.tree.map(lambda leaf: leaf[:5], episodes.query))
    one = Episode(*[Batch(jnp.ones((6, 2)), jnp.arange(6))] * 2)
    with pytest.raises(
        ValueError, match=r"must have a leading task axis, .* support.y has shape \(6,\), which is that"
    ):
        count_tasks(one)
    with pytest.raises(ValueError, match="episodes must share one leading task axis"):
        batch_meta_grad(LEARNER, params, broken, jax.random.key(0))
    with pytest.raises(ValueError, match="of length at least 1"):
        count_tasks(jax.tree.map(lambda leaf: leaf[:0], episodes))


def test_a_function_is_no_learner() -> None:
    with pytest.raises(TypeError, match="learner must be a MetaLearner, with meta_grad, but is of type function"):
        batch_meta_grad(lambda *_: None, (), None, jax.random.key(0))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_makes_loss_and_gradient_nan(label: int) -> None:
    loss, grad = jax.value_and_grad(losses.cross_entropy)(jnp.zeros((2, 3)), jnp.array([0, label]))
    assert jnp.isnan(loss)
    assert jnp.isnan(grad[1]).all()
    assert jnp.isfinite(grad[0]).all()


@pytest.mark.parametrize(("dtype", "outputs"), [(jnp.uint8, 256), (jnp.uint8, 300), (jnp.int8, 128)])
def test_labels_of_eight_bits_may_be_of_more_classes_than_these_count(dtype, outputs: int) -> None:
    labels = jnp.array([0, 127 if dtype == jnp.int8 else 255], dtype)
    np.testing.assert_allclose(losses.cross_entropy(jnp.zeros((2, outputs)), labels), np.log(outputs), rtol=1e-6)
