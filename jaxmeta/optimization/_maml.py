"""MAML and first-order MAML: learn an initialisation from which a few gradient steps suffice.

    phi_0 = theta,   phi_{j+1} = phi_j - alpha grad L_S(phi_j),   j = 0 .. K-1

    MAML      d/dtheta L_Q(phi_K(theta)) = (I - alpha H_0) .. (I - alpha H_{K-1}) grad L_Q(phi_K)
    FOMAML    grad L_Q(phi_K),  as if d phi_K / d theta were the identity

| symbol | name | | symbol | name |
|---|---|---|---|---|
| theta | `params` | | L_S, L_Q | `loss_fn` on `episode.support`, `episode.query` |
| alpha | the learning rate inside `optimizer` | | K | `steps` |

H_j is the Hessian of L_S at phi_j. It is never formed: MAML's gradient is `jax.grad` through `adapt`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxmeta._gradient import outer_gradient
from jaxmeta.episode import Episode, check_is_episode
from jaxmeta.inner import Hvp, Remat, adapt, check_differentiable, check_inner_loop, partition
from jaxmeta.learner import MetaLearner, Metrics, Model
from jaxmeta.losses import cross_entropy
from jaxmeta.optimization._gradient_learner import gradient_learner, with_metrics


def maml_grad(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    episode: Episode,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    minibatched: bool = False,
    mask: Any = None,
    has_aux: bool = False,
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> tuple[Any, Metrics]:
    """The exact MAML gradient of one task: differentiates through every inner step.

    Args:
        loss_fn: `(params, batch) -> scalar`, or `-> (scalar, metrics)` with `has_aux`.
        params: the initialisation theta, any pytree of floating-point arrays.
        episode: `support` is what the inner loop descends, `query` what the outer loss is taken on. Any pair
            of pytrees with these two fields that `loss_fn` accepts.
        optimizer: the inner optimiser, any Optax transformation that can be differentiated; see `adapt`.
        steps: inner steps K; 0 gives the gradient of the query loss at theta.
        minibatched: `episode.support` has a leading axis of length `steps`, one slice a step.
        mask: which parameters adapt; see `adapt`. The others receive their direct gradient.
        has_aux: `loss_fn` also returns a dict of metrics, none called `"loss"`; those of the query set are passed on.
        hvp: how inner gradients are differentiated again; see `adapt`, also for losses whose hand-written derivative is
            no true gradient, as a straight-through estimator's, which want `"reverse_over_reverse"`.
        remat: levels of checkpoints; see `adapt`.

    Returns:
        `(grads, metrics)`: the gradient, with the structure of `params`, and `{"loss": L_Q(phi_K), ...}`.

    Raises:
        TypeError: `episode` is no `Episode`, or as `adapt`.
        ValueError: as `adapt`, or `optimizer` has no finite derivative where gradients are zero.

    >>> import jax.numpy as jnp, optax
    >>> losses = lambda w, batch: batch[0] * (w - batch[1]) ** 2
    >>> task = Episode(support=(1.0, 1.0), query=(1.5, -2.0))
    >>> grads, metrics = maml_grad(losses, jnp.array(0.0), task, optimizer=optax.sgd(0.1), steps=1)
    >>> round(float(grads), 4)
    5.28

    Where the outer loss is another than the inner one, write both, and differentiate through `adapt`:

    >>> inner, outer = losses, lambda w, batch: jnp.abs(w - batch[1])
    >>> def meta_loss(w):
    ...     return outer(adapt(inner, w, task.support, optimizer=optax.sgd(0.1), steps=1).params, task.query)
    >>> loss, grad = jax.value_and_grad(meta_loss)(jnp.array(0.0))
    >>> round(float(loss), 4), round(float(grad), 4)
    (2.2, 0.8)

    References:
        Finn, Abbeel, Levine 2017, arXiv:1703.03400, algorithm 1.
    """
    check_is_episode(episode)
    check_inner_loop(optimizer, steps)
    evaluate = with_metrics(loss_fn, has_aux)
    if steps > 0:
        check_differentiable(optimizer, partition(params, mask)[0])

    def outer(params: Any) -> tuple[jax.Array, Metrics]:
        adapted = adapt(
            lambda p, batch: evaluate(p, batch)[0],
            params,
            episode.support,
            optimizer=optimizer,
            steps=steps,
            minibatched=minibatched,
            mask=mask,
            hvp=hvp,
            remat=remat,
        )
        return evaluate(adapted.params, episode.query)

    return outer_gradient(outer, params)


def fomaml_grad(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    episode: Episode,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    minibatched: bool = False,
    mask: Any = None,
    has_aux: bool = False,
) -> tuple[Any, Metrics]:
    """The first-order MAML gradient of one task: the query gradient at the adapted parameters.

    Memory and time do not include any second derivative. Arguments, results and errors are those of `maml_grad`.

    >>> import jax.numpy as jnp, optax
    >>> losses = lambda w, batch: batch[0] * (w - batch[1]) ** 2
    >>> task = Episode(support=(1.0, 1.0), query=(1.5, -2.0))
    >>> grads, metrics = fomaml_grad(losses, jnp.array(0.0), task, optimizer=optax.sgd(0.1), steps=1)
    >>> round(float(grads), 4)
    6.6

    References:
        Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.2; Nichol, Achiam, Schulman 2018, arXiv:1803.02999.
    """
    check_is_episode(episode)
    evaluate = with_metrics(loss_fn, has_aux)
    adapted = adapt(
        lambda p, batch: evaluate(p, batch)[0],
        params,
        episode.support,
        optimizer=optimizer,
        steps=steps,
        minibatched=minibatched,
        mask=mask,
    )
    return outer_gradient(lambda params: evaluate(params, episode.query), adapted.params)


def maml(
    model: Model,
    *,
    inner_optimizer: optax.GradientTransformation,
    steps: int = 1,
    eval_steps: int | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    mask: Any = None,
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> MetaLearner:
    """MAML: meta-learns the initialisation of `model` by exact second-order gradients.

    Args:
        model: a network with `init(key, x)` and `apply(params, x)`, for instance a Flax Linen module.
        inner_optimizer: the optimiser of the inner loop, for instance `optax.sgd(2.0)`. The rate applies to
            the *mean* loss: the reference code sums over classes, so its 5-way 0.4 is 2.0 here.
        steps: inner steps in training.
        eval_steps: inner steps in `predict`; None for `steps`.
        loss: `(predictions, targets) -> scalar`, used inside and outside.
        mask: which parameters adapt; see `adapt`.
        hvp: how inner gradients are differentiated again; see `adapt`, also for losses whose hand-written derivative is
            no true gradient.
        remat: levels of checkpoints; see `adapt`.

    Returns:
        A `MetaLearner`. Metrics: the query `loss` after adaptation and `accuracy` or `mse`.

    Raises:
        TypeError: `inner_optimizer` is no Optax transformation, `steps` no int, or `loss` no function.
        ValueError: `steps` or `eval_steps` is negative.

    >>> from jaxmeta import losses, nn, tasks
    >>> learner = maml(nn.MLP((4,), 1), inner_optimizer=optax.sgd(0.01), loss=losses.mean_squared_error)
    >>> episode = tasks.sinusoid(shots=5).sample((), jax.random.key(0))
    >>> params = learner.init(jax.random.key(1), episode)
    >>> grads, metrics = learner.meta_grad(params, episode, jax.random.key(2))
    >>> sorted(metrics), learner.predict(params, episode.support, episode.query.x, jax.random.key(2)).shape
    (['loss', 'mse'], (5, 1))

    References:
        Finn, Abbeel, Levine 2017, arXiv:1703.03400.
    """
    estimator = functools.partial(maml_grad, hvp=hvp, remat=remat)
    return gradient_learner(estimator, model, inner_optimizer, steps, eval_steps, loss, mask)


def fomaml(
    model: Model,
    *,
    inner_optimizer: optax.GradientTransformation,
    steps: int = 1,
    eval_steps: int | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    mask: Any = None,
) -> MetaLearner:
    """First-order MAML: like `maml`, whose arguments it takes, with the derivative of the inner loop taken as 1.

    Returns:
        A `MetaLearner`, as `maml` does.

    Raises:
        TypeError, ValueError: as `maml`.

    >>> from jaxmeta import nn
    >>> fomaml(nn.MLP((4,), 5), inner_optimizer=optax.sgd(0.01), steps=-1)
    Traceback (most recent call last):
      ...
    ValueError: steps must be 0 or more, but is -1

    References:
        Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.2.
    """
    return gradient_learner(fomaml_grad, model, inner_optimizer, steps, eval_steps, loss, mask)
