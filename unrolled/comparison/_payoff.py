"""When a network costs less than exact codes and untrained layers, in words."""

import math
from collections.abc import Mapping, Sequence

from unrolled.comparison._results import MethodResult
from unrolled.pursuit import EXACT
from unrolled.training import LASSO_BATCH, Candidate, verdict

_RAISED = 0.05  # share of signals with a larger objective than before training that is told


def payoff(
    methods: Mapping[str, MethodResult],
    exact: Mapping[str, MethodResult],
    signals: int,
    rows: Sequence[Candidate],
) -> str:
    """`Comparison.payoff`, from `Comparison.rows` or else the results of methods and solvers."""
    rows = rows or _rows(methods, exact, signals)
    networks = [row for row in rows if row.training] or [row for row in rows if row.K is not None]
    if not networks:
        return ""
    best = min(networks, key=lambda row: row.mean)
    raised = methods[best.method].raised if best.method in methods else None
    return verdict(rows, best.mean) + _of_raised(raised or 0)


def _rows(
    methods: Mapping[str, MethodResult], exact: Mapping[str, MethodResult], signals: int
) -> list[Candidate]:
    """The fastest exact solver and the networks with a gap; none without an exact solver."""
    solvers = {LASSO_BATCH if n == "exact" else n: of for n, of in exact.items() if _is_exact(of)}
    first = [_row(name, of, signals) for name, of in solvers.items()]
    networks = [
        _row(name, of, signals, K=len(of.curve.nmse))
        for name, of in methods.items()
        if not of.given and of.diverged is None and math.isfinite(_gap(of))
    ]
    known = [[row for row in of if row is not None] for of in (first, networks)]
    if not all(known):
        return []
    return [min(known[0], key=lambda row: row.microseconds), *known[1]]


def _row(name: str, of: MethodResult, signals: int, K: int | None = None) -> Candidate | None:
    """A method with its mean and median gap; None if its cost is not known."""
    spent, ends = microseconds(of, signals), of.curve.gap_quantiles
    if spent is None or of.cost is None:
        return None
    median = math.nan if ends is None else float(ends[-1, 1])
    numbers = spent, _gap(of), median, math.nan, of.cost.spread or 1.0, of.trained or 0.0
    return Candidate(name, K, *numbers)


def _of_raised(raised: float) -> str:
    """A sentence if training has raised the objectives of many signals."""
    if raised <= _RAISED:
        return ""
    return f" Training raised the objective of {100 * raised:.0f} % of the signals."


def microseconds(of: MethodResult, signals: int) -> float | None:
    """CPU time per signal; None if it is not known."""
    if of.cost is None or of.cost.seconds is None:
        return None
    return 1e6 * of.cost.seconds / max(1, signals)


def _gap(of: MethodResult) -> float:
    """The last gap; inf if it is not known."""
    gap = float("inf") if of.curve.gap is None else float(of.curve.gap[-1])
    return gap if gap == gap else float("inf")


def _is_exact(of: MethodResult) -> bool:
    """Whether the codes of a solver are optimal: over all signals, and for 90 % of the signals."""
    quantiles = of.curve.gap_quantiles
    return quantiles is not None and max(_gap(of), quantiles[-1, 2]) <= EXACT
