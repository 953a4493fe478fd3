"""Figures from arrays; matplotlib is imported when one is drawn."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito), in the order in which methods are given.
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
)

_TITLES = {
    "validation": "Validation loss",
    "theta": "Mean threshold",
    "diagonal_mean": "Diagonal of W'D (shade: least to largest)",
    "mu_W": "Largest off-diagonal of W'D, mu_W",
    "off_diagonal": "Root mean square off the diagonal",
    "mismatch": "Coupling: |S - (I - W'D)| / |S|",
}
# A line of at most this many steps shows its points.
_MARKED = 40


def figure(
    rows: int, columns: int, *, width: float = 5.2, height: float = 3.7
) -> "tuple[Figure, np.ndarray]":
    """A matplotlib figure with a grid of panels, independent of any window system.

    Args:
        rows, columns: of the grid.
        width, height: of a panel, in inches.

    Returns:
        The figure and its panels, (rows, columns).

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.

    Example:
        >>> fig, panels = ur.plots.figure(2, 3)
        >>> panels.shape
        (2, 3)
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib; install unrolled[plots]") from error
    fig = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False)


def styles(names: Iterable[str]) -> dict[str, dict]:
    """Line styles by name, "family, variant": the family gives the colour, the variant the dashes.

    Example:
        >>> looks = ur.plots.styles(["lista", "alista", "alista, analytic"])
        >>> looks["alista, analytic"]
        {'color': '#D55E00', 'linestyle': ':'}
    """
    families = list(dict.fromkeys(name.split(",")[0] for name in names))
    dashes = {"analytic": ":", "calibrated": "--"}
    return {
        name: dict(
            color=COLOURS[families.index(name.split(",")[0]) % len(COLOURS)],
            linestyle=dashes.get(name.split(",")[-1].strip(), "-"),
        )
        for name in names
    }


def curves(
    panel: "Axes",
    lines: dict[str, np.ndarray],
    *,
    title: str,
    ylabel: str,
    log: bool = False,
    looks: dict[str, dict] | None = None,
) -> None:
    """Draw one line per name over the steps 1, 2, ...

    Args:
        panel: the matplotlib axes to draw on.
        lines: values (K,) by name.
        title, ylabel: of the panel.
        log: whether the values have a logarithmic axis.
        looks: line styles by name, the same for all panels of a figure; None for `styles`.

    Example:
        >>> fig, panels = ur.plots.figure(1, 1)
        >>> lines = {"ista": np.array([1.0, 0.5, 0.25]), "fista": np.array([1.0, 0.4, 0.1])}
        >>> ur.plots.curves(panels[0, 0], lines, title="Error", ylabel="NMSE", log=True)
        >>> len(panels[0, 0].lines)
        2
    """
    looks = styles(lines) if looks is None else looks
    for name, values in lines.items():
        values = np.asarray(values)
        marker: dict[str, Any] = dict(marker="o", markersize=2.5) if len(values) <= _MARKED else {}
        panel.plot(np.arange(1, len(values) + 1), values, label=name, **looks[name], **marker)
    if log:
        panel.set_yscale("log")
    panel.set(title=title, xlabel="step", ylabel=ylabel)
    panel.grid(True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def comparison(result: Any) -> "Figure":
    """The figure of a `compare.Comparison`: errors, supports, thresholds and weights per step.

    Example:
        >>> D, layer = ur.dictionaries.identity_hadamard(4), ur.layers.ista(3)
        >>> Y, X = ur.problems.sampler(D, 8)(jax.random.key(0))
        >>> params = layer.init(jax.random.key(1), D)
        >>> result = ur.compare.compare({"ista": (layer, params)}, D, Y=Y, X=X)
        >>> len(ur.plots.comparison(result).axes)
        6
    """
    fig, panels = figure(3, 2, height=3.2)
    _methods(panels, result)
    _legend_below(fig, panels[0, 0])
    return fig


def chain(result: Any) -> "Figure":
    """The figure of a `compare.ChainComparison`: the panels of `comparison`, a column per layer.

    Example:
        >>> Ds, network = [jnp.eye(4)] * 2, ur.dsc([ur.layers.ista(3), ur.layers.ista(2)])
        >>> methods = {"ista": (network, network.init(None, Ds))}
        >>> result = ur.compare.compare(methods, Ds, jnp.eye(4), [jnp.eye(4)] * 2)
        >>> fig = ur.plots.chain(result)
        >>> [panel.get_title().splitlines()[0] for panel in fig.axes[:2]]
        ['Layer 1', 'Layer 2']
    """
    fig, panels = figure(6, len(result.layers), height=3.2)
    for j, found in enumerate(result.layers):
        _methods(panels[:, j].reshape(3, 2), found)
        panels[0, j].set_title(f"Layer {j + 1}\n{panels[0, j].get_title()}")
    _legend_below(fig, panels[0, 0])
    return fig


def _legend_below(fig: "Figure", panel: "Axes") -> None:
    """The lines of a panel in a legend of the figure."""
    handles, labels = panel.get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False
    )


def _methods(panels: np.ndarray, result: Any) -> None:
    """Draw the six panels of a `compare.Comparison`, (3, 2)."""
    c, looks = result.curves, styles(result.curves)

    def draw(panel, lines, title, ylabel, log=False):
        curves(panel, lines, title=title, ylabel=ylabel, log=log, looks=looks)

    draw(
        panels[0, 0],
        {n: v.nmse for n, v in c.items()},
        "Error of the codes (shade: 10 to 90 % of signals)",
        "NMSE, dB",
    )
    for name, v in c.items():
        steps, (low, _, high) = np.arange(1, len(v.nmse) + 1), v.quantiles.T
        panels[0, 0].fill_between(
            steps, low, high, alpha=0.08, color=looks[name]["color"], linewidth=0
        )
    if any(v.gap is not None for v in c.values()):
        gaps = {n: _positive(v.gap) for n, v in c.items()}
        draw(panels[0, 1], gaps, "Gap to the LASSO optimum", "(F - F*) / F*", log=True)
    else:
        draw(
            panels[0, 1],
            {n: v.failure_rate for n, v in c.items()},
            "Signals that fail",
            "share not below -20 dB",
        )
    draw(panels[1, 0], {n: v.precision for n, v in c.items()}, "Support: precision", "precision")
    draw(panels[1, 1], {n: v.recall for n, v in c.items()}, "Support: recall", "recall")
    thresholds = {n: _positive(v) for n, v in result.thresholds.items()}
    draw(panels[2, 0], thresholds, "Thresholds", "mean theta of the step", log=True)
    if thresholds:
        # A schedule that does not contract runs out of the panel rather than flatten the others.
        values = np.concatenate(list(thresholds.values()))
        panels[2, 0].set_ylim(top=min(np.nanmax(values), 1e3 * np.nanmedian(values)) * 1.5)
    weights = {n: np.broadcast_to(v.mu_W, len(c[n].nmse)) for n, v in result.couplings.items()}
    draw(panels[2, 1], weights, "Weights: largest off-diagonal of W'D", "mu_W of the step")


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
    names = _seen(watch)
    fig, panels = figure(-(-len(names) // 3), min(3, len(names)), width=4.4, height=3.2)
    _evolve(fig, panels.ravel(), watch, names)
    return fig


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
    names = [_seen(layer) for layer in watch.layers]
    fig, panels = figure(max(map(len, names)), len(names), height=3.2)
    for j, layer in enumerate(watch.layers):
        _evolve(fig, panels[:, j], layer, names[j])
        panels[0, j].set_title(f"Layer {j + 1}\n{panels[0, j].get_title()}")
    return fig


def _seen(watch: Any) -> list[str]:
    """The names of the panels of `evolution`."""
    names = ["validation", *(["theta"] if watch.evaluations[0].theta is not None else [])]
    if watch.evaluations[0].coupling is None:
        return names
    names += ["diagonal_mean", "mu_W", "off_diagonal"]
    return [*names, *(["mismatch"] if watch.series("mismatch").any() else [])]


def _evolve(fig: "Figure", panels: np.ndarray, watch: Any, names: Sequence[str]) -> None:
    """Draw the panels of `evolution`, and the scale of their colours."""
    depth = max(_lines(panel, watch, name) for panel, name in zip(panels, names))
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    if depth > 1:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        scale = ScalarMappable(Normalize(1, depth), "viridis")
        fig.colorbar(scale, ax=panels.tolist(), label="step of the network", shrink=0.7)


def _lines(panel: "Axes", watch: Any, name: str) -> int:
    """Draw one panel of `evolution`; the number of its lines."""
    steps = watch.series("step")
    values = watch.series(name).reshape(len(steps), -1)
    depth = values.shape[1]
    for k, line in enumerate(values.T):
        panel.plot(steps, line, color=_shade(k, depth), linewidth=1.3)
    if name == "diagonal_mean":
        low, high = watch.series("diagonal_low").min(1), watch.series("diagonal_high").max(1)
        panel.fill_between(steps, low, high, color="#7F7F7F", alpha=0.15, linewidth=0)
    predicted = _predicted(watch.prediction, name)
    for k, value in enumerate(predicted):
        panel.axhline(value, color=_shade(k, len(predicted)), linestyle="--", linewidth=0.8)
    panel.set(title=_TITLES[name], xlabel="training step")
    if name == "theta" and (values > 0).any():
        panel.set_yscale("log")
    panel.grid(True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
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


def _positive(values: np.ndarray) -> np.ndarray:
    """Values for a logarithmic axis: nan where they are not positive."""
    values = np.asarray(values, float)
    return np.where(values > 0, values, np.nan)


def bound(
    lines: dict[str, tuple[np.ndarray, np.ndarray]], *, title: str, xlabel: str = "step"
) -> "Figure":
    """Measured errors (solid) and their certified bounds (dashed) on a logarithmic axis.

    Args:
        lines: measured and certified errors by name, (K + 1,) each, from step 0.
        title, xlabel: of the panel.

    Example:
        >>> certified = 0.5 ** np.arange(4)
        >>> fig = ur.plots.bound({"alista": (0.9 * certified, certified)}, title="Error")
        >>> [line.get_label() for line in fig.axes[0].lines]
        ['alista: certified bound', 'alista: largest error']
    """
    fig, panels = figure(1, 1, width=6.4, height=4.2)
    panel = panels[0, 0]
    for i, (name, (measured, certified)) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        steps = np.arange(len(certified))
        panel.plot(steps, certified, "--", color=colour, label=f"{name}: certified bound")
        panel.plot(steps, _positive(measured), color=colour, label=f"{name}: largest error")
    panel.set_yscale("log")
    panel.set(title=title, xlabel=xlabel, ylabel="l1 error of the code")
    panel.grid(True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    return fig


def gram(dictionaries: Sequence[dict[str, np.ndarray]]) -> "Figure":
    """|W'D| for several weights of several dictionaries, and the distribution off the diagonal.

    There is one row per dictionary. The colours of a row share a scale that ends at the largest
    off-diagonal entry of its first matrix.

    Args:
        dictionaries: for each dictionary, W'D by the name of the weights, (d, d) each.

    Example:
        >>> D = np.asarray(ur.dictionaries.identity_hadamard(4))
        >>> fig = ur.plots.gram([{"W = D": D.T @ D}])
        >>> fig.axes[0].get_title()
        'W = D: mu_W = 0.5000'
    """
    columns = 1 + max(map(len, dictionaries))
    fig, panels = figure(len(dictionaries), columns, width=3.4, height=3.2)
    for row, matrices in zip(panels, dictionaries):
        off = {name: np.abs(G[~np.eye(len(G), dtype=bool)]) for name, G in matrices.items()}
        top = max(next(iter(off.values())).max(initial=0.0), 1e-12)
        for panel, (name, G) in zip(row, matrices.items()):
            picture = panel.imshow(np.abs(G), cmap="magma", vmin=0, vmax=top)
            panel.set_title(f"{name}: mu_W = {off[name].max(initial=0.0):.4f}", fontsize=9)
            panel.set_axis_off()
        fig.colorbar(picture, ax=row[len(matrices) - 1], shrink=0.8, label="|w_i . d_j|")
        for i, (name, values) in enumerate(off.items()):
            row[-1].hist(
                values,
                bins=60,
                range=(0, 1.02 * top),
                histtype="step",
                color=COLOURS[i],
                label=name,
            )
        row[-1].set(title="off the diagonal", xlabel="|w_i . d_j|", ylabel="entries")
        if matrices[name].size > 1:
            row[-1].set(yscale="log", ylim=(0.7, None))
        row[-1].spines[["top", "right"]].set_visible(False)
        row[-1].legend(frameon=False, fontsize=8)
        for panel in row[len(matrices) : -1]:
            panel.set_axis_off()
    return fig


def images(pictures: dict[str, np.ndarray]) -> "Figure":
    """Grey pictures side by side under their titles.

    Args:
        pictures: values in [0, 1] by title, (height, width), all of one shape.

    Example:
        >>> fig = ur.plots.images({"noisy": np.ones((4, 4)), "denoised": np.zeros((4, 4))})
        >>> [panel.get_title() for panel in fig.axes]
        ['noisy', 'denoised']
    """
    rows, columns = next(iter(pictures.values())).shape
    fig, panels = figure(1, len(pictures), width=3.4, height=3.4 * rows / columns + 0.3)
    for panel, (title, picture) in zip(panels[0], pictures.items()):
        panel.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1)
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    return fig
