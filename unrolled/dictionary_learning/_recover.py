"""Learning that finds planted atoms again: online learning whose atoms compete for their place."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from unrolled import training
from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Key, checked
from unrolled.dictionaries import Dictionary
from unrolled.dictionary_learning import _learning
from unrolled.dictionary_learning._coder import Coder
from unrolled.dictionary_learning._learning import Learned, Options, Progress
from unrolled.dictionary_learning._stochastic import Stage, Stream

__all__ = ["recover"]


# We chose these numbers on planted dictionaries with 500 atoms (benchmarks/recovery.py).
_FIRST, _LAST = 5.0, 0.5  # the first lam, and lam of the last fifth, in units of lam
_FALLING, _REPLACING = 0.5, 0.8  # the shares of the batches in which lam falls, atoms are replaced
_RARE, _TWINS = 0.2, 0.8  # see `Stage`
_TOL = 1e-2  # relative duality gap of a code
_BETA, _LATE = 0.7, 0.9  # the factor of the past while atoms are replaced, and later


@checked
def recover(
    Y: ArrayLike,
    d: int,
    *,
    lam: float,
    steps: int = 750,
    batch: int | None = None,
    nonnegative: bool = False,
    mask: ArrayLike | None = None,
    key: Key = 0,
    start: str | Dictionary = "data",
    validation: Any = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    **run: Unpack[training.Reports],
) -> Learned:
    r"""Learn a dictionary from few signals per atom, by online learning that replaces atoms.

    Alternating methods stop at dictionaries in which some atoms are mixtures of two true atoms and
    some are twins. `recover` takes the steps of `online` for random batches, with three changes:

    - lam falls linearly from 5 lam to lam in the first half of the steps: with a large lam a code
      has few atoms, and these are found first. In the last fifth it is lam / 2: smaller penalties
      shrink codes less, and the atoms fit the signals better.
    - In the first four fifths of the steps, an atom is replaced by the signal that is represented
      worst if its sum of x^2 is below a fifth of the mean, or if its inner product with a more used
      atom is above 0.8. Hundreds of atoms may be replaced while the signals pass once.
    - In these steps the past counts little (the factor beta is 0.7 for each batch). In the last
      fifth beta is 0.9, and only atoms without use, or nearly parallel to another, are replaced.

    Args:
        Y: (n, m), signals in rows, with n at least d; may be a memmap, of which each step reads its
            batch.
        d: number of atoms.
        lam: penalty weight; see above for the steps.
        steps: number of batches.
        batch: number of signals in a batch; None takes the smaller of d and n.
        mask: (n, m) bool, False where an entry of Y is missing, and may be NaN; None if Y has all.
        validation: held-out signals, as in `online`, with lam / 2. If the least mean is `patience`
            batches old after the first half of the steps, the last fifth of the steps comes next,
            and `steps` is the largest number of steps.
        nonnegative, key, start, progress, checkpoint, run: as in `online`.

    Returns:
        Learned, as from `online`, with X None; `objective` is the mean of the LASSO objective for
        lam / 2 over the signals of the last fifth of the steps, or over `validation`.

    Raises:
        TypeError, ValueError, CheckpointError: as in `online`; also if there are fewer signals than
            atoms.

    Reference: Mairal, Bach, Ponce, Sapiro (2009, 2010) for the steps. Not claimed: that the atoms
    are found. With fewer than about five signals per atom they often are not
    (benchmarks/recovery.py).

    Example:
        >>> rng, D = np.random.default_rng(0), np.array(ur.gaussian(1, 10, 20))
        >>> X = rng.random((400, 20)) * (rng.random((400, 20)).argsort(1) < 2)
        >>> learn = ur.dictionary_learning.recover
        >>> found = learn((X @ D.T).astype("float32"), 20, lam=0.05, steps=200, nonnegative=True)
        >>> bool(np.mean((D.T @ found.D).max(1) > 0.95) > 0.8)
        True
    """
    where = "recover"
    Y = Y if isinstance(Y, np.memmap) else np.asarray(checks.as_float(Y, "Y", where))
    if Y.ndim != 2:
        raise ValueError(f"{where}: Y has shape {Y.shape}; expected (n, m)")
    known = None if mask is None else np.asarray(mask)
    if known is not None and (known.dtype != bool or known.shape != Y.shape):
        got = f"{known.dtype} of shape {known.shape}"
        raise ValueError(f"{where}: mask is {got}; expected bool of shape {Y.shape}")
    d = _learning.atom_count(d, len(Y), where)
    steps = checks.as_index(steps, "steps", where, least=1)
    size = min(d, len(Y)) if batch is None else checks.as_index(batch, "batch", where, least=1)
    key = checks.as_key(key, where)
    reports = training.Run.of(where, run)
    options = Options(None, key, progress, None, checkpoint, start, run=reports)
    batches = _batches(Y, known, min(size, len(Y)), steps, _learning.generator(key, 0))
    coder = Coder.of(lam, None, nonnegative, where)._replace(tol=_TOL)
    return _learning.learn(_Recovering(batches, d, coder, steps, validation, options), options)


def _batches(
    Y: Any, known: np.ndarray | None, size: int, steps: int, rng: np.random.Generator
) -> Iterator[Any]:
    """Batches of random order; each signal is drawn once before any is drawn again."""
    left = np.empty(0, int)
    for _ in range(steps):
        while len(left) < size:
            left = np.concatenate([left, rng.permutation(len(Y))])
        rows, left = np.sort(left[:size]), left[size:]
        batch = np.asarray(Y[rows], np.result_type(Y.dtype, np.float32))
        yield batch if known is None else (batch, known[rows])


class _Recovering(Stream):
    """Online learning in two stages, of a known number of batches."""

    where = "recover"

    def __init__(self, batches: Any, d: int, coder: Coder, n: int, held: Any, options: Options):
        super().__init__(batches, d, coder, 0.0, held, options)
        self.n, self.skipped = n, 0  # the number of steps, and of those that are left out

    def config(self) -> dict[str, Any]:
        return super().config() | {"steps": self.n}

    def stage(self, step: int) -> Stage:
        return stage(step + self.skipped, self.n, self.coder)

    def last_stage(self) -> Stage:
        return stage(self.n, self.n, self.coder)

    def is_done(self, step: int) -> bool:
        return step + self.skipped >= self.n

    def evaluated(self, step: int, value: float, D: Any) -> None:
        super().evaluated(step, value, D)
        last = math.ceil(_REPLACING * self.n)  # the last step in which atoms are replaced
        if _FALLING * self.n < step < last and self.held.is_old(step):
            self.skipped = last - step


def stage(step: int, steps: int, coder: Coder) -> Stage:
    """What step 1, ..., `steps` changes."""
    past = (step - 1) / steps
    lam = coder.lam * max(1.0, _FIRST + (1 - _FIRST) * past / _FALLING)
    if past < _REPLACING:
        return Stage(coder._replace(lam=lam), _BETA, _RARE, _TWINS)
    return Stage(coder._replace(lam=_LAST * lam), _LATE)
