"""Dense maps as convolutional layers of stride at least 2: polyphase trees of logarithmic depth."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.activations import Activation
from unrolled.realize._conv_layer import ConvLayer

# `identity_from` accepts abs(rho(x) - x) up to this many eps x: the rounding inside a scaled or
# composed rho is not its distance from x.
_ROUNDINGS = 8
# Where `identity_from` searches, in units of `relu_gap`: 1000 points per decade.
_SEARCHED = np.geomspace(1, 1e4, 4001)


class Architecture(NamedTuple):
    """The options that all layers of one network share.

    Attributes:
        form: "compact", "positive" or "literal".
        kernel_size: s.
        stride: t, 2 <= t <= s; only the first t taps of a filter are used.
        activation: rho.
        identity_from: rho(x) = x to rounding for all x from this number on.
        bounded: whether the state must be lifted by bounds on the codes.
        dtype: dtype of the weights.
        stored: the last filters of each shape, so that equal ones (of tied steps, of the trees)
            share one array.
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
        """A layer whose filters are given by their first taps, (n_out, n_in, at most s)."""
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
    """max(1, ceil(log_t q)), in integers."""
    L = 1
    while stride**L < q:
        L += 1
    return L


def polyphase(
    A: np.ndarray, b: np.ndarray, low: float, net: Architecture, *, readout: bool = False
) -> tuple[ConvLayer, ...]:
    r"""The map rho(A h + b) of a signal h as a tree of L = max(1, ceil(log_t q)) layers.

    The first L - 1 layers have stride t and t, t^2, ... channels, and they only rearrange: after j
    of them channel (k_1, ..., k_j) holds at position p the entry
    k_1 + t k_2 + ... + t^(j-1) k_j + t^j p. The last layer applies A, with its columns in that
    order, to a signal of length 1. The first layer adds an offset c, so that rho is the identity on
    the rearranged entries, and the last layer subtracts it:

    .. math:: A h + b = A (h + c 1) + (b - c A 1), \qquad c = \max(0, \text{identity\_from} - low).

    If L = 1 there is no offset. Slots past the q entries have weight 0 in the last layer.

    Args:
        A: (p, q).
        b: (p,).
        low: lower bound on the entries of h.
        net: the options of the network.
        readout: whether the layers make a read-out, whose last layer is linear.

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


def first_tap(
    A: np.ndarray, b: np.ndarray, net: Architecture, *, readout: bool = False
) -> tuple[ConvLayer, ...]:
    """The map rho(A h + b) as one layer on q channels of length 1; it uses only the first taps."""
    return (net.layer(A[:, :, None], b, linear=readout, readout=readout),)


def identity_from(activation: Activation, dtype: np.dtype, where: str) -> float:
    """The least x found from which on rho is the identity, abs(rho(x) - x) <= 8 eps x.

    eps is that of `dtype`. This is a search over a grid, not a proof.

    Raises:
        ValueError: rho does not approach x, for instance SELU, whose slope is above 1.
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
