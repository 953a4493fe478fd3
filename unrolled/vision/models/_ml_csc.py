"""Classifiers that unfold the pursuits of a multi-layer convolutional sparse coding model."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled._base import checks
from unrolled._base.doors import Array, Result
from unrolled.activations import by_name, relu
from unrolled.layers import magnitude
from unrolled.pursuit import Momentum, extrapolated, ml_ista_step, sweep
from unrolled.vision.models import _layers
from unrolled.vision.models._convolution import ImageConv, max_pool
from unrolled.vision.models._layers import Convolution, Dense, Features

__all__ = ["Filters", "MLCSC", "Violations"]


Codes = tuple[Array, ...]
Rho = Callable[[Array], Array]
Carry = TypeVar("Carry")


class Step(NamedTuple):
    """The arrays that a step of a pursuit uses in one layer."""

    D: ImageConv
    gamma: Array  # ()
    theta: Array  # (1, 1, 1, m), the bias with its sign changed
    B: ImageConv  # the analysis filters: D, or separate filters in ML-LISTA


Steps = Sequence[Step]
Pursue = Callable[[Steps, Array, int, Rho], Codes]


def forward(steps: Steps, y: Array, rho: Rho) -> Codes:
    r"""A plain CNN, x_j = rho(gamma_j D_j' x_{j-1} - theta_j), a step of ML-ISTA from x_J = 0."""
    xs = []
    for _, gamma, theta, B in steps:
        y = rho(gamma * (y @ B) - theta)
        xs.append(y)
    return tuple(xs)


def ml_ista(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    return _repeated(lambda xs: _ml_ista_step(steps, y, xs[-1], rho), forward(steps, y, rho), T)


def ml_fista(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    def advance(carry):
        state, _ = carry
        xs = _ml_ista_step(steps, y, state.z, rho)
        return extrapolated(state, xs[-1], restart=False), xs

    xs = forward(steps, y, rho)
    zero = jnp.zeros_like(xs[-1])
    start = Momentum(zero, zero, jnp.ones((), zero.dtype))
    return _repeated(advance, (extrapolated(start, xs[-1], restart=False), xs), T)[1]


def ml_lista(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    r"""The sweeps of ML-ISTA with x_j <- rho(x_j - D_j' D_j x_j + B_j' x_{j-1} - theta_j)."""

    def update(j, before, x, Dx):
        D, _, theta, B = steps[j]
        return rho(x - Dx @ D + before @ B - theta)

    def advance(xs):
        return sweep([step.D for step in steps], y, xs[-1], update)

    return _repeated(advance, forward(steps, y, rho), T)


def layered_bp(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    """T steps of ISTA in every layer, one layer after the other."""
    xs: list[Array] = []
    for step in steps:
        xs.append(ml_ista([step], xs[-1] if xs else y, T, rho)[0])
    return tuple(xs)


def all_free(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    """ML-ISTA with separate params for each step; the first axis of `steps` has length T + 1."""
    xs = forward(at_time(steps, 0), y, rho)
    for t in range(1, T + 1):
        xs = _ml_ista_step(at_time(steps, t), y, xs[-1], rho)
    return xs


def at_time(steps: Steps, t: int) -> Steps:
    """The params of step t in layers that have separate params for each step."""
    return jax.tree.map(lambda leaf: leaf[t], steps)


PURSUITS: dict[str, Pursue] = {
    "cnn": lambda steps, y, T, rho: forward(steps, y, rho),
    "ml-ista": ml_ista,
    "ml-fista": ml_fista,
    "ml-lista": ml_lista,
    "layered-bp": layered_bp,
    "all-free": all_free,
}


def _ml_ista_step(steps: Steps, y: Array, x: Array, rho: Rho) -> Codes:
    Ds, gammas, thetas, _ = zip(*steps)
    return ml_ista_step(Ds, y, x, gammas, thetas, lambda v, theta: rho(v - theta))


def _repeated(advance: Callable[[Carry], Carry], carry: Carry, T: int) -> Carry:
    # This loop is not a scan because inside a scan XLA's convolutions on a CPU are many times
    # slower.
    for _ in range(T):
        carry = advance(carry)
    return carry


Shape = tuple[int, int, int]  # (H, W, C) of a picture or a code
# After this many steps the square of the norm is too low by less than half the margin on average
# over draws, for pictures with a million entries (see `norm_from_below`).
_NORM_STEPS, _MARGIN = 30, 0.05


class Filters(NamedTuple):
    """The size of a bank of filters.

    Example:
        >>> ur.vision.models.Filters(32, 6, stride=2)
        Filters(number=32, kernel=6, stride=2, padding=0)
    """

    number: int  # number of filters
    kernel: int  # side of the square filters, in pixels
    stride: int = 1  # distance between positions, in pixels
    padding: int = 0  # number of zeros on every side


class PursuitLayer(nnx.Module):
    """A layer's kernel (k, k, C, m), step size c and bias (m,), each with leading axes `copies`.

    With `analysis`, a kernel of analysis filters replaces c.
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
        self.shape: Shape = (*self._conv(draws).positions, m)  # (H, W, C) of a code

    def step(self) -> Step:
        """The arrays that a step of the pursuit uses in this layer."""
        D = self._conv(self.kernel[...])
        B = D if self.analysis is None else self._conv(self.analysis[...])
        theta = -self.bias[...][..., None, None, None, :]
        gamma = jnp.ones((), theta.dtype) if self.c is None else self.c[...]
        if self.constrained:
            size = _layers.norm_from_below(D.conv, _NORM_STEPS)
            zero = size**2 == 0  # then every step is safe
            most = jnp.where(zero, jnp.inf, (1 - _MARGIN) / jnp.where(zero, 1, size) ** 2)
            gamma, theta = jnp.minimum(magnitude(gamma), most), magnitude(theta)
        return Step(D, gamma, theta, B)

    def _conv(self, kernel: Array) -> ImageConv:
        return ImageConv(kernel, self.side, self.stride, self.padding)


def check_bank(shape: Shape, bank: Filters, j: int) -> None:
    """Raise unless the filters of layer j fit codes of the given shape."""
    if not isinstance(bank, Filters):
        raise TypeError(f"MLCSC: the filters of layer {j} are {bank!r}; expected models.Filters")
    for name, size, least in zip(Filters._fields, bank, (1, 1, 1, 0)):
        checks.as_index(size, f"{name} of layer {j}", "MLCSC", least=least)
    H, W, _ = shape
    if bank.kernel > min(H, W) + 2 * bank.padding:
        raise ValueError(
            f"MLCSC: layer {j} has a kernel of {bank.kernel} on pictures of {H} x {W} with padding "
            f"{bank.padding}; expected one that fits"
        )


class Violations(Result):
    """The conditions of proximal gradient methods that the layers of a network violate."""

    thresholds: tuple[int, ...]  # number of negative thresholds in each layer
    steps: tuple[float, ...]  # gamma_j norm(D_j, 2)^2, which should be in (0, 1]
    layers: int  # number of layers with a negative threshold or a step outside (0, 1]


def violations(steps: list[Step]) -> Violations:
    """See `MLCSC.violations`."""
    thresholds = tuple(int(np.sum(np.asarray(step.theta) < 0)) for step in steps)
    sizes = tuple(float(step.gamma) * _norm_squared(step.D) for step in steps)
    bad = [n > 0 or not 0 < size <= 1 + 1e-5 for n, size in zip(thresholds, sizes)]
    return Violations(thresholds, sizes, sum(bad))


def _norm_squared(D: ImageConv) -> float:
    """norm(D, 2)^2 up to rounding, from the Lanczos method."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    shape = (1, *D.positions, D.kernel.shape[-1])
    gram = jax.jit(lambda D, x: ((D @ x.reshape(shape)) @ D).reshape(-1))
    size, dtype = math.prod(shape), D.kernel.dtype
    operator = LinearOperator((size, size), lambda x: gram(D, jnp.asarray(x, dtype)), dtype=dtype)
    # The start is random: a code of ones is mapped to 0 if each filter has its negative.
    start = np.random.default_rng(0).normal(size=size).astype(dtype)
    image = np.asarray(operator @ start)
    if size == 1 or not image.any():  # ARPACK accepts neither case
        return float(image[0] / start[0])
    return float(eigsh(operator, k=1, v0=start, return_eigenvectors=False)[0])


Classifier = Callable[..., nnx.Module]  # (shape, classes, activation, rngs=...)


class Linear(nnx.Module):
    """The logits of a code, computed by one dense layer."""

    def __init__(self, shape: Shape, classes: int, activation: Callable, *, rngs: nnx.Rngs):
        self.dense = Dense(math.prod(shape), classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.dense(x.reshape(len(x), -1))


class Convolutional(nnx.Module):
    """The logits of a code, computed by three convolutions (two with pooling) and a dense layer."""

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


MNIST = Filters(32, 6, 2), Filters(64, 6, 2), Filters(512, 4)
CIFAR10 = Filters(32, 4, 2, 1), Filters(64, 4, 2, 1), Filters(128, 4, 2, 1)
_PROXIMAL = ("cnn", "ml-ista", "ml-fista", "layered-bp")  # methods that can be constrained


class MLCSC(nnx.Module):
    r"""A classifier of the codes that T unfoldings of a multi-layer pursuit compute.

    The model is a chain of convolutional dictionaries, x_{j-1} = D_j x_j, with nonnegative codes
    x_j; x_0 = y is the picture. The first codes are the codes of a plain CNN, which equal the codes
    after one step of ML-ISTA from x_J = 0:

    .. math:: x_j = \rho(\gamma_j D_j' x_{j-1} + b_j), \quad j = 1, \dots, J.

    The methods unfold the steps of `pursuit.ml_ista_step` from these codes. Except in "all-free",
    all steps have the same params, and the number of params does not depend on T.

    - "cnn": no unfoldings.
    - "ml-ista": x_{j-1} = D_j x_j from the last layer to the first, then
      x_j <- rho(x_j + gamma_j D_j'(x_{j-1} - D_j x_j) + b_j) from the first layer to the last.
    - "ml-fista": the steps of "ml-ista" at extrapolated points, as in `pursuit.ml_fista`.
    - "layered-bp": T steps of ISTA in every layer, one layer after the other.
    - "ml-lista": x_j <- rho(x_j - D_j' D_j x_j + B_j' x_{j-1} + b_j), with separate analysis
      filters B_j and no step sizes.
    - "all-free": ML-ISTA with separate params in each of the T + 1 steps.

    With rho = ReLU, the steps are steps of proximal gradient methods with thresholds -b_j if
    b_j <= 0 and gamma_j norm(D_j, 2)^2 <= 1. Training may violate both conditions. `violations`
    counts the layers that violate these conditions. With `constrained`, the thresholds are abs(b_j)
    and the step sizes are min(abs(c_j), 0.95 / norm(D_j, 2)^2), with the norm from 30 Lanczos
    steps. Derivatives use reverse mode.

    Args:
        shape: (H, W, C) of the pictures.
        filters: the sizes of the J filter banks. The trained params of a bank are the filters, the
            step size c_j = gamma_j and one bias per filter.
        method: one of the names above.
        unfoldings: T.
        classes: number of outputs.
        activation: rho, an activation of `unrolled.activations`, its name or any function.
        classifier: function that returns the module that maps x_J to logits, called as
            `classifier(shape of x_J, classes, activation, rngs=rngs)`; by default a dense layer.
        constrained: if True, the steps stay proximal gradient steps; not available for "ml-lista"
            and "all-free".
        rngs: the nnx.Rngs that draws the params. Filters are normal with standard deviation 0.1 /
            sqrt(fan-in). All methods except "all-free" have equal initial filters.

    Attributes:
        early: the names of x_1, ..., x_J for `tap`.

    Raises:
        TypeError: a size is not an integer, the activation is not a function, filters are not a
            sequence of `Filters`, or rngs is not an nnx.Rngs.
        ValueError: the method is unknown, filters do not fit or are missing, a size is out of
            range, or a method cannot be constrained. A call raises ValueError if pictures have
            another shape.

    Reference: Sulam, Aberdam, Beck, Elad, "On multi-layer basis pursuit, efficient algorithms and
    convolutional neural networks" (2020). The paper does not say with which dictionary ML-LISTA
    computes x_{j-1} from x_j; here the dictionary is D_j.

    Not claimed: that the codes have converged after T unfoldings, or that more unfoldings classify
    better.

    Example:
        >>> from flax import nnx
        >>> sizes = ur.vision.models.Filters(8, 4, stride=2), ur.vision.models.Filters(16, 3)
        >>> rngs = nnx.Rngs(0)
        >>> net = ur.vision.models.MLCSC((8, 8, 1), sizes, "ml-ista", unfoldings=2, rngs=rngs)
        >>> y = jax.random.uniform(jax.random.key(0), (5, 8, 8, 1))
        >>> net(y).shape, [x.shape for x in net.pursue(y)], net.violations().layers
        ((5, 10), [(5, 3, 3, 8), (5, 1, 1, 16)], 0)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        filters: Sequence[Filters],
        method: str,
        unfoldings: int = 6,
        *,
        classes: int = 10,
        activation: str | Callable[[Array], Array] = relu,
        classifier: Classifier = Linear,
        constrained: bool = False,
        rngs: nnx.Rngs,
    ):
        checks.one_of(method, PURSUITS, "method", "MLCSC")
        constrained = checks.as_bool(constrained, "constrained", "MLCSC")
        if not callable(classifier):
            raise TypeError(f"MLCSC: classifier must make a module, got {classifier!r}")
        if constrained and method not in _PROXIMAL:
            raise ValueError(
                f"MLCSC: {method} cannot be constrained; expected one of {', '.join(_PROXIMAL)}"
            )
        if not isinstance(filters, Sequence):
            raise TypeError(f"MLCSC: filters must be a sequence of models.Filters, got {filters!r}")
        if not filters:
            raise ValueError("MLCSC: no filters; expected the sizes of one layer at least")
        T = checks.as_index(unfoldings, "unfoldings", "MLCSC")
        if np.shape(shape) != (3,):
            raise ValueError(f"MLCSC: shape is {shape}; expected (H, W, C)")
        for name, size in zip(("H", "W", "C"), shape):
            checks.as_index(size, name, "MLCSC", least=1)
        _layers.check_rngs(rngs, "MLCSC")
        self.picture, self.method = tuple(shape), method
        self.unfoldings = 0 if method == "cnn" else T
        self.activation = by_name(activation)
        options: dict[str, Any] = dict(
            copies=(T + 1,) if method == "all-free" else (),
            analysis=method == "ml-lista",
            constrained=constrained,
        )
        self.layers: nnx.List[PursuitLayer] = nnx.List()
        for j, bank in enumerate(filters, start=1):
            check_bank(shape, bank, j)
            self.layers.append(PursuitLayer(shape, bank, rngs, **options))
            shape = self.layers[-1].shape
        self.codes = nnx.List([Features() for _ in self.layers])
        classes = checks.as_index(classes, "classes", "MLCSC", least=1)
        self.classifier = classifier(shape, classes, self.activation, rngs=rngs)

    @classmethod
    def mnist(
        cls, method: str, unfoldings: int = 6, *, constrained: bool = False, rngs: nnx.Rngs
    ) -> "MLCSC":
        """The paper's network for MNIST, with 604,909 params; pictures (N, 28, 28, 1) in [0, 1].

        Example:
            >>> from flax import nnx
            >>> net = ur.vision.models.MLCSC.mnist("ml-fista", rngs=nnx.Rngs(0))
            >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
            604909
        """
        return cls((28, 28, 1), MNIST, method, unfoldings, constrained=constrained, rngs=rngs)

    @classmethod
    def cifar10(
        cls, method: str, unfoldings: int = 6, *, constrained: bool = False, rngs: nnx.Rngs
    ) -> "MLCSC":
        """The paper's network for CIFAR-10, with 4,005,869 params; pictures (N, 32, 32, 3).

        Three layers are unfolded; three plain convolutions and a dense layer classify the last
        code. The paper subtracts the mean of each channel and divides by its standard deviation.
        """
        return cls(
            (32, 32, 3),
            CIFAR10,
            method,
            unfoldings,
            classifier=Convolutional,
            constrained=constrained,
            rngs=rngs,
        )

    @property
    def early(self) -> tuple[str, ...]:
        return tuple(f"codes.{j}" for j in range(len(self.codes)))

    def __call__(self, y: Array) -> Array:
        """The logits of pictures.

        Args:
            y: the pictures, (N, H, W, C).

        Returns:
            The logits, (N, classes).
        """
        xs = [code(x) for code, x in zip(self.codes, self.pursue(y))]
        return self.classifier(xs[-1])

    def pursue(self, y: Array) -> Codes:
        """The codes x_1, ..., x_J of pictures; x_j is (N, h_j, w_j, m_j).

        Args:
            y: the pictures, (N, H, W, C).
        """
        y = _layers.as_pictures(y, self.layers[0].kernel, self.picture[2], "MLCSC")
        if y.shape[1:] != self.picture:
            expected = ", ".join(map(str, self.picture))
            raise ValueError(f"MLCSC: the pictures have shape {y.shape}; expected (N, {expected})")
        steps = [layer.step() for layer in self.layers]
        return PURSUITS[self.method](steps, y, self.unfoldings, self.activation)

    def violations(self) -> Violations:
        """The layers that are not steps of a proximal gradient method, computed on the host.

        For "ml-lista", the method uses D_j and steps of size 1. For "all-free", the result has J
        layers for each of the T + 1 steps.
        """
        checks.on_host(nnx.state(self), "MLCSC.violations", "the network")
        steps = [layer.step() for layer in self.layers]
        if self.method != "all-free":
            return violations(steps)
        times = range(self.unfoldings + 1)
        return violations([step for t in times for step in at_time(steps, t)])
