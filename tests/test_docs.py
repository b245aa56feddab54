"""The reference builds from the docstrings without a warning, and names everything that is public."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import jaxmeta

ROOT = Path(__file__).parent.parent


def test_it_builds_without_a_warning_and_is_complete(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    pages = "".join(path.read_text() for path in (tmp_path / "api").glob("*.html"))
    described = set(re.findall(r'sig-name descname"><span class="pre">(\w+)<', pages))
    names = [path.stem.replace("taylor", "analysis.taylor") for path in (ROOT / "docs" / "api").glob("*.md")]
    for package in [jaxmeta, *(importlib.import_module(f"jaxmeta.{name}") for name in names if name != "jaxmeta")]:
        shown = [getattr(package, name) for name in getattr(package, "__all__", ())]
        public = {item.__name__ for item in shown if inspect.isclass(item) or inspect.isfunction(item)}
        assert public <= described, package.__name__
    written = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.stem for path in (tmp_path / "_notebooks").glob("*.html")} == written
