"""The alternation of K-SVD, MOD and sparse K-SVD: codes of all signals, then atoms, and again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled import _checks, _matching, _threads
from unrolled._checks import ArrayLike
from unrolled.dictionaries import Operator, dense
from unrolled.dictionary_learning import _signals
from unrolled.dictionary_learning._learning import Arrays, Keeper, Learned, Method, Options, text_of
from unrolled.dictionary_learning._signals import Signals


class Fitted(NamedTuple):
    """Atoms and codes of the signals: Y = X' D' + R, row by row."""

    D: np.ndarray  # (m, d)
    X: np.ndarray  # (d, n), the codes in columns
    R: np.ndarray  # (n, m)


class Alternation(Method):
    """Sweeps of OMP and of updates of the atoms: here any unit atoms.

    A code of the sweep before stays where OMP finds none with a smaller error, so that a sweep
    raises the objective only where it replaces an atom. A subclass says which atoms are admissible;
    one that keeps more than the atoms themselves says what.

    Args:
        where: the name of the caller.
        Y, d, sparsity, options: as the caller got them.
        update: of the atoms, in place; it leaves alone those that no code uses.
    """

    def __init__(
        self,
        where: str,
        Y: ArrayLike,
        d: int,
        sparsity: int,
        options: Options,
        update: Callable[[Signals, Fitted], None],
    ):
        self.where, self.first, self.update = where, options.start, update
        self.signals = _signals.as_signals(Y, where, options.weights, options.mask)
        n, m = self.signals.Y.shape
        self.d = _signals.atom_count(d, n, where)
        self.sparsity = _checks.as_index(sparsity, "sparsity", where, least=1)
        if self.sparsity > (most := min(m, self.d)):
            raise ValueError(
                f"{where}: sparsity is {sparsity}; expected at most {most}, the smaller of m and d"
            )

    def admit(self, D: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Admissible atoms near those given, (m, k), which will be the atoms `which`."""
        return D

    def settled(self, D: np.ndarray) -> np.ndarray:
        """The atoms as a result would give them back: D at the start and at the end of a sweep."""
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
            "sparsity": self.sparsity,
            "signals": self.signals.fingerprint(),
            "exponent": self.signals.exponent,
            "start": text_of(self.first),
        }

    def start(self, rng: np.random.Generator) -> Fitted:
        D = _signals.start_atoms(self.first, self.signals, self.d, rng, self.where)
        D = self.settled(self.admit(D, np.arange(self.d)))
        return self.fitted(D, np.zeros((self.d, len(self.signals.Y))))

    def resumed(self, resume: Learned) -> Fitted:
        (n, m), codes = self.signals.Y.shape, resume.X
        other = isinstance(codes, tuple | None) or codes.shape != (n, self.d)
        if other or resume.D.shape != (m, self.d):
            raise ValueError(f"{self.where}: resume is not of {self.d} atoms and these {n} signals")
        X = np.ldexp(np.asarray(codes, self.signals.Y.dtype), -self.signals.exponent)
        return self.fitted(self.atoms_of(resume.D), X.T)

    def restored(self, arrays: Arrays, keeper: Keeper) -> Fitted:
        return self.fitted(arrays["D"], arrays["X"].T)

    def arrays(self, state: Fitted) -> Arrays:
        return {"D": state.D, "X": state.X.T}

    @_threads.one_thread()  # but for OMP: factorisations of few rows
    def sweep(
        self, state: Fitted, step: int, rng: np.random.Generator
    ) -> tuple[Fitted, float, int]:
        """Codes, then new atoms for duplicates and unused ones, then the update of the others."""
        fitted = self.coded(state)
        D, X, R = fitted
        use = np.count_nonzero(X, 1)
        again = _signals.duplicates(D, use)
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
        return Fitted(D, X, self.signals.Y - X.T @ D.T)

    def coded(self, old: Fitted) -> Fitted:
        """The codes of OMP, or the old ones where their error is smaller."""
        signals = self.signals
        X = _matching.match(old.D, signals.Y, self.sparsity, signals.V)
        R = signals.Y - X @ old.D.T
        worse = signals.errors(R) > signals.errors(old.R)
        X[worse], R[worse] = old.X[:, worse].T, old.R[worse]
        return Fitted(old.D, np.ascontiguousarray(X.T), R)

    def replace(self, fitted: Fitted, which: np.ndarray, rng: np.random.Generator) -> None:
        """Put the signals that are represented worst in place of atoms that no code uses."""
        if not len(which):
            return
        signals, errors = self.signals, self.signals.errors(fitted.R)
        worst = np.argsort(-errors, kind="stable")[: 10 * len(which)]
        worst = worst[errors[worst] > 0]
        candidates = signals.filled(fitted.R)[worst] if signals.V is not None else signals.Y[worst]
        others = np.delete(fitted.D, which, 1)
        fitted.D[:, which] = self.admit(
            _signals.distinct(candidates, others, len(which), rng).T, which
        )
