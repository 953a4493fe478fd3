"""The model of a recipe."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from unrolled import activations, models
from unrolled.experiments._recipe import Recipe

# (recipe, shape (H, W, C) of an image, number of classes, rngs) -> a model.
Build = Callable[[Recipe, tuple[int, ...], int, nnx.Rngs], Any]

CLASSIFICATION, SEGMENTATION = ("lenet5", "vgg11", "res-csc", "msd-csc"), ("unet",)
ML_CSC = ("cnn", "ml-ista", "ml-fista", "ml-lista", "layered-bp", "all-free")
MODELS = (*CLASSIFICATION, *SEGMENTATION, *ML_CSC)
_OPTIONS = {
    "unet": ("width",),
    "res-csc": ("width", "blocks", "unfoldings"),
    "msd-csc": ("width", "blocks", "growth", "depth", "unfoldings"),
    **dict.fromkeys(ML_CSC, ("unfoldings", "constrained")),
}


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


def task_of(model: str) -> str:
    """The task of a model by its name; those of users are taken to classify.

    Example:
        >>> from unrolled.experiments import task_of
        >>> task_of("unet")
        'segmentation'
    """
    if model in ML_CSC:
        return "ml-csc"
    return "segmentation" if model in SEGMENTATION else "classification"


def options_of(model: str) -> tuple[str, ...]:
    """The names of the options of a model, as `Recipe.options` has them.

    Raises:
        ValueError: an unknown model.

    Example:
        >>> from unrolled.experiments import options_of
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
