"""Meta-gradients under the microscope: what each estimator gives, and what it costs."""

from jaxmeta.analysis._compare import Comparison, compare, plot_comparison
from jaxmeta.analysis._inspect import Inspection, inspect
from jaxmeta.analysis._traces import plot_attention, plot_gates, plot_instances, plot_reading

__all__ = [
    "Comparison",
    "Inspection",
    "compare",
    "inspect",
    "plot_attention",
    "plot_comparison",
    "plot_gates",
    "plot_instances",
    "plot_reading",
]
