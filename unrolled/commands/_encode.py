"""`unrolled encode`: the codes of the signals of a file, by saved weights or by a pursuit."""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import datasets, problems, training
from unrolled._files import check_writable
from unrolled._numbers import norm
from unrolled._pursuits import (
    CHAIN,
    PURSUITS,
    ROUNDINGS,
    check_dictionaries,
    check_options,
    is_relative,
    pursue,
)
from unrolled._text import in_rows
from unrolled.commands._certified_codes import CertifiedCodes, uncertified
from unrolled.commands._console import Say, show, teller
from unrolled.commands._inputs import (
    check_length,
    in_float32,
    open_signals,
    read_dictionary,
    weights_of,
)
from unrolled.commands._partial import partial_arrays
from unrolled.commands._pursuit_options import add_options, given_options, names
from unrolled.dictionaries import Dictionary, as_chain
from unrolled.layers import Layer
from unrolled.networks import Network

_CHUNK = 1000  # signals at a time: fastest while their codes stay in the cache
_PERIOD = 5.0  # seconds between two lines of progress


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled encode`."""
    parser = commands.add_parser(
        "encode",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="compute codes of signals with saved weights or a pursuit",
        description="Run the layer or the chain of a weights file, as `unrolled train` writes it, "
        "on signals,\nor a pursuit with --method. A .npy file can hold any number of signals. "
        "Where nothing\nis in the units of the signals, as with --ratio or --sparsity alone, a "
        "signal whose norm is below\n8 roundings of the largest one in float32 is zero beside it: "
        "it is coded as zero, and counted.",
        epilog="examples:\n  unrolled encode run/weights.npz Y.npy --output codes.npy\n"
        "  unrolled encode --method omp --sparsity 5 --dictionary D.npy Y.npy --output codes.npy\n"
        "  unrolled encode --import my_module run/weights.npz Y.npy --output codes.npy",
    )
    add = parser.add_argument
    add(
        "weights",
        type=Path,
        nargs="?",
        metavar="WEIGHTS",
        help="written by `unrolled train`, or the folder of a run: before its end, the best params "
        "at its newest checkpoint; none with --method",
    )
    add("signals", type=Path, metavar="SIGNALS", help="(signals, m), as .npy or .npz (entry Y)")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="CODES",
        help="(signals, d), as .npy or .npz (entry X); of a chain the last codes as .npy, or all "
        "as .npz (entries X_1, X_2, ...)",
    )
    add(
        "--dictionary",
        type=Path,
        action="append",
        metavar="FILE",
        help="D, of a pursuit or where the weights were saved without it, as .npy or .npz (entry "
        "D); once for each layer of a chain",
    )
    add("--method", metavar="PURSUIT", help=f"one of {', '.join(names())}")
    add(
        "--certify",
        action="store_true",
        help="also tell which codes, after least squares on their supports, are proved to be the "
        "only ones of least l1 norm; of one dictionary; a .npz file has them as the entry "
        "certified, (signals, 1), of 1 and 0",
    )
    add_options(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the codes, and print what they are."""
    paths, options = arguments.dictionary or [], given_options(arguments)
    found = encode(
        _check_source(arguments.weights, arguments.method, options, paths),
        arguments.signals,
        arguments.output,
        paths,
        options,
        teller(),
        certify=arguments.certify,
    )
    show(arguments.json, found.to_dict(), found.text())


def _check_source(
    weights: Path | None, method: str | None, options: dict[str, Any], paths: list[Path]
) -> Path | str:
    """The weights, or the name of a pursuit; ValueError unless it is one of them."""
    if method is None:
        if weights is None:
            raise ValueError("encode: expected WEIGHTS and SIGNALS, or --method and SIGNALS")
        if options:
            raise ValueError(f"encode: --{', --'.join(options)} needs --method")
        return weights_of(weights)
    if weights is not None:
        raise ValueError(f"encode: --method takes no weights, got {weights}")
    if method not in names():
        raise ValueError(f"encode: unknown method {method!r}; expected one of {', '.join(names())}")
    check_options(method, options, "encode")
    if not paths:
        raise ValueError("encode: --method needs --dictionary")
    check_dictionaries(method, len(paths), "encode")
    return method


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
            small = "lam, ratio or threshold" if isinstance(self.source, str) else "threshold"
            lines.append(f"all codes are zero: try a smaller {small}")
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


class _Coder(NamedTuple):
    """What computes codes."""

    codes: Callable[
        [np.ndarray], tuple[Sequence[ArrayLike], np.ndarray]
    ]  # and which miss their aim
    Ds: tuple[Dictionary, ...]
    chained: bool


def encode(
    source: Path | str,
    signals: Path,
    output: Path,
    dictionaries: list[Path],
    options: dict[str, Any],
    say: Say,
    certify: bool = False,
) -> Encoded:
    """Write the codes of signals, chunk by chunk.

    Without an aim in the units of the signals, such as with a ratio or a sparsity, rounding would
    be coded like a signal. So a signal is then zero whose norm is below some roundings of the
    largest one.

    Args:
        source: weights, whose layer or chain computes the codes; or the name of a pursuit.
        signals, output: files.
        dictionaries: files.
        options: of the pursuit.
        say: told the progress.
        certify: whether `theory.certify_code` is asked about the codes.

    Raises:
        ValueError: a chain to certify, files that cannot be read or do not fit together, NaN or
            infinite signals, or such that float32 would lose, an output that is an input, options
            that a pursuit refuses.
        OSError: the output cannot be written.
        ArithmeticError: codes, or relative residuals, that are not finite; nothing is written.
    """
    inputs = [source] if isinstance(source, Path) else []
    _check_output(output, [*inputs, signals, *dictionaries])
    coder = (
        _of_weights(source, dictionaries)
        if isinstance(source, Path)
        else _of_pursuit(source, dictionaries, options)
    )
    if certify and len(coder.Ds) > 1:
        raise ValueError(f"encode: --certify is for one dictionary, got {len(coder.Ds)}")
    Y = open_signals(signals)
    check_length(signals, Y, coder.Ds[0])
    if not len(Y):
        raise ValueError(f"{signals}: expected at least one signal")
    J = len(coder.Ds)
    entries = [f"X_{j}" for j in range(1, J + 1)] if coder.chained else ["X"]
    shapes = {name: (len(Y), D.shape[1]) for name, D in zip(entries, coder.Ds)}
    if certify:  # first: a .npy file has the last array alone
        shapes = {"certified": (len(Y), 1), **shapes}
    relative = isinstance(source, str) and is_relative(source, options)
    least = _least_norm(Y, signals) if relative else 0.0
    nonzeros, squares, told = np.zeros(J), np.zeros(J + 1), time.monotonic()
    missed: list[int] = []
    unproved: list[int] = []
    zeros = 0
    with partial_arrays(output, shapes) as append:
        for first in range(0, len(Y), _CHUNK):
            rows = _rows(Y, signals, first)
            nothing = (_norms(rows) < least) & rows.any(1)
            found, more = coder.codes(np.where(nothing[:, None], np.float32(0), rows))
            codes = [np.asarray(X) for X in found]
            norms = residual_norms(coder.Ds, rows, codes)
            _check_finite(codes, norms, first)
            columns = dict(zip(entries, codes))
            if certify:
                missing = uncertified(coder.Ds[0], rows, codes[0])
                unproved += (first + missing).tolist()
                columns["certified"] = np.isin(np.arange(len(rows)), missing, invert=True)[:, None]
            append(columns)
            nonzeros += [np.count_nonzero(X) for X in codes]
            squares += (norms**2).sum(1)
            missed += [int(row) + first for row in more]
            zeros += int(nothing.sum())
            if time.monotonic() - told > _PERIOD:
                told = time.monotonic()
                say(f"{first + len(rows):,} of {len(Y):,} signals")
    size, *residuals = np.sqrt(squares)
    layers = tuple(
        EncodedLayer(D.shape[1], float(count) / len(Y), float(residual / (size or 1)))
        for D, count, residual in zip(coder.Ds, nonzeros, residuals)
    )
    proved = CertifiedCodes(len(Y), tuple(unproved)) if certify else None
    return Encoded(len(Y), layers, coder.chained, source, tuple(missed), zeros, str(output), proved)


def _rows(Y: np.ndarray, path: Path, first: int) -> np.ndarray:
    return in_float32(datasets.read_rows(Y, path, first, _CHUNK), path, first)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows.astype(float), axis=1)


def _least_norm(Y: np.ndarray, path: Path) -> float:
    """The norm below which a signal of the file is zero beside the largest."""
    largest = max(_norms(_rows(Y, path, first)).max() for first in range(0, len(Y), _CHUNK))
    return ROUNDINGS * float(np.finfo(np.float32).eps) * float(largest)


def _check_finite(codes: Sequence[np.ndarray], norms: np.ndarray, first: int) -> None:
    """Raise ArithmeticError for codes or residuals of a chunk that are not finite."""
    for what, numbers in (("codes", codes), ("relative residuals", [norms.T])):
        bad = np.flatnonzero(~np.all([np.isfinite(X).all(-1) for X in numbers], axis=0))
        if len(bad):
            among = f" among signals {first} to {first + len(norms.T) - 1}" if first else ""
            raise ArithmeticError(
                f"encode: {len(bad)} {what} are not finite{among}, the first of signal "
                f"{first + bad[0]}; nothing was written"
            )


def _of_weights(weights: Path, dictionaries: list[Path]) -> _Coder:
    model, params, D = _model(weights, dictionaries)
    chained = isinstance(model, Network)

    def codes(rows):
        found = apply_in_chunks(model.apply, params, D, jnp.asarray(rows))
        return found if chained else (found,), np.zeros(0, int)

    return _Coder(codes, D if chained else (D,), chained)


def _of_pursuit(name: str, dictionaries: list[Path], options: dict[str, Any]) -> _Coder:
    Ds = as_chain([read_dictionary(path) for path in dictionaries], "encode")

    def codes(rows):
        coded = pursue(name, Ds, jnp.asarray(rows), options)
        return coded.codes, coded.rows

    return _Coder(codes, Ds, PURSUITS[name].takes == CHAIN)


def residual_norms(
    Ds: Sequence[Dictionary], Y: ArrayLike, codes: Sequence[ArrayLike]
) -> np.ndarray:
    """norm(y) and then norm(y - D_1 ... D_j x_j) for every layer, (J + 1, signals), float64."""
    Y = jnp.asarray(Y)
    found = [norm(Y, 1)]
    for j, X in enumerate(codes, start=1):
        signals = jnp.asarray(X)
        for D in reversed(Ds[:j]):
            signals = problems.synthesize(D, signals)
        found.append(norm(Y - signals, 1))
    return np.asarray(found, float)


def relative_residuals(norms: np.ndarray) -> np.ndarray:
    """norm(Y - D_1 ... D_j X_j) / norm(Y) of every layer, (J,), from those of the signals."""
    size, *residuals = np.linalg.norm(norms, axis=1)
    return np.asarray(residuals) / (size or 1)


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


def _model(weights: Path, dictionaries: list[Path]) -> tuple[Layer | Network, Any, Any]:
    """The layer or the chain of a weights file, its params and the dictionary or dictionaries."""
    found = restore_model(weights, dictionaries)
    model: Any = found.layer
    try:
        model.check(found.params, found.D)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{weights}: its weights do not fit its layer: {error}") from error
    return model, found.params, found.D


def restore_model(
    weights: Path, dictionaries: list[Path], advice: str = "--dictionary"
) -> training.Restored:
    """What `training.restore` returns, with a model and the dictionary or dictionaries.

    Raises:
        ValueError: weights without a layer, or without a dictionary where none is given; several
            dictionaries for one layer.
    """
    found = training.restore(weights)
    if found.layer is None:
        raise ValueError(f"{weights}: it names no layer, as the files of `unrolled train` do")
    if dictionaries:
        given: Any = tuple(map(read_dictionary, dictionaries))
        if isinstance(found.layer, Layer):
            if len(given) > 1:
                raise ValueError(f"{weights}: its layer has one dictionary, got {len(given)}")
            given = given[0]
        found = training.restore(weights, D=given)
        return found._replace(D=given)
    if found.D is None:
        raise ValueError(f"{weights}: has no dictionary; try {advice}")
    return found


@partial(jax.jit, static_argnums=0)
def apply_in_chunks(apply: Callable, params: Any, D: Any, Y: jax.Array) -> Any:
    """The codes (signals, d) of many signals (signals, m); of a network a tuple of them."""
    return jax.lax.map(lambda y: apply(params, D, y), Y, batch_size=_CHUNK)
