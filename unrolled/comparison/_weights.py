"""The params of a method: how the weights of each step fit D, thresholds, and what training
changed.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Result
from unrolled._base.numbers import largest
from unrolled.dictionaries import Dictionary, dense, normalized
from unrolled.layers import Acting, Unrolled
from unrolled.theory import inner_products

__all__ = ["Change", "Coupling"]


Weights = Callable[[Any, Any, Any], Acting]  # (shared, p, D): as `Layer.weights`


class Coupling(Result):
    """How the weights of each step fit D: arrays (K,), or (1,) if all steps share weights.

    Convergence needs S_k = I - W_k'D (Chen et al. 2018, Theorem 1), w_i . d_i near 1 and small
    off-diagonal products. `mu_W` and `off_diagonal` do not depend on the scale of the weights: they
    refer to atoms of unit norm, with w_i . d_i scaled to 1. `largest_product` is not scaled.
    `mismatch` is the relative distance of S_k from I - W_k'D, 0 if the family couples S_k and W_k.
    `layer.weights` gives W_k and S_k; the step size multiplies W_k. If W and D are shift-invariant
    `Conv` dictionaries of one geometry, W'D has only the rows of atoms that together meet every
    relative shift, not the rows of all positions.
    """

    diagonal_low: np.ndarray  # min of w_i . d_i
    diagonal_mean: np.ndarray  # mean of w_i . d_i
    diagonal_high: np.ndarray  # max of w_i . d_i
    mu_W: np.ndarray  # largest scaled abs(w_i . d_j) over i != j; inf if w_i . d_i = 0
    off_diagonal: np.ndarray  # root mean square of the scaled w_i . d_j over i != j
    largest_product: np.ndarray  # largest unscaled abs(w_i . d_j) over i != j
    mismatch: np.ndarray  # norm(S - (I - W'D)) / norm(S)


def coupling(weights: Weights | None, params: Unrolled, D: Dictionary) -> Coupling | None:
    """The `Coupling` of stacked params to D, with the `weights` of a layer or a block."""
    if weights is None:
        return None
    dtype = checks.common_dtype(params, D)
    columns = _per_step(weights, *checks.cast((params, D), dtype))
    return jax.tree.map(lambda column: np.asarray(column, float), columns)


def step_means(theta: ArrayLike) -> np.ndarray:
    """The mean of each row, (K,), of thresholds per step, (K,) or (K, d)."""
    theta = np.asarray(theta)
    return theta.reshape(len(theta), -1).mean(1)


def _per_step(weights: Weights, params: Unrolled, D: Dictionary) -> Coupling:
    """The coupling of all steps, or of one step if all steps have the same weights."""
    host = jax.device_get(params.steps)
    K = min(map(len, jax.tree.leaves(host)), default=1)  # steps may be None
    steps = [jax.tree.map(operator.itemgetter(k), host) for k in range(K)]
    if not _depends(lambda p: weights(params.shared, p, D), steps[0]):
        steps = steps[:1]
    couplings = []
    for p in steps:
        W, gamma, S = weights(params.shared, p, D)
        size = np.ones((), D.dtype) if gamma is None else gamma  # one program serves both cases
        couplings.append(jax.device_get(_one_step(W, S, size, D)))
    return jax.tree.map(lambda *numbers: np.stack(numbers), *couplings)


def _depends(f: Callable[[Any], Any], argument: Any) -> bool:
    """Whether the result of `f` depends on any leaf of its argument."""
    jaxpr = jax.make_jaxpr(f)(argument).jaxpr
    used = [*jaxpr.outvars, *(v for equation in jaxpr.eqns for v in equation.invars)]
    return any(v is variable for v in used for variable in jaxpr.invars)


@jax.jit
def _one_step(W: Any, S: Any, gamma: Any, D: Dictionary) -> Coupling:
    if np.ndim(gamma):  # with a step size per atom the weights are not a convolution
        W, gamma = dense(W) * gamma[None, :], jnp.ones((), D.dtype)
    products, own = inner_products(W, D)
    products = gamma * products
    diagonal, off = jnp.sum(jnp.where(own, products, 0), 1), jnp.where(own, 0, products)
    unit, _ = inner_products(W, normalized(D)[0])
    scale = jnp.sum(jnp.where(own, unit, 0), 1)[:, None]
    # If w_i . d_i = 0, no scale makes it 1.
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


class Change(Result):
    """The distance of one leaf of the params from the same leaf of the reference."""

    leaf: str  # name of the leaf
    distance: float  # norm(params - reference) / norm(reference)
    per_step: np.ndarray  # (K,), the distance step by step; (1,) for a shared leaf


def changes(
    params: Mapping[str, Unrolled], reference: str | None
) -> dict[str, tuple[str, tuple[Change, ...]]]:
    """For each method, the method from which its params are measured, and the distances.

    Args:
        params: stacked params by method.
        reference: the method from which all params are measured; None for the first earlier method
            with params of the same form.
    """
    measured: dict[str, tuple[str, tuple[Change, ...]]] = {}
    for i, (name, p) in enumerate(params.items()):
        earlier = list(params)[:i] if reference is None else [reference]
        for other in earlier:
            if other != name and other in params and form_of(params[other]) == form_of(p):
                measured[name] = other, _distances(params[other], p)
                break
    return measured


def form_of(params: Unrolled) -> Any:
    """The structure of params, and the shapes of their leaves."""
    return jax.tree.structure(params), [np.shape(leaf) for leaf in jax.tree.leaves(params)]


def _distances(a: Unrolled, b: Unrolled) -> tuple[Change, ...]:
    """Relative distances of b from a, leaf by leaf."""
    distances = []
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        old, new = np.asarray(old, float), np.asarray(new, float)
        shared = getattr(path[0], "name", None) == "shared"
        rows = (1 if shared else len(old), -1)
        size = np.linalg.norm(old.reshape(rows), axis=1)
        per_step = np.linalg.norm((new - old).reshape(rows), axis=1) / np.where(size > 0, size, 1)
        whole = np.linalg.norm(new - old) / (np.linalg.norm(old) or 1.0)
        leaf = ".".join(str(getattr(k, "name", k)) for k in path[1:])
        distances.append(Change(leaf, float(whole), per_step))
    return tuple(distances)
