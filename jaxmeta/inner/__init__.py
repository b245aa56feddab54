"""The inner loop: a task's own optimisation, as a pure function of its starting point."""

from jaxmeta.inner._adapt import Adapted, adapt, check_inner_loop, check_minibatches, split_aux
from jaxmeta.inner._minibatch import minibatch_indices, minibatches
from jaxmeta.inner._optimizers import check_differentiable, clip_by_global_norm, sgd
from jaxmeta.inner._partition import mask_by_path, merge, partition
from jaxmeta.inner._preprocess import log_sign
from jaxmeta.inner._remat import Remat
from jaxmeta.inner._second_order import Hvp

__all__ = [
    "Adapted",
    "Hvp",
    "Remat",
    "adapt",
    "check_differentiable",
    "check_inner_loop",
    "check_minibatches",
    "clip_by_global_norm",
    "log_sign",
    "mask_by_path",
    "merge",
    "minibatch_indices",
    "minibatches",
    "partition",
    "sgd",
    "split_aux",
]
