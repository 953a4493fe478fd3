"""The convolutional layers of the paper (Definitions 5 and 6), and networks of them as data."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import by_name, relu
from unrolled.dictionaries import pytree


def conv_layer(
    h: Array,
    filters: Array,
    bias: Array,
    *,
    stride: int | tuple[int, ...],
    activation: Callable | None = relu,
) -> Array:
    r"""One layer of a convolutional network, along any number of dimensions.

    .. math:: out[l, i] = \rho\Big(b_l + \sum_{c, k} filters[l, c, k] \; h[c, i t + k]\Big), \qquad i < \lceil N / t \rceil,

    zero-based, without a flip, with h = 0 past its end: zeros are padded on the right (and bottom)
    alone, not "SAME".

    Args:
        h: (n_in, *spatial).
        filters: (n_out, n_in, *kernel); a kernel may be longer than h.
        bias: (n_out,), one scalar per channel.
        stride: t, one for all dimensions or one each; t above the kernel size skips entries.
        activation: None for a linear layer.

    Returns:
        (n_out, *ceil(spatial / t)).

    Raises:
        ValueError: shapes that do not meet, a stride below 1.

    Reference: Li, Feng, Zhou (2024), Definitions 5 and 6, which have kernels of at least 2 and end
    with a ReLU.
    """
    h, filters, bias = (
        _checks.as_float(a, name, "conv_layer")
        for a, name in ((h, "h"), (filters, "filters"), (bias, "bias"))
    )
    strides = _strides(h, filters, bias, stride)
    dtype = _checks.common_dtype(h, filters, bias)
    h, filters, bias = h.astype(dtype), filters.astype(dtype), bias.astype(dtype)
    padding = [
        (0, max(0, (-(-n // t) - 1) * t + s - n))
        for n, s, t in zip(h.shape[1:], filters.shape[2:], strides)
    ]
    out = lax.conv_general_dilated(
        h[None], filters, strides, padding, precision=lax.Precision.HIGHEST
    )[0]
    out = out + bias.reshape(-1, *[1] * len(strides))
    return out if activation is None else by_name(activation)(out)


def _strides(h, filters, bias, stride) -> tuple[int, ...]:
    """The stride along each dimension; raises if the shapes do not meet."""
    if h.ndim < 2 or filters.ndim != h.ndim + 1 or 0 in h.shape or 0 in filters.shape:
        raise ValueError(
            f"conv_layer: h has shape {h.shape} and filters have shape {filters.shape}; expected (n_in, *spatial) and "
            "(n_out, n_in, *kernel) of as many dimensions, none of them empty. One signal per call: try jax.vmap"
        )
    if filters.shape[1] != h.shape[0] or bias.shape != filters.shape[:1]:
        raise ValueError(
            f"conv_layer: filters of shape {filters.shape} expect h with {filters.shape[1]} channels and a bias of shape "
            f"({filters.shape[0]},); got h of shape {h.shape} and a bias of shape {bias.shape}"
        )
    strides = tuple(stride) if isinstance(stride, (tuple, list)) else (stride,) * (h.ndim - 1)
    if len(strides) != h.ndim - 1:
        raise ValueError(
            f"conv_layer: stride {stride} has {len(strides)} entries; expected {h.ndim - 1}"
        )
    return tuple(_checks.as_index(t, "stride", "conv_layer", least=1) for t in strides)


@pytree(data=("filters", "bias"), static=("stride", "activation", "flat", "readout"))
@dataclass(frozen=True, eq=False)
class ConvLayer:
    """A one-dimensional `conv_layer` with its weights, called as `layer(h)`.

    Attributes:
        filters: (n_out, n_in, s).
        bias: (n_out,).
        stride: t.
        activation: None for the linear layer that emits a code.
        flat: regard the p channels of its input, of length 1, as one channel of length p.
        readout: it belongs to a read-out: what comes after the code goes on from the hidden layer
            before the read-out.
    """

    filters: Array
    bias: Array
    stride: int
    activation: Callable | None
    flat: bool
    readout: bool

    def __call__(self, h: Array) -> Array:
        h = h.reshape(1, -1) if self.flat else h
        return conv_layer(
            h, self.filters, self.bias, stride=self.stride, activation=self.activation
        )


def forward(layers: tuple[ConvLayer, ...], y: Array) -> tuple[Array, ...]:
    """The codes that a convolutional network computes, one per block: (x_1, ..., x_J).

    Args:
        layers: of a `Realization`.
        y: (m,).
    """
    dtype = _checks.common_dtype(layers, y)
    layers = _checks.cast(layers, dtype)
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


def count_weights(layers) -> int:
    """Numbers in the filters and biases, as a convolutional network stores them."""
    return sum(leaf.size for leaf in jax.tree.leaves(layers))
