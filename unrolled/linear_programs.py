r"""Basis pursuit for many right-hand sides and one dictionary, up to certified gaps.

.. math:: \min \|v\|_1 : A v = y, \; v_b = 0 \qquad = \qquad \max y' z : |a_j' z| \le 1, \; j \ne b.

A first-order method runs on all programs at once and nearly identifies the optimal vertex. A few
pivots of a simplex method, for which every basis is feasible, then reach the vertex. If the simplex
method gives up, an interior point method takes over. All computations use numpy on the host, so
host callbacks may call this module. The first-order method computes in float32, the other methods
in float64. The LU and Cholesky factorisations come from scipy. If the caller does not choose the
order of the programs, the programs are finished on all cores, with one thread per program.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Result, checked
from unrolled._base.interior_point import interior_point, lapack
from unrolled._base.threads import one_thread, threads

__all__ = ["basis_pursuit", "whiten"]
__results__ = ["Solution", "Whitened"]

# First-order method: over-relaxation, and the threshold norm(v, 1) / (1.5 d), where v is the
# least-norm solution. Both were tuned on one Gaussian dictionary of shape (250, 500).
_RELAXATION = np.float32(1.7)
_THRESHOLD_SCALE = np.float32(1.5)
# Every basis contains each atom whose leverage differs from 1 by at most this value.
_LEVERAGE_TOL = 1e-6
# Simplex: the basis counts as singular if a diagonal entry of U, or a pivot, is below this value.
_SINGULAR = 1e-7
# The number of exchanges after which the basis is factorised afresh.
_REFACTOR = 64
# A step below the share _STALLED of the largest coefficient counts as no progress; more than
# _MOST_STALLS such steps in a row count as cycling.
_STALLED, _MOST_STALLS = 1e-14, 5
# The simplex method may take 20 + 3 r pivots, where Q has r rows. Programs with nearly duplicate
# atoms need more than r / 3 pivots.
_PIVOTS, _PIVOTS_PER_ROW = 20, 3
# If the error of A v = y at the optimum is above this value, because of exchanges through
# ill-conditioned bases, the basis is factorised afresh.
_RESIDUAL = 1e-13
# Slopes below this value are rounding errors of zero.
_SLOPE = 1e-12


class Solution(Result):
    """Feasible points of the primal and dual programs, one column per program.

    primal >= optimum >= dual, up to rounding in float64.
    """

    V: np.ndarray  # (d, n) with A V = Y
    Z: np.ndarray  # (m, n) with |A' Z| <= 1 except at the banned entries
    primal: np.ndarray  # (n,) l1 norms of V
    dual: np.ndarray  # (n,) y . z
    steps: np.ndarray  # (n,) pivots and interior steps after the first-order method


class Whitened(NamedTuple):
    """A = B Q, where Q has orthonormal rows; A may have low rank and badly scaled rows."""

    Q: np.ndarray  # (r, d)
    into: np.ndarray  # (r, m): y -> c
    lift: np.ndarray  # (m, r): z of the whitened program -> z of the original program


@checked
def whiten(A: np.ndarray) -> Whitened:
    """The factor Q of A = U S Q with orthonormal rows, cut at the numerical rank of A.

    Args:
        A: (m, d).

    Example:
        >>> A = np.array([[1.0, 0.0, 1.0], [2.0, 0.0, 2.0]])
        >>> ur.linear_programs.whiten(A).Q.shape
        (1, 3)
    """
    checks.shaped(A, "(m, d)", "A", "whiten")
    with one_thread():
        U, S, Q = np.linalg.svd(A, full_matrices=False)
    rank = int(np.sum(S > S[0] * max(A.shape) * np.finfo(float).eps))
    lift = U[:, :rank] / S[:rank]
    return Whitened(Q[:rank], lift.T, lift)


@checked
def basis_pursuit(
    whitened: Whitened,
    Y: np.ndarray,
    *,
    banned: np.ndarray | None = None,
    tol: float = 1e-9,
    choose: Callable[[np.ndarray, np.ndarray, np.ndarray], int | None] | None = None,
    iterations: int = 200,
    progress: Callable[[int, int], None] | None = None,
) -> Solution:
    """Minimise norm(v, 1) subject to A v = y for every column y of Y, to a relative gap of `tol`.

    Args:
        whitened: `whiten(A)` of A, (m, d).
        Y: (m, n), in the range of A; with `banned`, in the range of the remaining columns of A.
        banned: (n,), for each program the index of an entry of v that must be 0; None for no such
            entries.
        tol: relative gap (primal - dual) / primal.
        choose: function (primal, dual, tried) -> index of the next program to finish, or None to
            stop; the default finishes all programs.
        iterations: number of iterations of the first-order method.
        progress: function called as progress(settled, n), by one thread at a time.

    Returns:
        Solution. If the gap of a program stays above tol, no error is raised: `primal` and `dual`
        show the gap.

    Not claimed: bounds from interval arithmetic; `primal` and `dual` are computed in float64.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
        >>> whitened = ur.linear_programs.whiten(A)
        >>> solution = ur.linear_programs.basis_pursuit(whitened, np.array([[1.2], [1.6]]))
        >>> solution.V.round(6).ravel().tolist(), solution.primal.round(6).tolist()
        ([0.0, 0.0, 2.0], [2.0])
    """
    Q, into, lift = whitened
    if Y.ndim != 2 or len(Y) != into.shape[1]:
        raise ValueError(
            f"basis_pursuit: Y has shape {Y.shape}; expected ({into.shape[1]}, n), y in columns"
        )
    C, n = into @ Y, Y.shape[1]
    if banned is not None and (banned.shape != (n,) or banned.dtype.kind not in "iu"):
        raise ValueError(
            f"basis_pursuit: banned is {banned.dtype} of shape {banned.shape}; expected integers, "
            f"({n},)"
        )
    size = np.abs(C).max(0) if banned is None else np.ones(n)
    size = np.where(size > 0, size, 1.0)
    C = C / size  # float32 cannot hold signals of every scale

    V, Z = _first_order(Q, C, banned, iterations)
    V, Z, primal, dual = _made_feasible(Q, C, banned, V, Z)
    atoms = np.ascontiguousarray(Q.T)
    bases, steps, tried = _likely_bases(Q, Z, V, banned), np.zeros(n, int), np.zeros(n, bool)
    reporting = threading.Lock()

    def finish(k: int) -> None:
        own = None if banned is None else banned[[k]]
        v, z, steps[k] = _finish(Q, atoms, C[:, k], own, bases[:, k], Z[:, k], dual[k], tol)
        v, z, (p,), (q,) = _made_feasible(Q, C[:, [k]], own, v[:, None], z[:, None])
        if p < primal[k]:
            V[:, k], primal[k] = v[:, 0], p
        if q > dual[k]:
            Z[:, k], dual[k] = z[:, 0], q
        with reporting:
            tried[k] = True
            if progress is not None:
                progress(int(np.sum(tried | (primal - dual <= tol * primal))), n)

    with threads() as team:
        if choose is None:
            team.share(finish, np.flatnonzero(primal - dual > tol * primal).tolist())
        while choose is not None and (k := choose(primal, dual, tried)) is not None:
            finish(k)
    return Solution(V * size, lift @ Z, primal * size, dual * size, steps)


def _first_order(
    Q: np.ndarray, C: np.ndarray, banned: np.ndarray | None, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Approximate solutions y, (d, n), and dual points Q u, (r, n), in float32.

    Over-relaxed ADMM alternates between x in {Q x = c} and y = shrink(x + u) with y_b = 0.
    """
    d, columns, over = Q.shape[1], np.arange(C.shape[1]), _RELAXATION
    X = Q.T @ C  # the least-norm solutions
    y = X.copy()
    if banned is not None:
        y[banned, columns] = 0
        y /= 1 - X[banned, columns]
    X, y = X.astype(np.float32), y.astype(np.float32)
    thin = Q.astype(np.float32) * np.sqrt(over)
    # With few rows, two thin products are cheaper than one product with the projector P.
    P = None if 2 * len(Q) < d else over * np.eye(d, dtype=np.float32) - thin.T @ thin
    r = np.maximum(np.abs(y).sum(0) / (_THRESHOLD_SCALE * np.float32(d)), np.float32(1e-30))
    x, u, low = np.empty_like(X), np.zeros_like(X), -r
    X *= over
    for _ in range(iterations):
        step = y - u
        if P is not None:
            np.matmul(P, step, out=x)
        else:
            np.subtract(over * step, thin.T @ (thin @ step), out=x)
        x += X
        y *= 1 - over
        x += y
        x += u
        np.minimum(x, r, out=u)
        np.maximum(u, low, out=u)
        np.subtract(x, u, out=y)
        if banned is not None:
            y[banned, columns], u[banned, columns] = 0, x[banned, columns]
    return y.astype(np.float64), Q @ (u / r)


def _made_feasible(
    Q: np.ndarray, C: np.ndarray, banned: np.ndarray | None, V: np.ndarray, Z: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Feasible points near V and Z, and their primal and dual values."""
    off = C - Q @ V
    size = np.linalg.norm(C, axis=0) + np.linalg.norm(V, axis=0)
    exact = np.linalg.norm(off, axis=0) <= 4 * np.finfo(float).eps * np.sqrt(Q.shape[1]) * size
    V = V + np.where(exact, 0, Q.T @ off)  # exact points stay, so a vertex keeps its zeros
    products = np.abs(Q.T @ Z)
    if banned is not None:
        columns = np.arange(C.shape[1])
        share = V[banned, columns]  # without this entry v gives (1 - share) c
        V[banned, columns], products[banned, columns] = 0, 0
        V = V / np.where(share == 1, np.finfo(float).tiny, 1 - share)
    Z = Z / np.maximum(products.max(0), np.finfo(float).tiny) * np.sign(np.sum(C * Z, 0))
    return V, Z, np.abs(V).sum(0), np.sum(C * Z, 0)


def _likely_bases(
    Q: np.ndarray, Z: np.ndarray, V: np.ndarray, banned: np.ndarray | None
) -> np.ndarray:
    """The r entries of every program that are most likely nonzero at its vertex, (r, n).

    These entries have tight constraints or large coefficients.
    """
    r, products = len(Q), np.abs(Q.T @ Z)
    top = np.partition(products, -r, axis=0)[-r:]
    needed = np.sum(Q**2, 0) > 1 - _LEVERAGE_TOL
    score = products / np.maximum(np.median(top, 0), 1e-300) + np.abs(V) / np.maximum(
        np.abs(V).mean(0), 1e-300
    )
    score[needed] += 1e6
    if banned is not None:
        score[banned, np.arange(V.shape[1])] = -1
    return np.argpartition(score, -r, axis=0)[-r:]


def _finish(
    Q: np.ndarray,
    atoms: np.ndarray,
    c: np.ndarray,
    own: np.ndarray | None,
    basis: np.ndarray,
    z: np.ndarray,
    dual: float,
    tol: float,
) -> tuple[np.ndarray, np.ndarray, int]:
    """v, z and the number of steps, by the simplex or, if it gives up, the interior point method.

    `own` holds the index of the entry that must be 0.
    """
    banned = None if own is None else int(own[0])
    answer, pivots = _simplex(atoms, c, basis.copy(), banned, tol / 2)
    if answer is not None:
        return *answer, pivots
    B = Q if banned is None else np.delete(Q, banned, axis=1)
    # min max |B'w| : c.w = 1 is solved by w = z / (c.z), with the multiplier v / norm(v, 1).
    w = z / dual if dual > 0 else c / (c @ c)
    w, (multiplier, nu), steps = interior_point(
        B, np.zeros(B.shape[1]), np.ones(B.shape[1]), c, w, tol / 2
    )
    v = multiplier / nu
    return (v if banned is None else np.insert(v, banned, 0.0)), w, pivots + steps


class _Basis:
    """A solver for Q_S and its transpose: an LU factorisation, and eta vectors for exchanges."""

    def __init__(self, rows: np.ndarray):
        # The transpose of contiguous rows is in Fortran order, so LAPACK needs no further copy.
        self.lu, self.order, _ = lapack().dgetrf(rows.T, overwrite_a=True)
        self.etas: list[tuple[int, np.ndarray]] = []

    def is_singular(self) -> bool:
        return np.abs(np.diag(self.lu)).min() < _SINGULAR

    def solve(self, c: np.ndarray) -> np.ndarray:
        x = lapack().dgetrs(self.lu, self.order, c)[0]
        for r, u in self.etas:
            step = x[r] / u[r]
            x -= step * u
            x[r] = step
        return x

    def solve_transposed(self, s: np.ndarray) -> np.ndarray:
        s = s.copy()
        for r, u in reversed(self.etas):
            s[r] = (s[r] - (u @ s - u[r] * s[r])) / u[r]
        return lapack().dgetrs(self.lu, self.order, s, trans=1)[0]

    def exchange(self, r: int, u: np.ndarray) -> None:
        """Replace column r by the column with coordinates u."""
        self.etas.append((r, u))


def _simplex(
    atoms: np.ndarray, c: np.ndarray, S: np.ndarray, banned: int | None, tol: float
) -> tuple[tuple[np.ndarray, np.ndarray] | None, int]:
    """Minimise norm(v, 1) subject to Q v = c by the simplex method, which starts at the basis S.

    Args:
        atoms: (d, r), the columns of Q in rows.
        c: (r,).
        S: (r,), the indices of the first basis; the method changes S in place.
        banned: the index of the entry of v that must be 0; None for no such entry.
        tol: the largest excess of a dual constraint |q_j . z| <= 1 at the optimum.

    Returns:
        The solution (v, z), and the number of pivots. The solution is None if the method gives up.
    """
    basis, pivots, stalls = _Basis(atoms[S]), 0, 0
    limit = _PIVOTS + _PIVOTS_PER_ROW * len(S)
    if basis.is_singular():
        return None, pivots
    v = basis.solve(c)
    s = np.where(v < 0, -1.0, 1.0)
    while True:
        z = basis.solve_transposed(s)
        price = atoms @ z
        outside = np.abs(price)
        outside[S] = 0
        if banned is not None:
            outside[banned] = 0
        j = outside.argmax()
        optimal = outside[j] <= 1 + tol
        if optimal and not (basis.etas and np.abs(v @ atoms[S] - c).max() > _RESIDUAL):
            full = np.zeros(len(atoms))
            full[S] = v
            return (full, z), pivots
        if not optimal and (pivots == limit or stalls > _MOST_STALLS):
            return None, pivots
        if optimal or len(basis.etas) == _REFACTOR:
            basis = _Basis(atoms[S])
            if basis.is_singular():
                return None, pivots
        if optimal:  # solved afresh without the errors of the exchanges, and tested again
            v = basis.solve(c)
            s = np.where(v == 0, s, np.sign(v))
            continue
        u, sign = basis.solve(atoms[j]), np.sign(price[j])
        leaving = _leaving(v, s, sign * u, outside[j])
        if leaving is None or abs(u[leaving[0]]) < _SINGULAR:
            return None, pivots
        r, step, flips = leaving
        stalls = stalls + 1 if step <= _STALLED * np.abs(v).max() else 0
        s[flips] *= -1
        v -= step * sign * u
        v[r], s[r], S[r] = step * sign, sign, j
        basis.exchange(r, u)
        pivots += 1


def _leaving(
    v: np.ndarray, s: np.ndarray, g: np.ndarray, price: float
) -> tuple[int, float, np.ndarray] | None:
    """The entry that leaves as v - t g moves, its t, and the entries that change sign before it.

    The steps are long: the entering entry passes breakpoints of the piecewise linear objective as
    long as the objective falls. The result is None if the objective falls without bound.
    """
    falling = np.flatnonzero(s * g > _SLOPE)
    t = np.abs(v[falling]) / np.abs(g[falling])
    order = np.argsort(t)
    slopes = 1 - price + 2 * np.cumsum(np.abs(g[falling[order]]))
    passed = int(np.searchsorted(slopes >= 0, True))
    if passed == len(order):
        return None
    return falling[order[passed]], t[order[passed]], falling[order[:passed]]
