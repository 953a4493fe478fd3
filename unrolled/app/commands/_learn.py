"""`unrolled learn`: a dictionary learned from the signals of a file, and its certificate."""

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionary_learning, plots, pursuit
from unrolled._base.files import whole_file
from unrolled._base.numbers import held_back, mean_norm
from unrolled._base.packages import require
from unrolled.app import studies
from unrolled.app.commands import _report
from unrolled.app.commands._console import Say, add_command, progress_printer, show
from unrolled.app.commands._inputs import in_float32, open_signals
from unrolled.app.commands._report import Section
from unrolled.dictionary_learning import Learned, Step
from unrolled.vision import datasets

# The flags of each method that not all methods have.
_STOP = {"patience", "evaluate_every"}
_METHODS = {
    "online": {"lam", "sparsity", "batch", "sweeps", *_STOP},
    "recover": {"lam", "batch", "steps", *_STOP},
    "ksvd": {"sparsity", "sweeps"},
    "mod": {"sparsity", "sweeps"},
}
_PERIOD = 5.0  # seconds between two lines of progress
_BATCH, _EVALUATE = 512, 50  # signals in a batch, most batches between two evaluations
# Signals at the start of a stream: lam comes from their mean norm, and figures show their codes.
_FIRST = 2000
# Files in the folder: the result, and the checkpoint from which an interrupted call continues.
_DICTIONARY, _CHECKPOINT = "D.npy", "checkpoint.npz"

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "signals": dict(type=Path, metavar="SIGNALS"),
    "--atoms": dict(type=int, required=True, metavar="D"),
    "--method": dict(choices=tuple(_METHODS), default="online"),
    "--output": dict(type=Path, default=Path("learned"), metavar="DIR"),
    "--lam": dict(type=float),
    "--sparsity": dict(type=int),
    "--sweeps": dict(type=int, default=None),
    "--steps": dict(type=int),
    "--batch": dict(type=int),
    "--patience": dict(type=int),
    "--evaluate-every": dict(type=int),
    "--nonnegative": dict(action="store_true"),
    "--start": dict(choices=("data", "dct"), default="data"),
    "--shape": dict(metavar="HxW"),
    "--no-certificate": dict(action="store_true"),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled learn`."""
    return add_command(commands, "learn", run, _ARGUMENTS)


class Summary(NamedTuple):
    """What the command prints."""

    method: str
    signals: int
    atoms: int
    objective: float
    seconds: float
    output: str

    def text(self) -> str:
        """The numbers as a line of text."""
        return (
            f"{self.method}: {self.atoms} atoms from {self.signals} signals in "
            f"{self.seconds:.1f} s, objective {self.objective:.6g} -> {self.output}"
        )


def run(arguments: argparse.Namespace) -> None:
    """Learn a dictionary from signals.

    Learn a dictionary, and write D.npy and a report with a picture of the atoms and a certificate.
    With --method online or recover a .npy file can hold any number of signals: the command reads
    them in batches. To continue after an interruption, run the same command again.

    Flags:
        signals: signals of shape (signals, m), as .npy or .npz (entry Y)
        --atoms: the number of atoms
        --method: how D is learned (default online)
        --output: folder of D.npy and the report (default learned)
        --lam: weight of the penalty, for online and recover (default: a tenth of the mean norm of
            the first 2000 signals)
        --sparsity: number of nonzeros in a code, for ksvd and mod, and for online in place of lam
        --sweeps: number of sweeps of ksvd and mod (default 20), or of passes of online (default 1)
        --steps: number of batches of recover (default 750)
        --batch: signals in a batch, for online (default 512) and recover (default: as many as
            atoms)
        --patience: for online and recover: hold back the last tenth of the signals, at most 1000,
            keep the atoms that are best for these signals, and stop when these atoms are this many
            batches old
        --evaluate-every: number of batches between two evaluations with --patience (default 50, or
            the batches of a pass of online if these are fewer)
        --nonnegative: codes x >= 0
        --start: source of the first atoms (default data)
        --shape: height and width of an atom in pictures (default: a square if possible, else a row)
        --no-certificate: skip the certificate

    Examples:
        unrolled learn Y.npy --atoms 256 --method online --output learned
        unrolled learn Y.npy --atoms 256 --method ksvd --sparsity 5 --output learned
        unrolled learn Y.npy --atoms 256 --method recover --nonnegative --output learned
    """
    require("learn", "matplotlib")
    say, folder = progress_printer(), arguments.output
    options = _learning_options(arguments)
    Y = open_signals(arguments.signals)
    if Y.ndim != 2 or 0 in Y.shape:
        raise ValueError(
            f"{arguments.signals}: signals have shape {Y.shape}; expected (signals, m)"
        )
    if not any(np.any(Y[i : i + _FIRST]) for i in range(0, len(Y), _FIRST)):
        raise ValueError(f"{arguments.signals}: the signals are all zero")
    if arguments.atoms > (n := _cut(arguments, Y)):
        raise ValueError(
            f"learn: {arguments.atoms} atoms for {n} signals; expected at most as many"
        )
    shape = _shape(arguments.shape, Y.shape[1])
    _report.check_not_read((folder / _DICTIONARY, folder / _CHECKPOINT), [arguments.signals])
    with _report.output_folder(folder):
        options |= {
            "progress": partial(_tell, studies.seldom(say, _PERIOD)),
            "checkpoint": folder / _CHECKPOINT,
        }
        summary, data = _written(arguments, Y, shape, options, say)
        (folder / _CHECKPOINT).unlink(missing_ok=True)  # the next call starts from the beginning
    show(arguments.json, data, summary.text())


def _written(
    arguments: argparse.Namespace,
    Y: np.ndarray,
    shape: tuple[int, int],
    options: dict[str, Any],
    say: Say,
) -> tuple[Summary, dict[str, Any]]:
    """Learn, write the dictionary and the report, and return the summary."""
    folder = arguments.output
    learned = _learned(arguments, Y, options)
    D = np.asarray(learned.D)
    with whole_file(folder / _DICTIONARY) as file:
        np.save(file, D)
    certified = None if arguments.no_certificate else _certified(D, say)
    seconds = learned.history[-1].seconds if learned.history else 0.0
    summary = Summary(
        arguments.method, len(Y), D.shape[1], learned.objective, seconds, str(folder / _DICTIONARY)
    )
    settings = {"signals": f"{arguments.signals}, {Y.shape}", "seed": str(arguments.seed or 0)}
    settings |= {name: str(value) for name, value in options.items() if name in _SHOWN}
    X = _codes(arguments, Y, learned, options)
    sections = _sections(arguments.method, learned, X, shape, certified)
    report = _report.write_report(
        folder, "Learned dictionary", summary.text() + ".", sections, settings
    )
    data = summary._asdict() | {"report": str(report)}
    return summary, data if certified is None else data | {"certificate": certified.to_dict()}


_SHOWN = {"start", "nonnegative"}.union(*_METHODS.values())


def _learning_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the learning method, checked before the command reads a file."""
    method, where = arguments.method, "learn"
    for other in sorted(set.union(*_METHODS.values()) - _METHODS[method]):
        if getattr(arguments, other) is not None:
            raise ValueError(f"{where}: {_flag(other)} does not go with --method {method}")
    if "lam" not in _METHODS[method] and arguments.sparsity is None:
        raise ValueError(f"{where}: --method {method} needs --sparsity")
    if arguments.evaluate_every is not None and arguments.patience is None:
        raise ValueError(f"{where}: --evaluate-every needs --patience")
    for name in ("atoms", "batch", "sweeps", "steps", "patience", "evaluate_every"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"{where}: {_flag(name)} must be at least 1, got {value}")
    given = {name: getattr(arguments, name) for name in _METHODS[method]}
    given |= {"sweeps": arguments.sweeps or 20} if "lam" not in given else {}
    common = dict(key=arguments.seed or 0, start=arguments.start, nonnegative=arguments.nonnegative)
    return common | {name: value for name, value in given.items() if value is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _cut(arguments: argparse.Namespace, Y: np.ndarray) -> int:
    """The number of signals to learn from; the others are held back."""
    return len(Y) if arguments.patience is None else len(Y) - held_back(len(Y))


def _learned(arguments: argparse.Namespace, Y: np.ndarray, options: dict[str, Any]) -> Learned:
    path, d, method = arguments.signals, arguments.atoms, arguments.method
    if "lam" in _METHODS[method] and arguments.lam is arguments.sparsity is None:
        first = datasets.read_rows(Y, path, 0, _FIRST).astype(float)
        options["lam"] = mean_norm(first) / 10 or 1.0
    n, size = _cut(arguments, Y), arguments.batch or _BATCH
    if n < len(Y):
        held = in_float32(datasets.read_rows(Y, path, n, len(Y)), path, n)
        most = _EVALUATE if method == "recover" else min(_EVALUATE, math.ceil(n / size))
        Y, options = Y[:n], {"evaluate_every": most} | options | {"validation": held}
    if method == "online":
        batches = _batches(Y, path, size, arguments.sweeps or 1)
        of_online = {name: v for name, v in options.items() if name not in ("batch", "sweeps")}
        return dictionary_learning.online(batches, d, **of_online)
    if not (method == "recover" and isinstance(Y, np.memmap)):
        Y = in_float32(datasets.read_rows(Y, path, 0, len(Y)), path)
    return getattr(dictionary_learning, method)(Y, d, **options)


def _batches(Y: np.ndarray, path: Path, size: int, passes: int) -> Iterator[np.ndarray]:
    """The signals in the order of the file; only one batch is in memory."""
    for _ in range(passes):
        for first in range(0, len(Y), size):
            yield in_float32(datasets.read_rows(Y, path, first, size), path, first)


def _tell(say: Say, step: Step) -> None:
    say(f"step {step.step:,}: objective {step.objective:.6g}")


def _shape(text: str | None, m: int) -> tuple[int, int]:
    """(height, width) of an atom as a picture."""
    if text is None:
        root = math.isqrt(m)
        return (root, root) if root * root == m else (1, m)
    try:
        height, width = (int(part) for part in text.split("x"))
    except ValueError as error:
        raise ValueError(f"learn: --shape must be HxW, such as 8x8, got {text!r}") from error
    if min(height, width) < 1 or height * width != m:
        raise ValueError(f"learn: --shape {text} does not have the {m} entries of a signal")
    return height, width


def _certified(D: np.ndarray, say: Say) -> studies.Report:
    say("what the theory certifies")
    with jax.enable_x64(True):
        return studies.dictionary_report([jnp.asarray(D, float)], say=say)


def _codes(
    arguments: argparse.Namespace, Y: np.ndarray, learned: Learned, options: dict[str, Any]
) -> np.ndarray:
    """The codes of the signals; for a stream, the codes of its first signals."""
    if learned.X is not None:
        return np.asarray(learned.X)
    first = in_float32(datasets.read_rows(Y, arguments.signals, 0, _FIRST), arguments.signals)
    name = "lasso_batch" if "lam" in options else "omp_batch"
    own = {key: options[key] for key in ("lam", "sparsity", "nonnegative") if key in options}
    return np.asarray(getattr(pursuit, name)(jnp.asarray(learned.D), first, **own).x)


def _sections(
    method: str,
    learned: Learned,
    X: np.ndarray,
    shape: tuple[int, int],
    certified: studies.Report | None,
) -> list[Section]:
    D, history = jnp.asarray(learned.D), learned.history
    steps = [[s.step, s.objective, s.seconds, s.replaced] for s in history]
    figures = {
        "the atoms, as pictures": partial(plots.atoms, D, shape, codes=X),
        f"the use of the atoms by {len(X):,} signals": partial(plots.use, {method: X}),
        "the objective of every step": partial(plots.learning, {method: history}),
    }
    replaced = sum(step.replaced for step in history)
    text = f"{D.shape[1]} atoms of {D.shape[0]} entries; {replaced} were replaced on the way."
    header = ("step", "objective", "seconds", "replaced")
    sections = [
        Section(
            "Atoms",
            "atoms",
            [text],
            figures,
            (header, steps),
            {"objective": learned.objective, "steps": [step.asdict() for step in history]},
            f"{D.shape[1]} atoms represent the signals with an objective of "
            f"{learned.objective:.6g}.",
        )
    ]
    if certified is not None:
        layer = certified.layers[0]
        admissible = list(layer.admissible.items())
        sections.append(
            Section(
                "What the theory certifies",
                "certificate",
                [f"```\n{certified.text()}\n```"],
                {},
                (("by", "admissible sparsity"), admissible),
                certified.to_dict(),
            )
        )
    return sections
