"""Losses and scores of predictions against targets, each a mean over the examples of one batch.

The mean matters: some reference implementations of MAML differentiate a *sum* over the support set
divided by the number of shots, which multiplies the inner learning rate by the number of ways.
"""

import jax
import jax.numpy as jnp
import optax

from jaxmeta.episode import is_classification


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy, in nats.

    Args:
        logits: `[n, ways]`, unnormalised log-probabilities.
        labels: `[n]`, integers in `[0, ways)`.

    Returns:
        A scalar.

    >>> import jax.numpy as jnp
    >>> round(float(cross_entropy(jnp.zeros((2, 5)), jnp.array([0, 3]))), 4)  # log 5
    1.6094
    """
    _check_pair(logits, labels, integer=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mean_squared_error(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error over examples and output dimensions.

    Args:
        values: `[n, d]`, predictions.
        targets: `[n, d]`, in the same units.

    Returns:
        A scalar.
    """
    _check_pair(values, targets, integer=False)
    return jnp.mean((values - targets) ** 2)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of examples whose largest logit is the label's, in [0, 1].

    Args:
        logits: `[n, ways]`.
        labels: `[n]`, integers in `[0, ways)`.

    Returns:
        A scalar.
    """
    _check_pair(logits, labels, integer=True)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def score(predictions: jax.Array, targets: jax.Array) -> tuple[str, jax.Array]:
    """What a task is judged by: accuracy for integer labels, mean squared error for real targets."""
    if is_classification(targets):
        return "accuracy", accuracy(predictions, targets)
    return "mse", mean_squared_error(predictions, targets)


def _check_pair(predictions: jax.Array, targets: jax.Array, *, integer: bool) -> None:
    if integer != is_classification(targets):
        wanted = "integer labels [n]" if integer else "real targets [n, d]"
        raise TypeError(f"targets must be {wanted}, but have dtype {targets.dtype} and shape {targets.shape}")
    expected = predictions.shape[:-1] if integer else predictions.shape
    if targets.shape != expected:
        raise ValueError(
            f"predictions of shape {predictions.shape} want targets of shape {expected}, but they have {targets.shape}"
        )
