"""`unrolled train`: from a dictionary and signals in files to a file of weights."""

import argparse
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from unrolled import training
from unrolled._base.text import plain
from unrolled.app.commands import _inputs
from unrolled.app.commands._console import Say, add_command, note_output, progress_printer, show
from unrolled.app.commands._report import check_folder, check_not_read
from unrolled.dictionaries import Operator, block_of
from unrolled.networks import worse
from unrolled.pursuit import DEFAULT_LAM, default_lam

_WORSE = 3  # the exit status if the codes are worse than zero codes, or than ISTA's codes
_WITH_CODES = "alista"  # the family that is trained on known codes by default

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "config": dict(type=Path, nargs="?", help=argparse.SUPPRESS),
    "--dictionary": dict(type=Path, metavar="D"),
    "--signals": dict(type=Path, metavar="Y"),
    "--output": dict(type=Path, metavar="WEIGHTS"),
    "--family": {},
    "--depth": dict(type=int, default=16),
    "--lam": dict(type=float),
    "--steps": dict(type=int),
    "--resume": dict(action="store_true"),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled train`."""
    return add_command(commands, "train", run, _ARGUMENTS)


class Trained(NamedTuple):
    """The result of the command."""

    weights: str
    model: str
    shape: tuple[int, int]  # of D; a complex number counts once
    lam: float | None  # None if codes are known and no lam was given
    seconds: float
    validation: dict[str, float]  # the losses `Fit.judged` on signals that were held back

    def text(self) -> str:
        """The result as lines of text."""
        names = {"first": "the start", "best": "the weights", "zero": "zero codes", "ista": "ISTA"}
        losses = [f"{value:.4g} of {names[name]}" for name, value in self.validation.items()]
        m, d = self.shape
        took = f"{self.model}, {m} x {d}: trained in {self.seconds:.1f} s"
        return f"{took}\nvalidation loss: {', '.join(losses)}\nweights: {self.weights}"

    @property
    def worse(self) -> str:
        """A sentence if the codes are worse than zero codes or ISTA's codes, else ""."""
        best, zero, ista = (self.validation.get(n, math.nan) for n in ("best", "zero", "ista"))
        rule = worse("the codes are", "validation loss", best, zero, ista)
        return f"{rule}; try another --family or more --steps" if rule else ""


def run(arguments: argparse.Namespace) -> None:
    """Train a layer on signals, with or without codes.

    Train a layer by one recipe and write its best params, the layer and D. If the file of the
    signals has codes, the command calls `training.by_recipe`; otherwise, the command calls
    `training.unsupervised`, which minimises the objective of the LASSO. The exit status is 3
    if the codes are worse than zero codes, or than codes of ISTA of the same depth, on signals
    that were held back. The guide "train in a script" shows chains, other losses, optimisers
    and several processes.

    Flags:
        --dictionary: D of shape (m, d), as .npy or .npz (entry D)
        --signals: signals of shape (signals, m), as .npy or .npz (entry Y; with codes, entry X)
        --output: file of the weights, whose name ends in .npz
        --family: family of the layer (default bcd, or lfista_cp if D is complex; with codes alista)
        --depth: number of steps of the layer (default 16)
        --lam: weight of the LASSO (default: chosen on the signals)
        --steps: number of training steps (default: the number of the recipe)
        --resume: continue a stopped run, if there is one; for signals without codes

    Examples:
        unrolled train --dictionary D.npy --signals Y.npy --output weights.npz
        unrolled train --dictionary D.npy --signals Y.npy --output weights.npz --resume
        unrolled train --import my_module --family my_family --dictionary D.npy --signals YX.npz \\
            --output weights.npz
    """
    result = train(**{name[2:]: vars(arguments)[name[2:]] for name in _given(arguments)})
    show(arguments.json, plain(result._asdict()), result.text())
    if result.worse:
        print(f"unrolled: {result.worse}", file=sys.stderr)
        raise SystemExit(_WORSE)


def _given(arguments: argparse.Namespace) -> list[str]:
    """The names of the options; ValueError for a configuration, or if a file is missing."""
    if arguments.config is not None:
        raise ValueError(
            f"train: reads no configuration, got {arguments.config}; pass --dictionary, --signals "
            'and --output, or write a script as the guide "train in a script" shows'
        )
    for name in ("dictionary", "signals", "output"):
        if getattr(arguments, name) is None:
            raise ValueError(f"train: --{name} is missing")
    return [*(name for name in _ARGUMENTS if name.startswith("--")), "--seed"]


def train(
    dictionary: Path,
    signals: Path,
    output: Path,
    family: str | None,
    depth: int,
    lam: float | None,
    steps: int | None,
    resume: bool,
    seed: int | None,
) -> Trained:
    """Train a layer on the signals of a file, and save its weights.

    Raises:
        ValueError: files do not fit, a value is refused, or a stopped run exists without `resume`.
        OSError: a file cannot be read or written.
        ArithmeticError: the training broke down; the saved steps stay.
    """
    steps_folder = _checked(output, [dictionary, signals], resume)
    D = _inputs.read_dictionary(dictionary)
    Y: Any = _inputs.open_given(signals, D)
    X = _inputs.read_codes(signals, Y, D)
    if X is not None and resume:
        raise ValueError(
            f"train: --resume is for signals without codes, but {signals} has codes; try a script "
            "with fit(checkpoint=folder)"
        )
    options: dict[str, Any] = {"depth": depth, "key": seed or 0, "steps": steps}
    options = {name: value for name, value in options.items() if value is not None}
    if X is not None:
        options |= {} if lam is None else {"lam": lam}
        fit = training.by_recipe(family or _WITH_CODES, D, (Y, X), **options).fit
    else:
        say = progress_printer()
        lam = _lam(D, Y, say) if lam is None else lam
        saved = training.Checkpoint(steps_folder)
        noted = [lambda record, params: note_output()]
        with _told_if_stopped(steps_folder, say):
            fit = training.unsupervised(
                D, Y, lam, family=family, checkpoint=saved, callbacks=noted, **options
            )
    training.save(output, fit, fit.D, fit.model, validation=fit.judged)
    shutil.rmtree(steps_folder, ignore_errors=True)
    shape = D.shape[0] // block_of(D), D.shape[1] // block_of(D)
    return Trained(str(output), repr(fit.model), shape, lam, fit.seconds, fit.judged)


def _checked(output: Path, read: list[Path], resume: bool) -> Path:
    """The folder of the saved steps, next to the output; raise if it holds another run."""
    if output.suffix != ".npz" or output.is_dir():
        raise ValueError(f"{output}: expected a file of weights, whose name ends in .npz")
    check_not_read([output], read)
    folder = output.with_suffix(".steps")
    if folder.exists() and not resume:
        raise ValueError(
            f"{folder}: holds a run that was stopped; try --resume to continue the run, or another "
            "--output"
        )
    check_folder(output.absolute().parent)
    return folder


def _lam(D: Operator, Y: Any, say: Say) -> float:
    lam = float(f"{default_lam(D, Y):.3g}")
    say(f"lam = {lam:g}, {DEFAULT_LAM}")
    return lam


@contextmanager
def _told_if_stopped(folder: Path, say: Say) -> Iterator[None]:
    """Say, after a signal has ended a run and its last step is saved, how to continue the run."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if folder.exists():  # a signal may come before the first step
            say("stopped; --resume continues from here")
        raise
