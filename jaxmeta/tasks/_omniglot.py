"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each, through TensorFlow Datasets.

TensorFlow itself is not needed: the data set is read from TFDS's `array_record` files, and where there are none,
prepared from the official archives. Data are found in `data_dir`, else in the folder that the environment variable
`TFDS_DATA_DIR` names, else in `~/tensorflow_datasets`.

Published splits of the characters, by name:

| `split` | train / val / test | rule |
|---|---|---|
| `"vinyals"` | 1028 / 172 / 423 | the last 423 are test, by alphabet but for 4 of Gurmukhi; five alphabets are val |
| `"lake"` | 964 / - / 659 | the official background and evaluation sets |
| `"maml"` | 1100 / 100 / 423 | random, by a hash of each character's name, so alike on every machine |

`"trainval"` joins the first two. In order means background alphabets before evaluation alphabets, each by name.
"""

import functools
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxmeta.tasks._sampler import Classes

BASE_URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
PARTS = ("train", "test", "small1", "small2")

Split = Literal["vinyals", "lake", "maml"]
Subset = Literal["train", "val", "trainval", "test"]

_DRAWINGS = 20
_VALIDATION_ALPHABETS = frozenset({"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"})
_TRAINVAL, _TEST = 1200, 423


class Character(NamedTuple):
    """One character of Omniglot: `part` is `"train"` (background) or `"test"` (evaluation)."""

    part: str
    alphabet: str
    number: int

    @property
    def name(self) -> str:
        """Alphabet and number within it, as TFDS names its labels."""
        return f"{self.alphabet}_{self.number}"


def omniglot(
    split: Split = "vinyals",
    subset: Subset = "train",
    *,
    image_size: int = 28,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Classes:
    """Loads one subset of Omniglot's characters.

    Args:
        split: which published split; see the module's table.
        subset: `"train"`, `"val"`, `"trainval"` or `"test"`. `"lake"` has no `"val"`.
        image_size: height and width in pixels; the originals have 105. Resized with a Lanczos filter.
        data_dir: the TFDS folder; None for `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        download: when the data are not there, download and prepare them (18 MB).

    Returns:
        Classes in order of background and evaluation, alphabet and number, with `uint8` images
        `[classes, 20, image_size, image_size, 1]`, ink 255 on 0, their alphabets as groups, and for each drawing which
        of its alphabet's 20 drawers made it, 1 to 20; None where the order of the records does not tell.

    Raises:
        ValueError: `split` or `subset` is unknown, or `image_size` is not positive.
        FileNotFoundError: the data are not there and `download` is False, or cannot be downloaded.

    References:
        Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050; Vinyals et al. 2016, arXiv:1606.04080;
        Finn, Abbeel, Levine 2017, arXiv:1703.03400.
    """
    _check(split, subset, image_size)
    root = resolve_data_dir(data_dir)
    folder = root / "omniglot" / "3.0.0"
    if not (folder / "dataset_info.json").is_file():
        if not download:
            raise FileNotFoundError(f"no prepared omniglot at {folder}; {_REMEDY}")
        prepare_omniglot(root)
    try:
        drawings = _read(folder, image_size)
    except RuntimeError as error:  # what array_record too raises for a missing, cut or altered file
        first = str(error).splitlines()[0]
        raise ValueError(f"omniglot at {folder} is damaged: {first}; move it away, and it is prepared anew") from error
    chosen = select(sorted(drawings), split, subset)
    info = {"name": "omniglot", "split": split, "subset": subset, "image_size": image_size}
    images, drawers = (np.stack(parts) for parts in zip(*(drawings[character] for character in chosen), strict=True))
    return Classes(
        images,
        np.full(len(chosen), _DRAWINGS, np.int32),
        tuple(character.name for character in chosen),
        info,
        tuple(character.alphabet for character in chosen),
        drawers if drawers.all() else None,
    )


_REMEDY = (
    "set TFDS_DATA_DIR or pass data_dir to say where it is, or let jaxmeta.tasks.prepare_omniglot(data_dir) "
    f"download it from {BASE_URL}"
)


def prepare_omniglot(
    data_dir: str | os.PathLike[str] | None = None, *, base_url: str = BASE_URL, parts: Sequence[str] = PARTS
) -> Path:
    """Downloads Omniglot's official archives, checks them, and prepares them as TFDS's `omniglot/3.0.0`.

    Archives that are already in `<data_dir>/downloads/omniglot` and pass their check are not downloaded again.
    Nothing is left in the data set's folder unless all of it succeeds.

    Args:
        data_dir: the TFDS folder; None for `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        base_url: where the archives are, for a mirror.
        parts: which of `"train"` (background), `"test"` (evaluation), `"small1"` and `"small2"` to prepare.
            `omniglot` needs the first two.

    Returns:
        The folder of the prepared data set.

    Raises:
        FileNotFoundError: an archive cannot be downloaded.
        ValueError: an archive is not the official one, by its length or SHA-256, or a part is unknown.
        FileExistsError: the data set is already there.
    """
    from jaxmeta.tasks._omniglot_builder import prepare

    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"parts must be among {PARTS}, but hold {unknown}")
    return prepare(resolve_data_dir(data_dir), base_url, tuple(parts))


def resolve_data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """The TFDS folder: the argument, else `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser().absolute()


def select(characters: Sequence[Character], split: Split, subset: Subset) -> list[Character]:
    """The characters of a subset.

    Args:
        characters: all 1,623, in any order.
        split: which published split.
        subset: which of its subsets.

    Returns:
        The subset's characters: background before evaluation, by alphabet, by number.
    """
    ordered = sorted(characters, key=lambda c: (c.part != "train", c.alphabet, c.number))
    if split == "maml":
        hashed = sorted(ordered, key=lambda c: hashlib.sha256(f"1/{c.name}".encode()).digest())
        groups = {"train": hashed[:1100], "val": hashed[1100:_TRAINVAL], "test": hashed[_TRAINVAL:]}
    elif split == "lake":
        groups = {"train": [c for c in ordered if c.part == "train"], "val": []}
        groups["test"] = [c for c in ordered if c.part == "test"]
    else:
        early = ordered[:_TRAINVAL]
        held = [c for c in early if c.part == "train" and c.alphabet in _VALIDATION_ALPHABETS]
        groups = {"train": [c for c in early if c not in held], "val": held, "test": ordered[_TRAINVAL:]}
    wanted = {"trainval": ("train", "val")}.get(subset, (subset,))
    members = {c for group in wanted for c in groups[group]}
    return [c for c in ordered if c in members]


@functools.lru_cache(maxsize=1)
def _read(folder: Path, image_size: int) -> dict[Character, tuple[np.ndarray, np.ndarray]]:
    """All drawings of every character, `[20, image_size, image_size, 1]`, in an order of their own content.

    Beside them their drawers `[20]`, of 1 to 20; 0 where the order of the records does not tell.
    """
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(folder)
    except Exception as error:  # a torn file is one of protobuf's own kinds
        raise RuntimeError(f"its description cannot be read, {error}") from error
    drawings: dict[Character, list[tuple[bytes, int]]] = {}
    for part in ("train", "test"):
        try:
            records = builder.as_data_source(part, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise ValueError(
                f"omniglot at {folder} is not in the array_record format, the one that reads without TensorFlow; "
                "move it away, and it is prepared anew"
            ) from error
        except (ValueError, KeyError) as error:
            raise FileNotFoundError(f"omniglot at {folder} has no part {part!r}; {_REMEDY}") from error
        names = builder.info.features["alphabet"].names
        if all(name.isdigit() for name in names):  # what TFDS gives where the file of names is missing
            raise ValueError(
                f"omniglot at {folder} is damaged: its alphabets have lost their names, by which characters are "
                "divided; move it away, and it is prepared anew"
            )
        labelled, images = [], []
        for record in records:
            character = Character(part, names[record["alphabet"]], int(record["alphabet_char_id"]))
            labelled.append((character, int(record["label"])))
            images.append(record["image"])
        for (character, _), image, drawer in zip(labelled, images, _drawers(part, labelled), strict=True):
            drawings.setdefault(character, []).append((image, drawer))
    counts = {len(images) for images in drawings.values()}
    if len(drawings) != _TRAINVAL + _TEST or counts != {_DRAWINGS}:
        raise ValueError(
            f"omniglot at {folder} should hold 1623 characters with 20 drawings each, but holds {len(drawings)} "
            f"with {sorted(counts)}"
        )

    def stacked(pairs: list[tuple[bytes, int]]) -> tuple[np.ndarray, np.ndarray]:
        pairs = sorted(pairs)
        return np.stack([_decode(png, image_size) for png, _ in pairs]), np.array([drawer for _, drawer in pairs])

    return {character: stacked(pairs) for character, pairs in drawings.items()}


def _drawers(part: str, labelled: list[tuple[Character, int]]) -> list[int]:
    """Who drew each record of a part.

    No record says so, but TFDS writes records in the order of a hash of the part's name and of each record's key, and
    the key has the drawer in it: "Greek_3_0398_17.png" is label 397 by drawer 17. If all characters stand where this
    order puts them, so do the drawers. `_omniglot_builder` gives the same keys.

    Args:
        part: the part's name, which is hashed first.
        labelled: the character and the label of each record, in the order in which they are stored.

    Returns:
        Drawers, 1 to 20; zeros where the order is another.
    """

    def place(character: Character, label: int, drawer: int) -> bytes:
        key = f"{character.name}_{label + 1:04}_{drawer:02}.png"
        return hashlib.md5(f"{part}{key}".encode(), usedforsecurity=False).digest()

    keyed = [
        (place(character, label, drawer), character, drawer)
        for character, label in set(labelled)
        for drawer in range(1, _DRAWINGS + 1)
    ]
    keyed.sort(key=lambda entry: entry[0])
    told = [character for _, character, _ in keyed] == [character for character, _ in labelled]
    return [drawer for _, _, drawer in keyed] if told else [0] * len(labelled)


def _decode(png: bytes, image_size: int) -> np.ndarray:
    """A drawing as `uint8` `[image_size, image_size, 1]`, ink 255. The archives hold black ink on white, one bit."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(png)) as image:
        ink = ImageOps.invert(image.convert("L"))
    if ink.getextrema() != (0, 255):
        raise ValueError(f"a drawing should be black on white, but its inverse has the range {ink.getextrema()}")
    if image_size != ink.width:
        ink = ink.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(ink, np.uint8)[..., None]


def _check(split: str, subset: str, image_size: int) -> None:
    if split not in ("vinyals", "lake", "maml"):
        raise ValueError(f'split must be "vinyals", "lake" or "maml", but is {split!r}')
    if subset not in ("train", "val", "trainval", "test"):
        raise ValueError(f'subset must be "train", "val", "trainval" or "test", but is {subset!r}')
    if split == "lake" and subset == "val":
        raise ValueError('split="lake" has no validation characters; use subset="train" or "test"')
    if image_size < 1:
        raise ValueError(f"image_size must be positive, but is {image_size}")
