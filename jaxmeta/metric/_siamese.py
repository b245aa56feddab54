"""Siamese networks: learn whether two images show one class, then take the most alike.

    p(x, x') = sigmoid( sum_j alpha_j |h(x)_j - h(x')_j| + b )
    loss = binary cross-entropy of [y = y'] + sum_l lambda_l |w_l|^2
    prediction = class of argmax_i p(x, x_i)

| symbol | name | | symbol | name |
|---|---|---|---|---|
| h | `encoder` | | lambda_l | `l2` |
| alpha, b | `SiameseParams.head` | | p(x, x_i) | exp of `Comparison.log_kernel`, best image of each class |

The pairs of an episode are all of (query, support), those of one class and those of two weighing half the loss each:
the mean over what random pairs, half of them the same, would give. In training the paper distorts both images of a
pair, each by a map of its own: `augmented(siamese(..), tasks.affine_distortions)`. It prints its log-likelihood without
the minus sign.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from jaxmeta.episode import Batch, Episode
from jaxmeta.learner import Comparison, MetaLearner, Model, Params
from jaxmeta.metric._kernels import class_members
from jaxmeta.metric._metric_learner import check_vectors, embed_together, metric_learner
from jaxmeta.nn._stateless import init_stateless


class SiameseParams(NamedTuple):
    """Meta-parameters of `siamese`.

    Attributes:
        encoder: the weights of the twin h.
        head: `{"kernel": [d], "bias": []}`, the weights alpha of the differences, of any sign, and the bias b.
    """

    encoder: Params
    head: dict[str, jax.Array]


def siamese(
    encoder: Model,
    *,
    l2: float | Mapping[str, float] = 0.0,
    ways: int | None = None,
) -> MetaLearner:
    """Siamese networks: verification of pairs, and classification by the most probable support example.

    The head starts at alpha ~ N(0, 1/d) and b = 0, so that the first logits do not grow with the twin's width. The
    paper starts it like every dense layer, alpha with standard deviation 0.2 and b near 0.5.

    Args:
        encoder: the twin h, inputs `[n, ...]` to `[n, d]`, for instance `KochTwin()`.
        l2: lambda, the weight of the squared norm of the weights named kernel: one number, or one for each layer by
            name, such as `{"conv_0": 1e-4, "dense": 1e-3, "alpha": 0.0}`, where `"alpha"` is the head's; layers without
            one have none. Biases have none.
        ways: classes in an episode; None for as many as there are support examples. See `prototypical`.

    Returns:
        A `MetaLearner` with `SiameseParams`. Predictions are the largest log p(x, x_i) of each class. Metrics: the
        `loss`, and the one-shot `accuracy`.

    Raises:
        ValueError: `ways` is less than 2, or `l2` is negative, not finite, or for layers that the encoder lacks.

    >>> from jaxmeta import metric, tasks
    >>> source = tasks.episodes(tasks.glyphs("train", classes=8), ways=3, shots=1, queries=2)
    >>> support, query = episode = source.sample(source.data, jax.random.key(0))
    >>> learner = siamese(metric.SmallTwin(features=3), ways=3)
    >>> params = jax.jit(learner.init)(jax.random.key(1), episode)
    >>> jax.jit(learner.predict)(params, support, query.x, jax.random.key(2)).shape
    (6, 3)

    References:
        Koch, Zemel, Salakhutdinov 2015, ICML deep learning workshop.
    """
    if not all(0 <= weight < math.inf for weight in (l2.values() if isinstance(l2, Mapping) else [l2])):
        raise ValueError(f"l2 must be finite and not negative, but is {l2}")

    def compare(params: SiameseParams, support: Batch, query_x: Any, ways: int, key: jax.Array) -> Comparison:
        del key
        embedded, queries = embed_together(encoder, params.encoder, support.x, query_x)
        log_kernel = jax.nn.log_sigmoid(_logits(params.head, queries, embedded))
        log_kernel = jnp.where(_best_of_class(log_kernel, support.y, ways), log_kernel, -jnp.inf)
        return Comparison(embedded, queries, embedded, support.y, log_kernel)

    def loss(params: SiameseParams, comparison: Comparison, log_probs: jax.Array, episode: Episode) -> jax.Array:
        del log_probs
        logits = _logits(params.head, comparison.queries, comparison.support)
        same = episode.query.y[:, None] == episode.support.y[None, :]
        return verification_loss(logits, same) + _penalty(params, l2)

    def init(key: jax.Array, episode: Episode) -> SiameseParams:
        encoder_key, head_key = jax.random.split(key)
        params = init_stateless(encoder, encoder_key, episode.support.x)
        embedded = jax.eval_shape(encoder.apply, params, episode.support.x)
        check_vectors(embedded)
        width = embedded.shape[-1]
        kernel = jax.random.normal(head_key, (width,)) * width**-0.5
        found = SiameseParams(params, {"kernel": kernel, "bias": jnp.zeros(())})
        _penalty(found, l2)
        return found

    return metric_learner(init, compare, loss, ways)


def verify(encoder: Model, params: SiameseParams, first: jax.Array, second: jax.Array) -> jax.Array:
    """The probability that two inputs show one class, for each pair.

    Args:
        encoder: the twin that `params` are of.
        params: meta-parameters of `siamese`.
        first: one input of each pair `[n, ...]`.
        second: the other `[n, ...]`.

    Returns:
        p `[n]`. It is symmetric: the two may change places. A batch-normalised twin sees all inputs as one batch, and
        then p of a pair depends on the others.

    Raises:
        ValueError: the two differ in shape.

    >>> from jaxmeta import nn
    >>> encoder = nn.MLP((), 4)
    >>> episode = Episode(*[Batch(jnp.eye(3), jnp.arange(3))] * 2)
    >>> params = siamese(encoder).init(jax.random.key(0), episode)
    >>> verify(encoder, params, jnp.eye(3), jnp.eye(3)).round(2).tolist()
    [0.5, 0.5, 0.5]
    """
    if first.shape != second.shape:
        raise ValueError(
            f"first and second must hold one input of each pair, but have {first.shape} and {second.shape}"
        )
    one, other = embed_together(encoder, params.encoder, first, second)
    return jax.nn.sigmoid(jnp.abs(one - other) @ params.head["kernel"] + params.head["bias"])


def verification_loss(logits: jax.Array, same: jax.Array) -> jax.Array:
    """Binary cross-entropy of pairs, those of one class and those of two weighing half each.

    Args:
        logits: of the probability that a pair shows one class, any shape.
        same: whether it does, the same shape.

    >>> round(float(verification_loss(jnp.zeros((2, 3)), jnp.eye(2, 3) > 0)), 4)  # log 2
    0.6931
    """
    same = same.astype(logits.dtype)
    surprise = same * jax.nn.softplus(-logits) + (1 - same) * jax.nn.softplus(logits)
    least = 1 / max(same.size, 2)  # pairs all of one kind weigh no more than if one were of the other
    share = jnp.clip(same.sum() / same.size, least, 1 - least)
    return jnp.mean(surprise * (same / share + (1 - same) / (1 - share))) / 2


def _logits(head: dict[str, jax.Array], queries: jax.Array, support: jax.Array) -> jax.Array:
    """The logit of p for every query and support embedding, `[q, s]`."""
    return _weighted_l1(head["kernel"], queries, support) + head["bias"]


@jax.custom_jvp
def _weighted_l1(weights: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """sum_j w_j |a_ij - b_kj|, `[i, k]`, of weights `[d]` and vectors `[i, d]` and `[k, d]`."""
    return jnp.abs(a[:, None] - b[None]) @ weights


@_weighted_l1.defjvp
def _weighted_l1_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """As products, whose transposes are products too: a CPU is slow at those of the differences, which are sums.

    Where two entries are equal, the derivative of |.| is taken to be 0.
    """
    (weights, a, b), (d_weights, d_a, d_b) = primals, tangents
    sign = jnp.sign(a[:, None] - b[None])
    d_differences = jnp.einsum("ikd,id->ik", sign, weights * d_a) - jnp.einsum("ikd,kd->ik", sign, weights * d_b)
    return _weighted_l1(weights, a, b), d_differences + jnp.abs(a[:, None] - b[None]) @ d_weights


def _best_of_class(kernel: jax.Array, labels: jax.Array, ways: int) -> jax.Array:
    """Which reference is the first to have the largest kernel of its class, `[q, s]`."""
    member = class_members(labels, ways)
    best = jnp.argmax(jnp.where(member[None], kernel[:, None], -jnp.inf), axis=-1)
    return jnp.any((best[..., None] == jnp.arange(len(labels))) & member[None], axis=1)


def _penalty(params: SiameseParams, l2: float | Mapping[str, float]) -> jax.Array:
    """The weighted squared norms of all kernels. The head is named for its weights: twins have a layer named head."""
    total, seen = jnp.zeros(()), set()
    for path, leaf in tree_leaves_with_path({"head": {"alpha": params.head}, "encoder": params.encoder}):
        names = keystr(path, simple=True, separator="/").split("/")
        if names[-1] == "kernel":
            seen.add(names[-2])
            total += (l2.get(names[-2], 0.0) if isinstance(l2, Mapping) else l2) * jnp.sum(leaf**2)
    if not isinstance(l2, Mapping) and l2 and seen == {"alpha"} and jax.tree.leaves(params.encoder):
        raise ValueError(f"l2={l2} is of weights named kernel, but the encoder has none")
    if isinstance(l2, Mapping) and (unknown := sorted(l2.keys() - seen)):
        raise ValueError(f"l2 names {unknown}, but the layers with kernels are {sorted(seen)}")
    return total
