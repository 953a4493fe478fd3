"""The cost model: times of exact solvers and networks, and when training is repaid."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled.dictionaries import Structured, known_part, shared_part
from unrolled.pursuit._by_name import lasso_optima

_TURNS, _MOMENT, _ENOUGH = 5, 0.02, 0.5  # turns; least seconds of a turn, and of all but the second
FEWEST = 1000  # the fewest signals in a timed call
# The largest ratio of two times of one call with which costs are compared, and the largest gap
# (F - F*) / F* of the codes of an exact solver.
MOST_SPREAD, EXACT = 1.5, 1e-5

Solve = Callable[[Any, Any, Any], Any]  # D, the signals and lam -> codes, or a Pursuit


class Timing(NamedTuple):
    """The time of one call, in seconds."""

    seconds: float  # the least of all turns, as other load only adds time
    spread: float  # the largest of all turns divided by the least


def clock() -> Callable[[], float]:
    """A function that returns CPU seconds of this process, in all threads; seconds of the clock if
    the device is not a CPU.
    """
    return time.process_time if jax.default_backend() == "cpu" else time.perf_counter


def in_turns(calls: Mapping[Any, Callable[[], Any]]) -> dict[Any, Timing]:
    """Time calls in turns, after a first call of each that compiles.

    On a CPU the time is the CPU time of this process: XLA computes on threads of its own, so that
    the CPU time of the calling thread omits nearly all of the work. No other thread should compute
    meanwhile. On other devices the time is that of the clock.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(_TURNS):
        for name, call in calls.items():
            if len(times[name]) < 2 or sum(times[name]) < _ENOUGH:
                times[name].append(_turn(call, clock()))
    return {name: Timing(min(of), max(of) / min(of)) for name, of in times.items()}


def _turn(call: Callable[[], Any], now: Callable[[], float]) -> float:
    """The mean time of a call that is repeated for a moment."""
    began, n = now(), 0
    while not n or now() - began < _MOMENT:
        jax.block_until_ready(call())
        n += 1
    return max(now() - began, 1e-9) / n


def repeated(D: Any, Y: Any, times: int) -> tuple[Any, Any]:
    """D, and the signals several times, so that a timed call is long."""
    if times == 1:
        return D, Y
    many = np.tile(np.asarray(Y), (times, 1))
    if shared_part(D) is not D:
        D, _ = known_part(D.base, many, np.tile(np.asarray(D.mask > 0), (times, 1)))
    return D, many


def lasso_solvers(Ds: Sequence[Any]) -> dict[str, Solve]:
    """The exact solvers of the LASSO by name, with SPAMS if it is installed and D is a matrix."""
    named: dict[str, Solve] = {"exact": lasso_optima}
    if not any(isinstance(D, Structured) for D in Ds) and find_spec("spams") is not None:
        if hasattr(import_module("spams"), "lasso"):  # not just a folder of that name
            named["SPAMS LARS"] = _lars
    return named


def _lars(D: Any, Y: Any, lam: Any) -> np.ndarray:
    """Codes by the homotopy method of SPAMS, on all cores."""
    import spams  # type: ignore[import-not-found]

    signals, atoms = (np.asfortranarray(np.asarray(A, float)) for A in (np.asarray(Y).T, D))
    codes = spams.lasso(signals, atoms, lambda1=float(lam), mode=2)
    return np.asarray(codes.T.todense(), np.asarray(Y).dtype)


def repaid_after(training: float, before: float, after: float) -> float:
    """The number of signals above which training has saved the seconds that it took.

    Args:
        training: seconds of the training.
        before, after: seconds per signal without and with the training.

    Returns:
        training / (before - after); inf if no number of signals repays the training.

    Example:
        >>> from unrolled.pursuit._costs import repaid_after
        >>> repaid_after(10.0, 0.75, 0.25), repaid_after(10.0, 0.25, 0.25)
        (20.0, inf)
    """
    return training / (before - after) if after < before else math.inf
