"""Sphinx: the reference from docstrings, and the notebooks as they were executed.

python -m pip install -e ".[docs]" && python -m sphinx -W --keep-going -b html docs docs/_build
"""

import re
import shutil
from collections import _tuplegetter  # pyright: ignore[reportAttributeAccessIssue]
from pathlib import Path
from typing import Any

import jaxmeta

HERE = Path(__file__).parent

project, author, release = "jaxmeta", "The jaxmeta authors", jaxmeta.__version__
copyright = author
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
html_theme = "furo"
html_title = f"jaxmeta {release}"
exclude_patterns = ["_build"]

nb_execution_mode = "off"  # the tests execute them
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
default_role = "code"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stay as they are written
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "imported-members": True}

shutil.rmtree(HERE / "_notebooks", ignore_errors=True)
shutil.copytree(HERE.parent / "notebooks", HERE / "_notebooks", ignore=shutil.ignore_patterns("*.py", "__*"))

_CODE = re.compile(r"(`[^`]*`)")


def restructured(lines: list[str], *, module: bool) -> list[str]:
    """A docstring's lines: Markdown tables as lists, a module's indented maths as it stands, |x| not a substitution."""
    found: list[str] = []
    for line in lines:
        before = found[-1] if found else ""
        if line.startswith("|"):
            if not set(line) <= set("|- "):
                if not before.startswith("   "):
                    found += ["", ".. list-table::", "   :header-rows: 1", ""]
                cells = [cell.strip() for cell in line.strip("|").split("|")]
                found += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(cells)]
        elif line.lstrip().startswith((">>>", "...")):
            found.append(line)
        elif module and line.startswith("    "):
            found += ["::", "", line] if not before else [line]
        else:
            parts = _CODE.split(line)
            found.append("".join(part if i % 2 else part.replace("|", r"\|") for i, part in enumerate(parts)))
    return found


def setup(app: Any) -> None:
    """Hooks into autodoc."""

    def docstring(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
        lines[:] = restructured(lines, module=what == "module")

    def skip(_app: Any, _what: str, _name: str, obj: Any, given: bool, _options: Any) -> bool:
        return given or isinstance(obj, _tuplegetter)  # fields are told in a class's docstring

    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-skip-member", skip)
