"""Losses of a batch: `loss(codes, X, D, Y) -> scalar`.

`codes[k]` is a batch of codes: for a layer the code after step k, an array (K, batch, d); for a
network the code of block k, a tuple of (batch, d_k). `codes[-1]` is the output either way. X is the
batch of true codes (for a network a tuple, or that of the last block alone), or None for the losses
that do not look at it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._checks import Array
from unrolled.pursuit import lasso_objective


def supervised(codes, X, D, Y: Array) -> Array:
    """Mean of 1/2 norm(x_K - x)^2."""
    return jnp.mean(jnp.sum((codes[-1] - _last(X)) ** 2, -1)) / 2


def log_nmse(codes, X, D, Y: Array) -> Array:
    """ln(sum norm(x_K - x)^2 / sum norm(x)^2): decibels up to a factor; its gradient does not fade
    as the error does.
    """
    target = _last(X)
    return jnp.log(jnp.sum((codes[-1] - target) ** 2)) - jnp.log(jnp.sum(target**2))


def lasso(lam: float) -> Callable:
    """Unsupervised: the mean of 1/2 norm(y - D x_K)^2 + lam norm(x_K, 1); for a network the sum
    over its blocks.
    """

    def objective(D):
        return jax.vmap(lasso_objective, (_axis(D), 0, 0, None))

    def loss(codes, X, D, Y):
        blocks = zip(D, (Y, *codes), codes) if isinstance(D, tuple) else [(D, Y, codes[-1])]
        return sum(jnp.mean(objective(D)(D, Y, x, jnp.asarray(lam, x.dtype))) for D, Y, x in blocks)

    return loss


def reconstruction(codes, X, D, Y: Array) -> Array:
    """Unsupervised: the mean of 1/2 norm(y - D x_K)^2; for a network y - D_1 ... D_J x_J."""
    signals = codes[-1]
    for Dj in reversed(D if isinstance(D, tuple) else (D,)):
        signals = jax.vmap(lambda D, x: D @ x, (_axis(Dj), 0))(Dj, signals)
    return jnp.mean(jnp.sum((Y - signals) ** 2, -1)) / 2


def deep(loss: Callable, weights=None) -> Callable:
    """Deep supervision: the weighted sum of `loss` over all steps (or blocks), equal weights that
    sum to 1 by default.
    """

    def total(codes, X, D, Y):
        if isinstance(codes, tuple):
            if X is not None and not isinstance(X, tuple):
                raise ValueError(
                    "deep: a network has one code per block; expected a tuple X, or None"
                )
            ends = range(1, len(codes) + 1)
            losses = jnp.stack([loss(codes[:j], X and X[:j], D[:j], Y) for j in ends])
        else:
            losses = jax.vmap(lambda x: loss(x[None], X, D, Y))(codes)
        if weights is None:
            return jnp.mean(losses)
        if np.shape(weights) != losses.shape:
            raise ValueError(
                f"deep: weights have shape {np.shape(weights)}; expected {losses.shape}, one per step"
            )
        return jnp.sum(jnp.asarray(weights, losses.dtype) * losses)

    return total


def _axis(D) -> int | None:
    """The batch axis of dictionaries (batch, m, d) that belong to a signal each, None for one that
    all share.
    """
    return 0 if getattr(D, "ndim", 2) == 3 else None


def _last(X):
    if X is None:
        raise ValueError(
            "loss: this loss compares with true codes, but sample gave X = None; try training.lasso"
        )
    return X[-1] if isinstance(X, tuple) else X
