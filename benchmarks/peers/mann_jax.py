"""jaxmeta's MANN in a process of its own, at the command of `compare_mann.py`."""

import argparse
import json
import sys
import time
from typing import Any

import jax

jax.config.update("jax_platforms", "cpu")  # as PyTorch here
jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from jaxmeta import Batch, Episode, batch_meta_grad, mann, memory  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--forward", help="write the outputs, in double precision, to this file and stop")
    given = parser.parse_args()
    if given.forward:
        jax.config.update("jax_enable_x64", True)
    file = np.load(given.case)
    case = json.loads(str(file["case"]))
    params: dict[str, Any] = {"params": {}}
    for name in (name for name in file.files if name.startswith("params/")):
        *module, leaf = name.split("/")[1:]
        target = params["params"].setdefault(module[0], {}) if module else params["params"]
        target[leaf] = jnp.asarray(file[name], float)
    x, labels, y = jnp.asarray(file["x"], float), jnp.asarray(file["labels"], float), jnp.asarray(file["y"])
    model = memory.MANN(reads=case["reads"], decay=case["decay"], written="key")
    if given.forward:
        np.save(given.forward, jax.vmap(lambda x, labels: model.apply(params, x, labels)[0])(x, labels))
        return
    learner, optimizer = mann(model, ways=case["ways"]), optax.adam(1e-3)
    cut = case["ways"]
    episodes = Episode(Batch(x[:, :cut], y[:, :cut]), Batch(x[:, cut:], y[:, cut:]))

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        grads, metrics = batch_meta_grad(learner, params, episodes, key, chunk=case["episodes"] // 2)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics["loss"]

    state, key = optimizer.init(params), jax.random.key(0)
    for line in sys.stdin:
        if line.strip() == "quit":
            return
        began = time.perf_counter()
        params, state, _ = jax.block_until_ready(step(params, state, key))
        print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
