"""The LASSO and the elastic net for one signal, to a duality gap, with derivatives on a support."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, Result
from unrolled._base.numbers import exponent, ldexp, times_power
from unrolled.activations import relu
from unrolled.dictionaries import Dictionary, Operator, column_norms
from unrolled.penalties import L1, NONNEGATIVE, Penalty
from unrolled.pursuit import _problem
from unrolled.pursuit._gap import least_between, relative_gap
from unrolled.pursuit._ista import Momentum, extrapolated
from unrolled.pursuit._problem import (
    Found,
    Problem,
    Pursuit,
    StaticPart,
    check_number,
    checked_single,
    fixed_norm,
    is_held,
    one_by_one,
    scaled,
    single,
    static_steps,
    static_tol,
    told,
)
from unrolled.pursuit._torus import Convolved, is_convolution, torus_of

__all__ = ["Path", "lam_max", "lam_of_paper", "lasso", "lasso_path"]


# The methods, as `how` of a result.
ADMM, FISTA = "admm", "fista"
# Number of steps of FISTA between two evaluations of the gap.
_BLOCK = 10
# The maximum number of blocks between two solutions on the support by conjugate gradients.
_OFTEN = 16


def lasso(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike | None = None,
    *,
    ratio: ArrayLike | None = None,
    tol: float = 1e-6,
    nonnegative: bool = False,
    l2: ArrayLike = 0.0,
    start: ArrayLike | None = None,
    max_steps: int = 10_000,
) -> Pursuit:
    r"""Solve the LASSO, or the elastic net, up to a duality gap.

    .. math:: \min_x \tfrac12 \|y - D x\|^2 + \sum_i lam_i |x_i| + \tfrac{l2}{2} \|x\|^2.

    FISTA with restart finds the support, and conjugate gradients solve the problem on the support.
    Both methods need only products with D, so D may be a dictionary of any class and size. If D is
    a `Conv` of stride 1, or a `Masked` one, ADMM in Fourier space comes first, and FISTA only
    continues if ADMM stalls. `how` of the result is then "admm", otherwise "fista". The gap of ADMM
    has the better of two dual points, so `duality_gap`, which has one, may be larger. The
    function is traceable, and differentiable in D, y, lam and l2, in forward and in reverse mode,
    with the support held fixed. This derivative is the derivative of the solution if the solution
    is unique and small changes of the arguments leave its support unchanged. Inside a `lax.scan`, a
    derivative in reverse mode can be differentiated in forward mode only.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`, whose code has the shape `D.code_grid`.
        lam: penalty weight: one number, one per atom, or one per filter of a `Conv`;
            `lam_of_paper` converts a lambda on the data term.
        ratio: lam / lam_max(D, y), which may be given instead of lam.
        tol: duality gap to stop at, relative to norm(y)^2 / 2.
        nonnegative: whether to minimise over x >= 0.
        l2: weight of the squared norm, at least 0.
        start: the code to start from, such as the solution of a similar problem; 0 by default.
        max_steps: maximum number of steps of FISTA, rounded up to a multiple of 10.

    Returns:
        Pursuit; `steps` counts steps of ADMM and FISTA. If lam >= lam_max, then x = 0, without a
        step. Atoms with a lam of 0 are not penalised; such free atoms can model a mean or a trend.
        If all atoms are free, x is a least squares code. (If lam is a single traced number with the
        value 0, the gap is loose; for a tight gap, pass one lam per atom.) See `duality_gap` for
        the effect of rounding on the bound.

    Raises:
        TypeError: an operand is not real, or tol or max_steps is traced.
        ValueError: shapes do not fit, not exactly one of lam and ratio is given, lam, ratio or l2
            is negative or beyond the range of the dtype, a known D is 0, or tol <= 0.

    Reference: Beck, Teboulle (2009); Zou, Hastie (2005) for the elastic net; Bertrand et al. (2020)
    for the implicit derivative; Bristow, Eriksson, Lucey (2013), Wohlberg (2014), and Heide,
    Heidrich, Wetzstein (2015) for convolutions.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.lasso(D, D[:, 3] - 0.5 * D[:, 20], ratio=0.1)
        >>> bool(result.converged), jnp.flatnonzero(result.x).tolist()
        (True, [3, 20])
    """
    method, options = _checked("lasso", lam, ratio, tol, max_steps, nonnegative, l2)
    options["lam"] = one_by_one(D, options["lam"])
    result = single(method, "lasso", D, y, start=start, **options)
    return told(result, ADMM if is_convolution(D) else FISTA)


@dataclass(frozen=True)
class Lasso:
    """The method of `lasso`; `bound` is the duality gap, `relative_gap` or `proved_gap`."""

    tol: float | Array
    max_steps: int
    penalty: Penalty
    bound: Callable[..., Array] = relative_gap

    def __call__(self, problem: Problem, x: Array) -> Found:
        (D,), y, (lam,), l2, _, (size,), *_ = problem
        assert l2 is not None
        penalized, start = Penalized(D, y, lam, l2), lax.stop_gradient(x)
        x, gap, steps = code(self._of(D), penalized, start, size)

        def judge(x, gap=None):
            gap = self.bound(D, y, lam, x, l2, self.penalty.of(D)) if gap is None else gap
            gap = jnp.where(l2 < 0, jnp.nan, gap)  # a traced l2 < 0 is not convex
            return gap, gap <= self.tol

        gap, met = judge(x, gap)
        return Found(x, gap, steps, met, judge=judge)

    def _of(self, D: Operator) -> "Lasso":
        """The same method with the penalty of D."""
        return replace(self, penalty=self.penalty.of(D))


def _checked(
    where: str, lam: Any, ratio: Any, tol: Any, max_steps: Any, nonnegative: Any, l2: Any
) -> tuple[Lasso, dict[str, Any]]:
    """The method, and the arguments for `checked_single`."""
    penalty = NONNEGATIVE if checks.as_bool(nonnegative, "nonnegative", where) else L1
    method = Lasso(static_tol(tol, where), static_steps(max_steps, where), penalty)
    value, name = one_penalty(lam, ratio, where)
    check_number(l2, "l2", where)
    options = dict(
        lam=value, name=name, l2=l2, size=fixed_norm, relative=lam is None, kind=penalty, parts=True
    )
    return method, options


def lasso_from(
    D: Operator, y: Array, x: Array, lam: Array, *, method: Lasso, norm: float
) -> tuple[Array, Array, Array]:
    """The code that `lasso` reaches from the code x, its gap as it is returned, and the steps.

    A code x that is worse than the zero code counts as zero. If y is not finite, the code is zero
    and the gap is inf.

    Args:
        D, y, lam: as in `lasso`, flat.
        x: (d,), from any solver; it may be NaN.
        method: the tolerance, the largest number of steps, and the bound on the gap.
        norm: norm(D, 2).
    """
    form = StaticPart(np.dtype(y.dtype), size=lambda D: jnp.asarray(norm, D.dtype))
    finite, zero = jnp.isfinite(y).all(), jnp.zeros(D.shape[1], y.dtype)
    with jax.default_matmul_precision("highest"):
        problem, x = scaled(form, (D,), jnp.where(finite, y, 0), (lam,), 0.0, None, x)
        (near,), signal, (weight,), *_ = problem
        penalty = method.penalty.of(D)
        rest = signal - near @ x
        value = jnp.sum(rest**2) / 2 + penalty.value(x, weight)
        x = jnp.where(value <= jnp.sum(signal**2) / 2, x, zero)
        answer = method(problem, x)
        code = ldexp(answer.x, problem.up[0])
        back = ldexp(code, -problem.up[0])  # an entry may have left the range
        gap = method.bound(near, signal, weight, back, None, penalty)
    lost = (problem.lost[0] & (weight < _problem.least_of(y.dtype))).any()
    known = finite & jnp.isfinite(code).all() & jnp.isfinite(gap) & ~lost
    return jnp.where(known, code, zero), jnp.where(known, gap, jnp.inf), answer.steps


class Path(Result):
    """The codes for n penalties, with the fields of `Pursuit` for every code."""

    lam: Array  # (n,)
    x: Array  # (n, d)
    gap: Array  # (n,)
    residual: Array  # (n,)
    steps: Array  # (n,)
    converged: Array  # (n,)


def lasso_path(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike | None = None,
    *,
    ratio: ArrayLike | None = None,
    tol: float = 1e-6,
    nonnegative: bool = False,
    l2: ArrayLike = 0.0,
    start: ArrayLike | None = None,
    max_steps: int = 10_000,
) -> Path:
    r"""The codes of `lasso` for a sequence of penalties; each solve starts from the previous code.

    The function is traceable, and has the same derivatives as `lasso` inside a `lax.scan`.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`, whose codes have the shape `D.code_grid`.
        lam: penalties, (n,), preferably from large to small.
        ratio: lam / lam_max(D, y), (n,), which may be given instead of lam. The default is 50
            ratios from 1 to 0.01, whose logarithms are evenly spaced.
        tol, nonnegative, l2, start, max_steps: as in `lasso`, for each penalty; `start` applies
            only to the first penalty.

    Returns:
        Path. `gap` is relative to norm(y)^2 / 2. If ratio is given, `converged` also says that lam
        is in the range of the dtype; if lam is known to be outside the range, the function raises
        ValueError.

    Raises:
        TypeError, ValueError: as in `lasso`.

    Reference: Friedman, Hastie, Tibshirani (2010).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> path = ur.pursuit.lasso_path(D, D[:, 3] - 0.5 * D[:, 20], ratio=[1.0, 0.5, 0.1])
        >>> path.x.shape, (path.x != 0).sum(1).tolist(), bool(path.converged.all())
        ((3, 32), [0, 1, 2], True)
    """
    where = "lasso_path"
    if lam is None and ratio is None:
        ratio = np.geomspace(1, 0.01, 50)
    method, options = _checked(where, lam, ratio, tol, max_steps, nonnegative, l2)
    form, arrays = checked_single(where, D, y, start=start, sequence=True, **options)
    path, shares, k = _path(method, form, *arrays)
    if ratio is not None:
        refuse_lost(path.lam, shares, k, where)
    return path


@programs.on_auto_axes
@partial(jax.jit, static_argnums=(0, 1))
def _path(
    method: Lasso, form: StaticPart, Ds: Any, y: Array, lams: Any, *others: Any
) -> tuple[Path, Array, Array]:
    """The path, the scaled penalties, and the exponent of their unit."""
    problem, x = scaled(form, Ds, y, lams, *others)
    (scaled_lams,), k = problem.lams, 2 * problem.b - problem.up[0]

    def body(x, lam):
        at = problem._replace(lams=(lam,))
        answer = method(at, x)
        return answer.x, _problem.result(form, at, answer)

    with jax.default_matmul_precision("highest"):
        _, ((codes,), gap, residual, steps, converged) = programs.scan(body, x, scaled_lams)
    if form.relative:
        lam = ldexp(scaled_lams, k).astype(form.dtype)
        converged = converged & jax.vmap(is_held, (0, 0, None))(lam, scaled_lams, k)
    else:
        lam = jnp.asarray(lams[0], form.dtype)
    return Path(lam, codes, gap, residual, steps, converged), scaled_lams, k


def lam_max(D: Dictionary, y: ArrayLike, *, nonnegative: bool = False) -> Array:
    """The least lam at which the LASSO has the code 0: max abs(D'y), or max(D'y, 0) for x >= 0.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`.
        nonnegative: as in `lasso`.

    Raises:
        TypeError: an operand is not real.
        ValueError: shapes do not fit, or a known lam is beyond the range of the dtype.

    Example:
        >>> float(ur.pursuit.lam_max(jnp.eye(2), jnp.array([3.0, -4.0])))
        4.0
    """
    penalty = NONNEGATIVE if checks.as_bool(nonnegative, "nonnegative", "lam_max") else L1
    form, (Ds, y, *_) = checked_single("lam_max", D, y, size=column_norms, kind=penalty, parts=True)
    lam, scaled_lam, k = _lam_max(form, Ds, y)
    refuse_lost(lam, scaled_lam, k, "lam_max")
    return lam


@programs.on_auto_axes
@partial(jax.jit, static_argnums=0)
def _lam_max(form: StaticPart, Ds: Any, y: Array) -> tuple[Array, Array, Array]:
    problem, _ = scaled(form, Ds, y)
    scaled_lam = _problem.largest_product(problem.Ds[0], problem.y, form.kind)
    k = 2 * problem.b - problem.up[0]
    return ldexp(scaled_lam, k).astype(form.dtype), scaled_lam, k


def refuse_lost(lam: Array, scaled_lam: Array, k: Array, where: str) -> None:
    """Raise ValueError if a known lam = scaled_lam 2^k leaves the range of its dtype."""
    if not checks.is_concrete((lam, scaled_lam, k)):
        return
    values, at = np.asarray(scaled_lam, float), np.asarray(lam, float)
    # Most operations treat numbers below the least normal number as zero.
    within = (at >= float(jnp.finfo(scaled_lam.dtype).tiny)) & np.isfinite(at)
    lost = (values > 0) & np.isfinite(values) & ~within
    if lost.any():
        size = math.log10(values[lost].flat[0]) + int(k) * math.log10(2)
        raise ValueError(
            f"{where}: lam, about 1e{round(size)}, leaves the range of {lam.dtype}; try "
            f"signals and atoms near 1{checks.or_float64(lam.dtype)}"
        )


def lam_of_paper(weight: ArrayLike) -> Array:
    r"""Convert a lambda on the data term, as in problem P_1 of Li, Feng and Zhou, to lam.

    .. math:: \min_x \|x\|_1 + \lambda \|y - D x\|^2 \iff lam = 1 / (2 \lambda).

    Args:
        weight: lambda, positive.

    Raises:
        ValueError: a known weight is not positive.

    Reference: Li, Feng, Zhou (2024), section 2.

    Example:
        >>> float(ur.pursuit.lam_of_paper(2.0))
        0.25
    """
    weight = checks.as_float(weight, "weight", "lam_of_paper")
    checks.nonnegative(weight, "weight", "lam_of_paper")
    if checks.is_concrete(weight) and not np.asarray(weight).all():
        raise ValueError(
            "lam_of_paper: weight is 0, which stands for an infinite lam; expected a positive one"
        )
    return _half_inverse(weight)


@jax.jit
def _half_inverse(weight: Array) -> Array:
    return 1 / (2 * weight)


def one_penalty(
    lam: ArrayLike | None, ratio: ArrayLike | None, where: str
) -> tuple[ArrayLike, str]:
    """The given penalty, lam or ratio, and its name."""
    if (lam is None) == (ratio is None):
        raise ValueError(f"{where}: expected one of lam and ratio, got lam={lam}, ratio={ratio}")
    return (lam, "lam") if lam is not None else (ratio, "ratio")  # type: ignore[return-value]


class Penalized(NamedTuple):
    """1/2 norm(y - D x)^2 + lam norm(x, 1) + l2/2 norm(x)^2, with all numbers near 1."""

    D: Operator
    y: Array  # (m,)
    lam: Array  # () or (d,)
    l2: Array  # ()


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def code(
    method: Lasso, problem: Penalized, start: Array, size: Array
) -> tuple[Array, Array, Array]:
    """x, the relative gap and the number of steps, from the code `start`; size is norm(D, 2).

    For a convolution, FISTA starts where ADMM stalls, if ADMM does not reach tol.
    """
    (D, y, lam, l2), penalty = problem, method.penalty
    tol, max_steps = method.tol, method.max_steps
    gamma = 1 / (size**2 + l2)
    finish = on_support if penalty.block == 1 else partial(on_parts, penalty)

    def relative(x):
        return method.bound(D, y, lam, x, l2, penalty)

    def step(state, _):
        v = state.z + gamma * ((y - D @ state.z) @ D)
        x = penalty.shrink(v, gamma * lam)
        return extrapolated(state, x / (1 + gamma * l2), True), None

    def body(carry):
        state, steps, _ = carry
        state, steps = programs.scan(step, state, length=_BLOCK)[0], steps + _BLOCK
        gap = relative(state.x)
        # Solve on the support after 1, 2, 4, ... blocks, and then after every 16 blocks. These
        # solutions take at most as many products as the steps of FISTA.
        blocks = steps // _BLOCK
        due = (blocks & (blocks - 1) == 0) | (blocks % _OFTEN == 0)
        limit = jnp.minimum(steps, _OFTEN * _BLOCK)
        due = due & (gap > tol)
        x = finish(problem, state.x, jnp.where(due, limit, 0))
        x = relu(x) if penalty.nonnegative else x
        state = jax.tree.map(partial(jnp.where, due), _rest(x), state)
        return state, steps, jnp.where(due, relative(x), gap)

    zero = jnp.zeros_like(start)
    start = relu(start) if penalty.nonnegative else start
    start = jnp.where(relative(zero) <= tol, zero, start)
    first = start, relative(start), jnp.zeros((), int)
    if (torus := torus_of(D)) is not None:
        first = Convolved(*torus, penalty, problem).solved(*first, tol, max_steps)
    x, gap, steps = first
    state, steps, gap = programs.while_loop(
        lambda carry: (carry[2] > tol) & (carry[1] < max_steps), body, (_rest(x), steps, gap)
    )
    return state.x, gap, steps


@code.defjvp
def _derivative(method, primals, tangents):
    (x, gap, steps), penalty = code(method, *primals), method.penalty
    limit, own = 10 * min(primals[0].D.shape), partial(slope, penalty=penalty)
    dx = tangent(own, limit, primals[0], tangents[0], x, penalty)
    return (x, gap, steps), (dx, jnp.zeros_like(gap), jnp.zeros((), jax.dtypes.float0))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 4))
def on_branch(
    slope: Callable[[Any, Array], Array],
    limit: int,
    params: Any,
    x: Array,
    penalty: Penalty = L1,
) -> Array:
    """x, with the derivative of the point where slope(params, x) = 0 on the support of x.

    The support is held fixed, and the derivative in the argument x is zero.

    Args:
        slope: (params, x) -> the negative gradient of the objective, of shape (d,); its entries off
            the support are ignored.
        limit: maximum number of steps of conjugate residuals.
        params: tuple of the arrays on which x depends, D first.
        x: (d,), a stationary point, scaled near 1.
        penalty: the penalty that defines the parts in a support.
    """
    return x


@on_branch.defjvp
def _branch(slope, limit, penalty, primals, tangents):
    params, x = primals
    x = on_branch(slope, limit, params, x, penalty)  # for second derivatives
    return x, tangent(slope, limit, params, tangents[0], x, penalty)


def units_of_small_atoms(D: Operator) -> Array:
    """The k >= 0, (d,), so that the norm of 2^k d_i is at least 1/32 of the largest atom norm."""
    sizes = exponent(column_norms(D)[None], 0)[0]
    return jnp.maximum(jnp.max(sizes) - sizes - 4, 0)


def tangent(
    slope: Callable[[Any, Array], Array],
    limit: int,
    params: Any,
    moved: Any,
    x: Array,
    penalty: Penalty = L1,
) -> Array:
    """The derivative of `on_branch` along a change of params, by least squares for dependent atoms.

    The function solves in `units_of_small_atoms`, so that small atoms do not count as dependent.
    """
    on, units = penalty.support(x), units_of_small_atoms(params[0])

    def curvature(v):
        own = ldexp(jnp.where(on, v, 0), units)
        _, change = jax.jvp(lambda x: slope(params, x), (x,), (own,))
        return jnp.where(on, ldexp(-change, units), v)

    with jax.default_matmul_precision("highest"):
        _, change = jax.jvp(lambda p: jnp.where(on, slope(p, x), 0), (params,), (moved,))
        solve = partial(conjugate_residuals, limit=limit)
        scaled = lax.custom_linear_solve(curvature, ldexp(change, units), solve, symmetric=True)
        return ldexp(scaled, units)


def _rest(x: Array) -> Momentum:
    return Momentum(x, x, jnp.ones((), x.dtype))


def on_support(problem: Penalized, x: Array, limit: Array) -> Array:
    """The best point between x and the minimiser on the support of x, in at most `limit` steps."""
    signs = jnp.sign(x)
    descent = jnp.where(signs != 0, slope(problem, x), 0)
    change = conjugate_gradients(partial(_curvature, problem, signs), descent, limit)
    lam = jnp.broadcast_to(problem.lam, x.shape)
    return least_between(x, change, descent, lam, signs)


# The shares of a Newton step to try.
_SHARES = 1.0, 0.5, 0.25, 0.1, 0.0


def on_parts(penalty: Penalty, problem: Penalized, x: Array, limit: Array) -> Array:
    """x after a Newton step, or a share of it, on nonzero parts, where the objective is smooth."""
    D, y, lam, l2 = problem
    on, own = penalty.support(x), partial(slope, problem, penalty=penalty)

    def curvature(v):
        change = jax.jvp(own, (x,), (jnp.where(on, v, 0),))[1]
        return jnp.where(on, -change, v)

    change = conjugate_gradients(curvature, jnp.where(on, own(x), 0), limit)
    r, moved = y - D @ x, D @ change

    def objective(t):
        z, left = x + t * change, r - t * moved
        return jnp.sum(left**2) / 2 + l2 / 2 * jnp.sum(z**2) + penalty.value(z, lam)

    shares = jnp.asarray(_SHARES, x.dtype)
    values = jax.vmap(objective)(shares)
    # Take the first share whose value ties with the lowest value up to rounding: near the solution,
    # this is the whole step.
    rounding = 4 * float(jnp.finfo(x.dtype).eps) * jnp.abs(values[-1])
    return x + shares[jnp.argmax(values <= jnp.min(values) + rounding)] * change


def slope(problem: Penalized, x: Array, penalty: Penalty = L1) -> Array:
    """The negative gradient of the objective, valid at the entries of the support of x."""
    D, y, lam, l2 = problem
    return (y - D @ x) @ D - l2 * x - lam * penalty.directions(x)


def _curvature(problem: Penalized, signs: Array, v: Array) -> Array:
    """(D_S' D_S + l2) v on the support S of the signs, v elsewhere."""
    on_support = jnp.where(signs != 0, v, 0)
    return jnp.where(signs != 0, (problem.D @ on_support) @ problem.D + problem.l2 * on_support, v)


def conjugate_gradients(A: Callable[[Array], Array], b: Array, limit: ArrayLike) -> Array:
    """Solve A v = b for a symmetric positive semidefinite A, in at most `limit` steps from v = 0.

    A is scaled near 1. If A is singular, rounding leaves a part of b outside the range of A, and
    the steps end at a direction whose curvature is a rounding error.
    """
    eps = float(jnp.finfo(b.dtype).eps)
    least = eps**2 * jnp.vdot(b, b)

    def body(carry):
        v, r, p, size, k, _ = carry
        q = A(p)
        curvature = jnp.vdot(p, q)
        curved = curvature > eps * jnp.vdot(p, p)
        step = jnp.where(curved, size / jnp.where(curved, curvature, 1), 0)
        r = r - step * q
        smaller = jnp.vdot(r, r)
        return v + step * p, r, r + smaller / size * p, smaller, k + 1, curved

    def not_done(carry):
        *_, size, k, curved = carry
        return (size > least) & (k < limit) & curved

    none, curved = jnp.zeros((), int), jnp.ones((), bool)
    start = jnp.zeros_like(b), b, b, jnp.vdot(b, b), none, curved
    return programs.while_loop(not_done, body, start)[0]


def conjugate_residuals(A: Callable[[Array], Array], b: Array, limit: ArrayLike) -> Array:
    """Minimise norm(A v - b) over v. A may be singular: atoms of a support may be dependent.

    Conjugate gradients need b in the range of A. In the method of conjugate residuals, the part of
    b outside the range stays in the residual r, and the steps end when A r is within the rounding
    error of r. Since b is a derivative, it may have any scale; the function first divides b by a
    power of two.
    """
    eps, scale = float(jnp.finfo(b.dtype).eps), exponent(b)
    b = times_power(b, -scale)
    least = eps**2 * jnp.vdot(b, b)

    def not_done(carry):
        _, r, Ar, _, _, k = carry
        singular = jnp.vdot(Ar, Ar) <= (8 * eps) ** 2 * jnp.vdot(r, r)
        return (jnp.vdot(r, r) > least) & ~singular & (k < limit)

    def body(carry):
        v, r, Ar, p, Ap, k = carry
        size, curvature = jnp.vdot(r, Ar), jnp.vdot(Ap, Ap)
        step = size / curvature
        v, r = v + step * p, r - step * Ap
        Ar = A(r)
        ratio = jnp.vdot(r, Ar) / size
        return v, r, Ar, r + ratio * p, Ar + ratio * Ap, k + 1

    Ab = A(b)
    start = jnp.zeros_like(b), b, Ab, b, Ab, jnp.zeros((), int)
    return ldexp(programs.while_loop(not_done, body, start)[0], scale)
