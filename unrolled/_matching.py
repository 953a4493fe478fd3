"""Orthogonal matching pursuit of many signals at once, on the host."""

import math
from collections.abc import Callable

import numpy as np

from unrolled._threads import threads

_CHUNK = 128  # signals whose arrays stay in the cache of a core


def negligible(m: int, dtype: np.dtype) -> float:
    """What sums of m products may be off by, whose errors go up as often as down.

    A correlation with a residual is zero below this share of the signal. An atom depends on others
    below this share of its squared norm: a pivot is a difference of squares, and a code on a span
    that is nearer has few digits.
    """
    return 4 * math.sqrt(m) * float(np.finfo(dtype).eps)


def share(work: Callable[[slice], None], n: int, chunk: int) -> None:
    """`work` on chunks of n rows, by all cores."""
    if n <= chunk:
        return work(slice(None))
    with threads() as team:
        team.share(work, [slice(first, first + chunk) for first in range(0, n, chunk)])


def match(
    D: np.ndarray,
    Y: np.ndarray,
    sparsity: int,
    V: np.ndarray | None = None,
    favour: np.ndarray | None = None,
    judged: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    r"""Matching pursuit for every row of Y, as an array of codes, (n, d).

    .. math:: j = \arg\max_i favour_i |d_i' V r| / \sqrt{d_i' V d_i}, \quad
        x_S = \arg\min_u (y - D_S u)' V (y - D_S u), \quad r = y - D x.

    Args:
        D: (m, d).
        Y: (n, m).
        sparsity: the most atoms of a code.
        V: (n, m), the diagonals of V; None for ones.
        favour: (d,), by which the choice favours atoms; None for ones.
        judged: (n,) each, where the numbers of atoms go, and the squared norms of the part of r
            that is in the span of the atoms: rounding.
    """
    X, root = np.zeros((len(Y), D.shape[1]), Y.dtype), None if V is None else np.sqrt(V)
    atoms, squares = np.ascontiguousarray(D.T), D * D

    def work(part: slice) -> None:
        if root is None:
            w, norms, signals = None, np.sqrt(squares.sum(0))[None, :], Y[part]
        else:
            w = root[part]
            norms, signals = np.sqrt((w * w) @ squares), w * Y[part]
        X[part], counts, Q = _match(D, atoms, norms, signals, sparsity, w, favour)
        if judged is not None:
            r = X[part] @ atoms
            r = signals - (r if w is None else w * r)
            judged[0][part], judged[1][part] = (
                counts,
                np.sum(np.matmul(Q, r[..., None]) ** 2, (1, 2)),
            )

    share(work, len(Y), _CHUNK)
    return X


def _match(
    D: np.ndarray,
    atoms: np.ndarray,
    norms: np.ndarray,
    Y: np.ndarray,
    sparsity: int,
    w: np.ndarray | None,
    favour: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The codes of weighted signals, the numbers of atoms, and Q; `w` weights the atoms of each.

    The chosen atoms are W D_S = Q L', with orthonormal rows q_1, q_2, ... in Q: r leaves out one
    after the other, and L' x_S = Q y at the end.
    """
    (n, m), rows = Y.shape, np.arange(len(Y))
    rounding = negligible(m, Y.dtype)
    R, Q = Y.copy(), np.zeros((n, sparsity, m), Y.dtype)
    L, b = np.zeros((n, sparsity, sparsity), Y.dtype), np.zeros((n, sparsity), Y.dtype)
    S = np.zeros((n, sparsity), int)
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    least = rounding * np.linalg.norm(Y, axis=1)
    active, counts, k = np.ones(n, bool), np.zeros(n, int), 0
    for k in range(sparsity):
        products = (R if w is None else R * w) @ D
        np.abs(products, out=products)
        products *= inverse
        products[rows[:, None], S[:, :k]] = 0
        j = (products if favour is None else products * favour).argmax(1)
        a = atoms[j] if w is None else atoms[j] * w
        v, h = _orthogonal(a, Q[:, :k])
        size, length = np.linalg.norm(v, axis=1), np.broadcast_to(norms, products.shape)[rows, j]
        active = active & (products[rows, j] > least) & (size * size > rounding * length * length)
        counts += active
        q = np.where(active, 1 / np.where(active, size, 1), 0)[:, None] * v
        b[:, k] = np.einsum("ij,ij->i", q, R)
        R -= b[:, k, None] * q
        Q[:, k], S[:, k] = q, np.where(active, j, S[:, 0])
        L[:, k, :k], L[:, k, k] = np.where(active[:, None], h, 0), np.where(active, size, 1)
        if not active.any():
            break
    used = slice(0, k + 1)
    values = np.linalg.solve(L[:, used, used].transpose(0, 2, 1), b[:, used, None])[..., 0]
    X = np.zeros((n, D.shape[1]), Y.dtype)
    for chosen, value in zip(S.T, values.T):
        X[rows, chosen] += value
    return X, counts, Q


def _orthogonal(a: np.ndarray, Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a less their projections on the rows of Q, and those coefficients.

    Where little remains, the projection is repeated: twice is enough.
    """
    h = np.matmul(Q, a[:, :, None])[..., 0]
    v = a - np.matmul(h[:, None], Q)[:, 0]
    again = np.flatnonzero(np.sum(v * v, 1) < 0.25 * np.sum(a * a, 1))
    if len(again):
        more = np.matmul(Q[again], v[again, :, None])[..., 0]
        v[again] -= np.matmul(more[:, None], Q[again])[:, 0]
        h[again] += more
    return v, h
