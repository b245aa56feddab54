"""Methods that learn by writing to a memory."""

from jaxmeta.memory._addressing import (
    LRUAState,
    NTMHeads,
    NTMState,
    address,
    cosine,
    least_used,
    lrua_step,
    ntm_step,
)
from jaxmeta.memory._augmented import AugmentedConv
from jaxmeta.memory._cell import MANN, CellState, Trace
from jaxmeta.memory._labels import Code, by_instance, instances
from jaxmeta.memory._mann import Reading, mann, read_episode
from jaxmeta.memory._metanet import Memory, MetaNetParams, memorise, metanet, recall

__all__ = [
    "MANN",
    "AugmentedConv",
    "CellState",
    "Code",
    "LRUAState",
    "Memory",
    "MetaNetParams",
    "NTMHeads",
    "NTMState",
    "Reading",
    "Trace",
    "address",
    "by_instance",
    "cosine",
    "instances",
    "least_used",
    "lrua_step",
    "mann",
    "memorise",
    "metanet",
    "ntm_step",
    "read_episode",
    "recall",
]
