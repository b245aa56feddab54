"""The papers' settings of the methods that learn by writing to a memory, and what builds their learners."""

import dataclasses
from collections.abc import Mapping

import optax

from jaxmeta import memory
from jaxmeta.learner import MetaLearner
from jaxmeta.presets._settings import Family, Settings, given, on_dataset

# MANN: arXiv:1605.06065, section 4. Five classes of ten drawings in a training sequence, 20 x 20 pixels, classes turned
# by quarters as more classes; 320,000 episodes for the paper's 100,000; judged on the presentation after `shots`
# others. The paper's RMSProp gives way to Adam with clipped gradients, as in re-implementations, of whom the 16
# episodes in a step are too, and heads that write a vector of their own where the paper writes their keys. The rate is
# three times theirs, and weights of images start four times as wide, without which the plateau of guessing lasts
# longer. Cosines are divided by 0.1, which makes reading sharper; the paper has no temperature.
_MANN = Settings(
    method="mann",
    dataset="omniglot",
    train_shots=1,
    train_queries=9,
    steps=20_000,
    meta_batch=16,
    chunk=8,
    outer_lr=3e-3,
    temperature=0.1,
    image_size=20,
    train_subset="trainval",
    train_rotations="classes",
)

# MetaNet: arXiv:1703.00837, section 4.1: Adam at 1e-3 on the 1,200 training characters and their turns. The paper's 64
# channels are 32 here, which take a quarter of the time, and training images are turned and shifted a little.
_METANET = Settings(
    method="metanet",
    dataset="omniglot",
    train_queries=5,
    steps=20_000,
    meta_batch=4,
    train_subset="trainval",
    train_rotations="classes",
)


def _preset(method: str, dataset: str, ways: int | None, shots: int | None, queries: int | None) -> Settings:
    preset = on_dataset({"mann": _MANN, "metanet": _METANET}[method], dataset)
    # Omniglot's training images are turned and shifted; others are not.
    changed = {**given(ways=ways, shots=shots, queries=queries), "augment": dataset == "omniglot"}
    if method == "metanet" and shots is not None:
        changed["train_shots"] = shots
    return dataclasses.replace(preset, **changed)


def _learner(settings: Settings, ways: int) -> MetaLearner:
    match settings.method:
        case "mann":
            return memory.mann(memory.MANN(input_scale=4.0, strength=1 / settings.temperature), ways=ways)
        case "metanet":
            return memory.metanet(memory.AugmentedConv(ways, features=32))
        case _:
            raise ValueError(f"unknown method {settings.method!r}")


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(settings.outer_rate))


def _refused(method: str) -> Mapping[str, str]:
    found = {
        "inner_steps": "which does not adapt by gradient steps",
        "inner_lr": "which does not adapt by gradient steps",
        "train_ways": "whose network has one output for each class of its episodes",
    }
    if method == "metanet":
        found["temperature"] = "whose attention has none"
    return found


MEMORY = Family(("mann", "metanet"), _preset, _learner, _optimizer, _refused, any_ways=False, regression=False)
