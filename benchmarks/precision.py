"""How far single precision takes a meta-gradient from double precision, by the precision of matrix products.

GPUs and TPUs multiply single-precision matrices in shorter formats unless told not to; CPUs do not.

python benchmarks/precision.py
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import CONV4, MLP, first, images, in_turns, sinusoids, write

from jaxmeta import batch_meta_grad, losses, maml

PRECISIONS = ("default", "float32")  # of jax_default_matmul_precision; the second is the highest there is


def main() -> None:
    rows = [
        row(form, model, images(8, 3), losses.cross_entropy, 0.4, k) for form, model in CONV4.items() for k in (1, 5)
    ]
    rows += [row("MLP", MLP, sinusoids(8), losses.mean_squared_error, 0.01, k) for k in (1, 5)]
    write("precision", {"command": "python benchmarks/precision.py", "meta_gradients": rows})


def row(name: str, model: Any, episodes: Any, loss: Any, rate: float, steps: int) -> dict[str, Any]:
    """Distance from the double-precision gradient over its norm, and time, at each precision."""
    learner = maml(model, inner_optimizer=optax.sgd(rate), steps=steps, loss=loss)
    params = model.init(jax.random.key(0), first(episodes).support.x)

    def gradient(params: Any, episodes: Any) -> jax.Array:
        grads, _ = batch_meta_grad(learner, params, episodes, jax.random.key(1))
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, (params, episodes))
        exact = np.asarray(jax.jit(gradient)(*wide))
    found, runs = {}, {}
    for precision in PRECISIONS:
        with jax.default_matmul_precision(precision):
            compiled = jax.jit(gradient).lower(params, episodes).compile()
        difference = np.asarray(compiled(params, episodes)) - exact
        found[precision] = float(np.linalg.norm(difference) / np.linalg.norm(exact))
        runs[precision] = lambda compiled=compiled: compiled(params, episodes)
    milliseconds = {precision: round(1e3 * value, 3) for precision, value in in_turns(runs, 15).items()}
    print(name, steps, {precision: f"{error:.1e}" for precision, error in found.items()}, milliseconds, flush=True)
    return {"network": name, "steps": steps, "relative_error": found, "milliseconds": milliseconds}


if __name__ == "__main__":
    main()
