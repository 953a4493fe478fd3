"""The layers of the vision models, and the checks of what models take."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.models._convolution import add, convolve, convolve_and_pool, up_convolve

_EPSILON, _MOMENTUM = 1e-5, 0.9  # the defaults of PyTorch, whose momentum is 1 - 0.9


class BatchNorm(nnx.Module):
    r"""rho(scale (x - mean) / sqrt(var + 1e-5) + bias), per channel, with 2 n params.

    In training, mean and var are those of the batch, and the running ones move a tenth of the way
    to them; `model.eval()` uses the running ones. The running var is that of the batch, with
    divisor N H W, as in flax and unlike PyTorch. Where var leaves the range, rho is of NaN: the
    limit, 0, would look like a feature.
    """

    epsilon = _EPSILON

    def __init__(self, n: int, activation: Callable[[Array], Array]):
        self.scale, self.bias = nnx.Param(jnp.ones(n)), nnx.Param(jnp.zeros(n))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(n)), nnx.BatchStat(jnp.ones(n))
        self.activation = activation
        self.use_running_average = False  # set by `model.train()` and `model.eval()`

    def __call__(self, x: Array) -> Array:
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            return _activated(x, scale, bias, self.mean[...], self.var[...], self.activation)
        y, mean, var = _normalized(x, scale, bias, self.activation)
        for running, moment in ((self.mean, mean), (self.var, var)):
            running[...] = _MOMENTUM * running[...] + (1 - _MOMENTUM) * lax.stop_gradient(moment)
        return y


def _activated(x, scale, bias, mean, var, activation) -> Array:
    slope = scale * jnp.where(jnp.isinf(var), jnp.nan, lax.rsqrt(var + _EPSILON))
    return activation(_per_channel(x, slope, bias - slope * mean))


def _per_channel(x: Array, slope: Array, offset: Array) -> Array:
    return x * jnp.broadcast_to(slope, x.shape) + jnp.broadcast_to(offset, x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalized(x: Array, scale: Array, bias: Array, activation) -> tuple[Array, Array, Array]:
    """The activated batch, its mean and its var. The latter two have no derivative."""
    return _forward(x, scale, bias, activation)[0]


def _forward(x, scale, bias, activation):
    mean = jnp.mean(x, (0, 1, 2))
    var = jnp.mean(jnp.square(x - jnp.broadcast_to(mean, x.shape)), (0, 1, 2))
    y = _activated(x, scale, bias, mean, var, activation)
    # What is saved depends on x as written here: a second derivative is taken through it.
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(activation, saved, cotangents):
    x, scale, bias, mean, var = saved
    inverse = lax.rsqrt(var + _EPSILON)
    z = _per_channel(x, scale * inverse, bias - scale * inverse * mean)
    (g,) = jax.vjp(activation, z)[1](cotangents[0])
    # With u = (x - mean) inverse: d bias = sum g, d scale = sum g u, and what these two directions
    # hold of g does not reach x.
    d_bias = jnp.sum(g, (0, 1, 2))
    d_scale = inverse * (jnp.sum(g * x, (0, 1, 2)) - mean * d_bias)
    n = x.size // x.shape[-1]
    pull = inverse * d_scale / n
    centred = g - _per_channel(x, pull, d_bias / n - pull * mean)
    return centred * jnp.broadcast_to(scale * inverse, x.shape), d_scale, d_bias


_normalized.defvjp(_forward, _backward)


def drawn(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    """Uniform on [-1, 1] / sqrt(inputs): what PyTorch draws for weights and biases by default."""
    bound = 1 / math.sqrt(inputs)
    return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))


class Convolution(nnx.Module):
    """Of stride 1 with padding: kernel (3, 3, inputs, outputs), bias (outputs,) or None."""

    padding = "SAME"

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, bias: bool = True):
        self.kernel = drawn(rngs, (3, 3, inputs, outputs), 9 * inputs)
        self.bias = drawn(rngs, (outputs,), 9 * inputs) if bias else None

    def __call__(self, x: Array) -> Array:
        z = convolve(x, self.kernel[...], self.padding)
        return z if self.bias is None else add(z, self.bias[...])


class Dense(nnx.Module):
    """kernel (inputs, outputs) and bias (outputs,)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = drawn(rngs, (inputs, outputs), inputs)
        self.bias = drawn(rngs, (outputs,), inputs)

    def __call__(self, x: Array) -> Array:
        return add(x @ self.kernel[...], self.bias[...])


class UpConvolution(nnx.Module):
    """The transposed convolution of 2 x 2 filters with stride 2: twice the sides.

    kernel (2, 2, inputs, outputs) and bias (outputs,).
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        fan_in = 4 * outputs  # as PyTorch counts it for transposed convolutions
        self.kernel = drawn(rngs, (2, 2, inputs, outputs), fan_in)
        self.bias = drawn(rngs, (outputs,), fan_in)

    def __call__(self, x: Array) -> Array:
        return add(up_convolve(x, self.kernel[...]), self.bias[...])


class Features(nnx.Module):
    """The identity: where a layer shows its features to `tap`."""

    def __call__(self, x: Array) -> Array:
        return x


class ConvolutionBlock(nnx.Module):
    """Convolution with 3 x 3 filters and padding, batch normalisation, activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[Array], Array],
        *,
        rngs: nnx.Rngs,
        bias: bool = True,
    ):
        self.conv = Convolution(inputs, outputs, bias=bias, rngs=rngs)
        self.norm = BatchNorm(outputs, activation)

    def __call__(self, x: Array) -> Array:
        return self.norm(self.conv(x))


class PooledConvolution(nnx.Module):
    """Convolution without padding, activation, maxima over 2 x 2 pixels.

    `features` shows what the maxima are taken of.
    """

    padding = "VALID"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        activation: Callable[[Array], Array],
        *,
        rngs: nnx.Rngs,
    ):
        fan_in = side * side * inputs
        self.kernel = drawn(rngs, (side, side, inputs, outputs), fan_in)
        self.bias = drawn(rngs, (outputs,), fan_in)
        self.activation = activation
        self.features = Features()

    def __call__(self, x: Array) -> Array:
        pooled, features = convolve_and_pool(x, self.kernel[...], self.bias[...], self.activation)
        self.features(features)
        return pooled


def check_rngs(rngs: Any, where: str) -> None:
    """Raise TypeError unless `rngs` can draw params, as `nnx.Rngs(0)` does."""
    if not callable(getattr(rngs, "params", None)):
        raise TypeError(
            f"{where}: rngs draws the params and must be a flax.nnx.Rngs, got "
            f"{type(rngs).__name__}; try rngs=nnx.Rngs(0)"
        )


def as_pictures(x: Array, like: nnx.Param, channels: int, where: str) -> Array:
    """Pictures in the dtype of the param `like`; raises unless they are (N, H, W, channels)."""
    x = _checks.as_float(x, "x", where)
    check_pictures(x, channels, where)
    return x.astype(like.dtype)


def check_pictures(x: Array, channels: int, where: str, *, sides: int = 2) -> None:
    """Raise ValueError unless x is (N, H, W, channels), with so many sides, and not empty."""
    if x.ndim != sides + 2 or x.shape[-1] != channels or 0 in x.shape:
        axes = ", ".join(("N", *"HWD"[:sides], str(channels)))
        raise ValueError(f"{where}: the pictures have shape {x.shape}; expected ({axes})")


def check_extent(conv: nnx.Conv, x: Array, where: str) -> None:
    """Raise ValueError if the filters of a convolution are too long for pictures x."""
    sides, kernel, dilation = x.shape[1:-1], conv.kernel.shape[:-2], conv.kernel_dilation
    each = dilation if isinstance(dilation, tuple | list) else (dilation or 1,) * len(kernel)
    extents = [(n - 1) * delta + 1 for n, delta in zip(kernel, each)]
    # With padding, the outermost entries of a filter in the middle must not miss the picture.
    needed = extents if conv.padding == "VALID" else [e // 2 + 1 for e in extents]
    if any(N < least for N, least in zip(sides, needed)):
        raise ValueError(
            f"{where}: filters of extent {tuple(extents)} are too long for pictures of {sides}; "
            "try a smaller kernel or dilation"
        )
