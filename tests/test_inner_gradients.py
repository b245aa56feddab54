"""What the benchmarks of the Reptile paper's section 6 train with: sums of inner gradients, and mini-batches."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, network_problem, picked

from jaxmeta import Batch, Episode, fomaml_grad, nn, reptile_grad

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import inner_gradients

STEPS = {"steps": 3, "minibatched": True, "optimizer": optax.sgd(inner_gradients.ALPHA)}


@pytest.mark.usefixtures("float64")
def test_sums_of_inner_gradients_are_reptile_and_first_order_maml() -> None:
    loss, params, batches = network_problem(nn.MLP((6,), 3, activation=jnp.tanh), (4,), 5, n=4)
    of = lambda weights: inner_gradients.summed_gradients(loss, params, batches, weights)  # noqa: E731
    three = picked(batches, slice(3))
    reptile, _ = reptile_grad(loss, params, three, inner_lr=inner_gradients.ALPHA, **STEPS)
    assert_trees_close(of((1.0, 1.0, 1.0, 0.0)), reptile, rtol=1e-9, atol=1e-12)
    fomaml, _ = fomaml_grad(loss, params, Episode(three, picked(batches, 3)), **STEPS)
    assert_trees_close(of((0.0, 0.0, 0.0, 1.0)), fomaml, rtol=1e-9, atol=1e-12)


def test_a_separate_tail_shares_no_image_with_what_comes_before() -> None:
    shots = inner_gradients.POOL
    numbers = jnp.arange(inner_gradients.WAYS * shots)
    pool = Batch(numbers, numbers // shots)
    curve = inner_gradients.Curve("", (0.0, 0.0, 0.0, 1.0), shots, 25, 0.25)
    shared = inner_gradients.batches_of(curve, jax.random.key(0), pool).x
    separate = inner_gradients.batches_of(curve._replace(tail_shots=5), jax.random.key(0), pool).x
    assert shared.shape == separate.shape == (4, 25)
    assert len(np.unique(shared)) == 100, "four times 25 are all images once"
    longer = inner_gradients.batches_of(curve._replace(weights=(0.0,) * 4 + (1.0,)), jax.random.key(0), pool).x
    assert np.isin(longer[-1], longer[:-1]).all(), "the fifth must repeat"
    assert not np.isin(separate[-1], separate[:-1]).any()
    np.testing.assert_array_equal(np.bincount(separate[-1] // shots), 5)  # five of each class
    assert (np.asarray(separate[-1]) % shots >= 15).all()
