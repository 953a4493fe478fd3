"""Learning of sparse atoms: for one dictionary by moments and descent, for a chain in sweeps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, threads
from unrolled._base.doors import ArrayLike, Key, checked
from unrolled.dictionaries import Dictionary, Operator, Sparse, as_dictionary, dense
from unrolled.dictionary_learning import _learning
from unrolled.dictionary_learning._coder import Coder
from unrolled.dictionary_learning._ksvd import Fitted, SparseColumns
from unrolled.dictionary_learning._learning import (
    Arrays,
    Keeper,
    Learned,
    Method,
    Options,
    Progress,
    Signals,
)
from unrolled.pursuit import match

__all__ = ["double_sparse", "multilayer"]


# The inner product above which two candidates belong to one atom, and the number of pairs of
# signals whose moments are in memory together.
_SAME, _BLOCK = 0.9, 64
# The number of pairs of signals per atom; a pair gives an atom if the two signals share one atom.
_PAIRS = 30
# The largest entry of |base'base - I| for a base that counts as orthonormal.
_ORTHONORMAL = 1e-4


@checked
def double_sparse(
    Y: ArrayLike,
    d: int,
    *,
    sparsity: int,
    atom_sparsity: int,
    base: Dictionary | None = None,
    pairs: int | None = None,
    sweeps: int = 50,
    rate: float = 0.5,
    key: Key = 0,
    nonnegative: bool = False,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""Learn sparse atoms over an orthonormal base by a spectral start and descent (Nguyen et al.).

    .. math:: M_{uv} = \tfrac1n \sum_k \langle z_k, u \rangle \langle z_k, v \rangle z_k z_k',
        \qquad
        a_j \leftarrow H_p \Big( a_j - \eta \sum_k (A x_k - z_k) \operatorname{sign}(x_{kj})
        \Big/ \sum_k |x_{kj}| \Big)

    The signals in the base are z = Phi'y, and u, v is a pair of these signals. If u and v have one
    atom in common, the largest diagonal entries of M_uv are in the p rows where this atom is
    nonzero. On these rows, the leading eigenvector of M_uv is nearly the atom. Many pairs give many
    candidates; the start consists of the candidates with which most other candidates agree. In the
    descent, x_k holds the s largest entries of A'z_k, and H_p keeps the p largest entries of a
    column, which is then scaled to norm 1.

    Args:
        Y: (n, m), signals in rows, with n at least d.
        d: number of atoms.
        sparsity: s, in 1..min(m, d).
        atom_sparsity: p, in 1..m.
        base: Phi, (m, m), orthonormal; None for I.
        pairs: number of pairs for the start; 30 d by default.
        sweeps: number of steps of the descent, including the steps of `resume`.
        rate: eta, in (0, 1].
        key: a typed key, or a seed, for the pairs and for replacements.
        nonnegative: whether codes are non-negative. Then x_k holds the s largest positive entries
            of A'z_k, and an atom a of the start has the sign with sum_k (a'z_k)^3 >= 0. The start
            has at most one of an atom and its negative.
        progress, resume, checkpoint: as in `ksvd`.

    Returns:
        Learned, where D is a `dictionaries.Sparse`. X and `objective` come from orthogonal matching
        pursuit with D at the end; the objectives of the history come from the codes of the descent.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`, and if the base is not orthonormal.

    Reference: Nguyen, Wong, Hegde (2019). The paper assumes that the nonzeros of the codes are
    bounded away from 0, that the atoms are incoherent, that s is at most of the order of sqrt(m),
    and that n exceeds d p up to logarithms. Under these hypotheses, the start of the paper has a
    column near every atom, and the descent converges linearly, up to an error of the order of
    sqrt(s / m). In contrast to this function, the method of the paper thresholds A'z at half the
    least nonzero, and fixes the rows of an atom at the start.

    Not claimed: the guarantee of the paper outside these hypotheses, which the function does not
    check. Correlated codes violate the hypotheses, and so do non-negative codes, whose mean is not
    0.

    Example:
        >>> blocks = jnp.kron(jnp.eye(8), jnp.array([[1.0, 1.0], [1.0, -1.0]])) / jnp.sqrt(2.0)
        >>> Y = ur.problems.bounded(jax.random.key(100), (800, 16), 2, least=1.0) @ blocks.T
        >>> learned = ur.dictionary_learning.double_sparse(Y, 16, sparsity=2, atom_sparsity=2)
        >>> G = jnp.abs(ur.dictionaries.dense(learned.D).T @ blocks)
        >>> bool((G.max(0) > 0.99).all())
        True
    """
    options = Options(sweeps, key, progress, resume, checkpoint)
    coder = Coder.of_omp(sparsity, nonnegative, "double_sparse")
    return _learning.learn(_Descent(Y, d, coder, atom_sparsity, base, pairs, rate), options)


class _Descent(Method):
    """The descent in A, (m, d), for the signals Y Phi."""

    where = "double_sparse"

    def __init__(
        self,
        Y: ArrayLike,
        d: int,
        coder: Coder,
        p: int,
        base: Dictionary | None,
        pairs: int | None,
        rate: float,
    ):
        where, signals = self.where, _learning.weighted_signals(Y, self.where)
        self.coder, (n, m) = coder, signals.Y.shape
        self.d = _learning.atom_count(d, n, where)
        coder.check_size(m, self.d, where)
        self.p = checks.as_index(p, "atom_sparsity", where, least=1)
        if self.p > m:
            raise ValueError(f"{where}: atom_sparsity is {p}; expected at most {m}")
        pairs = _PAIRS * self.d if pairs is None else pairs
        self.pairs = checks.as_index(pairs, "pairs", where, least=1)
        rate = checks.as_number(rate, "rate", where)
        if not 0 < rate <= 1:
            raise ValueError(f"{where}: rate must be in (0, 1], got {rate}")
        self.rate, self.base = rate, _orthonormal(base, signals.Y, where)
        self.signals = signals._replace(Y=signals.Y @ np.asarray(dense(self.base), signals.Y.dtype))

    def config(self) -> dict[str, Any]:
        own = dict(d=self.d, atom_sparsity=self.p, pairs=self.pairs, rate=self.rate)
        signals = {"signals": self.signals.fingerprint(), "exponent": self.signals.exponent}
        return own | signals | self.coder.config()

    @threads.one_thread()
    def start(self, rng: np.random.Generator) -> np.ndarray:
        A = _spectral(self.signals.Y, self.d, self.p, self.pairs, rng)
        A = _turned(self.signals.Y, A) if self.coder.nonnegative else A
        return np.ascontiguousarray(A)  # the order in memory changes the rounding of products

    def resumed(self, resume: Learned) -> np.ndarray:
        D, shape = resume.D, (self.signals.Y.shape[1], self.d)
        if not isinstance(D, Sparse) or D.shape != shape:
            raise ValueError(
                f"{self.where}: resume is not a result with a Sparse D of shape {shape}"
            )
        A = np.zeros(shape, self.signals.Y.dtype)
        A[np.asarray(D.indices), np.arange(self.d)] = np.asarray(D.values)
        return A

    def restored(self, arrays: Arrays, keeper: Keeper) -> np.ndarray:
        return arrays["A"]

    def arrays(self, state: np.ndarray) -> Arrays:
        return {"A": state}

    @threads.one_thread()
    def sweep(
        self, state: np.ndarray, step: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, float, int]:
        A, X = state, self.largest(self.signals.Y @ state)
        E, sizes = X @ A.T - self.signals.Y, np.abs(X).sum(0)
        moved = A - self.rate * (E.T @ np.sign(X)) / np.where(sizes > 0, sizes, 1)
        A, errors = _cut_columns(moved, self.p), np.sum(E * E, 1)
        twins = self.coder.duplicates(A, sizes)
        dead = np.union1d(np.flatnonzero((sizes == 0) | ~A.any(0)), twins)
        if len(dead):  # the residual of the worst signals is most often a missing atom
            rows = _learning.fresh_atoms(A, dead, -E if self.coder.nonnegative else E, errors, rng)
            A[:, dead] = _cut_columns(rows.T, self.p)
        squares = float(errors.sum(dtype=float))
        return A, self.signals.in_units(squares / (2 * len(E))), len(dead)

    def largest(self, C: np.ndarray) -> np.ndarray:
        """The largest entries of every row: by magnitude, or of those above 0."""
        C, X, s = self.coder.admit(C), np.zeros_like(C), self.coder.sparsity
        columns = np.argpartition(-np.abs(C), s - 1, axis=1)[:, :s]
        np.put_along_axis(X, columns, np.take_along_axis(C, columns, 1), 1)
        return X

    def result(self, state: np.ndarray) -> Learned:
        signals, (X, R, *_) = self.signals, self.coder.coded(state, self.signals)
        codes = jax.device_put(np.ldexp(X, signals.exponent).astype(signals.dtype))
        base, A = checks.cast(self.base, signals.dtype), state.astype(signals.dtype)
        return Learned(Sparse(base, A), codes, signals.objective(R), ())


def _orthonormal(base: Dictionary | None, Y: np.ndarray, where: str) -> Operator:
    m = Y.shape[1]
    if base is None:
        return jax.device_put(np.eye(m, dtype=Y.dtype))
    checks.on_host(base, where, "base")
    base = as_dictionary(base, where)
    if base.shape != (m, m):
        raise ValueError(f"{where}: base has shape {base.shape}; expected ({m}, {m})")
    matrix = np.asarray(dense(base), float)
    if (far := np.abs(matrix.T @ matrix - np.eye(m)).max()) > _ORTHONORMAL:
        raise ValueError(
            f"{where}: base'base is {far:.2g} from the identity; expected an orthonormal base, try "
            "sparse_ksvd"
        )
    return base


def _spectral(Z: np.ndarray, d: int, p: int, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """The initial columns of A."""
    n = len(Z)
    left = rng.integers(n, size=pairs)
    right = (left + rng.integers(1, max(n, 2), size=pairs)) % n  # another signal
    squares, candidates = Z * Z, []
    for first in range(0, pairs, _BLOCK):
        block = slice(first, first + _BLOCK)
        products = (Z @ Z[left[block]].T) * (Z @ Z[right[block]].T)  # (n, block)
        diagonals = np.abs(products.T @ squares)
        rows = np.argpartition(-diagonals, p - 1, axis=1)[:, :p]
        candidates += [_leading(Z, w, R) for w, R in zip(products.T, rows)]
    rows = np.array([a for a in candidates if a.any()]).reshape(-1, Z.shape[1])
    return _agreed(rows.astype(Z.dtype), Z, d, p, rng)


def _turned(Z: np.ndarray, A: np.ndarray) -> np.ndarray:
    """A, with each column a turned so that the sum of (a'z)^3 over the signals is at least 0."""
    C = Z @ A
    return np.where((C**3).sum(0) < 0, -A, A)


def _leading(Z: np.ndarray, w: np.ndarray, R: np.ndarray) -> np.ndarray:
    """The leading eigenvector of sum_k w_k z_k z_k' on the rows R; zero elsewhere."""
    part = Z[:, R]
    values, vectors = np.linalg.eigh((part * w[:, None]).T @ part)
    a = np.zeros(Z.shape[1], Z.dtype)
    a[R] = vectors[:, np.abs(values).argmax()]
    return a


def _agreed(
    candidates: np.ndarray, Z: np.ndarray, d: int, p: int, rng: np.random.Generator
) -> np.ndarray:
    """The means of the d largest groups of candidates; signals replace missing groups."""
    alike = np.abs(candidates @ candidates.T) > _SAME
    left, chosen = np.ones(len(candidates), bool), list[np.ndarray]()
    while len(chosen) < d and left.any():
        best = int(np.where(left, (alike & left).sum(1), -1).argmax())
        group = candidates[alike[best] & left]
        chosen.append(np.sign(group @ candidates[best]) @ group)
        left &= ~alike[best]
    D = _cut_columns(np.array(chosen).reshape(-1, Z.shape[1]).T, p)
    if len(chosen) < d:
        rows = _learning.distinct(Z[rng.permutation(len(Z))], D, d - len(chosen), rng)
        D = np.concatenate([D, _cut_columns(rows.T, p)], 1)
    return D


def _cut_columns(A: np.ndarray, p: int) -> np.ndarray:
    """The p largest entries of every column, as unit columns."""
    largest = np.zeros_like(A)
    rows = np.argpartition(-np.abs(A), p - 1, axis=0)[:p]
    np.put_along_axis(largest, rows, np.take_along_axis(A, rows, 0), 0)
    return _learning.unit_rows(largest.T).T


# Number of passes of thresholded gradient steps over the columns of a layer, in one sweep.
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
    nonnegative: bool = False,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""Learn the dictionaries of the multi-layer model: D_1, and sparse D_2, ..., D_J.

    .. math:: \min \frac1{2n} \sum_{k=1}^n \|y_k - D_1 \cdots D_J x_{J,k}\|^2, \qquad
        x_{j-1} = D_j x_j, \; \|x_j\|_0 \le s_j.

    A column of D_j, j > 1, has at most s_{j-1} // s_j nonzeros. So if x_J has at most s_J nonzeros,
    every other x_j has at most s_j nonzeros, and every sweep is feasible. A sweep computes x_J by
    orthogonal matching pursuit in the product. It then updates D_J and its codes as in
    `sparse_ksvd`, over the base D_1 ... D_{J-1}. The updates of D_{J-1}, ..., D_2 are passes of
    gradient steps, column by column, each followed by a hard threshold. The step size is 1 / L, for
    the Lipschitz constant L of the gradient, so no such step raises the objective. D_1 is found by
    least squares, as in `mod`, and the atoms of every layer are scaled to norm 1. If a new code is
    worse, the code of the previous sweep stays, so that only replacements of atoms raise the
    objective.

    Args:
        Y: (n, m), signals in rows, with n at least d_J.
        shapes: ((m, d_1), (d_1, d_2), ..., (d_{J-1}, d_J)).
        sparsities: s_1, ..., s_J.
        sweeps, key, weights, mask, progress, resume, checkpoint: as in `ksvd`.
        nonnegative: whether the codes x_J are non-negative; the entries of all D_j and of the other
            codes may have either sign.
        start: initial D_1, as in `ksvd`. A column of D_j, j > 1, starts as the code of a random
            signal in D_1 ... D_{j-1}.

    Returns:
        Learned, where D is (D_1, ..., D_J), matrices with exact zeros, and X is (X_1, ..., X_J),
        arrays of shapes (n, d_j). With one layer, `multilayer` is `mod`.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`, and if shapes do not fit, there is not
            one sparsity per layer, or a sparsity is below 1, above d_j (s_J above m) or above the
            previous sparsity.

    Reference: Sulam, Papyan, Romano, Elad (2018), section V. In the paper, signals come in batches,
    codes come from FISTA, and D_1 comes from a gradient step.

    Not claimed: that D_1 and D_2 equal the factors of a planted product; if D_2 is not sparse
    enough, D_1 and D_2 may be mixtures of the planted factors.

    Example:
        >>> D_1, D_2 = ur.dictionaries.dct(8, 8), ur.dictionaries.transversal(0, 2, 5, 12)[:8]
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (300, 12), 1) @ (D_1 @ D_2).T
        >>> learned = ur.dictionary_learning.multilayer(Y, [(8, 8), (8, 12)], sparsities=(2, 1))
        >>> [X.shape for X in learned.X], int((learned.D[1] != 0).sum(0).max())
        ([(300, 8), (300, 12)], 2)
    """
    options = Options(sweeps, key, progress, resume, checkpoint, start, weights, mask)
    return _learning.learn(_Layers(Y, shapes, sparsities, nonnegative, options), options)


class _Layers(Method):
    """Sweeps through (D_1, ..., D_J), with the codes X of the last layer, (n, d_J)."""

    where = "multilayer"

    def __init__(
        self,
        Y: ArrayLike,
        shapes: Sequence[tuple[int, int]],
        sparsities: Sequence[int],
        nonnegative: bool,
        options: Options,
    ):
        self.signals = _learning.weighted_signals(Y, self.where, options.weights, options.mask)
        self.shapes = _shapes(shapes, self.signals.Y.shape, self.where)
        self.counts = _counts(sparsities, self.shapes, self.where)
        self.sparsities, self.first = [*map(int, sparsities)], options.start
        self.coder = Coder.of_omp(self.counts[-1], nonnegative, self.where)

    def config(self) -> dict[str, Any]:
        return {
            "shapes": [list(shape) for shape in self.shapes],
            "sparsities": self.sparsities,
            "start": _learning.text_of(self.first),
            "signals": self.signals.fingerprint(),
            "exponent": self.signals.exponent,
        } | self.coder.signs()

    def start(self, rng: np.random.Generator) -> _State:
        signals, (shape, *others) = self.signals, self.shapes
        Ds: Matrices = (_learning.start_atoms(self.first, signals, shape[1], rng, self.where),)
        for (_, d), count in zip(others, self.counts):
            atoms = _learning.distinct(
                signals.Y[rng.permutation(len(signals.Y))], Ds[0][:, :0], d, rng
            )
            Ds = (*Ds, _sparse_columns(_product(Ds), atoms, count))
        return Ds, np.zeros((len(signals.Y), self.shapes[-1][1]), signals.Y.dtype)

    def resumed(self, resume: Learned) -> _State:
        Ds, codes, signals, n = resume.D, resume.X, self.signals, len(self.signals.Y)
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
        return tuple(np.array(D, signals.Y.dtype) for D in Ds), self.coder.admit(X)

    def restored(self, arrays: Arrays, keeper: Keeper) -> _State:
        return tuple(arrays[f"D_{j}"] for j in range(len(self.shapes))), arrays["X"]

    def arrays(self, state: _State) -> Arrays:
        return {"X": state[1]} | {f"D_{j}": D for j, D in enumerate(state[0])}

    @threads.one_thread()
    def sweep(self, state: _State, step: int, rng: Any) -> tuple[_State, float, int]:
        """Codes, replacements, updates of D_J to D_1, and unit atoms."""
        signals, counts, (Ds, old) = self.signals, self.counts, state
        X, _, errors, _ = self.coder.coded(_product(Ds), signals)
        worse = errors > signals.errors(_residual(signals, Ds, old))
        X = np.where(worse[:, None], old, X)
        Ds, X, replaced = self.replaced(Ds, X, rng)
        if len(Ds) > 1:
            Ds, X = self.last_layer(Ds, X)
        for j in range(len(Ds) - 2, 0, -1):
            D = _descend_factor(signals, Ds, X, j, counts[j - 1])
            Ds = _better(signals, Ds, (*Ds[:j], D, *Ds[j + 1 :]), X)
        Ds = _better(signals, Ds, (_least_squares(signals, Ds, X), *Ds[1:]), X)
        Ds, X = _normalised(Ds, X)
        return (Ds, X), signals.objective(_residual(signals, Ds, X)), replaced

    def last_layer(self, Ds: Matrices, X: np.ndarray) -> _State:
        """D_J and x_J after the update of sparse K-SVD over the base D_1 ... D_{J-1}."""
        columns = SparseColumns(np.ascontiguousarray(_product(Ds[:-1])), Ds[-1], self.counts[-2])
        D = _product(Ds)
        fitted = Fitted(D, np.ascontiguousarray(X.T), self.signals.Y - X @ D.T, self.coder)
        columns.update(self.signals, fitted)
        return (*Ds[:-1], columns.A), np.ascontiguousarray(fitted.X.T)

    def replaced(
        self, Ds: Matrices, X: np.ndarray, rng: np.random.Generator
    ) -> tuple[Matrices, np.ndarray, int]:
        """Replace unused and duplicate atoms of D_J by new atoms for the worst represented signals.

        An atom of another layer is replaced if no column of the next layer uses the atom.
        """
        signals, total = self.signals, 0
        for j in range(len(Ds) - 1, -1, -1):
            last = j == len(Ds) - 1
            D = _product(Ds[: j + 1])
            use = np.count_nonzero(X if last else Ds[j + 1].T, 0)
            dead = np.flatnonzero(use == 0)
            if last:
                norms = np.linalg.norm(D, axis=0)
                units = D / np.where(norms > 0, norms, 1)
                dead, X = np.union1d(dead, self.coder.duplicates(units, use)), X.copy()
                X[:, dead] = 0
            if not len(dead):
                continue
            R = _residual(signals, Ds, X)
            rows = _learning.fresh_atoms(D, dead, signals.filled(R), signals.errors(R), rng)
            if j > 0:
                rows = _sparse_columns(_product(Ds[:j]), rows, self.counts[j - 1]).T
            fresh = Ds[j].copy()
            fresh[:, dead] = rows.T
            Ds, total = (*Ds[:j], fresh, *Ds[j + 1 :]), total + len(dead)
        return Ds, X, total

    def result(self, state: _State) -> Learned:
        signals, (Ds, X) = self.signals, state
        codes = [_below(Ds, X, j) for j in range(len(Ds))]
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
    """The largest numbers of nonzeros in a column of each D_j, j = 2..J, and in x_J."""
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
    """Unit columns with at most `count` nonzeros, whose products with the base are near `atoms`."""
    A = match(base, atoms, min(count, *base.shape)).T
    empty = ~A.any(0)
    A[:, empty] = np.eye(len(A), dtype=A.dtype)[:, np.flatnonzero(empty) % len(A)]
    return A / np.linalg.norm(A, axis=0)


def _residual(signals: Signals, Ds: Matrices, X: np.ndarray) -> np.ndarray:
    return signals.Y - X @ _product(Ds).T


def _better(signals: Signals, old: Matrices, new: Matrices, X: np.ndarray) -> Matrices:
    """The new dictionaries, or the old ones if rounding would raise the error."""
    errors = [signals.objective(_residual(signals, Ds, X)) for Ds in (old, new)]
    return new if errors[1] < errors[0] else old


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
    C = A.T @ (signals.target(_residual(signals, Ds, X)).T @ Z)
    L = np.linalg.eigvalsh(H)[-1] * (1 + 1e-3)
    for k in np.tile(np.flatnonzero(np.diag(S) > 0), _PASSES):
        a = D[:, k] - (H @ (D @ S[:, k]) - C[:, k]) / (L * S[k, k])
        a[np.argsort(-np.abs(a), kind="stable")[count:]] = 0
        D[:, k] = a
    return D


def _least_squares(signals: Signals, Ds: Matrices, X: np.ndarray) -> np.ndarray:
    """D_1 by least squares for fixed codes; unused atoms do not change."""
    Z, D = _below(Ds, X, 0), Ds[0].copy()
    used = np.flatnonzero(Z.any(0))
    D[:, used] += _learning.correction(Z[:, used], signals.weighted(_residual(signals, Ds, X)))
    return D


def _normalised(Ds: Matrices, X: np.ndarray) -> tuple[Matrices, np.ndarray]:
    """Scale columns to norm 1; the norms move to the next layer, and at the end to the codes."""
    units: Matrices = ()
    norms = np.ones(len(Ds[0]), X.dtype)
    for D in Ds:
        D = norms[:, None] * D
        norms = np.linalg.norm(D, axis=0)
        units = (*units, D / np.where(norms > 0, norms, 1))
    return units, X * norms
