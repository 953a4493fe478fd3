"""The figures of a comparison and of a run that was watched."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled.plots._curves import curves, drawable, figure, mark_outside, styles, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The title and the vertical axis of the panels of a run.
_WATCHED = {
    "validation": ("Validation loss", "loss"),
    "theta": ("Mean threshold", "mean theta"),
    "diagonal_mean": ("Mean of w_i . d_i (shade: least to largest)", "w_i . d_i"),
    "mu_W": ("Coherence, with w_i . d_i scaled to 1", "mu_W"),
    "off_diagonal": ("Rms of w_i . d_j, with w_i . d_i scaled to 1", "rms of w_i . d_j"),
    "mismatch": ("Coupling of S and W", "|S - (I - W'D)| / |S|"),
}
# The largest values that a comparison draws: a method that diverges must not flatten the others.
_MOST_DECIBELS, _MOST_GAP, _MOST_COHERENCE = 20.0, 1e3, 2.0
_LEAST_DECIBELS = -120.0  # below are the errors of rounding
_MOST_THRESHOLD = 1e3  # medians
_MOST_FALL = 5.0  # dB per step
_SLOPE_STEPS = 4  # over which the line of a rate goes
_CHARACTERS = 120  # of a line of text across a comparison


@checked
def comparison(result: Any, *, codes: str = "true codes", note: str = "") -> "Figure":
    """The figure of a `compare.Comparison`: errors, supports, thresholds and weights per step.

    Args:
        result: the comparison.
        codes: what its codes X are, for the titles.
        note: what a reader should know, written below the panels.

    Example:
        >>> D, layer = ur.dictionaries.identity_hadamard(4), ur.layers.ista(3)
        >>> Y, X = ur.problems.sampler(D, 8)(jax.random.key(0))
        >>> params = layer.init(jax.random.key(1), D)
        >>> result = ur.compare.compare({"ista": (layer, params)}, D, Y=Y, X=X)
        >>> len(ur.plots.comparison(result).axes)
        6
    """
    checks.has(result, "curves", "a Comparison", "result", "comparison")
    predicted = getattr(result, "predicted", None)
    fig, panels = figure(4 if predicted else 3, 2, height=3.3)
    _draw_panels(panels[:3], result, codes)
    if predicted:
        _medians(panels[3], result)
    _legend_of_methods(fig, panels[0, 0], [_silent(result.curves), _level(result), note])
    return fig


@checked
def chain(result: Any, *, codes: str = "true codes", note: str = "") -> "Figure":
    """The figure of a `compare.ChainComparison`: the panels of `comparison`, a column per layer.

    Example:
        >>> Ds, network = [jnp.eye(4)] * 2, ur.dsc([ur.layers.ista(3), ur.layers.ista(2)])
        >>> methods = {"ista": (network, network.init(None, Ds))}
        >>> result = ur.compare.compare(methods, Ds, jnp.eye(4), [jnp.eye(4)] * 2)
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
        sentences.append((silent := _silent(layer.curves)) and f"Layer {j + 1}: {silent}")
    _legend_of_methods(fig, panels[0, 0], [*sentences, _level(result.layers[0]), note])
    return fig


def _draw_panels(panels: np.ndarray, result: Any, codes: str) -> None:
    """Draw the six panels of a `compare.Comparison`, (3, 2)."""
    c, looks = _over_all_steps(result), styles(result.curves)

    def draw(panel, lines, title, ylabel, **limits):
        curves(panel, lines, title=title, ylabel=ylabel, looks=looks, **limits)

    # The shade first: the limits of the axis hold it too.
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
    top = _most_threshold(result.thresholds)
    title = "Threshold of each step"
    draw(panels[2, 0], result.thresholds, title, "mean theta", log=True, top=top)
    weights = {n: np.broadcast_to(v.mu_W, len(c[n].nmse)) for n, v in result.couplings.items()}
    title = "Coherence of the weights, w_i . d_i scaled to 1"
    draw(panels[2, 1], weights, title, "mu_W of each step", top=_MOST_COHERENCE)


def _medians(panels: np.ndarray, result: Any) -> None:
    """Median errors with what theory predicts of them, and by how much a step changes them."""
    looks = styles(result.curves)
    lines = {n: result.curves[n].quantiles[:, 1] for n in result.predicted}
    title = "Median (circles: state evolution; dots: local rate)"
    curves(panels[0], lines, title=title, ylabel="NMSE, dB", looks=looks, top=_MOST_DECIBELS)
    falls = {n: np.diff(median, prepend=0.0) for n, median in lines.items()}
    title = "Change of the median (dots: local rate)"
    curves(panels[1], falls, title=title, ylabel="dB per step", looks=looks, top=_MOST_FALL)
    for name, (nmse, rate, _) in result.predicted.items():
        colour, K = looks[name]["color"], len(lines[name])
        if nmse is not None:
            steps = np.arange(1, K + 1)
            panels[0].plot(steps, nmse, "o", color=colour, markersize=7, fillstyle="none")
        if rate is None:
            continue
        panels[1].axhline(rate, color=colour, linestyle=":", linewidth=1.6)
        # Through the point from which the line of this slope stays within the panel.
        steps = np.arange(max(1, K - _SLOPE_STEPS), K + 1)
        heights = lines[name][steps[0] - 1] + rate * (steps - steps[0])
        panels[0].plot(steps, drawable(heights, False), ":", color=colour, linewidth=1.6)


def _over_all_steps(result: Any) -> dict[str, Any]:
    """The curves by name; codes without steps, such as those of a pursuit, as level lines."""
    K = max(len(curve.nmse) for curve in result.curves.values())

    def level(curve: Any) -> Any:
        return curve._make(v if v is None else np.repeat(v, K, axis=0) for v in curve)

    return {n: level(c) if n in result.given else c for n, c in result.curves.items()}


def _legend_of_methods(fig: "Figure", panel: "Axes", sentences: list[str]) -> None:
    """The lines of a panel in a legend of the figure, below some sentences."""
    handles, labels = panel.get_legend_handles_labels()
    columns = min(4, len(labels))
    title = textwrap.fill(" ".join(filter(None, sentences)), _CHARACTERS)
    options: dict[str, Any] = dict(loc="outside lower center", ncols=columns, frameon=False)
    fig.legend(handles, labels, title=title or None, **options)


def _most_threshold(thresholds: dict[str, np.ndarray]) -> float | None:
    """The largest threshold to draw: a schedule that does not contract grows without bound."""
    values = np.concatenate([[], *(drawable(theta, True) for theta in thresholds.values())])
    defined = values[~np.isnan(values)]
    return _MOST_THRESHOLD * float(np.median(defined)) if defined.size else None


def _silent(curves: dict[str, Any]) -> str:
    """Which methods choose no entry at any step, in a sentence; empty if all choose some."""
    names = [n for n, c in curves.items() if np.isnan(c.precision).all() and (c.recall == 0).all()]
    if not names:
        return ""
    listed = "; ".join(names)
    return f"Flat, since all codes are zero at every step (precision undefined): {listed}."


def _level(result: Any) -> str:
    """Which methods have no steps, in a sentence; empty if all have."""
    return f"Level, since only the last codes are known: {'; '.join(result.given)}." * bool(
        result.given
    )


@checked
def evolution(watch: Any) -> "Figure":
    """The figure of a `compare.Evolution`: loss, thresholds and weights over the training steps.

    There is one line per step of the network, or a black one for what all steps share; dashed lines
    are what theory predicts, if that was given. A coupling that is built in has no panel.

    Example:
        >>> from types import SimpleNamespace
        >>> D, layer = ur.dictionaries.identity_hadamard(4), ur.layers.ista(3)
        >>> watch, params = ur.compare.evolution(layer, D), layer.init(jax.random.key(1), D)
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
    """The figure of a `compare.ChainEvolution`: the panels of `evolution`, a column per layer.

    Example:
        >>> from types import SimpleNamespace
        >>> Ds, network = [jnp.eye(4)] * 2, ur.dsc([ur.layers.ista(3), ur.layers.ista(2)])
        >>> watch = ur.compare.evolution(network, Ds)
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
    """The legend of `evolution`: names for what the bar of colours does not tell."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="black", linestyle="-", label="all steps together")]
    if predicted:
        handles.append(Line2D([], [], color="black", linestyle="--", label="theory"))
    fig.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def _lines(panel: "Axes", watch: Any, name: str) -> int:
    """Draw one panel of `evolution`; the number of its lines."""
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
    """What theory predicts for a panel of `evolution`: a value per step, one for all, or none."""
    if prediction is None:
        return np.zeros(0)
    if name == "theta":
        theta = np.asarray(prediction.theta, float)
        return theta.reshape(len(theta), -1).mean(1)
    return np.asarray({"diagonal_mean": [1.0], "mismatch": [0.0]}.get(name, []))
