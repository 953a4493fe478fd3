"""The record of a labelled collection of pictures."""

from typing import NamedTuple

import numpy as np


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
