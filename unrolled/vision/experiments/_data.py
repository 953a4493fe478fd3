"""The images of a run: where they come from, which of them test, and whether they are sound.

Without real data there are synthetic pictures with one salient shape each.
"""

import hashlib
from pathlib import Path

import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled.vision import datasets
from unrolled.vision.datasets import Images
from unrolled.vision.experiments._recipe import Recipe

_TRAIN, _TEST = 160, 40
_CORNERS = (3, 7)  # of a polygon, the second one excluded
_GRAIN = 12.0  # deviation of the noise of a pixel, of 255 grey values
EXACT = 1000  # test records of CIFAR-10 that are exact where the others come from JPEG
_DIGITS_SIDE, _MASKS_SIDE = 32, 128
_FOLDERS = {"ecssd": "ECSSD", "duts": "DUTS", "dut-omron": "DUT-OMRON"}


@checked
def load(name: str, root: str | Path | None = None, *, side: int | None = None) -> Images:
    """The images of a data set by its name, as an experiment takes them.

    A set of pictures with masks has no classes, and masks (N, H, W) in the place of labels.

    Args:
        name: "cifar10", "mnist", "digits" (of scikit-learn), "shapes" (made here, see `shapes`), or
            a folder below `root` with pictures and masks: "ecssd", "duts", or its own name; or with
            folders of classes, see `datasets.class_folders`.
        root: where data lie; None for UNROLLED_DATA.
        side: digits are enlarged and framed by zeros to side x side (default 32); pictures of
            classes are resized to side x side (default 32), those with masks are made or resized to
            it (default 128).

    Raises:
        FileNotFoundError, ValueError: as in the readers of `datasets`; a side below 1, or below 8
            for digits.

    Example:
        >>> from unrolled.vision import experiments
        >>> experiments.load("digits").train[0].shape
        (1437, 32, 32, 1)
    """
    if side is not None:
        side = checks.as_index(side, "side", "experiment", least=1)
    if name == "digits":
        return _enlarged(datasets.digits(), side or _DIGITS_SIDE)
    if name == "shapes":
        return shapes(side or _MASKS_SIDE)
    if name in ("cifar10", "mnist"):
        return {"cifar10": datasets.cifar10, "mnist": datasets.mnist}[name](root)
    folder = datasets.locate(_FOLDERS.get(name, name), root)
    if datasets.is_class_folders(folder):
        return datasets.class_folders(folder, side or _DIGITS_SIDE)
    side = side or _MASKS_SIDE
    train, test = datasets.masks(folder, (side, side))
    return Images(name, train, test, ())


def _enlarged(images: Images, side: int) -> Images:
    """Each pixel as a square of pixels, and a frame of zeros."""
    times = side // images.train[0].shape[1]
    if times < 1:
        raise ValueError(f"experiment: digits have 8 x 8 pixels; expected a side of 8, got {side}")

    def larger(X):
        X = X.repeat(times, axis=1).repeat(times, axis=2)
        before = (side - X.shape[1]) // 2
        frame = (before, side - X.shape[1] - before)
        return np.pad(X, ((0, 0), frame, frame, (0, 0)))

    (X, labels), (X_test, labels_test) = images.train, images.test
    return images._replace(train=(larger(X), labels), test=(larger(X_test), labels_test))


def split(images: Images, test: str) -> Images:
    """The images with the test set of that name: "whole", "exact" or "held-out".

    Raises:
        ValueError: "exact" of another set than CIFAR-10, or no fifth to hold out.
    """
    if test == "exact":
        if images.name != "cifar10":
            raise ValueError(
                f"experiment: {images.name} has no exact part; expected cifar10, or another test"
            )
        X, labels = images.test
        return images._replace(test=(X[:EXACT], labels[:EXACT]))
    if test == "held-out":
        last = len(images.train[0]) // 5
        if not last:
            raise ValueError(
                f"experiment: {images.name} has {len(images.train[0])} training images; expected 5 "
                "or more to hold a fifth out"
            )
        X, labels = images.train
        return images._replace(train=(X[:-last], labels[:-last]), test=(X[-last:], labels[-last:]))
    return images


def check(images: Images, recipe: Recipe) -> None:
    """Raise ValueError unless a recipe can train and test on the images."""
    (X, labels), (X_test, _) = images.train, images.test
    where = f"experiment: {images.name}"
    for part, (pictures, truth) in {"train": images.train, "test": images.test}.items():
        if not len(pictures):
            raise ValueError(
                f"{where}: the {part} split is empty; expected one picture or more"
                + ("" if images.classes else ", try a split file in the folder of the masks")
            )
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
    if recipe.data != (name := Path(images.name).name):  # a folder may be given by its path
        raise ValueError(
            f"{where}: the recipe has data={recipe.data!r}; expected the name of the images, try "
            f"data={name!r}"
        )


def _check_truth(X: np.ndarray, truth: np.ndarray, classes: int, where: str) -> None:
    expected, top = X.shape[:1] if classes else X.shape[:3], (classes or 2) - 1
    kind = "labels" if classes else "masks"
    if truth.shape != expected:
        raise ValueError(f"{where} has {kind} of shape {truth.shape}; expected {expected}")
    advice = "" if classes else ", or bool; try to threshold them"
    if truth.dtype.kind not in "biu":
        raise ValueError(
            f"{where} has {kind} of dtype {truth.dtype}; expected integers from 0 to {top}{advice}"
        )
    low, high = int(truth.min()), int(truth.max())
    if low < 0 or high > top:
        raise ValueError(f"{where} has {kind} from {low} to {high}; expected 0 to {top}{advice}")


def digest(images: Images) -> str:
    """The sha256 of pictures and labels, shortened: rows on other images are other rows."""
    parts = (*images.train, *images.test)
    hashes = "".join(hashlib.sha256(part.tobytes()).hexdigest() for part in parts)
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def moments(X: np.ndarray, recipe: Recipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, of values in [0, 1]; 0 and 1 if not to standardize."""
    if not recipe.standardize:
        return (0.0,), (1.0,)
    counts = np.stack([np.bincount(x.ravel(), minlength=256) for x in np.moveaxis(X, 3, 0)])
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = shares @ values
    variance = np.sum(shares * (values - mean[:, None]) ** 2, 1)
    deviation = np.where(variance > 0, np.sqrt(variance), 1.0)
    return tuple(mean.tolist()), tuple(deviation.tolist())


@checked
def shapes(side: int, *, train: int = _TRAIN, test: int = _TEST, seed: int = 0) -> Images:
    """Pictures of an ellipse or a convex polygon on a textured ground, with masks of the shape.

    They are synthetic: scores on them say that a network trains, and nothing about photographs.

    Args:
        side: of a picture in pixels.
        train, test: numbers of pictures.
        seed: of all that is drawn.

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
    """A colour with a wave of random direction and length."""
    u, v = _grid(side)
    phase = rng.uniform(-25, 25, 2) @ np.stack([u.ravel(), v.ravel()]) + rng.uniform(0, 2 * np.pi)
    wave = np.sin(phase).reshape(side, side, 1)
    return rng.uniform(40, 215, 3) + rng.uniform(-40, 40, 3) * wave


def _ellipse(rng: np.random.Generator, side: int) -> np.ndarray:
    u, v = _turned(rng, side)
    a, b = rng.uniform(0.12, 0.35, 2)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def _polygon(rng: np.random.Generator, side: int) -> np.ndarray:
    """The points on the inner side of all its edges, which touch one circle."""
    u, v = _turned(rng, side)
    n, radius = rng.integers(*_CORNERS), rng.uniform(0.1, 0.25)
    angles = 2 * np.pi * np.arange(n) / n
    return np.max([np.cos(a) * u + np.sin(a) * v for a in angles], axis=0) <= radius


def _turned(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates about a random centre, turned by a random angle; the picture has side 1."""
    u, v = _grid(side)
    centre, angle = rng.uniform(0.3, 0.7, 2), rng.uniform(0, 2 * np.pi)
    u, v = u - centre[0], v - centre[1]
    return np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel, in [0, 1]."""
    at = (np.arange(side) + 0.5) / side
    row, column = np.meshgrid(at, at, indexing="ij")
    return row, column
