"""Trains MetaNet on Omniglot without either kind of fast weights, and evaluates it, 5-way 1-shot.

python benchmarks/metanet.py --without task --steps 8000 --halve-every 2000 --out RUN  # keys from slow weights alone
python benchmarks/metanet.py --without example --steps 500 --out RUN    # nothing left to learn labels with

All else is as in `jaxmeta train metanet --dataset omniglot`, which has both.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from jaxmeta import augmented, evaluate, fit, memory, presets, tasks
from jaxmeta.cli._commands import set_up_jax


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", choices=("task", "example"), required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--halve-every", type=int, help="halve Adam's rate after so many steps, again and again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(words)


def settings(given: argparse.Namespace) -> presets.Settings:
    preset = presets.settings("metanet", "omniglot")
    return dataclasses.replace(preset, steps=given.steps, halve_every=given.halve_every or preset.halve_every)


def main() -> None:
    set_up_jax()
    given = arguments()
    chosen = settings(given)
    setup = presets.build(chosen)
    learner = memory.metanet(
        memory.AugmentedConv(chosen.ways, features=32),
        task_level=given.without != "task",
        example_level=given.without != "example",
    )
    result = fit(
        augmented(learner, tasks.turns_and_shifts()) if chosen.augment else learner,
        setup.train_source,
        setup.optimizer,
        steps=chosen.steps,
        meta_batch=chosen.meta_batch,
        run_dir=given.out,
        resume=True,
        seed=given.seed,
        config={"settings": dataclasses.asdict(chosen), "without": given.without},
        progress=False,
    )
    judged = evaluate(learner, result.params, setup.test_source, episodes=chosen.episodes, seed=given.seed)
    (given.out / "result.json").write_text(json.dumps({"step": given.steps, **judged.summary()}, indent=2) + "\n")
    print(f"{100 * judged.mean:.2f} ± {100 * judged.interval:.2f} %")


if __name__ == "__main__":
    main()
