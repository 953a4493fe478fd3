"""Basis pursuit, min norm(x, 1) : D x = y, to a certified gap, and its chain (DSC_1, Definition 4)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled import linear_programs as lp
from unrolled._checks import Array
from unrolled._numbers import widened
from unrolled.dictionaries import dense, operands
from unrolled.pursuit._ista import Pursuit


def basis_pursuit(D, y: Array, *, tol: float = 1e-9) -> Pursuit:
    r"""The code of least l1 norm that makes y exactly: min norm(x, 1) : D x = y.

    The linear program is solved in float64 on the host; under `vmap` over signals a whole batch is
    solved together.

    Args:
        D: (m, d). Structured ones are made dense.
        y: (m,).
        tol: relative duality gap.

    Returns:
        Pursuit. `gap` is (norm(x, 1) - dual) / norm(x, 1), `steps` counts the pivots beyond the
        first-order method, `converged` says that the gap is at most tol and D x = y to rounding:
        False if y is not in the range of D (then x is that of its projection) or not finite (then x
        = 0).

    Traceable. Differentiable in D and y with the support held, where the solution is unique and its
    support independent. Where there are several solutions, one of them.

    Raises:
        ValueError, TypeError: shapes that do not fit, tol not positive.

    Reference: Chen, Donoho, Saunders (1998). For many sparse signals and a common penalty the LASSO
    solvers are faster.
    """
    D, y, _ = operands(D, y, "basis_pursuit")
    if not tol > 0:
        raise ValueError(f"basis_pursuit: tol must be positive, got {tol}")
    D = dense(D)
    x, gap, steps, converged = _solution(D, y, float(tol))
    with jax.default_matmul_precision("highest"):
        return Pursuit(x, gap, jnp.linalg.norm(y - D @ x), steps, converged)


def layered_basis_pursuit(Ds, y: Array, *, tol: float = 1e-9) -> tuple[Pursuit, ...]:
    r"""DSC_1: basis pursuit of the code of every layer in the next dictionary, x_j = argmin norm(x,
    1) : D_j x = x_{j-1}.

    Under Assumption 1 (strict, with mu or the generalized coherence) its codes are those of the DSC
    problem (Theorem 2). A layer whose input is not in the range of its dictionary says so by
    converged = False.

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
    dtypes = (y.dtype, y.dtype, _integer(), bool)
    shapes = [jax.ShapeDtypeStruct(shape, t) for shape, t in zip((D.shape[1:], (), (), ()), dtypes)]
    return jax.pure_callback(host, shapes, D, y, vmap_method="expand_dims")


@_solution.defjvp
def _derivative(tol, primals, tangents):
    (D, y), (dD, dy) = primals, tangents
    x, gap, steps, converged = _solution(D, y, tol)
    held = D * (x != 0)[None, :].astype(D.dtype)
    wide = widened(held)
    with jax.default_matmul_precision("highest"):
        dx = (jnp.linalg.pinv(wide) @ (dy - dD @ x).astype(wide.dtype)).astype(x.dtype)
    still = (np.zeros((), jax.dtypes.float0),) * 2
    return (x, gap, steps, converged), (dx, jnp.zeros_like(gap), *still)


def _solve(D, y, *, tol):
    """x, gap, steps and converged of every signal of a batch; D and y lead with the same axes, or
    with ones.
    """
    dtype, eps = y.dtype, float(jnp.finfo(y.dtype).eps)
    D, y = np.asarray(D, np.float64), np.asarray(y, np.float64)
    lead = np.broadcast_shapes(D.shape[:-2], y.shape[:-1])
    if D[..., 0, 0].size > 1:  # a dictionary for every signal
        D, y = np.broadcast_to(D, (*lead, *D.shape[-2:])), np.broadcast_to(y, (*lead, y.shape[-1]))
        found = [_one_dictionary(D[i], y[i][:, None], tol, eps) for i in np.ndindex(lead)]
    else:
        found = [_one_dictionary(D.reshape(D.shape[-2:]), y.reshape(-1, y.shape[-1]).T, tol, eps)]
    x, gap, steps, converged = (np.concatenate(parts) for parts in zip(*found))
    return (
        x.reshape(*lead, -1).astype(dtype),
        gap.reshape(lead).astype(dtype),
        steps.reshape(lead).astype(_integer()),
        converged.reshape(lead),
    )


def _one_dictionary(D, Y, tol, eps):
    n = Y.shape[1]
    X, gap, steps, converged = (
        np.zeros((n, D.shape[1])),
        np.full(n, np.inf),
        np.zeros(n, int),
        np.zeros(n, bool),
    )
    known, zero = np.isfinite(Y).all(0) & Y.any(0), ~Y.any(0)
    gap[zero], converged[zero] = 0, True
    if known.any() and np.isfinite(D).all() and D.any():
        # Every program is finished, also one within tol: a vertex has exact zeros.
        found = lp.basis_pursuit(lp.whiten(D), Y[:, known], tol=tol, choose=_next)
        V = np.stack([_polished(D, y, v) for y, v in zip(Y[:, known].T, found.V.T)], 1)
        X[known], steps[known], size = V.T, found.steps, np.abs(V).sum(0)
        gap[known] = np.maximum(size - found.dual, 0) / np.maximum(size, np.finfo(float).tiny)
        # Rounding of y and of the products alone moves y by this much out of the range of D.
        misses = np.linalg.norm(Y[:, known] - D @ V, axis=0)
        scale = np.linalg.norm(Y[:, known], axis=0) + np.linalg.norm(D, axis=0) @ np.abs(V)
        converged[known] = (misses <= 4 * eps * max(D.shape) * scale) & (gap[known] <= tol)
    return X, gap, steps, converged


def _polished(D, y, v):
    """v with exact zeros: without the entries that are rounding, and solved again on the others, if
    these make y as well.
    """
    large = np.abs(v) > 1e-9 * np.abs(v).max()
    if large.all():
        return v
    again = np.zeros_like(v)
    again[large] = np.linalg.lstsq(D[:, large], y, rcond=None)[0]
    misses = [np.linalg.norm(y - D @ x) for x in (again, v)]
    longer = np.abs(again).sum() > np.abs(v).sum() * (
        1 + 1e-9
    )  # dependent atoms: least squares chose others
    return v if longer or misses[0] > misses[1] + 1e-13 * np.linalg.norm(y) else again


def _integer():
    return jnp.zeros((), int).dtype


def _next(primal, dual, tried):
    return next(iter(np.flatnonzero(~tried & (primal > 0))), None)
