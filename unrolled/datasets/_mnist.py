"""MNIST, as one `.npz` file or as the four IDX files."""

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from unrolled._arguments import checked
from unrolled.datasets._arrays import open_array
from unrolled.datasets._images import Images, as_labels

_N_TRAIN, _N_TEST = 60_000, 10_000
_FOLDERS = ("", "mnist", "MNIST/raw")  # below the root
_NPZ = "mnist.npz"
_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_SOURCE = (
    f"MNIST, {_NPZ} with x_train, y_train, x_test and y_test, or {', '.join(_IDX)}, each with or "
    "without .gz, from http://yann.lecun.com/exdb/mnist/"
)


@checked
def mnist(root: str | Path | None = None) -> Images:
    """MNIST: 60,000 and 10,000 handwritten digits 28 x 28 x 1.

    Args:
        root: the file `mnist.npz`, the folder that holds it or the four IDX files (as they are, or
            compressed by gzip), or one with such a folder, `mnist` or `MNIST/raw`; by default the
            value of the environment variable UNROLLED_DATA.

    Raises:
        FileNotFoundError: no root is known, or a file is missing.
        ValueError: a damaged file, an array of another shape or type, or a label outside 0..9.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE 1998.

    Example:
        >>> try:
        ...     ur.datasets.mnist("no/such/folder")
        ... except FileNotFoundError as error:
        ...     print(str(error)[:40])
        no/such/folder: no MNIST in it; expected
    """
    path = _locate(root)
    arrays = _of_npz(path) if path.suffix == ".npz" else _of_idx(path)
    train, test = (
        (X[..., None], as_labels(labels, 10, path)) for X, labels in (arrays[:2], arrays[2:])
    )
    return Images("mnist", train, test, tuple(map(str, range(10))))


def _locate(root: str | Path | None) -> Path:
    """The `.npz` file, or the folder of the IDX files."""
    root = root or os.environ.get("UNROLLED_DATA")
    if not root:
        raise FileNotFoundError(
            f"mnist: no root given; pass a path or set UNROLLED_DATA; expected {_SOURCE}"
        )
    if Path(root).is_file() and Path(root).suffix == ".npz":
        return Path(root)
    for folder in (Path(root) / name for name in _FOLDERS):
        if (folder / _NPZ).is_file():
            return folder / _NPZ
        if any(_idx_file(folder, name) for name in _IDX):
            return folder
    raise FileNotFoundError(f"{root}: no MNIST in it; expected {_SOURCE}")


def _shapes() -> tuple[tuple[int, ...], ...]:
    """Of the pictures and labels for training, and of those for testing."""
    return (_N_TRAIN, 28, 28), (_N_TRAIN,), (_N_TEST, 28, 28), (_N_TEST,)


def _of_npz(path: Path) -> list[np.ndarray]:
    arrays = []
    for name, shape in zip(("x_train", "y_train", "x_test", "y_test"), _shapes()):
        array = open_array(path, name)
        fits = array.dtype == np.uint8 if len(shape) > 1 else array.dtype.kind in "iu"
        if array.shape != shape or not fits:
            raise ValueError(
                f"{path}: {name} is {array.dtype} {array.shape}; expected {shape} in uint8, as in "
                f"{_SOURCE}"
            )
        arrays.append(array)
    return arrays


def _of_idx(folder: Path) -> list[np.ndarray]:
    paths = {name: _idx_file(folder, name) for name in _IDX}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} missing; expected {_SOURCE}")
    return [_read_idx(path, shape) for path, shape in zip(paths.values(), _shapes()) if path]


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file of this name, as it is or compressed."""
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of an IDX file: its magic number, its shape in 32 bits each, its entries."""
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)
    size = len(header) + int(np.prod(shape))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            blob = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable file ({error}); expected {_SOURCE}") from error
    if blob[: len(header)] != header:
        raise ValueError(
            f"{path}: the header is not that of {shape} bytes; expected a file of {_SOURCE}"
        )
    if len(blob) != size:
        got = f"{len(blob)} bytes" if len(blob) < size else f"more than {size} bytes"
        raise ValueError(f"{path}: {got}; expected {size}, a file of {_SOURCE}")
    return np.frombuffer(bytearray(blob), np.uint8, offset=len(header)).reshape(shape)
