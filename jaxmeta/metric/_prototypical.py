"""Prototypical Networks: the nearest class mean in a learned space.

    c_k = 1/|S_k| sum_{i in S_k} f(x_i)          log P(y = k | x) = log softmax_k( -d(f(x), c_k) / T )

With the squared Euclidean distance this is a linear classifier, of weights 2 c_k and biases -|c_k|^2:

    -|f - c_k|^2 = 2 c_k^T f - |c_k|^2 - |f|^2.

| symbol | name | | symbol | name |
|---|---|---|---|---|
| f | `encoder` | | d | `distance` |
| c_k | `Comparison.references` | | T | `temperature` |

The distance is neither its square root nor divided by the dimension, and embeddings are averaged, not distances.
Support and query inputs are embedded in one pass, as in the paper's code: batch normalisation sees them together.
Unlike there, it sees the batch at hand in evaluation too; see `jaxmeta.evaluate`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.episode import Batch, Episode
from jaxmeta.learner import Comparison, MetaLearner, Model, Params
from jaxmeta.metric._kernels import Distance, check_distance, check_temperature, class_means, distances, unit
from jaxmeta.metric._metric_learner import (
    check_vectors,
    embed_together,
    metric_learner,
    negative_log_likelihood,
)
from jaxmeta.nn._stateless import init_stateless


def prototypical(
    encoder: Model,
    *,
    distance: Distance = "squared_euclidean",
    temperature: float = 1.0,
    ways: int | None = None,
) -> MetaLearner:
    """Prototypical Networks: classifies by the distance to the mean embedding of each class.

    Args:
        encoder: the embedding f, inputs `[n, ...]` to `[n, d]`, for instance `nn.Conv4(None)`.
        distance: `"squared_euclidean"`, `"cosine"` (1 - cosine), or a function `(z [d], c [d]) -> scalar`, such as
            `metric.bregman` makes.
        temperature: what distances are divided by; 1 in the paper.
        ways: classes in an episode; None for as many as there are support examples, which any labels in
            `[0, support examples)` fit: classes without an example then have probability 0. It changes the width
            and the cost of predictions, never a probability, so a learner for other ways takes the same parameters.

    Returns:
        A `MetaLearner`. Predictions are log-probabilities. Metrics: the query `loss` in nats and `accuracy`.

    Raises:
        ValueError: `distance` is unknown, is one of matrices, or gives no scalar; `temperature` is not positive; or
            `ways` is less than 2.

    >>> from jaxmeta import nn, tasks
    >>> source = tasks.episodes(tasks.glyphs("train", classes=8, image_size=16), ways=3, shots=2, queries=1)
    >>> support, query = episode = source.sample(source.data, jax.random.key(0))
    >>> learner = prototypical(nn.MLP((16,), 8), ways=3)
    >>> params = learner.init(jax.random.key(1), episode)
    >>> grads, metrics = jax.jit(learner.meta_grad)(params, episode, jax.random.key(2))
    >>> sorted(metrics), learner.predict(params, support, query.x, jax.random.key(2)).shape
    (['accuracy', 'loss'], (3, 3))

    References:
        Snell, Swersky, Zemel 2017, arXiv:1703.05175.
    """
    check_distance(distance)
    check_temperature(temperature)

    def compare(params: Params, support: Batch, query_x: Any, ways: int, key: jax.Array) -> Comparison:
        del key
        embedded, queries = embed_together(encoder, params, support.x, query_x)
        prototypes, counts = class_means(embedded, support.y, ways)
        log_kernel = _nearest(distance, temperature, queries, prototypes, counts)
        return Comparison(embedded, queries, prototypes, None, log_kernel)

    def init(key: jax.Array, episode: Episode) -> Params:
        return init_stateless(encoder, key, episode.support.x)

    return metric_learner(init, compare, negative_log_likelihood, ways)


class ZeroShotParams(NamedTuple):
    """Meta-parameters of `prototypical_zero_shot`.

    Attributes:
        encoder: the weights of the embedding of inputs.
        class_encoder: the weights of the embedding of class descriptions.
    """

    encoder: Params
    class_encoder: Params


def prototypical_zero_shot(
    encoder: Model,
    class_encoder: Model,
    *,
    distance: Distance = "squared_euclidean",
    temperature: float = 1.0,
    ways: int | None = None,
) -> MetaLearner:
    """Prototypical Networks without examples: the prototype of a class is the embedding of its description.

        c_k = g(v_k) / |g(v_k)|

    The support set of an episode holds descriptions in place of examples, one for each class: `Batch(v [ways, m],
    labels [ways])`. So `evaluate` judges it with all queries together, in the mode `"transductive"`: the other one
    joins support and query inputs.

    Args:
        encoder: the embedding f of inputs `[n, ...]` to `[n, d]`.
        class_encoder: the embedding g of descriptions `[n, m]` to `[n, d]`, for instance `nn.MLP((), d)`.
        distance: as in `prototypical`.
        temperature: as in `prototypical`.
        ways: as in `prototypical`.

    Returns:
        A `MetaLearner` with `ZeroShotParams`.

    Raises:
        ValueError: as `prototypical`, or the two encoders embed to vectors of different widths.

    >>> from jaxmeta import nn
    >>> described = Batch(jnp.eye(3), jnp.arange(3))
    >>> episode = Episode(described, Batch(jnp.ones((6, 4)), jnp.arange(6) % 3))
    >>> learner = prototypical_zero_shot(nn.MLP((), 2), nn.MLP((), 2), ways=3)
    >>> params = learner.init(jax.random.key(0), episode)
    >>> learner.predict(params, episode.support, episode.query.x, jax.random.key(1)).shape
    (6, 3)

    References:
        Snell, Swersky, Zemel 2017, arXiv:1703.05175, sections 2.7 and 3.3.
    """
    check_distance(distance)
    check_temperature(temperature)

    def compare(params: ZeroShotParams, support: Batch, query_x: Any, ways: int, key: jax.Array) -> Comparison:
        del key
        queries = encoder.apply(params.encoder, query_x)
        described = class_encoder.apply(params.class_encoder, support.x)
        check_widths(queries, described)
        means, counts = class_means(unit(described), support.y, ways)
        prototypes = unit(means)
        return Comparison(
            described, queries, prototypes, None, _nearest(distance, temperature, queries, prototypes, counts)
        )

    def init(key: jax.Array, episode: Episode) -> ZeroShotParams:
        keys = jax.random.split(key)
        params = init_stateless(encoder, keys[0], episode.query.x)
        class_params = init_stateless(class_encoder, keys[1], episode.support.x)
        check_widths(
            jax.eval_shape(encoder.apply, params, episode.query.x),
            jax.eval_shape(class_encoder.apply, class_params, episode.support.x),
        )
        return ZeroShotParams(params, class_params)

    def check_widths(queries: Any, described: Any) -> None:
        for name, embedded in (("encoder", queries), ("class_encoder", described)):
            check_vectors(embedded, name)
        if queries.shape[1] != described.shape[1]:
            raise ValueError(
                f"encoder and class_encoder must embed to one width, but to {queries.shape[1]} and {described.shape[1]}"
            )

    return metric_learner(init, compare, negative_log_likelihood, ways)


def _nearest(
    distance: Distance, temperature: float, queries: jax.Array, prototypes: jax.Array, counts: jax.Array
) -> jax.Array:
    """The logarithm of the softmax over minus distances; a class without examples takes no part."""
    logits = -distances(distance, queries, prototypes) / temperature
    return jax.nn.log_softmax(jnp.where(counts > 0, logits, -jnp.inf))
