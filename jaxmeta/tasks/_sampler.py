"""N-way K-shot episodes from labelled examples, sampled inside `jax.jit`.

Classes are drawn without repeats, and so are the examples of each; both by taking the largest of independent
uniforms, which is faster on every backend than a shuffle. A class's label is its place in that draw, so labels
carry nothing from one episode to the next.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.episode import Batch, Episode
from jaxmeta.tasks._augment import quarter_turns
from jaxmeta.tasks._source import Source

Rotations = Literal["none", "classes", "per_class", "per_episode", "per_episode_mirrored"]


class Classes(NamedTuple):
    """Labelled examples, grouped by class.

    Attributes:
        examples: `[classes, most, ...]`; images are `uint8` `[classes, most, height, width, channels]`.
        counts: `[classes]`, how many of the `most` places of each class are filled, from the first on.
        names: the name of each class.
        info: what describes the collection in a result file, JSON-able.
        groups: the group of each class, such as its alphabet; None where classes have none.
        drawers: `[classes, most]`, who made each example, a number that means one person within a group, and nothing
            beyond `counts`; None where that is not known.
    """

    examples: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    info: dict[str, Any]
    groups: tuple[str, ...] | None = None
    drawers: np.ndarray | None = None


def episodes(
    classes: Classes,
    *,
    ways: int,
    shots: int,
    queries: int,
    rotations: Rotations = "none",
    within_groups: bool = False,
) -> Source:
    """A source of N-way K-shot episodes.

    Args:
        classes: the classes to draw from.
        ways: classes in an episode, N.
        shots: support examples of each class, K.
        queries: query examples of each class.
        rotations: quarter turns of images as further variety. `"classes"`: each class turned is another class,
            and two of them may meet in an episode (Prototypical Networks). `"per_class"`: each class of an
            episode is turned at random (MAML). `"per_episode"`: all classes are turned alike (Relation
            Networks). `"per_episode_mirrored"`: all are turned alike, and in half of the episodes mirrored too.
        within_groups: take all classes of an episode from one group, such as an alphabet, each group alike likely;
            groups with fewer than `ways` classes are left out. Harder than classes from anywhere.

    Returns:
        A source of episodes: x `[ways * shots, ...]` and `[ways * queries, ...]` in class order, `uint8` examples
        scaled to [0, 1]; y the labels 0 .. ways - 1.

    Raises:
        ValueError: more ways than classes (or than any group has), more shots and queries than a class has examples,
            a size out of range, or rotations of something other than square images.

    >>> from jaxmeta import tasks
    >>> source = tasks.episodes(tasks.glyphs("train", classes=8, image_size=8), ways=3, shots=1, queries=2)
    >>> support, query = source.sample(source.data, jax.random.key(0))
    >>> support.x.shape, query.y.tolist()
    ((3, 8, 8, 1), [0, 0, 1, 1, 2, 2])
    """
    _check(classes, ways, shots, queries, rotations)
    turns = 4 if rotations == "classes" else 1
    members = members_of_groups(classes, ways, turns) if within_groups else None

    def sample(data: tuple[jax.Array, jax.Array], key: jax.Array) -> Episode:
        examples, counts = data
        class_key, example_key, turn_key = jax.random.split(key, 3)
        drawn = _draw_classes(class_key, turns * examples.shape[0], ways, members)
        chosen = drawn // turns
        lots = jax.random.uniform(example_key, (ways, examples.shape[1]))
        lots = jnp.where(jnp.arange(examples.shape[1]) < counts[chosen][:, None], lots, -1.0)
        _, places = jax.lax.top_k(lots, shots + queries)
        x = examples[chosen[:, None], places]
        if rotations == "classes":
            x = _turn(x, drawn % turns)
        elif rotations == "per_class":
            x = _turn(x, jax.random.randint(turn_key, (ways,), 0, 4))
        elif rotations != "none":
            mirrored = rotations == "per_episode_mirrored"
            symmetry = jax.random.randint(turn_key, (), 0, 8 if mirrored else 4)
            x = jnp.where(symmetry < 4, x, jnp.flip(x, axis=3)) if mirrored else x
            x = _turn(x, jnp.broadcast_to(symmetry % 4, (ways,)))
        return Episode(_labelled(x[:, :shots]), _labelled(x[:, shots:]))

    info = {**classes.info, "ways": ways, "shots": shots, "queries": queries, "rotations": rotations}
    info |= {"within_groups": True} if within_groups else {}
    return Source(sample, (jnp.asarray(classes.examples), jnp.asarray(classes.counts)), info)


def _draw_classes(key: jax.Array, count: int, ways: int, members: np.ndarray | None) -> jax.Array:
    """`ways` of `count` classes without repeats, of one group if the groups' members `[groups, count]` are given."""
    if members is None:
        return jax.lax.top_k(jax.random.uniform(key, (count,)), ways)[1]
    group_key, class_key = jax.random.split(key)
    group = jax.random.randint(group_key, (), 0, len(members))
    lots = jnp.where(jnp.asarray(members)[group], jax.random.uniform(class_key, (count,)), -1.0)
    return jax.lax.top_k(lots, ways)[1]


def members_of_groups(classes: Classes, ways: int, turns: int) -> np.ndarray:
    """Which classes, turns apart, each group with enough of them has: `[groups, turns * classes]`."""
    if classes.groups is None:
        raise ValueError("within_groups=True, but the classes have no groups")
    names = np.array(classes.groups)
    members = np.repeat(names[None] == np.unique(names)[:, None], turns, axis=1)
    sizes = members.sum(1)
    if sizes.max() < ways:
        raise ValueError(f"ways={ways}, but no group has more than {sizes.max()} classes")
    return members[sizes >= ways]


def _turn(x: jax.Array, quarters: jax.Array) -> jax.Array:
    """Turns images `[ways, n, height, width, channels]` by a number of quarters for each class `[ways]`."""
    turned = quarter_turns(jax.lax.collapse(x, 0, 2)).reshape(4, *x.shape)
    return turned[quarters, jnp.arange(x.shape[0])]


def _labelled(x: jax.Array) -> Batch:
    """Flattens `[ways, n, ...]` to a batch of `ways * n` with labels in class order."""
    ways, n = x.shape[:2]
    x = x.reshape(ways * n, *x.shape[2:])
    return Batch(to_unit(x), jnp.repeat(jnp.arange(ways, dtype=jnp.int32), n))


def to_unit(x: jax.Array) -> jax.Array:
    """Examples `[n, ...]`, with `uint8` images `[n, height, width, channels]` scaled to [0, 1]."""
    return x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 and x.ndim == 4 else x


def _check(classes: Classes, ways: int, shots: int, queries: int, rotations: str) -> None:
    if ways < 2 or shots < 1 or queries < 0:
        raise ValueError(f"ways={ways}, shots={shots}, queries={queries} must be at least 2, 1 and 0")
    if rotations not in get_args(Rotations):
        raise ValueError(f"rotations must be one of {get_args(Rotations)}, but is {rotations!r}")
    shape = classes.examples.shape
    if rotations != "none" and (len(shape) != 5 or shape[2] != shape[3]):
        raise ValueError(f"rotations={rotations!r} wants square images, but the examples have shape {shape[2:]}")
    available = shape[0] * (4 if rotations == "classes" else 1)
    if ways > available:
        raise ValueError(f"ways={ways}, but there are {available} classes")
    scarce = int(np.argmin(classes.counts))
    if shots + queries > classes.counts[scarce]:
        raise ValueError(
            f"shots={shots} and queries={queries} want {shots + queries} examples of every class, "
            f"but class {classes.names[scarce]} has {classes.counts[scarce]}"
        )
