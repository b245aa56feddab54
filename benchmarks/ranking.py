"""All methods on the same test episodes: accuracy in both query modes, parameters, time to learn a task.

    python benchmarks/ranking.py RUN [RUN ..]     # run folders of `jaxmeta train .. --dataset omniglot`

5 ways, 1 shot, 15 queries of each class, 600 episodes of the 423 test characters of Vinyals' split, which no run may
have been trained on: the splits `vinyals` and `lake` keep them apart. How many classes a run did train on, turned and
mirrored too, stands in its row. Images are of the size that it was trained on; characters and drawings are the same for
all. Transductive: all 75 queries at once. Inductive: each query alone with the support set. Adaptation is one `predict`
on an episode, compiled before, all queries at once: the median of 20, all methods in turns. A method that no run is
given for keeps its row, but for that time; one whose network is another by now wants a run.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from common import in_turns, minutes, undisturbed_seconds, write

from jaxmeta import descended, evaluate, presets, tasks
from jaxmeta.cli._commands import set_up_jax
from jaxmeta.tasks._sampler import members_of_groups

EPISODES, WAYS, SHOTS, QUERIES = 600, 5, 1, 15
# The trainings that are no cell's of `cells.py`.
TRAININGS = {
    "maml": "jaxmeta train maml --dataset omniglot --split vinyals --steps 8000",
    "fomaml": "jaxmeta train fomaml --dataset omniglot --split vinyals --steps 8000",
    "reptile": "jaxmeta train reptile --dataset omniglot --split vinyals --steps 20000 --episodes 100",
    "mann": "jaxmeta train mann --dataset omniglot",
}
COLUMNS = (
    *("method", "transductive, %", "inductive, %", "classes", "episodes of training", "parameters", "training, min"),
    "a task, ms",
)


def main() -> None:
    set_up_jax()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    results = Path(__file__).parent / "results"
    before = results / "ranking.json"
    rows = ranked(parser.parse_args().runs, json.loads(before.read_text())["rows"] if before.exists() else [])
    seconds = in_turns({row["method"]: prediction(row) for row in rows}, repeats=20)
    rows = [{**row, "adaptation_ms": 1000 * seconds[row["method"]]} for row in rows]
    print("\n".join([line(COLUMNS), *(line(shown(row)) for row in rows)]))
    write("ranking", {"command": "python benchmarks/ranking.py RUN ..", "episodes": EPISODES, "rows": rows})
    draw(rows, results / "ranking.png")


def ranked(runs: list[Path], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the runs and of all other methods that had one before, the best first."""
    found = [judge(run) for run in runs]
    methods = [row["method"] for row in found]
    if twice := sorted({method for method in methods if methods.count(method) > 1}):
        raise ValueError(f"a method has one row, but there are several runs of {', '.join(twice)}")
    kept = [row for row in before if row["method"] not in methods]
    if other := [row["method"] for row in kept if row["inductive"]["episodes"] != EPISODES]:
        raise ValueError(f"rows of {', '.join(other)} are not of {EPISODES} episodes: give their runs too")
    return sorted([*found, *kept], key=lambda row: -row["inductive"]["mean"])


def judge(run: Path) -> dict[str, Any]:
    """One run's row."""
    config = json.loads((run / "config.json").read_text())
    settings = presets.settings_of(run)
    if settings.dataset != "omniglot" or settings.split == "maml":
        raise ValueError(
            f"{run} was trained on {settings.dataset}, split {settings.split!r}: test characters may be among those of "
            "its training; want omniglot with --split vinyals or lake"
        )
    _, setup, params, step = presets.load(run, dataclasses.replace(settings, ways=WAYS))
    source = unseen(settings)
    found = {
        mode: evaluate(setup.test_learner, params, source, episodes=EPISODES, query_mode=mode, by_step=False).summary()
        for mode in ("transductive", "inductive")
    }
    rows = [json.loads(words) for words in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "method": settings.method,
        "step": step,
        "seed": config["fit"]["seed"],
        **found,
        "classes": classes_of_training(settings, setup.train_source),
        "parameters": count(params),
        "trained_on": config["versions"]["backend"],
        "training_seconds": undisturbed_seconds(rows, step, settings.meta_batch),
        "settings": config["settings"],
    }


def classes_of_training(settings: presets.Settings, source: tasks.Source) -> int:
    """How many the source draws from, turned and mirrored; groups with too few for an episode are left out."""
    info = source.info
    turns = {"none": 1, "per_episode_mirrored": 8}.get(info["rotations"], 4)
    if not settings.within_groups:
        return turns * len(source.data[0])
    size, subset = settings.image_size, settings.train_subset
    classes = tasks.omniglot(settings.split, subset, image_size=size, data_dir=settings.data_dir)
    meeting = turns if info["rotations"] == "classes" else 1  # turns of one class that may meet in an episode
    return turns // meeting * int(members_of_groups(classes, info["ways"], meeting).any(0).sum())


def prediction(row: dict[str, Any]) -> Callable[[], Any]:
    """One `predict` of the row's method, untrained: the arithmetic is the same."""
    settings = dataclasses.replace(presets.Settings(**row["settings"]), ways=WAYS)
    learner = presets.build(settings).test_learner
    source, key = unseen(settings), jax.random.key(0)
    episode = jax.jit(source.sample)(source.data, key)
    params, predict = jax.jit(learner.init)(key, episode), jax.jit(learner.predict)
    if (now := count(params)) != row["parameters"]:
        raise ValueError(
            f"{row['method']} has {now:,} parameters, but its row is of {row['parameters']:,}: give it a run"
        )
    return lambda: predict(params, episode.support, episode.query.x, key)


def count(params: Any) -> int:
    """Numbers that the outer optimiser descends."""
    return sum(leaf.size for leaf in jax.tree.leaves(descended(params)))


def unseen(settings: presets.Settings) -> tasks.Source:
    """Episodes of test characters, as large as the settings' images."""
    characters = tasks.omniglot("vinyals", "test", image_size=settings.image_size, data_dir=settings.data_dir)
    return tasks.episodes(characters, ways=WAYS, shots=SHOTS, queries=QUERIES)


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    accuracies = (f"{100 * row[m]['mean']:.2f} ± {100 * row[m]['interval']:.2f}" for m in ("transductive", "inductive"))
    settings = row["settings"]
    ways, queries = settings["train_ways"] or settings["ways"], settings["train_queries"]
    each = f"{queries} quer{'ies' if queries > 1 else 'y'}" if queries else f"{settings['train_shots']} shots"
    numbers = (
        f"{row['classes']:,}",
        f"{row['step'] * settings['meta_batch']:,} of {ways} ways, {each}",
        f"{row['parameters']:,}",
        minutes(row["training_seconds"], row["trained_on"]),
        f"{row['adaptation_ms']:.2f}",
    )
    return row["method"], *accuracies, *numbers


def line(words: tuple[str, ...]) -> str:
    return "".join(f"{word:>{max(18, len(word) + 2)}}" if i else f"{word:20}" for i, word in enumerate(words))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracies, one above the other, with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.4 * len(rows) + 1), layout="constrained")
    axis = figure.subplots()
    for shift, mode in ((-0.12, "transductive"), (0.12, "inductive")):
        means, spreads = ([100 * row[mode][name] for row in rows] for name in ("mean", "interval"))
        places = [i + shift for i in range(len(rows))]
        axis.errorbar(means, places, xerr=spreads, fmt="o", capsize=3, label=mode)
    axis.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel(f"{WAYS}-way {SHOTS}-shot accuracy, %")
    axis.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
