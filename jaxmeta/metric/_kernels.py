"""What the metric family is made of: class sums, distances between embeddings, and the sum over labels.

    P(y | x, S) = sum_i k(x, x_i) y_i        (Huisman, van Rijn, Plaat 2021, arXiv:2010.03522)

| | references x_i | k(x, x_i) |
|---|---|---|
| `matching` | the support embeddings | softmax over i of the cosine |
| `prototypical` | the mean embedding of each class | softmax over i of minus the distance |
| `relation` | the sum of each class's feature maps | the relation module's score |
| `siamese` | the support embeddings | probability that both show one class; best image of each class alone |

Everything is computed with log k: a kernel far below the largest stays a number and keeps its derivative.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Distance = Callable[[jax.Array, jax.Array], jax.Array] | Literal["squared_euclidean", "cosine"]


def label_sum(log_kernel: jax.Array, labels: jax.Array | None, ways: int) -> jax.Array:
    """The logarithm of P(y = c | x, S) = sum_i k(x, x_i) [y_i = c], for every class.

    Args:
        log_kernel: log k(x, x_i) `[queries, references]`.
        labels: class of each reference `[references]`, in [0, ways); None where reference c stands for class c.
        ways: number of classes.

    Returns:
        `[queries, ways]`; minus infinity for a class that no reference belongs to.

    >>> label_sum(jnp.log(jnp.array([[0.2, 0.3, 0.5]])), jnp.array([0, 1, 0]), 2).round(4)
    Array([[-0.3567, -1.204 ]], dtype=float32)
    """
    if labels is None:
        return log_kernel
    member = class_members(labels, ways)
    found = jnp.any(member, axis=1)
    # An absent class takes a finite sum first: a logarithm of nothing would poison the derivative of the others.
    among = jnp.where(found[:, None], member, True)
    sums = jax.nn.logsumexp(log_kernel[:, None, :], axis=-1, where=among[None])
    return jnp.where(found, sums, -jnp.inf)


def class_members(labels: jax.Array, ways: int) -> jax.Array:
    """Which examples belong to which class: `[ways, n]`, true where label i is c."""
    return jnp.arange(ways)[:, None] == labels[None, :]


def class_means(values: jax.Array, labels: jax.Array, ways: int) -> tuple[jax.Array, jax.Array]:
    """The mean of each class's values `[n, d]` and its number of examples: `([ways, d], [ways])`.

    A class without examples gets the mean of all. No prediction sees it, but distances from it are computed, and have
    to be numbers: some, such as the relative entropy, are not at 0.

    >>> means, counts = class_means(jnp.array([[1.0], [2.0], [6.0]]), jnp.array([0, 1, 0]), 3)
    >>> means.tolist(), counts.tolist()
    ([[3.5], [2.0], [3.0]], [2, 1, 0])
    """
    sums, counts = class_sums(values, labels, ways)
    means = sums / jnp.maximum(counts, 1)[:, None]
    return jnp.where(counts[:, None] > 0, means, values.mean(0)), counts


def class_sums(values: jax.Array, labels: jax.Array, ways: int) -> tuple[jax.Array, jax.Array]:
    """The sum of each class's values `[n, ...]` and its number of examples: `([ways, ...], [ways])`.

    >>> sums, counts = class_sums(jnp.array([[1.0], [2.0], [4.0]]), jnp.array([0, 1, 0]), 2)
    >>> sums.tolist(), counts.tolist()
    ([[5.0], [2.0]], [2, 1])
    """
    member = class_members(labels, ways)
    return jnp.tensordot(member.astype(values.dtype), values, axes=1), member.sum(1)


def unit(x: jax.Array) -> jax.Array:
    """Rows `[..., d]` scaled to length 1. A row of zeros stays one, with derivative zero.

    So does a row so short (2e-13 in single precision) that its derivative, which takes the length's third power, would
    overflow on the way.

    >>> unit(jnp.array([[-2.0, 0.0], [0.0, 0.0]])).tolist()
    [[-1.0, 0.0], [0.0, 0.0]]
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # in half precision, much would be so short
    squares = jnp.sum(wide**2, axis=-1, keepdims=True)
    positive = squares > float(jnp.finfo(wide.dtype).tiny) ** (2 / 3)
    found = jnp.where(positive, wide * jax.lax.rsqrt(jnp.where(positive, squares, 1.0)), 0.0)
    return found.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else found


def cosine_similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    """The cosine between all rows of a `[n, d]` and of b `[m, d]`: `[n, m]`. It is 0 with a row of zeros.

    >>> cosine_similarity(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0, 0.0]]
    """
    return unit(a) @ unit(b).T


def squared_euclidean(a: jax.Array, b: jax.Array) -> jax.Array:
    """The squared distance between all rows of a `[n, d]` and of b `[m, d]`: `[n, m]`, never negative.

    It is |a|^2 - 2 a^T b + |b|^2 about the mean of b's rows, so that what all have in common does not cancel digits, in
    single precision at least: squares leave the range of half precision, and their differences its digits.

    >>> squared_euclidean(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [1.0, 0.0]])).tolist()
    [[25.0, 1.0]]
    """
    wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    a, b = a.astype(wide), b.astype(wide)
    # The distance does not depend on the centre, and what rounding leaves below 0 still has its derivative.
    centre = jax.lax.stop_gradient(b.mean(0))
    a, b = a - centre, b - centre
    products = jnp.matmul(a, b.T, precision="highest")
    found = jnp.sum(a**2, axis=1)[:, None] - 2 * products + jnp.sum(b**2, axis=1)[None, :]
    return found - jax.lax.stop_gradient(jnp.minimum(found, 0))


def bregman(phi: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The Bregman distance of a strictly convex function, d(z, c) = phi(z) - phi(c) - (z - c)^T grad phi(c).

    The mean of a class is the point with the least total distance of this kind from its examples, so it is the right
    prototype for all of them. phi(z) = z^T z gives the squared Euclidean distance.

    Args:
        phi: `[d] -> scalar`, differentiable.

    Returns:
        `(z [d], c [d]) -> scalar`, a `distance` for `prototypical`.

    >>> distance = bregman(lambda z: z @ z)
    >>> float(distance(jnp.array([1.0, 2.0]), jnp.array([4.0, 6.0])))
    25.0

    References:
        Banerjee, Merugu, Dhillon, Ghosh 2005, JMLR 6; Snell, Swersky, Zemel 2017, arXiv:1703.05175, section 2.3.
    """

    def distance(z: jax.Array, c: jax.Array) -> jax.Array:
        value, slope = jax.value_and_grad(phi)(c)
        return phi(z) - value - (z - c) @ slope

    return distance


def distances(distance: Distance, queries: jax.Array, references: jax.Array) -> jax.Array:
    """The distance of every query `[q, d]` from every reference `[r, d]`: `[q, r]`."""
    if distance == "squared_euclidean":
        return squared_euclidean(queries, references)
    if distance == "cosine":
        return 1.0 - cosine_similarity(queries, references)
    assert callable(distance)
    one = jax.eval_shape(distance, *(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in (queries, references)))
    if getattr(one, "shape", None) != ():
        raise ValueError(
            f"distance must map two vectors [d] to a scalar, but maps {queries.shape[1:]} and {references.shape[1:]} "
            f"to {jax.tree.map(lambda leaf: leaf.shape, one)}"
        )
    return jax.vmap(jax.vmap(distance, (None, 0)), (0, None))(queries, references)


def check_distance(distance: Distance) -> None:
    """Raises if a distance is neither known by name nor a function of two vectors."""
    for function, name in ((squared_euclidean, "squared_euclidean"), (cosine_similarity, "cosine")):
        if distance is function:
            raise ValueError(
                f'distance={function.__name__} is of all rows of two matrices: for that distance say distance="{name}"'
            )
    if not callable(distance) and distance not in ("squared_euclidean", "cosine"):
        raise ValueError(
            f'distance must be "squared_euclidean", "cosine" or a function (z [d], c [d]) -> scalar, such as '
            f"jaxmeta.metric.bregman makes, but is {distance!r}"
        )


def check_temperature(temperature: float) -> None:
    """Raises if a temperature is not positive."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, but is {temperature}")
