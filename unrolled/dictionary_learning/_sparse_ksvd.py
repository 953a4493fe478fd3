"""Sparse K-SVD: atoms that combine a few atoms of a base."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unrolled import _checks, _matching
from unrolled._arguments import checked
from unrolled._checks import ArrayLike, Key
from unrolled.dictionaries import Dictionary, Operator, Sparse, as_dictionary, dense
from unrolled.dictionary_learning import _learning
from unrolled.dictionary_learning._ksvd import update_atom
from unrolled.dictionary_learning._learning import Arrays, Keeper, Learned, Progress
from unrolled.dictionary_learning._signals import Signals, atom_count
from unrolled.dictionary_learning._sweeps import Alternation, Fitted

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
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""Sparse K-SVD: a dictionary D = Phi A over a base Phi, with few nonzeros in a column of A.

    .. math:: \min_{A, X} \frac1{2n} \sum_{k=1}^n \|y_k - \Phi A x_k\|^2, \qquad
        \|x_k\|_0 \le s, \; \|a_j\|_0 \le p, \; \|\Phi a_j\| = 1.

    It is `ksvd` with one change: the best atom for given codes is approximated in the base, by
    orthogonal matching pursuit with p atoms, and taken only if it lowers the objective. With the
    base I and p = m it is `ksvd`. With an orthonormal base it is the base times what is learned
    from Y Phi with the base I.

    Args:
        Y: (n, m), signals in rows, with n at least d.
        base: Phi, (m, p), such as `dictionaries.dct`, or a structured one.
        d: the number of atoms.
        sparsity: s, the most nonzeros of a code, in 1..min(m, d).
        atom_sparsity: p, the most nonzeros of a column of A, in 1..min(m, p).
        sweeps, key, start, weights, mask, progress, resume, checkpoint: as in `ksvd`; atoms to
            start from are approximated in the base.

    Returns:
        Learned, where D is a `dictionaries.Sparse`.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`, and for a base or an atom_sparsity
            that does not fit.

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
    _checks.on_host((Y, base), where, "Y or base")
    base, m = as_dictionary(base, where), np.shape(Y)[-1] if np.ndim(Y) else 0
    if base.shape[0] != m:
        raise ValueError(f"{where}: base has shape {base.shape} but signals have length {m}")
    atom_sparsity = _checks.as_index(atom_sparsity, "atom_sparsity", where, least=1)
    if atom_sparsity > min(base.shape):
        raise ValueError(
            f"{where}: atom_sparsity is {atom_sparsity}; expected at most {min(base.shape)}, the "
            "smaller dimension of the base"
        )
    options = _learning.Options(sweeps, key, progress, resume, checkpoint, start, weights, mask)
    return _learning.learn(_OverBase(Y, d, sparsity, options, base, atom_sparsity), options)


class SparseColumns:
    """Columns a of A with few nonzeros whose atoms, the products with a base, have norm 1."""

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
        A = _matching.match(self.base.astype(Z.dtype), Z, self.count, H)
        atoms = A @ self.base.T.astype(Z.dtype)
        norms = np.linalg.norm(atoms, axis=1, keepdims=True)
        norms = np.where(norms > 0, norms, 1)
        return atoms / norms, A / norms


class _OverBase(Alternation):
    """Atoms over a base; their columns are kept beside them."""

    def __init__(
        self,
        Y: ArrayLike,
        d: int,
        sparsity: int,
        options: _learning.Options,
        base: Dictionary,
        atom_sparsity: int,
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
        self.columns = SparseColumns(matrix, zeros, atom_sparsity)
        super().__init__("sparse_ksvd", Y, d, sparsity, options, self.columns.update)

    def config(self) -> dict[str, Any]:
        columns = self.columns
        own = {"atom_sparsity": columns.count, "base": _learning.fingerprint(columns.base)}
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
        return Sparse(_checks.cast(self.base, dtype), jnp.asarray(self.columns.A, dtype))
