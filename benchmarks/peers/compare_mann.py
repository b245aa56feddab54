"""A training step of MANN in jaxmeta and as a plain PyTorch loop, on the same weights and episodes in one run.

16 episodes of length 50, an LSTM of 200 units, a memory of 128 x 40, four reads: the paper's. Outputs are compared
first, in double precision. Then each, in a process of its own with two threads, takes its turns; medians count.

    python benchmarks/peers/compare_mann.py [--torch PYTHON]        # a Python that has PyTorch
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from compare_peers import TUNED, machine

HERE = Path(__file__).parent
CASE = {"episodes": 16, "steps": 50, "inputs": 400, "ways": 5, "reads": 4, "decay": 0.99}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=sys.executable, help="the Python that has PyTorch")
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    arms = {
        "jaxmeta": ([sys.executable, str(HERE / "mann_jax.py")], {}),
        "torch": ([given.torch, str(HERE / "mann_torch.py")], TUNED),
    }
    with tempfile.TemporaryDirectory() as name:
        case = write_case(Path(name) / "case.npz")
        difference = compare_forward(arms, case)
        if not difference < 1e-9:
            raise ValueError(f"the outputs differ by {difference}: not raced")
        milliseconds = race(arms, case, given.turns)
    report = {
        "command": "python benchmarks/peers/compare_mann.py",
        "case": CASE,
        "turns": given.turns,
        "largest_difference_of_outputs": difference,
        "training_step_ms": milliseconds,
        "ratio": milliseconds["torch"] / milliseconds["jaxmeta"],
        "machine": machine(),
    }
    (HERE.parent / "results" / "mann_speed.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def write_case(path: Path) -> Path:
    """Weights and episodes as arrays, from one generator."""
    rng, features, width, reads = np.random.default_rng(0), 200, 40, CASE["reads"]
    shapes = {
        "input/kernel": (CASE["inputs"], 4 * features),
        "label/kernel": (CASE["ways"], 4 * features),
        "input/bias": (4 * features,),
        "controller": (features + reads * width, 4 * features),
        "heads": (features, reads * (width + 1)),
        "heads_bias": (reads * (width + 1),),
        "output/kernel": (features + reads * width, CASE["ways"]),
        "output/bias": (CASE["ways"],),
    }
    arrays: dict[str, Any] = {f"params/{n}": rng.normal(size=s) / np.sqrt(s[0]) for n, s in shapes.items()}
    y = rng.permuted(np.tile(np.arange(CASE["ways"]), (CASE["episodes"], CASE["steps"] // CASE["ways"])), axis=1)
    shown = np.eye(CASE["ways"])[y]
    arrays["labels"] = np.concatenate([np.zeros_like(shown[:, :1]), shown[:, :-1]], axis=1)
    arrays["x"] = rng.uniform(size=(CASE["episodes"], CASE["steps"], CASE["inputs"]))
    np.savez(path, **arrays, y=y, case=json.dumps(CASE))
    return path


def compare_forward(arms: dict[str, Any], case: Path) -> float:
    outputs = {}
    for name, (command, environment) in arms.items():
        target = case.with_name(f"{name}.npy")
        subprocess.run([*command, str(case), "--forward", str(target)], check=True, env={**os.environ, **environment})
        outputs[name] = np.load(target)
    return float(np.abs(outputs["jaxmeta"] - outputs["torch"]).max())


def race(arms: dict[str, Any], case: Path, turns: int) -> dict[str, float]:
    """Median milliseconds of a training step, in turns whose order alternates; each runs three times before."""
    workers = {
        name: subprocess.Popen(
            [*command, str(case)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, (command, environment) in arms.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(-3, turns):
        for name in list(workers)[:: 1 if turn % 2 == 0 else -1]:
            worker = workers[name]
            assert worker.stdin is not None
            assert worker.stdout is not None
            print("go", file=worker.stdin, flush=True)
            took = json.loads(worker.stdout.readline())
            if turn >= 0:
                seconds[name].append(took)
    for worker in workers.values():
        worker.communicate("quit\n")
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
