"""MetaNet: two networks whose fast weights are made from gradients, and fetched from a memory by attention.

    task level      g_i = d/dQ L_emb(u(Q; x_i), y_i),  i = 1..T        Q* = d(g_1, .., g_T)
    example level   g_i = d/dW L(b(W; x_i), y_i),      i = 1..N        M_i = m(g_i),    R_i = u(Q, Q*; x_i)
    a query x       W* = softmax(cos(R, u(Q, Q*; x))) M                 prediction b(W, W*; x)

Slow and fast weights meet by layer augmentation: a layer's *activations* under both are added,
relu(h W) + relu(h W*), and in the last layer what goes into the softmax. Gradients are those of the slow network
alone. m and d are networks that all coordinates share; they see each gradient as `log_sign` with p = 7 shows it.

| symbol | name | | symbol | name |
|---|---|---|---|---|
| W, Q | `MetaNetParams.base`, `.representation` | | W*, Q* | fast weights |
| m, d | `.example`, `.task` | | M, R | `Memory.fast`, `Memory.keys` |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta._gradient import outer_gradient
from jaxmeta.episode import Batch, Episode, check_batch, check_episode, check_inputs
from jaxmeta.learner import MetaLearner, Metrics, Params
from jaxmeta.losses import cross_entropy, score
from jaxmeta.memory._addressing import cosine
from jaxmeta.memory._augmented import AugmentedConv, embed, fast_part, logits, with_part
from jaxmeta.memory._generators import (
    ExampleGenerator,
    TaskGenerator,
    from_each,
    from_sequence,
    init_example,
    init_task,
)
from jaxmeta.memory._labels import check_labels

_P = 7.0  # of `log_sign`, where the LSTM meta-learner has 10
_MARGIN = 1.0


class MetaNetParams(NamedTuple):
    """Meta-parameters of MetaNet.

    Attributes:
        base: W, the slow weights of the base learner.
        representation: Q, those of the representation learner.
        example: m, which makes example-level fast weights.
        task: d, which makes task-level fast weights.
    """

    base: Params
    representation: Params
    example: ExampleGenerator
    task: TaskGenerator


class Memory(NamedTuple):
    """What MetaNet stores of a support set.

    Attributes:
        fast: fast weights of the base learner, each with a leading axis of the n support examples.
        keys: `[n, d]`, their representations.
        task: fast weights of the representation learner, Q*.
    """

    fast: Params
    keys: jax.Array
    task: Params


def memorise(
    model: AugmentedConv,
    params: MetaNetParams,
    support: Batch,
    key: jax.Array,
    *,
    samples: int | None = None,
    example_level: bool = True,
    task_level: bool = True,
    differentiate: bool = False,
) -> Memory:
    """Turns a support set into fast weights and keys.

    Args:
        model: both networks' architecture.
        params: the meta-parameters.
        support: x `[n, height, width, channels]`, labels `[n]`.
        key: draws the examples, or the pairs, that task-level fast weights are made from.
        samples: as for `metanet`.
        example_level: as for `metanet`.
        task_level: as for `metanet`.
        differentiate: as for `metanet`.

    Returns:
        A `Memory`.

    Raises:
        TypeError: the targets are not integer labels.
        ValueError: there are fewer examples than classes, labels, where they are known, do not fit the model's outputs
            or lack a class, `samples` is not between 1 and the support examples, or task-level fast weights have no
            layer to go to.

    >>> model = AugmentedConv(2, features=2, convolutions=1, key_features=3)
    >>> support = Batch(jnp.ones((2, 4, 4, 1)), jnp.arange(2))
    >>> params = jax.jit(metanet(model, hidden=4).init)(jax.random.key(0), Episode(support, support))
    >>> memory = jax.jit(memorise, static_argnums=0)(model, params, support, jax.random.key(1))
    >>> memory.keys.shape, memory.fast["head"]["kernel"].shape
    ((2, 3), (2, 3, 2))
    """
    check_batch("support", support, model.outputs)
    check_labels(support)
    if samples is not None and not 1 <= samples <= len(support.y):
        raise ValueError(f"samples must be between 1 and the {len(support.y)} support examples, but is {samples}")
    if task_level and model.fast_layers == 1:
        raise ValueError(
            "fast_layers=1 is the head alone, which comes after the keys: task-level fast weights want 2 or more"
        )
    order_key, pair_key = jax.random.split(key)
    pass_on = (lambda grads: grads) if differentiate else jax.lax.stop_gradient
    several = len(support.y) > model.outputs
    count = len(support.y) if samples is None else samples

    def embedding_loss(part: Params, pair: tuple[Batch, Batch]) -> jax.Array:
        slow = with_part(params.representation, part)
        if not several:
            return cross_entropy(logits(model, slow, pair[0].x[None]), pair[0].y[None])
        first, other = (embed(model, slow, one.x[None])[0] for one in pair)
        return _contrastive(first, other, pair[0].y == pair[1].y)

    def task_loss(part: Params, one: Batch) -> jax.Array:
        return cross_entropy(logits(model, with_part(params.base, part), one.x[None]), one.y[None])

    def gradients(loss: Callable[..., jax.Array], part: Params, batch: Any) -> Params:
        return pass_on(jax.vmap(jax.grad(loss), in_axes=(None, 0))(part, batch))

    places = jax.random.permutation(order_key, len(support.y))[:count]
    further = jax.random.randint(pair_key, (count,), 1, len(support.y))  # never an example with itself
    chosen, other = _take(support, places), _take(support, (places + further) % len(support.y))
    of_keys = fast_part(model, params.representation, head=False)
    of_answers = fast_part(model, params.base, head=True)
    if task_level:
        task = from_sequence(params.task, gradients(embedding_loss, of_keys, (chosen, other)), _P)
    else:
        task = jax.tree.map(jnp.zeros_like, of_keys)
    if example_level:
        fast = from_each(params.example, gradients(task_loss, of_answers, support), _P)
    else:
        fast = jax.tree.map(lambda leaf: jnp.zeros((len(support.y), *leaf.shape)), of_answers)
    return Memory(fast, embed(model, params.representation, support.x, task), task)


def recall(
    model: AugmentedConv, params: MetaNetParams, memory: Memory, query_x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Answers queries, each with fast weights of its own.

    Args:
        model: both networks' architecture.
        params: the meta-parameters.
        memory: what `memorise` made of the support set.
        query_x: `[q, ...]`.

    Returns:
        `(logits, attention)`: `[q, ways]`, and `[q, n]`, the weight of each support example for each query.

    >>> model = AugmentedConv(2, features=2, convolutions=1, key_features=3)
    >>> support = Batch(jnp.ones((2, 4, 4, 1)), jnp.arange(2))
    >>> params = jax.jit(metanet(model, hidden=4).init)(jax.random.key(0), Episode(support, support))
    >>> memory = jax.jit(memorise, static_argnums=0)(model, params, support, jax.random.key(1))
    >>> recall(model, params, memory, support.x)[1].round(4).tolist()  # two queries alike, two examples alike
    [[0.5, 0.5], [0.5, 0.5]]
    """
    attention = jax.nn.softmax(cosine(embed(model, params.representation, query_x, memory.task), memory.keys))

    def answer(weights: jax.Array, x: jax.Array) -> jax.Array:
        fast = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), memory.fast)
        return logits(model, params.base, x[None], fast)[0]

    return jax.vmap(answer)(attention, query_x), attention


def metanet(
    model: AugmentedConv,
    *,
    hidden: int = 20,
    samples: int | None = None,
    example_level: bool = True,
    task_level: bool = True,
    differentiate: bool = False,
) -> MetaLearner:
    """MetaNet: fast weights from gradients, fetched by attention.

    The embedding loss of the representation learner is a cross-entropy where there is one support example of each
    class, and contrastive, on random pairs, where there are more: trained on the one, a network has not seen the
    gradients of the other.

    Args:
        model: the architecture of base and representation learner; `model.outputs` are the ways.
        hidden: units of the generators' hidden layers.
        samples: T, support examples that task-level fast weights are made from; None for all.
        example_level: without it, the base learner has slow weights alone, and has nothing to learn labels with.
        task_level: without it, keys come from the representation learner's slow weights.
        differentiate: let derivatives through the gradients that fast weights are made from, which are taken as
            constants otherwise. Nothing else depends on the representation learner's head: as constants, they leave it
            as it started.

    Returns:
        A `MetaLearner` whose meta-parameters are a `MetaNetParams`. Metrics: `loss`, `accuracy`.

    Raises:
        TypeError: as `memorise`.
        ValueError: `hidden` is less than 1, the model has fewer layers than `fast_layers`, or as `memorise`.

    >>> learner = metanet(AugmentedConv(5, features=4), hidden=8)

    References:
        Munkhdalai, Yu 2017, arXiv:1703.00837.
    """
    if hidden < 1:
        raise ValueError(f"hidden must be 1 or more, but is {hidden}")
    model.fast_names()  # raises if they cannot be

    def init(key: jax.Array, episode: Episode) -> MetaNetParams:
        check_episode(episode, ways=model.outputs)
        check_labels(episode.support)
        keys = jax.random.split(key, 4)
        base, representation = (model.init(k, episode.support.x) for k in keys[:2])
        return MetaNetParams(base, representation, init_example(keys[2], hidden), init_task(keys[3], hidden))

    def answer(params: MetaNetParams, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
        memory = memorise(
            model,
            params,
            support,
            key,
            samples=samples,
            example_level=example_level,
            task_level=task_level,
            differentiate=differentiate,
        )
        check_inputs(support.x, query_x)
        return recall(model, params, memory, query_x)[0]

    def meta_grad(params: MetaNetParams, episode: Episode, key: jax.Array) -> tuple[MetaNetParams, Metrics]:
        check_episode(episode, ways=model.outputs)

        def objective(params: MetaNetParams) -> tuple[jax.Array, Metrics]:
            found = answer(params, episode.support, episode.query.x, key)
            loss = cross_entropy(found, episode.query.y)
            return loss, dict([score(found, episode.query.y)], loss=loss)

        return outer_gradient(objective, params)

    return MetaLearner(init, meta_grad, answer)


def _contrastive(one: jax.Array, other: jax.Array, same: jax.Array) -> jax.Array:
    """Pulls representations of a class together, and pushes others a margin apart."""
    square = ((one - other) ** 2).sum()
    apart = jnp.sqrt(square + 1e-8)
    return jnp.where(same, square, jnp.maximum(0.0, _MARGIN - apart) ** 2)


def _take(batch: Batch, places: jax.Array) -> Batch:
    return Batch(jnp.asarray(batch.x)[places], jnp.asarray(batch.y)[places])
