"""What a training is, as frozen dataclasses: read from TOML and from flags, checked, and written
back as TOML.

Every option has one name, the same in the file and as a flag, and no two sections share one.
"""

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any

from unrolled import activations
from unrolled.commands._families import (
    FAMILIES,
    START_FROM_THEORY,
    WITH_THETA,
    WITHOUT_STEPS,
    option_names,
)
from unrolled.commands._options import (
    ConfigError,
    Option,
    checked,
    from_text,
    options_of,
    read_toml,
    setting,
    shown,
    toml_value,
)

GENERATED = ("gaussian", "ill_conditioned")
LOSSES = ("supervised", "log_nmse", "lasso", "reconstruction")
OPTIMIZERS = (
    "adam",
    "adamw",
    "adabelief",
    "amsgrad",
    "lion",
    "nadam",
    "radam",
    "rmsprop",
    "sgd",
    "yogi",
)
PLANTED = "planted"
WITH_CODES = ("supervised", "log_nmse")  # losses that compare with known codes


@dataclasses.dataclass(frozen=True)
class Problem:
    """The dictionary, the signals, and the weight of the LASSO."""

    dictionary: str = setting(
        "gaussian", f"{' or '.join(GENERATED)}, or a .npy or .npz file (entry D)", words=GENERATED
    )
    m: int | None = setting(
        None, "signal length of a generated dictionary (default 250)", least=1, most=2**14
    )
    d: int | None = setting(
        None, "atoms of a generated dictionary (default 500)", least=1, most=2**14
    )
    kappa: float | None = setting(
        None, "condition number of an ill_conditioned one (default 10)", least=1
    )
    dictionary_seed: int | None = setting(None, "of a generated dictionary (default 0)", least=0)
    signals: str = setting(
        PLANTED,
        "planted, or a .npy or .npz file (entry Y, and X if codes are known)",
        words=(PLANTED,),
    )
    probability: float | None = setting(
        None, "of a nonzero in planted codes, and TISTA's prior (default 0.1)", above=0, most=1
    )
    snr: float | None = setting(
        None, "of planted signals, dB (default inf: no noise)", least=-300, most=math.inf
    )
    test_signals: int | None = setting(
        None, "planted signals of the summary (default 1000)", least=1, most=10**6
    )
    lam: float = setting(
        0.1, "weight of the LASSO, in its loss and in the start of families that have it", least=0
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """The layer and where its params start; options left out are those of the family."""

    family: str = setting("alista", "one of " + ", ".join(FAMILIES), choices=tuple(FAMILIES))
    depth: int = setting(16, "steps K", least=1, most=10_000)
    start: str = setting(
        "init",
        "init, analytic (as theory sets params for the class of the sample) or calibrated",
        choices=("init", "analytic", "calibrated"),
    )
    tied: bool | None = setting(None, "one W for all steps, or one per step")
    support: tuple[float, float] | None = setting(
        None, "support selection: rate and largest share, as 0.012,0.12", least=0, most=1
    )
    activation: str | None = setting(
        None, "in place of ReLU: " + ", ".join(activations.NAMED), choices=tuple(activations.NAMED)
    )
    theta: float | None = setting(None, "threshold at the start (alista)", least=0)
    alpha: float | None = setting(None, "threshold per noise level at the start (lamp)", least=0)
    gain: float | None = setting(None, "of the gate at the start (glista)", least=0)
    variance: float | None = setting(None, "of the nonzeros (tista, lamp_bg)", above=0)
    noise: float | None = setting(None, "variance of the noise (tista)", least=0)
    sparsity: int | None = setting(None, "entries to keep (liht, which needs it)", least=1)
    units: int | None = setting(None, "of the LSTM (na_alista)", least=1)
    threshold: float | None = setting(
        None, "in units of the residual, at the start (na_alista)", above=0
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """The loss, the optimiser, and when to look and to save."""

    method: str = setting(
        "end_to_end",
        "end_to_end, or curriculum: step after step",
        choices=("end_to_end", "curriculum"),
    )
    loss: str = setting("supervised", ", ".join(LOSSES), choices=LOSSES)
    deep: bool = setting(False, "the loss on every step, not only on the last")
    optimizer: str = setting("adam", "of optax: " + ", ".join(OPTIMIZERS), choices=OPTIMIZERS)
    rate: float = setting(1e-3, "learning rate", above=0)
    schedule: str = setting(
        "constant", "of the rate: constant or cosine", choices=("constant", "cosine")
    )
    clip: float = setting(
        math.inf, "largest norm of a gradient, inf for any", above=0, most=math.inf
    )
    steps: int = setting(
        1000, "how many; of every stage in a curriculum, which has 3 K of them", least=1
    )
    batch: int = setting(64, "signals of a step", least=1)
    learn_dictionary: bool = setting(False, "train D too")
    evaluate_every: int = setting(50, "steps between two looks", least=1)
    save_every: int = setting(500, "steps between two checkpoints", least=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training."""

    output: str = setting("unrolled-run", "the run folder", words=())
    seed: int = setting(0, "of everything random but the dictionary", least=0)
    problem: Problem = Problem()
    model: Model = Model()
    training: Training = Training()


SECTIONS = {"problem": Problem, "model": Model, "training": Training}
OPTIONS = {
    option.name: option
    for section, cls in {None: Config, **SECTIONS}.items()
    for option in options_of(section, cls)
}  # fmt: skip
_OF_PROBLEM, _OF_LAYER = (
    [
        name
        for name, option in OPTIONS.items()
        if option.section == section and option.default is None
    ]
    for section in ("problem", "model")
)


def load(path: Path | None, flags: dict[str, Any]) -> Config:
    """The configuration of a TOML file and of flags, which override it; relative paths in the file
    start at its folder.

    Args:
        path: None takes flags and defaults alone.
        flags: by name, as text or as values; None where a flag was not given.

    Raises:
        ConfigError: an unreadable file, unknown names, wrong types, values out of range, options
            that do not fit together.
        FileNotFoundError: no such file.
    """
    values = {"output": str(Path.cwd() / Config.output)}
    values |= {} if path is None else _flat(read_toml(path), path)
    for name, given in flags.items():
        if given is not None:
            option = OPTIONS[name]
            value = from_text(option, given) if isinstance(given, str) else given
            values[name] = checked(option, value, f"--{name}", Path.cwd())
    return _resolved(_nested(values))


def to_toml(config: Config) -> str:
    """The configuration as TOML; options that are None are left out. `load` of it gives the same
    configuration.
    """
    lines = [_line(option, config) for option in OPTIONS.values() if option.section is None]
    for section in SECTIONS:
        part = getattr(config, section)
        lines += ["", f"[{section}]"]
        lines += [
            _line(o, part)
            for o in OPTIONS.values()
            if o.section == section and getattr(part, o.name) is not None
        ]
    return "\n".join(lines) + "\n"


def differences(a: Config, b: Config) -> list[str]:
    """Where two configurations differ, the run folder aside: "training.steps (100, now 200)"."""
    pairs = {name: (_get(a, o), _get(b, o)) for name, o in OPTIONS.items() if name != "output"}
    return [
        f"{OPTIONS[name].full} ({old}, now {new})"
        for name, (old, new) in pairs.items()
        if old != new
    ]


def _flat(tables: dict, path: Path) -> dict[str, Any]:
    """Option name -> checked value."""
    values = {}
    for key, value in tables.items():
        if key in SECTIONS and isinstance(value, dict):
            values |= {name: _read(name, v, key, path) for name, v in value.items()}
        elif key in SECTIONS:
            raise ConfigError(f"{path}: {key} must be a table, got {shown(value)}; try [{key}]")
        else:
            values[key] = _read(key, value, None, path)
    return values


def _read(name: str, value, section: str | None, path: Path):
    option = OPTIONS.get(name)
    if option is None or option.section != section:
        raise ConfigError(
            f"{path}: unknown key {shown(name if section is None else f'{section}.{name}')}{_hint(name, option)}"
        )
    return checked(option, value, f"{path}: {option.full}", path.parent)


def _hint(name: str, option: Option | None) -> str:
    """What may have been meant."""
    near = [option.name] if option else difflib.get_close_matches(name, [*OPTIONS, *SECTIONS], 1)
    if not near:
        return f"; expected output, seed or [{'], ['.join(SECTIONS)}]"
    return f"; did you mean {OPTIONS[near[0]].full if near[0] in OPTIONS else f'[{near[0]}]'}?"


def _nested(values: dict[str, Any]) -> Config:
    def part(section):
        return {name: value for name, value in values.items() if OPTIONS[name].section == section}

    return Config(
        **part(None), **{section: cls(**part(section)) for section, cls in SECTIONS.items()}
    )


def _resolved(config: Config) -> Config:
    """With the defaults that depend on other options filled in, once the options fit together."""
    problem, model = config.problem, config.model
    allowed, defaults = option_names(model.family), _problem_defaults(config)
    others = [name for name in _OF_PROBLEM if name not in defaults]
    _none_of(problem, others, f"dictionary {problem.dictionary}, signals {problem.signals}")
    _none_of(model, [name for name in _OF_LAYER if name not in allowed], f"family {model.family}")
    for start, families in (("analytic", START_FROM_THEORY), ("calibrated", WITH_THETA)):
        if model.start == start and model.family not in families:
            raise ConfigError(
                f"train: {model.family} cannot start {start}; that is for {', '.join(families)}"
            )
    if config.training.method == "curriculum":
        _fits_a_curriculum(config)
    missing = {name: value for name, value in defaults.items() if getattr(problem, name) is None}
    return dataclasses.replace(config, problem=dataclasses.replace(problem, **missing))


def _problem_defaults(config: Config) -> dict[str, Any]:
    """The options that go with the dictionary and the signals, with their defaults."""
    problem, defaults = config.problem, {}
    if problem.dictionary in GENERATED:
        defaults |= dict(m=250, d=500, dictionary_seed=0)
    if problem.dictionary == "ill_conditioned":
        defaults |= dict(kappa=10.0)
    if problem.signals == PLANTED:
        defaults |= dict(probability=0.1, snr=math.inf, test_signals=1000)
    if "probability" in option_names(config.model.family):
        defaults |= dict(probability=0.1)
    return defaults


def layer_options(config: Config) -> dict[str, Any]:
    """What the factory of the family is called with, family included: what a weights file says of
    its layer.
    """
    given = {name: getattr(config.model, name) for name in _OF_LAYER}
    given |= {"lam": config.problem.lam, "probability": config.problem.probability}
    allowed = option_names(config.model.family)
    chosen = {name: value for name, value in given.items() if name in allowed and value is not None}
    return {"family": config.model.family, "depth": config.model.depth, **chosen}


def _fits_a_curriculum(config: Config) -> None:
    """Raise ConfigError for what a curriculum has no use for: its loss looks at one step, its
    stages are short.
    """
    chosen = config.training
    wrong = [name for name in ("deep", "learn_dictionary") if getattr(chosen, name)]
    wrong += ["schedule cosine"] if chosen.schedule == "cosine" else []
    wrong += [f"family {config.model.family}"] if config.model.family in WITHOUT_STEPS else []
    if wrong:
        raise ConfigError(
            f"train: {', '.join(wrong)} does not go with method curriculum; try end_to_end"
        )


def _none_of(part, names: list[str], what: str) -> None:
    given = [name for name in names if getattr(part, name) is not None]
    if given:
        raise ConfigError(f"train: {', '.join(given)} does not go with {what}")


def _get(config: Config, option: Option):
    return getattr(
        config if option.section is None else getattr(config, option.section), option.name
    )


def _line(option: Option, part) -> str:
    return f"{option.name} = {toml_value(getattr(part, option.name))}"
