"""Training Prototypical Networks in jaxmeta and in a plain PyTorch loop, side by side in one run.

Gradients on the same weights and episode are compared first, in double precision; where they differ by more than 1e-10
of the largest entry, nothing is raced. Then whole training steps, the
sampling of episodes included, each implementation in a process of its own with two threads; they take turns, orders
alternate, and medians count. PyTorch runs with an allocator that keeps its memory, its best setting here, and without.
In an environment with jaxmeta and PyTorch (`benchmarks/peers/requirements.txt`):

    python benchmarks/peers/compare_prototypical.py
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from compare_peers import TUNED, machine, make_images

HERE = Path(__file__).parent
ARMS = {"jaxmeta": ("jaxmeta", {}), "loop": ("loop", TUNED), "loop, default malloc": ("loop", {})}
TOLERANCE = 1e-10
CASES = [
    {"ways": 20, "shots": 1, "queries": 15, "tasks": 1, "repeat": 5},
    {"ways": 20, "shots": 1, "queries": 5, "tasks": 1, "repeat": 10},
    {"ways": 20, "shots": 1, "queries": 5, "tasks": 4, "repeat": 3},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder)
        difference = equality(CASES[0], folder)
        rows = [race(case, folder, turns) for case in CASES]
    report = {
        "command": f"python benchmarks/peers/compare_prototypical.py --turns {turns}",
        "turns": turns,
        "largest_relative_difference_of_gradients": difference,
        "training_step": rows,
        "versions": {**{p: version(p) for p in ("jaxmeta", "jax", "torch")}, "python": platform.python_version()},
        "machine": machine(),
    }
    path = HERE.parent / "results" / "peers-prototypical.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {path}")


def write_case(case: dict[str, Any], folder: Path, dtype: type) -> Path:
    """Weights and one episode as arrays, from one generator."""
    rng, images = np.random.default_rng(0), np.load(folder / "images.npy")
    arrays: dict[str, Any] = {}
    for i in range(4):
        shape = (3, 3, 1 if i == 0 else 64, 64)
        arrays[f"params/conv_{i}/kernel"] = rng.normal(0, np.prod(shape[:3]) ** -0.5, shape)
        arrays |= {f"params/{name}": np.zeros(64) for name in (f"conv_{i}/bias", f"norm_{i}/bias")}
        arrays[f"params/norm_{i}/scale"] = np.ones(64)
    for name, each in (("support", case["shots"]), ("query", case["queries"])):
        labels = np.repeat(np.arange(case["ways"]), each)
        arrays[f"{name}_x"] = images[labels, rng.integers(0, 20, len(labels))] / 255
        arrays[f"{name}_y"] = labels
    arrays = {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    path = folder / "case.npz"
    np.savez(path, case=json.dumps({**case, "images": str(folder / "images.npy")}), **arrays)
    return path


def equality(case: dict[str, Any], folder: Path) -> float:
    """The largest difference between the two gradients over the largest entry; raises if that is more than rounding."""
    path, found = write_case(case, folder, np.float64), {}
    for arm in ("jaxmeta", "loop"):
        out = folder / f"{arm}.npz"
        subprocess.run(
            [sys.executable, str(HERE / "prototypical_worker.py"), arm, str(path), "--gradients", str(out)], check=True
        )
        with np.load(out) as file:
            found[arm] = {name: file[name] for name in file.files}
    difference = relative_difference(found["jaxmeta"], found["loop"])
    print(f"largest difference of gradients over the largest entry: {difference:.1e}", flush=True)
    return difference


def relative_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest difference over the largest entry, of gradients in double precision."""
    for name, gradients in (("jaxmeta", ours), ("loop", theirs)):
        if gradients.keys() != ours.keys() or any(g.dtype != np.float64 for g in gradients.values()):
            types = {parameter: str(g.dtype) for parameter, g in gradients.items()}
            raise ValueError(f"gradients must be of the same parameters in float64, but those of {name} are {types}")
    scale = max(np.abs(g).max() for g in ours.values())
    difference = float(np.max([np.abs(theirs[n] - ours[n]).max() / scale for n in ours]))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the gradients differ by {difference:.1e} of the largest entry, more than {TOLERANCE}: what does not "
            "compute the same is not raced"
        )
    return difference


def race(case: dict[str, Any], folder: Path, turns: int) -> dict[str, Any]:
    """Median seconds of a training step of each implementation."""
    path = write_case(case, folder, np.float32)
    workers = {
        name: subprocess.Popen(
            [sys.executable, str(HERE / "prototypical_worker.py"), arm, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        for name, (arm, environment) in ARMS.items()
    }

    def ask(name: str) -> float:
        worker = workers[name]
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())

    for name in workers:  # compiles, and fills caches
        ask(name)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(turns):
        for name in list(workers)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(ask(name))
    for worker in workers.values():
        worker.communicate("quit\n")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min(value for name, value in medians.items() if name != "jaxmeta")
    row = {
        **case,
        "milliseconds": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "loop_over_jaxmeta": round(fastest / medians["jaxmeta"], 2),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
