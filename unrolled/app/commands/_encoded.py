"""What is said of the codes of a file: what they are, and which are proved to be unique."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import pursuit, theory
from unrolled._base.text import in_rows
from unrolled.app.commands._inputs import check_length, open_signals, read_dictionary
from unrolled.dictionaries import Operator
from unrolled.problems import synthesize
from unrolled.pursuit import PURSUITS
from unrolled.vision import datasets

_CHUNK = 1000  # signals at a time
_SHOWN = 20  # rows that the text lists
# Options of pursuits that, too large, make all codes zero.
_SILENCING = ("lam", "lams", "ratio", "theta", "thetas", "eps")


class CertifiedCodes(NamedTuple):
    """How many codes are certified, and which are not."""

    signals: int
    rows: tuple[int, ...]  # those that are not certified

    def text(self) -> str:
        """The share and the rows as lines of text."""
        lines = [
            f"{1 - len(self.rows) / self.signals:.2%} of {self.signals} codes certified: after "
            "least squares each is the only code of least l1 norm with its D x, which is y to "
            "rounding"
        ]
        if self.rows:
            rows = ", ".join(map(str, self.rows[:_SHOWN]))
            more = len(self.rows) - _SHOWN
            lines.append(f"not certified: rows {rows}" + (f" and {more} more" if more > 0 else ""))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The share and the rows as data."""
        share = 1 - len(self.rows) / self.signals
        return {"certified_share": share, "not_certified": list(self.rows)}


class ClassOfSignals(NamedTuple):
    """How many signals have a code of a class, as far as orthogonal matching pursuit finds one."""

    signals: int
    inside: int
    sparsity: int
    bound: float
    noise: float
    least: float  # the least l1 norm of what the pursuit leaves of a signal that is not zero

    def text(self) -> str:
        """Whether the class contains any of the signals."""
        return (
            f"of {self.signals} signals {self.inside} have a code of this class (at most "
            f"{self.sparsity} nonzeros of magnitude at most {self.bound:g}, noise of l1 norm at "
            f"most {self.noise:g}) that OMP finds; what it leaves of a signal is at least "
            f"{self.least:.4g}"
        )


class EncodedLayer(NamedTuple):
    """What the command prints of the codes of one layer."""

    atoms: int
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
    missed: tuple[int, ...]  # signals whose codes, by the pursuit, miss their tolerance
    zeros: int  # signals that are not zero but beside the largest, coded as zero
    output: str
    certified: CertifiedCodes | None = None  # where that was asked for

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
            beside = "zero beside the largest, to the rounding of float32"
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
    """What is counted of the codes of a chunk, one after another."""

    signals: int
    nonzeros: Sequence[int]  # of every layer
    squares: Sequence[float]  # norm(Y)^2, and norm(Y - D_1 ... D_j X_j)^2 of every layer
    missed: Sequence[int]  # rows of the file whose codes miss their tolerance
    zeros: int  # signals that are coded as zero beside the largest
    unproved: Sequence[int]  # rows whose codes are not certified


def encoded(
    lines: Sequence[Mapping[str, Any]],
    atoms: Sequence[int],
    chained: bool,
    source: Path | str,
    output: Path,
    certify: bool,
) -> Encoded:
    """The sums of the `Line`s of all chunks."""
    counts = [Line(**line) for line in lines]
    signals = sum(line.signals for line in counts)
    nonzeros = np.sum([line.nonzeros for line in counts], axis=0)
    size, *residuals = np.sqrt(np.sum([line.squares for line in counts], axis=0))
    layers = tuple(
        EncodedLayer(d, float(count) / signals, float(residual / (size or 1)))
        for d, count, residual in zip(atoms, nonzeros, residuals)
    )
    missed = tuple(row for line in counts for row in line.missed)
    zeros = sum(line.zeros for line in counts)
    unproved = tuple(row for line in counts for row in line.unproved)
    proved = CertifiedCodes(signals, unproved) if certify else None
    return Encoded(signals, layers, chained, source, missed, zeros, str(output), proved)


def signals_of_class(
    D: Operator, signals: Path, sparsity: int, bound: float, noise: float
) -> ClassOfSignals:
    """Look for codes of a class that give the signals of a file, up to its noise and to rounding.

    Raises:
        ValueError: signals that cannot be read or have another length.
    """
    Y = open_signals(signals)
    check_length(signals, Y, D)
    inside, least = 0, np.inf
    for first in range(0, len(Y), _CHUNK):
        part = datasets.read_rows(Y, signals, first, _CHUNK)
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
    """The rows of Y whose codes, after least squares on their supports, are not certified."""
    return np.flatnonzero(~theory.certify_code(D, Y, X, finish=0).certified(Y))


def certify_codes(dictionary: Path, signals: Path, codes: Path) -> CertifiedCodes:
    """Certify the codes of a file, chunk by chunk, in the dtype of the signals.

    Raises:
        ValueError: files that cannot be read or do not fit together.
    """
    with jax.enable_x64(True):
        D = read_dictionary(dictionary, None)
    Y, X = open_signals(signals), datasets.open_array(codes, "X")
    check_length(signals, Y, D)
    if X.shape != (len(Y), D.shape[1]) or not len(Y):
        raise ValueError(
            f"{codes}: has shape {X.shape}; expected ({len(Y)}, {D.shape[1]}), one code for each "
            f"signal of {signals}, and at least one"
        )
    rows: list[int] = []
    for first in range(0, len(Y), _CHUNK):
        parts = (
            datasets.read_rows(array, path, first, _CHUNK)
            for array, path in ((Y, signals), (X, codes))
        )
        rows += (first + uncertified(D, *parts)).tolist()
    return CertifiedCodes(len(Y), tuple(rows))


def _advice(source: Path | str) -> str:
    """What gives codes that are not all zero."""
    if isinstance(source, Path):
        return "a smaller threshold"
    options = PURSUITS[source].options
    more = " or a larger sparsity" if "sparsity" in options else ""
    less = [name for name in _SILENCING if name in options] or ["tol"]
    return f"a smaller {' or '.join(less)}{more}"
