"""A character set that nobody wrote: stroke-drawn glyphs from a seed, for work without downloads.

A character is one to four strokes, each a cubic Bezier curve. A drawing of it moves the control points a little,
then turns, scales, shears and shifts the whole, and draws it with a pen of its own width: many classes, a few
drawings of each, the same kind of variation between writers as in Omniglot.
"""

from typing import Literal

import numpy as np

from jaxmeta.tasks._sampler import Classes

_SHARES = {"train": (0.0, 0.64), "val": (0.64, 0.8), "test": (0.8, 1.0)}
_POINTS = 64


def glyphs(
    subset: Literal["train", "val", "test"] = "train",
    *,
    classes: int = 400,
    drawings: int = 20,
    image_size: int = 28,
    seed: int = 0,
) -> Classes:
    """Draws a synthetic character set.

    Args:
        subset: which characters of the set: the first 64 % (`"train"`), the next 16 % (`"val"`) or the last 20 %
            (`"test"`).
        classes: characters in the whole set.
        drawings: drawings of each character.
        image_size: height and width in pixels.
        seed: makes the set; each character depends on the seed and its own number alone.

    Returns:
        Classes with `uint8` images `[classes in subset, drawings, image_size, image_size, 1]`, ink 255.

    Raises:
        ValueError: `subset` is unknown or a size is not positive.
    """
    if subset not in _SHARES:
        raise ValueError(f"subset must be one of {tuple(_SHARES)}, but is {subset!r}")
    if classes < 5 or drawings < 1 or image_size < 8:
        raise ValueError(f"classes={classes}, drawings={drawings}, image_size={image_size} must be at least 5, 1 and 8")
    first, last = (round(share * classes) for share in _SHARES[subset])
    images = np.stack([_character(seed, number, drawings, image_size) for number in range(first, last)])
    info = {"name": "glyphs", "subset": subset, "classes": classes, "image_size": image_size, "seed": seed}
    counts = np.full(last - first, drawings, np.int32)
    return Classes(images, counts, tuple(f"glyph_{number}" for number in range(first, last)), info)


def _character(seed: int, number: int, drawings: int, size: int) -> np.ndarray:
    """All drawings of one character, `[drawings, size, size, 1]`."""
    rng = np.random.default_rng([seed, number])
    strokes = rng.uniform(0.12, 0.88, (rng.integers(1, 5), 4, 2))
    control = strokes + rng.normal(0.0, 0.025, (drawings, *strokes.shape))
    t = np.linspace(0.0, 1.0, _POINTS)
    basis = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    ink = np.einsum("bt,dsbc->dstc", basis, control).reshape(drawings, -1, 2) - 0.5
    ink = np.einsum("dpc,dec->dpe", ink, _hands(rng, drawings)) + 0.5 + rng.normal(0.0, 0.02, (drawings, 1, 2))
    width = rng.uniform(0.02, 0.035, (drawings, 1, 1))
    return _rasterise(ink.astype(np.float32), width.astype(np.float32), size)


def _hands(rng: np.random.Generator, drawings: int) -> np.ndarray:
    """A writer's turn, scale and shear, `[drawings, 2, 2]`."""
    angle, shear = rng.normal(0.0, 0.12, (2, drawings))
    scale = rng.uniform(0.85, 1.1, (drawings, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    lean = np.stack([np.stack([np.ones_like(shear), shear], -1), np.tile([0.0, 1.0], (drawings, 1))], -2)
    return turn @ lean * scale[:, None, :]


def _rasterise(ink: np.ndarray, width: np.ndarray, size: int) -> np.ndarray:
    """Draws points `[drawings, points, 2]` in the unit square with a round pen, edges one pixel soft."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    across = (centres - ink[..., :1]) ** 2
    down = (centres - ink[..., 1:]) ** 2
    nearest = np.full((len(ink), size, size), np.inf, np.float32)
    for point in range(ink.shape[1]):
        np.minimum(nearest, down[:, point, :, None] + across[:, point, None, :], out=nearest)
    shade = np.clip((width - np.sqrt(nearest)) * size + 0.5, 0.0, 1.0)
    return np.rint(shade * 255).astype(np.uint8)[..., None]
