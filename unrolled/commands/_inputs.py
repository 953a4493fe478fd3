"""What a user brings: a dictionary, signals with or without codes, pictures."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks, datasets, dictionaries
from unrolled._mapped import LARGEST_BYTES, Rows
from unrolled._text import in_rows
from unrolled.dictionaries import Operator, as_dictionary
from unrolled.studies import PATCH, Pictures, photograph_patches

WEIGHTS, CHECKPOINTS = "weights.npz", "checkpoints"  # in the folder of a run
CODES = "codes.npz"  # that were made for it
_APART = 10  # norms of atoms further apart are warned of


def read_dictionary(path: Path, dtype: Any = np.float32) -> Operator:
    """D from a `.npy` or `.npz` file (entry D), in a dtype; None for that of the file.

    Raises:
        ValueError: no such array, or atoms that float32, where that is the dtype, would lose.
    """
    D = datasets.read_array(path, "D")
    if dtype == np.float32 and D.ndim == 2:
        D = in_float32(D.T, path, what="column").T
    if dtype is None:
        return as_dictionary(jnp.asarray(D), str(path))
    D = D.astype(dtype)
    _warn_of_norms(np.linalg.norm(D.astype(float), axis=0), path)
    return as_dictionary(jnp.asarray(D), str(path))


def _warn_of_norms(norms: np.ndarray, path: Path) -> None:
    """Say that atoms of different norms are not used alike."""
    norms = norms[(norms > 0) & np.isfinite(norms)]
    if norms.size and norms.max() > _APART * norms.min():
        _checks.warn(
            f"{path}: atoms have norms from {norms.min():.3g} to {norms.max():.3g}; thresholds "
            "treat them alike, so that small ones are hardly used. Try atoms of norm 1, D / norms, "
            "whose codes are norms * x"
        )


def in_float32(array: np.ndarray, path: Path, first: int = 0, what: str = "row") -> np.ndarray:
    """An array of a file, with signals or codes in its rows, in float32, where commands compute.

    Args:
        array: (rows, n).
        path: the file, for messages.
        first: the index of the first row in the file.
        what: a row of the array is in the file.

    Raises:
        ValueError: rows that become infinite, or whose entries below the least normal number, which
            are zero in most operations, are more than rounding.
    """
    cast, lost = _checks.narrowed(array)
    if len(lost):
        raise ValueError(
            f"{path}: leaves the range of float32{in_rows(lost + first, what)}, "
            "where entries become 0 or infinite; try numbers near 1"
        )
    return cast


def read_signals(
    paths: list[Path], D: Operator | None
) -> tuple[Operator, Pictures | tuple[np.ndarray, np.ndarray]]:
    """(D, (Y, X)) for signals with known codes, (D, Pictures) for others.

    Where D is None, the dictionary of pictures is an overcomplete DCT.

    Raises:
        ValueError: several array files, arrays without a dictionary, or shapes that do not fit.
    """
    if paths[0].suffix not in (".npy", ".npz"):
        return _read_pictures(paths, D)
    if len(paths) > 1:
        raise ValueError(f"compare: expected one array file with signals, got {len(paths)}")
    if D is None:
        raise ValueError("compare: signals in an array need --dictionary")
    Y = read_given(paths[0], D)
    if len(Y) < 2:
        raise ValueError(f"{paths[0]}: expected at least 2 signals, got {len(Y)}")
    X = read_codes(paths[0], Y, D)
    if X is not None:
        return D, (Y, X)
    cut = len(Y) * 4 // 5
    return D, Pictures(Y[:cut], Y[cut:], None)


def read_chain(
    paths: list[Path], Ds: tuple[Operator, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(Y, Xs) of one file, with the codes of every layer of a chain.

    Raises:
        ValueError: other files, signals without codes, or shapes that do not fit.
    """
    if len(paths) > 1 or paths[0].suffix != ".npz":
        got = " ".join(map(str, paths))
        raise ValueError(f"compare: a chain needs one .npz file with signals and codes, got {got}")
    Y = read_given(paths[0], Ds[0])
    Xs = read_chain_codes(paths[0], Y, Ds)
    if Xs is None:
        raise ValueError(f"{paths[0]}: has no codes; expected entries X_1 to X_{len(Ds)}")
    return Y, Xs


def open_signals(path: Path) -> np.ndarray:
    """`datasets.open_array` of signals.

    Raises:
        ValueError: integers, such as grey values, which are to be scaled first.
    """
    Y = datasets.open_array(path, "Y")
    if np.issubdtype(Y.dtype, np.integer):
        raise ValueError(
            f"{path}: signals are {Y.dtype}; expected real numbers near 1, try Y / 255 for grey "
            "values, and without their mean"
        )
    return Y


def read_given(path: Path, D: Operator) -> np.ndarray:
    """The signals (signals, m) of an array file, in float32.

    Raises:
        ValueError: signals that do not fit D, or that float32 would lose.
    """
    open_signals(path)
    Y = datasets.read_array(path, "Y")
    check_length(path, Y, D)
    return in_float32(Y, path)


def open_given(path: Path, D: Operator) -> np.ndarray | Rows:
    """`read_given`; of a `.npy` file that is large, or shared by processes, rows that stay there.

    Raises:
        ValueError: signals that do not fit D, in a file that is read also those that float32 loses.
    """
    Y = open_signals(path)
    if not isinstance(Y, np.memmap) or (Y.nbytes <= LARGEST_BYTES and jax.process_count() == 1):
        return read_given(path, D)
    check_length(path, Y, D)
    return Rows(Y, np.float32, f"{path}:")


def _read_pictures(paths: list[Path], D: Operator | None) -> tuple[Operator, Pictures]:
    images = {
        str(path / name if path.is_dir() else path): image
        for path in paths
        for name, image in datasets.read_images(path).items()
    }
    small = [path for path, image in images.items() if min(image.shape) < PATCH]
    if small:
        raise ValueError(f"{', '.join(small)}: smaller than a patch of {PATCH} x {PATCH}")
    pictures = photograph_patches(images)
    D = dictionaries.dct((PATCH, PATCH), (2 * PATCH, 2 * PATCH)) if D is None else D
    check_length(paths[0], pictures.testing, D)
    return D, pictures


def read_codes(path: Path, Y: np.ndarray | Rows, D: Operator) -> np.ndarray | None:
    """The codes (signals, d) of the signals Y, entry X of a `.npz` file; None if there is none.

    Raises:
        ValueError: codes that do not fit Y and D.
    """
    if path.suffix != ".npz" or "X" not in datasets.entries(path):
        return None
    X = datasets.read_array(path, "X")
    if X.shape != (len(Y), D.shape[1]):
        raise ValueError(f"{path}: codes have shape {X.shape}; expected {(len(Y), D.shape[1])}")
    return in_float32(X, path)


def weights_of(path: Path) -> Path:
    """A file of weights, as it is or in the folder of a run; before its end, its checkpoints."""
    inside = (path / WEIGHTS, path / CHECKPOINTS)
    return next((file for file in inside if file.exists()), path)


def read_chain_codes(
    path: Path, Y: np.ndarray | Rows, Ds: tuple[Operator, ...]
) -> tuple[np.ndarray, ...] | None:
    """The codes of every layer, entries X_1 .. X_J of a `.npz` file; None if there is none.

    Raises:
        ValueError: some layers without codes, or codes that do not fit Y and Ds.
    """
    names = [f"X_{j}" for j in range(1, len(Ds) + 1)]
    entries = datasets.entries(path) if path.suffix == ".npz" else []
    if not set(names) & set(entries):
        return None
    missing = [name for name in names if name not in entries]
    if missing:
        raise ValueError(f"{path}: has no {', '.join(missing)}; expected {', '.join(names)}")
    Xs = tuple(datasets.read_array(path, name) for name in names)
    for name, X, D in zip(names, Xs, Ds):
        if X.shape != (len(Y), D.shape[1]):
            raise ValueError(f"{path}: {name} has shape {X.shape}; expected {(len(Y), D.shape[1])}")
    return tuple(in_float32(X, path) for X in Xs)


def check_length(path: Path, Y: np.ndarray, D: Operator) -> None:
    """Raise ValueError unless Y is (signals, m)."""
    if Y.ndim == 2 and Y.shape[1] == D.shape[0]:
        return
    hint = ""
    if Y.ndim == 2 and len(Y) == D.shape[0]:
        hint = " The signals seem to be in columns: transpose them."
    raise ValueError(
        f"{path}: signals have shape {Y.shape}; "
        f"expected (signals, {D.shape[0]}) for D {D.shape}.{hint}"
    )
