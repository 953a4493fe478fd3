"""One sweep of multi-layer learning: codes, replaced atoms, D_J to D_1, and unit atoms."""

import numpy as np

from unrolled._matching import match
from unrolled.dictionary_learning._signals import Signals, distinct, duplicates
from unrolled.dictionary_learning._sparse_ksvd import SparseColumns
from unrolled.dictionary_learning._sweeps import Fitted

# Passes of thresholded gradient steps over the columns of a layer, in one sweep.
_PASSES = 3

Matrices = tuple[np.ndarray, ...]


def product(Ds: Matrices) -> np.ndarray:
    """D_1 ... D_J."""
    D = Ds[0]
    for factor in Ds[1:]:
        D = D @ factor
    return D


def sparse_columns(base: np.ndarray, atoms: np.ndarray, count: int) -> np.ndarray:
    """Unit columns with `count` nonzeros whose products with the base are near atoms in rows."""
    A = match(base, atoms, min(count, *base.shape)).T
    empty = ~A.any(0)
    A[:, empty] = np.eye(len(A), dtype=A.dtype)[:, np.flatnonzero(empty) % len(A)]
    return A / np.linalg.norm(A, axis=0)


def residual(signals: Signals, Ds: Matrices, X: np.ndarray) -> np.ndarray:
    return signals.Y - X @ product(Ds).T


def sweep(
    signals: Signals, Ds: Matrices, X: np.ndarray, counts: tuple[int, ...], rng: np.random.Generator
) -> tuple[Matrices, np.ndarray, int]:
    """Codes, replacements, D_J to D_1, and unit atoms."""
    old = X
    X = match(product(Ds), signals.Y, counts[-1], signals.V)
    errors = [signals.errors(residual(signals, Ds, codes)) for codes in (X, old)]
    X = np.where((errors[0] > errors[1])[:, None], old, X)
    Ds, X, replaced = _replaced(signals, Ds, X, counts, rng)
    if len(Ds) > 1:
        Ds, X = _last_layer(signals, Ds, X, counts[-2])
    for j in range(len(Ds) - 2, 0, -1):
        Ds = (*Ds[:j], _descend_factor(signals, Ds, X, j, counts[j - 1]), *Ds[j + 1 :])
    Ds = (_least_squares(signals, Ds, X), *Ds[1:])
    return *_normalised(Ds, X), replaced


def _last_layer(
    signals: Signals, Ds: Matrices, X: np.ndarray, count: int
) -> tuple[Matrices, np.ndarray]:
    """D_J and x_J, by the update of sparse K-SVD over D_1 ... D_{J-1}."""
    columns = SparseColumns(np.ascontiguousarray(product(Ds[:-1])), Ds[-1], count)
    D = product(Ds)
    fitted = Fitted(D, np.ascontiguousarray(X.T), signals.Y - X @ D.T)
    columns.update(signals, fitted)
    return (*Ds[:-1], columns.A), np.ascontiguousarray(fitted.X.T)


def _target(signals: Signals, Ds: Matrices, X: np.ndarray) -> np.ndarray:
    return signals.Y if signals.V is None else signals.target(residual(signals, Ds, X))


def _below(Ds: Matrices, X: np.ndarray, j: int) -> np.ndarray:
    """The codes x_{j + 1} = D_{j + 2} ... D_J x_J that D_{j + 1} multiplies, (n, d)."""
    for D in reversed(Ds[j + 1 :]):
        X = X @ D.T
    return X


def _descend_factor(
    signals: Signals, Ds: Matrices, X: np.ndarray, j: int, count: int
) -> np.ndarray:
    """D_{j + 1} after passes of H(a_k - g_k / L_k) over its columns, for fixed codes."""
    A, Z, D = product(Ds[:j]), _below(Ds, X, j), Ds[j].copy()
    S, H = Z.T @ Z, A.T @ A
    C = A.T @ (_target(signals, Ds, X).T @ Z)
    L = np.linalg.eigvalsh(H)[-1] * (1 + 1e-3)
    for k in np.tile(np.flatnonzero(np.diag(S) > 0), _PASSES):
        a = D[:, k] - (H @ (D @ S[:, k]) - C[:, k]) / (L * S[k, k])
        a[np.argsort(-np.abs(a), kind="stable")[count:]] = 0
        D[:, k] = a
    return D


def _least_squares(signals: Signals, Ds: Matrices, X: np.ndarray) -> np.ndarray:
    """D_1 for fixed codes, among the atoms that are used."""
    Z, D = _below(Ds, X, 0), Ds[0].copy()
    used = np.flatnonzero(Z.any(0))
    Z = Z[:, used]
    rounding = len(used) * np.finfo(Z.dtype).eps
    inverse = np.linalg.pinv(Z.T @ Z, rcond=rounding, hermitian=True)
    atoms = _target(signals, Ds, X).T @ Z @ inverse
    D[:, used] = np.where(atoms.any(0), atoms, D[:, used])
    return D


def _normalised(Ds: Matrices, X: np.ndarray) -> tuple[Matrices, np.ndarray]:
    """Unit columns; their norms move to the rows of the next layer, and at the end to the codes."""
    units: Matrices = ()
    norms = np.ones(len(Ds[0]), X.dtype)
    for D in Ds:
        D = norms[:, None] * D
        norms = np.linalg.norm(D, axis=0)
        units = (*units, D / np.where(norms > 0, norms, 1))
    return units, X * norms


def _replaced(
    signals: Signals, Ds: Matrices, X: np.ndarray, counts: tuple[int, ...], rng: np.random.Generator
) -> tuple[Matrices, np.ndarray, int]:
    """New atoms, for the worst signals, in place of those of D_J that no code uses or that repeat.

    An atom of another layer is replaced where no column of the next has it.
    """
    total = 0
    for j in range(len(Ds) - 1, -1, -1):
        last = j == len(Ds) - 1
        D = product(Ds[: j + 1])
        use = np.count_nonzero(X if last else Ds[j + 1].T, 0)
        dead = np.flatnonzero(use == 0)
        if last:
            norms = np.linalg.norm(D, axis=0)
            dead = np.union1d(dead, duplicates(D / np.where(norms > 0, norms, 1), use))
            X = X.copy()
            X[:, dead] = 0
        if not len(dead):
            continue
        R = residual(signals, Ds, X)
        worst = np.argsort(-signals.errors(R), kind="stable")[: 10 * len(dead)]
        candidates = signals.filled(R)[worst]
        rows = distinct(candidates, np.delete(D, dead, 1), len(dead), rng)
        fresh = Ds[j].copy()
        fresh[:, dead] = rows.T if j == 0 else sparse_columns(product(Ds[:j]), rows, counts[j - 1])
        Ds, total = (*Ds[:j], fresh, *Ds[j + 1 :]), total + len(dead)
    return Ds, X, total
