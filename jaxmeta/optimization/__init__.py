"""Methods whose learners adapt by gradient steps."""

from jaxmeta.optimization._anil_boil import anil, boil
from jaxmeta.optimization._imaml import imaml, imaml_grad
from jaxmeta.optimization._lstm import Affine, LSTMAdapted, MetaLSTM, lstm_adapt, lstm_meta_learner
from jaxmeta.optimization._maml import fomaml, fomaml_grad, maml, maml_grad
from jaxmeta.optimization._maml_pp import MamlPPParams, maml_pp, multi_step_weights
from jaxmeta.optimization._meta_sgd import WithRates, meta_sgd, meta_sgd_grad
from jaxmeta.optimization._reptile import WithInnerState, reptile, reptile_grad
from jaxmeta.optimization._truncated import truncated_maml, truncated_maml_grad

__all__ = [
    "Affine",
    "LSTMAdapted",
    "MamlPPParams",
    "MetaLSTM",
    "WithInnerState",
    "WithRates",
    "anil",
    "boil",
    "fomaml",
    "fomaml_grad",
    "imaml",
    "imaml_grad",
    "lstm_adapt",
    "lstm_meta_learner",
    "maml",
    "maml_grad",
    "maml_pp",
    "meta_sgd",
    "meta_sgd_grad",
    "multi_step_weights",
    "reptile",
    "reptile_grad",
    "truncated_maml",
    "truncated_maml_grad",
]
