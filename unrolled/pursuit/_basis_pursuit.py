"""Basis pursuit, min norm(x, 1) : D x = y, to a certified gap, and its chain (DSC_1, Definition 4)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled import linear_programs as lp
from unrolled._checks import Array
from unrolled.dictionaries._base import dense, operands
from unrolled.pursuit._ista import Pursuit


def basis_pursuit(D, y: Array, *, tol: float = 1e-9) -> Pursuit:
    r"""The code of least l1 norm that makes y exactly: min norm(x, 1) : D x = y.

    The linear program is solved in float64 on the host; under `vmap` over signals a whole batch is solved together.

    Args:
        D: (m, d). Structured ones are made dense.
        y: (m,).
        tol: relative duality gap.

    Returns:
        Pursuit. `gap` is (norm(x, 1) - dual) / norm(x, 1), `steps` counts the pivots beyond the first-order method,
        `converged` says that the gap is at most tol and D x = y to rounding: False if y is not in the range of D (then x
        is that of its projection) or not finite (then x = 0).

    Traceable. Differentiable in D and y with the support held, where the solution is unique and its support independent.
    Where there are several solutions, one of them.

    Raises:
        ValueError, TypeError: shapes that do not fit, tol not positive.

    Reference: Chen, Donoho, Saunders (1998). For many sparse signals and a common penalty the LASSO solvers are faster.
    """
    D, y, _ = operands(D, y, "basis_pursuit")
    if not tol > 0:
        raise ValueError(f"basis_pursuit: tol must be positive, got {tol}")
    D = dense(D)
    x, gap, steps, converged = _solution(D, y, float(tol))
    with jax.default_matmul_precision("highest"):
        return Pursuit(x, gap, jnp.linalg.norm(y - D @ x), steps, converged)


def layered_basis_pursuit(Ds, y: Array, *, tol: float = 1e-9) -> tuple[Pursuit, ...]:
    r"""DSC_1: basis pursuit of the code of every layer in the next dictionary, x_j = argmin norm(x, 1) : D_j x = x_{j-1}.

    Under Assumption 1 (strict, with mu or the generalized coherence) its codes are those of the DSC problem (Theorem 2). A
    layer whose input is not in the range of its dictionary says so by converged = False.

    Raises:
        ValueError: no dictionary, or shapes that do not meet.

    Reference: Li, Feng, Zhou (2024), Definition 4; Papyan, Romano, Elad (2017).
    """
    Ds, found = tuple(Ds), []
    if not Ds:
        raise ValueError("layered_basis_pursuit: expected at least one dictionary, got none")
    for D in Ds:
        found.append(basis_pursuit(D, y, tol=tol))
        y = found[-1].x
    return tuple(found)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _solution(D: Array, y: Array, tol: float):
    host = partial(_solve, tol=tol)
    if _checks.is_concrete((D, y)):
        return tuple(map(jnp.asarray, host(np.asarray(D), np.asarray(y))))
    number = jax.ShapeDtypeStruct((), y.dtype)
    shapes = (jax.ShapeDtypeStruct(D.shape[1:], y.dtype), number, *(jax.ShapeDtypeStruct((), t) for t in (int, bool)))
    return jax.pure_callback(host, shapes, D, y, vmap_method="expand_dims")


@_solution.defjvp
def _derivative(tol, primals, tangents):
    (D, y), (dD, dy) = primals, tangents
    x, gap, steps, converged = _solution(D, y, tol)
    held = D * (x != 0)[None, :].astype(D.dtype)
    with jax.default_matmul_precision("highest"):
        dx = jnp.linalg.pinv(held) @ (dy - dD @ x)
    still = (np.zeros((), jax.dtypes.float0),) * 2
    return (x, gap, steps, converged), (dx, jnp.zeros_like(gap), *still)


def _solve(D, y, *, tol):
    """x, gap, steps and converged of every signal of a batch; D and y lead with the same axes, or with ones."""
    dtype, eps = y.dtype, float(np.finfo(y.dtype).eps)
    D, y = np.asarray(D, np.float64), np.asarray(y, np.float64)
    lead = np.broadcast_shapes(D.shape[:-2], y.shape[:-1])
    if D[..., 0, 0].size > 1:  # a dictionary for every signal
        D, y = np.broadcast_to(D, (*lead, *D.shape[-2:])), np.broadcast_to(y, (*lead, y.shape[-1]))
        found = [_one_dictionary(D[i], y[i][:, None], tol, eps) for i in np.ndindex(lead)]
    else:
        found = [_one_dictionary(D.reshape(D.shape[-2:]), y.reshape(-1, y.shape[-1]).T, tol, eps)]
    x, gap, steps, converged = (np.concatenate(parts) for parts in zip(*found))
    integer = jnp.zeros((), int).dtype
    return (
        x.reshape(*lead, -1).astype(dtype),
        gap.reshape(lead).astype(dtype),
        steps.reshape(lead).astype(integer),
        converged.reshape(lead),
    )


def _one_dictionary(D, Y, tol, eps):
    n = Y.shape[1]
    X, gap, steps, converged = np.zeros((n, D.shape[1])), np.full(n, np.inf), np.zeros(n, int), np.zeros(n, bool)
    known, zero = np.isfinite(Y).all(0) & Y.any(0), ~Y.any(0)
    gap[zero], converged[zero] = 0, True
    if known.any() and np.isfinite(D).all() and D.any():
        # Every program is finished, also one within tol: a vertex has exact zeros.
        found = lp.basis_pursuit(lp.whiten(D), Y[:, known], tol=tol, choose=_next)
        X[known], steps[known] = found.V.T, found.steps
        gap[known] = (found.primal - found.dual) / np.maximum(found.primal, np.finfo(float).tiny)
        # Rounding of y alone moves it by eps out of the range of D.
        misses = np.linalg.norm(Y[:, known] - D @ found.V, axis=0)
        made = misses <= 4 * eps * max(D.shape) * np.linalg.norm(Y[:, known], axis=0)
        converged[known] = made & (gap[known] <= tol)
    return X, gap, steps, converged


def _next(primal, dual, tried):
    return next(iter(np.flatnonzero(~tried)), None)
