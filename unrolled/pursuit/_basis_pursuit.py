"""Basis pursuit, min norm(x, 1) : D x = y, and basis pursuit denoising, to a certified gap."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import linear_programs as lp
from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import ldexp, norm, pseudo_inverse
from unrolled._base.programs import on_auto_axes
from unrolled.dictionaries import Dictionary, Operator, dense
from unrolled.dictionaries import entries as entries_of
from unrolled.penalties import L1
from unrolled.pursuit import _lasso, _problem
from unrolled.pursuit._gap import relative_gap
from unrolled.pursuit._lasso import Penalized, on_support
from unrolled.pursuit._problem import Found, Problem, Pursuit, StaticPart

__all__ = ["basis_pursuit", "bpdn"]


# An entry below this share of the largest entry, or of the l1 norm, counts as a rounding error.
_NEGLIGIBLE = 1e-9
# The default tol of basis pursuit, where the dtype of the code can reach it.
_TOL = 1e-9
# A number below this share of norm(y) is the rounding error of one product in float64.
_ROUNDING = 1e-13


def basis_pursuit(D: Dictionary, y: ArrayLike, *, tol: float | None = None) -> Pursuit:
    r"""The code of least l1 norm that reproduces y exactly.

    .. math:: \min_x \|x\|_1 : D x = y.

    The function solves the linear program in float64 on the host; under `vmap` over signals, it
    solves the whole batch together. The function is traceable. If the solution is unique and the
    atoms of its support are independent, the function is differentiable in D and y, with the
    support held fixed. For many sparse signals with a common penalty, the LASSO solvers are faster
    than `basis_pursuit`.

    Args:
        D: (m, d). Structured dictionaries are converted to matrices.
        y: (m,), or a signal grid of a `Conv`, whose code has the shape `D.code_grid`.
        tol: relative duality gap to stop at; by default 1e-9, or the spacing eps of the dtype of x
            if eps is larger.

    Returns:
        Pursuit with one of the solutions. `gap` is abs(norm(x, 1) - dual) / norm(x, 1) of the
        returned code: the rounding of x alone may cause a gap of eps / 2. `steps` counts the pivots
        after the first-order method. `converged` says that the gap is at most tol and that the
        returned code reproduces y to rounding. `converged` is False if y is not in the range of D
        (x is then the code of the projection of y) or if y is not finite (x is then 0).
        `converged` is also False if the rounding of x leaves a residual above sqrt(eps) norm(y).
        Such a residual occurs if y is in the range of D only because D is rounded. In this case,
        use float64, or project y onto the range.

    Raises:
        TypeError: an operand is not real.
        ValueError: shapes do not fit, or tol is not positive.

    Not claimed: the least norm of all codes that reproduce y to rounding. A float32 product of thin
    factors, for example, has full rank only because of rounding. For such a D, the rounding error
    of y is divided by tiny singular values, and x may have a much larger norm. Multiply thin
    factors in float64.

    Reference: Chen, Donoho, Saunders (1998).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.basis_pursuit(D, 2 * D[:, 3] - D[:, 20])
        >>> bool(result.converged), result.x[jnp.array([3, 20])].round(3).tolist()
        (True, [2.0, -1.0])
    """
    tol = (
        None
        if tol is None
        else _problem.static_tol(tol, "basis_pursuit", ", or None for the default")
    )
    form, arrays = _problem.checked_single("basis_pursuit", D, y, size=entries_of)
    tol = max(_TOL, float(jnp.finfo(form.dtype).eps)) if tol is None else tol
    problem = _scaled(form, *arrays)
    operands = problem.Ds[0], problem.y
    if checks.is_concrete(operands):
        answers = _solve_on_host(*map(np.asarray, operands), tol=tol, kept=form.dtype)
        (x,), *rest = _result(form, problem, Found(*answers))
    else:
        (x,), *rest = _compiled(form, problem, tol)
    return Pursuit(x, *rest)


@on_auto_axes
@partial(jax.jit, static_argnums=0)
def _scaled(form: StaticPart, Ds: tuple[Dictionary, ...], *others: Any) -> Problem:
    problem, _ = _problem.scaled(form, tuple(map(dense, Ds)), *others)
    return problem._replace(sizes=())


@on_auto_axes
@partial(jax.jit, static_argnums=0)
def _result(form: StaticPart, problem: Problem, answer: Found) -> tuple:
    with jax.default_matmul_precision("highest"):
        assert not isinstance(answer.x, tuple)
        allowed = _problem.rounding_of(form, problem, answer.x)
        return _problem.result(form, problem, answer._replace(allowed=allowed))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _solution(D: Array, y: Array, tol: float, kept: np.dtype):
    host = partial(_solve_on_host, tol=tol, kept=kept)
    if checks.is_concrete((D, y)):
        return tuple(map(jnp.asarray, host(np.asarray(D), np.asarray(y))))
    dtypes = (y.dtype, y.dtype, _integer(), bool)
    shapes = [jax.ShapeDtypeStruct(shape, t) for shape, t in zip((D.shape[1:], (), (), ()), dtypes)]
    return tuple(programs.host_callback(host, shapes, D, y, vmap_method="expand_dims"))


@_solution.defjvp
def _derivative(tol, kept, primals, tangents):
    (D, y), (dD, dy) = primals, tangents
    x, gap, steps, met = _solution(D, y, tol, kept)
    units = _lasso.units_of_small_atoms(D)
    on_support = jnp.where((x != 0)[None, :], ldexp(D, units[None, :]), 0)
    with jax.default_matmul_precision("highest"):
        dx = ldexp(pseudo_inverse(on_support) @ (dy - dD @ x), units)
    still = (np.zeros((), jax.dtypes.float0),) * 2
    return (x, gap, steps, met), (dx, jnp.zeros_like(gap), *still)


@on_auto_axes
@partial(jax.jit, static_argnums=(0, 2))
def _compiled(form: StaticPart, problem: Problem, tol: float) -> tuple:
    """The callback and the other computations in one program, for arrays on several devices.

    If a program had only the callback, its result would be on a device that other programs refuse.
    """
    answers = _solution(problem.Ds[0], problem.y, tol, form.dtype)
    return _result(form, problem, Found(*answers))


def _solve_on_host(D, y, *, tol, kept):
    """x, gap, steps, and whether gap <= tol; leading axes of D and y have equal lengths, or 1.

    The gap belongs to x rounded to the dtype `kept`.
    """
    dtype = y.dtype

    def rounded(V):
        return V.astype(dtype).astype(kept).astype(np.float64)

    D, y = np.asarray(D, np.float64), np.asarray(y, np.float64)
    lead = np.broadcast_shapes(D.shape[:-2], y.shape[:-1])
    if D[..., 0, 0].size > 1:  # one dictionary per signal
        D, y = np.broadcast_to(D, (*lead, *D.shape[-2:])), np.broadcast_to(y, (*lead, y.shape[-1]))
        answers = [_one_dictionary(D[i], y[i][:, None], tol, rounded) for i in np.ndindex(lead)]
    else:
        columns = y.reshape(-1, y.shape[-1]).T
        answers = [_one_dictionary(D.reshape(D.shape[-2:]), columns, tol, rounded)]
    x, gap, steps = (np.concatenate(parts) for parts in zip(*answers))
    return (
        x.reshape(*lead, -1).astype(dtype),
        gap.reshape(lead).astype(dtype),
        steps.reshape(lead).astype(_integer()),
        gap.reshape(lead) <= tol,
    )


def _one_dictionary(D, Y, tol, rounded):
    n = Y.shape[1]
    X, gap, steps = np.zeros((n, D.shape[1])), np.full(n, np.inf), np.zeros(n, int)
    nonzero = np.isfinite(Y).all(0) & Y.any(0)
    gap[~Y.any(0)] = 0
    if nonzero.any() and np.isfinite(D).all() and D.any():
        # Run every program to a vertex, even if its gap is within tol: a vertex has exact zeros.
        solution = lp.basis_pursuit(lp.whiten(D), Y[:, nonzero], tol=tol, choose=_next)
        V = np.stack([_polished(D, y, v) for y, v in zip(Y[:, nonzero].T, solution.V.T)], 1)
        X[nonzero], steps[nonzero], size = V.T, solution.steps, np.abs(rounded(V)).sum(0)
        gap[nonzero] = np.abs(size - solution.dual) / np.maximum(size, np.finfo(float).tiny)
    return X, gap, steps


def _polished(D, y, v):
    """Solve again without the rounding errors in v, if the other entries reproduce y as well."""
    large = np.abs(v) > _NEGLIGIBLE * np.abs(v).max()
    if large.all():
        return v
    again = np.zeros_like(v)
    again[large] = np.linalg.lstsq(D[:, large], y, rcond=None)[0]
    misses = [np.linalg.norm(y - D @ x) for x in (again, v)]
    # If atoms are dependent, least squares may choose a code with a larger l1 norm.
    longer = np.abs(again).sum() > np.abs(v).sum() * (1 + _NEGLIGIBLE)
    return v if longer or misses[0] > misses[1] + _ROUNDING * np.linalg.norm(y) else again


def _integer():
    return jax.dtypes.canonicalize_dtype(int)


def _next(primal, dual, tried):
    return next(iter(np.flatnonzero(~tried & (primal > 0))), None)


# The maximum number of penalties to try, and the factor by which lam^2 falls at each trial until a
# penalty is small enough.
_TRIALS, _FALL = 60, 0.01
_FINISH = 50  # steps that solve on the support at the rounding, and as many more as FISTA took


class _Search(NamedTuple):
    """A bracket of the squared penalty, with the excess of the squared residual at both ends."""

    low: Array
    high: Array
    below: Array  # at low, negative
    above: Array  # at high, positive
    side: Array  # the end that the last penalty replaced
    latest: Array  # (d,) the last code
    x: Array  # (d,) the best feasible code, or the last code if none is feasible
    residual: Array  # of x
    gap: Array  # of x, inf if no code is feasible yet
    steps: Array
    trials: Array


def bpdn(
    D: Dictionary, y: ArrayLike, eps: ArrayLike, *, tol: float = 1e-6, max_steps: int = 10_000
) -> Pursuit:
    r"""Basis pursuit denoising: the code of least l1 norm whose signal is within eps of y.

    .. math:: \min_x \|x\|_1 : \|y - D x\| \le eps.

    The code is the solution of a LASSO. The method of false position finds the penalty of this
    LASSO in terms of lam^2, because norm(y - D x)^2 is linear in lam^2 as long as the support is
    constant. If the codes of D come in parts, norm(x, 1) is the sum of the norms of the parts, such
    as the moduli of complex numbers. The function is traceable and, like `lasso`, differentiable in
    D, y and eps with the support held fixed.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`, whose code has the shape `D.code_grid`.
        eps: bound on the norm of the residual, positive, in the units of y; for eps = 0 see
            `basis_pursuit`.
        tol: relative duality gap to stop at.
        max_steps: maximum number of steps of FISTA for each penalty.

    Returns:
        Pursuit. `gap` is (norm(x, 1) - dual) / norm(x, 1), with the dual value y . z - eps norm(z)
        of z = r / max abs(D'r). In half precision, the gap and the residual belong to the rounded
        code, and the residual may exceed eps by its rounding. `gap` is inf if no code was found
        whose signal is within eps of y. In this case, the distance of y from the range of D is
        above eps, or eps / norm(y) is below the rounding error. To reduce the rounding error,
        subtract the part that all signals have in common, or use float64. `steps` counts the steps
        of FISTA for all penalties.

    Raises:
        TypeError: an operand is not real.
        ValueError: shapes do not fit, a known eps is not positive, D = 0 (if known), or tol <= 0.

    Reference: Chen, Donoho, Saunders (1998); van den Berg, Friedlander (2008).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.bpdn(D, D[:, 3] - 0.5 * D[:, 20], 0.1)
        >>> bool(result.converged), float(result.residual) <= 0.1
        (True, True)
    """
    tol, max_steps = _problem.static_tol(tol, "bpdn"), _problem.static_steps(max_steps, "bpdn")
    checks.as_float(eps, "eps", "bpdn")
    checks.finite(eps, "eps", "bpdn")
    if np.shape(eps):
        raise ValueError(f"bpdn: eps has shape {np.shape(eps)}; expected one number")
    if checks.is_concrete(eps) and not np.all(np.asarray(eps) > 0):
        raise ValueError(f"bpdn: eps must be positive, got {eps}; try basis_pursuit for eps = 0")
    options: dict[str, Any] = dict(level=eps, size=_problem.fixed_norm, parts=True)
    form, arrays = _problem.checked_single("bpdn", D, y, **options)
    (x,), *rest = _problem.run(Denoising(tol, max_steps, form.dtype), form, *arrays)
    return Pursuit(x, *rest)


@dataclass(frozen=True)
class Denoising:
    """The method of `bpdn`."""

    tol: float
    max_steps: int
    dtype: np.dtype

    def __call__(self, problem: Problem, x: Array) -> Found:
        (D,), y, _, _, level, (size,), *_ = problem
        assert level is not None
        x, gap, steps, met = _search(self, *lax.stop_gradient((D, y, level, size)))
        x = _code(x, D, y, _penalty(x, D, y, level))

        def judge(x):
            # The bound is exact up to the rounding of the dtype.
            length, most = norm(y - D @ x), level * (1 + float(jnp.finfo(self.dtype).eps))
            *_, gap = _judged(D, y, jnp.clip(length, level, most), x)
            gap = jnp.where(norm(y) <= level, 0, gap)  # then x = 0
            return gap, gap <= self.tol

        return Found(x, gap, steps, met, allowed=level, judge=judge)


@jax.custom_jvp
def _penalty(x: Array, D: Operator, y: Array, level: Array) -> Array:
    """The lam whose LASSO has the code x, the solution with norm(y - D x) = level.

    For a fixed support, norm(y - D x) depends only on D, y and lam. The derivative of lam follows
    from this dependence.
    """
    return jnp.max(L1.of(D).sizes((y - D @ x) @ D))


@_penalty.defjvp
def _bpdn_derivative(primals, tangents):
    (x, D, y, _), (_, dD, dy, dlevel) = primals, tangents

    def length(D, y, lam):
        return norm(y - D @ _code(x, D, y, lam))

    lam = _penalty(*primals)
    _, moved = jax.jvp(lambda D, y: length(D, y, lam), (D, y), (dD, dy))
    _, rate = jax.jvp(lambda lam: length(D, y, lam), (lam,), (jnp.ones_like(lam),))
    return lam, jnp.where(rate > 0, (dlevel - moved) / jnp.where(rate > 0, rate, 1), 0)


def _code(x: Array, D: Operator, y: Array, lam: Array) -> Array:
    """x, with the derivative of the code of a LASSO."""
    problem, penalty = Penalized(D, y, lam, jnp.zeros((), y.dtype)), L1.of(D)
    return _lasso.on_branch(
        partial(_lasso.slope, penalty=penalty), 10 * min(D.shape), problem, x, penalty
    )


def _search(
    method: Denoising, D: Operator, y: Array, level: Array, size: Array
) -> tuple[Array, Array, Array, Array]:
    """x, its gap, the steps, and whether the gap is at most tol."""
    rounding = float(jnp.finfo(y.dtype).eps)
    length, none, zero = norm(y), jnp.zeros(D.shape[1], y.dtype), jnp.zeros((), y.dtype)
    top = jnp.max(L1.of(D).sizes(y @ D)) ** 2
    start = _Search(
        zero,
        top,
        -(level**2),
        length**2 - level**2,
        jnp.zeros((), bool),
        none,
        none,
        length,
        jnp.where(length <= level, zero, jnp.where(jnp.isnan(length), jnp.nan, jnp.inf)),
        jnp.zeros((), int),
        jnp.zeros((), int),
    )
    # Below this penalty, rounding errors hide the difference to a code of least residual.
    floor = rounding ** (4 / 3) * top
    last = programs.while_loop(
        lambda s: (s.gap > method.tol) & (s.trials < _TRIALS) & (s.high > floor),
        partial(_tried, method, D, y, level, size, 8 * rounding),
        start,
    )
    return last.x, last.gap, last.steps, last.gap <= method.tol


def _tried(
    method: Denoising,
    D: Operator,
    y: Array,
    level: Array,
    size: Array,
    rounding: float,
    s: _Search,
) -> _Search:
    """The state of the search after one more penalty."""
    share = s.below / (s.below - s.above)
    between = s.low + share * (s.high - s.low)
    squared = jnp.where(s.low > 0, between, _FALL * s.high)
    lam, zero = jnp.sqrt(squared), jnp.zeros((), y.dtype)
    at, penalty = Penalized(D, y, lam, zero), L1.of(D)
    # A code that is accurate enough at once for two penalties in turn would stay the same.
    accuracy: Any = jnp.maximum(method.tol**2 * jnp.exp2(-s.trials.astype(y.dtype)), rounding)
    inner = _lasso.Lasso(accuracy, method.max_steps, penalty)
    x, gap, steps = _lasso.code(inner, at, s.latest, size)
    # The error of the residual is as large as the root of the gap: solve once more, on the support.
    finish = on_support if penalty.block == 1 else partial(_lasso.on_parts, penalty)
    more = jnp.where(accuracy > rounding, 0, _FINISH)
    exact = finish(at, x, jnp.minimum(2 * min(D.shape), more + steps))
    allowed = jnp.maximum(gap, accuracy)
    x = jnp.where(relative_gap(D, y, lam, exact, zero, penalty) <= allowed, exact, x)
    length, l1, gap = _judged(D, y, level, x)
    # Aim a little inside of the ball, where the gap is about a quarter of tol.
    excess = length**2 - level**2 + method.tol / 2 * lam * l1
    inside = excess < 0
    # False position with halved values at an end that stays twice (the Illinois rule).
    half = jnp.where(inside == s.side, 0.5, 1).astype(y.dtype)
    keeps = jnp.isfinite(s.gap) & ~(gap < s.gap)
    best, best_length, best_gap = jax.tree.map(
        partial(jnp.where, keeps), (s.x, s.residual, s.gap), (x, length, gap)
    )
    return _Search(
        jnp.where(inside, squared, s.low),
        jnp.where(inside, s.high, squared),
        jnp.where(inside, excess, s.below * half),
        jnp.where(inside, s.above * half, excess),
        inside,
        x,
        best,
        best_length,
        best_gap,
        s.steps + steps,
        s.trials + 1,
    )


def _judged(D: Operator, y: Array, level: Array, x: Array) -> tuple[Array, Array, Array]:
    """The norm of the residual, the l1 norm of the code, and the gap: inf outside of the ball."""
    r, penalty = y - D @ x, L1.of(D)
    g, length, sizes = r @ D, norm(r), penalty.sizes(x)
    lam, l1 = jnp.max(penalty.sizes(g)), jnp.sum(sizes)
    # norm(x, 1) - (y . r - level length) / lam, as a sum of non-negative terms.
    over = jnp.sum(jnp.maximum(lam * sizes - penalty.sums(x * g), 0)) + length * (level - length)
    gap = over / lam / jnp.where(l1 > 0, l1, 1)
    return length, l1, jnp.where(length <= level, gap, jnp.inf)
