"""ResCSC: a residual network whose skip connections are warm starts of pursuits."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import Activation, relu
from unrolled.models._csc_layer import CSCLayer
from unrolled.models._layers import as_pictures, check_rngs


class ResCSCBlock(nnx.Module):
    r"""Two layers of convolutional sparse coding; the second starts from the input of the first.

    .. math::
        u &= \rho(BN(V'x)), \\
        z &= \rho(BN(x + W'(u - s W x))),

    and T more steps of each. Where stride or width change the shape, z starts from 0.

    Args:
        in_features, features: channels of x and of z.
        stride: that of V.
        unfoldings: T.
        activation: rho.
        rngs: draws the filters.

    Raises:
        TypeError, ValueError: sizes that are no positive integers, no nnx.Rngs.

    Example:
        >>> from flax import nnx
        >>> from unrolled.models import ResCSCBlock
        >>> ResCSCBlock(4, 4, rngs=nnx.Rngs(0))(jnp.ones((2, 6, 6, 4))).shape
        (2, 6, 6, 4)
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        unfoldings: int = 0,
        activation: Activation | Callable | str = relu,
    ):
        where = "ResCSCBlock"
        _checks.as_sizes(where, in_features=in_features, features=features, stride=stride)
        unfoldings = _checks.as_index(unfoldings, "unfoldings", where)
        check_rngs(rngs, where)
        options: dict[str, Any] = dict(
            unfoldings=unfoldings, activation=activation, batch_norm=True, rngs=rngs
        )
        self.first = CSCLayer(in_features, features, (3, 3), (stride, stride), **options)
        self.skips = stride == 1 and in_features == features
        self.second = CSCLayer(features, features, (3, 3), warm=self.skips, **options)

    def __call__(self, x: Array) -> Array:
        return self.second(self.first(x), x if self.skips else None)


class ResCSC(nnx.Module):
    """Res-CSC for small pictures, with the widths and depths of the ResNets for CIFAR-10.

    A convolution, then for every width `blocks` of `ResCSCBlock`, the first of them with stride 2
    but for the first width; the mean over all positions; a linear layer. The defaults have the
    20 layers of ResNet-20.

    Args:
        classes: number of outputs.
        channels: those of the pictures.
        widths: feature maps of every stage.
        blocks: blocks per stage.
        unfoldings: T, steps of every layer of the blocks after its forward pass.
        activation: rho, any activation or its name.
        rngs: draws the filters.

    Attributes:
        early: the names of the codes of the first width for `tap`: of `stem` and of the blocks.
        convolutions: the names of those layers of the same that take one step from 0, so that
            `experiments.features` can read a dictionary; the second of a block starts elsewhere.

    Raises:
        TypeError, ValueError: sizes that are no positive integers, no widths, no nnx.Rngs; when
            called, pictures of other channels, or too small.

    Reference: Zhang, Zhang (2021), whose sizes and code are not published; He, Zhang, Ren, Sun
    (2016) for the sizes.

    Example:
        >>> from flax import nnx
        >>> from unrolled.models import ResCSC
        >>> net = ResCSC(widths=(4, 8), blocks=1, unfoldings=1, rngs=nnx.Rngs(0))
        >>> net(jnp.ones((2, 8, 8, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        rngs: nnx.Rngs,
        channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 3,
        unfoldings: int = 0,
        activation: Activation | Callable | str = relu,
    ):
        widths = _checks.as_indices(widths, "widths", "ResCSC", least=1)
        sizes = dict(classes=classes, channels=channels, blocks=blocks, stages=len(widths))
        _checks.as_sizes("ResCSC", **sizes)
        unfoldings = _checks.as_index(unfoldings, "unfoldings", "ResCSC")
        check_rngs(rngs, "ResCSC")
        options: dict[str, Any] = dict(activation=activation, rngs=rngs)
        self.stem = CSCLayer(channels, widths[0], (3, 3), batch_norm=True, **options)
        stages, before = [], widths[0]
        for i, width in enumerate(widths):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                stages.append(
                    ResCSCBlock(before, width, stride=stride, unfoldings=unfoldings, **options)
                )
                before = width
        self.blocks = nnx.List(stages)
        self.early = ("stem", *(f"blocks.{j}" for j in range(blocks)))
        plain = self.early[1:] if unfoldings == 0 else ()
        self.convolutions = ("stem", *(f"{name}.first" for name in plain))
        self.head = nnx.Linear(before, classes, rngs=rngs)

    def __call__(self, y: Array) -> Array:
        """The logits of pictures, (N, H, W, channels) -> (N, classes)."""
        x = self.stem(as_pictures(y, self.head.kernel, self.stem.in_features, "ResCSC"))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, (1, 2)))
