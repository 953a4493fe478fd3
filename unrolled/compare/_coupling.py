"""How the weights and thresholds of a network stand to what theory asks of them, step by step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import largest
from unrolled.dictionaries import dense
from unrolled.layers import Unrolled
from unrolled.theory import inner_products


class Coupling(NamedTuple):
    """How the weights of a method stand to the dictionary at each step; (K,) each, or length 1 for
    shared weights.

    Convergence needs S_k = I - W_k'D (Chen et al. 2018, Theorem 1): `mismatch` is the relative
    distance to that, 0 where it is built in. It also needs w_i . d_i near 1 and small off-diagonal
    products. W_k stands for gamma_k W in the families with a step size, for B_k in LISTA and
    LFISTA, and S_k for S_k + M_k in LFISTA. Where W and D are shift-invariant `Conv` of one kind,
    W'D is that of the atoms which meet every relative shift, not of all positions.
    """

    diagonal_low: np.ndarray  # min of w_i . d_i
    diagonal_mean: np.ndarray
    diagonal_high: np.ndarray  # max of w_i . d_i
    mu_W: np.ndarray  # largest off-diagonal abs(w_i . d_j)
    off_diagonal: np.ndarray  # root mean square of w_i . d_j over i != j
    mismatch: np.ndarray  # norm(S - (I - W'D)) / norm(S)


class _Acting(NamedTuple):
    """What acts in a step; None where the family lacks it."""

    W: Any  # (m, d)
    S: Array | None  # (d, d)
    gamma: Array | None  # () or (d,)


def coupling(params: Unrolled, D) -> Coupling | None:
    """The `Coupling` of stacked params to D; None for a family without weights."""
    part = next(
        (
            part
            for part in (params.shared, params.steps)
            if hasattr(part, "W") or hasattr(part, "B")
        ),
        None,
    )
    if part is None:
        return None
    acting = _Acting(part.W, None, None) if hasattr(part, "W") else _Acting(part.B, part.S, None)
    if hasattr(part, "M"):
        acting = acting._replace(S=part.S + part.M)
    gamma = getattr(params.steps, "gamma", None)
    if part is params.shared:
        length = 1 if gamma is None else len(gamma)
        acting = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (length, *leaf.shape)), acting)
    acting = acting._replace(gamma=gamma)
    dtype = _checks.common_dtype(acting, D)
    found = _per_step(_checks.cast(acting, dtype), _checks.cast(D, dtype))
    return Coupling(*(np.asarray(column, float) for column in found))


def thresholds(params: Unrolled) -> np.ndarray | None:
    """The mean threshold of each step of stacked params, (K,); None for a family without."""
    if not hasattr(params.steps, "theta"):
        return None
    theta = np.asarray(params.steps.theta)
    return theta.reshape(len(theta), -1).mean(1)


@jax.jit
def _per_step(acting: _Acting, D) -> Coupling:
    return lax.map(lambda step: _one_step(*step, D), acting)


def _one_step(W, S, gamma, D) -> Coupling:
    if np.ndim(gamma):  # a step size per atom: no weights of a convolution any more
        W, gamma = dense(W) * gamma[None, :], None
    products, own = inner_products(W, D)
    if gamma is not None:
        products = gamma * products
    diagonal, off = jnp.sum(jnp.where(own, products, 0), 1), jnp.where(own, 0, products)
    mismatch = jnp.zeros((), products.dtype)
    if S is not None:
        mismatch = jnp.linalg.norm(S - jnp.eye(len(S), dtype=S.dtype) + products) / jnp.linalg.norm(
            S
        )
    return Coupling(
        diagonal_low=-largest(-diagonal),
        diagonal_mean=diagonal.mean(),
        diagonal_high=largest(diagonal),
        mu_W=largest(jnp.abs(off)),
        off_diagonal=jnp.sqrt(jnp.sum(off**2) / max(1, off.size - len(off))),
        mismatch=mismatch,
    )
