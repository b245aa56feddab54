"""MAML++: MAML with a loss after every step, learned rates, normalisation by step, and annealing.

    phi_{j+1} = phi_j - alpha_j * grad L_S(phi_j; gamma_j),      j = 0 .. K-1
    meta-loss   sum_j w_j(t) L_Q(phi_{j+1}; gamma_j)

| symbol | name | | symbol | name |
|---|---|---|---|---|
| theta = phi_0 | `MamlPPParams.params` | | gamma_j | entries of `params` that `norm` marks, slice j |
| alpha_j | `MamlPPParams.rates`, slice j: one rate for each array | | w_j(t) | `multi_step_weights` at epoch t |

The gammas, scale and offset of normalisation, are meta-learned for each step and do not adapt. The weights start
equal, and move to the last step as epochs go by; after that the last step alone counts. In the first epochs, if
asked, inner gradients are taken as constants, as in first-order MAML.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta._gradient import outer_gradient
from jaxmeta.episode import Batch, Episode
from jaxmeta.inner import Adapted, Hvp, Remat, adapt, check_inner_loop, mask_by_path, partition, sgd
from jaxmeta.learner import Carried, MetaLearner, Metrics, Model, Params, Replacement
from jaxmeta.losses import cross_entropy
from jaxmeta.optimization._gradient_learner import check_learnable, check_outputs, init_model, task_of, with_metrics

# A step's weight before the last does not fall below this share of an equal one.
_LEAST = 0.03


class MamlPPParams(NamedTuple):
    """Meta-parameters of MAML++.

    Attributes:
        params: the model's parameters; those that normalise have a leading axis of steps.
        rates: for each array that adapts, a learning rate for each step, `[steps]`.
        outer_step: outer steps taken, `Carried`.
    """

    params: Params
    rates: Params
    outer_step: Carried | Replacement


def multi_step_weights(epoch: jax.Array, *, steps: int, epochs: int) -> jax.Array:
    """Weights of the query losses after each inner step, while they are annealed.

    Args:
        epoch: the epoch t, a scalar in [0, epochs).
        steps: inner steps S.
        epochs: over which weights are annealed, E.

    Returns:
        `[steps]`: max(1/S - t/(S E), 0.03/S), and for the last what is left to 1.

    >>> import jax.numpy as jnp
    >>> [round(float(w), 3) for w in multi_step_weights(jnp.array(5), steps=5, epochs=10)]
    [0.1, 0.1, 0.1, 0.1, 0.6]

    References:
        Antoniou, Edwards, Storkey 2019, arXiv:1810.09502, section 4, and its code.
    """
    early = jnp.maximum(1 / steps - epoch / (steps * epochs), _LEAST / steps)
    return jnp.full(steps, early).at[-1].set(1 - (steps - 1) * early)


def maml_pp(
    model: Model,
    *,
    steps: int = 5,
    inner_lr: float = 0.1,
    epoch: int = 500,
    multi_step_epochs: int = 10,
    first_order_epochs: int = 0,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    norm: str | None = "norm_",
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> MetaLearner:
    """MAML++: meta-learns initialisation, a rate for each array and step, and normalisation for each step.

    Its cosine schedule belongs to the outer optimiser, `optax.adam(optax.cosine_decay_schedule(1e-3, n, alpha=1e-2))`
    for n outer steps.

    Args:
        model: a network with `init(key, x)` and `apply(params, x)`, for instance a Flax Linen module; the paper's is
            `nn.Conv4(ways, activation=flax.linen.leaky_relu)`.
        steps: inner steps, in training and in `predict`.
        inner_lr: where all rates start; the paper's is 0.1 for Omniglot and 0.01 for mini-ImageNet.
        epoch: outer steps in an epoch.
        multi_step_epochs: epochs in which the query losses after every step count; 10 in the paper for Omniglot, 15 for
            mini-ImageNet. 0 for the last step alone.
        first_order_epochs: epochs in which inner gradients are taken as constants; its code ships with 0.
        loss: `(predictions, targets) -> scalar`, used inside and outside.
        norm: how a component of the path of parameters that normalise begins, such as `"BatchNorm_"`; None for a model
            without normalisation.
        hvp: how inner gradients are differentiated again; see `adapt`, also for losses whose hand-written derivative is
            no true gradient.
        remat: levels of checkpoints; see `adapt`.

    Returns:
        A `MetaLearner` whose meta-parameters are a `MamlPPParams`. Metrics: the query `loss` after the last step and
        `accuracy` or `mse`, and the `meta_loss` that is differentiated.

    Raises:
        ValueError: `inner_lr` is not positive, or a number of steps or epochs is out of range; at `init`, if no
            parameter's path has `norm` in it.

    >>> from jaxmeta import nn
    >>> learner = maml_pp(nn.MLP((4,), 5, norm=True), steps=3)

    References:
        Antoniou, Edwards, Storkey 2019, arXiv:1810.09502. Its code keeps running statistics for each step but
        normalises by the batch at hand always; there are none here.
    """
    _check(steps, inner_lr, epoch, multi_step_epochs, first_order_epochs)
    task = task_of(model, loss)
    adapts = mask_by_path(lambda path: norm is None or not any(part.startswith(norm) for part in path.split("/")))

    def at_step(params: Params, step: jax.Array) -> Params:
        return jax.tree.map(lambda leaf, moves: leaf if moves else jnp.asarray(leaf)[step], params, adapts(params))

    def init(key: jax.Array, episode: Episode) -> MamlPPParams:
        start = init_model(model, key, episode)
        mask = adapts(start)
        if norm is not None and all(jax.tree.leaves(mask)):
            raise ValueError(
                f"norm={norm!r} begins no component of any parameter's path; say how those that normalise are named, "
                "or norm=None if there are none"
            )
        params = jax.tree.map(lambda leaf, moves: leaf if moves else jnp.stack([leaf] * steps), start, mask)
        rates = jax.tree.map(lambda leaf: jnp.full(steps, inner_lr, leaf.dtype), partition(start, mask)[0])
        return MamlPPParams(params, rates, Carried(jnp.zeros((), jnp.int32)))

    def run(params: MamlPPParams, support: Batch, first_order: bool = False) -> Adapted:
        optimizer = sgd(params.rates, per_step=True)
        if first_order:
            optimizer = optax.chain(optax.stateless(lambda grads, _: jax.lax.stop_gradient(grads)), optimizer)
        return adapt(
            lambda p, step: task.loss_fn(at_step(p, step), support),
            params.params,
            jnp.arange(steps),
            optimizer=optimizer,
            steps=steps,
            minibatched=True,
            mask=adapts,
            return_path=True,
            hvp=hvp,
            remat=remat,
        )

    def meta_grad(params: MamlPPParams, episode: Episode, key: jax.Array) -> tuple[MamlPPParams, Metrics]:
        del key
        check_learnable(episode)
        check_outputs(model, at_step(params.params, jnp.array(0)), *episode)
        now, evaluate = params.outer_step.value, with_metrics(task.scored_loss_fn, has_aux=True)

        def query(point: Params, step: jax.Array) -> tuple[jax.Array, Metrics]:
            return evaluate(at_step(point, step), episode.query)

        def all_steps(path: Params, final: jax.Array) -> jax.Array:
            weights = multi_step_weights(now // epoch, steps=steps, epochs=multi_step_epochs)
            between = jax.tree.map(lambda leaf: leaf[1:-1], path)
            losses = jax.lax.map(jax.checkpoint(lambda at: query(*at)[0]), (between, jnp.arange(steps - 1)))
            return (weights[:-1] @ losses + weights[-1] * final).astype(final.dtype)

        def meta_loss(learned: tuple[Params, Params], first_order: bool) -> tuple[jax.Array, Metrics]:
            path = run(MamlPPParams(*learned, params.outer_step), episode.support, first_order).path
            final, metrics = query(_last(path), jnp.array(steps - 1))
            if multi_step_epochs and steps > 1:
                annealing = now < epoch * multi_step_epochs
                final = jax.lax.cond(annealing, all_steps, lambda path, final: final, path, final)
            return final, {**metrics, "meta_loss": final}

        def gradient(first_order: bool) -> Callable[[Any], Any]:
            return functools.partial(outer_gradient, lambda learned: meta_loss(learned, first_order))

        learned = (params.params, params.rates)
        if first_order_epochs:
            early = now < epoch * first_order_epochs
            (of_params, of_rates), metrics = jax.lax.cond(early, gradient(True), gradient(False), learned)
        else:
            (of_params, of_rates), metrics = gradient(False)(learned)
        return MamlPPParams(of_params, of_rates, Replacement(now + 1)), metrics

    def predict(params: MamlPPParams, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        del key
        last = at_step(run(params, support).params, jnp.array(steps - 1))
        check_outputs(model, last, support)
        return model.apply(last, query_x)

    def predict_path(params: MamlPPParams, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        del key
        norms = jnp.maximum(jnp.arange(steps + 1) - 1, 0)
        found = run(params, support)
        path = found.path
        check_outputs(model, at_step(found.params, jnp.array(steps - 1)), support)
        return jax.lax.map(lambda at: model.apply(at_step(*at), query_x), (path, norms))

    return MetaLearner(init, meta_grad, predict, predict_path)


def _last(path: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf[-1], path)


def _check(steps: int, inner_lr: float, epoch: int, multi_step_epochs: int, first_order_epochs: int) -> None:
    check_inner_loop(optax.identity(), steps, least=1)
    if not inner_lr > 0:
        raise ValueError(f"inner_lr must be positive, but is {inner_lr}")
    least = {"epoch": (epoch, 1), "multi_step_epochs": (multi_step_epochs, 0)}
    for name, (value, bound) in {**least, "first_order_epochs": (first_order_epochs, 0)}.items():
        if value < bound:
            raise ValueError(f"{name} must be {bound} or more, but is {value}")
