"""Learning the dictionaries of a chain together, from signals of the multi-layer model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, threads
from unrolled._base.arguments import checked
from unrolled._base.checks import ArrayLike, Key
from unrolled.dictionaries import Dictionary
from unrolled.dictionary_learning import _learning
from unrolled.dictionary_learning._ksvd import Fitted, SparseColumns
from unrolled.dictionary_learning._learning import (
    Arrays,
    Keeper,
    Learned,
    Progress,
    Signals,
    as_signals,
    correction,
    distinct,
    duplicates,
    start_atoms,
)
from unrolled.pursuit import match

# Passes of thresholded gradient steps over the columns of a layer, in one sweep.
_PASSES = 3
Matrices = tuple[np.ndarray, ...]
_State = tuple[Matrices, np.ndarray]


@checked
def multilayer(
    Y: ArrayLike,
    shapes: Sequence[tuple[int, int]],
    *,
    sparsities: Sequence[int],
    sweeps: int = 20,
    key: Key = 0,
    start: str | Dictionary = "data",
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""Dictionaries of the multi-layer model: D_1, and sparse D_2, ..., D_J.

    .. math:: \min \frac1{2n} \sum_{k=1}^n \|y_k - D_1 \cdots D_J x_{J,k}\|^2, \qquad
        x_{j-1} = D_j x_j, \; \|x_j\|_0 \le s_j.

    A column of D_j, j > 1, has at most s_{j-1} // s_j nonzeros. Then the codes between are
    as sparse as asked for whenever x_J is, so every sweep is feasible: x_J by orthogonal matching
    pursuit in the product; D_J, ..., D_2 by passes of gradient steps, column by column, each
    followed by a hard threshold, with the step 1 / L that never raises the objective; D_1 by least
    squares, as in `mod`; then unit atoms in every layer. A code of the sweep before stays where the
    new one is worse, so that only replaced atoms raise the objective.

    Args:
        Y: (n, m), signals in rows, with n at least d_J.
        shapes: ((m, d_1), (d_1, d_2), ..., (d_{J-1}, d_J)).
        sparsities: s_1, ..., s_J.
        sweeps, key, weights, mask, progress, resume, checkpoint: as in `ksvd`.
        start: of D_1, as in `ksvd`. A column of D_j starts as the code of a random signal in
            D_1 ... D_{j-1}.

    Returns:
        Learned, where D is (D_1, ..., D_J), matrices with exact zeros, and X is (X_1, ..., X_J),
        (n, d_j) each. One layer is `mod`.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`, and for shapes that do not meet or
            sparsities that are not one per layer, below 1, above d_j (s_J above m) or above the
            one before.

    Reference: Sulam, Papyan, Romano, Elad (2018), section V, where signals come in batches, codes
    from FISTA, and D_1 from a gradient step.

    Not claimed: that D_1 and D_2 are those of a planted product; each may be mixed into the other
    where D_2 is not sparse enough.

    Example:
        >>> D_1, D_2 = ur.dictionaries.dct(8, 8), ur.dictionaries.transversal(0, 2, 5, 12)[:8]
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (300, 12), 1) @ (D_1 @ D_2).T
        >>> learned = ur.dictionary_learning.multilayer(Y, [(8, 8), (8, 12)], sparsities=(2, 1))
        >>> [X.shape for X in learned.X], int((learned.D[1] != 0).sum(0).max())
        ([(300, 8), (300, 12)], 2)
    """
    options = _learning.Options(sweeps, key, progress, resume, checkpoint, start, weights, mask)
    return _learning.learn(_Layers(Y, shapes, sparsities, options), options)


class _Layers(_learning.Method):
    """Sweeps through (D_1, ..., D_J), with the codes X of the last, (n, d_J)."""

    where = "multilayer"

    def __init__(
        self,
        Y: ArrayLike,
        shapes: Sequence[tuple[int, int]],
        sparsities: Sequence[int],
        options: _learning.Options,
    ):
        self.signals = as_signals(Y, self.where, options.weights, options.mask)
        self.shapes = _shapes(shapes, self.signals.Y.shape, self.where)
        self.counts = _counts(sparsities, self.shapes, self.where)
        self.sparsities, self.first = [*map(int, sparsities)], options.start

    def config(self) -> dict[str, Any]:
        return {
            "shapes": [list(shape) for shape in self.shapes],
            "sparsities": self.sparsities,
            "start": _learning.text_of(self.first),
            "signals": self.signals.fingerprint(),
            "exponent": self.signals.exponent,
        }

    def start(self, rng: np.random.Generator) -> _State:
        signals, (shape, *others) = self.signals, self.shapes
        Ds: Matrices = (start_atoms(self.first, signals, shape[1], rng, self.where),)
        for (_, d), count in zip(others, self.counts):
            atoms = distinct(signals.Y[rng.permutation(len(signals.Y))], Ds[0][:, :0], d, rng)
            Ds = (*Ds, _sparse_columns(_product(Ds), atoms, count))
        return Ds, np.zeros((len(signals.Y), self.shapes[-1][1]), signals.Y.dtype)

    def resumed(self, resume: Learned) -> _State:
        (Ds, codes), signals, n = resume[:2], self.signals, len(self.signals.Y)
        if (
            not isinstance(Ds, tuple)
            or not isinstance(codes, tuple)
            or tuple(D.shape for D in Ds) != self.shapes
            or codes[-1].shape != (n, self.shapes[-1][1])
        ):
            raise ValueError(
                f"{self.where}: resume is not of dictionaries {self.shapes} and these {n} signals"
            )
        X = np.ldexp(np.asarray(codes[-1], signals.Y.dtype), -signals.exponent)
        return tuple(np.array(D, signals.Y.dtype) for D in Ds), X

    def restored(self, arrays: Arrays, keeper: Keeper) -> _State:
        return tuple(arrays[f"D_{j}"] for j in range(len(self.shapes))), arrays["X"]

    def arrays(self, state: _State) -> Arrays:
        return {"X": state[1]} | {f"D_{j}": D for j, D in enumerate(state[0])}

    @threads.one_thread()
    def sweep(self, state: _State, step: int, rng: Any) -> tuple[_State, float, int]:
        Ds, X, replaced = _sweep(self.signals, *state, self.counts, rng)
        return (Ds, X), self.signals.objective(_residual(self.signals, Ds, X)), replaced

    def result(self, state: _State) -> Learned:
        signals, (Ds, X) = self.signals, state
        codes = [X]
        for D in reversed(Ds[1:]):
            codes.insert(0, codes[0] @ D.T)
        return Learned(
            tuple(jnp.asarray(D, signals.dtype) for D in Ds),
            tuple(jnp.asarray(np.ldexp(x, signals.exponent), signals.dtype) for x in codes),
            signals.objective(_residual(signals, Ds, X)),
            (),
        )


def _shapes(
    shapes: Sequence[tuple[int, int]], signals: tuple[int, ...], where: str
) -> tuple[tuple[int, int], ...]:
    """The shapes as integers, checked against each other and the signals."""
    n, m = signals
    checked: list[tuple[int, int]] = []
    for j, shape in enumerate(shapes, start=1):
        if np.shape(shape) != (2,):
            raise ValueError(f"{where}: shapes[{j - 1}] is {shape}; expected (rows, columns)")
        rows, columns = checks.as_indices(shape, f"shapes[{j - 1}]", where, least=1)
        expected = checked[-1][1] if checked else m
        if rows != expected:
            what = f"D_{j - 1} has {expected} columns" if checked else f"signals have length {m}"
            raise ValueError(f"{where}: D_{j} has {rows} rows but {what}")
        checked.append((rows, columns))
    if not checked:
        raise ValueError(f"{where}: expected the shape of at least one dictionary, got none")
    if (largest := max(columns for _, columns in checked)) > n:
        raise ValueError(
            f"{where}: a dictionary has {largest} atoms but there are {n} signals; expected at "
            "most as many"
        )
    return tuple(checked)


def _counts(
    sparsities: Sequence[int], shapes: tuple[tuple[int, int], ...], where: str
) -> tuple[int, ...]:
    """The most nonzeros of a column of D_2, ..., D_J, and of x_J."""
    if np.shape(sparsities) != (len(shapes),):
        raise ValueError(
            f"{where}: sparsities has shape {np.shape(sparsities)}; expected one of each of "
            f"{len(shapes)} layers"
        )
    counts: list[int] = []
    for j, (s, (_, d)) in enumerate(zip(sparsities, shapes), start=1):
        most = d if j < len(shapes) else min(d, shapes[0][0])
        s = checks.as_index(s, f"s_{j}", where, least=1)
        if s > most:
            raise ValueError(f"{where}: s_{j} is {s}; expected at most {most}")
        if counts and s > counts[-1]:
            raise ValueError(
                f"{where}: s_{j} is {s} but s_{j - 1} is {counts[-1]}; expected sparsities that "
                "do not grow: a code is as sparse as the next only if the columns between have one "
                "nonzero"
            )
        counts.append(s)
    return *(above // s for above, s in zip(counts, counts[1:])), counts[-1]


def _product(Ds: Matrices) -> np.ndarray:
    """D_1 ... D_J."""
    D = Ds[0]
    for factor in Ds[1:]:
        D = D @ factor
    return D


def _sparse_columns(base: np.ndarray, atoms: np.ndarray, count: int) -> np.ndarray:
    """Unit columns with `count` nonzeros whose products with the base are near atoms in rows."""
    A = match(base, atoms, min(count, *base.shape)).T
    empty = ~A.any(0)
    A[:, empty] = np.eye(len(A), dtype=A.dtype)[:, np.flatnonzero(empty) % len(A)]
    return A / np.linalg.norm(A, axis=0)


def _residual(signals: Signals, Ds: Matrices, X: np.ndarray) -> np.ndarray:
    return signals.Y - X @ _product(Ds).T


def _sweep(
    signals: Signals, Ds: Matrices, X: np.ndarray, counts: tuple[int, ...], rng: np.random.Generator
) -> tuple[Matrices, np.ndarray, int]:
    """Codes, replacements, D_J to D_1, and unit atoms."""
    old = X
    X = match(_product(Ds), signals.Y, counts[-1], signals.V)
    errors = [signals.errors(_residual(signals, Ds, codes)) for codes in (X, old)]
    X = np.where((errors[0] > errors[1])[:, None], old, X)
    Ds, X, replaced = _replaced(signals, Ds, X, counts, rng)
    if len(Ds) > 1:
        Ds, X = _last_layer(signals, Ds, X, counts[-2])
    for j in range(len(Ds) - 2, 0, -1):
        D = _descend_factor(signals, Ds, X, j, counts[j - 1])
        Ds = _better(signals, Ds, (*Ds[:j], D, *Ds[j + 1 :]), X)
    Ds = _better(signals, Ds, (_least_squares(signals, Ds, X), *Ds[1:]), X)
    return *_normalised(Ds, X), replaced


def _better(signals: Signals, old: Matrices, new: Matrices, X: np.ndarray) -> Matrices:
    """The new dictionaries, or the old ones where rounding would raise the error."""
    errors = [signals.objective(_residual(signals, Ds, X)) for Ds in (old, new)]
    return new if errors[1] < errors[0] else old


def _last_layer(
    signals: Signals, Ds: Matrices, X: np.ndarray, count: int
) -> tuple[Matrices, np.ndarray]:
    """D_J and x_J, by the update of sparse K-SVD over D_1 ... D_{J-1}."""
    columns = SparseColumns(np.ascontiguousarray(_product(Ds[:-1])), Ds[-1], count)
    D = _product(Ds)
    fitted = Fitted(D, np.ascontiguousarray(X.T), signals.Y - X @ D.T)
    columns.update(signals, fitted)
    return (*Ds[:-1], columns.A), np.ascontiguousarray(fitted.X.T)


def _target(signals: Signals, Ds: Matrices, X: np.ndarray) -> np.ndarray:
    return signals.Y if signals.V is None else signals.target(_residual(signals, Ds, X))


def _below(Ds: Matrices, X: np.ndarray, j: int) -> np.ndarray:
    """The codes x_{j + 1} = D_{j + 2} ... D_J x_J that D_{j + 1} multiplies, (n, d)."""
    for D in reversed(Ds[j + 1 :]):
        X = X @ D.T
    return X


def _descend_factor(
    signals: Signals, Ds: Matrices, X: np.ndarray, j: int, count: int
) -> np.ndarray:
    """D_{j + 1} after passes of H(a_k - g_k / L_k) over its columns, for fixed codes."""
    A, Z, D = _product(Ds[:j]), _below(Ds, X, j), Ds[j].copy()
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
    D[:, used] += correction(Z[:, used], signals.weighted(_residual(signals, Ds, X)))
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
        D = _product(Ds[: j + 1])
        use = np.count_nonzero(X if last else Ds[j + 1].T, 0)
        dead = np.flatnonzero(use == 0)
        if last:
            norms = np.linalg.norm(D, axis=0)
            dead = np.union1d(dead, duplicates(D / np.where(norms > 0, norms, 1), use))
            X = X.copy()
            X[:, dead] = 0
        if not len(dead):
            continue
        R = _residual(signals, Ds, X)
        worst = np.argsort(-signals.errors(R), kind="stable")[: 10 * len(dead)]
        candidates = signals.filled(R)[worst]
        rows = distinct(candidates, np.delete(D, dead, 1), len(dead), rng)
        fresh = Ds[j].copy()
        fresh[:, dead] = (
            rows.T if j == 0 else _sparse_columns(_product(Ds[:j]), rows, counts[j - 1])
        )
        Ds, total = (*Ds[:j], fresh, *Ds[j + 1 :]), total + len(dead)
    return Ds, X, total
