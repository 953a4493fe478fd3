r"""Basis pursuit for many right-hand sides in one dictionary, to certified gaps, and the interior
point behind it.

.. math:: \min \|v\|_1 : A v = y, \; v_b = 0 \qquad = \qquad \max y' z : |a_j' z| \le 1, \; j \ne b.

A first-order method runs on all programs at once and all but names the optimal vertex; a few pivots
of a simplex, whose every basis is feasible, then reach it. An interior point takes what
degenerates. Everything is numpy in float64 on the host (the first-order method in float32), so a
host callback may call it; LU, Cholesky and the products between them are scipy's.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unrolled._interior_point import blas, interior_point, lapack, one_thread


class Solution(NamedTuple):
    """Feasible points of both sides, one column per program; primal >= optimum >= dual, up to
    rounding in float64.
    """

    V: np.ndarray  # (d, n) with A V = Y
    Z: np.ndarray  # (m, n) with |A' Z| <= 1 apart from the banned entries
    primal: np.ndarray  # (n,) l1 norms of V
    dual: np.ndarray  # (n,) y . z
    steps: np.ndarray  # (n,) pivots and interior steps taken beyond the first-order method


class Whitened(NamedTuple):
    """A = back Q with orthonormal rows Q: rank deficiency and bad scaling of rows do no harm there."""

    Q: np.ndarray  # (r, d)
    into: np.ndarray  # (r, m): y -> c
    lift: np.ndarray  # (m, r): z of the whitened program -> z of the original one


def whiten(A: np.ndarray) -> Whitened:
    """A = U S Q, cut at its numerical rank."""
    with one_thread():
        U, S, Q = np.linalg.svd(A, full_matrices=False)
    rank = int(np.sum(S > S[0] * max(A.shape) * np.finfo(float).eps))
    lift = U[:, :rank] / S[:rank]
    return Whitened(Q[:rank], lift.T, lift)


def basis_pursuit(
    whitened: Whitened,
    Y: np.ndarray,
    *,
    banned: np.ndarray | None = None,
    tol: float = 1e-9,
    choose: Callable | None = None,
    iterations: int = 200,
    progress: Callable | None = None,
) -> Solution:
    """Solve min norm(v, 1) : A v = y for every column y of Y, each to a relative gap of `tol`.

    Args:
        whitened: of A, (m, d).
        Y: (m, n), in the range of A; with `banned` those columns of A, in the range of the others.
        banned: (n,), index of the entry that program k must leave at 0, or None.
        tol: relative gap (primal - dual) / primal.
        choose: (primal, dual, tried) -> index of the next program to finish, or None to stop; the
            default finishes all.
        iterations: of the first-order method.
        progress: called as progress(settled, n).

    Not claimed: the bounds are float64, not interval arithmetic.
    """
    Q, into, lift = whitened
    C, n = into @ Y, Y.shape[1]
    size = np.abs(C).max(0) if banned is None else np.ones(n)
    size = np.where(size > 0, size, 1.0)
    C = C / size  # float32 has no room for signals of any scale

    def unsettled(primal, dual, tried):
        return next(iter(np.flatnonzero((primal - dual > tol * primal) & ~tried)), None)

    V, Z = _first_order(Q, C, banned, iterations)
    V, Z, primal, dual = _feasible(Q, C, banned, V, Z)
    atoms = np.ascontiguousarray(Q.T)
    bases, steps, tried = _likely_bases(Q, Z, V, banned), np.zeros(n, int), np.zeros(n, bool)
    with one_thread():
        while (k := (choose or unsettled)(primal, dual, tried)) is not None:
            b = None if banned is None else banned[k]
            v, z, steps[k] = _finish(
                Q, atoms, C[:, k], b, bases[:, k], V[:, k], Z[:, k], primal[k], dual[k], tol
            )
            v, z, (p,), (q,) = _feasible(
                Q, C[:, [k]], None if b is None else banned[[k]], v[:, None], z[:, None]
            )
            if p < primal[k]:
                V[:, k], primal[k] = v[:, 0], p
            if q > dual[k]:
                Z[:, k], dual[k] = z[:, 0], q
            tried[k] = True
            if progress is not None:
                progress(int(np.sum(tried | (primal - dual <= tol * primal))), n)
    return Solution(V * size, lift @ Z, primal * size, dual * size, steps)


def _first_order(Q, C, banned, iterations):
    """ADMM on x in {Q x = c} and y = shrink(x + u), y_b = 0, over-relaxed; returns x and the dual Q
    u, both approximate.
    """
    d, columns, over = Q.shape[1], np.arange(C.shape[1]), np.float32(1.7)
    X = Q.T @ C  # the least-norm solutions
    y = X.copy()
    if banned is not None:
        y[banned, columns] = 0
        y /= 1 - X[banned, columns]
    X, y, thin = np.float32(X), np.float32(y), np.float32(Q) * np.sqrt(over)
    P = None if 2 * len(Q) < d else over * np.eye(d, dtype=np.float32) - thin.T @ thin
    r = np.maximum(np.abs(y).sum(0) / np.float32(1.5 * d), np.float32(1e-30))
    x, u, low = np.empty_like(X), np.zeros_like(X), -r
    X *= over
    for _ in range(iterations):
        step = y - u
        np.matmul(P, step, out=x) if P is not None else np.subtract(
            over * step, thin.T @ (thin @ step), out=x
        )
        x += X
        y *= 1 - over
        x += y
        x += u
        np.minimum(x, r, out=u)
        np.maximum(u, low, out=u)
        np.subtract(x, u, out=y)
        if banned is not None:
            y[banned, columns], u[banned, columns] = 0, x[banned, columns]
    return np.float64(y), Q @ (u / r)


def _feasible(Q, C, banned, V, Z):
    """Exactly feasible points near V and Z, and their values."""
    off = C - Q @ V
    size = np.linalg.norm(C, axis=0) + np.linalg.norm(V, axis=0)
    made = np.linalg.norm(off, axis=0) <= 4 * np.finfo(float).eps * np.sqrt(Q.shape[1]) * size
    V = V + np.where(made, 0, Q.T @ off)  # a vertex keeps its zeros
    products = np.abs(Q.T @ Z)
    if banned is not None:
        columns = np.arange(C.shape[1])
        share = V[banned, columns]  # the rest of v makes (1 - share) c
        V[banned, columns], products[banned, columns] = 0, 0
        V = V / np.where(share == 1, np.finfo(float).tiny, 1 - share)
    Z = Z / np.maximum(products.max(0), np.finfo(float).tiny) * np.sign(np.sum(C * Z, 0))
    return V, Z, np.abs(V).sum(0), np.sum(C * Z, 0)


def _likely_bases(Q, Z, V, banned):
    """The r entries of every program that are most likely nonzero at its vertex: tight constraints,
    large coefficients.
    """
    r, products = len(Q), np.abs(Q.T @ Z)
    top = np.partition(products, -r, axis=0)[-r:]
    # without an atom that is nearly independent no basis is one
    needed = np.sum(Q**2, 0) > 1 - 1e-6
    score = products / np.maximum(np.median(top, 0), 1e-300) + np.abs(V) / np.maximum(
        np.abs(V).mean(0), 1e-300
    )
    score[needed] += 1e6
    if banned is not None:
        score[banned, np.arange(V.shape[1])] = -1
    return np.argpartition(score, -r, axis=0)[-r:]


def _finish(Q, atoms, c, banned, basis, v, z, primal, dual, tol):
    """v, z and the steps taken: by the simplex, or by the interior point where that gives up."""
    found, pivots = _simplex(atoms, c, basis.copy(), banned, tol / 2)
    if found is not None:
        return *found, pivots
    B = Q if banned is None else np.delete(Q, banned, axis=1)
    # min max |B'w| : c.w = 1 has the solution w = z / (c.z), and v / norm(v, 1) is its multiplier.
    w = z / dual if dual > 0 else c / (c @ c)
    w, (multiplier, nu), steps = interior_point(
        B, np.zeros(B.shape[1]), np.ones(B.shape[1]), c, w, tol / 2
    )
    v = multiplier / nu
    return (v if banned is None else np.insert(v, banned, 0.0)), w, pivots + steps


class _Basis:
    """Solves with Q_S and its transpose under exchanges of columns: an LU and a list of eta
    vectors.
    """

    def __init__(self, rows):
        # The transposed copy of contiguous rows is what Fortran wants: nothing is copied again.
        self.lu, self.order, _ = lapack().dgetrf(rows.T, overwrite_a=True)
        self.etas = []

    def is_singular(self):
        return np.abs(np.diag(self.lu)).min() < 1e-7

    def solve(self, c):
        x = lapack().dgetrs(self.lu, self.order, c)[0]
        for r, u in self.etas:
            step = x[r] / u[r]
            x -= step * u
            x[r] = step
        return x

    def solve_transposed(self, s):
        s = s.copy()
        for r, u in reversed(self.etas):
            s[r] = (s[r] - (u @ s - u[r] * s[r])) / u[r]
        return lapack().dgetrs(self.lu, self.order, s, trans=1)[0]

    def exchange(self, r, u):
        self.etas.append((r, u))


def _simplex(atoms, c, S, banned, tol):
    """min norm(v, 1) : Q v = c from the basis S; ((v, z), pivots), or (None, pivots) where it gives
    up.
    """
    basis, pivots, stalls = _Basis(atoms[S]), 0, 0
    limit = 20 + 3 * len(S)
    if basis.is_singular():
        return None, pivots
    v = basis.solve(c)
    s = np.where(v < 0, -1.0, 1.0)
    while True:
        z = basis.solve_transposed(s)
        price = blas().dgemv(1.0, atoms.T, z, trans=1)
        outside = np.abs(price)
        outside[S] = 0
        if banned is not None:
            outside[banned] = 0
        j = outside.argmax()
        optimal = outside[j] <= 1 + tol
        if optimal and not (basis.etas and np.abs(v @ atoms[S] - c).max() > 1e-13):
            full = np.zeros(len(atoms))
            full[S] = v
            return (full, z), pivots
        if not optimal and (pivots == limit or stalls > 5):
            return None, pivots
        if optimal or len(basis.etas) == 64:
            basis = _Basis(atoms[S])
            if basis.is_singular():
                return None, pivots
        if optimal:  # what exchanges through bad bases have left in v goes: solved afresh, and looked at again
            v = basis.solve(c)
            s = np.where(v == 0, s, np.sign(v))
            continue
        u, sign = basis.solve(atoms[j]), np.sign(price[j])
        leaving = _leaving(v, s, sign * u, outside[j])
        if leaving is None or abs(u[leaving[0]]) < 1e-7:
            return None, pivots
        r, step, flips = leaving
        stalls = stalls + 1 if step <= 1e-14 * np.abs(v).max() else 0
        s[flips] *= -1
        v -= step * sign * u
        v[r], s[r], S[r] = step * sign, sign, j
        basis.exchange(r, u)
        pivots += 1


def _leaving(v, s, g, price):
    """The entry of v that leaves as v - t g, its t, and the entries that change their sign before
    it; None if none does.

    Long steps: the entering entry passes through every breakpoint of the piecewise linear objective
        that still pays.
    """
    falling = np.flatnonzero(s * g > 1e-12)
    t = np.abs(v[falling]) / np.abs(g[falling])
    order = np.argsort(t)
    slopes = 1 - price + 2 * np.cumsum(np.abs(g[falling[order]]))
    passed = int(np.searchsorted(slopes >= 0, True))
    if passed == len(order):
        return None
    return falling[order[passed]], t[order[passed]], falling[order[:passed]]
