"""Classifiers that unfold the pursuits of a multi-layer convolutional sparse coding model."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import Activation, relu
from unrolled.models._image_conv import ImageConv
from unrolled.models._unfolded import PURSUITS, Step
from unrolled.pursuit._deep import Codes


class Filters(NamedTuple):
    """The size of a bank of filters."""

    number: int
    kernel: int  # pixels, as are the others
    stride: int = 1
    padding: int = 0


MNIST = Filters(32, 6, 2), Filters(64, 6, 2), Filters(512, 4)
CIFAR10 = Filters(32, 4, 2, 1), Filters(64, 4, 2, 1), Filters(128, 4, 2, 1)


class MLCSC(nnx.Module):
    def __init__(
        self,
        image: tuple[int, int, int],
        filters: Sequence[Filters],
        method: str,
        unfoldings: int = 6,
        *,
        classes: int = 10,
        activation: Activation = relu,
        rngs: nnx.Rngs,
    ):
        if method not in PURSUITS:
            raise ValueError(
                f"MLCSC: unknown method {method!r}; expected one of {', '.join(PURSUITS)}"
            )
        unfoldings = _checks.as_index(unfoldings, "unfoldings", "MLCSC")
        self.image = tuple(image)
        self.method = method
        self.unfoldings = 0 if method == "cnn" else unfoldings
        self.activation = activation
        copies = (unfoldings + 1,) if method == "all-free" else ()
        self.layers = nnx.List()
        shape = self.image
        for j, bank in enumerate(filters, start=1):
            _check_bank(shape, bank, j)
            self.layers.append(
                PursuitLayer(shape, bank, rngs, copies=copies, analysis=method == "ml-lista")
            )
            shape = self.layers[-1].shape
        if not self.layers:
            raise ValueError("MLCSC: no filters; expected the sizes of one layer at least")
        self.codes = nnx.List([Code() for _ in self.layers])
        self.classifier = nnx.Linear(math.prod(shape), classes, rngs=rngs, param_dtype=float)

    @classmethod
    def mnist(cls, method: str, unfoldings: int = 6, *, rngs: nnx.Rngs) -> "MLCSC":
        return cls((28, 28, 1), MNIST, method, unfoldings, rngs=rngs)

    @property
    def early(self) -> tuple[str, ...]:
        """The names of the codes, for `tap`."""
        return tuple(f"codes.{j}" for j in range(len(self.codes)))

    def __call__(self, images: Array) -> Array:
        xs = [code(x) for code, x in zip(self.codes, self.pursue(images))]
        return self.classifier(xs[-1].reshape(len(images), -1))

    def pursue(self, images: Array) -> Codes:
        images = self._checked(images)
        steps = [layer.step() for layer in self.layers]
        return PURSUITS[self.method](steps, images, self.unfoldings, self.activation)

    def _checked(self, images: Array) -> Array:
        images = _checks.as_float(images, "the images", "MLCSC")
        if images.ndim != 4 or images.shape[1:] != self.image:
            H, W, C = self.image
            raise ValueError(
                f"MLCSC: the images have shape {images.shape}; expected (N, {H}, {W}, {C})"
            )
        return images


class PursuitLayer(nnx.Module):
    """A bank of filters with a step size, and a bias per filter."""

    def __init__(
        self,
        image: tuple[int, int, int],
        bank: Filters,
        rngs: nnx.Rngs,
        *,
        copies: tuple[int, ...],
        analysis: bool,
    ):
        H, W, C = image
        m, k, self.stride, self.padding = bank
        self.side = H, W
        draws = jax.random.normal(rngs.params(), (*copies, k, k, C, m))
        self.kernel = nnx.Param(0.1 / math.sqrt(C * k * k) * draws)
        self.analysis = nnx.Param(jnp.copy(self.kernel[...])) if analysis else None
        self.c = None if analysis else nnx.Param(jnp.ones(copies))
        self.bias = nnx.Param(jnp.zeros((*copies, m)))
        self.shape = (*self._conv(draws).positions, m)  # of a code

    def step(self) -> Step:
        D = self._conv(self.kernel[...])
        B = D if self.analysis is None else self._conv(self.analysis[...])
        bias = self.bias[...]
        gamma = jnp.ones((), bias.dtype) if self.c is None else self.c[...]
        return Step(D, gamma, -bias[..., None, None, None, :], B)

    def _conv(self, kernel: Array) -> ImageConv:
        return ImageConv(kernel, self.side, self.stride, self.padding)


class Code(nnx.Module):
    """The code of a layer as it is: a place to tap."""

    def __call__(self, x: Array) -> Array:
        return x


def _check_bank(shape: tuple[int, int, int], bank: Filters, j: int) -> None:
    for name, size, least in zip(Filters._fields, bank, (1, 1, 1, 0)):
        _checks.as_index(size, f"{name} of layer {j}", "MLCSC", least=least)
    H, W, _ = shape
    if bank.kernel > min(H, W) + 2 * bank.padding:
        raise ValueError(
            f"MLCSC: layer {j} has a kernel of {bank.kernel} on images of {H} x {W} with padding "
            f"{bank.padding}; expected one that fits"
        )
