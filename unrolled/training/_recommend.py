"""Which method for a dictionary and signals of one's own, "do not train" included."""

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
    """Where one method ends and another begins; each number was measured.

    Without codes: CPU time of one thread a signal, of exact solvers and of networks
    (benchmarks/recipe.py). LARS costs as much as K steps of a network where a code has m K / 128
    nonzeros. With codes: the cells of benchmarks/lista.jsonl.
    """

    few_nonzeros: float = 1 / 8  # of m: below it LARS costs no more than 16 steps
    many_nonzeros: float = 1 / 5  # of m: above it LARS costs twice as much
    many_atoms: int = 1000  # d: with fewer, no network had both a gap of 0.01 and less time
    many_signals: int = 100_000  # to repay their training
    # Of the coherence of a random dictionary of the same size: above it, as learned ones are,
    # trained networks keep a gap above 0.01.
    like_random: float = 1.5
    # The largest coherence of a dictionary at which message passing was measured.
    passes_messages: float = 0.9
    # Codes known: below this share of noise in the energy `tista` ends lower than `vamp_bg`.
    little_noise: float = 1e-5
    fewest_pairs: int = 1000  # signals with codes that a recipe is trained on and chosen by


RULES = _Rules()
_ASKED = 256  # signals whose exact codes are counted
_DEPTH = 16
_TRAIN_ALL_THE_SAME = (
    "Where gradients pass through the codes, or each call must cost the same, take "
    "ur.training.unsupervised(D, Y, {lam!r}, key=0) all the same."
)


@dataclass(frozen=True, eq=False, repr=False)
class Recommendation:
    """A method for signals in a dictionary, and why; its `repr` is the code that runs it.

    Attributes:
        case: what was seen, in words.
        method: the name of the function or the family.
        why: the rule that decided, with its numbers.
        lam: the weight of the LASSO; None where codes are known.

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
    options: dict[str, Any]  # of the method

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        if self.method == "lasso_batch":
            return f"ur.pursuit.lasso_batch(D, Y, {self.lam!r}{options})"
        if self.lam is not None:
            return f"ur.training.unsupervised(D, Y, {self.lam!r}, key=0{options})"
        return f"ur.training.by_recipe({self.method!r}, D, (Y, X), key=0{options})"

    def fit(self, key: Key = 0) -> Any:
        """What the code of `repr` returns: a `Pursuit` with the codes of Y, a `Fit`, or a `Made`.

        Args:
            key: of the training; exact codes do not use it.
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
    """A method for signals in a dictionary: an exact solver, or a network and its training.

    Exact codes of 256 of the signals say how many nonzeros there are. The rules compare measured
    costs: an exact solver where a code has few nonzeros, where few signals are to be coded, or
    where a trained network would keep a gap above 0.01 (learned dictionaries); a network where a
    large random-like dictionary and many nonzeros make exact codes expensive, or where codes are
    known, which training then aims at, and the LASSO does not.

    These costs are those of codes of single entries. Codes in parts, of a `Complex` D or a `Joint`,
    have an exact solver where they are not known, and the family that ended lowest on complex codes
    where they are (benchmarks/parts.json).

    Args:
        D: (m, d), a matrix or a structured one.
        Y: (signals, m), or complex signals of a `Complex` D, or (signals, m, g) of a `Joint`.
        X: (signals, d), the codes, if they are known; or in the form of Y.
        lam: the weight of the LASSO. None takes noise sqrt(2 ln d) times the mean norm of an atom
            if the noise is known, else a tenth of what gives nine signals in ten the code 0, to
            three digits. Codes of 1,000 signals or more need none.
        noise: standard deviation of the noise of an entry of Y, of a complex one as a whole; None
            estimates it where codes are known. In parts of g entries lam takes sqrt(g) +
            sqrt(2 ln(d / g)) of the noise of a real number.
        signals: how many are to be coded; None for those of Y.

    Returns:
        Recommendation, with `case`, `method`, `why` and `fit(key=0)`.

    Raises:
        TypeError: signals that are integers; an argument of another kind.
        ValueError: shapes that do not fit, entries that are not finite, a negative lam, noise or
            number of signals, signals that are all zero.

    Not claimed: the cheapest method on your machine. The rules hold for one thread of a processor.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> Y, X = ur.problems.sampler(D, batch=2000, probability=0.05)(jax.random.key(1))
        >>> ur.recommend(D, Y, X)
        ur.training.by_recipe('tista', D, (Y, X), key=0, onsager=True)
        >>> ur.recommend(D, Y, lam=0.1).method
        'lasso_batch'
    """
    where = "recommend"
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
    """The universal threshold of the noise, or a share of what silences most signals."""
    if not noise:
        return default_lam(D, Y)
    g = block_of(D)
    threshold = math.sqrt(2 * math.log(max(2, D.shape[1] // g))) + (math.sqrt(g) if g > 1 else 0)
    return noise * threshold * float(np.mean(column_norms(D)))


def _coherence(D: Operator) -> tuple[float, float]:
    """Of the dictionary, and that to expect of a random one."""
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
    """A family for codes that are known, by the noise and the dictionary."""
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
