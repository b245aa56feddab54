"""Reptile: train on a task for a while, then move the initialisation towards where that led.

    W = k steps of the inner optimiser from theta,      g = (theta - W) / alpha

With plain SGD inside, g is the sum of the k inner gradients. The outer step theta <- theta - (eps alpha) g
is theta <- theta + eps (W - theta), so descending g with `optax.sgd(eps * alpha)` is Reptile as published:
serial with one task in the meta-batch, batched with more.

| symbol | name | | symbol | name |
|---|---|---|---|---|
| theta | `params` | | alpha | `inner_lr` |
| W | `Adapted.params` | | k | `steps` |

A task has no query set here: Reptile trains on every example of the episode, support and query together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxmeta.episode import Batch, Episode, check_episode, concatenate
from jaxmeta.inner import Adapted, adapt, check_inner_loop, minibatches, partition
from jaxmeta.learner import Carried, MetaLearner, Metrics, Model, Params, Replacement
from jaxmeta.losses import cross_entropy
from jaxmeta.optimization._gradient_learner import check_outputs, init_model, predict_from, task_of, with_metrics


class WithInnerState(NamedTuple):
    """Meta-parameters of a learner whose inner optimiser remembers.

    Attributes:
        params: the weights.
        inner_state: what the inner optimiser remembers: `Carried` in parameters, `Replacement` in gradients.
    """

    params: Params
    inner_state: Carried | Replacement


def reptile_grad(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    optimizer: optax.GradientTransformation,
    inner_lr: float | jax.Array,
    steps: int,
    minibatched: bool = False,
    mask: Any = None,
    has_aux: bool = False,
) -> tuple[Any, Metrics]:
    """The Reptile direction of one task, (theta - W) / alpha.

    Args:
        loss_fn: `(params, batch) -> scalar`, or `-> (scalar, metrics)` with `has_aux`.
        params: the initialisation theta, any pytree of floating-point arrays.
        batch: the task's data, any pytree that `loss_fn` accepts.
        optimizer: the inner optimiser, any Optax transformation; nothing is differentiated through it.
        inner_lr: alpha, what the displacement is divided by. Give the learning rate of `optimizer` to get
            gradient units, or 1 for the displacement itself.
        steps: inner steps k. With `steps=1` and SGD this is the gradient of joint training.
        minibatched: `batch` has a leading axis of length `steps`, one slice a step; see `minibatches`.
        mask: which parameters adapt; see `adapt`. The direction of the others is zero.
        has_aux: `loss_fn` also returns a dict of metrics, none called `"loss"`; those of the last inner step are passed
            on.

    Returns:
        `(grads, metrics)`: the direction, with the structure of `params`, and `{"loss": ...}`, the loss that
        the last inner step descended.

    Raises:
        ValueError: `inner_lr` is not positive, `steps` is less than 1, or as `adapt`.

    >>> import jax.numpy as jnp, optax
    >>> losses = lambda w, batch: batch[0] * (w - batch[1]) ** 2
    >>> batches = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0]))
    >>> grads, _ = reptile_grad(
    ...     losses, jnp.array(0.0), batches, optimizer=optax.sgd(0.1), inner_lr=0.1, steps=2, minibatched=True
    ... )
    >>> round(float(grads), 4)
    4.6

    References:
        Nichol, Achiam, Schulman 2018, arXiv:1803.02999, algorithm 1 and equation 1.
    """
    _check(optimizer, inner_lr, steps)
    adapted = adapt(
        with_metrics(loss_fn, has_aux),
        params,
        batch,
        optimizer=optimizer,
        steps=steps,
        minibatched=minibatched,
        mask=mask,
        has_aux=True,
    )
    return _displacement(params, adapted.params, inner_lr), _last(adapted.aux)


def reptile(
    model: Model,
    *,
    inner_optimizer: optax.GradientTransformation,
    inner_lr: float,
    steps: int = 5,
    batch_size: int | None = None,
    replacement: bool = False,
    eval_steps: int | None = None,
    eval_batch_size: int | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    mask: Any = None,
    persistent: bool = False,
) -> MetaLearner:
    """Reptile: meta-learns the initialisation of `model` by the displacement (theta - W) / alpha.

    Args:
        model: a network with `init(key, x)` and `apply(params, x)`, for instance a Flax Linen module.
        inner_optimizer: the inner optimiser; the paper's is `optax.adam(1e-3, b1=0.0)`.
        inner_lr: alpha, what the displacement is divided by; the outer step of `optax.sgd(eps * inner_lr)` is
            then the paper's step eps.
        steps: inner steps k in training.
        batch_size: examples in an inner mini-batch in training, drawn by `minibatch_indices` from the whole
            episode; None for every example at every step.
        replacement: draw mini-batches independently of each other.
        eval_steps: inner steps in `predict`; None for `steps`.
        eval_batch_size: examples in a mini-batch in `predict`, drawn from the support set; None for all.
        loss: `(predictions, targets) -> scalar`.
        mask: which parameters adapt; see `adapt`.
        persistent: carry the inner optimiser's state from task to task, as the reference code does with
            Adam's second moments. The meta-parameters are then a `WithInnerState`, which `fit` and `outer_step`
            know how to move. With several tasks in a meta-batch each starts from the same state and their final
            states are averaged; the reference code passes it along instead.

    Returns:
        A `MetaLearner`. Metrics: `loss` and `accuracy` or `mse` of the mini-batch that the last inner step descended,
        before that step.

    Raises:
        TypeError: as `maml`.
        ValueError: `inner_lr` or a mini-batch size is not positive, or a number of steps is too small.

    >>> from jaxmeta import nn, tasks
    >>> learner = reptile(nn.MLP((4,), 5), inner_optimizer=optax.sgd(0.1), inner_lr=0.1)
    >>> episode = Episode(*[Batch(jax.numpy.eye(5), jax.numpy.arange(5))] * 2)
    >>> params = learner.init(jax.random.key(0), episode)
    >>> grads, metrics = learner.meta_grad(params, episode, jax.random.key(1))
    >>> sorted(metrics)
    ['accuracy', 'loss']

    References:
        Nichol, Achiam, Schulman 2018, arXiv:1803.02999.
    """
    _check(inner_optimizer, inner_lr, steps)
    check_inner_loop(inner_optimizer, steps if eval_steps is None else eval_steps, "eval_steps")
    for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be 1 or more, but is {size}")
    task = task_of(model, loss)

    def run(
        params: Params, batch: Batch, key: jax.Array, count: int, size: int | None, return_path: bool = False
    ) -> Adapted:
        weights, state = (params.params, params.inner_state.value) if persistent else (params, None)
        if size is not None:
            batch = minibatches(key, batch, batch_size=size, steps=count, replacement=replacement)
        return adapt(
            with_metrics(task.scored_loss_fn, has_aux=True),
            weights,
            batch,
            optimizer=inner_optimizer,
            steps=count,
            minibatched=size is not None,
            mask=mask,
            has_aux=True,
            opt_state=state,
            return_path=return_path,
        )

    def init(key: jax.Array, episode: Episode) -> Params:
        weights = init_model(model, key, episode)
        if not persistent:
            return weights
        state = inner_optimizer.init(partition(weights, mask)[0])
        if odd := {str(leaf.dtype) for leaf in jax.tree.leaves(state) if not jnp.issubdtype(leaf.dtype, jnp.number)}:
            raise TypeError(
                "persistent=True averages the inner optimiser's state over tasks, so it must hold numbers, "
                f"but holds {', '.join(sorted(odd))}"
            )
        return WithInnerState(weights, Carried(state))

    def meta_grad(params: Params, episode: Episode, key: jax.Array) -> tuple[Params, Metrics]:
        check_episode(episode)
        if not sum(len(batch.y) for batch in episode):
            raise ValueError("support and query hold no examples: Reptile trains on both together")
        batch = concatenate(*episode)
        check_outputs(model, params.params if persistent else params, batch)
        adapted = run(params, batch, key, steps, batch_size)
        if not persistent:
            return _displacement(params, adapted.params, inner_lr), _last(adapted.aux)
        grads = _displacement(params.params, adapted.params, inner_lr)
        return WithInnerState(grads, Replacement(adapted.opt_state)), _last(adapted.aux)

    def run_eval(params: Params, support: Batch, key: jax.Array, return_path: bool) -> Adapted:
        count = steps if eval_steps is None else eval_steps
        return run(params, support, key, count, eval_batch_size, return_path)

    return MetaLearner(init, meta_grad, *predict_from(model, run_eval))


def _displacement(start: Any, end: Any, scale: float | jax.Array) -> Any:
    return jax.tree.map(lambda a, b: (a - b) / scale, start, end)


def _last(aux: Metrics) -> Metrics:
    """The metrics of the last inner step."""
    return jax.tree.map(lambda values: values[-1], aux)


def _check(optimizer: Any, inner_lr: float | jax.Array, steps: int) -> None:
    check_inner_loop(optimizer, steps, least=1)
    if not isinstance(inner_lr, Tracer) and not inner_lr > 0:
        raise ValueError(f"inner_lr must be positive, but is {inner_lr}")
