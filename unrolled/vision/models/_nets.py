"""The networks of the paper's experiments: LeNet-5, VGG11 and U-Net."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled.activations import by_name, relu
from unrolled.vision.models import _layers
from unrolled.vision.models._convolution import max_pool
from unrolled.vision.models._layers import ConvolutionBlock, Dense, PooledConvolution, UpConvolution

__all__ = ["LeNet5", "UNet", "VGG11"]


_KERNEL, _LENET_SIDE = 5, 16


class LeNet5(nnx.Module):
    r"""Two convolutions with max pooling and three dense layers, with 62,006 params by default.

    .. math:: x_1 = \rho(D_1' * x_0 + b_1), \quad x_2 = \rho(D_2' * p(x_1) + b_2),

    with 6 and 16 filters of 5 x 5 pixels and without padding; p takes maxima over 2 x 2 pixels.
    Dense layers with 120, 84 and `classes` outputs follow p(x_2). The paper penalises the features
    x_1 and x_2 (see `early` and `tap`). Weights and biases are drawn uniformly from [-1, 1] /
    sqrt(fan-in), as in PyTorch by default.

    Args:
        classes: number of outputs.
        activation: rho, an activation of `unrolled.activations`, its name or any function.
        channels: number of channels of the pictures.
        side: side of the pictures, in pixels, at least 16.
        rngs: the nnx.Rngs that draws the params.

    Attributes:
        early: the names of x_1 and x_2 for `tap`.

    Raises:
        TypeError: a size is not an integer, the activation is not a function, or rngs is not an
            nnx.Rngs.
        ValueError: a size is too small. A call raises ValueError if the pictures are not
            (N, side, side, channels).

    Reference: LeCun et al., "Gradient-based learning applied to document recognition" (1998); Li,
    Feng, Zhou (2024), section 4. The original network had another pooling, partial connections and
    another activation.

    Example:
        >>> from flax import nnx
        >>> net = ur.vision.models.LeNet5(activation="elu", rngs=nnx.Rngs(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net)))
        62006
        >>> logits, features = ur.vision.models.tap(net, *net.early)(jnp.ones((2, 32, 32, 3)))
        >>> logits.shape, {name: x.shape for name, x in features.items()}
        ((2, 10), {'conv1.features': (2, 28, 28, 6), 'conv2.features': (2, 10, 10, 16)})
    """

    early = ("conv1.features", "conv2.features")

    def __init__(
        self,
        classes: int = 10,
        activation: str | Callable[[Array], Array] = relu,
        *,
        channels: int = 3,
        side: int = 32,
        rngs: nnx.Rngs,
    ):
        classes, self.channels = checks.as_sizes("LeNet5", classes=classes, channels=channels)
        self.side = checks.as_index(side, "side", "LeNet5", least=_LENET_SIDE)
        self.activation = by_name(activation)
        _layers.check_rngs(rngs, "LeNet5")
        left = self.side
        for _ in range(2):
            left = (left - _KERNEL + 1) // 2
        self.conv1 = PooledConvolution(self.channels, 6, _KERNEL, self.activation, rngs=rngs)
        self.conv2 = PooledConvolution(6, 16, _KERNEL, self.activation, rngs=rngs)
        self.dense1 = Dense(left * left * 16, 120, rngs=rngs)
        self.dense2 = Dense(120, 84, rngs=rngs)
        self.dense3 = Dense(84, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """The logits of pictures.

        Args:
            x: the pictures, (N, side, side, channels).

        Returns:
            The logits, (N, classes).
        """
        x = _layers.as_pictures(x, self.dense3.bias, self.channels, "LeNet5")
        if x.shape[1:3] != (self.side, self.side):
            raise ValueError(
                f"LeNet5: the pictures have shape {x.shape}; expected sides of {self.side} pixels, "
                f"try side={x.shape[1]} where the net is made"
            )
        x = self.conv2(self.conv1(x))
        x = self.activation(self.dense1(x.reshape(len(x), -1)))
        x = self.activation(self.dense2(x))
        return self.dense3(x)


_FILTERS = (1, 2, 4, 4, 8, 8, 8, 8)  # times the width
_POOLED = (0, 1, 3, 5, 7)  # maxima over 2 x 2 pixels follow these blocks
_SIDE = 32


class VGG11(nnx.Module):
    r"""Eight blocks of convolution, batch normalisation and activation, and one dense layer.

    .. math:: x_j = \rho(BN(D_j' * p_j(x_{j-1}) + b_j)), \quad j = 1, \dots, 8,

    with 1, 2, 4, 4, 8, 8, 8, 8 times `width` filters of 3 x 3 pixels and padding 1. The maps p_j
    take maxima over 2 x 2 pixels after the blocks 1, 2, 4, 6 and 8. The network has 9,231,114
    params for width 64, ten classes and pictures of 32 x 32 x 3. Weights and biases are drawn
    uniformly from [-1, 1] / sqrt(fan-in), as in PyTorch by default. Derivatives use reverse mode
    (`jax.grad`, `jax.vjp`).

    Args:
        classes: number of outputs.
        activation: rho, an activation of `unrolled.activations`, its name or any function.
        width: number of filters of the first block; 64 in the paper.
        channels: number of channels of the pictures.
        rngs: the nnx.Rngs that draws the params.

    Attributes:
        early: the names of x_1, ..., x_4 for `tap`.

    Raises:
        TypeError: a size is not an integer, the activation is not a function, or rngs is not an
            nnx.Rngs.
        ValueError: a size is below 1. A call raises ValueError if the pictures are not
            (N, 32, 32, channels).

    Reference: Simonyan, Zisserman, "Very deep convolutional networks" (2015), configuration A; Li,
    Feng, Zhou (2024), section 4. Here one dense layer replaces the three dense layers of the
    original network.

    Example:
        >>> from flax import nnx
        >>> net = nnx.eval_shape(lambda: ur.vision.models.VGG11(rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
        9231114
        >>> net.early
        ('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3')
    """

    early = tuple(f"blocks.{j}" for j in range(4))

    def __init__(
        self,
        classes: int = 10,
        activation: str | Callable[[Array], Array] = relu,
        *,
        width: int = 64,
        channels: int = 3,
        rngs: nnx.Rngs,
    ):
        sizes = dict(classes=classes, width=width, channels=channels)
        classes, width, self.channels = checks.as_sizes("VGG11", **sizes)
        activation = by_name(activation)
        _layers.check_rngs(rngs, "VGG11")
        filters = [width * n for n in _FILTERS]
        pairs = zip((self.channels, *filters), filters)
        self.blocks = nnx.List([ConvolutionBlock(*n, activation, rngs=rngs) for n in pairs])
        self.dense = Dense(filters[-1], classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """The logits of pictures.

        Args:
            x: the pictures, (N, 32, 32, channels).

        Returns:
            The logits, (N, classes).
        """
        x = _layers.as_pictures(x, self.dense.bias, self.channels, "VGG11")
        if x.shape[1:3] != (_SIDE, _SIDE):
            raise ValueError(
                f"VGG11: the pictures have shape {x.shape}; expected sides of {_SIDE} pixels, "
                "try to pad or to resize them"
            )
        for j, block in enumerate(self.blocks):
            x = block(x)
            x = max_pool(x) if j in _POOLED else x
        return self.dense(x.reshape(len(x), -1))


_LEVELS = 5
_UNET_SIDE = 2 ** (_LEVELS - 1)


class UNet(nnx.Module):
    r"""Five encoder and four decoder blocks, with 31,037,633 params at width 64 for 3 channels.

    A block consists of two convolutions with 3 x 3 filters, padding and no bias. Batch
    normalisation and an activation follow each convolution. Encoder block j has width 2^(j-1)
    filters, and maxima over 2 x 2 pixels separate the encoder blocks. The input of a decoder block
    consists of the output of the encoder block of the same size and the up-convolution (2 x 2
    filters, stride 2) of the previous block. The last layer is a dense layer for each pixel.

    If a side is not a multiple of 16, the maxima drop the last row or column of odd sides, and
    zeros replace that row or column in the up-convolution. Weights and biases are drawn uniformly
    from [-1, 1] / sqrt(fan-in), as in PyTorch by default. Derivatives use reverse mode (`jax.grad`,
    `jax.vjp`).

    Args:
        width: number of filters of the first block.
        activation: rho, an activation of `unrolled.activations`, its name or any function.
        channels: number of channels of the pictures.
        rngs: the nnx.Rngs that draws the params.

    Attributes:
        early: the names of the first four encoder blocks for `tap`.
        convolutions: the names of the convolution blocks that end these encoder blocks.

    Raises:
        TypeError: a size is not an integer, the activation is not a function, or rngs is not an
            nnx.Rngs.
        ValueError: a size is below 1. A call raises ValueError if the pictures are not
            (N, H, W, channels) with sides of at least 16 pixels.

    Reference: Ronneberger, Fischer, Brox, "U-Net" (2015); Li, Feng, Zhou (2024), section 4. The
    original convolutions had no padding and no batch normalisation.

    Example:
        >>> from flax import nnx
        >>> net = nnx.eval_shape(lambda: ur.vision.models.UNet(rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
        31037633
        >>> net.early
        ('encoder.0', 'encoder.1', 'encoder.2', 'encoder.3')
    """

    early = tuple(f"encoder.{j}" for j in range(_LEVELS - 1))
    convolutions = tuple(f"{name}.second" for name in early)

    def __init__(
        self,
        width: int = 64,
        activation: str | Callable[[Array], Array] = relu,
        *,
        channels: int = 3,
        rngs: nnx.Rngs,
    ):
        width, self.channels = checks.as_sizes("UNet", width=width, channels=channels)
        activation = by_name(activation)
        _layers.check_rngs(rngs, "UNet")
        widths = [width * 2**j for j in range(_LEVELS)]
        self.encoder = nnx.List(
            [DoubleBlock(*n, activation, rngs=rngs) for n in zip((self.channels, *widths), widths)]
        )
        up = widths[-2::-1]
        self.ups = nnx.List([UpConvolution(2 * n, n, rngs=rngs) for n in up])
        self.decoder = nnx.List([DoubleBlock(2 * n, n, activation, rngs=rngs) for n in up])
        self.last = Dense(width, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """The logits, one per pixel; a positive logit predicts that the pixel is in the mask.

        Args:
            x: the pictures, (N, H, W, channels).

        Returns:
            The logits, (N, H, W).
        """
        x = _layers.as_pictures(x, self.last.bias, self.channels, "UNet")
        if min(x.shape[1:3]) < _UNET_SIDE:
            raise ValueError(
                f"UNet: the pictures have shape {x.shape}; expected sides of at least "
                f"{_UNET_SIDE} pixels"
            )
        skips = []
        for j, block in enumerate(self.encoder):
            x = block(max_pool(x) if j else x)
            skips.append(x)
        for up, block, skip in zip(self.ups, self.decoder, reversed(skips[:-1])):
            x = block(jnp.concatenate([skip, _padded(up(x), skip)], -1))
        return self.last(x)[..., 0]


class DoubleBlock(nnx.Module):
    """Two convolution blocks; the first block changes the number of channels."""

    def __init__(
        self, inputs: int, outputs: int, activation: Callable[[Array], Array], *, rngs: nnx.Rngs
    ):
        self.first = ConvolutionBlock(inputs, outputs, activation, bias=False, rngs=rngs)
        self.second = ConvolutionBlock(outputs, outputs, activation, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.second(self.first(x))


def _padded(x: Array, like: Array) -> Array:
    """x padded with zeros below and on the right to the sides of `like`."""
    rows, columns = (new - old for new, old in zip(like.shape[1:3], x.shape[1:3]))
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))
