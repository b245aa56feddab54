"""Convolutions that are normalised while a slice of their values is at hand, against the same done at once."""

import chex
import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close

from jaxmeta import nn
from jaxmeta.nn._conv_before_norm import ConvBeforeNorm, Streamed
from jaxmeta.nn._pool import max_pool_2x2

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators store the values")


class Block(fnn.Module):
    """The first block of a network, with or without slices."""

    padding: str = "SAME"
    stride: int = 1
    pools: bool = True

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        convolved = ConvBeforeNorm(4, self.stride, self.padding, name="conv")(x)
        return nn.BatchNorm(name="norm")(convolved, max_pool_2x2 if self.pools else None)


def slices_of(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Streamed, "_slice", lambda self: images)


def value_and_derivatives(block: Block, params, x: jax.Array, tasks: int):
    def total(params, x):
        apply = jax.vmap(block.apply, (0, None)) if tasks else block.apply
        return jnp.sum(jnp.sin(apply(params, x)))

    grads = jax.grad(total, (0, 1))
    direction = jax.tree.map(jnp.cos, (params, x))
    return block.apply(params, x) if not tasks else 0, grads(params, x), jax.jvp(grads, (params, x), direction)[1]


@on_cpu
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tasks", [0, 3])
@pytest.mark.parametrize("images", [6, 7])
@pytest.mark.parametrize(("padding", "stride", "pools"), [("SAME", 1, True), ("VALID", 1, True), ("SAME", 2, False)])
def test_slices_of_images_have_the_values_and_derivatives_of_all(
    monkeypatch, tasks: int, images: int, padding: str, stride: int, pools: bool
) -> None:
    block, key = Block(padding, stride, pools), jax.random.key(0)
    x = 2.0 + jax.random.normal(key, (images, 7, 8, 2), jnp.float64)
    slices_of(100, monkeypatch)
    like = block.init(key, x)
    shape = (tasks,) if tasks else ()
    params = jax.tree.map(lambda leaf: jax.random.normal(key, (*shape, *leaf.shape), jnp.float64), like)
    assert (params["params"]["norm"]["scale"] < 0).any()
    whole = value_and_derivatives(block, params, x, tasks)
    slices_of(3, monkeypatch)
    chex.assert_trees_all_equal(block.init(key, x), like)
    assert "scan" in str(jax.make_jaxpr(block.apply)(like, x))
    assert_trees_close(value_and_derivatives(block, params, x, tasks), whole, rtol=1e-9, atol=1e-10)


@on_cpu
@pytest.mark.parametrize("order", [1, 2])
def test_the_values_of_many_images_are_never_stored(monkeypatch, order: int) -> None:
    """Neither in a gradient nor in a Hessian-vector product."""
    x = jnp.zeros((1000, 28, 28, 1))
    params = Block().init(jax.random.key(0), x[:2])
    gradient = jax.grad(lambda params: jnp.sum(Block().apply(params, x) ** 2))

    def temporary_bytes() -> int:
        # A function of its own each time: JAX would know the last one's trace.
        found = lambda p: gradient(p) if order == 1 else jax.jvp(gradient, (p,), (p,))[1]  # noqa: E731
        return jax.jit(found).lower(params).compile().memory_analysis().temp_size_in_bytes

    in_slices = temporary_bytes()
    slices_of(1000, monkeypatch)
    assert in_slices < 0.7 * temporary_bytes()


@pytest.mark.parametrize(
    ("x", "features"),
    [
        (jnp.zeros((100, 28, 28, 1)), 4),  # hardly more than a slice
        (jnp.zeros((400, 28, 28, 12)), 8),  # 108 products for each value
        (jnp.zeros((400, 28, 28, 1), jnp.bfloat16), 8),  # 16 bits are too few to add slices' gradients in
        (jnp.zeros((0, 28, 28, 1)), 4),
        (jnp.zeros((4, 0, 28, 1)), 4),
    ],
)
def test_what_does_not_pay_is_computed_at_once(x: jax.Array, features: int) -> None:
    convolve = ConvBeforeNorm(features, kernel_init=lambda key, shape, dtype: jnp.ones(shape, x.dtype))
    assert isinstance(jax.eval_shape(lambda: convolve.init_with_output(jax.random.key(0), x)[0]), jax.ShapeDtypeStruct)


@on_cpu
def test_a_slice_has_what_a_cache_holds() -> None:
    kernel = jnp.zeros((3, 3, 1, 64))
    assert Streamed(jnp.zeros((320, 28, 28, 1)), kernel, 1, "SAME")._slice() == 10
    wide = Streamed(jnp.zeros((320, 28, 28, 9)), jnp.zeros((3, 3, 9, 32)), 1, "SAME")
    assert wide._slice() == 8  # 81 products for each of 32 values
    assert Streamed(jnp.zeros((4, 500, 500, 1)), kernel, 1, "SAME")._slice() == 1
    double = Streamed(np.zeros((1, 28, 28, 1)), np.zeros((3, 3, 1, 64)), 1, "SAME")  # pyright: ignore[reportArgumentType]
    with jax.enable_x64():
        assert double._slice() == 5


@on_cpu
def test_two_slices_pay_on_cpu(monkeypatch) -> None:
    images = lambda n: Streamed(jnp.zeros((n, 28, 28, 1)), jnp.zeros((3, 3, 1, 64)), 1, "SAME")  # noqa: E731
    assert images(20).pays()
    assert not images(19).pays()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not images(20).pays()


def test_the_mean_is_that_of_the_mean_image() -> None:
    """Far from zero, where a mean square less a squared mean would have lost most of its digits."""
    x = 100 + jax.random.normal(jax.random.key(0), (400, 28, 28, 1))
    convolution = Streamed(x, jax.random.normal(jax.random.key(1), (3, 3, 1, 4)), 1, "VALID")
    values = np.asarray(convolution.of(x), np.float64)
    centred, variance = convolution.centred(lambda centred: centred)
    np.testing.assert_allclose(variance[0, 0, 0], values.var((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(centred.mean((0, 1, 2)) / values.std((0, 1, 2)), 0, atol=3e-4)


@on_cpu
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.uint8])
def test_images_of_fewer_bits_are_normalised_in_the_kernels(monkeypatch, dtype) -> None:
    x = jnp.asarray(1.003 + 2 * jax.random.normal(jax.random.key(0), (400, 6, 6, 1)) ** 2, dtype)
    params = Block().init(jax.random.key(1), x)
    slices_of(50, monkeypatch)
    assert "scan" in str(jax.make_jaxpr(Block().apply)(params, x))
    found = Block().apply(params, x)
    slices_of(400, monkeypatch)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, Block().apply(params, x), rtol=1e-4, atol=1e-5)


def test_intermediates_are_values_however_many_images_there_are() -> None:
    x = jnp.zeros((400, 28, 28, 1))
    params = Block().init(jax.random.key(0), x)
    capture = jax.jit(lambda params, x: Block().apply(params, x, capture_intermediates=True)[1]["intermediates"])
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(capture, params, x))
    assert shapes["conv"]["__call__"] == ((400, 28, 28, 4),)


def test_images_of_a_number_yet_unknown_are_convolved_at_once() -> None:
    params = Block().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 28, 28, 1"), jnp.float32)
    exported = jax.export.export(jax.jit(Block().apply))(params, images)
    x = jax.random.normal(jax.random.key(1), (3, 28, 28, 1))
    np.testing.assert_allclose(exported.call(params, x), Block().apply(params, x), rtol=1e-5, atol=1e-6)


def test_images_that_devices_share_are_convolved_where_they_are() -> None:
    sharding = jax.NamedSharding(jax.make_mesh((2,), ("devices",)), jax.P("devices"))
    x = jax.random.normal(jax.random.key(0), (400, 28, 28, 1))
    params = Block().init(jax.random.key(1), x)
    with jax.set_mesh(sharding.mesh):
        divided = jax.jit(Block().apply)(params, jax.device_put(x, sharding))
    np.testing.assert_allclose(divided, Block().apply(params, x), rtol=1e-4, atol=1e-5)
