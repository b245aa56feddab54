"""What a function costs, and what in it is needlessly slow.

Arithmetic is counted on the traced program: a compiler's own count takes a loop's body once, however often it runs.
Memory is the compiler's: the bytes of temporaries that the compiled program allocates beside arguments and results.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from jaxmeta._memory import subprograms

_POOLS = {"reduce_window_max", "reduce_window", "select_and_scatter_add", "select_and_gather_add"}


class Inspection(NamedTuple):
    """What `inspect` found.

    Attributes:
        flops: floating-point operations of matrix products and convolutions, loops multiplied out; a `while` loop,
            whose length is not known, counts once, and of branches the dearest.
        temp_bytes: bytes of temporaries, on each device.
        compile_seconds: time that compilation took.
        warnings: what is slow under per-task weights, with the remedy.
    """

    flops: float
    temp_bytes: int
    compile_seconds: float
    warnings: tuple[str, ...]


def inspect(fn: Callable[..., Any], *args: Any) -> Inspection:
    """Traces and compiles `fn(*args)`, without running it.

    Args:
        fn: any function that `jax.jit` takes.
        *args: arrays, or `jax.ShapeDtypeStruct` in their place.

    Returns:
        An `Inspection`.

    >>> import jax.numpy as jnp
    >>> def loop(x):
    ...     return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=3)[0]
    >>> inspect(loop, jnp.eye(10)).flops
    6000.0
    """
    return inspect_compiled(fn, *args)[0]


def inspect_compiled(fn: Callable[..., Any], *args: Any) -> tuple[Inspection, Any]:
    """`inspect`, and the compiled program beside it."""
    closed = jax.make_jaxpr(fn)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    lowered = jax.jit(fn).lower(*args)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    assert memory is not None, "every backend of JAX analyses memory"
    warnings = tuple(dict.fromkeys(_warnings(jaxpr, looped=False)))
    return Inspection(_flops(jaxpr), int(memory.temp_size_in_bytes), seconds, warnings), compiled


def _flops(jaxpr: core.Jaxpr) -> float:
    return float(sum(_equation_flops(eqn) for eqn in jaxpr.eqns))


def _equation_flops(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2.0 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * eqn.outvars[0].aval.size * math.prod(kernel) / out_features
    if name == "conv2d":  # jaxmeta.nn's: a sum over images, outputs, window and channels, whichever of them comes out
        y, w = _conv2d_shapes(eqn)
        return 2.0 * math.prod(y) * math.prod(w[:3])
    if name == "dot":  # jaxmeta.nn's: a sum over rows, inputs and outputs, whichever two of them come out
        first, second = (var.aval.shape for var in eqn.invars)
        return 2.0 * math.prod(first) * second[-2 if params["kind"] == "x" else -1]
    inner = [_flops(sub) for sub in subprograms(eqn)]
    if name == "cond":
        return max(inner, default=0.0)
    times = {"scan": params.get("length", 1), "shard_map": getattr(params.get("mesh"), "size", 1)}.get(name, 1)
    return times * sum(inner)


def _conv2d_shapes(eqn: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the convolution's result `[n, h, w, o]` and kernel `[kh, kw, c, o]`."""
    first, second, out = (var.aval.shape for var in (*eqn.invars, *eqn.outvars))
    return {"y": (out, second), "x": (first, second), "w": (second, out)}[eqn.params["kind"]]


def _warnings(jaxpr: core.Jaxpr, *, looped: bool) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "conv_general_dilated":
            yield from _convolution_warnings(eqn.params, looped=looped)
        if name in _POOLS:
            yield (
                f"pooling by {name}, which is slow to differentiate: take jaxmeta.nn.max_pool for flax.linen.max_pool"
            )
        for sub in subprograms(eqn):
            yield from _warnings(sub, looped=looped or name in ("scan", "while"))


def _convolution_warnings(params: dict[str, Any], *, looped: bool) -> Iterator[str]:
    remedy = "give flax.linen.Conv conv_general_dilated=jaxmeta.nn.conv_general_dilated"
    groups = max(params["feature_group_count"], params["batch_group_count"])
    if groups > 1:
        yield f"a convolution in {groups} groups; if jax.vmap made them of per-task kernels, {remedy}"
    lhs, rhs, out = params["dimension_numbers"]
    channels_last = lhs == out and lhs[1] == len(lhs) - 1 and rhs[:2] == (len(rhs) - 1, len(rhs) - 2)
    if looped and not channels_last and jax.default_backend() == "cpu":
        yield f"a convolution with its axes transposed inside a loop, which the CPU runs as scalar code: {remedy}"
