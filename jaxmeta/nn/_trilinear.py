"""Operations that are closed under differentiation.

Value and derivatives of a product, or of a convolution, are three views of one trilinear form T(x, w, g),

    y(x, w) = dT/dg,      x'(g, w) = dT/dx,      w'(x, g) = dT/dw,

and every derivative, of any order, of one of them is one of them. So one primitive with three kinds needs no other
operation, and each kind runs as what is fastest for it on the backend at hand.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Kind = Literal["y", "x", "w"]
Form = Callable[..., jax.Array]

# What a cotangent of each kind's result pulls back to: (for the first operand, for the second).
_PULLED: dict[Kind, tuple[Kind, Kind]] = {"y": ("x", "w"), "x": ("y", "w"), "w": ("x", "y")}


def trilinear(name: str, *, form: Form, on_cpu: Form, batch: Callable[..., Any], static: tuple[str, ...]) -> Form:
    """Defines such an operation.

    Args:
        name: of the primitive.
        form: `(a, b, *, kind, **static)`, any kind as an accelerator runs it, and what its shape is.
        on_cpu: the same, as a CPU runs it.
        batch: the rule for `jax.vmap`, as `jax.interpreters.batching` wants it.
        static: names of the keywords beside `kind`.

    Returns:
        `(a, b, *, kind, **static)`, which is differentiable in every mode and to any order.
    """
    primitive = Primitive(name)
    static = ("kind", *static)

    def bind(a: jax.Array, b: jax.Array, **params: Any) -> jax.Array:
        return primitive.bind(*_vary_alike(a, b), **params)

    def abstract(a: Any, b: Any, **params: Any) -> Any:
        like = (jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in (a, b))
        shape = jax.eval_shape(lambda a, b: form(a, b, **params), *like).shape
        return a.update(shape=shape, weak_type=a.weak_type and b.weak_type)

    def pull_first(cotangent: jax.Array, a: Any, b: jax.Array, *, kind: Kind, **params: Any) -> jax.Array:
        # y(x, w): x'(ct, w);   x'(g, w): y(ct, w);   w'(x, g): x'(g, ct)
        operands = (b, cotangent) if kind == "w" else (cotangent, b)
        return bind(*operands, kind=_PULLED[kind][0], **params)

    def pull_second(cotangent: jax.Array, a: jax.Array, b: Any, *, kind: Kind, **params: Any) -> jax.Array:
        # y(x, w): w'(x, ct);   x'(g, w): w'(ct, g);   w'(x, g): y(x, ct)
        operands = (cotangent, a) if kind == "x" else (a, cotangent)
        return bind(*operands, kind=_PULLED[kind][1], **params)

    def run(a: jax.Array, b: jax.Array, **params: Any) -> jax.Array:
        return (on_cpu if jax.default_backend() == "cpu" else form)(a, b, **params)

    primitive.def_impl(jax.jit(run, static_argnames=static))
    primitive.def_abstract_eval(abstract)
    ad.defbilinear(primitive, pull_first, pull_second)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(form, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    return bind


def _vary_alike(*operands: jax.Array) -> list[jax.Array]:
    """Operands that vary over the same axes inside a `jax.shard_map`, so that cotangents are summed over the others."""
    varying = [jax.typeof(operand).mat.varying for operand in operands]
    axes = frozenset[str]().union(*varying)
    return [
        jax.lax.pcast(operand, tuple(axes - own), to="varying") if axes - own else operand
        for operand, own in zip(operands, varying, strict=True)
    ]


def default_precision(precision: Any) -> Any:
    """That precision, or the one in force here and now: by the time a derivative is compiled, it may be another."""
    return jax.config.jax_default_matmul_precision if precision is None else precision  # pyright: ignore[reportAttributeAccessIssue]
