"""The papers' settings of the methods that learn to compare, and what builds their learners."""

import dataclasses
from collections.abc import Mapping

import optax

from jaxmeta import metric, nn, tasks
from jaxmeta.learner import MetaLearner
from jaxmeta.presets._settings import Family, Settings, given, on_dataset

# Prototypical Networks: arXiv:1703.05175, section 3.1, and its code. 60 ways in training whatever it is judged on, as
# many shots as in test, 5 queries; Adam's rate halved every 2,000 episodes; each class turned is another class, in
# training and in test; the reported model is trained on training and validation classes. Its code trains until the
# validation loss stops falling; by 20,000 episodes the rate has been halved ten times.
_PROTOTYPICAL = Settings(
    method="prototypical",
    dataset="omniglot",
    queries=15,
    train_ways=60,
    train_queries=5,
    steps=20_000,
    meta_batch=1,
    halve_every=2000,
    train_subset="trainval",
    train_rotations="classes",
    test_rotations="classes",
    episodes=1000,
)

# Matching Networks: arXiv:1606.04080 tells no optimiser. Episodes and rates are those of Prototypical Networks; the
# temperature is not the paper's 1, at which no class of five has more than 0.405 where features are past a ReLU.
_MATCHING = dataclasses.replace(_PROTOTYPICAL, method="matching", temperature=0.1)

# The same with full context embeddings, on training episodes like the test's, for the context is the support set.
_MATCHING_FCE = dataclasses.replace(
    _MATCHING, method="matching_fce", train_ways=None, train_queries=15, meta_batch=4, read_steps=3
)

# Relation Networks: arXiv:1711.06025 and its code. One turn for all classes of an episode; Adam's rate halved every
# 100,000 episodes; training queries by ways and shots as below. Validation classes are not trained on here.
_RELATION = Settings(
    method="relation",
    dataset="omniglot",
    queries=15,
    steps=1_000_000,
    meta_batch=1,
    halve_every=100_000,
    train_rotations="per_episode",
    test_rotations="per_episode",
    episodes=1000,
)
_RELATION_QUERIES = {(False, False): 19, (False, True): 15, (True, False): 10, (True, True): 5}

# Siamese networks: Koch, Zemel, Salakhutdinov 2015. Trained on background alphabets with distorted images, judged on
# 20 ways within an evaluation alphabet. The rates that its Bayesian optimisation found for momentum SGD are not
# published, so it is Adam here. Where the paper has as many pairs of each alphabet, episodes are of one each. Quarter
# turns and mirror images of a whole episode make further alphabets, which the paper does not have: turned one by one,
# characters would be told apart by how they stand. Alphabets with fewer characters than ways are left out.
_SIAMESE = Settings(
    method="siamese",
    dataset="omniglot",
    ways=20,
    queries=1,
    train_ways=20,
    train_queries=1,
    steps=20_000,
    meta_batch=2,
    outer_lr=3e-4,
    halve_every=5000,
    l2=1e-5,
    image_size=105,
    split="lake",
    train_rotations="per_episode_mirrored",
    augment=True,
    within_groups=True,
    episodes=400,
)


def _preset(method: str, dataset: str, ways: int | None, shots: int | None, queries: int | None) -> Settings:
    found = {
        "prototypical": _PROTOTYPICAL,
        "matching": _MATCHING,
        "matching_fce": _MATCHING_FCE,
        "relation": _RELATION,
        "siamese": _SIAMESE,
    }[method]
    found = dataclasses.replace(on_dataset(found, dataset), **given(ways=ways, shots=shots, queries=queries))
    found = dataclasses.replace(found, train_shots=found.shots)
    if method == "relation":
        found = dataclasses.replace(found, train_queries=_RELATION_QUERIES[found.ways >= 20, found.shots >= 5])
    if method == "siamese" and dataset != "omniglot":
        found = dataclasses.replace(found, image_size=28, within_groups=False)
    return found


def siamese_twin(image_size: int) -> metric.KochTwin | metric.SmallTwin:
    """The twin that the preset of `siamese` trains on images of that size: the paper's, or a small one.

    The small one compares images of 28, 56 or 84 pixels at 7x7 positions.

    >>> siamese_twin(28).block, siamese_twin(84).block
    (1, 3)
    """
    if image_size >= 105:
        return metric.KochTwin()
    return metric.SmallTwin(block=1 if image_size % 28 else image_size // 28)


def _learner(settings: Settings, ways: int) -> MetaLearner:
    encoder = nn.Conv4(None, epsilon=1e-5)
    match settings.method:
        case "prototypical":
            return metric.prototypical(encoder, temperature=settings.temperature, ways=ways)
        case "matching":
            return metric.matching(encoder, temperature=settings.temperature, ways=ways)
        case "matching_fce":
            return metric.matching_fce(
                encoder, read_steps=settings.read_steps, temperature=settings.temperature, ways=ways
            )
        case "relation":
            return metric.relation(ways=ways)
        case "siamese":
            twin = siamese_twin(settings.image_size)
            return metric.siamese(twin, l2=settings.l2, ways=ways)
        case _:
            raise ValueError(f"unknown method {settings.method!r}")


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    if settings.method == "relation":
        # Its code clips the gradients of the two networks apart, and gives each an Adam.
        clip = optax.clip_by_global_norm(0.5)
        parts = optax.partition({"encoder": clip, "relation": clip}, metric.RelationParams("encoder", "relation"))
        return optax.chain(parts, optax.adam(settings.outer_rate))
    return optax.adam(settings.outer_rate)


def _refused(method: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in ("inner_steps", "inner_lr"):
        found[name] = "which does not adapt by gradient steps"
    if method in ("relation", "siamese"):
        found["temperature"] = "whose kernel has none"
    return found


METRIC = Family(
    ("prototypical", "matching", "matching_fce", "relation", "siamese"),
    _preset,
    _learner,
    _optimizer,
    _refused,
    any_ways=True,
    regression=False,
    augment=tasks.affine_distortions,
)
