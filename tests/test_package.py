"""The package as a whole: what importing it costs, and that its documents tell the truth."""

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxmeta

ROOT = Path(__file__).parent.parent


def test_importing_jaxmeta_does_not_import_what_training_or_the_command_line_need() -> None:
    heavy = ("tensorflow", "tensorflow_datasets", "matplotlib", "orbax.checkpoint.v1", "tyro", "PIL", "tqdm")
    code = f"import sys, jaxmeta; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_importing_jaxmeta_does_not_start_a_backend() -> None:
    code = "import jax, jaxmeta; jax.config.update('jax_num_cpu_devices', 3); print(len(jax.devices()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "3"


def test_the_package_is_its_command_line() -> None:
    out = subprocess.run([sys.executable, "-m", "jaxmeta", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout == f"jaxmeta {jaxmeta.__version__}\n"


def test_tensorflow_is_not_needed() -> None:
    with pytest.raises(ModuleNotFoundError):
        __import__("tensorflow")


@pytest.mark.parametrize("name", jaxmeta.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert getattr(jaxmeta, name).__doc__


FUNCTIONS = {
    f"{room}{name}": value
    for room, module in (("", jaxmeta), ("tasks.", jaxmeta.tasks), ("nn.", jaxmeta.nn), ("losses.", jaxmeta.losses))
    for name, value in vars(module).items()
    if inspect.isfunction(value) and not name.startswith("_") and value.__module__.startswith("jaxmeta")
}
# They download, read a folder of images or draw a whole character set.
WITHOUT_EXAMPLE = {"tasks.omniglot", "tasks.prepare_omniglot", "tasks.from_folder", "tasks.glyphs", "tasks.lake_runs"}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_public_function_shows_how_it_is_used(name: str) -> None:
    doc = FUNCTIONS[name].__doc__ or ""
    assert name in WITHOUT_EXAMPLE or ">>> " in doc
    signature = inspect.signature(FUNCTIONS[name])
    assert "Args:" in doc or len(signature.parameters) < 2 or "argument" in doc.lower()


def blocks(page: str) -> list[str]:
    """What a page shows in Python."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found
    return found


def test_the_readme_s_example_runs() -> None:
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), {})


def test_the_recipes_run() -> None:
    exec(compile("\n".join(blocks("docs/recipes.md")), "recipes.md", "exec"), {"__name__": "recipes"})


def test_the_constraints_pin_every_dependency_and_hold_no_address() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "http" not in text
    assert "@" not in text
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in text.splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["notebooks"], *extras["tests"]]
    names = {re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - {"jaxmeta"} <= pinned


@pytest.mark.parametrize("path", sorted(ROOT.glob("jaxmeta/**/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    """In the order below; nn and tasks stand aside, and `_stored`, which imports nothing of ours, serves all."""
    order = [
        "_stored",
        "episode",
        "losses",
        "_memory",
        "_precision",
        "_gradient",
        "learner",
        "augmentation",
        "meta_batch",
        "inner",
        "optimization",
        "metric",
        "memory",
        "analysis",
        "training",
        "presets",
        "cli",
        "__main__",
    ]
    room = path.relative_to(ROOT / "jaxmeta").parts[0].removesuffix(".py")
    text = path.read_text()
    imported = set(re.findall(r"^\s*(?:from|import) jaxmeta\.(\w+)", text, re.MULTILINE))
    for names in re.findall(r"^\s*from jaxmeta import ([\w, ]+)", text, re.MULTILINE):
        imported |= {name.strip() for name in names.split(",")}
    if room == "nn":
        assert imported <= {"nn", "_stored"}
    elif room == "tasks":
        assert imported <= {"tasks", "episode"}
    elif room in order:
        place, wings = order.index(room), order.index("optimization")
        allowed = (
            {*order[: place + 1]} | ({"nn"} if place >= wings else set()) | ({"tasks"} if place > wings else set())
        )
        assert imported <= allowed
    else:
        assert room == "__init__"
