"""Convolution with 3 x 3 filters whose kernel has its gradient strip by strip of a large map."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._checks import Array
from unrolled._numbers import wide_dtype

_AT_ONCE = 1024  # pixels whose neighbours stay in the cache


def plain(x: Array, kernel: Array, padding: str) -> Array:
    """The convolution of XLA, of stride 1."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers)


@jax.custom_vjp
def in_strips(x: Array, kernel: Array) -> Array:
    """The correlation of x, (N, H, W, C_in), with kernel, (3, 3, C_in, C_out), with padding.

    Returns:
        (N, H, W, C_out).
    """
    return plain(x, kernel, "SAME")


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (d_x,) = jax.vjp(lambda x: plain(x, kernel, "SAME"), x)[1](g)
    return d_x, _kernel_gradient(x, g)


in_strips.defvjp(lambda x, kernel: (in_strips(x, kernel), (x, kernel)), _backward)


def _kernel_gradient(x: Array, g: Array) -> Array:
    """The sums of x[i + a, j + b] g[i, j] over all pixels, (3, 3, C_in, C_out).

    A strip of rows is one product: of x, moved by each b, with g, moved by each -a. So a pixel is
    copied six times, and not the nine times of its neighbours.
    """
    (H, W, C_in), C_out = x.shape[1:], g.shape[-1]
    rows = _rows_at_once(H, W)
    strips = x.reshape(-1, rows, W * C_in)
    n, top = np.divmod(np.arange(len(strips), dtype=np.int32) * np.int32(rows), np.int32(H))
    g = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0))).reshape(-1, W, C_out)

    def add(carry: tuple[Array, Array], strip: tuple[Array, Any]) -> Any:
        total, between_zeros = carry
        x, first = strip
        between_zeros = lax.dynamic_update_slice(between_zeros, x, (0, C_in))
        parts = [lax.dynamic_slice_in_dim(g, first + np.int32(a), rows) for a in range(3)]
        G = jnp.concatenate(parts, -1).reshape(-1, 3 * C_out)
        X = _triples(between_zeros, C_in)
        product = lax.dot_general(G, X, (((0,), (0,)), ((), ())), preferred_element_type=wide)
        return (total + product, between_zeros), None

    wide = wide_dtype(x.dtype)  # in half precision a long sum stops to grow
    zeros = jnp.zeros((3 * C_out, 3 * C_in), wide), jnp.zeros((rows, (W + 2) * C_in), x.dtype)
    (total, _), _ = lax.scan(add, zeros, (strips, n * np.int32(H + 2) + top))
    return total.astype(x.dtype).reshape(3, C_out, 3, C_in)[::-1].transpose(0, 2, 3, 1)


def _rows_at_once(H: int, W: int) -> int:
    """Of a strip: a divisor of H."""
    most = max(1, min(H, _AT_ONCE // W))
    return next(n for n in range(most, 0, -1) if H % n == 0)


def _triples(rows: Array, C: int) -> Array:
    """All three neighbours in each row of pixels, contiguous where they lie, as (pixels, 3 C)."""
    n = rows.shape[1] // C - 2
    first = np.arange(n, dtype=np.int32)[:, None] * np.int32(C)
    numbers = lax.GatherDimensionNumbers((0, 2), (), (1,))
    X = lax.gather(rows, first, numbers, (len(rows), 3 * C), mode="clip", unique_indices=True)
    return X.reshape(-1, 3 * C)
