"""How an external memory is written and read: by least recent use (LRUA), or by content and location (NTM).

LRUA, for a memory M `[slots, width]`, n heads with keys k, gates s and what they write a, and usage u:

    w^lu = the n least used slots of u, one for each head          w^w = s w^r + (1 - s) w^lu
    M    <- M with the least used slot zeroed, then + sum_heads w^w a^T
    w^r  <- softmax( beta cos(k, M) )  r = w^r M                   u <- gamma u + sum_heads (w^r + w^w)

NTM, for every head: content c = softmax(beta cos(k, M)), interpolated, shifted and sharpened,

    w <- g c + (1 - g) w        w <- s * w (circular)        w <- w^gamma / sum w^gamma

| symbol | name | | symbol | name |
|---|---|---|---|---|
| M | `memory` | | u, gamma (LRUA) | `usage`, `decay` |
| w^r | `read_weights` | | w^w | `write_weights` |
| k | `keys` | | a | `written`; the paper writes the keys |
| beta | `strength`, 1 in LRUA's paper | | g, s | `gate`, `shift` |
| gamma (NTM) | `sharpness` | | | |

Everything is one step of one episode. What is not said otherwise follows the paper; where several heads make it
silent: head r takes the r-th least used slot, one slot alone is zeroed, and usage adds up over heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta._precision import widened

# Added to squared norms: a zeroed row is like no key, and has a gradient. In 16 bits it would be lost.
_EPSILON = 1e-8


def _shape(name: str, array: jax.Array, axes: str) -> tuple[int, ...]:
    if jnp.ndim(array) != len(axes.split()):
        raise ValueError(f"{name} must have shape [{axes}], but has {list(jnp.shape(array))}: map over what is more")
    return jnp.shape(array)


def _check(**arrays: tuple[jax.Array, tuple[int, ...]]) -> None:
    for name, (array, shape) in arrays.items():
        if jnp.shape(array) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, but has {list(jnp.shape(array))}")


class LRUAState(NamedTuple):
    """A memory addressed by least recent use.

    Attributes:
        memory: `[slots, width]`.
        usage: `[slots]`, decayed sums of all weights so far.
        read_weights: `[reads, slots]`, of the step before.
    """

    memory: jax.Array
    usage: jax.Array
    read_weights: jax.Array


class NTMState(NamedTuple):
    """A memory addressed by content and location.

    Attributes:
        memory: `[slots, width]`.
        weights: `[reads + 1, slots]`, of the step before; the last head writes.
    """

    memory: jax.Array
    weights: jax.Array


class NTMHeads(NamedTuple):
    """What a controller emits for the heads of an NTM.

    Attributes:
        key: `[heads, width]`.
        strength: `[heads]`, positive: the content softmax's inverse temperature.
        gate: `[heads]` in [0, 1]: 1 addresses by content, 0 starts from the weights of the step before.
        shift: `[heads, 3]`, probabilities of moving by -1, 0 and 1 slots.
        sharpness: `[heads]`, 1 or more.
    """

    key: jax.Array
    strength: jax.Array
    gate: jax.Array
    shift: jax.Array
    sharpness: jax.Array


def cosine(keys: jax.Array, memory: jax.Array) -> jax.Array:
    """The cosine of every key with every row, finite for rows of zeros.

    Args:
        keys: `[heads, width]`.
        memory: `[slots, width]`.

    Returns:
        `[heads, slots]`, in [-1, 1]; 0 for rows of zeros, and nearer to 0 than the angle says where a norm is not
        far above 1e-4.

    >>> cosine(jnp.array([[3.0, 4.0]]), jnp.array([[3.0, 4.0], [4.0, -3.0], [0.0, 0.0]])).round(4).tolist()
    [[1.0, 0.0, 0.0]]
    """
    dtype = jnp.result_type(keys, memory, 1.0)
    keys, memory = widened((keys, memory))
    inverse_key, inverse_row = (jax.lax.rsqrt((v * v).sum(-1) + _EPSILON) for v in (keys, memory))
    return (jnp.einsum("hw,sw->hs", keys, memory) * inverse_key[:, None] * inverse_row[None, :]).astype(dtype)


def least_used(usage: jax.Array, count: int) -> jax.Array:
    """The slots that were used least, the very least first; of equals, the one that stands first.

    Args:
        usage: `[slots]`.
        count: how many.

    Returns:
        `[count, slots]`: a one-hot row for each. No gradient flows through it.

    Raises:
        ValueError: `count` is not between 1 and the slots.

    >>> least_used(jnp.array([0.9, 0.2, 0.6, 0.2]), 2).tolist()
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    if not 1 <= count <= len(usage):
        raise ValueError(f"count must be between 1 and the {len(usage)} slots, but is {count}")
    left, rows = usage, []
    for _ in range(count):
        rows.append(jax.nn.one_hot(jnp.argmin(left), len(left), dtype=usage.dtype))
        left = jnp.where(rows[-1] > 0, jnp.inf, left)
    return jnp.stack(rows)


def lrua_step(
    state: LRUAState,
    keys: jax.Array,
    gates: jax.Array,
    *,
    decay: float,
    written: jax.Array | None = None,
    strength: float = 1.0,
) -> tuple[LRUAState, jax.Array, jax.Array]:
    """Writes to the memory and reads from it, by least recent use.

    Args:
        state: the memory before.
        keys: `[reads, width]`, what is looked for.
        gates: `[reads]` in [0, 1], sigmoid(alpha): 1 writes where the head read before, 0 to the least used slot.
        decay: gamma, what is left of a usage after a step.
        written: `[reads, width]`, what is written; None for the keys, as in the paper's equation 7.
        strength: beta, the inverse temperature of reading. At the paper's 1, the slot most like a key weighs at most
            e^2 = 7.4 times as much as the least like one.

    Returns:
        `(state, read, write_weights)`: the memory after, `[reads, width]`, and `[reads, slots]`.

    Raises:
        ValueError: shapes do not fit the state's, or there are more reads than slots.

    >>> before = LRUAState(jnp.eye(3, 2), jnp.array([0.9, 0.2, 0.6]), jnp.array([[0.7, 0.1, 0.2]]))
    >>> after, read, weights = lrua_step(before, jnp.array([[0.6, -0.8]]), jnp.array([0.5]), decay=0.99)
    >>> [jax.device_get(a).astype(float).round(4).tolist() for a in (weights, after.memory[1])]
    [[[0.35, 0.55, 0.1]], [0.33, -0.44]]

    References:
        Santoro, Bartunov, Botvinick, Wierstra, Lillicrap 2016, arXiv:1605.06065, section 3.2.
    """
    written = keys if written is None else written
    reads, slots = _shape("read_weights", state.read_weights, "reads slots")
    _, width = _shape("memory", state.memory, "slots width")
    _check(memory=(state.memory, (slots, width)), usage=(state.usage, (slots,)))
    _check(keys=(keys, (reads, width)), gates=(gates, (reads,)), written=(written, (reads, width)))
    if reads > slots:
        raise ValueError(f"{reads} heads read and write, each a slot of its own, but the memory has {slots}")
    least = least_used(state.usage, reads)
    write_weights = gates[:, None] * state.read_weights + (1 - gates[:, None]) * least
    memory = state.memory * (1 - least[0])[:, None] + jnp.einsum("hs,hw->sw", write_weights, written)
    read_weights = jax.nn.softmax(strength * cosine(keys, memory))
    usage = decay * state.usage + (read_weights + write_weights).sum(0)
    return LRUAState(memory, usage, read_weights), read_weights @ memory, write_weights


def address(weights: jax.Array, memory: jax.Array, heads: NTMHeads) -> jax.Array:
    """An NTM's weights, by content and location.

    Args:
        weights: `[heads, slots]`, of the step before.
        memory: `[slots, width]`.
        heads: what the controller emits.

    Returns:
        `[heads, slots]`, each row a distribution over slots.

    Raises:
        ValueError: shapes do not fit one another.

    >>> one = jnp.ones(1)
    >>> stay = NTMHeads(jnp.ones((1, 2)), one, 0 * one, jnp.array([[0.0, 0.0, 1.0]]), one)
    >>> address(jnp.array([[1.0, 0.0, 0.0]]), jnp.zeros((3, 2)), stay).round(4).tolist()
    [[0.0, 1.0, 0.0]]

    References:
        Graves, Wayne, Danihelka 2014, arXiv:1410.5401, section 3.3.
    """
    count, slots = _shape("weights", weights, "heads slots")
    _, width = _shape("memory", memory, "slots width")
    _check(memory=(memory, (slots, width)), key=(heads.key, (count, width)), shift=(heads.shift, (count, 3)))
    _check(**{name: (getattr(heads, name), (count,)) for name in ("strength", "gate", "sharpness")})
    content = jax.nn.softmax(heads.strength[:, None] * cosine(heads.key, memory))
    mixed = heads.gate[:, None] * content + (1 - heads.gate[:, None]) * weights
    moved = sum(heads.shift[:, i, None] * jnp.roll(mixed, i - 1, axis=-1) for i in range(3))
    # moved ** sharpness over its sum, where the powers themselves can be too small for a float.
    return jax.nn.softmax(heads.sharpness[:, None] * jnp.log(widened(moved) + _EPSILON)).astype(mixed.dtype)


def ntm_step(
    state: NTMState, heads: NTMHeads, erase: jax.Array, add: jax.Array
) -> tuple[NTMState, jax.Array, jax.Array]:
    """Writes to the memory with the last head, then reads from it with the others.

    Args:
        state: the memory before.
        heads: `reads + 1` heads.
        erase: `[width]` in [0, 1], what the write takes away.
        add: `[width]`, what it puts there.

    Returns:
        As `lrua_step`, with write weights `[1, slots]`.

    Raises:
        ValueError: shapes do not fit the state's.

    >>> two = jnp.ones(2)
    >>> stay = NTMHeads(jnp.ones((2, 2)), two, 0 * two, jnp.tile(jnp.array([0.0, 1.0, 0.0]), (2, 1)), two)
    >>> before = NTMState(jnp.zeros((3, 2)), jnp.eye(2, 3))  # the first head reads slot 0, the last writes to slot 1
    >>> after, read, written = ntm_step(before, stay, jnp.ones(2), jnp.array([5.0, 6.0]))
    >>> after.memory.round(4).tolist(), read.round(4).tolist()
    ([[0.0, 0.0], [5.0, 6.0], [0.0, 0.0]], [[0.0, 0.0]])
    """
    count, _ = _shape("weights", state.weights, "heads slots")
    _, width = _shape("memory", state.memory, "slots width")
    if count < 2:
        raise ValueError(f"an NTM writes with one head and reads with the others, but has {count}")
    _check(key=(heads.key, (count, width)), erase=(erase, (width,)), add=(add, (width,)))
    last = count - 1
    writer, readers = (jax.tree.map(lambda leaf, s=s: leaf[s], heads) for s in (slice(last, None), slice(0, last)))
    write = address(state.weights[last:], state.memory, writer)
    memory = state.memory * (1 - write.T * erase) + write.T * add
    read = address(state.weights[:last], memory, readers)
    return NTMState(memory, jnp.concatenate([read, write])), read @ memory, write
