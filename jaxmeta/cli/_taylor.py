"""`jaxmeta taylor`. JAX is imported when the command runs, after its number of devices is settled."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmeta.cli._arguments import Taylor
from jaxmeta.cli._commands import set_up_jax

_POINTS = 5  # of a sinusoid, in a mini-batch


def taylor(command: Taylor) -> None:
    """`jaxmeta taylor`."""
    set_up_jax(1)
    import jax

    from jaxmeta.analysis import taylor as analysis
    from jaxmeta.analysis.taylor._report import PRINTED
    from jaxmeta.training import _run

    dataset = command.dataset or ("sinusoid" if command.model == "mlp" else "glyphs")
    _check(command, dataset)
    out = command.out or Path("runs") / f"taylor-{command.model}-{dataset}-seed{command.seed}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already: choose another folder with --out")
    loss_fn, params, batches = _problem(command, dataset)
    settings = {"order": command.order, "size": 0.01 if command.model == "mlp" else 1e-5}
    verdicts, printed = [], []
    with jax.enable_x64(True):
        params, batches = (jax.tree.map(_widened, tree) for tree in (params, batches))
        for k in command.k:
            for method in ("maml", "fomaml", "reptile"):
                plan = analysis.expansion(method, k)
                verdicts.append(analysis.verify_expansion(loss_fn, params, batches, plan, **settings))
            misprint = plan._replace(coefficients={**plan.coefficients, "g": PRINTED})
            printed.append(analysis.verify_expansion(loss_fn, params, batches, misprint, **settings))
    title = f"one task of {dataset}, {command.model}, {len(jax.tree.leaves(batches)[0])} mini-batches"
    print(f"{title}; averages over their orderings are exact\n{analysis.table(verdicts)}\n")
    print("Reptile's AvgGrad comes k times; often printed, for every k, is (2):")
    for verdict in printed:
        found = verdict.coefficients[0]
        judged = "agrees" if verdict.accepted else "rejected"
        off = round(found.error, 6) + 0.0
        print(f"  k={verdict.expansion.k}: measured {found.measured:.8f}, 2 is off by {off:.6f}: {judged}")
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "settings": {**dataclasses.asdict(command), "dataset": dataset, "out": None, "data_dir": None},
        "versions": _run.versions(),
        "verdicts": [analysis.summary(verdict) for verdict in verdicts],
        "reptile_as_often_printed": [analysis.summary(verdict) for verdict in printed],
    }
    _run.write_json(out / "taylor.json", report)
    analysis.plot_verdicts(verdicts, title).savefig(out / "taylor.png")
    print(f"Written to {out} (taylor.json, taylor.png)")
    if rejected := sum(not verdict.accepted for verdict in verdicts):
        raise ArithmeticError(f"{rejected} of {len(verdicts)} expansions do not agree with the measurement")


def _check(command: Taylor, dataset: str) -> None:
    if not command.k or min(command.k) < 1:
        raise ValueError(f"--k must name numbers of 1 or more, but is {' '.join(map(str, command.k)) or 'empty'}")
    if max(command.k) > 16:
        raise ValueError(f"--k must be 16 at most, but is {max(command.k)}: averages are over pools of that size")
    if command.model == "conv4" and dataset == "sinusoid":
        raise ValueError("--model conv4 wants images: --dataset glyphs or omniglot")
    if command.model != "conv4" and command.features is not None:
        raise ValueError("--features is for --model conv4")
    if dataset == "sinusoid" and command.ways is not None:
        raise ValueError("--ways is for images, and the data set is sinusoid")
    for name, value in {"--features": command.features, "--ways": command.ways}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, but is {value}")
    if command.model == "conv4" and command.order == 2:
        raise ValueError("--order 2 wants a loss without kinks, so --model mlp, which has tanh units")


def _problem(command: Taylor, dataset: str) -> tuple[Callable[..., Any], Any, Any]:
    """A loss, parameters, and the pool of one task's mini-batches, every array `[n, ...]`."""
    import jax
    import jax.numpy as jnp

    from jaxmeta import losses, nn, tasks
    from jaxmeta.analysis.taylor import pool_size
    from jaxmeta.episode import Batch

    ways = command.ways or 5
    n = pool_size(max(*command.k, 3), strength=command.order + 1)
    init_key, task_key = jax.random.split(jax.random.key(command.seed))
    if dataset == "sinusoid":
        source = tasks.sinusoid(shots=n * _POINTS, queries=1)
    else:
        classes = tasks.glyphs("train") if dataset == "glyphs" else tasks.omniglot("vinyals", data_dir=command.data_dir)
        source = tasks.episodes(classes, ways=ways, shots=n, queries=0)
    support = source.sample(source.data, task_key).support
    if dataset == "sinusoid":
        batches = jax.tree.map(lambda leaf: leaf.reshape(n, _POINTS, *leaf.shape[1:]), support)
    else:  # class by class: mini-batch i has the i-th image of each
        batches = jax.tree.map(lambda leaf: leaf.reshape(ways, n, *leaf.shape[1:]).swapaxes(0, 1), support)
    outputs = 1 if dataset == "sinusoid" else ways
    if command.model == "mlp":
        model = nn.MLP((40, 40), outputs, activation=jnp.tanh)
    else:
        model = nn.Conv4(outputs, features=command.features or 8, pool="stride", readout="flatten")
    loss = losses.mean_squared_error if dataset == "sinusoid" else losses.cross_entropy
    params = model.init(init_key, batches.x[0])
    return _loss_fn(model, loss), params, Batch(*batches)


def _loss_fn(model: Any, loss: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    return lambda params, batch: loss(model.apply(params, batch.x), batch.y)


def _widened(leaf: Any) -> Any:
    """In double precision, if real."""
    import jax.numpy as jnp

    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
