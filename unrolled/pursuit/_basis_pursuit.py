"""Basis pursuit, min norm(x, 1) : D x = y, to a certified gap."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled import linear_programs as lp
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import ldexp, pseudo_inverse
from unrolled._sharded import on_auto_axes
from unrolled.dictionaries import Dictionary, dense
from unrolled.dictionaries import entries as entries_of
from unrolled.pursuit._door import door_of_one, static_tol
from unrolled.pursuit._problem import Answer, Form, Problem, Pursuit, result, rounding_of, scaled
from unrolled.pursuit._support import units_of_small_atoms

# Relative to the largest entry, and to the l1 norm: less than this is the rounding of the solver.
_NEGLIGIBLE = 1e-9
# Relative to norm(y): less than this is the rounding of one product in float64.
_ROUNDING = 1e-13


def basis_pursuit(D: Dictionary, y: ArrayLike, *, tol: float = 1e-9) -> Pursuit:
    r"""The code of least l1 norm that reproduces y exactly.

    .. math:: \min_x \|x\|_1 : D x = y.

    The linear program is solved in float64 on the host; under `vmap` over signals a whole batch is
    solved together. Traceable. Differentiable in D and y with the support held fixed, if the
    solution is unique and the atoms of its support are independent. For many sparse signals and a
    common penalty the LASSO solvers are faster.

    Args:
        D: (m, d). Structured dictionaries are made dense.
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        tol: relative duality gap.

    Returns:
        Pursuit with one of the solutions. `gap` is (norm(x, 1) - dual) / norm(x, 1), and `steps`
        counts the pivots after the first-order method. `converged` says that the gap is at most tol
        and that the code as it is returned has D x = y to rounding. It is False if y is not in the
        range of D (x is then the code of its projection) or not finite (x is then 0), and where the
        rounding of x leaves a residual of more than sqrt(eps) norm(y), as where only the rounding
        of D brings y into its range: take float64, or subtract what all atoms lack.

    Raises:
        TypeError: operands that are not real numbers.
        ValueError: shapes that do not fit, or tol not positive.

    Not claimed: the least norm of all codes that reproduce y to rounding. Where rounding alone
    gives D its full rank, as in a float32 product of thin factors, that of y is divided by tiny
    singular values, and x may be much longer. Multiply such factors in float64.

    Reference: Chen, Donoho, Saunders (1998).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.basis_pursuit(D, 2 * D[:, 3] - D[:, 20])
        >>> bool(result.converged), result.x[jnp.array([3, 20])].round(3).tolist()
        (True, [2.0, -1.0])
    """
    tol = static_tol(tol, "basis_pursuit")
    form, arrays = door_of_one("basis_pursuit", D, y, size=entries_of)
    problem = _scaled(form, *arrays)
    operands = problem.Ds[0], problem.y
    if _checks.is_concrete(operands):
        answers = _solve_on_host(*map(np.asarray, operands), tol=tol)
        (x,), *rest = _result(form, problem, Answer(*answers))
    else:
        (x,), *rest = _compiled(form, problem, tol)
    return Pursuit(x, *rest)


@on_auto_axes
@partial(jax.jit, static_argnums=0)
def _scaled(form: Form, Ds: tuple[Dictionary, ...], *others: Any) -> Problem:
    problem, _ = scaled(form, tuple(map(dense, Ds)), *others)
    return problem._replace(sizes=())


@on_auto_axes
@partial(jax.jit, static_argnums=0)
def _result(form: Form, problem: Problem, answer: Answer) -> tuple:
    with jax.default_matmul_precision("highest"):
        assert not isinstance(answer.x, tuple)
        allowed = rounding_of(form, problem, answer.x)
        return result(form, problem, answer._replace(allowed=allowed))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _solution(D: Array, y: Array, tol: float):
    host = partial(_solve_on_host, tol=tol)
    if _checks.is_concrete((D, y)):
        return tuple(map(jnp.asarray, host(np.asarray(D), np.asarray(y))))
    dtypes = (y.dtype, y.dtype, _integer(), bool)
    shapes = [jax.ShapeDtypeStruct(shape, t) for shape, t in zip((D.shape[1:], (), (), ()), dtypes)]
    return tuple(jax.pure_callback(host, shapes, D, y, vmap_method="expand_dims"))


@_solution.defjvp
def _derivative(tol, primals, tangents):
    (D, y), (dD, dy) = primals, tangents
    x, gap, steps, met = _solution(D, y, tol)
    units = units_of_small_atoms(D)
    on_support = jnp.where((x != 0)[None, :], ldexp(D, units[None, :]), 0)
    with jax.default_matmul_precision("highest"):
        dx = ldexp(pseudo_inverse(on_support) @ (dy - dD @ x), units)
    still = (np.zeros((), jax.dtypes.float0),) * 2
    return (x, gap, steps, met), (dx, jnp.zeros_like(gap), *still)


@on_auto_axes
@partial(jax.jit, static_argnums=(0, 2))
def _compiled(form: Form, problem: Problem, tol: float) -> tuple:
    """A callback of arrays on several devices, and what is made of it, in one program.

    What a callback alone returns has a place that no other program takes.
    """
    answers = _solution(problem.Ds[0], problem.y, tol)
    return _result(form, problem, Answer(*answers))


def _solve_on_host(D, y, *, tol):
    """x, gap, steps and whether the gap is met; D and y lead with the same axes, or with ones."""
    dtype = y.dtype
    D, y = np.asarray(D, np.float64), np.asarray(y, np.float64)
    lead = np.broadcast_shapes(D.shape[:-2], y.shape[:-1])
    if D[..., 0, 0].size > 1:  # a dictionary for every signal
        D, y = np.broadcast_to(D, (*lead, *D.shape[-2:])), np.broadcast_to(y, (*lead, y.shape[-1]))
        answers = [_one_dictionary(D[i], y[i][:, None], tol) for i in np.ndindex(lead)]
    else:
        columns = y.reshape(-1, y.shape[-1]).T
        answers = [_one_dictionary(D.reshape(D.shape[-2:]), columns, tol)]
    x, gap, steps = (np.concatenate(parts) for parts in zip(*answers))
    return (
        x.reshape(*lead, -1).astype(dtype),
        gap.reshape(lead).astype(dtype),
        steps.reshape(lead).astype(_integer()),
        gap.reshape(lead) <= tol,
    )


def _one_dictionary(D, Y, tol):
    n = Y.shape[1]
    X, gap, steps = np.zeros((n, D.shape[1])), np.full(n, np.inf), np.zeros(n, int)
    nonzero = np.isfinite(Y).all(0) & Y.any(0)
    gap[~Y.any(0)] = 0
    if nonzero.any() and np.isfinite(D).all() and D.any():
        # Every program is run to its vertex, even one within tol: a vertex has exact zeros.
        solution = lp.basis_pursuit(lp.whiten(D), Y[:, nonzero], tol=tol, choose=_next)
        V = np.stack([_polished(D, y, v) for y, v in zip(Y[:, nonzero].T, solution.V.T)], 1)
        X[nonzero], steps[nonzero], size = V.T, solution.steps, np.abs(V).sum(0)
        gap[nonzero] = np.maximum(size - solution.dual, 0) / np.maximum(size, np.finfo(float).tiny)
    return X, gap, steps


def _polished(D, y, v):
    """v solved again without the entries that are rounding, if the others reproduce y as well."""
    large = np.abs(v) > _NEGLIGIBLE * np.abs(v).max()
    if large.all():
        return v
    again = np.zeros_like(v)
    again[large] = np.linalg.lstsq(D[:, large], y, rcond=None)[0]
    misses = [np.linalg.norm(y - D @ x) for x in (again, v)]
    # Of dependent atoms, least squares may choose others, with a larger l1 norm.
    longer = np.abs(again).sum() > np.abs(v).sum() * (1 + _NEGLIGIBLE)
    return v if longer or misses[0] > misses[1] + _ROUNDING * np.linalg.norm(y) else again


def _integer():
    return jax.dtypes.canonicalize_dtype(int)


def _next(primal, dual, tried):
    return next(iter(np.flatnonzero(~tried & (primal > 0))), None)
