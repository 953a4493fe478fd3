"""Parts of the CNNs of Lemma 14: convolutional layers, trees of layers, and steps as matrices."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, checked, program
from unrolled.activations import Activation, by_name, relu
from unrolled.dictionaries import Dictionary, Operator, Structured, as_dictionary, pytree
from unrolled.layers import Layer, Unrolled, unstack
from unrolled.networks import Network

__all__ = ["ConvLayer", "conv_layer"]


@checked
def conv_layer(
    h: Array,
    filters: Array,
    bias: Array,
    *,
    stride: int | tuple[int, ...],
    activation: Callable[[Array], Array] | str | None = relu,
) -> Array:
    r"""One layer of a convolutional network, in any number of dimensions.

    .. math::
        out[l, i] = \rho\Big(b_l + \sum_{c, k} filters[l, c, k] \; h[c, i t + k]\Big), \qquad
        i < \lceil N / t \rceil.

    The convolution is a correlation (no flip) with zero-based indices. Zeros are padded only past
    the end of each dimension, unlike "SAME" padding.

    Args:
        h: the input, (n_in, *spatial).
        filters: (n_out, n_in, *kernel); a kernel may be longer than h.
        bias: (n_out,), one scalar per channel.
        stride: stride t, one number for all dimensions or one number for each dimension. A stride
            above the kernel size skips entries.
        activation: rho, a function or the name of an activation; None for a linear layer.

    Returns:
        The output, (n_out, *ceil(spatial / t)).

    Raises:
        TypeError: an array is complex or not numeric, or a stride is not an integer.
        ValueError: shapes do not match, a stride is below 1, or the activation has an unknown name.

    Reference: Li, Feng, Zhou (2024), Definitions 5 and 6. The paper assumes kernels of length at
    least 2 and a ReLU.

    Example:
        >>> h, filters = jnp.array([[1.0, -2.0, 3.0, -4.0, 5.0]]), jnp.ones((1, 1, 3))
        >>> ur.realize.conv_layer(h, filters, jnp.zeros(1), stride=2).tolist()
        [[2.0, 4.0, 5.0]]
        >>> ur.realize.conv_layer(h, filters, jnp.full(1, -3.0), stride=2, activation=None).tolist()
        [[-1.0, 1.0, 2.0]]
    """
    h, filters, bias = (
        checks.as_float(a, name, "conv_layer")
        for a, name in ((h, "h"), (filters, "filters"), (bias, "bias"))
    )
    strides = _strides(h, filters, bias, stride)
    rho = None if activation is None else by_name(activation)
    return _conv_layer(h, filters, bias, strides, rho)


@program("strides", "activation")
def _conv_layer(
    h: Array, filters: Array, bias: Array, strides: tuple[int, ...], activation: Any
) -> Array:
    h, filters, bias = checks.cast((h, filters, bias), checks.common_dtype(h, filters, bias))
    padding = [
        (0, max(0, (-(-n // t) - 1) * t + s - n))
        for n, s, t in zip(h.shape[1:], filters.shape[2:], strides)
    ]
    out = lax.conv_general_dilated(
        h[None], filters, strides, padding, precision=lax.Precision.HIGHEST
    )[0]
    out = out + bias.reshape(-1, *[1] * len(strides))
    return out if activation is None else activation(out)


def _strides(
    h: Array, filters: Array, bias: Array, stride: int | tuple[int, ...]
) -> tuple[int, ...]:
    """The stride along each dimension; raises ValueError if the shapes do not match."""
    if h.ndim < 2 or filters.ndim != h.ndim + 1 or 0 in h.shape or 0 in filters.shape:
        raise ValueError(
            f"conv_layer: h has shape {h.shape} and filters have shape {filters.shape}; "
            "expected (n_in, *spatial) and (n_out, n_in, *kernel) with as many dimensions, "
            "none of them empty. One signal per call: try jax.vmap"
        )
    if filters.shape[1] != h.shape[0] or bias.shape != filters.shape[:1]:
        raise ValueError(
            f"conv_layer: filters of shape {filters.shape} expect h with {filters.shape[1]} "
            f"channels and a bias of shape ({filters.shape[0]},); got h of shape {h.shape} and "
            f"a bias of shape {bias.shape}"
        )
    strides = tuple(stride) if isinstance(stride, (tuple, list)) else (stride,) * (h.ndim - 1)
    if len(strides) != h.ndim - 1:
        raise ValueError(
            f"conv_layer: stride {stride} has {len(strides)} entries; expected {h.ndim - 1}"
        )
    return tuple(checks.as_index(t, "stride", "conv_layer", least=1) for t in strides)


@pytree(data=("filters", "bias"), static=("stride", "activation", "flat", "readout"))
@dataclass(frozen=True, eq=False)
class ConvLayer:
    """A one-dimensional `conv_layer` with its weights, called as `layer(h)`; a pytree of arrays.

    Attributes:
        filters: the weights, (n_out, n_in, s).
        bias: one scalar per output channel, (n_out,).
        stride: t.
        activation: None for the linear layer that emits a code.
        flat: whether the layer reads p input channels of length 1 as one channel of length p.
        readout: whether the layer belongs to a read-out. A read-out is a side branch: the layer
            after the read-out starts from the output of the hidden layer before the read-out.

    Example:
        >>> filters, bias = jnp.ones((2, 1, 3)), jnp.array([0.0, -7.0])
        >>> layer = ur.realize.ConvLayer(filters, bias, 3, jax.nn.relu, flat=True, readout=False)
        >>> layer(jnp.array([[1.0], [2.0], [3.0]])).tolist()  # 3 channels of length 1
        [[6.0], [0.0]]
    """

    filters: Array
    bias: Array
    stride: int
    activation: Callable[[Array], Array] | None
    flat: bool
    readout: bool

    def __call__(self, h: Array) -> Array:
        h = h.reshape(1, -1) if self.flat else h
        return conv_layer(
            h, self.filters, self.bias, stride=self.stride, activation=self.activation
        )


@program()
def forward(layers: tuple[ConvLayer, ...], y: Array) -> tuple[Array, ...]:
    """The codes (x_1, ..., x_J) that the layers of a `Realization` compute for one signal, (m,)."""
    dtype = checks.common_dtype(layers, y)
    layers = checks.cast(layers, dtype)
    hidden = h = jnp.asarray(y, dtype)[None]
    codes = []
    for layer in layers:
        h = layer(h)
        if not layer.readout:
            hidden = h
        elif layer.activation is None:
            codes.append(h[:, 0])
            h = hidden
    return tuple(codes)


def count_weights(tree: Any) -> int:
    """Number of entries in all leaves, zeros and repeated arrays included."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# `identity_from` accepts abs(rho(x) - x) up to this many eps x. A larger distance cannot be the
# rounding error of a scaled or composed rho.
_ROUNDINGS = 8
# The points that `identity_from` searches, 1000 per decade, in units of `relu_gap`.
_SEARCHED = np.geomspace(1, 1e4, 4001)


class Architecture(NamedTuple):
    """The options that all layers of one network share.

    Attributes:
        form: "compact", "positive" or "literal".
        kernel_size: s.
        stride: t, 2 <= t <= s; only the first t taps of a filter are used.
        activation: rho.
        identity_from: rho(x) = x to rounding for all x at or above this number.
        bounded: whether the state must be lifted by bounds on the codes.
        dtype: dtype of the weights.
        stored: the last filters of each shape; equal filters, for instance in tied steps or in the
            trees, share one array.
    """

    form: str
    kernel_size: int
    stride: int
    activation: Activation
    identity_from: float
    bounded: bool
    dtype: np.dtype
    stored: dict

    def layer(
        self,
        filters: np.ndarray,
        bias: np.ndarray,
        *,
        flat: bool = False,
        linear: bool = False,
        readout: bool = False,
    ) -> ConvLayer:
        """A layer with the given first taps of the filters, (n_out, n_in, at most s)."""
        filters = np.pad(
            filters, ((0, 0), (0, 0), (0, self.kernel_size - filters.shape[2]))
        ).astype(self.dtype)
        pair = self.stored.get(filters.shape)
        if pair is None or not np.array_equal(pair[0], filters):
            pair = self.stored[filters.shape] = filters, jax.device_put(filters)
        rho = None if linear else self.activation
        bias = bias.astype(self.dtype)
        return ConvLayer(pair[1], jax.device_put(bias), self.stride, rho, flat, readout)


def tree_depth(q: int, stride: int) -> int:
    """max(1, ceil(log_t q)), computed with integers."""
    L = 1
    while stride**L < q:
        L += 1
    return L


def polyphase(
    A: np.ndarray, b: np.ndarray, low: float, net: Architecture, *, readout: bool = False
) -> tuple[ConvLayer, ...]:
    r"""The map rho(A h + b) of a signal h as a tree of L = max(1, ceil(log_t q)) layers.

    The first L - 1 layers have stride t and t, t^2, ... channels, and only rearrange entries. After
    j layers, position p of channel (k_1, ..., k_j) holds the entry k_1 + t k_2 + ... + t^(j-1) k_j
    + t^j p. The last layer applies A, with columns in the order of these entries, to a signal of
    length 1. The first layer adds an offset c so that rho is the identity on the rearranged
    entries. The last layer subtracts c:

    .. math:: A h + b = A (h + c 1) + (b - c A 1), \qquad c = \max(0, \text{identity\_from} - low).

    If L = 1 there is no offset. Slots past the q entries have weight 0 in the last layer.

    Args:
        A: (p, q).
        b: (p,).
        low: lower bound on the entries of h.
        net: the options of the network.
        readout: whether the layers form a read-out, whose last layer is linear.

    Reference: Li, Feng, Zhou (2024), Lemma 14, for the number of layers.
    """
    (p, q), t = A.shape, net.stride
    L = tree_depth(q, t)
    c = max(0.0, net.identity_from - low) if L > 1 else 0.0
    layers = []
    for j in range(1, L):
        one_hot = np.eye(t**j).reshape(t**j, t ** (j - 1), t)
        offset = np.full(t**j, c if j == 1 else 0.0)
        layers.append(net.layer(one_hot, offset, flat=j == 1, readout=readout))
    digits = np.pad(A, ((0, 0), (0, t**L - q))).reshape(p, *[t] * L)  # (p, k_L, ..., k_1)
    last = digits.transpose(0, *range(L, 0, -1)).reshape(p, t ** (L - 1), t)
    layers.append(net.layer(last, b - c * A.sum(1), flat=L == 1, linear=readout, readout=readout))
    return tuple(layers)


def identity_from(activation: Activation, dtype: np.dtype, where: str) -> float:
    """The least point found beyond which rho is the identity, that is, abs(rho(x) - x) <= 8 eps x.

    The constant eps is the machine epsilon of `dtype`. The function searches a grid, so the result
    is not a proof.

    Raises:
        ValueError: rho(x) does not approach x. An example is SELU, whose slope is above 1.
    """
    if activation.identity_on_positives:
        return 0.0
    if math.isfinite(activation.relu_gap):
        x = activation.relu_gap * _SEARCHED
        with jax.enable_x64(True):
            gap = np.abs(np.asarray(activation(jnp.asarray(x))) - x)
        off = gap > _ROUNDINGS * float(jnp.finfo(dtype).eps) * x
        first = off.size - np.argmax(off[::-1]) if off.any() else 0
        if first < off.size:
            return float(x[first])
    raise ValueError(
        f"{where}: {activation} does not become the identity for large x, so no layer can pass the "
        "state on; try an activation with a finite relu_gap "
        "(for SELU scale(elu(1.6732632423543772), k))"
    )


class Bound(NamedTuple):
    """Bounds on the magnitude of each entry of a vector and on its Euclidean norm."""

    entries: np.ndarray  # (d,)
    norm: float


@dataclass(frozen=True, eq=False)
class Update:
    """The affine part u = T x + G y of a LISTA-CP step; tied steps share one object."""

    T: np.ndarray  # (d, d), I - gamma W'D
    G: np.ndarray  # (d, m), gamma W'

    @functools.cached_property
    def norms(self) -> tuple[float, float]:
        """norm(T, 2) and norm(G, 2)."""
        return float(np.linalg.norm(self.T, 2)), float(np.linalg.norm(self.G, 2))


class MatrixStep(NamedTuple):
    """One LISTA-CP step x <- rho(u - theta) - rho(-u - theta) with u from `update`."""

    update: Update
    theta: np.ndarray  # (d,)


class MatrixBlock(NamedTuple):
    """One layer of a chain as matrices: the shape (m, d) of its dictionary, and its steps."""

    m: int
    d: int
    steps: tuple[MatrixStep, ...]


def check_coupled(layer: Layer, where: str) -> None:
    """Raise unless a step of the layer is x <- shrink(x + gamma W'(y - D x), theta).

    Raises:
        TypeError: the layer is of another family.
        ValueError: the layer selects supports.
    """
    if not layer.is_coupled:
        raise TypeError(
            f"{where}: a step of {layer} is not x <- shrink(x + gamma W'(y - D x), theta); "
            "expected such a family, as layers.lista_cp, alista, tilista or ista, without a guard "
            "or a bend, and not nonnegative"
        )
    if layer.schedule is not None:
        raise ValueError(
            f"{where}: the layer selects supports, which compares all entries with each other; "
            "no local operation does that, try the layer without `support`"
        )


def activation_of(model: Layer | Network, given: Callable | None, where: str) -> Activation:
    """The activation that all layers share, with its constants.

    Raises:
        TypeError: the model is neither a layer nor a chain, is of another family, or has an
            activation without constants.
        ValueError: a layer selects supports, activations differ between layers or from `given`, or
            the constants of the activation hold only on a part of the real line.
    """
    if not isinstance(model, (Layer, Network)):
        raise TypeError(f"{where}: expected a Layer or a Network, got {type(model).__name__}")
    layers: Sequence[Any] = model.layers if isinstance(model, Network) else (model,)
    if not layers:
        raise TypeError(
            f"{where}: expected a chain of layers, as networks.dsc makes it; {model} is none"
        )
    for layer in layers:
        check_coupled(layer, where)
    own = [layer.activation for layer in layers]
    activation, *others = dict.fromkeys(own if given is None else [given, *own])
    if others:
        got = " and ".join(map(str, (activation, *others)))
        raise ValueError(f"{where}: expected one activation, the layer's, got {got}")
    if not isinstance(activation, Activation):
        raise TypeError(
            f"{where}: expected an Activation, with the constants of its tail, got {activation!r}"
        )
    if math.isfinite(activation.reach):
        raise ValueError(
            f"{where}: {activation} is near ReLU only up to {activation.reach:g}; states may leave "
            "that range"
        )
    return activation


def blocks_of(
    model: Layer | Network, params: Any, D: Any, where: str
) -> tuple[tuple[MatrixBlock, ...], np.dtype]:
    """The blocks of a layer or of a chain, and the common dtype.

    Raises:
        TypeError: params are of another family, or arrays are traced.
        ValueError: shapes do not fit, values are not finite, or D or W is structured.
    """
    checks.on_host((params, D), where, "params or D")
    several = isinstance(model, Network) and isinstance(D, (tuple, list))
    dictionaries = tuple(_matrix(one, where) for one in (D if several else (D,)))
    Ds: Any = dictionaries if several else dictionaries[0]
    model.check(params, Ds)
    if isinstance(model, Network):
        parts = list(zip(model.layers, params, dictionaries))
    else:
        parts = [(model, params, dictionaries[0])]
    blocks = tuple(_block(layer, p, one, where) for layer, p, one in parts)
    return blocks, np.dtype(checks.common_dtype(params, dictionaries))


def _matrix(D: Dictionary, where: str) -> Operator:
    if isinstance(D, Structured):
        raise ValueError(f"{where}: D is a {type(D).__name__}; try dictionaries.dense(D)")
    return as_dictionary(D, where)


def _block(layer: Layer, params: Unrolled, D: Dictionary, where: str) -> MatrixBlock:
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Structured))
    if any(isinstance(leaf, Structured) for leaf in leaves):
        raise ValueError(f"{where}: W is structured; try dictionaries.dense(W) in the params")
    params = jax.tree.map(np.asarray, params)
    checks.finite(params, "params", where)
    m, d = D.shape
    return MatrixBlock(m, d, tuple(_steps(layer, params, np.asarray(D))))


def _steps(layer: Layer, params: Unrolled, D: np.ndarray) -> Iterator[MatrixStep]:
    """The steps in float64; steps with equal updates share one `Update`."""
    d, last = D.shape[1], None
    for p in unstack(params).steps or ():
        W, gamma, _ = layer.weights(params.shared, p, D)
        W, gamma = np.asarray(W, float), np.asarray(1.0 if gamma is None else gamma, float)
        if last is None or not (np.array_equal(W, last[0]) and np.array_equal(gamma, last[1])):
            G = np.broadcast_to(gamma, (d,))[:, None] * W.T
            last = W, gamma, Update(np.eye(d) - G @ np.asarray(D, float), G)
        yield MatrixStep(last[2], np.broadcast_to(np.asarray(p.theta, float), (d,)))


def next_bound(
    step: MatrixStep, x: Bound, y: Bound, activation: Activation
) -> tuple[np.ndarray, Bound]:
    r"""Bounds on u = T x + G y and on the next code, for all x and y within their bounds.

    .. math::
        |u| \le |T| |x| + |G| |y|, \qquad |u_i| \le \|T_i\|_2 \|x\|_2 + \|G_i\|_2 \|y\|_2, \qquad
        |x^+| \le (|u| - \theta)_+ + \min(osc, 2 L_h |u|).

    Over K steps the bounds grow like min(norm(T, inf), norm(T, 2))^K, whereas the errors of the
    codes decay in theory.

    Returns:
        Bounds on the entries of u, (d,), and on the next code.
    """
    (T, G), theta = (step.update.T, step.update.G), step.theta
    norm_T, norm_G = step.update.norms
    rows = np.linalg.norm(T, axis=1) * x.norm + np.linalg.norm(G, axis=1) * y.norm
    u = np.minimum(np.abs(T) @ x.entries + np.abs(G) @ y.entries, rows)
    u_norm = min(float(np.linalg.norm(u)), norm_T * x.norm + norm_G * y.norm)
    tail = np.full_like(u, activation.line_oscillation)
    if activation.identity_on_positives:
        tail = np.minimum(tail, 2 * activation.tail_lipschitz * u)
    entries = np.maximum(u - theta, 0) + tail
    return u, Bound(
        entries, min(u_norm + float(np.linalg.norm(tail)), float(np.linalg.norm(entries)))
    )
