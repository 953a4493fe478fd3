"""CSCLayer, whose output is the code of a pursuit, and the networks ResCSC and MSDCSC."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled._base.numbers import exponent, times_power
from unrolled.activations import Activation, relu
from unrolled.layers import as_activation, magnitude
from unrolled.vision.models._layers import as_pictures, check_extent, check_pictures, check_rngs

__all__ = ["CSCLayer", "MSDCSC", "MSDCSCBlock", "ResCSC", "ResCSCBlock"]


# The response of a filter of side n is sampled at this many times n frequencies per dimension.
_FINE = 6


class CSCLayer(nnx.Conv):
    r"""A convolutional sparse coding layer, which replaces `nnx.Conv` and its activation.

    .. math:: x \leftarrow \rho(x + W'(y - s W x) + b), \qquad \text{T + 1 times, from } x = 0,

    where W'y is the convolution and W x is the adjoint of the convolution. If T = 0, the layer
    computes exactly rho(conv(y) + b). With ReLU each step is a step of ISTA with step size 1 / s
    for the non-negative LASSO

    .. math:: \min_{x \ge 0} \|y - D x\|^2 / 2 - s \, b'x, \qquad D = s W.

    The steps converge if s norm(W)^2 <= 1 (see `step_ratio`). The initial s satisfies this bound
    for pictures of every size, but training may violate the bound. The param s is one number and
    does not exist in a layer with T = 0 and without `warm`. The other params are the params of
    `nnx.Conv`.

    Args:
        in_features, out_features, kernel_size, strides: as in `nnx.Conv`.
        unfoldings: T.
        warm: if True, calls may pass a start that replaces x = 0.
        activation: rho, an activation or its name.
        batch_norm: if True, a batch norm inside the activation replaces b. Statistics differ from
            step to step, so each of the T + 1 steps has a separate batch norm. The batch norms
            follow `train()` and `eval()` of the model.
        padding: "SAME", "VALID" or "CIRCULAR".
        kernel_dilation, use_bias, options: as in `nnx.Conv`, except `feature_group_count`.

    Raises:
        TypeError: a size is not an integer, activation is not an activation, or rngs is not an
            nnx.Rngs.
        ValueError: a size is below 1, unfoldings < 0, or groups are given. A call raises ValueError
            if pictures have another number of channels, filters are longer than a picture, a start
            has another shape, or a start is given although `warm` is False and T = 0.

    Reference: Sulam, Aberdam, Beck, Elad (2020). The warm start is from Zhang, Zhang (2021).

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.models import CSCLayer
        >>> layer = CSCLayer(3, 8, (3, 3), unfoldings=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((4, 6, 6, 3))).shape, round(float(layer.step_ratio()), 3)
        ((4, 6, 6, 8), 1.0)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] | None = 1,
        *,
        rngs: nnx.Rngs,
        unfoldings: int = 0,
        warm: bool = False,
        activation: Activation | Callable | str = relu,
        batch_norm: bool = False,
        padding: str = "SAME",
        use_bias: bool = True,
        **options: Any,
    ):
        where = "CSCLayer"
        in_features = checks.as_index(in_features, "in_features", where, least=1)
        out_features = checks.as_index(out_features, "out_features", where, least=1)
        kernel_size = _sizes(kernel_size, "kernel_size", where)
        strides = None if strides is None else _sizes(strides, "strides", where)
        if (dilation := options.get("kernel_dilation")) is not None:
            options["kernel_dilation"] = _sizes(dilation, "kernel_dilation", where)
        unfoldings = checks.as_index(unfoldings, "unfoldings", where)
        activation = as_activation(activation, "activation", where)
        warm, batch_norm, use_bias = (
            checks.as_bool(flag, name, where)
            for name, flag in (("warm", warm), ("batch_norm", batch_norm), ("use_bias", use_bias))
        )
        if padding not in ("SAME", "VALID", "CIRCULAR"):
            raise ValueError(f'CSCLayer: padding {padding!r}; expected "SAME", "VALID", "CIRCULAR"')
        if "feature_group_count" in options:
            raise ValueError("CSCLayer: feature_group_count is not supported; expected one group")
        if "input_dilation" in options:
            raise ValueError("CSCLayer: input_dilation is not supported; try strides")
        check_rngs(rngs, where)
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=padding,
            use_bias=use_bias and not batch_norm,
            rngs=rngs,
            **options,
        )
        _check_sides(self)
        self.unfoldings, self.activation = unfoldings, activation
        count = unfoldings + 1 if batch_norm else 0
        self.norms = batch_norms(out_features, count, rngs, options.get("dtype")) if count else None
        squared = self._norm_bound() ** 2
        safe = 1 / jnp.where(squared == 0, 1, squared)  # if filters are zero, every step is safe
        self.step = nnx.Param(safe) if unfoldings or warm else None

    def __call__(self, inputs: Array, start: Array | None = None) -> Array:
        """The codes of pictures after T + 1 steps.

        Args:
            inputs: y, (N, H, W, in_features).
            start: x before the first step, with the shape of the codes; None means 0.

        Returns:
            The codes, (N, H', W', out_features).
        """
        where = type(self).__name__
        inputs = checks.as_float(inputs, "the pictures", where)
        check_pictures(inputs, self.in_features, where, sides=self.kernel.ndim - 2)
        check_extent(self, inputs, where)
        convolved, adjoint = jax.vjp(super().__call__, inputs)
        if start is not None:
            start = checks.as_float(start, "start", where)
            if self.step is None or start.shape != convolved.shape:
                expected = "warm=True" if self.step is None else convolved.shape
                raise ValueError(f"CSCLayer: start has shape {start.shape}; expected {expected}")
            start = start.astype(convolved.dtype)
        x = self._activate(0, convolved) if start is None else self._step(0, inputs, start, adjoint)
        for t in range(1, self.unfoldings + 1):
            x = self._step(t, inputs, x, adjoint)
        return x

    def _step(self, t: int, y: Array, x: Array, adjoint: Callable) -> Array:
        """rho(x + W'(y - s W x) + b)."""
        r = y - self._size() * adjoint(x)[0]
        return self._activate(t, x + super().__call__(r))

    def _activate(self, t: int, v: Array) -> Array:
        return self.activation(v if self.norms is None else self.norms[t](v))

    def _size(self) -> Array:
        """The step param s, or 0 if the layer has no s."""
        return jnp.zeros(()) if self.step is None else magnitude(self.step[...])

    def step_ratio(self) -> Array:
        """The ratio of s to its safe size 1 / norm(W)^2.

        Steps without batch norm converge if the ratio is at most 1. The method uses a bound on
        norm(W) that holds for pictures of every size. For small filters the bound exceeds norm(W)
        by a few percent. With padding "CIRCULAR" the bound ignores the stride and may be much
        larger than norm(W). If the layer has no s, the ratio is 0.
        """
        return self._size() * self._norm_bound() ** 2

    def _norm_bound(self) -> Array:
        kernel, circular = self.kernel[...], self.padding == "CIRCULAR"
        kernel = kernel if self.mask is None else kernel * self.mask
        # If the length of the circle is not a multiple of the stride, two windows are closer than
        # the stride.
        return norm_bound(kernel, (1,) * (kernel.ndim - 2) if circular else self._apart())

    def _apart(self) -> tuple[int, ...]:
        """The strides without the factors that they have in common with the dilations."""
        n = self.kernel.ndim - 2
        pairs = zip(*(np.broadcast_to(v or 1, n) for v in (self.strides, self.kernel_dilation)))
        return tuple(int(s // math.gcd(s, dilation)) for s, dilation in pairs)


def _sizes(sizes: Any, name: str, where: str) -> int | tuple[int, ...]:
    """One size for all dimensions, or a tuple with one size for each dimension."""
    if isinstance(sizes, tuple | list):
        if not sizes:
            raise ValueError(f"{where}: {name} is {sizes}; expected one size for each side")
        return checks.as_indices(sizes, name, where, least=1)
    return checks.as_index(sizes, name, where, least=1)


def _check_sides(layer: nnx.Conv) -> None:
    """Raise ValueError unless strides and dilation have one size per side of the kernel."""
    for name in ("strides", "kernel_dilation"):
        sizes, sides = getattr(layer, name), layer.kernel.ndim - 2
        if isinstance(sizes, tuple) and len(sizes) != sides:
            raise ValueError(
                f"CSCLayer: {name} is {sizes}; expected one for each of the {sides} sides"
            )


def batch_norms(features: int, count: int, rngs: nnx.Rngs, dtype: Any = None) -> nnx.List:
    """Several batch norms, which follow `train()` and `eval()` of the model."""
    norms = [_BatchNorm(features, momentum=0.9, dtype=dtype, rngs=rngs) for _ in range(count)]
    return nnx.List(norms)


class _BatchNorm(nnx.BatchNorm):
    """The batch norm of flax, except that a variance that overflows gives NaN instead of 0."""

    def __call__(self, x: Array, *args: Any, **options: Any) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # flax mixes dtypes in half precision
            y = super().__call__(x, *args, **options)
        lost = jnp.where(jnp.isinf(self.var[...]), jnp.nan, 0).astype(y.dtype)
        return y + jnp.broadcast_to(lost, y.shape)


def norm_bound(kernel: Array, strides: tuple[int, ...] | None = None) -> Array:
    """An upper bound on the norm of a convolution, for pictures of every size and every padding.

    The squared response is a trigonometric polynomial of degree n - 1 in every dimension. Therefore
    its maximum is at most the maximum over M frequencies, divided by cos(pi (n - 1) / M) for each
    dimension. A stride s merges groups of s frequencies, and the squared response becomes the mean
    of their squared responses, which has the degree (n - 1) // s.

    Args:
        kernel: (*sides, C_in, C_out), with any dilation.
        strides: one stride for each side, without the factors that the stride has in common with
            the dilation, since these factors have no effect.
    """
    # The function runs on the host if possible: JAX would compile it for every layer of a model.
    xp: Any = np if checks.is_concrete(kernel) else jnp
    k = exponent(jnp.asarray(kernel))  # a scale that keeps squares in the range
    filters = xp.moveaxis(xp.asarray(times_power(jnp.asarray(kernel), -k)), (-2, -1), (0, 1))
    (channels, features), sides = filters.shape[:2], kernel.shape[:-2]
    strides = strides or (1,) * len(sides)
    apart = tuple(-(-_FINE * n // s) for n, s in zip(sides, strides))  # M / s
    fine = tuple(s * M for s, M in zip(strides, apart))
    response = xp.fft.fftn(filters, fine, tuple(range(2, filters.ndim)))
    parts = [size for pair in zip(strides, apart) for size in pair]
    axes = (*range(3, 2 + len(parts), 2), *range(2, 2 + len(parts), 2), 0, 1)
    H = xp.transpose(response.reshape(channels, features, *parts), axes)
    H = H.reshape(math.prod(apart), -1, features)  # merged frequencies add channels
    H = H if H.shape[1] < H.shape[2] else xp.swapaxes(H, 1, 2)  # the smaller Gram matrix
    gram = H @ xp.swapaxes(H, 1, 2).conj() / math.prod(strides)
    degrees = ((n - 1) // s for n, s in zip(sides, strides))
    between = math.prod(math.cos(math.pi * n / M) for n, M in zip(degrees, apart))
    bound = jnp.sqrt(jnp.asarray(xp.linalg.eigvalsh(gram).max() / between, kernel.dtype))
    return times_power(bound, k)


class ResCSCBlock(nnx.Module):
    r"""Two layers of convolutional sparse coding; layer 2 starts from the input of layer 1.

    .. math::
        u &= \rho(BN(V'x)), \\
        z &= \rho(BN(x + W'(u - s W x))),

    followed by T more steps of each layer. If stride or width change the shape, z starts from 0.

    Args:
        in_features, features: numbers of channels of x and of z.
        stride: stride of V.
        unfoldings: T.
        activation: rho.
        rngs: the nnx.Rngs that draws the filters.

    Raises:
        TypeError, ValueError: sizes are not positive integers, or rngs is not an nnx.Rngs.

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.models import ResCSCBlock
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
        checks.as_sizes(where, in_features=in_features, features=features, stride=stride)
        unfoldings = checks.as_index(unfoldings, "unfoldings", where)
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

    The network consists of a convolution, `blocks` instances of `ResCSCBlock` for every width, the
    mean over all positions, and a linear layer. For every width except the first, the first block
    has stride 2. With the defaults the network has 20 layers like ResNet-20.

    Args:
        classes: number of outputs.
        channels: number of channels of the pictures.
        widths: number of feature maps of every stage.
        blocks: number of blocks per stage.
        unfoldings: T, number of steps of every layer in the blocks after the forward pass.
        activation: rho, an activation or its name.
        rngs: the nnx.Rngs that draws the filters.

    Attributes:
        early: the names, for `tap`, of `stem` and of the blocks of the first width, whose outputs
            are codes.
        convolutions: the names of the layers in `early` that take one step from 0. The function
            `experiments.features` can read the dictionaries of these layers; the second layer of a
            block does not start from 0.

    Raises:
        TypeError, ValueError: sizes are not positive integers, there are no widths, or rngs is not
            an nnx.Rngs. A call raises ValueError if pictures have another number of channels or
            are too small.

    Reference: Zhang, Zhang (2021), who published neither sizes nor code. The sizes are from He,
    Zhang, Ren, Sun (2016).

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.models import ResCSC
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
        widths = checks.as_indices(widths, "widths", "ResCSC", least=1)
        sizes = dict(classes=classes, channels=channels, blocks=blocks, stages=len(widths))
        checks.as_sizes("ResCSC", **sizes)
        unfoldings = checks.as_index(unfoldings, "unfoldings", "ResCSC")
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


_PART = 4096  # number of entries in one draw
_TRUNCATED = 0.8796256610342398  # standard deviation of a normal number truncated to [-2, 2]


class MSDCSCBlock(nnx.Module):
    r"""Layers x_i that keep x_{i-1} and add `growth` dilated feature maps, D_i = [I, F_i].

    .. math::
        x_{i-1} &\leftarrow D_i x_i, \quad i = J, \dots, 1, \\
        x_i &\leftarrow \rho(BN(x_i + c_i D_i'(x_{i-1} - D_i x_i))), \quad i = 1, \dots, J,

    T + 1 times. The first sweep starts from x_i = 0. Here D_i'r = (r, F_i'r), and x_0 in the second
    line is the input. If T = 0, the block is a network with dense connections. Each sweep has
    separate batch norms.

    The step size c_i is trained from the initial value 1 / (1 + norm(F_i)^2), which is safe.

    Args:
        in_features: number of channels of the input.
        growth: number of feature maps that every layer adds.
        depth: J.
        dilations: the dilations of the layers, repeated cyclically.
        unfoldings: T.
        activation: rho.
        rngs: the nnx.Rngs that draws the filters.

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.models import MSDCSCBlock
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
        dilations = checks.as_indices(dilations, "dilations", where, least=1)
        sizes = dict(in_features=in_features, growth=growth, depth=depth, dilations=len(dilations))
        checks.as_sizes(where, **sizes)
        self.unfoldings = checks.as_index(unfoldings, "unfoldings", where)
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
        """The code x_J, (N, H, W, in_features) -> (N, H, W, in_features + depth * growth)."""
        y = checks.as_float(y, "the pictures", "MSDCSCBlock")
        check_pictures(y, self.filters[0].in_features, "MSDCSCBlock")
        for F in self.filters:
            check_extent(F, y, "MSDCSCBlock")
        xs = self._up(y, 0)
        for t in range(self.unfoldings):
            below = self._down(y, xs[-1])
            xs = self._up(y, t + 1, below)
        return xs[-1]

    def _up(self, y: Array, t: int, codes: list[Array] | None = None) -> list[Array]:
        """The new codes x_1 .. x_J, computed from the codes x_0 .. x_J of `_down`."""
        xs = [y]
        for i, F in enumerate(self.filters):
            r = xs[-1] if codes is None else xs[-1] - codes[i]  # codes[i] = D_{i+1} codes[i+1]
            v = magnitude(self.steps[i][...]) * jnp.concatenate([r, F(r)], -1)
            v = v if codes is None else codes[i + 1] + v
            xs.append(self.activation(self.norms[i][t](v)))
        return xs[1:]

    def _down(self, y: Array, x: Array) -> list[Array]:
        """The codes x_0 .. x_J computed from x_J by x_{i-1} = D_i x_i."""
        xs = [x]
        for F in reversed(self.filters):
            first, added = jnp.split(xs[0], [F.in_features], -1)
            adjoint = jax.vjp(F, first)[1]
            xs.insert(0, first + adjoint(added)[0])
        return xs

    def step_ratios(self) -> Array:
        """The ratio of each c_i to its safe size 1 / (1 + norm(F_i)^2), (depth,)."""
        pairs = zip(self.steps, self.filters)
        return jnp.stack(
            [magnitude(c[...]) * (1 + norm_bound(F.kernel[...]) ** 2) for c, F in pairs]
        )


def _lecun_normal(key: Array, shape: tuple[int, ...], dtype: Any, **_: Any) -> Array:
    """Truncated normal filters with standard deviation 1 / sqrt(fan-in), as in nnx.Conv.

    All draws have the same size because a draw of another shape compiles for two seconds.
    """
    n, fan_in = math.prod(shape), math.prod(shape[:-1])
    keys = [jax.random.fold_in(key, i) for i in range(-(-n // _PART))]
    parts = [jax.random.truncated_normal(key, -2, 2, (_PART,), dtype) for key in keys]
    return jnp.concatenate(parts)[:n].reshape(shape) / (_TRUNCATED * math.sqrt(fan_in))


class MSDCSC(nnx.Module):
    """MSD-CSC for CIFAR-10: blocks with a 1x1 convolution and 2x2 max pooling between two blocks.

    The network consists of a 3x3 convolution to `width` maps with batch norm, `blocks` instances of
    `MSDCSCBlock`, the mean over all positions, and a linear layer. With the defaults the widths are
    16, 160, 304 and 448.

    Args:
        classes: number of outputs.
        channels: number of channels of the pictures.
        width: number of feature maps of the first convolution.
        blocks: number of blocks.
        growth, depth, dilations, unfoldings, activation: as in `MSDCSCBlock`.
        rngs: the nnx.Rngs that draws the filters.

    Attributes:
        early: the names, for `tap`, of `stem` and of the first block, whose outputs are codes.
        convolutions: the name of `stem`, which takes one step from 0.

    Raises:
        TypeError, ValueError: sizes are not positive integers, there are no dilations, or rngs is
            not an nnx.Rngs. A call raises ValueError if pictures have another number of channels or
            are too small for the dilations.

    Reference: Zhang, Zhang (2021). In the authors' code the batch norms of the blocks are in plain
    lists, so these batch norms are neither trained nor saved nor switched to evaluation. Here the
    batch norms of the blocks are trained, saved and switched to evaluation.

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.models import MSDCSC
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
        checks.as_sizes("MSDCSC", **sizes)
        unfoldings = checks.as_index(unfoldings, "unfoldings", "MSDCSC")
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
