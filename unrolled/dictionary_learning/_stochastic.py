"""Learning from a stream of batches, in constant memory."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
import numpy as np

from unrolled import training
from unrolled._base import checks
from unrolled._base.doors import Key, checked
from unrolled._base.files import CheckpointError
from unrolled._base.threads import one_thread
from unrolled.dictionaries import Dictionary
from unrolled.dictionary_learning import _learning
from unrolled.dictionary_learning._coder import Coder
from unrolled.dictionary_learning._learning import (
    Arrays,
    Keeper,
    Learned,
    Method,
    Options,
    Progress,
    Signals,
    Step,
)

__all__ = ["online"]


# The share of nonzeros below which products of codes are faster by the nonzeros than by BLAS.
_FEW = 0.02


class Sums(NamedTuple):
    """The sums over past signals that `online` keeps, weighted by age, in float64.

    For any D and the past codes x, the mean of the objective over the past signals is
    (terms + tr(D A D') / 2 - tr(D' B)) / weight.
    """

    D: np.ndarray  # (m, d)
    A: np.ndarray  # (d, d) sum of x x'
    B: np.ndarray  # (m, d) sum of y x'
    terms: np.ndarray  # () sum of norm(y)^2 / 2 + lam norm(x, 1); lam is 0 for codes of OMP
    weight: np.ndarray  # () sum of the weights of the signals
    exponent: np.ndarray  # () A, B and terms, times 2^(2 exponent), are in the signals' units


class Stage(NamedTuple):
    """How a batch is coded, how it counts, and which atoms are replaced after the batch."""

    coder: Coder
    beta: float  # the factor of the past
    rare: float = 0.0  # atoms are replaced up to this share of the mean sum of x^2
    parallel: float = _learning.PARALLEL  # and above this inner product with another atom


def absorb(
    sums: Sums, signals: Signals, stage: Stage, rng: np.random.Generator
) -> tuple[Sums, float, int]:
    """The sums after a batch, its mean objective before the update, and the number of new atoms."""
    sums, beta = _rescaled(sums, signals), stage.beta
    codes = stage.coder.coded(sums.D.astype(signals.Y.dtype), signals)
    X, target = codes.X, signals.target(codes.R)
    terms = signals.top * np.sum(np.square(target, dtype=float)) / 2 + codes.penalty
    # The unit of the batch relative to the unit of the sums; any unit is valid for a batch of
    # zeros.
    unit = math.ldexp(1, min(0, 2 * (signals.exponent - int(sums.exponent)) + signals.scale))
    A = beta * sums.A + unit * signals.top * _products(X)
    B = beta * sums.B + unit * signals.top * (target.T @ X).astype(float)
    D, A, B = _descend_atoms(sums.D, A, B)
    use = np.diag(A)
    twins = stage.coder.duplicates(D, use, stage.parallel)
    fresh = np.union1d(twins, np.flatnonzero(use <= stage.rare * use.mean()))
    if len(fresh):
        D[:, fresh] = _learning.fresh_atoms(D, fresh, target.astype(float), codes.errors, rng).T
        A[fresh], A[:, fresh], B[:, fresh] = 0, 0, 0
    terms, weight = beta * sums.terms + unit * terms, beta * sums.weight + len(X)
    sums = Sums(D, A, B, terms, weight, sums.exponent)
    return sums, signals.in_units(codes.objective), len(fresh)


def _products(X: np.ndarray) -> np.ndarray:
    """X'X in float64; by the nonzeros if they are few: BLAS would multiply zeros."""
    if np.count_nonzero(X) > _FEW * X.size:
        return (X.T @ X).astype(float)
    from scipy.sparse import csr_array  # most imports of this file do without

    codes = csr_array(X, dtype=float)
    return (codes.T @ codes).toarray()


def _rescaled(sums: Sums, signals: Signals) -> Sums:
    """The sums in units of the largest weighted signals so far, including this batch."""
    exponent, new = int(sums.exponent), signals.exponent + (signals.scale + 1) // 2
    if not signals.Y.any() or not (new > exponent or sums.terms == 0):
        return sums
    unit = np.ldexp(1.0, 2 * (exponent - new)) if sums.terms else 1.0
    D, A, B, terms, weight, _ = sums
    return Sums(D, unit * A, unit * B, unit * terms, weight, np.array(new))


def _descend_atoms(
    D: np.ndarray, A: np.ndarray, B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit atoms after one pass of block coordinate descent over the atoms, with their A and B."""
    atoms, C = np.array(D.T, order="C"), np.ascontiguousarray(B.T)
    used = np.flatnonzero(np.diag(A) > 0)
    for j in used:
        u = atoms[j] + (C[j] - A[j] @ atoms) / A[j, j]
        atoms[j] = u / max(1, math.sqrt(u @ u))
    norms = np.linalg.norm(atoms, axis=1)
    dead = norms == 0
    norms[dead] = 1
    A, B = norms[:, None] * A * norms, B * norms
    A[dead], A[:, dead] = 0, 0
    return (atoms / norms[:, None]).T, A, B


class HeldOut:
    """Signals that tell which atoms are the best, and when they are old."""

    def __init__(self, batch: Any, run: training.Run, where: str):
        if batch is None and run.patience is not None:
            raise ValueError(f"{where}: patience needs validation, signals that are held out")
        self.signals = None if batch is None else _as_batch(batch, where, "validation", False)
        self.every, self.patience = run.evaluate_every, run.patience
        self.D: np.ndarray | None = None  # the atoms with the least objective
        self.least, self.step = math.inf, 0

    def config(self) -> dict[str, Any]:
        if self.signals is None:
            return {}
        signals = f"{self.signals.fingerprint()} times 2^{self.signals.exponent}"
        run = {"evaluate_every": self.every, "patience": self.patience}
        return {"validation": signals} | run

    def see(self, step: int, value: float, D: Any) -> None:
        """Keep the atoms if they are the best so far."""
        if value < self.least:
            self.least, self.step, self.D = value, step, D

    def is_old(self, step: int) -> bool:
        """Whether a step is an evaluation at which the best atoms are `patience` steps old."""
        old = self.patience is not None and step - self.step >= self.patience
        return old and step % self.every == 0


def mean_objective(sums: Sums) -> float:
    """The mean objective over the past, in the units of the signals."""
    D, A, B, terms, weight, exponent = sums
    value = (terms + np.sum((D.T @ D) * A) / 2 - np.sum(D * B)) / max(float(weight), 1.0)
    return _learning.times_two_to(2 * int(exponent), value)


@checked
def online(
    batches: Iterable[Any],
    d: int,
    *,
    lam: float | None = None,
    sparsity: int | None = None,
    key: Key = 0,
    start: str | Dictionary = "data",
    forgetting: float = 3.0,
    nonnegative: bool = False,
    validation: Any = None,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
    **run: Unpack[training.Reports],
) -> Learned:
    r"""Online dictionary learning (Mairal et al.): one pass over a stream, in constant memory.

    For every batch, `online` computes

    .. math:: x = \arg\min_x \tfrac12 \|y - D x\|^2 + lam \|x\|_1, \quad
        A \leftarrow \beta A + \textstyle\sum x x', \quad B \leftarrow \beta B + \sum y x', \quad
        d_j \leftarrow \Pi \big( d_j + (b_j - D a_j) / A_{jj} \big).

    Here :math:`\Pi` is the projection on the unit ball. The factor in batch t is
    :math:`\beta = (1 - 1/t)^\rho`, so that batch s has the weight (s / t)^rho after batch t. Atoms
    with norms below 1 are then scaled to norm 1, together with A and B. Atoms that no code uses,
    and atoms that are nearly parallel to another atom, are replaced by the worst represented
    signals of the batch.

    Args:
        batches: an iterable of signals (n, m), or of pairs of signals and weights of their squared
            errors, (n,) or (n, m). A bool array of weights is a mask; signals may be NaN where the
            mask is False. The batches may differ in length. A batch whose weights are all zero is
            skipped. For several passes over the signals, repeat the batches.
        d: number of atoms.
        lam: penalty weight.
        sparsity: s, in 1..min(m, d), in place of lam: x is then the code of OMP with at most s
            nonzeros, and the objective is 1/2 norm(y - D x)^2.
        key: a typed key, or a seed, for the start and for replacements.
        start: "data", which takes d of the first signals; "dct"; or a D, (m, d).
        forgetting: rho, at least 0; with 0, all batches have the same weight. The early codes come
            from poor atoms and should be forgotten: rho = 3 works well for patches of photographs
            and for planted dictionaries.
        nonnegative: whether codes are non-negative. The entries of atoms may have either sign.
        validation: held-out signals, or a pair with weights, as in `batches`. After every
            `evaluate_every` batches (50 by default) the `validation` of a `Step` is the mean
            objective of these signals. The function stops at the first evaluation at which the
            least mean is `patience` batches old.
        progress: called as `progress(step)` after every batch, with a `Step`.
        resume: a result to continue from. If `batches` holds the batches that follow, and the other
            arguments are the same, the result is bit-identical to the result of an uninterrupted
            stream.
        checkpoint: a file (.npz) in which the function saves its state after the last batch, and
            after earlier batches at most once in 5 seconds. If the file exists, the same call, with
            the stream from its beginning, skips the batches that the file covers and continues. If
            one of these batches has changed, the call raises CheckpointError.
        run: options of `training.Run`: `evaluate_every` and `patience`, see `validation`, and
            `callbacks` and `log`: after every batch, each callback is called as
            `callback(step, D)`, and a line of JSON with the `Step` is appended to the file `log`.

    Returns:
        Learned, with X None. `objective` is the mean of the objective over the past signals,
        weighted by age, for D and the codes found in the past; for the LASSO it is an upper bound
        on the mean for the best codes. With `validation`, D has the least mean objective of all
        evaluations, and `objective` is this mean. The objective of a step is that of its batch
        before the update of D, i.e. on unseen signals. `state` holds the sums.

    Raises:
        TypeError: batches are traced, or not real numbers.
        ValueError: the stream ends before d signals (with start "data") or before the first signal,
            shapes of batches differ, NaN occur without a mask, not exactly one of lam and sparsity
            is given, lam is not above 0, sparsity is out of range, forgetting is below 0, or
            patience is given without validation.
        CheckpointError: the file is damaged, or comes from another call.

    Warns:
        UserWarning: lam is so large that all codes are zero.

    With weights, `online` codes the weighted signals. The atoms then fit v y + (1 - v) D x, where v
    are the weights divided by the largest weight of the batch. This fit also lowers the objective.
    A batch counts in proportion to its largest weight. Weights may have any scale: a common factor
    of the weights and lam scales the objective and changes nothing else.

    Reference: Mairal, Bach, Ponce, Sapiro (2009, 2010).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (600, 12), 2) @ D.T
        >>> learned = ur.dictionary_learning.online(jnp.split(Y, 20), 12, lam=0.1, key=0)
        >>> learned.D.shape, learned.history[-1].objective < learned.history[0].objective
        ((8, 12), True)
    """
    reports = training.Run.of("online", run)
    options = Options(None, key, progress, resume, checkpoint, start, run=reports)
    coder = Coder.of(lam, sparsity, nonnegative, "online")
    return _learning.learn(Stream(batches, d, coder, forgetting, validation, options), options)


class _State(NamedTuple):
    """The sums and the identity of the stream so far."""

    sums: Sums
    dtype: Any  # dtype of the first batch; None before the first batch
    seen: "Seen"


class Stream(Method):
    """Online learning, where a sweep is one batch."""

    where = "online"

    def __init__(
        self,
        batches: Iterable[Any],
        d: int,
        coder: Coder,
        forgetting: float,
        validation: Any,
        options: Options,
    ):
        where, self.coder, self.options = self.where, coder, options
        self.d = checks.as_index(d, "d", where, least=1)
        self.held = HeldOut(validation, options.run, where)
        self.forgetting = checks.as_number(forgetting, "forgetting", where)
        if not 0 <= self.forgetting < math.inf:
            raise ValueError(
                f"{where}: forgetting must be non-negative and finite, got {forgetting}"
            )
        parts = (_as_batch(batch, where) for batch in batches)
        self.stream: Iterator[Signals] = (part for part in parts if part.top)
        self.batch: Signals  # of the sweep

    def config(self) -> dict[str, Any]:
        own = {"d": self.d, "start": _learning.text_of(self.options.start)}
        own |= {"forgetting": float(self.forgetting)} | self.coder.config()
        return own | self.held.config()

    def start(self, rng: np.random.Generator) -> _State:
        sums, self.stream = _start(self.stream, self.d, self.options.start, rng, self.where)
        return _State(self.fitting(sums), None, Seen())

    def fitting(self, sums: Sums) -> Sums:
        """The sums, if the arguments fit their D."""
        (m, d), held = sums.D.shape, self.held.signals
        self.coder.check_size(m, d, self.where)
        if held is not None and held.Y.shape[1] != m:
            raise ValueError(
                f"{self.where}: validation has signals of length {held.Y.shape[1]}; expected {m}"
            )
        return sums

    def resumed(self, resume: Learned) -> _State:
        if not isinstance(resume.state, Sums) or resume.state.D.shape[1] != self.d:
            raise ValueError(f"online: resume is not a result of `online` with {self.d} atoms")
        self.judge(resume.history, np.asarray(resume.D, float))
        return _State(self.fitting(resume.state), resume.D.dtype, Seen())

    def judge(self, history: Iterable[Step], best: Any) -> None:
        """Repeat the evaluations of earlier steps, the least of them with the atoms `best`."""
        for step in history:
            if step.validation is not None and self.held.signals is not None:
                self.evaluated(step.step, step.validation, best)

    def restored(self, arrays: Arrays, keeper: Keeper) -> _State:
        self.judge(keeper.history, arrays.get("best"))
        sums, dtype = Sums(*(arrays[name] for name in Sums._fields)), np.dtype(str(arrays["dtype"]))
        earlier = 0 if self.options.resume is None else len(self.options.resume.history)
        passed = len(keeper.history) - earlier
        return _State(sums, dtype, _passed_over(self.stream, passed, arrays, keeper.path))

    def arrays(self, state: _State) -> Arrays:
        texts = {"dtype": str(state.dtype), "first": state.seen.first, "all": state.seen.all}
        best = {} if self.held.D is None else {"best": self.held.D}
        return state.sums._asdict() | texts | best

    def steps(self, keeper: Keeper, sweeps: None) -> Iterator[int]:
        step = len(keeper.history)
        while not self.is_done(step) and (batch := next(self.stream, None)) is not None:
            self.batch, step = batch, step + 1
            yield step

    def is_done(self, step: int) -> bool:
        """Whether a step is the last, although the stream has more batches."""
        return self.held.is_old(step)

    def stage(self, step: int) -> Stage:
        """What the batch of a step changes."""
        return Stage(self.coder, (1 - 1 / step) ** self.forgetting)

    def held_out(self, state: _State, step: int) -> float | None:
        signals, D = self.held.signals, state.sums.D
        if signals is None or step % self.held.every and not self.is_done(step):
            return None
        codes = self.last_stage().coder.coded(D.astype(signals.Y.dtype), signals)
        value = signals.in_units(codes.objective)
        self.evaluated(step, value, D)
        return value

    def last_stage(self) -> Stage:
        """How held-out signals are coded."""
        return self.stage(1)

    def evaluated(self, step: int, value: float, D: Any) -> None:
        """Take note of an evaluation."""
        self.held.see(step, value, D)

    def chosen(self, last: Learned) -> Learned:
        best = self.held.D
        if best is None:
            return last
        return last.replace(D=jnp.asarray(best, last.D.dtype), objective=self.held.least)

    @one_thread()  # the threads that compute the codes are enough
    def sweep(self, state: _State, step: int, rng: Any) -> tuple[_State, float, int]:
        (sums, dtype, seen), signals = state, self.batch
        if signals.Y.shape[1] != len(sums.D):
            raise ValueError(
                f"{self.where}: batch {step} has signals of length {signals.Y.shape[1]}; expected "
                f"{len(sums.D)}"
            )
        sums, objective, replaced = absorb(sums, signals, self.stage(step), rng)
        seen = seen if self.options.checkpoint is None else seen.then(signals)
        return _State(sums, signals.dtype if dtype is None else dtype, seen), objective, replaced

    def warn(self, state: _State) -> None:
        """Warn if all codes are zero."""
        if self.coder.lam and state.sums.terms > 0 and not state.sums.A.any():
            checks.warn(
                f"{self.where}: all codes are zero, so D is made of signals: lam={self.coder.lam} "
                "is not below max abs(D'y); try a smaller lam"
            )

    def result(self, state: _State) -> Learned:
        sums = state.sums
        return Learned(jnp.asarray(sums.D, state.dtype), None, mean_objective(sums), (), sums)


def _as_batch(batch: Any, where: str, name: str = "Y", unknown: bool = True) -> Signals:
    """Check a batch of the stream; `unknown` allows a batch without known entries."""
    if not isinstance(batch, tuple):
        return _learning.weighted_signals(batch, where, name=name)
    if len(batch) != 2:
        raise ValueError(f"{where}: a batch has {len(batch)} parts; expected Y or (Y, weights)")
    Y, weights = batch
    given: dict[str, Any] = {"mask" if np.asarray(weights).dtype == bool else "weights": weights}
    return _learning.weighted_signals(Y, where, **given, name=name, unknown=unknown)


class Seen(NamedTuple):
    """The identity of a stream: texts that differ if one of the batches so far differs."""

    first: str = ""  # text of the first batch
    all: str = ""

    def then(self, signals: Signals) -> "Seen":
        """The identity of the stream with one more batch."""
        batch = signals.fingerprint()
        together = _learning.fingerprint(np.array([self.all, batch]), np.array(signals.exponent))
        return Seen(self.first or batch, together)


def _passed_over(stream: Iterator[Signals], n: int, arrays: Arrays, path: Path | None) -> Seen:
    """Skip n batches of the stream, and return the identity of the stream after these batches.

    Raises:
        CheckpointError: the stream has other batches, or has fewer than n batches.
    """
    saved, seen, passed = Seen(str(arrays["first"]), str(arrays["all"])), Seen(), 0
    for signals in itertools.islice(stream, n):
        seen, passed = seen.then(signals), passed + 1
        if seen.first != saved.first:
            break
    if seen.first != saved.first or (passed == n and seen.all != saved.all):
        raise CheckpointError(
            f"{path}: holds the learning of another stream: one of the {n} batches that it has "
            "seen is not the same"
        )
    if passed < n:
        raise CheckpointError(f"{path}: has seen {n} batches but the stream ends after {passed}")
    return seen


def _start(
    stream: Iterator[Signals], d: int, start: str | Dictionary, rng: Any, where: str
) -> tuple[Sums, Iterator[Signals]]:
    """The initial sums, and the stream, which again includes the batches read for the start."""
    first: list[Signals] = []
    needed = d if isinstance(start, str) and start == "data" else 1
    while sum(len(signals.Y) for signals in first) < needed:
        signals = next(stream, None)
        if signals is None:
            n = sum(len(signals.Y) for signals in first)
            raise ValueError(
                f"{where}: the stream ended after {n} signals; expected at least {needed}"
            )
        if first and signals.Y.shape[1] != first[0].Y.shape[1]:
            raise ValueError(
                f"{where}: batches have signals of length {first[0].Y.shape[1]} and "
                f"{signals.Y.shape[1]}"
            )
        first.append(signals)
    exponent = max(signals.exponent for signals in first)
    Y = np.concatenate([signals.rescaled(exponent).Y for signals in first])
    together = Signals(Y, None, exponent, first[0].dtype)
    D = _learning.start_atoms(start, together, d, rng, where).astype(float)
    m = len(D)
    zeros = np.zeros((d, d)), np.zeros((m, d)), np.zeros(()), np.zeros(())
    return Sums(D, *zeros, np.array(exponent)), itertools.chain(first, stream)
