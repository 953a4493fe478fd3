"""`unrolled experiment`: networks with sparse features, trained on images, and their report.

Each run writes a row of results. The report has all rows of a folder, with tables and figures, and
as JSON and CSV.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from unrolled import plots, vision
from unrolled._base.text import markdown
from unrolled.app.commands._console import Say, add_command, progress, progress_printer
from unrolled.app.commands._inputs import numbers
from unrolled.app.commands._report import RESULTS, Section, write_report, write_table
from unrolled.vision import datasets

if TYPE_CHECKING:  # flax is imported when a command needs it
    from unrolled.vision.experiments import Cell, Features, Interval, Recipe, Sweep

# By task: the real data set, the embedded data set that needs no files, the models to compare.
_REAL = {"classification": "cifar10", "segmentation": "ecssd", "ml-csc": "mnist"}
_EMBEDDED = {"classification": "digits", "segmentation": "shapes", "ml-csc": "digits"}
_COMPARED = {
    "classification": dict(model="lenet5", activation="relu,elu,mish", gamma="0,1e-3"),
    "segmentation": dict(model="unet", activation="relu", gamma="0,1e-3"),
    "ml-csc": dict(model="cnn,ml-ista,ml-fista,layered-bp", activation="relu", gamma="0"),
}
_QUICK = {
    # At the paper's rate of 0.1 some of these short runs stay near chance.
    "classification": dict(activation="relu,elu", gamma="0,1e-2", seeds=3, epochs="8", rate=0.05),
    "segmentation": dict(seeds=2, epochs="5", width=4, side=32, batch=8),
    "ml-csc": dict(model="cnn,ml-ista", seeds=2, epochs="2", unfoldings=1, rate=0.02),
}
_SEEDS = 3
_FIELDS = ("batch", "optimizer", "rate", "momentum", "decay", "augmentation", "test")
_OPTIONS = ("width", "blocks", "growth", "depth", "unfoldings", "constrained")  # of models
_OF_ONE_SIDE = ("cifar10", "mnist")
_PICTURE = 28  # side of the digits of ml-csc, equal to the side of MNIST


def _said(names: dict[str, str]) -> str:
    return ", ".join(f"{task} {name}" for task, name in names.items())


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "task": dict(choices=tuple(_REAL)),
    "--data": dict(type=Path, metavar="DIR"),
    "--dataset": dict(
        type=str,
        metavar="NAME",
        help=f"data set (default {_said(_REAL)}; without files, digits or shapes)",
    ),
    "--model": dict(type=str, metavar="NAMES"),
    "--activation": dict(type=str, metavar="NAMES"),
    "--gamma": dict(type=str, metavar="A,B"),
    "--layers": dict(type=str, metavar="NAMES"),
    "--seeds": dict(
        type=int, metavar="N", help=f"number of seeds, from --seed on (default {_SEEDS})"
    ),
    "--epochs": dict(type=str, metavar="A,B"),
    "--batch": dict(type=int, metavar="INT"),
    "--rate": dict(type=float, metavar="FLOAT"),
    "--momentum": dict(type=float, metavar="FLOAT"),
    "--decay": dict(type=float, metavar="FLOAT"),
    "--width": dict(type=int, metavar="INT"),
    "--blocks": dict(type=int, metavar="INT"),
    "--growth": dict(type=int, metavar="INT"),
    "--depth": dict(type=int, metavar="INT"),
    "--side": dict(type=int, metavar="INT"),
    "--unfoldings": dict(type=int, metavar="INT"),
    "--budget": dict(type=float, metavar="MINUTES"),
    "--output": dict(type=Path, metavar="DIR"),
    "--optimizer": dict(choices=("sgd", "adam")),
    "--augmentation": dict(choices=("none", "crop", "crop and flip")),
    "--test": dict(choices=("whole", "exact", "held-out")),
}
_SWITCHES = ("--constrained", "--mesh", "--no-weights", "--features", "--quick")


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled experiment`."""
    table = _ARGUMENTS | {name: {"action": "store_true"} for name in _SWITCHES}
    parser = add_command(commands, "experiment", run, table)
    parser.set_defaults(output=Path("unrolled-experiment"), constrained=None)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Train networks with an l1 penalty on features, and compare.

    Train networks with and without a penalty on their early features, as in Section 4 of the paper,
    or classifiers that unfold multi-layer pursuits. Each run writes a row into the folder --output.
    The command skips finished runs and continues interrupted runs; several processes can share
    the folder. Without real data the command takes the digits of scikit-learn, or synthetic shapes.

    Flags:
        task: what to train
        --data: folder of the data set (default: UNROLLED_DATA); for classification, a folder with
            one folder of pictures per class also works
        --model: lenet5,vgg11,res-csc,msd-csc; unet; or
            cnn,ml-ista,ml-fista,ml-lista,layered-bp,all-free
        --activation: activations (classification: relu,elu,mish)
        --gamma: weights gamma of the penalty (default 0,1e-3; for ml-csc 0)
        --layers: tap names of the penalised layers (default: the early layers)
        --epochs: numbers of epochs (default as in the papers: 200; ml-csc 100, on cifar10 150)
        --batch: number of images in a step
        --rate: learning rate of the first step
        --momentum: momentum of sgd, or decay of adam's first moment (default 0.9; the paper gives
            no value)
        --decay: weight decay
        --width: channels of the first block of unet (default 64), or of the first convolution of
            res-csc and msd-csc (default 16)
        --blocks: number of blocks of msd-csc, or per width of res-csc (default 3)
        --growth: channels of each layer of msd-csc (default 12)
        --depth: layers of each block of msd-csc (default 12)
        --side: side, in pixels, of pictures with masks (default 128), or of digits for
            classification (default 32)
        --unfoldings: unfolded steps of ml-csc (default 6), res-csc (0) and msd-csc (1)
        --budget: stop after this many minutes, at the end of the epoch (default: never)
        --output: folder of the rows and the report (default unrolled-experiment)
        --optimizer: optimiser (default sgd; for segmentation adam)
        --augmentation: augmentation of training images
        --test: test images: whole for the whole test set, exact for its first 1000 images
            (cifar10), or held-out for the last fifth of the training images, which training then
            leaves out (default whole)
        --constrained: constrain ml-csc so that its steps are proximal gradient steps
        --mesh: share each batch of a run among all devices of this process
        --no-weights: do not keep the weights of each row
        --features: also compare the features of all rows with the codes of a pursuit (a minute per
            row)
        --quick: a small run on embedded data, under a minute

    Examples:
        unrolled experiment classification --quick
        unrolled experiment classification --data DIR --gamma 0,1e-3,1e-2 --epochs 20 --budget 60
        unrolled experiment classification --data pictures --epochs 20
        unrolled experiment segmentation --data DIR --width 16 --side 128
        unrolled experiment ml-csc --data DIR --model cnn,ml-ista --epochs 10
    """
    say = progress_printer()
    _complete(arguments)
    root = arguments.data or os.environ.get("UNROLLED_DATA")
    name = arguments.dataset or _dataset(arguments.task, root, arguments.quick)
    recipes = _recipes(arguments, Path(name).name)  # rows have the name of a folder, not its path
    budget = math.inf if arguments.budget is None else arguments.budget
    if arguments.side is not None and (arguments.task == "ml-csc" or name in _OF_ONE_SIDE):
        raise ValueError(f"experiment: --side is not an option of {arguments.task} with {name}")
    side = _PICTURE if arguments.task == "ml-csc" and name == "digits" else arguments.side
    mesh = _mesh() if arguments.mesh else None
    images = vision.experiments.load(name, root, side=side)
    say(
        f"{name}: {len(images.train[0])} training and {len(images.test[0])} test images{_why(name)}"
    )
    if (test := recipes[0].test) != "whole":
        say(f"tested on {TESTS[test]}")
    with progress(say) as tell:
        sweep = vision.experiments.sweep(
            recipes,
            images,
            arguments.output,
            minutes=budget,
            keep_weights=not arguments.no_weights,
            mesh=mesh,
            progress=tell,
        )
    features = features_sections(arguments.output, images, say) if arguments.features else []
    text = write(arguments.output, sweep, features)
    print((arguments.output / RESULTS).read_text() if arguments.json else text)
    say(
        "done"
        if not sweep.open
        else f"{len(sweep.open)} runs are not finished; the same command continues them"
    )


def _mesh() -> Any:
    """A mesh of all devices of this process, with one axis."""
    devices = jax.local_devices()
    if len(devices) < 2:
        raise ValueError(
            "experiment: --mesh needs several devices, got one; leave --mesh out, or set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=2 to try it"
        )
    return jax.make_mesh((len(devices),), ("data",), devices=devices)


def _dataset(task: str, root: Path | str | None, quick: bool) -> str:
    """The default data set: the folder itself, if it has one folder per class."""
    if root and task == "classification" and datasets.is_class_folders(root):
        return str(Path(root).resolve())
    return (_REAL if root and not quick else _EMBEDDED)[task]


def _complete(arguments: argparse.Namespace) -> None:
    """Fill in the options that were not given."""
    defaults: dict[str, Any] = _COMPARED[arguments.task] | dict(seeds=_SEEDS)
    defaults |= _QUICK[arguments.task] if arguments.quick else {}
    for option, value in defaults.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)


def _why(name: str) -> str:
    """A note that the data stand in for real data, or ""."""
    if name in _EMBEDDED.values():
        kind = "synthetic, " if name == "shapes" else ""
        return f" ({kind}embedded; for real data give --data or set UNROLLED_DATA)"
    return ""


def _recipes(arguments: argparse.Namespace, name: str) -> "list[Recipe]":
    """The recipes that the options describe, all checked."""
    task = arguments.task
    paper = vision.experiments.paper_recipe(task, name)
    chosen = {f: getattr(arguments, f) for f in _FIELDS if getattr(arguments, f) is not None}
    if name == "digits":  # a mirrored digit is not the same digit
        chosen = {"augmentation": "none", **chosen}
    flags = {f: getattr(arguments, f) for f in _OPTIONS if getattr(arguments, f) is not None}
    options = dict(paper.options) | flags
    layers = None if arguments.layers is None else tuple(_words(arguments.layers))
    recipe = dataclasses.replace(
        paper, data=name, layers=layers, options=tuple(sorted(options.items())), **chosen
    )
    models = _words(arguments.model)
    for model in models:
        if idle := [f for f in flags if f not in vision.experiments.options_of(model)]:
            raise ValueError(f"experiment: --{idle[0]} is not an option of {model}")
    if arguments.seeds < 1:
        raise ValueError(f"experiment: --seeds must be at least 1, got {arguments.seeds}")
    epochs, seed = arguments.epochs or str(paper.epochs), arguments.seed or 0
    must = "experiment: --{} must be numbers separated by commas"
    return vision.experiments.grid(
        recipe,
        models=models,
        activations=_words(arguments.activation),
        gammas=numbers(arguments.gamma, float, must.format("gamma")),
        seeds=range(seed, seed + arguments.seeds),
        epochs=numbers(epochs, int, must.format("epochs")),
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


# The report

CSV = "results.csv"
_TITLE = "Networks with sparse features"
_SUMMARY = """\
Each network is trained with and without a penalty: gamma times the mean absolute activation of its
early layers. Both runs start at the same weights, and see the same images and crops in the same
order. A difference compares two runs with the same seed. The tables give the 95 % t interval of the
difference over seeds; a single seed supports no claim. The sparsity of features is measured on the
test images: the share of features that are exactly 0, the share of features below a hundredth of
the largest magnitude in the image, and Hoyer's measure (0 dense, 1 sparse)."""
_FEATURES = """\
The features of a convolutional layer are codes: the filters, scaled to norm 1, are the atoms of a
dictionary D, the biases are thresholds theta, and the input is a signal y. With ReLU the layer is
one step of nonnegative ISTA from zero on J(x) = 1/2 |y - D x|^2 + theta' x. A pursuit with the same
D and theta ends at the minimum x*. The table has means over {n} test images, and over seeds with
the half width of the 95 % t interval. *mu*: coherence of the filters. *admitted*: the number of
nonzeros in a stripe (all coefficients whose atoms overlap one position) up to which theory proves
that a code is unique. *fullest stripe*: the most nonzeros in a stripe of an image. *theta < 0*: the
share of filters with a positive bias, which rewards nonzero entries. *gap*: (J(c x) - J(x*)) /
(J(0) - J(x*)) for the forward code x at its best multiple c; 0 means as good as the pursuit, and 1
means as good as x = 0. *scaled change*: the least |x* - c x| / |x*|. *change*: |x* - x| / |x*|.
*overlap*: the size of the intersection of the supports divided by the size of their union.
*explained*: the share of the energy of y that D x* explains. *certificate*: the most by which J(x*)
exceeds the minimum on any image, in units of the gap. *none*: J has no lower bound on large
pictures. For activations other than ReLU, x is the positive part of the features."""
TESTS = {
    "whole": "the whole test set",
    "exact": "the first 1000 images of the test set",
    "held-out": "the last fifth of the training images, held out",
}
_PICTURED = 4  # the most networks in the figure of masks
# Fields in which the runs of one section differ.
_WITHIN = ("activation", "gamma", "seed")
_PERCENT = 100


def write(folder: Path, sweep: "Sweep", more: Sequence[Section] = ()) -> str:
    """Write the report of all rows of a folder and of `more` sections, and return its text."""
    rows = vision.experiments.read_rows(folder)
    parts = [*(_scores_section(folder, named) for named in grouped(rows)), *more]
    state = _state(sweep)
    write_table(folder / CSV, *_csv_rows(rows))
    summary = "\n\n".join(filter(None, [_SUMMARY, state]))
    report = write_report(folder, _TITLE, summary, parts, {})
    texts = [f"# {part.title}\n\n{part.text}" for part in parts]
    return "\n\n".join([*texts, *([state] if state else []), f"Report: {report}"])


def _state(sweep: "Sweep") -> str:
    """Sentences about the runs that the tables lack."""
    sentences = []
    if sweep.open:
        sentences.append(f"Not finished: {', '.join(sweep.open)}. The same command continues them.")
    if sweep.busy:
        sentences.append(f"Another process works on: {', '.join(sweep.busy)}.")
    return " ".join(sentences)


def grouped(rows: dict[str, dict]) -> list[dict[str, dict]]:
    """The rows of each section: rows that differ only in the fields that the section compares."""
    groups: dict[Any, dict[str, dict]] = {}
    for name, row in rows.items():
        recipe = row["recipe"]
        within = (
            *_WITHIN,
            *(("model",) if vision.experiments.task_of(recipe["model"]) == "ml-csc" else ()),
        )
        key = str([value for field, value in recipe.items() if field not in within])
        groups.setdefault((key, row["images"]["sha256"]), {})[name] = row
    return list(groups.values())


def _scores_section(folder: Path, rows: dict[str, dict]) -> Section:
    """The section of some rows: a sentence, tables and figures."""
    first = next(iter(rows.values()))
    recipe, task = first["recipe"], vision.experiments.task_of(first["recipe"]["model"])
    what = recipe["data"] + ("" if task == "ml-csc" else f", {recipe['model']}")
    cells = vision.experiments.summarize(rows)
    parts = [_conditions(first, rows), "", vision.experiments.scores_table(cells)]
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


def _answer(cells: "Sequence[Cell]") -> str:
    """The best network by the first score, and its difference from the unpenalised network."""
    score = next(iter(cells[0].scores))
    best = max(cells, key=lambda cell: cell.scores[score].mean)
    name = f"{best.recipe.model}, {best.recipe.activation}, gamma {best.recipe.gamma:g}"
    text = f"{name} has the best {score.replace('_', ' ')}, "
    text += f"{_PERCENT * best.scores[score].mean:.1f} %"
    if difference := best.differences.get(score):
        text += f", {_paired(difference, _PERCENT, 1)} points from its baseline"
    return f"{text}."


def section_name(rows: dict[str, dict]) -> str:
    """Data, model and epochs, and a few characters that make the name of a section unique."""
    recipe = next(iter(rows.values()))["recipe"]
    digest = min(rows).rpartition("-")[2]
    return f"{recipe['data']}-{recipe['model']}-{recipe['epochs']}-epochs-{digest[:4]}"


def _conditions(first: dict, rows: dict[str, dict]) -> str:
    """The images, the recipe, and the deviations from the paper's recipe."""
    images, recipe = first["images"], first["recipe"]
    kind = {"shapes": "Synthetic pictures, which stand in for photographs. "}
    sentences = [
        f"{kind.get(recipe['data'], '')}{images['train']} training images, tested on "
        f"{TESTS[recipe['test']]} ({images['test']} images).",
        f"Deviations from the paper: {'; '.join(first['deviations']) or 'none'}.",
    ]
    if (
        recipe["optimizer"] == "sgd"
        and vision.experiments.task_of(recipe["model"]) == "classification"
    ):
        sentences.append(f"Momentum {recipe['momentum']:g}: the paper gives no value.")
    if first["layers"] and any(row["recipe"]["gamma"] for row in rows.values()):
        sentences.append(f"Penalised: {', '.join(first['layers'])}.")
    return " ".join(sentences)


_TITLES = {"l1": "mean abs(x)", "zeros": "zeros, %", "below": "small, %", "hoyer": "Hoyer"}


def _feature_tables(cells: "Sequence[Cell]") -> list[str]:
    """The tables of the features of the penalised layers; empty if no layer was measured."""
    measured = [cell for cell in cells if cell.features]
    if not measured:
        return []
    parts = [
        "Features on test images, layer by layer, means over the seeds that did not diverge:",
        _feature_table(measured, lambda cell: cell.features, _mean),
    ]
    if compared := [cell for cell in measured if cell.feature_differences]:
        parts += [
            "Differences from the runs with gamma = 0, computed as for the scores:",
            _feature_table(compared, lambda cell: cell.feature_differences, _paired),
        ]
    return parts


def _feature_table(cells: "Sequence[Cell]", of: Callable, text: Callable) -> str:
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


def _paired(difference: "Interval", scale: int, digits: int) -> str:
    half = "" if math.isnan(difference.half) else f" ± {scale * difference.half:.{digits}f}"
    return f"{scale * difference.mean:+.{digits}f}{half}"


def _figures(folder: Path, rows: dict[str, dict]) -> dict[str, Callable[[], Any]]:
    """The functions that draw the figures of a section, by caption."""
    runs = list(rows.values())
    scores = "Test score by activation, with and without penalty"
    figures: dict[str, Callable[[], Any]] = {
        scores: partial(vision.experiments.scores_by_activation, runs),
        "Test score by epoch, with 95 % intervals": partial(
            vision.experiments.score_in_training, runs
        ),
        "Training loss by epoch, with 95 % intervals": partial(
            vision.experiments.training_loss, runs
        ),
    }
    if len(runs[0]["layers"]) > 1:
        figures["Sum of the mean absolute values of the penalised layers in training"] = partial(
            vision.experiments.l1_in_training, runs
        )
    for j, layer in enumerate(runs[0]["layers"]):
        caption = f"Mean absolute value of the features of {layer} in training, mean over seeds"
        figures[caption] = partial(vision.experiments.l1_in_training, runs, j)
    if pictures := _pictures(folder, rows):
        masks = partial(vision.experiments.predicted_masks, *pictures)
        figures["Predicted and true masks"] = masks
    return figures


def _pictures(folder: Path, rows: dict[str, dict]) -> tuple[dict, list[str]] | None:
    """Pictures and masks of the runs with the first seed."""
    seed = min(row["recipe"]["seed"] for row in rows.values())
    pictures: dict[str, Any] = {}
    titles: list[str] = []
    for name, row in rows.items():
        recipe, arrays = row["recipe"], vision.experiments.read_pictures(folder, name)
        if arrays is None or recipe["seed"] != seed or len(titles) == _PICTURED:
            continue
        titles.append(f"{recipe['activation']}, gamma {recipe['gamma']:g}")
        pictures |= {"X": arrays["X"], "truth": arrays["truth"], titles[-1]: arrays["predicted"]}
    return (pictures, titles) if titles else None


def _csv_rows(rows: dict[str, dict]) -> tuple[list[str], list[list]]:
    """One line of CSV for each row."""
    fields = [field.name for field in dataclasses.fields(vision.experiments.Recipe)]
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


def _plain(cell: "Cell") -> dict[str, Any]:
    """A cell in types that JSON can hold."""
    baseline = cell.baseline and cell.baseline.to_dict()
    return {
        **{field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)},
        "recipe": cell.recipe.to_dict(),
        "baseline": baseline,
    }


def features_sections(folder: Path, images: datasets.Images, say: Say) -> list[Section]:
    """A table and a figure of features, from the trained rows of every section of the report."""
    rows = {
        name: row
        for name, row in vision.experiments.read_rows(folder).items()
        if _measurable(folder, name, row, images)
    }
    return [_features_section(folder, named, images, say) for named in grouped(rows)]


def _measurable(folder: Path, name: str, row: dict[str, Any], images: datasets.Images) -> bool:
    """Whether a row has trained weights of a network with features, on these images."""
    has_weights = (folder / "weights" / f"{name}.npz").is_file()
    convolutional = vision.experiments.task_of(row["recipe"]["model"]) != "ml-csc"
    complete = row["status"] == "complete"
    return has_weights and convolutional and complete and vision.experiments.trained_on(row, images)


def _features_section(
    folder: Path, rows: dict[str, dict], images: datasets.Images, say: Say
) -> Section:
    """The section whose table has one line for all rows with equal activation and gamma."""
    named: dict[str, list[Features]] = {}
    for name, row in rows.items():
        recipe = row["recipe"]
        say(f"features of {name}")
        label = f"{recipe['activation']}, gamma {recipe['gamma']:g}"
        named.setdefault(label, []).append(vision.experiments.row_features(folder, name, images))
    first = next(iter(named.values()))[0]
    n = min(len(layer.codes.nonzeros) for layer in first.layers.values())
    return Section(
        f"What the features are: {images.name}, {recipe['model']}, {recipe['epochs']} epochs",
        f"features-{section_name(rows)}",
        [_FEATURES.format(n=n), "", vision.experiments.features_table(named)],
        {"Codes of the layers, in the network and after a pursuit": partial(plots.features, named)},
        vision.experiments.features_rows(named),
        {label: [result.layers for result in results] for label, results in named.items()},
    )
