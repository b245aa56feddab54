"""A run judged by Lake's one-shot protocol and by verification, beside the modified Hausdorff baseline.

The runs are drawn here: 20 of 20 trials, one of each evaluation alphabet, one drawer against another. With `--all-runs`
they are the official ones, two of each of ten alphabets. The accuracy is that of the run's query mode, the transductive
one if nothing else was asked for, in which batch normalisation sees the test images of a run together; beside it stands
the inductive one, of each image alone, and that of predictions averaged over quarter turns of the run, which training
on turned alphabets makes possible and the paper does not have. Verification is of pairs from one evaluation alphabet,
by two drawers, half of them of one character; the threshold is 1/2. Intervals are 1.96 sigma / sqrt(n), over runs and
over pairs.

jaxmeta train siamese --dataset omniglot --image-size 84 --out runs/siamese
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

from jaxmeta import MetaLearner, averaged, metric, presets, tasks
from jaxmeta.cli._commands import set_up_jax
from jaxmeta.training import Evaluation, evaluate_runs

TOGETHER = 50  # pairs that are verified in one batch


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
    """Pairs to verify, with a siamese network; a multiple of 50."""
    seed: int = 0
    """Of the runs and pairs."""


def main(arguments: Arguments) -> None:
    set_up_jax()
    settings, setup, params, step = presets.load(arguments.run_dir, judged_settings(arguments.run_dir))
    runs, fine = (one_shot_runs(arguments, settings, size) for size in (settings.image_size, 105))
    found, others = judge(setup.test_learner, params, runs, settings.query_mode, arguments.seed)
    report: dict[str, Any] = {
        "command": command(arguments),
        "official_runs": arguments.all_runs is not None,
        "method": settings.method,
        "step": step,
        "accuracy": found.mean,
        "interval": found.interval,
        "by_run": [round(float(value), 3) for value in found.values],
        "query_mode": found.query_mode,
        **others,
        "episode_hash": found.episode_hash,
        "hausdorff_error_at_105": float(tasks.hausdorff_baseline(fine).mean()),
    }
    if settings.method == "siamese":
        report["verification"] = verification(params, settings, arguments)
    (arguments.run_dir / "lake.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def judge(learner: MetaLearner, params: Any, runs: Any, mode: Any, seed: int) -> tuple[Evaluation, dict[str, Any]]:
    """In that query mode; and beside it inductively, and with predictions averaged over quarter turns."""
    alone = evaluate_runs(learner, params, runs, seed=seed, query_mode="inductive")
    turned = evaluate_runs(averaged(learner, tasks.quarter_turns), params, runs, seed=seed, query_mode=mode)
    beside = {"inductive": alone, "turned": turned}
    found = evaluate_runs(learner, params, runs, seed=seed, query_mode=mode)
    return found, {name: {"accuracy": one.mean, "interval": one.interval} for name, one in beside.items()}


def judged_settings(run_dir: Path) -> presets.Settings:
    """A run's settings, for 20 ways; refused if what it is judged by may be what it was trained on."""
    settings = dataclasses.replace(presets.settings_of(run_dir), ways=20)
    if (settings.dataset, settings.split) != ("omniglot", "lake"):
        raise ValueError(
            f"{run_dir} was trained on {settings.dataset}, split {settings.split!r}: classes of its training may be "
            "among the evaluation characters; want a run on omniglot, split 'lake'"
        )
    return settings


def command(arguments: Arguments) -> str:
    """What repeats the report."""
    runs = f"--runs {arguments.runs}" if arguments.all_runs is None else "--all-runs ALL_RUNS"
    return f"python benchmarks/lake.py RUN {runs} --pairs {arguments.pairs} --seed {arguments.seed}"


def characters(settings: presets.Settings, size: int) -> tasks.Classes:
    found = tasks.omniglot("lake", "test", image_size=size, data_dir=settings.data_dir)
    if found.drawers is None:
        raise ValueError(
            "runs set one drawer against another, but omniglot was prepared in an order that does not tell who drew "
            "what; move it away, and it is prepared anew"
        )
    return found


def one_shot_runs(arguments: Arguments, settings: presets.Settings, size: int) -> Any:
    if arguments.all_runs is not None:
        return tasks.lake_runs(arguments.all_runs, image_size=size)
    return tasks.draw_runs(characters(settings, size), runs=arguments.runs, seed=arguments.seed)


def draw_pairs(classes: tasks.Classes, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of drawings by two drawers `[count, 2, ...]`, half of them of one character, and which these are."""
    (support, _), (query, _) = tasks.draw_runs(classes, runs=count, ways=2, seed=seed)
    same = np.random.default_rng(seed).permutation(np.arange(count) % 2 == 0)  # alphabets take turns
    other = np.where(same.reshape(-1, *[1] * (query.ndim - 2)), query[:, 0], query[:, 1])
    return np.stack([support[:, 0], other], axis=1), same


def verification(params: Any, settings: presets.Settings, arguments: Arguments) -> dict[str, float]:
    """The share of pairs that are told right, its interval, and their number.

    A batch-normalised twin sees the pairs that are judged with one, `TOGETHER` in all.
    """
    if arguments.pairs < TOGETHER or arguments.pairs % TOGETHER:
        raise ValueError(f"pairs must be a multiple of {TOGETHER}, but is {arguments.pairs}")
    pairs, same = draw_pairs(characters(settings, settings.image_size), arguments.pairs, arguments.seed)
    twin = presets.siamese_twin(settings.image_size)
    verify = jax.jit(lambda a, b: metric.verify(twin, params, a, b))
    parts = [verify(*jnp.asarray(part).swapaxes(0, 1)) for part in np.split(pairs, len(pairs) // TOGETHER)]
    right = (np.concatenate(parts) > 0.5) == same
    interval = 1.96 * right.std(ddof=1) / len(right) ** 0.5
    told = {"accuracy": float(right.mean()), "interval": float(interval)}
    return {**told, "pairs": len(right), "pairs_together": TOGETHER}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
