"""The figure of the errors of methods against their costs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unrolled._base.arguments import checked
from unrolled.plots._curves import figure, name_lines, styles, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["costs"]


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
