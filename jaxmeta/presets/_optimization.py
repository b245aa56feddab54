"""The papers' settings of the methods that learn by gradient steps within a task, and what builds their learners."""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as fnn
import jax
import jax.numpy as jnp
import optax

from jaxmeta import losses, nn
from jaxmeta.inner import mask_by_path
from jaxmeta.learner import MetaLearner, Model
from jaxmeta.optimization import anil, boil, fomaml, imaml, lstm_meta_learner, maml, maml_pp, meta_sgd, reptile
from jaxmeta.presets._settings import Family, Settings, given, on_dataset

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
_MAML_5_WAY = Settings(
    method="maml", dataset="omniglot", split="maml", train_rotations="per_class", test_rotations="per_class"
)
_MAML_OMNIGLOT = (_MAML_5_WAY, dataclasses.replace(_MAML_5_WAY, inner_steps=5, eval_inner_steps=5, meta_batch=16))

# Reptile on Omniglot: arXiv:1803.02999, table of hyper-parameters, and its code. Adam with beta1 = 0 inside, whose
# second moments carry over from task to task; trained on 10 shots whatever it is judged on; one query a class.
# Other than its code: ink is 1 on 0 here and not 0 on 1, 1,000 test episodes stand for its 10,000, and the tasks of a
# meta-batch start from one state of Adam and average theirs, where its code passes it along.
_REPTILE_5_WAY = Settings(
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
    train_subset="trainval",
    train_rotations="classes",
    episodes=1000,
)
_REPTILE_20_WAY = dataclasses.replace(
    _REPTILE_5_WAY, steps=200_000, inner_steps=10, inner_lr=5e-4, inner_batch=20, eval_inner_batch=10
)
_REPTILE_OMNIGLOT = (_REPTILE_5_WAY, _REPTILE_20_WAY)

# What else differs from MAML's, by method, on images and on sinusoids.
_OTHERS = {
    "maml": ({}, {}),
    "fomaml": ({}, {}),
    # arXiv:1909.09157: MAML's settings. It has no sinusoids; trained on one step, ten diverge.
    "anil": ({}, {"eval_inner_steps": 1}),
    # arXiv:2008.08882: one inner step at 0.5.
    "boil": ({"inner_lr": 0.5, "inner_steps": 1, "eval_inner_steps": 1}, {}),
    # arXiv:1707.09835: one inner step; rates start in [0.005, 0.1] whatever `inner_lr` says.
    "meta_sgd": ({"inner_steps": 1, "eval_inner_steps": 1}, {"eval_inner_steps": 1}),
    # arXiv:1810.09502 and its code: 100 epochs of 500 outer steps.
    "maml_pp": (
        {"inner_lr": 0.1, "inner_steps": 5, "eval_inner_steps": 5, "meta_batch": 8, "steps": 50_000},
        {"inner_lr": 0.01, "inner_steps": 5, "eval_inner_steps": 5},
    ),
    # Ravi, Larochelle 2017, which has no Omniglot: its optimiser, on a network of 32 channels as there, for each weight
    # has an LSTM state, but strided; 8 inner steps for its 12, four episodes in a step, 80,000 in all for its 75,000,
    # and one query of each class for 15. Inner rates are learned.
    "lstm_meta_learner": (
        {"inner_steps": 8, "eval_inner_steps": 8, "meta_batch": 4, "steps": 20_000},
        {"inner_steps": 8, "eval_inner_steps": 8},
    ),
    # arXiv:1909.04630: 16 inner steps for 5 ways, and 25 for 20; rate, tasks and steps as in its code. It has no
    # sinusoids: at that rate the inner loop ends near its solution, in 8,000 outer steps too; more were not tried.
    "imaml": (
        {"inner_lr": 0.1, "inner_steps": 16, "eval_inner_steps": 16, "steps": 20_000},
        {"inner_lr": 0.003, "inner_steps": 32, "eval_inner_steps": 32},
    ),
}


def _preset(method: str, dataset: str, ways: int | None, shots: int | None, queries: int | None) -> Settings:
    if dataset == "sinusoid":
        preset = _REPTILE_SINUSOID
        if method != "reptile":
            preset = dataclasses.replace(_MAML_SINUSOID, method=method, **_OTHERS[method][1])
        return _with_sizes(preset, shots, queries)
    ways = 5 if ways is None else ways
    preset = _REPTILE_OMNIGLOT[ways >= 20]
    if method != "reptile":
        preset = dataclasses.replace(_MAML_OMNIGLOT[ways >= 20], method=method, **_OTHERS[method][0])
        if method == "imaml" and ways >= 20:
            preset = dataclasses.replace(preset, inner_steps=25, eval_inner_steps=25, meta_batch=32)
    return _with_sizes(on_dataset(dataclasses.replace(preset, ways=ways), dataset), shots, queries)


def _with_sizes(preset: Settings, shots: int | None, queries: int | None) -> Settings:
    """A preset with other numbers of examples."""
    if preset.method == "reptile" or preset.dataset == "sinusoid":
        # Trained on sizes of its own, whatever it is judged on.
        return dataclasses.replace(preset, **given(shots=shots, queries=queries))
    # MAML's training episodes are like its test episodes, with as many queries as shots.
    shots = preset.shots if shots is None else shots
    queries = shots if queries is None else queries
    return dataclasses.replace(preset, shots=shots, train_shots=shots, queries=queries, train_queries=queries)


def model_of(settings: Settings, ways: int) -> Model:
    """The papers' network for a data set."""
    method = settings.method
    if settings.dataset == "sinusoid":
        return nn.MLP((64, 64), 1, activation=jnp.tanh) if method == "reptile" else nn.MLP((40, 40), 1)
    if method == "reptile":
        return nn.Conv4(ways, pool="stride", readout="flatten")
    if method == "lstm_meta_learner":
        return nn.Conv4(ways, features=32, pool="stride")
    if method == "maml_pp":
        return nn.Conv4(ways, activation=fnn.leaky_relu)
    return nn.Conv4(ways, pool="stride", readout="mean", norm_scale=False, head_init=fnn.initializers.normal(1.0))


def loss_of(settings: Settings) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss of a data set's targets."""
    return losses.mean_squared_error if settings.dataset == "sinusoid" else losses.cross_entropy


# MAML's code leaves batch normalisation's offsets out of the inner loop.
_without_norms = mask_by_path(lambda path: "norm_" not in path)


def _learner(settings: Settings, ways: int) -> MetaLearner:
    model, loss, mask = model_of(settings, ways), loss_of(settings), _without_norms
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
        case "lstm_meta_learner":
            # On images input gates start wider than at the code's 0.01; on sinusoids, whose losses are steeper, not.
            bias = (-5.0, -4.0) if settings.dataset == "sinusoid" else (-2.0, -1.0)
            return lstm_meta_learner(model, steps=steps, eval_steps=eval_steps, input_bias=bias, loss=loss)
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
        loss=loss_of(settings),
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
        case "lstm_meta_learner":
            return optax.chain(optax.clip_by_global_norm(0.25), optax.adam(settings.outer_rate))
        case "imaml":
            return optax.adam(settings.outer_rate, eps=1e-3)  # as in its code
        case _:
            return optax.adam(settings.outer_rate)


def _refused(method: str) -> Mapping[str, str]:
    found = {
        "train_ways": "whose network has one output for each class of its episodes",
        "temperature": "which has no kernel",
        "image_size": "whose settings are for 28x28 images",
        "rotations": "whose turns are its paper's",
    }
    if method in ("reptile", "maml_pp"):
        found["halve_every"] = "whose outer rate has a course of its own"
    if method == "meta_sgd":
        found["inner_lr"] = "which draws its inner rates and learns them"
    if method == "lstm_meta_learner":
        found["inner_lr"] = "which learns its inner rates"
    return found


OPTIMIZATION = Family(
    ("maml", "fomaml", "reptile", "anil", "boil", "meta_sgd", "maml_pp", "imaml", "lstm_meta_learner"),
    _preset,
    _learner,
    _optimizer,
    _refused,
    any_ways=False,
    regression=True,
)
