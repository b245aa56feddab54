"""The inner loop: a task's own optimisation, as a pure function of its starting point."""

from jaxmeta.inner._adapt import Adapted, adapt, check_inner_loop
from jaxmeta.inner._minibatch import minibatch_indices, minibatches
from jaxmeta.inner._partition import mask_by_path, merge, partition

__all__ = [
    "Adapted",
    "adapt",
    "check_inner_loop",
    "mask_by_path",
    "merge",
    "minibatch_indices",
    "minibatches",
    "partition",
]
