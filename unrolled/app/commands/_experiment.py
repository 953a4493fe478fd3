"""`unrolled experiment`: networks with sparse features on images, in rows that grow over days."""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unrolled.app.commands._console import add_command, progress, progress_printer
from unrolled.app.commands._report import RESULTS
from unrolled.vision import datasets

if TYPE_CHECKING:
    from unrolled.vision.experiments import Recipe

_T = TypeVar("_T")

# By task: the data set where real data are known, the one that needs none, and what is compared.
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
_PICTURE = 28  # side of the digits of ml-csc, as of MNIST


def _said(names: dict[str, str]) -> str:
    return ", ".join(f"{task} {name}" for task, name in names.items())


_VALUES = (
    (
        "data",
        Path,
        "DIR",
        "folder of the data set (default: UNROLLED_DATA); for classification also a folder with a "
        "folder of pictures for each class",
    ),
    ("dataset", str, "NAME", f"the data set ({_said(_REAL)}; without data digits or shapes)"),
    (
        "model",
        str,
        "NAMES",
        "lenet5,vgg11,res-csc,msd-csc; unet; or cnn,ml-ista,ml-fista,ml-lista,layered-bp,all-free",
    ),
    ("activation", str, "NAMES", "activations (classification: relu,elu,mish)"),
    ("gamma", str, "A,B", "weights gamma of the penalty (default 0,1e-3; ml-csc 0)"),
    ("layers", str, "NAMES", "penalised layers by their tap names (default: the early ones)"),
    ("seeds", int, "N", f"number of seeds, from --seed on (default {_SEEDS})"),
    ("epochs", str, "A,B", "numbers of epochs (default: those of the papers, 200, 200 and 100)"),
    ("batch", int, "INT", "images per step"),
    ("rate", float, "FLOAT", "learning rate of the first step"),
    (
        "momentum",
        float,
        "FLOAT",
        "momentum of sgd, or decay of the first moment of adam (default 0.9: the paper names none)",
    ),
    ("decay", float, "FLOAT", "weight decay"),
    (
        "width",
        int,
        "INT",
        "channels of the first block of unet (default 64), or of the first convolution of res-csc "
        "and msd-csc (16)",
    ),
    ("blocks", int, "INT", "blocks of msd-csc, or of each width of res-csc (default 3)"),
    ("growth", int, "INT", "channels of each layer of msd-csc (default 12)"),
    ("depth", int, "INT", "layers of each block of msd-csc (default 12)"),
    (
        "side",
        int,
        "INT",
        "side of pictures with masks (default 128), or of digits of classification (32)",
    ),
    ("unfoldings", int, "INT", "unfolded steps of ml-csc (default 6), res-csc (0) and msd-csc (1)"),
    (
        "budget",
        float,
        "MINUTES",
        "stop at the end of the epoch after so many minutes (default: never)",
    ),
    ("output", Path, "DIR", "folder of the rows and the report (default unrolled-experiment)"),
)
_CHOICES = (
    ("optimizer", ("sgd", "adam"), "optimiser (default sgd; for segmentation adam)"),
    ("augmentation", ("none", "crop", "crop and flip"), "augmentation of training images"),
    (
        "test",
        ("whole", "exact", "held-out"),
        "test images: the whole set, its first 1000 images (cifar10), or the last fifth of the "
        "training images, which are then not trained on (default whole)",
    ),
)
_SWITCHES = (
    ("constrained", "keep the steps of ml-csc proximal"),
    ("mesh", "share each batch of a run among all devices of this process"),
    ("no-weights", "do not keep the weights of each row"),
    (
        "features",
        "also measure what the features of all rows are, beside a pursuit (a minute a row)",
    ),
    ("quick", "a small run on embedded data, under a minute"),
)


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled experiment`."""
    table: dict[str, dict[str, Any]] = {"task": dict(choices=tuple(_REAL), help="what to train")}
    for name, kind, metavar, text in _VALUES:
        table[f"--{name}"] = dict(type=kind, metavar=metavar, help=text)
    for name, choices, text in _CHOICES:
        table[f"--{name}"] = dict(choices=choices, help=text)
    for name, text in _SWITCHES:
        table[f"--{name}"] = dict(action="store_true", help=text)
    parser = add_command(
        commands,
        "experiment",
        run,
        table,
        help="train networks with an l1 penalty on features, and compare",
        description="Train networks with and without a penalty on their early features, as in "
        "Section 4 of the paper,\nor classifiers that unfold multi-layer pursuits. Each run is a "
        "row in the folder --output. Finished\nruns are skipped, interrupted ones continue, "
        "and several processes can share the folder.\nWithout real data: digits of "
        "scikit-learn, or synthetic shapes.",
        epilog="examples:\n  unrolled experiment classification --quick\n"
        "  unrolled experiment classification --data DIR --gamma 0,1e-3,1e-2 --epochs 20 "
        "--budget 60\n"
        "  unrolled experiment classification --data pictures --epochs 20\n"
        "  unrolled experiment segmentation --data DIR --width 16 --side 128\n"
        "  unrolled experiment ml-csc --data DIR --model cnn,ml-ista --epochs 10",
    )
    parser.set_defaults(output=Path("unrolled-experiment"), constrained=None)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Run what has no row yet, write the report of all rows, and print it."""
    from unrolled.app.commands._experiment_report import TESTS, features_sections, write
    from unrolled.vision import experiments

    say = progress_printer()
    _complete(arguments)
    root = arguments.data or os.environ.get("UNROLLED_DATA")
    name = arguments.dataset or _dataset(arguments.task, root, arguments.quick)
    recipes = _recipes(arguments, Path(name).name)  # a folder has its name in rows, not its path
    budget = math.inf if arguments.budget is None else arguments.budget
    if arguments.side is not None and (arguments.task == "ml-csc" or name in _OF_ONE_SIDE):
        raise ValueError(f"experiment: --side is no option of {arguments.task} with {name}")
    side = _PICTURE if arguments.task == "ml-csc" and name == "digits" else arguments.side
    mesh = _mesh() if arguments.mesh else None
    images = experiments.load(name, root, side=side)
    say(
        f"{name}: {len(images.train[0])} training and {len(images.test[0])} test images{_why(name)}"
    )
    if (test := recipes[0].test) != "whole":
        say(f"tested on {TESTS[test]}")
    with progress(say) as tell:
        sweep = experiments.sweep(
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
        else f"{len(sweep.open)} runs are open; the same command continues them"
    )


def _mesh() -> Any:
    """All devices of this process, as one axis."""
    import jax

    devices = jax.local_devices()
    if len(devices) < 2:
        raise ValueError(
            "experiment: --mesh shares a run among devices, and there is one; leave it out, or set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=2 to try it"
        )
    return jax.make_mesh((len(devices),), ("data",), devices=devices)


def _dataset(task: str, root: Path | str | None, quick: bool) -> str:
    """The data set where none is named: the folder itself, where it has a folder for each class."""
    if root and task == "classification" and datasets.is_class_folders(root):
        return str(Path(root).resolve())
    return (_REAL if root and not quick else _EMBEDDED)[task]


def _complete(arguments: argparse.Namespace) -> None:
    """Fill in what was not given."""
    defaults: dict[str, Any] = _COMPARED[arguments.task] | dict(seeds=_SEEDS)
    defaults |= _QUICK[arguments.task] if arguments.quick else {}
    for option, value in defaults.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)


def _why(name: str) -> str:
    """What to say of data that stand in for real ones."""
    if name in _EMBEDDED.values():
        kind = "synthetic, " if name == "shapes" else ""
        return f" ({kind}embedded; for real data give --data or set UNROLLED_DATA)"
    return ""


def _recipes(arguments: argparse.Namespace, name: str) -> "list[Recipe]":
    """The recipes that the options ask for, all checked."""
    from unrolled.vision import experiments

    task = arguments.task
    paper = experiments.paper_recipe(task, name)
    chosen = {f: getattr(arguments, f) for f in _FIELDS if getattr(arguments, f) is not None}
    if name == "digits":  # a mirrored digit is another one
        chosen = {"augmentation": "none", **chosen}
    flags = {f: getattr(arguments, f) for f in _OPTIONS if getattr(arguments, f) is not None}
    options = dict(paper.options) | flags
    layers = None if arguments.layers is None else tuple(_words(arguments.layers))
    recipe = dataclasses.replace(
        paper, data=name, layers=layers, options=tuple(sorted(options.items())), **chosen
    )
    models = _words(arguments.model)
    for model in models:
        if idle := [f for f in flags if f not in experiments.options_of(model)]:
            raise ValueError(f"experiment: --{idle[0]} is no option of {model}")
    if arguments.seeds < 1:
        raise ValueError(f"experiment: --seeds must be at least 1, got {arguments.seeds}")
    epochs = arguments.epochs or str(paper.epochs)
    seed = arguments.seed or 0
    return experiments.grid(
        recipe,
        models=models,
        activations=_words(arguments.activation),
        gammas=_numbers(arguments.gamma, float, "gamma"),
        seeds=range(seed, seed + arguments.seeds),
        epochs=_numbers(epochs, int, "epochs"),
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str, kind: Callable[[str], _T], option: str) -> list[_T]:
    try:
        return [kind(word) for word in _words(text)]
    except ValueError as error:
        raise ValueError(
            f"experiment: --{option} must be numbers separated by commas, got {text!r}"
        ) from error
