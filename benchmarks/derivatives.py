"""Convolutions, products and Hessian-vector products: what each form costs, with one kernel and with per-task kernels.

python benchmarks/derivatives.py
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as fnn
import jax
import jax.numpy as jnp
import optax
from common import CONV4, first, images, in_turns, sinusoids, task_loss, write

from jaxmeta import batch_meta_grad, losses, maml, nn
from jaxmeta.nn import _conv2d

REPEATS = 7
LAYOUT = ("NHWC", "HWIO", "NHWC")


def main() -> None:
    report: dict[str, Any] = {"command": "python benchmarks/derivatives.py"}
    report["one_kernel_ms"] = {f"{size}x{size}": one_kernel(size) for size in (28, 14, 7)}
    cases = [(8, 15, 14), (8, 15, 7)]
    if jax.default_backend() != "cpu":  # where these are too small to tell anything but the time of a launch
        cases += [(32, 80, 14), (32, 80, 7)]
    report["convolutions_ms"] = {f"{t} x {n} images of {size}x{size}": convolutions(t, n, size) for t, n, size in cases}
    report["sinusoid_mlp_meta_gradient_ms"] = products()
    report["hessian_vector_products"] = {form: hvp(form) for form in CONV4}
    write("derivatives", report)


def stock(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)


def ours(x: jax.Array, w: jax.Array) -> jax.Array:
    return nn.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)


def patches(x: jax.Array, w: jax.Array) -> jax.Array:
    """`conv_general_dilated_patches` and a product, a common recipe."""
    seen = jax.lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME", dimension_numbers=LAYOUT)
    return seen @ w.transpose(2, 0, 1, 3).reshape(-1, w.shape[-1])


def one_kernel(size: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a 64-channel 3x3 convolution of 320 images and of its two transposes, in three forms."""
    x = jax.random.normal(jax.random.key(0), (320, size, size, 64))
    g = jax.random.normal(jax.random.key(1), x.shape)
    w = 0.05 * jax.random.normal(jax.random.key(2), (3, 3, 64, 64))
    shape = {"strides": (1, 1), "pads": ((1, 1), (1, 1)), "sizes": (size, size), "window": (3, 3), "precision": None}
    forms = {
        "as JAX does": _conv2d._as_jax_does,
        "axes in their usual order": _conv2d._for_cpu,
        "slices and products": _conv2d._as_products,
    }
    found: dict[str, dict[str, float]] = {}
    for name, form in forms.items():
        runs = {}
        for kind, operands in {"y": (x, w), "x": (g, w), "w": (x, g)}.items():
            run = jax.jit(lambda a, b, form=form, kind=kind: form(a, b, kind=kind, **shape))
            runs[kind] = lambda run=run, operands=operands: run(*operands)
        found[name] = {kind: 1e3 * value for kind, value in in_turns(runs, REPEATS).items()}
        print(size, name, {kind: round(value, 3) for kind, value in found[name].items()}, flush=True)
    return found


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, w: jax.lax.map(lambda pair: f(*pair), (x, w))


def convolutions(tasks: int, images_each: int, size: int) -> dict[str, dict[str, float]]:
    """Milliseconds of 64-channel 3x3 convolutions with a kernel for each task: values, gradients, Hessian products."""
    x = jax.random.normal(jax.random.key(0), (tasks, images_each, size, size, 64))
    w = 0.05 * jax.random.normal(jax.random.key(1), (tasks, 3, 3, 64, 64))
    found: dict[str, dict[str, float]] = {}
    for name, conv in {"stock": stock, "slices and products": ours, "patches and a product": patches}.items():

        def value(x: Any, w: Any, conv: Callable[..., Any] = conv) -> jax.Array:
            return jnp.sum(jnp.sin(conv(x, w)))

        def product(x: Any, w: Any, value: Any = value) -> Any:
            return jax.jvp(jax.grad(value, argnums=(0, 1)), (x, w), (x, w))[1]

        forms = {"forward": conv, "gradient": jax.grad(value, argnums=(0, 1)), "hvp": product}
        for over, mapped in {"vmap": jax.vmap, "scan": one_by_one}.items():
            runs = {what: jax.jit(mapped(f)) for what, f in forms.items()}
            seconds = in_turns({what: lambda run=run: run(x, w) for what, run in runs.items()}, REPEATS)
            found[f"{name}, {over}"] = {what: 1e3 * value for what, value in seconds.items()}
            rounded = {what: round(value, 2) for what, value in found[f"{name}, {over}"].items()}
            print(f"{tasks} x {images_each} images of {size}x{size}, {name}, {over}", rounded, flush=True)
    return found


def products() -> dict[str, float]:
    """Milliseconds of a meta-gradient of 25 sinusoids, K = 1, in a loop on the device, with each matrix product."""
    episodes, key, count, runs = sinusoids(25), jax.random.key(0), 100, {}
    for name, dot in {"as JAX does": jax.lax.dot_general, "nn.dot_general": nn.dot_general}.items():
        dense = functools.partial(fnn.Dense, dot_general=dot)
        model = fnn.Sequential([dense(40), fnn.relu, dense(40), fnn.relu, dense(1)])
        learner = maml(model, inner_optimizer=optax.sgd(0.01), steps=1, loss=losses.mean_squared_error)

        def descend(params: Any, _: None, learner: Any = learner) -> tuple[Any, None]:
            grads = batch_meta_grad(learner, params, episodes, key)[0]
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), None

        run = jax.jit(lambda params, descend=descend: jax.lax.scan(descend, params, length=count)[0])
        params = learner.init(key, first(episodes))
        runs[name] = functools.partial(run, params)
    found = {name: 1e3 * value / count for name, value in in_turns(runs, 3 * REPEATS).items()}
    print("sinusoid MLP", {name: round(value, 3) for name, value in found.items()}, flush=True)
    return found


def hvp(form: str) -> dict[str, float]:
    """Time of a Hessian-vector product of one task's loss, in gradients."""
    episode = first(images(1, 3))
    loss_fn, model = task_loss(CONV4[form]), CONV4[form]
    params = model.init(jax.random.key(0), episode.query.x)

    def value(p: Any) -> jax.Array:
        return loss_fn(p, episode.query)

    def directed(p: Any, v: Any) -> jax.Array:
        pairs = zip(jax.tree.leaves(jax.grad(value)(p)), jax.tree.leaves(v), strict=True)
        return jnp.asarray(sum(jnp.vdot(g, d) for g, d in pairs))

    forms = {
        "gradient": lambda p, v: jax.grad(value)(p),
        "forward over reverse": lambda p, v: jax.jvp(jax.grad(value), (p,), (v,))[1],
        "reverse over reverse": lambda p, v: jax.grad(directed)(p, v),
        "reverse over forward": lambda p, v: jax.grad(lambda q: jax.jvp(value, (q,), (v,))[1])(p),
        "linearized": lambda p, v: jax.linearize(jax.grad(value), p)[1](v),
    }
    runs = {name: jax.jit(f) for name, f in forms.items()}
    seconds = in_turns({name: lambda run=run: run(params, params) for name, run in runs.items()}, 15)
    found = {name: value / seconds["gradient"] for name, value in seconds.items()}
    print(form, {name: round(value, 2) for name, value in found.items()}, flush=True)
    return found


if __name__ == "__main__":
    main()
