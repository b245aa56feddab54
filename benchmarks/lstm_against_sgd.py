"""The LSTM meta-learner against gradient descent from the initialisation it has learned, 5-way 1-shot Omniglot.

The step size of gradient descent, and its number of steps, are the best on validation characters; the 600 test
episodes are the same for both.

    jaxmeta train lstm_meta_learner --dataset omniglot --split vinyals --steps 20000 --halve-every 6000 --out RUN
    python benchmarks/lstm_against_sgd.py RUN
"""

import argparse
import json
from pathlib import Path

import jax
import optax

from jaxmeta import evaluate, maml, presets, tasks
from jaxmeta.cli._commands import set_up_jax
from jaxmeta.presets._optimization import model_of
from jaxmeta.training import load_params

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
STEPS = (1, 3, 8, 20)


def main() -> None:
    set_up_jax()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    settings = presets.Settings(**json.loads((given.run / "config.json").read_text())["settings"])
    setup, model = presets.build(settings), model_of(settings, settings.ways)
    example = jax.eval_shape(setup.train_source.sample, setup.train_source.data, jax.random.key(0))
    like = jax.eval_shape(setup.learner.init, jax.random.key(0), example)
    params, step = load_params(given.run, like, setup.optimizer)
    validation = tasks.episodes(
        tasks.omniglot(settings.split, "val", image_size=settings.image_size, data_dir=settings.data_dir),
        ways=settings.ways,
        shots=settings.shots,
        queries=settings.queries,
        rotations=settings.test_rotations,
    )
    lstm = evaluate(setup.learner, params, setup.test_source, episodes=600)
    table = []
    for rate in RATES:
        for steps in STEPS:
            learner = maml(model, inner_optimizer=optax.sgd(rate), steps=steps)
            try:
                mean = evaluate(learner, params.start, validation, episodes=200, seed=1).mean
            except FloatingPointError:
                continue
            table.append({"rate": rate, "steps": steps, "validation": mean})
    if not table:
        raise FloatingPointError(f"gradient descent diverges at all rates {RATES}")
    best = max(table, key=lambda row: row["validation"])
    learner = maml(model, inner_optimizer=optax.sgd(best["rate"]), steps=best["steps"])
    sgd = evaluate(learner, params.start, setup.test_source, episodes=600)
    report = {
        "step": step,
        "lstm": lstm.summary(),
        "sgd_from_its_initialisation": {"best": best, **sgd.summary()},
        "tried": table,
    }
    (given.run / "against_sgd.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"LSTM {100 * lstm.mean:.2f}, gradient descent {100 * sgd.mean:.2f} with {best}")


if __name__ == "__main__":
    main()
