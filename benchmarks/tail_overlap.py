"""First-order MAML whose last mini-batch shares its images with the earlier ones, or keeps its own.

Section 6.3 of the Reptile paper (arXiv:1803.02999), on 5-way Omniglot. Shared tail: all k mini-batches
cycle through one shuffled list of the task's images. Separate tail: the last comes from images of its own. Three
sweeps:

    inner iterations   k mini-batches of 25 from 100 images: from the fifth on, a shared tail must repeat some
    inner batch size   k = 4 mini-batches of b from 100 images: for b > 25 likewise
    outer step size    k = 4 times the whole of 50 images (separate: 3 times 25 of them, then the other 25)

The first two sweeps pass the point where a task's 100 images, 5 classes of 20, run out. Outer steps, width, the values
swept and the 50 images of the third are chosen here; there, the separate tail's mini-batches are half as large.

    python benchmarks/tail_overlap.py
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import tyro
from common import write
from inner_gradients import WAYS, Curve, Setup, difference, earlier, measure, omniglot, settings

from jaxmeta.cli._commands import set_up_jax

EPS = 0.25
TAILS = ("shared", "separate")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train and judge both tails over three sweeps."""

    steps: int = 400
    """Outer steps."""
    seeds: int = 4
    """Seeds."""
    features: int = 16
    """Channels of every convolution."""
    episodes: int = 60
    """Test episodes."""


def curve(tail: str, k: int, batch_size: int, shots: int, eps: float) -> Curve:
    """First-order MAML with k mini-batches."""
    own = batch_size // WAYS if tail == "separate" else 0
    name = f"{tail}, k={k}, {batch_size} of {WAYS * shots}, eps={eps:g}"
    return Curve(name, (0.0,) * (k - 1) + (1.0,), shots, batch_size, eps, own)


def sweeps() -> dict[str, dict[float, tuple[Curve, Curve]]]:
    """By sweep and its value, the curves of both tails."""
    full = {"shared": 50, "separate": 25}  # of 10 images a class
    return {
        "inner iterations": {k: _pair(k, 25, 20, EPS) for k in (2, 4, 5, 8)},
        "inner batch size": {b: _pair(4, b, 20, EPS) for b in (10, 25, 50)},
        "outer step size": {
            eps: (curve("shared", 4, full["shared"], 10, eps), curve("separate", 4, full["separate"], 10, eps))
            for eps in (0.1, 0.25, 1.0)
        },
    }


def _pair(k: int, batch_size: int, shots: int, eps: float) -> tuple[Curve, Curve]:
    return curve("shared", k, batch_size, shots, eps), curve("separate", k, batch_size, shots, eps)


def main(arguments: Arguments) -> None:
    set_up_jax()
    setup = omniglot(features=arguments.features, steps=arguments.steps, seeds=arguments.seeds)
    found = earlier("tail_overlap", settings(setup, arguments.episodes), rows_of)
    for points in sweeps().values():
        for pair in points.values():
            for one in pair:
                if one not in found:
                    found[one] = measure(setup, one, arguments.episodes)
            write("tail_overlap", report_of(setup, found, arguments.episodes))  # as far as it has come
    report = report_of(setup, found, arguments.episodes)
    for name, points in report["sweeps"].items():
        print(f"{name:18}{'shared tail':>24}{'separate tail':>24}{'separate - shared':>24}")
        for point in points:
            shown = [f"{100 * mean:.2f} ± {100 * interval:.2f} %" for mean, interval in point["shown"]]
            print(f"{point['value']:<18g}" + "".join(f"{text:>24}" for text in shown))
    print(report["finding"])
    plot(report["sweeps"])


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [point[tail] for points in report["sweeps"].values() for point in points for tail in TAILS]


def report_of(setup: Setup, found: dict[Curve, dict[str, Any]], episodes: int) -> dict[str, Any]:
    def point(value: float, pair: tuple[Curve, Curve]) -> dict[str, Any]:
        shared, separate = (found[one] for one in pair)
        gain = difference(separate, shared)
        shown = [(row["accuracy"], row["interval"]) for row in (shared, separate)]
        return {
            "value": value,
            **dict(zip(TAILS, (shared, separate), strict=True)),
            "separate_less_shared": gain,
            "shown": [*shown, (gain["mean"], gain["interval"])],
        }

    done = {
        name: [point(value, pair) for value, pair in points.items() if all(one in found for one in pair)]
        for name, points in sweeps().items()
    }
    command = "python benchmarks/tail_overlap.py"
    return {"command": command, "finding": finding(done), **settings(setup, episodes), "sweeps": done}


def finding(sweeps: dict[str, list[dict[str, Any]]]) -> str:
    """In words: from where on a shared tail is behind, and what it does as outer steps grow."""
    parts = []
    for name, points in sweeps.items():
        gains = [(p["value"], p["separate_less_shared"]) for p in points]
        shown = ", ".join(
            f"{100 * gain['mean']:+.1f}{'*' if abs(gain['mean']) > gain['interval'] else ''} at {value:g}"
            for value, gain in gains
        )
        parts.append(f"{name} {shown}")
    gaps = [p["separate_less_shared"] for p in sweeps["outer step size"]] or [{"mean": 0.0, "interval": 0.0}]
    change, noise = gaps[-1]["mean"] - gaps[0]["mean"], math.hypot(gaps[0]["interval"], gaps[-1]["interval"])
    return (
        "A separate tail over a shared one, in points of accuracy (*: beyond the 95 % interval over seeds): "
        f"{'; '.join(parts)}. In the paper a shared tail falls behind from 5 inner iterations on, with mini-batches of "
        "more than 25, and the further the larger outer steps are; here the gap between the smallest and the largest "
        f"outer step {'widens' if change > noise else 'does not widen'} beyond its interval. The paper's variants with "
        "replacement, and its curve of Reptile, are left out."
    )


def plot(sweeps: dict[str, list[dict[str, Any]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained", dpi=120)
    for axis, (name, points) in zip(figure.subplots(1, 3, sharey=True), sweeps.items(), strict=True):
        for tail in TAILS:
            means, intervals = ([100 * p[tail][part] for p in points] for part in ("accuracy", "interval"))
            axis.errorbar([p["value"] for p in points], means, intervals, marker="o", capsize=3, label=f"{tail} tail")
        axis.set(xlabel=name, ylabel="test accuracy, %" if name == "inner iterations" else None)
    figure.axes[0].legend()
    figure.savefig(Path(__file__).parent / "results" / "tail_overlap.png")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
