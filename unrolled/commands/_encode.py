"""`unrolled encode`: the codes of the signals of a file, by saved weights."""

import argparse
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import datasets, problems, training
from unrolled._files import check_writable, write_whole
from unrolled._numbers import norm
from unrolled.commands._console import show
from unrolled.commands._inputs import check_length, read_dictionary, weights_of
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer
from unrolled.networks import Network

_CHUNK = 1000  # signals at a time: fastest while their codes stay in the cache


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled encode`."""
    parser = commands.add_parser(
        "encode",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="compute codes of signals with saved weights",
        description="Run the layer or the chain of a weights file, as `unrolled train` writes it, "
        "on signals.",
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
        help="(signals, d), as .npy or .npz (entry X); of a chain the last codes as .npy, or all "
        "as .npz (entries X_1, X_2, ...)",
    )
    add(
        "--dictionary",
        type=Path,
        action="append",
        metavar="FILE",
        help="D, where the weights were saved without it, as .npy or .npz (entry D); once for each "
        "layer of a chain",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the codes, and print what they are."""
    paths = arguments.dictionary or []
    found = encode(arguments.weights, arguments.signals, arguments.output, paths)
    show(arguments.json, found.to_dict(), found.text())


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
    weights: str  # the file, or the folder with the checkpoints
    output: str

    def text(self) -> str:
        """The numbers as lines of text, one for each layer of a chain."""
        files = f"{self.weights} -> {self.output}"
        if not self.chained:
            return f"{self.signals} signals, {self.layers[0].text()}\n{files}"
        lines = [f"  layer {j}, {layer.text()}" for j, layer in enumerate(self.layers, start=1)]
        return "\n".join([f"{self.signals} signals", *lines, files])

    def to_dict(self) -> dict[str, Any]:
        """The numbers as data."""
        numbers = {"layers": self.layers} if self.chained else self.layers[0]._asdict()
        files = {"weights": self.weights, "output": self.output}
        return {"signals": self.signals, **numbers, **files}


def encode(weights: Path, signals: Path, output: Path, dictionaries: list[Path]) -> Encoded:
    """Write the codes that the layer, or the chain, of a weights file computes of signals.

    Raises:
        ValueError: files that cannot be read or do not fit together, NaN or infinite signals, an
            output that is an input.
        OSError: the output cannot be written.
        ArithmeticError: codes, or relative residuals, that are not finite; nothing is written.
    """
    weights = weights_of(weights)
    _check_output(output, [weights, signals, *dictionaries])
    model, params, D = _model(weights, dictionaries)
    chained = isinstance(model, Network)
    Ds = D if chained else (D,)
    Y = datasets.read_array(signals, "Y").astype(np.float32)
    check_length(signals, Y, Ds[0])
    if not len(Y):
        raise ValueError(f"{signals}: expected at least one signal")
    found = apply_in_chunks(model.apply, params, D, jnp.asarray(Y))
    codes = [np.asarray(X) for X in (found if chained else (found,))]
    sizes = residual_norms(Ds, Y, codes)
    for what, numbers in (("codes", codes), ("relative residuals", [sizes.T])):
        bad = np.flatnonzero(~np.all([np.isfinite(X).all(-1) for X in numbers], axis=0))
        if len(bad):
            raise ArithmeticError(
                f"encode: {len(bad)} {what} are not finite, the first of signal {bad[0]}; "
                "nothing was written"
            )
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_codes(output, codes, chained)
    layers = tuple(
        EncodedLayer(X.shape[1], float((X != 0).sum(1).mean()), float(residual))
        for X, residual in zip(codes, relative_residuals(sizes))
    )
    return Encoded(len(Y), layers, chained, str(weights), str(output))


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


def write_codes(path: Path, codes: Sequence[np.ndarray], chained: bool) -> None:
    """Write the last codes as `.npy`, or all as entries of a `.npz` file; whole or not at all."""
    names = [f"X_{j}" for j in range(1, len(codes) + 1)] if chained else ["X"]
    entries: dict[str, Any] = dict(zip(names, codes))
    with io.BytesIO() as blob:
        np.save(blob, codes[-1]) if path.suffix == ".npy" else np.savez(blob, **entries)
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
