"""Meta-learning in JAX with exact second-order gradients."""

from jaxmeta import losses, nn, optimization, tasks
from jaxmeta.episode import Batch, Episode, check_episode
from jaxmeta.inner import Adapted, adapt, mask_by_path, minibatches
from jaxmeta.learner import MetaLearner, Model, batch_meta_grad
from jaxmeta.optimization import fomaml, fomaml_grad, keep_inner_state, maml, maml_grad, reptile, reptile_grad
from jaxmeta.training import Evaluation, FitResult, evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "Batch",
    "Episode",
    "Evaluation",
    "FitResult",
    "MetaLearner",
    "Model",
    "adapt",
    "batch_meta_grad",
    "check_episode",
    "evaluate",
    "fit",
    "fomaml",
    "fomaml_grad",
    "keep_inner_state",
    "losses",
    "maml",
    "maml_grad",
    "mask_by_path",
    "minibatches",
    "nn",
    "optimization",
    "reptile",
    "reptile_grad",
    "tasks",
]
