"""The convolutional layers of the paper (Definitions 5 and 6) and networks made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Array
from unrolled._program import program
from unrolled.activations import by_name, relu
from unrolled.dictionaries import pytree


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
        h: (n_in, *spatial).
        filters: (n_out, n_in, *kernel); a kernel may be longer than h.
        bias: (n_out,), one scalar per channel.
        stride: t, one for all dimensions or one for each. A stride above the kernel size skips
            entries.
        activation: rho, a function or the name of one; None for a linear layer.

    Returns:
        (n_out, *ceil(spatial / t)).

    Raises:
        TypeError: an array is complex or not numeric, a stride is not an integer.
        ValueError: shapes do not match, a stride is below 1, the name of the activation is unknown.

    Reference: Li, Feng, Zhou (2024), Definitions 5 and 6, with kernels of at least 2 and a ReLU.

    Example:
        >>> h, filters = jnp.array([[1.0, -2.0, 3.0, -4.0, 5.0]]), jnp.ones((1, 1, 3))
        >>> ur.realize.conv_layer(h, filters, jnp.zeros(1), stride=2).tolist()
        [[2.0, 4.0, 5.0]]
        >>> ur.realize.conv_layer(h, filters, jnp.full(1, -3.0), stride=2, activation=None).tolist()
        [[-1.0, 1.0, 2.0]]
    """
    h, filters, bias = (
        _checks.as_float(a, name, "conv_layer")
        for a, name in ((h, "h"), (filters, "filters"), (bias, "bias"))
    )
    strides = _strides(h, filters, bias, stride)
    rho = None if activation is None else by_name(activation)
    return _conv_layer(h, filters, bias, strides, rho)


@program("strides", "activation")
def _conv_layer(
    h: Array, filters: Array, bias: Array, strides: tuple[int, ...], activation: Any
) -> Array:
    h, filters, bias = _checks.cast((h, filters, bias), _checks.common_dtype(h, filters, bias))
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
    return tuple(_checks.as_index(t, "stride", "conv_layer", least=1) for t in strides)


@pytree(data=("filters", "bias"), static=("stride", "activation", "flat", "readout"))
@dataclass(frozen=True, eq=False)
class ConvLayer:
    """A one-dimensional `conv_layer` with its weights, called as `layer(h)`; a pytree of both.

    Attributes:
        filters: (n_out, n_in, s).
        bias: (n_out,).
        stride: t.
        activation: None for the linear layer that emits a code.
        flat: whether p input channels of length 1 are read as one channel of length p.
        readout: whether the layer belongs to a read-out, which branches off: the next layer after
            the read-out starts from the hidden layer before it.

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


def count_weights(tree: Any) -> int:
    """Number of entries in all leaves, zeros and repeated arrays included."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
