"""The layers of the vision models: convolutions, dense layers, a place to read features."""

import math
from collections.abc import Callable

import jax
from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.models._convolution import add, convolve, convolve_and_pool


def drawn(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    """Uniform on [-1, 1] / sqrt(inputs): what PyTorch draws for weights and biases by default."""
    bound = 1 / math.sqrt(inputs)
    return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))


class Convolution(nnx.Module):
    """kernel (side, side, inputs, outputs) and bias (outputs,), with or without padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        *,
        rngs: nnx.Rngs,
        padding: str = "SAME",
    ):
        fan_in = side * side * inputs
        self.kernel = drawn(rngs, (side, side, inputs, outputs), fan_in)
        self.bias = drawn(rngs, (outputs,), fan_in)
        self.padding = padding

    def __call__(self, x: Array) -> Array:
        return add(convolve(x, self.kernel[...], self.padding), self.bias[...])


class Dense(nnx.Module):
    """kernel (inputs, outputs) and bias (outputs,)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = drawn(rngs, (inputs, outputs), inputs)
        self.bias = drawn(rngs, (outputs,), inputs)

    def __call__(self, x: Array) -> Array:
        return add(x @ self.kernel[...], self.bias[...])


class Features(nnx.Module):
    """The identity: where a layer shows its features to `tap`."""

    def __call__(self, x: Array) -> Array:
        return x


class PooledConvolution(nnx.Module):
    """Convolution without padding, activation, maxima over 2 x 2 pixels; its `features` are those
    before the maxima.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        activation: Callable[[Array], Array],
        *,
        rngs: nnx.Rngs,
    ):
        self.conv = Convolution(inputs, outputs, side, padding="VALID", rngs=rngs)
        self.activation = activation
        self.features = Features()

    def __call__(self, x: Array) -> Array:
        pooled, features = convolve_and_pool(
            x, self.conv.kernel[...], self.conv.bias[...], self.activation
        )
        self.features(features)
        return pooled


def as_pictures(x: Array, like: nnx.Param, channels: int, where: str) -> Array:
    """Pictures in the dtype of the param `like`; raises unless they are (N, H, W, channels)."""
    x = _checks.as_float(x, "x", where)
    if x.ndim != 4 or x.shape[-1] != channels or 0 in x.shape:
        raise ValueError(
            f"{where}: the pictures have shape {x.shape}; expected (N, H, W, {channels})"
        )
    return x.astype(like.dtype)
