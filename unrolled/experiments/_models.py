"""The model of a recipe."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from unrolled import activations, models
from unrolled.experiments._recipe import Recipe

# (recipe, shape of an image, number of classes, rngs) -> a model.
Build = Callable[[Recipe, tuple[int, ...], int, nnx.Rngs], Any]


def build_model(
    recipe: Recipe, shape: tuple[int, ...], classes: int, rngs: nnx.Rngs
) -> nnx.Module:
    """The model of a recipe for images of a shape (H, W, C); 0 classes are masks.

    Raises:
        ValueError: an unknown model, one of another task, or images that it does not take.
    """
    activation, options = activations.by_name(recipe.activation), dict(recipe.options)
    height, width, channels = shape
    common: dict[str, Any] = dict(channels=channels, rngs=rngs)
    if recipe.model not in MODELS:
        raise ValueError(
            f"experiment: unknown model {recipe.model!r}; expected one of {', '.join(MODELS)}"
        )
    if (recipe.model in SEGMENTATION) != (classes == 0):
        raise ValueError(
            f"experiment: {recipe.model} needs {'labels' if classes == 0 else 'masks'}, and "
            f"{recipe.data} has {'masks' if classes == 0 else 'labels'}"
        )
    if recipe.model == "unet":
        return models.UNet(options["width"], activation, **common)
    if height != width:
        raise ValueError(f"experiment: {recipe.model} needs square images, got {height} x {width}")
    if recipe.model == "lenet5":
        return models.LeNet5(classes, activation, side=height, **common)
    if height != 32:
        raise ValueError(f"experiment: vgg11 needs images 32 x 32, got {height} x {width}")
    return models.VGG11(classes, activation, **common)


CLASSIFICATION = ("lenet5", "vgg11")
SEGMENTATION = ("unet",)
ML_CSC = ("cnn", "ml-ista", "ml-fista", "ml-lista", "layered-bp")
MODELS = (*CLASSIFICATION, *SEGMENTATION, *ML_CSC)


def penalised(recipe: Recipe, model: nnx.Module) -> tuple[str, ...]:
    """The tap names of the layers that a recipe penalises, and that its curve follows.

    Raises:
        ValueError: no name is given for a model that has none of its own.
    """
    if recipe.layers is not None:
        return recipe.layers
    early: Sequence[str] = getattr(model, "early", ())
    if not early and recipe.gamma:
        raise ValueError(f"experiment: gamma is {recipe.gamma}, but {recipe.model} has no layers")
    return tuple(early)


def size(model: nnx.Module) -> int:
    """The number of trained parameters."""
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
