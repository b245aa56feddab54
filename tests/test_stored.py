"""`stored` changes what is compiled for CPU, and nothing else."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, classification_problem

from jaxmeta import adapt, nn
from jaxmeta._stored import stored


def compiled(f, *args, **kwargs):
    return jax.jit(f, **kwargs).lower(*args).compile()


@pytest.mark.usefixtures("float64")
def test_values_and_derivatives_of_every_order_are_those_without() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 4))

    def derivatives(keep):
        f = lambda x: jnp.sum(jnp.sin(keep(x**2)))  # noqa: E731
        along = jax.jvp(jax.grad(f), (x,), (jnp.cos(x),))
        return f(x), jax.grad(f)(x), along, jax.hessian(f)(x), jax.vmap(jax.grad(f))(x), jax.linearize(f, x)[1](x)

    assert_trees_close(derivatives(stored), derivatives(lambda x: x), rtol=1e-14)
    assert_trees_close(jax.jit(lambda: derivatives(stored))(), derivatives(lambda x: x), rtol=1e-13)


def test_any_tree_of_arrays_comes_back_as_it_was() -> None:
    tree = {
        "bools": jnp.array([True, False]),
        "bytes": jnp.arange(3, dtype=jnp.uint8),
        "halves": jnp.ones((2, 2), jnp.bfloat16),
        "scalar": (jnp.float32(3.0), None),
        "none of them": jnp.zeros((0, 2)),
    }
    for found in (stored(tree), jax.jit(stored)(tree)):
        assert jax.tree.structure(found) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, found, tree)
        assert jax.tree.map(jnp.result_type, found) == jax.tree.map(jnp.result_type, tree)
    assert stored({}) == {}


def test_an_axis_that_one_array_has_is_no_other_arrays() -> None:
    a, b = jax.vmap(lambda a, b: stored((a, b)), in_axes=(1, None), out_axes=(1, None))(jnp.eye(3)[:2], jnp.arange(3))
    np.testing.assert_array_equal(a, jnp.eye(3)[:2])
    np.testing.assert_array_equal(b, jnp.arange(3))


def test_a_cpu_computes_it_apart_from_what_reads_it() -> None:
    """Left to itself, the compiler would compute each sum again for all four that read it."""
    x = jnp.ones((8, 9))
    for keep, kernels in ((stored, {"f32[8,8]", "f32[8,8,4]"}), (lambda x: x, {"f32[8,8,4]"})):
        text = compiled(lambda x, keep=keep: keep(x[:, 1:] + x[:, :-1])[:, :, None] * jnp.arange(4.0), x).as_text()
        assert set(re.findall(r"= (f32\S+?)(?:\{\S*)? fusion\(", text)) == kernels
        assert (" conditional(" in text) == (keep is stored)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_accelerator_does_not_know_of_it(platform: str) -> None:
    program = jax.export.export(jax.jit(lambda x: stored(jnp.sin(x)) + 1), platforms=[platform])(jnp.ones(3))
    assert "case" not in program.mlir_module()
    assert "barrier" not in program.mlir_module()


@pytest.mark.parametrize("check_vma", [True, False])
def test_each_array_stays_on_its_devices(check_vma: bool) -> None:
    mesh = jax.make_mesh((2,), ("devices",), (jax.sharding.AxisType.Auto,))
    over, x, y = jax.P("devices"), jnp.arange(8.0).reshape(4, 2), jnp.arange(3.0)
    specs = (over, jax.P())
    mapped = jax.shard_map(
        lambda x, y: stored((x**2, -y)), mesh=mesh, in_specs=specs, out_specs=specs, check_vma=check_vma
    )
    assert_trees_close(jax.jit(mapped)(x, y), (x**2, -y), rtol=0)
    divided = compiled(lambda x: stored(x**2) + 1, jax.device_put(x, jax.NamedSharding(mesh, over)))
    assert " conditional(" in divided.as_text()
    assert "all-gather" not in divided.as_text()


def test_it_can_be_transposed() -> None:
    back = jax.linear_transpose(lambda x: stored((2 * x, jnp.ones(2)))[0], jnp.ones(2))
    np.testing.assert_array_equal(back(jnp.arange(2.0))[0], [0.0, 2.0])


def test_pooling_reads_what_is_the_largest_and_where() -> None:
    x = jnp.ones((2, 8, 8, 3))
    text = compiled(jax.grad(lambda x: (nn.max_pool(x, (2, 2), (2, 2)) ** 2).sum()), x).as_text()
    assert sorted(re.findall(r"= \((\S+?)(?:\{\S*)?\) conditional\(", text)) == ["f32[2,4,4,3]", "u8[2,4,4,3]"]


def test_a_step_that_is_differentiated_again_reads_its_parameters() -> None:
    loss, params, episode = classification_problem(jax.random.key(0))
    batch = episode.support
    after = lambda p: loss(adapt(loss, p, batch, optimizer=optax.sgd(0.1), steps=3).params, batch)  # noqa: E731
    assert " conditional(" in compiled(jax.grad(after), params).as_text()
