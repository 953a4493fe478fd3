"""The cost model: which method codes signals within a gap at the least cost, in words."""

import math
from collections.abc import Sequence

from unrolled._base.results import Result
from unrolled._base.text import short
from unrolled.pursuit import MOST_SPREAD, repaid_after

__all__ = ["Candidate"]

LASSO_BATCH = "lasso_batch"  # the exact solver that `recommend` recommends


class Candidate(Result):
    """The cost of a method, and the gaps (F - F*) / F* of its codes, signal by signal."""

    method: str  # the name of the method, or the family of an untrained layer
    K: int | None  # number of steps of a layer
    microseconds: float  # per further signal: CPU time of this process, or the clock's if no CPU
    mean: float  # the mean gap
    median: float  # the median gap
    worst: float  # the largest gap
    spread: float  # the longest of the repeated timings divided by the shortest
    training: float = 0.0  # seconds of the training
    fixed: float = 0.0  # seconds of a call for any number of signals, initial params included

    def text(self) -> str:
        """The method in words.

        Example:
            >>> ur.training.Candidate("fista", 8, 2.0, 0.1, 0.1, 0.2, 1.0).text()
            'untrained fista with 8 steps'
        """
        if self.K is None:
            return self.method
        return f"{'' if self.training else 'untrained '}{self.method} with {self.K} steps"

    def seconds(self, signals: float) -> float:
        """The seconds of one call for this number of signals, without training.

        Example:
            >>> ur.training.Candidate("fista", 8, 2.0, 0.1, 0.1, 0.2, 1.0, fixed=0.5).seconds(10**6)
            2.5
        """
        return self.fixed + 1e-6 * self.microseconds * signals

    def repaid(self, other: "Candidate") -> float:
        """The number of signals after which the training has saved the time that it took, next to
        a method without training.
        """
        spent = max(0.0, self.training + self.fixed - other.fixed)
        return repaid_after(1e6 * spent, other.microseconds, self.microseconds)


def cheapest(rows: Sequence[Candidate], gap: float, signals: int | None = None) -> Candidate:
    """The cheapest method without training within a mean gap, or else the exact solver.

    Solvers of other packages do not count. If `signals` is None, only the time per signal counts.
    """
    own = [row for row in rows if row.K is not None or row.method == LASSO_BATCH]
    own = [row for row in own if not row.training]
    within = [row for row in own if row.mean <= gap] or own[:1]
    return min(within, key=lambda of: of.seconds(signals) if signals else of.microseconds)


def verdict(
    rows: Sequence[Candidate],
    gap: float,
    signals: int | None = None,
    predicted: Candidate | None = None,
) -> str:
    """When training saves time, next to the cheapest codes within a gap, in words.

    Args:
        rows: measured methods, the exact solver first.
        gap: the wanted mean gap.
        signals: number of signals to code; None if no training is planned.
        predicted: what training could reach; None if training could gain nothing.
    """
    best = cheapest(rows, gap, signals)
    trained = [row for row in rows if row.training and row.mean <= gap]
    if trained:
        gain = _measured(min(trained, key=lambda row: row.microseconds), best)
    elif predicted is not None:
        gain = _predicted(predicted, best, signals or 0)
    else:
        gain = "We expect no gain from training: no network within this gap would take less time."
        gain *= signals is not None
    whole = f"{signals:,} signals should take {short(best.seconds(signals))} s." if signals else ""
    return " ".join(filter(None, [_costs(rows, best, gap), whole, gain, _doubt(rows)]))


def _time(row: Candidate, unit: str = " per signal") -> str:
    """The fixed time and the time per signal in words."""
    fixed = f"{short(row.fixed)} s + " if row.fixed else ""
    return f"{fixed}{short(row.microseconds)} microseconds{unit}"


def _costs(rows: Sequence[Candidate], best: Candidate, gap: float) -> str:
    """The costs of the best method without training and of exact codes."""
    exact = rows[0]
    text = f"Exact codes ({exact.method}) take {_time(exact)}."
    if best is exact:
        return (
            f"{text} No untrained layer that costs less has a mean gap (F - F*) / F* within "
            f"{gap:.3g}."
        )
    name, worst = best.text(), "" if math.isnan(best.worst) else f", {best.worst:.1e} at worst"
    return (
        f"{text} {name[0].upper()}{name[1:]} takes {_time(best, '')} and ends at a mean gap "
        f"(F - F*) / F* of {best.mean:.1e}{worst}."
    )


def _predicted(training: Candidate, best: Candidate, signals: int) -> str:
    """What training could gain."""
    repaid = training.repaid(best)
    about = "about" if signals > repaid else "at least"
    return (
        f"Untrained, {training.method} with {2 * (training.K or 0)} steps is within this gap. We "
        f"expect that training brings {training.K} steps within it, too, but measured no trained "
        f"network. They would take {short(training.microseconds)} microseconds instead of "
        f"{short(best.microseconds)}. The training would take {about} "
        f"{short(training.training)} s, and be repaid after {_count(repaid)} signals"
        f"{'' if signals > repaid else ' or more'}; there are {signals:,} signals to code."
    )


def _measured(trained: Candidate, best: Candidate) -> str:
    """What training has gained."""
    text = (
        f"After {trained.training:.3g} s of training, {trained.text()} takes "
        f"{short(trained.microseconds)} microseconds and ends at {trained.mean:.1e}; "
    )
    repaid = trained.repaid(best)
    if math.isinf(repaid):
        return f"{text}the training is never repaid."
    return f"{text}the training is repaid after {_count(repaid)} signals."


def _count(number: float) -> str:
    """A count rounded to two digits."""
    return f"{float(f'{number:.2g}'):,.0f}"


def _doubt(rows: Sequence[Candidate]) -> str:
    """A warning if timings disagree."""
    worst = max(rows, key=lambda row: row.spread)
    if worst.spread <= MOST_SPREAD:
        return ""
    return (
        f"This choice is not sure, because repeated timings of {worst.text()} differ by a factor "
        f"of {worst.spread:.1f}: let nothing else compute meanwhile."
    )
