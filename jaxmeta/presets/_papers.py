"""The papers' settings, by method and data set."""

import dataclasses
import math
from pathlib import Path

from jaxmeta.tasks import Rotations, Split, Subset

METHODS = ("maml", "fomaml", "reptile", "anil", "boil", "meta_sgd", "maml_pp", "imaml")
DATASETS = ("sinusoid", "glyphs", "omniglot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a training and its evaluation, JSON-able.

    Raises:
        ValueError: a number is one that no training can use.
    """

    method: str
    dataset: str  # one of DATASETS, or the absolute path of a folder of class folders
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
    proximal: float = 2.0  # iMAML's lambda
    meta_batch: int = 32
    outer_lr: float = 1e-3  # Adam's rate, or Reptile's first step size epsilon
    split: Split = "vinyals"
    train_subset: Subset = "train"
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
        for name in ("inner_lr", "outer_lr", "proximal"):
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
    # arXiv:1909.09157: MAML's settings.
    "anil": ({}, {}),
    # arXiv:2008.08882: one inner step at 0.5.
    "boil": ({"inner_lr": 0.5, "inner_steps": 1, "eval_inner_steps": 1}, {}),
    # arXiv:1707.09835: one inner step; rates start in [0.005, 0.1] whatever `inner_lr` says.
    "meta_sgd": ({"inner_steps": 1, "eval_inner_steps": 1}, {"eval_inner_steps": 1}),
    # arXiv:1810.09502 and its code: 100 epochs of 500 outer steps.
    "maml_pp": (
        {"inner_lr": 0.1, "inner_steps": 5, "eval_inner_steps": 5, "meta_batch": 8, "steps": 50_000},
        {"inner_lr": 0.01, "inner_steps": 5, "eval_inner_steps": 5},
    ),
    # arXiv:1909.04630: 16 inner steps for 5 ways; rate and steps as in its code.
    "imaml": (
        {"inner_lr": 0.1, "inner_steps": 16, "eval_inner_steps": 16, "steps": 20_000},
        {"inner_lr": 0.05, "inner_steps": 16, "eval_inner_steps": 16},
    ),
}


def settings(
    method: str, dataset: str, *, ways: int | None = None, shots: int | None = None, queries: int | None = None
) -> Settings:
    """The published settings of a method on a data set.

    Args:
        method: one of `METHODS`.
        dataset: one of `DATASETS`, or a folder of class folders. Data sets other than the paper's borrow the
            settings of Omniglot; images of a folder are not turned.
        ways: classes in an episode; None for 5. 20 or more take the papers' 20-way settings.
        shots: support examples of each class; None for the preset's.
        queries: query examples of each class; None for the preset's.

    Raises:
        ValueError: the method is unknown, or `ways` is given for a regression.
        FileNotFoundError: the data set is neither known nor a folder.

    >>> preset = settings("maml", "omniglot", ways=20)
    >>> preset.inner_steps, preset.meta_batch
    (5, 16)
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; the methods are {', '.join(METHODS)}")
    if dataset == "sinusoid":
        if ways is not None:
            raise ValueError(f"ways={ways}, but sinusoid is a regression, which has no classes")
        preset = _REPTILE_SINUSOID
        if method != "reptile":
            preset = dataclasses.replace(_MAML_SINUSOID, method=method, **_OTHERS[method][1])
        return _with_sizes(preset, shots, queries)
    ways = 5 if ways is None else ways
    preset = _REPTILE_OMNIGLOT[ways >= 20]
    if method != "reptile":
        preset = dataclasses.replace(_MAML_OMNIGLOT[ways >= 20], method=method, **_OTHERS[method][0])
    preset = dataclasses.replace(preset, dataset=dataset, ways=ways)
    if dataset not in DATASETS:
        preset = dataclasses.replace(
            preset, dataset=str(_folder(dataset)), train_rotations="none", test_rotations="none"
        )
    return _with_sizes(preset, shots, queries)


def _folder(dataset: str) -> Path:
    if not dataset or not Path(dataset).is_dir():
        raise FileNotFoundError(
            f"dataset {dataset!r} is none of {', '.join(DATASETS)}, "
            f"and there is no folder at {Path(dataset).absolute() if dataset else dataset!r}"
        )
    return Path(dataset).absolute()


def _with_sizes(preset: Settings, shots: int | None, queries: int | None) -> Settings:
    """A preset with other numbers of examples."""
    given = {name: value for name, value in {"shots": shots, "queries": queries}.items() if value is not None}
    if preset.method == "reptile" or preset.dataset == "sinusoid":
        # Trained on sizes of its own, whatever it is judged on.
        return dataclasses.replace(preset, **given)
    # MAML's training episodes are like its test episodes, with as many queries as shots.
    shots = preset.shots if shots is None else shots
    queries = shots if queries is None else queries
    return dataclasses.replace(preset, shots=shots, train_shots=shots, queries=queries, train_queries=queries)
