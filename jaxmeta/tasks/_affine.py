"""Affine maps of images, for distortions that training draws."""

import jax
import jax.numpy as jnp


def affine(image: jax.Array, parts: jax.Array) -> jax.Array:
    """Maps one image: what is in it is scaled, sheared, turned and shifted, in this order.

    Args:
        image: `[h, w, c]`.
        parts: `(turn, shear_x, shear_y, scale_x - 1, scale_y - 1, shift_x, shift_y)`, seven numbers. The turn is in
            radians, counter-clockwise; shifts are shares of the image's width and height, to the right and down; all
            else is about its centre.

    Returns:
        `[h, w, c]`, interpolated linearly; what comes from outside the image is 0.

    >>> image = jnp.zeros((1, 4, 1)).at[0, 1].set(1.0)
    >>> affine(image, jnp.zeros(7).at[5].set(0.25))[0, :, 0].round(4).tolist()  # a pixel to the right
    [0.0, 0.0, 1.0, 0.0]
    """
    turn, shear_x, shear_y, scale_x, scale_y, shift_x, shift_y = parts
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    rotation = jnp.array([[cos, -sin], [sin, cos]])
    shear = jnp.array([[1.0, shear_y], [shear_x, 1.0]])  # rows and columns are y and x
    matrix = rotation @ shear @ jnp.diag(jnp.array([1 + scale_y, 1 + scale_x]))
    height, width = image.shape[:2]
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    shift = jnp.array([shift_y * height, shift_x * width])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1) - centre - shift
    source = grid @ jnp.linalg.inv(matrix).T + centre
    return _bilinear(image, source[..., 0], source[..., 1])


def _bilinear(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The image at real coordinates `[h, w]`, 0 outside."""
    padded = jnp.pad(image, ((1, 2), (1, 2), (0, 0)))
    y = jnp.clip(rows, -1.0, image.shape[0]) + 1
    x = jnp.clip(columns, -1.0, image.shape[1]) + 1
    top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    down, across = (y - top)[..., None], (x - left)[..., None]
    upper = (1 - across) * padded[top, left] + across * padded[top, left + 1]
    lower = (1 - across) * padded[top + 1, left] + across * padded[top + 1, left + 1]
    return (1 - down) * upper + down * lower
