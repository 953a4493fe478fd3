"""What one run of an experiment depends on, the recipes of the papers, and their models."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from unrolled import activations
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled.records import Record, changed, changes, from_plain, option, to_plain, values_of
from unrolled.vision import models

CLASSIFICATION, SEGMENTATION = ("lenet5", "vgg11", "res-csc", "msd-csc"), ("unet",)
ML_CSC = ("cnn", "ml-ista", "ml-fista", "ml-lista", "layered-bp", "all-free")
MODELS = (*CLASSIFICATION, *SEGMENTATION, *ML_CSC)

_OPTIONS = {
    "unet": ("width",),
    "res-csc": ("width", "blocks", "unfoldings"),
    "msd-csc": ("width", "blocks", "growth", "depth", "unfoldings"),
    **dict.fromkeys(ML_CSC, ("unfoldings", "constrained")),
}

TASKS = ("classification", "segmentation", "ml-csc")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("cosine", "drops")
AUGMENTATIONS = ("none", "crop", "crop and flip")
TESTS = ("whole", "exact", "held-out")
# Fields in which the rows of one experiment differ: they deviate from no recipe.
_VARIED = ("model", "activation", "gamma", "layers", "seed")


def _as_name(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value or {"/", os.sep} & set(value):
        raise ValueError(
            f"{where}: {name} is part of the name of a file, got {value!r}; expected a name, not "
            "a path"
        )
    return value


def _as_seed(value: Any, name: str, where: str) -> int:
    seed = checks.as_index(value, name, where)
    if seed >= 2**32:
        raise ValueError(f"{where}: the seed must be below 2^32, got {seed}")
    return seed


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
    """Whether these are a tuple of values of a kind."""
    return isinstance(values, tuple) and all(isinstance(value, kind) for value in values)


class Recipe(Record):
    """Everything that one run depends on, but for the images: equal recipes give equal weights.

    Raises:
        TypeError, ValueError: a value outside of what is said above.

    Example:
        >>> from unrolled.vision.experiments import Recipe
        >>> Recipe(data="digits", model="lenet5", gamma=1e-3).name
        'digits-lenet5-relu-gamma0.001-seed0-epochs200'
    """

    data: str = option(check=_as_name, help="name of the data set")
    model: str = option(check=_as_name, help="name of the model")
    activation: str = option(
        default="relu", check=_as_name, help="name of an activation of the library"
    )
    gamma: float = option(default=0.0, least=0, help="weight of the penalty on features")
    layers: tuple[str, ...] | None = option(
        default=None,
        check=_as_layers,
        help="tap names of the penalised layers; None takes those of the paper",
    )
    seed: int = option(
        default=0,
        check=_as_seed,
        help="of the first weights, the order of the images and their crops; below 2^32",
    )
    epochs: int = option(
        default=200,
        least=1,
        help="passes over the training images; the last incomplete batch of a pass is left out",
    )
    batch: int = option(default=128, least=1, help="images per step")
    optimizer: str = option(default="sgd", choices=OPTIMIZERS, help='"sgd" or "adam"')
    rate: float = option(default=0.1, above=0, help="learning rate of the first step")
    schedule: str = option(
        default="cosine",
        choices=SCHEDULES,
        help='"cosine" falls to 0 over all steps; "drops" multiplies the rate by 0.2 after each '
        "0.3 (MNIST) or third (CIFAR-10) of the epochs, `drop` as a fraction",
    )
    drop: float = option(default=0.3, above=0, below=1, help="see `schedule`")
    momentum: float = option(
        default=0.9, least=0, below=1, help="of SGD; the decay of the first moment of Adam"
    )
    decay: float = option(
        default=5e-4,
        least=0,
        help="weight decay, decay / 2 times the squared l2 norm of all weights in the loss of SGD",
    )
    augmentation: str = option(
        default="crop and flip",
        choices=AUGMENTATIONS,
        help='"none", "crop" (by up to 4 pixels), or "crop and flip"',
    )
    standardize: bool = option(
        default=True,
        help="whether channels are brought to mean 0 and deviation 1 of the training images; else "
        "values are in [0, 1]",
    )
    test: str = option(
        default="whole",
        choices=TESTS,
        help='"whole" test set, "exact" its first 1000 images, or "held-out" the last fifth of the '
        "training images, which are then not trained on",
    )
    options: tuple[tuple[str, Any], ...] = option(
        default=(), check=_as_pairs, help="options of the model, as (name, value) pairs"
    )

    @property
    def name(self) -> str:
        """A readable part of the name of its row."""
        return (
            f"{self.data}-{self.model}-{self.activation}-gamma{self.gamma:g}-seed{self.seed}-"
            f"epochs{self.epochs}"
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return to_plain(self)

    def row_name(self, images: str) -> str:
        """The name of the row of this recipe on images with that digest."""
        # Without defaults: an option that is added later renames no row.
        text = json.dumps([changed(self), images], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


# (recipe, shape (H, W, C) of an image, number of classes, rngs) -> a model.
Build = Callable[[Recipe, tuple[int, ...], int, nnx.Rngs], Any]


def from_dict(fields: dict[str, Any]) -> Recipe:
    """The recipe of which `to_dict` gave the fields.

    Raises:
        TypeError, ValueError: not such fields.
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
    """The recipe of the paper for a task: Section 4, or Sulam, Aberdam, Beck, Elad (2020).

    Of ML-CSC there is one for CIFAR-10 and one for MNIST, which is that of all other data.

    Example:
        >>> from unrolled.vision.experiments import paper_recipe
        >>> paper_recipe("segmentation", "duts").optimizer
        'adam'
    """
    if task not in TASKS:
        raise ValueError(f"experiment: unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if task == "ml-csc":
        return _CIFAR10 if data == "cifar10" else _MNIST
    return _CLASSIFICATION if task == "classification" else _SEGMENTATION


@checked
def deviations(recipe: Recipe, paper: Recipe) -> list[str]:
    """What of a recipe differs from that of the paper, in words; empty if nothing does.

    What the rows of one experiment compare (model, activation, gamma, seed, layers) deviates from
    nothing.

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
    """The model of a recipe for images of a shape (H, W, C); 0 classes are masks.

    Raises:
        ValueError: an unknown model, one of another task, options that it does not have, or images
            that it does not take.
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
        return models.VGG11(classes, activation, **common)
    if name == "res-csc":
        width = options.pop("width", 16)
        widths = width, 2 * width, 4 * width
        return models.ResCSC(classes, widths=widths, activation=activation, **options, **common)
    if name == "msd-csc":
        return models.MSDCSC(classes, activation=activation, **options, **common)
    make = models.MLCSC.mnist if shape == (28, 28, 1) else models.MLCSC.cifar10
    return make(name, **options, rngs=rngs)


def _check_fits(recipe: Recipe, shape: tuple[int, ...], classes: int) -> None:
    """Raise ValueError unless the model takes such images."""
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
    """The task of a model by its name; those of users are taken to classify.

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
    """The names of the options of a model, as `Recipe.options` has them.

    Raises:
        ValueError: an unknown model.

    Example:
        >>> from unrolled.vision.experiments import options_of
        >>> options_of("res-csc"), options_of("lenet5")
        (('width', 'blocks', 'unfoldings'), ())
    """
    if model not in MODELS:
        raise ValueError(
            f"experiment: unknown model {model!r}; expected one of {', '.join(MODELS)}"
        )
    return _OPTIONS.get(model, ())


def penalised(recipe: Recipe, model: nnx.Module) -> tuple[str, ...]:
    """The tap names of the layers that a recipe penalises, and that its curve follows.

    Raises:
        ValueError: a name that does not exist, or no names for a model that has none of its own.
    """
    layers = recipe.layers
    if layers is None:
        layers = tuple(getattr(model, "early", ()))
    if layers:
        models.tap(model, *layers)  # refuses a name that does not exist
    elif recipe.gamma:
        raise ValueError(
            f"experiment: gamma is not 0, but no layers of {recipe.model} are named; try gamma 0"
        )
    return layers


def size(model: nnx.Module) -> int:
    """The number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
