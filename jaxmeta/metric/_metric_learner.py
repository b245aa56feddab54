"""What every method of the family shares: embed both sets, compare, sum over labels, take the loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmeta._gradient import outer_gradient
from jaxmeta.episode import Batch, Episode, are_classes, check_batch, check_inputs, check_is_episode, is_classification
from jaxmeta.learner import Comparison, MetaLearner, Metrics, Model, Params
from jaxmeta.losses import accuracy, cross_entropy
from jaxmeta.metric._kernels import label_sum

# (params, support, query_x, ways, key) -> Comparison
Compare = Callable[[Params, Batch, jax.Array, int, jax.Array], Comparison]
# (params, comparison, log P [q, ways], episode) -> scalar
Loss = Callable[[Params, Comparison, jax.Array, Episode], jax.Array]


def metric_learner(
    init: Callable[[jax.Array, Episode], Params],
    compare: Compare,
    loss: Loss,
    ways: int | None,
) -> MetaLearner:
    """A learner that classifies by P(y | x, S) = sum_i k(x, x_i) y_i, and whose meta-gradient is its loss's gradient.

    Args:
        init: `(key, episode) -> params`.
        compare: the embeddings and the kernel of the method.
        loss: what training descends.
        ways: classes in an episode; None for one for each support example.
    """
    if ways is not None and ways < 2:
        raise ValueError(f"ways must be 2 or more, but is {ways}")

    def compare_all(params: Params, support: Batch, query_x: jax.Array, key: jax.Array) -> Comparison:
        return compare(params, support, query_x, check_support(support, ways), key)

    # Not everything sees a label that is no class, and under `jax.jit` nobody can refuse it.
    def known(labels: jax.Array, support: Batch) -> jax.Array:
        return are_classes(labels, count_ways(support, ways)).all()

    def predict(params: Params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        found = compare_all(params, support, query_x, key)
        log_probs = label_sum(found.log_kernel, found.labels, count_ways(support, ways))
        return jnp.where(known(support.y, support), log_probs, jnp.nan)

    def meta_grad(params: Params, episode: Episode, key: jax.Array) -> tuple[Params, Metrics]:
        check_labelled(episode, ways)

        def objective(params: Params) -> tuple[jax.Array, Metrics]:
            found = compare_all(params, episode.support, episode.query.x, key)
            log_probs = label_sum(found.log_kernel, found.labels, count_ways(episode.support, ways))
            labels = episode.query.y
            sound = known(labels, episode.support) & known(episode.support.y, episode.support)
            value = loss(params, found, log_probs, episode) * jnp.where(sound, 1.0, jnp.nan).astype(log_probs.dtype)
            return value, {"loss": value, "accuracy": accuracy(log_probs, labels)}

        return outer_gradient(objective, params)

    def checked_init(key: jax.Array, episode: Episode) -> Params:
        check_is_episode(episode)
        check_support(episode.support, ways)
        return init(key, episode)

    return MetaLearner(checked_init, meta_grad, predict, compare=compare_all)


def negative_log_likelihood(
    params: Params, comparison: Comparison, log_probs: jax.Array, episode: Episode
) -> jax.Array:
    """Mean of -log P(y | x, S), in nats: the log-softmax of a cross-entropy leaves log-probabilities as they are."""
    del params, comparison
    return cross_entropy(log_probs, episode.query.y)


def embed_together(encoder: Model, params: Params, support_x: Any, query_x: Any) -> tuple[jax.Array, jax.Array]:
    """Embeds both sets in one pass, so that batch normalisation sees them as one batch: `([s, d], [q, d])`."""
    check_inputs(support_x, query_x)
    embedded = encoder.apply(params, jnp.concatenate([support_x, query_x]))
    check_vectors(embedded)
    return embedded[: len(support_x)], embedded[len(support_x) :]


def check_vectors(embedded: Any, name: str = "encoder") -> None:
    """Raises if embeddings are not one vector for each input."""
    if embedded.ndim != 2:
        raise ValueError(f"the {name} must return embeddings [n, d], but returns shape {embedded.shape}")


def count_ways(support: Batch, ways: int | None) -> int:
    """Classes in an episode: what was said, or one for each support example, which any labels fit."""
    return len(support.y) if ways is None else ways


def check_support(support: Batch, ways: int | None) -> int:
    """Raises if a support set cannot be classified by; the number of classes otherwise."""
    check_batch("support", support, ways)
    if not is_classification(support.y):
        raise TypeError(
            "support.y must hold integer class labels [n]: a metric method classifies, and cannot regress, but has "
            f"dtype {support.y.dtype}"
        )
    if not len(support.y):
        raise ValueError("support holds no examples to compare with")
    if ways is None and not isinstance(support.y, Tracer):
        labels = np.asarray(support.y)
        if labels.min() < 0 or labels.max() >= len(labels):
            raise ValueError(
                f"support.y must lie in [0, {len(labels)}), the number of support examples, but holds labels "
                f"{labels.min()}..{labels.max()}"
            )
    return count_ways(support, ways)


def check_labelled(episode: Episode, ways: int | None) -> None:
    """Raises if an episode cannot be learned from: no queries, or labels that are no classes of it."""
    check_is_episode(episode)
    check_support(episode.support, ways)
    check_batch("query", episode.query, None)
    if not len(episode.query.y):
        raise ValueError("query holds no examples, and the loss is taken on the query set: give it some")
    if not is_classification(episode.query.y):
        raise TypeError(f"query.y must hold integer class labels [n], but has dtype {episode.query.y.dtype}")
    if isinstance(episode.support.y, Tracer) or isinstance(episode.query.y, Tracer):
        return
    strange = np.setdiff1d(np.asarray(episode.query.y), np.asarray(episode.support.y))
    if strange.size:
        raise ValueError(f"query.y holds labels {strange.tolist()}, which no support example has")
