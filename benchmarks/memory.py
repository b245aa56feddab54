"""Memory of an exact meta-gradient, the compiler's count: in inner steps, in tasks, and in the depth of a transformer.

Nothing runs but the compiler, so the numbers are the same on every machine of one kind:

    python benchmarks/memory.py
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from common import CONV4, MIB, TRANSFORMERS, first, images, sequences, task_loss, temp_bytes, write

from jaxmeta import Batch, Episode, adapt, batch_meta_grad, losses, maml, nn

FORMS = {
    "reverse": {"hvp": "reverse_over_reverse", "remat": 0},
    "reverse, each step again": {"hvp": "reverse_over_reverse", "remat": 1},
    "default": {},
    "remat=2": {"remat": 2},
    'remat="auto"': {"remat": "auto"},
}
STEPS = (1, 4, 16, 64, 256)


def main() -> None:
    report: dict[str, Any] = {"command": "python benchmarks/memory.py", "unit": "MiB of temporaries"}
    episode = first(images(1, 3))
    report["conv4_in_steps"] = in_steps("Conv4-64, stride, 15 queries", CONV4["stride"], episode, losses.cross_entropy)
    x = jnp.ones((20, 64))
    dense = Episode(*[Batch(x, jnp.arange(20) % 10)] * 2)
    report["mlp_in_steps"] = in_steps("MLP 64-256-256-10", nn.MLP((256, 256), 10), dense, losses.cross_entropy)
    report["conv4_in_tasks"] = in_tasks()
    report["transformer"] = transformer()
    write("memory", report)


def in_steps(name: str, model: Any, episode: Episode, loss: Any) -> dict[str, Any]:
    """One task's temporaries, of every form, for K steps of SGD."""
    loss_fn = task_loss(model)
    params = model.init(jax.random.key(0), episode.support.x)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / MIB
    print(f"{name}; one set of parameters is {size:.2f} MiB")
    rows = {}
    for form, settings in FORMS.items():
        rows[form] = [meta_bytes(loss_fn, params, episode, steps, settings) / MIB for steps in STEPS]
        print(f"{form:26}" + "".join(f"{value:>9.1f}" for value in rows[form]), flush=True)
    growth = (rows["default"][-1] - rows["default"][-2]) / (STEPS[-1] - STEPS[-2]) / size
    print(f"default grows by {growth:.2f} sets of parameters a step")
    return {"steps": STEPS, "params_mib": size, "mib": rows, "default_sets_a_step": growth}


def meta_bytes(loss_fn: Callable[..., Any], params: Any, episode: Episode, steps: int, settings: dict[str, Any]) -> int:
    def objective(p: Any) -> jax.Array:
        adapted = adapt(loss_fn, p, episode.support, **{"optimizer": optax.sgd(0.1), "steps": steps, **settings})
        return loss_fn(adapted.params, episode.query)

    return temp_bytes(jax.grad(objective), params)


def in_tasks() -> dict[str, float]:
    """`batch_meta_grad` of Conv4-64, K = 5, on one device."""
    learner = maml(CONV4["stride"], inner_optimizer=optax.sgd(0.4), steps=5)
    params = CONV4["stride"].init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))
    found = {}
    for count in (4, 16, 64):
        episodes = images(count, 3)
        step = lambda p, e: batch_meta_grad(learner, p, e, jax.random.key(0), devices=1)  # noqa: E731
        found[str(count)] = temp_bytes(step, params, episodes) / MIB
    print("tasks:", {name: round(value, 2) for name, value in found.items()}, flush=True)
    return found


def transformer() -> list[dict[str, Any]]:
    """Twelve blocks of width 128 on 8 sequences of 64: plain reverse against the default with checkpointed blocks."""
    episode, rows = sequences(), []
    params = TRANSFORMERS["plain"].init(jax.random.key(1), episode.support.x)
    for name, optimizer, steps in (("sgd", optax.sgd(0.1), 2), ("adam", optax.adam(1e-3, eps_root=1e-8), 4)):
        found = {}
        for form, blocks, hvp in (
            ("plain reverse", "plain", "reverse_over_reverse"),
            ("default, checkpointed blocks", "checkpointed", "forward_over_reverse"),
        ):
            loss_fn = task_loss(TRANSFORMERS[blocks])
            settings = {"optimizer": optimizer, "hvp": hvp}
            found[form] = meta_bytes(loss_fn, params, episode, steps, settings) / MIB
        ratio = found["plain reverse"] / found["default, checkpointed blocks"]
        rows.append({"optimizer": name, "steps": steps, "mib": found, "ratio": ratio})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
