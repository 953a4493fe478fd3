"""Online dictionary learning: from a stream of signals, in constant memory."""

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Key
from unrolled._files import CheckpointError
from unrolled._interior_point import one_thread
from unrolled.dictionaries import Dictionary
from unrolled.dictionary_learning._codes import lasso_codes
from unrolled.dictionary_learning._keeper import (
    Arrays,
    Keeper,
    Progress,
    fingerprint,
    text_of,
)
from unrolled.dictionary_learning._learned import Learned, Step, as_learned
from unrolled.dictionary_learning._signals import (
    Signals,
    as_lam,
    as_signals,
    distinct,
    duplicates,
    generator,
    in_units,
    near_one,
    start_atoms,
)


class Sums(NamedTuple):
    """What `online` keeps of the signals that it has seen, weighted by age; in float64.

    With x the codes, the mean of the objective over the past is, for any D,
    (terms + tr(D A D') / 2 - tr(D' B)) / weight.
    """

    D: np.ndarray  # (m, d)
    A: np.ndarray  # (d, d) sum of x x'
    B: np.ndarray  # (m, d) sum of y x'
    terms: np.ndarray  # () sum of norm(y)^2 / 2 + lam norm(x, 1)
    weight: np.ndarray  # () sum of the weights of age
    exponent: np.ndarray  # () signals are divided by 2^exponent, so that the largest is near 1


def online(
    batches: Iterable[Any],
    d: int,
    *,
    lam: float,
    key: Key = 0,
    start: str | Dictionary = "data",
    forgetting: float = 3.0,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""Online dictionary learning (Mairal et al.): one pass over a stream, in constant memory.

    .. math:: x = \arg\min_x \tfrac12 \|y - D x\|^2 + lam \|x\|_1, \quad
        A \leftarrow \beta A + \textstyle\sum x x', \quad B \leftarrow \beta B + \sum y x', \quad
        d_j \leftarrow \Pi \big( d_j + (b_j - D a_j) / A_{jj} \big),

    for every batch, with the projection on the unit ball. The factor :math:`\beta = (1 - 1/t)^\rho`
    of batch t gives batch s the weight (s / t)^rho. Atoms that are shorter than 1 are then scaled,
    with A and B; those that no code uses, or that are parallel to another, are replaced by the
    signals of the batch that are represented worst.

    Args:
        batches: an iterable of signals (n, m), or of pairs of signals and weights of their squared
            errors, (n,) or (n, m), where a bool array is a mask: False entries may be NaN. The
            batches may differ in length. For several passes give them several times.
        d: the number of atoms.
        lam: penalty weight.
        key: a typed key, or a seed, of the start and of replacements.
        start: "data", which takes d of the first signals; "dct"; or a D, (m, d).
        forgetting: rho, at least 0; 0 forgets nothing. The early codes, of poor atoms, are better
            forgotten: 3 does well on patches of photographs and on planted dictionaries.
        progress: called as `progress(step)` after every batch, with a `Step`.
        resume: a result to go on from, with the batches that follow; the other arguments as they
            were. It is, bit for bit, as if the stream had never stopped.
        checkpoint: a file (.npz) in which the state is kept after every batch. The same call, with
            the stream from its beginning, passes over the batches that it has seen and goes on.

    Returns:
        Learned, with X None. `objective` is the mean of the LASSO objective over the past, weighted
        by age, for the codes found then: an upper bound for D. The objective of a step is that of
        its batch before D is updated: of signals not seen before. `state` holds the sums.

    Raises:
        TypeError: batches that are traced, or no real numbers.
        ValueError: a stream that ends before d signals (with start "data") or before any, batches
            whose shapes do not meet, NaN without a mask, lam not above 0, forgetting below 0.
        CheckpointError: the file is damaged, or of another learning.

    With weights a code is that of the weighted signal, and the atoms fit v y + (1 - v) D x, for
    weights v divided by the largest of the batch, which lowers the objective, too. A batch counts
    in proportion to its largest weight.

    Reference: Mairal, Bach, Ponce, Sapiro (2009, 2010).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (600, 12), 2) @ D.T
        >>> found = ur.dictionary_learning.online(jnp.split(Y, 20), 12, lam=0.1, key=0)
        >>> found.D.shape, found.history[-1].objective < found.history[0].objective
        ((8, 12), True)
    """
    where = "online"
    d, key = _checks.as_index(d, "d", where, least=1), _checks.as_key(key, where)
    lam, forgetting = as_lam(lam, where), _checks.as_number(forgetting, "forgetting", where)
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"{where}: batches must be an iterable of signals (n, m), got {type(batches).__name__}"
        )
    if not 0 <= forgetting < math.inf:
        raise ValueError(f"{where}: forgetting must be non-negative and finite, got {forgetting}")
    keeper = Keeper(checkpoint, _config(d, lam, key, start, forgetting))
    stream: Iterator[Signals] = (_as_batch(batch, where) for batch in batches)
    began, dtype = time.monotonic(), None
    history: list[Step] = []
    sums: Sums | None = None
    first = ""  # what tells this stream from others
    if (saved := keeper.load()) is not None:
        arrays, history = saved
        sums, dtype = Sums(*(arrays[name] for name in Sums._fields)), np.dtype(str(arrays["dtype"]))
        first = str(arrays["first"])
        stream = _after(stream, len(history), first, keeper.path)
    elif resume is not None:
        if not isinstance(as_learned(resume, where).state, Sums) or resume.state.D.shape[1] != d:
            raise ValueError(f"{where}: resume is not a result of `online` with {d} atoms")
        sums, history = resume.state, [*resume.history]
        dtype = resume.D.dtype  # type: ignore[union-attr]
    began -= history[-1].seconds if history else 0
    if sums is None:
        sums, stream = _start(stream, d, start, key, where)
    with one_thread():  # the threads of the codes are enough
        for step, signals in enumerate(stream, start=len(history) + 1):
            first = first or _name(signals)
            _check_length(signals, sums, step, where)
            dtype = signals.dtype if dtype is None else dtype
            beta = (1 - 1 / step) ** forgetting
            sums, objective, replaced = _absorb(sums, signals, lam, beta, generator(key, step))
            history.append(Step(step, objective, time.monotonic() - began, replaced))
            keeper.save(_kept(sums, dtype, first), history)
            if progress is not None:
                progress(history[-1])
    keeper.save(_kept(sums, dtype, first), history, last=True)
    return Learned(jnp.asarray(sums.D, dtype), None, _mean(sums), tuple(history), sums)


def _config(
    d: int, lam: float, key: jax.Array, start: str | Dictionary, forgetting: float
) -> dict[str, Any]:
    return {
        "method": "online",
        "d": d,
        "lam": float(lam),
        "key": text_of(key),
        "start": text_of(start),
        "forgetting": float(forgetting),
    }


def _as_batch(batch: Any, where: str) -> Signals:
    """A batch of the stream, checked."""
    if not isinstance(batch, tuple):
        return as_signals(batch, where)
    if len(batch) != 2:
        raise ValueError(f"{where}: a batch has {len(batch)} parts; expected Y or (Y, weights)")
    Y, weights = batch
    is_mask = np.asarray(weights).dtype == bool
    return as_signals(Y, where, **{"mask" if is_mask else "weights": weights})


def _kept(sums: Sums, dtype: Any, first: str) -> Arrays:
    return {**sums._asdict(), "dtype": np.array(str(dtype)), "first": np.array(first)}


def _name(signals: Signals) -> str:
    return fingerprint(signals.Y, signals.V)


def _after(
    stream: Iterator[Signals], steps: int, first: str, path: Path | None
) -> Iterator[Signals]:
    """The stream without the batches that were seen, if it begins as it did then."""
    begins = next(stream, None)
    if begins is None or _name(begins) != first:
        raise CheckpointError(f"{path}: holds the learning of another stream")
    passed = 1 + sum(1 for _ in itertools.islice(stream, steps - 1))
    if passed < steps:
        raise CheckpointError(
            f"{path}: has seen {steps} batches but the stream ends after {passed}"
        )
    return stream


def _check_length(signals: Signals, sums: Sums, step: int, where: str) -> None:
    if signals.Y.shape[1] != len(sums.D):
        raise ValueError(
            f"{where}: batch {step} has signals of length {signals.Y.shape[1]}; expected "
            f"{len(sums.D)}"
        )


def _start(
    stream: Iterator[Signals], d: int, start: str | Dictionary, key: jax.Array, where: str
) -> tuple[Sums, Iterator[Signals]]:
    """The first atoms, and the stream with the batches that were read for them."""
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
    Y = np.concatenate([_near(signals, exponent) for signals in first])
    together = Signals(Y, None, exponent, first[0].dtype)
    D = start_atoms(start, together, d, generator(key, 0), where).astype(float)
    m = len(D)
    zeros = np.zeros((d, d)), np.zeros((m, d)), np.zeros(()), np.zeros(())
    return Sums(D, *zeros, np.array(exponent)), itertools.chain(first, stream)


def _near(signals: Signals, exponent: int) -> np.ndarray:
    """The signals divided by 2^exponent."""
    return np.ldexp(signals.Y, signals.exponent - exponent)


def _absorb(
    sums: Sums, signals: Signals, lam: float, beta: float, rng: np.random.Generator
) -> tuple[Sums, float, int]:
    """The sums with a batch, the mean objective of that batch before, and the atoms replaced."""
    sums = _holding(sums, signals)
    Y, lam = signals.Y, near_one(lam, signals.exponent)
    D = sums.D.astype(Y.dtype)
    X = lasso_codes(D, Y, lam, signals.V)
    R = Y - X @ D.T
    squares = R * R if signals.V is None else signals.V * R * R
    objective = (np.sum(squares) / 2 + lam * np.sum(np.abs(X))) / len(Y)
    top = 1.0 if signals.V is None else float(signals.V.max())
    target = Y if signals.V is None else Y - (1 - signals.V / signals.V.max()) * R
    terms = top * np.sum(np.square(target, dtype=float)) / 2 + lam * np.sum(np.abs(X))
    # The unit of the batch in that of the sums; of a batch of zeros it does not matter.
    unit = math.ldexp(1, min(0, 2 * (signals.exponent - int(sums.exponent))))
    A = beta * sums.A + unit * top * (X.T @ X).astype(float)
    B = beta * sums.B + unit * top * (target.T @ X).astype(float)
    D, A, B = _descend(sums.D, A, B)
    fresh = np.union1d(duplicates(D, np.diag(A)), np.flatnonzero(np.diag(A) <= 0))
    if len(fresh):
        errors = np.sum(squares, 1)
        worst = np.argsort(-errors, kind="stable")[: 10 * len(fresh)]
        others = np.delete(D, fresh, 1)
        D[:, fresh] = distinct(target[worst].astype(float), others, len(fresh), rng).T
        A[fresh], A[:, fresh], B[:, fresh] = 0, 0, 0
    terms, weight = beta * sums.terms + unit * terms, beta * sums.weight + len(Y)
    found = Sums(D, A, B, terms, weight, sums.exponent)
    return found, in_units(objective, signals.exponent), len(fresh)


def _holding(sums: Sums, signals: Signals) -> Sums:
    """The sums in units of the largest signals so far, these included."""
    exponent, larger = int(sums.exponent), signals.exponent > int(sums.exponent)
    if not signals.Y.any() or not (larger or sums.terms == 0):
        return sums
    unit = np.ldexp(1.0, 2 * (exponent - signals.exponent)) if sums.terms else 1.0
    D, A, B, terms, weight, _ = sums
    return Sums(D, unit * A, unit * B, unit * terms, weight, np.array(signals.exponent))


def _descend(
    D: np.ndarray, A: np.ndarray, B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pass of block coordinate descent over the atoms; then unit atoms, with A and B."""
    atoms, C = np.ascontiguousarray(D.T), np.ascontiguousarray(B.T)
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


def _mean(sums: Sums) -> float:
    """The mean objective over the past, in the units of the signals."""
    D, A, B, terms, weight, exponent = sums
    value = (terms + np.sum((D.T @ D) * A) / 2 - np.sum(D * B)) / max(float(weight), 1.0)
    return in_units(value, int(exponent))
