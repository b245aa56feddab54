"""Omniglot: the real data, the splits, and preparing it from archives."""

import functools
import hashlib
import http.server
import io
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmeta import tasks
from jaxmeta.tasks import _omniglot as reader
from jaxmeta.tasks import _omniglot_builder as builder


@pytest.mark.parametrize(
    ("split", "sizes"),
    [("vinyals", (1028, 172, 1200, 423)), ("maml", (1100, 100, 1200, 423)), ("lake", (964, None, 964, 659))],
)
def test_splits_of_the_real_data_have_their_sizes_and_share_no_character(tfds_dir: Path, split, sizes) -> None:
    parts = {}
    for subset, size in zip(("train", "val", "trainval", "test"), sizes, strict=True):
        if size is None:
            continue
        classes = tasks.omniglot(split, subset, data_dir=tfds_dir)
        assert classes.examples.shape == (size, 20, 28, 28, 1)
        assert classes.examples.dtype == np.uint8
        parts[subset] = set(classes.names)
        assert len(parts[subset]) == size
    assert not parts["trainval"] & parts["test"]
    assert parts["trainval"] == parts["train"] | parts.get("val", set())
    assert len(parts["trainval"] | parts["test"]) == 1623
    if "val" in parts:
        assert not parts["train"] & parts["val"]


def test_the_vinyals_split_is_the_published_one(tfds_dir: Path) -> None:
    """Five whole background alphabets validate; only Gurmukhi is in both train (41) and test (4)."""
    names = {s: tasks.omniglot("vinyals", s, data_dir=tfds_dir).names for s in ("train", "val", "test")}
    alphabets = {s: {name.rpartition("_")[0] for name in part} for s, part in names.items()}
    assert alphabets["val"] == {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
    assert alphabets["train"] & alphabets["test"] == {"Gurmukhi"}
    assert sum(name.startswith("Gurmukhi_") for name in names["train"]) == 41
    assert sum(name.startswith("Gurmukhi_") for name in names["test"]) == 4


def test_pixels_are_ink_on_nothing(tfds_dir: Path) -> None:
    """Decoded without OpenCV the archive's pixels are 0 and 1; whatever they are, ink is 255 here."""
    original = tasks.omniglot("lake", "test", image_size=105, data_dir=tfds_dir).examples
    assert np.unique(original).tolist() == [0, 255]
    assert 0.03 < (original == 255).mean() < 0.1
    small = tasks.omniglot("lake", "test", data_dir=tfds_dir).examples
    assert small.max() == 255
    assert abs(small.mean() - original.mean()) < 2
    assert (small.reshape(len(small), 20, -1).max(-1) > 100).all(), "every drawing still has ink"


def test_drawers_are_those_of_the_official_archive(official_archives: Path, tfds_dir: Path) -> None:
    """TFDS keeps no drawers: they are told by the order of its records, and here by the archive's file names."""
    classes = tasks.omniglot("lake", "train", image_size=105, data_dir=tfds_dir)
    assert (np.sort(classes.drawers) == np.arange(1, 21)).all()
    compared = []
    with zipfile.ZipFile(official_archives / "images_background_small1.zip") as file:
        for name in sorted(name for name in file.namelist() if name.endswith(".png"))[::19]:
            _, alphabet, character, png = name.split("/")
            place = classes.names.index(f"{alphabet}_{int(character.removeprefix('character')) - 1}")
            _, _, drawer = png.removesuffix(".png").partition("_")
            with Image.open(file.open(name)) as image:
                ink = 255 - np.asarray(image.convert("L"))
            mine = classes.examples[place, classes.drawers[place] == int(drawer), ..., 0]
            np.testing.assert_array_equal(mine[0], ink)
            compared.append(int(drawer))
    assert len(compared) == 144
    assert set(compared) == set(range(1, 21))


def test_the_order_of_records_tells_who_drew_them() -> None:
    names = [(n, f"A_{n}_{n + 1:04}_{drawer:02}.png", drawer) for n in range(3) for drawer in range(1, 21)]
    names.sort(key=lambda name: hashlib.md5(b"test" + name[1].encode()).hexdigest())
    labelled = [(reader.Character("test", "A", number), number) for number, _, _ in names]
    assert reader._drawers("test", labelled) == [drawer for _, _, drawer in names]
    place = next(i for i in range(60) if labelled[i] != labelled[i + 1])
    swapped = [*labelled[:place], labelled[place + 1], labelled[place], *labelled[place + 2 :]]
    assert reader._drawers("test", swapped) == [0] * 60
    assert reader._drawers("train", labelled) == [0] * 60


def test_episodes_of_a_subset_hold_its_images_alone(tfds_dir: Path) -> None:
    import jax

    test = tasks.omniglot("vinyals", "test", data_dir=tfds_dir)
    train = {
        image.tobytes() for image in tasks.omniglot("vinyals", "trainval", data_dir=tfds_dir).examples.reshape(-1, 784)
    }
    source = tasks.episodes(test, ways=20, shots=1, queries=2)
    batch = jax.vmap(source.sample, (None, 0))(source.data, jax.random.split(jax.random.key(0), 20))
    drawn = np.rint(np.concatenate([batch.support.x, batch.query.x], 1) * 255).astype(np.uint8).reshape(-1, 784)
    own = {image.tobytes() for image in test.examples.reshape(-1, 784)}
    assert all(image.tobytes() in own for image in drawn)
    assert not any(image.tobytes() in train for image in drawn)


def test_the_random_split_is_alike_on_every_machine() -> None:
    """It hangs on nothing but the characters' names."""
    alphabets = [(part, f"{part}_{i}", 40) for part in ("train", "test") for i in range(21)]
    characters = [reader.Character(part, name, n) for part, name, count in alphabets for n in range(count)][:1623]
    chosen = reader.select(characters, "maml", "test")
    assert chosen == reader.select(characters[::-1], "maml", "test")
    digest = hashlib.sha256(" ".join(c.name for c in chosen).encode()).hexdigest()
    assert digest.startswith(SPLIT_DIGEST)


SPLIT_DIGEST = "ed3d7452a297d73b"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"split": "ravi"}, 'split must be "vinyals", "lake" or "maml", but is'),
        ({"subset": "all"}, "subset must be"),
        ({"split": "lake", "subset": "val"}, "has no validation characters"),
        ({"image_size": 0}, "image_size must be positive"),
    ],
)
def test_bad_arguments_are_named(args, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.omniglot(**args)


def test_missing_data_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"no prepared omniglot at {tmp_path}.*set TFDS_DATA_DIR"):
        tasks.omniglot(download=False)


# Preparing, from archives that a file server on this machine hands out.


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def read_part(folder: Path, part: str) -> dict[tuple[str, int, int], list[bytes]]:
    import tensorflow_datasets as tfds

    found = tfds.builder_from_directory(folder)
    names = found.info.features["alphabet"].names
    records: dict[tuple[str, int, int], list[bytes]] = {}
    for r in found.as_data_source(part, decoders={"image": tfds.decode.SkipDecoding()}):
        key = (names[r["alphabet"]], int(r["alphabet_char_id"]), int(r["label"]))
        records.setdefault(key, []).append(r["image"])
    return {key: sorted(images) for key, images in records.items()}


def test_the_official_archives_become_what_tfds_prepared(
    official_archives: Path, tfds_dir: Path, tmp_path: Path, serve
) -> None:
    folder = tasks.prepare_omniglot(tmp_path, base_url=serve(official_archives), parts=("small1", "small2"))
    assert folder == tmp_path / "omniglot" / "3.0.0"
    for part in ("small1", "small2"):
        assert read_part(folder, part) == read_part(tfds_dir / "omniglot" / "3.0.0", part)
    with pytest.raises(FileNotFoundError, match="has no part 'train'"):
        tasks.omniglot(data_dir=tmp_path)
    with pytest.raises(FileExistsError, match="already prepared"):
        tasks.prepare_omniglot(tmp_path)


@pytest.mark.parametrize("fault", ["corrupted", "truncated"])
def test_a_damaged_official_archive_is_refused_and_leaves_nothing(
    official_archives: Path, tmp_path: Path, serve, fault: str
) -> None:
    served, data_dir = tmp_path / "served", tmp_path / "data"
    served.mkdir()
    for name in ("images_background_small1.zip", "images_background_small2.zip"):
        content = bytearray((official_archives / name).read_bytes())
        if name.endswith("small2.zip"):
            content[len(content) // 2] ^= 1
            content = content if fault == "corrupted" else content[:-1000]
        (served / name).write_bytes(content)
    told = "its SHA-256 is" if fault == "corrupted" else "bytes instead of 1580917"
    with pytest.raises(ValueError, match=rf"small2.zip is not the official .*{told}.*try again"):
        tasks.prepare_omniglot(data_dir, base_url=serve(served), parts=("small1", "small2"))
    assert not (data_dir / "omniglot").exists()
    kept = sorted(path.name for path in (data_dir / "downloads" / "omniglot").iterdir())
    assert kept == ["images_background_small1.zip"], "what was sound is kept for the next try, the rest is not"


def test_a_broken_connection_is_told_and_leaves_nothing(tmp_path: Path, serve, monkeypatch) -> None:
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1319022")
            self.end_headers()
            self.wfile.write(b"PK")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises((ValueError, FileNotFoundError), match=r"small1\.zip"):
        tasks.prepare_omniglot(tmp_path, base_url=f"http://127.0.0.1:{server.server_port}", parts=("small1",))
    server.shutdown()
    server.server_close()
    assert not (tmp_path / "omniglot").exists()
    assert list((tmp_path / "downloads" / "omniglot").iterdir()) == []


def test_no_server_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"downloading http://127.0.0.1:9/images_background.zip failed.*data_dir"
    ):
        tasks.prepare_omniglot(tmp_path, base_url="http://127.0.0.1:9")


def test_unknown_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parts must be among .* but hold \['small3'\]"):
        tasks.prepare_omniglot(tmp_path, parts=("small3",))


def draw_archive(path: Path, part: str, alphabets: dict[str, int], first_label: int) -> builder.Archive:
    """An archive laid out like the official ones, with one pixel of ink a drawing."""
    with zipfile.ZipFile(path, "w") as file:
        label = first_label
        for alphabet, characters in alphabets.items():
            for number in range(characters):
                label += 1
                for drawer in range(20):
                    pixels = np.ones((105, 105), bool)
                    pixels[label % 105, drawer] = False
                    buffer = io.BytesIO()
                    Image.fromarray(pixels).save(buffer, "PNG")
                    name = f"{part}/{alphabet}/character{number + 1:02}/{label:04}_{drawer + 1:02}.png"
                    file.writestr(name, buffer.getvalue())
    content = path.read_bytes()
    return builder.Archive(path.name, len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("interrupted", [False, True])
def test_preparing_anywhere(tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch, interrupted: bool) -> None:
    """The same path with archives drawn here; if it breaks midway, nothing half-prepared is left."""
    served = tmp_path / "served"
    served.mkdir()
    archives = {
        "train": draw_archive(served / "images_background.zip", "images_background", {"A": 2, "B": 1}, 0),
        "test": draw_archive(served / "images_evaluation.zip", "images_evaluation", {"C": 2}, 3),
    }
    monkeypatch.setattr(builder, "ARCHIVES", archives)
    prepare = functools.partial(
        tasks.prepare_omniglot, tmp_path / "data", base_url=serve(served), parts=("train", "test")
    )
    if interrupted:
        whole = builder._drawings
        gone = builder.Drawing("gone", "A", 0, 0)
        monkeypatch.setattr(builder, "_drawings", lambda archive: [*whole(archive)[:30], gone])
        with pytest.raises(KeyError):
            prepare()
        assert not (tmp_path / "data" / "omniglot" / "3.0.0").exists()
        monkeypatch.setattr(builder, "_drawings", whole)
        shutil.rmtree(served)  # the archives are already here: no second download
    folder = prepare()
    records = read_part(folder, "test")
    assert sorted(records) == [("C", 0, 3), ("C", 1, 4)]
    assert all(len(images) == 20 for images in records.values())
    with pytest.raises(ValueError, match="should hold 1623 characters with 20 drawings each, but holds 5"):
        tasks.omniglot(data_dir=tmp_path / "data")
    monkeypatch.setattr(reader, "_TRAINVAL", 3)
    monkeypatch.setattr(reader, "_TEST", 2)
    drawn = tasks.omniglot("lake", "train", image_size=105, data_dir=tmp_path / "data")
    np.testing.assert_array_equal(drawn.drawers, drawn.examples[..., 0].max(2).argmax(-1) + 1)
