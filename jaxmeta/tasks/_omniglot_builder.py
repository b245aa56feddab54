"""Preparing Omniglot for TFDS from the official archives, without TensorFlow.

TFDS's own builder calls TensorFlow to list folders. This one has its name, version and features, and yields the
PNG files as they stand in the archives; what it writes is read by either.
"""

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

_TIMEOUT_SECONDS = 60


class Archive(NamedTuple):
    """An official archive: its name, its length in bytes and its SHA-256, as TFDS records them."""

    name: str
    size: int
    sha256: str


ARCHIVES = {
    "train": Archive(
        "images_background.zip", 9464212, "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640"
    ),
    "test": Archive(
        "images_evaluation.zip", 6462886, "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee"
    ),
    "small1": Archive(
        "images_background_small1.zip", 1319022, "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4"
    ),
    "small2": Archive(
        "images_background_small2.zip", 1580917, "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f"
    ),
}


def prepare(data_dir: Path, base_url: str, parts: tuple[str, ...]) -> Path:
    """Downloads, checks and prepares; see `jaxmeta.tasks.prepare_omniglot`."""
    folder = data_dir / "omniglot" / "3.0.0"
    if folder.exists():
        state = "already prepared" if (folder / "dataset_info.json").is_file() else "there, but incomplete,"
        raise FileExistsError(f"omniglot is {state} at {folder}; move it away to prepare it anew")
    store = data_dir / "downloads" / "omniglot"
    try:
        archives = {part: fetch(ARCHIVES[part], base_url, store) for part in parts}
        builder = Omniglot(data_dir=str(data_dir), file_format="array_record", archives=archives)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
        )
    except PermissionError as error:
        raise PermissionError(
            f"omniglot cannot be prepared below {data_dir}: {error.strerror or error}; set TFDS_DATA_DIR or pass "
            "data_dir to name a folder that can be written"
        ) from error
    return folder


def fetch(archive: Archive, base_url: str, store: Path) -> Path:
    """Downloads one archive into a folder, unless it is there, and checks it.

    Raises:
        FileNotFoundError: it cannot be downloaded.
        ValueError: what came is not the official archive.
    """
    target = store / archive.name
    if target.is_file() and _fault(archive, target) is None:
        return target
    store.mkdir(parents=True, exist_ok=True)
    url = base_url.rstrip("/") + "/" + archive.name
    part = target.with_suffix(".part")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, part.open("wb") as file:
            shutil.copyfileobj(response, file)
        if fault := _fault(archive, part):
            raise ValueError(f"{url} is not the official {archive.name}: {fault}; nothing was prepared, try again")
        return part.replace(target)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise FileNotFoundError(
            f"no prepared omniglot below {store.parent.parent}, and downloading {url} failed: {error}; set "
            "TFDS_DATA_DIR or pass data_dir to say where the prepared data set is, or place the four archives in "
            f"{store}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _fault(archive: Archive, file: Path) -> str | None:
    if (size := file.stat().st_size) != archive.size:
        return f"it has {size} bytes instead of {archive.size}"
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == archive.sha256 else f"its SHA-256 is {digest} instead of {archive.sha256}"


class Omniglot(tfds.core.GeneratorBasedBuilder):
    """TFDS's `omniglot/3.0.0`, from archives that are already here."""

    name = "omniglot"
    VERSION = tfds.core.Version("3.0.0")

    def __init__(self, *, archives: dict[str, Path], **kwargs: Any):
        """Takes the archive of each part beside what every TFDS builder takes."""
        self._archives = archives
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Omniglot: 1,623 handwritten characters from 50 alphabets, 20 drawings of each.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(105, 105, 3), encoding_format="png"),
                    "alphabet": tfds.features.ClassLabel(num_classes=50),
                    "alphabet_char_id": np.int64,
                    "label": tfds.features.ClassLabel(num_classes=1623),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/brendenlake/omniglot/",
            citation="Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program "
            "induction. Science 350(6266), 2015.",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        drawings = [drawing for archive in self._archives.values() for drawing in _drawings(archive)]
        alphabets = sorted({drawing.alphabet for drawing in drawings})
        labels = {drawing.label: f"{drawing.alphabet}_{drawing.number}" for drawing in drawings}
        # A part of the archives alone names fewer alphabets and labels than the features allow for.
        features: Any = self.info.features
        features["alphabet"].names = alphabets + [f"absent_{i}" for i in range(len(alphabets), 50)]
        features["label"].names = [labels.get(i, f"absent_{i}") for i in range(1623)]
        return {part: self._generate_examples(archive) for part, archive in self._archives.items()}

    def _generate_examples(self, archive: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        with zipfile.ZipFile(archive) as file:
            for drawing in _drawings(archive):
                yield (
                    f"{drawing.alphabet}_{drawing.number}_{Path(drawing.member).name}",
                    {
                        "image": file.read(drawing.member),
                        "alphabet": drawing.alphabet,
                        "alphabet_char_id": drawing.number,
                        "label": drawing.label,
                    },
                )


class Drawing(NamedTuple):
    """A drawing in an archive: `<part>/<alphabet>/character<number + 1>/<label + 1>_<drawer>.png`."""

    member: str
    alphabet: str
    number: int
    label: int


_MEMBER = re.compile(r"[^/]+/(?P<alphabet>[^/]+)/character(?P<number>\d+)/(?P<label>\d+)_\d+\.png")


def _drawings(archive: Path) -> list[Drawing]:
    with zipfile.ZipFile(archive) as file:
        matches = [match for name in sorted(file.namelist()) if (match := _MEMBER.fullmatch(name))]
    return [Drawing(m[0], m["alphabet"], int(m["number"]) - 1, int(m["label"]) - 1) for m in matches]
