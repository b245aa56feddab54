"""Networks of the few-shot literature, as Flax Linen modules without running state, and their building blocks."""

from jaxmeta.nn._conv import conv_general_dilated
from jaxmeta.nn._conv4 import Conv4
from jaxmeta.nn._dot import dot_general
from jaxmeta.nn._lstm import lstm_update
from jaxmeta.nn._mlp import MLP
from jaxmeta.nn._norm import BatchNorm
from jaxmeta.nn._pool import max_pool

__all__ = ["MLP", "BatchNorm", "Conv4", "conv_general_dilated", "dot_general", "lstm_update", "max_pool"]
