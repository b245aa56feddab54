"""Fixtures that several tests share."""

import atexit
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Tests spend their time in compilation, so no large program is compiled twice, in whichever process: the controller of
# parallel workers comes first, and they inherit its environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxmeta-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# LLVM's optimisations make a program faster and not more right, and tests run theirs a few times. The older way to emit
# fused operations compiles in two thirds of the time; another XLA may not have it, and stops at what it does not know.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
if version("jaxlib").startswith("0.10.") and "xla_cpu_use_fusion_emitters" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from hypothesis import settings

# Examples of these tests compile programs: time says nothing about them.
settings.register_profile("jaxmeta", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("jaxmeta")

# Two CPU devices: tasks are divided among them by default, as the command line does.
jax.config.update("jax_num_cpu_devices", 2)


_TEARDOWNS = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Forgets compiled programs before they are too many: Linux grants a process 65,530 pieces of memory."""
    pieces = Path("/proc/self/maps")
    if next(_TEARDOWNS) % 10 == 0 and pieces.exists() and pieces.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def float64() -> Iterator[None]:
    """Runs a test in double precision, for oracles to many digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """The TFDS folder with the real Omniglot."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not (Path(folder) / "omniglot" / "3.0.0").is_dir():
        pytest.skip(f"TFDS_DATA_DIR={folder!r} holds no prepared omniglot/3.0.0")
    return Path(folder)


@pytest.fixture(scope="session")
def official_archives() -> Path:
    """A folder with Omniglot's two small official archives."""
    folder = os.environ.get("OMNIGLOT_ARCHIVES")
    if not folder or not (Path(folder) / "images_background_small1.zip").is_file():
        pytest.skip(f"OMNIGLOT_ARCHIVES={folder!r} holds no official images_background_small1.zip")
    return Path(folder)
