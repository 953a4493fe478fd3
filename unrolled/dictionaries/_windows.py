"""Windows of a signal, laid out so that a convolution is one matrix product."""

import math

import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array


def windows(
    r: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    positions: tuple[int, ...],
    dilation: tuple[int, ...] = (),
) -> Array:
    """All windows of a signal: (n_channels, *signal) -> (prod(positions), n_channels prod(kernel)).

    Rows and columns are in row-major order. The signal is cut into blocks as long as the stride,
    and a window is a few blocks side by side: slices and concatenations only, whose transpose is as
    cheap, where a gather would transpose to a scatter. A dilated window is a slice for each entry.
    """
    dilation = dilation or (1,) * len(kernel)
    for i, (n, t, p, delta) in enumerate(zip(kernel, stride, positions, dilation)):
        axis = 1 + 2 * i  # the axes before it are pairs (position, offset) already
        if delta > 1:
            starts = range(0, n * delta, delta)
            entries = [lax.slice_in_dim(r, k, k + (p - 1) * t + 1, t, axis) for k in starts]
            r = jnp.stack(entries, axis + 1)
            continue
        blocks = -(-n // t)
        r = _resized(r, axis, (p + blocks - 1) * t)
        r = r.reshape(*r.shape[:axis], p + blocks - 1, t, *r.shape[axis + 1 :])
        r = jnp.concatenate(
            [lax.slice_in_dim(r, j, j + p, axis=axis) for j in range(blocks)], axis + 1
        )
        r = lax.slice_in_dim(r, 0, n, axis=axis + 1)
    spatial = range(1, r.ndim)
    r = r.transpose(*spatial[::2], 0, *spatial[1::2])
    return r.reshape(math.prod(positions), -1)


def _resized(r: Array, axis: int, length: int) -> Array:
    """`r` cut along `axis` to `length`, or padded to it by entries that no window contains."""
    size = r.shape[axis]
    if size >= length:
        return lax.slice_in_dim(r, 0, length, axis=axis)
    return jnp.pad(r, [(0, length - size if a == axis else 0) for a in range(r.ndim)])
