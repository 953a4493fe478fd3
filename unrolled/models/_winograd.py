"""Convolution with 3 x 3 filters by Winograd's F(2 x 2, 3 x 3), with padding, for even sides.

A square of 2 x 2 outputs takes 16 products of channels instead of 36. Per output y and input tile
d of 4 x 4, with the filter g and elementwise products,

    y = A' ((G g G') * (B' d B)) A.

Reference: Lavin, Gray, "Fast algorithms for convolutional neural networks" (2016).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _lax
from unrolled._checks import Array
from unrolled._numbers import wide_dtype

_B = np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]])
_AT_ONCE = 1024  # pixels whose tiles stay in the cache

Tile = list[list[Array]]  # its entries are arrays of their own: to stack them would cost a copy


@jax.custom_vjp
def winograd(x: Array, kernel: Array) -> Array:
    """The correlation of x, (N, H, W, C_in) with even sides, with kernel, (3, 3, C_in, C_out).

    Returns:
        (N, H, W, C_out).
    """
    return _correlation(_transform(_G, _entries(kernel)), x, 0)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Tile]]:
    filters = _transform(_G, _entries(kernel))
    return _correlation(filters, x, 0), (x, filters)


def _backward(saved: tuple[Array, Tile], g: Array) -> tuple[Array, Array]:
    x, filters = saved
    # The transform of a filter that is turned by 180 degrees has the same entries in this order.
    turned = [[filters[a][b] for b in (3, 1, 2, 0)] for a in (3, 1, 2, 0)]
    return _correlation(turned, g, 1), _kernel_gradient(x, g)


def _correlation(filters: Tile, x: Array, axis: int) -> Array:
    """Of pictures with transformed filters, whose `axis` belongs to the channels of x."""

    def outputs(x: Array) -> Array:
        pairs = [zip(*rows) for rows in zip(_tiles(x), filters)]
        products = [[_product(tile, filter, 1, axis) for tile, filter in row] for row in pairs]
        return _pictures(_transform(_A.T, products), *x.shape[:3])

    return lax.map(outputs, _chunks(x)).reshape(*x.shape[:3], -1)


def _kernel_gradient(x: Array, g: Array) -> Array:
    """Of the sum of g times the outputs, (3, 3, C_in, C_out)."""

    def add(total: Tile, pair: tuple[Array, Array]) -> tuple[Tile, None]:
        x, g = pair
        squares = [[_rows(g[:, a::2, b::2]) for b in (0, 1)] for a in (0, 1)]
        rows = zip(total, _tiles(x), _transform(_A, squares))
        return [
            [sum_ + _product(tile, square, 0, 0, wide) for sum_, tile, square in zip(*row)]
            for row in rows
        ], None

    wide = wide_dtype(x.dtype)  # in half precision a long sum stops to grow
    zero = jnp.zeros((x.shape[-1], g.shape[-1]), wide)
    total, _ = _lax.scan(add, [[zero] * 4] * 4, (_chunks(x), _chunks(g)))
    return jnp.stack([jnp.stack(row) for row in _transform(_G.T, total)]).astype(x.dtype)


winograd.defvjp(_forward, _backward)


def _transform(M: np.ndarray, tile: Tile) -> Tile:
    """M tile M'."""
    for _ in range(2):  # M by columns, which come out as rows
        tile = [[_combination(row, column) for row in M] for column in zip(*tile)]
    return tile


def _combination(weights: np.ndarray, arrays: tuple[Array, ...]) -> Array:
    terms = [
        array if weight == 1 else -array if weight == -1 else array * weight.astype(array.dtype)
        for weight, array in zip(weights, arrays)
        if weight
    ]
    return functools.reduce(jnp.add, terms)


def _product(a: Array, b: Array, i: int, j: int, dtype: Any = None) -> Array:
    """The matrix product over axis i of a and axis j of b, without a transpose in memory."""
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), preferred_element_type=dtype)


def _entries(kernel: Array) -> Tile:
    return [[kernel[a, b] for b in range(3)] for a in range(3)]


def _tiles(x: Array) -> Tile:
    """B' d B of all tiles, each entry (tiles, C)."""
    H, W = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tile = [[_rows(x[:, a : a + H - 1 : 2, b : b + W - 1 : 2]) for b in range(4)] for a in range(4)]
    return _transform(_B.T, tile)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _pictures(squares: Tile, N: int, H: int, W: int) -> Array:
    """Squares of 2 x 2 outputs, as pictures (N, H, W, C)."""
    rows = [jnp.stack([y.reshape(N, H // 2, W // 2, -1) for y in row], 3) for row in squares]
    return jnp.stack(rows, 2).reshape(N, H, W, -1)


def _chunks(x: Array) -> Array:
    """Pictures in chunks of `_AT_ONCE` pixels, or less where the batch cannot be divided so."""
    N, H, W, _ = x.shape
    most = max(1, _AT_ONCE // (H * W))
    size = next(n for n in range(min(N, most), 0, -1) if N % n == 0)
    return x.reshape(-1, size, *x.shape[1:])
