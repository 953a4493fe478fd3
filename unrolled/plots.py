"""Figures from arrays; matplotlib is imported when one is drawn."""

import numpy as np

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


def styles(names) -> dict[str, dict]:
    """Line styles by name: what stands before a comma gives the colour, what stands after it the
    dashes.
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
    panel,
    lines: dict[str, np.ndarray],
    *,
    title: str,
    ylabel: str,
    log: bool = False,
    looks: dict[str, dict] | None = None,
) -> None:
    """One line per name over the steps 1, 2, ...; `looks` (None: `styles` of the names) keeps
    panels alike.
    """
    looks = styles(lines) if looks is None else looks
    for name, values in lines.items():
        values = np.asarray(values)
        marker = dict(marker="o", markersize=2.5) if len(values) <= 40 else {}
        panel.plot(np.arange(1, len(values) + 1), values, label=name, **looks[name], **marker)
    if log:
        panel.set_yscale("log")
    panel.set(title=title, xlabel="step", ylabel=ylabel)
    panel.grid(True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def comparison(result):
    """The figure of a `compare.Comparison`: error, failures or objective gap, support, thresholds
    and weights per step.
    """
    fig, panels = figure(3, 2, height=3.2)
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
        # A schedule that does not contract leaves the picture rather than flatten the others.
        values = np.concatenate(list(thresholds.values()))
        panels[2, 0].set_ylim(top=min(np.nanmax(values), 1e3 * np.nanmedian(values)) * 1.5)
    weights = {n: np.broadcast_to(v.mu_W, len(c[n].nmse)) for n, v in result.couplings.items()}
    draw(panels[2, 1], weights, "Weights: largest off-diagonal of W'D", "mu_W of the step")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False
    )
    return fig


def evolution(watch):
    """The figure of a `compare.Evolution`: loss, thresholds and weights over the training steps.

    A line per step of the network, a black one for what all of them share; dashed, what theory
    predicts, if that was given. No panel for a coupling that is built in.
    """
    names = ["validation", *(["theta"] if watch.evaluations[0].theta is not None else [])]
    if watch.evaluations[0].coupling is not None:
        names += [
            "diagonal_mean",
            "mu_W",
            "off_diagonal",
            *(["mismatch"] if watch.series("mismatch").any() else []),
        ]
    fig, panels = figure(-(-len(names) // 3), min(3, len(names)), width=4.4, height=3.2)
    depth = max(_lines(panel, watch, name) for panel, name in zip(panels.flat, names))
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    if depth > 1:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        scale = ScalarMappable(Normalize(1, depth), "viridis")
        fig.colorbar(scale, ax=panels.ravel().tolist(), label="step of the network", shrink=0.7)
    return fig


def _lines(panel, watch, name: str) -> int:
    """One panel of `evolution`; the number of its lines."""
    steps = watch.series("step")
    values = watch.series(name).reshape(len(steps), -1)
    depth = values.shape[1]
    for k, line in enumerate(values.T):
        panel.plot(steps, line, color=_shade(k, depth), linewidth=1.3)
    if name == "diagonal_mean":
        low, high = watch.series("diagonal_low").min(1), watch.series("diagonal_high").max(1)
        panel.fill_between(steps, low, high, color="#7F7F7F", alpha=0.15, linewidth=0)
    predicted = [] if watch.prediction is None else _predicted(watch.prediction, name)
    for k, value in enumerate(predicted):
        panel.axhline(value, color=_shade(k, len(predicted)), linestyle="--", linewidth=0.8)
    panel.set(title=_TITLES[name], xlabel="training step")
    if name == "theta" and (values > 0).any():
        panel.set_yscale("log")
    panel.grid(True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    return depth


_TITLES = {
    "validation": "Validation loss",
    "theta": "Mean threshold",
    "diagonal_mean": "Diagonal of W'D (shade: least to largest)",
    "mu_W": "Largest off-diagonal of W'D, mu_W",
    "off_diagonal": "Root mean square off the diagonal",
    "mismatch": "Coupling: |S - (I - W'D)| / |S|",
}


def _shade(k: int, depth: int):
    from matplotlib import colormaps

    return colormaps["viridis"](k / (depth - 1)) if depth > 1 else "black"


def _predicted(prediction, name: str) -> np.ndarray:
    """What theory says of a panel of `evolution`: a value per step, one for all, or none."""
    if name == "theta":
        theta = np.asarray(prediction.theta, float)
        return theta.reshape(len(theta), -1).mean(1)
    return np.asarray({"diagonal_mean": [1.0], "mismatch": [0.0]}.get(name, []))


def _positive(values) -> np.ndarray:
    """Values for a logarithmic axis: what is not positive is left out."""
    values = np.asarray(values, float)
    return np.where(values > 0, values, np.nan)


def bound(lines: dict[str, tuple[np.ndarray, np.ndarray]], *, title: str, xlabel: str = "step"):
    """Measured errors (solid) under certified bounds (dashed), both from step 0, on a logarithmic
    axis.
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


def gram(dictionaries: list[dict[str, np.ndarray]]):
    """|W'D| for every kind of weights of every dictionary, (d, d) each by name, and the
    distribution off the diagonal.

    One row per dictionary, whose colours share a scale that ends at the largest off-diagonal entry
    of its first matrix.
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


def images(pictures: dict[str, np.ndarray]):
    """Grey pictures in [0, 1], of one shape, side by side under their titles."""
    rows, columns = next(iter(pictures.values())).shape
    fig, panels = figure(1, len(pictures), width=3.4, height=3.4 * rows / columns + 0.3)
    for panel, (title, picture) in zip(panels[0], pictures.items()):
        panel.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1)
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    return fig
