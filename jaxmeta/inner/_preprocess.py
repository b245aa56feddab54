"""Gradients as the input of a network."""

import jax
import jax.numpy as jnp


def log_sign(x: jax.Array, p: float = 10.0) -> jax.Array:
    """A number as two that a network can read: its magnitude's logarithm, and its sign.

        ( log|x| / p,  sign x )    where |x| >= exp(-p)
        ( -1,          e^p x  )    elsewhere

    Args:
        x: `[...]`, such as gradients or a loss.
        p: where the small begins, at most 80, beyond which exp(-p) is nothing in single precision; 10 for the LSTM
            meta-learner, 7 for MetaNet.

    Returns:
        `[..., 2]`, continuous in x at |x| = exp(-p), with finite derivatives everywhere.

    Raises:
        ValueError: `p` is not in (0, 80].

    >>> [[round(float(part), 4) for part in row] for row in log_sign(jnp.array([1.0, -0.1, 1e-5, 0.0]))]
    [[0.0, 1.0], [-0.2303, -1.0], [-1.0, 0.2203], [-1.0, 0.0]]

    References:
        Andrychowicz et al. 2016, arXiv:1606.04474, appendix A; Ravi, Larochelle 2017.
    """
    if not 0 < p <= 80:
        raise ValueError(f"p must be in (0, 80], but is {p}")
    large = jnp.abs(x) >= jnp.exp(-p)
    magnitude = jnp.log(jnp.where(large, jnp.abs(x), 1.0)) / p
    first = jnp.where(large, magnitude, -1.0)
    second = jnp.where(large, jnp.sign(x), jnp.exp(p) * x)
    return jnp.stack([first, second], axis=-1)
