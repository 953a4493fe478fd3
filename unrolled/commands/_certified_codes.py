"""Which codes of a file are proved to be the only ones of least l1 norm."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import datasets, pursuit, theory
from unrolled.commands._inputs import check_length, open_signals, read_dictionary
from unrolled.dictionaries import Dictionary
from unrolled.problems import synthesize

_CHUNK = 1000  # signals at a time
_SHOWN = 20  # rows that the text lists


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


def signals_of_class(
    D: Dictionary, signals: Path, sparsity: int, bound: float, noise: float
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


def uncertified(D: Dictionary, Y: np.ndarray, X: np.ndarray) -> np.ndarray:
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
