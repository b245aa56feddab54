"""What finds a preset, and builds a learner, its tasks and its outer optimiser from settings."""

from typing import NamedTuple

import optax

from jaxmeta import tasks
from jaxmeta.augmentation import augmented
from jaxmeta.learner import MetaLearner
from jaxmeta.optimization import anil, boil, fomaml, imaml, maml, reptile, truncated_maml
from jaxmeta.presets._memory import MEMORY
from jaxmeta.presets._metric import METRIC
from jaxmeta.presets._optimization import OPTIMIZATION, loss_of, model_of
from jaxmeta.presets._settings import DATASETS, Family, Settings, check_dataset

FAMILIES = (OPTIMIZATION, METRIC, MEMORY)
METHODS = tuple(method for family in FAMILIES for method in family.methods)


class Setup(NamedTuple):
    """What a training and its evaluation are made of.

    Attributes:
        learner: the method, for training episodes.
        test_learner: the same method with the same meta-parameters, for test episodes.
        train_source: training episodes.
        test_source: test episodes.
        optimizer: the outer optimiser.
    """

    learner: MetaLearner
    test_learner: MetaLearner
    train_source: tasks.Source
    test_source: tasks.Source
    optimizer: optax.GradientTransformation


def family_of(method: str) -> Family:
    """The family of a method.

    Raises:
        ValueError: the method is unknown.
    """
    for family in FAMILIES:
        if method in family.methods:
            return family
    raise ValueError(f"unknown method {method!r}; the methods are {', '.join(METHODS)}")


def datasets_of(method: str) -> tuple[str, ...]:
    """The data sets that a method can train on, beside folders."""
    return DATASETS if family_of(method).regression else tuple(name for name in DATASETS if name != "sinusoid")


def settings(
    method: str, dataset: str, *, ways: int | None = None, shots: int | None = None, queries: int | None = None
) -> Settings:
    """The published settings of a method on a data set.

    Args:
        method: one of `METHODS`.
        dataset: one of `DATASETS`, or a folder of class folders. Data sets other than the paper's borrow the
            settings of Omniglot; images of a folder are not turned.
        ways: classes in an episode; None for 5, or the paper's. 20 or more take the papers' 20-way settings.
        shots: support examples of each class; None for the preset's.
        queries: query examples of each class; None for the preset's.

    Raises:
        ValueError: the method is unknown, `ways` is given for a regression, or the method cannot regress.
        FileNotFoundError: the data set is neither known nor a folder.

    >>> preset = settings("maml", "omniglot", ways=20)
    >>> preset.inner_steps, preset.meta_batch
    (5, 16)
    >>> preset = settings("prototypical", "omniglot")
    >>> preset.ways, preset.train_ways
    (5, 60)
    """
    family = family_of(method)
    if dataset == "sinusoid":
        if not family.regression:
            raise ValueError(
                f"{method} classifies, and sinusoid is a regression: --dataset takes {', '.join(datasets_of(method))}, "
                "or the path of a folder of class folders"
            )
        if ways is not None:
            raise ValueError(f"ways={ways}, but sinusoid is a regression, which has no classes")
    return family.preset(method, check_dataset(dataset), ways, shots, queries)


def build(settings: Settings) -> Setup:
    """Builds the learner, the tasks and the outer optimiser that settings describe.

    Raises:
        ValueError: a setting is out of range, or the data cannot serve it.
        FileNotFoundError: the data are not there.
    """
    family = family_of(settings.method)
    train_source, test_source = _sources(settings)
    train_ways = train_source.info.get("ways", settings.ways)
    if train_ways != settings.ways and not family.any_ways:
        raise ValueError(
            f"ways={settings.ways}, but {settings.method} has one output for each of the {train_ways} classes of its "
            "training episodes"
        )
    learner = family.learner(settings, train_ways)
    test_learner = learner if train_ways == settings.ways else family.learner(settings, settings.ways)
    if settings.augment:
        if settings.dataset == "sinusoid":
            raise ValueError("augment changes images, but sinusoid is a regression: want a data set of images")
        learner = augmented(learner, family.augment)
    return Setup(learner, test_learner, train_source, test_source, family.optimizer(settings))


def _sources(settings: Settings) -> tuple[tasks.Source, tasks.Source]:
    train = (settings.train_shots, settings.train_queries, settings.train_rotations)
    test = (settings.shots, settings.queries, settings.test_rotations)
    if settings.dataset == "sinusoid":
        variant = "reptile" if settings.method == "reptile" else "maml"
        train, test = (tasks.sinusoid(variant, shots=shots, queries=queries) for shots, queries, _ in (train, test))
        return train, test
    train_classes, test_classes = _classes(settings)
    ways = _train_ways(settings, len(train_classes.names))
    within = settings.within_groups
    return (
        _episodes("training", train_classes, within, ways, *train),
        _episodes("test", test_classes, within, settings.ways, *test),
    )


def _train_ways(settings: Settings, classes: int) -> int:
    """As many as asked; where they are the preset's own, no more than there are classes."""
    if settings.train_ways is None:
        return settings.ways
    preset = family_of(settings.method).preset(settings.method, settings.dataset, settings.ways, settings.shots, None)
    return min(settings.train_ways, classes) if settings.train_ways == preset.train_ways else settings.train_ways


def _episodes(
    name: str, classes: tasks.Classes, within: bool, ways: int, shots: int, queries: int, rotations: tasks.Rotations
) -> tasks.Source:
    try:
        return tasks.episodes(
            classes, ways=ways, shots=shots, queries=queries, rotations=rotations, within_groups=within
        )
    except ValueError as error:
        raise ValueError(f"{name} episodes: {error}") from error


def _classes(settings: Settings) -> tuple[tasks.Classes, tasks.Classes]:
    size = settings.image_size
    if settings.dataset == "glyphs":
        return tasks.glyphs("train", image_size=size), tasks.glyphs("test", image_size=size)
    if settings.dataset == "omniglot":
        train, test = (
            tasks.omniglot(settings.split, subset, image_size=size, data_dir=settings.data_dir)
            for subset in (settings.train_subset, "test")
        )
        return train, test
    return tasks.split_classes(tasks.from_folder(settings.dataset, image_size=size), test_share=0.25)


def estimators(settings: Settings) -> tuple[dict[str, MetaLearner], tasks.Source]:
    """Methods that differentiate the same parameters, with the model, the inner rate and the inner steps of settings.

    iMAML alone, which differentiates the solution of an inner problem of its own, has the rate and steps of its preset.
    Unlike the presets, all adapt the offsets of batch normalisation too.

    Args:
        settings: of MAML; other methods take over what they share with it.

    Returns:
        `(learners, source)`: learners by name, `"maml"` first, and the source of training episodes.
    """
    model, loss, steps = model_of(settings, settings.ways), loss_of(settings), settings.inner_steps
    inner = optax.sgd(settings.inner_lr)
    shared = {"inner_optimizer": inner, "steps": steps, "loss": loss}
    found = {"maml": maml(model, **shared), "fomaml": fomaml(model, **shared)}
    for m in sorted(m for m in {1, steps // 2} if 0 < m < steps):
        found[f"truncated_{m}"] = truncated_maml(model, backprop_steps=m, **shared)
    if steps:
        found["reptile"] = reptile(model, inner_lr=settings.inner_lr, **shared)
    found |= {"anil": anil(model, **shared), "boil": boil(model, **shared)}
    solves = OPTIMIZATION.preset("imaml", settings.dataset, settings.ways, settings.shots, settings.queries)
    solver = {"inner_optimizer": optax.sgd(solves.inner_lr), "steps": solves.inner_steps, "proximal": solves.proximal}
    found["imaml"] = imaml(model, loss=loss, **solver)
    return found, _sources(settings)[0]
