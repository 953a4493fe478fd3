"""The signals of a batch: what they share, the state of each, and its best code with its gap."""

from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """What all signals share, in float64."""

    D: np.ndarray  # (m, d)
    gram: np.ndarray  # (d + 1, d + 1), with zeros in the last row and column
    l2: float
    ridge: float
    tol: float
    nonnegative: bool
    relative: bool  # lam is given in units of lam_max


class Signals(NamedTuple):
    """Some signals, their penalties, the state of ADMM, and the best codes so far."""

    Y: np.ndarray  # (n, m)
    products: np.ndarray  # (n, d) D'y
    lam: np.ndarray  # (n, 1) or (n, d)
    unit: np.ndarray  # (n,) norm(y)^2 / 2, the unit of the gap
    z: np.ndarray  # (n, d) sparse iterates
    w: np.ndarray  # (n, d) their subgradients, within lam
    x: np.ndarray  # (n, d)
    gap: np.ndarray  # (n,) relative to unit
    residual: np.ndarray  # (n,) norm(y - D x)
    steps: np.ndarray  # (n,)


def empty(Y: np.ndarray, lam: np.ndarray, d: int) -> Signals:
    """Signals at the code 0."""
    n, unit = len(Y), np.sum(Y**2, 1) / 2
    z, w = np.zeros((2, n, d), np.float32)
    return Signals(
        Y,
        np.empty((n, d)),
        lam,
        np.where(unit > 0, unit, 1),
        z,
        w,
        np.zeros((n, d)),
        np.full(n, np.inf),
        np.sqrt(2 * unit),
        np.zeros(n, int),
    )


def largest(problem: Problem, g: np.ndarray) -> np.ndarray:
    """The largest |g_i|, or g_i for codes that are non-negative: (n, 1)."""
    top = g.max(1, keepdims=True)
    return top if problem.nonnegative else np.maximum(top, -g.min(1, keepdims=True))


def dual_scale(problem: Problem, lam: np.ndarray, g: np.ndarray) -> np.ndarray:
    """min(1, min_i lam_i / |g_i|), (n, 1): the factor that makes r feasible for the dual."""
    if lam.shape[1] == 1:
        top = largest(problem, g)
    else:
        top = g if problem.nonnegative else np.abs(g)
    return np.divide(lam, top, out=np.ones_like(top), where=top > lam).min(1, keepdims=True)


def keep(
    problem: Problem, signals: Signals, part: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take the codes x that are better than the best so far; their relative gaps, D'r - l2 x.

    The gap is that of `penalized_gap`.
    """
    D, l2, lam = problem.D, problem.l2, signals.lam[part]
    r = x @ D.T
    np.subtract(signals.Y[part], r, out=r)
    h = r @ D
    g = h - l2 * x if l2 else h
    s = dual_scale(problem, lam, g)
    squares = np.einsum("ij,ij->i", r, r)
    energy = squares + l2 * np.einsum("ij,ij->i", x, x) if l2 else squares
    penalty = np.abs(x)
    penalty *= lam
    terms = x * g
    terms *= -s
    terms += penalty
    gap = (1 - s[:, 0]) ** 2 * energy / 2 + np.maximum(terms, 0, out=terms).sum(1)
    if l2:
        within = np.clip(h, -np.inf if problem.nonnegative else -lam, lam)
        terms = l2 / 2 * (x - (h - within) / l2) ** 2 + np.maximum(penalty - x * within, 0)
        gap = np.fmin(gap, terms.sum(1))
    gap /= signals.unit[part]
    better = gap < signals.gap[part]
    rows = part[better]
    signals.x[rows], signals.gap[rows] = x[better], gap[better]
    signals.residual[rows] = np.sqrt(squares[better])
    return gap, g
