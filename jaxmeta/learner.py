"""The contract of every method: three pure functions over one episode.

params            <- init(key, episode)
grads, metrics    <- meta_grad(params, episode, key)
predictions       <- predict(params, support, query_x, key)
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxmeta.episode import Batch, Episode

Params = Any
Metrics = dict[str, jax.Array]
Predict = Callable[[Params, Batch, jax.Array, jax.Array], jax.Array]


class Model(Protocol):
    """A network as a pair of pure functions. Every stateless Flax Linen module is one."""

    def init(self, key: jax.Array, x: jax.Array, /) -> Params:
        """Parameters for inputs like x `[n, ...]`."""
        ...

    def apply(self, params: Params, x: jax.Array, /) -> Any:
        """Logits `[n, ways]` or values `[n, d]` for inputs x `[n, ...]`."""
        ...


class Comparison(NamedTuple):
    """How a method that classifies by P(y | x, S) = sum_i k(x, x_i) y_i came to its prediction.

    Attributes:
        support: embeddings of the support examples `[s, ...]`.
        queries: embeddings of the queries `[q, ...]`.
        references: what queries are compared with, the x_i `[r, ...]`: the support embeddings, or one for each class.
        labels: class of each reference `[r]`; None where reference c stands for class c.
        log_kernel: log k(x, x_i) `[q, r]`.
    """

    support: jax.Array
    queries: jax.Array
    references: jax.Array
    labels: jax.Array | None
    log_kernel: jax.Array


class MetaLearner(NamedTuple):
    """Something that learns to learn: pure functions over one unbatched episode.

    Attributes:
        init: `(key, episode) -> params`, the meta-parameters, any pytree. Of the episode it uses the
            shapes, and checks the labels where they are known.
        meta_grad: `(params, episode, key) -> (grads, metrics)`. `grads` has the structure of `params`
            and is what the outer optimiser descends; it need not be the gradient of anything (Reptile's
            is not). Where `params` has a `Carried`, `grads` has the `Replacement`. `metrics` is a flat dict of
            scalars with at least `loss`.
        predict: `(params, support, query_x, key) -> predictions`: logits `[q, ways]` or values `[q, d]`.
        predict_path: like `predict`, but after 0, 1, .., K adaptation steps: `[K + 1, q, ...]`, the last
            being `predict`'s. None for methods that do not adapt in steps.
        compare: `(params, support, query_x, key) -> Comparison`: how `predict` came about. None for methods that do
            not classify by comparison.
    """

    init: Callable[[jax.Array, Episode], Params]
    meta_grad: Callable[[Params, Episode, jax.Array], tuple[Params, Metrics]]
    predict: Predict
    predict_path: Predict | None = None
    compare: Callable[[Params, Batch, jax.Array, jax.Array], Comparison] | None = None


class Carried(NamedTuple):
    """A part of meta-parameters that no optimiser descends: it is carried along and replaced at every outer step.

    What an inner optimiser remembers from task to task is one. `outer_step` replaces it by the `Replacement` that
    stands in its place among the gradients. The two are different pytrees, so that an outer step which forgets the
    difference fails, instead of descending a memory.

    Attributes:
        value: any pytree of numeric arrays.
    """

    value: Any


class Replacement(NamedTuple):
    """The next value of a `Carried`, in its place among the gradients.

    Attributes:
        value: a pytree with the structure of the `Carried`'s; over a meta-batch, its mean over the tasks.
    """

    value: Any


def check_parts(name: str, given: Any, parts: tuple[str, ...], kind: str) -> None:
    """Raises if an argument of that name is not of that kind, which has those functions.

    >>> check_parts("learner", 1, ("init", "meta_grad"), "a MetaLearner")
    Traceback (most recent call last):
      ...
    TypeError: learner must be a MetaLearner, with init and meta_grad, but is of type int
    """
    if not all(callable(getattr(given, part, None)) for part in parts):
        raise TypeError(f"{name} must be {kind}, with {' and '.join(parts)}, but is of type {type(given).__name__}")


def check_int(name: str, given: Any) -> int:
    """An argument of that name as an int; raises if it is none.

    >>> check_int("steps", 2.0)
    Traceback (most recent call last):
      ...
    TypeError: steps must be an int, but is 2.0
    """
    if not hasattr(given, "__index__") or isinstance(given, bool):
        raise TypeError(f"{name} must be an int, but is {given!r}")
    return operator.index(given)


def descended(params: Params) -> Params:
    """The part of meta-parameters or gradients that an outer optimiser descends: all but what is `Carried`.

    >>> descended({"weights": 1.0, "memory": Carried(2.0)})
    {'memory': MaskedNode(), 'weights': 1.0}
    """
    return jax.tree.map(lambda node: optax.MaskedNode() if _is_carried(node) else node, params, is_leaf=_is_carried)


def carried(params: Params) -> list[Any]:
    """The values of all parts of meta-parameters that are `Carried`.

    >>> carried({"weights": 1.0, "memory": Carried(2.0)})
    [2.0]
    """
    return [node.value for node in jax.tree.leaves(params, is_leaf=_is_carried) if isinstance(node, Carried)]


def outer_step(
    optimizer: optax.GradientTransformation,
    params: Params,
    grads: Params,
    opt_state: optax.OptState,
    *,
    value: jax.Array | None = None,
) -> tuple[Params, optax.OptState]:
    """One outer step: descends the gradients, and replaces what is `Carried`.

    Where nothing is carried this is `optimizer.update` followed by `optax.apply_updates`.

    Args:
        optimizer: the outer optimiser, any Optax transformation but for those that search a line.
        params: meta-parameters.
        grads: what `batch_meta_grad` returned for them.
        opt_state: the outer optimiser's state, at first `optimizer.init(descended(params))`.
        value: the loss at `params`, for optimisers that want it, such as `optax.contrib.reduce_on_plateau`.

    Returns:
        `(params, opt_state)` after the step.

    >>> import optax
    >>> params = {"weights": jnp.array(1.0), "memory": Carried(jnp.array(2.0))}
    >>> grads = {"weights": jnp.array(3.0), "memory": Replacement(jnp.array(5.0))}
    >>> optimizer = optax.sgd(0.1)
    >>> moved, _ = outer_step(optimizer, params, grads, optimizer.init(descended(params)))
    >>> round(float(moved["weights"]), 4), float(moved["memory"].value)
    (0.7, 5.0)
    """
    weights = descended(params)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(descended(grads), opt_state, weights, **({} if value is None else {"value": value}))
    moved = optax.apply_updates(weights, updates)

    def join(before: Any, after: Any, grad: Any) -> Any:
        if not _is_carried(before):
            return after
        return Carried(jax.tree.map(_as_before, before.value, grad.value))

    return jax.tree.map(join, params, moved, grads, is_leaf=_is_carried), opt_state


def _as_before(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new value in the type of the old: a mean of equal integers is that integer, whatever its last bit says."""
    return (jnp.rint(new) if jnp.issubdtype(old.dtype, jnp.integer) else new).astype(old.dtype)


def _is_carried(node: Any) -> bool:
    return isinstance(node, Carried | Replacement)
