"""Inner optimisers that can be differentiated, and a check for those that cannot."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxmeta._precision import widened

_FOUND: dict[Any, str] = {}  # what is wrong with the optimisers that were asked about lately
_MOST_FOUND = 128
_LOOP = (
    "cannot be differentiated in reverse, because it searches in a loop: take one that does not, such as optax.sgd, or "
    "a first-order method"
)
_NO_SLOPE = (
    "has no finite derivative where gradients are zero, and meta-gradients would be NaN: give optax.adam and its kin "
    "eps_root=1e-8 (or 1e-4 with float16, in which 1e-8 is zero), and take jaxmeta.clip_by_global_norm for Optax's"
)
_NO_RATIO = (
    "has no finite derivative where a parameter's gradients are zero and itself is not, and meta-gradients would be "
    "NaN: it is scaled by the ratio of their sizes, which wants an eps or a min_norm, such as optax.lars(.., eps=1e-8)"
)


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
        square = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(widened(updates)))
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
        An Optax transformation, differentiable in `rates`. Its `update` raises a `ValueError` for gradients of another
        structure than theirs.

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
    rates = jax.tree.map(jnp.asarray, rates)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        now = (
            jax.tree.map(lambda rate: rate.at[state].get(mode="fill", fill_value=jnp.nan), rates) if per_step else rates
        )
        if jax.tree.structure(now) != jax.tree.structure(updates):
            raise ValueError(
                "rates must be a tree of arrays like that of the parameters, but differ from it in structure; "
                "optax.sgd takes one rate for all"
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
    shapes = tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves)
    if complaint := _complaint(optimizer, treedef, shapes):
        raise ValueError(f"the inner optimizer's update {complaint}")


def _complaint(*key: Any) -> str:
    """`_probe`, remembered but for optimisers that hold values of a trace or cannot be hashed."""
    try:
        if key in _FOUND:
            return _FOUND[key]
    except TypeError:
        return _probe(*key)[0]
    complaint, lasting = _probe(*key)
    if lasting:
        if len(_FOUND) >= _MOST_FOUND:
            _FOUND.clear()
        _FOUND[key] = complaint
    return complaint


def _probe(*key: Any) -> tuple[str, bool]:
    """What is wrong with an optimiser, or nothing, and whether all that it holds is known."""
    try:
        of_grads, of_params, known = _slopes_are_finite(*key)
    except Exception as error:
        # Of one that cannot be asked so nothing is known; if it cannot be used either, that will be told where it is.
        return (_LOOP if "Reverse-mode differentiation does not work" in str(error) else ""), False
    return ("" if of_grads and of_params else _NO_SLOPE if not of_grads else _NO_RATIO), known


def _slopes_are_finite(optimizer: Any, treedef: Any, shapes: tuple[tuple[Any, str], ...]) -> tuple[bool, bool, bool]:
    """Of an update at gradients of zero: with respect to them, to parameters, and whether all constants are known."""
    update = optax.with_extra_args_support(optimizer).update

    def total(grads: Any, params: Any) -> jax.Array:
        state = optimizer.init(params)
        updates, _ = update(grads, state, params, value=jnp.zeros(()), grad=grads, value_fn=lambda p: jnp.zeros(()))
        return sum((leaf.astype(float).sum() for leaf in jax.tree.leaves(updates)), jnp.zeros(()))

    def slopes_and_state(grads: Any, params: Any) -> Any:  # the state, so that all that the optimiser holds is seen
        return jax.grad(total, (0, 1))(grads, params), optimizer.init(params)

    with jax.ensure_compile_time_eval():
        zeros, ones = (treedef.unflatten([make(*shape) for shape in shapes]) for make in (jnp.zeros, jnp.ones))
    traced = jax.make_jaxpr(slopes_and_state)(zeros, zeros)
    unknown = [isinstance(c, Tracer) for c in traced.consts]
    with jax.ensure_compile_time_eval():
        consts = [jnp.full(jnp.shape(c), 0.1, c.dtype) if u else c for c, u in zip(traced.consts, unknown, strict=True)]
        run = jax.jit(jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, consts)))
        found = [run(*jax.tree.leaves((zeros, params))) for params in (zeros, ones)]
        of_grads, of_params = (
            all(bool(jnp.isfinite(slope).all()) for outputs in found for slope in outputs[part])
            for part in (slice(len(shapes)), slice(len(shapes), 2 * len(shapes)))
        )
    return of_grads, of_params, not any(unknown)
