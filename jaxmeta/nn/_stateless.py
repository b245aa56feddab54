"""Which networks can be applied as functions of their parameters and inputs, and nothing else."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import errors, linen


def init_stateless(model: Any, key: jax.Array, x: jax.Array) -> Any:
    """Initialises a model for inputs like x `[n, ...]`, and refuses one that is more than a function.

    Raises:
        TypeError: the model lacks `init` or `apply`.
        ValueError: the model keeps state beside its parameters, such as running statistics, or, a Flax Linen module,
            asks for random numbers.
    """
    if not all(callable(getattr(model, name, None)) for name in ("init", "apply")):
        raise TypeError(
            f"model must have init(key, x) and apply(params, x), as a Flax Linen module has, but is {model!r}; any "
            "pair of functions with these names will do"
        )
    params = model.init(key, x)
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        extra = sorted(set(params) - {"params"})
        raise ValueError(
            f"model keeps state beside its parameters ({', '.join(extra)}), which training would lose; "
            "use a layer without running state, such as jaxmeta.nn.BatchNorm"
        )
    if isinstance(model, linen.Module):
        _check_draws_nothing(model, params, x)
    return params


def _check_draws_nothing(model: linen.Module, params: Any, x: jax.Array) -> None:
    try:
        jax.eval_shape(model.apply, params, x)
    except errors.InvalidRngError as error:
        raise ValueError(
            "model draws random numbers, as dropout does, but is applied as a function of parameters and inputs alone: "
            "switch that off, or write a loss that takes keys from the batch, for maml_grad and its like"
        ) from error
