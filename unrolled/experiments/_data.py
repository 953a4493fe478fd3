"""The images of a run: where they come from, which of them test, and whether they are sound."""

from pathlib import Path

import numpy as np

from unrolled import datasets
from unrolled.datasets import Images
from unrolled.experiments._recipe import Recipe
from unrolled.training._manifest import sha256

_EXACT = 1000  # test records of CIFAR-10 that no JPEG has touched
_SIDE = 32  # of the pictures that LeNet-5 and VGG11 were made for


def load(name: str, root: str | Path | None = None, *, side: int = 64) -> Images:
    """The images of a data set by its name, as an experiment takes them.

    Digits are enlarged to 32 x 32, each pixel to 4 x 4. A set of pictures with masks has no
    classes, and masks as labels.

    Args:
        name: "cifar10", "mnist", "digits", "shapes" (made here), or a folder below `root` with
            pictures and masks, such as "ecssd".
        root: where data lie; None for UNROLLED_DATA.
        side: of pictures with masks, which are resized to side x side.

    Raises:
        FileNotFoundError, ValueError: as in the readers of `datasets`.

    Example:
        >>> from unrolled import experiments
        >>> experiments.load("digits").train[0].shape
        (1437, 32, 32, 1)
    """
    if name == "digits":
        return _enlarged(datasets.digits())
    return datasets.mnist(root) if name == "mnist" else datasets.cifar10(root)


def _enlarged(images: Images) -> Images:
    def larger(X):
        times = _SIDE // X.shape[1]
        return X.repeat(times, axis=1).repeat(times, axis=2)

    (X, labels), (X_test, labels_test) = images.train, images.test
    return images._replace(train=(larger(X), labels), test=(larger(X_test), labels_test))


def split(images: Images, test: str) -> Images:
    """The images with the test set of that name: "whole", "exact" or "held-out".

    Raises:
        ValueError: "exact" of another set than CIFAR-10.
    """
    if test == "exact":
        if images.name != "cifar10":
            raise ValueError(
                f"experiment: {images.name} has no exact part; expected cifar10, or another test"
            )
        return images._replace(test=tuple(part[:_EXACT] for part in images.test))
    if test == "held-out":
        last = len(images.train[0]) // 5
        kept, held = zip(*((part[:-last], part[-last:]) for part in images.train))
        return images._replace(train=kept, test=held)
    return images


def check(images: Images, recipe: Recipe) -> None:
    """Raise ValueError unless a recipe can train and test on the images."""
    (X, labels), (X_test, _) = images.train, images.test
    where = f"experiment: {images.name}"
    for part, (pictures, truth) in {"train": images.train, "test": images.test}.items():
        if not len(pictures):
            raise ValueError(f"{where}: the {part} split is empty")
        if pictures.ndim != 4 or pictures.dtype != np.uint8:
            raise ValueError(
                f"{where}: the {part} pictures are {pictures.dtype} {pictures.shape}; expected "
                "uint8 (N, H, W, C)"
            )
        _check_truth(pictures, truth, len(images.classes), f"{where}: the {part} split")
    if X.shape[1:] != X_test.shape[1:]:
        raise ValueError(
            f"{where}: pictures of {X.shape[1:]} for training and {X_test.shape[1:]} for testing"
        )
    if recipe.batch > len(labels):
        raise ValueError(
            f"{where}: a batch of {recipe.batch} is larger than its {len(labels)} training "
            "pictures; try a smaller batch"
        )


def _check_truth(X: np.ndarray, truth: np.ndarray, classes: int, where: str) -> None:
    expected = X.shape[:1] if classes else X.shape[:3]
    if truth.shape != expected:
        kind = "labels" if classes else "masks"
        raise ValueError(f"{where} has {kind} of shape {truth.shape}; expected {expected}")
    low, high, top = int(truth.min()), int(truth.max()), (classes or 2) - 1
    if low < 0 or high > top:
        raise ValueError(f"{where} has labels from {low} to {high}; expected 0 to {top}")


def digest(images: Images) -> str:
    """The sha256 of pictures and labels, shortened: rows on other images are other rows."""
    parts = (*images.train, *images.test)
    return sha256(np.frombuffer("".join(map(sha256, parts)).encode(), np.uint8))[:16]
