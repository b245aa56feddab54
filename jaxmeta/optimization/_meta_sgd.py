"""Meta-SGD: the inner learning rate of every weight is meta-learned beside its start.

    phi_{j+1} = phi_j - alpha * grad L_S(phi_j)   entry by entry,   meta-parameters (theta, alpha)

A rate may become negative: the direction of the inner step is learned, not its size alone.

| symbol | name | | symbol | name |
|---|---|---|---|---|
| theta | `WithRates.params` | | alpha | `WithRates.rates` |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jaxmeta._gradient import outer_gradient
from jaxmeta.episode import Batch, Episode, check_is_episode
from jaxmeta.inner import Adapted, Hvp, Remat, adapt, check_inner_loop, partition, sgd
from jaxmeta.learner import MetaLearner, Metrics, Model, Params
from jaxmeta.losses import cross_entropy
from jaxmeta.optimization._gradient_learner import (
    check_learnable,
    check_outputs,
    init_model,
    predict_from,
    task_of,
    with_metrics,
)


class WithRates(NamedTuple):
    """Meta-parameters of a learner that learns its inner learning rates.

    Attributes:
        params: the initialisation.
        rates: an inner learning rate for each of its entries, with the same structure and shapes.
    """

    params: Params
    rates: Params


def meta_sgd_grad(
    loss_fn: Callable[[Any, Any], Any],
    params: WithRates,
    episode: Episode,
    *,
    steps: int = 1,
    mask: Any = None,
    has_aux: bool = False,
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> tuple[WithRates, Metrics]:
    """The exact Meta-SGD gradient of one task, in the initialisation and in the rates.

    Args:
        loss_fn: `(params, batch) -> scalar`, or `-> (scalar, metrics)` with `has_aux`.
        params: the initialisation and its rates.
        episode: as for `maml_grad`.
        steps: inner steps.
        mask: which parameters adapt; see `adapt`. The rates of the others receive no gradient.
        has_aux: `loss_fn` also returns a dict of metrics, none called `"loss"`; those of the query set are passed on.
        hvp: how inner gradients are differentiated again; see `adapt`.
        remat: levels of checkpoints; see `adapt`.

    Returns:
        `(grads, metrics)`, as `maml_grad`.

    Raises:
        TypeError: `episode` is no `Episode`, or as `adapt`.
        ValueError: as `adapt`.

    >>> import jax.numpy as jnp
    >>> losses = lambda w, batch: batch[0] * (w - batch[1]) ** 2
    >>> task = Episode(support=(1.0, 1.0), query=(1.5, -2.0))
    >>> grads, metrics = meta_sgd_grad(losses, WithRates(jnp.array(0.0), jnp.array(0.1)), task)
    >>> round(float(grads.params), 4), round(float(grads.rates), 4)
    (5.28, 13.2)

    References:
        Li, Zhou, Chen, Li 2017, arXiv:1707.09835.
    """
    check_is_episode(episode)
    evaluate = with_metrics(loss_fn, has_aux)

    def outer(meta: WithRates) -> tuple[jax.Array, Metrics]:
        adapted = _adapt(
            lambda p, batch: evaluate(p, batch)[0], meta, episode.support, steps, mask, hvp=hvp, remat=remat
        )
        return evaluate(adapted.params, episode.query)

    return outer_gradient(outer, params)


def meta_sgd(
    model: Model,
    *,
    steps: int = 1,
    eval_steps: int | None = None,
    rates: tuple[float, float] = (0.005, 0.1),
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    mask: Any = None,
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> MetaLearner:
    """Meta-SGD: meta-learns an initialisation and an inner learning rate for each of its entries.

    Args:
        model: a network with `init(key, x)` and `apply(params, x)`, for instance a Flax Linen module.
        steps: inner steps in training; the paper's is 1.
        eval_steps: inner steps in `predict`; None for `steps`.
        rates: the range that rates are drawn from at the start, uniformly; on the mean loss.
        loss: `(predictions, targets) -> scalar`, used inside and outside.
        mask: which parameters adapt; see `adapt`.
        hvp: how inner gradients are differentiated again; see `adapt`.
        remat: levels of checkpoints; see `adapt`.

    Returns:
        A `MetaLearner` whose meta-parameters are a `WithRates`. Metrics: as `maml`.

    Raises:
        ValueError: `steps` or `eval_steps` is negative, or the range of `rates` is empty.

    >>> from jaxmeta import nn
    >>> learner = meta_sgd(nn.MLP((4,), 5), rates=(0.01, 0.01))

    References:
        Li, Zhou, Chen, Li 2017, arXiv:1707.09835.
    """
    low, high = rates
    if not low <= high:
        raise ValueError(f"rates must be a range (low, high), but is {rates}")
    check_inner_loop(optax.identity(), steps)
    check_inner_loop(optax.identity(), steps if eval_steps is None else eval_steps, "eval_steps")
    task = task_of(model, loss)

    def init(key: jax.Array, episode: Episode) -> WithRates:
        start = init_model(model, key, episode)
        leaves, treedef = jax.tree.flatten(start)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        drawn = [jax.random.uniform(k, leaf.shape, leaf.dtype, low, high) for k, leaf in zip(keys, leaves, strict=True)]
        return WithRates(start, treedef.unflatten(drawn))

    def meta_grad(params: WithRates, episode: Episode, key: jax.Array) -> tuple[WithRates, Metrics]:
        del key
        check_learnable(episode)
        check_outputs(model, params.params, *episode)
        return meta_sgd_grad(
            task.scored_loss_fn, params, episode, steps=steps, mask=mask, has_aux=True, hvp=hvp, remat=remat
        )

    def run(params: WithRates, support: Batch, key: jax.Array, return_path: bool) -> Adapted:
        del key
        count = steps if eval_steps is None else eval_steps
        return _adapt(task.loss_fn, params, support, count, mask, return_path=return_path)

    return MetaLearner(init, meta_grad, *predict_from(model, run))


def _adapt(
    loss_fn: Callable[[Any, Any], jax.Array],
    meta: WithRates,
    batch: Any,
    steps: int,
    mask: Any,
    *,
    return_path: bool = False,
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> Adapted:
    return adapt(
        loss_fn,
        meta.params,
        batch,
        optimizer=sgd(partition(meta.rates, mask)[0]),
        steps=steps,
        mask=mask,
        return_path=return_path,
        hvp=hvp,
        remat=remat,
    )
