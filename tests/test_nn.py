"""Networks against parameter counts, and building blocks against JAX's and Flax's own."""

import functools
import itertools
import re

import chex
import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close

from jaxmeta import nn
from jaxmeta.nn import _conv2d, _conv4
from jaxmeta.nn._pool import max_pool_2x2


def random_params(params):
    """Normal ones, no two alike."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    drawn = [jax.random.normal(key, leaf.shape, jnp.float64) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def count(model, shape) -> int:
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.MLP((40, 40), 1), (1,), 1_761),
        (nn.MLP((64, 64), 1, activation=jnp.tanh), (1,), 4_353),
        (nn.Conv4(5, pool="stride", readout="mean", norm_scale=False), (28, 28, 1), 112_005),
        (nn.Conv4(20, pool="stride", readout="mean", norm_scale=False), (28, 28, 1), 112_980),
        (nn.Conv4(5, pool="stride", readout="mean"), (28, 28, 1), 112_261),
        (nn.Conv4(5, pool="stride", readout="flatten"), (28, 28, 1), 113_221),
        (nn.Conv4(20, pool="stride", readout="flatten"), (28, 28, 1), 117_076),
        (nn.Conv4(None), (28, 28, 1), 111_936),
        (nn.Conv4(None, norm=False), (28, 28, 1), 111_424),
        (nn.Conv4(5, features=32, padding="SAME"), (84, 84, 3), 34_661),
        (nn.Conv4(None), (84, 84, 3), 113_088),
        (nn.Conv4(5, features=32, norm_scale=False), (84, 84, 3), 32_773),
        (nn.Conv4(5, features=32), (84, 84, 3), 32_901),
    ],
)
def test_parameter_counts_are_the_papers(model, shape, expected: int) -> None:
    assert count(model, shape) == expected


@pytest.mark.parametrize(("shape", "width"), [((28, 28, 1), 64), ((84, 84, 3), 1600)])
def test_the_embedding_of_prototypical_networks_has_its_width(shape, width: int) -> None:
    out = jax.eval_shape(lambda x: nn.Conv4(None).init_with_output(jax.random.key(0), x)[0], jnp.zeros((2, *shape)))
    assert out.shape == (2, width)


def test_conv4_halves_images_as_published() -> None:
    x = jnp.zeros((2, 28, 28, 1))
    for pool, sizes in (("stride", [14, 7, 4, 2]), ("max", [28, 14, 7, 3])):
        _, state = jax.eval_shape(
            lambda x, pool=pool: nn.Conv4(None, pool=pool).init_with_output(
                jax.random.key(0), x, capture_intermediates=True, mutable=True
            ),
            x,
        )
        convs = [state["intermediates"][f"conv_{i}"]["__call__"][0].shape[1] for i in range(4)]
        assert convs == sizes


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("strides", "padding", "dilation"),
    list(itertools.product([(1, 1), (2, 2), (2, 1)], ["SAME", "VALID", ((1, 0), (2, 3))], [None, (2, 1)])),
)
def test_convolution_has_the_values_and_derivatives_of_jax(strides, padding, dilation) -> None:
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(2, 7, 6, 3))), jnp.asarray(rng.normal(size=(3, 2, 3, 4)))
    layout = ("NHWC", "HWIO", "NHWC")

    def total(conv):
        def f(x, w):
            y = conv(x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=layout)
            return jnp.sum(jnp.sin(y)), y

        grads = jax.grad(lambda x, w: f(x, w)[0], (0, 1))
        direction = (jnp.cos(x), jnp.sin(w))
        return f(x, w)[1], grads(x, w), jax.jvp(grads, (x, w), direction)[1]

    assert_trees_close(total(nn.conv_general_dilated), total(jax.lax.conv_general_dilated), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"feature_group_count": 3, "kernel": (3, 3, 1, 6)},
        {"lhs_dilation": (2, 2), "kernel": (3, 3, 3, 4)},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW"), "kernel": (4, 7, 3, 3)},
    ],
)
def test_other_convolutions_fall_back(kwargs) -> None:
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=kwargs.pop("kernel")), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 3)), jnp.float32)
    arguments = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **kwargs}
    here = nn.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **arguments)
    theirs = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **arguments)
    np.testing.assert_array_equal(here, theirs)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_flax_convolutions_keep_their_parameters_and_outputs(dims: int) -> None:
    x = jax.random.normal(jax.random.key(0), (2, *(5,) * dims, 3))
    ours = fnn.Conv(4, (3,) * dims, conv_general_dilated=nn.conv_general_dilated)
    theirs = fnn.Conv(4, (3,) * dims)
    params = ours.init(jax.random.key(1), x)
    chex.assert_trees_all_equal(params, theirs.init(jax.random.key(1), x))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-4, atol=1e-5)


def test_per_task_weights_compile_to_no_grouped_convolution() -> None:
    model = nn.Conv4(5, features=4)
    x = jnp.zeros((3, 2, 16, 16, 1))
    params = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3), x)
    gradient = jax.vmap(jax.grad(lambda p, x: model.apply(p, x).sum()))
    program = jax.jit(gradient).lower(params, x).as_text()
    assert "convolution" not in program
    assert "select_and_scatter" not in program
    assert "reduce_window" not in program


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [6, 7])
def test_max_pool_has_the_values_and_derivatives_of_flax(size: int) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.round(rng.normal(size=(2, size, size, 3)), 1))  # rounded, so that there are ties

    def derivatives(pool):
        f = lambda x: jnp.sum(jnp.sin(pool(x, (2, 2), (2, 2))))  # noqa: E731
        return pool(x, (2, 2), (2, 2)), jax.grad(f)(x), jax.jvp(jax.grad(f), (x,), (jnp.cos(x),))[1]

    assert_trees_close(derivatives(nn.max_pool), derivatives(fnn.max_pool), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [((3, 3), (2, 2), "VALID"), ((2, 2), (2, 2), "SAME"), ((2, 3), (2, 3), "SAME"), ((2, 2), None, "SAME")],
)
def test_poolings_over_edges_and_overlaps_are_flaxs(window, strides, padding: str) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 7, 7, 3))
    theirs = fnn.max_pool(x, window, strides=strides, padding=padding)
    np.testing.assert_array_equal(nn.max_pool(x, window, strides, padding), theirs)
    ours = jax.grad(lambda x: (nn.max_pool(x, window, strides, padding) ** 2).sum())(x)
    gradient = jax.grad(lambda x: (fnn.max_pool(x, window, strides=strides, padding=padding) ** 2).sum())(x)
    np.testing.assert_allclose(ours, gradient, rtol=1e-6)


@pytest.mark.parametrize("batch", [(), (2, 3), (0, 2)])
def test_poolings_take_the_batch_axes_that_flaxs_take(batch: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(0), (*batch, 4, 6, 3))
    np.testing.assert_array_equal(nn.max_pool(x, (2, 2), (2, 2)), fnn.max_pool(x, (2, 2), strides=(2, 2)))


@pytest.mark.parametrize("padding", ["VALID", [(-1, 0), (0, 0)], "SAME_LOWER"])
@pytest.mark.parametrize("size", [2, 5])
def test_convolutions_at_the_edge_are_those_of_jax(padding, size: int) -> None:
    """A window larger than the image, padding that cuts, and the third way to pad alike."""
    layout = ("NHWC", "HWIO", "NHWC")
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, size, size, 1), (3, 3, 1, 2)]))
    found = nn.conv_general_dilated(x, w, (2, 2), padding, dimension_numbers=layout)
    expected = jax.lax.conv_general_dilated(x, w, (2, 2), padding, dimension_numbers=layout)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("window", [(3,), (2, 3), (2, 1, 2)])
def test_max_pool_of_any_number_of_axes_has_the_derivatives_of_flax(window: tuple[int, ...]) -> None:
    x = jnp.round(jax.random.normal(jax.random.key(0), (4, *(6,) * len(window), 2)))  # so that there are ties

    def derivatives(pool):
        f = lambda x: jnp.sum(jnp.sin(pool(x, window, window)))  # noqa: E731
        return jax.grad(f)(x), jax.jvp(jax.grad(f), (x,), (jnp.cos(x),))[1]

    assert_trees_close(derivatives(nn.max_pool), derivatives(fnn.max_pool), rtol=1e-12, atol=1e-14)


def test_gradients_of_max_pool_are_written_once() -> None:
    """One selection over the images, in place of four that are padded and added up."""
    x = jnp.ones((2, 8, 8, 3))
    text = str(jax.make_jaxpr(jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum()))(x))
    assert "pad[" not in text
    assert "add_any" not in text


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("use_scale", [True, False])
def test_batch_norm_that_pools_is_batch_norm_and_then_a_pool(use_scale: bool, padding: str) -> None:
    norm, x = nn.BatchNorm(use_scale=use_scale), jax.random.normal(jax.random.key(0), (4, 7, 7, 6), jnp.float64)
    pool, key = functools.partial(max_pool_2x2, padding=padding), jax.random.key(1)
    params = random_params(norm.init(key, x))
    if use_scale:
        assert (params["params"]["scale"] < 0).any()
    chex.assert_trees_all_equal(norm.init(key, x), norm.init(key, x, pool))

    def derivatives(f):
        total = lambda params, x: jnp.sum(jnp.sin(f(params, x)))  # noqa: E731
        grads = jax.grad(total, (0, 1))
        direction = jax.tree.map(jnp.cos, (params, x))
        return f(params, x), grads(params, x), jax.jvp(grads, (params, x), direction)[1]

    after = derivatives(lambda params, x: pool(norm.apply(params, x)))
    assert_trees_close(derivatives(lambda params, x: norm.apply(params, x, pool)), after, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("activation", [*_conv4._NON_DECREASING, fnn.gelu, functools.partial(fnn.leaky_relu)])
@pytest.mark.parametrize(("norm", "padding"), [(True, "VALID"), (False, "SAME")])
def test_conv4_pools_what_it_has_activated(activation, norm: bool, padding: str) -> None:
    """Whatever is done first: a network of Flax's own modules, in the order of the papers, is the same function."""
    model = nn.Conv4(None, features=4, activation=activation, norm=norm, padding=padding)
    x = jax.random.normal(jax.random.key(0), (3, 18, 18, 1), jnp.float64)
    params = random_params(model.init(jax.random.key(1), x))

    def by_hand(params, x):
        for i in range(4):
            conv, scales = params["params"][f"conv_{i}"], params["params"].get(f"norm_{i}")
            x = fnn.Conv(4, (3, 3)).apply({"params": conv}, x)
            if norm:
                variables = {"params": scales, "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}
                flaxs = fnn.BatchNorm(use_running_average=False, epsilon=1e-3)
                x, _ = flaxs.apply(variables, x, mutable="batch_stats")
            x = fnn.max_pool(activation(x), (2, 2), (2, 2), padding)
        return x.reshape(len(x), -1)

    def value_and_gradient(f):
        return f(params, x), jax.grad(lambda params, x: jnp.sum(jnp.sin(f(params, x))), (0, 1))(params, x)

    assert_trees_close(value_and_gradient(model.apply), value_and_gradient(by_hand), rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_conv4_without_normalisation_halves_by_strides_in_fast_convolutions() -> None:
    model, x = nn.Conv4(None, features=4, pool="stride", norm=False), jax.random.normal(jax.random.key(0), (3, 9, 9, 1))
    params = random_params(model.init(jax.random.key(1), x))
    expected = x
    for i in range(4):
        expected = fnn.relu(fnn.Conv(4, (3, 3), 2).apply({"params": params["params"][f"conv_{i}"]}, expected))
    np.testing.assert_allclose(model.apply(params, x), expected.reshape(3, -1), rtol=1e-10)
    assert str(jax.make_jaxpr(model.apply)(params, x)).count("conv2d[") == 4


def test_batch_norm_pools_images_of_any_type() -> None:
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 2)), jnp.uint8)
    norm = nn.BatchNorm()
    params = {"params": {"scale": jnp.array([-1.0, 2.0]), "bias": jnp.zeros(2)}}
    np.testing.assert_allclose(norm.apply(params, x, max_pool_2x2), max_pool_2x2(norm.apply(params, x)), rtol=1e-6)


def test_gradients_of_max_pool_follow_explicit_sharding() -> None:
    sharding = jax.NamedSharding(jax.make_mesh((2,), ("devices",)), jax.P("devices"))
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
    gradient = jax.jit(jax.grad(lambda x: (nn.max_pool(x, (2, 2), (2, 2)) ** 2).sum()))
    with jax.set_mesh(sharding.mesh):
        divided = gradient(jax.device_put(x, sharding))
    np.testing.assert_array_equal(divided, gradient(x))


@pytest.mark.parametrize("place", range(4))
def test_max_pool_does_not_hide_nan(place: int) -> None:
    x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(nn.max_pool(x, (2, 2), (2, 2))).all()


def test_batch_norm_is_flaxs_on_the_batch_at_hand() -> None:
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (4, 5, 5, 3))
    theirs = fnn.BatchNorm(use_running_average=False, epsilon=1e-3)
    variables = theirs.init(jax.random.key(0), x)
    expected, _ = theirs.apply(variables, x, mutable=["batch_stats"])
    found = nn.BatchNorm().apply({"params": variables["params"]}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(("size", "strides", "window"), [(8, (1, 1), (3, 3)), (7, (2, 2), (3, 3)), (9, (2, 1), (4, 3))])
def test_a_convolution_keeps_its_derivatives_of_every_order_under_vmap(size, strides, window, tasks: int) -> None:
    """Value, gradient, both forms of Hessian product and a third derivative, with kernels of each task's own."""
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.random.normal(jax.random.key(0), (tasks, 3, size, size, 2))
    w = jax.random.normal(jax.random.key(1), (tasks, *window, 2, 4))

    def derivatives(conv):
        def value(x, w):
            y = conv(x, w, strides, "SAME", dimension_numbers=layout)
            return jnp.sum(jnp.sin(y) * jnp.arange(4.0))

        gradient = jax.grad(value, (0, 1))
        forward = lambda x, w: jax.jvp(gradient, (x, w), (jnp.cos(x), jnp.sin(w)))[1]  # noqa: E731
        inner = lambda x, w: sum(jnp.vdot(g, jnp.cos(a)) for g, a in zip(gradient(x, w), (x, w), strict=True))  # noqa: E731
        third = jax.grad(lambda x, w: jnp.sum(jax.grad(inner, 1)(x, w) ** 2), (0, 1))
        return [jax.vmap(f)(x, w) for f in (value, gradient, forward, jax.grad(inner, (0, 1)), third)]

    ours, theirs = derivatives(nn.conv_general_dilated), derivatives(jax.lax.conv_general_dilated)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * jnp.abs(b).max()), ours, theirs)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["y", "x", "w"])
@pytest.mark.parametrize(("size", "strides", "pads"), [(8, (1, 1), (1, 1)), (7, (2, 2), (1, 1)), (9, (2, 1), (0, 2))])
def test_the_forms_of_every_backend_are_the_same(kind, size, strides, pads) -> None:
    """Which of them a backend takes is its own affair; here all of them run on this one."""
    shape = {"strides": strides, "pads": (pads, pads), "sizes": (size, size), "window": (3, 3), "precision": None}
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, size, size, 2), (3, 3, 2, 4)]))
    g = jnp.cos(_conv2d._as_products(x, w, kind="y", **shape))
    operands = {"y": (x, w), "x": (g, w), "w": (x, g)}[kind]
    expected = _conv2d._as_products(*operands, kind=kind, **shape)
    forms = [_conv2d._as_jax_does, *(functools.partial(_conv2d._for_cpu, shared_cores=s) for s in (False, True))]
    for form in forms:
        np.testing.assert_allclose(form(*operands, kind=kind, **shape), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("platform", "as_jax"), [("cuda", True), ("tpu", True), ("cpu", False)])
def test_accelerators_run_the_transposes_that_jax_makes(platform: str, as_jax: bool) -> None:
    x, w = jnp.ones((2, 6, 6, 12)), jnp.ones((3, 3, 12, 4))

    def layouts(conv) -> list[str]:
        gradient = jax.grad(
            lambda w: jnp.sin(conv(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))).sum()
        )
        text = jax.jit(gradient).trace(w).lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r"dim_numbers = (\S+),", text)

    ours, stock = layouts(nn.conv_general_dilated), layouts(jax.lax.conv_general_dilated)
    assert len(ours) == len(stock) == 2
    assert (ours == stock) == as_jax


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("images", [4, 6, 7])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("limit", ["_SLICE_BYTES", "_FEW_BYTES"])
def test_a_kernel_s_gradient_is_the_sum_over_slices_of_the_images(monkeypatch, images: int, strides, limit) -> None:
    x = jax.random.normal(jax.random.key(0), (images, 5, 6, 3))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 3))
    for name in ("_SLICE_BYTES", "_FEW_BYTES"):  # three images a slice: 3 + 1, 3 + 3, 3 + 3 + 1
        monkeypatch.setattr(_conv2d, name, 3 * x.nbytes // images if name == limit else 0)

    def gradient(conv):
        return jax.grad(
            lambda w: jnp.sin(conv(x, w, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))).sum()
        )

    ours = jax.jit(gradient(nn.conv_general_dilated))
    assert ("while" in ours.lower(w).as_text()) == (images >= 6)  # a loop over whole slices
    np.testing.assert_allclose(ours(w), gradient(jax.lax.conv_general_dilated)(w), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("image_bytes", "alone", "shared"),
    [
        (14 * 14 * 64 * 4, 5, 80),  # a core's own cache, and five of a vector's length
        (28 * 28 * 64 * 4, 4, 16),
        (56 * 56 * 64 * 4, 1, 5),
        (2**23, 1, 1),
        (1, 2**18, 2**22),
    ],
)
def test_slices_are_larger_where_cores_share_a_convolution(image_bytes: int, alone: int, shared: int) -> None:
    assert _conv2d._slice(image_bytes, False) == alone
    assert _conv2d._slice(image_bytes, True) == shared


def test_a_kernel_s_gradient_where_cores_share_a_convolution_takes_twelve_images_at_once() -> None:
    x, w = jnp.ones((12, 14, 14, 64)), jnp.ones((3, 3, 64, 4))

    def loops(shared: bool) -> bool:
        def total(w):
            with _conv2d.shared_cores(shared):
                return jnp.sin(nn.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)).sum()

        return "stablehlo.while" in jax.jit(jax.grad(total)).trace(w).lower(lowering_platforms=("cpu",)).as_text()

    assert (loops(False), loops(True)) == (True, False)


@pytest.mark.parametrize(
    ("images", "channels", "stride", "as_product"),
    [(75, 1, 1, True), (400, 1, 1, False), (400, 1, 2, True), (2, 12, 1, False)],
)
def test_on_cpu_a_few_products_are_a_matrix_product(images: int, channels: int, stride: int, as_product: bool) -> None:
    x, w = jnp.ones((images, 28, 28, channels)), jnp.ones((3, 3, channels, 4))
    conv = lambda x, w: nn.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=LAYOUT)  # noqa: E731
    text = jax.jit(conv).trace(x, w).lower(lowering_platforms=("cpu",)).as_text()
    assert ("stablehlo.dot_general" in text, "stablehlo.convolution" in text) == (as_product, not as_product)


def test_networks_do_not_broadcast_ranks_implicitly() -> None:
    x = jnp.ones((4, 8, 8, 1))
    for model in (nn.Conv4(3, features=2, pool="stride"), nn.MLP((4,), 3, norm=True)):
        with jax.numpy_rank_promotion("raise"):
            assert model.init_with_output(jax.random.key(0), x)[0].shape == (4, 3)


def test_batch_norm_of_a_constant_channel_is_finite_twice_over() -> None:
    norm = nn.BatchNorm(use_scale=False)
    x = jnp.ones((4, 2))
    params = norm.init(jax.random.key(0), x)
    gradient = jax.grad(lambda x: jnp.sum(norm.apply(params, x) ** 3))
    chex.assert_tree_all_finite(jax.jvp(gradient, (x,), (x,)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv4(5, pool="mean").init(jax.random.key(0), jnp.zeros((1, 28, 28, 1))), 'pool must be "max" or'),
        (lambda: nn.Conv4(5, readout="x").init(jax.random.key(0), jnp.zeros((1, 28, 28, 1))), "readout must be"),
        (lambda: nn.Conv4(5).init(jax.random.key(0), jnp.zeros((1, 784))), r"x must hold images .* shape \(1, 784\)"),
        (lambda: nn.Conv4(5).init(jax.random.key(0), jnp.zeros((1, 12, 12, 1))), "at least 16x16"),
        (lambda: nn.max_pool(jnp.zeros((1, 4, 4, 1)), (2, 2), (2, 2), "FULL"), "padding must be"),
        (
            lambda: nn.max_pool(jnp.zeros((4, 1)), (2, 2)),
            "window_shape and strides want one entry for each spatial axis",
        ),
    ],
)
def test_bad_input_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


LAYOUT = ("NHWC", "HWIO", "NHWC")


def test_slices_of_sixteen_bit_images_are_added_in_more() -> None:
    x, g = jnp.ones((300, 28, 28, 8), jnp.bfloat16), jnp.ones((300, 28, 28, 8), jnp.bfloat16)
    w = jnp.zeros((3, 3, 8, 8), jnp.bfloat16)
    product = jax.vjp(lambda w: nn.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT), w)[1](g)[0]
    assert float(product[1, 1, 0, 0]) == pytest.approx(300 * 28 * 28, rel=4e-3)


def test_one_kernel_for_all_stays_a_convolution_under_vmap() -> None:
    x, w = jnp.ones((2, 3, 5, 5, 12)), jnp.ones((3, 3, 12, 4))
    conv = lambda x, w: nn.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)  # noqa: E731
    mapped = jax.jit(jax.vmap(conv, (0, None)))
    assert "stablehlo.convolution" in mapped.lower(x, w).as_text()
    np.testing.assert_allclose(mapped(x, w), jnp.stack([conv(each, w) for each in x]), rtol=1e-6)


def test_a_convolution_of_no_images_has_a_derivative_of_zero() -> None:
    def total(w):
        return nn.conv_general_dilated(jnp.ones((0, 4, 4, 2)), w, (1, 1), "SAME", dimension_numbers=LAYOUT).sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones((3, 3, 2, 4))), jnp.zeros((3, 3, 2, 4)))


def test_the_default_precision_reaches_the_convolution() -> None:
    x, w = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4))
    conv = lambda x, w: nn.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)  # noqa: E731
    with jax.default_matmul_precision("highest"):
        assert "HIGHEST" in jax.jit(jax.grad(lambda w: conv(x, w).sum())).lower(w).as_text()


def test_the_slices_are_the_cpu_s_alone() -> None:
    x, w = jnp.ones((64, 28, 28, 16)), jnp.ones((3, 3, 16, 16))
    conv = lambda x, w: nn.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)  # noqa: E731
    traced = jax.jit(jax.grad(lambda w: (conv(x, w) ** 2).sum())).trace(w)
    loops = {where: "while" in traced.lower(lowering_platforms=(where,)).as_text() for where in ("cpu", "cuda", "tpu")}
    assert loops == {"cpu": True, "cuda": False, "tpu": False}


def test_inside_shard_map_a_shared_kernel_s_gradient_is_summed() -> None:
    """With its check of what varies: images divided over devices, one kernel for all."""
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    x, w = jax.random.normal(jax.random.key(0), (2, 5, 5, 2)), jax.random.normal(jax.random.key(1), (3, 3, 2, 4))
    spec = jax.sharding.PartitionSpec("d")

    def total(conv, x, w):
        def share(x, w):
            value = jnp.sum(conv(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT) ** 2)
            return jax.lax.psum(value, "d")

        return jax.shard_map(share, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=jax.P())(x, w)

    ours, stock = (
        jax.jit(jax.grad(functools.partial(total, conv), argnums=(0, 1)))(x, w)
        for conv in (nn.conv_general_dilated, jax.lax.conv_general_dilated)
    )
    assert_trees_close(ours, stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "strides"), [((3, 3, 5, 4), (1, 1)), ((3, 3, 2, 4), (1,)), ((3, 3, 4), (1, 1))])
def test_a_convolution_s_errors_are_jax_s(kernel, strides) -> None:
    told = []
    for conv in (nn.conv_general_dilated, jax.lax.conv_general_dilated):
        with pytest.raises((TypeError, ValueError)) as found:
            conv(jnp.ones((1, 5, 5, 2)), jnp.ones(kernel), strides, "SAME", dimension_numbers=LAYOUT)
        told.append(str(found.value))
    assert told[0] == told[1]


def test_conv4_adds_no_bias_that_its_normalisation_takes_away() -> None:
    x = jax.random.normal(jax.random.key(0), (6, 16, 16, 1))
    for norm in (True, False):
        model = nn.Conv4(3, features=2, pool="stride", norm=norm)
        params = model.init(jax.random.key(1), x)
        grads = jax.grad(lambda p, model=model: jnp.sum(model.apply(p, x) ** 2))(params)["params"]
        assert [bool(jnp.any(grads[f"conv_{i}"]["bias"])) for i in range(4)] == [not norm] * 4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("pool", ["stride", "max"])
@pytest.mark.parametrize("readout", ["mean", "flatten"])
def test_conv4_is_the_network_written_out_in_plain_flax(pool, readout) -> None:
    class Plain(fnn.Module):
        @fnn.compact
        def __call__(self, x):
            for i in range(4):
                x = fnn.Conv(4, (3, 3), strides=2 if pool == "stride" else 1, name=f"conv_{i}")(x)
                x = fnn.BatchNorm(use_running_average=False, epsilon=1e-3, name=f"norm_{i}")(x)
                x = fnn.relu(x)
                x = fnn.max_pool(x, (2, 2), (2, 2)) if pool == "max" else x
            x = x.mean((1, 2)) if readout == "mean" else x.reshape(len(x), -1)
            return fnn.Dense(3, name="head")(x)

    x = jax.random.normal(jax.random.key(0), (6, 32, 32, 1), jnp.float64)
    ours = nn.Conv4(3, features=4, pool=pool, readout=readout)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.1, ours.init(jax.random.key(1), x))
    expected, _ = Plain().apply(params, x, mutable=["batch_stats"])
    np.testing.assert_allclose(ours.apply(params, x), expected, rtol=1e-9, atol=1e-11)


MATRICES = (((1,), (0,)), ((), ()))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 1), (1, 0)])
@pytest.mark.parametrize("contracted", [((1,), (0,)), ((1,), (1,)), ((0,), (0,))])
def test_a_product_keeps_its_derivatives_of_every_order_under_vmap(contracted, axes) -> None:
    """Value, gradient, both forms of Hessian product and a third derivative, mapped once inside and once outside."""
    shapes = [(4, 2), (4, 3)]  # axes along which both are contracted first
    operands = []
    for i, (shape, axis, along) in enumerate(zip(shapes, axes, contracted, strict=True)):
        one = shape if along == (0,) else shape[::-1]
        mapped = one if axis is None else (*one[:axis], 5, *one[axis:])
        operands.append(jax.random.normal(jax.random.key(i), (2, *mapped), jnp.float64))
    numbers = (contracted, ((), ()))

    def derivatives(dot):
        def value(x, w):
            return jnp.sum(jnp.sin(dot(x, w, numbers)) * jnp.arange(3.0))

        gradient = jax.grad(value, (0, 1))
        forward = lambda x, w: jax.jvp(gradient, (x, w), (jnp.cos(x), jnp.sin(w)))[1]  # noqa: E731
        inner = lambda x, w: sum(jnp.vdot(g, jnp.cos(a)) for g, a in zip(gradient(x, w), (x, w), strict=True))  # noqa: E731
        third = jax.grad(lambda x, w: jnp.sum(jax.grad(inner, 1)(x, w) ** 2), (0, 1))
        mapped = [jax.vmap(f, axes) for f in (value, gradient, forward, jax.grad(inner, (0, 1)), third)]
        over = jax.grad(lambda x, w: jnp.sum(jax.vmap(value, axes)(x, w) ** 2), (0, 1))  # differentiated after mapping
        return [jax.jit(jax.vmap(f))(*operands) for f in (*mapped, over)]

    ours, theirs = derivatives(nn.dot_general), derivatives(jax.lax.dot_general)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * jnp.abs(b).max()), ours, theirs)


@pytest.mark.parametrize(
    ("platform", "rows", "transposed"), [("cpu", 4, True), ("cpu", 400, False), ("cuda", 4, False)]
)
def test_small_kernel_gradients_transpose_first_on_cpu(platform: str, rows: int, transposed: bool) -> None:
    x, w = jnp.ones((3, rows, 8)), jnp.ones((3, 8, 2))
    gradient = jax.vmap(jax.grad(lambda w, x: jnp.sin(nn.dot_general(x, w, MATRICES)).sum()))
    program = jax.jit(gradient).trace(w, x).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in program) == transposed


@pytest.mark.parametrize(
    ("platform", "rows", "axis", "swapped"),
    [("cpu", 4, None, True), ("cpu", 400, None, False), ("cpu", 4, 0, False), ("cuda", 4, None, False)],
)
def test_a_few_rows_by_a_shared_kernel_swap_places_with_it_on_cpu(platform, rows, axis, swapped) -> None:
    x, w = jnp.ones((3, rows, 8)), jnp.ones((8, 2) if axis is None else (3, 8, 2))
    gradient = jax.vmap(jax.grad(lambda x, w: jnp.sin(nn.dot_general(x, w, MATRICES)).sum()), (0, axis))
    program = jax.jit(gradient).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in program) == swapped


@pytest.mark.parametrize(
    ("lhs", "rhs", "numbers"),
    [
        ((3,), (3, 2), (((0,), (0,)), ((), ()))),
        ((2, 4, 3), (3, 2), (((2,), (0,)), ((), ()))),
        ((0, 3), (3, 2), MATRICES),
        ((2, 0, 3), (3, 2), (((2,), (0,)), ((), ()))),
        ((2, 3), (3, 4, 5), MATRICES),
        ((2, 3, 4), (2, 4, 5), (((2,), (1,)), ((0,), (0,)))),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bfloat16])
def test_a_product_of_any_arrays_is_jax_s(lhs, rhs, numbers, dtype) -> None:
    operands = (
        jnp.arange(np.prod(lhs)).reshape(lhs).astype(dtype),
        jnp.arange(np.prod(rhs)).reshape(rhs).astype(dtype),
    )
    for kwargs in ({}, {"preferred_element_type": jnp.float32}):
        ours, theirs = (dot(*operands, numbers, **kwargs) for dot in (nn.dot_general, jax.lax.dot_general))
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_product_s_errors_are_jax_s() -> None:
    told = []
    for dot in (nn.dot_general, jax.lax.dot_general):
        with pytest.raises(TypeError) as found:
            dot(jnp.ones((2, 3)), jnp.ones((2, 3)), MATRICES)
        told.append(str(found.value))
    assert told[0] == told[1]


def test_the_default_precision_reaches_the_product() -> None:
    x, w = jnp.ones((2, 3)), jnp.ones((3, 2))
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(jax.grad(lambda w: jnp.sin(nn.dot_general(x, w, MATRICES)).sum())).trace(w)
    assert traced.lower().as_text().count("HIGHEST") == 4  # two products, of two operands each


def test_inside_shard_map_a_shared_matrix_s_gradient_is_summed() -> None:
    """With its check of what varies: rows divided over devices, one matrix for all."""
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    x, w = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.normal(jax.random.key(1), (3, 2))

    def total(dot, x, w):
        share = lambda x, w: jax.lax.psum(jnp.sum(dot(x, w, MATRICES) ** 2), "d")  # noqa: E731
        return jax.shard_map(share, mesh=mesh, in_specs=(jax.P("d"), jax.P()), out_specs=jax.P())(x, w)

    ours, stock = (
        jax.jit(jax.grad(functools.partial(total, dot), argnums=(0, 1)))(x, w)
        for dot in (nn.dot_general, jax.lax.dot_general)
    )
    assert_trees_close(ours, stock, rtol=1e-5, atol=1e-5)


def test_an_mlp_follows_explicit_sharding() -> None:
    sharding = jax.NamedSharding(jax.make_mesh((2,), ("devices",)), jax.P("devices"))
    x, model = jax.random.normal(jax.random.key(0), (4, 3)), nn.MLP((5,), 2)
    params = model.init(jax.random.key(1), x)
    gradient = jax.jit(jax.grad(lambda params, x: (model.apply(params, x) ** 2).sum()))
    with jax.set_mesh(sharding.mesh):
        divided = gradient(params, jax.device_put(x, sharding))
    assert_trees_close(divided, gradient(params, x), rtol=1e-5, atol=1e-6)


def test_a_mapped_product_follows_explicit_sharding() -> None:
    mesh = jax.make_mesh((2,), ("devices",))
    w, x = jax.random.normal(jax.random.key(0), (6, 2)), jax.random.normal(jax.random.key(1), (4, 3, 6))
    with jax.set_mesh(mesh):
        put = jax.device_put(x, jax.NamedSharding(mesh, jax.P("devices")))

        def total(dot, w, x):
            return jax.vmap(lambda x: jnp.sin(dot(x, w, MATRICES)).sum())(x).sum()

        ours, stock = (
            jax.jit(jax.grad(functools.partial(total, d)))(w, put) for d in (nn.dot_general, jax.lax.dot_general)
        )
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-6)


def test_products_and_convolutions_run_without_jit() -> None:
    x, w = jnp.ones((4, 3)), jnp.ones((3, 2))
    image, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1))
    with jax.disable_jit():
        np.testing.assert_array_equal(jax.grad(lambda w: nn.dot_general(x, w, MATRICES).sum())(w), jnp.full((3, 2), 4))
        y = nn.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT)
    np.testing.assert_array_equal(y, jnp.full((1, 2, 2, 1), 18))


def test_a_product_s_type_is_weak_only_if_both_are() -> None:
    strong = jnp.ones((1, 1), jnp.float32)
    weak = jax.jit(lambda: jnp.broadcast_to(2.0, (1, 1)))()
    for pair in ((weak, strong), (strong, weak), (weak, weak)):
        ours, theirs = (
            dot(*pair, MATRICES, precision=["highest", "highest"]) for dot in (nn.dot_general, jax.lax.dot_general)
        )
        assert ours.weak_type == theirs.weak_type


def test_a_product_s_gradient_is_exported_for_any_number_of_rows() -> None:
    (rows,) = jax.export.symbolic_shape("rows")
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 2), (rows, 3))]
    gradient = jax.jit(jax.grad(lambda w, x: jnp.sin(nn.dot_general(x, w, MATRICES)).sum()))
    w, x = jax.random.normal(jax.random.key(0), (3, 2)), jax.random.normal(jax.random.key(1), (5, 3))
    np.testing.assert_allclose(jax.export.export(gradient)(*shapes).call(w, x), gradient(w, x), rtol=1e-6)
