"""What builds a learner, its tasks and its outer optimiser from settings."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as fnn
import jax
import jax.numpy as jnp
import optax

from jaxmeta import losses, nn, tasks
from jaxmeta.inner import mask_by_path
from jaxmeta.learner import MetaLearner, Model
from jaxmeta.optimization import anil, boil, fomaml, imaml, maml, maml_pp, meta_sgd, reptile, truncated_maml
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
    method, ways = settings.method, settings.ways
    if settings.dataset == "sinusoid":
        return nn.MLP((64, 64), 1, activation=jnp.tanh) if method == "reptile" else nn.MLP((40, 40), 1)
    if method == "reptile":
        return nn.Conv4(ways, pool="stride", readout="flatten")
    if method == "maml_pp":
        return nn.Conv4(ways, activation=fnn.leaky_relu)
    return nn.Conv4(ways, pool="stride", readout="mean", norm_scale=False, head_init=fnn.initializers.normal(1.0))


def _loss(settings: Settings) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return losses.mean_squared_error if settings.dataset == "sinusoid" else losses.cross_entropy


# MAML's code leaves batch normalisation's offsets out of the inner loop.
_without_norms = mask_by_path(lambda path: "norm_" not in path)


def _learner(settings: Settings) -> MetaLearner:
    model, loss, mask = _model(settings), _loss(settings), _without_norms
    inner, steps, eval_steps = optax.sgd(settings.inner_lr), settings.inner_steps, settings.eval_inner_steps
    match settings.method:
        case "maml":
            return maml(model, inner_optimizer=inner, steps=steps, eval_steps=eval_steps, loss=loss, mask=mask)
        case "fomaml":
            return fomaml(model, inner_optimizer=inner, steps=steps, eval_steps=eval_steps, loss=loss, mask=mask)
        case "anil":
            return anil(model, inner_optimizer=inner, steps=steps, eval_steps=eval_steps, loss=loss)
        case "boil":
            return boil(model, inner_optimizer=inner, steps=steps, eval_steps=eval_steps, loss=loss)
        case "meta_sgd":
            return meta_sgd(model, steps=steps, eval_steps=eval_steps, loss=loss, mask=mask)
        case "maml_pp":
            norm = None if settings.dataset == "sinusoid" else "norm_"
            return maml_pp(model, steps=steps, inner_lr=settings.inner_lr, loss=loss, norm=norm)
        case "imaml":
            return imaml(
                model,
                inner_optimizer=inner,
                steps=steps,
                eval_steps=eval_steps,
                proximal=settings.proximal,
                loss=loss,
                mask=mask,
            )
        case "reptile":
            return _reptile(settings, model)
        case _:
            raise ValueError(f"unknown method {settings.method!r}")


def _reptile(settings: Settings, model: Model) -> MetaLearner:
    plain = settings.dataset == "sinusoid"
    return reptile(
        model,
        inner_optimizer=optax.sgd(settings.inner_lr) if plain else optax.adam(settings.inner_lr, b1=0.0),
        inner_lr=settings.inner_lr,
        steps=settings.inner_steps,
        batch_size=_at_most(settings.inner_batch, settings.ways * (settings.train_shots + settings.train_queries)),
        eval_steps=settings.eval_inner_steps,
        eval_batch_size=_at_most(settings.eval_inner_batch, settings.ways * settings.shots),
        loss=_loss(settings),
        persistent=settings.persistent,
    )


def _at_most(batch_size: int | None, examples: int) -> int | None:
    """The published mini-batch, or all examples where there are fewer, as with fewer ways than the paper's."""
    return None if batch_size is None else min(batch_size, examples)


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    match settings.method:
        case "reptile":
            # The meta-gradient is (theta - W) / inner_lr, so this rate moves theta by outer_lr of the way to W.
            return optax.sgd(optax.linear_schedule(settings.outer_lr * settings.inner_lr, 0.0, settings.steps))
        case "maml_pp":
            return optax.adam(optax.cosine_decay_schedule(settings.outer_lr, settings.steps, alpha=1e-2))
        case "imaml":
            return optax.adam(settings.outer_lr, eps=1e-3)  # as in its code
        case _:
            return optax.adam(settings.outer_lr)


def estimators(settings: Settings) -> tuple[dict[str, MetaLearner], tasks.Source]:
    """Methods that differentiate the same parameters, with the model, the inner rate and the inner steps of settings.

    Args:
        settings: of MAML; other methods take over what they share with it.

    Returns:
        `(learners, source)`: learners by name, `"maml"` first, and the source of training episodes.
    """
    model, loss, steps = _model(settings), _loss(settings), settings.inner_steps
    inner = optax.sgd(settings.inner_lr)
    shared = {"inner_optimizer": inner, "steps": steps, "loss": loss}
    found = {"maml": maml(model, **shared), "fomaml": fomaml(model, **shared)}
    for m in sorted({1, steps // 2} - {0, steps}):
        found[f"truncated_{m}"] = truncated_maml(model, backprop_steps=m, **shared)
    if steps:
        found["reptile"] = reptile(model, inner_lr=settings.inner_lr, **shared)
    found |= {"anil": anil(model, **shared), "boil": boil(model, **shared)}
    found["imaml"] = imaml(model, proximal=settings.proximal, **shared)
    return found, _sources(settings)[0]
