"""Matrices and images as pictures, and the figures of a learned dictionary and of features."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled._base import checks
from unrolled._base.doors import ArrayLike, checked
from unrolled.dictionaries import Conv, Dictionary, as_dictionary, dense
from unrolled.plots import _curves
from unrolled.plots._curves import COLOURS, figure, note, styles, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["atoms", "codes", "features", "gram", "images", "learning", "losses", "use"]


@checked
def use(codes: dict[str, ArrayLike]) -> "Figure":
    """The use of each atom: the share of signals with it, and the mean magnitude of its entries.

    Both panels show the atoms of a dictionary in one order, the most used first. A note below the
    first panel counts the atoms that no signal uses.

    Args:
        codes: codes by the name of their dictionary, (n, d) each.

    Raises:
        ValueError: there are no codes, codes have another shape, or entries are not finite.

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
    """The validation loss of a run at every evaluation, and the mean training loss in between.

    Args:
        records: `history.records` of `training.fit`, or the joined records of a curriculum.

    Example:
        >>> Record = ur.training.Record
        >>> records = [Record(0, 2.0, 2.0, 0.0), Record(50, 1.0, 1.5, 3.0)]
        >>> [line.get_label() for line in ur.plots.losses(records).axes[0].lines]
        ['training', 'validation']
    """
    for i, record in enumerate(records):
        checks.has(record, "step loss validation", "a Record", f"records[{i}]", "losses")
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
    """The objective of dictionary learning against time; circles mark steps that replaced atoms.

    Compare the objectives of several methods only if they are the same function of the same
    signals. For example, the objective of `online` has a penalty and uses only the batch, and the
    objective of `ksvd` is a squared error.

    Args:
        histories: the `history` of each result of `dictionary_learning`, by name; its records have
            `seconds`, `objective` and `replaced`.
        log: whether the axis of the objective is logarithmic.

    Raises:
        ValueError: there are no histories, or a history has no step.

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
    """Check that codes (n, d) are finite."""
    X = np.asarray(X, float)
    if X.ndim != 2 or not X.size:
        raise ValueError(f"{where}: expected codes (n, d), got shape {X.shape}")
    if not np.isfinite(X).all():
        raise ValueError(f"{where}: the codes have NaN or infinite entries")
    return X


def most_used(X: np.ndarray) -> np.ndarray:
    """The atoms ordered by how many codes (n, d) use them; ties are ordered by magnitude."""
    return np.lexsort((-np.abs(X).sum(0), -np.count_nonzero(X, 0)))


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "zeros": ("Zeros of the code", "share of exact zeros"),
    "gap": ("Objective of the forward code", "(J(c x) - J*) / (J(0) - J*)"),
    "scaled_change": ("Change by the pursuit", "least |x* - c x| / |x*|"),
    "overlap": ("Common support", "in both / in either"),
}
_WIDTH = 0.8  # width of all models of a layer, as a share of the distance between two layers


@checked
def features(found: Mapping[str, Any]) -> "Figure":
    """The codes of the layers of networks: from the forward pass, and after a pursuit.

    Bars show means over the images; the line on a bar runs from the lower to the upper quartile. A
    circle shows the share of zeros in the codes of the pursuit. If the objective of a layer has no
    minimum, the layer has no bars for the pursuit.

    Args:
        found: results of `experiments.features` by name, one or several for each name; the images
            of several results are pooled. The networks must have the same layers.

    Raises:
        ValueError: there are no results, or the results have different layers.

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.experiments import features
        >>> net = ur.vision.models.LeNet5(channels=1, side=16, rngs=nnx.Rngs(0))
        >>> result = features(net, np.ones((1, 16, 16, 1), np.float32), ["conv1"], tol=0.1)
        >>> fig = ur.plots.features({"untrained": result})
        >>> [panel.get_title() for panel in fig.axes[:2]]
        ['Zeros of the code', 'Objective of the forward code']
    """
    results = {
        name: list(several)
        if isinstance(several, list | tuple) and not hasattr(several, "layers")
        else [several]
        for name, several in found.items()
    }
    layer_names = {tuple(result.layers) for several in results.values() for result in several}
    if len(layer_names) != 1:
        raise ValueError("features: expected results with the same layers, and at least one")
    (layers,) = layer_names
    fig, panels = figure(1, len(_TITLES), width=3.6, height=3.6)
    # Bars differ only by colour: each variant of a family needs a different colour.
    looks = dict(zip(found, styles(f"bar {i}" for i in range(len(found))).values()))
    width = _WIDTH / len(found)
    for panel, (quantity, (title, ylabel)) in zip(panels[0], _TITLES.items()):
        for i, (model, several) in enumerate(results.items()):
            at = np.arange(len(layers)) + (i + 0.5) * width - _WIDTH / 2
            pooled = [[result.layers[name] for result in several] for name in layers]
            low, mean, high = np.transpose([_summary(group, quantity) for group in pooled])
            colour = looks[model]["color"]
            panel.bar(at, mean, 0.9 * width, color=colour, alpha=0.6, label=model)
            panel.vlines(at, low, high, color=colour)
            if quantity == "zeros":
                after = [_summary(group, "zeros of x*")[1] for group in pooled]
                panel.plot(at, after, "o", color=colour, markerfacecolor="white")
        tidy(panel, title=title, xlabel="layer", ylabel=ylabel)
        panel.set_xticks(range(len(layers)), [name.removesuffix(".features") for name in layers])
    note(panels[0, 0], ["circles: after the pursuit"])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(len(found), 6), frameon=False)
    return fig


def _summary(layers: list[Any], quantity: str) -> tuple[float, float, float]:
    """Lower quartile, mean and upper quartile over the images of all results, without nan."""
    values = np.concatenate([_values(layer, quantity) for layer in layers])
    values = values[~np.isnan(values)]
    if not values.size:
        return np.nan, np.nan, np.nan
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low), float(np.mean(values)), float(high)


def _values(layer: Any, quantity: str) -> np.ndarray:
    """One number per image."""
    if quantity == "zeros":
        return 1 - layer.codes.nonzeros / layer.codes.entries
    if quantity == "zeros of x*":
        return 1 - layer.pursued.nonzeros / layer.codes.entries
    return getattr(layer.pursued, quantity)


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The most cells in a picture of codes, so that a screen can show each cell.
_CELLS = (128, 256)


@checked
def gram(dictionaries: Sequence[Mapping[str, Any]]) -> "Figure":
    """|W'D| for several weights of several dictionaries, and histograms of off-diagonal entries.

    Weights are compared after w_i . d_i is scaled to 1. Each dictionary has a row. The colours of a
    row share a scale that ends at the largest off-diagonal entry of the first matrix of the row;
    the legends say how many entries of the other matrices exceed that entry.

    Args:
        dictionaries: for each dictionary, W'D by the name of the weights, (d, d) each.

    Raises:
        ValueError: there is no dictionary, a dictionary has no weights, or W'D is not square.

    Example:
        >>> D = np.asarray(ur.dictionaries.identity_hadamard(4))
        >>> fig = ur.plots.gram([{"W = D": D.T @ D}])
        >>> fig.axes[0].get_title()
        'W = D: mu_W = 0.5000'
    """
    if not dictionaries or not all(dictionaries):
        raise ValueError("gram: expected one dictionary or more, each with weights")
    for name, G in (pair for matrices in dictionaries for pair in matrices.items()):
        if np.ndim(G) != 2 or len(G) != np.shape(G)[1]:
            raise ValueError(
                f"gram: {name!r} has shape {np.shape(G)}; expected (d, d), W'D, such as D.T @ D"
            )
    columns = 1 + max(map(len, dictionaries))
    fig, panels = figure(len(dictionaries), columns, width=3.4, height=3.2)
    for row, matrices in zip(panels, dictionaries):
        matrices = {name: _unit_diagonal(np.asarray(G)) for name, G in matrices.items()}
        off = {name: G[~np.eye(len(G), dtype=bool)] for name, G in matrices.items()}
        first = next(iter(off.values()))
        top = max(first[np.isfinite(first)].max(initial=0.0), 1e-12)
        for panel, (name, G) in zip(row, matrices.items()):
            picture = panel.imshow(G, cmap="magma", vmin=0, vmax=top)
            panel.set_title(f"{name}: mu_W = {off[name].max(initial=0.0):.4f}", fontsize=9)
            panel.set_axis_off()
        label = "|w_i . d_j| / |w_i . d_i|"
        fig.colorbar(picture, ax=row[len(matrices) - 1], shrink=0.8, label=label, extend="max")
        for i, (name, values) in enumerate(off.items()):
            end = 1.02 * top
            beyond = int((~(values <= end)).sum())
            row[-1].hist(
                values[values <= end],
                bins=60,
                range=(0, end),
                histtype="step",
                color=COLOURS[i],
                label=f"{name}, {beyond} beyond" if beyond else name,
            )
        row[-1].set(title="off the diagonal", xlabel=label, ylabel="entries")
        if matrices[name].size > 1:
            row[-1].set(yscale="log", ylim=(0.7, None))
        row[-1].spines[["top", "right"]].set_visible(False)
        row[-1].legend(frameon=False, fontsize=8)
        for panel in row[len(matrices) : -1]:
            panel.set_axis_off()
    return fig


def _unit_diagonal(G: np.ndarray) -> np.ndarray:
    """|w_i . d_j| / |w_i . d_i|, infinite if w_i . d_i = 0."""
    diagonal = np.abs(np.diag(G))[:, None]
    return np.where(diagonal == 0, np.inf, np.abs(G) / np.where(diagonal == 0, 1, diagonal))


@checked
def images(pictures: dict[str, np.ndarray], *, signed: bool = False) -> "Figure":
    """Grey pictures side by side, each below its title.

    Args:
        pictures: arrays (height, width) of one shape, by title. Unless `signed`, values outside
            [0, 1] are clipped, and the title gives the share of these values.
        signed: if True, zero is the middle grey and all pictures share one scale.

    Raises:
        ValueError: there are no pictures, or their shapes differ.

    Example:
        >>> fig = ur.plots.images({"noisy": np.ones((4, 4)), "denoised": np.zeros((4, 4))})
        >>> [panel.get_title() for panel in fig.axes]
        ['noisy', 'denoised']
    """
    values = {title: np.asarray(picture, float) for title, picture in pictures.items()}
    shapes = {picture.shape for picture in values.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
        raise ValueError(
            "images: expected pictures of one shape (height, width), got "
            f"{', '.join(str(picture.shape) for picture in values.values()) or 'none'}"
        )
    fig, panels = figure(1, len(values), width=3.4, height=3.4 * shape[0] / shape[1] + 0.5)
    top = _largest(*values.values())
    for panel, (title, picture) in zip(panels[0], values.items()):
        if signed:
            shown = _signed(panel, picture, top, title)
            continue
        panel.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1)
        outside = np.mean((picture < 0) | (picture > 1))
        clipped = f"\n{outside:.2%} outside 0 to 1, clipped" if outside else ""
        _title(panel, picture, title + clipped)
    if signed:
        fig.colorbar(shown, ax=panels.ravel().tolist(), shrink=0.8, label="value")
    return fig


@checked
def atoms(
    D: Dictionary,
    shape: Sequence[int] | None = None,
    *,
    columns: int | None = None,
    codes: ArrayLike | None = None,
) -> "Figure":
    """The atoms of a dictionary as small pictures; zero is grey, and all atoms share one scale.

    The channels of an atom are drawn next to each other.

    Args:
        D: (m, d), or a `Conv`, whose filters are drawn.
        shape: shape of an atom as a picture, (height, width) or (channels, height, width); omit it
            for a `Conv`, whose kernels have a shape.
        columns: number of atoms in a row; by default the picture is about square.
        codes: (n, D.shape[1]); if given, the atoms are ordered by how many codes use them, and
            filters by their use at all positions.

    Raises:
        ValueError: a shape does not fit, or is missing for a matrix, a kernel has three axes, or
            entries are not finite.

    Example:
        >>> fig = ur.plots.atoms(ur.dictionaries.dct((4, 4), (8, 8)), (4, 4))
        >>> fig.axes[0].get_title()
        '64 atoms of 4 x 4'
    """
    stacks = _stacks(as_dictionary(D, "atoms"), shape)
    n, channels, height, width = stacks.shape
    if codes is not None:
        stacks = stacks[_order(codes, D.shape[1], n)]
    tiles = stacks.transpose(0, 2, 1, 3).reshape(n, height, channels * width)
    width *= channels
    columns = columns or round(np.sqrt(n * (height + 1) / (width + 1))) or 1
    rows = -(-n // columns)
    sheet = np.ma.array(np.zeros((rows, height + 1, columns, width + 1)), mask=True)
    for i, tile in enumerate(tiles):
        sheet[i // columns, :height, i % columns, :width] = tile
    sheet = sheet.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
    size = np.clip(5.0 * sheet.shape[0] / sheet.shape[1], 1.0, 8.0)
    fig, panels = figure(1, 1, width=6.0, height=float(size) + 0.5)
    size_of_one = " x ".join(map(str, stacks.shape[1 if channels > 1 else 2 :]))
    title = f"{n} {'filters' if isinstance(D, Conv) else 'atoms'} of {size_of_one}"
    if codes is not None:
        title += ", the most used first"
    shown = _signed(panels[0, 0], sheet, _largest(tiles), title)
    fig.colorbar(shown, ax=panels[0, 0], shrink=0.8, label="entry of an atom")
    return fig


def _order(codes: ArrayLike, d: int, n: int) -> np.ndarray:
    """The order of n atoms or filters by their use in codes of d entries."""
    X = as_codes(codes, "atoms")
    if X.shape[1] != d:
        raise ValueError(f"atoms: codes have {X.shape[1]} entries; expected {d}, one per atom of D")
    return most_used(np.abs(X).reshape(len(X), n, -1).sum(-1))


def _stacks(D: Dictionary, shape: Sequence[int] | None) -> np.ndarray:
    """The atoms as pictures with channels, (n, channels, height, width)."""
    if isinstance(D, Conv):
        filters = np.asarray(D.filters, float)  # (n, channels, *kernel)
        if shape is not None or filters.ndim > 4:
            raise ValueError(
                f"atoms: the filters have kernels of shape {filters.shape[2:]}; expected one or "
                "two axes and no `shape` with them"
            )
        return filters if filters.ndim == 4 else filters[:, :, None]
    m, d = D.shape
    sides = () if shape is None else tuple(shape)
    if len(sides) not in (2, 3) or np.prod(sides) != m:
        root = round(np.sqrt(m))
        hint = f"({root}, {root})" if root**2 == m else f"(1, {m})"
        raise ValueError(
            f"atoms: an atom has {m} entries, got shape {shape}; expected (height, width) or "
            f"(channels, height, width) with that product, try shape={hint}"
        )
    return np.asarray(dense(D), float).T.reshape(d, *sides[:-2] or (1,), *sides[-2:])


@checked
def codes(X: ArrayLike) -> "Figure":
    """Codes as a picture, one row per signal; zero is grey, and all entries share one scale.

    If the codes have more entries than a screen shows, a cell shows the entry of largest magnitude
    in a block, so that no nonzero is lost; the title then says so.

    Args:
        X: (batch, d) or (d,).

    Raises:
        ValueError: X has another shape, or no entries.

    Example:
        >>> fig = ur.plots.codes(np.eye(3) - np.eye(3)[::-1])
        >>> fig.axes[0].get_title()
        '3 codes of 3 entries'
    """
    X = np.asarray(X, float)
    if X.ndim not in (1, 2) or not X.size:
        raise ValueError(f"codes: expected (batch, d) or (d,), got shape {X.shape}")
    X = np.atleast_2d(X)
    (n, d), block = X.shape, tuple(-(-size // most) for size, most in zip(X.shape, _CELLS))
    cells = _strongest(X, block)
    fig, panels = figure(1, 1, width=6.4, height=min(4.0, 1.4 + 0.15 * len(cells)))
    title = f"{n} codes of {d} entries"
    if block != (1, 1):
        title += f"; a cell shows the largest of {block[0]} x {block[1]}"
    edges = (-0.5, cells.shape[1] * block[1] - 0.5, len(cells) * block[0] - 0.5, -0.5)
    shown = _signed(panels[0, 0], cells, _largest(X), title, extent=edges, aspect="auto")
    panels[0, 0].set(xlabel="entry", ylabel="signal", xlim=(-0.5, d - 0.5), ylim=(n - 0.5, -0.5))
    panels[0, 0].set_axis_on()
    fig.colorbar(shown, ax=panels[0, 0], label="value")
    return fig


def _strongest(X: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The entry of largest magnitude in every block; infinite and NaN entries count as largest."""
    rows, columns = (-(-size // b) for size, b in zip(X.shape, block))
    padded = np.zeros((rows * block[0], columns * block[1]))
    padded[: len(X), : X.shape[1]] = X
    split = padded.reshape(rows, block[0], columns, block[1])
    blocks = split.transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    size = np.where(np.isfinite(blocks), np.abs(blocks), np.inf)
    return np.take_along_axis(blocks, size.argmax(-1)[..., None], -1)[..., 0]


def _largest(*pictures: np.ndarray) -> float:
    """The largest finite magnitude, or 1 if all values are zero."""
    return max(float(np.abs(p[np.isfinite(p)]).max(initial=0.0)) for p in pictures) or 1.0


def _signed(panel: "Axes", picture: np.ndarray, top: float, title: str, **options: Any) -> Any:
    """A picture with values from -top to top, zero in the middle of the greys."""
    shown = panel.imshow(
        np.ma.masked_invalid(picture),
        cmap="gray",
        vmin=-top,
        vmax=top,
        interpolation="nearest",
        **options,
    )
    _title(panel, picture, title, shown.get_extent())
    return shown


def _title(panel: "Axes", picture: np.ndarray, title: str, extent: Any = None) -> None:
    """Write the title, and draw crosses at values that are not finite; the title counts them."""
    finite = np.ma.filled(np.isfinite(picture), True)
    rows, columns = np.nonzero(~finite)
    if rows.size:
        title += f"\n{rows.size} not finite (crosses)"
        left, right, bottom, top = extent or (
            -0.5,
            finite.shape[1] - 0.5,
            finite.shape[0] - 0.5,
            -0.5,
        )
        x = left + (columns + 0.5) / finite.shape[1] * (right - left)
        y = top + (rows + 0.5) / finite.shape[0] * (bottom - top)
        panel.scatter(x, y, 12, COLOURS[1], marker="x", linewidths=1)
    panel.set_title(title, fontsize=9)
    panel.set_axis_off()
