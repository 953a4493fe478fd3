"""What `Conv` computes with: inner products of shifts, weights from one window, and windows."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array, ArrayLike
from unrolled._numbers import exponent, ldexp, times_power, widened
from unrolled.dictionaries._base import dense
from unrolled.dictionaries._operands import kept_atoms

# `Any` below is a `Conv`, whose module imports this one.


def corner_products(W: Any, D: Any) -> tuple[Array, Array]:
    """w_i . d_j for the corner atoms i of `Conv.corner_codes`, and the mask of i = j."""
    codes = D.corner_codes()
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda e: W.synthesize(e) @ D)(codes), codes > 0


def window_weights(D: Any, ridge: ArrayLike) -> Any:
    """The closed form of `theory.frobenius_weights` on one window as long as the kernel.

    S = A A' collects the atoms that meet the window, cut to it, as columns of A: one small system
    for the whole bank.
    """
    k = exponent(D.filters)  # the squares of the filters are to be in the range of the dtype
    scaled = jax.tree.map(lambda filters: times_power(filters, -k), D)
    whole = scaled.local(2)
    # Any window of a circle; under "valid" the middle one, which every shift meets.
    start = (
        (0,) * len(D.kernel)
        if whole is scaled
        else tuple((N - n) // 2 for N, n in zip(whole.signal_shape, D.extent))
    )
    sides = zip(start, D.extent, D.dilation)
    window = (slice(None), *(slice(s, s + n, delta) for s, n, delta in sides))
    A = dense(whole).reshape(*whole.signal_grid, -1)[window].reshape(-1, whole.shape[1])
    A, filters = widened(A), widened(scaled.filters.reshape(D.filters.shape[0], -1).T)
    with jax.default_matmul_precision("highest"):
        S = A @ A.T
        S = S + ldexp(jnp.asarray(ridge, S.dtype), -2 * k) * jnp.eye(len(S), dtype=S.dtype)
        W = jnp.linalg.pinv(S, hermitian=True) @ filters
        kept = kept_atoms(filters, S @ W, "frobenius_weights")
        W = jnp.where(kept[None, :], W, jnp.nan)
        W = times_power(W / jnp.sum(W * filters, axis=0, keepdims=True), -k)
    return replace(D, filters=W.T.reshape(D.filters.shape).astype(D.filters.dtype))


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
