"""What builds a learner, its tasks and its outer optimiser from settings."""

from typing import NamedTuple

import flax.linen as fnn
import jax.numpy as jnp
import optax

from jaxmeta import losses, nn, tasks
from jaxmeta.inner import mask_by_path
from jaxmeta.learner import MetaLearner, Model
from jaxmeta.optimization import fomaml, maml, reptile
from jaxmeta.presets._papers import Settings


class Setup(NamedTuple):
    """What a training and its evaluation are made of."""

    learner: MetaLearner
    train_source: tasks.Source
    test_source: tasks.Source
    optimizer: optax.GradientTransformation


def build(settings: Settings) -> Setup:
    """Builds the learner, the tasks and the outer optimiser that settings describe.

    Raises:
        ValueError: a setting is out of range, or the data cannot serve it.
        FileNotFoundError: the data are not there.
    """
    train_source, test_source = _sources(settings)
    return Setup(_learner(settings), train_source, test_source, _optimizer(settings))


def _sources(settings: Settings) -> tuple[tasks.Source, tasks.Source]:
    train = (settings.train_shots, settings.train_queries, settings.train_rotations)
    test = (settings.shots, settings.queries, settings.test_rotations)
    if settings.dataset == "sinusoid":
        variant = "reptile" if settings.method == "reptile" else "maml"
        train, test = (tasks.sinusoid(variant, shots=shots, queries=queries) for shots, queries, _ in (train, test))
        return train, test
    train_classes, test_classes = _classes(settings)
    ways = settings.ways
    return _episodes("training", train_classes, ways, *train), _episodes("test", test_classes, ways, *test)


def _episodes(
    name: str, classes: tasks.Classes, ways: int, shots: int, queries: int, rotations: tasks.Rotations
) -> tasks.Source:
    try:
        return tasks.episodes(classes, ways=ways, shots=shots, queries=queries, rotations=rotations)
    except ValueError as error:
        raise ValueError(f"{name} episodes: {error}") from error


def _classes(settings: Settings) -> tuple[tasks.Classes, tasks.Classes]:
    if settings.dataset == "glyphs":
        return tasks.glyphs("train"), tasks.glyphs("test")
    if settings.dataset == "omniglot":
        train, test = (
            tasks.omniglot(settings.split, subset, data_dir=settings.data_dir)
            for subset in (settings.train_subset, "test")
        )
        return train, test
    return tasks.split_classes(tasks.from_folder(settings.dataset), test_share=0.25)


def _model(settings: Settings) -> Model:
    is_reptile = settings.method == "reptile"
    if settings.dataset == "sinusoid":
        return nn.MLP((64, 64), 1, activation=jnp.tanh) if is_reptile else nn.MLP((40, 40), 1)
    if is_reptile:
        return nn.Conv4(settings.ways, pool="stride", readout="flatten")
    return nn.Conv4(
        settings.ways, pool="stride", readout="mean", norm_scale=False, head_init=fnn.initializers.normal(1.0)
    )


def _learner(settings: Settings) -> MetaLearner:
    loss = losses.mean_squared_error if settings.dataset == "sinusoid" else losses.cross_entropy
    model = _model(settings)
    if settings.method == "reptile":
        sgd = settings.dataset == "sinusoid"
        inner = optax.sgd(settings.inner_lr) if sgd else optax.adam(settings.inner_lr, b1=0.0)
        return reptile(
            model,
            inner_optimizer=inner,
            inner_lr=settings.inner_lr,
            steps=settings.inner_steps,
            batch_size=_at_most(settings.inner_batch, settings.ways * (settings.train_shots + settings.train_queries)),
            eval_steps=settings.eval_inner_steps,
            eval_batch_size=_at_most(settings.eval_inner_batch, settings.ways * settings.shots),
            loss=loss,
            persistent=settings.persistent,
        )
    # MAML's code leaves batch normalisation's offsets out of the inner loop.
    factory = {"maml": maml, "fomaml": fomaml}[settings.method]
    return factory(
        model,
        inner_optimizer=optax.sgd(settings.inner_lr),
        steps=settings.inner_steps,
        eval_steps=settings.eval_inner_steps,
        loss=loss,
        mask=mask_by_path(lambda path: "norm_" not in path),
    )


def _at_most(batch_size: int | None, examples: int) -> int | None:
    """The published mini-batch, or all examples where there are fewer, as with fewer ways than the paper's."""
    return None if batch_size is None else min(batch_size, examples)


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    if settings.method != "reptile":
        return optax.adam(settings.outer_lr)
    # The meta-gradient is (theta - W) / inner_lr, so this rate moves theta by outer_lr of the way to W.
    schedule = optax.linear_schedule(settings.outer_lr * settings.inner_lr, 0.0, settings.steps)
    return optax.sgd(schedule)
