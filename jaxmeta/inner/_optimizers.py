"""Inner optimisers that can be differentiated, and a check for those that cannot."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

_FOUND: dict[Any, bool] = {}  # which optimisers can be differentiated, of those asked about lately
_MOST_FOUND = 128


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with a derivative where all gradients are zero.

    Scales gradients whose Euclidean norm over all leaves exceeds `max_norm` down to it.

    Args:
        max_norm: the largest norm to let through, positive.

    Returns:
        An Optax transformation.

    Raises:
        ValueError: `max_norm` is not positive.

    >>> clip = clip_by_global_norm(1.0)
    >>> clipped, _ = clip.update(jnp.array([3.0, 4.0]), clip.init(jnp.zeros(2)))
    >>> [round(float(entry), 4) for entry in clipped]
    [0.6, 0.8]
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, but is {max_norm}")

    def clip(updates: Any, params: Any) -> Any:
        del params
        square = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(updates))
        exceeds = square > max_norm**2
        # Where nothing is clipped the root is not taken, so that its derivative at zero does not come in.
        factor = jnp.where(exceeds, max_norm / jnp.sqrt(jnp.where(exceeds, square, 1.0)), 1.0)
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, updates)

    return optax.stateless(clip)


def sgd(rates: Any, *, per_step: bool = False) -> optax.GradientTransformation:
    """Gradient descent whose rates are a pytree, and may themselves be learned.

        phi <- phi - rates * grad L(phi)

    Args:
        rates: a pytree with the structure of what adapts, of arrays that broadcast against it.
        per_step: every array of `rates` has a leading axis of steps, of which step j takes slice j; beyond its end
            rates are NaN.

    Returns:
        An Optax transformation, differentiable in `rates`.

    >>> optimizer = sgd({"w": jnp.array([0.1, 0.2])}, per_step=True)
    >>> state = optimizer.init({"w": jnp.array(1.0)})
    >>> first, state = optimizer.update({"w": jnp.array(1.0)}, state)
    >>> second, state = optimizer.update({"w": jnp.array(1.0)}, state)
    >>> round(float(first["w"]), 4), round(float(second["w"]), 4)
    (-0.1, -0.2)

    References:
        Li, Zhou, Chen, Li 2017, arXiv:1707.09835 (a rate for each weight); Antoniou, Edwards, Storkey 2019,
        arXiv:1810.09502 (one for each tensor and step).
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        now = (
            jax.tree.map(lambda rate: rate.at[state].get(mode="fill", fill_value=jnp.nan), rates) if per_step else rates
        )
        return jax.tree.map(lambda rate, grad: -rate * grad, now, updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def check_differentiable(optimizer: optax.GradientTransformation, params: Any) -> None:
    """Raises if differentiating an optimiser's update where all gradients are zero gives NaN, or cannot be done.

    Inner gradients do become exactly zero, behind ReLUs that are off or on tasks that are solved. What is not known
    yet, such as a learned rate, is taken as 0.1.

    Args:
        optimizer: any Optax transformation.
        params: what it is to update; structure and shapes matter, values do not: zeros and ones are tried.

    Raises:
        ValueError: the derivative is not finite, or the update holds a loop that has none.
    """
    leaves, treedef = jax.tree.flatten(params)
    full = tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves)
    small = tuple(((1,) * len(shape), dtype) for shape, dtype in full)
    finite = None
    for shapes in (small, full):
        try:
            finite = _is_differentiable(optimizer, treedef, shapes)
            break
        except Exception as error:
            if "Reverse-mode differentiation does not work" in str(error):
                raise ValueError(
                    "the inner optimizer's update cannot be differentiated in reverse, because it searches in a loop: "
                    "take one that does not, such as optax.sgd, or a first-order method"
                ) from error
            # Small arrays may not fit an optimiser; full ones that do not will fail where they are really updated.
    if finite is False:
        raise ValueError(
            "the inner optimizer's update has no finite derivative where gradients are zero, and meta-gradients would "
            "be NaN: give optax.adam and its kin eps_root=1e-8 (or 1e-4 with float16, in which 1e-8 is zero), and take "
            "jaxmeta.clip_by_global_norm for Optax's"
        )


def _is_differentiable(optimizer: Any, treedef: Any, shapes: tuple[tuple[Any, str], ...]) -> bool:
    """`_probe`, remembered but for optimisers with values of a trace in them, which would outlive it."""
    key = (optimizer, treedef, shapes)
    try:
        if key in _FOUND:
            return _FOUND[key]
    except TypeError:  # one that cannot be hashed
        return _probe(*key)[0]
    finite, lasting = _probe(*key)
    if lasting:
        if len(_FOUND) >= _MOST_FOUND:
            _FOUND.clear()
        _FOUND[key] = finite
    return finite


def _probe(optimizer: Any, treedef: Any, shapes: tuple[tuple[Any, str], ...]) -> tuple[bool, bool]:
    """Whether derivatives at gradients of zero are finite, and whether all that the optimiser holds is known."""
    update = optax.with_extra_args_support(optimizer).update

    def total(grads: Any, params: Any) -> jax.Array:
        state = optimizer.init(params)
        updates, _ = update(grads, state, params, value=jnp.zeros(()), grad=grads, value_fn=lambda p: jnp.zeros(()))
        return sum((leaf.astype(float).sum() for leaf in jax.tree.leaves(updates)), jnp.zeros(()))

    with jax.ensure_compile_time_eval():
        zeros, ones = (treedef.unflatten([make(*shape) for shape in shapes]) for make in (jnp.zeros, jnp.ones))
    traced = jax.make_jaxpr(jax.grad(total, (0, 1)))(zeros, zeros)  # some scale an update by the size of its parameter
    unknown = [isinstance(c, Tracer) for c in traced.consts]
    with jax.ensure_compile_time_eval():
        consts = [jnp.full(jnp.shape(c), 0.1, c.dtype) if u else c for c, u in zip(traced.consts, unknown, strict=True)]
        slopes = jax.jit(jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, consts)))
        found = [slope for params in (zeros, ones) for slope in slopes(*jax.tree.leaves((zeros, params)))]
        return all(bool(jnp.isfinite(slope).all()) for slope in found), not any(unknown)
