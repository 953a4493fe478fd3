"""When a network costs less than exact codes, in words."""

from collections.abc import Mapping

from unrolled._base.text import short
from unrolled.comparison._results import MethodResult
from unrolled.pursuit import EXACT, MOST_SPREAD, repaid_after

_RAISED = 0.05  # share of signals with a larger objective than before training that is told


def payoff(
    methods: Mapping[str, MethodResult], exact: Mapping[str, MethodResult], signals: int
) -> str:
    """`Comparison.payoff`, from the results of methods and of exact solvers."""
    trained = {name for name, of in methods.items() if of.trained is not None}
    networks = {
        name: of
        for name, of in methods.items()
        if (name in trained or not trained) and of.diverged is None
        if _gap(of) < float("inf") and microseconds(of, signals) is not None
    }
    solvers = {
        n: cost for n, of in exact.items() if (cost := microseconds(of, signals)) is not None
    }
    solvers = {n: cost for n, cost in solvers.items() if _is_exact(exact[n])}
    if not solvers or not networks:
        return ""
    best = min(networks, key=lambda name: _gap(networks[name]))
    solver = min(solvers, key=solvers.__getitem__)
    network, untrained = networks[best], _untrained(networks[best], methods)
    spent = microseconds(network, signals) or 0.0
    sentence = f"{best} takes {short(spent)} microseconds of CPU time per signal and ends at a gap "
    sentence += f"of {_gap(network):.1e}"
    if network.trained is not None:
        sentence += f" after {network.trained:.3g} s of training"
    if untrained is not None:
        sentence += f"; untrained, it ends at {untrained:.1e} in the same time"
    name = "" if solver == "exact" else f" ({solver})"
    verdict = _verdict(network, exact[solver], spent, solvers[solver], untrained is not None)
    exact_codes = f"Exact codes take {short(solvers[solver])} microseconds{name}: {verdict}."
    return f"{sentence}. {exact_codes}{_of_raised(network)}"


def _verdict(
    network: MethodResult, exact: MethodResult, spent: float, optimal: float, untrained: bool
) -> str:
    """When a network costs less than exact codes; the costs are in microseconds per signal."""
    spread = max(of.cost.spread or 1.0 for of in (network, exact) if of.cost is not None)
    if spread > MOST_SPREAD:
        return f"no verdict, because repeated timings differ by a factor of {spread:.1f}"
    if spent >= optimal:
        return "the network never costs less"
    if network.trained is None:
        repaid = repaid_after(1e6, optimal, spent)
        return f"a second of training is repaid after {_count(repaid)} signals"
    first = "the untrained network costs less from the first signal, and " * untrained
    repaid = repaid_after(1e6 * network.trained, optimal, spent)
    return f"{first}the training is repaid after {_count(repaid)} signals"


def _of_raised(network: MethodResult) -> str:
    """A sentence if training has raised the objectives of many signals."""
    if (network.raised or 0) <= _RAISED:
        return ""
    return (
        f" Training raised the objective of {100 * (network.raised or 0):.0f} % of the signals: if "
        "every signal counts, train with relative=True, which gives all signals the same weight."
    )


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


def _untrained(of: MethodResult, methods: Mapping[str, MethodResult]) -> float | None:
    """The gap of the layer before training: measured, or of the reference; None if unknown."""
    start = methods.get(of.reference or "")
    if of.untrained is not None or start is None or start.trained is not None:
        return of.untrained
    return _gap(start)


def _count(number: float) -> str:
    """A count rounded to two digits."""
    return f"{float(f'{number:.2g}'):,.0f}"
