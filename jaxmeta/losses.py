"""Losses and scores of predictions against targets, each a mean over the examples of one batch.

The mean matters: some reference implementations of MAML differentiate a *sum* over the support set
divided by the number of shots, which multiplies the inner learning rate by the number of ways.
"""

import jax
import jax.numpy as jnp
import optax

from jaxmeta.episode import are_classes, is_classification


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy, in nats.

    Args:
        logits: `[n, ways]`, unnormalised log-probabilities.
        labels: `[n]`, integers in `[0, ways)`.

    Returns:
        A scalar. It is NaN, and so are its derivatives, where a label is none of those.

    Raises:
        TypeError: the labels are not integers.
        ValueError: there is not one label for each row, or there are no rows.

    >>> import jax.numpy as jnp
    >>> round(float(cross_entropy(jnp.zeros((2, 5)), jnp.array([0, 3]))), 4)  # log 5
    1.6094
    """
    _check_pair(logits, labels, integer=True)
    # Indexing would take -1 for the last class, and give an unknown class the gradient of no class.
    known = jnp.where(are_classes(labels, logits.shape[-1]), 1.0, jnp.nan).astype(logits.dtype)
    return (known * optax.softmax_cross_entropy_with_integer_labels(logits, labels)).mean()


def mean_squared_error(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error over examples and output dimensions.

    Args:
        values: `[n, d]`, predictions.
        targets: `[n, d]`, in the same units.

    Returns:
        A scalar.

    Raises:
        TypeError: the targets are integers.
        ValueError: the shapes differ, or there are no examples.

    >>> import jax.numpy as jnp
    >>> float(mean_squared_error(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]])))
    5.0
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

    Raises:
        TypeError, ValueError: as `cross_entropy`.

    >>> import jax.numpy as jnp
    >>> float(accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])))
    0.5
    """
    _check_pair(logits, labels, integer=True)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def score(predictions: jax.Array, targets: jax.Array) -> tuple[str, jax.Array]:
    """What a task is judged by: accuracy for integer labels, mean squared error for real targets.

    Args:
        predictions: logits `[n, ways]` or values `[n, d]`.
        targets: labels `[n]` or real targets `[n, d]`.

    Returns:
        `("accuracy", scalar)` or `("mse", scalar)`.

    Raises:
        ValueError: the shapes do not fit each other, or there are no examples.

    >>> import jax.numpy as jnp
    >>> name, value = score(jnp.array([[0.1, 0.9]]), jnp.array([1]))
    >>> name, float(value)
    ('accuracy', 1.0)
    """
    if is_classification(targets):
        return "accuracy", accuracy(predictions, targets)
    return "mse", mean_squared_error(predictions, targets)


def _check_pair(predictions: jax.Array, targets: jax.Array, *, integer: bool) -> None:
    if integer != is_classification(targets):
        wanted = "integer labels [n]" if integer else "real targets [n, d]"
        raise TypeError(f"targets must be {wanted}, but have dtype {targets.dtype} and shape {targets.shape}")
    if not targets.size:
        raise ValueError(f"targets hold no examples to take a mean over: their shape is {targets.shape}")
    expected = predictions.shape[:-1] if integer else predictions.shape
    if targets.shape != expected:
        raise ValueError(
            f"predictions of shape {predictions.shape} want targets of shape {expected}, but they have {targets.shape}"
        )
