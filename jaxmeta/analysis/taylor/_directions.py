"""Which direction helps: what is of AvgGrad and of AvgGradInner in a method's update, as training goes on.

At each of some outer steps, over the same tasks and over all orderings of their mini-batches (over some that average
as all do to first order, where there would be more than 60), the method's mean meta-gradient U, against which
parameters move, is decomposed by least squares,

    U = a AvgGrad + b alpha AvgGradInner + rest,

whose first-order prediction is (a, b) = the coefficients of `expansion`, and the mini-batch gradient agreement
E[G_a . G_b] is measured, which steps along +AvgGradInner raise; as parameters move along -U, that is a negative b.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxmeta.analysis.taylor._expansion import Expansion
from jaxmeta.analysis.taylor._mean_gradient import mean_gradient, sequence_gradient
from jaxmeta.analysis.taylor._orderings import exact_orderings, orderings
from jaxmeta.analysis.taylor._terms import LossFn, avg_grad_inner, gradient_agreement, pool_length
from jaxmeta.inner import adapt

_FEW = 60  # orderings, of which all are taken


class Direction(NamedTuple):
    """Where a method goes at one point of its training.

    Attributes:
        step: outer steps taken.
        loss: mean loss of all mini-batches before adaptation.
        adapted_loss: mean loss of a task's last mini-batch after a step at rate alpha on each of the others.
        agreement: E[G_a . G_b] over different mini-batches of a task.
        cosine_agreement: the same over E |G_a|^2: 1 where all mini-batches of a task pull alike.
        cosine_grad: of the angle between the meta-gradient and AvgGrad; 0 where either vanishes.
        cosine_inner: of the angle between the meta-gradient and -AvgGradInner; 0 where either vanishes.
        share_grad: a, the coefficient of AvgGrad in the meta-gradient.
        share_inner: b, that of alpha AvgGradInner.
        unexplained: the norm of the rest over the meta-gradient's.
    """

    step: int
    loss: float
    adapted_loss: float
    agreement: float
    cosine_agreement: float
    cosine_grad: float
    cosine_inner: float
    share_grad: float
    share_inner: float
    unexplained: float


def track_directions(
    loss_fn: LossFn,
    params: Any,
    draw: Callable[[jax.Array], Any],
    expansion: Expansion,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    alpha: float,
    steps: int,
    every: int,
    tasks: int = 8,
    probes: int = 64,
) -> list[Direction]:
    """Trains by a method, and looks at times which way it goes.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where to start, any pytree of floating-point arrays.
        draw: `key -> batches`, a task's mini-batches in random order, every array `[n, ...]`; n at least 2, and as many
            as the expansion names.
        expansion: names the method, its mini-batches and its rates.
        optimizer: the outer optimiser, any Optax transformation.
        key: the random key, of training tasks and of the tasks looked at.
        alpha: the inner rate.
        steps: outer steps.
        every: how often to look, in outer steps; also before the first.
        tasks: tasks in an outer step.
        probes: tasks looked at, the same ones each time.

    Returns:
        A `Direction` for steps 0, every, 2 every, ..

    Raises:
        ValueError: `alpha` is not positive, a number is less than 1, or `draw` gives too few mini-batches,
            or so many that no few of their orderings average like all.
        FloatingPointError: training came to where a loss or a gradient is not finite.

    >>> from jaxmeta.analysis.taylor import expansion
    >>> loss = lambda w, target: jnp.sum(jnp.cosh(w - target))
    >>> draw = lambda key: jax.random.normal(key, (2, 3))
    >>> plan = expansion("maml", 2)
    >>> found = track_directions(
    ...     loss, jnp.ones(3), draw, plan, optax.sgd(0.1), jax.random.key(0), alpha=1e-3, steps=2, every=1
    ... )
    >>> [point.step for point in found], round(found[0].share_grad, 3)
    ([0, 1, 2], 1.0)
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, but is {alpha}")
    for name, value in {"steps": steps, "every": every, "tasks": tasks, "probes": probes}.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, but is {value}")
    wanted, given = max(2, expansion.different), len(jax.tree.leaves(jax.eval_shape(draw, key))[0])
    if given < wanted:
        raise ValueError(f"draw must give {wanted} mini-batches or more, but gives {given}")
    train_key, probe_key = jax.random.split(key)
    probe_batches = jax.vmap(draw)(jax.random.split(probe_key, probes))
    every_ordering = math.perm(given, expansion.different) <= _FEW
    rows = (orderings if every_ordering else functools.partial(exact_orderings, order=1))(given, expansion.different)

    @jax.jit
    def train(params: Any, state: Any, keys: jax.Array) -> tuple[Any, Any]:
        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            grads = _update(loss_fn, expansion, alpha, params, jax.vmap(draw)(jax.random.split(key, tasks)))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), keys)[0]

    @jax.jit
    def look(params: Any) -> dict[str, jax.Array]:
        exact = functools.partial(mean_gradient, loss_fn, params, expansion=expansion, alpha=alpha, rows=rows)
        update = jax.tree.map(lambda leaf: leaf.mean(0), jax.lax.map(lambda pool: exact(batches=pool), probe_batches))
        return _look(loss_fn, params, probe_batches, update, alpha)

    keys, state, found = jax.random.split(train_key, steps), optimizer.init(params), []
    for first in range(0, steps + 1, every):
        seen = jax.device_get(look(params))
        if bad := [name for name, value in seen.items() if not np.isfinite(value).all()]:
            raise FloatingPointError(f"training is not finite after {first} outer steps: {', '.join(bad)}")
        found.append(_decompose(first, alpha, seen))
        if first < steps:
            params, state = train(params, state, keys[first : first + every])
    return found


def _update(loss_fn: LossFn, expansion: Expansion, alpha: float, params: Any, batches: Any) -> Any:
    """The method's mean meta-gradient over tasks `[tasks, n, ...]`, their mini-batches in the order given."""
    rates, order = jnp.asarray(expansion.rates), np.array(expansion.batches)

    def one(batches: Any) -> Any:
        sequence = jax.tree.map(lambda leaf: leaf[order], batches)
        return sequence_gradient(loss_fn, expansion.method, params, sequence, rates, alpha)

    return jax.tree.map(lambda leaf: expansion.scale * leaf.mean(0), jax.vmap(one)(batches))


def _look(loss_fn: LossFn, params: Any, batches: Any, update: Any, alpha: float) -> dict[str, jax.Array]:
    """What `_decompose` wants, over tasks `[tasks, n, ...]`."""
    losses = jax.vmap(jax.vmap(loss_fn, (None, 0)), (None, 0))(params, batches)
    grads = jax.vmap(jax.vmap(jax.grad(loss_fn), (None, 0)), (None, 0))(params, batches)
    flat = jax.vmap(jax.vmap(lambda tree: ravel_pytree(tree)[0]))(grads)
    inner = jax.vmap(lambda pool: ravel_pytree(avg_grad_inner(loss_fn, params, pool))[0])(batches).mean(0)
    agreement = jax.vmap(lambda pool: gradient_agreement(loss_fn, params, pool))(batches).mean()

    def after(pool: Any) -> jax.Array:
        others, last = (jax.tree.map(lambda leaf, part=part: leaf[part], pool) for part in (slice(-1), -1))
        found = adapt(loss_fn, params, others, optimizer=optax.sgd(alpha), steps=pool_length(others), minibatched=True)
        return loss_fn(found.params, last)

    return {
        "loss": losses.mean(),
        "adapted_loss": jax.vmap(after)(batches).mean(),
        "agreement": agreement,
        "square": (flat**2).sum(-1).mean(),
        "grad": flat.mean((0, 1)),
        "inner": inner,
        "update": ravel_pytree(update)[0],
    }


def _decompose(step: int, alpha: float, seen: dict[str, Any]) -> Direction:
    update, grad, inner = (np.asarray(seen[name], np.float64) for name in ("update", "grad", "inner"))
    basis = np.stack([grad, alpha * inner], axis=1)
    shares = np.linalg.lstsq(basis, update, rcond=None)[0]
    norm = np.linalg.norm(update)

    def cosine(vector: np.ndarray) -> float:
        return float(update @ vector / (norm * np.linalg.norm(vector) or 1.0))

    return Direction(
        step,
        float(seen["loss"]),
        float(seen["adapted_loss"]),
        float(seen["agreement"]),
        float(seen["agreement"] / (seen["square"] or 1.0)),
        cosine(grad),
        cosine(-inner),
        float(shares[0]),
        float(shares[1]),
        float(np.linalg.norm(update - basis @ shares) / (norm or 1.0)),
    )
