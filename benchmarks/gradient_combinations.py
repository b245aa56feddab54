"""Which sum of inner gradients to follow: section 6.2 of the Reptile paper (arXiv:1803.02999).

Ten curves on 5-way Omniglot, from g1 (joint training) to g1+g2+g3+g4 (Reptile with four inner steps), on disjoint
mini-batches of 25 images. The paper takes 40,000 outer steps with 64 filters, and tests after each of them.

    python benchmarks/gradient_combinations.py
"""

import dataclasses
from pathlib import Path
from typing import Any

import tyro
from common import write
from inner_gradients import Curve, Setup, difference, earlier, measure, omniglot, settings

from jaxmeta.cli._commands import set_up_jax

BATCH, SHOTS = 25, 5  # five images of each of five classes for each mini-batch
# What summaries of the paper's figure say: worse, better.
ORDERING = (
    ("g1", "(g1+g2)/2"),
    ("g1", "g1+g2"),
    ("g1+g2", "g2"),
    ("(g1+g2)/2", "g2"),
    ("g2", "g3"),
    ("g3", "g4"),
    ("(g1+g2)/2", "(g1+g2+g3)/3"),
    ("(g1+g2+g3)/3", "(g1+g2+g3+g4)/4"),
    ("g1+g2", "g1+g2+g3"),
    ("g1+g2+g3", "g1+g2+g3+g4"),
    *(
        (name, "g1+g2+g3+g4") for name in ("g2", "g3", "g4", "(g1+g2+g3)/3", "(g1+g2+g3+g4)/4")
    ),  # the sum of all is best
)
OUTER = {1: 0.25, 2: 0.125, 3: 0.08325, 4: 0.0625}  # the paper's outer step sizes for sums divided by k


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train and judge the ten curves."""

    steps: int = 1000
    """Outer steps."""
    seeds: int = 4
    """Seeds."""
    features: int = 32
    """Channels of every convolution."""
    episodes: int = 100
    """Test episodes."""


def curves() -> list[Curve]:
    """The paper's, with its outer step sizes."""
    found = [Curve("g1", (1.0,), SHOTS, BATCH, OUTER[1])]
    for k in (2, 3, 4):
        names = "+".join(f"g{i}" for i in range(1, k + 1))
        last, ones = (0.0,) * (k - 1) + (1.0,), (1.0,) * k
        found += [
            Curve(f"g{k}", last, SHOTS * k, BATCH, OUTER[1]),
            Curve(names, ones, SHOTS * k, BATCH, OUTER[1]),
            Curve(f"({names})/{k}", ones, SHOTS * k, BATCH, OUTER[k]),
        ]
    return found


def main(arguments: Arguments) -> None:
    set_up_jax()
    setup = omniglot(features=arguments.features, steps=arguments.steps, seeds=arguments.seeds)
    rows: list[dict[str, Any]] = []
    found = earlier("gradient_combinations", settings(setup, arguments.episodes), lambda report: report["rows"])
    for curve in curves():
        if curve not in found:
            found[curve] = measure(setup, curve, arguments.episodes)
        rows = [found[one] for one in curves() if one in found]  # as far as it has come
        write("gradient_combinations", report_of(setup, rows, arguments.episodes))
    for pair in report_of(setup, rows, arguments.episodes)["ordering"]:
        print(f"{pair['better']:>12} - {pair['worse']:12}{100 * pair['mean']:>7.2f} ± {100 * pair['interval']:.2f}")
    print(report_of(setup, rows, arguments.episodes)["finding"])
    plot(rows)


def report_of(setup: Setup, rows: list[dict[str, Any]], episodes: int) -> dict[str, Any]:
    by_name = {row["name"]: row for row in rows}
    ordering = [
        {"better": better, "worse": worse, **difference(by_name[better], by_name[worse])}
        for worse, better in ORDERING
        if {worse, better} <= by_name.keys()
    ]
    agree = [pair for pair in ordering if pair["mean"] > 0]
    clear = [pair for pair in agree if pair["mean"] > pair["interval"]]
    finding = (
        f"Of {len(ordering)} comparisons told of the paper's figure, {len(agree)} come out as told, {len(clear)} of "
        "them beyond the 95 % interval over seeds. Not as told: "
        + (", ".join(f"{pair['better']} above {pair['worse']}" for pair in ordering if pair["mean"] <= 0) or "none")
        + "; within the interval: "
        + (", ".join(f"{pair['better']} above {pair['worse']}" for pair in agree if pair not in clear) or "none")
        + "."
    )
    command = "python benchmarks/gradient_combinations.py"
    return {"command": command, "finding": finding, **settings(setup, episodes), "rows": rows, "ordering": ordering}


def plot(rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=120)
    axis, path_axis = figure.subplots(1, 2)
    axis.barh([r["name"] for r in rows], [100 * r["accuracy"] for r in rows], xerr=[100 * r["interval"] for r in rows])
    axis.set(xlabel="test accuracy, % (95 % interval over seeds)", xlim=(min(r["accuracy"] for r in rows) * 95, 100))
    axis.invert_yaxis()
    for row in rows:
        steps = [point["step"] for point in row["path"]]
        path_axis.plot(steps, [100 * sum(p["by_seed"]) / len(p["by_seed"]) for p in row["path"]], label=row["name"])
    path_axis.set(xlabel="outer step", ylabel="test accuracy, %")
    path_axis.legend(fontsize="x-small")
    figure.savefig(Path(__file__).parent / "results" / "gradient_combinations.png")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
