"""The LSTM meta-learner: the inner optimiser is an LSTM whose cell state is the learner's weights.

Every coordinate of theta has a cell of its own; all share the weights of two layers,

    h_t      = LSTM( pre(loss_t), pre(grad_t) )                           20 hidden units
    i_t      = sigmoid( W_I [h_t, theta_{t-1}, i_{t-1}] + b_I )
    f_t      = sigmoid( W_F [h_t, theta_{t-1}, f_{t-1}] + b_F )
    theta_t  = f_t theta_{t-1} - i_t grad_t,                               theta_0 learned

where pre is `log_sign`. With f = 1 and i = alpha it is gradient descent. Gradients and losses are inputs, treated as
independent of the meta-parameters; what is differentiated is the recurrence.

| symbol | name | | symbol | name |
|---|---|---|---|---|
| theta_0 | `MetaLSTM.start` | | W_F, b_F and W_I, b_I | `MetaLSTM.forget`, `MetaLSTM.input` |
| h | `hidden` | | f, i | `forget_gates`, `input_gates` |

The authors' code feeds back a gate's value *before* the sigmoid where the equations have the gate itself:
`feedback="pre_sigmoid"`. It also divides gradients of the mean loss by the batch size once more: `gradient_scale`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxmeta._gradient import outer_gradient
from jaxmeta.episode import Batch, Episode
from jaxmeta.inner import Adapted, check_inner_loop, log_sign
from jaxmeta.learner import MetaLearner, Metrics, Model, Params
from jaxmeta.losses import cross_entropy
from jaxmeta.nn import lstm_update
from jaxmeta.optimization._gradient_learner import (
    check_learnable,
    check_outputs,
    init_model,
    predict_from,
    task_of,
    with_metrics,
)

Feedback = Literal["gate", "pre_sigmoid"]

_LOSS = 2  # numbers that tell the loss
_INPUTS = _LOSS + 2  # and those that tell a gradient


class Affine(NamedTuple):
    """Weights `[in, out]` or `[in]`, and a bias `[out]` or `[]`."""

    kernel: jax.Array
    bias: jax.Array


class MetaLSTM(NamedTuple):
    """Meta-parameters of the LSTM meta-learner.

    Attributes:
        start: theta_0, the learner's initialisation, any pytree.
        layer: the first layer's pre-activations from (pre(loss), pre(grad), h): `[4 + hidden, 4 * hidden]`, in the
            order forget, input, output, update.
        forget: f from (h, theta, f): `[hidden + 2]`.
        input: i from (h, theta, i): `[hidden + 2]`.
    """

    start: Params
    layer: Affine
    forget: Affine
    input: Affine


class LSTMAdapted(NamedTuple):
    """What came of adaptation by an LSTM.

    Attributes:
        params: the adapted parameters.
        losses: `[steps]`, before each step.
        forget_gates: f in every step, a pytree like the parameters, with a leading axis `[steps]`.
        input_gates: i in every step, alike.
        path: parameters after 0, 1, .., K steps, with a leading axis `[steps + 1]`.
    """

    params: Params
    losses: jax.Array
    forget_gates: Params
    input_gates: Params
    path: Params


class _State(NamedTuple):
    """A cell for each of P coordinates; these are the last axis, for they are many and `hidden` is few."""

    theta: jax.Array  # [P]
    hidden: jax.Array  # [hidden, P]
    cell: jax.Array  # [hidden, P]
    forget: jax.Array  # [P], what is fed back of it
    input: jax.Array  # [P]


def lstm_adapt(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: MetaLSTM,
    batch: Any,
    *,
    steps: int,
    feedback: Feedback = "gate",
    gradient_scale: float = 1.0,
    differentiate: bool = False,
) -> LSTMAdapted:
    """Adapts parameters to a batch by steps of a learned LSTM.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: the LSTM and the initialisation it starts from.
        batch: what every step's loss is taken on.
        steps: how many.
        feedback: what a gate sees of its last value: `"gate"`, as in the equations, or `"pre_sigmoid"`, as in the code.
        gradient_scale: what gradients are multiplied by first; 1 / batch size in the code.
        differentiate: let derivatives through the gradients and losses, which are taken as constants otherwise, of
            the parameters as of all else that enters `loss_fn`.

    Returns:
        An `LSTMAdapted`.

    Raises:
        ValueError: `steps` is negative, `feedback` is unknown, or `gradient_scale` is not positive.

    >>> off = lambda bias: Affine(jnp.zeros(3), jnp.array(bias))
    >>> descent = MetaLSTM(jnp.array(1.0), Affine(jnp.zeros((5, 4)), jnp.zeros(4)), off(100.0), off(0.0))  # f=1, i=1/2
    >>> lstm_adapt(lambda w, target: (w - target) ** 2 / 2, descent, 0.0, steps=2).path.tolist()
    [1.0, 0.5, 0.25]

    References:
        Ravi, Larochelle 2017, "Optimization as a model for few-shot learning", ICLR.
    """
    _check(steps, feedback, gradient_scale)
    theta, unravel = ravel_pytree(params.start)
    learned = jax.tree.map(lambda weights: weights.astype(theta.dtype), params._replace(start=()))
    pass_on = (lambda found: found) if differentiate else jax.lax.stop_gradient

    # Computed again in the backward pass, which would else keep 4 * hidden gates for each weight and step.
    advance = jax.checkpoint(functools.partial(_advance, feedback=feedback), prevent_cse=False)

    def step(state: _State, _: None) -> tuple[_State, tuple[jax.Array, ...]]:
        loss, grad = pass_on(jax.value_and_grad(lambda theta: loss_fn(unravel(theta), batch))(pass_on(state.theta)))
        state, f, i = advance(learned, state, loss.astype(theta.dtype), gradient_scale * grad)
        return state, (loss, f, i, state.theta)

    blank, zeros = jnp.zeros((len(params.layer.bias) // 4, len(theta)), theta.dtype), jnp.zeros_like(theta)
    start = _State(theta, blank, blank, zeros, zeros)
    end, (losses, f, i, moved) = jax.lax.scan(step, start, length=steps)
    path = jnp.concatenate([theta[None], moved])
    return LSTMAdapted(unravel(end.theta), losses, *(jax.vmap(unravel)(each) for each in (f, i, path)))


def _advance(
    params: MetaLSTM, state: _State, loss: jax.Array, grad: jax.Array, feedback: Feedback
) -> tuple[_State, jax.Array, jax.Array]:
    """One step of every coordinate: `(state, f, i)`."""
    for_loss, for_rest = params.layer.kernel[:_LOSS], params.layer.kernel[_LOSS:]
    shared = log_sign(loss) @ for_loss + params.layer.bias
    gates = for_rest.T @ jnp.concatenate([log_sign(grad).T, state.hidden]) + shared[:, None]
    hidden, cell = jax.vmap(lstm_update, in_axes=1, out_axes=1)(gates, state.cell)

    def before_sigmoid(affine: Affine, previous: jax.Array) -> jax.Array:
        kernel = affine.kernel
        return kernel[:-2] @ hidden + kernel[-2] * state.theta + kernel[-1] * previous + affine.bias

    raw = before_sigmoid(params.forget, state.forget), before_sigmoid(params.input, state.input)
    f, i = map(jax.nn.sigmoid, raw)
    fed_back = raw if feedback == "pre_sigmoid" else (f, i)
    return _State(f * state.theta - i * grad, hidden, cell, *fed_back), f, i


def lstm_meta_learner(
    model: Model,
    *,
    steps: int = 12,
    eval_steps: int | None = None,
    hidden: int = 20,
    forget_bias: tuple[float, float] = (4.0, 5.0),
    input_bias: tuple[float, float] = (-5.0, -4.0),
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    feedback: Feedback = "gate",
    gradient_scale: float = 1.0,
    differentiate: bool = False,
) -> MetaLearner:
    """The LSTM meta-learner: meta-learns an initialisation and the optimiser that goes on from it.

    The paper clips meta-gradients to a norm of 0.25: `optax.chain(optax.clip_by_global_norm(0.25), optax.adam(1e-3))`.
    In its code, test queries are normalised by statistics that were gathered from the support set; with this library's
    networks, `evaluate`'s `query_mode="inductive"` comes next to that: each query is normalised with the support set.

    Args:
        model: a network with `init(key, x)` and `apply(params, x)`, for instance a Flax Linen module.
        steps: inner steps in training; the paper's are 12 for one shot.
        eval_steps: inner steps in `predict`; None for `steps`.
        hidden: units of the first layer.
        forget_bias: the range that b_F is drawn from at the start, so that f is near 1.
        input_bias: the range that b_I is drawn from; a small i is a small learning rate, on the mean loss.
        loss: `(predictions, targets) -> scalar`, used inside and outside.
        feedback: as for `lstm_adapt`.
        gradient_scale: as for `lstm_adapt`.
        differentiate: as for `lstm_adapt`.

    Returns:
        A `MetaLearner` whose meta-parameters are a `MetaLSTM`. Metrics: as `maml`.

    Raises:
        ValueError: `steps` or `eval_steps` is negative, `hidden` is less than 1, a range is empty or not finite,
            `feedback` is unknown, or `gradient_scale` is not positive.

    >>> from jaxmeta import nn
    >>> learner = lstm_meta_learner(nn.MLP((4,), 5), steps=5)

    References:
        Ravi, Larochelle 2017, "Optimization as a model for few-shot learning", ICLR.
    """
    _check(steps, feedback, gradient_scale)
    check_inner_loop(optax.identity(), steps if eval_steps is None else eval_steps, "eval_steps")
    if hidden < 1:
        raise ValueError(f"hidden must be 1 or more, but is {hidden}")
    for name, ends in {"forget_bias": forget_bias, "input_bias": input_bias}.items():
        if np.shape(ends) != (2,) or not -math.inf < ends[0] <= ends[1] < math.inf:
            raise ValueError(f"{name} must be a range (low, high) of finite numbers, but is {ends}")
    task = task_of(model, loss)

    def init(key: jax.Array, episode: Episode) -> MetaLSTM:
        start = init_model(model, key, episode)
        layer_key, forget_key, input_key = jax.random.split(jax.random.fold_in(key, 1), 3)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(start))  # small steps are lost on biases of 16 bits
        layer = _affine(layer_key, (_INPUTS + hidden, 4 * hidden), (-0.01, 0.01), dtype)
        forget = _affine(forget_key, (hidden + 2,), forget_bias, dtype)
        return MetaLSTM(start, layer, forget, _affine(input_key, (hidden + 2,), input_bias, dtype))

    def run(params: MetaLSTM, support: Batch, count: int) -> LSTMAdapted:
        return lstm_adapt(
            task.loss_fn,
            params,
            support,
            steps=count,
            feedback=feedback,
            gradient_scale=gradient_scale,
            differentiate=differentiate,
        )

    def meta_grad(params: MetaLSTM, episode: Episode, key: jax.Array) -> tuple[MetaLSTM, Metrics]:
        del key
        check_learnable(episode)
        check_outputs(model, params.start, *episode)
        evaluate = with_metrics(task.scored_loss_fn, has_aux=True)

        def outer(params: MetaLSTM) -> tuple[jax.Array, Metrics]:
            return evaluate(run(params, episode.support, steps).params, episode.query)

        return outer_gradient(outer, params)

    def adapted(params: MetaLSTM, support: Batch, key: jax.Array, return_path: bool) -> Adapted:
        del key, return_path
        found = run(params, support, steps if eval_steps is None else eval_steps)
        return Adapted(found.params, optax.EmptyState(), found.losses, found.path)

    return MetaLearner(init, meta_grad, *predict_from(model, adapted))


def _affine(key: jax.Array, shape: tuple[int, ...], bias: tuple[float, float], dtype: jnp.dtype) -> Affine:
    kernel_key, bias_key = jax.random.split(key)
    kernel = jax.random.uniform(kernel_key, shape, dtype, minval=-0.01, maxval=0.01)
    return Affine(kernel, jax.random.uniform(bias_key, shape[1:], dtype, minval=bias[0], maxval=bias[1]))


def _check(steps: int, feedback: str, gradient_scale: float) -> None:
    check_inner_loop(optax.identity(), steps)
    if feedback not in get_args(Feedback):
        raise ValueError(f"feedback must be one of {get_args(Feedback)}, but is {feedback!r}")
    if not 0 < gradient_scale < math.inf:
        raise ValueError(f"gradient_scale must be positive and finite, but is {gradient_scale}")
