"""What training and evaluation ask of their arguments before they begin, and training of numbers as they come."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from jaxmeta.learner import Params, check_int, check_parts


def check_source(source: Any) -> None:
    """Raises if a distribution of episodes is none."""
    check_parts("source", source, ("sample",), "a tasks.Source(sample, data, info)")
    if not isinstance(source.info, Mapping):
        raise TypeError(f"source.info must be a dict of what describes the source, but is {source.info!r}")


def check_like(params: Params, initial: Params) -> None:
    """Raises if meta-parameters to start from are not like the learner's own."""
    like = jax.tree.structure(initial)
    if jax.tree.structure(params) != like:
        raise ValueError(
            f"params must have the structure of the learner's, {like}, but have {jax.tree.structure(params)}"
        )
    for (path, leaf), wanted in zip(tree_leaves_with_path(params), jax.tree.leaves(initial), strict=True):
        if jnp.shape(leaf) != jnp.shape(wanted):
            raise ValueError(f"params{keystr(path)} must have shape {jnp.shape(wanted)}, but has {jnp.shape(leaf)}")


def check_numbers(steps: int, meta_batch: int, log_every: int, checkpoint_every: int) -> tuple[int, int, int, int]:
    """Raises if a number of steps or tasks is none, or checkpoints do not fall on the end of a window."""
    numbers = {"steps": steps, "meta_batch": meta_batch, "log_every": log_every, "checkpoint_every": checkpoint_every}
    for name, value in numbers.items():
        if check_int(name, value) < 1:
            raise ValueError(f"{name} must be 1 or more, but is {value}")
    if math.gcd(checkpoint_every, log_every) != log_every:
        raise ValueError(f"checkpoint_every={checkpoint_every} must be a multiple of log_every={log_every}")
    return int(steps), int(meta_batch), int(log_every), int(checkpoint_every)


def check_metrics(metrics: dict[str, np.ndarray], first: int) -> None:
    """Raises at the first step of a window at which something is not finite."""
    broken = {name: int(np.argmin(np.isfinite(v))) for name, v in metrics.items() if not np.isfinite(v).all()}
    if broken:
        offset = min(broken.values())
        names = ", ".join(f"{name}={metrics[name][offset]}" for name, at in broken.items() if at == offset)
        start = " The data or the first meta-parameters may hold it already." if first + offset == 0 else ""
        raise FloatingPointError(
            f"outer step {first + offset + 1}: {names}.{start} Try a smaller inner or outer learning rate; an inner "
            "optax.adam wants eps_root=1e-8 to be differentiated"
        )


def validation_metrics(metrics: Any, row: Mapping[str, Any]) -> dict[str, float]:
    """What `validate` returned, as numbers that can stand in a row of training's metrics."""
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise TypeError(
            f'validate must return a dict of metrics, such as {{"validation": 0.9}}, but returned {metrics!r}'
        )
    if taken := sorted(metrics.keys() & row.keys()):
        raise ValueError(f"metrics of validate must not be called {taken}, which training records by itself")
    for name, value in metrics.items():
        array = np.asarray(value)
        if array.ndim or not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
            raise TypeError(f"validate returned {name}={value!r}, which is no number")
    found = {name: float(value) for name, value in metrics.items()}
    if broken := {name: value for name, value in found.items() if not np.isfinite(value)}:
        raise FloatingPointError(f"validate after outer step {row['step']} returned {broken}")
    return found
