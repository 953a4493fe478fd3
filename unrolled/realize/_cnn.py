"""LISTA-CP blocks as convolutional networks that compute the same codes (Lemma 14, and Theorem 6
for chains).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import Activation, by_name, relu
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.realize._blocks import blocks_of
from unrolled.realize._cnn_size import geometry
from unrolled.realize._conv_layer import ConvLayer, count_weights, forward
from unrolled.realize._lemma import block_layers
from unrolled.realize._polyphase import Architecture, identity_from


class Realization(NamedTuple):
    """A convolutional network that computes the codes of a layer or of a chain.

    Attributes:
        apply: `apply(y) -> x`, or (x_1, ..., x_J) for a chain. A known y out of range is a
            ValueError; under `jit` and `vmap` it cannot be seen, and the codes are those of another
            signal: ask `in_range`.
        layers: the convolutional layers, in order; each called as `layer(h)`. Those marked
            `readout` end in a linear layer that emits a code. In a chain the codes before the last
            are read on the side.
        depth: layers from the signal to the last code.
        n_weights: numbers in all filters and biases, zeros included.
        signal_bound: the largest max abs(y) for which the codes are those of the layer.
        offset: the largest constant that keeps the state where the activation is the identity.
            Rounding is relative to it: see `cnn`.
        run: `run(layers, y)` is `apply(y)` with the weights as arguments. Under `jit` it compiles
            faster than `apply`, which holds them as constants, and runs slower.
    """

    apply: Callable
    layers: tuple[ConvLayer, ...]
    depth: int
    n_weights: int
    signal_bound: float
    offset: float
    run: Callable

    def in_range(self, y: Array) -> Array:
        """(), True if max abs(y) is at most `signal_bound`; traceable."""
        return jnp.all(jnp.abs(y) <= self.signal_bound)


def cnn(
    layer: Layer | Network,
    params,
    D,
    *,
    kernel_size: int,
    signal_bound: float,
    form: str = "compact",
    stride: int | None = None,
    activation: Activation = relu,
) -> Realization:
    r"""A convolutional network whose codes are those of a LISTA-CP or ALISTA layer, or of a chain
    of them.

    With T_k = I - W_k'D, v = (x; y) and M = signal_bound the lemma iterates

    .. math::
        v^{k+1} = A \rho(B_k v^k - c_k) + e, \quad
        B_k = \begin{pmatrix} T_k & W_k' \\ -T_k & -W_k' \\ 0 & I \end{pmatrix}, \quad
        A = \begin{pmatrix} I & -I & 0 \\ 0 & 0 & I \end{pmatrix}, \quad
        c_k = \begin{pmatrix} \theta_k \\ \theta_k \\ -M \end{pmatrix}, \quad
        e = \begin{pmatrix} 0 \\ -M \end{pmatrix}.

    The first two parts of rho(..) are rho(u - theta) and rho(-u - theta), so their difference is
    the layer's own shrinkage.

    Args:
        layer, params, D: as in `layer.apply`; for a chain a `Network`, a tuple of params and a
            tuple of dictionaries. D and W are plain matrices.
        kernel_size: of every layer, at least 2.
        signal_bound: M, finite; `apply` takes signals with max abs(y) at most M.
        form: "literal": A and B_k in turn, each a polyphase tree. "positive": the state is z =
            rho(..) itself, one tree B_k A per step. "compact": after the first tree all has length
            1, and each B_k A is one layer, of which the first taps act. `cnn_size` counts all
            three.
        stride: of every layer, 2 to kernel_size, which is the default: with stride 1 a signal of
            length m takes at least (m - 1) / (kernel_size - 1) layers to reach one entry, so no
            depth is logarithmic.
        activation: that of the layer (it is checked). It follows every layer but those that emit a
            code.

    Returns:
        Realization, in the common dtype of params and D. In exact arithmetic and with an activation
        that is the identity on x >= 0, its codes equal the layer's for every y in range. Rounded,
        they differ as two orders of summation do: each layer errs by about eps (offset + norm(h,
        inf)) times the row sums of the absolute weights, and later steps treat that as they treat
        the layer's own rounding. With other activations the state passes where rho(x) = x to
        rounding, so the same holds with a larger `offset`. In a chain, block j > 1 carries its
        signal as the two parts of the code before it (2 d_{j-1} channels) and needs no bound;
        "literal", and an unbounded tail (leaky ReLU), lift the state by bounds of all codes that M
        allows, which grow like a power of norm(T).

    Raises:
        TypeError: params of another family, no layer or network, traced params or D (this is a host
            function).
        ValueError: a kernel size or stride for which there is no such network, shapes that do not
            meet, values that are not finite, a structured D or W, support selection, an activation
            that is not the layer's or that never becomes the identity, an offset that leaves no
            digit of the signal.

    Reference: Li, Feng, Zhou (2024), Lemma 14 and Theorem 6. There every layer ends with a ReLU; a
    code has negative entries, so here the layer that emits it is linear.
    """
    where = "realize.cnn"
    kernel_size, stride = geometry(kernel_size, stride, form, where)
    activation, M = _options(activation, signal_bound, where)
    blocks, dtype = blocks_of(layer, params, D, activation, where)
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
    with np.errstate(all="ignore"):  # bounds of the codes may overflow: refused below
        parts, offset = block_layers(blocks, net, M)
    if not offset * float(jnp.finfo(dtype).eps) <= M:
        raise ValueError(
            f"{where}: the state would be lifted by {offset:.3g}, which leaves no digit of signals up to {M:g} in {dtype}; "
            'try form="compact"'
        )
    layers = tuple(one for hidden, readout in parts for one in (*hidden, *readout))
    depth = sum(len(hidden) for hidden, _ in parts) + len(parts[-1][1])
    run = _runner(blocks[0].m, M, isinstance(layer, Network), where)
    return Realization(partial(run, layers), layers, depth, count_weights(layers), M, offset, run)


def _options(activation, signal_bound, where: str) -> tuple[Activation, float]:
    activation = by_name(activation)
    if not isinstance(activation, Activation):
        raise TypeError(
            f"{where}: expected an Activation, whose constants it can follow; got {activation!r}"
        )
    _checks.nonnegative(signal_bound, "signal_bound", where)
    _checks.finite(signal_bound, "signal_bound", where)
    return activation, float(signal_bound)


def _runner(m: int, M: float, chain: bool, where: str) -> Callable:
    def run(layers, y):
        y = _checks.as_float(y, "y", where)
        if y.shape != (m,):
            raise ValueError(
                f"{where}: y has shape {y.shape}; expected ({m},), one signal per call: try jax.vmap"
            )
        if _checks.is_concrete(y) and not np.all(np.abs(np.asarray(y)) <= M):
            raise ValueError(
                f"{where}: max abs(y) is {np.abs(np.asarray(y)).max():.6g}; expected at most signal_bound = {M:.6g}, try a "
                "realization with a larger bound"
            )
        codes = forward(layers, y)
        return codes if chain else codes[0]

    return run
