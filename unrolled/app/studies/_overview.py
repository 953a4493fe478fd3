"""The first screen of a report: one sentence, one figure and one table about a comparison."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unrolled import comparison
from unrolled._base.results import Result
from unrolled._base.text import Grid, markdown, short
from unrolled.comparison import About, Comparison, microseconds

__all__ = ["Overview"]


_MOST = 6  # the most rows, and lines with a label
_FOR_LASSO = "the dictionary, lam"  # the information that an exact solver uses


class Overview(Result):
    """The first screen: the result as a sentence, errors step by step, and a short table."""

    sentence: str  # the result
    lead: str  # the setting of the measurement, and the proofs
    lines: dict[str, np.ndarray]  # errors after 0, ..., K steps by method
    kinds: dict[str, tuple[str, str]]  # the title and the variant of each method
    shown: tuple[str, ...]  # the methods that have a label; lines of other methods are faint
    best: str  # the method with the smallest final error
    ylabel: str  # the label of the axis of errors, with the unit
    log: bool  # whether the errors have a logarithmic axis
    caption: str  # the caption of the figure
    table: Grid  # a row for each method that is shown, six columns at most


def of_known(result: Comparison, setting: str, covered: int) -> Overview:
    """The overview of methods on signals whose codes are known.

    Args:
        result: the comparison, with the seconds of its methods.
        setting: a sentence about the signals.
        covered: the most nonzeros that the worst case covers.
    """
    lines = {name: np.concatenate([[0.0], curve.nmse]) for name, curve in _running(result)}
    shown, ends = to_show(result), comparison.ends_of(result)
    proved = {name: of.share for name in shown if (of := result[name].proved) is not None}
    medians = {name: result[name].curve.quantiles[-1, 1] for name in shown}
    columns = {
        "Method": list(shown),
        "Information used": [_knows(result, name) for name in shown],
        "Error (median), dB": [f"{ends[name]:.1f} ({medians[name]:.1f})" for name in shown],
        "Failures": [f"{result[name].curve.failure_rate[-1]:.1%}" for name in shown],
        "Codes proved": ["" if proved.get(n) is None else f"{proved[n]:.0%}" for n in shown],
        "CPU microseconds a signal": [_microseconds(result, name) for name in shown],
    }
    asked = max((of.proved.signals for of in result.methods.values() if of.proved), default=0)
    words = f"Theory covers every code with at most {covered} nonzero{'s' * (covered != 1)}"
    if any(proved.values()):
        words += f"; signal by signal, it proves a share of the first {asked} codes, see the table."
    else:
        none = f" and proves none of the first {asked} codes signal by signal" * bool(asked)
        words += f"{none}, so the results below are measured, not proved."
        del columns["Codes proved"]
    return Overview(
        result.why,
        f"{setting} {words}",
        lines,
        _kinds(result),
        shown,
        min(shown, key=ends.__getitem__, default=""),
        "error of the code, dB",
        False,
        "Error of the code after each step: the energy of the error divided by the energy of the "
        "codes, both summed over all test signals. A failure is a signal with an error above "
        "\u221220 dB.",
        _table(columns),
    )


def of_unknown(result: Comparison, setting: str) -> Overview:
    """The overview of methods that are judged by the LASSO; the arguments are as in `of_known`."""
    zero = np.nan if result.ista_gap is None else float(result.ista_gap[0])
    lines = {name: np.concatenate([[zero], curve.gap]) for name, curve in _running(result)}
    shown, ends, exact = to_show(result), comparison.ends_of(result), result.exact
    rows = {name: result[name].curve for name in (*shown, *exact)}
    columns = {
        "Method": list(rows),
        "Information used": [*(_knows(result, n) for n in shown), *[_FOR_LASSO] * len(exact)],
        "Gap to the optimum": [
            "" if of.gap is None else f"{of.gap[-1]:.2g}" for of in rows.values()
        ],
        "Signals worse than zero": [
            "" if of.worse is None else f"{of.worse[-1]:.1%}" for of in rows.values()
        ],
        "CPU microseconds a signal": [_microseconds(result, name) for name in rows],
    }
    words = result.payoff()
    if len(set(columns["Signals worse than zero"])) == 1:
        share = columns.pop("Signals worse than zero")[0]
        number = "no signal" if share == "0.0%" else f"{share} of the signals"
        words += f" With every method, the final code of {number} is worse than the zero code."
    return Overview(
        result.why,
        f"{setting} {words}",
        lines,
        _kinds(result),
        shown,
        min(shown, key=ends.__getitem__, default=""),
        "(F - F*) / F*",
        True,
        "Gap to the optimum of the LASSO after each step, over all test signals.",
        _table(columns),
    )


def to_show(result: Comparison) -> tuple[str, ...]:
    """The methods of the headline, then the best method of each other family, best first."""
    ends = {n: end for n, end in comparison.ends_of(result).items() if not result[n].given}
    order = sorted(ends, key=ends.__getitem__)
    titles = {_kinds(result)[name][0]: name for name in reversed(order)}
    told = [name for name in comparison.told(result) if name in ends]
    wanted = [*told, *sorted(titles.values(), key=order.index), *order]
    chosen = list(dict.fromkeys(wanted))[:_MOST]
    return tuple(name for name in ends if name in chosen)


def _running(result: Comparison) -> list[tuple[str, Any]]:
    methods = result.methods.items()
    return [
        (name, of.curve)
        for name, of in methods
        if not of.given and (result.known or of.curve.gap is not None)
    ]


def _kinds(result: Comparison) -> dict[str, tuple[str, str]]:
    """The title and the origin of each method, for its colour and its name."""
    abouts = {name: of.about or About(name, "") for name, of in result.methods.items()}
    return {name: (of.title, of.variant) for name, of in abouts.items()}


def _knows(result: Comparison, name: str) -> str:
    about = result[name].about
    return "" if about is None else about.knows


def _microseconds(result: Comparison, name: str) -> str:
    value = microseconds(result[name], result.signals)
    return "" if value is None else short(value)


def _table(columns: Mapping[str, Iterable[str]]) -> Grid:
    return markdown(list(columns), [list(row) for row in zip(*columns.values())])
