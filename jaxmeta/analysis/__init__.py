"""Meta-gradients under the microscope: what each estimator gives, what it follows, and what it costs."""

from jaxmeta.analysis import taylor
from jaxmeta.analysis._compare import EstimatorRow, compare, plot_comparison, table
from jaxmeta.analysis._embedding import plot_embedding
from jaxmeta.analysis._inspect import Inspection, inspect
from jaxmeta.analysis._manifold import nearest_solution, projection_angles
from jaxmeta.analysis._traces import plot_attention, plot_gates, plot_instances, plot_reading

__all__ = [
    "EstimatorRow",
    "Inspection",
    "compare",
    "inspect",
    "nearest_solution",
    "plot_attention",
    "plot_comparison",
    "plot_embedding",
    "plot_gates",
    "plot_instances",
    "plot_reading",
    "projection_angles",
    "table",
    "taylor",
]
