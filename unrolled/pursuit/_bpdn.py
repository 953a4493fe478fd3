"""Basis pursuit denoising: the least l1 norm within a ball of noise around the signal."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks, _lax
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import norm
from unrolled.dictionaries import Dictionary, Operator
from unrolled.pursuit._door import single, static_steps, static_tol
from unrolled.pursuit._gap import relative_gap
from unrolled.pursuit._problem import Answer, Problem, Pursuit, fixed_norm
from unrolled.pursuit._support import Penalized, code, on_branch, on_support, slope

# The penalties tried, at most; until one is small enough, each squared is this share of the last.
_TRIALS, _FALL = 60, 0.01


class _Search(NamedTuple):
    """A bracket of the penalty, squared, with the excess of the squared residual at its ends."""

    low: Array
    high: Array
    below: Array  # at low, negative
    above: Array  # at high, positive
    side: Array  # which end the last penalty replaced
    latest: Array  # (d,) the last code
    x: Array  # (d,) the best feasible code, the last one while there is none
    residual: Array  # of x
    gap: Array  # of x, inf while there is no feasible code
    steps: Array
    trials: Array


def bpdn(
    D: Dictionary, y: ArrayLike, eps: ArrayLike, *, tol: float = 1e-6, max_steps: int = 10_000
) -> Pursuit:
    r"""Basis pursuit denoising: the least l1 norm whose signal is within eps of y.

    .. math:: \min_x \|x\|_1 : \|y - D x\| \le eps.

    Its code is that of a LASSO, whose penalty is searched by false position: on a piece of the path
    where the support is constant, norm(y - D x)^2 is linear in lam^2. Traceable. Differentiable in
    D, y and eps, as `lasso` is, with the support held fixed.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        eps: bound of the residual, in the units of y, positive; for 0 see `basis_pursuit`.
        tol: relative duality gap.
        max_steps: the most steps of FISTA for each penalty.

    Returns:
        Pursuit. In half precision it has converged only if the code as it is rounded keeps within
        eps. `gap` is (norm(x, 1) - dual) / norm(x, 1), with the dual value y . z - eps norm(z)
        of z = r / max abs(D'r); it is inf if no code within eps was found. Then y is further than
        eps from the range of D, or eps is so small beside norm(y) that rounding hides it: subtract
        what all signals have in common, or take float64. `steps` counts those of all penalties.

    Raises:
        TypeError: operands that are not real numbers.
        ValueError: shapes that do not fit, a known eps that is not positive, D = 0 (where known),
            or tol <= 0.

    Reference: Chen, Donoho, Saunders (1998); van den Berg, Friedlander (2008).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.bpdn(D, D[:, 3] - 0.5 * D[:, 20], 0.1)
        >>> bool(result.converged), float(result.residual) <= 0.1
        (True, True)
    """
    tol, max_steps = static_tol(tol, "bpdn"), static_steps(max_steps, "bpdn")
    _checks.as_float(eps, "eps", "bpdn")
    _checks.finite(eps, "eps", "bpdn")
    if np.shape(eps):
        raise ValueError(f"bpdn: eps has shape {np.shape(eps)}; expected one number")
    if _checks.is_concrete(eps) and not np.all(np.asarray(eps) > 0):
        raise ValueError(f"bpdn: eps must be positive, got {eps}; try basis_pursuit for eps = 0")
    return single(Denoising(tol, max_steps), "bpdn", D, y, level=eps, size=fixed_norm)


@dataclass(frozen=True)
class Denoising:
    """The method of `bpdn`."""

    tol: float
    max_steps: int

    def __call__(self, problem: Problem, x: Array) -> Answer:
        (D,), y, _, _, level, (size,), *_ = problem
        assert level is not None
        x, gap, steps, met = _search(self, *lax.stop_gradient((D, y, level, size)))
        x = _code(x, D, y, _penalty(x, D, y, level))
        return Answer(x, gap, steps, met, allowed=level)


@jax.custom_jvp
def _penalty(x: Array, D: Operator, y: Array, level: Array) -> Array:
    """The lam whose LASSO has the code x, the solution with norm(y - D x) = level.

    On a support norm(y - D x) is a function of D, y and lam, which gives the derivative of lam.
    """
    return jnp.max(jnp.abs((y - D @ x) @ D))


@_penalty.defjvp
def _derivative(primals, tangents):
    (x, D, y, _), (_, dD, dy, dlevel) = primals, tangents

    def length(D, y, lam):
        return norm(y - D @ _code(x, D, y, lam))

    lam = _penalty(*primals)
    _, moved = jax.jvp(lambda D, y: length(D, y, lam), (D, y), (dD, dy))
    _, rate = jax.jvp(lambda lam: length(D, y, lam), (lam,), (jnp.ones_like(lam),))
    return lam, jnp.where(rate > 0, (dlevel - moved) / jnp.where(rate > 0, rate, 1), 0)


def _code(x: Array, D: Operator, y: Array, lam: Array) -> Array:
    """x, as the code of a LASSO."""
    problem = Penalized(D, y, lam, jnp.zeros((), y.dtype))
    return on_branch(slope, 10 * min(D.shape), problem, x)


def _search(
    method: Denoising, D: Operator, y: Array, level: Array, size: Array
) -> tuple[Array, Array, Array, Array]:
    """x, its gap, the steps, and whether the gap is small."""
    rounding = float(jnp.finfo(y.dtype).eps)
    accuracy = max(method.tol**2, 8 * rounding)
    length, none, zero = norm(y), jnp.zeros(D.shape[1], y.dtype), jnp.zeros((), y.dtype)
    top = jnp.max(jnp.abs(y @ D)) ** 2
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
    # Below this penalty no code can be told from one of the least residual.
    floor = rounding ** (4 / 3) * top
    last = _lax.while_loop(
        lambda s: (s.gap > method.tol) & (s.trials < _TRIALS) & (s.high > floor),
        partial(_tried, method, D, y, level, size, accuracy),
        start,
    )
    return last.x, last.gap, last.steps, last.gap <= method.tol


def _tried(
    method: Denoising,
    D: Operator,
    y: Array,
    level: Array,
    size: Array,
    accuracy: float,
    s: _Search,
) -> _Search:
    """The search after the code of another penalty."""
    share = s.below / (s.below - s.above)
    between = s.low + share * (s.high - s.low)
    squared = jnp.where(s.low > 0, between, _FALL * s.high)
    lam, zero = jnp.sqrt(squared), jnp.zeros((), y.dtype)
    at = Penalized(D, y, lam, zero)
    x, gap, steps = code(False, accuracy, method.max_steps, at, s.latest, size)
    # An error of the residual is the root of the gap: the code once more, on its support.
    exact = on_support(at, x, jnp.asarray(2 * min(D.shape)))
    allowed = jnp.maximum(gap, accuracy)
    x = jnp.where(relative_gap(D, y, lam, exact, zero) <= allowed, exact, x)
    length, l1, gap = _judged(D, y, level, x)
    # A little inside of the ball, where the gap is about a quarter of tol.
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
    """The norm of the residual, that of the code, and the gap; inf outside of the ball."""
    r = y - D @ x
    g, length, l1 = r @ D, norm(r), jnp.sum(jnp.abs(x))
    lam = jnp.max(jnp.abs(g))
    # norm(x, 1) - (y . r - level length) / lam, as a sum of terms that are not negative.
    over = jnp.sum(jnp.maximum(lam * jnp.abs(x) - x * g, 0)) + length * (level - length)
    gap = over / lam / jnp.where(l1 > 0, l1, 1)
    return length, l1, jnp.where(length <= level, gap, jnp.inf)
