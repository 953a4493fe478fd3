"""LISTA-CP layers and chains as convolutional networks (Lemma 14 and Theorem 6)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled._program import program
from unrolled.activations import Activation, by_name
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network
from unrolled.realize._blocks import activation_of, blocks_of
from unrolled.realize._cnn_size import geometry
from unrolled.realize._conv_layer import ConvLayer, count_weights, forward
from unrolled.realize._lemma import block_layers
from unrolled.realize._polyphase import Architecture, identity_from


class Realization(NamedTuple):
    """A convolutional network that computes the codes of a layer or of a chain.

    Attributes:
        apply: `apply(y) -> x`, or (x_1, ..., x_J) for a chain. A concrete y out of range raises
            ValueError; under `jit` and `vmap` the range cannot be checked, and the codes of a y out
            of range are wrong: test it with `in_range`.
        layers: the convolutional layers in order, each called as `layer(h)`. The layers marked
            `readout` end with a linear one that emits a code. In a chain the codes before the last
            are side outputs.
        depth: number of layers from the signal to the last code.
        n_weights: number of entries in all filters and biases, zeros included.
        signal_bound: the largest max abs(y) for which the codes are those of the layer.
        offset: the largest constant added to the state to keep it where the activation is the
            identity. Rounding errors are relative to it, see `cnn`.
        run: `run(layers, y)` is `apply(y)` with the weights as arguments. Under `jit` it compiles
            faster than `apply`, which holds them as constants, and runs slower.

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
        """(), True if max abs(y) is at most `signal_bound`; traceable."""
        return _within(_checks.as_float(y, "y", "in_range"), self.signal_bound)


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

    With T_k = I - W_k'D, v = (x; y) and M = signal_bound the lemma iterates

    .. math::
        v^{k+1} = A \rho(B_k v^k - c_k) + e, \quad
        B_k = \begin{pmatrix} T_k & W_k' \\ -T_k & -W_k' \\ 0 & I \end{pmatrix}, \quad
        A = \begin{pmatrix} I & -I & 0 \\ 0 & 0 & I \end{pmatrix}, \quad
        c_k = \begin{pmatrix} \theta_k \\ \theta_k \\ -M \end{pmatrix}, \quad
        e = \begin{pmatrix} 0 \\ -M \end{pmatrix}.

    The first two blocks of rho(B_k v - c_k) are rho(u - theta) and rho(-u - theta), and their
    difference is the shrinkage of the layer. Three forms realize these maps:

    - "literal": A and B_k alternate, each as a polyphase tree.
    - "positive": the state is z = rho(B_k v - c_k) itself; each step is one tree for B_k A.
    - "compact": after the first tree all signals have length 1, and each B_k A is one layer that
      uses only the first taps.

    Args:
        layer: the layer, or a `Network` for a chain.
        params: of the layer, or a tuple of them for a chain. W is a plain matrix.
        D: (m, d), a plain matrix, or a tuple of them for a chain.
        kernel_size: s, of every layer, at least 2.
        signal_bound: M, finite; `apply` accepts signals with max abs(y) at most M.
        form: "compact", "positive" or "literal"; `cnn_size` counts the layers and weights of each.
        stride: t, of every layer, from 2 to kernel_size; None is kernel_size. With stride 1, at
            least (m - 1) / (s - 1) layers are needed before one entry depends on the whole signal,
            so the depth cannot be logarithmic in m.
        activation: the activation of the layer, which is checked. It follows every layer except
            those that emit a code.

    Returns:
        Realization, in the common dtype of params and D.

        If rho is the identity on x >= 0, then in exact arithmetic the codes equal those of the
        layer for every y in range. In floating point each layer errs by about
        eps (offset + norm(h, inf)) times the largest absolute row sum of its weights, and later
        steps propagate this error as they propagate the rounding of the layer itself. Other
        activations carry the state where rho(x) = x to rounding, so that the same holds with a
        larger `offset`.

        In a chain, block j > 1 carries its signal as the two parts of the code before it, on
        2 d_{j-1} channels, and needs no bound on it. Only "literal" and activations with an
        unbounded tail (leaky ReLU) lift the state by bounds on all codes that M allows; these
        bounds grow like a power of norm(T).

    Raises:
        TypeError: layer is neither a Layer nor a Network, params are of another family, params or D
            are traced; this is a host function.
        ValueError: no network has this kernel size and stride, shapes do not match, values are not
            finite, D or W is structured, the layer selects supports, the activation is not that of
            the layer or never becomes the identity, the offset leaves no digit of the signal.

    Reference: Li, Feng, Zhou (2024), Lemma 14 and Theorem 6. There every layer ends with a ReLU;
    here the layers that emit a code are linear, since codes have negative entries.

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
    activation = activation_of(layer, None if activation is None else by_name(activation), where)
    M = _checks.as_number(signal_bound, "signal_bound", where)
    _checks.nonnegative(M, "signal_bound", where)
    _checks.finite(M, "signal_bound", where)
    blocks, dtype = blocks_of(layer, params, D, where)
    unbounded = not math.isfinite(activation.relu_gap) and (form == "positive" or len(blocks) > 1)
    bounded = form == "literal" or unbounded
    net = Architecture(
        form,
        kernel_size,
        stride,
        activation,
        identity_from(activation, dtype, where),
        bounded,
        dtype,
        {},
    )
    with np.errstate(all="ignore"):  # bounds of the codes may overflow, which is refused below
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
    return Realization(partial(run, layers), layers, depth, count_weights(layers), M, offset, run)


@dataclass(frozen=True)
class _Run:
    """`Realization.run`: the codes from layers and a signal, after the checks of the signal."""

    m: int
    signal_bound: float
    is_chain: bool

    def __call__(self, layers: tuple[ConvLayer, ...], y: Array) -> Array | tuple[Array, ...]:
        where, M = "realize.cnn", self.signal_bound
        y = _checks.as_float(y, "y", where)
        if y.shape != (self.m,):
            raise ValueError(
                f"{where}: y has shape {y.shape}; "
                f"expected ({self.m},), one signal per call: try jax.vmap"
            )
        if _checks.is_concrete(y) and not np.all(np.abs(np.asarray(y)) <= M):
            raise ValueError(
                f"{where}: max abs(y) is {np.abs(np.asarray(y)).max():.6g}; expected at most "
                f"signal_bound = {M:.6g}, try a realization with a larger bound"
            )
        codes = forward(layers, y)
        return codes if self.is_chain else codes[0]


@program()
def _within(y: Array, bound: float) -> Array:
    return jnp.all(jnp.abs(y) <= bound)
