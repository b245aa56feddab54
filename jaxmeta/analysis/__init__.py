"""Meta-gradients under the microscope: what each estimator gives, and what it costs."""

from jaxmeta.analysis._compare import Comparison, compare, plot_comparison
from jaxmeta.analysis._inspect import Inspection, inspect

__all__ = ["Comparison", "Inspection", "compare", "inspect", "plot_comparison"]
