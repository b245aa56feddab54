"""The contract of a distribution over tasks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxmeta.episode import Episode


class Source(NamedTuple):
    """A distribution over episodes.

    Attributes:
        sample: `(data, key) -> Episode`, pure and jittable: the same key gives the same episode.
        data: what `sample` draws from, a pytree of arrays. It is always passed as an argument, because a data
            set that a jitted function closes over is compiled into the program as a constant.
        info: what describes the distribution in a result file, JSON-able.
    """

    sample: Callable[[Any, jax.Array], Episode]
    data: Any
    info: Mapping[str, Any]
