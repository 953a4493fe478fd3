"""`unrolled encode`: codes of signals in a file, with saved weights or a pursuit."""

import argparse
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from unrolled import pursuit
from unrolled._base import checks
from unrolled._base.files import check_writable, target, whole_file
from unrolled._base.text import in_rows
from unrolled.app.commands import _inputs
from unrolled.app.commands._certify import CertifiedCodes, ProvedCodes, proved, uncertified
from unrolled.app.commands._console import Say, add_command, progress_printer, show
from unrolled.app.commands._inputs import CHUNK as _CHUNK
from unrolled.app.commands._inputs import nonzeros
from unrolled.app.studies import seldom
from unrolled.dictionaries import Operator, block_of
from unrolled.vision import datasets

_PERIOD = 5.0  # seconds between two lines of progress
# Options of pursuits that make all codes zero if they are too large.
_SILENCING = ("lam", "lams", "ratio", "theta", "thetas", "eps")

# Options of the LASSO whose optimum a proof compares with the codes of weights.
_PENALTY = ("lam", "ratio", "l2", "nonnegative")

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "weights": dict(type=Path, nargs="?", metavar="WEIGHTS"),
    "signals": dict(type=Path, metavar="SIGNALS"),
    "--output": dict(type=Path, required=True, metavar="CODES"),
    "--dictionary": dict(type=Path, action="append", metavar="FILE"),
    "--sparse": dict(action="store_true"),
    "--method": {},  # by `add_parser`: pursuits may be registered later
    "--certify": dict(action="store_true"),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled encode`."""
    parser = add_command(
        commands,
        "encode",
        run,
        _ARGUMENTS
        | {"--method": dict(metavar="PURSUIT", help=f"one of {', '.join(_inputs.names())}")},
    )
    _inputs.add_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Compute codes of signals with saved weights or a pursuit.

    Run the layer or the chain of a weights file, as `unrolled train` writes it, on signals,
    or run a pursuit with --method. A .npy file can hold any number of signals. If no option
    has the units of the signals, as with --ratio or --sparsity alone, a signal whose norm is
    below 8 roundings (float32) of the largest norm counts as zero: the command codes the
    signal as zero, and prints the number of such signals.

    Flags:
        weights: a file written by `unrolled train`, or the folder of saved steps of a run, whose
            newest step has the best params so far; omit with --method
        signals: signals of shape (signals, m), as .npy or .npz (entry Y); if D is complex, the
            signals are complex or pairs of real numbers, and the codes have the same form
        --output: codes of shape (signals, d), as .npy or .npz (entry X); for a chain, the codes of
            the last layer as .npy, or the codes of all layers as .npz (entries X_1, X_2, ...)
        --dictionary: D, as .npy or .npz (entry D), for a pursuit or for weights that were saved
            without D; for a chain, give the option once for each layer
        --sparse: write only the nonzeros of the codes: a .npz file that scipy.sparse.load_npz reads
        --certify: also print which codes are proved, for one dictionary. With --lam or --ratio, a
            code is proved if it has the support and the signs of the only optimum of the LASSO.
            Otherwise, a code is proved if, after least squares on its support, it is the only code
            of least l1 norm. A .npz file gets the entry certified, (signals, 1), with 1 for a
            proved code and 0 for any other code

    Examples:
        unrolled encode weights.npz Y.npy --output codes.npy
        unrolled encode --method omp --sparsity 5 --dictionary D.npy Y.npy --output codes.npy
        unrolled encode --import my_module weights.npz Y.npy --output codes.npy
    """
    paths, options = arguments.dictionary or [], _inputs.given_options(arguments)
    result = encode(
        _check_source(arguments.weights, arguments.method, options, paths, arguments.certify),
        arguments.signals,
        arguments.output,
        paths,
        options,
        progress_printer(),
        certify=arguments.certify,
        sparse=arguments.sparse,
    )
    show(arguments.json, result.to_dict(), result.text())


def _check_source(
    weights: Path | None,
    method: str | None,
    options: dict[str, Any],
    paths: list[Path],
    certify: bool,
) -> Path | str:
    """The weights, or the name of a pursuit; ValueError unless exactly one of the two is given."""
    if method is None:
        if weights is None:
            raise ValueError("encode: expected WEIGHTS and SIGNALS, or --method and SIGNALS")
        allowed = _PENALTY if certify and {"lam", "ratio"} & set(options) else ()
        if needing := [option for option in options if option not in allowed]:
            raise ValueError(f"encode: --{', --'.join(needing)} needs --method")
        return weights
    if weights is not None:
        raise ValueError(f"encode: --method takes no weights, got {weights}")
    checks.one_of(method, _inputs.names(), "method", "encode")
    pursuit.check_options(method, options, "encode")
    if not paths:
        raise ValueError("encode: --method needs --dictionary")
    pursuit.check_dictionaries(method, len(paths), "encode")
    return method


class EncodedLayer(NamedTuple):
    """What the command prints about the codes of one layer."""

    atoms: int  # the number of atoms; a complex atom counts once
    mean_nonzeros: float
    relative_residual: float  # norm(Y - X D', "fro") / norm(Y, "fro"), with D_1 ... D_j for D

    def text(self) -> str:
        """The numbers as a line of text."""
        return (
            f"{self.atoms} atoms: {self.mean_nonzeros:.1f} nonzeros on average, "
            f"relative residual {self.relative_residual:.4g}"
        )


class Encoded(NamedTuple):
    """What the command prints."""

    signals: int
    layers: tuple[EncodedLayer, ...]
    chained: bool
    source: Path | str  # the file, or the folder with the checkpoints; the name of a pursuit
    missed: tuple[int, ...]  # signals whose codes, by a pursuit, miss the tolerance
    zeros: int  # nonzero signals that are negligible next to the largest, coded as zero
    output: str
    certified: CertifiedCodes | ProvedCodes | None = None  # None without --certify

    def text(self) -> str:
        """The numbers as lines of text, one for each layer of a chain."""
        lines = [f"{self.signals} signals, {self.layers[0].text()}"]
        if self.chained:
            layers = enumerate(self.layers, start=1)
            lines = [f"{self.signals} signals", *(f"  layer {j}, {x.text()}" for j, x in layers)]
        if not self.layers[-1].mean_nonzeros and self.layers[-1].relative_residual:
            lines.append(f"all codes are zero: try {_advice(self.source)}")
        if self.missed:
            lines.append(f"codes above their tolerance{in_rows(np.asarray(self.missed))}:")
            lines.append(f"{len(self.missed)} codes miss the tolerance of {self.source}")
        if self.zeros:
            beside = "negligible next to the largest, to the rounding of float32"
            lines.append(f"{self.zeros} signals are {beside}: coded as zero")
        lines += [] if self.certified is None else [self.certified.text()]
        return "\n".join([*lines, f"{self.source} -> {self.output}"])

    def to_dict(self) -> dict[str, Any]:
        """The numbers as data."""
        numbers = {"layers": self.layers} if self.chained else self.layers[0]._asdict()
        of: dict[str, Any] = {"weights": str(self.source)}
        if isinstance(self.source, str):
            of = {"method": self.source, "missed_tolerance": len(self.missed)}
            of |= {"missed_rows": self.missed}
            of |= {"zero_beside_largest": self.zeros}
        proved = {} if self.certified is None else self.certified.to_dict()
        return {"signals": self.signals, **numbers, **of, **proved, "output": self.output}


class Line(NamedTuple):
    """The counts of a chunk of codes."""

    signals: int
    nonzeros: Sequence[int]  # of every layer
    squares: Sequence[float]  # norm(Y)^2, and norm(Y - D_1 ... D_j X_j)^2 of every layer
    missed: Sequence[int]  # rows of the file whose codes miss their tolerance
    zeros: int  # signals that are coded as zero because they are negligible
    unproved: Sequence[int]  # rows whose codes are not certified
    optima: int  # signals whose optimum of the LASSO is proved
    distance: float  # the largest distance of a code from its proved optimum, relative to the norm


class _Job(NamedTuple):
    """The signals of a file, and the function that computes their codes."""

    coder: _inputs.Coder
    Y: np.ndarray
    path: Path  # of the signals
    columns: dict[str, int]  # number of columns of every array of codes
    certify: bool
    problem: Callable[[np.ndarray], dict[str, Any] | None]  # the LASSO of some signals
    least: float  # signals of a smaller norm are negligible next to the largest
    is_complex: bool  # whether the files have complex signals and codes

    @property
    def headers(self) -> dict[str, dict[str, Any]]:
        """The numpy headers of the arrays of all codes; a pair is one complex number."""
        descr, numbers = ("<c8", 2) if self.is_complex else ("<f4", 1)
        return {
            name: {"descr": descr, "fortran_order": False, "shape": (len(self.Y), d // numbers)}
            for name, d in self.columns.items()
        }

    def chunk(self, first: int, signals: np.ndarray) -> tuple[dict[str, np.ndarray], Line]:
        """The codes of a chunk by the name of their array, and their counts."""
        Ds, nothing = self.coder.Ds, (_norms(signals) < self.least) & signals.any(1)
        parts, missed = self.coder.codes(np.where(nothing[:, None], np.float32(0), signals))
        codes = [np.asarray(X) for X in parts]
        norms = _inputs.residual_norms(Ds, signals, codes)
        _check_finite(codes, norms, first)
        unproved, optima, distance = self._proofs(signals, codes[0])
        certified = np.isin(np.arange(len(signals)), unproved, invert=True)
        names = _inputs.code_names(len(Ds), self.coder.chained)
        line = Line(
            len(signals),
            [nonzeros(D, X) for D, X in zip(Ds, codes)],
            (norms**2).sum(1).tolist(),
            [int(row) + first for row in missed],
            int(nothing.sum()),
            (first + unproved).tolist(),
            optima,
            distance,
        )
        return {**dict(zip(names, codes)), "certified": certified[:, None]}, line

    def _proofs(self, signals: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, int, float]:
        """The rows of uncertified codes, the number of proved optima, the largest distance."""
        if not self.certify:
            return np.zeros(0, int), 0, 0.0
        problem = self.problem(signals)
        if problem is None:
            return uncertified(self.coder.Ds[0], signals, codes), 0, 0.0
        return proved(self.coder.Ds[0], signals, codes, problem)


def encode(
    source: Path | str,
    signals: Path,
    output: Path,
    dictionaries: list[Path],
    options: dict[str, Any],
    say: Say,
    certify: bool = False,
    sparse: bool = False,
) -> Encoded:
    """Write the codes of signals, chunk by chunk, completely or not at all.

    If no option has the units of the signals, as with a ratio or a sparsity, a pursuit would code
    rounding errors like a signal. In this case a signal is coded as zero if its norm is below a few
    roundings of the largest norm.

    Args:
        source: weights, whose layer or chain computes the codes; or the name of a pursuit.
        signals, output: the file of the signals, and the file to write the codes into.
        dictionaries: the files of the dictionaries.
        options: options of the pursuit.
        say: receives the progress.
        certify: whether to prove the codes, by `theory.certify_lasso` if `lam` or `ratio` is given,
            else by `theory.certify_code`.
        sparse: whether to write the nonzeros alone, as `scipy.sparse.save_npz` writes them.

    Raises:
        ValueError: `certify` or `sparse` is given with a chain, `sparse` with a name in .npy, a
            file cannot be read, files do not fit together, signals are not finite or leave the
            range of float32, the output is an input, or the pursuit refuses an option.
        OSError: the output cannot be written.
        ArithmeticError: codes or relative residuals are not finite; nothing is written.
    """
    inputs = [source] if isinstance(source, Path) else []
    _check_output(output, [*inputs, signals, *dictionaries])
    job = _job(source, signals, output.suffix, dictionaries, options, certify)
    if sparse and (job.coder.chained or output.suffix != ".npz"):
        what = "a chain" if job.coder.chained else str(output)
        raise ValueError(f"encode: --sparse needs one dictionary and an output in .npz, got {what}")
    target(output).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as file:
        lines = (_written_sparse if sparse else _written)(job, file, output, say)
    return _summed(lines, job, source, output)


def _summed(lines: Sequence[Line], job: _Job, source: Path | str, output: Path) -> Encoded:
    """The counts of all chunks together."""
    signals = sum(line.signals for line in lines)
    nonzeros = np.sum([line.nonzeros for line in lines], axis=0)
    size, *residuals = np.sqrt(np.sum([line.squares for line in lines], axis=0))
    layers = tuple(
        EncodedLayer(
            D.shape[1] // block_of(D), float(count) / signals, float(residual / (size or 1))
        )
        for D, count, residual in zip(job.coder.Ds, nonzeros, residuals)
    )
    missed = tuple(row for line in lines for row in line.missed)
    zeros = sum(line.zeros for line in lines)
    unproved = tuple(row for line in lines for row in line.unproved)
    certified: CertifiedCodes | ProvedCodes | None = None
    if job.certify:
        optima, far = sum(line.optima for line in lines), max(line.distance for line in lines)
        of_lasso = job.problem(np.zeros((1, job.Y.shape[1]))) is not None
        certified = (
            ProvedCodes(signals, unproved, optima, far)
            if of_lasso
            else CertifiedCodes(signals, unproved)
        )
    chained = job.coder.chained
    return Encoded(signals, layers, chained, source, missed, zeros, str(output), certified)


def _advice(source: Path | str) -> str:
    """Advice that is printed if all codes are zero."""
    if isinstance(source, Path):
        return "a smaller threshold"
    options = pursuit.PURSUITS[source].options
    more = " or a larger sparsity" if "sparsity" in options else ""
    less = [name for name in _SILENCING if name in options] or ["tol"]
    return f"a smaller {' or '.join(less)}{more}"


def _job(
    source: Path | str,
    signals: Path,
    suffix: str,
    dictionaries: list[Path],
    options: dict[str, Any],
    certify: bool,
) -> _Job:
    """The job, with its files read and checked."""
    coder = (
        _inputs.coder_of_weights(source, dictionaries)
        if isinstance(source, Path)
        else _inputs.coder_of_pursuit(source, dictionaries, options)
    )
    Ds = coder.Ds
    if certify and len(Ds) > 1:
        raise ValueError(f"encode: --certify is for one dictionary, got {len(Ds)}")
    Y = _inputs.open_signals(signals, Ds[0])
    _inputs.check_length(signals, Y, Ds[0])
    if not len(Y):
        raise ValueError(f"{signals}: expected at least one signal")
    columns = {n: D.shape[1] for n, D in zip(_inputs.code_names(len(Ds), coder.chained), Ds)}
    if suffix == ".npy":  # a .npy file has one array: the last codes
        columns = dict([columns.popitem()])
    elif certify:
        columns = {"certified": 1, **columns}
    relative = isinstance(source, str) and pursuit.is_relative(source, options)
    least = _least_norm(Y, signals) if relative else 0.0
    name = source if isinstance(source, str) else "lasso"
    problem = partial(_lasso, name, options, Ds[0])
    is_complex = np.iscomplexobj(datasets.open_array(signals, "Y", with_complex=True))
    return _Job(coder, Y, signals, columns, certify, problem, least, is_complex)


def _lasso(
    name: str, options: dict[str, Any], D: Operator, signals: np.ndarray
) -> dict[str, Any] | None:
    """The LASSO whose optimum a proof compares with the codes, if a penalty is given."""
    return (
        pursuit.lasso_problem(name, options, D, signals)
        if {"lam", "ratio"} & set(options)
        else None
    )


def _written(job: _Job, file: BinaryIO, output: Path, say: Say) -> list[Line]:
    """Write the codes of all chunks into the file, and return the lines of the chunks."""
    lines, archived, folder = [], output.suffix == ".npz", target(output).parent
    with ExitStack() as stack:
        parts: dict[str, Any] = {
            name: stack.enter_context(tempfile.TemporaryFile(dir=folder)) if archived else file
            for name in job.headers
        }
        for name, header in job.headers.items():
            np.lib.format.write_array_header_1_0(parts[name], header)
        for arrays, line in _chunks(job, say):
            for name, part in parts.items():
                part.write(np.ascontiguousarray(arrays[name], "<f4").data)
            lines.append(line)
        if archived:  # its entries are written one after another
            archive = stack.enter_context(zipfile.ZipFile(file, "w"))
            for name, part in parts.items():
                part.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    shutil.copyfileobj(part, entry, 2**20)
    return lines


def _written_sparse(job: _Job, file: BinaryIO, output: Path, say: Say) -> list[Line]:
    """Write the nonzeros of all codes, which memory holds, and return the lines of the chunks."""
    from scipy.sparse import csr_matrix, save_npz, vstack

    lines, rows = [], []
    name, header = next(iter(job.headers.items()))
    for arrays, line in _chunks(job, say):
        codes = np.ascontiguousarray(arrays[name], "<f4").view(header["descr"])
        rows.append(csr_matrix(codes))
        lines.append(line)
    save_npz(file, vstack(rows, "csr"), compressed=False)
    return lines


def _chunks(job: _Job, say: Say) -> Iterator[tuple[dict[str, np.ndarray], Line]]:
    """The codes of every chunk and their counts, with messages on the progress."""
    n, now_and_then = len(job.Y), seldom(say, _PERIOD)
    for first in range(0, n, _CHUNK):
        yield job.chunk(first, _rows(job.Y, job.path, first))
        now_and_then(f"{min(first + _CHUNK, n):,} of {n:,} signals")


def _rows(Y: np.ndarray, path: Path, first: int) -> np.ndarray:
    return _inputs.in_float32(datasets.read_rows(Y, path, first, _CHUNK), path, first)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows.astype(float), axis=1)


def _least_norm(Y: np.ndarray, path: Path) -> float:
    """The norm below which a signal is negligible next to the largest signal of the file."""
    largest = max(_norms(_rows(Y, path, first)).max() for first in range(0, len(Y), _CHUNK))
    return pursuit.ROUNDINGS * float(np.finfo(np.float32).eps) * float(largest)


def _check_finite(codes: Sequence[np.ndarray], norms: np.ndarray, first: int) -> None:
    """Raise ArithmeticError if codes or residuals of a chunk are not finite."""
    for what, numbers in (("codes", codes), ("relative residuals", [norms.T])):
        bad = np.flatnonzero(~np.all([np.isfinite(X).all(-1) for X in numbers], axis=0))
        if len(bad):
            among = f" among signals {first} to {first + len(norms.T) - 1}" if first else ""
            raise ArithmeticError(
                f"encode: {len(bad)} {what} are not finite{among}, the first of signal "
                f"{first + bad[0]}; nothing was written"
            )


def _check_output(output: Path, inputs: list[Path]) -> None:
    """Raise, before any work, if the codes cannot go to `output`."""
    if output.suffix not in (".npy", ".npz"):
        raise ValueError(f"{output}: expected a name that ends in .npy or .npz")
    if output.is_dir():
        raise IsADirectoryError(f"{output}: is a folder; expected a file to write the codes into")
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise ValueError(
            f"{output}: is read by this command; expected another file to write the codes into"
        )
    check_writable(output.absolute().parent)
