"""A scan whose weights get their gradient after the loop and not in it.

In a recurrence every kernel W enters as b_t + x_t W. Reverse mode adds x_t^T d_t to a sum as large as W at every
step, for every episode of a batch its own. But d_t is also the derivative with respect to b_t, so

    dL/dW = sum_t x_t^T d_t = X^T D

is one product of what the loop has kept anyway.
"""

from collections.abc import Callable
from typing import Any

import jax

Step = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


def scan_deferred(step: Step, kernels: Any, state: Any, biases: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` of a step whose kernels enter as `bias + fed @ kernel` alone.

    Args:
        step: `(kernels, state, bias) -> (state, outputs, fed)`, where `fed` has the structure of `kernels` and holds
            what each of them multiplied, `[in]`.
        kernels: a dict of weight matrices `[in, out]`.
        state: what the first step starts from, floating-point arrays.
        biases: a dict with the keys of `kernels` and arrays `[steps, out]`; it may have more keys.

    Returns:
        `(state, outputs)`: as from `jax.lax.scan`. Derivatives are those of the scan, in reverse mode.

    >>> import jax.numpy as jnp
    >>> def step(kernels, h, bias):
    ...     h_next = bias["w"] + h @ kernels["w"]
    ...     return h_next, h_next, {"w": h}
    >>> last = lambda w: scan_deferred(step, {"w": w}, jnp.ones(1), {"w": jnp.zeros((3, 1))})[0].sum()
    >>> jax.grad(last)(jnp.array([[2.0]])).item()  # d w^3 / dw
    12.0
    """

    def run(kernels: Any, state: Any, biases: Any) -> tuple[Any, Any]:
        def body(state: Any, bias: Any) -> tuple[Any, Any]:
            state, outputs, fed = step(kernels, state, bias)
            return state, (outputs, fed)

        state, (outputs, fed) = jax.lax.scan(body, state, biases)
        return (state, outputs), fed

    @jax.custom_vjp
    def recur(kernels: Any, state: Any, biases: Any) -> tuple[Any, Any]:
        return run(kernels, state, biases)[0]

    def forward(kernels: Any, state: Any, biases: Any) -> Any:
        found, back, fed = jax.vjp(lambda state, biases: run(kernels, state, biases), state, biases, has_aux=True)
        return found, (back, fed)

    def backward(kept: Any, cotangents: Any) -> Any:
        back, fed = kept
        state, biases = back(cotangents)
        return {name: (fed[name].T @ biases[name]).astype(kernels[name].dtype) for name in fed}, state, biases

    recur.defvjp(forward, backward)
    return recur(kernels, state, biases)
