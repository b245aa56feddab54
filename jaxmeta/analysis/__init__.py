"""Meta-gradients under the microscope: what each estimator gives, what it follows, and what it costs."""

from jaxmeta.analysis import taylor
from jaxmeta.analysis._compare import Comparison, compare, plot_comparison
from jaxmeta.analysis._inspect import Inspection, inspect
from jaxmeta.analysis._manifold import nearest_solution, projection_angles

__all__ = [
    "Comparison",
    "Inspection",
    "compare",
    "inspect",
    "nearest_solution",
    "plot_comparison",
    "projection_angles",
    "taylor",
]
