"""Tables and figures of rows: means over seeds with intervals, and differences from a baseline."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled import metrics, plots
from unrolled._base import checks, text
from unrolled._base.doors import Result, checked
from unrolled.activations import NAMED
from unrolled.vision.experiments._program import SCORES
from unrolled.vision.experiments._recipe import ML_CSC, Recipe, from_dict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A network has learned if it avoids at least this share of the errors of random guessing. For ten
# classes the network must have an accuracy of at least 20 %.
_LEARNED = 1 / 9
_PERCENT = 100
_NAMED = ("model", "activation", "gamma", "seed")  # fields of a recipe that need no column
_ENTRIES = "recipe images layers scores features status"  # fields that a table reads


class Interval(Result):
    """A mean over seeds with its 95 % t interval."""

    mean: float  # mean over seeds
    half: float  # half the width of the 95 % interval; nan for one seed
    n: int  # number of seeds

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return abs(self.mean) > self.half


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of one recipe, by seed, and their differences from the runs of the baseline.

    Attributes:
        recipe: the recipe, with the seed of the first run.
        baseline: the recipe with gamma = 0, or for ML-CSC the recipe of the plain CNN; None if the
            rows contain no run of this recipe.
        scores: scores by name.
        differences: the mean difference between the score and the score of the baseline with the
            same seed, over all seeds that both recipes have.
        features: measures of each penalised layer, averaged over the seeds whose runs did not
            diverge.
        feature_differences: mean differences between the measures of each layer and the measures of
            the baseline, as in `differences`.
        failed: seeds whose runs diverged or stayed near chance level. The scores of these runs
            count in all means of scores.
    """

    recipe: Recipe
    baseline: Recipe | None
    scores: dict[str, Interval]
    differences: dict[str, Interval]
    features: dict[str, list[float]]
    feature_differences: dict[str, list[Interval]]
    failed: tuple[int, ...]


@checked
def interval(values: Iterable[float]) -> Interval:
    """Mean and 95 % t interval.

    Raises:
        ValueError: there are no values.

    Example:
        >>> from unrolled.vision.experiments import interval
        >>> score = interval([1.0, 2.0, 3.0])
        >>> score.mean, round(score.half, 3), score.n
        (2.0, 2.484, 3)
    """
    from scipy import stats

    x = np.asarray(list(values), float)
    if not len(x):
        raise ValueError("interval: there are no values; expected one for each seed")
    half = math.nan
    if len(x) > 1:
        half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(float(x.mean()), half, len(x))


@checked
def holm(intervals: Sequence[Interval], level: float = 0.05) -> list[Interval]:
    """The intervals, in the given order, with the widths of Holm's procedure.

    The k-th most significant of n intervals has the significance level `level` / (n + 1 - k) until
    one interval contains 0. All later intervals have the significance level of this interval. If
    all true means are 0, the probability that any interval excludes 0 is at most `level`. Intervals
    from a single seed are not changed and do not count in n.

    Raises:
        ValueError: level is outside (0, 1).

    Reference: Holm (1979).

    Not claimed: that all intervals simultaneously contain their true means.

    Example:
        >>> from unrolled.vision.experiments import holm, interval
        >>> plain = [interval([1.0, 1.1, 1.2]), interval([0.1, 0.2, 0.3]), interval([-1.0, 1.0])]
        >>> [one.excludes_zero for one in plain]
        [True, False, False]
        >>> [round(new.half / old.half, 2) for new, old in zip(holm(plain), plain)]
        [1.78, 1.44, 2.0]
    """
    from scipy import stats

    level = checks.as_fraction(level, "level", "holm")
    corrected = list(intervals)
    several = [i for i, plain in enumerate(corrected) if plain.n > 1]
    share, excludes = level, True
    for rank, i in enumerate(sorted(several, key=lambda i: _p_value(corrected[i]))):
        share = level / (len(several) - rank) if excludes else share
        plain = corrected[i]
        ratio = stats.t.ppf(1 - share / 2, plain.n - 1) / stats.t.ppf(0.975, plain.n - 1)
        corrected[i] = plain.replace(half=float(plain.half * ratio))
        excludes = corrected[i].excludes_zero
    return corrected


def _p_value(difference: Interval) -> float:
    """The p-value of the t test of the hypothesis that the mean is 0."""
    from scipy import stats

    error = difference.half / stats.t.ppf(0.975, difference.n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.nan_to_num(np.abs(np.divide(difference.mean, error)))
    return float(2 * stats.t.sf(score, difference.n - 1))


def summarize(rows: Mapping[str, dict[str, Any]]) -> list[Cell]:
    """The cells of a table (see `Cell`), sorted by recipe.

    Args:
        rows: the rows, as `read_rows` returns them.

    Raises:
        TypeError: rows are not a mapping from names to rows.
        ValueError: an entry that the table reads is missing in a row.

    Example:
        >>> ur.vision.experiments.summarize({})
        []
    """
    _check_rows(rows)
    groups: dict[Any, dict[int, dict[str, Any]]] = {}
    recipes: dict[Any, Recipe] = {}
    for row in rows.values():
        recipe = from_dict(row["recipe"])
        key = dataclasses.replace(recipe, seed=0), row["images"]["sha256"]
        recipes.setdefault(key, recipe)
        groups.setdefault(key, {})[recipe.seed] = row
    keys = sorted(groups, key=lambda key: _place(key[0]))
    return [_cell(key, groups, recipes) for key in keys]


def check_fields(row: Mapping[str, Any], fields: str, name: str, where: str) -> None:
    """Raise ValueError unless a row has each of these fields."""
    if missing := [field for field in fields.split() if field not in row]:
        raise ValueError(
            f"{where}: {name} has no {', '.join(missing)}; expected a row as "
            "experiments.read_rows returns it"
        )


def _check_rows(rows: Any) -> None:
    if not isinstance(rows, Mapping) or not all(isinstance(r, Mapping) for r in rows.values()):
        raise TypeError(
            f"summarize: rows must be a dict of rows by name, got {type(rows).__name__}; try "
            "experiments.read_rows(folder)"
        )
    for name, row in rows.items():
        check_fields(row, _ENTRIES, f"row {name}", "summarize")


def _place(recipe: Recipe) -> tuple:
    model = ML_CSC.index(recipe.model) if recipe.model in ML_CSC else -1
    place = list(NAMED).index(recipe.activation) if recipe.activation in NAMED else len(NAMED)
    return recipe.data, model, recipe.model, recipe.epochs, place, recipe.gamma


def _cell(key: Any, groups: dict, recipes: dict) -> Cell:
    runs, images = groups[key], key[1]
    base = _baseline(key[0])
    paired = groups.get((base, images), {})
    names = [name for name in SCORES if name in next(iter(runs.values()))["scores"]]
    common = sorted(set(runs) & set(paired))
    differences = {
        name: interval(_score(runs[s], name) - _score(paired[s], name) for s in common)
        for name in names
        if common
    }
    return Cell(
        recipes[key],
        base if common else None,
        {name: interval(_score(row, name) for row in runs.values()) for name in names},
        differences,
        _features(runs),
        _feature_differences([(runs[s], paired[s]) for s in common]),
        tuple(seed for seed, row in sorted(runs.items()) if _failed(row)),
    )


def _baseline(recipe: Recipe) -> Recipe | None:
    if recipe.gamma:
        return dataclasses.replace(recipe, gamma=0.0)
    if recipe.model in ML_CSC and recipe.model != "cnn":
        return dataclasses.replace(recipe, model="cnn")
    return None


def _score(row: dict[str, Any], name: str) -> float:
    value = row["scores"][name]
    return math.nan if value is None else value


def _failed(row: dict[str, Any]) -> bool:
    if row["status"] != "complete":
        return True
    classes = row["images"]["classes"]
    return bool(classes) and row["scores"]["accuracy"] < (1 - _LEARNED) / classes + _LEARNED


_MEASURES = ("l1", "zeros", "below", "hoyer")


def _features(runs: dict[int, dict[str, Any]]) -> dict[str, list[float]]:
    measured = [row["features"] for row in runs.values() if _measured(row)]
    return {
        name: np.mean([measures[name] for measures in measured], axis=0).tolist()
        for name in (_MEASURES if measured else ())
    }


def _measured(row: dict[str, Any]) -> bool:
    """Whether a row has measures of features and its run did not diverge."""
    return bool(row["features"]) and row["status"] == "complete"


def _feature_differences(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> dict[str, list[Interval]]:
    """The measures of rows minus the measures of their baselines, if both have the same layers."""
    both = [
        (a["features"], b["features"])
        for a, b in pairs
        if a["layers"] == b["layers"] and _measured(a) and _measured(b)
    ]
    return {
        name: [*map(interval, np.array([np.subtract(a[name], b[name]) for a, b in both]).T)]
        for name in (_MEASURES if both else ())
    }


@checked
def scores_table(cells: Sequence[Cell], form: str = "markdown") -> Any:
    """A table of scores in percent and of paired differences in percentage points.

    Args:
        cells: cells from `summarize`.
        form: "markdown", "latex" (with the rules of booktabs), "csv", or "records", a list of dicts
            for `pandas.DataFrame`. In "csv" and "records" the scores are fractions instead of
            percentages, and columns give half the widths of the 95 % intervals.

    Raises:
        ValueError: form is unknown, or there are no cells.

    Example:
        >>> ur.vision.experiments.scores_table([])
        Traceback (most recent call last):
        ValueError: scores_table: there are no cells; expected the cells of summarize
    """
    if not cells:
        raise ValueError("scores_table: there are no cells; expected the cells of summarize")
    names = [name for name in SCORES if any(name in cell.scores for cell in cells)]
    varied = _varied(cells)
    head = ["model", "activation", "gamma", *varied, "runs"]
    for name in names:
        head += [f"{name.replace('_', ' ')}, %", "difference"]
    pairs = [(cell, name) for cell in cells for name in cell.differences]
    corrected = holm([cell.differences[name] for cell, name in pairs])
    widths = {(id(cell), name): of.half for (cell, name), of in zip(pairs, corrected)}
    lines = []
    for cell in cells:
        recipe, n = cell.recipe, next(iter(cell.scores.values())).n
        other = [str(getattr(recipe, field)) for field in varied]
        line = [recipe.model, recipe.activation, f"{recipe.gamma:g}", *other, str(n)]
        for name in names:
            score = cell.scores.get(name)
            line += ["" if score is None else _value(score), _difference(cell, name, widths)]
        lines.append(line)
    notes = ["Differences are from gamma = 0, in points."]
    if any(cell.baseline and cell.baseline.model != cell.recipe.model for cell in cells):
        notes = ["Differences are from gamma = 0, and where that is 0 from cnn, in points."]
    if several := sum(difference.n > 1 for difference in corrected):
        notes.append(
            "In brackets the width by Holm's procedure, for all differences of the table at once "
            f"({several}): that any of them excludes 0 by chance has probability 5 % at most."
        )
    if any(difference.n < 2 for cell in cells for difference in cell.differences.values()):
        notes.append("One seed gives no interval, and no claim.")
    for cell in cells:
        if cell.failed:
            seeds = ", ".join(map(str, cell.failed))
            name = f"{cell.recipe.model}, {cell.recipe.activation}, gamma {cell.recipe.gamma:g}"
            name += "".join(f", {field} {getattr(cell.recipe, field)}" for field in varied)
            notes.append(f"Did not train (diverged or near chance): {name}, seeds {seeds}.")
    records = partial(_records, cells, varied, names)
    return text.table(form, head, lines, [" ".join(notes)], records, "scores_table")


def _varied(cells: Sequence[Cell]) -> list[str]:
    """The fields in which recipes differ, apart from model, activation and gamma."""
    names = [f.name for f in dataclasses.fields(Recipe) if f.name not in _NAMED]
    return [n for n in names if len({str(getattr(cell.recipe, n)) for cell in cells}) > 1]


def _records(
    cells: Sequence[Cell], varied: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    records, none = [], Interval(math.nan, math.nan, 0)
    for cell in cells:
        recipe = cell.recipe
        row = {"model": recipe.model, "activation": recipe.activation, "gamma": recipe.gamma}
        row |= {field: getattr(recipe, field) for field in varied}
        for name in names:
            score, difference = cell.scores.get(name, none), cell.differences.get(name, none)
            row |= {name: score.mean, f"{name}_half": score.half, f"{name}_runs": score.n}
            row |= {
                f"{name}_difference": difference.mean,
                f"{name}_difference_half": difference.half,
            }
        row["failed"] = len(cell.failed)
        records.append({key: None if value != value else value for key, value in row.items()})
    return records


def _value(score: Interval) -> str:
    half = "" if math.isnan(score.half) else f" ± {_PERCENT * score.half:.2f}"
    return f"{_PERCENT * score.mean:.2f}{half}"


def _difference(cell: Cell, name: str, widths: Mapping[tuple[int, str], float]) -> str:
    difference = cell.differences.get(name)
    if difference is None:
        return ""
    mean = f"{_PERCENT * difference.mean:+.2f}"
    if math.isnan(difference.half):
        return f"{mean} (one seed)"
    clear = "" if difference.excludes_zero else ", not clear"
    width = _PERCENT * widths[id(cell), name]
    return f"{mean} ± {_PERCENT * difference.half:.2f} ({width:.2f}){clear}"


Rows = Sequence[dict[str, Any]]


@checked
def scores_by_activation(rows: Rows) -> "Figure":
    """The first score of each run, and means with 95 % intervals, by activation and gamma.

    If all rows have the same activation, the figure groups the scores by model instead of by
    activation.

    Raises:
        ValueError: there are no rows, or the rows belong to several tasks.

    Example:
        >>> from matplotlib.figure import Figure
        >>> recipe = {"model": "lenet5", "activation": "relu", "gamma": 0.0}
        >>> rows = [{"recipe": recipe, "scores": {"accuracy": score}} for score in (0.6, 0.7)]
        >>> isinstance(ur.vision.experiments.scores_by_activation(rows), Figure)
        True
    """
    _check_some(rows, "scores_by_activation", "recipe scores")
    name = _first_score([row["scores"] for row in rows], "scores_by_activation")
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
            of = interval(values)
            panel.plot([at] * len(values), values, ".", color=look["color"], alpha=0.5)
            panel.errorbar(
                at + width / 4,
                of.mean,
                None if np.isnan(of.half) else of.half,
                color=look["color"],
                marker=look["marker"],
                capsize=3,
                label=_label(gamma) if g == 0 else None,
            )
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0), min(high, 1))  # an interval may exceed the range of the score
    panel.set_xticks(range(len(groups)), groups)
    title = "each run, the mean over seeds and its 95 % interval"
    panel.set(title=title, xlabel=kind, ylabel=_tested(name))
    panel.grid(True, alpha=0.3)
    panel.legend(frameon=False)
    return fig


@checked
def training_loss(rows: Rows) -> "Figure":
    """The training loss without the penalty over the epochs, in one panel per activation.

    A line is the mean over seeds, and a band is its 95 % t interval.

    Raises:
        ValueError: there are no rows.

    Example:
        >>> recipe = {"model": "lenet5", "activation": "relu", "gamma": 0.0}
        >>> curve = [{"train": {"loss": loss}} for loss in (2.3, 1.9)]
        >>> len(ur.vision.experiments.training_loss([{"recipe": recipe, "curve": curve}]).axes)
        1
    """
    _check_some(rows, "training_loss", "recipe curve")
    return _over_epochs(rows, lambda line: line["train"]["loss"], "training loss")


@checked
def score_in_training(rows: Rows) -> "Figure":
    """The first score on test images over the epochs, drawn as in `training_loss`.

    Raises:
        ValueError: there are no rows, no row has an epoch, or the rows belong to several tasks.

    Example:
        >>> recipe = {"model": "lenet5", "activation": "relu", "gamma": 0.0}
        >>> curve = [{"test": {"accuracy": score}} for score in (0.3, 0.4)]
        >>> figure = ur.vision.experiments.score_in_training([{"recipe": recipe, "curve": curve}])
        >>> figure.axes[0].get_ylabel()
        'test accuracy'
    """
    _check_some(rows, "score_in_training", "recipe curve")
    tested = [line["test"] for row in rows for line in row["curve"]]
    if not tested:
        raise ValueError("score_in_training: no run has an epoch; expected at least one")
    name = _first_score(tested, "score_in_training")
    return _over_epochs(rows, lambda line: line["test"][name], _tested(name))


@checked
def l1_in_training(rows: Rows, layer: int | None = None) -> "Figure":
    """The mean |x| of a penalised layer's features over epochs, drawn as in `training_loss`.

    If `layer` is None, the figure shows the penalty: the sum of this mean over all penalised
    layers, sum_j norm(x_j, 1) / dim(x_j).

    Raises:
        ValueError: there are no rows.

    Example:
        >>> recipe = {"model": "lenet5", "activation": "relu", "gamma": 0.0}
        >>> curve = [{"train": {"l1": [size], "penalty": size}} for size in (0.5, 0.3)]
        >>> rows = [{"recipe": recipe, "curve": curve, "layers": ["conv1.features"]}]
        >>> ur.vision.experiments.l1_in_training(rows, 0).axes[0].get_ylabel()
        'mean |x| of conv1.features'
    """
    _check_some(rows, "l1_in_training", "recipe curve layers")
    if layer is None:
        return _over_epochs(rows, lambda line: line["train"]["penalty"], "sum of mean |x|")
    name = rows[0]["layers"][layer]
    return _over_epochs(rows, lambda line: line["train"]["l1"][layer], f"mean |x| of {name}")


@checked
def predicted_masks(pictures: Mapping[str, np.ndarray], titles: Sequence[str]) -> "Figure":
    """A figure with one row per picture: the picture, the true mask, and the predicted masks.

    Below each predicted mask stands its mean IoU.

    Args:
        pictures: a mapping with the pictures X, (n, H, W, 3), the true masks `truth`, (n, H, W),
            and the predicted masks under their titles.
        titles: titles of the predicted masks, in order.

    Raises:
        ValueError: there are no pictures, or `pictures` has no masks for a title.

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
    truth = np.asarray(pictures["truth"], bool)
    scores = {t: metrics.mean_iou(np.asarray(pictures[t], bool), truth) for t in titles}
    fig, panels = plots.figure(n, len(columns), width=1.6, height=1.9)
    for i, row in enumerate(panels):
        for panel, column in zip(row, columns):
            panel.imshow(pictures[column][i], cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            if column in scores:
                panel.set_xlabel(f"mean IoU {100 * scores[column][i]:.0f} %", fontsize=8)
            if i == 0:
                panel.set_title("picture" if column == "X" else column, fontsize=8)
    return fig


def _check_some(rows: Rows, where: str, fields: str) -> None:
    if not len(rows):
        raise ValueError(f"{where}: there are no rows; expected the rows of an experiment")
    for i, row in enumerate(rows):
        check_fields(row, fields, f"rows[{i}]", where)


def _first_score(scores: Sequence[Mapping[str, Any]], where: str) -> str:
    """The first score of the task, which all rows must have."""
    name = next(name for name in SCORES if name in scores[0])
    if any(name not in of for of in scores):
        raise ValueError(
            f"{where}: expected rows of one task, got some without {name}; try those of one model "
            "at a time"
        )
    return name


def _tested(name: str) -> str:
    return f"test {name.replace('_', ' ')}"


def _over_epochs(rows: Rows, value: Any, ylabel: str) -> "Figure":
    kind = "activation" if len(_values(rows, "activation")) > 1 else "model"
    groups, gammas = _values(rows, kind), _values(rows, "gamma")
    fig, panels = plots.figure(1, len(groups), width=4.2)
    looks = _looks(gammas)
    for panel, group in zip(panels[0], groups):
        lines, bands = {}, {}
        for gamma in gammas:
            curves = [
                [np.nan if value(line) is None else value(line) for line in row["curve"]]
                for row in rows
                if row["recipe"][kind] == group and row["recipe"]["gamma"] == gamma
            ]
            if curves:
                length = max(map(len, curves))
                padded = np.array([curve + [np.nan] * (length - len(curve)) for curve in curves])
                lines[_label(gamma)] = padded.mean(0)
                bands[_label(gamma)] = np.array([interval(epoch).half for epoch in padded.T])
        plots.curves(panel, lines, title=group, ylabel=ylabel, looks=looks)
        for label, half in bands.items():
            ends = lines[label] - half, lines[label] + half
            steps, colour = np.arange(1, len(half) + 1), looks[label]["color"]
            panel.fill_between(steps, *ends, color=colour, alpha=0.2, linewidth=0)
        panel.set_xlabel(panel.get_xlabel().replace("step", "epoch", 1))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


def _values(rows: Rows, field: str) -> list[Any]:
    """The different values of a field of the recipes; values of gamma are sorted."""
    values = dict.fromkeys(row["recipe"][field] for row in rows)
    return sorted(values) if field == "gamma" else list(values)


def _looks(gammas: Sequence[float]) -> dict[str, dict]:
    return plots.styles([_label(gamma) for gamma in gammas])


def _label(gamma: float) -> str:
    return f"gamma = {gamma:g}"
