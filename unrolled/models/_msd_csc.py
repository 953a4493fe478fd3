"""MSDCSC: blocks of mixed-scale dense layers, unfolded by ML-ISTA through D_i = [I, F_i]."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import Activation, relu
from unrolled.layers import as_activation, magnitude
from unrolled.models._csc_layer import CSCLayer, batch_norms, norm_bound
from unrolled.models._layers import as_pictures, check_extent, check_pictures, check_rngs

_PART = 4096  # numbers that are drawn together
_TRUNCATED = 0.8796256610342398  # deviation of a normal number that is within 2 of 0


class MSDCSCBlock(nnx.Module):
    r"""Layers x_i that keep x_{i-1} and add `growth` dilated feature maps, D_i = [I, F_i].

    .. math::
        x_{i-1} &\leftarrow D_i x_i, \quad i = J, \dots, 1, \\
        x_i &\leftarrow \rho(BN(x_i + c_i D_i'(x_{i-1} - D_i x_i))), \quad i = 1, \dots, J,

    T + 1 times, the first from x_i = 0, where D_i'r = (r, F_i'r) and x_0 in the second line is the
    input. T = 0 is a network with dense connections. Each sweep has batch norms of its own.

    c_i starts at 1 / (1 + norm(F_i)^2), a safe step, and is trained.

    Args:
        in_features: channels of the input.
        growth: feature maps that every layer adds.
        depth: J.
        dilations: a cycle.
        unfoldings: T.
        activation: rho.
        rngs: draws the filters.

    Example:
        >>> from flax import nnx
        >>> from unrolled.models import MSDCSCBlock
        >>> block = MSDCSCBlock(4, growth=2, depth=3, unfoldings=1, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((2, 8, 8, 4))).shape
        (2, 8, 8, 10)
    """

    def __init__(
        self,
        in_features: int,
        *,
        rngs: nnx.Rngs,
        growth: int = 12,
        depth: int = 12,
        dilations: Sequence[int] = (1, 2, 3, 4, 5, 6),
        unfoldings: int = 1,
        activation: Activation | Callable | str = relu,
    ):
        where = "MSDCSCBlock"
        dilations = _checks.as_indices(dilations, "dilations", where, least=1)
        sizes = dict(in_features=in_features, growth=growth, depth=depth, dilations=len(dilations))
        _checks.as_sizes(where, **sizes)
        self.unfoldings = _checks.as_index(unfoldings, "unfoldings", where)
        self.activation = as_activation(activation, "activation", where)
        check_rngs(rngs, where)
        widths = [in_features + i * growth for i in range(depth + 1)]
        self.filters = nnx.List(
            [
                nnx.Conv(
                    *(width, growth, (3, 3)),
                    kernel_dilation=dilations[i % len(dilations)],
                    use_bias=False,
                    kernel_init=_lecun_normal,
                    rngs=rngs,
                )
                for i, width in enumerate(widths[:-1])
            ]
        )
        safe = [1 / (1 + norm_bound(F.kernel[...]) ** 2) for F in self.filters]
        self.steps = nnx.List([nnx.Param(c) for c in safe])
        self.norms = nnx.List(
            [batch_norms(width, self.unfoldings + 1, rngs) for width in widths[1:]]
        )

    def __call__(self, y: Array) -> Array:
        """x_J, (N, H, W, in_features) -> (N, H, W, in_features + depth growth)."""
        y = _checks.as_float(y, "the pictures", "MSDCSCBlock")
        check_pictures(y, self.filters[0].in_features, "MSDCSCBlock")
        for F in self.filters:
            check_extent(F, y, "MSDCSCBlock")
        xs = self._up(y, 0)
        for t in range(self.unfoldings):
            below = self._down(y, xs[-1])
            xs = self._up(y, t + 1, below)
        return xs[-1]

    def _up(self, y: Array, t: int, codes: list[Array] | None = None) -> list[Array]:
        """The new codes x_1 .. x_J, from those that `_down` found, x_0 .. x_J."""
        xs = [y]
        for i, F in enumerate(self.filters):
            r = xs[-1] if codes is None else xs[-1] - codes[i]  # codes[i] = D_{i+1} codes[i+1]
            v = magnitude(self.steps[i][...]) * jnp.concatenate([r, F(r)], -1)
            v = v if codes is None else codes[i + 1] + v
            xs.append(self.activation(self.norms[i][t](v)))
        return xs[1:]

    def _down(self, y: Array, x: Array) -> list[Array]:
        """x_0 .. x_J from x_J, by x_{i-1} = D_i x_i."""
        xs = [x]
        for F in reversed(self.filters):
            first, added = jnp.split(xs[0], [F.in_features], -1)
            adjoint = jax.vjp(F, first)[1]
            xs.insert(0, first + adjoint(added)[0])
        return xs

    def step_ratios(self) -> Array:
        """c_i over its safe size 1 / (1 + norm(F_i)^2), (depth,)."""
        pairs = zip(self.steps, self.filters)
        return jnp.stack(
            [magnitude(c[...]) * (1 + norm_bound(F.kernel[...]) ** 2) for c, F in pairs]
        )


def _lecun_normal(key: Array, shape: tuple[int, ...], dtype: Any, **_: Any) -> Array:
    """As nnx.Conv draws its filters, truncated normal with deviation 1 / sqrt(fan-in).

    They come in parts of one size: a draw of another shape compiles for two seconds.
    """
    n, fan_in = math.prod(shape), math.prod(shape[:-1])
    keys = [jax.random.fold_in(key, i) for i in range(-(-n // _PART))]
    parts = [jax.random.truncated_normal(key, -2, 2, (_PART,), dtype) for key in keys]
    return jnp.concatenate(parts)[:n].reshape(shape) / (_TRUNCATED * math.sqrt(fan_in))


class MSDCSC(nnx.Module):
    """MSD-CSC for CIFAR-10: blocks with a 1x1 convolution and a maximum over 2x2 pixels between.

    A 3x3 convolution to `width` maps with batch norm; `blocks` of `MSDCSCBlock`; the mean over all
    positions; a linear layer. With the defaults the widths are 16, 160, 304 and 448.

    Args:
        classes: number of outputs.
        channels: those of the pictures.
        width: feature maps of the first convolution.
        blocks: number of blocks.
        growth, depth, dilations, unfoldings, activation: of the blocks.
        rngs: draws the filters.

    Attributes:
        early: the names of the codes of `stem` and of the first block for `tap`.
        convolutions: the name of `stem`, whose filters are a dictionary of one step.

    Raises:
        TypeError, ValueError: sizes that are no positive integers, no dilations, no nnx.Rngs; when
            called, pictures of other channels, or too small for the dilations.

    Reference: Zhang, Zhang (2021). In their code the batch norms of the blocks lie in plain lists,
    where they are neither trained nor saved nor switched to evaluation; here they are.

    Example:
        >>> from flax import nnx
        >>> from unrolled.models import MSDCSC
        >>> net = MSDCSC(width=4, blocks=2, growth=2, depth=2, rngs=nnx.Rngs(0))
        >>> net(jnp.ones((2, 8, 8, 3))).shape
        (2, 10)
    """

    early = ("stem", "blocks.0")
    convolutions = ("stem",)

    def __init__(
        self,
        classes: int = 10,
        *,
        rngs: nnx.Rngs,
        channels: int = 3,
        width: int = 16,
        blocks: int = 3,
        growth: int = 12,
        depth: int = 12,
        dilations: Sequence[int] = (1, 2, 3, 4, 5, 6),
        unfoldings: int = 1,
        activation: Activation | Callable | str = relu,
    ):
        sizes = dict(classes=classes, channels=channels, width=width, blocks=blocks)
        sizes |= dict(growth=growth, depth=depth)
        _checks.as_sizes("MSDCSC", **sizes)
        unfoldings = _checks.as_index(unfoldings, "unfoldings", "MSDCSC")
        check_rngs(rngs, "MSDCSC")
        self.stem = CSCLayer(
            channels, width, (3, 3), activation=activation, batch_norm=True, rngs=rngs
        )
        widths = [width + i * depth * growth for i in range(blocks + 1)]
        options: dict[str, Any] = dict(growth=growth, depth=depth, dilations=dilations)
        options |= dict(unfoldings=unfoldings, activation=activation)
        self.blocks = nnx.List([MSDCSCBlock(n, **options, rngs=rngs) for n in widths[:-1]])
        self.between = nnx.List([nnx.Conv(n, n, (1, 1), rngs=rngs) for n in widths[1:-1]])
        self.head = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, y: Array) -> Array:
        """The logits of pictures, (N, H, W, channels) -> (N, classes)."""
        x = self.stem(as_pictures(y, self.head.kernel, self.stem.in_features, "MSDCSC"))
        for i, block in enumerate(self.blocks):
            if i > 0:
                x = nnx.max_pool(self.between[i - 1](x), (2, 2), (2, 2))
            x = block(x)
        return self.head(jnp.mean(x, (1, 2)))
