"""Lake's one-shot classification: runs of 20 trials within an alphabet, and the baseline of its demonstration.

A run is one 20-way 1-shot episode: 20 characters of an alphabet as one drawer drew them are the classes, and the same
characters by another drawer are the queries. The official archive `all_runs` holds 20 runs:

    all_runs/run01/class_labels.txt      lines "run01/test/item01.png run01/training/class08.png"
    all_runs/run01/training/class01.png ..
    all_runs/run01/test/item01.png ..

The baseline takes the class whose image has the smallest modified Hausdorff distance; the official repository's README
states that it errs in 38.8 % of the 400 trials.
"""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmeta.episode import Batch, Episode
from jaxmeta.tasks._sampler import Classes, to_unit


def lake_runs(path: str | Path, *, image_size: int = 105) -> Episode:
    """Reads the folder of the official one-shot runs.

    Args:
        path: the folder that holds `run01`, `run02` and so on; what else it holds is left alone.
        image_size: height and width in pixels; the originals have 105. Resized with a Lanczos filter.

    Returns:
        Runs as a batch of episodes: x `[runs, 20, image_size, image_size, 1]`, ink 1 on 0; support labels 0 to 19 in
        the order of their files' names, query labels by `class_labels.txt`.

    Raises:
        FileNotFoundError: there is no such folder, no run in it, a run without its `class_labels.txt`, or a file that
            a run names is missing.
        ValueError: `image_size` is less than 1, a `class_labels.txt` is empty or no text, a line of it does not name
            a test image and a training image, an image comes twice, runs differ in size, or a file cannot be read as a
            square image.

    References:
        Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be 1 or more, but is {image_size}")
    root = Path(path)
    folders = sorted(path for path in root.glob("run*") if path.is_dir() and re.fullmatch(r"run\d+", path.name))
    if not folders:
        raise FileNotFoundError(
            f"no one-shot runs at {root}: want folders run01, run02, .. with a class_labels.txt each"
        )
    runs = [_read_run(root, folder / "class_labels.txt", image_size) for folder in folders]
    sizes = {tuple(len(batch.y) for batch in run) for run in runs}
    if len(sizes) > 1:
        raise ValueError(f"runs must all have as many classes and trials, but those of {root} have {sorted(sizes)}")
    return _stacked(runs)


def _read_run(root: Path, file: Path, image_size: int) -> Episode:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: every run has one, which names its images")
    try:
        pairs = [line.split() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text: {error}") from error
    if not pairs:
        raise ValueError(f"{file} is empty: want a test image and its training image in each line")
    for number, pair in enumerate(pairs, 1):
        if [Path(name).parent.name for name in pair] != ["test", "training"]:
            raise ValueError(f"{file}, line {number}: want a test image and its training image, but found {pair}")
    classes = sorted(pair[1] for pair in pairs)
    for kind, names in (("training", classes), ("test", [pair[0] for pair in pairs])):
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise ValueError(f"{file}: each {kind} image should come once, but {twice[0]} comes twice")
    trials = sorted(pairs)
    support = np.stack([_read_ink(root / name, image_size) for name in classes])
    query = np.stack([_read_ink(root / test, image_size) for test, _ in trials])
    answers = np.array([classes.index(answer) for _, answer in trials], np.int32)
    return Episode(
        Batch(jnp.asarray(support), jnp.arange(len(classes), dtype=jnp.int32)),
        Batch(jnp.asarray(query), jnp.asarray(answers)),
    )


def _read_ink(file: Path, image_size: int) -> np.ndarray:
    """A drawing, ink 1 on 0, `[image_size, image_size, 1]`; the files hold black ink on white."""
    from PIL import Image, ImageOps

    if not file.is_file():
        raise FileNotFoundError(f"a one-shot run names {file}, which is not there")
    try:
        with Image.open(file) as image:
            ink = ImageOps.invert(image.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read {file} as an image: {error}") from error
    if ink.width != ink.height:
        raise ValueError(f"{file} should be square, but is {ink.width} pixels wide and {ink.height} high")
    if ink.size != (image_size, image_size):
        ink = ink.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(ink, np.float32)[..., None] / 255


def draw_runs(classes: Classes, *, runs: int = 20, ways: int = 20, seed: int = 0) -> Episode:
    """Draws runs like Lake's from classes with groups: within one alphabet, one drawer against another.

    Alphabets take turns, in a random order, those with fewer than `ways` characters left out. All support images of a
    run are by one drawer, and all queries by another. Where the classes do not tell who drew what, they are any two
    drawings of each character.

    Args:
        classes: characters with their alphabets as groups, two drawings of each at least; `uint8` ones come to [0, 1].
        runs: how many episodes.
        ways: characters in each, and trials.
        seed: decides all.

    Returns:
        Runs as a batch of episodes, x `[runs, ways, ...]`.

    Raises:
        ValueError: `runs` is less than 1 or `ways` less than 2, the classes have no groups, none of them is large
            enough, a class has only one drawing, or no two drawers drew all characters of a run.

    >>> from jaxmeta import tasks
    >>> letters = tasks.glyphs("test", classes=50, image_size=8)._replace(groups=("one",) * 4 + ("two",) * 6)
    >>> draw_runs(letters, runs=3, ways=5).query.x.shape
    (3, 5, 8, 8, 1)
    """
    if runs < 1 or ways < 2:
        raise ValueError(f"runs={runs} and ways={ways} must be at least 1 and 2")
    if classes.groups is None:
        raise ValueError("one-shot runs are drawn within an alphabet, but the classes have no groups")
    names = np.array(classes.groups)
    found = {name: np.flatnonzero(names == name) for name in sorted(set(classes.groups))}
    eligible = [members for members in found.values() if len(members) >= ways]
    if not eligible:
        raise ValueError(f"ways={ways}, but no group has more than {max(map(len, found.values()))} classes")
    if classes.counts.min() < 2:
        raise ValueError("one-shot runs want two drawings of every class, but one has fewer")
    rng, drawn = np.random.default_rng(seed), []
    order = rng.permutation(len(eligible))
    labels = jnp.arange(ways, dtype=jnp.int32)
    for run in range(runs):
        chosen = rng.choice(eligible[order[run % len(order)]], ways, replace=False)
        places = _places(classes, chosen, rng)
        images = jnp.asarray(classes.examples[chosen[:, None], places])
        drawn.append(Episode(*(Batch(to_unit(images[:, i]), labels) for i in (0, 1))))
    return _stacked(drawn)


def _places(classes: Classes, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which two drawings of each class a run takes, `[classes, 2]`."""
    if classes.drawers is None:
        return np.array([rng.choice(classes.counts[c], 2, replace=False) for c in chosen])
    drawers = [classes.drawers[c, : classes.counts[c]] for c in chosen]
    common = sorted(set.intersection(*(set(own.tolist()) for own in drawers)))
    if len(common) < 2:
        raise ValueError(f"a run wants two drawers of all its characters, but its {len(chosen)} have {len(common)}")
    pair = rng.choice(common, 2, replace=False)
    return np.array([[rng.choice(np.flatnonzero(own == drawer)) for drawer in pair] for own in drawers])


def _stacked(runs: list[Episode]) -> Episode:
    return Episode(
        *(Batch(*(jnp.stack([getattr(run[i], part) for run in runs]) for part in ("x", "y"))) for i in (0, 1))
    )


def modified_hausdorff(first: np.ndarray, second: np.ndarray) -> float:
    """The modified Hausdorff distance between the inks of two images, each about its own centre, in pixels.

        max( mean_a min_b |a - b|, mean_b min_a |a - b| )

    Args:
        first: an image `[h, w]` or `[h, w, 1]` in [0, 1]; what is above 0.5 is ink.
        second: the other.

    Raises:
        ValueError: an image has no ink, another shape, or values outside [0, 1].

    >>> image = np.zeros((5, 5))
    >>> image[1, 1:4] = 1
    >>> modified_hausdorff(image, np.roll(image, 2, axis=0)), round(modified_hausdorff(image, image.T), 4)
    (0.0, 0.6667)

    References:
        Dubuisson, Jain 1994, ICPR.
    """
    a, b = (_points(image) for image in (first, second))
    between = np.sqrt(np.maximum((a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1), 0))
    return float(max(between.min(0).mean(), between.min(1).mean()))


def _points(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,)):
        raise ValueError(f"an image must have shape [h, w] or [h, w, 1], but one has {image.shape}")
    if not (image >= 0).all() or not (image <= 1).all():
        raise ValueError(f"images must lie in [0, 1], but one lies in [{image.min()}, {image.max()}]")
    points = np.argwhere(image.reshape(image.shape[:2]) > 0.5).astype(np.float64)
    if not len(points):
        raise ValueError("an image has no ink, and so no distance from another")
    return points - points.mean(0)


def hausdorff_baseline(runs: Episode) -> np.ndarray:
    """The share of trials that the modified Hausdorff distance answers wrongly, for each run `[runs]`.

    Args:
        runs: what `lake_runs` or `draw_runs` gives.

    Raises:
        ValueError: arrays have no leading axis of runs, or `modified_hausdorff` refuses an image.

    >>> from jaxmeta import tasks
    >>> letters = tasks.glyphs("test", classes=50, image_size=16)._replace(groups=("one",) * 10)
    >>> hausdorff_baseline(draw_runs(letters, runs=2, ways=4)).shape
    (2,)
    """
    if np.ndim(runs.support.y) != 2:
        raise ValueError(f"runs must have a leading axis of runs, but support.y has shape {np.shape(runs.support.y)}")
    wrong = []
    for support, query, labels, answers in zip(
        *(np.asarray(x) for x in (runs.support.x, runs.query.x, runs.support.y, runs.query.y)), strict=True
    ):
        nearest = [np.argmin([modified_hausdorff(image, known) for known in support]) for image in query]
        wrong.append(np.mean(labels[nearest] != answers))
    return np.array(wrong)
