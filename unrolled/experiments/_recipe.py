"""What one run of an experiment depends on, and the recipes of the papers."""

import dataclasses
import hashlib
import json
import os
from typing import Any

from unrolled import _checks
from unrolled.records import Record, changed, changes, from_plain, option, to_plain, values_of

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
    seed = _checks.as_index(value, name, where)
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
        >>> from unrolled.experiments import Recipe
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


def paper_recipe(task: str, data: str) -> Recipe:
    """The recipe of the paper for a task: Section 4, or Sulam, Aberdam, Beck, Elad (2020).

    Of ML-CSC there is one for CIFAR-10 and one for MNIST, which is that of all other data.

    Example:
        >>> from unrolled.experiments import paper_recipe
        >>> paper_recipe("segmentation", "duts").optimizer
        'adam'
    """
    if task not in TASKS:
        raise ValueError(f"experiment: unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if task == "ml-csc":
        return _CIFAR10 if data == "cifar10" else _MNIST
    return _CLASSIFICATION if task == "classification" else _SEGMENTATION


def deviations(recipe: Recipe, paper: Recipe) -> list[str]:
    """What of a recipe differs from that of the paper, in words; empty if nothing does.

    What the rows of one experiment compare (model, activation, gamma, seed, layers) deviates from
    nothing.

    Example:
        >>> from unrolled.experiments import Recipe, deviations, paper_recipe
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
