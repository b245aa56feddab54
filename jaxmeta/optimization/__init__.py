"""Optimisation-based methods: the learner adapts by gradient steps, the meta-learner learns where to start."""

from jaxmeta.optimization._maml import fomaml, fomaml_grad, maml, maml_grad
from jaxmeta.optimization._reptile import WithInnerState, reptile, reptile_grad

__all__ = ["WithInnerState", "fomaml", "fomaml_grad", "maml", "maml_grad", "reptile", "reptile_grad"]
