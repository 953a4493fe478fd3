"""Double sparsity from moments: a spectral start, then descent with sparse atoms."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from unrolled._base import checks, threads
from unrolled._base.arguments import checked
from unrolled._base.checks import ArrayLike, Key
from unrolled.dictionaries import Dictionary, Operator, Sparse, as_dictionary, dense
from unrolled.dictionary_learning import _learning
from unrolled.dictionary_learning._learning import Arrays, Keeper, Learned, Progress
from unrolled.pursuit import match

# Candidates with a larger inner product are of one atom; and pairs of signals whose moments are in
# memory together.
_SAME, _BLOCK = 0.9, 64
# Pairs for every atom: a pair of signals gives an atom if it has one in common.
_PAIRS = 30
# How far a base may be from orthonormal.
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
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""Sparse atoms over an orthonormal base, by a spectral start and descent (Nguyen et al.).

    .. math:: M_{uv} = \tfrac1n \sum_k \langle z_k, u \rangle \langle z_k, v \rangle z_k z_k',
        \qquad
        a_j \leftarrow H_p \Big( a_j - \eta \sum_k (A x_k - z_k) \operatorname{sign}(x_{kj})
        \Big/ \sum_k |x_{kj}| \Big)

    for signals z = Phi'y and pairs u, v of them. If u and v have one atom in common, the largest
    diagonal entries of M_uv show the p rows of that atom, and on these rows its leading eigenvector
    is nearly the atom. Of many pairs the atoms are the candidates that most others agree with. In
    the descent x_k holds the s largest entries of A'z_k, and H_p the p largest of a column, which
    is then scaled to norm 1.

    Args:
        Y: (n, m), signals in rows, with n at least d.
        d: the number of atoms.
        sparsity: s, in 1..min(m, d).
        atom_sparsity: p, in 1..m.
        base: Phi, (m, m), orthonormal; None for I.
        pairs: how many for the start; None takes 30 d.
        sweeps: steps of the descent, those of `resume` included.
        rate: eta, in (0, 1].
        key: a typed key, or a seed, of the pairs and of replacements.
        progress, resume, checkpoint: as in `ksvd`.

    Returns:
        Learned, where D is a `dictionaries.Sparse`. X, and `objective`, are of orthogonal matching
        pursuit with D at the end; those of the history, of the codes of the descent.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`, and for a base that is not
            orthonormal.

    Reference: Nguyen, Wong, Hegde (2019): for codes whose nonzeros are bounded away from 0, atoms
    that are incoherent, s up to the order of sqrt(m) and n above d p up to logarithms, their
    version of this start is near every atom and the descent converges linearly, up to an error of
    the order of sqrt(s / m). They threshold A'z at half the least nonzero instead, and fix the rows
    of an atom at the start.

    Not claimed: their guarantee outside these hypotheses, which are not checked. Correlated codes
    break it.

    Example:
        >>> blocks = jnp.kron(jnp.eye(8), jnp.array([[1.0, 1.0], [1.0, -1.0]])) / jnp.sqrt(2.0)
        >>> Y = ur.problems.bounded(jax.random.key(100), (800, 16), 2, least=1.0) @ blocks.T
        >>> learned = ur.dictionary_learning.double_sparse(Y, 16, sparsity=2, atom_sparsity=2)
        >>> G = jnp.abs(ur.dictionaries.dense(learned.D).T @ blocks)
        >>> bool((G.max(0) > 0.99).all())
        True
    """
    options = _learning.Options(sweeps, key, progress, resume, checkpoint)
    return _learning.learn(_Descent(Y, d, (sparsity, atom_sparsity), base, pairs, rate), options)


class _Descent(_learning.Method):
    """The descent in A, (m, d), for the signals Z = Y Phi."""

    where = "double_sparse"

    def __init__(
        self,
        Y: ArrayLike,
        d: int,
        sparsities: tuple[int, int],
        base: Dictionary | None,
        pairs: int | None,
        rate: float,
    ):
        where, self.signals = self.where, _learning.as_signals(Y, self.where)
        n, m = self.signals.Y.shape
        self.d, self.sparsity, self.p = _sizes(d, *sparsities, n, m, where)
        pairs = _PAIRS * self.d if pairs is None else pairs
        self.pairs = checks.as_index(pairs, "pairs", where, least=1)
        rate = checks.as_number(rate, "rate", where)
        if not 0 < rate <= 1:
            raise ValueError(f"{where}: rate must be in (0, 1], got {rate}")
        self.rate, self.base = rate, _orthonormal(base, self.signals.Y, where)
        self.Z = self.signals.Y @ np.asarray(dense(self.base), self.signals.Y.dtype)

    def config(self) -> dict[str, Any]:
        own = dict(d=self.d, sparsity=self.sparsity, atom_sparsity=self.p, pairs=self.pairs)
        signals = {"signals": _learning.fingerprint(self.Z), "exponent": self.signals.exponent}
        return own | {"rate": self.rate} | signals

    @threads.one_thread()
    def start(self, rng: np.random.Generator) -> np.ndarray:
        A = _spectral(self.Z, self.d, self.p, self.pairs, rng)
        return np.ascontiguousarray(A)  # as that of a result: products round by the order in memory

    def resumed(self, resume: Learned) -> np.ndarray:
        D, shape = resume.D, (self.Z.shape[1], self.d)
        if not isinstance(D, Sparse) or D.shape != shape:
            raise ValueError(
                f"{self.where}: resume is not a result with a Sparse D of shape {shape}"
            )
        A = np.zeros(shape, self.Z.dtype)
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
        A, squares, replaced = _gradient_step(self.Z, state, self.sparsity, self.p, self.rate, rng)
        return A, self.signals.in_units(squares / (2 * len(self.Z))), replaced

    def result(self, state: np.ndarray) -> Learned:
        signals, X = self.signals, match(state, self.Z, self.sparsity)
        codes = jax.device_put(np.ldexp(X, signals.exponent).astype(signals.dtype))
        base, A = checks.cast(self.base, signals.dtype), state.astype(signals.dtype)
        return Learned(Sparse(base, A), codes, signals.objective(self.Z - X @ state.T), ())


def _sizes(d: int, sparsity: int, p: int, n: int, m: int, where: str) -> tuple[int, int, int]:
    d = _learning.atom_count(d, n, where)
    counts = {"sparsity": (sparsity, min(m, d)), "atom_sparsity": (p, m)}
    for name, (value, most) in counts.items():
        if checks.as_index(value, name, where, least=1) > most:
            raise ValueError(f"{where}: {name} is {value}; expected at most {most}")
    return d, int(sparsity), int(p)


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
    """The columns of A to start from."""
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
    """The means of up to d groups of candidates, the largest first; the rest are signals."""
    alike = np.abs(candidates @ candidates.T) > _SAME
    left, chosen = np.ones(len(candidates), bool), list[np.ndarray]()
    while len(chosen) < d and left.any():
        best = int(np.where(left, (alike & left).sum(1), -1).argmax())
        group = candidates[alike[best] & left]
        chosen.append(np.sign(group @ candidates[best]) @ group)
        left &= ~alike[best]
    D = _sparse_columns(np.array(chosen).reshape(-1, Z.shape[1]).T, p)
    if len(chosen) < d:
        rows = _learning.distinct(Z[rng.permutation(len(Z))], D, d - len(chosen), rng)
        D = np.concatenate([D, _sparse_columns(rows.T, p)], 1)
    return D


def _sparse_columns(A: np.ndarray, p: int) -> np.ndarray:
    """Unit columns with the p largest entries of each."""
    largest = np.zeros_like(A)
    rows = np.argpartition(-np.abs(A), p - 1, axis=0)[:p]
    np.put_along_axis(largest, rows, np.take_along_axis(A, rows, 0), 0)
    return _learning.unit_rows(largest.T).T


def _gradient_step(
    Z: np.ndarray, A: np.ndarray, sparsity: int, p: int, rate: float, rng: np.random.Generator
) -> tuple[np.ndarray, float, int]:
    """One step; the sum of squared errors before it, and the atoms that were replaced."""
    X = _largest(Z @ A, sparsity)
    E = X @ A.T - Z
    sizes = np.abs(X).sum(0)
    moved = A - rate * (E.T @ np.sign(X)) / np.where(sizes > 0, sizes, 1)
    A = _sparse_columns(moved, p)
    errors = np.sum(E * E, 1)
    dead = np.union1d(np.flatnonzero((sizes == 0) | ~A.any(0)), _learning.duplicates(A, sizes))
    if len(dead):  # what is left of the worst signals is most often a missing atom
        worst = np.argsort(-errors, kind="stable")[: 10 * len(dead)]
        rows = _learning.distinct(E[worst], np.delete(A, dead, 1), len(dead), rng)
        A[:, dead] = _sparse_columns(rows.T, p)
    return A, float(errors.sum(dtype=float)), len(dead)


def _largest(C: np.ndarray, sparsity: int) -> np.ndarray:
    """The largest entries of every row, by magnitude."""
    X = np.zeros_like(C)
    columns = np.argpartition(-np.abs(C), sparsity - 1, axis=1)[:, :sparsity]
    np.put_along_axis(X, columns, np.take_along_axis(C, columns, 1), 1)
    return X
