"""MANN's recurrence as a plain loop in PyTorch, over a batch of episodes, at the command of `compare_mann.py`."""

import argparse
import json
import sys
import time

import numpy as np
import torch
from torch.nn import functional


def forward(
    p: dict[str, torch.Tensor], x: torch.Tensor, labels: torch.Tensor, reads: int, decay: float
) -> torch.Tensor:
    """Outputs `[batch, steps, d]`, as re-implementations write it: one step after the other, batched over episodes."""
    batch, features = len(x), p["output/kernel"].shape[0] - reads * 40
    slots, width = 128, 40
    h, c = (torch.zeros(batch, features, dtype=x.dtype) for _ in range(2))
    r = torch.zeros(batch, reads * width, dtype=x.dtype)
    memory = torch.full((batch, slots, width), 1e-6, dtype=x.dtype)
    usage = torch.zeros(batch, slots, dtype=x.dtype)
    usage[:, 0] = 1
    read_weights = usage[:, None, :].repeat(1, reads, 1)
    outputs = []
    for t in range(x.shape[1]):
        gates = x[:, t] @ p["input/kernel"] + p["input/bias"] + labels[:, t] @ p["label/kernel"]
        gates = gates + torch.cat([h, r], 1) @ p["controller"]
        forget, take, give = torch.sigmoid(gates[:, : 3 * features]).chunk(3, 1)
        c = forget * c + take * torch.tanh(gates[:, 3 * features :])
        h = give * torch.tanh(c)
        emitted = h @ p["heads"] + p["heads_bias"]
        gate = torch.sigmoid(emitted[:, :reads])[:, :, None]
        keys = torch.tanh(emitted[:, reads:].reshape(batch, reads, width))
        _, least = torch.topk(usage.detach(), reads, largest=False)
        one_hot = functional.one_hot(least, slots).to(x.dtype)
        write_weights = gate * read_weights + (1 - gate) * one_hot
        memory = memory * (1 - one_hot[:, 0, :, None]) + write_weights.transpose(1, 2) @ keys
        norms = [torch.rsqrt((v * v).sum(-1) + 1e-8) for v in (keys, memory)]
        cosines = keys @ memory.transpose(1, 2) * norms[0][:, :, None] * norms[1][:, None, :]
        read_weights = torch.softmax(cosines, -1)
        usage = decay * usage + (read_weights + write_weights).sum(1)
        r = (read_weights @ memory).reshape(batch, -1)
        outputs.append(torch.cat([h, r], 1) @ p["output/kernel"] + p["output/bias"])
    return torch.stack(outputs, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--forward", help="write the outputs, in double precision, to this file and stop")
    given = parser.parse_args()
    torch.set_num_threads(2)
    file, dtype = np.load(given.case), torch.float64 if given.forward else torch.float32
    tensors = {name: torch.tensor(file[name], dtype=dtype) for name in file.files if name not in ("y", "case")}
    params = {name.removeprefix("params/"): t.requires_grad_() for name, t in tensors.items() if "params/" in name}
    case, y = json.loads(str(file["case"])), torch.tensor(file["y"])
    optimizer = torch.optim.Adam(params.values(), lr=1e-3)

    def run() -> torch.Tensor:
        return forward(params, tensors["x"], tensors["labels"], case["reads"], case["decay"])

    if given.forward:
        np.save(given.forward, run().detach().numpy())
        return
    for line in sys.stdin:
        if line.strip() == "quit":
            return
        began = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(run().flatten(0, 1), y.flatten()).backward()
        optimizer.step()
        print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
