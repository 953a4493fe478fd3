"""The learning of a dictionary: which atoms the codes use, and the objective against time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import ArrayLike
from unrolled.plots import _curves
from unrolled.plots._styles import styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@checked
def use(codes: dict[str, ArrayLike]) -> "Figure":
    """How much the codes use each atom: the share of signals, and the mean magnitude.

    Both panels have the atoms of a dictionary in one order, the most used first. Atoms that no
    signal uses are counted below the first panel.

    Args:
        codes: codes by the name of their dictionary, (n, d) each.

    Raises:
        ValueError: no codes, other shapes, or entries that are not finite.

    Example:
        >>> X = np.array([[0.0, 2.0, 0.0], [0.0, 1.0, 3.0]])
        >>> fig = ur.plots.use({"ksvd": X})
        >>> [line.get_ydata().tolist() for panel in fig.axes for line in panel.lines]
        [[1.0, 0.5, 0.0], [1.5, 1.5, 0.0]]
    """
    if not codes:
        raise ValueError("use: expected codes of at least one dictionary, got none")
    shares, sizes, unused = {}, {}, []
    for name, X in codes.items():
        X = as_codes(X, f"use: {name}")
        order = most_used(X)
        shares[name] = (X != 0).mean(0)[order]
        sizes[name] = np.abs(X).mean(0)[order]
        if count := int((shares[name] == 0).sum()):
            unused.append(f"{name} {count} of {X.shape[1]}")
    fig, panels = _curves.figure(1, 2, width=4.6, height=3.2)
    looks = styles(codes)
    titles = ("Signals that use an atom", "Mean magnitude of its entries")
    for panel, lines, title, label in zip(
        panels[0], (shares, sizes), titles, ("share", "mean |x|")
    ):
        _curves.curves(panel, lines, title=title, ylabel=label, looks=looks)
        panel.set(xlabel="atom, the most used first", ylim=(0, None))
    _curves.note(panels[0, 0], [f"never used: {'; '.join(unused)}"] if unused else [])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


@checked
def losses(records: Sequence[Any]) -> "Figure":
    """The validation loss of a run at every evaluation, and the training loss before it.

    Args:
        records: `history.records` of `training.fit`, or of the stages of a curriculum in a row.

    Example:
        >>> Record = ur.training.Record
        >>> records = [Record(0, 2.0, 2.0, 0.0), Record(50, 1.0, 1.5, 3.0)]
        >>> [line.get_label() for line in ur.plots.losses(records).axes[0].lines]
        ['training', 'validation']
    """
    for i, record in enumerate(records):
        _checks.has(record, "step loss validation", "a Record", f"records[{i}]", "losses")
    fig, panels = _curves.figure(1, 1, width=6.4, height=4.0)
    panel = panels[0, 0]
    for name, field in (("training", "loss"), ("validation", "validation")):
        values = np.array([getattr(record, field) for record in records], float)
        panel.plot([record.step for record in records], _curves.drawable(values, False), label=name)
    _curves.whole_steps(panel)
    _curves.tidy(panel, title="Loss", xlabel="training step", ylabel="loss")
    _curves.name_lines(panel)
    return fig


@checked
def learning(histories: dict[str, Sequence[Any]], *, log: bool = False) -> "Figure":
    """The objective of dictionary learning against time; circles where atoms were replaced.

    Objectives of several methods compare only where they are the same function of the same signals:
    that of `online` has a penalty and is of the batch alone, that of `ksvd` is a squared error.

    Args:
        histories: the `history` of results of `dictionary_learning` by name: records with
            `seconds`, `objective` and `replaced`.
        log: whether the objective has a logarithmic axis.

    Raises:
        ValueError: no histories, or one without a step.

    Example:
        >>> Step = ur.dictionary_learning.Step
        >>> fig = ur.plots.learning({"ksvd": [Step(1, 0.9, 0.1, replaced=3), Step(2, 0.5, 0.2)]})
        >>> fig.axes[0].get_xlabel()
        'time, s\\natoms replaced (circles): ksvd 3'
    """
    if not histories or not all(map(len, histories.values())):
        raise ValueError(
            "learning: expected histories of at least one step, got "
            f"{', '.join(f'{len(steps)} of {name}' for name, steps in histories.items()) or 'none'}"
        )
    fig, panels = _curves.figure(1, 1, width=6.4, height=4.0)
    panel, looks = panels[0, 0], styles(histories)
    lines, colours, replaced = {}, {}, []
    for i, (name, history) in enumerate(histories.items()):
        seconds, values = np.array([(s.seconds, s.objective) for s in history], float).T
        counts = np.array([step.replaced for step in history])
        shown = _curves.drawable(values, log)
        look: dict[str, Any] = looks[name] | dict(
            markevery=_curves.marked_steps(i, len(history)), label=name
        )
        panel.plot(seconds, shown, **look)
        lines[name], colours[name] = (seconds, values), look["color"]
        if (at := counts > 0).any():
            panel.scatter(seconds[at], shown[at], 70, facecolors="none", edgecolors=look["color"])
            replaced.append(f"{name} {counts.sum()}")
    if log:
        panel.set_yscale("log")
    _curves.tidy(panel, title="Learning", xlabel="time, s", ylabel="mean objective")
    _curves.note(panel, [f"atoms replaced (circles): {'; '.join(replaced)}"] if replaced else [])
    _curves.mark_outside(panel, lines, colours, log)
    fig.legend(loc="outside lower center", ncols=2, frameon=False)
    return fig


def as_codes(X: ArrayLike, where: str) -> np.ndarray:
    """Codes (n, d) that are finite."""
    X = np.asarray(X, float)
    if X.ndim != 2 or not X.size:
        raise ValueError(f"{where}: expected codes (n, d), got shape {X.shape}")
    if not np.isfinite(X).all():
        raise ValueError(f"{where}: the codes have NaN or infinite entries")
    return X


def most_used(X: np.ndarray) -> np.ndarray:
    """The atoms in the order of how many codes (n, d) use them; equal ones by their magnitude."""
    return np.lexsort((-np.abs(X).sum(0), -np.count_nonzero(X, 0)))
