"""Your own data as classes to draw episodes from."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxmeta.tasks._sampler import Classes

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def from_arrays(x: Any, y: Any, *, name: str = "arrays") -> Classes:
    """Groups labelled examples by class.

    Args:
        x: examples `[n, ...]`, numbers. `uint8` images `[n, height, width, channels]` are scaled to [0, 1] when
            sampled; others are used as they are, with 32 bits at most.
        y: integer labels `[n]`, any values.
        name: what to call the data in result files.

    Returns:
        Classes in the order of their labels, examples in the order given.

    Raises:
        TypeError: x does not hold numbers.
        ValueError: lengths differ, there are no examples, x holds a value that is not finite or wants more than 32
            bits, or `uint8` images of 0 and 1, which scaling would make all but black.

    >>> import numpy as np
    >>> classes = from_arrays(np.zeros((6, 28, 28, 1), np.uint8), [3, 3, 7, 7, 7, 3])
    >>> classes.examples.shape, classes.names
    ((2, 3, 28, 28, 1), ('3', '7'))
    """
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or x.shape[:1] != y.shape:
        raise ValueError(
            f"y must hold one integer label for each example of x, but has shape {y.shape} and dtype {y.dtype}, "
            f"and x has shape {x.shape}"
        )
    if not len(y):
        raise ValueError("x must hold at least one example, but is empty")
    if x.dtype == np.uint8 and x.ndim == 4 and x.max(initial=0) == 1:
        raise ValueError("x must hold uint8 images of 0 to 255, but its largest value is 1: give 255 * x, or float32")
    x = _in_32_bits(x)
    labels = np.unique(y)
    return _stack([x[y == label] for label in labels], tuple(str(label) for label in labels), {"name": name})


def _in_32_bits(x: np.ndarray) -> np.ndarray:
    """Examples in the types that JAX computes with by default."""
    if x.dtype.kind not in "buif":
        raise TypeError(f"x must hold numbers, but has dtype {x.dtype}")
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows is refused by name
            narrow = x.astype(np.float32) if x.dtype.itemsize > 4 else x
        if not np.isfinite(narrow).all():
            raise ValueError("x must be finite in 32 bits, but holds NaN, infinity, or larger values")
        return narrow
    if x.dtype.itemsize <= 4:
        return x
    if x.min() < np.iinfo(np.int32).min or x.max() > np.iinfo(np.int32).max:
        raise ValueError(f"x must fit 32-bit integers, but lies in [{x.min()}, {x.max()}]: rescale it")
    return x.astype(np.int32)


def from_folder(path: str | Path, *, image_size: int = 28, grayscale: bool = True) -> Classes:
    """Reads a folder that holds a folder of images for each class.

    Args:
        path: the folder; class names are the names of its sub-folders.
        image_size: images are resized to this height and width, in pixels.
        grayscale: one channel; otherwise red, green and blue.

    Returns:
        Classes in the order of their names, images in the order of theirs, `uint8`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no folder with images, a folder of folders, or a file that cannot be read as an image.
    """
    from PIL import Image

    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder at {root}: want a folder with one sub-folder of images for each class")
    folders = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if files := sorted(f for f in folder.iterdir() if _is_image(f)):
            folders[folder.name] = files
        elif any(_is_image(f) for f in folder.glob("*/*")):
            raise ValueError(
                f"{folder} holds folders of images: want one sub-folder of images for each class in {root}; "
                "classes to train on and to be judged by can be read apart, or divided by split_classes"
            )
    if not folders:
        raise ValueError(f"{root} holds no sub-folder with images: want one sub-folder of images for each class")

    def read(file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}): convert it first")
                resized = (
                    _on_white(image)
                    .convert("L" if grayscale else "RGB")
                    .resize((image_size, image_size), Image.Resampling.LANCZOS)
                )
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read {file} as an image: {error}") from error
        return np.asarray(resized, np.uint8).reshape(image_size, image_size, -1)

    groups = [np.stack([read(file) for file in files]) for files in folders.values()]
    return _stack(groups, tuple(folders), {"name": root.name, "image_size": image_size})


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _IMAGE_SUFFIXES and not file.name.startswith(".")


def _on_white(image: Any) -> Any:
    """An image with its transparent parts white: black ink on nothing would else turn all black."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def split_classes(classes: Classes, *, test_share: float, seed: int = 0) -> tuple[Classes, Classes]:
    """Divides classes at random into those to train on and those to be judged by.

    Which is which hangs on the number of classes: with one more, others are judged by.

    Args:
        classes: what to divide.
        test_share: share of the classes that go to the test part, in (0, 1).
        seed: what the division is made from.

    Returns:
        `(train, test)`, each with at least one class and in the order given.

    Raises:
        ValueError: `test_share` is out of range, or there are fewer than two classes.

    >>> train, test = split_classes(from_arrays(np.zeros((8, 2)), np.arange(8) % 4), test_share=0.25)
    >>> len(train.names), len(test.names)
    (3, 1)
    """
    total = len(classes.names)
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, but is {test_share}")
    if total < 2:
        raise ValueError(f"classes must hold at least two classes to divide, but hold {total}")
    tested = min(max(round(test_share * total), 1), total - 1)
    shuffled = np.random.default_rng(seed).permutation(total)
    test, train = np.sort(shuffled[:tested]), np.sort(shuffled[tested:])
    return _subset(classes, train, "train"), _subset(classes, test, "test")


def _subset(classes: Classes, chosen: np.ndarray, subset: str) -> Classes:
    names = tuple(classes.names[i] for i in chosen)
    groups = None if classes.groups is None else tuple(classes.groups[i] for i in chosen)
    drawers = None if classes.drawers is None else classes.drawers[chosen]
    info = {**classes.info, "subset": subset}
    return Classes(classes.examples[chosen], classes.counts[chosen], names, info, groups, drawers)


def _stack(groups: list[np.ndarray], names: tuple[str, ...], info: dict[str, Any]) -> Classes:
    counts = np.array([len(group) for group in groups], np.int32)
    examples = np.zeros((len(groups), counts.max(), *groups[0].shape[1:]), groups[0].dtype)
    for place, group in zip(examples, groups, strict=True):
        place[: len(group)] = group
    digest = hashlib.sha256("\n".join(names).encode() + counts.tobytes() + examples.tobytes()).hexdigest()
    return Classes(examples, counts, names, {**info, "sha256": digest})
