"""Learners that see inputs in more ways than one: at random in training, or all at once when they predict."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmeta.episode import Batch, Episode, check_batch, check_inputs, check_is_episode
from jaxmeta.learner import MetaLearner, Metrics, Params, Predict, check_parts


def augmented(learner: MetaLearner, augment: Callable[[jax.Array, jax.Array], jax.Array]) -> MetaLearner:
    """The same learner, trained on inputs that are changed at random, as data augmentation does.

    Support and query sets are changed alike, each with a key of its own; labels stay. `init`, `predict` and the rest
    see inputs as they are.

    Args:
        learner: any whose support and query sets both hold what `augment` takes; the descriptions of
            `prototypical_zero_shot` are no images.
        augment: what training does to inputs, `(x [n, ...], key) -> [n, ...]`, for instance
            `tasks.affine_distortions` or `tasks.turns_and_shifts()`.

    Returns:
        A `MetaLearner` whose `meta_grad` augments its episode first.

    Raises:
        TypeError: what `meta_grad` is given is no `Episode`.
        ValueError: `augment` returns inputs of another shape than it was given.

    >>> from jaxmeta import nn, prototypical
    >>> learner = augmented(prototypical(nn.MLP((4,), 2)), lambda x, key: x + 0.1 * jax.random.normal(key, x.shape))
    """

    def change(batch: Batch, key: jax.Array) -> Batch:
        x = augment(batch.x, key)
        if x.shape != batch.x.shape:
            raise ValueError(
                f"augment must return inputs of shape {batch.x.shape}, as it was given, but gave {x.shape}"
            )
        return batch._replace(x=x)

    def meta_grad(params: Params, episode: Episode, key: jax.Array) -> tuple[Params, Metrics]:
        check_is_episode(episode)
        key, support_key, query_key = jax.random.split(key, 3)
        changed = Episode(change(episode.support, support_key), change(episode.query, query_key))
        return learner.meta_grad(params, changed, key)

    return learner._replace(meta_grad=meta_grad)


def averaged(learner: MetaLearner, views: Callable[[jax.Array], jax.Array]) -> MetaLearner:
    """The same learner, whose predictions are the mean over several views of an episode.

    Worth its price where training knew the views, such as quarter turns of whole alphabets: their errors differ.

    Args:
        learner: any whose support and query sets both hold what `views` takes; it is trained as before.
        views: what an episode is seen as, `x [n, ...] -> [v, n, ...]`, the support set and the queries alike, for
            instance `tasks.quarter_turns`. The number of views is one for all n.

    Returns:
        A `MetaLearner` whose `predict` and `predict_path` are means over the v views, of log-probabilities or logits
        for classes, at v times the price. A network that is normalised by its batch sees each view as one of its own.
        It has no `compare`: there is a comparison for each view.

    Raises:
        TypeError: `learner` is no `MetaLearner`, or what `predict` is given is no `Batch` or no array.
        ValueError: `views` returns something of another shape than that, or support inputs and queries differ in shape.

    >>> from jaxmeta import nn, prototypical
    >>> learner = averaged(prototypical(nn.MLP((4,), 2)), lambda x: jnp.stack([x, x[..., ::-1]]))

    References:
        The test-time crops and flips of Krizhevsky, Sutskever, Hinton 2012, NeurIPS.
    """
    check_parts("learner", learner, ("meta_grad", "predict"), "a MetaLearner")

    def seen(x: jax.Array) -> jax.Array:
        found = jnp.asarray(views(x))
        if found.shape[1:] != x.shape or not len(found):
            raise ValueError(f"views must return one or more views of inputs {x.shape}, but gave {found.shape}")
        return found

    def over_views(predict: Predict) -> Predict:
        def mean(params: Params, support: Batch, query_x: jax.Array, key: jax.Array) -> jax.Array:
            def of_view(support_x: jax.Array, query_x: jax.Array) -> jax.Array:
                return predict(params, support._replace(x=support_x), query_x, key)

            check_batch("support", support, None)
            check_inputs(support.x, query_x)
            of_support, of_queries = seen(support.x), seen(query_x)
            if len(of_support) != len(of_queries):
                raise ValueError(
                    f"views must return as many views of all inputs, but gave {len(of_support)} of {len(support.x)} "
                    f"inputs and {len(of_queries)} of {len(query_x)}"
                )
            return jax.vmap(of_view)(of_support, of_queries).mean(0)

        return mean

    path = learner.predict_path and over_views(learner.predict_path)
    return learner._replace(predict=over_views(learner.predict), predict_path=path, compare=None)
