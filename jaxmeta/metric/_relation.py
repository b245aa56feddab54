"""Relation Networks: a learned comparison of feature maps.

    F_c = sum_{i in S_c} f(x_i)                  the sum, not the mean, of a class's feature maps
    r_c(x) = sigmoid( g([F_c, f(x)]) )           channels joined, the support's first
    loss = mean over queries and classes of (r_c(x) - [y = c])^2

| symbol | name | | symbol | name |
|---|---|---|---|---|
| f | `encoder` | | F_c | `Comparison.references` |
| g | `relation_module` | | r_c(x) | exp of `Comparison.log_kernel` |

Feature maps stay images until the relation module has compared them. The paper writes a sum of squares; its code
takes the mean, and so does this. Support and query images are encoded in separate passes, as in that code, so batch
normalisation sees each set as a batch of its own, always the one at hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as fnn
import jax
import jax.numpy as jnp

from jaxmeta import nn
from jaxmeta.episode import Batch, Episode
from jaxmeta.learner import Comparison, MetaLearner, Model, Params
from jaxmeta.metric._kernels import class_sums
from jaxmeta.metric._metric_learner import metric_learner
from jaxmeta.nn._conv_before_norm import ConvBeforeNorm, Streamed
from jaxmeta.nn._pool import max_pool_2x2
from jaxmeta.nn._stateless import init_stateless


class Relation(Protocol):
    """A module that compares every query with every reference. `RelationModule` is one."""

    def init(self, key: jax.Array, references: jax.Array, queries: jax.Array, /) -> Params:
        """Parameters for references `[r, h, w, c]` and queries `[q, h, w, c]`."""
        ...

    def apply(self, params: Params, references: jax.Array, queries: jax.Array, /) -> Any:
        """The logit of each relation score, `[q, r]`."""
        ...


class RelationParams(NamedTuple):
    """Meta-parameters of `relation`.

    Attributes:
        encoder: the weights of the encoder f.
        relation: the weights of the relation module g.
    """

    encoder: Params
    relation: Params


def relation(encoder: Model | None = None, relation_module: Relation | None = None, *, ways: int) -> MetaLearner:
    """Relation Networks: learns how to compare, beside what to compare.

    Args:
        encoder: f, images `[n, H, W, C]` to feature maps `[n, h, w, c]`; None for the paper's `RelationEncoder()`.
        relation_module: g, feature maps of references and queries to logits `[q, r]`; None for the paper's
            `RelationModule()`, in its form for Omniglot.
        ways: classes in an episode. It has to be told, and each class to have an example: the module's batch
            normalisation and the loss's mean go over all classes, so one without examples, which under `jax.jit`
            nobody can refuse, has probability 0 but shifts the scores of the others.

    Returns:
        A `MetaLearner` with `RelationParams`. Predictions are logarithms of relation scores, which are no
        distribution over classes. Metrics: the `loss`, mean squared error of the scores, and `accuracy`.

    Raises:
        ValueError: `ways` is None or less than 2.

    >>> from jaxmeta import tasks
    >>> source = tasks.episodes(tasks.glyphs("train", classes=8), ways=3, shots=2, queries=1)
    >>> support, query = episode = source.sample(source.data, jax.random.key(0))
    >>> learner = relation(RelationEncoder(features=4), RelationModule(features=4), ways=3)
    >>> params = jax.jit(learner.init)(jax.random.key(1), episode)
    >>> jax.jit(learner.predict)(params, support, query.x, jax.random.key(2)).shape
    (3, 3)

    References:
        Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018, arXiv:1711.06025.
    """
    if ways is None:
        raise ValueError("ways must be a number: relation scores all classes together, and so has to know how many")
    f: Any = RelationEncoder() if encoder is None else encoder
    g: Any = RelationModule() if relation_module is None else relation_module

    def compare(params: RelationParams, support: Batch, query_x: Any, ways: int, key: jax.Array) -> Comparison:
        del key
        embedded, queries = f.apply(params.encoder, support.x), f.apply(params.encoder, query_x)
        references, counts = class_sums(embedded, support.y, ways)
        logits = g.apply(params.relation, references, queries)
        log_kernel = jnp.where(counts > 0, jax.nn.log_sigmoid(logits), -jnp.inf)
        return Comparison(embedded, queries, references, None, log_kernel)

    def init(key: jax.Array, episode: Episode) -> RelationParams:
        encoder_key, relation_key = jax.random.split(key)
        params = init_stateless(f, encoder_key, episode.support.x)
        maps = f.apply(params, episode.support.x)
        return RelationParams(params, g.init(relation_key, maps, maps))

    return metric_learner(init, compare, _squared_error, ways)


def _squared_error(params: Params, comparison: Comparison, log_probs: jax.Array, episode: Episode) -> jax.Array:
    del params, comparison
    return jnp.mean((jnp.exp(log_probs) - jax.nn.one_hot(episode.query.y, log_probs.shape[1])) ** 2)


def _paper_kernel(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Normal with standard deviation sqrt(2 / (window * features)), as in the paper's code."""
    height, width, _, features = shape
    return jax.random.normal(key, shape, dtype) * (2.0 / (height * width * features)) ** 0.5


class RelationEncoder(fnn.Module):
    """The paper's encoder: two blocks without padding that pool, two with padding that do not.

    28x28 images come to 5x5 feature maps, 84x84 to 19x19. 111,936 parameters on one channel.

    Attributes:
        features: channels of every convolution.
        epsilon: batch normalisation's epsilon.
    """

    features: int = 64
    epsilon: float = 1e-5

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images x `[n, H, W, C]` to feature maps `[n, h, w, features]`.

        Raises:
            ValueError: x is not a batch of images of 10x10 or more.
        """
        if x.ndim != 4 or min(x.shape[1:3]) < 10:
            raise ValueError(
                f"x must hold images [n, height, width, channels], at least 10x10, but has shape {x.shape}"
            )
        for i, padding in enumerate(("VALID", "VALID", "SAME", "SAME")):
            convolved = ConvBeforeNorm(self.features, padding=padding, kernel_init=_paper_kernel, name=f"conv_{i}")(x)
            norm = nn.BatchNorm(epsilon=self.epsilon, name=f"norm_{i}")
            x = fnn.relu(norm(convolved, max_pool_2x2 if i < 2 else None))
        return x


class RelationModule(fnn.Module):
    """The paper's relation module: two pooling blocks on the joined feature maps, then 8 units, then one.

    The first convolution of [F_c, f(x)] is that of F_c plus that of f(x), each by its half of the kernel, so every
    feature map is convolved once and not once for each pair. 111,505 parameters in the form for Omniglot.

    Attributes:
        features: channels of both convolutions.
        hidden: units of the hidden layer.
        padding: `"SAME"` for Omniglot's 5x5 maps, `"VALID"` for mini-ImageNet's 19x19.
        epsilon: batch normalisation's epsilon.
        dense_bias_init: the biases of both dense layers start at 1, as in the paper's code; at 0 the head often stalls.
    """

    features: int = 64
    hidden: int = 8
    padding: str = "SAME"
    epsilon: float = 1e-5
    dense_bias_init: Callable[..., jax.Array] = fnn.initializers.ones

    @fnn.compact
    def __call__(self, references: jax.Array, queries: jax.Array) -> jax.Array:
        """Maps references `[r, h, w, c]` and queries `[q, h, w, c]` to logits `[q, r]`.

        Raises:
            ValueError: the two are not feature maps of one shape, or too small to be pooled twice.
        """
        if references.ndim != 4 or references.shape[1:] != queries.shape[1:]:
            raise ValueError(
                "references and queries must hold feature maps [n, h, w, c] of one shape, but have shapes "
                f"{references.shape} and {queries.shape}"
            )
        x = self._first_convolution(references, queries)
        x = self._pooled(x, "norm_0")
        convolve = ConvBeforeNorm(self.features, padding=self.padding, kernel_init=_paper_kernel, name="conv_1")
        x = self._pooled(convolve(x), "norm_1")
        if 0 in x.shape[1:]:
            raise ValueError(f"feature maps of {references.shape[1:3]} are too small to be pooled twice")
        x = fnn.relu(self._dense(self.hidden, "dense_0")(jax.lax.collapse(x, 1)))
        return self._dense(1, "dense_1")(x).reshape(len(queries), len(references))

    def _first_convolution(self, references: jax.Array, queries: jax.Array) -> jax.Array:
        """The convolution of every pair's joined channels, `[q * r, h, w, features]`."""
        channels = references.shape[-1]
        kernel = self.param("conv_0_kernel", _paper_kernel, (3, 3, 2 * channels, self.features), jnp.float32)
        self.param("conv_0_bias", fnn.initializers.zeros, (self.features,), jnp.float32)  # as in `ConvBeforeNorm`

        def convolve(x: jax.Array, part: jax.Array) -> jax.Array:
            return nn.conv_general_dilated(x, part, (1, 1), self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

        ours = convolve(references, kernel[:, :, :channels])
        theirs = convolve(queries, kernel[:, :, channels:])
        pairs = theirs[:, None] + ours[None]
        return pairs.reshape(-1, *pairs.shape[2:])

    def _pooled(self, x: jax.Array | Streamed, name: str) -> jax.Array:
        return fnn.relu(nn.BatchNorm(epsilon=self.epsilon, name=name)(x, max_pool_2x2))

    def _dense(self, features: int, name: str) -> fnn.Dense:
        return fnn.Dense(features, kernel_init=fnn.initializers.normal(0.01), bias_init=self.dense_bias_init, name=name)
