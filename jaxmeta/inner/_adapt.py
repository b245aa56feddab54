"""The inner loop as one pure function.

    phi_0 = theta,    phi_{j+1} = phi_j + U(grad L(phi_j; B_j)),    j = 0 .. K-1

| symbol | name | | symbol | name |
|---|---|---|---|---|
| theta | `params` | | L | `loss_fn` |
| phi_K | `Adapted.params` | | B_j | `batch`, or its j-th slice when `minibatched` |
| U | `optimizer` | | K | `steps` |

It is one `jax.lax.scan`, but for K = 1, so its compile time does not grow with K, and everything in it can be
differentiated: `jax.grad` through `adapt` is exact second-order MAML. What that costs is up to two arguments that do
not change its value: `hvp`, how the inner gradient is differentiated again, and `remat`, what is recomputed.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta._gradient import check_varies_alike
from jaxmeta.inner._partition import merge, partition
from jaxmeta.inner._remat import Remat, choose_levels, scan
from jaxmeta.inner._second_order import Hvp, value_and_grad
from jaxmeta.learner import check_int


class Adapted(NamedTuple):
    """What an inner loop returns.

    Attributes:
        params: the adapted parameters phi_K, with the structure of the parameters that came in.
        opt_state: the inner optimiser's state after the last step.
        losses: `[steps]`, the loss that each step descended: L(phi_j; B_j), before step j.
        path: the parameters phi_0 .. phi_K with a leading axis of `steps + 1`, or None if not asked for.
        aux: what `loss_fn` returned beside each of `losses`, with a leading axis of `steps`; None without `has_aux`.
    """

    params: Any
    opt_state: optax.OptState
    losses: jax.Array
    path: Any = None
    aux: Any = None


def adapt(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    minibatched: bool = False,
    mask: Any = None,
    has_aux: bool = False,
    opt_state: optax.OptState | None = None,
    return_path: bool = False,
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> Adapted:
    """Takes `steps` gradient steps on a task's loss.

    Args:
        loss_fn: `(params, batch) -> scalar`, or `-> (scalar, aux)` with `has_aux`. Pure; any model, any loss.
        params: where to start, any pytree of floating-point arrays.
        batch: what `loss_fn` is given at every step, any pytree.
        optimizer: any Optax transformation, for instance `optax.sgd(0.01)`. To differentiate through it, its update
            must be differentiable where gradients are exactly zero: `optax.adam` is not with its default
            `eps_root=0`, give it 1e-8; nor is `optax.clip_by_global_norm`, for which there is
            `jaxmeta.clip_by_global_norm`. `maml_grad` refuses such optimisers.
        steps: the number of gradient steps, 0 or more.
        minibatched: every array of `batch` has a leading axis of length `steps`, and step j sees slice j.
        mask: which parameters adapt: a pytree of bools, a function from parameters to one (such as
            `mask_by_path` makes), or None for all. The others are passed through untouched; they stay inputs
            of the loss, so they still receive meta-gradients.
        has_aux: `loss_fn` also returns a pytree of arrays, which is kept for each step; its derivatives are zero.
        opt_state: the inner optimiser's state to start from; None for a fresh one.
        return_path: also return the parameters before, between and after the steps.
        hvp: how inner gradients are differentiated again. `"forward_over_reverse"`: by a rule that keeps nothing of a
            step but what the optimiser is given: the parameters, its own state, and the gradient where the update is
            not linear in it. The result can be differentiated in reverse any number of times, and forward after that
            (`jax.hessian`), but not forward at once: for `jax.jvp` and `jax.jacfwd` take `"reverse_over_reverse"`,
            which is as JAX does on its own: it keeps every step's intermediates, and with few steps may be faster for
            it, a Conv4 with K = 5 by 5 % on CPU (`benchmarks/peers/compare_peers.py`, with AVX-512). Take that too
            for a loss with a hand-written derivative that is no true gradient, as of a straight-through estimator, a
            spiking unit, reversed or clipped gradients, and where a loss with a collective is mapped over tasks inside
            the derivative. None for the first from two steps on, and the second with one, where it keeps as little.
        remat: levels of checkpoints. 0 keeps every step's residuals; 1 runs each step again; 2 runs segments of
            sqrt(K) steps again, and n keeps about n K^(1/n) inner states. `"auto"`: the fewest with which what is
            kept takes no more memory than one step does on its own.

    Returns:
        An `Adapted`.

    Raises:
        TypeError: `optimizer` is no Optax transformation, `steps` no int, or `loss_fn` returns no array, or with
            `has_aux` no pair.
        ValueError: `steps` is negative, a mini-batched array lacks the step axis, `loss_fn` does not return
            a scalar, the mask does not fit, or `hvp` or `remat` is unknown; or, inside `jax.shard_map`, the loss
            differs between devices and `params` do not: JAX would sum the inner gradients over devices.

    >>> import jax.numpy as jnp, optax
    >>> loss = lambda w, target: jnp.sum((w - target) ** 2)
    >>> adapted = adapt(loss, jnp.array(0.0), jnp.array(1.0), optimizer=optax.sgd(0.25), steps=2)
    >>> float(adapted.params), adapted.losses.tolist()
    (0.75, [1.0, 0.25])

    References:
        Finn, Abbeel, Levine 2017, arXiv:1703.03400, equation 1; Kemaev et al. 2025, arXiv:2505.00793 (mixed-mode
        differentiation).
    """
    check_inner_loop(optimizer, steps)
    check_minibatches(batch, steps, minibatched)
    steps = operator.index(steps)
    adapting, staying = partition(params, mask)
    adapting = jax.tree.map(jnp.asarray, adapting)
    hvp = hvp or ("forward_over_reverse" if steps > 1 else "reverse_over_reverse")
    optimizer = optax.with_extra_args_support(optimizer)
    state = optimizer.init(adapting) if opt_state is None else opt_state

    def objective(adapting: Any, current: Any) -> tuple[jax.Array, Any]:
        loss, aux = split_aux(loss_fn(merge(adapting, staying), current), has_aux)
        if steps:
            check_varies_alike(loss, adapting)
        return _scalar(loss), aux

    def step(carry: tuple[Any, optax.OptState], step_batch: Any) -> tuple[tuple[Any, optax.OptState], Any]:
        adapting, state = carry
        current = batch if step_batch is None else step_batch
        (loss, aux), grads = value_and_grad(lambda part: objective(part, current), adapting, hvp)

        # Of the optimiser's own arithmetic, too, nothing is kept but what goes in.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def update(grads: Any, state: optax.OptState, adapting: Any, loss: jax.Array) -> tuple[Any, optax.OptState]:
            # Some transformations, like Polyak's step or a line search, want the loss too, and a way to evaluate it.
            extra = {"value": loss, "grad": grads, "value_fn": lambda part: objective(part, current)[0]}
            updates, state = optimizer.update(grads, state, adapting, **extra)
            return optax.apply_updates(adapting, updates), state

        moved, state = update(grads, state, adapting, loss)
        return (moved, state), (loss, aux, moved if return_path else None)

    first = jax.tree.map(lambda leaf: leaf[0], batch) if minibatched and steps else batch
    step_residuals = hvp == "reverse_over_reverse"
    levels = choose_levels(
        remat,
        lambda carry: jax.value_and_grad(objective, has_aux=True)(carry[0], first),
        (adapting, state),
        length=steps,
        step_residuals=step_residuals,
    )
    (adapting, state), (losses, aux, moved) = scan(
        step,
        (adapting, state),
        batch if minibatched else None,
        length=steps,
        levels=levels,
        step_residuals=step_residuals,
    )
    path = _path(params, moved, staying, steps) if return_path else None
    return Adapted(merge(adapting, staying), state, losses, path, aux)


def _path(params: Any, moved: Any, staying: Any, steps: int) -> Any:
    """Joins the start to the recorded steps, and repeats what did not adapt: `[steps + 1, ...]`."""
    params = jax.tree.map(jnp.asarray, params)
    stays = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, *jnp.shape(leaf))), staying)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), params, merge(moved, stays))


def check_inner_loop(optimizer: Any, steps: int, name: str = "steps", least: int = 0) -> None:
    """Raises if an inner loop could not run: `steps` is too few, or `optimizer` is no Optax transformation."""
    if check_int(name, steps) < least:
        raise ValueError(f"{name} must be {least} or more, but is {steps}")
    if not callable(getattr(optimizer, "init", None)) or not callable(getattr(optimizer, "update", None)):
        raise TypeError(
            f"the inner optimizer must be an Optax transformation, such as optax.sgd(0.1), but is {optimizer!r}"
        )


def check_minibatches(batch: Any, steps: int, minibatched: bool) -> None:
    """Raises if a mini-batched array lacks the leading axis of steps."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if minibatched and any(shape[:1] != (steps,) for shape in shapes):
        raise ValueError(
            f"minibatched=True wants a leading axis of length steps={steps} on every array of batch, "
            f"but their shapes are {shapes}"
        )


def split_aux(found: Any, has_aux: bool) -> tuple[Any, Any]:
    """What a loss function returned as `(loss, aux)`; None for aux where it returns none."""
    if not has_aux:
        return found, None
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(f"has_aux=True wants loss_fn to return (loss, aux), but it returned {found!r}")
    return found


def _scalar(loss: Any) -> jax.Array:
    if isinstance(loss, tuple | dict):
        raise TypeError(
            f"loss_fn must return a scalar, but returned a {type(loss).__name__}; has_aux=True takes metrics"
        )
    if jnp.shape(loss) != ():
        raise ValueError(f"loss_fn must return a scalar, but returned an array of shape {jnp.shape(loss)}")
    return loss
