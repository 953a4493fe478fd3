"""The layers of `MLCSC`: a bank of filters with what a pursuit needs, and the classifiers."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.layers import magnitude
from unrolled.models._convolution import max_pool
from unrolled.models._image_conv import ImageConv, norm_from_below
from unrolled.models._layers import Convolution, Dense
from unrolled.models._unfolded import Step

Shape = tuple[int, int, int]  # (H, W, C) of a picture or a code
# After this many steps the square of the norm is low by less than half of the margin, in the mean
# over draws, for pictures of a million entries.
_NORM_STEPS, _MARGIN = 30, 0.05


class Filters(NamedTuple):
    """The size of a bank of filters.

    Example:
        >>> ur.models.Filters(32, 6, stride=2)
        Filters(number=32, kernel=6, stride=2, padding=0)
    """

    number: int  # of filters
    kernel: int  # side of the square filters, in pixels
    stride: int = 1  # in pixels
    padding: int = 0  # in pixels, on every side


class PursuitLayer(nnx.Module):
    """kernel (k, k, C, m), step size c () and bias (m,) of a layer; all lead with `copies`.

    With `analysis`, there is a kernel of analysis filters in place of c.
    """

    def __init__(
        self,
        shape: Shape,
        bank: Filters,
        rngs: nnx.Rngs,
        *,
        copies: tuple[int, ...],
        analysis: bool,
        constrained: bool,
    ):
        m, k, self.stride, self.padding = bank
        self.side, C = shape[:2], shape[2]
        self.constrained = constrained
        draws = jax.random.normal(rngs.params(), (*copies, k, k, C, m))
        self.kernel = nnx.Param(0.1 / math.sqrt(k * k * C) * draws)
        self.analysis = nnx.Param(jnp.copy(self.kernel[...])) if analysis else None
        self.c = None if analysis else nnx.Param(jnp.ones(copies))
        self.bias = nnx.Param(jnp.zeros((*copies, m)))
        self.shape: Shape = (*self._conv(draws).positions, m)  # of a code

    def step(self) -> Step:
        """What a step of the pursuit takes."""
        D = self._conv(self.kernel[...])
        B = D if self.analysis is None else self._conv(self.analysis[...])
        theta = -self.bias[...][..., None, None, None, :]
        gamma = jnp.ones((), theta.dtype) if self.c is None else self.c[...]
        if self.constrained:
            size = norm_from_below(D.conv, _NORM_STEPS)
            zero = size**2 == 0  # every step is safe
            most = jnp.where(zero, jnp.inf, (1 - _MARGIN) / jnp.where(zero, 1, size) ** 2)
            gamma, theta = jnp.minimum(magnitude(gamma), most), magnitude(theta)
        return Step(D, gamma, theta, B)

    def _conv(self, kernel: Array) -> ImageConv:
        return ImageConv(kernel, self.side, self.stride, self.padding)


def check_bank(shape: Shape, bank: Filters, j: int) -> None:
    """Raise unless the filters of layer j fit codes of a shape."""
    if not isinstance(bank, Filters):
        raise TypeError(f"MLCSC: the filters of layer {j} are {bank!r}; expected models.Filters")
    for name, size, least in zip(Filters._fields, bank, (1, 1, 1, 0)):
        _checks.as_index(size, f"{name} of layer {j}", "MLCSC", least=least)
    H, W, _ = shape
    if bank.kernel > min(H, W) + 2 * bank.padding:
        raise ValueError(
            f"MLCSC: layer {j} has a kernel of {bank.kernel} on pictures of {H} x {W} with padding "
            f"{bank.padding}; expected one that fits"
        )


class Violations(NamedTuple):
    """How far the layers of a trained network are from steps of a proximal gradient method."""

    thresholds: tuple[int, ...]  # how many of a layer are negative
    steps: tuple[float, ...]  # gamma_j norm(D_j, 2)^2, to be in (0, 1]
    layers: int  # layers with a negative threshold, or a step outside (0, 1]


def violations(steps: list[Step]) -> Violations:
    """See `MLCSC.violations`."""
    thresholds = tuple(int(np.sum(np.asarray(step.theta) < 0)) for step in steps)
    sizes = tuple(float(step.gamma) * _norm_squared(step.D) for step in steps)
    bad = [n > 0 or not 0 < size <= 1 + 1e-5 for n, size in zip(thresholds, sizes)]
    return Violations(thresholds, sizes, sum(bad))


def _norm_squared(D: ImageConv) -> float:
    """norm(D, 2)^2 by the method of Lanczos, up to rounding."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    shape = (1, *D.positions, D.kernel.shape[-1])
    gram = jax.jit(lambda D, x: ((D @ x.reshape(shape)) @ D).reshape(-1))
    size, dtype = math.prod(shape), D.kernel.dtype
    operator = LinearOperator((size, size), lambda x: gram(D, jnp.asarray(x, dtype)), dtype=dtype)
    # Drawn: filters that are each other's negative do not see a code of ones.
    start = np.random.default_rng(0).normal(size=size).astype(dtype)
    image = np.asarray(operator @ start)
    if size == 1 or not image.any():  # ARPACK takes neither
        return float(image[0] / start[0])
    return float(eigsh(operator, k=1, v0=start, return_eigenvectors=False)[0])


Classifier = Callable[..., nnx.Module]  # (shape, classes, activation, rngs=...)


class Linear(nnx.Module):
    """Logits from a code, by one dense layer."""

    def __init__(self, shape: Shape, classes: int, activation: Callable, *, rngs: nnx.Rngs):
        self.dense = Dense(math.prod(shape), classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.dense(x.reshape(len(x), -1))


class Convolutional(nnx.Module):
    """Logits from a code, by three convolutions, two with pooling, and one dense layer."""

    def __init__(self, shape: Shape, classes: int, activation: Callable, *, rngs: nnx.Rngs):
        H, W, C = shape
        self.activation = activation
        self.convs: nnx.List[Convolution] = nnx.List()
        for inputs, outputs in ((C, 256), (256, 512), (512, 512)):
            conv = Convolution(inputs, outputs, rngs=rngs)
            draws = jax.random.normal(rngs.params(), conv.kernel.shape)
            conv.kernel = nnx.Param(draws / math.sqrt(9 * inputs))
            conv.bias = nnx.Param(jnp.zeros(outputs))
            self.convs.append(conv)
        self.dense = Dense(H // 4 * (W // 4) * 512, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        first, *others = self.convs
        x = self.activation(first(x))
        for conv in others:
            x = max_pool(self.activation(conv(x)))
        return self.dense(x.reshape(len(x), -1))
