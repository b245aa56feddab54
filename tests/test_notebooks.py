"""Notebooks run from start to end, and what is stored beside each source is that source, executed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def sources(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_a_fresh_kernel(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "tasks.omniglot(" in (FOLDER / f"{name}.py").read_text():
        request.getfixturevalue("tfds_dir")  # skipped without the real data
    command = [sys.executable, str(FOLDER), name, "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as a reader runs it
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert outputs(nbformat.read(tmp_path / f"{name}.ipynb", as_version=4))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_its_source_executed(name: str) -> None:
    stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert sources(stored) == sources(jupytext.read(FOLDER / f"{name}.py")), f"run: python notebooks {name}"
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert outputs(stored)
    assert not [output for output in outputs(stored) if output.output_type == "error" or output.get("name") == "stderr"]


def test_every_stored_notebook_has_a_source() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
