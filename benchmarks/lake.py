"""A run judged by Lake's one-shot protocol and by verification, beside the modified Hausdorff baseline.

The runs are drawn from the evaluation alphabets: 20 of 20 trials, within an alphabet, one drawing of each character
against another. With `--all-runs` they are the official ones. Verification is of pairs from one evaluation alphabet,
half of them of one character; the threshold is 1/2.

jaxmeta train siamese --dataset omniglot --image-size 28 --out runs/siamese
python benchmarks/lake.py runs/siamese
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import metric, presets, tasks
from jaxmeta.training import evaluate_runs, load_params


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Judge a run by Lake's protocol."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    all_runs: Path | None = None
    """The official folder of runs. Default: runs are drawn."""
    runs: int = 20
    """Runs to draw."""
    pairs: int = 2000
    """Pairs to verify, with a siamese network."""
    seed: int = 0
    """Of the runs and pairs."""


def main(arguments: Arguments) -> None:
    config = json.loads((arguments.run_dir / "config.json").read_text())
    settings = dataclasses.replace(presets.Settings(**config["settings"]), ways=20)
    setup = presets.build(settings)
    episode = setup.train_source.sample(setup.train_source.data, jax.random.key(0))
    like = jax.eval_shape(setup.learner.init, jax.random.key(0), episode)
    params, step = load_params(arguments.run_dir, like, setup.optimizer)
    size = settings.image_size
    runs, fine = one_shot_runs(arguments, size), one_shot_runs(arguments, 105)
    found = evaluate_runs(setup.test_learner, params, runs, seed=arguments.seed)
    report: dict[str, Any] = {
        "command": f"python benchmarks/lake.py RUN --runs {arguments.runs} --seed {arguments.seed}",
        "official_runs": arguments.all_runs is not None,
        "method": settings.method,
        "step": step,
        "accuracy": found.mean,
        "interval": found.interval,
        "by_run": [round(float(value), 3) for value in found.values],
        "episode_hash": found.episode_hash,
        "hausdorff_error_at_105": float(tasks.hausdorff_baseline(fine).mean()),
    }
    if settings.method == "siamese":
        report["verification_accuracy"] = verification(params, size, arguments)
    (arguments.run_dir / "lake.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def one_shot_runs(arguments: Arguments, size: int) -> Any:
    if arguments.all_runs is not None:
        return tasks.lake_runs(arguments.all_runs, image_size=size)
    classes = tasks.omniglot("lake", "test", image_size=size)
    return tasks.draw_runs(classes, runs=arguments.runs, seed=arguments.seed)


def verification(params: Any, size: int, arguments: Arguments) -> float:
    """The share of pairs, half of one character and half of two of an alphabet, that are told right."""
    classes = tasks.omniglot("lake", "test", image_size=size)
    rng, names = np.random.default_rng(arguments.seed), np.array(classes.groups)
    pairs, same = [], np.arange(arguments.pairs) % 2 == 0
    for alike in same:
        alphabet = np.flatnonzero(names == rng.choice(np.unique(names)))
        one, other = rng.choice(alphabet, 2, replace=False)
        drawers = rng.choice(20, 2, replace=False)
        pairs.append((classes.examples[one, drawers[0]], classes.examples[one if alike else other, drawers[1]]))
    twin = metric.KochTwin() if size >= 105 else metric.small_twin()
    verify = jax.jit(lambda a, b: metric.verify(twin, params, a, b))
    images = np.array(pairs, np.float32) / 255
    parts = [verify(*jnp.asarray(part).swapaxes(0, 1)) for part in np.array_split(images, max(1, len(images) // 50))]
    return float(np.mean((np.concatenate(parts) > 0.5) == same))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
