"""What the methods that adapt by gradient steps share: a model and a loss, made into a `MetaLearner`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.core import Tracer

from jaxmeta.episode import Batch, Episode, check_episode, is_classification
from jaxmeta.inner import Adapted, adapt, check_inner_loop, split_aux
from jaxmeta.learner import MetaLearner, Metrics, Model, Params
from jaxmeta.losses import score
from jaxmeta.nn._stateless import init_stateless

LossFn = Callable[[Any, Any], Any]


def with_metrics(loss_fn: LossFn, has_aux: bool) -> Callable[[Any, Any], tuple[jax.Array, Metrics]]:
    """Makes any loss function return `(loss, metrics)`, with the loss among the metrics."""

    def evaluate(params: Any, batch: Any) -> tuple[jax.Array, Metrics]:
        loss, aux = split_aux(loss_fn(params, batch), has_aux)
        metrics = {} if aux is None else aux
        if not isinstance(metrics, Mapping):
            raise TypeError(f"has_aux=True wants loss_fn's aux to be a dict of metrics, but it is {aux!r}")
        if "loss" in metrics:
            raise ValueError('has_aux=True: no metric may be named "loss", which is the loss itself')
        return loss, {**metrics, "loss": loss}

    return evaluate


class Task(NamedTuple):
    """A model and a loss as functions of parameters and a batch.

    Attributes:
        loss_fn: `(params, batch) -> scalar`.
        scored_loss_fn: `(params, batch) -> (scalar, {"accuracy" or "mse": scalar})`.
    """

    loss_fn: LossFn
    scored_loss_fn: LossFn


def task_of(model: Model, loss: Callable[[jax.Array, jax.Array], jax.Array]) -> Task:
    """Closes a loss on predictions over a model.

    Raises:
        TypeError: the loss is no function.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function (predictions, targets) -> scalar, but is {loss!r}")

    def scored_loss_fn(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        predictions = model.apply(params, batch.x)
        return loss(predictions, batch.y), dict([score(predictions, batch.y)])

    return Task(lambda params, batch: loss(model.apply(params, batch.x), batch.y), scored_loss_fn)


def init_model(model: Model, key: jax.Array, episode: Episode) -> Params:
    """Initialises a model for the inputs of an episode, and refuses one with mutable state.

    Raises:
        ValueError: the model keeps state beside its parameters, such as running statistics, or has too few outputs.
    """
    check_episode(episode)
    larger = max(episode, key=lambda batch: batch.x.shape[0])
    params = init_stateless(model, key, larger.x)
    check_outputs(model, params, larger)
    return params


def check_outputs(model: Model, params: Params, *batches: Batch) -> None:
    """Raises if labels of batches, where they are known, are none that the model has an output for."""
    for batch in batches:
        if not is_classification(batch.y) or isinstance(batch.y, Tracer) or not len(batch.y):
            continue
        outputs = jax.eval_shape(model.apply, params, batch.x).shape[-1]
        known = np.asarray(batch.y)  # with JAX's own operations, labels known inside a trace would become unknown
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= outputs:
            raise ValueError(f"the model has {outputs} outputs, but the labels are {low}..{high}")


def check_learnable(episode: Episode) -> None:
    """Raises if an episode is not well-formed, or has no queries to take an outer loss on."""
    check_episode(episode)
    if not len(episode.query.y):
        raise ValueError("query holds no examples, and the outer loss is taken on the query set: give it some")


def predict_from(
    model: Model, run: Callable[[Params, Batch, jax.Array, bool], Adapted]
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """`predict` and `predict_path` of a learner that adapts by `run(params, support, key, return_path)`."""

    def adapted(params: Params, support: Batch, key: jax.Array, return_path: bool) -> Adapted:
        found = run(params, support, key, return_path)
        check_outputs(model, found.params, support)
        return found

    def predict(params: Params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        return model.apply(adapted(params, support, key, False).params, query_x)

    def predict_path(params: Params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        path = adapted(params, support, key, True).path
        return jax.lax.map(lambda point: model.apply(point, query_x), path)

    return predict, predict_path


def gradient_learner(
    estimator: Callable[..., tuple[Params, Metrics]],
    model: Model,
    inner_optimizer: optax.GradientTransformation,
    steps: int,
    eval_steps: int | None,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    mask: Any,
    inner_loss: Callable[[LossFn, Params], LossFn] = lambda loss_fn, params: loss_fn,
) -> MetaLearner:
    """A learner that adapts on the support set and whose meta-gradient is `estimator`.

    What it descends in `predict` is `inner_loss(loss_fn, params)`, the task's loss as it is where nothing is given.
    """
    check_inner_loop(inner_optimizer, steps)
    check_inner_loop(inner_optimizer, steps if eval_steps is None else eval_steps, "eval_steps")
    task = task_of(model, loss)

    def meta_grad(params: Params, episode: Episode, key: jax.Array) -> tuple[Params, Metrics]:
        del key
        check_learnable(episode)
        check_outputs(model, params, *episode)
        return estimator(
            task.scored_loss_fn, params, episode, optimizer=inner_optimizer, steps=steps, mask=mask, has_aux=True
        )

    def run(params: Params, support: Batch, key: jax.Array, return_path: bool) -> Adapted:
        del key
        count = steps if eval_steps is None else eval_steps
        return adapt(
            inner_loss(task.loss_fn, params),
            params,
            support,
            optimizer=inner_optimizer,
            steps=count,
            mask=mask,
            return_path=return_path,
        )

    predict, predict_path = predict_from(model, run)
    return MetaLearner(lambda key, episode: init_model(model, key, episode), meta_grad, predict, predict_path)
