"""An interior point method for minimax linear programs, and for weights with the least entries."""

from types import ModuleType
from typing import NamedTuple

import numpy as np

# A step goes this share of the way to the border; the step length is at most 1.
_TO_BORDER = 0.995
# At most this many centrality corrections (Gondzio 1996). They aim at steps longer by _AMBITION,
# with complementarity products within a factor _SPREAD of the centre. A correction is kept if it
# lengthens the sum of the two steps by _WORTH. More than two corrections gained little.
_CORRECTIONS, _AMBITION, _SPREAD, _WORTH = 2, 0.3, 10, 0.02
# Shares of the largest diagonal entry, added to the diagonal until a factorisation succeeds.
_RIDGES = (0.0, 1e-15, 1e-12, 1e-9)
# At the start t is twice the largest excess, and slacks are at least this share of the largest
# right-hand side.
_LEAST_SLACK = 0.03
_LEAST_EXCESS = 1e-8
# Keeps a scale from being zero.
_TINY = 1e-300
# The way from an interior point to a vertex has at most _PIVOTS_PER_ROW exchanges per entry of w,
# and _PIVOTS more. The limits define a violated constraint and a falling multiplier.
_PIVOTS_PER_ROW, _PIVOTS = 2, 20
_VIOLATED, _FALLING = 1e-13, 1e-9
# The weight of the equality, which is always tight, relative to the tightest constraint.
_ALWAYS = 1e3


def lapack() -> ModuleType:
    """scipy's LAPACK, imported on first use."""
    from scipy.linalg import lapack

    return lapack


def blas() -> ModuleType:
    """scipy's BLAS, for products in loops that also factorise.

    numpy has another thread pool, whose threads would spin while scipy's threads work.
    """
    from scipy.linalg import blas

    return blas


class _Rows:
    """The constraints |M'w| <= b + e t as rows of x = (w, t), M = B or [B, I].

    Arrays over the constraints have shape (2, len(b)), one row per sign.
    """

    def __init__(self, B: np.ndarray, b: np.ndarray, e: np.ndarray):
        self.B, self.b, self.e = np.asfortranarray(B), b, e
        self.r, self.n = B.shape
        self.boxed = len(b) > self.n  # M = [B, I]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(+-M, -e)'x."""
        products = blas().dgemv(1.0, self.B, x[:-1], trans=1) if self.n else np.zeros(0)
        products = np.append(products, x[:-1]) if self.boxed else products
        return np.stack([products, -products]) - self.e * x[-1]

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        """(M (v+ - v-), -e'(v+ + v-))."""
        total, v = np.sum(self.e * (v[0] + v[1])), v[0] - v[1]
        products = blas().dgemv(1.0, self.B, v[: self.n]) if self.n else np.zeros(self.r)
        return np.append(products + v[self.n :] if self.boxed else products, -total)

    def hessian(self, weights: np.ndarray) -> np.ndarray:
        """The weighted sum of the outer products of the rows, lower triangle."""
        r, both = self.r, weights[0] + weights[1]
        H = np.zeros((r + 1, r + 1), order="F")
        if self.n:
            H[:r, :r] = blas().dsyrk(1.0, self.B * np.sqrt(both[: self.n]), lower=1)
        if self.boxed:
            H[np.arange(r), np.arange(r)] += both[self.n :]
        H[r, :r] = -self.adjoint(self.e * weights)[:r]
        H[r, r] = np.sum(self.e**2 * both)
        return H


Move = tuple[np.ndarray, float, np.ndarray, np.ndarray]


class _Newton:
    """The linearised conditions at (x, s, l, nu), factorised once for several targets of l s."""

    def __init__(
        self,
        rows: _Rows,
        factor: np.ndarray,
        a: np.ndarray,
        s: np.ndarray,
        l: np.ndarray,
        off: tuple[np.ndarray, np.ndarray, float],
    ):
        self.rows, self.factor, self.a, self.s, self.l = rows, factor, a, s, l
        self.off_primal, self.off_dual, self.off_unit = off
        self.across = self.solve(a)

    def solve(self, right: np.ndarray) -> np.ndarray:
        return lapack().dpotrs(self.factor, right, lower=1)[0]

    def towards(self, target: np.ndarray | float) -> Move:
        """The move (dx, dnu, ds, dl) that brings l s to `target`, to first order."""
        s, l, a = self.s, self.l, self.a
        missing = (target - l * s - l * self.off_primal) / s
        dx = self.solve(self.off_dual - self.rows.adjoint(missing))
        dnu = (self.off_unit - a @ dx) / (a @ self.across)
        dx += dnu * self.across
        ds = self.off_primal - self.rows.forward(dx)
        return dx, dnu, ds, (target - l * s - l * ds) / s

    def lengths(self, move: Move) -> tuple[float, float]:
        """The step lengths of s and l, just short of the border and at most 1."""
        ds, dl = move[2:]
        return (
            min(1.0, _TO_BORDER * _longest(self.s, ds)),
            min(1.0, _TO_BORDER * _longest(self.l, dl)),
        )

    def predicted(self) -> tuple[float, np.ndarray]:
        """The centre and the target of Mehrotra's predictor and corrector."""
        s, l = self.s, self.l
        average = np.sum(l * s) / l.size
        _, _, ds, dl = self.towards(0.0)
        reached = np.sum((s + _longest(s, ds) * ds) * (l + _longest(l, dl) * dl)) / l.size
        centre = average * min(1.0, (reached / average) ** 3)
        return centre, centre - ds * dl

    def move(self) -> tuple[Move, tuple[float, float]]:
        """The move and its step lengths, after centrality corrections that lengthen the step."""
        centre, target = self.predicted()
        move = self.towards(target)
        lengths = self.lengths(move)
        for _ in range(_CORRECTIONS):
            ahead, along = (min(1.0, length + _AMBITION) for length in lengths)
            reached = (self.s + ahead * move[2]) * (self.l + along * move[3])
            wanted = np.clip(reached, centre / _SPREAD, centre * _SPREAD)
            target = target + np.maximum(wanted - reached, -_SPREAD * centre)
            trial = self.towards(target)
            further = self.lengths(trial)
            if sum(further) < sum(lengths) + _WORTH:
                break
            move, lengths = trial, further
        return move, lengths


def interior_point(
    B: np.ndarray,
    b: np.ndarray,
    e: np.ndarray,
    c: np.ndarray,
    w: np.ndarray,
    tol: float,
    *,
    max_steps: int = 60,
) -> tuple[np.ndarray, tuple[np.ndarray, float], int]:
    r"""Minimise t subject to |M'w| <= b + e t and c . w = 1, by a primal-dual method from w.

    M is B, or [B, I] if b and e have n + r entries. With B = A without column i, b = 0 and e = 1
    the optimum is the generalized coherence of atom i. With [B, I], b = (mu, 0) and e = (0, 1) the
    optimum is the least largest entry of w at coherence mu (Li, Feng, Zhou 2024, Definition 8).

    Args:
        B: a matrix of shape (r, n).
        b, e: non-negative arrays of shape (n,) or (n + r,).
        c, w: arrays of shape (r,) with c . w > 0; w is the start.
        tol: relative complementarity gap and residuals at which to stop.
        max_steps: number of steps at which to stop.

    Returns:
        w with c . w = 1; the multipliers (v, nu), with M v close to nu c; the number of steps. Both
        w and the multipliers belong to the best iterate. They are not certified; the callers turn
        them into bounds.
    """
    rows, a = _Rows(B, b, e), np.append(c, 0.0)
    cost = np.append(np.zeros(len(c)), 1.0)
    x = np.append(w / (c @ w), 0.0)
    x[-1] = 2 * max((rows.forward(x) - b)[:, e > 0].max(), _LEAST_EXCESS)
    s = np.maximum(b - rows.forward(x), _LEAST_SLACK * np.max(b + e * x[-1]))
    l, nu = 1 / (s * np.sum(e / s)), 0.0
    best, least = (x, l, nu), np.inf
    for steps in range(max_steps + 1):
        scale = max(abs(x[-1]), _TINY)
        off = b - rows.forward(x) - s, nu * a - rows.adjoint(l) - cost, 1 - a @ x
        merit = np.sum(l * s) / scale + max(
            np.abs(off[0]).max() / scale, np.abs(off[1]).sum(), abs(off[2])
        )
        if merit < least:
            best, least = (x, l, nu), merit
        factor = None if merit <= tol or steps == max_steps else _factored(rows.hessian(l / s))
        if factor is None:
            break
        (dx, dnu, ds, dl), (ahead, along) = _Newton(rows, factor, a, s, l, off).move()
        x, s, l, nu = x + ahead * dx, s + ahead * ds, l + along * dl, nu + along * dnu
    x, l, nu = best
    return x[:-1] / (c @ x[:-1]), (l[0] - l[1], nu), steps


def _longest(x: np.ndarray, dx: np.ndarray) -> float:
    """The longest step in [0, 1 / _TO_BORDER] that keeps x + step dx non-negative."""
    falling = dx < 0
    return min(1 / _TO_BORDER, np.min(-x[falling] / dx[falling], initial=np.inf))


def _factored(H: np.ndarray) -> np.ndarray | None:
    """The Cholesky factor of H, with a ridge if H needs one; None if every ridge fails."""
    diagonal = np.arange(len(H))
    for ridge in _RIDGES:
        H[diagonal, diagonal] += ridge * H[diagonal, diagonal].max()
        factor, failed = lapack().dpotrf(H, lower=1)
        if not failed and np.isfinite(factor).all():
            return factor
    return None


class LeastEntries(NamedTuple):
    """The w with the least largest entry at a given coherence, and certified bounds on it."""

    w: np.ndarray  # (m,)
    upper: float  # max abs(w)
    lower: float


def least_entries(A: np.ndarray, i: int, level: float, w: np.ndarray, tol: float) -> LeastEntries:
    r"""Minimise max abs(w) subject to w . a_i = 1 and |w . a_j| <= level for all j != i.

    Args:
        A: a dictionary of shape (m, d).
        i: the index of the atom.
        level: the coherence that w must not exceed.
        w: a feasible start of shape (m,).
        tol: relative gap of the bounds.

    The lower bound comes from the multipliers (v, nu): if B v + u = nu a_i with norm(u, 1) = 1,
    then nu - level norm(v, 1) <= norm(w, inf). If the gap at the interior point is too wide, the
    function continues with a vertex near the interior point.
    """
    a, B = A[:, i], np.delete(A.T, i, axis=0).T  # B in Fortran order
    n, m = B.shape[1], len(a)
    # No better w exceeds this level; a larger level constrains nothing and spoils the scaling.
    level = min(level, np.abs(B).sum(0).max(initial=1.0) * np.abs(w).max())
    b, e = np.repeat([level, 0.0], [n, m]), np.repeat([0.0, 1.0], [n, m])
    point, (v, nu), _ = interior_point(B, b, e, a, w, tol / 4)  # repairs cost a little of the gap
    best, lower = w, 0.0
    for from_vertex in (False, True):
        if from_vertex:
            point, (v, nu) = _vertex(B, b, e, a, point, v)
        inside = _pulled_inside(B, level * (1 - 1e-12), a, point, w)
        best = min(inside, best, key=lambda w: np.abs(w).max())
        lower = max(lower, _lower_bound(B, level, a, v[:n], nu))
        upper = np.abs(best).max()
        if upper - lower <= tol * upper:
            break
    return LeastEntries(best, upper, lower)


def _lower_bound(B: np.ndarray, level: float, a: np.ndarray, v: np.ndarray, nu: float) -> float:
    """The lower bound that multipliers (v, nu) prove; it holds for any multipliers."""
    u = nu * a - (blas().dgemv(1.0, B, v) if len(v) else 0)
    size = np.abs(u).sum()
    return float(max((nu - level * np.abs(v).sum()) / size, 0.0)) if size else 0.0


def _vertex(
    B: np.ndarray, b: np.ndarray, e: np.ndarray, a: np.ndarray, w: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, float]]:
    """w and the multipliers (v, nu) of a vertex near an interior point, by a dual simplex method.

    If the level is close to the least possible, the multipliers are large. They magnify the
    error that remains at the interior point in the dual conditions to a gap of 1e-5 or more; at a
    vertex this error is zero. The vertex belongs to the m independent constraints with the largest
    ratios of multiplier to slack; while the vertex violates another constraint, this constraint
    enters.
    """
    from scipy.linalg import qr

    m, M = len(a), np.hstack([B, np.eye(len(a))])
    at = M.T @ w
    slack = b + e * np.abs(w).max() - np.abs(at)
    ratio = np.abs(v) / np.maximum(slack, _TINY + np.finfo(float).eps * np.max(b + e))
    ratio = np.append(_ALWAYS**2 * ratio.max(), np.maximum(ratio, _TINY))
    rows = np.column_stack([np.append(a, 0.0), np.vstack([M * np.where(at < 0, -1, 1), -e])])
    weighted = rows / np.linalg.norm(rows, axis=0) * np.sqrt(ratio / ratio[0])
    order = qr(weighted, mode="r", pivoting=True)[-1][: m + 1]
    tight = order[order > 0] - 1
    S, right = np.column_stack([rows[:, 0], rows[:, tight + 1]]), np.append(1.0, b[tight])
    cost = np.append(np.zeros(m), 1.0)
    vertex = w, (v, 0.0)
    for _ in range(_PIVOTS_PER_ROW * m + _PIVOTS):
        if len(tight) < m:
            break
        try:
            x, c = np.linalg.solve(S.T, right), np.linalg.solve(S, cost)
        except np.linalg.LinAlgError:
            break
        multipliers = np.zeros(len(b))
        multipliers[tight] = -c[1:] * np.where(np.sum(M[:, tight] * S[:m, 1:], 0) < 0, -1, 1)
        vertex = x[:m], (multipliers, float(c[0]))
        at = M.T @ x[:m]
        excess = np.abs(at) - b - e * x[m]
        excess[tight] = -1.0
        r = int(excess.argmax())
        if excess[r] <= _VIOLATED * max(1.0, abs(x[m])):
            break
        row = np.append(M[:, r] * np.sign(at[r]), -e[r])
        y = np.linalg.solve(S, row)[1:]
        falls = y > _FALLING
        if not falls.any():
            break
        steps = np.maximum(-c[1:], 0) / np.where(falls, y, 1)
        j = int(np.argmin(np.where(falls, steps, np.inf)))
        tight[j], S[:, j + 1], right[j + 1] = r, row, b[r]
    return vertex


def _pulled_inside(
    B: np.ndarray, level: float, a: np.ndarray, point: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    """A w near `point` with |B'w| <= level: least squares first, then a move towards `inside`."""
    from scipy.linalg import lstsq

    if not B.size:
        return point
    at = blas().dgemv(1.0, B, point, trans=1)
    out = np.abs(at) > level
    if out.any():
        excess = at[out] - level * np.sign(at[out])
        point = point - lstsq(B[:, out].T, excess * (1 + 1e-9))[0]
        point = point / (a @ point)
    at, to = (np.abs(blas().dgemv(1.0, B, w, trans=1)) for w in (point, inside))
    share = np.max(
        (at - level) / np.maximum(at - to, np.finfo(float).tiny), initial=0.0, where=at > level
    )
    return point + min(1.0, share) * (inside - point)
