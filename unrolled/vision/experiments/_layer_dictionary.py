"""A convolutional layer of a network as a sparse coder: its filters as a dictionary."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from scipy import optimize

from unrolled import activations, pursuit
from unrolled._base import checks
from unrolled._base.doors import Array, Result, checked
from unrolled._base.numbers import norm
from unrolled.dictionaries import Conv
from unrolled.vision.models import CSCLayer, submodule

_DILATIONS = ("kernel_dilation", "input_dilation")


class LayerDictionary(Result):
    r"""The dictionary of a layer with filters f_i and biases b_i for the input y of the layer.

    .. math:: x = \rho(N (D'y - theta)) / N, \quad n_i = \|f_i\|, \quad d_i = f_i / n_i, \quad
        theta_i = -b_i / n_i.

    The diagonal matrix N holds the norms n_i, and the features of the layer are N x. With ReLU,
    x = relu(D'y - theta) for every N. This map is one step of nonnegative ISTA from zero with step
    size 1 and penalties theta. A positive bias is a negative threshold. Batch normalisation with
    the running statistics is part of f and b.

    The signal of a layer with padding is the padded input. Therefore no atom is cut off at the
    border, and all atoms have norm 1, but D must also explain the zeros of the padding.
    """

    D: Conv  # (m, d) boundary "valid"
    theta: Array  # (n_atoms,)
    norms: Array  # (n_atoms,) n_i
    padding: tuple[tuple[int, int], ...]  # zeros before and after, per dimension
    activation: Callable[[Array], Array]  # rho

    def signals(self, inputs: Array) -> Array:
        """Inputs of the layer (N, H, W, C) as signals (N, m)."""
        padded = jnp.pad(inputs, ((0, 0), *self.padding, (0, 0)))
        return jnp.moveaxis(padded, -1, 1).reshape(len(inputs), -1)

    def codes(self, Y: Array) -> Array:
        """The features of signals (N, m) as coefficients of atoms with norm 1, (N, d)."""
        return _thresholded(self.D, self.theta, self.norms, self.activation, Y)

    def features(self, X: Array) -> Array:
        """Codes (N, d) in the shape of the layer's output, (N, H', W', n_atoms)."""
        maps = jnp.moveaxis(self.D.unflatten_code(X), 1, -1)
        return maps * jnp.broadcast_to(self.norms, maps.shape)


@partial(jax.jit, static_argnames="activation")
def _thresholded(D: Conv, theta: Array, norms: Array, activation: Any, Y: Array) -> Array:
    n, theta = D.spread(norms), D.spread(theta)
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda y: activation(n * (y @ D - theta)) / n)(Y)


@checked
def layer_dictionary(
    model: nnx.Module,
    name: str,
    signal_shape: tuple[int, ...],
    *,
    norm: str | None = None,
    activation: Callable[[Array], Array] | str | None = None,
) -> LayerDictionary:
    """The dictionary that the filters of a convolutional layer form.

    Args:
        model: any nnx.Module; its batch normalisations use the running statistics.
        name: path of the layer, which is a convolution, a module that contains one convolution, or
            the features of such a module, as in `model.early`.
        signal_shape: (height, width) of the inputs of the layer.
        norm: path of the batch normalisation of the features; None selects the batch normalisation
            in the module, if there is one.
        activation: rho; None selects the attribute `activation` of the module, of a submodule, or
            of the model.

    Raises:
        TypeError, ValueError: no layer or several layers have this path, a convolution has groups,
            dilation or a padding other than zeros, a filter is zero, there is no activation, or a
            `CSCLayer` takes more than one step or does not start from 0.

    A convolution is a module with a kernel (height, width, inputs, outputs), a bias or None, and a
    padding. An example is nnx.Conv. A batch norm is a module with mean, var, scale, bias and
    epsilon.

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.experiments import layer_dictionary
        >>> net = ur.vision.models.LeNet5(rngs=nnx.Rngs(0))
        >>> layer = layer_dictionary(net, "conv2.features", (14, 14))
        >>> layer.D.filters.shape, layer.D.shape, layer.theta.shape
        ((16, 6, 5, 5), (1176, 1600), (16,))
    """
    where = "layer_dictionary"
    _, block = block_of(model, name)
    conv = _only(block, name, _is_convolution, "convolution")
    if isinstance(conv, CSCLayer) and conv.step is not None:
        raise ValueError(
            f"{where}: {name!r} takes several steps, or one from a start; expected a layer that is "
            "one step from 0, such as a CSCLayer with unfoldings=0 and warm=False"
        )
    scaling = submodule(model, norm) if norm else _only(block, name, _is_norm, "batch norm")
    named = [node.activation for node in [*_modules(block), model] if hasattr(node, "activation")]
    rho = activation or next(iter(named), None)
    if rho is None:
        raise ValueError(f"{where}: {name!r} names no activation; pass activation=")
    if any(np.any(np.not_equal(getattr(conv, option, 1) or 1, 1)) for option in _DILATIONS):
        raise ValueError(f"{where}: the convolution of {name!r} is dilated; expected no dilation")
    if getattr(conv, "feature_group_count", 1) != 1:
        raise ValueError(f"{where}: the convolution of {name!r} has groups; expected one")
    filters, bias = _folded(conv, scaling)
    norms = np.sqrt((filters**2).sum((1, 2, 3)))
    if zero := np.flatnonzero(norms == 0).tolist():
        raise ValueError(f"{where}: filters {zero} of {name!r} are zero and cannot be atoms")
    strides = getattr(conv, "strides", None) or 1
    strides = (strides,) * 2 if isinstance(strides, int) else tuple(strides)
    padding = _padding(conv.padding, signal_shape, filters.shape[2:], strides, name)
    padded = tuple(size + sum(pads) for size, pads in zip(signal_shape, padding))
    units, theta, norms = (
        jnp.asarray(part, conv.kernel.dtype)
        for part in (filters / norms[:, None, None, None], -bias / norms, norms)
    )
    return LayerDictionary(
        Conv(units, padded, strides), theta, norms, padding, activations.by_name(rho)
    )


def block_of(model: nnx.Module, name: str) -> tuple[str, Any]:
    """Path and module of a layer: the named module or its nearest parent with a convolution.

    The path of the model itself is "".

    Raises:
        TypeError, ValueError: no module is found.
    """
    block: Any = submodule(model, name)
    while not any(map(_is_convolution, _modules(block))):
        if not name:
            raise ValueError(f"layer_dictionary: {type(model).__name__} has no convolution")
        name = name.rpartition(".")[0]
        block = submodule(model, name) if name else model
    return name, block


def _modules(node: Any) -> list[Any]:
    return [module for _, module in nnx.iter_modules(node)]


def _only(block: Any, name: str, wanted: Callable[[Any], bool], what: str) -> Any:
    """The only module in a block that is `wanted`; None if there is no such module."""
    modules = [node for node in _modules(block) if wanted(node)]
    if len(modules) > 1:
        raise ValueError(
            f"layer_dictionary: {name!r} has {len(modules)} modules that are a {what}; name one of "
            "them"
        )
    return modules[0] if modules else None


def _is_convolution(node: Any) -> bool:
    kernel = getattr(node, "kernel", None)
    plain = hasattr(node, "padding") and not hasattr(node, "transpose_kernel")
    return plain and isinstance(kernel, nnx.Variable) and kernel.ndim == 4


def _is_norm(node: Any) -> bool:
    return all(isinstance(getattr(node, name, None), nnx.Variable) for name in ("mean", "var"))


def _folded(conv: Any, scaling: Any) -> tuple[np.ndarray, np.ndarray]:
    """Filters (n_atoms, n_channels, *kernel) and biases of a convolution with its batch norm."""

    def wide(part, missing):
        return np.float64(missing) if part is None else np.asarray(part[...], np.float64)

    mask = getattr(conv, "mask", None)  # nnx.Conv applies its mask when called
    filters = (wide(conv.kernel, 1) * wide(mask, 1)).transpose(3, 2, 0, 1)
    bias = wide(conv.bias, 0) + np.zeros(len(filters))
    if scaling is not None:
        gain = wide(scaling.scale, 1) / np.sqrt(wide(scaling.var, 1) + scaling.epsilon)
        filters = filters * gain[:, None, None, None]
        bias = (bias - wide(scaling.mean, 0)) * gain + wide(scaling.bias, 0)
    return filters, bias


def _padding(
    padding: Any,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    name: str,
) -> tuple[tuple[int, int], ...]:
    """The numbers of zeros before and after the signal along each dimension."""
    if isinstance(padding, str):
        if padding.upper() not in ("VALID", "SAME"):
            raise ValueError(
                f"layer_dictionary: the convolution of {name!r} has padding {padding!r}; expected "
                "zeros: VALID, SAME or numbers"
            )
        pads = lax.padtype_to_pads(shape, kernel, strides, padding.upper())
        return tuple((int(low), int(high)) for low, high in pads)
    each = (padding,) * len(shape) if isinstance(padding, int) else padding
    return tuple((pad, pad) if isinstance(pad, int) else tuple(pad) for pad in each)


# The least penalty of the equivalent problem, in units of the largest threshold or entry of a code.
# The penalty must not be 0 because the certificate of the pursuit divides by the penalties.
_LEAST_PENALTY = 0.01
_LEAST_GAP = 1e-12  # least requested gap, relative to half the energy of the signal
_INFEASIBLE = 1e-9  # a residual below this norm (the norm is at most 1) means that no shift exists


class Pursued(Result):
    """Comparison of forward codes x with the codes x* of a pursuit; arrays have shape (images,).

    The code x* minimises J(x) = 1/2 norm(y - D x)^2 + sum_i theta_i x_i over x >= 0. The forward
    code x is one step of ISTA from zero with step size 1. Because the next layer can undo any
    scale, the best multiple of x is compared with x*, too.
    """

    bounded: bool  # False if J is not known to be bounded; then all arrays except scale are nan
    negative: float  # share of the filters with a negative threshold
    scale: np.ndarray  # c that minimises J(c x); 0 if x = 0
    gap: np.ndarray  # (J(c x) - J(x*)) / (J(0) - J(x*)): 0 for x = x*, 1 for x = 0
    change: np.ndarray  # norm(x* - x) / norm(x*)
    scaled_change: np.ndarray  # least norm(x* - c x) / norm(x*) over c
    overlap: np.ndarray  # size of the intersection of the supports divided by size of the union
    nonzeros: np.ndarray  # nonzeros of x*
    explained: np.ndarray  # 1 - norm(y - D x*)^2 / norm(y)^2
    certificate: np.ndarray  # bound on J(x*) minus the minimum, in the units of `gap`


def pursued(layer: LayerDictionary, Y: Array, tol: float, max_steps: int) -> Pursued:
    """The comparison of a layer's codes with the codes of a pursuit.

    The comparison is in float64 because the gap is a small difference if a code explains little of
    a signal.
    """
    wide = [np.asarray(part, np.float64) for part in (layer.theta, Y, jax.nn.relu(layer.codes(Y)))]
    with jax.enable_x64(True):
        D = checks.cast(layer.D, np.float64)
        theta, Y, X = map(jnp.asarray, wide)
        least = _LEAST_PENALTY * max(np.abs(wide[0]).max(), wide[2].max())
        negative, shifted = float(np.mean(wide[0] < 0)), _shifted(D, wide[0], least)
        scale, decrease = _best_multiples(D, theta, Y, X)
        if shifted is None:
            return Pursued(False, negative, np.asarray(scale), *[np.full(len(Y), np.nan)] * 7)
        e, lam = shifted
        half = np.sum((wide[1] + e) ** 2, 1) / 2
        shares = np.asarray(decrease) / half
        tight = max(tol * shares[shares > 0].min(initial=1.0), _LEAST_GAP)
        tight = 10.0 ** math.floor(math.log10(tight))  # static: each new value compiles again
        problem = D, jnp.asarray(lam), jnp.asarray(e)
        best, gap = _pursue(*problem, Y, scale, X, tol=tight, max_steps=max_steps)
        compared = _compare(D, theta, Y, X, decrease, best, gap * jnp.asarray(half))
        return Pursued(True, negative, *map(np.asarray, (scale, *compared)))


@partial(jax.jit, static_argnames=("tol", "max_steps"))
def _pursue(
    D: Conv, lam: Array, e: Array, Y: Array, scale: Array, X: Array, *, tol: float, max_steps: int
) -> tuple[Array, Array]:
    """The codes x* of a pursuit that starts at c x, and the gaps in units of norm(y + e)^2 / 2."""

    def one(y, c, x):
        options: dict[str, Any] = dict(nonnegative=True, tol=tol, max_steps=max_steps)
        result = pursuit.lasso(D, y + e, lam, start=c * x, **options)
        return result.x, result.gap

    return jax.vmap(one)(Y, scale, X)


def _parts(D: Conv, theta: Array, y: Array, x: Array) -> tuple[Array, Array, Array]:
    """The numbers a and b in J(0) - J(c x) = c a - c^2 b / 2, and D x."""
    with jax.default_matmul_precision("highest"):
        fitted = D @ x
        return jnp.vdot(x, y @ D - D.spread(theta)), jnp.vdot(fitted, fitted), fitted


@jax.jit
def _best_multiples(D: Conv, theta: Array, Y: Array, X: Array) -> tuple[Array, Array]:
    """The number c that minimises J(c x), and J(0) - J(c x), both (N,)."""

    def one(y, x):
        a, b, _ = _parts(D, theta, y, x)
        c = _ratio_or_zero(jax.nn.relu(a), b)
        return c, c * a / 2

    return jax.vmap(one)(Y, X)


@jax.jit
def _compare(
    D: Conv, theta: Array, Y: Array, X: Array, decrease: Array, best: Array, excess: Array
) -> tuple[Array, ...]:
    """The array `gap` and all later arrays of `Pursued`."""

    def one(y, x, forward, best, excess):
        a, b, fitted = _parts(D, theta, y, best)
        most = a - b / 2  # J(0) - J(x*)
        closest = _ratio_or_zero(jnp.vdot(x, best), jnp.vdot(x, x))
        either = jnp.sum((x > 0) | (best > 0))
        both = jnp.sum((x > 0) & (best > 0))
        return (
            _ratio_or_zero(most - forward, most),
            _ratio_or_zero(norm(best - x), norm(best)),
            _ratio_or_zero(norm(best - closest * x), norm(best)),
            jnp.where(either > 0, both / jnp.maximum(either, 1), 1),
            jnp.sum(best > 0),
            1 - _ratio_or_zero(norm(y - fitted), norm(y)) ** 2,
            _ratio_or_zero(excess, most),
        )

    return jax.vmap(one)(Y, X, decrease, best, excess)


def _ratio_or_zero(a: Array, b: Array) -> Array:
    """a / b, but 0 if b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _shifted(D: Conv, theta: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray] | None:
    """A small shift e (m,) of signals with penalties theta + D'e >= `least`, and the penalties.

    The shift is periodic with the stride, so D'e has one value per filter. If no shift exists, then
    by Farkas' lemma there are nonnegative codes with constant maps such that D x = 0 except at the
    border and theta'x is negative. In this case J can have a minimum only because of the border.
    """
    n_atoms, channels = D.code_grid[0], D.signal_grid[0]
    t, filters = D.stride, np.asarray(D.filters, np.float64)
    room = [(0, -n % t) for n, t in zip(D.kernel, D.stride)]
    whole = np.pad(filters, [(0, 0), (0, 0), *room])
    height, width = whole.shape[2:]
    phases = whole.reshape(n_atoms, channels, height // t[0], t[0], width // t[1], t[1])
    sums = phases.sum(axis=(2, 4)).reshape(n_atoms, -1)
    c = _least_norm(sums, least - theta)
    if c is None:  # if theta >= 0, J >= 0, but the certificate is loose if a threshold is 0
        return (np.zeros(D.shape[0]), theta) if (theta >= 0).all() else None
    times = [-(-N // t) for N, t in zip(D.signal_shape, t)]
    e = np.tile(c.reshape(channels, *t), (1, *times))[:, : D.signal_shape[0], : D.signal_shape[1]]
    return e.reshape(-1), theta + sums @ c


def _least_norm(S: np.ndarray, h: np.ndarray) -> np.ndarray | None:
    """The c of least norm with S c >= h, from nonnegative least squares; None if no c exists.

    Reference: Lawson, Hanson (1974), chapter 23, least distance programming.
    """
    stacked = np.vstack([S.T, h])
    target = np.eye(len(stacked))[-1]
    residual = stacked @ optimize.nnls(stacked, target)[0] - target
    if np.linalg.norm(residual) < _INFEASIBLE:
        return None
    return -residual[:-1] / residual[-1]
