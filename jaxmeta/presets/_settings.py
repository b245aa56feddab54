"""Everything that decides a training, and the data sets that settings can name."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from jaxmeta.learner import MetaLearner
from jaxmeta.tasks import Rotations, Split, Subset, turns_and_shifts

DATASETS = ("sinusoid", "glyphs", "omniglot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a training and its evaluation, JSON-able. Each method heeds those that concern it.

    Raises:
        ValueError: a number is one that no training can use.
    """

    method: str
    dataset: str  # one of DATASETS, or the absolute path of a folder of class folders
    ways: int = 5  # classes in test episodes
    shots: int = 1  # support examples of each class in test episodes
    queries: int = 1  # query examples of each class in test episodes
    train_ways: int | None = None  # None: ways; where it is the preset's own, all classes if there are fewer
    train_shots: int = 1
    train_queries: int = 1
    steps: int = 60_000
    inner_steps: int = 1
    inner_lr: float = 2.0  # of the mean loss
    inner_batch: int | None = None  # None: all examples at every step
    eval_inner_steps: int = 3
    eval_inner_batch: int | None = None
    persistent: bool = False
    proximal: float = 2.0  # iMAML's lambda
    temperature: float = 1.0  # what distances or cosines are divided by
    read_steps: int = 3  # of Matching Networks' attention LSTM
    l2: float = 0.0  # weight of the squared norm of a siamese network's kernels
    meta_batch: int = 32
    chunk: int | None = None  # episodes that a device maps at once, at most; None chooses by what fits its cache
    outer_lr: float = 1e-3  # Adam's rate, or Reptile's first step size epsilon
    halve_every: int | None = None  # outer steps after which the outer rate is halved, again and again
    image_size: int = 28
    split: Split = "vinyals"
    train_subset: Subset = "train"
    train_rotations: Rotations = "none"
    test_rotations: Rotations = "none"
    augment: bool = False  # change training images a little at random, by the family's `augment`
    within_groups: bool = False  # take the classes of an episode from one alphabet
    episodes: int = 600
    query_mode: str = "transductive"
    data_dir: str | None = None
    log_every: int = 100
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        """Refuses numbers that no training can use."""
        least = {
            "steps": 1,
            "inner_steps": int(self.method in ("reptile", "maml_pp")),
            "eval_inner_steps": 0,
            "meta_batch": 1,
            "shots": 1,
            "queries": 1,
            "episodes": 2,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be {bound} or more, but is {getattr(self, name)}")
        for name in ("train_ways", "halve_every"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise ValueError(f"{name} must be 1 or more, but is {given}")
        for name in ("inner_lr", "outer_lr", "proximal", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")

    @property
    def outer_rate(self) -> optax.ScalarOrSchedule:
        """The outer rate of methods that give it no course of their own; a schedule where it is halved."""
        if self.halve_every is None:
            return self.outer_lr
        return optax.exponential_decay(self.outer_lr, self.halve_every, 0.5, staircase=True)


class Family(NamedTuple):
    """A family of methods: what it takes to look a preset up and to build from it.

    Attributes:
        methods: their names.
        preset: `(method, dataset, ways, shots, queries) -> Settings`, the papers' settings; `dataset` is one of
            `DATASETS` or an existing folder, and the numbers are None where the papers' are wanted.
        learner: `(settings, ways) -> MetaLearner` for episodes with that many classes.
        optimizer: `settings -> optimizer`, the outer optimiser.
        refused: `method -> {option: reason}`: options of `jaxmeta train` that the method would ignore.
        any_ways: whether the same meta-parameters serve episodes of any number of classes.
        regression: whether the methods can regress, and so train on sinusoids.
        augment: what `settings.augment` does to training images.
    """

    methods: tuple[str, ...]
    preset: Callable[[str, str, int | None, int | None, int | None], Settings]
    learner: Callable[[Settings, int], MetaLearner]
    optimizer: Callable[[Settings], optax.GradientTransformation]
    refused: Callable[[str], Mapping[str, str]]
    any_ways: bool
    regression: bool
    augment: Callable[[jax.Array, jax.Array], jax.Array] = turns_and_shifts()


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def on_dataset(preset: Settings, dataset: str) -> Settings:
    """Omniglot's preset on another data set: images of one's own are not turned."""
    if dataset in DATASETS:
        return dataclasses.replace(preset, dataset=dataset)
    return dataclasses.replace(preset, dataset=dataset, train_rotations="none", test_rotations="none")


def check_dataset(dataset: str) -> str:
    """A data set's name, or the absolute path of its folder.

    Raises:
        FileNotFoundError: the data set is neither known nor a folder.
    """
    if dataset in DATASETS:
        return dataset
    if not dataset or not Path(dataset).is_dir():
        raise FileNotFoundError(
            f"dataset {dataset!r} is none of {', '.join(DATASETS)}, "
            f"and there is no folder at {str(Path(dataset).absolute()) if dataset else ''!r}"
        )
    return str(Path(dataset).absolute())
