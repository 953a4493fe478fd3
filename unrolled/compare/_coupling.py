"""The weights and thresholds of a layer, step by step, beside what theory asks of them."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import ArrayLike
from unrolled._numbers import largest
from unrolled.dictionaries import Dictionary, dense, normalized
from unrolled.layers import Acting, Unrolled, names_with_role
from unrolled.theory import inner_products

Weights = Callable[[Any, Any, Any], Acting]  # (shared, p, D): as `Layer.weights`


class Coupling(NamedTuple):
    """The weights of each step against the dictionary: (K,), or (1,) if the steps share them.

    Convergence needs S_k = I - W_k'D (Chen et al. 2018, Theorem 1), w_i . d_i near 1 and small
    off-diagonal products. Weights of any scale are compared by `mu_W` and `off_diagonal`, which are
    taken with unit atoms and w_i . d_i scaled to 1; `largest_product` is what a step meets.
    `mismatch` is the relative distance of S_k from I - W_k'D, 0 where the coupling is built in. W_k
    and S_k are those of `layer.weights`, times the step size. If W and D are shift-invariant `Conv`
    of one geometry, W'D is taken over atoms that meet every relative shift, not over all positions.
    """

    diagonal_low: np.ndarray  # min of w_i . d_i
    diagonal_mean: np.ndarray  # mean of w_i . d_i
    diagonal_high: np.ndarray  # max of w_i . d_i
    mu_W: np.ndarray  # largest abs(w_i . d_j) over i != j, so scaled; inf if w_i . d_i = 0
    off_diagonal: np.ndarray  # root mean square of the same
    largest_product: np.ndarray  # largest abs(w_i . d_j) over i != j, as it is
    mismatch: np.ndarray  # norm(S - (I - W'D)) / norm(S)


def coupling(weights: Weights | None, params: Unrolled, D: Dictionary) -> Coupling | None:
    """The `Coupling` of stacked params to D, where `weights` is that of a layer or a block."""
    if weights is None:
        return None
    dtype = _checks.common_dtype(params, D)
    columns = _per_step(weights, *_checks.cast((params, D), dtype))
    return Coupling(*(np.asarray(column, float) for column in columns))


def thresholds(params: Unrolled) -> np.ndarray | None:
    """The mean threshold of each step of stacked params, (K,); None for a family without any."""
    names = names_with_role(params.steps, "threshold")
    return step_means(getattr(params.steps, names[0])) if names else None


def step_means(theta: ArrayLike) -> np.ndarray:
    """The mean of each row, (K,), of thresholds per step, (K,) or (K, d)."""
    theta = np.asarray(theta)
    return theta.reshape(len(theta), -1).mean(1)


def _per_step(weights: Weights, params: Unrolled, D: Dictionary) -> Coupling:
    """All steps, by one program for the steps of all methods; one step if all are equal."""
    host = jax.device_get(params.steps)
    K = min(map(len, jax.tree.leaves(host)), default=1)  # steps may have nothing of their own
    steps = [jax.tree.map(operator.itemgetter(k), host) for k in range(K)]
    if not _depends(lambda p: weights(params.shared, p, D), steps[0]):
        steps = steps[:1]
    couplings = []
    for p in steps:
        W, gamma, S = weights(params.shared, p, D)
        size = np.ones((), D.dtype) if gamma is None else gamma  # the same program as with one
        couplings.append(jax.device_get(_one_step(W, S, size, D)))
    return jax.tree.map(lambda *numbers: np.stack(numbers), *couplings)


def _depends(f: Callable[[Any], Any], argument: Any) -> bool:
    """Whether the result of `f` depends on any leaf of its argument."""
    jaxpr = jax.make_jaxpr(f)(argument).jaxpr
    used = [*jaxpr.outvars, *(v for equation in jaxpr.eqns for v in equation.invars)]
    return any(v is variable for v in used for variable in jaxpr.invars)


@jax.jit
def _one_step(W: Any, S: Any, gamma: Any, D: Dictionary) -> Coupling:
    if np.ndim(gamma):  # with a step size per atom the weights are no convolution any more
        W, gamma = dense(W) * gamma[None, :], jnp.ones((), D.dtype)
    products, own = inner_products(W, D)
    products = gamma * products
    diagonal, off = jnp.sum(jnp.where(own, products, 0), 1), jnp.where(own, 0, products)
    unit, _ = inner_products(W, normalized(D)[0])
    scale = jnp.sum(jnp.where(own, unit, 0), 1)[:, None]
    # No scale makes w_i . d_i = 1 where it is 0.
    scaled = jnp.where(own, 0, jnp.where(scale == 0, jnp.inf, unit / scale))
    mismatch = jnp.zeros((), products.dtype)
    if S is not None:
        distance = jnp.linalg.norm(S - jnp.eye(len(S), dtype=S.dtype) + products)
        mismatch = distance / jnp.linalg.norm(S)
    numbers: dict[str, Any] = dict(
        diagonal_low=-largest(-diagonal),
        diagonal_mean=diagonal.mean(),
        diagonal_high=largest(diagonal),
        mu_W=largest(jnp.abs(scaled)),
        off_diagonal=jnp.sqrt(jnp.sum(scaled**2) / max(1, off.size - len(off))),
        largest_product=largest(jnp.abs(off)),
        mismatch=mismatch,
    )
    return Coupling(**numbers)
