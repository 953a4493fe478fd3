"""Figures from arrays; matplotlib is imported when one is drawn."""

import math

import numpy as np

# Colour-blind safe (Okabe and Ito), in the order in which methods are given.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000", "#8C564B")


def figure(rows: int, columns: int, *, width: float = 5.2, height: float = 3.7):
    """A matplotlib figure with a grid of panels, (rows, columns), independent of any window system.

    Raises:
        ImportError: matplotlib is not there; the message names the extra.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib; install unrolled[plots]") from error
    fig = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False)


def curves(panel, lines: dict[str, np.ndarray], *, title: str, ylabel: str, log: bool = False, first: int = 1) -> None:
    """One line per name over the steps, from step `first` on."""
    for i, (name, values) in enumerate(lines.items()):
        values = np.asarray(values)
        style = dict(marker="o", markersize=3) if len(values) <= 40 else {}
        panel.plot(np.arange(first, first + len(values)), values, label=name, color=COLOURS[i % len(COLOURS)], **style)
    if log:
        panel.set_yscale("log")
    panel.set(title=title, xlabel="step", ylabel=ylabel)
    panel.grid(True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def comparison(result):
    """The figure of a `compare.Comparison`: error, failures, support and thresholds per step."""
    fig, panels = figure(2, 2)
    c = result.curves
    curves(panels[0, 0], {n: v.nmse for n, v in c.items()}, title="Error of the codes", ylabel="NMSE, dB (ratio of sums)")
    for i, v in enumerate(c.values()):
        steps = np.arange(1, len(v.nmse) + 1)
        colour = COLOURS[i % len(COLOURS)]
        panels[0, 0].fill_between(steps, v.quantiles[:, 0], v.quantiles[:, 2], alpha=0.1, color=colour, linewidth=0)
    if any(v.gap is not None for v in c.values()):
        gaps = {n: np.where(v.gap > 0, v.gap, np.nan) for n, v in c.items()}
        curves(panels[0, 1], gaps, title="Gap to the LASSO optimum", ylabel="(F - F*) / F*", log=True)
    else:
        curves(
            panels[0, 1], {n: v.failure_rate for n, v in c.items()}, title="Signals that fail", ylabel="share above -20 dB"
        )
    curves(panels[1, 0], {n: v.precision for n, v in c.items()}, title="Precision of the support", ylabel="precision")
    thresholds = {n: np.where(v > 0, v, np.nan) for n, v in result.thresholds.items()}
    curves(panels[1, 1], thresholds, title="Thresholds", ylabel="mean theta of the step", log=True)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return fig


def bound(lines: dict[str, tuple[np.ndarray, np.ndarray]], *, title: str, xlabel: str = "step"):
    """Measured errors (solid) under certified bounds (dashed), both from step 0, on a logarithmic axis."""
    fig, panels = figure(1, 1, width=6.4, height=4.2)
    panel = panels[0, 0]
    for i, (name, (measured, certified)) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        steps = np.arange(len(certified))
        panel.plot(steps, certified, "--", color=colour, label=f"{name}: certified bound")
        measured = np.where(np.asarray(measured) > 0, measured, np.nan)
        panel.plot(steps, measured, color=colour, label=f"{name}: largest error")
    panel.set_yscale("log")
    panel.set(title=title, xlabel=xlabel, ylabel="l1 error of the code")
    panel.grid(True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    return fig


def atoms(D, shape: tuple[int, int], *, columns: int | None = None):
    """The atoms of a dictionary of image patches as a mosaic, each on its own grey scale."""
    D = np.asarray(D, float)
    h, w = shape
    columns = columns or math.ceil(math.sqrt(D.shape[1]))
    rows = math.ceil(D.shape[1] / columns)
    mosaic = np.ones((rows * (h + 1) + 1, columns * (w + 1) + 1))
    for i, atom in enumerate(D.T):
        r, c = divmod(i, columns)
        span = np.ptp(atom) or 1.0
        tile = (atom - atom.min()) / span
        mosaic[r * (h + 1) + 1 : (r + 1) * (h + 1), c * (w + 1) + 1 : (c + 1) * (w + 1)] = tile.reshape(h, w)
    fig, panels = figure(1, 1, width=5, height=5)
    panels[0, 0].imshow(mosaic, cmap="gray", interpolation="nearest")
    panels[0, 0].set_axis_off()
    return fig


def images(pictures: dict[str, np.ndarray]):
    """Grey pictures in [0, 1] side by side under their titles."""
    fig, panels = figure(1, len(pictures), width=3.4, height=3.9)
    for panel, (title, picture) in zip(panels[0], pictures.items()):
        panel.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1)
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    return fig
