"""Recommend a method for your dictionary and signals, which may be not to train."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike, Key
from unrolled._base.files import as_data
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    Structured,
    as_dictionary,
    block_of,
    check_batch,
    column_norms,
    flat_batch,
)
from unrolled.layers import Law
from unrolled.pursuit import default_lam, lasso_batch
from unrolled.theory import mutual_coherence
from unrolled.training._fit import check_width
from unrolled.training._recipe import by_recipe, law_of
from unrolled.training._unsupervised import unsupervised

__all__ = ["Recommendation", "recommend"]


class _Rules(NamedTuple):
    """The bounds between methods; each number was measured.

    If codes are not known, the bounds come from the CPU time of one thread per signal, for exact
    solvers and networks (benchmarks/recipe.py). LARS costs as much as K steps of a network if a
    code has m K / 128 nonzeros. If codes are known, they come from benchmarks/lista.jsonl.
    """

    few_nonzeros: float = 1 / 8  # share of m below which LARS costs no more than 16 steps
    many_nonzeros: float = 1 / 5  # share of m above which LARS costs twice as much
    many_atoms: int = 1000  # d: with fewer, no network had both a gap of 0.01 and less time
    many_signals: int = 100_000  # number that repays the training
    # Multiple of the coherence of a random dictionary of the same size. Above it, as in learned
    # dictionaries, trained networks keep a gap above 0.01.
    like_random: float = 1.5
    # The largest coherence of a dictionary at which message passing was measured.
    passes_messages: float = 0.9
    # If codes are known: the share of noise in the energy below which `tista` beats `vamp_bg`.
    little_noise: float = 1e-5
    fewest_pairs: int = 1000  # signals with codes that a recipe needs to train and to choose


RULES = _Rules()
_ASKED = 256  # signals whose exact codes give the number of nonzeros
_DEPTH = 16
_TRAIN_ALL_THE_SAME = (
    "Where gradients pass through the codes, or each call must cost the same, take "
    "ur.training.unsupervised(D, Y, {lam!r}, key=0) all the same."
)


@dataclass(frozen=True, eq=False, repr=False)
class Recommendation:
    """A method for signals in a dictionary, and the reason; `repr` gives the code that runs it.

    Attributes:
        case: the features of D and the signals that matter, in words.
        method: the name of the function or the family.
        why: the rule that decided, with its numbers.
        lam: the weight of the LASSO; None if codes are known.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> Y, _ = ur.problems.sampler(D, batch=50)(jax.random.key(1))
        >>> advice = ur.recommend(D, Y, lam=0.1)
        >>> advice
        ur.pursuit.lasso_batch(D, Y, 0.1)
        >>> bool(advice.fit().converged.all())
        True
    """

    case: str
    method: str
    why: str
    lam: float | None
    data: tuple[Any, Any, Any]  # D, Y, X
    options: dict[str, Any]  # options of the method

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        if self.method == "lasso_batch":
            return f"ur.pursuit.lasso_batch(D, Y, {self.lam!r}{options})"
        if self.lam is not None:
            return f"ur.training.unsupervised(D, Y, {self.lam!r}, key=0{options})"
        return f"ur.training.by_recipe({self.method!r}, D, (Y, X), key=0{options})"

    def fit(self, key: Key = 0) -> Any:
        """Run the code of `repr`; return a `Pursuit` with the codes of Y, a `Fit`, or a `Made`.

        Args:
            key: the key of the training; exact solvers do not use it.
        """
        D, Y, X = self.data
        if self.method == "lasso_batch":
            return lasso_batch(D, Y, self.lam, **self.options)
        if self.lam is not None:
            return unsupervised(D, Y, self.lam, key=key, **self.options)
        return by_recipe(self.method, D, (Y, X), key=key, **self.options)


@checked
def recommend(
    D: Dictionary,
    Y: Array | np.ndarray | Any,
    X: Array | np.ndarray | Any = None,
    *,
    lam: ArrayLike | None = None,
    noise: ArrayLike | None = None,
    signals: int | None = None,
) -> Recommendation:
    """Recommend a method for signals in a dictionary: an exact solver, or a network to train.

    The exact codes of 256 of the signals give the number of nonzeros. The rules compare measured
    costs. They choose an exact solver if codes have few nonzeros, if there are few signals to code,
    or if a trained network would keep a gap above 0.01 (learned dictionaries). They choose a
    network if a large random-like dictionary and many nonzeros make exact codes expensive, or if
    codes are known: training then aims at these codes, and the LASSO does not.

    These costs are those of codes of single entries. Codes in parts, of a `Complex` D or a `Joint`,
    have an exact solver where they are not known, and the family that ended lowest on complex codes
    where they are (benchmarks/parts.json).

    Args:
        D: (m, d), a matrix or a structured one.
        Y: (signals, m), or complex signals of a `Complex` D, or (signals, m, g) of a `Joint`.
        X: (signals, d), the codes, if they are known; or in the form of Y.
        lam: the weight of the LASSO. None takes noise sqrt(2 ln d) times the mean norm of an atom
            if the noise is known, else a tenth of the lam at which nine codes in ten are 0, to
            three digits. Known codes of 1,000 signals or more make lam unnecessary.
        noise: standard deviation of the noise in an entry of Y, of a complex entry as a whole;
            None estimates it if codes are known. In parts of g entries lam takes sqrt(g) +
            sqrt(2 ln(d / g)) times the noise of a real number.
        signals: number of signals to code; None for the number in Y.

    Returns:
        Recommendation, with `case`, `method`, `why` and `fit(key=0)`.

    Raises:
        TypeError: signals are integers, or an argument is of another kind.
        ValueError: shapes do not fit, entries are not finite, lam, noise or the number of signals
            is negative, or all signals are zero.

    Not claimed: the cheapest method on your machine. The rules were measured on one CPU thread.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> Y, X = ur.problems.sampler(D, batch=2000, probability=0.05)(jax.random.key(1))
        >>> ur.recommend(D, Y, X)
        ur.training.by_recipe('tista', D, (Y, X), key=0, onsager=True)
        >>> ur.recommend(D, Y, lam=0.1).method
        'lasso_batch'
    """
    where = "recommend"
    X = checks.as_float(X, "X", where) if isinstance(X, list) else X  # not codes of a chain
    D, given = as_dictionary(D, where), (Y, X)
    flat = flat_batch(D, given)
    Y, X = as_data(flat[0], flat[1], where)
    check_width(Y, D, where)
    data = (D, Y, X) if flat is given else (D, *given)  # codes have the form of the signals
    n = len(Y) if signals is None else checks.as_index(signals, "signals", where)
    lam, noise = (_number(value, name, where) for value, name in ((lam, "lam"), (noise, "noise")))
    if noise is not None and np.iscomplexobj(given[0]):
        noise /= math.sqrt(2)
    if X is not None and len(Y) >= RULES.fewest_pairs:
        return _of_known(D, Y, X, noise, data)
    rows = np.unique(np.linspace(0, len(Y) - 1, min(len(Y), _ASKED)).astype(int))
    sample = np.asarray(Y[rows])
    checks.finite(sample, "Y", where)
    if lam is None:
        lam = float(f"{_lam(D, Y, noise):.3g}")
    codes = np.asarray(lasso_batch(D, sample, lam).x)
    return _of_unknown(D, Y, lam, codes, noise, n, data)


def _number(value: Any, name: str, where: str) -> float | None:
    if value is None:
        return None
    number = checks.as_number(value, name, where)
    checks.nonnegative(number, name, where)
    checks.finite(np.asarray(number), name, where)
    return number


def _lam(D: Operator, Y: Any, noise: float | None) -> float:
    """The universal threshold of the noise, or a share of the lam that silences most signals."""
    if not noise:
        return default_lam(D, Y)
    g = block_of(D)
    threshold = math.sqrt(2 * math.log(max(2, D.shape[1] // g))) + (math.sqrt(g) if g > 1 else 0)
    return noise * threshold * float(np.mean(column_norms(D)))


def _coherence(D: Operator) -> tuple[float, float]:
    """The coherence of the dictionary, and the coherence to expect of a random dictionary."""
    m, d = D.shape
    return float(mutual_coherence(D)), min(1.0, math.sqrt(4 * math.log(max(d, 2)) / m))


def _nonzeros(D: Operator, codes: np.ndarray) -> float:
    """The mean number of entries that are not 0, or of parts."""
    return float(np.mean((codes.reshape(len(codes), -1, block_of(D)) != 0).any(2).sum(1)))


def _case(D: Operator, codes: np.ndarray, known: str, noise: str, n: int) -> str:
    (m, d), g, nonzeros = D.shape, block_of(D), _nonzeros(D, codes)
    if g > 1:
        return (
            f"{known}; codes of {d // g} parts of {g} real numbers, {nonzeros:.1f} of them not 0; "
            f"{noise}; signals of {m} real numbers; {n:,} signals to code"
        )
    mu, random = _coherence(D)
    signs = "nonnegative codes" if (codes >= 0).all() else "codes of both signs"
    return (
        f"{known}; {nonzeros:.1f} nonzeros in a code, of {m} entries of a signal; {signs}; "
        f"{noise}; D {m} x {d} with coherence {mu:.2f}, of a random one {random:.2f}; "
        f"{n:,} signals to code"
    )


def _of_known(
    D: Operator, Y: Any, X: Any, noise: float | None, data: tuple[Any, Any, Any]
) -> Recommendation:
    """A family for known codes, by the noise and the dictionary."""
    check_batch(D, Y, X, "recommend")
    checks.finite((Y, X), "Y or X", "recommend")
    law: Law = law_of(D, Y, X)
    share = (law.noise if noise is None else noise**2) / law.signal
    text = (
        "no noise" if not share else f"noise at {-10 * math.log10(share):.0f} dB below the signal"
    )
    if block_of(D) > 1:
        family, options = "alista", {}
        why = (
            "of three families that were trained on complex codes, 24 x 48, without noise and at "
            "20 dB, alista ends lowest (benchmarks/parts.json); nothing else in parts was measured"
        )
    elif _coherence(D)[0] > RULES.passes_messages or isinstance(D, Structured):
        family, options = "alista_at", {"onsager": True}
        why = (
            f"message passing was measured on dense dictionaries with coherence up to "
            f"{RULES.passes_messages:g}; the thresholds of alista_at follow each signal and need "
            "no such dictionary"
        )
    elif share <= RULES.little_noise:
        family, options = "tista", {"onsager": True}
        why = (
            "without noise tista with the Onsager term ends lowest, at -120 dB on the standard "
            "benchmark; the LASSO ends at -11 dB (benchmarks/lista.jsonl)"
        )
    else:
        family, options = "vamp_bg", {}
        why = (
            "with noise vamp_bg ends lowest, within 1.1 dB of an oracle at 30 dB; it learns the "
            "share of nonzeros and their size from the sample (benchmarks/lista.jsonl)"
        )
    case = _case(D, np.asarray(X[:_ASKED]), "codes known", text, len(Y))
    return Recommendation(case, family, f"{why}.", None, data, options)


def _of_unknown(
    D: Operator,
    Y: Any,
    lam: float,
    codes: np.ndarray,
    noise: float | None,
    n: int,
    data: tuple[Any, Any, Any],
) -> Recommendation:
    """An exact solver, or a network for the objective of the LASSO."""
    (m, d), nonzeros = D.shape, _nonzeros(D, codes)
    share = f"{nonzeros:.1f} nonzeros in a code, {nonzeros / m:.2f} m"
    method, options = "lasso_batch", {}
    mu, random = (math.nan, math.nan) if block_of(D) > 1 else _coherence(D)
    if block_of(D) > 1:
        why = (
            "codes in parts: where a network pays was measured for codes of single entries alone, "
            "and exact codes have no gap"
        )
    elif nonzeros < RULES.few_nonzeros * m:
        why = (
            f"{share}, below {RULES.few_nonzeros:g} m: exact codes are cheap there, and have no gap"
        )
    elif n < RULES.many_signals:
        why = f"{n:,} signals: training is repaid by about {RULES.many_signals:,}"
    elif mu > RULES.like_random * random:
        why = (
            f"coherence {mu:.2f}, as learned dictionaries have it, where a random one has "
            f"{random:.2f}: a trained network keeps a gap above 0.01"
        )
    elif nonzeros < RULES.many_nonzeros * m or d < RULES.many_atoms:
        why = (
            f"{share}, {d} atoms: a network pays above {RULES.many_nonzeros:g} m and "
            f"{RULES.many_atoms:,} atoms"
        )
    else:
        method, options = "fista", {"weights": False}
        why = (
            f"{share}, {d:,} atoms like random ones, {n:,} signals: {_DEPTH} steps with "
            f"{2 * _DEPTH} trained numbers come within 0.01 of the optimum in half of the time of "
            "an exact solver"
        )
    if method == "lasso_batch":
        why += f". {_TRAIN_ALL_THE_SAME.format(lam=lam)[:-1]}"
    of = "a real number" if block_of(D) > 1 else "an entry"
    text = "noise unknown" if noise is None else f"noise {noise:g} {of}"
    known = data[2] is not None
    fewer = f"codes known of {len(Y):,} signals, too few to train for" if known else ""
    case = _case(D, codes, fewer or "codes not known", text, n)
    return Recommendation(case, method, f"{why}.", lam, (*data[:2], None), options)
