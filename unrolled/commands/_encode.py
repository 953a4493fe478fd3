"""`unrolled encode`: saved weights on the signals of a file."""

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import datasets, problems, training
from unrolled.commands._inputs import check_length, read_dictionary
from unrolled.commands._report import check_folder
from unrolled.layers import Layer

_CHUNK = 1000  # signals at a time: fastest while their codes stay in the cache


class Encoded(NamedTuple):
    """What the command prints."""

    signals: int
    atoms: int
    mean_nonzeros: float
    relative_residual: float  # norm(Y - X D', "fro") / norm(Y, "fro")
    output: str


def encode(weights: Path, signals: Path, output: Path, dictionary: Path | None) -> Encoded:
    """Write the codes (signals, d) of the signals (signals, m) that the layer of a weights file
    computes.

    Raises:
        ValueError: files that cannot be read or do not fit together, NaN or infinite signals, an
            output that is an input.
        OSError: the output cannot be written.
        ArithmeticError: codes that are not finite; nothing is written.
    """
    if output.suffix not in (".npy", ".npz"):
        raise ValueError(f"{output}: expected a name that ends in .npy or .npz")
    if output.is_dir():
        raise IsADirectoryError(f"{output}: is a folder; expected a file to write the codes into")
    if output.exists() and any(
        path and path.exists() and output.samefile(path) for path in (weights, signals, dictionary)
    ):
        raise ValueError(
            f"{output}: is read by this command; expected another file to write the codes into"
        )
    check_folder(output.absolute().parent)  # before any work
    layer, params, D = _layer(weights, dictionary)
    Y = datasets.read_array(signals, "Y").astype(np.float32)
    check_length(signals, Y, D)
    if not len(Y):
        raise ValueError(f"{signals}: expected at least one signal")
    X = np.asarray(apply_in_chunks(layer.apply, params, D, jnp.asarray(Y)))
    bad = np.flatnonzero(~np.isfinite(X).all(1))
    if len(bad):
        raise ArithmeticError(
            f"encode: {len(bad)} codes are not finite, the first of signal {bad[0]}; nothing was written"
        )
    write_codes(output, X)
    residual = np.linalg.norm(Y - np.asarray(problems.synthesize(D, jnp.asarray(X))))
    relative = float(residual / max(np.linalg.norm(Y), np.finfo(np.float32).tiny))
    return Encoded(len(X), X.shape[1], float((X != 0).sum(1).mean()), relative, str(output))


def write_codes(path: Path, X: np.ndarray) -> None:
    """X as `.npy`, or as entry X of a `.npz` file; whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.save(file, X) if path.suffix == ".npy" else np.savez(file, X=X)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _layer(weights: Path, dictionary: Path | None):
    """The layer that a weights file speaks of, its params and the dictionary."""
    given = None if dictionary is None else read_dictionary(dictionary)
    found = training.restore(weights, D=given)
    D = found.D if given is None else given
    if D is None:
        raise ValueError(f"{weights}: has no dictionary; try --dictionary")
    if isinstance(D, tuple):
        raise ValueError(f"{weights}: not the weights of one layer: it has {len(D)} dictionaries")
    if not isinstance(found.layer, Layer):
        raise ValueError(
            f"{weights}: not the weights of one layer, as `unrolled train` writes them: it names none"
        )
    try:
        found.layer.check(found.params, D)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{weights}: its weights do not fit its layer: {error}") from error
    return found.layer, found.params, D


@partial(jax.jit, static_argnums=0)
def apply_in_chunks(apply, params, D, Y):
    """The codes (signals, d) of many signals."""
    return jax.lax.map(lambda y: apply(params, D, y), Y, batch_size=_CHUNK)
