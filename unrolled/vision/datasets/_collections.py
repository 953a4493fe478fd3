"""Digits, MNIST, CIFAR-10, synthetic pictures, and the search for the folders of collections."""

import gzip
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from unrolled._base.doors import Result, checked
from unrolled._base.packages import absent
from unrolled.vision.datasets._arrays import open_array

__all__ = ["Images", "cifar10", "digits", "mnist"]


@checked
def locate(name: str, root: str | Path | None = None) -> Path:
    """The folder of a data collection.

    Args:
        name: name of the folder.
        root: folder that contains the folder `name`; by default the value of the environment
            variable UNROLLED_DATA.

    Raises:
        FileNotFoundError: no root is known, or the folder does not exist.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as root:
        ...     pathlib.Path(root, "digits").mkdir()
        ...     ur.vision.datasets.locate("digits", root).name
        'digits'
    """
    root = root or os.environ.get("UNROLLED_DATA")
    if not root:
        raise FileNotFoundError(
            f"{name}: no root given; pass a path or set UNROLLED_DATA to the folder that holds it"
        )
    if not (Path(root) / name).is_dir():
        raise FileNotFoundError(f"{Path(root) / name}: no such folder")
    return Path(root) / name


def find(name: str, root: str | Path | None, files: Iterable[str], source: str) -> Path:
    """The folder that contains all of the files: the folder `name` in the root, or the root.

    Args:
        name, root: as in `locate`.
        files: names of the files; all of the files must exist.
        source: the name and the source of the collection, for messages.

    Raises:
        FileNotFoundError: no root is known, the folder does not exist, or files are missing.
    """
    files = list(files)
    root = root or os.environ.get("UNROLLED_DATA")
    if root and any((Path(root) / file).is_file() for file in files):
        folder = Path(root)
    else:
        try:
            folder = locate(name, root)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; expected {source}") from None
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} missing; expected {source}")
    return folder


_DIGITS_TRAIN = 1437


class Images(Result):
    """Labelled pictures, split for training and testing.

    Attributes:
        name: name of the collection.
        train, test: pairs (X, labels) of pictures (N, H, W, C), uint8, and classes (N,), int32.
        classes: the names of the classes, in the order of the labels.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: tuple[str, ...]


def as_labels(labels: np.ndarray, n_classes: int, where: object) -> np.ndarray:
    """Labels as int32.

    Raises:
        ValueError: a label is outside 0..n_classes - 1; the message has the index of the label.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if wrong.size:
        raise ValueError(
            f"{where}: label {labels[wrong[0]]} at {wrong[0]}; expected 0..{n_classes - 1}"
        )
    return labels.astype(np.int32)


def digits() -> Images:
    """Handwritten digits, 8 x 8 x 1, from the files installed with scikit-learn.

    The grey values 0..16 are scaled to 0..255 and rounded. In the order of scikit-learn, the first
    1,437 pictures are for training, and the last 360 pictures are for testing.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: the test part of "Optical recognition of handwritten digits", Alpaydin and Kaynak, UCI
    repository, 1998.

    Example:
        >>> digits = ur.vision.datasets.digits()
        >>> digits.train[0].shape, digits.test[0].shape, digits.test[1][:5].tolist()
        ((1437, 8, 8, 1), (360, 8, 8, 1), [2, 3, 4, 5, 6])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise absent("the digits", "sklearn") from error
    bundle = load_digits()
    X = np.round(bundle.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = bundle.target.astype(np.int32)
    train, test = (
        (X[:_DIGITS_TRAIN], labels[:_DIGITS_TRAIN]),
        (X[_DIGITS_TRAIN:], labels[_DIGITS_TRAIN:]),
    )
    return Images("digits", train, test, tuple(map(str, range(10))))


_MNIST_TRAIN, _N_TEST = 60_000, 10_000
_FOLDERS = ("", "mnist", "MNIST/raw")  # paths relative to the root
_NPZ = "mnist.npz"
_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MNIST_SOURCE = (
    f"MNIST, {_NPZ} with x_train, y_train, x_test and y_test, or {', '.join(_IDX)}, each with or "
    "without .gz, from http://yann.lecun.com/exdb/mnist/"
)


@checked
def mnist(root: str | Path | None = None) -> Images:
    """MNIST: handwritten digits 28 x 28 x 1, 60,000 for training and 10,000 for testing.

    Args:
        root: the file `mnist.npz`, or a folder; by default the value of the environment variable
            UNROLLED_DATA. The folder, or the folder `mnist` or `MNIST/raw` in this folder, contains
            `mnist.npz` or the four IDX files (plain or compressed by gzip).

    Raises:
        FileNotFoundError: no root is known, or a file is missing.
        ValueError: a file is damaged, an array has another shape or type, or a label is outside
            0..9.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE 1998.

    Example:
        >>> try:
        ...     ur.vision.datasets.mnist("no/such/folder")
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
            f"mnist: no root given; pass a path or set UNROLLED_DATA; expected {_MNIST_SOURCE}"
        )
    if Path(root).is_file() and Path(root).suffix == ".npz":
        return Path(root)
    for folder in (Path(root) / name for name in _FOLDERS):
        if (folder / _NPZ).is_file():
            return folder / _NPZ
        if any(_idx_file(folder, name) for name in _IDX):
            return folder
    raise FileNotFoundError(f"{root}: no MNIST in it; expected {_MNIST_SOURCE}")


def _shapes() -> tuple[tuple[int, ...], ...]:
    """The shapes of the training pictures and labels, and of the test pictures and labels."""
    return (_MNIST_TRAIN, 28, 28), (_MNIST_TRAIN,), (_N_TEST, 28, 28), (_N_TEST,)


def _of_npz(path: Path) -> list[np.ndarray]:
    arrays = []
    for name, shape in zip(("x_train", "y_train", "x_test", "y_test"), _shapes()):
        array = open_array(path, name)
        fits = array.dtype == np.uint8 if len(shape) > 1 else array.dtype.kind in "iu"
        if array.shape != shape or not fits:
            raise ValueError(
                f"{path}: {name} is {array.dtype} {array.shape}; expected {shape} in uint8, as in "
                f"{_MNIST_SOURCE}"
            )
        arrays.append(array)
    return arrays


def _of_idx(folder: Path) -> list[np.ndarray]:
    paths = {name: _idx_file(folder, name) for name in _IDX}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} missing; expected {_MNIST_SOURCE}")
    return [_read_idx(path, shape) for path, shape in zip(paths.values(), _shapes()) if path]


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file with this name, plain or compressed."""
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The entries of an IDX file, which has a magic number, 32 bits per dimension, and entries."""
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)
    size = len(header) + int(np.prod(shape))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            blob = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: not a readable file ({error}); expected {_MNIST_SOURCE}"
        ) from error
    if blob[: len(header)] != header:
        raise ValueError(
            f"{path}: the header does not describe {shape} bytes; expected a file of "
            f"{_MNIST_SOURCE}"
        )
    if len(blob) != size:
        got = f"{len(blob)} bytes" if len(blob) < size else f"more than {size} bytes"
        raise ValueError(f"{path}: {got}; expected {size}, a file of {_MNIST_SOURCE}")
    return np.frombuffer(bytearray(blob), np.uint8, offset=len(header)).reshape(shape)


_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = "test_batch.bin"
_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
_CIFAR10_SOURCE = (
    f"the binary version of CIFAR-10, {_FOLDER}/ with {_TRAIN[0]} to {_TRAIN[-1]} and {_TEST}, "
    "from https://www.cs.toronto.edu/~kriz/cifar.html"
)
_RECORDS = 10_000  # number of records in a file
_BYTES = 1 + 3 * 32 * 32  # a record has the label, then red, green and blue, row by row


@checked
def cifar10(root: str | Path | None = None) -> Images:
    """CIFAR-10: pictures 32 x 32 x 3 of ten classes, 50,000 for training and 10,000 for testing.

    Args:
        root: the folder `cifar-10-batches-bin` of official files, or the folder that contains
            `cifar-10-batches-bin`; by default the value of the environment variable UNROLLED_DATA.

    Returns:
        The pictures and labels in the order of the files. The arrays take about 180 MB.

    Raises:
        FileNotFoundError: no root is known, or a folder or file is missing.
        ValueError: a file has another length, or a label is outside 0..9.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    Not claimed: that the pictures are intact. The reader checks only the lengths of the files and
    the labels.

    Example:
        >>> try:
        ...     ur.vision.datasets.cifar10("no/such/folder")
        ... except FileNotFoundError as error:
        ...     print(str(error)[:57])
        no/such/folder/cifar-10-batches-bin: no such folder; expe
    """
    folder = find(_FOLDER, root, (*_TRAIN, _TEST), _CIFAR10_SOURCE)
    X, labels = zip(*(_records(folder / name) for name in _TRAIN))
    train = np.concatenate(X), np.concatenate(labels)
    return Images("cifar10", train, _records(folder / _TEST), tuple(_CLASSES))


def _records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pictures and labels of a file."""
    size, expected = path.stat().st_size, _RECORDS * _BYTES
    if size != expected:
        raise ValueError(
            f"{path}: {size} bytes; expected {expected}, {_RECORDS} records of {_BYTES} bytes as "
            f"in {_CIFAR10_SOURCE}"
        )
    records = np.fromfile(path, np.uint8).reshape(_RECORDS, _BYTES)
    labels = as_labels(records[:, 0], len(_CLASSES), path)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


_SHAPES_TRAIN, _SHAPES_TEST = 160, 40
_CORNERS = (3, 7)  # a polygon has 3 to 6 corners
_GRAIN = 12.0  # standard deviation of the noise on grey values from 0 to 255


@checked
def shapes(
    side: int, *, train: int = _SHAPES_TRAIN, test: int = _SHAPES_TEST, seed: int = 0
) -> Images:
    """Pictures of an ellipse or a convex polygon on a textured background, with masks of the shape.

    The pictures are synthetic. Scores on these pictures show whether a network trains but do not
    predict scores on photographs.

    Args:
        side: side of a picture in pixels.
        train, test: numbers of pictures for training and for testing.
        seed: seed of all draws.

    Example:
        >>> from unrolled.vision.experiments import shapes
        >>> X, M = shapes(32).train
        >>> X.shape, M.shape, bool(M.any((1, 2)).all())
        ((160, 32, 32, 3), (160, 32, 32), True)
    """
    rng = np.random.default_rng(seed)
    X, M = map(np.stack, zip(*(_picture(rng, side) for _ in range(train + test))))
    return Images("shapes", (X[:train], M[:train]), (X[train:], M[train:]), ())


def _picture(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (side, side, 3) and its mask."""
    mask = (_ellipse if rng.random() < 0.5 else _polygon)(rng, side)
    ground, shape = _texture(rng, side), _texture(rng, side)
    picture = np.where(mask[..., None], shape, ground) + rng.normal(0, _GRAIN, (side, side, 3))
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """A random colour plus a sine wave of random direction and wavelength."""
    u, v = _grid(side)
    phase = rng.uniform(-25, 25, 2) @ np.stack([u.ravel(), v.ravel()]) + rng.uniform(0, 2 * np.pi)
    wave = np.sin(phase).reshape(side, side, 1)
    return rng.uniform(40, 215, 3) + rng.uniform(-40, 40, 3) * wave


def _ellipse(rng: np.random.Generator, side: int) -> np.ndarray:
    u, v = _turned(rng, side)
    a, b = rng.uniform(0.12, 0.35, 2)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def _polygon(rng: np.random.Generator, side: int) -> np.ndarray:
    """True at the points inside a polygon whose edges touch a circle."""
    u, v = _turned(rng, side)
    n, radius = rng.integers(*_CORNERS), rng.uniform(0.1, 0.25)
    angles = 2 * np.pi * np.arange(n) / n
    return np.max([np.cos(a) * u + np.sin(a) * v for a in angles], axis=0) <= radius


def _turned(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates about a random centre, rotated by a random angle, for a picture of side 1."""
    u, v = _grid(side)
    centre, angle = rng.uniform(0.3, 0.7, 2), rng.uniform(0, 2 * np.pi)
    u, v = u - centre[0], v - centre[1]
    return np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and column coordinates of the pixel centres, in [0, 1]."""
    at = (np.arange(side) + 0.5) / side
    row, column = np.meshgrid(at, at, indexing="ij")
    return row, column
