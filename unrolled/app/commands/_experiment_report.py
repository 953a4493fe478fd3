"""The report of an experiment: tables of all rows of a folder, figures, JSON and CSV."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unrolled import plots
from unrolled._base.text import markdown
from unrolled.app.commands._console import Say
from unrolled.app.commands._report import Section, write_report, write_table
from unrolled.vision import experiments
from unrolled.vision.datasets import Images
from unrolled.vision.experiments import (
    Cell,
    Features,
    Interval,
    Recipe,
    Sweep,
    scores_table,
    task_of,
)

CSV = "results.csv"
_TITLE = "Networks with sparse features"
_SUMMARY = """\
Each network is trained with and without gamma times the mean absolute activation of its early
layers, with the same first weights, order of images and crops. A difference is that of two runs
with the same seed; it is stated with the 95 % t interval over seeds, and with one seed it is no
claim. The sparsity of features is measured on the test images: the share of exact zeros, the share
below a hundredth of the largest magnitude of an image, and Hoyer's measure (0 dense, 1 sparse)."""
_FEATURES = """\
The features of a convolutional layer are codes: its filters, scaled to norm 1, are the atoms of a
dictionary D, its biases thresholds theta, its input a signal y. With ReLU the layer is one step of
nonnegative ISTA from zero on J(x) = 1/2 |y - D x|^2 + theta' x. A pursuit with the same D and theta
ends at the minimum x*. Here are means over {n} test images, and over seeds with the half width
of the 95 % t interval. *mu*: coherence of the filters. *admitted*: nonzeros in a stripe (all
coefficients whose atoms overlap one position) up to which theory calls a code unique. *fullest
stripe*: nonzeros in that of an image. *theta < 0*: share of filters with a positive bias, which
rewards entries. *gap*: (J(c x) - J(x*)) / (J(0) - J(x*)) of the forward code x at its best multiple
c; 0 is as good as the pursuit, 1 as good as no code. *scaled change*: least |x* - c x| / |x*|.
*change*: the same at c = 1. *overlap*: nonzeros in both supports over those in either. *explained*:
energy of y in D x*. *certificate*: the most by which J(x*) exceeds the minimum, in units of the
gap, on any image. *none*: J has no bound on large pictures. Of other activations x is the positive
part."""
TESTS = {
    "whole": "the whole test set",
    "exact": "the first 1000 images of the test set",
    "held-out": "the last fifth of the training images, held out",
}
_PICTURED = 4  # networks beside the truth, at most
# Fields in which the runs of one section differ.
_WITHIN = ("activation", "gamma", "seed")
_PERCENT = 100


def write(folder: Path, sweep: Sweep, more: Sequence[Section] = ()) -> str:
    """Write the report of all rows of a folder and more sections, and return its text."""
    rows = experiments.read_rows(folder)
    parts = [*(_scores_section(folder, named) for named in grouped(rows)), *more]
    state = _state(sweep)
    write_table(folder / CSV, *_csv_rows(rows))
    summary = "\n\n".join(filter(None, [_SUMMARY, state]))
    report = write_report(folder, _TITLE, summary, parts, {})
    texts = [f"# {part.title}\n\n{part.text}" for part in parts]
    return "\n\n".join([*texts, *([state] if state else []), f"Report: {report}"])


def _state(sweep: Sweep) -> str:
    """What is not in the tables yet."""
    sentences = []
    if sweep.open:
        sentences.append(f"Not finished: {', '.join(sweep.open)}. The same command continues them.")
    if sweep.busy:
        sentences.append(f"In the hands of another process: {', '.join(sweep.busy)}.")
    return " ".join(sentences)


def grouped(rows: dict[str, dict]) -> list[dict[str, dict]]:
    """The rows of each section: those that differ in what it compares alone."""
    groups: dict[Any, dict[str, dict]] = {}
    for name, row in rows.items():
        recipe = row["recipe"]
        within = (*_WITHIN, *(("model",) if task_of(recipe["model"]) == "ml-csc" else ()))
        key = str([value for field, value in recipe.items() if field not in within])
        groups.setdefault((key, row["images"]["sha256"]), {})[name] = row
    return list(groups.values())


def _scores_section(folder: Path, rows: dict[str, dict]) -> Section:
    """One table and its figures."""
    first = next(iter(rows.values()))
    recipe, task = first["recipe"], task_of(first["recipe"]["model"])
    what = recipe["data"] + ("" if task == "ml-csc" else f", {recipe['model']}")
    cells = experiments.summarize(rows)
    parts = [_conditions(first, rows), "", scores_table(cells)]
    for part in _feature_tables(cells):
        parts += ["", part]
    return Section(
        f"{what}, {recipe['epochs']} epochs",
        section_name(rows),
        parts,
        _figures(folder, rows),
        _csv_rows(rows),
        {"cells": [_plain(cell) for cell in cells], "rows": rows},
        _answer(cells),
    )


def _answer(cells: Sequence[Cell]) -> str:
    """The best network by the first score, and its difference from the one without penalty."""
    score = next(iter(cells[0].scores))
    best = max(cells, key=lambda cell: cell.scores[score].mean)
    name = f"{best.recipe.model}, {best.recipe.activation}, gamma {best.recipe.gamma:g}"
    text = f"{name} has the best {score.replace('_', ' ')}, "
    text += f"{_PERCENT * best.scores[score].mean:.1f} %"
    if difference := best.differences.get(score):
        text += f", {_paired(difference, _PERCENT, 1)} points from its baseline"
    return f"{text}."


def section_name(rows: dict[str, dict]) -> str:
    """Data, model and epochs, and a few characters for what else tells sections apart."""
    recipe = next(iter(rows.values()))["recipe"]
    digest = min(rows).rpartition("-")[2]
    return f"{recipe['data']}-{recipe['model']}-{recipe['epochs']}-epochs-{digest[:4]}"


def _conditions(first: dict, rows: dict[str, dict]) -> str:
    """The images, the recipe, and how it deviates from the paper's."""
    images, recipe = first["images"], first["recipe"]
    kind = {"shapes": "Synthetic pictures, which stand in for photographs. "}
    sentences = [
        f"{kind.get(recipe['data'], '')}{images['train']} training images, tested on "
        f"{TESTS[recipe['test']]} ({images['test']} images).",
        f"Deviations from the paper: {'; '.join(first['deviations']) or 'none'}.",
    ]
    if recipe["optimizer"] == "sgd" and task_of(recipe["model"]) == "classification":
        sentences.append(f"Momentum {recipe['momentum']:g}: the paper names none.")
    if first["layers"] and any(row["recipe"]["gamma"] for row in rows.values()):
        sentences.append(f"Penalised: {', '.join(first['layers'])}.")
    return " ".join(sentences)


_TITLES = {"l1": "mean abs(x)", "zeros": "zeros, %", "below": "small, %", "hoyer": "Hoyer"}


def _feature_tables(cells: Sequence[Cell]) -> list[str]:
    """What the features of the penalised layers are; nothing where no layer is followed."""
    measured = [cell for cell in cells if cell.features]
    if not measured:
        return []
    parts = [
        "Features on test images, layer by layer, means over the seeds that did not diverge:",
        _feature_table(measured, lambda cell: cell.features, _mean),
    ]
    if compared := [cell for cell in measured if cell.feature_differences]:
        parts += [
            "Their differences from gamma = 0, as of the scores:",
            _feature_table(compared, lambda cell: cell.feature_differences, _paired),
        ]
    return parts


def _feature_table(cells: Sequence[Cell], of: Callable, text: Callable) -> str:
    lines = []
    for cell in cells:
        line = [cell.recipe.model, cell.recipe.activation, f"{cell.recipe.gamma:g}"]
        for name in _TITLES:
            form = (_PERCENT, 1) if name in ("zeros", "below") else (1, 3)
            line.append(" / ".join(text(value, *form) for value in of(cell)[name]))
        lines.append(line)
    return markdown(["model", "activation", "gamma", *_TITLES.values()], lines)


def _mean(value: float, scale: int, digits: int) -> str:
    return f"{scale * value:.{digits}f}"


def _paired(difference: Interval, scale: int, digits: int) -> str:
    half = "" if math.isnan(difference.half) else f" ± {scale * difference.half:.{digits}f}"
    return f"{scale * difference.mean:+.{digits}f}{half}"


def _figures(folder: Path, rows: dict[str, dict]) -> dict[str, Callable[[], Any]]:
    """What draws the figures of a section, by their captions."""
    runs = list(rows.values())
    scores = "Test score by activation, with and without penalty"
    figures: dict[str, Callable[[], Any]] = {
        scores: partial(experiments.scores_by_activation, runs),
        "Training loss, mean over seeds": partial(experiments.training_loss, runs),
    }
    for j, layer in enumerate(runs[0]["layers"]):
        caption = f"Mean absolute value of the features of {layer} in training, mean over seeds"
        figures[caption] = partial(experiments.l1_in_training, runs, j)
    if pictures := _pictures(folder, rows):
        masks = partial(experiments.predicted_masks, *pictures)
        figures["Predicted masks beside the truth"] = masks
    return figures


def _pictures(folder: Path, rows: dict[str, dict]) -> tuple[dict, list[str]] | None:
    """Pictures and masks of the runs with the first seed."""
    seed = min(row["recipe"]["seed"] for row in rows.values())
    pictures: dict[str, Any] = {}
    titles: list[str] = []
    for name, row in rows.items():
        recipe, arrays = row["recipe"], experiments.read_pictures(folder, name)
        if arrays is None or recipe["seed"] != seed or len(titles) == _PICTURED:
            continue
        titles.append(f"{recipe['activation']}, gamma {recipe['gamma']:g}")
        pictures |= {"X": arrays["X"], "truth": arrays["truth"], titles[-1]: arrays["predicted"]}
    return (pictures, titles) if titles else None


def _csv_rows(rows: dict[str, dict]) -> tuple[list[str], list[list]]:
    """A line per row, for CSV."""
    fields = [field.name for field in dataclasses.fields(Recipe)]
    scores = list(dict.fromkeys(name for row in rows.values() for name in row["scores"]))
    measures = ("l1", "zeros", "below", "hoyer")
    head = ["row", *fields, "status", "seconds", *scores, *measures, "deviations"]
    lines = []
    for name, row in rows.items():
        line = [name, *(row["recipe"].get(field) for field in fields)]
        line += [row["status"], row["seconds"], *(row["scores"].get(score) for score in scores)]
        line += [" ".join(map(str, row["features"].get(m, ""))) for m in measures]
        lines.append([*line, "; ".join(row["deviations"])])
    return head, lines


def _plain(cell: Cell) -> dict[str, Any]:
    """A cell as JSON has it."""
    baseline = cell.baseline and cell.baseline.to_dict()
    return {
        **{field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)},
        "recipe": cell.recipe.to_dict(),
        "baseline": baseline,
    }


def features_sections(folder: Path, images: Images, say: Say) -> list[Section]:
    """A table and a figure of the trained rows of every section of the report."""
    rows = {
        name: row
        for name, row in experiments.read_rows(folder).items()
        if _measurable(folder, name, row, images)
    }
    return [_features_section(folder, named, images, say) for named in grouped(rows)]


def _measurable(folder: Path, name: str, row: dict[str, Any], images: Images) -> bool:
    """Whether a row has trained weights of a network with features, on these images."""
    has_weights = (folder / "weights" / f"{name}.npz").is_file()
    convolutional = task_of(row["recipe"]["model"]) != "ml-csc"
    complete = row["status"] == "complete"
    return has_weights and convolutional and complete and experiments.trained_on(row, images)


def _features_section(folder: Path, rows: dict[str, dict], images: Images, say: Say) -> Section:
    """Rows of equal activation and gamma are one line of the table."""
    named: dict[str, list[Features]] = {}
    for name, row in rows.items():
        recipe = row["recipe"]
        say(f"features of {name}")
        label = f"{recipe['activation']}, gamma {recipe['gamma']:g}"
        named.setdefault(label, []).append(experiments.row_features(folder, name, images))
    first = next(iter(named.values()))[0]
    n = min(len(layer.codes.nonzeros) for layer in first.layers.values())
    return Section(
        f"What the features are: {images.name}, {recipe['model']}, {recipe['epochs']} epochs",
        f"features-{section_name(rows)}",
        [_FEATURES.format(n=n), "", experiments.features_table(named)],
        {"Codes of the layers, in the network and after a pursuit": partial(plots.features, named)},
        experiments.features_rows(named),
        {label: [result.layers for result in results] for label, results in named.items()},
    )
