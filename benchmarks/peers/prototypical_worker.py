"""Training steps of Prototypical Networks in a process of its own, at the command of `compare_prototypical.py`.

`jaxmeta` or `loop`, a plain PyTorch loop with `torch.nn` modules: one step samples an episode from the images in
memory, embeds it, and takes Adam's step.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def jax_gradients(file: Any, case: dict[str, Any]) -> dict[str, np.ndarray]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    from jaxmeta import Batch, Episode, nn, prototypical

    learner = prototypical(nn.Conv4(None), ways=case["ways"])
    episode = Episode(*(Batch(jnp.asarray(file[f"{n}_x"]), jnp.asarray(file[f"{n}_y"])) for n in ("support", "query")))
    grads, _ = jax.jit(learner.meta_grad)({"params": nested(file)}, episode, jax.random.key(0))
    return {f"{m}/{leaf}": np.asarray(v) for m, part in grads["params"].items() for leaf, v in part.items()}


def nested(file: Any) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name in (n for n in file.files if n.startswith("params/")):
        _, module, leaf = name.split("/")
        params.setdefault(module, {})[leaf] = file[name]
    return params


def jax_steps(file: Any, case: dict[str, Any]) -> Callable[[], None]:
    """A window of `fit`'s training steps, as `jaxmeta train` runs them."""
    import jax
    from jax_worker import classes_of, window

    from jaxmeta import nn, prototypical, tasks

    source = tasks.episodes(classes_of(case), ways=case["ways"], shots=case["shots"], queries=case["queries"])
    params = jax.tree.map(jax.numpy.asarray, {"params": nested(file)})
    steps = window(prototypical(nn.Conv4(None), ways=case["ways"]), params, source, case)
    return lambda: jax.block_until_ready(steps())


class Net:
    """`Conv4` and the prototypes' loss, as one writes them in PyTorch."""

    def __init__(self, file: Any, dtype: Any):
        """Loads the weights."""
        import torch

        self.torch = torch
        blocks = []
        for i in range(4):
            conv = torch.nn.Conv2d(1 if i == 0 else 64, 64, 3, padding=1, dtype=dtype)
            norm = torch.nn.BatchNorm2d(64, eps=1e-3, dtype=dtype)
            with torch.no_grad():
                conv.weight.copy_(torch.from_numpy(file[f"params/conv_{i}/kernel"]).permute(3, 2, 0, 1))
                conv.bias.copy_(torch.from_numpy(file[f"params/conv_{i}/bias"]))
                norm.weight.copy_(torch.from_numpy(file[f"params/norm_{i}/scale"]))
                norm.bias.copy_(torch.from_numpy(file[f"params/norm_{i}/bias"]))
            blocks += [conv, norm, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        self.encoder = torch.nn.Sequential(*blocks, torch.nn.Flatten())

    def loss(self, support: Any, query: Any, ways: int) -> Any:
        """Mean cross-entropy; examples in class order."""
        embedded = self.encoder(self.torch.cat([support, query]))
        prototypes = embedded[: len(support)].reshape(ways, -1, embedded.shape[1]).mean(1)
        distances = ((embedded[len(support) :, None] - prototypes[None]) ** 2).sum(-1)
        labels = self.torch.arange(ways).repeat_interleave(len(query) // ways)
        return self.torch.nn.functional.cross_entropy(-distances, labels)


def torch_gradients(file: Any, case: dict[str, Any]) -> dict[str, np.ndarray]:
    import torch

    net = Net(file, torch.float64)
    images = [torch.from_numpy(file[f"{name}_x"]).permute(0, 3, 1, 2) for name in ("support", "query")]
    net.loss(*images, case["ways"]).backward()
    found = {}
    for i in range(4):
        conv, norm = net.encoder[4 * i], net.encoder[4 * i + 1]
        found[f"conv_{i}/kernel"] = conv.weight.grad.permute(2, 3, 1, 0).numpy()
        found[f"conv_{i}/bias"] = conv.bias.grad.numpy()
        found[f"norm_{i}/scale"], found[f"norm_{i}/bias"] = norm.weight.grad.numpy(), norm.bias.grad.numpy()
    return found


def torch_steps(file: Any, case: dict[str, Any]) -> Callable[[], None]:
    import torch

    torch.set_num_threads(2)
    net, rng = Net(file, torch.float32), np.random.default_rng(0)
    adam = torch.optim.Adam(net.encoder.parameters(), lr=1e-3)
    pool = torch.from_numpy(np.load(case["images"])).permute(0, 1, 4, 2, 3)
    ways, shots, each = case["ways"], case["shots"], case["shots"] + case["queries"]

    def step() -> None:
        adam.zero_grad()
        for _ in range(case["tasks"]):
            classes = torch.from_numpy(rng.choice(len(pool), ways, replace=False))
            places = torch.from_numpy(np.stack([rng.choice(pool.shape[1], each, replace=False) for _ in range(ways)]))
            x = pool[classes[:, None], places].float() / 255
            loss = net.loss(x[:, :shots].flatten(0, 1), x[:, shots:].flatten(0, 1), ways) / case["tasks"]
            loss.backward()
        adam.step()

    def run() -> None:
        for _ in range(case["repeat"]):
            step()

    return run


ARMS = {"jaxmeta": (jax_gradients, jax_steps), "loop": (torch_gradients, torch_steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("case")
    parser.add_argument("--gradients", help="write one gradient to this file and stop")
    arguments = parser.parse_args()
    file = np.load(arguments.case)
    case = json.loads(str(file["case"]))
    gradients, steps = ARMS[arguments.arm]
    if arguments.gradients:
        np.savez(arguments.gradients, **gradients(file, case))
        return
    run = steps(file, case)
    for line in sys.stdin:
        if line.strip() == "quit":
            return
        began = time.perf_counter()
        run()
        print(json.dumps((time.perf_counter() - began) / case["repeat"]), flush=True)


if __name__ == "__main__":
    main()
