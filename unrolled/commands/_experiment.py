"""`unrolled experiment`: networks with sparse features on images, rows that grow over days."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from unrolled.commands._console import Say, teller

TASKS = ("classification", "segmentation", "ml-csc")
_REAL = {"classification": "cifar10", "segmentation": "ecssd", "ml-csc": "mnist"}
_EMBEDDED = {"classification": "digits", "segmentation": "shapes", "ml-csc": "digits"}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled experiment`."""
    parser = commands.add_parser(
        "experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="train networks with an l1 penalty on features, and compare",
        description="Train networks with and without a penalty on their early features, as in "
        "Section 4 of the paper, or\nthe networks of multi-layer pursuits. Each run is a row in "
        "the folder; rows that exist are not run again,\nand a run that was stopped goes on. "
        "Several processes may share a folder.",
        epilog="examples:\n  unrolled experiment classification --quick\n"
        "  unrolled experiment classification --data DIR --gamma 0,1e-3,1e-2 --seeds 3 "
        "--epochs 20 --budget 60\n"
        "  unrolled experiment segmentation --data DIR --width 16 --side 128\n"
        "  unrolled experiment ml-csc --data DIR --model cnn,ml-ista,layered-bp",
    )
    add = parser.add_argument
    add("task", choices=TASKS)
    add("--data", type=Path, metavar="DIR", help="where real data lie (default UNROLLED_DATA)")
    add("--dataset", metavar="NAME", help="cifar10, mnist, digits, shapes, or a folder of pictures")
    add("--model", metavar="NAMES", help="some of lenet5,vgg11 (default lenet5); unet; or methods")
    add("--activation", metavar="NAMES", help="default relu,elu,mish; of other tasks relu")
    add("--gamma", metavar="A,B", help="weights of the penalty (default 0,1e-3)")
    add("--layers", metavar="NAMES", help="tap names of penalised layers (default: the early ones)")
    add("--seeds", type=int, metavar="N", help="number of seeds, from --seed on (default 3)")
    add("--epochs", metavar="A,B", help="default: those of the paper")
    add("--batch", type=int, help="images per step")
    add("--optimizer", choices=("sgd", "adam"))
    add("--rate", type=float, help="learning rate at the start")
    add("--momentum", type=float, help="of SGD (default 0.9; the paper names none)")
    add("--decay", type=float, help="weight decay")
    add("--augmentation", choices=("none", "crop", "crop and flip"))
    add("--test", choices=("whole", "exact", "held-out"), help="which images test")
    add("--width", type=int, help="of the U-Net")
    add("--side", type=int, help="of pictures with masks, in pixels")
    add("--unfoldings", type=int, help="of ml-csc")
    add("--budget", type=float, metavar="MINUTES", help="stop after so long, at an epoch's end")
    add("--no-weights", action="store_true", help="do not keep the weights of the rows")
    add("--quick", action="store_true", help="a small run on embedded data, under a minute")
    add(
        "--output",
        type=Path,
        default=Path("unrolled-experiment"),
        metavar="DIR",
        help="folder of the rows and the report (default unrolled-experiment)",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Run what has no row yet, and write the report."""
    from unrolled import experiments

    say = teller()
    root = arguments.data or os.environ.get("UNROLLED_DATA")
    name = arguments.dataset or (_REAL if root else _EMBEDDED)[arguments.task]
    images = experiments.load(name, root)
    recipes = _recipes(arguments, name)
    sweep = experiments.sweep(
        recipes,
        images,
        arguments.output,
        minutes=float("inf") if arguments.budget is None else arguments.budget,
        keep_weights=not arguments.no_weights,
        progress=_teller_of_progress(say),
    )
    for row_name, row in sweep.rows.items():
        print(row_name, row["scores"])


def _recipes(arguments: argparse.Namespace, name: str) -> list[Any]:
    from unrolled import experiments

    paper = experiments.paper_recipe(arguments.task, name)
    given = {
        field: getattr(arguments, field)
        for field in ("batch", "optimizer", "rate", "momentum", "decay", "augmentation", "test")
        if getattr(arguments, field) is not None
    }
    if name == "digits":
        given = {"augmentation": "none", **given}
    recipe = dataclasses.replace(paper, data=name, **given)
    seed = arguments.seed or 0
    return experiments.grid(
        recipe,
        models=_words(arguments.model or "lenet5"),
        activations=_words(arguments.activation or "relu,elu,mish"),
        gammas=[float(word) for word in _words(arguments.gamma or "0,1e-3")],
        seeds=range(seed, seed + (3 if arguments.seeds is None else arguments.seeds)),
        epochs=[int(word) for word in _words(arguments.epochs or str(paper.epochs))],
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _teller_of_progress(say: Say) -> Any:
    last = {"text": ""}

    def tell(name: str, done: int, steps: int, text: str) -> None:
        if text != last["text"]:
            last["text"] = text
            say(f"{name}: {done}/{steps}, {text}")

    return tell
