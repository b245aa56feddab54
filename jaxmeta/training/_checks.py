"""What training and evaluation ask of their arguments before they begin."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from jaxmeta.learner import Params, check_parts


def check_source(source: Any) -> None:
    """Raises if a distribution of episodes is none."""
    check_parts("source", source, ("sample",), "a tasks.Source(sample, data, info)")


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


def check_numbers(steps: int, meta_batch: int, log_every: int, checkpoint_every: int) -> None:
    """Raises if a number of steps or tasks is none, or checkpoints do not fall on the end of a window."""
    numbers = {"steps": steps, "meta_batch": meta_batch, "log_every": log_every, "checkpoint_every": checkpoint_every}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, but is {value}")
    if math.gcd(checkpoint_every, log_every) != log_every:
        raise ValueError(f"checkpoint_every={checkpoint_every} must be a multiple of log_every={log_every}")
