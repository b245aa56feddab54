"""Meta-learning in JAX with exact second-order gradients."""

from jaxmeta import analysis, losses, memory, metric, nn, optimization, tasks
from jaxmeta.augmentation import augmented, averaged
from jaxmeta.episode import Batch, Episode, check_episode
from jaxmeta.inner import Adapted, adapt, clip_by_global_norm, mask_by_path, minibatches
from jaxmeta.learner import Carried, Comparison, MetaLearner, Model, Replacement, descended, outer_step
from jaxmeta.memory import mann, metanet
from jaxmeta.meta_batch import batch_meta_grad
from jaxmeta.metric import matching, matching_fce, prototypical, prototypical_zero_shot, relation, siamese
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
from jaxmeta.training import Evaluation, FitResult, evaluate, evaluate_runs, fit

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "Batch",
    "Carried",
    "Comparison",
    "Episode",
    "Evaluation",
    "FitResult",
    "MetaLearner",
    "Model",
    "Replacement",
    "adapt",
    "analysis",
    "anil",
    "augmented",
    "averaged",
    "batch_meta_grad",
    "boil",
    "check_episode",
    "clip_by_global_norm",
    "descended",
    "evaluate",
    "evaluate_runs",
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
    "matching",
    "matching_fce",
    "memory",
    "meta_sgd",
    "meta_sgd_grad",
    "metanet",
    "metric",
    "minibatches",
    "nn",
    "optimization",
    "outer_step",
    "prototypical",
    "prototypical_zero_shot",
    "relation",
    "reptile",
    "reptile_grad",
    "siamese",
    "tasks",
    "truncated_maml",
    "truncated_maml_grad",
]
