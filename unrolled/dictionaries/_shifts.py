"""What the shifts of a filter bank have in common: inner products, and weights from one window."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled._checks import Array
from unrolled._numbers import exponent, ldexp, widened
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
    scaled = jax.tree.map(lambda filters: ldexp(filters, -k), D)
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
        W = ldexp(W / jnp.sum(W * filters, axis=0, keepdims=True), -k)
    return replace(D, filters=W.T.reshape(D.filters.shape).astype(D.filters.dtype))
