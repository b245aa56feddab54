"""Training, evaluation and run folders. They know nothing of a method but its `MetaLearner`."""

from jaxmeta.training._evaluate import Evaluation, evaluate, evaluate_runs
from jaxmeta.training._fit import FitResult, fit
from jaxmeta.training._run import load_params

__all__ = ["Evaluation", "FitResult", "evaluate", "evaluate_runs", "fit", "load_params"]
