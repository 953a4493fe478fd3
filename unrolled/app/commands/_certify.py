"""`unrolled certify`: certificates of a dictionary, a chain, saved weights, or codes."""

import argparse
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import activations, dictionaries, pursuit, theory
from unrolled._base import checks
from unrolled._base.packages import require
from unrolled.app import studies
from unrolled.app.commands import _inputs, _report
from unrolled.app.commands._console import add_command, progress_printer, show
from unrolled.app.commands._report import Section
from unrolled.dictionaries import Operator, block_of, refuse_parts
from unrolled.problems import synthesize
from unrolled.vision import datasets

_SHOWN = 20  # rows that the text lists
# The advice of the command if codes come in parts.
_BY_PARTS = "certify --code needs codes of single entries, try certify without it"


def holds_weights(path: Path) -> bool:
    """Whether a path is a folder, or a file that `training.save` wrote."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return path.is_dir() or path.suffix == ".safetensors"
    try:
        with zipfile.ZipFile(path) as archive:
            return "manifest.json" in archive.namelist()
    except Exception:  # zipfile can raise anything on foreign bytes; the array reader reports it
        return False


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "dictionaries": dict(type=Path, nargs="+", metavar="FILE"),
    "--sparsity": dict(metavar="S"),
    "--bound": dict(type=float, default=1.0),
    "--noise": dict(type=float, default=0.0),
    "--tolerance": dict(type=float, default=1e-6),
    "--sampled": dict(type=int, metavar="N"),
    "--normalize": dict(action="store_true"),
    "--activation": dict(metavar="NAME"),
    "--scale": dict(type=float, metavar="K"),
    "--entries": dict(action="store_true"),
    "--figure": dict(type=Path, metavar="PNG"),
    "--code": dict(type=Path, metavar="CODES"),
    "--signals": dict(type=Path, metavar="SIGNALS"),
    "--output": dict(type=Path, metavar="DIR"),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled certify`."""
    return add_command(commands, "certify", run, _ARGUMENTS)


def run(arguments: argparse.Namespace) -> None:
    """Certify a dictionary, a chain or saved weights by theory.

    Print certified coherence, admissible sparsity, rate and number of steps,
    for W = D, the closed-form W and the minimax W. With --sparsity, also count the drawn
    codes that a layer is proved to find, beyond the worst case. For several dictionaries,
    also print uniqueness, stability, and a plan of the chain. For saved weights, analytic
    or learned, print the error that the weights guarantee, layer by layer. For codes from
    any solver, print which codes, after least squares on their supports, are proved to be
    the only codes of least l1 norm.

    Flags:
        dictionaries: D of shape (m, d), as .npy or .npz (entry D); for a chain, one such file for
            each layer, in order; or a file of weights; or a folder of saved steps
        --sparsity: number s of nonzeros of a code; for a chain, s_1,s_2,... (default: the largest
            admissible s; for the weights of a chain, 1 in every layer)
        --bound: bound B on the magnitudes of the entries of a code (default 1)
        --noise: largest l1 norm of the noise; l2 norm if D is complex (default 0)
        --tolerance: l1 error to reach (default 1e-6)
        --sampled: also draw N codes, and print for how many codes it is proved, signal by signal
            and support by support, that a layer finds the code; for one D only (default 13809 with
            --sparsity, else 0)
        --normalize: first scale the atoms to norm 1
        --activation: also print the guarantees with this activation, such as elu (see --scale)
        --scale: take rho(K x) / K as the activation (default 1)
        --entries: also compute the weights with the smallest entries (Definition 8), which takes
            many times longer
        --figure: save a picture of D'D and W'D
        --code: codes of --signals, of shape (signals, d), as .npy or .npz (entry X)
        --signals: signals of --code, as .npy or .npz (entry Y); without --code, also print for how
            many signals OMP finds a code of the class that the options describe
        --output: folder for report.html, for dictionaries or weights (default: no report)

    Examples:
        unrolled certify D.npy --sparsity 3 --tolerance 1e-3 --figure gram.png
        unrolled certify D.npy --sparsity 11 --output report
        unrolled certify D.npy --sparsity 3 --signals Y.npy
        unrolled certify D_1.npy D_2.npy --sparsity 10,2 --json
        unrolled certify weights.npz --sparsity 10,2
        unrolled certify D.npy --code X.npy --signals Y.npy
    """
    if arguments.figure is not None or arguments.output is not None:
        require("certify", "matplotlib")
    if arguments.code is not None:
        _run_on_codes(arguments)
        return
    weights = holds_weights(arguments.dictionaries[0])
    if arguments.signals is not None and (weights or len(arguments.dictionaries) > 1):
        raise ValueError("certify: --signals without --code needs one D")
    checks.nonnegative(arguments.tolerance, "tolerance", "certify")
    if arguments.sampled is not None and (weights or len(arguments.dictionaries) > 1):
        raise ValueError("certify: --sampled needs one D")
    if (arguments.sampled or 0) < 0:
        raise ValueError(f"certify: sampled must be at least 0, got {arguments.sampled}")
    s, must = arguments.sparsity, "certify: sparsity must be integers with commas between them"
    asked = dict(
        sparsity=None if s is None else _inputs.numbers(s, int, must),
        bound=arguments.bound,
        noise=arguments.noise,
        tolerance=arguments.tolerance,
    )
    if arguments.output is not None:
        _report.check_folder(arguments.output)
    (_run_on_weights if weights else _run_on_dictionaries)(arguments, asked)


def _run_on_dictionaries(arguments: argparse.Namespace, asked: dict[str, Any]) -> None:
    activation = None
    if arguments.activation is not None:
        k = 1.0 if arguments.scale is None else arguments.scale
        activation = activations.scale(activations.by_name(arguments.activation), k)
    elif arguments.scale is not None:
        raise ValueError("certify: --scale needs --activation")
    asked |= dict(activation=activation, entries=arguments.entries)
    if arguments.figure is not None:
        _report.check_figure(arguments.figure)
    say = progress_printer()
    with jax.enable_x64(True):
        Ds = [_read_in_float64(path, arguments.normalize) for path in arguments.dictionaries]
    if any(block_of(D) > 1 for D in Ds):
        _run_on_parts(arguments, Ds, asked, say)
        return
    report = studies.dictionary_report(Ds, **asked, say=say)
    names = " ".join(str(path) for path in arguments.dictionaries)
    data, text = report.to_dict(), f"{names}: {report.text()}"
    if arguments.signals is not None:
        s = report.layers[0].table.rows["minimax"].sparsity
        of = signals_of_class(Ds[0], arguments.signals, s, arguments.bound, arguments.noise)
        data, text = data | {"class_of_signals": of._asdict()}, f"{text}\n\n{of.text()}"
    drawn = _drawn(arguments, Ds[0], report.layers[0].table.rows["minimax"].sparsity, say)
    if drawn is not None:
        data, text = data | {"drawn": drawn.to_dict()}, f"{text}\n\n{drawn.text()}"
    show(arguments.json, data, text)
    if arguments.figure is not None:
        _report.write_figure(arguments.figure, report.figure())
    _write_report(arguments, report, {"the Gram matrix and W'D": report.figure}, drawn)


def _run_on_parts(
    arguments: argparse.Namespace,
    Ds: Sequence[Operator],
    asked: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Print how many drawn codes of a complex D are proved, next to the certified worst case."""
    for given, name in (
        (len(Ds) > 1, "a chain"),
        (arguments.signals is not None, "--signals"),
        (arguments.activation is not None, "--activation"),
        (arguments.entries, "--entries"),
    ):
        if given:
            raise ValueError(f"certify: {name} is for real dictionaries; expected one complex D")
    drawn = studies.certify_drawn(
        arguments.seed or 0,
        Ds[0],
        sparsity=asked["sparsity"],
        draws=arguments.sampled or studies.DRAWS,
        bound=arguments.bound,
        noise=arguments.noise,
        say=say,
    )
    text = f"{arguments.dictionaries[0]}: {drawn.text() or drawn.answer()}"
    show(arguments.json, {"drawn": drawn.to_dict()}, text)
    if arguments.figure is not None:
        _report.write_figure(arguments.figure, drawn.figure())
    _write_sections(arguments, [_of_drawn(drawn)])


def _drawn(
    arguments: argparse.Namespace, D: Operator, sparsity: int, say: Callable[[str], None]
) -> studies.DrawnProofs | None:
    """The proofs of drawn codes with `sparsity` nonzeros; None if no proof is asked for."""
    chain = len(arguments.dictionaries) > 1
    default = 0 if arguments.sparsity is None or chain else studies.DRAWS
    draws = default if arguments.sampled is None else arguments.sampled
    if not draws or not sparsity:
        return None
    return studies.certify_drawn(
        arguments.seed or 0,
        D,
        sparsity=sparsity,
        draws=draws,
        bound=arguments.bound,
        noise=arguments.noise,
        say=say,
    )


def _write_report(
    arguments: argparse.Namespace,
    report: Any,
    figures: dict[str, Callable],
    drawn: studies.DrawnProofs | None = None,
) -> None:
    """Write `report.html` for a study, and for drawn codes, if the arguments name a folder."""
    if arguments.output is None:
        return
    parts, answer = report.parts(), report.answer()
    sections = [Section("Certificate", "certificate", parts, figures, answer=answer)]
    _write_sections(arguments, sections if drawn is None else [*sections, _of_drawn(drawn)])


def _of_drawn(drawn: studies.DrawnProofs) -> Section:
    parts, shown = drawn.parts(), drawn.figures()
    return Section("Signal by signal", "drawn", parts, shown, answer=drawn.answer())


def _write_sections(arguments: argparse.Namespace, sections: list[Section]) -> None:
    """Write `report.html` with these sections if the arguments name a folder."""
    if arguments.output is None:
        return
    names = " ".join(str(path) for path in arguments.dictionaries)
    summary = "The guarantees of theory in numbers, and whether their hypotheses hold."
    _report.write_html(
        arguments.output, f"Certificate of {names}", summary, sections, _report.environment()
    )


def _read_in_float64(path: Path, normalize: bool) -> Operator:
    """D of a file in float64, without the directions that rounding in the file adds."""
    stored = _inputs.read_dictionary(path, None)
    D = checks.cast(stored, np.float64)
    if normalize:
        D = dictionaries.normalize(D)[0]
    dictionaries.nonzero_atoms(dictionaries.column_norms(D), str(path))
    try:
        dictionaries.unit_atoms(D, str(path))
    except ValueError as error:
        raise ValueError(f"{error} (here --normalize)") from error
    return theory.in_float64(D, stored.dtype)


def _run_on_codes(arguments: argparse.Namespace) -> None:
    if arguments.signals is None:
        raise ValueError("certify: --code and --signals go together")
    if len(arguments.dictionaries) > 1:
        raise ValueError(f"certify: --code needs one D, got {len(arguments.dictionaries)} files")
    proof = certify_codes(arguments.dictionaries[0], arguments.signals, arguments.code)
    show(arguments.json, proof.to_dict(), proof.text())


def _run_on_weights(arguments: argparse.Namespace, asked: dict[str, Any]) -> None:
    path, *others = arguments.dictionaries
    unused = ("normalize", "activation", "scale", "entries", "figure")
    idle = [f"--{name}" for name in unused if getattr(arguments, name) not in (None, False)]
    if idle:
        raise ValueError(f"{path}: holds weights, which {', '.join(idle)} does not go with")
    # Further files are the dictionaries of weights that were saved without dictionaries.
    model = _inputs.restore_model(path, others, "its file after the file of the weights")
    certificate = studies.certify_weights(model.layer, model.params, model.D, **asked)
    show(arguments.json, certificate.to_dict(), f"{path}: {certificate.text()}")
    _write_report(
        arguments, certificate, {"the guaranteed error after every step": certificate.figure}
    )


# Codes and signals from files


class CertifiedCodes(NamedTuple):
    """How many codes are certified, and which codes are not."""

    signals: int
    rows: tuple[int, ...]  # the codes that are not certified

    def text(self) -> str:
        """The share and the rows as lines of text."""
        lines = [
            f"{1 - len(self.rows) / self.signals:.2%} of {self.signals} codes certified: after "
            "least squares, each code x is the only code of least l1 norm with this D x, and D x "
            "is y up to rounding"
        ]
        return "\n".join([*lines, *_not_certified(self.rows)])

    def to_dict(self) -> dict[str, Any]:
        """The share and the rows as data."""
        share = 1 - len(self.rows) / self.signals
        return {"certified_share": share, "not_certified": list(self.rows)}


class ProvedCodes(NamedTuple):
    """How many codes have the signs of the unique LASSO optimum, and how many optima are proved."""

    signals: int
    rows: tuple[int, ...]  # the codes that have other signs, or no proof
    optima: int  # signals with a proof of the only optimum, after repairs of the signs
    distance: float  # the largest norm(x - x*) / norm(x*) over these signals

    def text(self) -> str:
        """The shares, the distance and the rows as lines of text."""
        far = f", at a distance of at most {self.distance:.2g} times its norm from the code"
        lines = [
            f"{1 - len(self.rows) / self.signals:.2%} of {self.signals} codes certified: each has "
            "the support and the signs of the only optimum of the LASSO",
            f"that optimum is proved for {self.optima / self.signals:.2%} of the signals"
            + far * (self.optima > 0),
        ]
        return "\n".join([*lines, *_not_certified(self.rows)])

    def to_dict(self) -> dict[str, Any]:
        """The shares, the distance and the rows as data."""
        return {
            **CertifiedCodes(self.signals, self.rows).to_dict(),
            "proved_optima": self.optima / self.signals,
            "largest_distance": self.distance,
        }


def _not_certified(rows: Sequence[int]) -> list[str]:
    """The first rows that are not certified, as one line of text; no line if all are certified."""
    more = len(rows) - _SHOWN
    shown = ", ".join(map(str, rows[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
    return [f"not certified: rows {shown}"] if rows else []


class ClassOfSignals(NamedTuple):
    """The number of signals for which orthogonal matching pursuit finds a code in a class."""

    signals: int
    inside: int
    sparsity: int
    bound: float
    noise: float
    least: float  # the least l1 norm of a residual, over the signals that are not zero

    def text(self) -> str:
        """The number of signals with a code in the class, and the least residual."""
        return (
            f"OMP finds a code of this class (at most {self.sparsity} nonzeros of magnitude at "
            f"most {self.bound:g}, noise of l1 norm at most {self.noise:g}) for {self.inside} of "
            f"{self.signals} signals; the least l1 norm of a residual is {self.least:.4g}"
        )


def signals_of_class(
    D: Operator, signals: Path, sparsity: int, bound: float, noise: float
) -> ClassOfSignals:
    """Find codes in a class that give the signals of a file, up to noise and rounding.

    Raises:
        ValueError: the signals cannot be read, or their length differs from m.
    """
    Y = _inputs.open_signals(signals, D)
    _inputs.check_length(signals, Y, D)
    inside, least = 0, np.inf
    for first in range(0, len(Y), _inputs.CHUNK):
        part = datasets.read_rows(Y, signals, first, _inputs.CHUNK)
        rounding = 8 * float(np.finfo(part.dtype).eps if part.dtype.kind == "f" else 0.0)
        with jax.enable_x64(True):
            rows = np.asarray(part, float)
            codes = np.asarray(pursuit.omp_batch(D, rows, sparsity).x)
            left = np.abs(rows - np.asarray(synthesize(D, jnp.asarray(codes)))).sum(1)
        size = np.abs(rows).sum(1)
        small = np.abs(codes).max(1) <= bound * (1 + rounding)
        inside += int((small & (left <= noise + rounding * size)).sum())
        least = min(least, *left[size > 0], np.inf)
    return ClassOfSignals(len(Y), inside, sparsity, bound, noise, float(least))


def uncertified(D: Operator, Y: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The rows of Y whose codes are not certified after least squares on their supports."""
    return np.flatnonzero(~theory.certify_code(D, Y, X, finish=0).certified(Y))


def proved(
    D: Operator, Y: np.ndarray, X: np.ndarray, problem: dict[str, Any]
) -> tuple[np.ndarray, int, float]:
    """The rows whose codes have other signs than the unique LASSO optimum, the number of proved
    optima, and the largest relative distance of a code from a proved optimum.
    """
    proof = theory.certify_lasso(D, Y, X, **problem)
    size = np.linalg.norm(proof.x, axis=1)
    far = np.where(proof.unique & (size > 0), proof.distance / np.where(size > 0, size, 1), 0)
    rows = np.flatnonzero(~proof.unique | (proof.repairs > 0))
    return rows, int(proof.unique.sum()), float(far.max(initial=0))


def certify_codes(dictionary: Path, signals: Path, codes: Path) -> CertifiedCodes:
    """Certify the codes of a file, chunk by chunk, in the dtype of the signals.

    Raises:
        ValueError: a file cannot be read, or the files do not fit together.
    """
    with jax.enable_x64(True):
        D = _inputs.read_dictionary(dictionary, None)
    refuse_parts(D, str(dictionary), _BY_PARTS)
    Y, X = _inputs.open_signals(signals), datasets.open_array(codes, "X")
    _inputs.check_length(signals, Y, D)
    if X.shape != (len(Y), D.shape[1]) or not len(Y):
        raise ValueError(
            f"{codes}: has shape {X.shape}; expected ({len(Y)}, {D.shape[1]}), one code for each "
            f"signal of {signals}, and at least one"
        )
    rows: list[int] = []
    for first in range(0, len(Y), _inputs.CHUNK):
        parts = (
            datasets.read_rows(array, path, first, _inputs.CHUNK)
            for array, path in ((Y, signals), (X, codes))
        )
        rows += (first + uncertified(D, *parts)).tolist()
    return CertifiedCodes(len(Y), tuple(rows))
