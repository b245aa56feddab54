"""Labels as a sequence model reads and writes them, and episodes as sequences.

A label is a word of one or more letters, each of them one-hot; an answer is one softmax a letter, and right only if
all letters are right:

| code | letters | alphabet | words |
|---|---|---|---|
| `"one_hot"` | 1 | the ways | ways |
| `"strings"` | 5 | a..e | 3125, drawn anew for each episode |
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxmeta.episode import Batch, are_classes, is_classification

Code = Literal["one_hot", "strings"]

_LETTERS, _ALPHABET = 5, 5


class Words(NamedTuple):
    """The words of one episode's classes.

    Attributes:
        letters: `[ways, letters]`, integers.
        alphabet: how many letters there are to choose from.
    """

    letters: jax.Array
    alphabet: int

    def write(self, labels: jax.Array) -> jax.Array:
        """Labels `[n]` as one-hot letters, one after the other: `[n, letters * alphabet]`; NaN for one of no class."""
        letters = jax.nn.one_hot(self.letters[labels], self.alphabet) * self._known(labels)[:, None, None]
        return letters.reshape(len(labels), -1)

    def log_probabilities(self, outputs: jax.Array) -> jax.Array:
        """Outputs `[n, letters * alphabet]` as one log-softmax a letter: `[n, letters, alphabet]`."""
        return jax.nn.log_softmax(outputs.reshape(len(outputs), -1, self.alphabet))

    def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Cross-entropy, in nats, summed over letters and averaged over the sequence; NaN for a label of no class."""
        wanted = self.letters[labels][..., None]
        found = jnp.take_along_axis(self.log_probabilities(outputs), wanted, axis=-1)
        return -(found.sum((1, 2)) * self._known(labels)).mean()

    def right(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Whether every letter is right, `[n]`."""
        return (self.log_probabilities(outputs).argmax(-1) == self.letters[labels]).all(-1)

    def _known(self, labels: jax.Array) -> jax.Array:
        """1 for labels of the episode's classes, NaN for others, for which indexing would take some other class."""
        return jnp.where(are_classes(labels, len(self.letters)), 1.0, jnp.nan)

    def class_scores(self, outputs: jax.Array) -> jax.Array:
        """The log-probability of each class's word, `[n, ways]`."""
        places = jnp.arange(self.letters.shape[1])
        return self.log_probabilities(outputs)[:, places, self.letters].sum(-1)


def words(code: Code, ways: int, key: jax.Array) -> Words:
    """The words of an episode's classes: the class itself, or a string of five letters, no two alike.

    Args:
        code: `"one_hot"` or `"strings"`.
        ways: classes in the episode.
        key: draws the strings.

    Raises:
        ValueError: `code` is unknown, or there are more classes than strings.

    >>> words("one_hot", 3, jax.random.key(0)).write(jnp.array([2, 0])).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if code not in get_args(Code):
        raise ValueError(f"code must be one of {get_args(Code)}, but is {code!r}")
    if code == "one_hot":
        return Words(jnp.arange(ways)[:, None], ways)
    count = _ALPHABET**_LETTERS
    if ways > count:
        raise ValueError(f"ways={ways}, but there are {count} strings of {_LETTERS} letters out of {_ALPHABET}")
    _, drawn = jax.lax.top_k(jax.random.uniform(key, (count,)), ways)
    return Words(drawn[:, None] // _ALPHABET ** jnp.arange(_LETTERS) % _ALPHABET, _ALPHABET)


def check_labels(batch: Batch) -> None:
    """Raises if what is to be remembered are no class labels."""
    if not is_classification(batch.y):
        raise TypeError(f"a memory of labels wants integer labels, but targets have dtype {batch.y.dtype}")


def one_step_late(written: jax.Array) -> jax.Array:
    """What a sequence model sees beside each input: the label of the input before it, nothing beside the first.

    >>> one_step_late(jnp.eye(3)).tolist()
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    return jnp.concatenate([jnp.zeros_like(written[:1]), written[:-1]])


def instances(labels: jax.Array) -> jax.Array:
    """How often each label of a sequence `[n]` came up until then, itself included.

    >>> instances(jnp.array([3, 1, 3, 3, 1])).tolist()
    [1, 1, 2, 3, 2]
    """
    return jnp.tril(labels[:, None] == labels[None, :]).sum(1)


def by_instance(right: jax.Array, labels: jax.Array, most: int) -> jax.Array:
    """Accuracy at the first, second, .. presentation of a class.

    Args:
        right: `[n]`, whether each answer was right.
        labels: `[n]`.
        most: how many presentations to go to.

    Returns:
        `[most]`; NaN where no class came up so often.

    >>> by_instance(jnp.array([0, 0, 1, 1, 0]), jnp.array([3, 1, 3, 3, 1]), 3).tolist()
    [0.0, 0.5, 1.0]
    """
    at = instances(labels)[None, :] == jnp.arange(1, most + 1)[:, None]
    return (at * right).sum(1) / at.sum(1)
