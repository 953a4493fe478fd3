"""The first screen of a report: one sentence, one figure and one table about a comparison."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from unrolled._base.results import Result
from unrolled._base.text import Grid, markdown, short
from unrolled.comparison import Comparison, microseconds
from unrolled.layers import Layer, Unrolled
from unrolled.training import trainable

__all__ = ["Overview"]


_MOST = 5  # the most rows, and lines with a label
_CLASSICAL = ("ISTA", "FISTA")  # the methods that learned methods are compared with
# The params of a family before training, by the last word of their name.
_STARTS = {
    "untrained": "without training",
    "analytic": "with analytic params",
    "calibrated": "only calibrated",
}
_FOR_LASSO = "the dictionary, lam"  # the information that a method for the LASSO uses


class Overview(Result):
    """The first screen: the result as a sentence, errors step by step, and a short table."""

    sentence: str  # the result
    lead: str  # the setting of the measurement, and the proofs
    lines: dict[str, np.ndarray]  # errors after 0, ..., K steps by method
    shown: tuple[str, ...]  # the methods that have a label; lines of other methods are faint
    best: str  # the method with the smallest final error
    ylabel: str  # the label of the axis of errors, with the unit
    log: bool  # whether the errors have a logarithmic axis
    caption: str  # the caption of the figure
    table: Grid  # a row for each method that is shown, six columns at most


def of_known(
    result: Comparison,
    methods: Mapping[str, tuple[Layer, Unrolled]],
    setting: str,
    covered: int,
    fallback: str,
) -> Overview:
    """The overview of methods on signals whose codes are known.

    Args:
        result: the comparison, with the seconds of the methods that are shown.
        methods: layers and params by name.
        setting: a sentence about the signals.
        covered: the most nonzeros that the worst case covers.
        fallback: the sentence if ISTA or FISTA is best, or if there is neither.
    """
    lines = {name: np.concatenate([[0.0], curve.nmse]) for name, curve in _running(result)}
    ends = _ends(lines, result)
    shown, best = _shown(ends), min(ends, key=ends.__getitem__, default="")
    texts = {name: f"{end:.1f} dB" for name, end in ends.items()}
    sentence = _sentence(best, "an error of", texts, methods, result) or fallback
    proved = {name: of.share for name in shown if (of := result[name].proved) is not None}
    columns = {
        "Method": list(shown),
        "Information used": [_knows(name, methods) for name in shown],
        "Error, dB": [f"{ends[name]:.1f}" for name in shown],
        "Signals above \u221220 dB": [f"{result[n].curve.failure_rate[-1]:.1%}" for n in shown],
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
        sentence,
        f"{setting} {words}",
        lines,
        shown,
        best,
        "error of the code, dB",
        False,
        "Error of the code after each step: the energy of the error divided by the energy of the "
        "codes, both summed over all test signals.",
        _table(columns),
    )


def of_unknown(
    result: Comparison, methods: Mapping[str, tuple[Layer, Unrolled]], setting: str, fallback: str
) -> Overview:
    """The overview of methods that are judged by the LASSO; the arguments are as in `of_known`."""
    zero = np.nan if result.ista_gap is None else float(result.ista_gap[0])
    lines = {name: np.concatenate([[zero], curve.gap]) for name, curve in _running(result)}
    ends = _ends(lines, result)
    shown, best = _shown(ends), min(ends, key=ends.__getitem__, default="")
    texts = {name: f"{end:.2g}" for name, end in ends.items()}
    sentence = _sentence(best, "a gap to the optimum of", texts, methods, result) or fallback
    exact = result.exact
    worse = [result[n].curve.worse for n in (*shown, *exact)]
    columns = {
        "Method": [*shown, *exact],
        "Information used": [
            *(_knows(n, methods, _FOR_LASSO) for n in shown),
            *[_FOR_LASSO] * len(exact),
        ],
        "Gap to the optimum": [
            *(f"{ends[name]:.2g}" for name in shown),
            *("" if of.curve.gap is None else f"{of.curve.gap[-1]:.2g}" for of in exact.values()),
        ],
        "Signals worse than zero": [f"{v[-1]:.1%}" for v in worse if v is not None],
        "CPU microseconds a signal": [_microseconds(result, name) for name in (*shown, *exact)],
    }
    words = result.payoff()
    if len(set(columns["Signals worse than zero"])) == 1:
        share = columns.pop("Signals worse than zero")[0]
        number = "no signal" if share == "0.0%" else f"{share} of the signals"
        words += f" With every method, the final code of {number} is worse than the zero code."
    return Overview(
        sentence,
        f"{setting} {words}",
        lines,
        shown,
        best,
        "(F - F*) / F*",
        True,
        "Gap to the optimum of the LASSO after each step, over all test signals.",
        _table(columns),
    )


def to_show(result: Comparison) -> tuple[str, ...]:
    """The methods that an overview shows and times."""
    lines = {name: curve.nmse if result.known else curve.gap for name, curve in _running(result)}
    return _shown(_ends(lines, result))


def _running(result: Comparison) -> list[tuple[str, Any]]:
    methods = result.methods.items()
    return [
        (name, of.curve)
        for name, of in methods
        if not of.given and (result.known or of.curve.gap is not None)
    ]


def _ends(lines: Mapping[str, np.ndarray], result: Comparison) -> dict[str, float]:
    """The error of every method after its last step, without methods that diverge."""
    ends = {name: float(v[-1]) for name, v in lines.items() if result[name].diverged is None}
    return {name: end for name, end in ends.items() if np.isfinite(end)}


def _shown(ends: Mapping[str, float]) -> tuple[str, ...]:
    """ISTA, FISTA, the best family with its start, the best calibrated method, other families."""
    order = sorted(ends, key=ends.__getitem__)
    chosen = [name for name in _CLASSICAL if name in ends]
    calibrated = [name for name in order if name.endswith(", calibrated")]
    families = {_family(name): name for name in reversed(order)}
    own = [name for name in order if _family(name) == _family(order[0])]  # with its start
    wanted = [*own[:2], *calibrated[:1], *sorted(families.values(), key=order.index), *order]
    chosen = list(dict.fromkeys([*chosen, *wanted]))[:_MOST]
    return tuple(name for name in ends if name in chosen)


def _family(name: str) -> str:
    return name.partition(",")[0].removesuffix("-SS")


def _sentence(
    best: str,
    measure: str,
    ends: Mapping[str, str],
    methods: Mapping[str, tuple[Layer, Unrolled]],
    result: Comparison,
) -> str:
    """The end of the best method, of the same family before training, and of ISTA or FISTA.

    The sentence is empty if the best method is ISTA or FISTA, or if there is neither.
    """
    rival = next((name for name in reversed(_CLASSICAL) if name in ends), None)
    if rival is None or best in _CLASSICAL or best not in ends:
        return ""
    sentence = f"{_subject(best, methods)} ends at {measure} {ends[best]}"
    for kind, how in _STARTS.items():
        start = f"{best.partition(', ')[0]}, {kind}"
        if start in ends and start != best:
            sentence += f", and {how} it ends at {ends[start]}"
    sentence += f"; {rival} ends at {ends[rival]}"
    own, of_rival = (microseconds(result[name], result.signals) for name in (best, rival))
    if own and of_rival:
        sentence += f" and takes {_times(of_rival / own)} times the CPU time"
    return sentence


def _subject(name: str, methods: Mapping[str, tuple[Layer, Unrolled]]) -> str:
    family, _, kind = name.partition(", ")
    if kind == "learned":
        return f"{family} with {_numbers(*methods[name]):,} learned numbers"
    return f"{family}, calibrated on a sample," if kind == "calibrated" else name


def _knows(
    name: str, methods: Mapping[str, tuple[Layer, Unrolled]], start: str = "the dictionary"
) -> str:
    """The information that a method uses; `start` is the information for untrained params."""
    kind = name.partition(", ")[2]
    if kind not in ("learned", "calibrated"):
        others = start if name in methods else "its file"
        return _FOR_LASSO if name in _CLASSICAL else others
    few = kind == "calibrated"
    count = f"a sample; {_numbers(*methods[name], few=few):,} numbers"
    return f"{count}, no gradients" if few else count


def _numbers(layer: Layer, params: Unrolled, few: bool = False) -> int:
    """The count of trained numbers; if `few`, of calibrated numbers: one per step and field."""
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(trainable(params)))
    sizes = [int(np.size(leaf)) for leaf, trained in leaves if trained]
    return sum(size for size in sizes if not few or size <= layer.depth)


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _microseconds(result: Comparison, name: str) -> str:
    value = microseconds(result[name], result.signals)
    return "" if value is None else short(value)


def _table(columns: Mapping[str, Iterable[str]]) -> Grid:
    return markdown(list(columns), [list(row) for row in zip(*columns.values())])
