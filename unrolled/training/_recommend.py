"""Recommend a method for your dictionary and signals: an exact solver, or a network to train."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from unrolled import metrics
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
    dense,
    flat_batch,
)
from unrolled.layers import Law
from unrolled.pursuit import default_lam, lasso_batch
from unrolled.theory import mutual_coherence
from unrolled.training._recipe import by_recipe, law_of
from unrolled.training._signals import check_width, each_known
from unrolled.training._unsupervised import family_without_codes, unsupervised

__all__ = ["Recommendation", "recommend"]


class _Rules(NamedTuple):
    """The bounds at which the recommended method changes; each number was measured.

    If codes are not known, the bounds come from the CPU time per signal, on one thread, of exact
    solvers and networks (benchmarks/recipe.py, benchmarks/recipe_large.py). If codes are known, the
    bounds come from benchmarks/lista.jsonl.
    """

    few_nonzeros: float = 1 / 8  # share of m below which exact codes cost little
    many_nonzeros: float = 0.3  # share of m above which `lasso_batch` takes twice a network's time
    many_atoms: int = 1000  # d below which no training was repaid by a million signals
    many_signals: int = 200_000  # number of signals below which training seldom pays
    # Multiple of the coherence of a random dictionary of the same size. Up to this multiple, 8
    # sweeps of `bcd` have a gap below 0.01; above it, as in learned dictionaries, 16 sweeps do.
    like_random: float = 1.5
    # The largest coherence of a dictionary at which message passing was measured.
    passes_messages: float = 0.9
    # If codes are known: the ratio of the energies of noise and signals below which `tista` has a
    # smaller error than `vamp_bg`.
    little_noise: float = 1e-5
    fewest_pairs: int = 1000  # least number of signals with known codes to train on


RULES = _Rules()
_ASKED = 256  # signals whose exact codes are computed
_DEPTH = 16
_SWEEPS = 8, 16  # numbers of steps of `bcd`, for a D like a random one and for other dictionaries
_STEPS = 300  # steps of each run that trains `bcd`
_OR_TRAIN = (
    " If gradients must pass through the codes, or every call must take the same time, train a "
    "network with ur.training.unsupervised(D, Y, {lam!r}, key=0{mask}) instead."
)


@dataclass(frozen=True, eq=False, repr=False)
class Recommendation:
    """A recommended method and its reason; `repr` gives the code that runs the method.

    Attributes:
        case: a description of D, Y and X, in words.
        method: the name of the function or the family.
        why: the reason for the method, with the numbers on which the choice is based.
        lam: the weight of the LASSO; None if codes are known and you gave no lam.

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
    data: tuple[Any, Any, Any, Any]  # D, Y, X, mask
    options: dict[str, Any]  # options of the method

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        options += "" if self.data[3] is None else ", mask=mask"
        if self.method == "lasso_batch":
            return f"ur.pursuit.lasso_batch(D, Y, {self.lam!r}{options})"
        if self.data[2] is None:
            return f"ur.training.unsupervised(D, Y, {self.lam!r}, key=0{options})"
        return f"ur.training.by_recipe({self.method!r}, D, (Y, X), key=0{options})"

    def fit(self, key: Key = 0) -> Any:
        """Run the code of `repr`; return a `Pursuit` with the codes of Y, a `Fit`, or a `Made`.

        Args:
            key: the key of the training; exact solvers do not use it.
        """
        (D, Y, X, mask), lam = self.data, self.lam
        if self.method == "lasso_batch":
            return lasso_batch(D, Y, lam, mask=mask, **self.options)
        if X is None and lam is not None:
            return unsupervised(D, Y, lam, key=key, mask=mask, **self.options)
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
    mask: ArrayLike | None = None,
) -> Recommendation:
    """Recommend a method for signals in a dictionary: an exact solver, or a network to train.

    If the codes of 1,000 signals or more are known, `recommend` chooses a network: training can aim
    at the known codes, but an exact solver returns LASSO codes. Otherwise `recommend` computes the
    exact codes of at most 256 signals, counts their nonzeros, and compares measured costs. It then
    chooses an exact solver if codes have few nonzeros, if D has few atoms, or if there are few
    signals to code. If a large dictionary and many nonzeros make exact codes expensive, `recommend`
    chooses to train `bcd`. With a mask, or if D is structured, `recommend` chooses to train `fista`
    instead, and only if D has about the coherence of a random matrix: with other dictionaries, the
    gap (F - F*) / F* of `fista` is often above 0.01.

    The costs were measured for codes of single entries. For codes in parts (D is a `Complex` or a
    `Joint`), `recommend` chooses an exact solver if the codes are not known. If the codes are
    known, it chooses the family that ended with the lowest error on complex codes
    (benchmarks/parts.json).

    Args:
        D: (m, d), a matrix or a structured dictionary.
        Y: the signals, (signals, m). For a `Complex` D the signals are complex; for a `Joint` D
            they have the shape (signals, m, g).
        X: the codes, (signals, d), if they are known. The codes have the form of Y: complex, or of
            shape (signals, d, g).
        lam: the weight of the LASSO. If lam is None and `noise` is positive, lam is the product of
            `noise`, sqrt(2 ln d) and the mean norm of an atom. For codes in p parts of g real
            numbers, lam is the product of three numbers: sqrt(g) + sqrt(2 ln p), the standard
            deviation of the noise in a real number, and the mean norm of an atom. If lam is None
            and `noise` is 0 or None, lam is a tenth of the value at which nine codes in ten are 0.
            A lam that `recommend` computes is rounded to three digits. If the codes of 1,000
            signals or more are known, the recommended family aims at these codes and has no lam. If
            you give a lam all the same, `why` has the NMSE of the LASSO with this lam; the field
            `nmse` of `fit()` should be lower.
        noise: standard deviation of the noise in an entry of Y (of a complex entry, not of its real
            part). If the codes of 1,000 signals or more are known, None estimates the noise from
            these codes.
        signals: number of signals to code; None takes the number of signals in Y.
        mask: bools, in the shape of Y or of one signal, True where an entry is known; unknown
            entries of Y may be NaN. The method then gets this mask. The nonzeros and a lam that
            `recommend` computes are those of the known entries, as with `dictionaries.Masked`. If
            codes are known, `recommend` ignores them, because `by_recipe` does not take a mask.

    Returns:
        Recommendation, with `case`, `method`, `why` and `fit(key=0)`.

    Raises:
        TypeError: signals are integers, the mask is not bool, or an argument has a wrong type.
        ValueError: shapes do not fit, known entries are not finite, lam, noise or the number of
            signals is negative, or all signals are zero.

    Not claimed: the cheapest method on your machine. The rules were measured on one CPU thread, and
    on signals without missing entries.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> Y, X = ur.problems.sampler(D, batch=2000, probability=0.05)(jax.random.key(1))
        >>> ur.recommend(D, Y, X)
        ur.training.by_recipe('tista', D, (Y, X), key=0, onsager=True)
        >>> ur.recommend(D, Y, lam=0.1).method
        'lasso_batch'
        >>> mask = jax.random.bernoulli(jax.random.key(2), 0.8, Y.shape)
        >>> ur.recommend(D, jnp.where(mask, Y, jnp.nan), lam=0.1, mask=mask)
        ur.pursuit.lasso_batch(D, Y, 0.1, mask=mask)
    """
    where = "recommend"
    X = checks.as_float(X, "X", where) if isinstance(X, list) else X  # not codes of a chain
    D, given = as_dictionary(D, where), (Y, X)
    flat = flat_batch(D, given)
    seen, known = (flat[0], None) if mask is None else _known_entries(D, flat[0], mask, where)
    Y, X = as_data(seen, flat[1], where)
    check_width(Y, D, where)
    data = (D, *((Y, X) if flat is given else given), mask)  # codes have the form of the signals
    n = len(Y) if signals is None else checks.as_index(signals, "signals", where)
    lam, noise = (_number(value, name, where) for value, name in ((lam, "lam"), (noise, "noise")))
    if noise is not None and np.iscomplexobj(given[0]):
        noise /= math.sqrt(2)
    if X is not None:
        check_batch(D, Y, X, where)
    if X is not None and len(Y) >= RULES.fewest_pairs and known is None:
        return _of_known(D, Y, X, lam, noise, n, data)
    rows = _some(len(Y))
    sample, marks = np.asarray(Y[rows]), None if known is None else known[rows]
    checks.finite(sample, "Y", where)
    if lam is None:
        lam = float(f"{_lam(D, Y, noise, marks):.3g}")
    codes = np.asarray(lasso_batch(D, sample, lam, mask=marks).x)
    return _of_unknown(D, Y, lam, codes, noise, n, data, known)


def _known_entries(D: Operator, Y: Any, mask: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Y with 0 for missing entries, and bools that mark the known entries, (signals, m) each."""
    Y = np.asarray(Y)
    checks.check_rows(Y.shape, "Y", where)
    check_width(Y, D, where)
    known = each_known(D, Y, mask, where)
    if not known.any():
        raise ValueError(f"{where}: the mask marks no entry of Y as known")
    return np.where(known, Y, 0), known


def _number(value: Any, name: str, where: str) -> float | None:
    if value is None:
        return None
    number = checks.as_number(value, name, where)
    checks.nonnegative(number, name, where)
    checks.finite(np.asarray(number), name, where)
    return number


def _some(n: int) -> np.ndarray:
    """At most `_ASKED` indices below n, from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, _ASKED)).astype(int))


def _lam(D: Operator, Y: Any, noise: float | None, known: np.ndarray | None) -> float:
    """The universal threshold of the noise, or `default_lam` if the noise is not known or 0."""
    if not noise:
        return default_lam(D, Y)
    g = block_of(D)
    threshold = math.sqrt(2 * math.log(max(2, D.shape[1] // g))) + (math.sqrt(g) if g > 1 else 0)
    return noise * threshold * _mean_norm(D, known)


def _mean_norm(D: Operator, known: np.ndarray | None) -> float:
    """The mean norm of an atom on the known entries of a signal."""
    if known is None:
        return float(np.mean(column_norms(D)))
    atoms = np.asarray(dense(D), float)
    unit = float(np.abs(atoms).max()) or 1.0  # squares may leave the range
    return unit * float(np.mean(np.sqrt(known @ np.square(atoms / unit))))


def _coherence(D: Operator) -> tuple[float, float]:
    """The coherence of the dictionary, and the expected coherence of a random dictionary."""
    m, d = D.shape
    return float(mutual_coherence(D)), min(1.0, math.sqrt(4 * math.log(max(d, 2)) / m))


def _nonzeros(D: Operator, codes: np.ndarray) -> float:
    """The mean number of nonzero entries of a code, or of nonzero parts of a code."""
    return float(np.mean((codes.reshape(len(codes), -1, block_of(D)) != 0).any(2).sum(1)))


def _case(
    D: Operator, codes: np.ndarray, preface: str, noise: str, n: int, missing: str = ""
) -> str:
    (m, d), g, nonzeros = D.shape, block_of(D), _nonzeros(D, codes)
    if g > 1:
        return (
            f"{preface} A code has {d // g} parts of {g} real numbers, and {nonzeros:.1f} parts "
            f"are not 0 on average. A signal has {m} real numbers{missing}. {noise} There are "
            f"{n:,} signals to code."
        )
    mu, random = _coherence(D)
    signs = "no negative entries" if (codes >= 0).all() else "entries of both signs"
    return (
        f"{preface} A code has {nonzeros:.1f} nonzeros on average, and a signal has {m} entries"
        f"{missing}. The codes have {signs}. {noise} D is {m} x {d} and has coherence {mu:.2f}; a "
        f"random matrix of this size has a coherence of about {random:.2f}. There are {n:,} "
        "signals to code."
    )


def _of_known(
    D: Operator,
    Y: Any,
    X: Any,
    lam: float | None,
    noise: float | None,
    n: int,
    data: tuple[Any, Any, Any, Any],
) -> Recommendation:
    """The recommendation if codes are known: a family, by the noise and the dictionary."""
    checks.finite((Y, X), "Y or X", "recommend")
    law: Law = law_of(D, Y, X)
    share = (law.noise if noise is None else noise**2) / law.signal
    text = "There is no noise."
    if share:
        text = f"The noise is {-10 * math.log10(share):.0f} dB below the signals."
    if block_of(D) > 1:
        family, options = "alista", {}
        why = (
            "We trained three families on complex codes of a 24 x 48 dictionary, without noise and "
            "at a signal-to-noise ratio of 20 dB. Of these three, alista ends with the lowest "
            "error (benchmarks/parts.json). We trained no other family on codes in parts."
        )
    elif _coherence(D)[0] > RULES.passes_messages or isinstance(D, Structured):
        family, options = "alista_at", {"onsager": True}
        why = (
            "We measured message passing only on dense dictionaries with coherence up to "
            f"{RULES.passes_messages:g}. The family alista_at adapts its thresholds to each signal "
            "and does not need such a dictionary."
        )
    elif share <= RULES.little_noise:
        family, options = "tista", {"onsager": True}
        why = (
            "Of the families in benchmarks/lista.jsonl, tista with the Onsager term ends with the "
            "lowest error on signals without noise: -120 dB on the standard benchmark. The LASSO "
            "ends at -11 dB on these signals."
        )
    else:
        family, options = "vamp_bg", {}
        why = (
            "Of the families in benchmarks/lista.jsonl, vamp_bg ends with the lowest error on "
            "noisy signals. At a signal-to-noise ratio of 30 dB its error is within 1.1 dB of the "
            "error of an oracle that knows the support. The sample gives vamp_bg the share and the "
            "size of the nonzeros."
        )
    if lam is not None:
        why += _rival(D, Y, X, lam)
    case = _case(D, np.asarray(X[:_ASKED]), "The codes are known.", text, n)
    return Recommendation(case, family, why, lam, data, options)


def _rival(D: Operator, Y: Any, X: Any, lam: float) -> str:
    """The error of the codes of the LASSO, which a network trained for X should beat."""
    rows = np.flatnonzero(np.asarray(X).any(1))
    rows = rows[_some(len(rows))]
    codes = lasso_batch(D, np.asarray(Y[rows]), lam).x
    error = float(metrics.nmse(codes, np.asarray(X[rows]).astype(codes.dtype)))
    return (
        f" On {len(rows)} of your signals, the exact codes of the LASSO with lam = {lam!r} have "
        f"an NMSE of {error:.1f} dB. If the field nmse of fit() is not lower, use "
        f"ur.pursuit.lasso_batch(D, Y, {lam!r}) instead."
    )


def _share(nonzeros: float, m: float, entries: str) -> str:
    return (
        f"A code has {nonzeros:.1f} nonzeros on average, {nonzeros / m:.2f} times the number of "
        f"{entries} of a signal."
    )


def _is_like_random(D: Operator) -> bool:
    """Whether D has about the coherence of a random matrix."""
    mu, random = _coherence(D)
    return mu <= RULES.like_random * random


def _why_exact(
    D: Operator, nonzeros: float, n: int, m: float, share: str, sweeps: bool
) -> str | None:
    """The reason to prefer exact codes; None if training a network for the LASSO pays.

    The network is `bcd` if `sweeps`, `fista` otherwise.
    """
    d = D.shape[1]
    if block_of(D) > 1:
        return (
            "Exact codes have no gap to the optimum. We measured when a network pays only for "
            "codes of single entries, and these codes have parts."
        )
    if nonzeros < RULES.few_nonzeros * m:
        return (
            f"{share} If this ratio is below {RULES.few_nonzeros:g}, an exact solver is cheap, and "
            "its codes have no gap to the optimum."
        )
    if n < RULES.many_signals:
        return (
            f"There are {n:,} signals to code. Training pays only for about "
            f"{RULES.many_signals:,} signals or more in most cases that we measured."
        )
    if not sweeps and not _is_like_random(D):
        mu, random = _coherence(D)
        return (
            f"D has coherence {mu:.2f}; a random matrix of its size has about {random:.2f}. On "
            "dictionaries with such a coherence, for example learned dictionaries, the objective "
            f"of {_DEPTH} steps of FISTA with trained numbers is often more than 1 % above the "
            "optimum."
        )
    if d < RULES.many_atoms:
        return (
            f"D has {d:,} atoms. With fewer than {RULES.many_atoms:,} atoms, a million signals "
            "repaid no training that we measured (benchmarks/recipe.jsonl); `ur.compare` of the "
            "result of `fit()` measures after how many signals your training is repaid."
        )
    if nonzeros < RULES.many_nonzeros * m:
        return (
            f"{share} We recommend a network only if this ratio is at least "
            f"{RULES.many_nonzeros:g}: the network then takes less than half of the time of an "
            "exact solver (benchmarks/recipe_large.jsonl)."
        )
    return None


def _network(D: Operator, share: str, n: int, sweeps: bool) -> tuple[str, dict[str, Any], str]:
    """The family to train, the options of `unsupervised`, and the reason."""
    d = D.shape[1]
    if sweeps:
        depth = _SWEEPS[not _is_like_random(D)]
        return (
            "bcd",
            {"depth": depth, "steps": _STEPS},
            f"{share} D has {d:,} atoms, and there are {n:,} signals to code. In this case {depth} "
            f"sweeps of block coordinate descent with {d + 3 * depth:,} trained numbers come "
            "within 1 % of the optimal objective, in about half of the time of an exact solver or "
            "less (benchmarks/recipe_large.jsonl).",
        )
    return (
        "fista",
        {"family": "fista"},
        f"{share} D has {d:,} atoms and about the coherence of a random matrix, and there are "
        f"{n:,} signals to code. In this case {_DEPTH} steps of FISTA with {2 * _DEPTH} trained "
        "numbers come within 1 % of the optimal objective, in less than half of the time of an "
        "exact solver.",
    )


def _of_unknown(
    D: Operator,
    Y: Any,
    lam: float,
    codes: np.ndarray,
    noise: float | None,
    n: int,
    data: tuple[Any, Any, Any, Any],
    known: np.ndarray | None = None,
) -> Recommendation:
    """The recommendation for the LASSO: an exact solver, or a network that minimises it."""
    m, nonzeros, missing = D.shape[0], _nonzeros(D, codes), ""
    entries, seen, measured, marks = "entries", float(m), "", ""
    if known is not None:  # a code fits the known entries; `seen` is their mean number
        entries, seen, marks = "known entries", m * float(known.mean()), ", mask=mask"
        missing = f"; {m - seen:.1f} of them are missing on average"
        measured = " We measured this on signals without missing entries."
    share = _share(nonzeros, seen, entries)
    sweeps = family_without_codes(D, known) == "bcd"
    exact = _why_exact(D, nonzeros, n, seen, share, sweeps)
    if exact is None:
        method, options, why = _network(D, share, n, sweeps)
        why += measured
    else:
        method, options = "lasso_batch", {}
        why = exact + measured + _OR_TRAIN.format(lam=lam, mask=marks)
    of = "a real number" if block_of(D) > 1 else "an entry"
    text = "The noise is not known."
    if noise is not None:
        text = f"The noise in {of} of a signal has standard deviation {noise:g}."
    preface = "The codes are not known."
    if data[2] is not None and len(Y) < RULES.fewest_pairs:
        preface = f"The codes of only {len(Y):,} signals are known, too few to train on."
    elif data[2] is not None:
        preface = "The codes are known."
        why += (
            " To train for the known codes, pass mask=mask to ur.fit, because training.by_recipe "
            "does not take a mask."
        )
    case = _case(D, codes, preface, text, n, missing)
    return Recommendation(case, method, why, lam, (*data[:2], None, data[3]), options)
