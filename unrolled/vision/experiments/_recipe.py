"""Recipes and images, which together determine the runs of an experiment.

This module also has the recipes of the papers and builds the model of a recipe.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from unrolled import activations
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled.records import Record, changed, changes, from_plain, option, to_plain, values_of
from unrolled.vision import datasets, models
from unrolled.vision.datasets import Images, shapes

CLASSIFICATION, SEGMENTATION = ("lenet5", "vgg11", "res-csc", "msd-csc"), ("unet",)
ML_CSC = ("cnn", "ml-ista", "ml-fista", "ml-lista", "layered-bp", "all-free")
MODELS = (*CLASSIFICATION, *SEGMENTATION, *ML_CSC)

_OPTIONS = {
    **dict.fromkeys(("unet", "vgg11"), ("width",)),
    "res-csc": ("width", "blocks", "unfoldings"),
    "msd-csc": ("width", "blocks", "growth", "depth", "unfoldings"),
    **dict.fromkeys(ML_CSC, ("unfoldings", "constrained")),
}

TASKS = ("classification", "segmentation", "ml-csc")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("cosine", "drops")
AUGMENTATIONS = ("none", "crop", "crop and flip")
TESTS = ("whole", "exact", "held-out")
# The rows of one experiment differ in these fields, which do not count as deviations from a recipe.
_VARIED = ("model", "activation", "gamma", "layers", "seed")


def _as_name(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value or {"/", os.sep} & set(value):
        raise ValueError(
            f"{where}: {name} is part of the name of a file, got {value!r}; expected a name, not "
            "a path"
        )
    return value


def _as_layers(value: Any, name: str, where: str) -> tuple[str, ...] | None:
    if not (value is None or _all(str, value)):
        raise TypeError(f"{where}: {name} must be a tuple of tap names or None, got {value!r}")
    return value


def _as_pairs(value: Any, name: str, where: str) -> tuple[tuple[str, Any], ...]:
    if not (_all(tuple, value) and all(len(pair) == 2 for pair in value)):
        raise TypeError(
            f"{where}: {name} must be a tuple of (name, value) pairs, got {value!r}; "
            "try (('width', 16),)"
        )
    return value


def _all(kind: type, values: Any) -> bool:
    """Whether a value is a tuple whose entries all have the given type."""
    return isinstance(values, tuple) and all(isinstance(value, kind) for value in values)


class Recipe(Record):
    """All settings of a run except the images. Equal recipes and images give equal weights.

    Args:
        data: name of the data set.
        model: name of the model.
        activation: name of an activation of the library.
        gamma: weight of the penalty on features.
        layers: tap names of the penalised layers; None takes the paper's layers.
        seed: seed of the initial weights, of the order of the images and of crops; below 2^32.
        epochs: passes over the training images; incomplete last batches are dropped.
        batch: images per step.
        optimizer: "sgd" or "adam".
        rate: learning rate of the first step.
        schedule: "cosine": the rate falls to 0 over all steps; "drops": the rate is multiplied by
            0.2 after each fraction `drop` of the epochs.
        drop: fraction of the epochs between two drops: 0.3 for MNIST, 1/3 for CIFAR-10.
        momentum: momentum of SGD, or decay rate of the first moment in Adam.
        decay: weight decay; the loss of SGD has decay / 2 times the squared l2 norm of all weights.
        augmentation: "none", "crop" (shift by up to 4 pixels), or "crop and flip".
        standardize: if True, channels are scaled to mean 0 and standard deviation 1 on the training
            images; otherwise values are in [0, 1].
        test: "whole": the whole test set; "exact": its first 1000 images; "held-out": the last
            fifth of the training images, which are then excluded from training.
        options: options of the model, as (name, value) pairs.

    Raises:
        TypeError, ValueError: a value is outside the range stated above.

    Example:
        >>> from unrolled.vision.experiments import Recipe
        >>> Recipe(data="digits", model="lenet5", gamma=1e-3).name
        'digits-lenet5-relu-gamma0.001-seed0-epochs200'
    """

    data: str = option(check=_as_name)
    model: str = option(check=_as_name)
    activation: str = option(default="relu", check=_as_name)
    gamma: float = option(default=0.0, least=0)
    layers: tuple[str, ...] | None = option(default=None, check=_as_layers)
    seed: int = option(default=0, check=checks.as_seed)
    epochs: int = option(default=200, least=1)
    batch: int = option(default=128, least=1)
    optimizer: str = option(default="sgd", choices=OPTIMIZERS)
    rate: float = option(default=0.1, above=0)
    schedule: str = option(default="cosine", choices=SCHEDULES)
    drop: float = option(default=0.3, above=0, below=1)
    momentum: float = option(default=0.9, least=0, below=1)
    decay: float = option(default=5e-4, least=0)
    augmentation: str = option(default="crop and flip", choices=AUGMENTATIONS)
    standardize: bool = option(default=True)
    test: str = option(default="whole", choices=TESTS)
    options: tuple[tuple[str, Any], ...] = option(default=(), check=_as_pairs)

    @property
    def name(self) -> str:
        """The readable part of the name of the recipe's row."""
        return (
            f"{self.data}-{self.model}-{self.activation}-gamma{self.gamma:g}-seed{self.seed}-"
            f"epochs{self.epochs}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields in a form that JSON can hold."""
        return to_plain(self)

    def row_name(self, images: str) -> str:
        """The name of the row of this recipe on images with the given digest."""
        # Defaults are omitted so that a new option does not change the names of existing rows.
        text = json.dumps([changed(self), images], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


# (recipe, shape (H, W, C) of an image, number of classes, rngs) -> a model.
Build = Callable[[Recipe, tuple[int, ...], int, nnx.Rngs], Any]


def from_dict(fields: dict[str, Any]) -> Recipe:
    """The inverse of `Recipe.to_dict`.

    Raises:
        TypeError, ValueError: the fields are not fields of a recipe.
    """
    options = {name: from_plain(value, name, "Recipe") for name, value in fields.items()}
    return Recipe(**Recipe.absent() | options)


_CLASSIFICATION = Recipe(data="cifar10", model="lenet5")
_SEGMENTATION = Recipe(
    data="duts",
    model="unet",
    optimizer="adam",
    rate=5e-3,
    batch=4,
    decay=0.0,
    augmentation="none",
    options=(("width", 64),),
)
_MNIST = Recipe(
    data="mnist",
    model="ml-ista",
    epochs=100,
    rate=0.002,
    schedule="drops",
    drop=0.3,
    decay=1e-5,
    augmentation="none",
    standardize=False,
    options=(("unfoldings", 6),),
)
_CIFAR10 = dataclasses.replace(
    _MNIST,
    data="cifar10",
    epochs=150,
    rate=0.005,
    drop=1 / 3,
    decay=0.0,
    augmentation="crop",
    standardize=True,
)


@checked
def paper_recipe(task: str, data: str) -> Recipe:
    """The recipe for a task, from Section 4 of the paper or Sulam, Aberdam, Beck, Elad (2020).

    ML-CSC has one recipe for CIFAR-10 and one recipe for MNIST. The recipe for MNIST is also used
    for all other data.

    Example:
        >>> from unrolled.vision.experiments import paper_recipe
        >>> paper_recipe("segmentation", "duts").optimizer
        'adam'
    """
    checks.one_of(task, TASKS, "task", "experiment")
    if task == "ml-csc":
        return _CIFAR10 if data == "cifar10" else _MNIST
    return _CLASSIFICATION if task == "classification" else _SEGMENTATION


@checked
def deviations(recipe: Recipe, paper: Recipe) -> list[str]:
    """The deviations of a recipe from the recipe of the paper, in words; empty if there are none.

    The fields that the rows of one experiment compare (model, activation, gamma, seed, layers) do
    not count as deviations.

    Example:
        >>> from unrolled.vision.experiments import Recipe, deviations, paper_recipe
        >>> recipe = Recipe(data="cifar10", model="vgg11", epochs=20)
        >>> deviations(recipe, paper_recipe("classification", "cifar10"))
        ['epochs: 20 instead of 200']
    """
    differences = changes(_shown(paper), _shown(recipe))
    return [
        f"{name}: {value}" + (f" instead of {wanted}" if wanted is not None else "")
        for name, (wanted, value) in differences.items()
        if name not in _VARIED
    ]


def _shown(recipe: Recipe) -> dict[str, Any]:
    options = values_of(recipe)
    if recipe.schedule != "drops":
        del options["drop"]
    return options | dict(options.pop("options"))


def build_model(recipe: Recipe, shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
    """The model of a recipe for images of shape (H, W, C); `classes` is 0 for masks.

    Raises:
        ValueError: the model is unknown or belongs to another task, the recipe sets an option that
            the model does not have, or the model does not accept these images.
    """
    _check_fits(recipe, shape, classes)
    name, options = recipe.model, dict(recipe.options)
    activation = activations.by_name(recipe.activation)
    common: dict[str, Any] = dict(channels=shape[-1], rngs=rngs)
    if name == "unet":
        return models.UNet(options.get("width", 64), activation, **common)
    if name == "lenet5":
        return models.LeNet5(classes, activation, side=shape[0], **common)
    if name == "vgg11":
        return models.VGG11(classes, activation, **options, **common)
    if name == "res-csc":
        width = options.pop("width", 16)
        widths = width, 2 * width, 4 * width
        return models.ResCSC(classes, widths=widths, activation=activation, **options, **common)
    if name == "msd-csc":
        return models.MSDCSC(classes, activation=activation, **options, **common)
    make = models.MLCSC.mnist if shape == (28, 28, 1) else models.MLCSC.cifar10
    return make(name, **options, rngs=rngs)


def _check_fits(recipe: Recipe, shape: tuple[int, ...], classes: int) -> None:
    """Raise ValueError unless the model accepts such images."""
    name = recipe.model
    options = options_of(name)
    if unknown := [option for option, _ in recipe.options if option not in options]:
        raise ValueError(
            f"experiment: {name} has no option {unknown[0]!r}; "
            f"it has {', '.join(options) or 'none'}"
        )
    if (name in SEGMENTATION) != (classes == 0):
        needs, has = ("labels", "masks") if classes == 0 else ("masks", "labels")
        raise ValueError(f"experiment: {name} needs {needs}, and {recipe.data} has {has}")
    squares = {"vgg11": [(32, 32)]} | dict.fromkeys(ML_CSC, [(28, 28), (32, 32)])
    height, width, channels = shape
    if name in squares and (height, width) not in squares[name]:
        expected = " or ".join(f"{h} x {w}" for h, w in squares[name])
        raise ValueError(f"experiment: {name} needs images {expected}, got {height} x {width}")
    if name == "lenet5" and height != width:
        raise ValueError(f"experiment: lenet5 needs square images, got {height} x {width}")
    if name in ML_CSC and (height, channels) not in ((28, 1), (32, 3)):
        raise ValueError(f"experiment: {name} needs images 28 x 28 x 1 or 32 x 32 x 3, got {shape}")
    if name in ML_CSC and classes != 10:
        raise ValueError(f"experiment: {name} has 10 outputs, and {recipe.data} {classes} classes")
    if name in ML_CSC and recipe.activation != "relu":
        raise ValueError(f"experiment: {name} has the activation relu, got {recipe.activation}")


@checked
def task_of(model: str) -> str:
    """The task of a model by its name; your own model counts as a classifier.

    Example:
        >>> from unrolled.vision.experiments import task_of
        >>> task_of("unet")
        'segmentation'
    """
    if model in ML_CSC:
        return "ml-csc"
    return "segmentation" if model in SEGMENTATION else "classification"


@checked
def options_of(model: str) -> tuple[str, ...]:
    """The names of the options of a model, as in `Recipe.options`.

    Raises:
        ValueError: the model is unknown.

    Example:
        >>> from unrolled.vision.experiments import options_of
        >>> options_of("res-csc"), options_of("lenet5")
        (('width', 'blocks', 'unfoldings'), ())
    """
    checks.one_of(model, MODELS, "model", "experiment")
    return _OPTIONS.get(model, ())


def penalised(recipe: Recipe, model: nnx.Module) -> tuple[str, ...]:
    """The tap names of the penalised layers of a recipe; the curve of a run records their features.

    Raises:
        ValueError: a name does not exist, or the recipe has no names and the model has no default
            names.
    """
    layers = recipe.layers
    if layers is None:
        layers = tuple(getattr(model, "early", ()))
    if layers:
        models.tap(model, *layers)  # raises if a name does not exist
    elif recipe.gamma:
        raise ValueError(
            f"experiment: gamma is not 0, but no layers of {recipe.model} are named; try gamma 0"
        )
    return layers


def size(model: nnx.Module) -> int:
    """The number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@checked
def grid(
    recipe: Recipe,
    *,
    models: Sequence[str],
    activations: Sequence[str],
    gammas: Sequence[float],
    seeds: Sequence[int],
    epochs: Sequence[int],
) -> list[Recipe]:
    """The recipes of all combinations; all recipes of one seed come before the next seed.

    Raises:
        TypeError: a single name is given instead of a list.
        ValueError: as in `Recipe`.

    Example:
        >>> from unrolled.vision.experiments import grid, paper_recipe
        >>> recipe = paper_recipe("classification", "cifar10")
        >>> varied = dict(models=["lenet5"], activations=["relu", "elu"], epochs=[20])
        >>> len(grid(recipe, gammas=[0, 1e-3, 1e-2], seeds=[0, 1], **varied))
        12
    """
    fields = ("epochs", "seed", "model", "activation", "gamma")
    combinations = itertools.product(epochs, seeds, models, activations, gammas)
    changes: list[dict[str, Any]] = [dict(zip(fields, values)) for values in combinations]
    return [dataclasses.replace(recipe, **change) for change in changes]


EXACT = 1000  # the first 1000 CIFAR-10 test images are exact even if the others come from JPEG
_DIGITS_SIDE, _MASKS_SIDE = 32, 128
_FOLDERS = {"ecssd": "ECSSD", "duts": "DUTS", "dut-omron": "DUT-OMRON"}


@checked
def load(name: str, root: str | Path | None = None, *, side: int | None = None) -> Images:
    """The images of the data set with the given name, in the form that `run` accepts.

    A data set with masks has no classes; it has masks (N, H, W) instead of labels.

    Args:
        name: "cifar10", "mnist", "digits" (of scikit-learn), "shapes" (synthetic, see `shapes`), or
            the name of a folder in `root`. The folder contains pictures and masks ("ecssd", "duts",
            or another name) or folders of classes (see `datasets.class_folders`).
        root: folder of the data; None for the value of the environment variable UNROLLED_DATA.
        side: size of the result in pixels. Digits are enlarged and framed by zeros to side x side
            (default 32). Pictures of classes are resized to side x side (default 32). Synthetic
            pictures are generated with side x side pixels, and other pictures with masks are
            resized to side x side (default 128).

    Raises:
        FileNotFoundError, ValueError: as in the readers of `datasets`; also if side is below 1, or
            below 8 for digits.

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
    masks = datasets.masks(folder, (side, side))
    return Images(name, masks.train, masks.test, ())


def _enlarged(images: Images, side: int) -> Images:
    """The images with each pixel repeated in a square, framed by zeros to side x side."""
    times = side // images.train[0].shape[1]
    if times < 1:
        raise ValueError(f"experiment: digits have 8 x 8 pixels; expected a side of 8, got {side}")

    def larger(X):
        X = X.repeat(times, axis=1).repeat(times, axis=2)
        before = (side - X.shape[1]) // 2
        frame = (before, side - X.shape[1] - before)
        return np.pad(X, ((0, 0), frame, frame, (0, 0)))

    (X, labels), (X_test, labels_test) = images.train, images.test
    return images.replace(train=(larger(X), labels), test=(larger(X_test), labels_test))


def split_images(images: Images, test: str) -> Images:
    """The images with the test set of a given name: "whole", "exact" or "held-out".

    Raises:
        ValueError: the test set is "exact" and the data set is not CIFAR-10, or there are too few
            images to hold out a fifth.
    """
    if test == "exact":
        if images.name != "cifar10":
            raise ValueError(
                f"experiment: {images.name} has no exact part; expected cifar10, or another test"
            )
        X, labels = images.test
        return images.replace(test=(X[:EXACT], labels[:EXACT]))
    if test == "held-out":
        last = len(images.train[0]) // 5
        if not last:
            raise ValueError(
                f"experiment: {images.name} has {len(images.train[0])} training images; expected 5 "
                "or more to hold a fifth out"
            )
        X, labels = images.train
        return images.replace(train=(X[:-last], labels[:-last]), test=(X[-last:], labels[-last:]))
    return images


def check_images(images: Images, recipe: Recipe) -> None:
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
    if recipe.data != (name := Path(images.name).name):  # the name of a folder may be its path
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


def digest_of(images: Images) -> str:
    """A shortened sha256 of pictures and labels, so that rows of different images differ."""
    parts = (*images.train, *images.test)
    hashes = "".join(hashlib.sha256(part.tobytes()).hexdigest() for part in parts)
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def moments_of(X: np.ndarray, recipe: Recipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel in [0, 1]; 0 and 1 if not standardized."""
    if not recipe.standardize:
        return (0.0,), (1.0,)
    counts = np.stack([np.bincount(x.ravel(), minlength=256) for x in np.moveaxis(X, 3, 0)])
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = shares @ values
    variance = np.sum(shares * (values - mean[:, None]) ** 2, 1)
    deviation = np.where(variance > 0, np.sqrt(variance), 1.0)
    return tuple(mean.tolist()), tuple(deviation.tolist())
