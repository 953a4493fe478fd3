"""What an independent sample certifies about the errors of a class, whatever their distribution."""

import math
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import ArrayLike
from unrolled._base.numbers import UP

# Relative rounding of a probability: far below that of 1 - confidence itself.
_ROUNDING = 1e-12
_MOST_AT_ONCE = 10**15


class Tolerance(NamedTuple):
    """A bound that all but a share of a class keep, by a sample of it."""

    bound: float  # the errors of the class, but for the share, are at most this; inf for none
    left_out: int  # the signals of the sample that may lie above the bound
    needed: int  # the least sample that certifies anything
    holds: bool  # the sample suffices, and the bound is finite
    missing: int  # signals to add for a sample of `needed`; 0 where it is reached


def signals_needed(share: float, confidence: float, at_once: int = 1) -> int:
    r"""The least number of signals whose largest error is a bound for the class.

    .. math:: n = \min \{ n : M (1 - \epsilon)^n \le 1 - c \}.

    Args:
        share: epsilon, of the class, that may exceed the bound; in (0, 1).
        confidence: c, in (0, 1).
        at_once: M, the number of bounds that hold together.

    Raises:
        TypeError: an argument that is traced, or not one number.
        ValueError: a share or a confidence outside (0, 1), a share so small that the number is
            infinite in float64, or at_once below 1 or beyond 1e15.

    Reference: Wilks (1941).

    Example:
        >>> ur.theory.signals_needed(1e-3, 1 - 1e-6), ur.theory.signals_needed(0.05, 0.95)
        (13809, 59)
    """
    share, risk = _risk("signals_needed", share, confidence, at_once)
    n = math.log(risk) / math.log1p(-share) * (1 - _ROUNDING)
    if n == math.inf:
        raise ValueError(
            f"signals_needed: a share of {share:g} needs more signals than can be counted"
        )
    return max(1, math.ceil(n))


@checked
def tolerance_bound(
    errors: ArrayLike, *, share: float = 1e-3, confidence: float = 1 - 1e-6, at_once: int = 1
) -> Tolerance:
    r"""A bound on the errors of all of a class but a share, by a sample of any distribution.

    .. math::
        P\bigl( P(E > E_{(n-r)}) > \epsilon \bigr) \le P(\mathrm{Bin}(n, \epsilon) \le r)
            \le (1 - c) / M,

    with the order statistics E_(1) <= ... <= E_(n) of n independent draws, and the largest such r.
    Ties make it conservative. The errors may be of any layer, network or pursuit, in any unit, of
    draws of a class or of held-out signals.

    Args:
        errors: (n,), of n independent signals. NaN counts as the largest, as inf does.
        share: epsilon, of the class, that may exceed the bound; in (0, 1).
        confidence: c, the probability over the sample that the statement is true.
        at_once: M, the number of such statements that are true together: as many as there are
            methods times steps.

    Returns:
        Tolerance. The bound is infinite and holds is False for fewer than `needed` signals, and
        where errors that are not finite are more than may be left out.

    Raises:
        TypeError: traced or complex errors, or an option that is not one number.
        ValueError: errors of another shape, or as `signals_needed`.

    Not claimed: anything where the sample has chosen something before, as the params, the depth or
    the method; or where its signals depend on each other, as patches of one picture do. Nothing is
    said of one signal, nor of another class than the one that was sampled.

    Reference: Wilks (1941); Clopper, Pearson (1934).

    Example:
        >>> errors = np.random.default_rng(0).exponential(size=20_000)
        >>> tolerance = ur.theory.tolerance_bound(errors)
        >>> round(tolerance.bound, 2), tolerance.left_out, tolerance.holds
        (8.9, 2, True)
        >>> ur.theory.tolerance_bound(errors[:10_000]).missing
        3809
    """
    where = "tolerance_bound"
    needed = signals_needed(share, confidence, at_once)
    share, risk = _risk(where, share, confidence, at_once)
    errors = _sorted(errors, where)
    n = len(errors)
    if n < needed:
        return Tolerance(math.inf, 0, needed, False, needed - n)
    r = max(bisect_right(range(n), risk, key=lambda r: _at_most(r, n, share)) - 1, 0)
    bound = float(errors[n - 1 - r])
    return Tolerance(bound, r, needed, bound < math.inf, 0)


@checked
def exceedance(errors: ArrayLike, level: float, confidence: float = 1 - 1e-6) -> float:
    r"""A bound on the share of a class whose error exceeds a level, by a sample.

    .. math:: \max \{ p : P(\mathrm{Bin}(n, p) \le k) \ge 1 - c \}, \qquad k = \#\{i : E_i > l\}.

    Args:
        errors: (n,), of n independent signals, as in `tolerance_bound`; NaN exceeds every level.
        level: l, finite, which the sample has not chosen.
        confidence: c, in (0, 1).

    Returns:
        The bound, rounded up; 1 where all signals exceed the level, or there are none.

    Raises: as `tolerance_bound`; ValueError also for a level that is not finite.

    Not claimed: as in `tolerance_bound`.

    Reference: Clopper, Pearson (1934), one-sided.

    Example:
        >>> round(ur.theory.exceedance(np.zeros(13809), 0.5), 6)
        0.001
    """
    from scipy.special import betainccinv

    where = "exceedance"
    _, risk = _risk(where, 0.5, confidence, 1)
    errors, level = _sorted(errors, where), checks.as_number(level, "level", where)
    if not math.isfinite(level):
        raise ValueError(f"{where}: level is {level}; expected a finite number")
    n, k = len(errors), int(np.count_nonzero(errors > level))
    return min(1.0, float(betainccinv(k + 1, n - k, risk)) * UP) if k < n else 1.0


def _at_most(r: int, n: int, share: float) -> float:
    """P(Bin(n, share) <= r), of r < n."""
    from scipy.special import betaincc

    return float(betaincc(r + 1, n - r, share))


def _sorted(errors: ArrayLike, where: str) -> np.ndarray:
    """The errors in ascending order, with inf for NaN."""
    values = checks.host_floats(errors, "errors", where)
    if values.ndim != 1:
        raise ValueError(
            f"{where}: errors have shape {values.shape}; expected (n,), one per signal; try one "
            "call per step and method, with at_once"
        )
    values = values.astype(float)
    return np.sort(np.where(np.isnan(values), math.inf, values))


def _risk(where: str, share: float, confidence: float, at_once: int) -> tuple[float, float]:
    """The share, and (1 - confidence) / at_once."""
    share, confidence = (
        checks.as_fraction(value, name, where)
        for name, value in {"share": share, "confidence": confidence}.items()
    )
    at_once = checks.as_index(at_once, "at_once", where, least=1)
    if at_once > _MOST_AT_ONCE:
        raise ValueError(f"{where}: at_once must be at most 1e15, got {checks.brief(at_once)}")
    return share, (1 - confidence) / at_once
