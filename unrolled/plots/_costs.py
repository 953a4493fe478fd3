"""The figures of errors against costs, and of the choice of a penalty."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled.plots._curves import figure, name_lines, styles, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["costs", "penalties"]


@checked
def costs(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    gap: float | None = None,
    title: str = "Mean gap and cost",
    ylabel: str = "(F - F*) / F*",
) -> "Figure":
    """Gaps to the optimum against microseconds per signal, both on logarithmic axes.

    Args:
        lines: microseconds and gaps by method, one point for each number of steps.
        gap: a wanted gap, drawn as a dashed line.
        title, ylabel: words for another error than the gap.

    Example:
        >>> fig = ur.plots.costs({"fista": ([1.0, 2.0], [0.1, 0.01])}, gap=0.05)
        >>> len(fig.axes[0].lines)
        2
    """
    fig, panels = figure(1, 1, width=6.4, height=4.2)
    from matplotlib.ticker import LogLocator, NullFormatter

    panel, looks = panels[0, 0], styles(lines)
    for name, (spent, gaps) in lines.items():
        panel.plot(spent, gaps, label=name, **looks[name])
    panel.set(xscale="log", yscale="log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    if gap is not None:
        panel.axhline(gap, color="#808080", linestyle="--", linewidth=1, label="_wanted gap")
    tidy(
        panel,
        title=title,
        xlabel="time per signal, microseconds",
        ylabel=ylabel,
    )
    name_lines(panel)
    return fig


def penalties(choice: Any) -> "Figure":
    """The curve of `choose_lam`, and the number of nonzeros, against the penalty.

    If each signal has its own penalty, the horizontal axis is lam over the largest penalty of the
    signal; the lines are medians, and 80 % of the signals are in the bands.

    Args:
        choice: a result of `choose_lam`.

    Example:
        >>> D = ur.dictionaries.dct(8, 12)
        >>> fig = ur.choose_lam(D, D[:, :5].T + 0.1, noise=0.1).plot()
        >>> [panel.get_ylabel() for panel in fig.axes]
        ['SURE per entry', 'nonzeros per code']
    """
    checks.has(choice, "lams", "a ChosenLam", "choice", "penalties")
    each = choice.lams.ndim == 2
    lams = choice.lams / choice.lams[:, :1] if each else choice.lams
    shown = np.exp(np.log(lams).mean(0)) if each else lams
    chosen = choice.lam / choice.lams[:, :1] if each else choice.lam
    names = {"sure": "SURE", "gcv": "GCV", "held out": "squared error"}
    fig, panels = figure(1, 2)
    fields = names.get(choice.rule, "squared residual") + " per entry", "nonzeros per code"
    for panel, name, values in zip(panels[0], fields, (choice.curve, choice.nonzeros)):
        low, middle, high = np.quantile(values if each else values[None], (0.1, 0.5, 0.9), axis=0)
        panel.plot(shown, middle, marker="o", markersize=4)
        panel.fill_between(shown, low, high, alpha=0.2, linewidth=0)
        marks = np.quantile(chosen, (0.1, 0.5, 0.9)) if each else [chosen]
        for mark in marks:
            panel.axvline(mark, color="#808080", linestyle="--", linewidth=1)
        panel.set_xscale("log")
        if low.min() > 0:
            panel.set_yscale("log")
        tidy(panel, title="", xlabel="lam / largest lam" if each else "lam", ylabel=name)
    title = "chosen lam: 10 %, 50 % and 90 %" if each else f"chosen lam {float(chosen):.3g}"
    fig.suptitle(f"{title}, by the rule {choice.rule!r}")
    return fig
