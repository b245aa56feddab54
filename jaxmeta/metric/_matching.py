"""Matching Networks: attention over the support set.

    P(y | x, S) = sum_i a(x, x_i) y_i,      a(x, x_i) = softmax_i( cos(f(x, S), g(x_i, S)) / T )

The simple form has f = g = the encoder. Full context embeddings (FCE) let every embedding depend on the support set:

    g(x_i, S) = h_i^forward + h_i^backward + g'(x_i)           a bidirectional LSTM over the support sequence
    f(x, S)   = h_K,  from K read steps of an LSTM with the constant input f'(x):
                h^_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1}),     h_k = h^_k + f'(x),
                r_{k-1} = sum_i softmax_i( h_{k-1}^T g(x_i, S) ) g(x_i, S)

| symbol | name | | symbol | name |
|---|---|---|---|---|
| f', g' | `encoder` | | K | `read_steps` |
| a | exp of `Comparison.log_kernel` | | T | `temperature` |

Cosines lie in [-1, 1], so at T = 1 no class can have more than e / (e + (N - 1) / e): 0.649 with 5 ways, 0.280 with 20.
After a ReLU they lie in [0, 1], and it is e / (e + N - 1): 0.405 and 0.125, so that the loss cannot come near 0. At
T = 0.1 it can. The loss is -log P: P is normalised already, and no softmax is taken of it again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as fnn
import jax
import jax.numpy as jnp

from jaxmeta.episode import Batch, Episode
from jaxmeta.learner import Comparison, MetaLearner, Model, Params, check_int
from jaxmeta.metric._kernels import check_temperature, cosine_similarity
from jaxmeta.metric._metric_learner import check_vectors, embed_together, metric_learner, negative_log_likelihood
from jaxmeta.nn import lstm_update
from jaxmeta.nn._stateless import init_stateless


def matching(encoder: Model, *, temperature: float = 1.0, ways: int | None = None) -> MetaLearner:
    """Matching Networks: classifies by attention over the support examples.

    Args:
        encoder: the embedding of both sets, inputs `[n, ...]` to `[n, d]`, for instance `nn.Conv4(None)`.
        temperature: what cosines are divided by; 1 in the paper.
        ways: classes in an episode; None for as many as there are support examples. See `prototypical`.

    Returns:
        A `MetaLearner`. Predictions are log-probabilities. Metrics: the query `loss` in nats and `accuracy`.

    Raises:
        ValueError: `temperature` is not positive, or `ways` is less than 2.

    >>> from jaxmeta import nn
    >>> learner = matching(nn.MLP((), 4), temperature=0.1, ways=3)
    >>> episode = Episode(*[Batch(jnp.eye(3), jnp.arange(3))] * 2)
    >>> params = learner.init(jax.random.key(0), episode)
    >>> log_probs = learner.predict(params, episode.support, episode.query.x, jax.random.key(1))
    >>> log_probs.argmax(1).tolist()
    [0, 1, 2]

    References:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv:1606.04080.
    """
    check_temperature(temperature)

    def compare(params: Params, support: Batch, query_x: Any, ways: int, key: jax.Array) -> Comparison:
        del ways, key
        embedded, queries = embed_together(encoder, params, support.x, query_x)
        return _attend(embedded, queries, support.y, temperature)

    def init(key: jax.Array, episode: Episode) -> Params:
        return init_stateless(encoder, key, episode.support.x)

    return metric_learner(init, compare, negative_log_likelihood, ways)


class FullContextParams(NamedTuple):
    """Meta-parameters of `matching_fce`.

    Attributes:
        encoder: the weights of the embedding f' = g'.
        context: the weights of `FullContext`.
    """

    encoder: Params
    context: Params


def matching_fce(
    encoder: Model, *, read_steps: int = 3, temperature: float = 1.0, ways: int | None = None
) -> MetaLearner:
    """Matching Networks with full context embeddings: what an example embeds to depends on the support set.

    The bidirectional LSTM reads the support set as a sequence, in an order that is drawn from the key, in training and
    in prediction. Other than permuting labels does, another order gives other predictions.

    Args:
        encoder: the embedding of both sets, inputs `[n, ...]` to `[n, d]`; the LSTMs have the same width d.
        read_steps: K, steps of the attention LSTM; the paper does not tell its number. With 0, f(x, S) is f'(x).
        temperature: what cosines are divided by; 1 in the paper.
        ways: classes in an episode; None for as many as there are support examples. See `prototypical`.

    Returns:
        A `MetaLearner` with `FullContextParams`.

    Raises:
        TypeError: `read_steps` is no int.
        ValueError: `read_steps` is negative, `temperature` is not positive, or `ways` is less than 2.

    >>> from jaxmeta import nn
    >>> learner = matching_fce(nn.MLP((), 4), read_steps=2, ways=3)
    >>> episode = Episode(*[Batch(jnp.eye(3), jnp.arange(3))] * 2)
    >>> params = learner.init(jax.random.key(0), episode)
    >>> learner.predict(params, episode.support, episode.query.x, jax.random.key(1)).shape
    (3, 3)

    References:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv:1606.04080, section 2.1.2 and appendix A.
    """
    check_temperature(temperature)
    read_steps = check_int("read_steps", read_steps)
    if read_steps < 0:
        raise ValueError(f"read_steps must be 0 or more, but is {read_steps}")
    context: Any = FullContext(read_steps)

    def compare(params: FullContextParams, support: Batch, query_x: Any, ways: int, key: jax.Array) -> Comparison:
        del ways
        plain, queries = embed_together(encoder, params.encoder, support.x, query_x)
        order = jax.random.permutation(key, len(plain))
        embedded, queries = context.apply(params.context, plain[order], queries)
        return _attend(embedded[jnp.argsort(order)], queries, support.y, temperature)

    def init(key: jax.Array, episode: Episode) -> FullContextParams:
        encoder_key, context_key = jax.random.split(key)
        params = init_stateless(encoder, encoder_key, episode.support.x)
        embedded = encoder.apply(params, episode.support.x)
        check_vectors(embedded)
        return FullContextParams(params, context.init(context_key, embedded, embedded))

    return metric_learner(init, compare, negative_log_likelihood, ways)


class FullContext(fnn.Module):
    """Embeddings in the context of a support set: g by a bidirectional LSTM, f by an LSTM that reads from g.

    The paper leaves the start of the recursion open: here h_0 = c_0 = 0, so that the first read r_0 is the mean of g.

    Attributes:
        read_steps: K.
    """

    read_steps: int

    @fnn.compact
    def __call__(self, support: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps g' `[s, d]`, in the order to read it in, and f' `[q, d]` to g `[s, d]` and f `[q, d]`."""
        # At least single precision, as the weights: a carry has to keep its type.
        support, queries = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (support, queries))
        width = support.shape[-1]
        forward = _outputs(self._gates("forward", 2 * width, width), support)
        backward = _outputs(self._gates("backward", 2 * width, width), support[::-1])[::-1]
        context = forward + backward + support
        gates = self._gates("read", 3 * width, width)
        if not self.read_steps:
            return context, queries

        def step(state: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
            h, c = state
            read = jax.nn.softmax(h @ context.T) @ context
            h, c = lstm_update(_joined(gates, [queries, h, read]), c)
            return (h + queries, c), None

        zeros = jnp.zeros_like(queries)
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), length=self.read_steps)
        return context, h

    def _gates(self, name: str, inputs: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Weights of an LSTM whose input and recurrent input are joined; its forget gates start with a bias of 1."""
        kernel = self.param(f"{name}_kernel", fnn.initializers.xavier_uniform(), (inputs, 4 * width), jnp.float32)
        return kernel, self.param(f"{name}_bias", lambda _: jnp.zeros(4 * width, jnp.float32).at[:width].set(1))


def _joined(gates: tuple[jax.Array, jax.Array], inputs: Sequence[jax.Array]) -> jax.Array:
    kernel, bias = gates
    return jnp.concatenate(inputs, axis=-1) @ kernel + bias


def _outputs(gates: tuple[jax.Array, jax.Array], sequence: jax.Array) -> jax.Array:
    """What an LSTM puts out along a sequence `[s, d]`, from zeros on."""

    def step(state: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        h, c = lstm_update(_joined(gates, [x, h]), c)
        return (h, c), h

    zeros = jnp.zeros_like(sequence[0])
    return jax.lax.scan(step, (zeros, zeros), sequence)[1]


def _attend(embedded: jax.Array, queries: jax.Array, labels: jax.Array, temperature: float) -> Comparison:
    log_kernel = jax.nn.log_softmax(cosine_similarity(queries, embedded) / temperature)
    return Comparison(embedded, queries, embedded, labels, log_kernel)
