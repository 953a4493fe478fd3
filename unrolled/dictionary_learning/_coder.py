"""How learning finds codes: by the LASSO, or by orthogonal matching pursuit."""

from functools import partial
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled.dictionary_learning._learning import PARALLEL, Signals, as_lam, scaled_penalty
from unrolled.pursuit import lasso, lasso_of_rows, match

# Relative duality gap of a code. A smaller gap does not lead to better atoms: the change of the
# atoms from batch to batch matters more, and the excess of the objective over its minimum is much
# smaller than the gap.
TOL = 5e-2


class Coded(NamedTuple):
    """The codes of signals, in the units of `Signals.Y`."""

    X: np.ndarray  # (n, d)
    R: np.ndarray  # (n, m), Y - X D'
    errors: np.ndarray  # (n,)
    penalty: float  # lam times the sum of abs(X)

    @property
    def objective(self) -> float:
        """The mean objective."""
        return (float(np.sum(self.errors)) / 2 + self.penalty) / len(self.X)


class Coder(NamedTuple):
    r"""How signals are coded: by the LASSO, or greedily by OMP, with x >= 0 if `nonnegative`.

    .. math:: \min_x \tfrac12 (y - D x)' V (y - D x) + lam \|x\|_1
        \quad \text{or} \quad \min_{\|x\|_0 \le s} \tfrac12 (y - D x)' V (y - D x).

    A learner checks the options of its caller by `of` or `of_omp`, and then asks the coder alone.
    """

    nonnegative: bool
    sparsity: int = 0  # s, the largest number of nonzeros for OMP; 0 for the LASSO
    lam: float = 0.0  # penalty weight of the LASSO; 0 for OMP
    tol: float = TOL  # the largest relative duality gap of a code of the LASSO

    @classmethod
    def of(cls, lam: Any, sparsity: Any, nonnegative: Any, where: str) -> Self:
        """Check the options of a caller who gives either lam or sparsity."""
        if (lam is None) == (sparsity is None):
            raise ValueError(
                f"{where}: expected one of lam and sparsity, got lam={lam}, sparsity={sparsity}"
            )
        if lam is None:
            return cls.of_omp(sparsity, nonnegative, where)
        return cls(checks.as_bool(nonnegative, "nonnegative", where), lam=as_lam(lam, where))

    @classmethod
    def of_omp(cls, sparsity: Any, nonnegative: Any, where: str) -> Self:
        """Check the options of a caller who gives sparsity."""
        nonnegative = checks.as_bool(nonnegative, "nonnegative", where)
        return cls(nonnegative, checks.as_index(sparsity, "sparsity", where, least=1))

    def check_size(self, m: int, d: int, where: str) -> None:
        """Raise ValueError if sparsity exceeds m or d."""
        if (s := self.sparsity) > (most := min(m, d)):
            raise ValueError(
                f"{where}: sparsity is {s}; expected at most {most}, the smaller of m and d"
            )

    def config(self) -> dict[str, Any]:
        """The entries in the config of a file."""
        return ({"lam": self.lam} if self.lam else {"sparsity": self.sparsity}) | self.signs()

    def signs(self) -> dict[str, Any]:
        """The entry of non-negative codes, which older files lack."""
        return {"nonnegative": True} if self.nonnegative else {}

    def coded(self, D: np.ndarray, signals: Signals) -> Coded:
        """The codes of signals near 1 with unit atoms D, (m, d)."""
        Y, V, options = signals.Y, signals.V, {"tol": self.tol, "nonnegative": self.nonnegative}
        lam = scaled_penalty(self.lam, signals.exponent + signals.scale)
        if self.sparsity:
            X = match(D, Y, self.sparsity, V, self.nonnegative)
        elif V is None:
            X = lasso_of_rows(D, Y, np.full((1, 1), lam), **options).x
        else:
            root = np.sqrt(V)
            X = np.asarray(_weighted(D, root * Y, root, np.asarray(lam, D.dtype), **options))
        R = Y - X @ D.T
        return Coded(X, R, signals.errors(R), lam * float(np.sum(np.abs(X))))

    def admit(self, X: np.ndarray) -> np.ndarray:
        """The admissible codes nearest to X."""
        return np.maximum(X, 0) if self.nonnegative else X

    def duplicates(self, D: np.ndarray, use: np.ndarray, parallel: float = PARALLEL) -> np.ndarray:
        """Indices of atoms parallel to a more used atom, or to an equally used earlier atom.

        If codes are non-negative, an atom and its negative are not parallel.
        """
        G = D.T @ D
        G = (G if self.nonnegative else np.abs(G)) > parallel
        order = np.argsort(-use, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return np.flatnonzero((G & (rank[None, :] < rank[:, None])).any(1))


@partial(jax.jit, static_argnames=("tol", "nonnegative"))
def _weighted(D: Array, Y: Array, root: Array, lam: Array, **options: Any) -> Array:
    return jax.vmap(lambda y, w: lasso(w[:, None] * D, y, lam, **options).x)(Y, root)
