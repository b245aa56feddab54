"""ANIL and BOIL: MAML in which one part of the network adapts and the other stays.

    ANIL    the head adapts, the body stays
    BOIL    the body adapts, the head stays

What stays is still meta-learned: it enters every inner loss, and receives its exact gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxmeta.inner import Hvp, Remat, mask_by_path
from jaxmeta.learner import MetaLearner, Model
from jaxmeta.losses import cross_entropy
from jaxmeta.optimization._maml import maml


def anil(
    model: Model,
    *,
    inner_optimizer: optax.GradientTransformation,
    steps: int = 1,
    eval_steps: int | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    head: str = "head",
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> MetaLearner:
    """ANIL, almost no inner loop: only the head adapts, in training and in test.

    Args:
        model: as for `maml`, like all arguments but `head`.
        inner_optimizer: the optimiser of the inner loop.
        steps: inner steps in training.
        eval_steps: inner steps in `predict`; None for `steps`.
        loss: `(predictions, targets) -> scalar`, used inside and outside.
        head: name of the head's module, a component of its parameters' paths.
        hvp: how inner gradients are differentiated again.
        remat: levels of checkpoints.

    Returns:
        A `MetaLearner`, as `maml` does.

    Raises:
        TypeError: as `maml`.
        ValueError: as `maml`; on first use, if no parameter's path has `head` in it.

    >>> from jaxmeta import nn
    >>> learner = anil(nn.MLP((4,), 5), inner_optimizer=optax.sgd(0.1))

    References:
        Raghu, Raghu, Bengio, Vinyals 2020, arXiv:1909.09157.
    """
    return maml(
        model,
        inner_optimizer=inner_optimizer,
        steps=steps,
        eval_steps=eval_steps,
        loss=loss,
        mask=_mask(head, head_adapts=True),
        hvp=hvp,
        remat=remat,
    )


def boil(
    model: Model,
    *,
    inner_optimizer: optax.GradientTransformation,
    steps: int = 1,
    eval_steps: int | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    head: str = "head",
    hvp: Hvp | None = None,
    remat: Remat = 0,
) -> MetaLearner:
    """BOIL, body only update in inner loop: all but the head adapts, in training and in test.

    Args:
        model: as for `maml`, like all arguments but `head`.
        inner_optimizer: the optimiser of the inner loop; the paper's is `optax.sgd(0.5)`.
        steps: inner steps in training; the paper's is 1.
        eval_steps: inner steps in `predict`; None for `steps`.
        loss: `(predictions, targets) -> scalar`, used inside and outside.
        head: name of the head's module, a component of its parameters' paths.
        hvp: how inner gradients are differentiated again.
        remat: levels of checkpoints.

    Returns:
        A `MetaLearner`, as `maml` does.

    Raises:
        TypeError: as `maml`.
        ValueError: as `maml`; on first use, if no parameter's path has `head` in it, or every one has.

    >>> from jaxmeta import nn
    >>> learner = boil(nn.MLP((4,), 5), inner_optimizer=optax.sgd(0.5))

    References:
        Oh, Yoo, Kim, Yun 2021, arXiv:2008.08882.
    """
    return maml(
        model,
        inner_optimizer=inner_optimizer,
        steps=steps,
        eval_steps=eval_steps,
        loss=loss,
        mask=_mask(head, head_adapts=False),
        hvp=hvp,
        remat=remat,
    )


def _mask(head: str, *, head_adapts: bool) -> Callable[[Any], Any]:
    def mask(params: Any) -> Any:
        in_head = mask_by_path(lambda path: head in path.split("/"))(params)
        if not any(jax.tree.leaves(in_head)):
            raise ValueError(f"head={head!r} is a component of no parameter's path: say what the head is named")
        return jax.tree.map(lambda leaf: leaf == head_adapts, in_head)

    return mask
