"""The alternation of K-SVD, MOD and sparse K-SVD: codes of all signals, then atoms, and again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Key
from unrolled._matching import match
from unrolled._threads import one_thread
from unrolled.dictionaries import Dictionary, dense
from unrolled.dictionary_learning._keeper import Arrays, Keeper, Progress, text_of
from unrolled.dictionary_learning._learned import Learned
from unrolled.dictionary_learning._signals import (
    Signals,
    as_signals,
    atom_count,
    distinct,
    duplicates,
    generator,
    start_atoms,
)


class Fitted(NamedTuple):
    """Atoms and codes of the signals: Y = X' D' + R, row by row."""

    D: np.ndarray  # (m, d)
    X: np.ndarray  # (d, n), the codes in columns
    R: np.ndarray  # (n, m)


class Atoms:
    """Which atoms are admissible, and how a sweep updates them: here any unit atoms.

    A subclass that keeps more than the atoms themselves says what.
    """

    def __init__(self, update: Callable[[Signals, Fitted], None]):
        self.update = update  # in place; it leaves alone the atoms that no code uses
        self.config: dict[str, Any] = {}  # what a checkpoint must agree in

    def admit(self, D: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Admissible atoms near those given, (m, k), which will be the atoms `which`."""
        return D

    def arrays(self) -> Arrays:
        """What a checkpoint keeps beside D and X."""
        return {}

    def restore(self, arrays: Arrays) -> None:
        """Take what `arrays` gave."""

    def resume(self, D: Any) -> np.ndarray:
        """The atoms of a result, (m, d)."""
        return np.asarray(dense(D))

    def settled(self, D: np.ndarray) -> np.ndarray:
        """The atoms as a result would give them back: D at the start and at the end of a sweep."""
        return D

    def dictionary(self, D: np.ndarray, dtype: np.dtype) -> Dictionary:
        """D of the result."""
        return jnp.asarray(D, dtype)


class Options(NamedTuple):
    """The arguments that all alternations share."""

    d: int
    sparsity: int
    sweeps: int
    key: Key
    start: str | Dictionary
    weights: ArrayLike | None
    mask: ArrayLike | None
    progress: Progress | None
    resume: Learned | None
    checkpoint: str | Path | None


def alternate(
    where: str,
    Y: ArrayLike,
    options: Options,
    atoms: Atoms,
) -> Learned:
    """Sweeps of OMP and of updates of the atoms.

    A code of the sweep before stays where OMP finds none with a smaller error, so that a sweep
    raises the objective only where it replaces an atom.

    Args:
        where: the name of the caller.
        Y: (signals, m).
        options: as the caller got them.
        atoms: what atoms there are, and their update.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`.
    """
    signals = as_signals(Y, where, options.weights, options.mask)
    d, sparsity, sweeps = _sizes(signals, options, where)
    key = _checks.as_key(options.key, where)
    config = _config(where, signals, options, key, atoms)
    keeper = Keeper(options.checkpoint, config, options.resume, options.progress)
    if keeper.arrays is not None:
        fitted = _fitted(signals, keeper.arrays["D"], keeper.arrays["X"].T)
        atoms.restore(keeper.arrays)
    elif options.resume is not None:
        fitted = _resumed(signals, options.resume, d, atoms, where)
    else:
        D = start_atoms(options.start, signals, d, generator(key, 0), where)
        D = atoms.settled(atoms.admit(D, np.arange(d)))
        fitted = _fitted(signals, D, np.zeros((d, len(signals.Y))))
    for step in keeper.steps(sweeps):
        with one_thread():  # but for OMP: factorisations of few rows
            rng = generator(key, step)
            fitted, replaced = _sweep(signals, fitted, sparsity, atoms, rng)
        kept = {"D": fitted.D, "X": fitted.X.T, **atoms.arrays()}
        keeper.add(signals.objective(fitted.R), replaced, kept, last=step == sweeps)
    X = jnp.asarray(np.ldexp(fitted.X.T, signals.exponent), signals.dtype)
    objective = signals.objective(fitted.R)
    return Learned(atoms.dictionary(fitted.D, signals.dtype), X, objective, tuple(keeper.history))


def _sizes(signals: Signals, options: Options, where: str) -> tuple[int, int, int]:
    n, m = signals.Y.shape
    d = atom_count(options.d, n, where)
    sparsity = _checks.as_index(options.sparsity, "sparsity", where, least=1)
    if sparsity > min(m, d):
        raise ValueError(
            f"{where}: sparsity is {sparsity}; expected at most {min(m, d)}, the smaller of m and d"
        )
    return d, sparsity, _checks.as_index(options.sweeps, "sweeps", where)


def _config(
    where: str, signals: Signals, options: Options, key: jax.Array, atoms: Atoms
) -> dict[str, Any]:
    """What the file of a checkpoint must agree in; only the method where there is none."""
    if options.checkpoint is None:
        return {"method": where}
    return {
        "method": where,
        "d": options.d,
        "sparsity": options.sparsity,
        "key": text_of(key),
        "signals": signals.fingerprint(),
        "exponent": signals.exponent,
        "start": text_of(options.start),
        **atoms.config,
    }


def _fitted(signals: Signals, D: np.ndarray, X: np.ndarray) -> Fitted:
    D, X = (np.array(value, signals.Y.dtype, order="C") for value in (D, X))
    return Fitted(D, X, signals.Y - X.T @ D.T)


def _resumed(signals: Signals, resume: Learned, d: int, atoms: Atoms, where: str) -> Fitted:
    """Where a result ended."""
    (n, m), codes = signals.Y.shape, resume.X
    other = isinstance(codes, tuple | None) or codes.shape != (n, d)
    if other or resume.D.shape != (m, d):  # type: ignore[union-attr]
        raise ValueError(f"{where}: resume is not of {d} atoms and these {n} signals")
    X = np.ldexp(np.asarray(codes, signals.Y.dtype), -signals.exponent)
    return _fitted(signals, atoms.resume(resume.D), X.T)


def _sweep(
    signals: Signals,
    fitted: Fitted,
    sparsity: int,
    atoms: Atoms,
    rng: np.random.Generator,
) -> tuple[Fitted, int]:
    """Codes, then new atoms for duplicates and unused ones, then the update of the others."""
    fitted = _coded(signals, fitted, sparsity)
    D, X, R = fitted
    use = np.count_nonzero(X, 1)
    again = duplicates(D, use)
    R += X[again].T @ D[:, again].T
    X[again] = 0
    use[again] = 0
    dead = np.flatnonzero(use == 0)
    replace(signals, fitted, dead, atoms, rng)
    atoms.update(signals, fitted)
    return _fitted(signals, atoms.settled(D), X), len(dead)


def _coded(signals: Signals, old: Fitted, sparsity: int) -> Fitted:
    """The codes of OMP, or the old ones where their error is smaller."""
    X = match(old.D, signals.Y, sparsity, signals.V)
    R = signals.Y - X @ old.D.T
    worse = signals.errors(R) > signals.errors(old.R)
    X[worse], R[worse] = old.X[:, worse].T, old.R[worse]
    return Fitted(old.D, np.ascontiguousarray(X.T), R)


def replace(
    signals: Signals, fitted: Fitted, which: np.ndarray, atoms: Atoms, rng: np.random.Generator
) -> None:
    """Put the signals that are represented worst in place of some atoms, which no code uses."""
    if not len(which):
        return
    errors = signals.errors(fitted.R)
    worst = np.argsort(-errors, kind="stable")[: 10 * len(which)]
    worst = worst[errors[worst] > 0]
    candidates = signals.filled(fitted.R)[worst] if signals.V is not None else signals.Y[worst]
    others = np.delete(fitted.D, which, 1)
    fitted.D[:, which] = atoms.admit(distinct(candidates, others, len(which), rng).T, which)
