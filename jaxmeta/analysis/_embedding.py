"""Pictures of what methods that learn to compare see. Nothing here touches Matplotlib's global state."""

from typing import Any

import jax
import numpy as np

from jaxmeta.learner import Comparison


def plot_embedding(found: Comparison, support_y: jax.Array, query_y: jax.Array) -> Any:
    """The embeddings of one episode on the two axes of their most variance, a colour for each class.

    Where queries are compared with one reference for each class, such as a prototype, a star shows it.

    Args:
        found: from the `compare` of a learner.
        support_y: labels of the support examples `[s]`.
        query_y: labels of the queries `[q]`.

    Returns:
        A Matplotlib figure.

    Raises:
        ValueError: there is not one label for each embedding.

    >>> import jax.numpy as jnp
    >>> from jaxmeta import Batch, Episode, nn, prototypical
    >>> learner, episode = prototypical(nn.MLP((), 4)), Episode(*[Batch(jnp.eye(3), jnp.arange(3))] * 2)
    >>> params = learner.init(jax.random.key(0), episode)
    >>> found = learner.compare(params, episode.support, episode.query.x, jax.random.key(0))
    >>> figure = plot_embedding(found, episode.support.y, episode.query.y)
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['query', 'support', 'class reference']
    """
    from matplotlib.figure import Figure

    if (len(found.support), len(found.queries)) != (len(support_y), len(query_y)):
        raise ValueError(
            f"found holds {len(found.support)} support and {len(found.queries)} query embeddings, but there are "
            f"{len(support_y)} and {len(query_y)} labels"
        )
    shown: list[tuple[str, Any, Any, str, int]]
    shown = [("query", found.queries, query_y, "o", 12), ("support", found.support, support_y, "^", 45)]
    if found.labels is None:
        shown.append(("class reference", found.references, np.arange(len(found.references)), "*", 150))
    sets = [np.asarray(embedded).reshape(len(embedded), -1) for _, embedded, *_ in shown]
    points = np.split(two_axes(np.concatenate(sets)), np.cumsum([len(part) for part in sets])[:-1])
    figure = Figure(figsize=(5.0, 4.0), layout="constrained", dpi=120)
    axis = figure.subplots()
    colours = {"cmap": "tab20", "vmin": 0, "vmax": 19, "edgecolors": "black", "linewidths": 0.3}
    for (name, _, labels, marker, size), xy in zip(shown, points, strict=True):
        axis.scatter(*xy.T, s=size, c=np.asarray(labels) % 20, marker=marker, label=name, **colours)
    axis.set(xlabel="first principal axis", ylabel="second principal axis")
    axis.legend(fontsize="small")
    return figure


def two_axes(x: np.ndarray) -> np.ndarray:
    """Rows `[n, d]` along the two axes of most variance, `[n, 2]`.

    >>> np.ptp(two_axes(np.array([[0.0, 1, 5], [0, 1, -5], [3, 1, 0], [-3, 1, 0]])), axis=0).round(9).tolist()
    [10.0, 6.0]
    """
    centred = x - x.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    found = centred @ axes.T
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
