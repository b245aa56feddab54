"""Which initialisation survives ten inner steps: MAML on sinusoids, the paper's budget, four ways to start.

Each is trained on 10-point tasks as published, and judged on three lists of 600 unseen 5-point tasks.

    python benchmarks/sinusoid_init.py
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as fnn
import numpy as np
import optax

from jaxmeta import evaluate, fit, losses, maml, nn, presets
from jaxmeta.cli import _use_cores

SEEDS = (0, 1, 2)
INITS = fnn.initializers
MODELS = {
    "uniform weights and biases (default)": nn.MLP((40, 40), 1),
    "uniform weights, zero biases": nn.MLP((40, 40), 1, bias_init=INITS.zeros),
    "LeCun normal, zero biases": nn.MLP((40, 40), 1, kernel_init=INITS.lecun_normal(), bias_init=INITS.zeros),
    "truncated normal 0.01, zero biases": nn.MLP(
        (40, 40), 1, kernel_init=INITS.truncated_normal(0.01), bias_init=INITS.zeros
    ),
}


def main() -> None:
    _use_cores(None)
    settings = presets.settings("maml", "sinusoid")
    rows = []
    print(f"{'initialisation':38}{'seed':>5}{'1 step':>9}{'5 steps':>9}{'10 steps':>11}{'worst task':>12}")
    for name, model in MODELS.items():
        for seed in SEEDS:
            row = {"initialisation": name, "seed": seed, **measure(settings, model, seed)}
            rows.append(row)
            shown = "".join(f"{value:>10.3g}" for value in (*row["mse"], row["worst"]))
            print(f"{name:38}{seed:>5}{shown}", flush=True)
    report = {
        "command": "python benchmarks/sinusoid_init.py",
        "settings": dataclasses.asdict(settings),
        "test_lists": list(SEEDS),
        "mse_after_steps": [1, 5, 10],
        "rows": rows,
    }
    (Path(__file__).parent / "results" / "sinusoid_init.json").write_text(json.dumps(report, indent=2) + "\n")


def measure(settings: presets.Settings, model: nn.MLP, seed: int) -> dict[str, Any]:
    setup = presets.build(settings)
    learner = maml(model, inner_optimizer=optax.sgd(settings.inner_lr), eval_steps=10, loss=losses.mean_squared_error)
    params = fit(
        learner,
        setup.train_source,
        setup.optimizer,
        steps=settings.steps,
        meta_batch=settings.meta_batch,
        seed=seed,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        progress=False,
    ).params
    try:
        found = [evaluate(learner, params, setup.test_source, episodes=600, seed=s) for s in SEEDS]
    except FloatingPointError:  # a task left the range of float32
        return {"mse": [float("inf")] * 3, "worst": float("inf")}
    by_step = np.mean([[e.by_step[i][0] for i in (1, 5, 10)] for e in found if e.by_step], axis=0)
    return {"mse": [float(value) for value in by_step], "worst": float(max(e.values.max() for e in found))}


if __name__ == "__main__":
    main()
