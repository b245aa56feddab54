"""How much of training's time is spent outside the compiled step: sampling, transfers, logging, checkpoints.

Trains with `jaxmeta.fit` into a run folder, as the command line does, and runs the very same compiled windows back to
back with nothing between them. Everything is compiled beforehand. Run it alone on the machine:

    python benchmarks/outside_step.py
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from common import write

from jaxmeta import fit, presets
from jaxmeta.cli._commands import set_up_jax
from jaxmeta.training._fit import TrainState, train_window

REPEATS = 7
CASES = {"maml-sinusoid": ("maml", "sinusoid", 20_000), "maml-glyphs-conv4": ("maml", "glyphs", 200)}


def main() -> None:
    set_up_jax()
    rows = [measure(name, *case) for name, case in CASES.items()]
    print(f"{'case':20}{'steps':>8}{'fit, s':>9}{'compiled, s':>13}{'outside':>9}{'dispatches':>12}")
    for row in rows:
        print(
            f"{row['case']:20}{row['steps']:>8}{min(row['fit_seconds']):>9.2f}{min(row['compiled_seconds']):>13.2f}"
            f"{row['share_outside']:>9.1%}{row['dispatches']:>12}"
        )
    write("outside_step", {"command": "python benchmarks/outside_step.py", "rows": rows})


def measure(name: str, method: str, dataset: str, steps: int) -> dict[str, Any]:
    settings = dataclasses.replace(presets.settings(method, dataset), steps=steps)
    setup = presets.build(settings)
    fits, compiled = [], []
    for repeat in range(REPEATS + 1):  # the first compiles
        fits.append(time_fit(settings, setup))
        compiled.append(time_compiled(settings, setup))
        if repeat == 0:
            fits.clear()
            compiled.clear()
    shares = sorted(1 - inside / whole for whole, inside in zip(fits, compiled, strict=True))
    return {
        "case": name,
        "steps": steps,
        "fit_seconds": fits,
        "compiled_seconds": compiled,
        "share_outside": statistics.median(shares),
        "least_and_most": (shares[0], shares[-1]),
        "dispatches": -(-steps // settings.log_every),
    }


def time_fit(settings: presets.Settings, setup: presets.Setup) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fit(
            setup.learner,
            setup.train_source,
            setup.optimizer,
            steps=settings.steps,
            meta_batch=settings.meta_batch,
            run_dir=Path(folder) / "run",
            log_every=settings.log_every,
            checkpoint_every=settings.checkpoint_every,
        )
        return time.perf_counter() - began


def time_compiled(settings: presets.Settings, setup: presets.Setup) -> float:
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxmeta.learner import descended
    from jaxmeta.meta_batch import divide

    source, key = setup.train_source, jax.random.key(1)
    episode = source.sample(source.data, key)
    params = setup.learner.init(key, episode)
    mesh, chunk = divide(settings.meta_batch, None, None, setup.learner.meta_grad, params, episode, key)
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(TrainState(params, setup.optimizer.init(descended(params))), everywhere)
    data = jax.block_until_ready(jax.device_put(source.data, everywhere))
    window = train_window(one_device=mesh.size == 1)
    began = time.perf_counter()
    for first in range(0, settings.steps, settings.log_every):
        state, _ = window(
            setup.learner,
            source.sample,
            setup.optimizer,
            settings.meta_batch,
            chunk,
            mesh.size,
            settings.log_every,
            state,
            data,
            key,
            jax.numpy.asarray(first),
        )
    jax.block_until_ready(state)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
