"""MAML's meta-gradient in jaxmeta and in PyTorch's libraries, side by side in one run on the same weights and tasks.

Gradients are compared first, in double precision. Then every implementation, each in a process of its own with two
threads, takes its turns; orders alternate, and medians count. PyTorch runs with an allocator that keeps its memory,
mostly its best setting here; `loop, default malloc` shows what it is without. With several steps jaxmeta's reverse
mode, which keeps every step's intermediates as the others do, runs beside its default. In an environment with jaxmeta
and `benchmarks/peers/requirements.txt`:

    python benchmarks/peers/compare_peers.py
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

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from machine import machine  # noqa: E402

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**28)}
ARMS = {
    "jaxmeta": (["jax_worker.py"], {}),
    "jaxmeta, reverse": (["jax_worker.py", "--hvp", "reverse_over_reverse"], {}),
    "loop": (["torch_worker.py", "loop"], TUNED),
    "torch.func": (["torch_worker.py", "torch.func"], TUNED),
    "higher": (["torch_worker.py", "higher"], TUNED),
    "torchopt": (["torch_worker.py", "torchopt"], TUNED),
    "loop, default malloc": (["torch_worker.py", "loop"], {}),
}
CASES = [
    {"network": "stride", "tasks": 32, "queries": 3, "steps": 1, "rate": 0.4, "repeat": 3},
    {"network": "stride", "tasks": 32, "queries": 3, "steps": 5, "rate": 0.4, "repeat": 1},
    {"network": "stride", "tasks": 32, "queries": 15, "steps": 1, "rate": 0.4, "repeat": 1},
    {"network": "max-pool", "tasks": 32, "queries": 3, "steps": 1, "rate": 0.4, "repeat": 1},
    {"network": "max-pool", "tasks": 32, "queries": 3, "steps": 5, "rate": 0.4, "repeat": 1},
    {"network": "max-pool", "tasks": 32, "queries": 15, "steps": 1, "rate": 0.4, "repeat": 1},
    {"network": "mlp", "tasks": 25, "queries": 10, "steps": 1, "rate": 0.01, "repeat": 20},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    report: dict[str, Any] = {"command": "python benchmarks/peers/compare_peers.py", "turns": turns}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder)
        report["gradients"] = [equality(case, folder) for case in CASES if case["queries"] != 15]
        wrong = {(r["network"], arm) for r in report["gradients"] for arm in r["differing"]}
        report["meta_gradient"] = [race(case, folder, turns, wrong) for case in CASES]
        report["training_step"] = [race(case, folder, turns, wrong, training=True) for case in (CASES[0], CASES[-1])]
    packages = ("jaxmeta", "jax", "torch", "higher", "torchopt")
    report["versions"] = {**{p: version(p) for p in packages}, "python": platform.python_version()}
    report["machine"] = machine()
    path = HERE.parent / "results" / "peers.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {path}")


def make_images(folder: Path) -> None:
    code = "import sys, numpy as np; from jaxmeta import tasks; np.save(sys.argv[1], tasks.glyphs('train').examples)"
    subprocess.run([sys.executable, "-c", code, str(folder / "images.npy")], check=True)


def arms(case: dict[str, Any]) -> dict[str, tuple[list[str], dict[str, str]]]:
    """The implementations to run: with one step jaxmeta's default is its reverse mode."""
    return {name: arm for name, arm in ARMS.items() if case["steps"] > 1 or name != "jaxmeta, reverse"}


def write_case(case: dict[str, Any], folder: Path, dtype: type) -> Path:
    """Weights and episodes as arrays, from one generator."""
    rng, tasks, queries = np.random.default_rng(0), case["tasks"], case["queries"]
    arrays: dict[str, Any] = {}
    if case["network"] == "mlp":
        widths = {"dense_0": (1, 40), "dense_1": (40, 40), "head": (40, 1)}
        shapes = {f"{n}/kernel": s for n, s in widths.items()} | {f"{n}/bias": s[1:] for n, s in widths.items()}
        x = {"support": rng.uniform(-5, 5, (tasks, 10, 1)), "query": rng.uniform(-5, 5, (tasks, 10, 1))}
        y = {name: np.sin(value) for name, value in x.items()}
    else:
        shapes = {f"conv_{i}/kernel": (3, 3, 1 if i == 0 else 64, 64) for i in range(4)}
        shapes |= {f"conv_{i}/bias": (64,) for i in range(4)} | {f"norm_{i}/bias": (64,) for i in range(4)}
        shapes |= {f"norm_{i}/scale": (64,) for i in range(4)} if case["network"] == "max-pool" else {}
        shapes |= {"head/kernel": (64, 5), "head/bias": (5,)}
        images = np.load(folder / "images.npy")
        counts = {"support": 1, "query": queries}
        x = {}
        for n, k in counts.items():
            size = (tasks, 5 * k)
            x[n] = images[rng.integers(0, len(images), size), rng.integers(0, 20, size)] / 255
        y = {n: np.tile(np.repeat(np.arange(5), k), (tasks, 1)) for n, k in counts.items()}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[:-1])) if len(shape) > 1 else 0
        value = rng.normal(0, fan_in**-0.5, shape) if fan_in else np.full(shape, float(name.endswith("scale")))
        arrays[f"params/{name}"] = value.astype(dtype)
    arrays |= {f"{n}_x": value.astype(dtype) for n, value in x.items()}
    arrays |= {f"{n}_y": value.astype(dtype if value.dtype.kind == "f" else np.int64) for n, value in y.items()}
    path = folder / f"{case['network']}-{queries}-{case['steps']}-{np.dtype(dtype).name}.npz"
    np.savez(path, case=json.dumps({**case, "images": str(folder / "images.npy")}), **arrays)
    return path


def equality(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The largest difference of each implementation's gradient from jaxmeta's over the largest entry, float64."""
    path = write_case({**case, "tasks": 4}, folder, np.float64)
    found = {}
    for arm, (words, _) in arms(case).items():
        if "malloc" in arm:
            continue
        out = folder / "gradients.npz"
        command = [sys.executable, str(HERE / words[0]), *words[1:], str(path), "--gradients", str(out)]
        subprocess.run(command, check=True)
        with np.load(out) as file:
            found[arm] = {name: file[name] for name in file.files}
    ours = found.pop("jaxmeta")
    scale = max(np.abs(g).max() for g in ours.values())
    errors = {arm: max(float(np.abs(g[n] - ours[n]).max() / scale) for n in ours) for arm, g in found.items()}
    differing = [arm for arm, error in errors.items() if error > 1e-10]
    row = {"network": case["network"], "steps": case["steps"], "largest_relative_difference": errors}
    if own := [arm for arm in differing if arm.startswith("jaxmeta")]:
        raise ValueError(f"{own} and jaxmeta's default must give one gradient, but are {errors} apart")
    row["differing"] = differing
    print(row, flush=True)
    return row


def race(
    case: dict[str, Any], folder: Path, turns: int, wrong: set[tuple[str, str]], *, training: bool = False
) -> dict[str, Any]:
    """Median seconds and the growth of peak memory of each implementation; the fastest of those that agree."""
    path = write_case(case, folder, np.float32)
    workers = {}
    for arm, (words, environment) in arms(case).items():
        command = [sys.executable, str(HERE / words[0]), *words[1:], str(path), *["--training"] * training]
        workers[arm] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )

    def ask(arm: str, word: str) -> float:
        worker = workers[arm]
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(word + "\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())

    for arm in workers:  # compiles, and fills caches
        ask(arm, "go")
    seconds: dict[str, list[float]] = {arm: [] for arm in workers}
    for turn in range(turns):
        for arm in list(workers)[:: 1 if turn % 2 == 0 else -1]:
            seconds[arm].append(ask(arm, "go"))
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    peaks = {arm: ask(arm, "quit") for arm in workers}
    ours = [arm for arm in medians if arm.startswith("jaxmeta")]
    fastest = min(v for arm, v in medians.items() if arm not in ours and (case["network"], arm) not in wrong)
    row = {
        **case,
        "milliseconds": {arm: round(1e3 * value, 3) for arm, value in medians.items()},
        "peak_mib_above_start": {arm: round(value, 1) for arm, value in peaks.items()},
        **{f"fastest_peer_over_{arm}": round(fastest / medians[arm], 2) for arm in ours},
    }
    print("training step" if training else "meta-gradient", row, flush=True)
    return row


if __name__ == "__main__":
    main()
