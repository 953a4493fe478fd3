"""An interior point for linear programs of the minimax kind, and the least entries at a given
coherence (Definition 8).
"""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np


def lapack():
    """scipy's LAPACK, imported when it is first needed."""
    from scipy.linalg import lapack

    return lapack


def blas():
    """scipy's products, for loops that factorise too: numpy's threads, another pool, would spin
    beside scipy's.
    """
    from scipy.linalg import blas

    return blas


@contextmanager
def one_thread():
    """One BLAS thread inside, where threadpoolctl is installed (scikit-learn brings it).

    Factorisations of a few hundred rows gain nothing from two, and lose up to a hundredfold where
    another process holds a core.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
    else:
        with threadpool_limits(1, user_api="blas"):
            yield


class _Rows:
    """The constraints |M'w| <= b + e t as rows of x = (w, t), for both signs at once: arrays of
    them are (2, len(b)).
    """

    def __init__(self, B, b, e):
        self.B, self.b, self.e = np.asfortranarray(B), b, e
        self.r, self.n = B.shape
        self.boxed = len(b) > self.n  # M = [B, I]

    def forward(self, x):
        """(+-M, -e)'x."""
        products = blas().dgemv(1.0, self.B, x[:-1], trans=1) if self.n else np.zeros(0)
        products = np.append(products, x[:-1]) if self.boxed else products
        return np.stack([products, -products]) - self.e * x[-1]

    def adjoint(self, v):
        """(M (v+ - v-), -e'(v+ + v-))."""
        total, v = np.sum(self.e * (v[0] + v[1])), v[0] - v[1]
        products = blas().dgemv(1.0, self.B, v[: self.n]) if self.n else np.zeros(self.r)
        return np.append(products + v[self.n :] if self.boxed else products, -total)

    def hessian(self, weights):
        """The sum of weights times the outer products of the rows; its lower triangle."""
        r, both = self.r, weights[0] + weights[1]
        H = np.zeros((r + 1, r + 1), order="F")
        if self.n:
            H[:r, :r] = blas().dsyrk(1.0, self.B * np.sqrt(both[: self.n]), lower=1)
        if self.boxed:
            H[np.arange(r), np.arange(r)] += both[self.n :]
        H[r, :r] = -self.adjoint(self.e * weights)[:r]
        H[r, r] = np.sum(self.e**2 * both)
        return H


class _Newton:
    """The linearised conditions at (x, s, l, nu), factorised once and solved for several targets of
    l s.
    """

    def __init__(self, rows, factor, a, s, l, off):
        self.rows, self.factor, self.a, self.s, self.l = rows, factor, a, s, l
        self.off_primal, self.off_dual, self.off_unit = off
        self.across = self.solve(a)

    def solve(self, right):
        return lapack().dpotrs(self.factor, right, lower=1)[0]

    def towards(self, target):
        """(dx, dnu, ds, dl)."""
        s, l, a = self.s, self.l, self.a
        missing = (target - l * s - l * self.off_primal) / s
        dx = self.solve(self.off_dual - self.rows.adjoint(missing))
        dnu = (self.off_unit - a @ dx) / (a @ self.across)
        dx += dnu * self.across
        ds = self.off_primal - self.rows.forward(dx)
        return dx, dnu, ds, (target - l * s - l * ds) / s

    def lengths(self, move):
        """How far s and l may follow, 0.995 of the way to the border and at most 1."""
        return tuple(
            min(1.0, 0.995 * _longest(x, dx)) for x, dx in ((self.s, move[2]), (self.l, move[3]))
        )

    def predicted(self):
        """The target and the move of Mehrotra's predictor and corrector."""
        s, l = self.s, self.l
        average = np.sum(l * s) / l.size
        _, _, ds, dl = self.towards(0.0)
        reached = np.sum((s + _longest(s, ds) * ds) * (l + _longest(l, dl) * dl)) / l.size
        centre = average * min(1.0, (reached / average) ** 3)
        return centre, centre - ds * dl

    def move(self):
        """The step, with centrality corrections (Gondzio 1996) while they lengthen it, and its
        lengths.
        """
        centre, target = self.predicted()
        move = self.towards(target)
        lengths = self.lengths(move)
        for _ in range(2):
            ahead, along = (min(1.0, length + 0.3) for length in lengths)
            reached = (self.s + ahead * move[2]) * (self.l + along * move[3])
            target = target + np.maximum(
                np.clip(reached, centre / 10, centre * 10) - reached, -10 * centre
            )
            trial = self.towards(target)
            further = self.lengths(trial)
            if sum(further) < sum(lengths) + 0.02:
                break
            move, lengths = trial, further
        return move, lengths


def interior_point(B, b, e, c, w, tol: float, *, max_steps: int = 60):
    r"""min t : |M'w| <= b + e t, c . w = 1, by a primal-dual method from w; M = B, or [B, I] for b
    and e of that length.

    With B = A without column i, b = 0, e = 1 the optimum is the generalized coherence of atom i;
    with [B, I], b = (mu, 0) and e = (0, 1) it is the least largest entry at coherence mu
    (Definition 8).

    Args:
        B: (r, n); b, e: (n,) or (n + r,), non-negative; c, w: (r,), c . w > 0.
        tol: relative complementarity gap and residuals at which to stop.

    Returns:
        w with c . w = 1; the multipliers v and nu, with M v = nu c nearly; the steps taken. The
        best of the iterates, not
        certified: the callers make bounds of them.
    """
    rows, a = _Rows(B, b, e), np.append(c, 0.0)
    cost = np.append(np.zeros(len(c)), 1.0)
    x = np.append(w / (c @ w), 0.0)
    x[-1] = 2 * max((rows.forward(x) - b)[:, e > 0].max(), 1e-8)
    s = np.maximum(b - rows.forward(x), 0.03 * np.max(b + e * x[-1]))
    l, nu = 1 / (s * np.sum(e / s)), 0.0
    best, least = (x, l, nu), np.inf
    for steps in range(max_steps + 1):
        scale = max(abs(x[-1]), 1e-300)
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


def _longest(x, dx):
    """The longest step in [0, 1 / 0.995] that keeps x + step dx non-negative."""
    falling = dx < 0
    return min(1 / 0.995, np.min(-x[falling] / dx[falling], initial=np.inf))


def _factored(H):
    """The Cholesky factor of H, with a little added to its diagonal where it needs it; None where
    even that fails.
    """
    diagonal = np.arange(len(H))
    for ridge in (0.0, 1e-15, 1e-12, 1e-9):
        H[diagonal, diagonal] += ridge * H[diagonal, diagonal].max()
        factor, failed = lapack().dpotrf(H, lower=1)
        if not failed and np.isfinite(factor).all():
            return factor
    return None


class LeastEntries(NamedTuple):
    """The w with the least largest entry at a given coherence, between certified bounds (inf where
    there is none).
    """

    w: np.ndarray  # (m,)
    upper: float  # max abs(w)
    lower: float


def least_entries(A: np.ndarray, i: int, level: float, w: np.ndarray, tol: float) -> LeastEntries:
    r"""min \max_k |w_k| : w . a_i = 1, |w . a_j| <= level for j != i, from a feasible w.

    The lower bound is that of (v, nu): norm(u, 1) = 1 and B v + u = nu a_i give nu - level norm(v,
    1) <= max abs(w).
    """
    a, B = A[:, i], np.delete(A.T, i, axis=0).T  # in the order that Fortran wants
    n, m = B.shape[1], len(a)
    # No w with entries up to those of the given one is above this: a level that binds nothing does
    # not spoil the scaling.
    level = min(level, np.abs(B).sum(0).max(initial=1.0) * np.abs(w).max())
    b, e = np.repeat([level, 0.0], [n, m]), np.repeat([0.0, 1.0], [n, m])
    found, (v, nu), _ = interior_point(B, b, e, a, w, tol / 4)  # repairs cost a little of the gap
    found = _pulled_inside(B, level * (1 - 1e-12), a, found, w)
    u = nu * a - (blas().dgemv(1.0, B, v[:n]) if n else 0)
    lower = (nu - level * np.abs(v[:n]).sum()) / np.abs(u).sum()
    best = min(found, w, key=lambda w: np.abs(w).max())
    return LeastEntries(best, np.abs(best).max(), max(lower, 0.0))


def _pulled_inside(B, level, a, found, inside):
    """A point near `found` where |B'w| <= level: least squares first, the rest on the way to
    `inside`.
    """
    from scipy.linalg import lstsq

    if not B.size:
        return found
    at = blas().dgemv(1.0, B, found, trans=1)
    out = np.abs(at) > level
    if out.any():
        excess = at[out] - level * np.sign(at[out])
        found = found - lstsq(B[:, out].T, excess * (1 + 1e-9))[0]
        found = found / (a @ found)
    at, to = (np.abs(blas().dgemv(1.0, B, w, trans=1)) for w in (found, inside))
    share = np.max(
        (at - level) / np.maximum(at - to, np.finfo(float).tiny), initial=0.0, where=at > level
    )
    return found + min(1.0, share) * (inside - found)
