"""Meta-learning in JAX with exact second-order gradients."""

from jaxmeta import losses, nn, optimization, tasks
from jaxmeta.episode import Batch, Episode, check_episode
from jaxmeta.inner import Adapted, adapt, mask_by_path, minibatches
from jaxmeta.learner import Carried, MetaLearner, Model, Replacement, batch_meta_grad, descended, outer_step
from jaxmeta.optimization import fomaml, fomaml_grad, maml, maml_grad, reptile, reptile_grad
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
    "batch_meta_grad",
    "check_episode",
    "descended",
    "evaluate",
    "fit",
    "fomaml",
    "fomaml_grad",
    "losses",
    "maml",
    "maml_grad",
    "mask_by_path",
    "minibatches",
    "nn",
    "optimization",
    "outer_step",
    "reptile",
    "reptile_grad",
    "tasks",
]
