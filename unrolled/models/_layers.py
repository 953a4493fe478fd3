"""The layers of the vision models: convolutions, dense layers, a place to read features."""

import math
from collections.abc import Callable

import jax
from flax import nnx

from unrolled._checks import Array
from unrolled.models._batch_norm import BatchNorm
from unrolled.models._convolution import add, convolve, convolve_and_pool, up_convolve


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
