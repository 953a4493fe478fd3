"""K-SVD, MOD and sparse K-SVD, which alternate between the codes of all signals and the atoms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, threads
from unrolled._base.doors import ArrayLike, Key, checked
from unrolled.dictionaries import Dictionary, Operator, Sparse, as_dictionary, dense
from unrolled.dictionary_learning._coder import Coder
from unrolled.dictionary_learning._learning import (
    Arrays,
    Keeper,
    Learned,
    Method,
    Options,
    Progress,
    Signals,
    atom_count,
    correction,
    fingerprint,
    fresh_atoms,
    learn,
    start_atoms,
    text_of,
    weighted_signals,
)
from unrolled.pursuit import match

__all__ = ["ksvd", "mod", "sparse_ksvd"]


class Fitted(NamedTuple):
    """Atoms and codes of the signals: Y = X' D' + R, row by row."""

    D: np.ndarray  # (m, d)
    X: np.ndarray  # (d, n), the codes in columns
    R: np.ndarray  # (n, m)
    coder: Coder


# Updates the atoms in place, except atoms that no code uses.
Update = Callable[[Signals, Fitted], None]


class Alternation(Method):
    """Sweeps of OMP and of updates of the atoms; this class admits any unit atoms.

    If OMP finds no code with a smaller error, the code of the previous sweep stays, so a sweep
    raises the objective only if it replaces an atom. A subclass defines which atoms are admissible,
    and which arrays a file keeps in addition to the atoms.

    Args:
        where: the name of the caller.
        Y, d, coder, options: the arguments of the caller.
        update: the update of the atoms after the codes.
    """

    def __init__(
        self, where: str, Y: ArrayLike, d: int, coder: Coder, options: Options, update: Update
    ):
        self.where, self.coder, self.first, self.update = where, coder, options.start, update
        self.signals = weighted_signals(Y, where, options.weights, options.mask)
        n, m = self.signals.Y.shape
        self.d = atom_count(d, n, where)
        coder.check_size(m, self.d, where)

    def admit(self, D: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Admissible atoms near the columns of D, (m, k), to become the atoms `which`."""
        return D

    def settled(self, D: np.ndarray) -> np.ndarray:
        """The atoms that a result would return, for use at the start and at the end of a sweep."""
        return D

    def atoms_of(self, D: Any) -> np.ndarray:
        """The atoms of a result, (m, d)."""
        return np.asarray(dense(D))

    def dictionary(self, D: np.ndarray, dtype: np.dtype) -> Operator:
        """D of a result."""
        return jnp.asarray(D, dtype)

    def config(self) -> dict[str, Any]:
        return {
            "d": self.d,
            "signals": self.signals.fingerprint(),
            "exponent": self.signals.exponent,
            "start": text_of(self.first),
        } | self.coder.config()

    def start(self, rng: np.random.Generator) -> Fitted:
        D = start_atoms(self.first, self.signals, self.d, rng, self.where)
        D = self.settled(self.admit(D, np.arange(self.d)))
        return self.fitted(D, np.zeros((self.d, len(self.signals.Y))))

    def resumed(self, resume: Learned) -> Fitted:
        (n, m), codes = self.signals.Y.shape, resume.X
        other = isinstance(codes, tuple | None) or codes.shape != (n, self.d)
        if other or resume.D.shape != (m, self.d):
            raise ValueError(f"{self.where}: resume is not of {self.d} atoms and these {n} signals")
        X = np.ldexp(np.asarray(codes, self.signals.Y.dtype), -self.signals.exponent)
        return self.fitted(self.atoms_of(resume.D), self.coder.admit(X).T)

    def restored(self, arrays: Arrays, keeper: Keeper) -> Fitted:
        return self.fitted(arrays["D"], arrays["X"].T)

    def arrays(self, state: Fitted) -> Arrays:
        return {"D": state.D, "X": state.X.T}

    @threads.one_thread()  # for factorisations of few rows; OMP uses all cores
    def sweep(
        self, state: Fitted, step: int, rng: np.random.Generator
    ) -> tuple[Fitted, float, int]:
        """Compute the codes, replace duplicate and unused atoms, then update the other atoms."""
        fitted = self.coded(state)
        D, X, R, _ = fitted
        use = np.count_nonzero(X, 1)
        again = self.coder.duplicates(D, use)
        R += X[again].T @ D[:, again].T
        X[again] = 0
        use[again] = 0
        dead = np.flatnonzero(use == 0)
        self.replace(fitted, dead, rng)
        self.update(self.signals, fitted)
        fitted = self.fitted(self.settled(D), X)
        return fitted, self.signals.objective(fitted.R), len(dead)

    def result(self, state: Fitted) -> Learned:
        signals = self.signals
        X = jnp.asarray(np.ldexp(state.X.T, signals.exponent), signals.dtype)
        return Learned(self.dictionary(state.D, signals.dtype), X, signals.objective(state.R), ())

    def fitted(self, D: np.ndarray, X: np.ndarray) -> Fitted:
        """Atoms and codes with their residual."""
        D, X = (np.array(value, self.signals.Y.dtype, order="C") for value in (D, X))
        return Fitted(D, X, self.signals.Y - X.T @ D.T, self.coder)

    def coded(self, old: Fitted) -> Fitted:
        """The codes of OMP, or the old codes if their error is smaller."""
        X, R, errors, _ = self.coder.coded(old.D, self.signals)
        worse = errors > self.signals.errors(old.R)
        X[worse], R[worse] = old.X[:, worse].T, old.R[worse]
        return old._replace(X=np.ascontiguousarray(X.T), R=R)

    def replace(self, fitted: Fitted, which: np.ndarray, rng: np.random.Generator) -> None:
        """Replace atoms that no code uses by the worst represented signals."""
        if len(which):
            filled, errors = self.signals.filled(fitted.R), self.signals.errors(fitted.R)
            rows = fresh_atoms(fitted.D, which, filled, errors, rng)
            fitted.D[:, which] = self.admit(rows.T, which)


# The number of alternating steps towards the leading pair of singular vectors of an error, from the
# last pair of atom and codes.
_STEPS = 3


@checked
def ksvd(
    Y: ArrayLike,
    d: int,
    *,
    sparsity: int,
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
    r"""K-SVD: codes by orthogonal matching pursuit, then an update of each atom and its codes.

    .. math:: \min_{D, X} \frac1{2n} \sum_{k=1}^n \|y_k - D x_k\|^2, \qquad
        \|x_k\|_0 \le s, \; \|d_i\| = 1.

    The update of an atom considers the signals that use the atom, and their error without the
    contribution of the atom. The atom and its codes move towards the leading pair of singular
    vectors of this error in three alternating steps; each step lowers the objective. If OMP finds
    no better code, the code of the previous sweep stays, so the objective falls from sweep to sweep
    unless atoms are replaced. Atoms that no signal uses, and atoms that are nearly parallel to
    another atom (inner product above 0.99), are replaced by the worst represented signals.

    Args:
        Y: (n, m), signals in rows, with n at least d.
        d: number of atoms.
        sparsity: s, the largest number of nonzeros of a code, in 1..min(m, d).
        sweeps: total number of sweeps, including the sweeps of `resume`.
        key: a typed key, or a seed, for the start and for replacements.
        start: "data" for random signals, "dct" for cosines (of square patches if m is a square
            number), or a D, (m, d).
        nonnegative: whether codes are non-negative. The entries of atoms may have either sign.
        weights: weights of the squared errors, (n,) or (n, m), non-negative, of any scale. The
            function divides the weights by a power of two near the largest weight, so a common
            factor scales the objective and, up to rounding, changes nothing else.
        mask: (n, m), True where an entry of Y is known; unknown entries may be NaN.
        progress: called as `progress(step)` after every sweep, with a `Step`.
        resume: a result to continue from. If the other arguments are the same, the result is
            bit-identical to the result of an uninterrupted call.
        checkpoint: a file (.npz) in which the function saves its state after the last sweep, and
            after earlier sweeps at most once in 5 seconds. If the file exists, the same call
            continues from it.

    Returns:
        Learned, in the dtype of Y. `objective` is the mean above, computed with the weights.

    Raises:
        TypeError: arrays are traced or not real numbers, mask is not bool, or counts are not
            integers.
        ValueError: shapes do not fit, there are fewer signals than atoms, sparsity is out of range,
            NaN occur without a mask, start is unknown, or `resume` has another shape.
        CheckpointError: the file is damaged, or comes from another call.

    Not claimed: a global minimum. If signals are constant or equal, unused atoms remain, and these
    atoms are noise.

    Reference: Aharon, Elad, Bruckstein (2006); Rubinstein, Zibulevsky, Elad (2008) for alternating
    steps; Smith, Elad (2013) for keeping codes.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (300, 12), 2) @ D.T
        >>> learned = ur.dictionary_learning.ksvd(Y, 12, sparsity=2, sweeps=15, key=0)
        >>> learned.D.shape, learned.objective < learned.history[0].objective / 2
        ((8, 12), True)
    """
    options = Options(sweeps, key, progress, resume, checkpoint, start, weights, mask)
    coder = Coder.of_omp(sparsity, nonnegative, "ksvd")
    return learn(Alternation("ksvd", Y, d, coder, options, _one_by_one), options)


@checked
def mod(
    Y: ArrayLike,
    d: int,
    *,
    sparsity: int,
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
    r"""The method of optimal directions: codes by OMP, then all atoms by least squares.

    .. math:: D = Y' X (X' X)^{-1}, \quad \text{then unit atoms}.

    With one weight per signal, these products become Y'VX and X'VX. With a mask, or with one weight
    per entry, the atoms fit the signals v y + (1 - v) D x instead, where v are the weights divided
    by the largest weight. This fit also lowers the objective. If the codes of some atoms are
    dependent, X'X is singular; the atoms then change as little as possible. In all other respects,
    `mod` is like `ksvd`.

    Args:
        Y, d, sparsity, sweeps, key, start, nonnegative, weights, mask: see `ksvd`.
        progress, resume, checkpoint: see `ksvd`.

    Returns:
        Learned, as from `ksvd`.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`.

    Reference: Engan, Aase, Husoy (1999).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (300, 12), 2) @ D.T
        >>> learned = ur.dictionary_learning.mod(Y, 12, sparsity=2, sweeps=15, key=0)
        >>> learned.X.shape, learned.objective < learned.history[0].objective / 2
        ((300, 12), True)
    """
    options = Options(sweeps, key, progress, resume, checkpoint, start, weights, mask)
    coder = Coder.of_omp(sparsity, nonnegative, "mod")
    return learn(Alternation("mod", Y, d, coder, options, _all_atoms), options)


# (z, h) -> the admissible unit atom a that is nearest to a multiple of z, with weights h.
Nearest = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def _one_by_one(signals: Signals, fitted: Fitted) -> None:
    """The update of K-SVD."""
    for j in range(fitted.D.shape[1]):
        update_atom(signals, fitted, j, _unit)


def _unit(z: np.ndarray, h: np.ndarray | None) -> np.ndarray:
    size = np.linalg.norm(z)
    return z / size if size > 0 else z


@np.errstate(over="ignore", invalid="ignore")  # an atom that leaves the range lowers no error
def update_atom(signals: Signals, fitted: Fitted, j: int, nearest: Nearest) -> int:
    """Update an atom and its codes by alternating least squares on the signals that use the atom.

    For fixed codes x and E = R + x d', the best atom is z = E'x / x'x. The admissible atom
    `nearest` to z is taken only if it lowers the error.

    Returns:
        The number of atoms taken, one after the other; the update ends at the first atom not taken.
    """
    D, X, R, _ = fitted
    users = np.flatnonzero(X[j])
    if not len(users):
        return 0
    E = R[users] + X[j, users, None] * D[:, j]
    V = None if signals.V is None else signals.V[users]
    best = _pair(E, D[:, j], X[j, users], V)
    taken = 0
    while taken < _STEPS:
        z, h = _best_atom(E, best, V)
        a = nearest(z, h)
        if not a.any():
            break
        pair = _pair(E, a, fitted.coder.admit(_best_codes(E, a, V)), V)
        if not pair.error < best.error:
            break
        best, taken = pair, taken + 1
    D[:, j], X[j, users], R[users] = best.d, best.x, best.R
    return taken


class _Pair(NamedTuple):
    """An atom and its codes."""

    d: np.ndarray  # (m,)
    x: np.ndarray  # (users,)
    R: np.ndarray  # (users, m), E - x d'
    error: float  # the weighted sum of squares of R


def _pair(E: np.ndarray, d: np.ndarray, x: np.ndarray, V: np.ndarray | None) -> _Pair:
    R = E - x[:, None] * d
    return _Pair(d, x, R, float(np.sum(R * R if V is None else V * R * R)))


def _best_atom(
    E: np.ndarray, pair: _Pair, V: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The best atom for given codes, and the weights of its entries; d if all codes are zero."""
    x = pair.x
    if V is None:
        square = x @ x
        return (x @ E / square if square > 0 else pair.d), None
    h = (x * x) @ V
    return np.divide(x @ (V * E), h, out=pair.d.copy(), where=h > 0), h


def _best_codes(E: np.ndarray, a: np.ndarray, V: np.ndarray | None) -> np.ndarray:
    if V is None:
        return E @ a / (a @ a)
    h = V @ (a * a)
    return np.divide((V * E) @ a, h, out=np.zeros_like(h), where=h > 0)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # such atoms are not taken
def _all_atoms(signals: Signals, fitted: Fitted) -> None:
    """The update of MOD for used atoms; the old atoms stay if rounding raises the error."""
    D, X, R, _ = fitted
    V, codes, left = signals.V, X.T, signals.weighted(R)
    if V is not None and (V == V[:, :1]).all():  # one weight per signal
        root = np.sqrt(V[:, :1])
        codes, left = root * codes, root * R
    used = np.flatnonzero(codes.any(0))
    new, scaled = D.copy(), X.copy()
    new[:, used] += correction(codes[:, used], left)
    norms = np.linalg.norm(new, axis=0)
    new, scaled = new / norms, norms[:, None] * scaled
    if signals.objective(signals.Y - scaled.T @ new.T) < signals.objective(R):
        D[:], X[:] = new, scaled


_NEAR_1 = 1e-15, 1e15  # norms whose squares are in the range of float32


@checked
def sparse_ksvd(
    Y: ArrayLike,
    base: Dictionary,
    d: int,
    *,
    sparsity: int,
    atom_sparsity: int,
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
    r"""Sparse K-SVD: a dictionary D = Phi A over a base Phi, with few nonzeros in a column of A.

    .. math:: \min_{A, X} \frac1{2n} \sum_{k=1}^n \|y_k - \Phi A x_k\|^2, \qquad
        \|x_k\|_0 \le s, \; \|a_j\|_0 \le p, \; \|\Phi a_j\| = 1.

    `sparse_ksvd` is `ksvd` with one change: orthogonal matching pursuit approximates the best atom
    for given codes by at most p columns of the base, and the approximation is taken only if it
    lowers the objective. With the base I and p = m, the result equals the result of `ksvd`. With an
    orthonormal base, D is the base times the dictionary learned from Y Phi with the base I.

    Args:
        Y: (n, m), signals in rows, with n at least d.
        base: Phi, (m, q), such as `dictionaries.dct`, or a structured dictionary.
        d: number of atoms.
        sparsity: s, the largest number of nonzeros of a code, in 1..min(m, d).
        atom_sparsity: p, the largest number of nonzeros of a column of A, in 1..min(m, q).
        sweeps, key, start, nonnegative, weights, mask, progress, resume, checkpoint: as in `ksvd`;
            initial atoms are approximated in the base.

    Returns:
        Learned, where D is a `dictionaries.Sparse`.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`, and if the base or atom_sparsity does
            not fit.

    Reference: Rubinstein, Zibulevsky, Elad (2010).

    Example:
        >>> base = ur.dictionaries.dct(8, 8)
        >>> Y = jax.random.normal(jax.random.key(1), (100, 8))
        >>> learned = ur.dictionary_learning.sparse_ksvd(
        ...     Y, base, 12, sparsity=2, atom_sparsity=3, sweeps=5
        ... )
        >>> learned.D.shape, learned.D.values.shape
        ((8, 12), (3, 12))
    """
    where = "sparse_ksvd"
    checks.on_host((Y, base), where, "Y or base")
    base, m = as_dictionary(base, where), np.shape(Y)[-1] if np.ndim(Y) else 0
    if base.shape[0] != m:
        raise ValueError(f"{where}: base has shape {base.shape} but signals have length {m}")
    atom_sparsity = checks.as_index(atom_sparsity, "atom_sparsity", where, least=1)
    if atom_sparsity > min(base.shape):
        raise ValueError(
            f"{where}: atom_sparsity is {atom_sparsity}; expected at most {min(base.shape)}, the "
            "smaller dimension of the base"
        )
    options = Options(sweeps, key, progress, resume, checkpoint, start, weights, mask)
    coder = Coder.of_omp(sparsity, nonnegative, where)
    return learn(_OverBase(Y, d, coder, options, base, atom_sparsity), options)


class SparseColumns:
    """Columns of A with few nonzeros; their products with the base are atoms of norm 1."""

    def __init__(self, base: np.ndarray, A: np.ndarray, count: int):
        self.base, self.A, self.count = base, A.copy(), count
        self.tried: list[np.ndarray] = []

    def update(self, signals: Signals, fitted: Fitted) -> None:
        """The update of sparse K-SVD."""
        for j in range(fitted.D.shape[1]):
            self.tried = []
            taken = update_atom(signals, fitted, j, self._nearest)
            if taken:
                self.A[:, j] = self.tried[taken - 1]

    def _nearest(self, z: np.ndarray, h: np.ndarray | None) -> np.ndarray:
        atoms, A = self.approximate(z[None], None if h is None else h[None])
        self.tried.append(A[0])
        return atoms[0]

    def approximate(self, Z: np.ndarray, H: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Unit atoms near multiples of the rows of Z, and their columns of A, all in rows."""
        A = match(self.base.astype(Z.dtype), Z, self.count, H)
        atoms = A @ self.base.T.astype(Z.dtype)
        norms = np.linalg.norm(atoms, axis=1, keepdims=True)
        norms = np.where(norms > 0, norms, 1)
        return atoms / norms, A / norms


class _OverBase(Alternation):
    """Sweeps for atoms over a base, together with their columns of A."""

    def __init__(
        self, Y: ArrayLike, d: int, coder: Coder, options: Options, base: Dictionary, p: int
    ):
        matrix = np.asarray(dense(base))
        sizes = np.linalg.norm(matrix.astype(float), axis=0)
        if not (_NEAR_1[0] <= sizes.max() <= _NEAR_1[1]):
            raise ValueError(
                f"sparse_ksvd: base has columns of norms up to {sizes.max():.3g}; expected numbers "
                "near 1, try dictionaries.normalize"
            )
        d = atom_count(d, np.shape(Y)[0], "sparse_ksvd")
        self.base, zeros = base, np.zeros((base.shape[1], d))
        self.columns = SparseColumns(matrix, zeros, p)
        super().__init__("sparse_ksvd", Y, d, coder, options, self.columns.update)

    def config(self) -> dict[str, Any]:
        columns = self.columns
        own = {"atom_sparsity": columns.count, "base": fingerprint(columns.base)}
        return super().config() | own

    def admit(self, D: np.ndarray, which: np.ndarray) -> np.ndarray:
        atoms, A = self.columns.approximate(np.ascontiguousarray(D.T), None)
        self.columns.A = self.columns.A.astype(D.dtype)
        self.columns.A[:, which] = A.T
        return atoms.T

    def arrays(self, state: Fitted) -> Arrays:
        return super().arrays(state) | {"A": self.columns.A}

    def restored(self, arrays: Arrays, keeper: Keeper) -> Fitted:
        self.columns.A = arrays["A"]
        return super().restored(arrays, keeper)

    def atoms_of(self, D: Any) -> np.ndarray:
        if not isinstance(D, Sparse) or D.base.shape != self.base.shape:
            raise ValueError("sparse_ksvd: resume has atoms over another base, or over none")
        values = np.asarray(D.values)
        A = self.columns.A = np.zeros_like(self.columns.A, dtype=values.dtype)
        A[np.asarray(D.indices), np.arange(values.shape[1])] = values
        return self.settled(values)

    def settled(self, D: np.ndarray) -> np.ndarray:
        return self.columns.base.astype(D.dtype) @ self.columns.A

    def dictionary(self, D: np.ndarray, dtype: np.dtype) -> Operator:
        return Sparse(checks.cast(self.base, dtype), jnp.asarray(self.columns.A, dtype))
