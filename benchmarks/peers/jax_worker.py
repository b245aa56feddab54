"""jaxmeta's meta-gradient in a process of its own, at the command of `compare_peers.py`."""

import argparse
import json
import resource
import sys
import time
from typing import Any

import jax

jax.config.update("jax_platforms", "cpu")  # as PyTorch here
jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from jaxmeta import Batch, Episode, batch_meta_grad, losses, maml, nn, tasks  # noqa: E402
from jaxmeta.meta_batch import divide  # noqa: E402
from jaxmeta.training._fit import TrainState, train_window  # noqa: E402

MODELS = {
    "mlp": nn.MLP((40, 40), 1),
    "stride": nn.Conv4(5, pool="stride", readout="mean", norm_scale=False),
    "max-pool": nn.Conv4(5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--hvp", help="how inner gradients are differentiated again; default: jaxmeta's")
    parser.add_argument("--gradients", help="write one meta-gradient to this file and stop")
    parser.add_argument("--training", action="store_true", help="time whole training steps")
    arguments = parser.parse_args()
    file = np.load(arguments.case)
    case = json.loads(str(file["case"]))
    if arguments.gradients:
        jax.config.update("jax_enable_x64", True)
    params: dict[str, Any] = {}
    for name in (n for n in file.files if n.startswith("params/")):
        _, module, leaf = name.split("/")
        params.setdefault(module, {})[leaf] = jnp.asarray(file[name])
    params = {"params": params}
    parts = {name: jnp.asarray(file[name]) for name in ("support_x", "support_y", "query_x", "query_y")}
    episodes = Episode(Batch(parts["support_x"], parts["support_y"]), Batch(parts["query_x"], parts["query_y"]))
    loss = losses.mean_squared_error if case["network"] == "mlp" else losses.cross_entropy
    model, rate, steps = MODELS[case["network"]], case["rate"], case["steps"]
    learner = maml(model, inner_optimizer=optax.sgd(rate), steps=steps, loss=loss, hvp=arguments.hvp)
    step, key = jax.jit(lambda p, e, key: batch_meta_grad(learner, p, e, key)[0]), jax.random.key(0)
    if arguments.gradients:
        grads = step(params, episodes, key)["params"]
        np.savez(
            arguments.gradients, **{f"{m}/{leaf}": value for m, part in grads.items() for leaf, value in part.items()}
        )
        return
    run = training(learner, params, case) if arguments.training else lambda: step(params, episodes, key)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for line in sys.stdin:
        if line.strip() == "quit":
            print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024), flush=True)
            return
        began = time.perf_counter()
        if arguments.training:
            jax.block_until_ready(run())
        else:
            for _ in range(case["repeat"]):
                jax.block_until_ready(run())
        print(json.dumps((time.perf_counter() - began) / case["repeat"]), flush=True)


def training(learner: Any, params: Any, case: dict[str, Any]) -> Any:
    """A window of training steps on the case's tasks."""
    if case["network"] == "mlp":
        source = tasks.sinusoid(shots=10, queries=10)
    else:
        source = tasks.episodes(classes_of(case), ways=5, shots=1, queries=case["queries"])
    return window(learner, params, source, case)


def classes_of(case: dict[str, Any]) -> tasks.Classes:
    """The case's images."""
    images = np.load(case["images"])
    return tasks.Classes(images, np.full(len(images), images.shape[1], np.int32), ("",) * len(images), {})


def window(learner: Any, params: Any, source: tasks.Source, case: dict[str, Any]) -> Any:
    """`repeat` training steps as `jaxmeta.fit` runs them, sampling inside."""
    optimizer, key = optax.adam(1e-3), jax.random.key(1)
    box = [jax.tree.map(jnp.array, TrainState(params, optimizer.init(params)))]
    episode = jax.eval_shape(source.sample, source.data, key)
    mesh, chunk = divide(case["tasks"], None, None, learner.meta_grad, params, episode, key)
    compiled = train_window(one_device=mesh.size == 1)
    sizes = case["tasks"], chunk, mesh.size, case["repeat"]

    def run() -> Any:
        box[0], metrics = compiled(learner, source.sample, optimizer, *sizes, box[0], source.data, key, jnp.asarray(0))
        return metrics

    return run


if __name__ == "__main__":
    main()
