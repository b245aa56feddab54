"""The LSTM meta-learner against gradient descent from the initialisation it has learned, 5-way 1-shot Omniglot.

Gradient descent has its best rate and number of steps, by validation characters; the 600 test episodes are the same for
both, and so the interval of their difference is that of the difference in each episode.

    jaxmeta train lstm_meta_learner --dataset omniglot --split vinyals --steps 20000 --halve-every 6000 --out RUN
    python benchmarks/lstm_against_sgd.py RUN
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optax

from jaxmeta import Evaluation, evaluate, maml, presets, tasks
from jaxmeta.cli._commands import set_up_jax
from jaxmeta.presets._optimization import model_of

RATES = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56)
STEPS = 100  # at most


def main() -> None:
    set_up_jax()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    settings, setup, params, step = presets.load(given.run)
    model = model_of(settings, settings.ways)
    validation = tasks.episodes(
        tasks.omniglot(settings.split, "val", image_size=settings.image_size, data_dir=settings.data_dir),
        ways=settings.ways,
        shots=settings.shots,
        queries=settings.queries,
        rotations=settings.test_rotations,
    )

    def descend(rate: float, steps: int, source: tasks.Source, episodes: int, seed: int) -> Evaluation:
        learner = maml(model, inner_optimizer=optax.sgd(rate), steps=steps)
        return evaluate(learner, params.start, source, episodes=episodes, seed=seed)

    tried = {}
    for rate in RATES:
        tried[rate] = [mean for mean, _ in descend(rate, STEPS, validation, 400, 1).by_step or ()]
        best = int(np.argmax(tried[rate]))
        print(f"rate {rate:g}: at best {100 * tried[rate][best]:.2f} on validation, after {best} steps", flush=True)
    lstm = evaluate(setup.learner, params, setup.test_source, episodes=600)
    any_steps, same_steps = (
        against(lstm, *choose(tried, counts), descend, setup.test_source)
        for counts in (range(STEPS + 1), [settings.eval_inner_steps])
    )
    report = {
        "step": step,
        "lstm": lstm.summary(),
        "sgd_of_any_number_of_steps": any_steps,
        "sgd_of_as_many_steps": same_steps,
        "tried": [{"rate": rate, "validation_by_step": means} for rate, means in tried.items()],
    }
    (given.run / "against_sgd.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"LSTM {shown(lstm.summary())}")
    for name, row in (("at its best", any_steps), ("of as many steps", same_steps)):
        print(f"gradient descent {name} ({row['best']}): {shown(row)}, behind by {shown(row['lstm_minus_sgd'])}")


def shown(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:.2f} ± {100 * found['interval']:.2f}"


def choose(tried: dict[float, list[float]], counts: Iterable[int]) -> tuple[float, int]:
    """The rate, and of those numbers of steps the one, that did best on validation characters."""
    return max(itertools.product(tried, counts), key=lambda at: tried[at[0]][at[1]])


def against(
    lstm: Evaluation, rate: float, steps: int, descend: Callable[..., Evaluation], source: tasks.Source
) -> dict[str, Any]:
    """Gradient descent on the test episodes, and how far it is behind the LSTM on the same."""
    sgd = descend(rate, steps, source, 600, lstm.seed)
    ahead = lstm.values - sgd.values
    return {
        "best": {"rate": rate, "steps": steps, "rate_at_the_edge": rate in (RATES[0], RATES[-1])},
        "lstm_minus_sgd": {
            "mean": float(ahead.mean()),
            "interval": float(1.96 * ahead.std(ddof=1) / len(ahead) ** 0.5),
        },
        **{name: value for name, value in sgd.summary().items() if name != "by_step"},
    }


if __name__ == "__main__":
    main()
