"""Time of a meta-gradient: exact MAML against FOMAML, stock JAX and the machine's peak, in steps, queries and tasks.

python benchmarks/speed.py            # without stock JAX on max-pooling, which takes minutes
python benchmarks/speed.py --stock-pool
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from common import CONV4, MLP, first, images, in_turns, matmul, sinusoids, task_loss, write
from flax import linen as fnn

from jaxmeta import batch_meta_grad, fomaml, losses, maml
from jaxmeta.analysis._inspect import inspect_compiled
from jaxmeta.cli._commands import set_up_jax

TASKS, RATE, REPEATS = 32, 0.4, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock-pool", action="store_true", help="also time stock JAX on the max-pooling network")
    arguments = parser.parse_args()
    set_up_jax()
    report: dict[str, Any] = {"command": "python benchmarks/speed.py" + " --stock-pool" * arguments.stock_pool}
    report |= {"tasks": TASKS}
    report["maml_and_fomaml"] = [ours(form, q, k) for form in CONV4 for q in (3, 15) for k in (1, 5)]
    report["tasks_8_to_32"] = {form: linear_in_tasks(form) for form in CONV4}
    forms = [*CONV4] if arguments.stock_pool else ["stride"]
    report["stock"] = [stock(form) for form in forms]
    report["sinusoid"] = sinusoid()
    write("speed", report)


def step(model: Any, episodes: Any, factory: Any, steps: int, loss: Any = losses.cross_entropy) -> tuple[Any, Any]:
    """A compiled meta-gradient as a function without arguments, and what inspection says of it."""
    params = model.init(jax.random.key(0), first(episodes).support.x)
    learner = factory(
        model, inner_optimizer=optax.sgd(RATE if loss is losses.cross_entropy else 0.01), steps=steps, loss=loss
    )
    arguments = params, episodes, jax.random.key(1)  # not in the call: making a key takes its time
    found, compiled = inspect_compiled(lambda p, e, key: batch_meta_grad(learner, p, e, key), *arguments)
    return lambda: compiled(*arguments), found


def ours(form: str, queries: int, steps: int) -> dict[str, Any]:
    """MAML and FOMAML, whose arithmetic is in the ratio (9 K r + 3) / (3 K r + 3) at least, r support to query.

    That least is of reverse mode, which keeps every step's intermediates; with several steps it is timed as well.
    """
    episodes, model = images(TASKS, queries), CONV4[form]
    reverse = functools.partial(maml, hvp="reverse_over_reverse")
    factories = {"maml": maml, "fomaml": fomaml, **({"reverse": reverse} if steps > 1 else {})}
    compiled = {name: step(model, episodes, factory, steps) for name, factory in factories.items()}
    product, flops = matmul()
    seconds = in_turns({name: run for name, (run, _) in compiled.items()} | {"matmul": product}, REPEATS)
    peak, found = flops / seconds["matmul"], compiled["maml"][1]
    k_r = steps / queries
    bound = seconds["fomaml"] * (9 * k_r + 3) / (3 * k_r + 3)
    row = {
        "form": form,
        "queries_per_class": queries,
        "steps": steps,
        "maml_ms": 1e3 * seconds["maml"],
        "fomaml_ms": 1e3 * seconds["fomaml"],
        "ratio_over_bound": seconds["maml"] / bound,
        "matmul_gflops": peak / 1e9,
        "share_of_peak": found.flops / seconds["maml"] / peak,
        "temp_mib": found.temp_bytes / 2**20,
        "compile_s": found.compile_seconds,
    }
    if steps > 1:
        row |= {"reverse_ms": 1e3 * seconds["reverse"], "reverse_ratio_over_bound": seconds["reverse"] / bound}
        row["reverse_temp_mib"] = compiled["reverse"][1].temp_bytes / 2**20
    print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
    return row


def linear_in_tasks(form: str) -> float:
    """Time of 32 tasks over that of 8."""
    runs = {str(count): step(CONV4[form], images(count, 3), maml, 1)[0] for count in (8, 32)}
    seconds = in_turns(runs, REPEATS)
    print(form, "32 tasks over 8:", round(seconds["32"] / seconds["8"], 2), flush=True)
    return seconds["32"] / seconds["8"]


class Stock(fnn.Module):
    """The same network as a user of Flax writes it."""

    pool: bool

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(4):
            x = fnn.Conv(64, (3, 3), strides=1 if self.pool else 2, name=f"conv_{i}")(x)
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            bias = self.param(f"norm_{i}", fnn.initializers.zeros, (64,))
            x = fnn.relu((x - mean) * jax.lax.rsqrt(var + 1e-3) + bias)
            x = fnn.max_pool(x, (2, 2), (2, 2)) if self.pool else x
        x = x.reshape(len(x), -1) if self.pool else x.mean((1, 2))
        return fnn.Dense(5, name="head")(x)


def stock(form: str) -> dict[str, Any]:
    """`jax.grad` of the mean over vmapped tasks, and over tasks unrolled; K = 1, 3 queries a class."""
    episodes, model = images(TASKS, 3), Stock(form == "max-pool")
    loss_fn = task_loss(model)
    params = model.init(jax.random.key(0), first(episodes).support.x)

    def one(p: Any, episode: Any) -> jax.Array:
        inner = jax.tree.map(lambda a, g: a - RATE * g, p, jax.grad(loss_fn)(p, episode.support))
        return loss_fn(inner, episode.query)

    def unrolled(p: Any) -> jax.Array:
        return jnp.stack([one(p, jax.tree.map(lambda leaf, i=i: leaf[i], episodes)) for i in range(TASKS)]).mean()

    def vmapped(p: Any) -> jax.Array:
        return jax.vmap(one, (None, 0))(p, episodes).mean()

    runs, compile_s = {"jaxmeta": step(CONV4[form], episodes, maml, 1)[0]}, {}
    for name, objective in {"vmap": vmapped, "unrolled": unrolled}.items():
        began = time.perf_counter()
        compiled = jax.jit(jax.grad(objective)).lower(params).compile()
        compile_s[name] = time.perf_counter() - began
        runs[name] = lambda compiled=compiled: compiled(params)
    seconds = in_turns(runs, 3)
    row = {"form": form, **{f"{name}_ms": 1e3 * value for name, value in seconds.items()}, "compile_s": compile_s}
    row |= {f"{name}_over_jaxmeta": seconds[name] / seconds["jaxmeta"] for name in ("vmap", "unrolled")}
    print(row, flush=True)
    return row


def sinusoid() -> dict[str, float]:
    """The sinusoid network, 25 tasks, K = 1 and 5."""
    episodes = sinusoids(25)
    runs = {f"K={k}": step(MLP, episodes, maml, k, losses.mean_squared_error)[0] for k in (1, 5)}
    seconds = {f"{name}_us": 1e6 * value for name, value in in_turns(runs, 200).items()}
    print(seconds)
    return seconds


if __name__ == "__main__":
    main()
