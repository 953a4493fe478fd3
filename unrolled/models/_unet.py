"""U-Net (Ronneberger, Fischer, Brox 2015) with padding and batch norm, one logit per pixel."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import by_name, relu
from unrolled.models._convolution import max_pool
from unrolled.models._layers import ConvolutionBlock, Dense, UpConvolution, as_pictures, check_rngs

_LEVELS = 5
_LEAST_SIDE = 2 ** (_LEVELS - 1)


class UNet(nnx.Module):
    r"""Five encoder and four decoder blocks; 31,037,633 params at width 64 for 3 channels.

    A block is twice convolution with 3 x 3 filters and padding, without bias, batch normalisation
    and activation. Encoder block j has width 2^(j-1) filters; maxima over 2 x 2 pixels stand
    between encoder blocks. A decoder block takes what the encoder block of its size returned next
    to the up-convolution (2 x 2 filters, stride 2) of the block below; a dense layer per pixel
    comes last. Where a side is not a multiple of 16, maxima leave out the last row or column of odd
    sides, and the up-convolution is padded there with zeros. Weights and biases are drawn uniformly
    from [-1, 1] / sqrt(fan-in), as PyTorch does by default. Derivatives are those of reverse mode
    (`jax.grad`, `jax.vjp`).

    Args:
        width: filters of the first block.
        activation: rho, an activation of `unrolled.activations`, its name or any function.
        channels: of the pictures.
        rngs: draws the params.

    Attributes:
        early: the names of the first four encoder blocks for `tap`.
        convolutions: the names of the convolution blocks that end these.

    Raises:
        TypeError: a size is not an integer, the activation is not a function, rngs is no nnx.Rngs.
        ValueError: a size is below 1; when called, the pictures are not (N, H, W, channels) with
            sides of at least 16 pixels.

    Reference: Ronneberger, Fischer, Brox, "U-Net" (2015), whose convolutions had no padding and no
    batch normalisation. Li, Feng, Zhou (2024), section 4.

    Example:
        >>> from flax import nnx
        >>> net = nnx.eval_shape(lambda: ur.models.UNet(rngs=nnx.Rngs(0)))
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
        width = _checks.as_index(width, "width", "UNet", least=1)
        self.channels = _checks.as_index(channels, "channels", "UNet", least=1)
        activation = by_name(activation)
        check_rngs(rngs, "UNet")
        widths = [width * 2**j for j in range(_LEVELS)]
        self.encoder = nnx.List(
            [DoubleBlock(*n, activation, rngs=rngs) for n in zip((self.channels, *widths), widths)]
        )
        up = widths[-2::-1]
        self.ups = nnx.List([UpConvolution(2 * n, n, rngs=rngs) for n in up])
        self.decoder = nnx.List([DoubleBlock(2 * n, n, activation, rngs=rngs) for n in up])
        self.last = Dense(width, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """One logit per pixel; its sign is the prediction, positive inside of the mask.

        Args:
            x: (N, H, W, channels).

        Returns:
            (N, H, W).
        """
        x = as_pictures(x, self.last.bias, self.channels, "UNet")
        if min(x.shape[1:3]) < _LEAST_SIDE:
            raise ValueError(
                f"UNet: the pictures have shape {x.shape}; expected sides of at least "
                f"{_LEAST_SIDE} pixels"
            )
        skips = []
        for j, block in enumerate(self.encoder):
            x = block(max_pool(x) if j else x)
            skips.append(x)
        for up, block, skip in zip(self.ups, self.decoder, reversed(skips[:-1])):
            x = block(jnp.concatenate([skip, _padded(up(x), skip)], -1))
        return self.last(x)[..., 0]


class DoubleBlock(nnx.Module):
    """Two convolution blocks, the first of which changes the number of channels."""

    def __init__(
        self, inputs: int, outputs: int, activation: Callable[[Array], Array], *, rngs: nnx.Rngs
    ):
        self.first = ConvolutionBlock(inputs, outputs, activation, bias=False, rngs=rngs)
        self.second = ConvolutionBlock(outputs, outputs, activation, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.second(self.first(x))


def _padded(x: Array, like: Array) -> Array:
    """x with zeros below and on the right, to the sides of `like`."""
    rows, columns = (new - old for new, old in zip(like.shape[1:3], x.shape[1:3]))
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))
