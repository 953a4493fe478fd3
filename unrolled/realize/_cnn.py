"""LISTA-CP layers and chains as convolutional networks (Lemma 14 and Theorem 6), the size of these
networks, and the networks as modules of flax.nnx.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, Result, checked, program
from unrolled._base.packages import require
from unrolled.activations import Activation, by_name
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network
from unrolled.realize import _cnn_layers
from unrolled.realize._cnn_layers import Architecture, Bound, ConvLayer, MatrixBlock, MatrixStep

__all__ = ["CnnSize", "Realization", "cnn", "cnn_size", "nnx_module"]


Layers = tuple[ConvLayer, ...]


class State(NamedTuple):
    """The output h of a layer, and the affine map to the input of the next layer, v = A h + e."""

    A: np.ndarray  # (p, q)
    e: np.ndarray  # (p,)
    low: float  # lower bound on the entries of h
    tree: bool  # h can be read as a signal of length q; otherwise h is q channels of length 1
    signed: bool  # h is v up to a constant; otherwise h has the positive and negative parts of v
    offset: float  # the largest constant that has lifted a state so far


def block_layers(
    blocks: tuple[MatrixBlock, ...], net: Architecture, M: float
) -> tuple[list[tuple[Layers, Layers]], float]:
    """Hidden layers and read-out of every block, and the largest constant that lifts the state."""
    m, layers = blocks[0].m, []
    state = State(np.eye(m), np.zeros(m), -M, tree=True, signed=True, offset=M)
    signal = Bound(np.full(m, M), M * math.sqrt(m))
    lift = net.identity_from + signal.entries
    for block in blocks:
        hidden, state, code = _hidden(block, state, signal, lift, net)
        read = state.A[: block.d] if block.steps else np.zeros((block.d, state.A.shape[1]))
        layers.append((hidden, _dense(read, np.zeros(block.d), state, net, readout=True)))
        state, signal, lift = _next_signal(read, state, code, net)
    return layers, state.offset


def _hidden(
    block: MatrixBlock, state: State, signal: Bound, lift: np.ndarray, net: Architecture
) -> tuple[Layers, State, Bound]:
    """The layers of a block up to its last state, the last state, and bounds on the code.

    The bounds are computed only if `net.bounded`.
    """
    layers: list[ConvLayer] = []
    code = Bound(np.zeros(block.d), 0.0)
    for k, step in enumerate(block.steps):
        if net.form == "literal" and not state.signed:
            more, state = _lifted(
                state, np.concatenate([code.entries, signal.entries]) if k else signal.entries, net
            )
            layers += more
        B, c = _step_map(step, lift, first=k == 0)
        layers += _dense(B @ state.A, B @ state.e - c, state, net)
        tail, code = _reach(step, code, signal, net)
        state = _parts(block.d, lift, -tail, max(state.offset, lift.max()), net)
    return tuple(layers), state, code


def _step_map(step: MatrixStep, lift: np.ndarray, *, first: bool) -> tuple[np.ndarray, np.ndarray]:
    """B_k and c_k of a step; in the first step, B_0 and c_0 act only on the signal since x^0 = 0.

    A signal given in two parts is the difference of the parts.
    """
    n, T, G, theta = len(lift), step.update.T, step.update.G, step.theta
    G = G if n == G.shape[1] else np.hstack([G, -G])
    U = G if first else np.hstack([T, G])
    return np.vstack([U, -U, np.eye(n, U.shape[1], U.shape[1] - n)]), np.concatenate(
        [theta, theta, -lift]
    )


def _parts(d: int, lift: np.ndarray, low: float, offset: float, net: Architecture) -> State:
    """The state after a step: h = (rho(u - theta), rho(-u - theta), s + lift), v = (x; s)."""
    n, tree = len(lift), net.form != "compact"
    A = np.eye(d + n, 2 * d + n, d)  # the rows that copy s
    A[:d] = np.eye(d, 2 * d + n) - np.eye(d, 2 * d + n, d)
    offset = max(offset, net.identity_from - low) if tree else offset
    return State(A, np.concatenate([np.zeros(d), -lift]), low, tree, False, offset)


def _lifted(state: State, bound: np.ndarray, net: Architecture) -> tuple[Layers, State]:
    """The layers of the map A, and the state h = v + lift, where rho is the identity."""
    lift = net.identity_from + bound
    layers = _dense(state.A, state.e + lift, state, net)
    offset = max(state.offset, lift.max())
    return layers, State(np.eye(len(lift)), -lift, net.identity_from, True, True, offset)


def _next_signal(
    read: np.ndarray, state: State, code: Bound, net: Architecture
) -> tuple[State, Bound, np.ndarray]:
    """The state from which the next block starts, the bounds on its signal, and its lift.

    The literal form carries the code. The other forms carry the positive and the negative part of
    the code, which the tail of rho bounds from below.
    """
    d, q = read.shape
    if net.form == "literal":
        return (
            state._replace(A=read, e=np.zeros(d), signed=False),
            code,
            net.identity_from + code.entries,
        )
    A = np.eye(2 * d, q) if read.any() else np.zeros((2 * d, q))
    return (
        state._replace(A=A, e=np.zeros(2 * d)),
        code,
        np.full(2 * d, net.identity_from - min(state.low, 0.0)),
    )


def _reach(step: MatrixStep, code: Bound, signal: Bound, net: Architecture) -> tuple[float, Bound]:
    """An upper bound on -rho in a step, and bounds on the code if `net.bounded`."""
    rho = net.activation
    if not net.bounded:
        return rho.relu_gap, code
    u, code = _cnn_layers.next_bound(step, code, signal, rho)
    tail = (
        rho.relu_gap
        if math.isfinite(rho.relu_gap)
        else rho.tail_lipschitz * float((u + step.theta).max())
    )
    return tail, code


def _dense(
    A: np.ndarray, b: np.ndarray, state: State, net: Architecture, *, readout: bool = False
) -> Layers:
    """The layers of rho(A h + b), where h is the output described by `state`."""
    if state.tree:
        return _cnn_layers.polyphase(A, b, state.low, net, readout=readout)
    # A layer on q channels of length 1 uses only the first tap of each filter.
    return (net.layer(A[:, :, None], b, linear=readout, readout=readout),)


FORMS = ("compact", "positive", "literal")


class CnnSize(Result):
    """Size of a convolutional network.

    Attributes:
        depth: number of layers from the signal to the last code.
        n_weights: number of entries in all filters and biases, zeros included.
    """

    depth: int
    n_weights: int


@checked
def cnn_size(
    m: int,
    d: int | Sequence[int],
    depth: int | Sequence[int],
    *,
    kernel_size: int,
    stride: int | None = None,
    form: str = "compact",
) -> CnnSize:
    r"""Depth and number of weights of `cnn`, in closed form.

    A polyphase tree R^q -> R^p of kernel size s and stride t has L(q) = max(1, ceil(log_t q))
    layers and

    .. math:: w(p, q) = \sum_{j<L} (s t^{2j-1} + t^j) + s \, t^{L-1} p + p

    weights. With n = 2d + m, a layer of K steps has

    - "literal": L(m) + (K-1) L(d+m) + K L(n) layers and
      w(n, m) + (K-1) (w(d+m, n) + w(n, d+m)) + w(d, n) weights;
    - "positive": L(m) + K L(n) layers and w(n, m) + (K-1) w(n, n) + w(d, n) weights;
    - "compact": L(m) + K layers and w(n, m) + (K-1) (s n + 1) n + (s n + 1) d weights.

    For a fixed kernel size "literal" and "positive" have O(K log(d+m)) layers, and all three forms
    have O(K (d+m)^2) weights.

    The sizes of the blocks of a chain add up; equation (31) of the paper multiplies the sizes
    instead. Block j > 1 has n = 2 d_j + 2 d_{j-1}, or 2 d_j + d_{j-1} in the form "literal". Block
    j > 1 starts from the last state of block j - 1, and the size q of this state replaces m. In the
    form "compact" one layer replaces the L(m) layers. The form "literal" also maps the last state
    to the code with L(q) layers and w(d_{j-1}, q) weights. The codes before the last code are side
    outputs, which add weights but no depth.

    Args:
        m: length of the signal.
        d: number of atoms, or a sequence with one number for each block of a chain.
        depth: number of steps K, or a sequence with one number for each block.
        kernel_size: s, at least 2.
        stride: t, from 2 to kernel_size; None means kernel_size.
        form: "compact", "positive" or "literal", as in `cnn`.

    Returns:
        CnnSize.

    Raises:
        TypeError: a size is not an integer.
        ValueError: no network has this kernel size and stride, the form is unknown, a size is too
            small, or d and depth have different lengths.

    Reference: Li, Feng, Zhou (2024), Lemma 14 and Theorem 6.

    Example:
        >>> ur.realize.cnn_size(64, 128, 10, kernel_size=2)
        CnnSize(depth=16, n_weights=1950354)
        >>> ur.realize.cnn_size(64, 128, 10, kernel_size=2, form="positive").depth
        96
    """
    where = "realize.cnn_size"
    s, t = geometry(kernel_size, stride, form, where)
    m = checks.as_index(m, "m", where, least=1)
    ds, depths = ((each,) if not isinstance(each, (tuple, list)) else each for each in (d, depth))
    if not ds or len(depths) != len(ds):
        raise ValueError(
            f"{where}: d is {d} and depth is {depth}; expected one depth for each of at least one d"
        )
    hidden, readouts, q, carried = [], [], m, m  # hidden: pairs (times, size of one map)
    later = _tap if form == "compact" else _tree
    for j, (d, K) in enumerate(zip(ds, depths)):
        d, K = checks.as_index(d, "d", where, least=1), checks.as_index(K, "depth", where)
        n, v = 2 * d + carried, d + carried
        if K and form == "literal":
            hidden += [(min(j, 1), _tree(carried, q, s, t)), (1, _tree(n, carried, s, t))]
            hidden += [(K - 1, _tree(v, n, s, t)), (K - 1, _tree(n, v, s, t))]
        elif K:
            hidden += [(1, (later if hidden else _tree)(n, q, s, t)), (K - 1, later(n, n, s, t))]
        q = n if K else q
        readouts.append((later if hidden else _tree)(d, q, s, t))
        carried = d if form == "literal" else 2 * d
    depth = sum(times * size.depth for times, size in hidden) + readouts[-1].depth
    weights = sum(times * size.n_weights for times, size in hidden) + sum(
        size.n_weights for size in readouts
    )
    return CnnSize(depth, weights)


def _tree(p: int, q: int, s: int, t: int) -> CnnSize:
    """Size of a polyphase tree R^q -> R^p."""
    L = _cnn_layers.tree_depth(q, t)
    rearranging = sum(s * t ** (2 * j - 1) + t**j for j in range(1, L))
    return CnnSize(L, rearranging + s * t ** (L - 1) * p + p)


def _tap(p: int, q: int, s: int, t: int) -> CnnSize:
    """Size of one layer R^q -> R^p that acts on q channels of length 1."""
    return CnnSize(1, s * q * p + p)


def geometry(kernel_size: int, stride: int | None, form: str, where: str) -> tuple[int, int]:
    """The checked kernel size and stride of a network of trees.

    Raises:
        TypeError: the kernel size or the stride is not an integer.
        ValueError: no network has this kernel size and stride, or the form is unknown.
    """
    checks.one_of(form, FORMS, "form", where)
    s = checks.as_index(kernel_size, "kernel_size", where)
    t = s if stride is None else checks.as_index(stride, "stride", where)
    if s < 2 or t < 2:
        raise ValueError(
            f"{where}: kernel_size is {s} and stride is {t}; expected both at least 2: "
            "with stride 1 the receptive field grows by only kernel_size - 1 per layer, "
            "so no depth is logarithmic"
        )
    if t > s:
        raise ValueError(
            f"{where}: stride {t} is above kernel_size {s}, "
            "so layers would skip entries of the signal"
        )
    return s, t


class Realization(Result):
    """A convolutional network that computes the codes of a layer or of a chain.

    Attributes:
        apply: `apply(y) -> x`, or (x_1, ..., x_J) for a chain. If a concrete y is out of range,
            `apply` raises ValueError. Under `jit` and `vmap` the range cannot be checked, and the
            codes of a y out of range are wrong: test y with `in_range`.
        layers: the convolutional layers in order, each called as `layer(h)`. The layers marked
            `readout` end with a linear layer that emits a code. In a chain the codes before the
            last code are side outputs.
        depth: number of layers from the signal to the last code.
        n_weights: number of entries in all filters and biases, zeros included.
        signal_bound: the largest max abs(y) for which the codes equal the codes of the layer.
        offset: the largest constant added to the state to keep the state in the range where the
            activation is the identity. Rounding errors are relative to this constant (see `cnn`).
        run: `run(layers, y)` is `apply(y)` with the weights as arguments. Under `jit` `run`
            compiles faster and runs slower than `apply`, which holds the weights as constants.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> layer = ur.lista_cp(2)
        >>> params = layer.init(jax.random.key(0), D)
        >>> network = ur.realize.cnn(layer, params, D, kernel_size=2, signal_bound=1.0)
        >>> jax.vmap(network.in_range)(jnp.array([[1.0, 0, 0, 0], [2.0, 0, 0, 0]])).tolist()
        [True, False]
    """

    apply: Callable[[Array], Array | tuple[Array, ...]]
    layers: tuple[ConvLayer, ...]
    depth: int
    n_weights: int
    signal_bound: float
    offset: float
    run: Callable[[tuple[ConvLayer, ...], Array], Array | tuple[Array, ...]]

    def in_range(self, y: Array) -> Array:
        """Whether max abs(y) is at most `signal_bound`, as an array (); works under `jit`."""
        return _within(checks.as_float(y, "y", "in_range"), self.signal_bound)


def cnn(
    layer: Layer | Network,
    params: Unrolled | tuple[Unrolled, ...],
    D: Dictionary | tuple[Dictionary, ...],
    *,
    kernel_size: int,
    signal_bound: float,
    form: str = "compact",
    stride: int | None = None,
    activation: Activation | str | None = None,
) -> Realization:
    r"""A convolutional network that computes the codes of a LISTA-CP or ALISTA layer or chain.

    With T_k = I - W_k'D, v = (x; y) and M = signal_bound, Lemma 14 iterates

    .. math::
        v^{k+1} = A \rho(B_k v^k - c_k) + e, \quad
        B_k = \begin{pmatrix} T_k & W_k' \\ -T_k & -W_k' \\ 0 & I \end{pmatrix}, \quad
        A = \begin{pmatrix} I & -I & 0 \\ 0 & 0 & I \end{pmatrix}, \quad
        c_k = \begin{pmatrix} \theta_k \\ \theta_k \\ -M \end{pmatrix}, \quad
        e = \begin{pmatrix} 0 \\ -M \end{pmatrix}.

    The first two blocks of rho(B_k v - c_k) are rho(u - theta) and rho(-u - theta), and their
    difference is the shrinkage of the layer. Three forms realize these maps:

    - "literal": A and B_k alternate, and each map is a polyphase tree.
    - "positive": the state is z = rho(B_k v - c_k) itself; each step is one tree for B_k A.
    - "compact": after the first tree all signals have length 1, and each B_k A is one layer that
      uses only the first tap of each filter.

    Args:
        layer: the layer, or a `Network` for a chain.
        params: params of the layer, or a tuple of params for a chain. W is a plain matrix.
        D: (m, d), a plain matrix, or a tuple of matrices for a chain.
        kernel_size: kernel size s of every layer, at least 2.
        signal_bound: M, finite; `apply` accepts signals with max abs(y) at most M.
        form: "compact", "positive" or "literal"; `cnn_size` counts the layers and weights of each
            form.
        stride: stride t of every layer, from 2 to kernel_size; None means kernel_size. With stride
            1, at least (m - 1) / (s - 1) layers are needed before one entry depends on the whole
            signal, so the depth cannot be logarithmic in m.
        activation: None, or the activation of the layer; another activation is an error. The
            activation follows every layer of the network except the layers that emit a code.

    Returns:
        Realization, in the common dtype of params and D.

        If rho is the identity on x >= 0, then in exact arithmetic the codes equal the codes of the
        layer for every y in range. In floating point the error of each layer of the network is
        about eps (offset + norm(h, inf)) times the largest absolute row sum of its weights. Later
        steps propagate this error as they propagate the rounding errors of the layer. For any other
        activation the state is lifted to a range where rho(x) = x to rounding. The same error
        estimate then holds with a larger `offset`.

        In a chain, the signal of block j > 1 is the code of block j - 1. The block carries the
        positive and the negative part of this code on 2 d_{j-1} channels and needs no bound on the
        code. Only the form "literal" and activations with an unbounded tail (leaky ReLU) lift the
        state by bounds on all codes that M allows; these bounds grow like a power of norm(T).

    Raises:
        TypeError: layer is neither a Layer nor a Network, params are of another family, or params
            or D are traced (`cnn` is a host function).
        ValueError: no network has this kernel size and stride, shapes do not match, values are not
            finite, D or W is structured, the layer selects supports, the activation differs from
            the activation of the layer or never becomes the identity, or the offset leaves no
            significant digit of the signal.
        MemoryError: the weights do not fit in memory.

    Reference: Li, Feng, Zhou (2024), Lemma 14 and Theorem 6. In the paper every layer ends with a
    ReLU; here the layers that emit a code are linear because codes have negative entries.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> layer = ur.lista_cp(3)
        >>> params = ur.analytic.lista_cp(D, depth=3, sparsity=2, bound=1.0)
        >>> network = ur.realize.cnn(layer, params, D, kernel_size=4, signal_bound=2.0)
        >>> y = D[:, 3] - 0.5 * D[:, 20]
        >>> bool(jnp.allclose(network.apply(y), layer.apply(params, D, y), atol=1e-5))
        True
        >>> network.depth, network.n_weights
        (5, 63012)
    """
    where = "realize.cnn"
    kernel_size, stride = geometry(kernel_size, stride, form, where)
    activation = _cnn_layers.activation_of(
        layer, None if activation is None else by_name(activation), where
    )
    M = checks.as_number(signal_bound, "signal_bound", where)
    checks.nonnegative(M, "signal_bound", where)
    checks.finite(M, "signal_bound", where)
    blocks, dtype = _cnn_layers.blocks_of(layer, params, D, where)
    ds, depths = zip(*((block.d, len(block.steps)) for block in blocks))
    size = cnn_size(blocks[0].m, ds, depths, kernel_size=kernel_size, stride=stride, form=form)
    checks.check_memory((size.n_weights,), np.float64, "the weights", where)
    unbounded = not math.isfinite(activation.relu_gap) and (form == "positive" or len(blocks) > 1)
    bounded = form == "literal" or unbounded
    net = Architecture(
        form,
        kernel_size,
        stride,
        activation,
        _cnn_layers.identity_from(activation, dtype, where),
        bounded,
        dtype,
        {},
    )
    with np.errstate(all="ignore"):  # bounds on the codes may overflow; the checks below refuse
        parts, offset = block_layers(blocks, net, M)
    if not M + offset <= float(jnp.finfo(dtype).max):
        raise ValueError(
            f"{where}: signals up to {M:g} and a state lifted by {offset:.3g} leave the range of "
            f"{dtype}; try signals near 1"
        )
    if not offset * float(jnp.finfo(dtype).eps) <= M:
        raise ValueError(
            f"{where}: the state would be lifted by {offset:.3g}, which leaves no digit of signals "
            f'up to {M:g} in {dtype}; try form="compact"'
        )
    layers = tuple(one for hidden, readout in parts for one in (*hidden, *readout))
    depth = sum(len(hidden) for hidden, _ in parts) + len(parts[-1][1])
    run = _Run(blocks[0].m, M, isinstance(layer, Network))
    return Realization(
        partial(run, layers), layers, depth, _cnn_layers.count_weights(layers), M, offset, run
    )


@dataclass(frozen=True)
class _Run:
    """The function `Realization.run`, which checks a signal and computes the codes."""

    m: int
    signal_bound: float
    is_chain: bool

    def __call__(self, layers: tuple[ConvLayer, ...], y: Array) -> Array | tuple[Array, ...]:
        where, M = "realize.cnn", self.signal_bound
        y = checks.as_float(y, "y", where)
        if y.shape != (self.m,):
            raise ValueError(
                f"{where}: y has shape {y.shape}; "
                f"expected ({self.m},), one signal per call: try jax.vmap"
            )
        if checks.is_concrete(y) and not np.all(np.abs(np.asarray(y)) <= M):
            raise ValueError(
                f"{where}: max abs(y) is {np.abs(np.asarray(y)).max():.6g}; expected at most "
                f"signal_bound = {M:.6g}, try a realization with a larger bound"
            )
        codes = _cnn_layers.forward(layers, y)
        return codes if self.is_chain else codes[0]


@program()
def _within(y: Array, bound: float) -> Array:
    return jnp.all(jnp.abs(y) <= bound)


if TYPE_CHECKING:
    from flax import nnx


@checked
def nnx_module(realization: Realization) -> "nnx.Module":
    """A realization as an nnx.Module: `module(y)` is `realization.apply(y)`.

    Every filter array and every bias is an nnx.Param and can be trained, even if a filter only
    rearranges entries. Filters that tied steps share become separate Params. `module` checks
    signals as `apply` does.

    Not claimed: that the codes equal the codes of the layer after training.

    Raises:
        ImportError: flax is not installed.
        TypeError: the argument is not a realization.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> layer, y = ur.lista_cp(1), jnp.array([1.0, 0.0, 0.0, 0.0])
        >>> params = layer.init(jax.random.key(0), D)
        >>> network = ur.realize.cnn(layer, params, D, kernel_size=4, signal_bound=1.0)
        >>> module = ur.realize.nnx_module(network)
        >>> bool((module(y) == network.apply(y)).all())
        True
    """
    require("nnx_module", "flax")
    return _module_class()(realization)


@functools.cache
def _module_class() -> type:
    """The class of the modules, created once because jit retraces if the class changes."""
    from flax import nnx

    class ConvNetwork(nnx.Module):
        def __init__(self, realization: Realization):
            self.layers = nnx.data(jax.tree.map(nnx.Param, realization.layers))
            self.run = realization.run

        def __call__(self, y: Array) -> Array | tuple[Array, ...]:
            weights = jax.tree.map(
                lambda p: p[...], self.layers, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)
            )
            return self.run(weights, y)

    return ConvNetwork
