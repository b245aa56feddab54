"""What MAML, first-order MAML and Reptile follow: their expansions in the inner rate, predicted and measured."""

from jaxmeta.analysis.taylor._directions import Direction, track_directions
from jaxmeta.analysis.taylor._expansion import Expansion, cycling, expansion, reused_support, shared_tail
from jaxmeta.analysis.taylor._mean_gradient import mean_gradient
from jaxmeta.analysis.taylor._monte_carlo import Estimate, estimate_terms
from jaxmeta.analysis.taylor._orderings import orderings, pool_size
from jaxmeta.analysis.taylor._report import plot_verdicts, summary, table
from jaxmeta.analysis.taylor._terms import avg_grad, avg_grad_inner, gradient_agreement, self_term, terms
from jaxmeta.analysis.taylor._verdict import Coefficient, Verdict
from jaxmeta.analysis.taylor._verify import verify_expansion

__all__ = [
    "Coefficient",
    "Direction",
    "Estimate",
    "Expansion",
    "Verdict",
    "avg_grad",
    "avg_grad_inner",
    "cycling",
    "estimate_terms",
    "expansion",
    "gradient_agreement",
    "mean_gradient",
    "orderings",
    "plot_verdicts",
    "pool_size",
    "reused_support",
    "self_term",
    "shared_tail",
    "summary",
    "table",
    "terms",
    "track_directions",
    "verify_expansion",
]
