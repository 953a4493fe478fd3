"""The candidates of `recommend`, measured on signals of the caller: gaps and costs."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.results import Result
from unrolled.dictionaries import Operator, block_of, known_part, shared_part, signal_axes
from unrolled.layers import FAMILIES, Layer, codes_of
from unrolled.pursuit import (
    FEWEST,
    clock,
    in_turns,
    lasso_batch,
    lasso_objective,
    lasso_solvers,
    repaid_after,
)
from unrolled.training._signals import Signals
from unrolled.training._unsupervised import (
    family_without_codes,
    seconds_of_training,
    trained_layer,
)

__all__ = ["Candidate"]

EXACT = "lasso_batch"  # the exact solver that `recommend` recommends
DEPTHS = 8, 16, 32, 64, 128  # numbers of steps of untrained layers
_FAR = 0.1  # more steps are not measured if a mean gap is below this share of the wanted gap
_REFERENCE = 1e-9  # the relative duality gap of F*
TOL = 1e-6  # duality gap of the exact codes, unless the wanted gap is smaller
_FEW = 128  # the fewest signals in a timed call: below, `lasso_batch` may take another method
_STEPS = 300  # steps of each run that trains
_SHORT, _LONG = 0.1, 0.25  # seconds of a timed call, if the number of signals allows it


class Candidate(Result):
    """The cost of a method, and the gaps (F - F*) / F* of its codes, signal by signal."""

    method: str  # the name of the pursuit, or the family of the untrained layer
    K: int | None  # number of steps of a layer
    microseconds: float  # per signal: CPU time of this process, or on an accelerator by the clock
    mean: float  # the mean gap
    median: float  # the median gap
    worst: float  # the largest gap
    spread: float  # the longest of the repeated timings divided by the shortest

    def text(self) -> str:
        """The method in words.

        Example:
            >>> ur.training.Candidate("fista", 8, 2.0, 0.1, 0.1, 0.2, 1.0).text()
            'untrained fista with 8 steps'
        """
        return self.method if self.K is None else f"untrained {self.method} with {self.K} steps"


class Training(NamedTuple):
    """What training could gain: a layer that should end where its double depth starts."""

    layer: Layer
    microseconds: float  # per signal
    seconds: float  # of the training, predicted from one compiled step
    repaid: float  # number of signals after which the training is repaid


class Sample(NamedTuple):
    """Signals, the entries of them that are known, and their optima."""

    D: Operator
    Y: np.ndarray  # (n, m)
    lam: float
    known: np.ndarray | None  # (n, m), the entries that are known
    codes: np.ndarray  # (n, d)
    best: np.ndarray  # (n,), F*; nan without a certificate

    @classmethod
    def of(cls, D: Operator, Y: np.ndarray, lam: float, known: np.ndarray | None) -> Self:
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
        sample = cls(D, Y, lam, known, codes, np.zeros(len(Y)))
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


def measured(sample: Sample, gap: float) -> tuple[Candidate, ...]:
    """The exact solvers and the untrained layers, in turns, on at most all signals of a sample."""
    exact = _exact(sample, gap)
    jax.block_until_ready(exact())
    seconds = _seconds(exact)
    n = len(sample.Y)
    some = np.random.default_rng(0).permutation(n)  # signals may come in a periodic order
    few = sample.rows(some[: max(_FEW, math.ceil(n * min(1, _LONG / seconds)))])
    times = max(-(-_FEW // n), min(int(_SHORT / seconds), -(-FEWEST // n)))
    times = 1 if block_of(sample.D) > 1 else times  # a solver of parts compiles for each shape
    many = few.rows(np.tile(np.arange(len(few.Y)), times))
    calls: dict[tuple[str, int | None], Callable[[], Any]] = {(EXACT, None): _exact(many, gap)}
    if sample.known is None:
        others = lasso_solvers([sample.D]).items()
        calls |= {
            (n, None): partial(f, many.D, many.Y, many.lam) for n, f in others if n != "exact"
        }
    gaps = {name: few.gaps(call()) for name, call in calls.items()}
    most = _seconds(calls[EXACT, None])
    for family in dict.fromkeys(("fista", untrained_family(sample.D, sample.known))):
        for K, call in _untrained(family, many):
            calls[family, K], gaps[family, K] = call, few.gaps(call())
            far = gaps[family, K].mean() <= _FAR * gap
            if far or _seconds(call) > most:
                break
    return tuple(
        Candidate(
            method,
            K,
            1e6 * timing.seconds / len(many.Y),
            mean=float(gaps[method, K].mean()),
            median=float(np.median(gaps[method, K])),
            worst=float(gaps[method, K].max()),
            spread=timing.spread,
        )
        for (method, K), timing in in_turns(calls).items()
    )


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


def _untrained(family: str, sample: Sample) -> Iterator[tuple[int, Callable[[], Any]]]:
    """The numbers of steps, and functions that compute the codes; none if D has no step size."""
    whole = layer_of(family, DEPTHS[-1], sample.lam)
    own, Y = known_part(sample.D, sample.Y, sample.known)
    try:
        params = whole.init(None, sample.D)
    except ValueError:
        return
    for K in DEPTHS:  # with the first K steps
        steps = jax.tree.map(lambda leaf, K=K: leaf[:K], params.steps)
        layer = layer_of(family, K, sample.lam)
        yield K, partial(codes_of, layer, params._replace(steps=steps), own, Y)


def layer_of(family: str, depth: int, lam: float) -> Any:
    """The untrained layer of a candidate."""
    return FAMILIES[family](depth, lam=lam)  # type: ignore[call-arg]


def cheapest(rows: tuple[Candidate, ...], gap: float) -> Candidate:
    """The cheapest candidate of the library within a mean gap, or else the exact solver."""
    own = [row for row in rows if row.K is not None or row.method == EXACT]
    within = [row for row in own if row.mean <= gap] or own[:1]
    return min(within, key=lambda row: row.microseconds)


def training_of(
    sample: Sample, rows: tuple[Candidate, ...], gap: float, best: float
) -> Training | None:
    """What training could gain, next to `best` microseconds per signal; None if nothing.

    A trained layer with K steps should end at the gap of the untrained layer with 2 K steps.
    """
    family = untrained_family(sample.D, sample.known)
    of = {row.K: row for row in rows if row.method == family and row.K is not None}
    near = (K for K, row in of.items() if row.mean > gap >= of.get(2 * K, row).mean)
    K = next(near, None)
    if K is None or of[K].microseconds >= best or len(sample.Y) < 2:
        return None
    layer, spent = trained_layer(family, K, sample.lam), of[K].microseconds
    if layer != layer_of(family, K, sample.lam):  # a guard takes time
        own, Y = known_part(sample.D, sample.Y, sample.known)
        call = partial(codes_of, layer, layer.init(None, sample.D), own, Y)
        spent = 1e6 * in_turns({K: call})[K].seconds / len(sample.Y)
    if spent >= best:
        return None
    signals = Signals.of(sample.D, sample.Y, 0, mask=sample.known, where="recommend")
    seconds = seconds_of_training(layer, signals, sample.lam, _STEPS)
    return Training(layer, spent, seconds, repaid_after(1e6 * seconds, best, spent))


def options_of(layer: Layer) -> dict[str, Any]:
    """The options of `unsupervised` that train this layer."""
    family = {} if layer.family == "bcd" else {"family": layer.family}
    return family | {"depth": layer.depth, "steps": _STEPS}
