"""Executes notebooks: each `NAME.py` (py:percent) in a fresh kernel, into `NAME.ipynb`, its pictures with it.

python notebooks                            # all of them, in place
python notebooks taylor --out /tmp/check    # one, somewhere else
"""

import dataclasses
from pathlib import Path

import jupytext
import nbformat
import tyro
from nbclient import NotebookClient

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Execute notebooks."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; all without a name."""
    out: Path = HERE
    """Folder to write to."""


def main(arguments: Arguments) -> None:
    names = arguments.names or tuple(sorted(path.stem for path in HERE.glob("[!_]*.py")))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = arguments.out / f"{name}.ipynb"
        nbformat.write(execute(HERE / f"{name}.py"), path)
        print(f"written to {path}")


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; what would differ from run to run (identifiers, times) is left out."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    client = NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": HERE}})
    return client.execute()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
