"""One PyTorch implementation of MAML's meta-gradient, in a process of its own, at the command of `compare_peers.py`."""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

Params = dict[str, torch.Tensor]


def load(path: str) -> tuple[Params, list[torch.Tensor], dict[str, Any]]:
    """Weights by name in PyTorch's layout, the four arrays of the episodes, and the case."""
    file = np.load(path, allow_pickle=False)
    case = json.loads(str(file["case"]))
    params = {}
    for name in (n for n in file.files if n.startswith("params/")):
        value = torch.from_numpy(file[name])
        if name.endswith("kernel"):
            value = value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value.T.contiguous()
        params[name.removeprefix("params/").replace("/", ":")] = value
    episodes = [torch.from_numpy(file[name]) for name in ("support_x", "support_y", "query_x", "query_y")]
    if case["network"] != "mlp":
        episodes[0], episodes[2] = (x.permute(0, 1, 4, 2, 3).contiguous() for x in (episodes[0], episodes[2]))
    return params, episodes, case


def forward(params: Params, x: torch.Tensor, network: str) -> torch.Tensor:
    if network == "mlp":
        for name in ("dense_0", "dense_1"):
            x = F.relu(F.linear(x, params[f"{name}:kernel"], params[f"{name}:bias"]))
        return F.linear(x, params["head:kernel"], params["head:bias"])
    stride = 2 if network == "stride" else 1
    for i in range(4):
        size = x.shape[-1]
        total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2) if total != 2 else x
        x = F.conv2d(x, params[f"conv_{i}:kernel"], params[f"conv_{i}:bias"], stride, 1 if total == 2 else 0)
        # A missing scale breaks the second derivative of PyTorch's own batch normalisation.
        scale = params.get(f"norm_{i}:scale", torch.ones_like(params[f"norm_{i}:bias"]))
        x = F.relu(F.batch_norm(x, None, None, scale, params[f"norm_{i}:bias"], training=True, eps=1e-3))
        x = F.max_pool2d(x, 2) if stride == 1 else x
    x = x.mean((2, 3)) if stride == 2 else x.permute(0, 2, 3, 1).flatten(1)
    return F.linear(x, params["head:kernel"], params["head:bias"])


def loss(params: Params, x: torch.Tensor, y: torch.Tensor, network: str) -> torch.Tensor:
    out = forward(params, x, network)
    return F.mse_loss(out, y) if network == "mlp" else F.cross_entropy(out, y)


class Module(torch.nn.Module):
    """The same functional network as a module, for the libraries that want one."""

    def __init__(self, params: Params, network: str):
        super().__init__()
        self.network, self.names = network, list(params)
        for name, value in params.items():
            self.register_parameter(name.replace(":", "__"), torch.nn.Parameter(value.clone()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return forward({name: getattr(self, name.replace(":", "__")) for name in self.names}, x, self.network)


def loop_of_tasks(params: Params, episodes: list[torch.Tensor], case: dict[str, Any]) -> Params:
    """`torch.autograd.grad(create_graph=True)`, one task after the other."""
    theta = {name: value.detach().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for sx, sy, qx, qy in zip(*episodes, strict=True):
        phi = theta
        for _ in range(case["steps"]):
            grads = torch.autograd.grad(loss(phi, sx, sy, case["network"]), list(phi.values()), create_graph=True)
            phi = {n: p - case["rate"] * g for (n, p), g in zip(phi.items(), grads, strict=True)}
        grads = torch.autograd.grad(loss(phi, qx, qy, case["network"]), list(theta.values()))
        for t, g in zip(total.values(), grads, strict=True):
            t += g / len(episodes[0])
    return total


def func_vmap(params: Params, episodes: list[torch.Tensor], case: dict[str, Any]) -> Params:
    """`torch.func.grad` of the mean over `torch.vmap`ped tasks."""

    def task(theta: Params, sx: Any, sy: Any, qx: Any, qy: Any) -> torch.Tensor:
        phi = theta
        for _ in range(case["steps"]):
            grads = torch.func.grad(loss)(phi, sx, sy, case["network"])
            phi = {name: phi[name] - case["rate"] * grads[name] for name in phi}
        return loss(phi, qx, qy, case["network"])

    mapped = torch.func.vmap(task, (None, 0, 0, 0, 0))
    return torch.func.grad(lambda theta: mapped(theta, *episodes).mean())(params)


def with_higher(params: Params, episodes: list[torch.Tensor], case: dict[str, Any]) -> Params:
    """`higher.innerloop_ctx`."""
    import higher

    module = Module(params, case["network"])
    inner = torch.optim.SGD(module.parameters(), lr=case["rate"])
    score = F.mse_loss if case["network"] == "mlp" else F.cross_entropy
    for sx, sy, qx, qy in zip(*episodes, strict=True):
        with higher.innerloop_ctx(module, inner, copy_initial_weights=False) as (fast, optimizer):
            for _ in range(case["steps"]):
                optimizer.step(score(fast(sx), sy))
            (score(fast(qx), qy) / len(episodes[0])).backward()
    return {name: getattr(module, name.replace(":", "__")).grad for name in params}


def with_torchopt(params: Params, episodes: list[torch.Tensor], case: dict[str, Any]) -> Params:
    """`torchopt.MetaSGD`."""
    import torchopt

    module = Module(params, case["network"])
    inner = torchopt.MetaSGD(module, lr=case["rate"])
    score = F.mse_loss if case["network"] == "mlp" else F.cross_entropy
    start = dict(module.named_parameters())
    before = torchopt.extract_state_dict(module, by="reference"), torchopt.extract_state_dict(inner, by="reference")
    for sx, sy, qx, qy in zip(*episodes, strict=True):
        for _ in range(case["steps"]):
            inner.step(score(module(sx), sy))
        (score(module(qx), qy) / len(episodes[0])).backward()
        torchopt.recover_state_dict(module, before[0])
        torchopt.recover_state_dict(inner, before[1])
    return {name: start[name.replace(":", "__")].grad for name in params}


PEERS: dict[str, Callable[..., Params]] = {
    "loop": loop_of_tasks,
    "torch.func": func_vmap,
    "higher": with_higher,
    "torchopt": with_torchopt,
}


def training_step(params: Params, case: dict[str, Any], peer: Callable[..., Params]) -> Callable[[], None]:
    """One training step with everything: episodes drawn on the host, meta-gradient, Adam."""
    rng, tasks = np.random.default_rng(0), case["tasks"]
    theta = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    adam = torch.optim.Adam(theta.values(), lr=1e-3)
    pool = torch.from_numpy(np.load(case["images"])).permute(0, 1, 4, 2, 3) if case["network"] != "mlp" else None

    def sinusoids() -> list[torch.Tensor]:
        amplitude, phase = rng.uniform(0.1, 5.0, (tasks, 1, 1)), rng.uniform(0.0, np.pi, (tasks, 1, 1))
        x = rng.uniform(-5.0, 5.0, (tasks, 20, 1))
        x, y = (torch.from_numpy(a.astype(np.float32)) for a in (x, amplitude * np.sin(x - phase)))
        return [x[:, :10], y[:, :10], x[:, 10:], y[:, 10:]]

    def images() -> list[torch.Tensor]:
        n = 1 + case["queries"]
        classes = np.stack([rng.choice(len(pool), 5, replace=False) for _ in range(tasks)])
        places = np.stack([[rng.choice(pool.shape[1], n, replace=False) for _ in range(5)] for _ in range(tasks)])
        x = pool[torch.from_numpy(classes)[..., None], torch.from_numpy(places)].float() / 255
        y = torch.arange(5).repeat_interleave(n).reshape(5, n).expand(tasks, 5, n)
        parts = [x[:, :, :1], y[:, :, :1], x[:, :, 1:], y[:, :, 1:]]
        return [part.flatten(1, 2).contiguous() for part in parts]

    def step() -> None:
        episodes = sinusoids() if pool is None else images()
        grads = peer({n: p.detach() for n, p in theta.items()}, episodes, case)
        for name, parameter in theta.items():
            parameter.grad = grads[name].detach()
        adam.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("case")
    parser.add_argument("--gradients", help="write one meta-gradient to this file and stop")
    parser.add_argument("--training", action="store_true", help="time whole training steps")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    params, episodes, case = load(arguments.case)
    peer = PEERS[arguments.peer]
    if arguments.gradients:
        grads = peer(params, episodes, case)
        turned = lambda kernel: kernel.permute(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T  # noqa: E731
        back = {name: turned(grad) if name.endswith("kernel") else grad for name, grad in grads.items()}
        np.savez(arguments.gradients, **{name.replace(":", "/"): g.detach().numpy() for name, g in back.items()})
        return
    run = training_step(params, case, peer) if arguments.training else lambda: peer(params, episodes, case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for line in sys.stdin:
        if line.strip() == "quit":
            print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024), flush=True)
            return
        began = time.perf_counter()
        for _ in range(case["repeat"]):
            run()
        print(json.dumps((time.perf_counter() - began) / case["repeat"]), flush=True)


if __name__ == "__main__":
    main()
