"""What the two experiments on inner gradients share: outer steps along any sum of them, on Omniglot, over seeds.

A curve is trained as the Reptile paper does it in its section 6: SGD in the inner loop, one task in each outer step,

    phi <- phi - eps alpha sum_i w_i g_i,     g_i = grad L_i(phi_i),   phi_{i+1} = phi_i - alpha g_i,   i = 1 .. k,

with eps falling linearly to 0. All curves of a seed see the same tasks and start from the same weights, and all are
judged on the same test episodes, so their differences are paired.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import task_loss
from jax.sharding import PartitionSpec as P
from scipy import stats

from jaxmeta import Batch, MetaLearner, evaluate, minibatches, nn, reptile, tasks
from jaxmeta.meta_batch import task_mesh

WAYS, POOL, ALPHA = 5, 20, 0.075
EVAL_SHOTS, EVAL_QUERIES, EVAL_STEPS = 5, 3, 5


class Curve(NamedTuple):
    """One way to train.

    Attributes:
        name: what it is called in the table.
        weights: of the inner gradients g_1 .. g_k.
        shots: images of each class that mini-batches come from.
        batch_size: images in a mini-batch.
        eps: the first outer step size.
        tail_shots: of `shots`, how many are kept for the last mini-batch alone; 0 for none.
    """

    name: str
    weights: tuple[float, ...]
    shots: int
    batch_size: int
    eps: float
    tail_shots: int = 0


class Setup(NamedTuple):
    """The network, the tasks, the budget and what judges: all that curves share."""

    model: nn.Conv4
    judge: MetaLearner
    train: tasks.Source
    test: tasks.Source
    steps: int
    seeds: int


def omniglot(*, features: int, steps: int, seeds: int) -> Setup:
    """5-way Omniglot in the split of the paper's code: 1,200 characters to train on, each in four rotations."""
    train, test = (tasks.omniglot("maml", subset) for subset in ("trainval", "test"))
    model = nn.Conv4(WAYS, features=features, pool="stride", readout="flatten")
    judge = reptile(model, inner_optimizer=optax.sgd(ALPHA), inner_lr=ALPHA, eval_steps=EVAL_STEPS)
    return Setup(
        model,
        judge,
        tasks.episodes(train, ways=WAYS, shots=POOL, queries=0, rotations="classes"),
        tasks.episodes(test, ways=WAYS, shots=EVAL_SHOTS, queries=EVAL_QUERIES),
        steps,
        seeds,
    )


def batches_of(curve: Curve, key: jax.Array, pool: Batch) -> Batch:
    """The curve's k mini-batches of a task of `POOL` images a class: x `[k, batch_size, ...]`."""
    by_class = jax.tree.map(lambda leaf: leaf.reshape(WAYS, POOL, *leaf.shape[1:]), pool)
    draw = functools.partial(minibatches, batch_size=curve.batch_size)
    head, tail = (
        jax.tree.map(lambda leaf, part=part: leaf[:, part].reshape(-1, *leaf.shape[2:]), by_class)
        for part in (slice(curve.shots - curve.tail_shots), slice(curve.shots - curve.tail_shots, curve.shots))
    )
    k = len(curve.weights)
    if not curve.tail_shots:
        return draw(key, head, steps=k)
    head_key, tail_key = jax.random.split(key)
    parts = draw(head_key, head, steps=k - 1), draw(tail_key, tail, steps=1)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *parts)


def summed_gradients(loss_fn: Callable[..., jax.Array], params: Any, batches: Batch, weights: Sequence[float]) -> Any:
    """sum_i w_i g_i over the inner steps."""

    def step(carry: tuple[Any, Any], item: tuple[Batch, jax.Array]) -> tuple[tuple[Any, Any], None]:
        phi, total = carry
        grads = jax.grad(loss_fn)(phi, item[0])
        phi = jax.tree.map(lambda a, g: a - ALPHA * g, phi, grads)
        return (phi, jax.tree.map(lambda a, g: a + item[1] * g, total, grads)), None

    start = (params, jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(step, start, (batches, jnp.asarray(weights)))[0][1]


def train(setup: Setup, curve: Curve, checkpoints: Sequence[int]) -> list[Any]:
    """The weights of all seeds after each of some numbers of outer steps, `[seeds, ...]`; seeds side by side."""
    loss_fn = task_loss(setup.model)

    def outer(data: Any, params: Any, index: jax.Array, root: jax.Array) -> Any:
        task_key, batch_key = jax.random.split(jax.random.fold_in(root, index))
        pool = setup.train.sample(data, task_key).support
        direction = summed_gradients(loss_fn, params, batches_of(curve, batch_key, pool), curve.weights)
        rate = curve.eps * ALPHA * (1 - index / setup.steps)
        return jax.tree.map(lambda a, g: a - rate * g, params, direction)

    def seed_run(data: Any, params: Any, root: jax.Array, first: jax.Array, last: jax.Array) -> Any:
        return jax.lax.fori_loop(first, last, lambda index, params: outer(data, params, index, root), params)

    def all_runs(data: Any, params: Any, roots: jax.Array, first: jax.Array, last: jax.Array) -> Any:
        return jax.lax.map(lambda item: seed_run(data, item[0], item[1], first, last), (params, roots))

    specs = (P(), P("tasks"), P("tasks"), P(), P())
    run = jax.jit(
        jax.shard_map(all_runs, mesh=task_mesh(setup.seeds), in_specs=specs, out_specs=P("tasks"), check_vma=False)
    )
    keys = jax.vmap(jax.random.key)(jnp.arange(setup.seeds))
    images = setup.train.sample(setup.train.data, jax.random.key(0)).support.x
    params = jax.vmap(lambda key: setup.model.init(key, images))(keys)
    found = []
    for first, last in zip([0, *checkpoints], checkpoints, strict=False):
        params = run(setup.train.data, params, keys, jnp.asarray(first), jnp.asarray(last))
        found.append(jax.device_get(params))
    return found


def accuracies(setup: Setup, params: Any, episodes: int) -> list[float]:
    """Accuracy of each seed's weights on the same test episodes: each query alone with the support set."""
    weights = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(setup.seeds)]
    judged = functools.partial(evaluate, episodes=episodes, seed=0, query_mode="inductive", by_step=False)
    return [judged(setup.judge, w, setup.test).mean for w in weights]


def earlier(name: str, wanted: dict[str, Any], rows_of: Callable[[Any], list[dict[str, Any]]]) -> dict[Curve, Any]:
    """What a result file holds already, if made with the same settings: an interrupted run goes on from there."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    if any(report.get(key) != value for key, value in json.loads(json.dumps(wanted)).items()):
        return {}

    def curve_of(row: dict[str, Any]) -> Curve:
        fields = {name: row[name] for name in Curve._fields}
        return Curve(**{**fields, "weights": tuple(row["weights"])})

    return {curve_of(row): row for row in rows_of(report)}


def measure(setup: Setup, curve: Curve, episodes: int) -> dict[str, Any]:
    """Trains and judges a curve, half of the way with a quarter of the episodes, and at the end."""
    began = time.perf_counter()
    checkpoints = [setup.steps // 2, setup.steps]
    trained = train(setup, curve, checkpoints)
    seconds = time.perf_counter() - began
    path = [
        accuracies(setup, params, episodes if step == setup.steps else episodes // 4)
        for step, params in zip(checkpoints, trained, strict=True)
    ]
    mean, interval = over_seeds(path[-1])
    shown = f"{100 * mean:.2f} ± {100 * interval:.2f} %"
    print(f"{curve.name:28}{shown:>18}{seconds:>7.0f} s, {time.perf_counter() - began:.0f} s with tests", flush=True)
    return {
        **curve._asdict(),
        "accuracy": mean,
        "interval": interval,
        "by_seed": path[-1],
        "training_seconds": round(seconds, 1),
        "path": [{"step": s, "by_seed": values} for s, values in zip(checkpoints, path, strict=True)],
    }


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of Student's 95 % interval."""
    n = len(values)
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """How much more accurate a is than b, seed by seed."""
    mean, interval = over_seeds(np.subtract(a["by_seed"], b["by_seed"]).tolist())
    return {"mean": mean, "interval": interval}


def settings(setup: Setup, episodes: int) -> dict[str, Any]:
    """What a result file says about how its numbers were made."""
    return {
        "outer_steps": setup.steps,
        "seeds": setup.seeds,
        "test_episodes": episodes,
        "features": setup.model.features,
        "inner_rate_of_mean_loss": ALPHA,
        "evaluation": f"{WAYS}-way {EVAL_SHOTS}-shot, {EVAL_QUERIES} queries a class, inductive, {EVAL_STEPS} steps",
        "interval": "95 %, Student, over seeds",
        "train": dict(setup.train.info),
        "test": dict(setup.test.info),
    }
