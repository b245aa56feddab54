"""Problems and oracles that several tests share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxmeta import Batch, Episode, losses, nn, tasks


def to_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, tree)


def stencil_derivative(f: Callable[[Any], jax.Array], at: Any, direction: Any, h: float) -> float:
    """The derivative of a scalar function along a direction, by the five-point stencil: error O(h^4)."""

    def value(t: float) -> float:
        return float(f(jax.tree.map(lambda a, d: a + t * d, at, direction)))

    return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)


def random_direction(tree: Any, seed: int) -> Any:
    flat, unravel = ravel_pytree(tree)
    direction = np.random.default_rng(seed).normal(size=flat.shape)
    return unravel(jnp.asarray(direction / np.linalg.norm(direction), flat.dtype))


def inner_product(a: Any, b: Any) -> float:
    return float(jnp.vdot(ravel_pytree(a)[0], ravel_pytree(b)[0]))


def assert_trees_equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a: Any, b: Any, rtol: float, atol: float = 0.0) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def regression_problem(key: jax.Array) -> tuple[Callable[..., jax.Array], Any, Episode]:
    """A smooth network on a sinusoid: `(loss_fn, params, episode)`."""
    model = nn.MLP((16, 16), 1, activation=jnp.tanh)
    episode = tasks.sinusoid(shots=10, queries=10).sample((), key)
    params = model.init(key, episode.support.x)
    return lambda p, batch: losses.mean_squared_error(model.apply(p, batch.x), batch.y), params, episode


def classification_problem(key: jax.Array) -> tuple[Callable[..., jax.Array], Any, Episode]:
    """A small Conv4 on random images, 3-way: `(loss_fn, params, episode)`."""
    model = nn.Conv4(3, features=4, pool="stride", readout="mean")
    support_key, query_key = jax.random.split(key)
    labels = jnp.repeat(jnp.arange(3), 2)
    images = [jax.random.uniform(k, (6, 16, 16, 1)) for k in (support_key, query_key)]
    episode = Episode(*(Batch(x, labels) for x in images))
    params = model.init(key, episode.support.x)
    return lambda p, batch: losses.cross_entropy(model.apply(p, batch.x), batch.y), params, episode


def small_loss(w: jax.Array, batch: Any) -> jax.Array:
    """Neither quadratic nor even: all derivatives up to the third matter."""
    a, c, s = batch
    return 0.5 * w @ a @ a.T @ w + c @ w + jnp.sum(jnp.sin(s * w)) + jnp.sum(s * w**3) / 3


def small_problem(n: int, d: int = 3, seed: int = 0) -> tuple[Callable[..., jax.Array], jax.Array, Any]:
    """`small_loss`, a point, and a pool of n mini-batches."""
    rng = np.random.default_rng(seed)
    pool = tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((n, d, d), (n, d), (n, d)))
    return small_loss, jnp.asarray(rng.normal(size=d)), pool


def picked(pool: Any, i: int) -> Any:
    """The i-th mini-batch of a pool."""
    return jax.tree.map(lambda leaf: leaf[i], pool)


def network_problem(
    model: Any, shape: tuple[int, ...], size: int, n: int
) -> tuple[Callable[..., jax.Array], Any, Batch]:
    """A 3-way classifier's cross-entropy on a pool of n mini-batches of random inputs, in double precision."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.uniform(keys[0], (n, size, *shape), jnp.float64)
    y = jax.random.randint(keys[1], (n, size), 0, 3)
    params = to_float64(model.init(keys[2], jnp.zeros((size, *shape), jnp.float32)))
    return lambda p, b: losses.cross_entropy(model.apply(p, b.x), b.y), params, Batch(x, y)
