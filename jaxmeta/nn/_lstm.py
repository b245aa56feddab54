"""The update of a long short-term memory, which every recurrent network here shares."""

import jax
import jax.numpy as jnp


def lstm_update(gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of an LSTM, from what its matrices gave.

        c = sigmoid(f) c + sigmoid(i) tanh(u)        h = sigmoid(o) tanh(c)

    Args:
        gates: f, i, o and u side by side, `[..., 4 * width]`.
        cell: c before, `[..., width]`.

    Returns:
        `(hidden, cell)`: h and c after, `[..., width]` each.

    >>> hidden, cell = lstm_update(jnp.array([100.0, -100.0, 0.0, 5.0]), jnp.array([3.0]))
    >>> cell.tolist(), round(float(hidden[0]), 4)  # all kept, nothing taken, half given
    ([3.0], 0.4975)
    """
    width = cell.shape[-1]
    forget, take, give = jnp.split(jax.nn.sigmoid(gates[..., : 3 * width]), 3, axis=-1)
    cell = forget * cell + take * jnp.tanh(gates[..., 3 * width :])
    return give * jnp.tanh(cell), cell
