"""Thresholding, the pursuit of one layer of a CNN."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import exponent
from unrolled.activations import by_name, nonnegative_threshold, relu, shrink
from unrolled.dictionaries import Dictionary, operands
from unrolled.pursuit._grids import flat_signal, on_grid
from unrolled.pursuit._options import per_atom, static_tol
from unrolled.pursuit._problem import Pursuit, in_units, result, scaled


def threshold(
    D: Dictionary,
    y: ArrayLike,
    theta: ArrayLike,
    *,
    activation: Callable[[Array], Array] = relu,
    tol: float = 1e-6,
) -> Pursuit:
    """One layer of a CNN as a pursuit: x = shrink(D'y, theta).

    It solves the LASSO with lam = theta if D is orthonormal; `gap` and `converged` judge it as a
    solution of that problem for any D.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        theta: one number, one per atom, or one per filter of a `Conv`.
        activation: replaces ReLU in the shrinkage.
        tol: relative duality gap up to which `converged` is True.

    Returns:
        Pursuit, with one step.

    Raises:
        TypeError: operands that are not real numbers, or a traced tol.
        ValueError: shapes that do not fit, theta < 0 or beyond the range of the dtype (where
            known), or tol <= 0.

    Reference: Papyan, Romano, Elad (2017).

    Example:
        >>> found = ur.pursuit.threshold(jnp.eye(3), jnp.array([3.0, 0.5, -2.0]), 1.0)
        >>> found.x.tolist(), bool(found.converged)
        ([2.0, 0.0, -1.0], True)
    """
    y, grid = flat_signal(D, y, "threshold")
    return on_grid(thresholded("threshold", D, y, theta, activation, tol), grid)


def thresholded(
    where: str,
    D: Dictionary,
    y: ArrayLike,
    theta: ArrayLike,
    activation: Callable[[Array], Array],
    tol: float,
    nonnegative: bool = False,
) -> Pursuit:
    """`threshold`, or for x >= 0 the rectifier rho(D'y - theta), judged by the gap over x >= 0."""
    D, y, _ = operands(D, y, where)
    _checks.nonnegative(theta, "theta", where)
    theta, tol = per_atom(D, y, theta, "theta", where), static_tol(tol, where)
    nonnegative = _checks.as_bool(nonnegative, "nonnegative", where)
    b = exponent(y)
    problem = scaled(D, y, theta, (jnp.zeros((), jnp.int32), b))
    prox = nonnegative_threshold if nonnegative else shrink
    with jax.default_matmul_precision("highest"):
        x = prox(problem.y @ D, problem.lam, in_units(by_name(activation), b))
        found = result(problem, x, tol, jnp.ones((), int), nonnegative)
    # Of a large D the residual leaves the range, where infinities of both signs make nan.
    finite = jnp.isfinite(x).all()
    gap, residual = (
        jnp.where(finite & jnp.isnan(v), jnp.inf, v) for v in (found.gap, found.residual)
    )
    return found._replace(gap=gap, residual=residual)
