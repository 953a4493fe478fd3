"""Curves over steps, marks for values outside the axes, and the figures of a comparison and of a
recorded run.
"""

import io
import textwrap
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import ArrayLike, checked
from unrolled._base.packages import require

__all__ = [
    "COLOURS",
    "bound",
    "chain",
    "chain_evolution",
    "comparison",
    "curves",
    "evolution",
    "figure",
    "name_lines",
    "styles",
]


# Colours for readers with and without colour blindness (Okabe and Ito; Tol).
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F7F7F",
    "#000000",
    "#8C564B",
    "#882255",
    "#999933",
    "#332288",
)
# Settings of matplotlib for every figure of the library, the notebooks and the benchmarks.
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelcolor": "#404040",
    "axes.edgecolor": "#808080",
    "xtick.color": "#606060",
    "ytick.color": "#606060",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "unrolled",  # the same drawing gives the same file
}
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
# All pairs of dashes and markers, ordered so that neighbours differ in both.
_PAIRS = tuple((_DASHES[(i + i // 12) % 4], _MARKERS[i % 12]) for i in range(48))
# The dashes and the marker of a variant.
_VARIANTS = {
    "": ("-", "o"),
    "learned": ("-", "v"),
    "calibrated": ("--", "D"),
    "analytic": (":", "s"),
    "untrained": (":", "P"),
}

_Look = tuple[str, str, str]  # colour, dashes, marker


@checked
def styles(names: Iterable[str] | Mapping[str, tuple[str, str]]) -> dict[str, dict]:
    """Line styles for the names of a figure; any two differ.

    Names of one family have one colour, and families take the colours in their order. The variant
    ("analytic", "untrained", "calibrated", "learned" or "") sets dashes and marker. Up to 48 names
    differ in colour or dashes, more names at least in the marker.

    Args:
        names: names of the curves of a figure; each is its own family, unless `names` is a dict
            with a tuple (family, variant) for each name.

    Returns:
        Options of the matplotlib function `plot`, by name.

    Raises:
        ValueError: there are more than 576 names, the number of looks.

    Example:
        >>> kinds = {"lista": ("LISTA", ""), "al": ("ALISTA", ""), "s = 2": ("ALISTA", "analytic")}
        >>> looks = ur.plots.styles(kinds)
        >>> looks["s = 2"]
        {'color': '#D55E00', 'linestyle': ':', 'marker': 's', 'markersize': 4}
    """
    given = isinstance(names, Mapping) and all(isinstance(k, tuple) for k in names.values())
    kinds: Any = names if given else {name: (name, "") for name in names}
    most = len(COLOURS) * len(_PAIRS)
    if len(kinds) > most:
        raise ValueError(f"styles: expected at most {most} names, got {len(kinds)}")
    families = list(dict.fromkeys(family for family, _ in kinds.values()))
    looks: dict[str, _Look] = {}
    # The look of a variant is for the first name that has it.
    first = {kind: name for name, kind in reversed(list(kinds.items())) if kind[1] in _VARIANTS}
    for name in sorted(kinds, key=lambda name: first.get(kinds[name]) != name):
        family, variant = kinds[name]
        colour = COLOURS[families.index(family) % len(COLOURS)]
        wanted = colour, *_VARIANTS.get(variant, _VARIANTS[""])
        taken = set(looks.values())
        lines = {look[:2] for look in taken}
        free = [look for look in _alternatives(wanted) if look not in taken]
        looks[name] = next((look for look in free if look[:2] not in lines), free[0])
    return {name: _options(*looks[name]) for name in kinds}


def _alternatives(look: _Look) -> Iterable[_Look]:
    """The look, then the other looks of its colour, then all looks."""
    yield look
    for colour in (look[0], *COLOURS):
        for dash, marker in _PAIRS:
            yield colour, dash, marker


def _options(colour: str, dash: str, marker: str) -> dict:
    return dict(color=colour, linestyle=dash, marker=marker, markersize=4)


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHARACTERS = 62  # length of a line of text below a panel
_MOST_NAMED = 6  # lines of a panel that are labelled at their ends
_NAME_HEIGHT = 0.075  # height of a label, in heights of a panel
_LEAST_SPAN = 0.01  # least span of a vertical axis, relative to its values


@checked
def figure(
    rows: int, columns: int, *, width: float = 5.2, height: float = 3.7
) -> "tuple[Figure, np.ndarray]":
    """A matplotlib figure with a grid of panels, independent of any window system.

    Jupyter shows the figure if it is the value of a cell.

    Args:
        rows, columns: size of the grid.
        width, height: size of a panel, in inches.

    Returns:
        The figure and its panels, (rows, columns).

    Example:
        >>> fig, panels = ur.plots.figure(2, 3)
        >>> panels.shape
        (2, 3)
    """
    require("plots", "matplotlib")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    with rc_context(STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}):
        fig = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(fig)
        vars(fig)["_repr_png_"] = partial(_as_png, fig)  # what Jupyter asks for
        return fig, fig.subplots(rows, columns, squeeze=False)


def _as_png(fig: "Figure") -> bytes:
    """A figure as a PNG file, with two pixels per pixel of the screen in each direction."""
    with io.BytesIO() as file:
        fig.savefig(file, format="png", dpi=144)
        return file.getvalue()


@checked
def curves(
    panel: "Axes",
    lines: dict[str, ArrayLike],
    *,
    title: str,
    ylabel: str,
    log: bool = False,
    looks: dict[str, dict] | None = None,
    top: float | None = None,
    bottom: float | None = None,
) -> None:
    """Draw one line per name over the steps 1, 2, ...; `name_lines` or the caller labels the lines.

    Each line has markers at different steps, so that lines that coincide are visible. Values
    outside the axes are marked at the border, and their lines are named below the border.

    Args:
        panel: the matplotlib axes to draw on.
        lines: values (K,) by name.
        title, ylabel: texts of the panel.
        log: whether the vertical axis is logarithmic.
        looks: line styles by name, the same for all panels of a figure; by default `styles(lines)`.
        top: the largest value to draw, if at least one line stays below it.
        bottom: the smallest value to draw, if a line ends above it.

    Example:
        >>> fig, panels = ur.plots.figure(1, 1)
        >>> lines = {"ista": np.array([1.0, 0.5, 0.25]), "fista": np.array([1.0, 0.4, 0.1])}
        >>> ur.plots.curves(panels[0, 0], lines, title="Error", ylabel="NMSE", log=True)
        >>> len(panels[0, 0].lines)
        2
    """
    looks = styles(lines) if looks is None else looks
    values = {name: np.asarray(line, float) for name, line in lines.items()}
    colours = {}
    for i, (name, line) in enumerate(values.items()):
        shown, steps = drawable(line, log), np.arange(1, len(line) + 1)
        # A point between two gaps is visible only by its marker.
        marked = (0, 1) if np.isnan(shown).any() else marked_steps(i, len(line))
        (drawn,) = panel.plot(steps, shown, label=name, markevery=marked, **looks.get(name, {}))
        colours[name] = drawn.get_color()
    if log:
        panel.set_yscale("log")
    whole_steps(panel)
    tidy(panel, title=title, xlabel="step", ylabel=ylabel)
    if top is not None:
        limit(panel, values, top, log)
    ends = [line[-1] for line in values.values() if np.isfinite(line[-1])]
    if bottom is not None and panel.get_ylim()[0] < bottom < max(ends, default=bottom):
        panel.set_ylim(bottom=bottom)
    named = {name: (np.arange(1, len(line) + 1), line) for name, line in values.items()}
    mark_outside(panel, named, colours, log)


def whole_steps(panel: "Axes") -> None:
    """Give a panel a horizontal axis from 0 with ticks at whole numbers, such as 0, 4, 8."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 4, 5, 10], integer=True))
    panel.set_xlim(left=0)


@checked
def name_lines(panel: "Axes") -> None:
    """Label the lines of a panel at their ends if there are at most six, otherwise in a legend.

    Example:
        >>> fig, panels = ur.plots.figure(1, 1)
        >>> ends = {"ista": np.array([1.0, 0.5]), "fista": np.array([1.0, 0.4])}
        >>> ur.plots.curves(panels[0, 0], ends, title="Error", ylabel="NMSE")
        >>> ur.plots.name_lines(panels[0, 0])
        >>> [text.get_text() for text in panels[0, 0].texts]
        ['fista', 'ista']
    """
    lines = [line for line in panel.lines if not str(line.get_label()).startswith("_")]
    if len(lines) > _MOST_NAMED:
        panel.legend(frameon=False)
        return
    place = panel.transData + panel.transAxes.inverted()
    panel.autoscale_view()
    ends = []
    for line in lines:
        points = np.asarray(line.get_xydata(), float)
        points = points[np.isfinite(points[:, 1])]
        height = place.transform(points[-1])[1] if len(points) else 0.0
        ends.append((min(max(float(height), 0.0), 1.0), line))
    at = -1.0
    for height, line in sorted(ends, key=lambda end: end[0]):
        at = max(height, at + _NAME_HEIGHT)
        where: dict = dict(transform=panel.transAxes, va="center", color=line.get_color())
        panel.text(1.02, at, str(line.get_label()), fontsize=STYLE["font.size"] - 1, **where)


def marked_steps(i: int, length: int) -> tuple[int, int]:
    """The first point of line i that has a marker, and the distance to the next marker."""
    every = max(1, round(length / 3))
    return i % 5 * max(every, 5) // 5 % every, every


def tidy(panel: "Axes", **labels: str) -> None:
    """Draw titles and labels, and a light grid."""
    panel.set(**labels)
    panel.grid(True, alpha=STYLE["grid.alpha"])


def drawable(values: ArrayLike, log: bool) -> np.ndarray:
    """The values, with nan for values that are infinite, or not positive on a log axis."""
    values = np.asarray(values, float)
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def limit(panel: "Axes", lines: dict[str, np.ndarray], top: float, log: bool) -> None:
    """End the axis at `top` if lines exceed `top`, but keep at least one line inside."""
    shown = [line[~np.isnan(line)] for line in (drawable(v, log) for v in lines.values())]
    ends = [line.max() for line in shown if line.size]
    if not ends or max(ends) <= (top := max(top, min(ends))):
        return
    low = min(line.min() for line in shown if line.size)
    margin = 0.05 * (top - low) or 1.0
    panel.set_ylim(*((low / 1.5, top * 1.5) if log else (low - margin, top + margin)))


def mark_outside(
    panel: "Axes",
    lines: dict[str, tuple[np.ndarray, np.ndarray]],
    colours: dict[str, Any],
    log: bool,
) -> None:
    """Mark points (x, y) above and below the panel at its border, and name their lines below it."""
    low, high = _widened(panel)
    beyond: dict[str, list[str]] = {"\u25b2 above the axis": [], "\u25bc below the axis": []}
    missing = []
    for name, (x, y) in lines.items():
        sides = (y > high, (y < low) | (log & (y <= 0)))
        for place, marker, side, notes in zip((1, 0), "^v", sides, beyond.values()):
            if side.any():
                at: dict[str, Any] = dict(transform=panel.get_xaxis_transform(), clip_on=False)
                at |= dict(color=colours[name], marker=marker, zorder=3)
                panel.scatter(x[side], np.full(side.sum(), place), 18, **at)
                notes.append(f"{name} (to {(max if place else min)(y[side]):.2g})")
        if (unknown := np.isnan(y)).any():
            missing.append(name if unknown.all() else f"{name} ({unknown.sum()} of {len(y)})")
    beyond["not a number"] = missing
    note(panel, [f"{what}: {'; '.join(names)}" for what, names in beyond.items() if names])


def _widened(panel: "Axes") -> tuple[float, float]:
    """Keep the vertical limits 1 % of their size apart or more, so that rounding is not visible."""
    low, high = panel.get_ylim()
    lacking = _LEAST_SPAN * max(abs(low), abs(high)) - (high - low)
    if lacking > 0:
        panel.set_ylim(low := low - lacking / 2, high := high + lacking / 2)
    return low, high


def note(panel: "Axes", sentences: list[str]) -> None:
    """Write sentences below the label of the horizontal axis."""
    lines = [line for sentence in sentences for line in textwrap.wrap(sentence, _CHARACTERS)]
    panel.set_xlabel("\n".join([panel.get_xlabel(), *lines]))


@checked
def bound(
    lines: dict[str, tuple[np.ndarray, np.ndarray]], *, title: str, xlabel: str = "step"
) -> "Figure":
    """Measured errors (solid) and their certified bounds (dashed) on a logarithmic axis.

    Args:
        lines: measured and certified errors by name, (K + 1,) each, from step 0.
        title, xlabel: texts of the panel.

    Example:
        >>> certified = 0.5 ** np.arange(4)
        >>> fig = ur.plots.bound({"alista": (0.9 * certified, certified)}, title="Error")
        >>> [line.get_label() for line in fig.axes[0].lines]
        ['alista: certified bound', 'alista: largest error']
    """
    fig, panels = figure(1, 1, width=6.4, height=4.2)
    panel = panels[0, 0]
    # Plain names give looks that differ in colour or marker; dashes distinguish bounds from errors.
    looks = dict(zip(lines, styles(f"line {i}" for i in range(len(lines))).values()))
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    colours = {}
    for i, (name, (measured, certified)) in enumerate(lines.items()):
        parts = {"certified bound": ("--", certified), "largest error": ("-", measured)}
        for part, (dash, values) in parts.items():
            steps, label = np.arange(len(values)), f"{name}: {part}"
            marked = marked_steps(i, len(steps))
            look = looks[name] | dict(linestyle=dash, markevery=marked, label=label)
            panel.plot(steps, drawable(values, True), **look)
            drawn[label], colours[label] = (steps, np.asarray(values, float)), look["color"]
    panel.set_yscale("log")
    whole_steps(panel)
    tidy(panel, title=title, xlabel=xlabel, ylabel="l1 error of the code")
    mark_outside(panel, drawn, colours, True)
    if len(drawn) > _MOST_NAMED:
        fig.legend(loc="outside lower center", ncols=2, frameon=False)
    else:
        name_lines(panel)
    return fig


# A comparison, and a recorded run

# The title and the vertical axis of the panels of a run.
_WATCHED = {
    "validation": ("Validation loss", "loss"),
    "theta": ("Mean threshold", "mean theta"),
    "diagonal_mean": ("Mean of w_i . d_i (shade: least to largest)", "w_i . d_i"),
    "mu_W": ("Coherence, with w_i . d_i scaled to 1", "mu_W"),
    "off_diagonal": ("Rms of w_i . d_j, with w_i . d_i scaled to 1", "rms of w_i . d_j"),
    "mismatch": ("Coupling of S and W", "|S - (I - W'D)| / |S|"),
}
# The largest values that a comparison draws: a method that diverges must not flatten other lines.
_MOST_DECIBELS, _MOST_GAP, _MOST_COHERENCE = 20.0, 1e3, 2.0
_LEAST_DECIBELS = -120.0  # smaller values are rounding errors
_MOST_THRESHOLD = 1e3  # in units of the median threshold
_MOST_FALL = 5.0  # dB per step
_SLOPE_STEPS = 4  # steps over which the line of a rate runs
_ACROSS = 120  # length of a line of text across a comparison


@checked
def comparison(result: Any, *, codes: str = "true codes", note: str = "") -> "Figure":
    """The figure of a `comparison.Comparison`: errors, supports, thresholds and weights per step.

    Args:
        codes: the meaning of the codes X, for the titles.
        note: a remark for the reader, written below the panels.

    Example:
        >>> D, layer = ur.dictionaries.identity_hadamard(4), ur.layers.ista(3)
        >>> Y, X = ur.problems.sampler(D, 8)(jax.random.key(0))
        >>> params = layer.init(jax.random.key(1), D)
        >>> result = ur.compare({"ista": (layer, params)}, D, Y=Y, X=X)
        >>> len(ur.plots.comparison(result).axes)
        6
    """
    checks.has(result, "methods", "a Comparison", "result", "comparison")
    predicted = any(of.predicted is not None for of in result.methods.values())
    fig, panels = figure(4 if predicted else 3, 2, height=3.3)
    _draw_panels(panels[:3], result, codes)
    if predicted:
        _medians(panels[3], result)
    _legend_of_methods(fig, panels[0, 0], [_silent(result), _level(result), note])
    return fig


@checked
def chain(result: Any, *, codes: str = "true codes", note: str = "") -> "Figure":
    """The figure of a `comparison.ChainComparison`: `comparison` with one column per layer.

    Example:
        >>> Ds, network = [jnp.eye(4)] * 2, ur.dsc([ur.layers.ista(3), ur.layers.ista(2)])
        >>> methods = {"ista": (network, network.init(None, Ds))}
        >>> result = ur.compare(methods, Ds, jnp.eye(4), [jnp.eye(4)] * 2)
        >>> fig = ur.plots.chain(result)
        >>> [panel.get_title().splitlines()[0] for panel in fig.axes[:2]]
        ['Layer 1', 'Layer 2']
    """
    checks.has(result, "layers", "a ChainComparison", "result", "chain")
    fig, panels = figure(6, len(result.layers), width=5.6, height=3.3)
    sentences = []
    for j, layer in enumerate(result.layers):
        _draw_panels(panels[:, j].reshape(3, 2), layer, codes)
        panels[0, j].set_title(f"Layer {j + 1}\n{panels[0, j].get_title()}")
        sentences.append((silent := _silent(layer)) and f"Layer {j + 1}: {silent}")
    _legend_of_methods(fig, panels[0, 0], [*sentences, _level(result.layers[0]), note])
    return fig


def _draw_panels(panels: np.ndarray, result: Any, codes: str) -> None:
    """Draw the six panels of a `comparison.Comparison`, (3, 2)."""
    c, looks = _over_all_steps(result), styles(_kinds(result))

    def draw(panel, lines, title, ylabel, **limits):
        curves(panel, lines, title=title, ylabel=ylabel, looks=looks, **limits)

    # The shade is drawn first, because the limits of the axis must contain it.
    for name, v in c.items():
        low, _, high = (drawable(q, False) for q in v.quantiles.T)
        steps, colour = np.arange(1, len(v.nmse) + 1), looks[name]["color"]
        panels[0, 0].fill_between(steps, low, high, alpha=0.08, color=colour, linewidth=0)
    draw(
        panels[0, 0],
        {n: v.nmse for n, v in c.items()},
        f"Distance to the {codes} (shade: 10 to 90 % of signals)",
        "NMSE, dB (ratio of sums)",
        top=_MOST_DECIBELS,
        bottom=_LEAST_DECIBELS,
    )
    gaps = {n: v.gap for n, v in c.items() if v.gap is not None}
    if gaps:
        title = "Gap to the LASSO optimum"
        draw(panels[0, 1], gaps, title, "(F - F*) / F*", log=True, top=_MOST_GAP)
    else:
        failures = {n: v.failure_rate for n, v in c.items()}
        draw(panels[0, 1], failures, "Signals with an NMSE above -20 dB", "share of signals")
    precision, recall = ({n: getattr(v, f) for n, v in c.items()} for f in ("precision", "recall"))
    draw(panels[1, 0], precision, f"Chosen entries that are in the {codes}", "precision")
    draw(panels[1, 1], recall, f"Entries of the {codes} that are chosen", "recall")
    methods = result.methods.items()
    thresholds = {n: of.thresholds for n, of in methods if of.thresholds is not None}
    top = _most_threshold(thresholds)
    title = "Threshold of each step"
    draw(panels[2, 0], thresholds, title, "mean theta", log=True, top=top)
    couplings = {n: of.coupling for n, of in methods if of.coupling is not None}
    weights = {n: np.broadcast_to(v.mu_W, len(c[n].nmse)) for n, v in couplings.items()}
    title = "Coherence of the weights, w_i . d_i scaled to 1"
    draw(panels[2, 1], weights, title, "mu_W of each step", top=_MOST_COHERENCE)


def _medians(panels: np.ndarray, result: Any) -> None:
    """Draw the median errors, the predictions of theory, and the changes of the error per step."""
    looks = styles(_kinds(result))
    predicted = {n: of.predicted for n, of in result.methods.items() if of.predicted is not None}
    lines = {n: result.methods[n].curve.quantiles[:, 1] for n in predicted}
    title = "Median (circles: state evolution; dots: local rate)"
    curves(panels[0], lines, title=title, ylabel="NMSE, dB", looks=looks, top=_MOST_DECIBELS)
    falls = {n: np.diff(median, prepend=0.0) for n, median in lines.items()}
    title = "Change of the median (dots: local rate)"
    curves(panels[1], falls, title=title, ylabel="dB per step", looks=looks, top=_MOST_FALL)
    for name, of in predicted.items():
        nmse, rate = of.nmse, of.rate
        colour, K = looks[name]["color"], len(lines[name])
        if nmse is not None:
            steps = np.arange(1, K + 1)
            panels[0].plot(steps, nmse, "o", color=colour, markersize=7, fillstyle="none")
        if rate is None:
            continue
        panels[1].axhline(rate, color=colour, linestyle=":", linewidth=1.6)
        # The line of the rate starts at the median, _SLOPE_STEPS steps before the last step.
        steps = np.arange(max(1, K - _SLOPE_STEPS), K + 1)
        heights = lines[name][steps[0] - 1] + rate * (steps - steps[0])
        panels[0].plot(steps, drawable(heights, False), ":", color=colour, linewidth=1.6)


def _kinds(result: Any) -> dict[str, tuple[str, str]]:
    """The family and the variant of each method; a method of unknown origin is its own family."""
    abouts = {name: of.about for name, of in result.methods.items()}
    return {
        name: (name, "") if of is None or of.origin is None else (of.title, of.variant)
        for name, of in abouts.items()
    }


def _over_all_steps(result: Any) -> dict[str, Any]:
    """The curves by name; codes without steps, such as codes of a pursuit, as horizontal lines."""
    K = max(len(of.curve.nmse) for of in result.methods.values())

    def level(curve: Any) -> Any:
        return jax.tree.map(lambda v: np.repeat(v, K, axis=0), curve)

    return {n: level(of.curve) if of.given else of.curve for n, of in result.methods.items()}


def _legend_of_methods(fig: "Figure", panel: "Axes", sentences: list[str]) -> None:
    """Draw a legend of a panel's lines for the whole figure, with sentences above it."""
    handles, labels = panel.get_legend_handles_labels()
    columns = min(4, len(labels))
    title = textwrap.fill(" ".join(filter(None, sentences)), _ACROSS)
    options: dict[str, Any] = dict(loc="outside lower center", ncols=columns, frameon=False)
    fig.legend(handles, labels, title=title or None, **options)


def _most_threshold(thresholds: dict[str, np.ndarray]) -> float | None:
    """The largest threshold to draw: a schedule that does not contract grows without bound."""
    values = np.concatenate([[], *(drawable(theta, True) for theta in thresholds.values())])
    defined = values[~np.isnan(values)]
    return _MOST_THRESHOLD * float(np.median(defined)) if defined.size else None


def _silent(result: Any) -> str:
    """A sentence that names the methods that choose no entry at any step, or ""."""
    curves = {n: of.curve for n, of in result.methods.items()}
    names = [n for n, c in curves.items() if np.isnan(c.precision).all() and (c.recall == 0).all()]
    if not names:
        return ""
    listed = "; ".join(names)
    return f"Flat lines, because all codes are zero at every step (precision undefined): {listed}."


def _level(result: Any) -> str:
    """A sentence that names the methods that have no steps, or ""."""
    listed = "; ".join(name for name, of in result.methods.items() if of.given)
    return f"Horizontal lines, because only the last codes are known: {listed}." if listed else ""


@checked
def evolution(watch: Any) -> "Figure":
    """The figure of a `comparison.Evolution`: loss, thresholds and weights over the training steps.

    Each step of the network has a line; values that all steps share have a black line. Dashed lines
    show the predictions of theory, if given. Families that couple S and W by construction have no
    panel of the coupling.

    Example:
        >>> from types import SimpleNamespace
        >>> D, layer = ur.dictionaries.identity_hadamard(4), ur.layers.ista(3)
        >>> watch, params = ur.comparison.evolution(layer, D), layer.init(jax.random.key(1), D)
        >>> for step in (0, 10):
        ...     watch(SimpleNamespace(step=step, loss=1.0, validation=1.0), params)
        >>> ur.plots.evolution(watch).axes[0].get_title()
        'Validation loss'
    """
    checks.has(watch, "evaluations prediction", "an Evolution", "watch", "evolution")
    names = _seen(watch)
    fig, panels = figure(-(-len(names) // 3), min(3, len(names)), width=4.4, height=3.2)
    _evolve(fig, panels.ravel(), watch, names)
    _legend(fig, watch.prediction is not None)
    return fig


@checked
def chain_evolution(watch: Any) -> "Figure":
    """The figure of a `comparison.ChainEvolution`: `evolution` with one column per layer.

    Example:
        >>> from types import SimpleNamespace
        >>> Ds, network = [jnp.eye(4)] * 2, ur.dsc([ur.layers.ista(3), ur.layers.ista(2)])
        >>> watch = ur.comparison.evolution(network, Ds)
        >>> for step in (0, 10):
        ...     watch(SimpleNamespace(step=step, loss=1.0, validation=1.0), network.init(None, Ds))
        >>> fig = ur.plots.chain_evolution(watch)
        >>> [panel.get_title().splitlines()[0] for panel in fig.axes[:2]]
        ['Layer 1', 'Layer 2']
    """
    checks.has(watch, "layers", "a ChainEvolution", "watch", "chain_evolution")
    names = [_seen(layer) for layer in watch.layers]
    fig, panels = figure(max(map(len, names)), len(names), height=3.2)
    for j, layer in enumerate(watch.layers):
        _evolve(fig, panels[:, j], layer, names[j])
        panels[0, j].set_title(f"Layer {j + 1}\n{panels[0, j].get_title()}")
    _legend(fig, any(layer.prediction is not None for layer in watch.layers))
    return fig


def _seen(watch: Any) -> list[str]:
    """The names of the panels of `evolution`."""
    names = ["validation", *(["theta"] if watch.evaluations[0].theta is not None else [])]
    if watch.evaluations[0].coupling is None:
        return names
    names += ["diagonal_mean", "mu_W", "off_diagonal"]
    return [*names, *(["mismatch"] if watch.series("mismatch").any() else [])]


def _evolve(fig: "Figure", panels: np.ndarray, watch: Any, names: list[str]) -> None:
    """Draw the panels of `evolution`, and a bar with the colours of single steps."""
    depth = max(_lines(panel, watch, name) for panel, name in zip(panels, names))
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    if depth > 1:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        scale = ScalarMappable(Normalize(1, depth), "viridis")
        fig.colorbar(scale, ax=panels.tolist(), label="step of the network", shrink=0.7)


def _legend(fig: "Figure", predicted: bool) -> None:
    """The legend of `evolution`: labels for lines that the bar of colours does not explain."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="black", linestyle="-", label="all steps together")]
    if predicted:
        handles.append(Line2D([], [], color="black", linestyle="--", label="theory"))
    fig.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def _lines(panel: "Axes", watch: Any, name: str) -> int:
    """Draw one panel of `evolution`; return the number of its lines."""
    steps = watch.series("step")
    values = watch.series(name).reshape(len(steps), -1).astype(float)
    depth, log = values.shape[1], name == "theta" and bool((values > 0).any())
    lines = {f"step {k + 1}" if depth > 1 else "all": line for k, line in enumerate(values.T)}
    colours = {n: _shade(k, depth) for k, n in enumerate(lines)}
    for n, line in lines.items():
        panel.plot(steps, drawable(line, log), color=colours[n], linewidth=1.3)
    if name == "diagonal_mean":
        low, high = watch.series("diagonal_low").min(1), watch.series("diagonal_high").max(1)
        ends = drawable(low, False), drawable(high, False)
        panel.fill_between(steps, *ends, color="#7F7F7F", alpha=0.15, linewidth=0)
    predicted = _predicted(watch.prediction, name)
    for k, value in enumerate(predicted):
        if not np.isnan(shown := drawable(value, log)):
            colour = _shade(k, len(predicted))
            panel.axhline(float(shown), color=colour, linestyle="--", linewidth=0.8)
    if log:
        panel.set_yscale("log")
    title, ylabel = _WATCHED[name]
    tidy(panel, title=title, xlabel="training step", ylabel=ylabel)
    mark_outside(panel, {n: (steps, line) for n, line in lines.items()}, colours, log)
    return depth


def _shade(k: int, depth: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](k / (depth - 1)) if depth > 1 else "black"


def _predicted(prediction: Any, name: str) -> np.ndarray:
    """The predictions of theory for a panel: one per step, one for all steps, or an empty array."""
    if prediction is None:
        return np.zeros(0)
    if name == "theta":
        theta = np.asarray(prediction.theta, float)
        return theta.reshape(len(theta), -1).mean(1)
    return np.asarray({"diagonal_mean": [1.0], "mismatch": [0.0]}.get(name, []))
