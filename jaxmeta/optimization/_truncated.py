"""Truncated MAML: differentiating through the last inner steps alone.

    (I - alpha H_{K-m}) .. (I - alpha H_{K-1}) grad L_Q(phi_K),   as if d phi_{K-m} / d theta were the identity

| symbol | name | | symbol | name |
|---|---|---|---|---|
| theta | `params` | | K | `steps` |
| phi_K | `Adapted.params` | | m | `backprop_steps` |

H_j is the Hessian of the support loss at phi_j. With m = 0 this is first-order MAML, with m = K it is MAML.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxmeta._gradient import outer_gradient
from jaxmeta.episode import Episode, check_is_episode
from jaxmeta.inner import Hvp, Remat, adapt, check_differentiable, check_inner_loop, check_minibatches, partition
from jaxmeta.learner import MetaLearner, Metrics, Model
from jaxmeta.losses import cross_entropy
from jaxmeta.optimization._gradient_learner import gradient_learner, with_metrics


def truncated_maml_grad(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    episode: Episode,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    backprop_steps: int,
    minibatched: bool = False,
    mask: Any = None,
    has_aux: bool = False,
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> tuple[Any, Metrics]:
    """MAML's gradient through the last `backprop_steps` inner steps alone.

    With 0 of them it is `fomaml_grad`, with `steps` of them `maml_grad`.

    Args:
        loss_fn: `(params, batch) -> scalar`, or `-> (scalar, metrics)` with `has_aux`.
        params: the initialisation theta, any pytree of floating-point arrays.
        episode: as for `maml_grad`.
        optimizer: the inner optimiser, whose state goes on from the first steps to the last, as a constant: so is what
            it holds of theta, as that of schedule-free SGD does, where m < K.
        steps: inner steps K.
        backprop_steps: the last m of them, which are differentiated through; in [0, steps].
        minibatched: `episode.support` has a leading axis of length `steps`, one slice a step.
        mask: which parameters adapt; see `adapt`.
        has_aux: `loss_fn` also returns a dict of metrics, none called `"loss"`; those of the query set are passed on.
        hvp: how inner gradients are differentiated again; see `adapt`.
        remat: levels of checkpoints; see `adapt`.

    Returns:
        `(grads, metrics)`, as `maml_grad`.

    Raises:
        TypeError: as `maml_grad`.
        ValueError: as `maml_grad`, or `backprop_steps` is out of range.

    >>> import jax.numpy as jnp, optax
    >>> losses = lambda w, batch: batch[0] * (w - batch[1]) ** 2
    >>> task = Episode(support=(1.0, 1.0), query=(1.5, -2.0))
    >>> grads, metrics = truncated_maml_grad(
    ...     losses, jnp.array(0.0), task, optimizer=optax.sgd(0.1), steps=2, backprop_steps=1
    ... )
    >>> round(float(grads), 4)
    5.664

    References:
        Shaban, Cheng, Hatch, Boots 2019, arXiv:1810.10667 (truncated back-propagation).
    """
    check_is_episode(episode)
    check_inner_loop(optimizer, steps)
    if not 0 <= backprop_steps <= steps:
        raise ValueError(f"backprop_steps must lie in [0, {steps}], the inner steps, but is {backprop_steps}")
    check_minibatches(episode.support, steps, minibatched)
    evaluate = with_metrics(loss_fn, has_aux)
    inner = functools.partial(
        adapt,
        lambda p, batch: evaluate(p, batch)[0],
        optimizer=optimizer,
        minibatched=minibatched,
        mask=mask,
    )
    first = steps - backprop_steps

    def part(which: slice) -> Any:
        return jax.tree.map(lambda leaf: leaf[which], episode.support) if minibatched else episode.support

    start = inner(params, part(slice(None, first)), steps=first)
    state = start.opt_state if first else None  # with no steps before, it is made of theta inside the derivative
    if backprop_steps:
        check_differentiable(optimizer, partition(params, mask)[0])

    def outer(params: Any) -> tuple[jax.Array, Metrics]:
        last = part(slice(first, None))
        adapted = inner(params, last, steps=backprop_steps, opt_state=state, hvp=hvp, remat=remat)
        return evaluate(adapted.params, episode.query)

    return outer_gradient(outer, start.params)


def truncated_maml(
    model: Model,
    *,
    inner_optimizer: optax.GradientTransformation,
    steps: int,
    backprop_steps: int,
    eval_steps: int | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    mask: Any = None,
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> MetaLearner:
    """MAML that differentiates through the last `backprop_steps` of its inner steps alone.

    Args:
        model: as for `maml`, like all arguments but these.
        inner_optimizer: the optimiser of the inner loop.
        steps: inner steps in training.
        backprop_steps: the last of them, which are differentiated through; in [0, steps].
        eval_steps: inner steps in `predict`; None for `steps`.
        loss: `(predictions, targets) -> scalar`, used inside and outside.
        mask: which parameters adapt.
        hvp: how inner gradients are differentiated again.
        remat: levels of checkpoints.

    Returns:
        A `MetaLearner`, as `maml` does.

    Raises:
        TypeError, ValueError: as `maml`, or `backprop_steps` is out of range.

    >>> from jaxmeta import nn
    >>> truncated_maml(nn.MLP((4,), 5), inner_optimizer=optax.sgd(0.01), steps=5, backprop_steps=6)
    Traceback (most recent call last):
      ...
    ValueError: backprop_steps must lie in [0, 5], the inner steps, but is 6

    References:
        Shaban, Cheng, Hatch, Boots 2019, arXiv:1810.10667.
    """
    if not 0 <= backprop_steps <= steps:
        raise ValueError(f"backprop_steps must lie in [0, {steps}], the inner steps, but is {backprop_steps}")
    estimator = functools.partial(truncated_maml_grad, backprop_steps=backprop_steps, hvp=hvp, remat=remat)
    return gradient_learner(estimator, model, inner_optimizer, steps, eval_steps, loss, mask)
