"""What `unrolled encode` says of the codes that it has written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unrolled._text import in_rows
from unrolled.commands._certified_codes import CertifiedCodes


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
    shard: str = ""  # "3/8"
    rows: tuple[int, int] | None = None  # of the shard: the first, and the one after its last

    def text(self) -> str:
        """The numbers as lines of text, one for each layer of a chain."""
        lines = [f"{self.signals} signals, {self.layers[0].text()}"]
        if self.chained:
            layers = enumerate(self.layers, start=1)
            lines = [f"{self.signals} signals", *(f"  layer {j}, {x.text()}" for j, x in layers)]
        if not self.layers[-1].mean_nonzeros and self.layers[-1].relative_residual:
            small = "lam, ratio or threshold" if isinstance(self.source, str) else "threshold"
            lines.append(f"all codes are zero: try a smaller {small}")
        if self.missed:
            lines.append(f"codes above their tolerance{in_rows(np.asarray(self.missed))}:")
            lines.append(f"{len(self.missed)} codes miss the tolerance of {self.source}")
        if self.zeros:
            beside = "zero beside the largest, to the rounding of float32"
            lines.append(f"{self.zeros} signals are {beside}: coded as zero")
        lines += [] if self.certified is None else [self.certified.text()]
        if self.rows is not None:
            n = self.shard.partition("/")[2]
            span = f"rows {self.rows[0]} to {self.rows[1] - 1}"
            lines.append(f"shard {self.shard}, {span}; --join {n} puts all shards together")
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
        of |= {} if self.rows is None else {"shard": self.shard, "rows": list(self.rows)}
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
