"""Time of an exact meta-gradient: in inner steps, tasks, chunks of tasks, ways, width, checkpoints and blocks.

python benchmarks/scaling.py
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import optax
from common import CONV4, TRANSFORMERS, first, images, in_turns, sequences, task_loss, write

from jaxmeta import adapt, batch_meta_grad, maml
from jaxmeta.cli._commands import set_up_jax
from jaxmeta.meta_batch import task_mesh

REPEATS = 5


def main() -> None:
    set_up_jax()
    report: dict[str, Any] = {"command": "python benchmarks/scaling.py", "network": "strided Conv4, 3 queries a class"}
    report["in_steps"] = sweep({str(k): conv4(steps=k) for k in (1, 2, 5, 10, 20)})
    report["in_tasks"] = sweep({str(t): conv4(tasks=t) for t in (4, 8, 16, 32)})
    report["in_ways"] = sweep({str(w): conv4(ways=w) for w in (5, 10, 20)})
    report["in_width"] = sweep({str(f): conv4(features=f) for f in (16, 32, 64, 128)})
    report["in_chunks"] = {
        f"{form}, {q} queries a class, K = {k}": in_chunks(form=form, queries=q, steps=k)
        for form in CONV4
        for q, k in ((15, 1), (3, 5))
    }
    report["checkpoints"] = checkpoints()
    report["transformer"] = transformer()
    write("scaling", report)


def conv4(
    *,
    form: str = "stride",
    steps: int = 1,
    tasks: int = 8,
    queries: int = 3,
    ways: int = 5,
    features: int = 64,
    chunk: int | None = None,
) -> tuple[Callable[[], Any], float]:
    """A compiled meta-gradient as a function without arguments, and the seconds of its compilation."""
    model = CONV4[form].clone(outputs=ways, features=features)
    episodes = images(tasks, queries, ways=ways)
    params = model.init(jax.random.key(0), first(episodes).support.x)
    learner = maml(model, inner_optimizer=optax.sgd(0.4), steps=steps)
    return compiled(lambda p, e: batch_meta_grad(learner, p, e, jax.random.key(1), chunk=chunk), params, episodes)


def in_chunks(**problem: Any) -> dict[str, dict[str, float]]:
    """32 tasks, in chunks of several sizes on each device."""
    share = 32 // task_mesh(32).size
    chunks = [chunk for chunk in (1, 4, 16, None) if chunk is None or share % chunk == 0]
    return sweep({str(chunk or "default"): conv4(tasks=32, chunk=chunk, **problem) for chunk in chunks})


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Callable[[], Any], float]:
    began = time.perf_counter()
    program = jax.jit(fn).lower(*args).compile()
    return lambda: program(*args), time.perf_counter() - began


def sweep(runs: dict[str, tuple[Callable[[], Any], float]]) -> dict[str, dict[str, float]]:
    """Milliseconds, milliseconds over those of the first, and seconds of compilation."""
    seconds = in_turns({name: run for name, (run, _) in runs.items()}, REPEATS)
    least = next(iter(seconds.values()))
    rows = {
        name: {
            "ms": round(1e3 * seconds[name], 2),
            "over_first": round(seconds[name] / least, 2),
            "compile_s": round(c, 1),
        }
        for name, (_, c) in runs.items()
    }
    print(rows, flush=True)
    return rows


def objective(loss_fn: Any, episode: Any, **settings: Any) -> Callable[[Any], jax.Array]:
    return lambda p: loss_fn(adapt(loss_fn, p, episode.support, **settings).params, episode.query)


def checkpoints() -> dict[str, dict[str, float]]:
    """One task, 64 inner steps: plain reverse mode against the default and levels of checkpoints."""
    model, episode = CONV4["stride"], first(images(1, 3))
    params = model.init(jax.random.key(0), episode.support.x)
    forms = {"reverse": {"hvp": "reverse_over_reverse"}, "default": {}, "remat=2": {"remat": 2}}
    forms['remat="auto"'] = {"remat": "auto"}
    return sweep(
        {
            name: compiled(
                jax.grad(objective(task_loss(model), episode, optimizer=optax.sgd(0.1), steps=64, **form)), params
            )
            for name, form in forms.items()
        }
    )


def transformer() -> list[dict[str, Any]]:
    """Twelve blocks: plain reverse mode against the default with checkpointed blocks."""
    episode, rows = sequences(), []
    params = TRANSFORMERS["plain"].init(jax.random.key(1), episode.support.x)
    for name, optimizer, steps in (("sgd", optax.sgd(0.1), 2), ("adam", optax.adam(1e-3, eps_root=1e-8), 4)):
        runs = {}
        for form, hvp in (("plain", "reverse_over_reverse"), ("checkpointed", "forward_over_reverse")):
            loss_fn = task_loss(TRANSFORMERS[form])
            gradient = jax.grad(objective(loss_fn, episode, optimizer=optimizer, steps=steps, hvp=hvp))
            runs[form] = compiled(gradient, params)
        rows.append({"optimizer": name, "steps": steps, "times": sweep(runs)})
    return rows


if __name__ == "__main__":
    main()
