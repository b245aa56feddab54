"""What the benchmarks share: the problems, turns of timing, and the file that results go to."""

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as fnn
import jax
import jax.numpy as jnp
from machine import machine

from jaxmeta import Batch, Episode, losses, nn, tasks

MIB = 2**20
WAYS = 5
CONV4 = {
    "stride": nn.Conv4(WAYS, pool="stride", readout="mean", norm_scale=False),
    "max-pool": nn.Conv4(WAYS),
}
MLP = nn.MLP((40, 40), 1)


class Block(fnn.Module):
    """A transformer block of width 128."""

    @fnn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = x + fnn.MultiHeadDotProductAttention(num_heads=4)(fnn.LayerNorm()(x))
        return x + fnn.Dense(128)(fnn.gelu(fnn.Dense(512)(fnn.LayerNorm()(x)))), None


class Transformer(fnn.Module):
    """Twelve blocks in a scan, each checkpointed if asked."""

    checkpointed: bool

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = fnn.remat(Block, prevent_cse=False) if self.checkpointed else Block
        blocks = fnn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=12)
        x, _ = blocks(name="blocks")(fnn.Dense(128)(x), None)
        return fnn.Dense(10)(x.mean(1))


TRANSFORMERS = {"plain": Transformer(False), "checkpointed": Transformer(True)}


def sequences() -> Episode:
    """Eight sequences of 64 positions and 16 channels, each of a class of its own, as support and query."""
    x = jax.random.normal(jax.random.key(0), (8, 64, 16))
    return Episode(*[Batch(x, jnp.arange(8))] * 2)


def images(count: int, queries: int, *, ways: int = WAYS, seed: int = 0) -> Episode:
    """A batch of 1-shot episodes of 28x28 glyphs, `queries` of each class."""
    source = tasks.episodes(tasks.glyphs("train", classes=100), ways=ways, shots=1, queries=queries)
    return jax.vmap(source.sample, (None, 0))(source.data, jax.random.split(jax.random.key(seed), count))


def sinusoids(count: int, *, seed: int = 0) -> Episode:
    """A batch of 10-shot sinusoids with 10 queries."""
    source = tasks.sinusoid(shots=10, queries=10)
    return jax.vmap(source.sample, (None, 0))(source.data, jax.random.split(jax.random.key(seed), count))


def first(episodes: Episode) -> Episode:
    """The first episode of a batch."""
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def task_loss(model: Any) -> Callable[[Any, Batch], jax.Array]:
    """A model's mean loss on a batch: cross-entropy, or squared error for real targets."""

    def loss_fn(params: Any, batch: Batch) -> jax.Array:
        predictions = model.apply(params, batch.x)
        if jnp.issubdtype(batch.y.dtype, jnp.integer):
            return losses.cross_entropy(predictions, batch.y)
        return losses.mean_squared_error(predictions, batch.y)

    return loss_fn


def temp_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """The compiler's count of the bytes of temporaries."""
    memory = jax.jit(fn).lower(*args).compile().memory_analysis()
    assert memory is not None
    return int(memory.temp_size_in_bytes)


def in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median seconds of each run, taken in turns whose order alternates; each runs once before."""
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in list(runs)[:: 1 if repeat % 2 == 0 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(runs[name]())
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul() -> tuple[Callable[[], Any], int]:
    """A square single-precision product on each device at once, as a function without arguments, and its FLOPs."""
    size, devices = 1536 if jax.default_backend() == "cpu" else 8192, jax.devices()
    mesh = jax.sharding.Mesh(devices, ("devices",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    x = jax.device_put(jnp.ones((len(devices), size, size)), sharding)
    product = jax.jit(lambda x: jnp.matmul(x, x))
    return lambda: product(x), len(devices) * 2 * size**3


def undisturbed_seconds(history: Sequence[Mapping[str, Any]], steps: int, meta_batch: int) -> float:
    """Seconds that training takes at the pace of its undisturbed stretches, the 90th percentile of all."""
    paces = sorted(max(row["tasks_per_second"], 0.05) for row in history)  # which are rounded to tenths
    return steps * meta_batch / paces[int(0.9 * (len(paces) - 1))]


def wall_seconds(history: Sequence[Mapping[str, Any]], meta_batch: int) -> float:
    """Seconds that training took, from all rows of its history, which tell their pace."""
    steps = [0, *(row["step"] for row in history)]
    lengths = [after - before for before, after in itertools.pairwise(steps)]
    return sum(meta_batch * n / max(row["tasks_per_second"], 0.05) for n, row in zip(lengths, history, strict=True))


def minutes(seconds: float, backend: str) -> str:
    """Minutes of training, and where, if not on CPU."""
    return f"{seconds / 60:.1f}" + ("" if backend == "cpu" else f" ({backend.upper()})")


def write(name: str, report: dict[str, Any]) -> None:
    """Writes a report into `results/`, with the machine and the versions; `NAME-gpu.json` from a GPU."""
    devices = [f"{device.device_kind}:{device.id}" for device in jax.devices()]
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    backend = jax.default_backend()
    path = Path(__file__).parent / "results" / f"{name}{'' if backend == 'cpu' else '-' + backend}.json"
    told = {"machine": {**machine(), "devices": devices}, "versions": versions}
    path.write_text(json.dumps({**report, **told}, indent=2) + "\n")
    print(f"written to {path}")
