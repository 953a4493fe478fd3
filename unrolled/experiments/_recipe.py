"""What one run of an experiment depends on, and the recipes of the papers."""

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from typing import Any

from unrolled import _checks

TASKS = ("classification", "segmentation", "ml-csc")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("cosine", "drops")
AUGMENTATIONS = ("none", "crop", "crop and flip")
TESTS = ("whole", "exact", "held-out")
# Fields in which the rows of one experiment differ: they deviate from no recipe.
_VARIED = ("model", "activation", "gamma", "layers", "seed")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that one run depends on, but for the images: equal recipes give equal weights.

    Attributes:
        data: name of the data set.
        model: name of the model.
        activation: name of an activation of the library.
        gamma: weight of the penalty on features, at least 0.
        layers: tap names of the penalised layers; None takes those of the paper.
        seed: of the first weights, the order of the images and their crops; below 2^32.
        epochs: passes over the training images; the last incomplete batch of a pass is left out.
        batch: images per step.
        optimizer: "sgd" or "adam".
        rate: learning rate of the first step.
        schedule: "cosine" falls to 0 over all steps; "drops" multiplies the rate by 0.2 after each
            0.3 (MNIST) or third (CIFAR-10) of the epochs, `drop` as a fraction.
        drop: see `schedule`.
        momentum: of SGD; the decay of the first moment of Adam.
        decay: weight decay, decay / 2 times the squared l2 norm of all weights in the loss of SGD.
        augmentation: "none", "crop" (by up to 4 pixels), or "crop and flip".
        standardize: whether channels are brought to mean 0 and deviation 1 of the training images;
            else values are in [0, 1].
        test: "whole" test set, "exact" its first 1000 images, or "held-out" the last fifth of the
            training images, which are then not trained on.
        options: options of the model, as (name, value) pairs.

    Raises:
        TypeError, ValueError: a value outside of what is said above.

    Example:
        >>> from unrolled.experiments import Recipe
        >>> Recipe(data="digits", model="lenet5", gamma=1e-3).name
        'digits-lenet5-relu-gamma0.001-seed0-epochs200'
    """

    data: str
    model: str
    activation: str = "relu"
    gamma: float = 0.0
    layers: tuple[str, ...] | None = None
    seed: int = 0
    epochs: int = 200
    batch: int = 128
    optimizer: str = "sgd"
    rate: float = 0.1
    schedule: str = "cosine"
    drop: float = 0.3
    momentum: float = 0.9
    decay: float = 5e-4
    augmentation: str = "crop and flip"
    standardize: bool = True
    test: str = "whole"
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        for name in ("data", "model", "activation"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or {"/", os.sep} & set(value):
                raise ValueError(
                    f"Recipe: {name} is part of the name of a file, got {value!r}; expected a "
                    "name, not a path"
                )
        for name, least in (("seed", 0), ("epochs", 1), ("batch", 1)):
            value = _checks.as_index(getattr(self, name), name, "Recipe", least=least)
            object.__setattr__(self, name, value)  # of numpy too, which JSON does not take
        if self.seed >= 2**32:
            raise ValueError(f"Recipe: the seed must be below 2^32, got {self.seed}")
        ranges = dict(gamma=(0, math.inf), rate=(0, math.inf), momentum=(0, 1), decay=(0, math.inf))
        for name, (least, above) in {**ranges, "drop": (0, 1)}.items():
            value = _checks.as_number(getattr(self, name), name, "Recipe")
            if not least <= value < above or (name in ("rate", "drop") and value == 0):
                span = "positive" if name in ("rate", "drop") else "at least 0"
                span += " and below 1" if above == 1 else ", and finite"
                raise ValueError(f"Recipe: {name} must be {span}, got {value}")
            object.__setattr__(self, name, value)
        choices = dict(
            optimizer=OPTIMIZERS, schedule=SCHEDULES, augmentation=AUGMENTATIONS, test=TESTS
        )
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Recipe: unknown {name} {getattr(self, name)!r}; expected one of "
                    f"{', '.join(known)}"
                )
        if not (self.layers is None or _all(str, self.layers)):
            raise TypeError(
                f"Recipe: layers must be a tuple of tap names or None, got {self.layers!r}"
            )
        if not (_all(tuple, self.options) and all(len(pair) == 2 for pair in self.options)):
            raise TypeError(
                "Recipe: options must be a tuple of (name, value) pairs, got "
                f"{self.options!r}; try (('width', 16),)"
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
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def row_name(self, images: str) -> str:
        """The name of the row of this recipe on images with that digest."""
        # Without defaults: a field that is added later renames no row.
        fields = dataclasses.fields(self)
        told = {f.name: getattr(self, f.name) for f in fields}
        told = {f.name: told[f.name] for f in fields if told[f.name] != f.default}
        text = json.dumps([told, images], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _all(kind: type, values: Any) -> bool:
    """Whether these are a tuple of values of a kind."""
    return isinstance(values, tuple) and all(isinstance(value, kind) for value in values)


def from_dict(fields: dict[str, Any]) -> Recipe:
    """The recipe of which `to_dict` gave the fields.

    Raises:
        TypeError, ValueError: not such fields.
    """
    layers, options = fields["layers"], fields["options"]
    layers = None if layers is None else tuple(layers)
    return Recipe(**{**fields, "layers": layers, "options": tuple(map(tuple, options))})


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
    given, wanted = _shown(recipe), _shown(paper)
    names = [name for name in {**wanted, **given} if name not in _VARIED]
    return [
        f"{name}: {given.get(name)}" + (f" instead of {wanted[name]}" if name in wanted else "")
        for name in names
        if given.get(name) != wanted.get(name)
    ]


def _shown(recipe: Recipe) -> dict[str, Any]:
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    if recipe.schedule != "drops":
        del fields["drop"]
    return fields | dict(fields.pop("options"))
