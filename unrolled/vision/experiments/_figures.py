"""The figures of the paper's Section 4, from the rows of one experiment."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled import plots
from unrolled._base.arguments import checked
from unrolled.vision.experiments._program import SCORES
from unrolled.vision.experiments._table import check_fields, interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]


@checked
def scores_by_activation(rows: Rows) -> "Figure":
    """The first score of all runs as points, with mean and 95 % interval, by activation and gamma.

    Models take the place of activations where all rows have one activation.

    Raises:
        ValueError: no rows, or rows of several tasks.

    Example:
        >>> from matplotlib.figure import Figure
        >>> recipe = {"model": "lenet5", "activation": "relu", "gamma": 0.0}
        >>> rows = [{"recipe": recipe, "scores": {"accuracy": score}} for score in (0.6, 0.7)]
        >>> isinstance(ur.vision.experiments.scores_by_activation(rows), Figure)
        True
    """
    _check_rows(rows, "scores_by_activation", "recipe scores")
    name = next(score for score in SCORES if score in rows[0]["scores"])
    if any(name not in row["scores"] for row in rows):
        raise ValueError(
            f"scores_by_activation: expected rows of one task, got some without {name}; try those "
            "of one model at a time"
        )
    kind = "activation" if len(_values(rows, "activation")) > 1 else "model"
    groups, gammas = _values(rows, kind), _values(rows, "gamma")
    fig, panels = plots.figure(1, 1, width=6.4, height=4.2)
    panel, looks = panels[0, 0], _looks(gammas)
    width = 0.8 / len(gammas)
    for i, gamma in enumerate(gammas):
        for g, group in enumerate(groups):
            scores = [
                row["scores"][name]
                for row in rows
                if row["recipe"][kind] == group and row["recipe"]["gamma"] == gamma
            ]
            values = [value for value in scores if value is not None]
            if not values:
                continue
            at, look = g - 0.4 + (i + 0.5) * width, looks[_label(gamma)]
            mean, half, _ = interval(values)
            panel.plot([at] * len(values), values, ".", color=look["color"], alpha=0.5)
            panel.errorbar(
                at + width / 4,
                mean,
                None if np.isnan(half) else half,
                color=look["color"],
                marker=look["marker"],
                capsize=3,
                label=_label(gamma) if g == 0 else None,
            )
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0), min(high, 1))  # an interval may leave the range of the score
    panel.set_xticks(range(len(groups)), groups)
    title = "each run, the mean over seeds and its 95 % interval"
    panel.set(title=title, xlabel=kind, ylabel=f"test {name.replace('_', ' ')}")
    panel.grid(True, alpha=0.3)
    panel.legend(frameon=False)
    return fig


@checked
def training_loss(rows: Rows) -> "Figure":
    """The training loss, without the penalty, over epochs: a panel per activation.

    Example:
        >>> recipe = {"model": "lenet5", "activation": "relu", "gamma": 0.0}
        >>> curve = [{"train": {"loss": loss}} for loss in (2.3, 1.9)]
        >>> len(ur.vision.experiments.training_loss([{"recipe": recipe, "curve": curve}]).axes)
        1
    """
    _check_rows(rows, "training_loss", "recipe curve")
    return _over_epochs(rows, lambda line: line["train"]["loss"], "training loss", log=True)


@checked
def l1_in_training(rows: Rows, layer: int) -> "Figure":
    """mean |x| of the features of a penalised layer over epochs: a panel per activation.

    Example:
        >>> recipe = {"model": "lenet5", "activation": "relu", "gamma": 0.0}
        >>> curve = [{"train": {"l1": [size]}} for size in (0.5, 0.3)]
        >>> rows = [{"recipe": recipe, "curve": curve, "layers": ["conv1.features"]}]
        >>> ur.vision.experiments.l1_in_training(rows, 0).axes[0].get_ylabel()
        'mean |x| of conv1.features'
    """
    _check_rows(rows, "l1_in_training", "recipe curve layers")
    name = rows[0]["layers"][layer]
    return _over_epochs(rows, lambda line: line["train"]["l1"][layer], f"mean |x| of {name}")


@checked
def predicted_masks(pictures: Mapping[str, np.ndarray], titles: Sequence[str]) -> "Figure":
    """Pictures, their true masks, and the masks that networks predict: a row per picture.

    Args:
        pictures: X (n, H, W, 3), truth (n, H, W), and predicted masks by title.
        titles: those of the predicted masks, in order.

    Raises:
        ValueError: no pictures, or none of a title.

    Example:
        >>> masks = np.zeros((2, 8, 8), bool)
        >>> pictures = {"X": np.zeros((2, 8, 8, 3)), "truth": masks, "gamma = 0": masks}
        >>> len(ur.vision.experiments.predicted_masks(pictures, ["gamma = 0"]).axes)
        6
    """
    columns = ["X", "truth", *titles]
    n = len(pictures.get("X", ()))
    if not n:
        raise ValueError("predicted_masks: there are no pictures; expected at least one")
    if missing := [column for column in columns if column not in pictures]:
        raise ValueError(
            f"predicted_masks: pictures have no {missing}; expected truth and all of the titles"
        )
    fig, panels = plots.figure(n, len(columns), width=1.6, height=1.7)
    for i, row in enumerate(panels):
        for panel, column in zip(row, columns):
            panel.imshow(pictures[column][i], cmap="gray", vmin=0, vmax=1)
            panel.set_axis_off()
            if i == 0:
                panel.set_title("picture" if column == "X" else column, fontsize=8)
    return fig


def _check_rows(rows: Rows, where: str, fields: str) -> None:
    if not len(rows):
        raise ValueError(f"{where}: there are no rows; expected those of an experiment")
    for i, row in enumerate(rows):
        check_fields(row, fields, f"rows[{i}]", where)


def _over_epochs(rows: Rows, value: Any, ylabel: str, log: bool = False) -> "Figure":
    kind = "activation" if len(_values(rows, "activation")) > 1 else "model"
    groups, gammas = _values(rows, kind), _values(rows, "gamma")
    fig, panels = plots.figure(1, len(groups), width=4.2)
    looks = _looks(gammas)
    for panel, group in zip(panels[0], groups):
        lines = {}
        for gamma in gammas:
            curves = [
                [np.nan if value(line) is None else value(line) for line in row["curve"]]
                for row in rows
                if row["recipe"][kind] == group and row["recipe"]["gamma"] == gamma
            ]
            if curves:
                length = max(map(len, curves))
                padded = [curve + [np.nan] * (length - len(curve)) for curve in curves]
                lines[_label(gamma)] = np.mean(padded, axis=0)
        plots.curves(panel, lines, title=group, ylabel=ylabel, log=log, looks=looks)
        panel.set_xlabel(panel.get_xlabel().replace("step", "epoch", 1))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


def _values(rows: Rows, field: str) -> list[Any]:
    """What a field of the recipes has, in order."""
    values = dict.fromkeys(row["recipe"][field] for row in rows)
    return sorted(values) if field == "gamma" else list(values)


def _looks(gammas: Sequence[float]) -> dict[str, dict]:
    return plots.styles([_label(gamma) for gamma in gammas])


def _label(gamma: float) -> str:
    return f"gamma = {gamma:g}"
