"""Basis pursuit denoising: the least l1 norm within a ball of noise around the signal."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import ldexp, norm
from unrolled.dictionaries import Dictionary, operands
from unrolled.pursuit._gap import half_energy
from unrolled.pursuit._grids import flat_signal, on_grid
from unrolled.pursuit._lasso import Near, Penalized, code, near_one, on_support, penalized_gap
from unrolled.pursuit._options import static_steps, static_tol
from unrolled.pursuit._problem import Pursuit, in_range

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
    where the support is constant, norm(y - D x)^2 is linear in lam^2. Traceable.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        eps: bound of the residual, in the units of y, positive; for 0 see `basis_pursuit`.
        tol: relative duality gap.
        max_steps: the most steps of FISTA for each penalty.

    Returns:
        Pursuit. `gap` is (norm(x, 1) - dual) / norm(x, 1), with the dual value y . z - eps norm(z)
        of z = r / max abs(D'r); it is inf if no code within eps was found, as where y is further
        than eps from the range of D. `steps` counts those of all penalties.

    Raises:
        TypeError: operands that are not real numbers.
        ValueError: shapes that do not fit, a known eps that is not positive, D = 0 (where known),
            or tol <= 0.

    Reference: Chen, Donoho, Saunders (1998); van den Berg, Friedlander (2008).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> found = ur.pursuit.bpdn(D, D[:, 3] - 0.5 * D[:, 20], 0.1)
        >>> bool(found.converged), float(found.residual) <= 0.1
        (True, True)
    """
    y, grid = flat_signal(D, y, "bpdn")
    D, y, _ = operands(D, y, "bpdn")
    tol, max_steps = static_tol(tol, "bpdn"), static_steps(max_steps, "bpdn")
    given, eps = eps, _checks.as_float(eps, "eps", "bpdn").astype(y.dtype)
    _checks.finite(given, "eps", "bpdn")
    if eps.shape:
        raise ValueError(f"bpdn: eps has shape {eps.shape}; expected one number")
    if _checks.is_concrete(eps) and not eps > 0:
        raise ValueError(f"bpdn: eps must be positive, got {eps}; try basis_pursuit for eps = 0")
    zero = jnp.zeros((), y.dtype)
    near = near_one(Penalized(D, y, zero, zero), "bpdn")
    return on_grid(_bpdn(near, eps, tol, max_steps), grid)


@partial(jax.jit, static_argnums=(2, 3))
def _bpdn(near: Near, eps: Array, tol: float, max_steps: int) -> Pursuit:
    problem, size, (a, b) = near
    D, y, *_ = problem
    level = ldexp(eps, -b)
    rounding = float(jnp.finfo(y.dtype).eps)
    accuracy = max(tol**2, 8 * rounding)

    def body(s: _Search) -> _Search:
        share = s.below / (s.below - s.above)
        between = s.low + share * (s.high - s.low)
        squared = jnp.where(s.low > 0, between, _FALL * s.high)
        lam = jnp.sqrt(squared)
        at = problem._replace(lam=lam)
        x, relative, steps = code(False, accuracy, max_steps, at, s.latest, size)
        # An error of the residual is the root of the gap: the code once more, on its support.
        exact = on_support(at, x, jnp.asarray(2 * min(D.shape)))
        allowed = jnp.maximum(relative, accuracy) * half_energy(y)
        x = jnp.where(penalized_gap(at, exact, False) <= allowed, exact, x)
        r = y - D @ x
        length, l1 = norm(r), jnp.sum(jnp.abs(x))
        dual = (jnp.vdot(y, r) - level * length) / jnp.max(jnp.abs(r @ D))
        gap = jnp.maximum(l1 - dual, 0) / jnp.where(l1 > 0, l1, 1)
        gap = jnp.where(length <= level, gap, jnp.inf)
        # A little inside of the ball, where the gap is about a quarter of tol.
        excess = length**2 - level**2 + tol / 2 * lam * l1
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

    with jax.default_matmul_precision("highest"):
        length, none = norm(y), jnp.zeros(D.shape[1], y.dtype)
        least, top = jnp.zeros((), y.dtype), jnp.max(jnp.abs(y @ D)) ** 2
        start = _Search(
            least,
            top,
            -(level**2),
            length**2 - level**2,
            jnp.zeros((), bool),
            none,
            none,
            length,
            jnp.where(length <= level, least, jnp.where(jnp.isnan(length), jnp.nan, jnp.inf)),
            jnp.zeros((), int),
            jnp.zeros((), int),
        )
        # Below this penalty no code can be told from one of the least residual.
        floor = rounding ** (4 / 3) * top
        found = lax.while_loop(
            lambda s: (s.gap > tol) & (s.trials < _TRIALS) & (s.high > floor), body, start
        )
    x = ldexp(found.x, b - a)
    converged = (found.gap <= tol) & in_range(x, found.x, b - a)
    return Pursuit(x, found.gap, ldexp(found.residual, b), found.steps, converged)
