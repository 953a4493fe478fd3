"""Maxima and sums over all pairs of atoms, by square tiles of products: never a (d, d) array."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array
from unrolled._numbers import largest
from unrolled._program import program

# Atoms of a side of a tile: a tile and its atoms stay in the cache of a core.
_SIDE = 512


@program("diagonal")
def row_maxima(W: Array, D: Array, diagonal: bool = False) -> Array:
    """max abs(w_i . d_j) over j != i, and over j = i too with `diagonal`; (d,)."""

    def reduce(best, sizes, own):
        sizes = sizes if diagonal else jnp.where(own, 0, sizes)
        return jnp.maximum(best, largest(sizes, 1))

    return _reduced(reduce, W, D)


@program()
def row_excess(D: Array, level: Array) -> Array:
    """The sum of (abs(d_i . d_j) - level)_+ over j != i, (d,)."""

    def reduce(total, sizes, own):
        return total + jnp.sum(jnp.where(own, 0, jnp.maximum(sizes - level, 0)), 1)

    return _reduced(reduce, D, D)


def _reduced(reduce: Callable[[Array, Array, Array], Array], W: Array, D: Array) -> Array:
    """reduce(total, abs(W'D), i = j), tile by tile along each row, from 0; (d,)."""
    (m, d), n = D.shape, -(-D.shape[1] // _SIDE)
    # Rows of atoms for the one side, columns for the other: a plain product in every tile.
    left, right = (jnp.pad(A, ((0, 0), (0, n * _SIDE - d))) for A in (W, D))
    left, right = left.T.reshape(n, _SIDE, m), right.reshape(m, n, _SIDE).swapaxes(0, 1)
    tiles, side = jnp.arange(n), jnp.arange(_SIDE)

    @jax.checkpoint
    def tile(total, i, w, j, a):
        own = (i * _SIDE + side)[:, None] == (j * _SIDE + side)[None, :]
        with jax.default_matmul_precision("highest"):
            return reduce(total, jnp.abs(w @ a), own)

    def rows(of):
        i, w = of
        start = jnp.zeros(_SIDE, D.dtype)
        return lax.scan(lambda total, ja: (tile(total, i, w, *ja), None), start, (tiles, right))[0]

    return lax.map(rows, (tiles, left)).reshape(-1)[:d]
