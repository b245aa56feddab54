"""Optimisation-based methods: the learner adapts by gradient steps, the meta-learner learns where to start."""

from jaxmeta.optimization._maml import fomaml, fomaml_grad, maml, maml_grad
from jaxmeta.optimization._reptile import keep_inner_state, reptile, reptile_grad

__all__ = ["fomaml", "fomaml_grad", "keep_inner_state", "maml", "maml_grad", "reptile", "reptile_grad"]
