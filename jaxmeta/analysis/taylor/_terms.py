"""The means that meta-gradients expand into, exactly over a finite pool of mini-batches of one task.

| symbol | name | |
|---|---|---|
| AvgGrad = E[G_a] | `avg_grad` | the direction of joint training |
| AvgGradInner = E[H_a G_b], a != b | `avg_grad_inner` | half the gradient of E[G_a . G_b]: different batches agree |
| Self = E[H_a G_a] | `self_term` | half the gradient of E |G_a|^2 |

G_a and H_a are the gradient and the Hessian of mini-batch a's loss. Every E is the mean over all choices of different
batches from the pool. No Hessian is ever formed: H v is a directional derivative of the gradient, T[u, v] one of H v.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta.analysis.taylor._expansion import WORDS

LossFn = Callable[[Any, Any], jax.Array]


def avg_grad(loss_fn: LossFn, params: Any, batches: Any) -> Any:
    """AvgGrad, the mean gradient E[G_a] of a pool of mini-batches.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where, any pytree of floating-point arrays.
        batches: the pool: a pytree that `loss_fn` accepts a slice of, every array `[n, ...]`.

    Returns:
        A pytree like `params`.

    Raises:
        TypeError: the loss is not a scalar.
        ValueError: the arrays of `batches` disagree on n, or there are none.

    >>> pool = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0]))
    >>> float(avg_grad(lambda w, b: b[0] * (w - b[1]) ** 2, jnp.array(0.0), pool))  # (-2 + 6) / 2
    2.0
    """
    pool_length(batches)

    def mean(p: Any) -> jax.Array:
        losses = jax.vmap(loss_fn, (None, 0))(p, batches)
        if losses.ndim != 1:
            raise TypeError(f"loss_fn must return a scalar, but returns an array of shape {losses.shape[1:]}")
        return losses.mean()

    return jax.grad(mean)(params)


def avg_grad_inner(
    loss_fn: LossFn, params: Any, batches: Any, *, form: Literal["hessian", "agreement"] = "hessian"
) -> Any:
    """AvgGradInner, E[H_a G_b] over pairs of different mini-batches.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where, any pytree of floating-point arrays.
        batches: the pool, every array `[n, ...]`, n >= 2.
        form: how it is computed, not what it is. `"hessian"`: by n Hessian-vector products. `"agreement"`: as half the
            gradient of `gradient_agreement`.

    Returns:
        A pytree like `params`.

    Raises:
        ValueError: `form` is unknown, the arrays of `batches` disagree on n, or n is less than 2.

    >>> pool = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0]))
    >>> loss = lambda w, b: b[0] * (w - b[1]) ** 2
    >>> float(avg_grad_inner(loss, jnp.array(0.0), pool))  # (2 x 6 + 3 x (-2)) / 2
    3.0
    >>> float(avg_grad_inner(loss, jnp.array(0.0), pool, form="agreement"))
    3.0
    """
    n = pool_length(batches, least=2)
    if form == "agreement":
        return jax.tree.map(lambda leaf: leaf / 2, jax.grad(lambda p: gradient_agreement(loss_fn, p, batches))(params))
    if form != "hessian":
        raise ValueError(f'form must be "hessian" or "agreement", but is {form!r}')
    total = jax.tree.map(lambda leaf: n * leaf, avg_grad(loss_fn, params, batches))

    def one(batch: Any) -> Any:
        others = optax.tree.sub(total, jax.grad(loss_fn)(params, batch))
        return hessian_product(loss_fn, params, batch, others)

    return jax.tree.map(lambda leaf: leaf.sum(0) / (n * (n - 1)), jax.vmap(one)(batches))


def self_term(loss_fn: LossFn, params: Any, batches: Any) -> Any:
    """Self, E[H_a G_a]: what takes AvgGradInner's place where a mini-batch meets itself.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where, any pytree of floating-point arrays.
        batches: the pool, every array `[n, ...]`.

    Returns:
        A pytree like `params`.

    Raises:
        ValueError: the arrays of `batches` disagree on n, or there are none.

    >>> pool = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0]))
    >>> float(self_term(lambda w, b: b[0] * (w - b[1]) ** 2, jnp.array(0.0), pool))  # (2 x (-2) + 3 x 6) / 2
    7.0
    """
    pool_length(batches)

    def one(batch: Any) -> Any:
        return hessian_product(loss_fn, params, batch, jax.grad(loss_fn)(params, batch))

    return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(batches))


def gradient_agreement(loss_fn: LossFn, params: Any, batches: Any) -> jax.Array:
    """E[G_a . G_b] over pairs of different mini-batches: what a step along +AvgGradInner raises.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where, any pytree of floating-point arrays.
        batches: the pool, every array `[n, ...]`, n >= 2.

    Returns:
        A scalar.

    Raises:
        ValueError: the arrays of `batches` disagree on n, or n is less than 2.

    >>> pool = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0]))
    >>> float(gradient_agreement(lambda w, b: b[0] * (w - b[1]) ** 2, jnp.array(0.0), pool))  # -2 x 6
    -12.0
    """
    n = pool_length(batches, least=2)
    grads = jax.vmap(jax.grad(loss_fn), (None, 0))(params, batches)
    # All pairs, less those of a batch with itself.
    return sum((jnp.sum(leaf.sum(0) ** 2) - jnp.sum(leaf**2)) / (n * (n - 1)) for leaf in jax.tree.leaves(grads))  # pyright: ignore[reportReturnType]


def terms(loss_fn: LossFn, params: Any, batches: Any, *, order: int = 1) -> dict[str, Any]:
    """Every mean that an `Expansion` names, up to an order in alpha.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where, any pytree of floating-point arrays.
        batches: the pool, every array `[n, ...]`.
        order: 0, 1 or 2.

    Returns:
        A pytree like `params` for each word; words of more different batches than the pool has are left out.

    Raises:
        ValueError: `order` is out of range, the arrays of `batches` disagree on n, or there are none.

    >>> pool = (jnp.array([1.0, 1.5]), jnp.array([1.0, -2.0]))
    >>> found = terms(lambda w, b: b[0] * (w - b[1]) ** 2, jnp.array(0.0), pool, order=2)
    >>> {word: float(value) for word, value in found.items() if word.startswith("H")}
    {'Hg:ab': 3.0, 'Hg:aa': 7.0, 'HHg:aab': 3.0, 'HHg:aba': 12.0, 'HHg:abb': 12.0, 'HHg:aaa': 23.0}
    """
    n, batches = pool_length(batches), jax.tree.map(jnp.asarray, batches)
    if order not in (0, 1, 2):
        raise ValueError(f"order must be 0, 1 or 2, but is {order}")
    found = {"g": avg_grad(loss_fn, params, batches)}
    if order >= 1:
        found["Hg:aa"] = self_term(loss_fn, params, batches)
    if order >= 1 and n > 1:
        found["Hg:ab"] = avg_grad_inner(loss_fn, params, batches)
    if order == 2:
        found |= _second_order(loss_fn, params, batches, n)
    return {word: found[word] for words in WORDS[: order + 1] for word in words if word in found}


def _second_order(loss_fn: LossFn, params: Any, batches: Any, n: int) -> dict[str, Any]:
    """Sums over equal and different batches, batch a by batch a: both kinds are linear in what they are applied to."""
    grads = jax.vmap(jax.grad(loss_fn), (None, 0))(params, batches)
    total = jax.tree.map(lambda leaf: leaf.sum(0), grads)

    def products_of(batch: Any) -> Any:
        _, product = jax.linearize(lambda p: jax.grad(loss_fn)(p, batch), params)
        return jax.vmap(product)(grads)

    products = jax.lax.map(products_of, batches)  # H_a G_b, [n, n, ...]
    diagonal = jax.tree.map(lambda leaf: jnp.einsum("aa...->a...", leaf), products)

    def of(a: jax.Array) -> dict[str, Any]:
        pick = lambda tree: jax.tree.map(lambda leaf: leaf[a], tree)  # noqa: E731
        batch, g, same = pick(batches), pick(grads), pick(diagonal)
        rest = optax.tree.sub(total, g)  # sum of G_b, b != a
        row = jax.tree.map(lambda leaf: leaf[a].sum(0), products)  # sum of H_a G_b over all b
        column = jax.tree.map(lambda leaf: leaf[:, a].sum(0), products)  # sum of H_b G_a over all b
        squares = optax.tree.sub(jax.tree.map(lambda leaf: leaf.sum(0), diagonal), same)  # sum of H_b G_b, b != a
        everything = jax.tree.map(lambda leaf: leaf.sum((0, 1)), products)
        # sum of H_b G_c over b, c != a that differ
        different = jax.tree.map(lambda e, r, c, s, q: e - r - c + s - q, everything, row, column, same, squares)
        arguments = {
            "HHg:abc": different,
            "HHg:aab": optax.tree.sub(row, same),
            "HHg:aba": optax.tree.sub(column, same),
            "HHg:abb": squares,
            "HHg:aaa": same,
        }
        _, product = jax.linearize(lambda p: jax.grad(loss_fn)(p, batch), params)
        found = {word: product(argument) for word, argument in arguments.items()}
        third = lambda u, v: _third(loss_fn, params, batch, u, v)  # noqa: E731
        pairs = jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(third)(grads, grads))  # sum of T_a[G_b, G_b]
        found["T:aaa"] = third(g, g)
        found["T:aab"] = third(g, rest)
        found["T:abb"] = optax.tree.sub(pairs, found["T:aaa"])
        found["T:abc"] = optax.tree.sub(third(rest, rest), found["T:abb"])
        return found

    sums = jax.tree.map(lambda leaf: leaf.sum(0), jax.lax.map(of, jnp.arange(n)))
    count = {1: n, 2: n * (n - 1), 3: n * (n - 1) * (n - 2)}
    letters = {word: len(set(word[-3:])) for word in sums}
    return {
        word: jax.tree.map(lambda leaf, c=count[letters[word]]: leaf / c, value)
        for word, value in sums.items()
        if letters[word] <= n
    }


def hessian_product(loss_fn: LossFn, params: Any, batch: Any, vector: Any) -> Any:
    """H v, the derivative of the gradient along v."""
    return jax.jvp(lambda p: jax.grad(loss_fn)(p, batch), (params,), (vector,))[1]


def _third(loss_fn: LossFn, params: Any, batch: Any, u: Any, v: Any) -> Any:
    """T[u, v], the derivative of H v along u."""
    return jax.jvp(lambda p: hessian_product(loss_fn, p, batch, v), (params,), (u,))[1]


def pool_length(batches: Any, least: int = 1) -> int:
    """How many mini-batches a pool holds.

    Raises:
        ValueError: its arrays disagree on it, or there are fewer than `least`.
    """
    lengths = sorted({np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(batches)})
    if len(lengths) != 1 or lengths[0] < least:
        raise ValueError(
            f"batches must be a pool of at least {least} mini-batches, one leading axis for all arrays, "
            f"but the lengths of that axis are {lengths}"
        )
    return lengths[0]
