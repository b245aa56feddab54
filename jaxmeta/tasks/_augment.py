"""Random changes of training images, each image's own, for `jaxmeta.augmented`, and turns, for `averaged`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmeta.tasks._affine import affine


def turns_and_shifts(turn: float = jnp.pi / 16, shift: float = 0.1) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Small random turns and shifts, as memory-augmented networks are trained with.

    Args:
        turn: the largest angle, in radians.
        shift: the largest shift along each axis, as a share of the image.

    Returns:
        `(images [n, height, width, channels], key) -> [n, height, width, channels]`, interpolated linearly; what lies
        outside the images is 0.

    Raises:
        ValueError: a bound is negative or not finite, or images do not have that shape.

    >>> turns_and_shifts(0.0, 0.0)(jnp.ones((2, 4, 4, 1)), jax.random.key(0)).sum().item()
    32.0

    References:
        Santoro, Bartunov, Botvinick, Wierstra, Lillicrap 2016, arXiv:1605.06065, section 4.
    """
    if not (0 <= turn < jnp.inf and 0 <= shift < jnp.inf):
        raise ValueError(f"turn={turn} and shift={shift} must be finite and not negative")
    return lambda images, key: _move(images, _draw(images, key, (turn, 0, 0, 0, 0, shift, shift)))


def affine_distortions(images: jax.Array, key: jax.Array) -> jax.Array:
    """Turns, shears, scales and shifts each image by an affine map of its own, as siamese networks are trained with.

    Of the map's components, a turn within 10 degrees, shears within 0.3, scales in [0.8, 1.2] and shifts within 2
    pixels of a 105x105 image (in proportion on others), each takes part with probability 1/2.

    Args:
        images: `[n, height, width, channels]`; what lies outside them is 0.
        key: decides the maps.

    Returns:
        Distorted images of the same shape, interpolated linearly.

    Raises:
        ValueError: the images do not have that shape.

    >>> affine_distortions(jnp.ones((2, 8, 8, 1)), jax.random.key(0)).shape
    (2, 8, 8, 1)

    References:
        Koch, Zemel, Salakhutdinov 2015, ICML deep learning workshop.
    """
    draw_key, part_key = jax.random.split(key)
    parts = _draw(images, draw_key, (jnp.pi / 18, 0.3, 0.3, 0.2, 0.2, 2 / 105, 2 / 105))
    return _move(images, parts * jax.random.bernoulli(part_key, shape=parts.shape))


def quarter_turns(images: jax.Array) -> jax.Array:
    """Images turned by 0, 1, 2 and 3 quarters, counter-clockwise.

    Args:
        images: `[n, size, size, channels]`.

    Returns:
        `[4, n, size, size, channels]`.

    Raises:
        ValueError: the images are not square, or no images.

    >>> quarter_turns(jnp.zeros((1, 2, 2, 1)).at[0, 0, 0].set(1.0))[1, 0, :, :, 0].tolist()
    [[0.0, 0.0], [1.0, 0.0]]
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must have shape [n, size, size, channels], but have {images.shape}")
    return jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)])


def _draw(images: jax.Array, key: jax.Array, bounds: tuple[float, ...]) -> jax.Array:
    """The parts of an affine map for each image, uniform within plus and minus their bounds."""
    if images.ndim != 4:
        raise ValueError(f"images must have shape [n, height, width, channels], but have {images.shape}")
    return jnp.array(bounds) * jax.random.uniform(key, (len(images), len(bounds)), minval=-1.0, maxval=1.0)


def _move(images: jax.Array, parts: jax.Array) -> jax.Array:
    return jax.vmap(affine)(images, parts)
