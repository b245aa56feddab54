"""What the command line takes: a class for each command, a field for each option, its help beneath it."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Train:
    """Meta-train a method with its paper's settings, evaluate it, and draw what it learned.

    Without arguments: MAML on sinusoids, the paper's whole budget, in well under two minutes on two cores.
    """

    method: tyro.conf.Positional[str] = "maml"
    """What to train; `jaxmeta list` names the methods."""
    dataset: str = "sinusoid"
    """sinusoid, glyphs (synthetic characters, no download), omniglot, or the path of a folder of class folders; a
    quarter of these, drawn at random, is kept for the test episodes, and images in colour become grey."""
    ways: int | None = None
    """Classes in an episode. Default: 5, or the preset's."""
    shots: int | None = None
    """Support examples of each class in test episodes; in training too, but for Reptile, MANN and sinusoids, which
    train on numbers of their own. Default: the preset's."""
    queries: int | None = None
    """Query examples of each class in test episodes; in training too for MAML and its kin. Default: the preset's."""
    train_ways: int | None = None
    """Classes in a training episode, for methods that learn to compare. Default: the preset's, or all if there are
    fewer."""
    train_shots: int | None = None
    """Support examples of each class in training. Default: the preset's, or --shots but for MANN."""
    train_queries: int | None = None
    """Query examples of each class in training. Default: the preset's."""
    steps: int | None = None
    """Outer steps. Default: the preset's."""
    inner_steps: int | None = None
    """Inner gradient steps in training, and in judging where the preset has one number for both. Default: the
    preset's."""
    inner_lr: float | None = None
    """Inner learning rate, on the mean loss. Default: the preset's."""
    meta_batch: int | None = None
    """Episodes in an outer step. Default: the preset's."""
    outer_lr: float | None = None
    """Outer learning rate (Reptile: the first outer step size). Default: the preset's."""
    halve_every: int | None = None
    """Outer steps after which the outer rate is halved, again and again. Default: the preset's."""
    temperature: float | None = None
    """What distances or cosines are divided by, for methods that compare. Default: the preset's."""
    image_size: int | None = None
    """Height and width of images in pixels. Default: the preset's."""
    split: Literal["vinyals", "maml", "lake"] | None = None
    """How Omniglot's characters are divided into those of training and of test: vinyals and lake as published, maml at
    random. Default: the preset's."""
    rotations: Literal["none", "classes", "per_class", "per_episode", "per_episode_mirrored"] | None = None
    """How images are turned in training and test. Default: the preset's."""
    augment: bool | None = None
    """Change training images at random: by small turns and shifts, or by Koch's affine maps for methods that learn to
    compare. Default: True for siamese, and on Omniglot for mann and metanet; False for all else."""
    episodes: int | None = None
    """Test episodes. Default: the preset's."""
    query_mode: Literal["transductive", "inductive"] = "transductive"
    """Whether test queries are seen together, or each alone with the support set."""
    seed: int = 0
    """Of initialisation, training and test episodes."""
    out: Path | None = None
    """Run folder. Default: runs/METHOD-DATASET-seedSEED."""
    resume: bool = False
    """Continue the run in the run folder, bit for bit."""
    devices: int | None = None
    """CPU devices to divide the tasks among. Default: $JAX_NUM_CPU_DEVICES, or one for each core."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps Omniglot. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's newest checkpoint, perhaps on other episodes than it was trained for."""

    run_dir: tyro.conf.Positional[Path]
    """The run's folder."""
    ways: int | None = None
    """Classes in an episode, for methods that learn to compare. Default: the run's."""
    shots: int | None = None
    """Support examples of each class. Default: the run's."""
    queries: int | None = None
    """Query examples of each class. Default: the run's."""
    inner_steps: int | None = None
    """Adaptation steps. Default: the run's."""
    episodes: int | None = None
    """Test episodes. Default: the run's."""
    query_mode: Literal["transductive", "inductive"] | None = None
    """Whether test queries are seen together, or each alone with the support set. Default: the run's."""
    by_step: bool = True
    """Judge after every adaptation step of methods that take some; the last alone is faster for inductive queries."""
    seed: int | None = None
    """Of the test episodes. Default: the run's."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps Omniglot. Default: the run's."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare meta-gradient estimators on one batch of tasks: angle and size against exact MAML, and cost.

    Writes compare.json and compare.png beside the table it prints.
    """

    dataset: str = "sinusoid"
    """sinusoid, glyphs, omniglot, or the path of a folder of class folders."""
    ways: int | None = None
    """Classes in an episode. Default: 5."""
    shots: int | None = None
    """Support examples of each class. Default: MAML's."""
    queries: int | None = None
    """Query examples of each class. Default: MAML's."""
    inner_steps: int = 5
    """Inner gradient steps; iMAML, which has to solve its inner problem, takes those of its preset, at its rate."""
    inner_lr: float | None = None
    """Inner learning rate, on the mean loss, of all but iMAML. Default: MAML's."""
    meta_batch: int | None = None
    """Tasks in the batch. Default: MAML's."""
    run: Path | None = None
    """A run of MAML or first-order MAML, at whose newest checkpoint to compare. Default: at a fresh initialisation."""
    repeats: int = 10
    """Runs that are timed."""
    seed: int = 0
    """Of the initialisation and the tasks."""
    out: Path | None = None
    """Folder to write to. Default: runs/compare-DATASET-seedSEED."""
    devices: int | None = None
    """CPU devices to divide the tasks among. Default: $JAX_NUM_CPU_DEVICES, or one for each core."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps Omniglot. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass(frozen=True)
class Taylor:
    """Measure what MAML, first-order MAML and Reptile follow: their coefficients of AvgGrad and AvgGradInner.

    In double precision, exactly averaged over the orderings of one task's mini-batches. Writes taylor.json and
    taylor.png beside the table it prints.
    """

    k: tuple[int, ...] = (2, 3, 5, 8)
    """Mini-batches, the test batch among them."""
    model: Literal["mlp", "conv4"] = "mlp"
    """mlp: two hidden layers of 40 tanh units. conv4: the strided Conv4 of the papers, narrower, with ReLU."""
    dataset: Literal["sinusoid", "glyphs", "omniglot"] | None = None
    """Where the task comes from. Default: sinusoid for mlp, glyphs for conv4."""
    order: Literal[1, 2] = 1
    """Order in alpha up to which predictions are compared; 2 is for mlp, and takes minutes."""
    ways: int | None = None
    """Classes in a mini-batch, which holds one image of each. Default: 5; of a sinusoid it holds 5 points."""
    features: int | None = None
    """Channels of Conv4's convolutions. Default: 8."""
    seed: int = 0
    """Of the initialisation and the task."""
    out: Path | None = None
    """Folder to write to. Default: runs/taylor-MODEL-DATASET-seedSEED."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps Omniglot. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass(frozen=True)
class List:
    """List the methods and data sets, with the papers' settings."""
