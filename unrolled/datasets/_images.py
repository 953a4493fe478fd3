"""The record of a labelled collection of pictures; and handwritten digits without a file."""

from typing import NamedTuple

import numpy as np

_N_TRAIN = 1437


class Images(NamedTuple):
    """Labelled pictures, split for training and testing.

    Attributes:
        name: of the collection.
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
        ValueError: one outside 0..n_classes - 1, with its place.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if wrong.size:
        raise ValueError(
            f"{where}: label {labels[wrong[0]]} at {wrong[0]}; expected 0..{n_classes - 1}"
        )
    return labels.astype(np.int32)


def digits() -> Images:
    """Handwritten digits, 8 x 8 x 1, that come with scikit-learn: no file is needed.

    Grey values 0..16 are stored as 0..255, rounded. The first 1,437 pictures in the order of
    scikit-learn are for training, the last 360 for testing.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: the test part of "Optical recognition of handwritten digits", Alpaydin and Kaynak, UCI
    repository, 1998.

    Example:
        >>> digits = ur.datasets.digits()
        >>> digits.train[0].shape, digits.test[0].shape, digits.test[1][:5].tolist()
        ((1437, 8, 8, 1), (360, 8, 8, 1), [2, 3, 4, 5, 6])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits need scikit-learn; install unrolled[data]") from error
    bundle = load_digits()
    X = np.round(bundle.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = bundle.target.astype(np.int32)
    train, test = (X[:_N_TRAIN], labels[:_N_TRAIN]), (X[_N_TRAIN:], labels[_N_TRAIN:])
    return Images("digits", train, test, tuple(map(str, range(10))))
