"""The gradient of an inner loss, with a second derivative that is small in memory.

To differentiate phi' = U(phi, grad_phi L(phi, eta)) in reverse, the cotangent v of the inner gradient has to be pulled
back through it:

    v^T d^2 L / dphi^2    and    v^T d^2 L / dphi deta,

where eta is everything else that enters the loss. Reverse mode gets them by transposing the linearised backward pass,
and keeps what both passes of every step computed. But L is a scalar, so its second derivatives are symmetric, and both
products together are the tangent of the joint gradient along v:

    jvp( phi -> (dL/dphi, dL/deta),  at phi,  along v ).

This needs phi and eta alone, and nothing of the step that has gone by.

It holds for true gradients. Where a loss has a hand-written derivative that is none, such as a straight-through
estimator's or a gradient reversal's, there is no symmetric second derivative, and reverse mode differentiates that
derivative while this rule would not: such a loss wants `"reverse_over_reverse"`.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxmeta._stored import stored

Hvp = Literal["forward_over_reverse", "reverse_over_reverse"]

Loss = Callable[[Any], tuple[jax.Array, Any]]


def value_and_grad(loss: Loss, params: Any, hvp: Hvp) -> tuple[tuple[jax.Array, Any], Any]:
    """Like `jax.value_and_grad(loss, has_aux=True)(params)`, differentiated again as `hvp` says.

    Args:
        loss: `params -> (scalar, aux)`. May close over anything, tracers of any transformation included.
        params: any pytree of floating-point arrays.
        hvp: `"forward_over_reverse"`: by the rule above. The result can then be differentiated in reverse any number
            of times, but not by `jax.jvp`, `jax.jacfwd` or `jax.linearize` directly. `"reverse_over_reverse"`: as JAX
            does on its own. Derivatives of `aux` are zero in both.

    Returns:
        `((scalar, aux), grads)`.

    Raises:
        ValueError: `hvp` is unknown.
    """
    if hvp not in get_args(Hvp):
        raise ValueError(f"hvp must be one of {get_args(Hvp)}, but is {hvp!r}")
    if hvp == "reverse_over_reverse":
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (value, jax.lax.stop_gradient(aux)), grads
    leaves, treedef = jax.tree.flatten(params)
    # The rule's backward pass runs after the trace it was made in is gone, so what the loss closes over must go in as
    # arguments; as a jaxpr, it says what that is.
    traced, shape = jax.make_jaxpr(lambda *leaves: loss(treedef.unflatten(leaves)), return_shape=True)(*leaves)

    def explicit(leaves: list[jax.Array], closed_over: list[jax.Array]) -> tuple[jax.Array, Any]:
        outputs = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, closed_over))(*leaves)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    result, grads = _forward_over_reverse(explicit)(leaves, traced.consts)
    return result, treedef.unflatten(grads)


def _forward_over_reverse(loss: Callable[[Any, Any], tuple[jax.Array, Any]]) -> Callable[..., Any]:
    """`(params, others) -> ((scalar, aux), grads)` with the rule as its derivative."""
    plain = jax.value_and_grad(loss, has_aux=True)

    def forward(params: Any, others: Any) -> tuple[Any, Any]:
        values = [other.value for other in others]
        # Which of them are differentiated is known now. It is kept as shapes, since those belong to the trace of this
        # very call, which a pytree's structure does not when JAX takes the trace of a jitted function from its cache.
        differentiated = [jnp.zeros(int(other.perturbed)) for other in others]
        params = [leaf.value for leaf in params]
        return plain(params, values), (params, values, differentiated)

    def backward(residuals: Any, cotangents: Any) -> tuple[Any, Any]:
        params, others, differentiated = residuals
        params = stored(params)  # a loop over steps slices them from a stack
        (value_cotangent, _), directions = cotangents
        chosen = [i for i, mark in enumerate(differentiated) if mark.size]

        part = [others[i] for i in chosen]

        def value(params: Any, part: list[jax.Array]) -> jax.Array:
            filled = list(others)
            for i, other in zip(chosen, part, strict=True):
                filled[i] = other
            return loss(params, filled)[0]

        def joint_gradient(params: Any) -> tuple[Any, Any]:
            return jax.grad(value, argnums=(0, 1))(params, part)

        _, products = jax.jvp(joint_gradient, (params,), (jax.tree.map(_instantiate, directions, params),))
        if not isinstance(value_cotangent, SymbolicZero):
            # Not the cotangent times the gradient: across devices or a named axis, the gradient may be a sum.
            pulled = jax.vjp(value, params, part)[1](value_cotangent)
            products = jax.tree.map(lambda g, h: g.astype(h.dtype) + h, pulled, products)
        of_params, of_chosen = products
        of_others: list[Any] = [None] * len(others)
        for i, cotangent in zip(chosen, of_chosen, strict=True):
            of_others[i] = cotangent
        return of_params, of_others

    ruled = jax.custom_vjp(plain)
    ruled.defvjp(forward, backward, symbolic_zeros=True)
    return ruled


def _instantiate(cotangent: Any, like: jax.Array) -> jax.Array:
    return jnp.zeros_like(like) if isinstance(cotangent, SymbolicZero) else cotangent
