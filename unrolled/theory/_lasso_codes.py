"""Proofs that single codes are optimal: the signs of a code give the exact optimum of the LASSO."""

from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Result, host_function
from unrolled._base.numbers import UP
from unrolled.dictionaries import Dictionary, as_dictionary, dense
from unrolled.pursuit import minima, weights_of_many
from unrolled.theory._coherence import of_real_entries

__all__ = ["LassoCertificate", "certify_lasso"]


_U = float(np.finfo(float).eps) / 2
_TINY = float(np.finfo(float).tiny)
# Constants of the active set method: the number of atoms that may join in a round even if the
# support is smaller, the largest number of moves, and the violation, relative to the norms of atom
# and signal, up to which a constraint counts as met. The proof uses separate bounds.
_FEWEST, _MOVES, _SLACK = 3, 10_000, 1e-13
_SYSTEMS = 64  # the number of codes whose systems are padded to one size
_REFINEMENTS = 2
_FAR = 1e100  # stands for an unknown distance of D x from D x*
_LARGE = 1e300  # larger penalties, relative to the norms of atom and signal, count as this


class LassoCertificate(Result):
    """The optimum that the function finds from a code, and its proof; for a batch, n of each."""

    x: np.ndarray  # (d,) the optimum of the LASSO, in float64
    holds: Any  # whether x is optimal to the rounding of float64
    unique: Any  # whether it is proved that the only optimum has the support and the signs of x
    distance: Any  # upper bound on norm(x_given - x*); inf unless `holds`, or if unknown
    margin: Any  # the least lam_j - |d_j . (y - D x*)| off the support, rounded down
    repairs: Any  # number of changes of the given signs


@of_real_entries("D y x", "pursuit.duality_gap(D, y, x, lam)")
@host_function
def certify_lasso(
    D: Dictionary,
    y: ArrayLike,
    x: ArrayLike,
    lam: ArrayLike,
    *,
    repairs: int = 12,
    nonnegative: bool = False,
    l2: ArrayLike = 0.0,
) -> LassoCertificate:
    r"""Find the optimum of the LASSO from the signs of a code, and prove that it is the optimum.

    .. math:: x^* = \arg\min_x \tfrac12 \|y - D x\|^2 + \sum_i lam_i |x_i| + \tfrac{l2}2 \|x\|^2

    The optimum x* has the support S and the signs s if

    .. math::
        x_S = G^{-1} (D_S'y - lam_S s), \quad s_i x_i > 0, \quad
        |d_j'(y - D_S x_S)| < lam_j \ (j \notin S), \quad G = D_S'D_S + l2 \succ 0.

    Conversely, a unique optimum nearly always meets these conditions. The function solves the
    system for the S and s of the given code, and drops the signs that the solution contradicts, as
    in `pursuit.lasso_batch`. A repair then adds the atoms with the largest violations of their
    constraints, at most max(3, k) atoms for a support of k atoms, and solves again. An atom with
    lam_i = 0 is in S, with either sign.

    The proof holds for the given numbers in float64. Let k be the number of atoms in S, let M be
    the computed inverse of G, let g = D_S'(y - D_S x_S) - l2 x_S - lam_S s, and let e bound the
    rounding of g. If rho = norm(I - M G, inf), including its rounding, is below 1 (the function
    requires rho < 1/2), then

    .. math::
        \|x - x^*\|_\infty \le \delta = \frac{\|M\|_\infty}{1 - \rho} (\|g\|_\infty + e), \qquad
        \|D (x - x^*)\|_2 \le \sqrt{\delta \, (\|g\|_1 + k e)}.

    So `unique` requires that s_i x_i > delta on S, and that, off S, lam_j exceeds the sum of
    |d_j'(y - D x)|, its rounding, and norm(d_j) times the second bound. `holds` requires less: g
    and the excess over lam_j must be at most rounding. If two atoms are equal, or if a constraint
    is met with equality (for example if lam is exactly lam_max), only `holds` can be True.

    If l2 > 0, the objective is strongly convex. So a subgradient v of it at x also bounds the
    distance, by norm(x - x*, 2) <= norm(v, 2) / l2, even if rho >= 1/2.

    Args:
        D: (m, d), atoms of any norm. Structured dictionaries are made dense, and the Gram matrix is
            d x d. For `dictionaries.Complex`, `pursuit.duality_gap` bounds the objective.
        y: (m,), or a batch (n, m).
        x: (d,), or (n, d): codes from any solver or network, in the units of y.
        lam: penalty weight, in any shape that `pursuit.lasso_batch` accepts; one weight per signal
            has the shape (n, 1).
        repairs: the largest number of repairs of one code.
        nonnegative, l2: as in `pursuit.lasso_batch`.

    Returns:
        LassoCertificate, with numpy arrays in float64. `repairs` is 0 if the optimum has the signs
        of the given code. `holds` is False if a signal is not finite, or needs more repairs than
        `repairs` allows.

    Raises:
        TypeError: an argument is traced or complex.
        ValueError: shapes do not fit, a penalty is negative or not finite, the number of repairs is
            negative, or the codes of D come in parts.

    Not claimed: that x is the code that made the signal, or that there are other optima if `unique`
    is False. The rounding bounds hold for any order of summation; the function does not use
    interval arithmetic.

    Reference: Osborne, Presnell, Turlach (2000) and Tibshirani (2013) for the conditions; Rump
    (1999) for the bound on an inverse.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 40, 80)
        >>> y = D[:, 3] - 2 * D[:, 20]
        >>> proof = ur.theory.certify_lasso(D, y, ur.pursuit.fista(D, y, 0.1, max_steps=50).x, 0.1)
        >>> proof.unique, np.flatnonzero(proof.x).tolist(), proof.repairs
        (True, [3, 20], 0)
    """
    where = "certify_lasso"
    most = checks.as_index(repairs, "repairs", where)
    nonnegative = checks.as_bool(nonnegative, "nonnegative", where)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        operator = checks.cast(as_dictionary(D, where), np.float64)
        Y, X = _operands(operator.shape, y, x, where)
        one, Y, X = Y.ndim == 1, np.atleast_2d(Y), np.atleast_2d(X)
        lam = weights_of_many(operator, lam, len(Y), where)
        checks.nonnegative(l2, "l2", where)
        checks.finite(l2, "l2", where)
        checks.one_number(l2, "l2", where)
        A = np.asarray(dense(operator))
    ridge = float(np.asarray(l2))
    with np.errstate(over="ignore", invalid="ignore"):
        problem, finite = _near_one(A, Y, X, lam, ridge)
        proof = _proved(problem, _Atoms.of(A, ridge), lam, finite, nonnegative, most)
    return jax.tree.map(lambda v: v[0] if v.ndim > 1 else v[0].item(), proof) if one else proof


def _operands(
    shape: tuple[int, int], y: ArrayLike, x: ArrayLike, where: str
) -> tuple[np.ndarray, np.ndarray]:
    m, d = shape
    Y, X = checks.host_floats(y, "y", where), checks.host_floats(x, "x", where)
    if Y.shape[-1:] != (m,) or X.shape != (*Y.shape[:-1], d) or Y.ndim > 2:
        raise ValueError(
            f"{where}: D has shape {(m, d)}, y {Y.shape} and x {X.shape}; expected ({m},) and "
            f"({d},), or a batch (n, {m}) and (n, {d})"
        )
    return Y.astype(float), X.astype(float)


class _Problem(NamedTuple):
    """Signals, codes and penalties, scaled by powers of two to near 1, for the active set method.

    An atom or a penalty may underflow in these units, so the proof reads the given numbers.
    """

    D: np.ndarray  # (m, d)
    Y: np.ndarray  # (n, m)
    X: np.ndarray  # (n, d) the given codes
    lam: np.ndarray  # (n, 1) or (n, d)
    l2: float
    a: int  # the given D is 2^a D, and the given l2 is 4^a l2
    b: np.ndarray  # (n,) the given Y, X and lam are 2^b Y, 2^(b - a) X and 2^(a + b) lam


class _Atoms(NamedTuple):
    """The atoms of a dictionary, each scaled to be near 1, and a last atom of zeros."""

    B: np.ndarray  # (m, d + 1)
    e: np.ndarray  # (d,) atom i is 2^e_i B_i
    ridges: np.ndarray  # (d + 1,) l2 in these units
    norms: np.ndarray  # (d + 1,) rounded up

    @classmethod
    def of(cls, D: np.ndarray, l2: float) -> "_Atoms":
        e = np.frexp(np.abs(D).max(0, initial=0))[1]
        B = np.concatenate([np.ldexp(D, -e), np.zeros((len(D), 1))], 1)
        return cls(B, e, np.append(np.ldexp(l2, -2 * e), 1.0), np.linalg.norm(B, axis=0) * UP)


def _near_one(
    D: np.ndarray, Y: np.ndarray, X: np.ndarray, lam: np.ndarray, l2: float
) -> tuple[_Problem, np.ndarray]:
    """The scaled problem, and a mask of the signals for which all scaled numbers are finite."""
    finite = np.isfinite(Y).all(1) & np.isfinite(D).all() & bool(D.any())
    Y, X = np.where(finite[:, None], Y, 0), np.where(np.isfinite(X), X, 0)
    a = int(np.frexp(np.abs(D).max(initial=0))[1]) if np.isfinite(D).all() else 0
    b = np.frexp(np.abs(Y).max(1, initial=0))[1]
    X, lam = np.ldexp(X, a - b[:, None]), np.ldexp(lam, -(a + b)[:, None])
    ridge = float(np.ldexp(l2, -2 * a))
    finite &= np.isfinite(X).all(1) & np.isfinite(lam).all(1) & np.isfinite(ridge)
    return _Problem(np.ldexp(D, -a), np.ldexp(Y, -b[:, None]), X, lam, ridge, a, b), finite


def _proved(
    problem: _Problem,
    atoms: _Atoms,
    given: np.ndarray,
    finite: np.ndarray,
    nonnegative: bool,
    most: int,
) -> LassoCertificate:
    """Codes and proofs; `given` holds the penalties in the caller's units."""
    D, Y, X, lam, l2, a, b = problem
    n, d = X.shape
    slack = _SLACK * np.linalg.norm(Y, axis=1)
    Z, rounds = minima(
        *(D, Y, lam, l2, X, finite),
        nonnegative=nonnegative,
        slack=slack,
        tol=-1.0,
        moves=_MOVES,
        fewest=_FEWEST,
        rounds=most,
    )
    holds, unique = np.zeros((2, n), bool)
    distance, margin = np.full((2, n), [[np.inf], [-np.inf]])
    by_size = np.argsort(np.count_nonzero(Z, axis=1), kind="stable")
    rows = by_size[finite[by_size]]
    for some in np.array_split(rows, max(1, -(-len(rows) // _SYSTEMS))):
        if len(some):
            each = np.broadcast_to(given[some], (len(some), d))
            Z[some], holds[some], unique[some], distance[some], margin[some] = _codes_on_supports(
                atoms, a, l2, b[some], Y[some], X[some], Z[some], each, nonnegative
            )
    paid = np.broadcast_to(given > 0, X.shape) | nonnegative
    changed = (np.where(paid, np.sign(Z) != np.sign(X), False)).any(1)
    counts = np.where(changed, np.maximum(rounds, 1), rounds)
    kept = holds & (counts <= most)
    return LassoCertificate(
        np.ldexp(Z, b[:, None] - a),
        kept,
        unique & kept,
        np.where(kept, np.ldexp(distance, b - a), np.inf),
        np.ldexp(margin, a + b),
        counts,
    )


def _rounding(n: int) -> float:
    """The rounding of a sum of n products in any order, relative to the sum of their magnitudes."""
    return n * _U / (1 - n * _U) * UP


def _codes_on_supports(
    own: _Atoms,
    a: int,
    l2: float,
    b: np.ndarray,
    Y: np.ndarray,
    X: np.ndarray,
    Z: np.ndarray,
    given: np.ndarray,
    nonnegative: bool,
) -> tuple[np.ndarray, ...]:
    """Codes Z refined on their supports, `holds`, `unique`, distances and margins."""
    (n, d), m = Z.shape, len(Y[0])
    B, ridges, norms, e = own.B, own.ridges, own.norms, own.e - a  # the units of x and w
    w = np.minimum(np.ldexp(given, -own.e - b[:, None]), _LARGE)
    w = np.concatenate([w, np.zeros((n, 1))], 1)
    atoms = _supports(Z)
    k, rows = atoms.shape[1], np.arange(n)[:, None]
    x = np.concatenate([np.ldexp(Z, e), np.zeros((n, 1))], 1)[rows, atoms]
    weight, ridge, size = w[rows, atoms], ridges[atoms], norms[atoms]
    # The zeros that fill a support take its largest ridge, so that they widen no bound.
    ridge = np.where(atoms == d, ridge.max(1, keepdims=True, initial=1), ridge)
    unpaid = np.concatenate([given == 0, np.ones((n, 1), bool)], 1)
    free = unpaid[rows, atoms] & (not nonnegative)
    signs = np.where((atoms == d) | free, 0.0, 1.0 if nonnegative else np.sign(x))
    A = np.moveaxis(B[:, atoms], 0, 1)  # (n, m, k)
    M, bound = _inverses(A, ridge, size)

    def slopes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = Y - (A @ x[..., None])[..., 0]
        return r, (r[:, None] @ A)[:, 0] - ridge * x - weight * signs

    for _ in range(_REFINEMENTS):
        x = x + (M @ slopes(x)[1][..., None])[..., 0]
    r, g = slopes(x)
    spread = np.linalg.norm(Y, axis=1) + np.sum(np.abs(x) * size, 1)
    rounded = UP * (_rounding(m) * np.linalg.norm(r, axis=1) + _rounding(k + 1) * spread)
    rounded = rounded + _TINY * (1 + np.abs(x).sum(1))  # for entries that underflow in these units
    error = rounded[:, None] * norms  # the rounding of every d_j . r
    most = error[rows, atoms] + 4 * _U * (np.abs(g) + 2 * ridge * np.abs(x) + 2 * weight)
    total = np.abs(g) + most
    delta = np.where(np.isfinite(bound), bound * total.max(1), np.inf)
    far = np.minimum(np.sqrt(delta * total.sum(1)) * UP, _FAR)
    c = r @ B if nonnegative else np.abs(r @ B)
    outside = np.ones((n, d + 1), bool)
    outside[rows, atoms] = outside[:, d] = False
    room = np.where(outside, w - c, np.inf)
    unsure = 4 * _U * np.where(outside, np.abs(room), 0) + UP * error
    safe = room - unsure - UP * far[:, None] * norms
    kept = (signs * x >= 0).all(1) & (np.abs(g) <= most).all(1) & (room >= -error).all(1)
    sure = np.where(signs != 0, signs * x > delta[:, None], True).all(1) & np.isfinite(delta)
    code, between = np.zeros((2, n, d + 1))
    code[rows, atoms], between[rows, atoms] = x, delta[:, None]
    code = np.ldexp(code[:, :d], -e)
    slope = np.maximum(unsure - room, 0)  # the entries of a subgradient, and their rounding
    slope[rows, atoms] = total
    slope, between = np.ldexp(slope[:, :d], e), np.ldexp(between[:, :d], -e)
    distance = _distances(np.abs(X - code), between, slope, l2)
    margin = np.ldexp(safe[:, :d], e).min(1, initial=np.inf)
    return code, kept, kept & sure & (safe > 0).all(1), distance, margin


def _distances(apart: np.ndarray, between: np.ndarray, slope: np.ndarray, l2: float) -> np.ndarray:
    """Bounds on norm(x_given - x*), (n,), from |x_given - x|, and |x - x*| or a subgradient at x.

    Squares may underflow, so the norms come from hypot.
    """
    by_ridge = np.hypot.reduce(slope, axis=1) / l2 if l2 >= _TINY else np.inf
    by_inverse = np.hypot.reduce(apart + between, axis=1)
    return UP * np.minimum(by_inverse, np.hypot.reduce(apart, axis=1) + UP * by_ridge)


def _supports(Z: np.ndarray) -> np.ndarray:
    """The atoms of every code, (n, k), filled up with the index d."""
    n, d = Z.shape
    counts = np.count_nonzero(Z, axis=1)
    i, atom = np.nonzero(Z)
    atoms = np.full((n, int(counts.max(initial=1))), d)
    atoms[i, np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)] = atom
    return atoms


def _inverses(A: np.ndarray, ridge: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An M near (A'A + ridge)^-1, and a bound on norm((A'A + ridge)^-1, inf), inf if unknown.

    Args:
        A: (n, m, k), atoms or zeros.
        ridge, size: (n, k), the numbers added to the diagonal, and bounds on the norms of atoms.
    """
    m, k = A.shape[1:]
    G = np.swapaxes(A, 1, 2) @ A
    diagonal = np.einsum("ijj->ij", G)  # a view
    diagonal += ridge
    M = np.zeros_like(G)
    for i, system in enumerate(G):
        with suppress(np.linalg.LinAlgError):
            M[i] = np.linalg.inv(system)
    M = np.where(np.isfinite(M).all((1, 2), keepdims=True), M, 0)
    rows = np.abs(M).sum(2).max(1, initial=0) * UP
    products = (np.abs(M) @ np.abs(G)).sum(2).max(1, initial=0)
    off = np.abs(np.eye(k) - M @ G).sum(2).max(1, initial=0)
    entries = _rounding(m + 1) * ((size * size.sum(1, keepdims=True)) + ridge).max(1, initial=0)
    rho = UP * (off + _rounding(k + 1) * products + rows * entries)
    known = rho < 0.5
    bound = np.where(known, rows / np.where(known, 1 - rho, 1) * UP, np.inf)
    return np.where(known[:, None, None], M, 0), bound
