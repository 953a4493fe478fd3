"""The candidates of `recommend`, measured on signals of the caller: gaps and costs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from unrolled._base import checks
from unrolled.dictionaries import Operator, block_of, known_part, shared_part, signal_axes
from unrolled.layers import FAMILIES, codes_after, codes_of
from unrolled.pursuit import (
    FEWEST,
    clock,
    in_turns,
    lasso_batch,
    lasso_objective,
    lasso_solvers,
)
from unrolled.training._signals import BATCH, Signals
from unrolled.training._unsupervised import (
    family_without_codes,
    plain,
    run_lengths,
    seconds_of_training,
    trained_layer,
)
from unrolled.training._verdict import LASSO_BATCH, Candidate, cheapest

ASKED = 256  # signals on which methods are measured
DEPTHS = 8, 16, 32, 64, 128  # numbers of steps of untrained layers
_FAR = 0.1  # more steps are not measured if a mean gap is below this share of the wanted gap
_REFERENCE = 1e-9  # the relative duality gap of F*
TOL = 1e-6  # duality gap of the exact codes, unless the wanted gap is smaller
_FEW = 128  # the fewest signals in a timed call: below, `lasso_batch` may take another method
_STEPS = 300  # steps of each run that trains
_TIMES = 4  # the fewest times that the larger of two timed calls has the signals of the smaller
_PASSES = 2  # the least time of a training step, in times of a forward pass
_SHORT, _LONG = 0.1, 0.25  # seconds of a timed call, if the number of signals allows it

Call = Callable[[], Any]
Calls = dict[tuple[str, int | None], tuple[Call, Call]]  # on few and on many signals, by method, K


class Sample(NamedTuple):
    """Signals, the entries of them that are known, and their optima."""

    D: Operator
    Y: np.ndarray  # (n, m)
    lam: float
    known: np.ndarray | None  # (n, m), the entries that are known
    codes: np.ndarray  # (n, d)
    best: np.ndarray  # (n,), F*; nan without a certificate
    family: str  # the family to measure next to `fista`, and to train

    @classmethod
    def of(
        cls,
        D: Operator,
        Y: np.ndarray,
        lam: float,
        known: np.ndarray | None,
        family: str | None = None,
    ) -> Self:
        """Solve the LASSO of all signals, in float64 unless codes come in parts.

        A solver of parts takes seconds to compile for each dtype, and F* is then off by up to 1e-6
        of norm(y)^2 / 2.
        """
        if block_of(D) > 1:
            optima = lasso_batch(D, Y, lam, mask=known)
        else:
            with jax.enable_x64(True):
                wide = checks.cast_on_host((shared_part(D), Y, lam), np.float64)
                optima = lasso_batch(*wide, tol=_REFERENCE, mask=known)
        codes, certified = np.asarray(optima.x), np.asarray(optima.converged)
        family = family or untrained_family(D, known)
        sample = cls(D, Y, lam, known, codes, np.zeros(len(Y)), family)
        return sample._replace(best=np.where(certified, sample.objectives(codes), np.nan))

    def objectives(self, codes: Any) -> np.ndarray:
        """F of codes, in float64."""
        with jax.enable_x64(True):
            D, Y, X = checks.cast_on_host((self.D, self.Y, np.asarray(codes)), np.float64)
            own, Y = known_part(D, Y, self.known)
            axes = signal_axes(own), 0, 0, None
            return np.asarray(jax.vmap(lasso_objective, axes)(own, Y, X, self.lam))

    def gaps(self, codes: Any) -> np.ndarray:
        """(F - F*) / F* of the signals with a certified F*; inf for all if there is none."""
        excess = np.maximum(self.objectives(codes[: len(self.Y)]) - self.best, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            gaps = np.where(excess == 0, 0, excess / self.best)[np.isfinite(self.best)]
        return np.where(np.isnan(gaps), np.inf, gaps) if len(gaps) else np.array([np.inf])

    def rows(self, rows: Any) -> Self:
        """Some of the signals, also several times."""
        some = {n: getattr(self, n)[rows] for n in ("Y", "codes", "best")}
        return self._replace(**some, known=None if self.known is None else self.known[rows])


def measured(
    sample: Sample, gap: float | None, networks: Mapping[str, tuple[Any, Any, Any]] | None = None
) -> tuple[Candidate, ...]:
    """The exact solvers, the untrained layers and networks, in turns, on at most all signals.

    Args:
        sample: the signals.
        gap: the wanted mean gap; None takes the smallest mean gap of the networks.
        networks: model, params and D by name, for signals whose entries are all known.
    """
    exact = _exact(sample, gap or TOL)
    jax.block_until_ready(exact())
    both = few, many = _chosen(sample, _seconds(exact))
    calls: Calls = {(LASSO_BATCH, None): _pair(_exact(of, gap or TOL) for of in both)}
    if sample.known is None:
        for name, solve in lasso_solvers([sample.D]).items():
            if name != "exact":
                calls[name, None] = _pair(partial(solve, of.D, of.Y, of.lam) for of in both)
    own: Calls = {
        (name, None): _pair(partial(codes_of, *network, of.Y) for of in both)
        for name, network in (networks or {}).items()
    }
    calls |= own
    gaps = {name: few.gaps(call()) for name, (call, _) in calls.items()}
    wanted = min(gaps[name].mean() for name in own) if gap is None else gap
    most, starts = _seconds(calls[LASSO_BATCH, None][1]), {}
    for family in dict.fromkeys(("fista", untrained_family(sample.D, sample.known), sample.family)):
        start = partial(layer_of(family, DEPTHS[-1], sample.lam).init, None, sample.D)
        try:
            params = start()
        except ValueError:  # D has no step size
            continue
        starts[family] = _seconds(start)
        for K in DEPTHS:
            calls[family, K] = _pair(_untrained(family, K, params, of) for of in both)
            gaps[family, K] = few.gaps(calls[family, K][0]())
            far = gaps[family, K].mean() <= _FAR * wanted
            if far or _seconds(calls[family, K][1]) > most:
                break
    timings = in_turns({(name, i): call[i] for name, call in calls.items() for i in (0, 1)})

    def row(name: tuple[str, int | None]) -> Candidate:
        sizes, pair = (len(few.Y), len(many.Y)), (timings[name, 0], timings[name, 1])
        fixed, each = line(sizes, (pair[0].seconds, pair[1].seconds))
        fixed += 0.0 if name[1] is None else starts[name[0]]
        of, spread = gaps[name], max(timing.spread for timing in pair)
        mean, median, worst = (float(number) for number in (of.mean(), np.median(of), of.max()))
        return Candidate(*name, 1e6 * each, mean, median, worst, spread, fixed=fixed)

    return tuple(map(row, calls))


def line(signals: tuple[int, int], seconds: tuple[float, float]) -> tuple[float, float]:
    """The seconds of a call and of each signal, from two calls; neither is negative.

    Example:
        >>> from unrolled.training._candidates import line
        >>> line((100, 400), (2.0, 5.0))
        (1.0, 0.01)
        >>> line((100, 400), (1.0, 5.0))  # more than 4 times as much: no fixed part
        (0.0, 0.0125)
    """
    (few, many), (short, long) = signals, seconds
    each = long / many
    if many > few:
        each = min(max(0.0, long - short) / (many - few), each)
    return long - each * many, each


def _pair(calls: Iterable[Call]) -> tuple[Call, Call]:
    few, many = calls
    return few, many


def _chosen(sample: Sample, seconds: float) -> tuple[Sample, Sample]:
    """Signals to measure gaps on, and these signals several times: two sizes of a timed call.

    `seconds` is the time of the exact codes of the whole sample.
    """
    n = len(sample.Y)
    some = np.random.default_rng(0).permutation(n)  # signals may come in a periodic order
    few = sample.rows(some[: max(_FEW, math.ceil(n * min(1, _LONG / seconds)))])
    if block_of(sample.D) > 1:  # a solver of parts compiles for each shape
        return few, few
    few = few.rows(np.tile(np.arange(len(few.Y)), -(-_FEW // len(few.Y))))
    times = max(_TIMES, min(int(_SHORT / seconds), -(-FEWEST // len(few.Y))))
    return few, few.rows(np.tile(np.arange(len(few.Y)), times))


def next_to_trained(
    D: Any, Y: Any, lam: float, networks: Mapping[str, tuple[Any, Any, Any, float]]
) -> tuple[Candidate, ...]:
    """Trained networks next to exact codes and untrained layers, on at most 256 of the signals.

    `networks` has the model, the params, D, and the seconds of the training by name.
    """
    sample = Sample.of(D, np.asarray(Y[some_of(len(Y))]), float(lam), None)
    rows = measured(sample, None, {name: of[:3] for name, of in networks.items()})
    return tuple(
        row.replace(training=networks[row.method][3])
        if row.K is None and row.method in networks
        else row
        for row in rows
    )


def some_of(n: int) -> np.ndarray:
    """At most `ASKED` indices below n, from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, ASKED)).astype(int))


def _seconds(call: Callable[[], Any]) -> float:
    """The time of one call, which has run before."""
    now = clock()
    began = now()
    jax.block_until_ready(call())
    return max(now() - began, 1e-9)


def untrained_family(D: Operator, known: Any) -> str:
    """The family to train, by `family_without_codes`, if a step costs no more untrained."""
    return "bcd" if family_without_codes(D, known) == "bcd" else "fista"


def _exact(sample: Sample, gap: float) -> Callable[[], Any]:
    """The codes of `lasso_batch`, to the wanted gap."""
    options: Any = exact_options(gap) | {"mask": sample.known}
    return lambda: lasso_batch(sample.D, sample.Y, sample.lam, **options).x


def exact_options(gap: float) -> dict[str, float]:
    """The options of `lasso_batch` for codes within a gap."""
    return {} if gap >= TOL else {"tol": gap}


def _untrained(family: str, K: int, params: Any, sample: Sample) -> Call:
    """The codes after the first K steps of the longest layer: one program for all K."""
    own, Y = known_part(sample.D, sample.Y, sample.known)
    return partial(codes_after, K, layer_of(family, DEPTHS[-1], sample.lam), params, own, Y)


def layer_of(family: str, depth: int, lam: float) -> Any:
    """The untrained layer of a candidate."""
    return plain(FAMILIES[family], depth, lam)


def training_of(sample: Sample, rows: Sequence[Candidate], gap: float, n: int) -> Candidate | None:
    """What training could gain, next to the cheapest untrained method; None if nothing.

    We expect that a trained layer with K steps is within the gap if the untrained layer with 2 K
    steps is; this predicts no gap, which was 2 to 7 times as large on held-back problems. The
    seconds of the training are predicted from one compiled step; if n signals cannot repay the
    products alone, nothing is compiled, and the seconds are those of the products.
    """
    family, best = sample.family, cheapest(rows, gap, n)
    of = {row.K: row for row in rows if row.method == family and row.K is not None}
    near = (K for K, row in of.items() if row.mean > gap >= of.get(2 * K, row).mean)
    K = next(near, None)
    if K is None or of[K].microseconds >= best.microseconds or len(sample.Y) < 2:
        return None
    layer, spent = trained_layer(family, K, sample.lam), of[K].microseconds
    if layer != layer_of(family, K, sample.lam):  # a guard takes time
        own, Y = known_part(sample.D, sample.Y, sample.known)
        call = partial(codes_of, layer, layer.init(None, sample.D), own, Y)
        spent = 1e6 * in_turns({K: call})[K].seconds / len(sample.Y)
    if spent >= best.microseconds:
        return None
    least = 1e-6 * _PASSES * BATCH * spent * sum(run_lengths(layer, _STEPS)[:-1])
    nothing = dict(mean=math.nan, median=math.nan, worst=math.nan, fixed=0.0)  # gaps not predicted
    training = of[K].replace(microseconds=spent, training=least, **nothing)
    if n < training.repaid(best):
        return training
    signals = Signals.of(sample.D, sample.Y, 0, mask=sample.known, where="recommend")
    return training.replace(training=seconds_of_training(layer, signals, sample.lam, _STEPS))


def options_of(training: Candidate, sample: Sample) -> dict[str, Any]:
    """The options of `unsupervised` for this training."""
    usual = training.method == family_without_codes(sample.D, sample.known)
    family = {} if usual else {"family": training.method}
    return family | {"depth": training.K, "steps": _STEPS}
