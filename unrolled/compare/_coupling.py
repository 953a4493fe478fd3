"""How the weights and thresholds of a layer compare with what theory asks of them, step by step."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks
from unrolled._numbers import largest
from unrolled.dictionaries import Dictionary, dense
from unrolled.layers import Layer, Unrolled, names_with_role
from unrolled.theory import inner_products


class Coupling(NamedTuple):
    """The weights that act at each step against the dictionary; (K,) each, or (1,) if all share them.

    Convergence needs S_k = I - W_k'D (Chen et al. 2018, Theorem 1): `mismatch` is the relative
    distance to that, 0 where it is built in. It also needs w_i . d_i near 1 and small off-diagonal
    products. W_k and S_k are those of `layer.weights`, a step size included. Where W and D are
    shift-invariant `Conv` of one kind, W'D is that of the atoms which meet every relative shift, not
    of all positions.
    """

    diagonal_low: np.ndarray  # min of w_i . d_i
    diagonal_mean: np.ndarray
    diagonal_high: np.ndarray  # max of w_i . d_i
    mu_W: np.ndarray  # largest off-diagonal abs(w_i . d_j)
    off_diagonal: np.ndarray  # root mean square of w_i . d_j over i != j
    mismatch: np.ndarray  # norm(S - (I - W'D)) / norm(S)


def coupling(layer: Layer, params: Unrolled, D: Dictionary) -> Coupling | None:
    """The `Coupling` of stacked params to D; None for a family without weights."""
    if layer.weights is None:
        return None
    dtype = _checks.common_dtype(params, D)
    found = _per_step(layer, *_checks.cast((params, D), dtype))
    return Coupling(*(np.asarray(column, float) for column in found))


def thresholds(params: Unrolled) -> np.ndarray | None:
    """The mean threshold of each step of stacked params, (K,); None for a family without."""
    names = names_with_role(params.steps, "threshold")
    if not names:
        return None
    theta = np.asarray(getattr(params.steps, names[0]))
    return theta.reshape(len(theta), -1).mean(1)


@partial(jax.jit, static_argnames="layer")
def _per_step(layer: Layer, params: Unrolled, D) -> Coupling:
    def one(p):
        W, gamma, S = layer.weights(params.shared, p, D)
        return _one_step(W, S, gamma, D)

    first = jax.tree.map(lambda leaf: leaf[0], params.steps)
    if _depends(lambda p: layer.weights(params.shared, p, D), first):
        return lax.map(one, params.steps)
    return jax.tree.map(lambda number: number[None], one(first))


def _depends(f, argument) -> bool:
    """True if the result of `f` has to do with any leaf of its argument."""
    jaxpr = jax.make_jaxpr(f)(argument).jaxpr
    used = [*jaxpr.outvars, *(v for equation in jaxpr.eqns for v in equation.invars)]
    return any(v is given for v in used for given in jaxpr.invars)


def _one_step(W: Any, S, gamma, D) -> Coupling:
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
