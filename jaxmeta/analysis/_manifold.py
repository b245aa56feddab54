"""Reptile as descent on the distance to the tasks' solutions, on tasks whose solutions are known in closed form.

A task of fewer equations than unknowns, A w = b, is solved by a whole affine manifold. The nearest solution to theta is

    P(theta) = theta - A^+ (A theta - b),

and P(theta) - theta is the steepest descent of half the squared distance. Reptile's displacement by gradient descent
on |A w - b|^2 / (2 n) lies in the same row space, and tends to theta - P(theta) as the number of inner steps grows:
along a singular direction of A with singular value s it has come the share 1 - (1 - alpha s^2 / n)^k of the way.
"""

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxmeta.inner import adapt


def nearest_solution(a: jax.Array, b: jax.Array, params: jax.Array) -> jax.Array:
    """The solution of A w = b that is nearest to a point.

    Args:
        a: A, `[n, d]` with n <= d; where it lacks rank, the nearest of those that solve best is found.
        b: right-hand sides `[n]`.
        params: the point `[d]`.

    Returns:
        `[d]`.

    Raises:
        ValueError: the shapes do not fit, or there are more equations than unknowns.

    >>> nearest_solution(jnp.array([[1.0, 1.0]]), jnp.array([2.0]), jnp.zeros(2)).round(5).tolist()
    [1.0, 1.0]
    """
    if a.ndim != 2 or a.shape[0] > a.shape[1] or b.shape != a.shape[:1] or params.shape != a.shape[1:]:
        raise ValueError(
            f"a must be [n, d] with n <= d, b [n] and params [d], but have shapes {a.shape}, {b.shape}, {params.shape}"
        )
    return params - jnp.linalg.lstsq(a, a @ params - b)[0]


def projection_angles(a: jax.Array, b: jax.Array, params: jax.Array, *, inner_lr: float, steps: int) -> jax.Array:
    """The angle between Reptile's displacement and the way to the nearest solution, after 1 .. steps inner steps.

    Args:
        a: A, of full row rank, `[n, d]` with n <= d.
        b: right-hand sides `[n]`.
        params: theta, `[d]`, not a solution.
        inner_lr: alpha, of gradient descent on |A w - b|^2 / (2 n); less than 2 n over A's largest singular value
            squared, or it diverges.
        steps: the most inner steps.

    Returns:
        Angles in radians, `[steps]`.

    Raises:
        ValueError: `steps` is less than 1, `inner_lr` is not positive, or as `nearest_solution`.
        FloatingPointError: theta is a solution, so that there is no way to it, or the steps diverge; not under
            `jax.jit`, where angles are then not numbers.

    >>> a, b = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]), jnp.array([1.0, 1.0])
    >>> angles = projection_angles(a, b, jnp.zeros(3), inner_lr=1.0, steps=40)
    >>> bool((jnp.diff(angles) < 0).all()), bool(angles[-1] < 0.01)
    (True, True)

    References:
        Nichol, Achiam, Schulman 2018, arXiv:1803.02999, section 5.2.
    """
    if steps < 1 or not inner_lr > 0:
        raise ValueError(f"steps={steps} and inner_lr={inner_lr} must be at least 1 and positive")
    way = params - nearest_solution(a, b, params)

    def loss_fn(w: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    adapted = adapt(loss_fn, params, (a, b), optimizer=optax.sgd(inner_lr), steps=steps, return_path=True)

    def angle(end: jax.Array) -> jax.Array:
        went = params - end
        across = went - way * (went @ way) / (way @ way)
        return jnp.arctan2(jnp.linalg.norm(across), went @ way / jnp.linalg.norm(way))

    angles = jax.vmap(angle)(adapted.path[1:])
    if not isinstance(angles, Tracer) and not jnp.isfinite(angles).all():
        raise FloatingPointError(
            f"there are no angles: params is a solution already, or descent at inner_lr={inner_lr} diverges"
        )
    return angles
