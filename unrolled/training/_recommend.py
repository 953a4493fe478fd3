"""Recommend a method for your dictionary and signals: exact codes, or an untrained or a trained
network; if codes are not known, by their costs and gaps on your signals.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled import metrics, plots
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike, Key
from unrolled._base.files import as_data
from unrolled._base.text import table_of
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    Structured,
    as_dictionary,
    block_of,
    check_batch,
    column_norms,
    cuts_atoms,
    dense,
    flat_batch,
    refuse_parts,
)
from unrolled.layers import Law, Layer
from unrolled.pursuit import default_lam, lasso_batch
from unrolled.theory import mutual_coherence
from unrolled.training._candidates import (
    ASKED,
    TOL,
    Sample,
    exact_options,
    layer_of,
    measured,
    options_of,
    some_of,
    training_of,
)
from unrolled.training._recipe import by_recipe, law_of
from unrolled.training._signals import check_width, each_known
from unrolled.training._unsupervised import check_family, unsupervised
from unrolled.training._verdict import LASSO_BATCH, Candidate, cheapest, verdict

__all__ = ["Recommendation", "recommend"]


class _Rules(NamedTuple):
    """The bounds at which the recommended family changes if codes are known; each number was
    measured (benchmarks/lista.jsonl).
    """

    # The largest coherence of a dictionary at which message passing was measured.
    passes_messages: float = 0.9
    # The ratio of the energies of noise and signals below which `tista` has a smaller error than
    # `vamp_bg`.
    little_noise: float = 1e-5
    fewest_pairs: int = 1000  # least number of signals with known codes to train on


RULES = _Rules()
_LEAST = 1e-12  # no gap in float64 is below
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
        layer: the layer to run without training; None for a pursuit or a network to train.
        rows: the costs and gaps of all methods that were measured; none if codes are known.
        gap: the wanted mean gap (F - F*) / F*.
        training: the predicted costs of a trained network, without gaps; None if it could gain
            nothing.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> Y, _ = ur.problems.sampler(D, batch=50)(jax.random.key(1))
        >>> advice = ur.recommend(D, Y, lam=0.1)
        >>> [row.method for row in advice.rows[:2]]
        ['lasso_batch', 'fista']
        >>> advice.method in {row.method for row in advice.rows}
        True
    """

    case: str
    method: str
    why: str
    lam: float | None
    data: tuple[Any, Any, Any, Any]  # D, Y, X, mask
    options: dict[str, Any]  # options of the method
    layer: Layer | None = None
    rows: tuple[Candidate, ...] = ()
    gap: float | None = None
    training: Candidate | None = None

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        options += "" if self.data[3] is None else ", mask=mask"
        if self.layer is not None:
            return f"ur.layers.{self.layer!r}.encode(D, Y{options})"
        if self.method == LASSO_BATCH:
            return f"ur.pursuit.lasso_batch(D, Y, {self.lam!r}{options})"
        if self.data[2] is None:
            return f"ur.training.unsupervised(D, Y, {self.lam!r}, key=0{options})"
        return f"ur.training.by_recipe({self.method!r}, D, (Y, X), key=0{options})"

    def fit(self, key: Key = 0) -> Any:
        """Run the code of `repr`: return a `Pursuit` with the codes of Y, the codes of an untrained
        layer, a `Fit`, or a `Made`.

        Args:
            key: the key of the training; only training uses it.
        """
        (D, Y, X, mask), lam = self.data, self.lam
        if self.layer is not None:
            return self.layer.encode(D, Y, mask=mask)
        if self.method == LASSO_BATCH:
            return lasso_batch(D, Y, lam, mask=mask, **self.options)
        if X is None and lam is not None:
            return unsupervised(D, Y, lam, key=key, mask=mask, **self.options)
        return by_recipe(self.method, D, (Y, X), key=key, **self.options)

    def table(self, form: str = "markdown") -> Any:
        """A table of the measured methods, with the reason below.

        Args:
            form: "markdown", "latex", "csv", or "records", a list of dicts with unrounded numbers.

        Raises:
            ValueError: the form is unknown.
        """
        return table_of(form, [row.asdict() for row in self.rows], [self.why])

    def plot(self) -> Any:
        """A figure of the mean gaps of the measured methods against their costs."""
        names = dict.fromkeys(row.method for row in self.rows)
        of = {name: [row for row in self.rows if row.method == name] for name in names}
        lines = {
            name: ([row.microseconds for row in rows], [max(row.mean, _LEAST) for row in rows])
            for name, rows in of.items()
        }
        return plots.costs(lines, gap=self.gap)


@checked
def recommend(
    D: Dictionary,
    Y: Array | np.ndarray | Any,
    X: Array | np.ndarray | Any = None,
    *,
    lam: ArrayLike | None = None,
    gap: ArrayLike = 1e-3,
    noise: ArrayLike | None = None,
    signals: int | None = None,
    mask: ArrayLike | None = None,
    family: str | None = None,
) -> Recommendation:
    """Recommend a method for signals in a dictionary: exact codes, or a network.

    If the codes of 1,000 signals or more are known, `recommend` chooses a network: training can aim
    at the known codes, but an exact solver returns LASSO codes. Otherwise `recommend` measures
    costs, and the gaps (F - F*) / F* of the LASSO, on at most 256 of the signals: of `lasso_batch`,
    of SPAMS if it is installed, and of the untrained layers `fista` and `bcd` with 8, 16, 32, 64
    and 128 steps, up to the first number of steps whose mean gap is below gap / 10, or that takes
    more time than exact codes. A cost is the fixed time of a call and the time of each further
    signal, from calls with two numbers of signals. The untrained choice is the method that costs
    least for `signals` signals, of those whose mean gap is at most `gap`. `recommend` then predicts
    whether training pays: a trained layer with K steps should come within the gap if the untrained
    layer with 2 K steps does, and the time of training follows from one compiled step. `recommend`
    advises to train only if the training is repaid by the number of signals to code.

    With a mask, or if D is structured, `fista` is the only layer. On a CPU a time is the CPU time
    of this process, in all threads, and no other thread should compute meanwhile; on other devices
    a time is the time of the clock. For 256 x 1024 the answer takes 5 to 20 seconds on one core,
    and half of this time is compilation. If you know complex codes, `recommend` chooses the family
    that ended with the lowest error on complex codes (benchmarks/parts.json).

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
        gap: the largest mean gap (F - F*) / F* of codes, if codes are not known.
        noise: standard deviation of the noise in an entry of Y (of a complex entry, not of its real
            part). If the codes of 1,000 signals or more are known, None estimates the noise from
            these codes.
        signals: number of signals to code; None takes the number of signals in Y.
        mask: bools, in the shape of Y or of one signal, True where an entry is known; unknown
            entries of Y may be NaN. The method then gets this mask. The nonzeros and a lam that
            `recommend` computes are those of the known entries, as with `dictionaries.Masked`. If
            codes are known, `recommend` ignores them, because `by_recipe` does not take a mask.
        family: another family that `unsupervised` trains, such as one of your own. If codes are
            not known, its untrained layers are measured, too, and the predicted training is that of
            this family; otherwise `recommend` ignores it.

    Returns:
        Recommendation, with `case`, `method`, `why`, `fit(key=0)`, and the measurements as `rows`,
        `table()` and `plot()`. If two timings of a method differ by more than a factor of 1.5,
        `why` says that the choice is not sure.

    Raises:
        TypeError: signals are integers, the mask is not bool, or an argument has a wrong type.
        ValueError: shapes do not fit, known entries are not finite, lam, noise or the number of
            signals is negative, gap is not positive, all signals are zero, or `unsupervised` does
            not train the family, or not with codes in parts.

    Zero atoms are never chosen: `case` names them, and the coherence and a lam that `recommend`
    computes are those of the other atoms.

    Not claimed: that a trained network reaches the gap that `recommend` expects. The times do not
    contain compilation.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> Y, X = ur.problems.sampler(D, batch=2000, probability=0.05)(jax.random.key(1))
        >>> ur.recommend(D, Y, X)
        ur.training.by_recipe('tista', D, (Y, X), key=0, onsager=True)
        >>> advice = ur.recommend(D, Y, lam=0.1, gap=0.01)
        >>> advice.method in {row.method for row in advice.rows if row.mean <= 0.01}
        True
    """
    where = "recommend"
    check_family(family, where)
    X = checks.as_float(X, "X", where) if isinstance(X, list) else X  # not codes of a chain
    D, given = as_dictionary(D, where), (Y, X)
    flat = flat_batch(D, given)
    seen, known = (flat[0], None) if mask is None else _known_entries(D, flat[0], mask, where)
    Y, X = as_data(seen, flat[1], where)
    check_width(Y, D, where)
    data = (D, *((Y, X) if flat is given else given), mask)  # codes have the form of the signals
    n = len(Y) if signals is None else checks.as_index(signals, "signals", where)
    lam, noise = (_number(value, name, where) for value, name in ((lam, "lam"), (noise, "noise")))
    gap = checks.as_number(gap, "gap", where)
    if not 0 < gap < math.inf:
        raise ValueError(f"{where}: gap must be positive and finite, got {gap}")
    if noise is not None and np.iscomplexobj(given[0]):
        noise /= math.sqrt(2)
    if X is not None:
        check_batch(D, Y, X, where)
    if X is not None and len(Y) >= RULES.fewest_pairs and known is None:
        return _of_known(D, Y, X, lam, noise, n, data)
    rows = some_of(len(Y))
    sample, marks = np.asarray(Y[rows]), None if known is None else known[rows]
    checks.finite(sample, "Y", where)
    if lam is None:
        lam = float(f"{_lam(D, Y, noise, marks):.3g}")
    if family is not None and not layer_of(family, 1, lam).takes_parts:
        refuse_parts(D, where, "try family='lfista_cp'")
    return _of_unknown(Sample.of(D, sample, lam, marks, family), known, noise, n, gap, data)


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


def _lam(D: Operator, Y: Any, noise: float | None, known: np.ndarray | None) -> float:
    """The universal threshold of the noise, or `default_lam` if the noise is not known or 0."""
    if not noise:
        return default_lam(D, Y)
    g, d = block_of(D), int(_nonzero(D).sum())
    threshold = math.sqrt(2 * math.log(max(2, d // g))) + (math.sqrt(g) if g > 1 else 0)
    return noise * threshold * _mean_norm(D, known)


def _mean_norm(D: Operator, known: np.ndarray | None) -> float:
    """The mean norm of an atom on the known entries of a signal; zero atoms do not count."""
    if known is None:
        return float(np.mean(np.asarray(column_norms(D))[_nonzero(D)]))
    atoms = np.asarray(dense(D), float)[:, _nonzero(D)]
    unit = float(np.abs(atoms).max()) or 1.0  # squares may leave the range
    return unit * float(np.mean(np.sqrt(known @ np.square(atoms / unit))))


def _coherence(D: Operator) -> tuple[float, float]:
    """The coherence of the nonzero atoms, and the expected coherence of a random dictionary."""
    (m, d), some = D.shape, _nonzero(D)
    atoms = D if some.all() and not cuts_atoms(D) else np.asarray(dense(D))[:, some]
    return float(mutual_coherence(atoms)), min(1.0, math.sqrt(4 * math.log(max(d, 2)) / m))


def _nonzero(D: Operator) -> np.ndarray:
    """Which atoms are not zero, (d,)."""
    return np.asarray(column_norms(D)) > 0


def _of_zero_atoms(D: Operator) -> str:
    """A sentence that names zero atoms."""
    zero = np.flatnonzero(~_nonzero(D))
    if not len(zero):
        return ""
    more = f" and {len(zero) - 8:,} more" if len(zero) > 8 else ""
    return f" Atoms {zero[:8].tolist()}{more} are zero, and no method chooses them."


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
            f"{n:,} signals to code.{_of_zero_atoms(D)}"
        )
    mu, random = _coherence(D)
    signs = "no negative entries" if (codes >= 0).all() else "entries of both signs"
    return (
        f"{preface} A code has {nonzeros:.1f} nonzeros on average, and a signal has {m} entries"
        f"{missing}. The codes have {signs}. {noise} D is {m} x {d} and has coherence {mu:.2f}; a "
        f"random matrix of this size has a coherence of about {random:.2f}. There are {n:,} "
        f"signals to code.{_of_zero_atoms(D)}"
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
    case = _case(D, np.asarray(X[:ASKED]), "The codes are known.", text, n)
    return Recommendation(case, family, why, lam, data, options)


def _rival(D: Operator, Y: Any, X: Any, lam: float) -> str:
    """The error of the codes of the LASSO, which a network trained for X should beat."""
    rows = np.flatnonzero(np.asarray(X).any(1))
    rows = rows[some_of(len(rows))]
    codes = lasso_batch(D, np.asarray(Y[rows]), lam).x
    error = float(metrics.nmse(codes, np.asarray(X[rows]).astype(codes.dtype)))
    return (
        f" On {len(rows)} of your signals, the exact codes of the LASSO with lam = {lam!r} have "
        f"an NMSE of {error:.1f} dB. If the field nmse of fit() is not lower, use "
        f"ur.pursuit.lasso_batch(D, Y, {lam!r}) instead."
    )


def _of_unknown(
    sample: Sample,
    known: np.ndarray | None,
    noise: float | None,
    n: int,
    gap: float,
    data: tuple[Any, Any, Any, Any],
) -> Recommendation:
    """The recommendation for the LASSO, by the costs and gaps of a sample."""
    D, lam, m = sample.D, sample.lam, sample.D.shape[0]
    rows = measured(sample, gap)
    best, training = cheapest(rows, gap, n), training_of(sample, rows, gap, n)
    why = f"Measured on {len(sample.Y)} of your signals. {verdict(rows, gap, n, training)}"
    layer, method, options = None, best.method, exact_options(gap)
    if best.method == LASSO_BATCH:
        why += _unprovable(checks.common_dtype(D, data[1]), options)
    if training is not None and n > training.repaid(best):
        method, options = training.method, options_of(training, sample)
    elif best.K is not None:
        layer, options = layer_of(best.method, best.K, lam), {}
    if method == LASSO_BATCH:
        marks = "" if known is None else ", mask=mask"
        why += _OR_TRAIN.format(lam=lam, mask=marks)
    missing = ""
    if known is not None:
        missing = f"; {m * (1 - float(known.mean())):.1f} of them are missing on average"
    of = "a real number" if block_of(D) > 1 else "an entry"
    text = "The noise is not known."
    if noise is not None:
        text = f"The noise in {of} of a signal has standard deviation {noise:g}."
    preface = "The codes are not known."
    if data[2] is not None and len(data[2]) < RULES.fewest_pairs:
        preface = f"The codes of only {len(data[2]):,} signals are known, too few to train on."
    elif data[2] is not None:
        preface = "The codes are known."
        why += (
            " To train for the known codes, pass mask=mask to ur.fit, because training.by_recipe "
            "does not take a mask."
        )
    case, data = _case(D, sample.codes, preface, text, n, missing), (*data[:2], None, data[3])
    return Recommendation(case, method, why, lam, data, options, layer, rows, gap, training)


def _unprovable(dtype: np.dtype, options: dict[str, float]) -> str:
    """A warning if the rounding of codes to this dtype may leave duality gaps above tol."""
    least = 4 * float(jnp.finfo(dtype).eps)
    if options.get("tol", TOL) >= least:
        return ""
    return (
        f" The rounding of codes to {dtype.name} leaves duality gaps of up to about {least:.0e}. "
        "Hence `converged` may be False: cast D and Y to a wider dtype if you need the proof."
    )
