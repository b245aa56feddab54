"""Sinusoid regression, as MAML and as Reptile set it.

    MAML      y = A sin(x - phi),  A ~ U[0.1, 5],  phi ~ U[0, pi],    x ~ U[-5, 5]
    Reptile   y = A sin(x + phi),  A ~ U[0.1, 5],  phi ~ U[0, 2 pi],  x from 50 points evenly spaced on [-5, 5]

Predicting 0 everywhere has a mean squared error of 4.2517; the best function of x alone, 3.0057 under MAML's
phases. Only what is below that has learned from the support set.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmeta.episode import Batch, Episode
from jaxmeta.tasks._source import Source

_GRID = 50


def sinusoid(variant: Literal["maml", "reptile"] = "maml", *, shots: int = 10, queries: int | None = None) -> Source:
    """A source of sinusoids.

    Args:
        variant: `"maml"`: support and query points are drawn from [-5, 5]. `"reptile"`: support points are
            drawn with replacement from 50 fixed points, and the query set is those 50 points; `shots=0` leaves
            just them, which is what Reptile trains on.
        shots: support points.
        queries: query points; None for `shots` (MAML) or 50 (Reptile, which takes no other value).

    Returns:
        A source of episodes with x and y of shape `[points, 1]`.

    Raises:
        ValueError: `variant` is unknown, or a number of points is out of range.

    References:
        Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.1; Nichol, Achiam, Schulman 2018,
        arXiv:1803.02999, section 3.

    >>> support, query = sinusoid("reptile", shots=10).sample((), jax.random.key(0))
    >>> support.x.shape, query.y.shape
    ((10, 1), (50, 1))
    """
    if variant not in ("maml", "reptile"):
        raise ValueError(f'variant must be "maml" or "reptile", but is {variant!r}')
    if queries is None:
        queries = shots if variant == "maml" else _GRID
    least = 1 if variant == "maml" else 0
    if shots < least or queries < 1:
        raise ValueError(f"shots={shots} and queries={queries} must be at least {least} and 1")
    if variant == "reptile" and queries != _GRID:
        raise ValueError(f'queries={queries}, but variant="reptile" judges on all {_GRID} points of its grid')

    def sample(data: Any, key: jax.Array) -> Episode:
        del data
        amplitude_key, phase_key, support_key, query_key = jax.random.split(key, 4)
        amplitude = jax.random.uniform(amplitude_key, minval=0.1, maxval=5.0)
        if variant == "maml":
            phase = -jax.random.uniform(phase_key, maxval=jnp.pi)
            support_x = jax.random.uniform(support_key, (shots, 1), minval=-5.0, maxval=5.0)
            query_x = jax.random.uniform(query_key, (queries, 1), minval=-5.0, maxval=5.0)
        else:
            phase = jax.random.uniform(phase_key, maxval=2 * jnp.pi)
            query_x = jnp.linspace(-5.0, 5.0, _GRID)[:, None]
            support_x = query_x[jax.random.randint(support_key, (shots,), 0, _GRID)]
        return Episode(*(Batch(x, amplitude * jnp.sin(x + phase)) for x in (support_x, query_x)))

    info = {"name": "sinusoid", "variant": variant, "shots": shots, "queries": queries}
    return Source(sample, (), info)
