"""The papers' settings, by method and data set, and what builds a learner, its tasks and its optimiser from them.

`settings("maml", "omniglot", ways=20)` looks a preset up; `dataclasses.replace` changes it; `build` turns it into
the arguments of `jaxmeta.fit` and `jaxmeta.evaluate`.
"""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import flax.linen as fnn
import jax.numpy as jnp
import optax

from jaxmeta import losses, nn, tasks
from jaxmeta.inner import mask_by_path
from jaxmeta.learner import MetaLearner, Model
from jaxmeta.optimization import fomaml, keep_inner_state, maml, reptile
from jaxmeta.tasks._sampler import Rotations

METHODS = ("maml", "fomaml", "reptile")
DATASETS = ("sinusoid", "glyphs", "omniglot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a training and its evaluation, JSON-able."""

    method: str
    dataset: str  # one of DATASETS, or the path of a folder of class folders
    ways: int = 5
    shots: int = 1  # support examples of each class in test episodes
    queries: int = 1  # query examples of each class in test episodes
    train_shots: int = 1
    train_queries: int = 1
    steps: int = 60_000
    inner_steps: int = 1
    inner_lr: float = 2.0  # of the mean loss
    inner_batch: int | None = None  # None: all examples at every step
    eval_inner_steps: int = 3
    eval_inner_batch: int | None = None
    persistent: bool = False
    meta_batch: int = 32
    outer_lr: float = 1e-3  # Adam's rate, or Reptile's first step size epsilon
    split: str = "vinyals"
    train_rotations: Rotations = "none"
    test_rotations: Rotations = "none"
    episodes: int = 600
    query_mode: str = "transductive"
    data_dir: str | None = None
    log_every: int = 100
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        """Refuses numbers that no training can use."""
        least = {
            "steps": 1,
            "inner_steps": int(self.method == "reptile"),
            "eval_inner_steps": 0,
            "meta_batch": 1,
            "queries": 1,
            "episodes": 2,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be {bound} or more, but is {getattr(self, name)}")
        for name in ("inner_lr", "outer_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")


# MAML's sinusoids: arXiv:1703.03400, section 5.1. Trained on 10 points, judged on 5; meta-batch and iterations as in
# its code. The rate 0.01 is the paper's; the command in the code leaves its default of 0.001.
_MAML_SINUSOID = Settings(
    method="maml",
    dataset="sinusoid",
    shots=5,
    queries=100,
    train_shots=10,
    train_queries=10,
    steps=70_000,
    inner_lr=0.01,
    eval_inner_steps=10,
    meta_batch=25,
    log_every=1000,
    checkpoint_every=10_000,
)

# Reptile's sinusoids: its released script. One pass over the 50 grid points in five mini-batches; the outer step
# falls from 0.1 to 0; judged after 32 full-batch steps on 10 points.
_REPTILE_SINUSOID = Settings(
    method="reptile",
    dataset="sinusoid",
    shots=10,
    queries=50,
    train_shots=0,
    train_queries=50,
    steps=30_000,
    inner_steps=5,
    inner_lr=0.02,
    inner_batch=10,
    eval_inner_steps=32,
    meta_batch=1,
    outer_lr=0.1,
    log_every=1000,
    checkpoint_every=10_000,
)

# MAML on Omniglot: arXiv:1703.03400, section 5.2 and appendix A. The code differentiates a sum over classes, so its
# rates of 0.4 (5-way) and 0.1 (20-way) are both 2.0 on a mean loss. Training queries equal the shots.
_MAML_OMNIGLOT = Settings(
    method="maml", dataset="omniglot", split="maml", train_rotations="per_class", test_rotations="per_class"
)
_MAML_OMNIGLOT_20 = dataclasses.replace(_MAML_OMNIGLOT, inner_steps=5, eval_inner_steps=5, meta_batch=16)

# Reptile on Omniglot: arXiv:1803.02999, table of hyper-parameters, and its code. Adam with beta1 = 0 inside, whose
# second moments carry over from task to task; trained on 10 shots whatever it is judged on; one query a class.
# Other than its code: ink is 1 on 0 here and not 0 on 1, 1,100 characters train and not 1,200, and 1,000 test episodes
# stand for its 10,000.
_REPTILE_OMNIGLOT = Settings(
    method="reptile",
    dataset="omniglot",
    train_shots=10,
    train_queries=0,
    steps=100_000,
    inner_steps=5,
    inner_lr=1e-3,
    inner_batch=10,
    eval_inner_steps=50,
    eval_inner_batch=5,
    persistent=True,
    meta_batch=5,
    outer_lr=1.0,
    split="maml",
    train_rotations="classes",
    episodes=1000,
)
_REPTILE_OMNIGLOT_20 = dataclasses.replace(
    _REPTILE_OMNIGLOT, steps=200_000, inner_steps=10, inner_lr=5e-4, inner_batch=20, eval_inner_batch=10
)


def settings(method: str, dataset: str, *, ways: int = 5, shots: int | None = None) -> Settings:
    """The published settings of a method on a data set.

    Args:
        method: one of `METHODS`.
        dataset: one of `DATASETS`, or a folder of class folders. Data sets other than the paper's borrow the
            settings of Omniglot.
        ways: classes in an episode; 20 or more take the papers' 20-way settings.
        shots: support examples of each class; None for the preset's.

    Raises:
        ValueError: the method is unknown.
        FileNotFoundError: the data set is neither known nor a folder.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; the methods are {', '.join(METHODS)}")
    if dataset not in DATASETS and not Path(dataset).is_dir():
        raise FileNotFoundError(
            f"dataset {dataset!r} is none of {', '.join(DATASETS)}, "
            f"and there is no folder at {Path(dataset).absolute()}"
        )
    is_reptile = method == "reptile"
    if dataset == "sinusoid":
        preset = _REPTILE_SINUSOID if is_reptile else _MAML_SINUSOID
    elif ways >= 20:
        preset = _REPTILE_OMNIGLOT_20 if is_reptile else _MAML_OMNIGLOT_20
    else:
        preset = _REPTILE_OMNIGLOT if is_reptile else _MAML_OMNIGLOT
    found = dataclasses.replace(preset, method=method, dataset=dataset, ways=ways)
    if shots is None:
        return found
    if is_reptile or dataset == "sinusoid":
        # Trained on shots of its own, whatever it is judged on.
        return dataclasses.replace(found, shots=shots)
    # MAML's training episodes are like its test episodes, with as many queries as shots.
    return dataclasses.replace(
        found, shots=shots, train_shots=shots, train_queries=shots, queries=max(found.queries, shots)
    )


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
    if settings.dataset == "sinusoid":
        variant = "reptile" if settings.method == "reptile" else "maml"
        return (
            tasks.sinusoid(variant, shots=settings.train_shots, queries=settings.train_queries),
            tasks.sinusoid(variant, shots=settings.shots, queries=settings.queries),
        )
    train, test = _classes(settings)
    return (
        tasks.episodes(
            train,
            ways=settings.ways,
            shots=settings.train_shots,
            queries=settings.train_queries,
            rotations=settings.train_rotations,
        ),
        tasks.episodes(
            test,
            ways=settings.ways,
            shots=settings.shots,
            queries=settings.queries,
            rotations=settings.test_rotations,
        ),
    )


def _classes(settings: Settings) -> tuple[tasks.Classes, tasks.Classes]:
    if settings.dataset == "glyphs":
        return tasks.glyphs("train"), tasks.glyphs("test")
    if settings.dataset == "omniglot":
        train, test = (
            tasks.omniglot(settings.split, subset, data_dir=settings.data_dir)  # pyright: ignore[reportArgumentType]
            for subset in ("train", "test")
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
    optimizer = optax.sgd(schedule)
    return keep_inner_state(optimizer) if settings.persistent else optimizer
