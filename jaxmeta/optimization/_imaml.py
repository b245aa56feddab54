"""iMAML: the meta-gradient of a solved inner problem, by an implicit equation and not by the path to its solution.

    phi* = argmin_phi  L_S(phi) + lambda/2 |phi - theta|^2
    d/dtheta L_Q(phi*(theta)) = v,   where   (I + H / lambda) v = grad L_Q(phi*),   H = d^2 L_S / dphi^2 at phi*

The equation holds at the solution alone, so the inner loop has to come near it: `inner_residual` says how near. It is
solved by products with H, which is never formed, and nothing of the inner loop is kept: memory does not grow with K.

| symbol | name | | symbol | name |
|---|---|---|---|---|
| theta | `params` | | lambda | `proximal` |
| phi* | `Adapted.params` | | K | `steps` |

Parameters that a mask keeps out of the inner loop, psi, receive  dL_Q/dpsi - v^T d^2 L_S/dphi dpsi / lambda.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxmeta._gradient import outer_gradient
from jaxmeta._precision import wide, wide_norm
from jaxmeta.episode import Episode, check_is_episode
from jaxmeta.inner import adapt, merge, partition
from jaxmeta.learner import MetaLearner, Metrics, Model
from jaxmeta.losses import cross_entropy
from jaxmeta.optimization._gradient_learner import gradient_learner, with_metrics

Solver = Literal["cg", "neumann"]


def imaml_grad(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    episode: Episode,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    proximal: float | jax.Array,
    solver: Solver = "cg",
    solver_steps: int = 5,
    damping: float = 0.0,
    mask: Any = None,
    has_aux: bool = False,
) -> tuple[Any, Metrics]:
    """The implicit meta-gradient of one task.

    Args:
        loss_fn: `(params, batch) -> scalar`, or `-> (scalar, metrics)` with `has_aux`.
        params: the centre theta, any pytree of floating-point arrays; the inner loop starts from it.
        episode: as for `maml_grad`.
        optimizer: the inner optimiser, of the support loss with the proximal term. Not differentiated through.
        steps: inner steps K, enough to come near the solution.
        proximal: lambda, the strength of the proximal term.
        solver: `"cg"`, conjugate gradients, which stop where a direction has no positive curvature; or `"neumann"`,
            v = sum_i (-H / lambda)^i grad L_Q, which converges if lambda exceeds H's largest eigenvalue in size.
        solver_steps: products with H.
        damping: delta, which makes the matrix (1 + delta) I + H / lambda; conjugate gradients alone take it.
        mask: which parameters adapt; see `adapt`.
        has_aux: `loss_fn` also returns a dict of metrics, none called `"loss"`; those of the query set are passed on.

    Returns:
        `(grads, metrics)`: the gradient, with the structure of `params`; in `metrics`, `loss` on the query set,
        `inner_residual`, the norm of the inner objective's gradient at phi over that at theta, `solver_residual`, that
        of the linear equation's over its right side's at the v returned, and `solver_stopped`, 1 if conjugate gradients
        met no positive curvature, which leaves v as it was there, or the first-order gradient if it was 0.

    Raises:
        TypeError: `episode` is no `Episode`, or as `adapt`.
        ValueError: `proximal` or `solver_steps` is not positive, `damping` is negative or given to `"neumann"`,
            `solver` is unknown, or as `adapt`.

    >>> losses = lambda w, batch: batch[0] * (w - batch[1]) ** 2
    >>> task = Episode(support=(1.0, 1.0), query=(1.5, -2.0))
    >>> grads, metrics = imaml_grad(
    ...     losses, jnp.array(0.0), task, optimizer=optax.sgd(0.25), steps=20, proximal=2.0, solver_steps=1
    ... )
    >>> round(float(grads), 4)  # phi* = 0.5, L_Q' = 7.5, H = 2
    3.75

    References:
        Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630, algorithm 2. Its code takes unregularised inner steps
        and adds a damping of its own to H; here the equation is the paper's, and damping is 0 unless asked for.
    """
    check_is_episode(episode)
    _check(proximal, solver, solver_steps, damping)
    evaluate = with_metrics(loss_fn, has_aux)
    inner_loss = proximal_loss(lambda p, batch: evaluate(p, batch)[0], params, proximal)
    adapted = adapt(inner_loss, params, episode.support, optimizer=optimizer, steps=steps, mask=mask)
    phi, psi = partition(adapted.params, mask)
    theta, _ = partition(params, mask)

    def support_gradient(phi: Any, psi: Any) -> Any:
        return jax.grad(lambda phi: evaluate(merge(phi, psi), episode.support)[0])(phi)

    def product(v: Any) -> Any:  # H v / lambda
        tangent = jax.jvp(lambda phi: support_gradient(phi, psi), (phi,), (v,))[1]
        return jax.tree.map(lambda leaf: leaf / proximal, tangent)

    query_gradient, metrics = outer_gradient(lambda params: evaluate(params, episode.query), adapted.params)
    of_phi, of_psi = query_gradient, None
    if psi is not None:
        of_phi, of_psi = partition(query_gradient, mask)
    solve = _conjugate_gradients if solver == "cg" else _neumann
    unit = _unit(of_phi)
    right = _scaled(1 / unit, of_phi)
    solution, stopped = solve(product, right, solver_steps, damping)
    missing = jax.tree.map(lambda b, x, p: b - (1 + damping) * x - p, right, solution, product(solution))
    v = _scaled(unit, solution)
    if psi is not None:
        _, pull = jax.vjp(lambda psi: support_gradient(phi, psi), psi)
        of_psi = jax.tree.map(lambda direct, cross: direct - cross / proximal, of_psi, pull(v)[0])
    start, end = (
        jax.tree.map(lambda g, a, b: g + proximal * (a - b), support_gradient(point, psi), point, theta)
        for point in (theta, phi)
    )
    reports = {
        "inner_residual": _ratio(wide_norm(end), wide_norm(start)),
        "solver_residual": _ratio(wide_norm(missing), wide_norm(right)),
        "solver_stopped": stopped,
    }
    if taken := sorted(metrics.keys() & reports.keys()):
        raise ValueError(f"loss_fn must not call a metric {taken[0]!r}: imaml_grad reports its own under that name")
    return merge(v, of_psi), {**metrics, **reports}


def proximal_loss(
    loss_fn: Callable[[Any, Any], jax.Array], centre: Any, proximal: float | jax.Array
) -> Callable[[Any, Any], jax.Array]:
    """A loss with the proximal term, `(phi, batch) -> L(phi) + proximal / 2 |phi - centre|^2`."""

    def objective(phi: Any, batch: Any) -> jax.Array:
        leaves = zip(jax.tree.leaves(phi), jax.tree.leaves(centre), strict=True)
        return loss_fn(phi, batch) + 0.5 * proximal * sum(jnp.sum((a - b) ** 2) for a, b in leaves)

    return objective


def imaml(
    model: Model,
    *,
    inner_optimizer: optax.GradientTransformation,
    steps: int = 16,
    proximal: float = 2.0,
    solver: Solver = "cg",
    solver_steps: int = 5,
    damping: float = 0.0,
    eval_steps: int | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    mask: Any = None,
) -> MetaLearner:
    """iMAML: meta-learns the centre that solved inner problems are tied to, by implicit gradients.

    Args:
        model: a network with `init(key, x)` and `apply(params, x)`, for instance a Flax Linen module.
        inner_optimizer: the optimiser of the inner loop, on the mean loss.
        steps: inner steps in training; the paper's are 16 for 5 ways and 25 for 20.
        proximal: lambda, the strength of the proximal term; the paper's is 2.
        solver: how the linear equation is solved; see `imaml_grad`.
        solver_steps: products with the Hessian; the paper's are 5.
        damping: see `imaml_grad`.
        eval_steps: inner steps in `predict`, on the loss with the proximal term too; None for `steps`.
        loss: `(predictions, targets) -> scalar`, used inside and outside.
        mask: which parameters adapt; see `adapt`.

    Returns:
        A `MetaLearner`. Metrics: those of `imaml_grad` and `accuracy` or `mse`.

    Raises:
        TypeError: as `maml`.
        ValueError: as `imaml_grad`.

    >>> from jaxmeta import nn
    >>> imaml(nn.MLP((4,), 5), inner_optimizer=optax.sgd(0.1), proximal=0.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    ValueError: proximal must be positive and finite, but is 0.0: without ...

    References:
        Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630.
    """
    _check(proximal, solver, solver_steps, damping)

    estimator = functools.partial(
        imaml_grad, proximal=proximal, solver=solver, solver_steps=solver_steps, damping=damping
    )

    def inner_loss(loss_fn: Callable[[Any, Any], jax.Array], params: Any) -> Callable[[Any, Any], jax.Array]:
        return proximal_loss(loss_fn, params, proximal)

    return gradient_learner(estimator, model, inner_optimizer, steps, eval_steps, loss, mask, inner_loss)


class _State(NamedTuple):
    """Where conjugate gradients stand."""

    v: Any
    residual: Any
    direction: Any
    square: jax.Array
    stopped: jax.Array


def _conjugate_gradients(product: Callable[[Any], Any], b: Any, steps: int, damping: float) -> tuple[Any, jax.Array]:
    """Solves ((1 + damping) I + product) v = b; `(v, 1 if it stopped at no positive curvature)`."""

    def step(state: _State, _: None) -> tuple[_State, None]:
        image = jax.tree.map(lambda d, p: (1 + damping) * d + p, state.direction, product(state.direction))
        curvature = _dot(state.direction, image)
        # Once solved, direction and curvature are 0, and there is nothing left to do.
        solved = state.square <= jnp.finfo(state.square.dtype).tiny
        stopped = state.stopped | (~solved & (curvature <= 0))
        go = ~solved & ~stopped
        alpha = jnp.where(go, state.square / jnp.where(go, curvature, 1.0), 0.0)
        v = _add_scaled(state.v, alpha, state.direction)
        residual = _add_scaled(state.residual, -alpha, image)
        square = _dot(residual, residual)
        beta = jnp.where(go, square / jnp.where(go, state.square, 1.0), 0.0)
        direction = _add_scaled(residual, beta, state.direction)
        return _State(v, residual, direction, square, stopped), None

    zeros = optax.tree.zeros_like(b)
    first = _State(zeros, b, b, _dot(b, b), jnp.zeros((), bool))
    last, _ = jax.lax.scan(step, first, length=steps)
    # Where the very first direction has no positive curvature, b itself is the best there is: the first-order gradient.
    untouched = last.stopped & (_dot(last.v, last.v) == 0)
    v = jax.tree.map(lambda leaf, right: jnp.where(untouched, right, leaf), last.v, b)
    return v, last.stopped.astype(first.square.dtype)


def _neumann(product: Callable[[Any], Any], b: Any, steps: int, damping: float) -> tuple[Any, jax.Array]:
    """Sums (-product)^i b for i = 0 .. steps; `(v, 0)`."""
    del damping

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        v, term = carry
        term = jax.tree.map(jnp.negative, product(term))
        return (optax.tree.add(v, term), term), None

    (v, _), _ = jax.lax.scan(step, (b, b), length=steps)
    return v, jnp.zeros(())


def _dot(a: Any, b: Any) -> jax.Array:
    """The inner product of two trees, in single precision at least."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((jnp.sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)) * y) for x, y in pairs), jnp.zeros(()))


def _add_scaled(a: Any, scale: jax.Array, b: Any) -> Any:
    """The sum of `a` and `scale` times `b`, in the types of `a`."""
    return jax.tree.map(lambda x, y: (x + scale * y).astype(x.dtype), a, b)


def _unit(tree: Any) -> jax.Array:
    """A power of two next to the largest entry, without which squares of small gradients would be 0; else 1."""
    largest = functools.reduce(jnp.maximum, (jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)))
    exponent = jnp.frexp(largest.astype(wide(largest.dtype)))[1]
    return jnp.ldexp(1.0, jnp.where((largest > 0) & jnp.isfinite(largest), exponent, 0))


def _scaled(scale: jax.Array, tree: Any) -> Any:
    """The tree times `scale`, in its own types."""
    return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), tree)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """The ratio of `a` to `b`, and 0 where `b` is."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def _check(proximal: float | jax.Array, solver: str, solver_steps: int, damping: float) -> None:
    if not isinstance(proximal, Tracer) and not 0 < proximal < math.inf:
        raise ValueError(
            f"proximal must be positive and finite, but is {proximal}: without the proximal term the solution forgets "
            "where it started"
        )
    if solver not in get_args(Solver):
        raise ValueError(f"solver must be one of {get_args(Solver)}, but is {solver!r}")
    if solver_steps < 1:
        raise ValueError(f"solver_steps must be 1 or more, but is {solver_steps}")
    if damping < 0 or (damping and solver == "neumann"):
        raise ValueError(f'damping must be 0 or more, and 0 with solver="neumann", but is {damping}')
