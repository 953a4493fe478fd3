"""What online learning keeps of a stream, and what a batch changes."""

import math
from typing import NamedTuple

import numpy as np

from unrolled.dictionary_learning._codes import lasso_codes
from unrolled.dictionary_learning._signals import Signals, distinct, duplicates, in_units, near_one


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
    exponent: np.ndarray  # () A, B, terms times 2^(2 exponent) are those of the signals given


def absorb(
    sums: Sums, signals: Signals, lam: float, beta: float, rng: np.random.Generator
) -> tuple[Sums, float, int]:
    """The sums with a batch, the mean objective of that batch before, and the atoms replaced."""
    sums, lam = _rescaled(sums, signals), near_one(lam, signals.exponent + signals.scale)
    D, n = sums.D.astype(signals.Y.dtype), len(signals.Y)
    X = lasso_codes(D, signals.Y, lam, signals.V)
    R = signals.Y - X @ D.T
    errors, penalty, target = signals.errors(R), lam * np.sum(np.abs(X)), signals.target(R)
    objective = (np.sum(errors) / 2 + penalty) / n
    top = 1.0 if signals.V is None else float(signals.V.max())
    terms = top * np.sum(np.square(target, dtype=float)) / 2 + penalty
    # The unit of the batch in that of the sums; of a batch of zeros it does not matter.
    unit = math.ldexp(1, min(0, 2 * (signals.exponent - int(sums.exponent)) + signals.scale))
    A = beta * sums.A + unit * top * (X.T @ X).astype(float)
    B = beta * sums.B + unit * top * (target.T @ X).astype(float)
    D, A, B = _descend(sums.D, A, B)
    fresh = np.union1d(duplicates(D, np.diag(A)), np.flatnonzero(np.diag(A) <= 0))
    if len(fresh):
        worst = np.argsort(-errors, kind="stable")[: 10 * len(fresh)]
        others = np.delete(D, fresh, 1)
        D[:, fresh] = distinct(target[worst].astype(float), others, len(fresh), rng).T
        A[fresh], A[:, fresh], B[:, fresh] = 0, 0, 0
    terms, weight = beta * sums.terms + unit * terms, beta * sums.weight + n
    sums = Sums(D, A, B, terms, weight, sums.exponent)
    return sums, signals.in_units(objective), len(fresh)


def _rescaled(sums: Sums, signals: Signals) -> Sums:
    """The sums in units of the largest signals so far, with their weights, these included."""
    exponent, new = int(sums.exponent), signals.exponent + (signals.scale + 1) // 2
    if not signals.Y.any() or not (new > exponent or sums.terms == 0):
        return sums
    unit = np.ldexp(1.0, 2 * (exponent - new)) if sums.terms else 1.0
    D, A, B, terms, weight, _ = sums
    return Sums(D, unit * A, unit * B, unit * terms, weight, np.array(new))


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


def mean_objective(sums: Sums) -> float:
    """The mean objective over the past, in the units of the signals."""
    D, A, B, terms, weight, exponent = sums
    value = (terms + np.sum((D.T @ D) * A) / 2 - np.sum(D * B)) / max(float(weight), 1.0)
    return in_units(value, 2 * int(exponent))
