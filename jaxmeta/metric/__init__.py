"""Methods that learn to compare: P(y | x, S) = sum_i k(x, x_i) y_i, with an embedding and a kernel k of each.

A learner's `compare` shows how a prediction came about: embeddings, what they were compared with, and log k.
"""

from jaxmeta.metric._kernels import bregman, cosine_similarity, label_sum, squared_euclidean
from jaxmeta.metric._koch import KochTwin, SmallTwin
from jaxmeta.metric._matching import FullContext, FullContextParams, matching, matching_fce
from jaxmeta.metric._prototypical import ZeroShotParams, prototypical, prototypical_zero_shot
from jaxmeta.metric._relation import RelationEncoder, RelationModule, RelationParams, relation
from jaxmeta.metric._siamese import SiameseParams, siamese, verify

__all__ = [
    "FullContext",
    "FullContextParams",
    "KochTwin",
    "RelationEncoder",
    "RelationModule",
    "RelationParams",
    "SiameseParams",
    "SmallTwin",
    "ZeroShotParams",
    "bregman",
    "cosine_similarity",
    "label_sum",
    "matching",
    "matching_fce",
    "prototypical",
    "prototypical_zero_shot",
    "relation",
    "siamese",
    "squared_euclidean",
    "verify",
]
