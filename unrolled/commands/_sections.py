"""The sections of a training's configuration, as frozen dataclasses.

Every option has one name, the same in the file and as a flag, and no two sections share one.
"""

import dataclasses
import math
from typing import Any

from unrolled.commands._options import setting
from unrolled.layers import FAMILIES, Layer

GENERATED = ("gaussian", "ill_conditioned")
LOSSES = ("supervised", "log_nmse", "lasso", "reconstruction")
OPTIMIZERS = (
    *("adam", "adamw", "adabelief", "amsgrad", "lion"),
    *("nadam", "radam", "rmsprop", "sgd", "yogi"),
)
PLANTED = "planted"
WITH_CODES = ("supervised", "log_nmse")  # losses that compare with known codes
_LARGEST_SIZE = 2**14  # of a generated dictionary


@dataclasses.dataclass(frozen=True)
class ProblemSection:
    """The dictionary, the signals, and the weight of the LASSO."""

    dictionary: str | tuple[str, ...] = setting(
        "gaussian",
        f"{' or '.join(GENERATED)}, or a .npy or .npz file (entry D); of a chain a list of files",
        words=GENERATED,
        several=True,
    )
    m: int | None = setting(
        None, "signal length of a generated D (default 250)", least=1, most=_LARGEST_SIZE
    )
    d: int | None = setting(
        None, "number of atoms of a generated D (default 500)", least=1, most=_LARGEST_SIZE
    )
    kappa: float | None = setting(
        None, "condition number of an ill_conditioned D (default 10)", least=1
    )
    dictionary_seed: int | None = setting(None, "seed of a generated D (default 0)", least=0)
    signals: str = setting(
        PLANTED,
        "planted, or a .npy or .npz file (entry Y, and X, of a chain X_1, X_2, ..., if codes are "
        "known)",
        words=(PLANTED,),
    )
    probability: float | None = setting(
        None, "of a nonzero in planted codes and in TISTA's prior (default 0.1)", above=0, most=1
    )
    snr: float | None = setting(
        None, "of planted signals, dB (default inf: no noise)", least=-300, most=math.inf
    )
    test_signals: int | None = setting(
        None, "number of planted signals to test on (default 1000)", least=1, most=10**6
    )
    lam: float = setting(
        0.1, "weight of the LASSO, in its loss and at the start of families that have it", least=0
    )


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """A layer and the start of its params; options left out are those of the family."""

    family: str = setting(
        "alista",
        "family of the layer",
        choices=FAMILIES,
        unknown="a family of your own needs --import MODULE",
    )
    depth: int = setting(16, "number of steps K", least=1, most=10_000)
    start: str = setting(
        "init",
        "start of the params; analytic: set by theory for the class of the signals",
        choices=("init", "analytic", "calibrated"),
    )
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the family


@dataclasses.dataclass(frozen=True)
class TrainingSection:
    """The loss, the optimiser, and when to evaluate and to save."""

    method: str = setting(
        "end_to_end",
        "all steps at once, or step after step",
        choices=("end_to_end", "curriculum"),
    )
    loss: str = setting("supervised", "loss of the codes", choices=LOSSES)
    deep: bool = setting(False, "the loss of every step, not only of the last")
    optimizer: str = setting("adam", "optimiser of optax", choices=OPTIMIZERS)
    rate: float = setting(1e-3, "learning rate", above=0)
    schedule: str = setting("constant", "of the learning rate", choices=("constant", "cosine"))
    clip: float = setting(
        math.inf, "largest norm of a gradient, inf for any", above=0, most=math.inf
    )
    steps: int = setting(
        1000, "training steps; in a curriculum, steps of each of its 3 K stages", least=1
    )
    batch: int = setting(64, "signals of a training step", least=1)
    learn_dictionary: bool = setting(False, "train D too")
    evaluate_every: int = setting(50, "training steps between two evaluations", least=1)
    save_every: int = setting(500, "training steps between two checkpoints", least=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training."""

    output: str = setting("unrolled-run", "the run folder", words=())
    seed: int = setting(0, "of everything random but the dictionary", least=0)
    problem: ProblemSection = ProblemSection()
    model: ModelSection | tuple[ModelSection, ...] = ModelSection()  # a tuple for a chain
    training: TrainingSection = TrainingSection()

    @property
    def chained(self) -> bool:
        """Whether the model is a chain: a list of tables, [[model]]."""
        return isinstance(self.model, tuple)

    @property
    def layers(self) -> tuple[ModelSection, ...]:
        """The layers of the chain, or the one layer."""
        return self.model if isinstance(self.model, tuple) else (self.model,)


SECTIONS = {"problem": ProblemSection, "model": ModelSection, "training": TrainingSection}


def family_of(model: ModelSection) -> type[Layer]:
    """The class of the family."""
    return FAMILIES[model.family]


def option_names(cls: type[Layer]) -> set[str]:
    """The options of a family."""
    return {field.name for field in dataclasses.fields(cls)}
