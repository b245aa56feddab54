"""Meta-learning in JAX with exact second-order gradients."""

from jaxmeta import losses, memory, nn, optimization, tasks
from jaxmeta.episode import Batch, Episode, check_episode
from jaxmeta.inner import Adapted, adapt, clip_by_global_norm, mask_by_path, minibatches
from jaxmeta.learner import Carried, MetaLearner, Model, Replacement, batch_meta_grad, descended, outer_step
from jaxmeta.memory import mann, metanet
from jaxmeta.optimization import (
    anil,
    boil,
    fomaml,
    fomaml_grad,
    imaml,
    imaml_grad,
    lstm_meta_learner,
    maml,
    maml_grad,
    maml_pp,
    meta_sgd,
    meta_sgd_grad,
    reptile,
    reptile_grad,
    truncated_maml,
    truncated_maml_grad,
)
from jaxmeta.training import Evaluation, FitResult, evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "Batch",
    "Carried",
    "Episode",
    "Evaluation",
    "FitResult",
    "MetaLearner",
    "Model",
    "Replacement",
    "adapt",
    "anil",
    "batch_meta_grad",
    "boil",
    "check_episode",
    "clip_by_global_norm",
    "descended",
    "evaluate",
    "fit",
    "fomaml",
    "fomaml_grad",
    "imaml",
    "imaml_grad",
    "losses",
    "lstm_meta_learner",
    "maml",
    "maml_grad",
    "maml_pp",
    "mann",
    "mask_by_path",
    "memory",
    "meta_sgd",
    "meta_sgd_grad",
    "metanet",
    "minibatches",
    "nn",
    "optimization",
    "outer_step",
    "reptile",
    "reptile_grad",
    "tasks",
    "truncated_maml",
    "truncated_maml_grad",
]
