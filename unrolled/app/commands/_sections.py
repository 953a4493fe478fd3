"""The sections of a run's configuration as records, and which of their options go together.

Every option has one name, the same in the file and as a flag, and no two sections share one.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from unrolled._base.checks import brief
from unrolled.layers import FAMILIES, Layer, Recipe, names_with_role
from unrolled.records import Record, option

GENERATED = ("gaussian", "ill_conditioned")
LOSSES = ("supervised", "log_nmse", "mostly_last", "lasso", "reconstruction")
OPTIMIZERS = (
    *("adam", "adamw", "adabelief", "amsgrad", "lion"),
    *("nadam", "radam", "rmsprop", "sgd", "yogi"),
)
PLANTED = "planted"
PLANTED_LAM = 0.1  # for codes near 1
WITH_CODES = ("supervised", "log_nmse", "mostly_last")  # losses that compare with known codes
STARTS = ("init", "analytic", "calibrated", "recipe")
LARGEST = {int: 2**31 - 1, float: 1e30}  # numbers well within those of JAX
_SIZE = 2**14  # the most of a generated dictionary


class ConfigError(ValueError):
    """A configuration that cannot be read, or that asks for something impossible."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """The check of an option that is a file, or one of some words; or several files."""

    words: tuple[str, ...] = ()
    several: bool = False

    def __call__(self, value: Any, name: str, where: str) -> Any:
        """The value, with a tuple for several files; raise unless it is printable."""
        if self.several and isinstance(value, tuple):
            return tuple(dataclasses.replace(self, several=False)(v, name, where) for v in value)
        if not isinstance(value, str):
            raise TypeError(f"{where}: {name} must be a string, got {brief(value)}")
        if not (value and value.isprintable()):
            raise ValueError(f"{where}: {name} must be printable and not empty, got {brief(value)}")
        return value

    def absolute(self, value: Any, base: Path) -> Any:
        """The value with absolute paths; relative ones start at `base`."""
        if isinstance(value, tuple):
            return tuple(str(base.absolute() / path) for path in value)
        return value if value in self.words else str(base.absolute() / value)


class Problem(Record):
    """The dictionary, the signals, and the weight of the LASSO."""

    dictionary: str | tuple[str, ...] = option(
        default="gaussian",
        check=Paths(GENERATED, several=True),
        help=f"{' or '.join(GENERATED)}, or a .npy or .npz file (entry D); of a chain a list of "
        "files",
    )
    m: int | None = option(
        default=None, least=1, most=_SIZE, help="signal length of a generated D (default 250)"
    )
    d: int | None = option(
        default=None, least=1, most=_SIZE, help="number of atoms of a generated D (default 500)"
    )
    kappa: float | None = option(
        default=None, least=1, help="condition number of an ill_conditioned D (default 10)"
    )
    dictionary_seed: int | None = option(
        default=None, least=0, help="seed of a generated D (default 0)"
    )
    signals: str = option(
        default=PLANTED,
        check=Paths((PLANTED,)),
        help="planted, or a .npy or .npz file (entry Y, and X, of a chain X_1, X_2, ..., if codes "
        "are known)",
    )
    codes: str | None = option(
        default=None,
        choices=("lasso",),
        help="make codes of the signals of a file once, by pursuit.lasso_batch with lam, and "
        "keep them beside the weights (default: those of the file, if any)",
    )
    ratio: float | None = option(
        default=None,
        above=0,
        most=1,
        help="lam of --codes lasso, where --lam is not given, as a fraction of what gives nine "
        "signals in ten the code 0 (default 0.1)",
    )
    probability: float | None = option(
        default=None,
        above=0,
        most=1,
        help="probability that an entry of a generated code, or in TISTA's prior, is nonzero "
        "(default 0.1)",
    )
    snr: float | None = option(
        default=None,
        least=-300,
        most=math.inf,
        help="signal-to-noise ratio of the generated signals, dB (default inf: no noise)",
    )
    test_signals: int | None = option(
        default=None,
        least=1,
        most=10**6,
        help="number of generated signals to test on (default 1000)",
    )
    lam: float | None = option(
        default=None,
        least=0,
        help="weight of the LASSO, in its loss and at the start of families that have it (default "
        "0.1 where codes are known; else a tenth of what gives nine signals in ten the code 0)",
    )


class ModelOptions(Record):
    """What a table of the model has beside the options of its family."""

    family: str = option(default="alista", choices=FAMILIES, help="family of the layer")
    depth: int = option(default=16, least=1, most=10_000, help="number of steps K")
    start: str = option(
        default="init",
        choices=STARTS,
        help="how the params start; analytic sets them by theory for the class of the signals, "
        "recipe also sets the options and the training that the family wants for known codes, "
        "where they have their defaults",
    )


class Model(Record):
    """A layer, and the start of its params."""

    layer: Layer = option()
    start: str = option(default="init", choices=STARTS)

    @property
    def family(self) -> str:
        """The name of the family."""
        return self.layer.family

    @property
    def depth(self) -> int:
        """K."""
        return self.layer.depth


class Training(Record):
    """The loss, the optimiser, and when to evaluate and to save."""

    method: str = option(
        default="end_to_end",
        choices=("end_to_end", "curriculum"),
        help="all steps at once, or step after step",
    )
    loss: str = option(default="supervised", choices=LOSSES, help="loss of the codes")
    deep: bool = option(default=False, help="sum the loss over all steps, not only the last")
    optimizer: str = option(default="adam", choices=OPTIMIZERS, help="optimiser of optax")
    rate: float = option(default=1e-3, above=0, help="learning rate of the optimiser")
    schedule: str = option(
        default="constant", choices=("constant", "cosine"), help="course of the learning rate"
    )
    clip: float = option(
        default=math.inf,
        above=0,
        most=math.inf,
        help="largest norm of a gradient; inf does not clip",
    )
    steps: int = option(
        default=1000,
        least=1,
        help="training steps; in a curriculum, steps of each of its 3 K stages",
    )
    batch: int = option(default=64, least=1, help="number of signals in a batch")
    accumulate: int = option(
        default=1,
        least=1,
        most=2**20,
        help="number of batches in a training step, a power of two, which devices and processes "
        "share",
    )
    reduction: str = option(
        default="tree",
        choices=("tree", "psum"),
        help="how devices add their batches: tree to the same bits on any number, psum by fewer "
        "exchanges",
    )
    learn_dictionary: bool = option(default=False, help="also train D")
    evaluate_every: int = option(default=50, least=1, help="training steps between two evaluations")
    save_every: int = option(default=500, least=1, help="training steps between two checkpoints")


class Config(Record):
    """A run."""

    output: str = option(default="unrolled-run", check=Paths(), help="the run folder")
    seed: int = option(default=0, least=0, help="seed of everything random but the dictionary")
    problem: Problem = option()
    model: Model | tuple[Model, ...] = option()  # a tuple for a chain
    training: Training = option()

    @property
    def chained(self) -> bool:
        """Whether the model is a chain: a list of tables, [[model]]."""
        return isinstance(self.model, tuple)

    @property
    def layers(self) -> tuple[Model, ...]:
        """The layers of the chain, or the one layer."""
        return self.model if isinstance(self.model, tuple) else (self.model,)


SECTIONS: dict[str, type[Record]] = {
    "problem": Problem,
    "model": ModelOptions,
    "training": Training,
}


def option_names(cls: type) -> set[str]:
    """The options of a family."""
    return {field.name for field in dataclasses.fields(cls)}


def refuse(names: list[str], what: str) -> None:
    """Raise ConfigError if there are options that do not go with something."""
    if names:
        raise ConfigError(f"train: {', '.join(names)} does not go with {what}")


def with_defaults(problem: Problem, families: list[type[Layer]], chained: bool) -> Problem:
    """The problem with the defaults that depend on its other options.

    Raises:
        ConfigError: options that do not go with the dictionary, the signals or the families.
    """
    _check_dictionaries(problem, len(families), chained)
    defaults: dict[str, Any] = {}
    if problem.dictionary in GENERATED:
        defaults |= dict(m=250, d=500, dictionary_seed=0)
    if problem.dictionary == "ill_conditioned":
        defaults |= dict(kappa=10.0)
    if problem.signals == PLANTED:
        defaults |= dict(probability=0.1, snr=math.inf, test_signals=1000, lam=PLANTED_LAM)
    else:
        defaults |= dict(lam=None) if chained else dict(lam=None, codes=None)
    if problem.codes is not None:
        defaults |= dict(ratio=0.1)
    if any("probability" in option_names(family) for family in families):
        defaults |= dict(probability=0.1)
    fields = [field for field in dataclasses.fields(Problem) if field.default is None]
    optional = {field.name: getattr(problem, field.name) for field in fields}
    idle = [name for name, value in optional.items() if value is not None and name not in defaults]
    refuse(idle, f"dictionary {problem.dictionary}, signals {problem.signals}")
    missing = {name: value for name, value in defaults.items() if optional[name] is None}
    return dataclasses.replace(problem, **missing)


def _check_dictionaries(problem: Problem, layers: int, chained: bool) -> None:
    """Raise ConfigError unless a chain has a dictionary per layer, and a layer has one."""
    files = problem.dictionary
    if chained and not (isinstance(files, tuple) and len(files) == layers):
        got = len(files) if isinstance(files, tuple) else "one"
        raise ConfigError(
            f"train: [[model]] has {layers} layers; expected as many files, problem.dictionary = "
            f'["D_1.npy", "D_2.npy", ...], got {got}'
        )
    if isinstance(files, tuple) and not chained:
        raise ConfigError(
            f"train: problem.dictionary has {len(files)} files; expected one for [model], "
            "or a [[model]] for each"
        )


def trained_by(recipe: Recipe, method: str) -> dict[str, Any]:
    """The options of the training that a recipe has a value for."""
    options: dict[str, Any] = dict(loss="mostly_last", clip=1.0, steps=recipe.steps)
    options |= {"schedule": "cosine"} if method == "end_to_end" else {"steps": 50}
    return options | ({"rate": recipe.rate} if recipe.rate else {})


def check_start(family: type[Layer], start: str) -> None:
    """Raise ConfigError unless a family can start so."""
    for kind, can in (("analytic", _can_start_analytic), ("calibrated", _can_calibrate)):
        if start == kind and not can(family):
            able = ", ".join(name for name, other in FAMILIES.items() if can(other))
            raise ConfigError(f"train: {family.__name__} cannot start {start}; that is for {able}")


def _can_start_analytic(cls: type[Layer]) -> bool:
    return cls.from_theory is not None or cls.starts_from_theory


def _can_calibrate(cls: type[Layer]) -> bool:
    roles = "threshold", "relative threshold"
    return any(names_with_role(form.steps, *roles) for form in cls.forms)


def check_curriculum(config: Config) -> None:
    """Raise ConfigError for options that a curriculum has no use for.

    Its loss is that of one step, and its stages are short.
    """
    training, layer = config.training, config.layers[0].layer
    wrong = [name for name in ("deep", "learn_dictionary") if getattr(training, name)]
    wrong += ["schedule cosine"] if training.schedule == "cosine" else []
    if config.chained:
        wrong.append("a chain")
    elif all(form.steps is None for form in layer.forms):
        wrong.append(f"family {layer.family}")
    if wrong and training.method == "curriculum":
        raise ConfigError(
            f"train: {', '.join(wrong)} does not go with method curriculum; try end_to_end"
        )
