"""Dense maps as convolutional layers of stride at least 2: the polyphase tree, of logarithmic
depth.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.activations import Activation
from unrolled.realize._conv_layer import ConvLayer


class Architecture(NamedTuple):
    """What all layers of one network share.

    Attributes:
        form: "compact", "positive" or "literal".
        kernel_size, stride: s and t, 2 <= t <= s: only the first t taps of a filter are used.
        activation: rho.
        identity_from: rho(x) = x to rounding for x at least this.
        bounded: the state has to be lifted by bounds of the codes.
        dtype: of the weights.
        stored: the filters made last, by shape: equal ones (of tied steps, of the trees) are one
            array.
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
        self, filters: np.ndarray, bias: np.ndarray, *, flat=False, linear=False, readout=False
    ) -> ConvLayer:
        """A layer from the taps that it uses, (n_out, n_in, at most s)."""
        filters = np.pad(
            filters, ((0, 0), (0, 0), (0, self.kernel_size - filters.shape[2]))
        ).astype(self.dtype)
        known = self.stored.get(filters.shape)
        if known is None or not np.array_equal(known[0], filters):
            known = self.stored[filters.shape] = filters, jnp.asarray(filters)
        bias = jnp.asarray(bias.astype(self.dtype))
        return ConvLayer(
            known[1], bias, self.stride, None if linear else self.activation, flat, readout
        )


def tree_depth(q: int, stride: int) -> int:
    """max(1, ceil(log_t q)), in integers."""
    L = 1
    while stride**L < q:
        L += 1
    return L


def polyphase(
    A: np.ndarray, b: np.ndarray, low: float, net: Architecture, *, readout=False
) -> tuple[ConvLayer, ...]:
    r"""rho(A h + b) as L = max(1, ceil(log_t q)) layers of stride t on the q entries of h, regarded
    as a signal.

    The first L - 1 layers have t, t^2, ... channels and rearrange: after j of them channel (k_1,
    ..., k_j) holds at position p the entry k_1 + t k_2 + ... + t^(j-1) k_j + t^j p. The last layer
    is A in that order, on length 1. So that rho is the identity while rearranging, the first layer
    adds an offset c and the last one subtracts it:

    .. math:: A h + b = A (h + c 1) + (b - c A 1), \qquad c = \max(0, \text{identity\_from} - low).

    Slots past the q entries have weight 0 in the last layer, whatever is in them.

    Args:
        A: (p, q).
        b: (p,).
        low: every entry of h is at least this.
        readout: the layers make a read-out, whose last layer is linear.

    Reference: Li, Feng, Zhou (2024), Lemma 14, whose count of layers this is. With L = 1 there is
    no offset.
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
    A: np.ndarray, b: np.ndarray, net: Architecture, *, readout=False
) -> tuple[ConvLayer, ...]:
    """rho(A h + b) as one layer on the q channels of h, of length 1: all taps but the first meet
    padded zeros.
    """
    return (net.layer(A[:, :, None], b, linear=readout, readout=readout),)


def identity_from(activation: Activation, dtype, where: str) -> float:
    """The least number found from which abs(rho(x) - x) <= 8 eps x, with eps of `dtype`: a search,
    not a proof.

    Eight, so that the rounding inside a scaled or composed rho is not taken for its distance from
    x.

    Raises:
        ValueError: rho does not approach x, as SELU with its slope above 1.
    """
    if activation.identity_on_positives:
        return 0.0
    if math.isfinite(activation.relu_gap):
        x = activation.relu_gap * np.geomspace(1, 1e4, 4001)
        with jax.enable_x64(True):
            off = (
                np.abs(np.asarray(activation(jnp.asarray(x))) - x)
                > 8 * float(jnp.finfo(dtype).eps) * x
            )
        first = off.size - np.argmax(off[::-1]) if off.any() else 0
        if first < off.size:
            return float(x[first])
    raise ValueError(
        f"{where}: {activation} does not become the identity for large x, so no layer can pass the state on; "
        "try an activation with a finite relu_gap (for SELU scale(elu(1.6732632423543772), k))"
    )
