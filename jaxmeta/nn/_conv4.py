"""The four-layer convolutional network of the few-shot literature.

| form | call | parameters (28x28x1, 5-way) |
|---|---|---|
| MAML, Omniglot | `Conv4(5, pool="stride", readout="mean", norm_scale=False)` | 112,005 |
| Reptile, Omniglot | `Conv4(5, pool="stride", readout="flatten")` | 113,221 |
| Prototypical Networks | `Conv4(None, pool="max", readout="flatten")` | 111,936 |
| Without normalisation | `Conv4(None, norm=False)` | 111,424 |
| MAML, mini-ImageNet (84x84x3) | `Conv4(5, features=32, norm_scale=False)` | 32,773 |
| Reptile, mini-ImageNet (84x84x3) | `Conv4(5, features=32, padding="SAME")` | 34,661 |

MAML's code draws the head's weights from N(0, 1): `head_init=flax.linen.initializers.normal(1.0)`.
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax

from jaxmeta.nn._conv import conv_general_dilated
from jaxmeta.nn._conv_before_norm import ConvBeforeNorm
from jaxmeta.nn._dot import dot_general
from jaxmeta.nn._norm import BatchNorm
from jaxmeta.nn._pool import max_pool_2x2

# The largest entry stays the largest under these: they come after the max-pool, and have a quarter of the work. Any
# other activation comes before it, a partial or a lambda of one of these too.
_NON_DECREASING = (nn.relu, nn.leaky_relu, nn.elu, nn.softplus, nn.sigmoid, nn.tanh)


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and halving; then, perhaps, a linear head.

    The convolutions have biases, as in the papers' code and counts; before a normalisation, which would take them away
    again, they are not added, and their gradients are exactly zero.

    Attributes:
        outputs: width of the linear head, `ways` for a classifier; None for the embedding itself.
        features: channels of every convolution.
        pool: what halves the image: `"max"`, a 2x2 max-pool, or `"stride"`, a stride of 2.
        padding: what max-pools do with odd edges: `"VALID"` drops them, `"SAME"` pads them.
        readout: `"flatten"` keeps every position's channels, `"mean"` averages over positions.
        norm: put batch normalisation before each ReLU.
        norm_scale: learn batch normalisation's factor beside its offset.
        epsilon: batch normalisation's epsilon.
        activation: of each block, before its max-pool; MAML++ has `flax.linen.leaky_relu`.
        kernel_init: initialiser of the convolutions; biases start at 0.
        head_init: initialiser of the head's weights; its bias starts at 0.
    """

    outputs: int | None
    features: int = 64
    pool: Literal["max", "stride"] = "max"
    padding: Literal["VALID", "SAME"] = "VALID"
    readout: Literal["flatten", "mean"] = "flatten"
    norm: bool = True
    norm_scale: bool = True
    epsilon: float = 1e-3
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Callable[..., jax.Array] = nn.initializers.xavier_uniform()
    head_init: Callable[..., jax.Array] = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images x `[n, height, width, channels]` to `[n, outputs]`, or to embeddings `[n, d]`.

        Raises:
            ValueError: x is not a batch of images, or `pool`, `padding` or `readout` is unknown.
        """
        self._check(x)
        pool = functools.partial(max_pool_2x2, padding=self.padding) if self.pool == "max" else None
        before, after = (pool, None) if self.activation in _NON_DECREASING else (None, pool)
        for i in range(4):
            stride = 2 if self.pool == "stride" else 1
            if self.norm:
                convolved = ConvBeforeNorm(self.features, stride, kernel_init=self.kernel_init, name=f"conv_{i}")(x)
                x = BatchNorm(use_scale=self.norm_scale, epsilon=self.epsilon, name=f"norm_{i}")(convolved, before)
            else:
                x = self._conv(stride, f"conv_{i}")(x)
                x = before(x) if before else x
            x = self.activation(x)
            x = after(x) if after else x
        x = x.mean((1, 2)) if self.readout == "mean" else jax.lax.collapse(x, 1)
        if self.outputs is None:
            return x
        return nn.Dense(self.outputs, kernel_init=self.head_init, dot_general=dot_general, name="head")(x)

    def _conv(self, stride: int, name: str) -> nn.Conv:
        return nn.Conv(
            self.features,
            (3, 3),
            stride,
            kernel_init=self.kernel_init,
            conv_general_dilated=conv_general_dilated,
            name=name,
        )

    def _check(self, x: jax.Array) -> None:
        if self.pool not in ("max", "stride"):
            raise ValueError(f'pool must be "max" or "stride", but is {self.pool!r}')
        if self.readout not in ("flatten", "mean"):
            raise ValueError(f'readout must be "flatten" or "mean", but is {self.readout!r}')
        dropping = self.pool == "max" and self.padding == "VALID"
        if x.ndim != 4 or (dropping and min(x.shape[1:3]) < 16):
            least = ", at least 16x16 for four 2x2 poolings" if dropping else ""
            raise ValueError(f"x must hold images [n, height, width, channels]{least}, but has shape {x.shape}")
