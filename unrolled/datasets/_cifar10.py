"""CIFAR-10 in its binary version."""

from pathlib import Path

import numpy as np

from unrolled._arguments import checked
from unrolled.datasets._images import Images, as_labels
from unrolled.datasets._locate import find

_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = "test_batch.bin"
_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
_SOURCE = (
    f"the binary version of CIFAR-10, {_FOLDER}/ with {_TRAIN[0]} to {_TRAIN[-1]} and {_TEST}, "
    "from https://www.cs.toronto.edu/~kriz/cifar.html"
)
_RECORDS = 10_000  # in a file
_BYTES = 1 + 3 * 32 * 32  # of a record: the label, then red, green and blue, row by row


@checked
def cifar10(root: str | Path | None = None) -> Images:
    """CIFAR-10: 50,000 and 10,000 pictures 32 x 32 x 3 of ten classes, from the official files.

    Args:
        root: the folder `cifar-10-batches-bin`, or the one that holds it; by default the value of
            the environment variable UNROLLED_DATA.

    Returns:
        The pictures and labels in the order of the files, about 180 MB.

    Raises:
        FileNotFoundError: no root is known, or a folder or file is missing.
        ValueError: a file of another length, or a label outside 0..9.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009. The lengths
    are checked and the pictures are not.

    Example:
        >>> try:
        ...     ur.datasets.cifar10("no/such/folder")
        ... except FileNotFoundError as error:
        ...     print(str(error)[:57])
        no/such/folder/cifar-10-batches-bin: no such folder; expe
    """
    folder = find(_FOLDER, root, (*_TRAIN, _TEST), _SOURCE)
    X, labels = zip(*(_records(folder / name) for name in _TRAIN))
    train = np.concatenate(X), np.concatenate(labels)
    return Images("cifar10", train, _records(folder / _TEST), tuple(_CLASSES))


def _records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pictures and labels of a file."""
    size, expected = path.stat().st_size, _RECORDS * _BYTES
    if size != expected:
        raise ValueError(
            f"{path}: {size} bytes; expected {expected}, {_RECORDS} records of {_BYTES} bytes as "
            f"in {_SOURCE}"
        )
    records = np.fromfile(path, np.uint8).reshape(_RECORDS, _BYTES)
    labels = as_labels(records[:, 0], len(_CLASSES), path)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
