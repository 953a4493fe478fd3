"""`unrolled encode`: the codes of the signals of a file, by saved weights."""

import argparse
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import datasets, problems, training
from unrolled._files import check_writable, write_whole
from unrolled._numbers import norm
from unrolled.commands._console import show
from unrolled.commands._inputs import check_length, read_dictionary, weights_of
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer

_CHUNK = 1000  # signals at a time: fastest while their codes stay in the cache


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled encode`."""
    parser = commands.add_parser(
        "encode",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="compute codes of signals with saved weights",
        description="Run the layer of a weights file, as `unrolled train` writes it, on signals.",
        epilog="examples:\n  unrolled encode run/weights.npz Y.npy --output codes.npy\n"
        "  unrolled encode --import my_module run/weights.npz Y.npy --output codes.npy",
    )
    add = parser.add_argument
    add(
        "weights",
        type=Path,
        metavar="WEIGHTS",
        help="written by `unrolled train`, or the folder of a run: before its end, the best params "
        "at its newest checkpoint",
    )
    add("signals", type=Path, metavar="SIGNALS", help="(signals, m), as .npy or .npz (entry Y)")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="CODES",
        help="(signals, d), as .npy or .npz (entry X)",
    )
    add(
        "--dictionary",
        type=Path,
        metavar="FILE",
        help="D, where the weights were saved without it, as .npy or .npz (entry D)",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the codes, and print what they are."""
    found = encode(arguments.weights, arguments.signals, arguments.output, arguments.dictionary)
    text = (
        f"{found.signals} signals, {found.atoms} atoms: {found.mean_nonzeros:.1f} nonzeros on "
        f"average, relative residual {found.relative_residual:.4g}\n"
        f"{found.weights} -> {found.output}"
    )
    show(arguments.json, found, text)


class Encoded(NamedTuple):
    """What the command prints."""

    signals: int
    atoms: int
    mean_nonzeros: float
    relative_residual: float  # norm(Y - X D', "fro") / norm(Y, "fro")
    weights: str  # the file, or the folder with the checkpoints
    output: str


def encode(weights: Path, signals: Path, output: Path, dictionary: Path | None) -> Encoded:
    """Write the codes (signals, d) that the layer of a weights file computes of signals.

    Raises:
        ValueError: files that cannot be read or do not fit together, NaN or infinite signals, an
            output that is an input.
        OSError: the output cannot be written.
        ArithmeticError: codes, or relative residuals, that are not finite; nothing is written.
    """
    weights = weights_of(weights)
    _check_output(output, [path for path in (weights, signals, dictionary) if path is not None])
    layer, params, D = _layer(weights, dictionary)
    Y = datasets.read_array(signals, "Y").astype(np.float32)
    check_length(signals, Y, D)
    if not len(Y):
        raise ValueError(f"{signals}: expected at least one signal")
    X = apply_in_chunks(layer.apply, params, D, jnp.asarray(Y))
    size, residual = _norms(D, jnp.asarray(Y), X)
    X, measured = np.asarray(X), np.isfinite(size) & np.isfinite(residual)
    for what, good in (("codes", np.isfinite(X).all(1)), ("relative residuals", measured)):
        bad = np.flatnonzero(~good)
        if len(bad):
            raise ArithmeticError(
                f"encode: {len(bad)} {what} are not finite, the first of signal {bad[0]}; "
                "nothing was written"
            )
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_codes(output, X)
    relative = float(np.linalg.norm(residual) / (np.linalg.norm(size) or 1))
    nonzeros = float((X != 0).sum(1).mean())
    return Encoded(len(X), X.shape[1], nonzeros, relative, str(weights), str(output))


def _norms(D: Dictionary, Y: jax.Array, X: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """norm(y) and norm(y - D x) of every signal, in float64."""
    both = norm(Y, 1), norm(Y - problems.synthesize(D, X), 1)
    return np.asarray(both[0], float), np.asarray(both[1], float)


def write_codes(path: Path, X: np.ndarray) -> None:
    """Write X as `.npy`, or as entry X of a `.npz` file; whole or not at all."""
    with io.BytesIO() as blob:
        np.save(blob, X) if path.suffix == ".npy" else np.savez(blob, X=X)
        write_whole(path, blob.getvalue())


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


def _layer(weights: Path, dictionary: Path | None) -> tuple[Layer, Any, Dictionary]:
    """The layer of a weights file, its params and the dictionary."""
    given = None if dictionary is None else read_dictionary(dictionary)
    found = training.restore(weights, D=given)
    D = found.D if given is None else given
    if D is None:
        raise ValueError(f"{weights}: has no dictionary; try --dictionary")
    if isinstance(D, tuple):
        raise ValueError(f"{weights}: not the weights of one layer: it has {len(D)} dictionaries")
    if not isinstance(found.layer, Layer):
        raise ValueError(
            f"{weights}: not the weights of one layer: it names no layer, as `unrolled train` does"
        )
    try:
        found.layer.check(found.params, D)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{weights}: its weights do not fit its layer: {error}") from error
    return found.layer, found.params, D


@partial(jax.jit, static_argnums=0)
def apply_in_chunks(apply: Callable, params: Any, D: Dictionary, Y: jax.Array) -> jax.Array:
    """The codes (signals, d) of many signals (signals, m)."""
    return jax.lax.map(lambda y: apply(params, D, y), Y, batch_size=_CHUNK)
