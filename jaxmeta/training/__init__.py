"""Training, evaluation and run folders. They know nothing of a method but its `MetaLearner`."""

from jaxmeta.training._evaluate import Evaluation, evaluate
from jaxmeta.training._fit import FitResult, fit
from jaxmeta.training._run import load_params

__all__ = ["Evaluation", "FitResult", "evaluate", "fit", "load_params"]
