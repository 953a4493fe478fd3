"""What a training is, as frozen dataclasses: read from TOML and flags, checked, written as TOML.

Every option has one name, the same in the file and as a flag, and no two sections share one.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unrolled import activations
from unrolled.activations import Activation
from unrolled.commands._options import (
    ConfigError,
    Option,
    checked,
    family_option,
    from_text,
    merged,
    options_of,
    read_toml,
    setting,
    shown,
    toml_value,
)
from unrolled.layers import FAMILIES, Layer, names_with_role

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

    dictionary: str = setting(
        "gaussian", f"{' or '.join(GENERATED)}, or a .npy or .npz file (entry D)", words=GENERATED
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
        "planted, or a .npy or .npz file (entry Y, and X if codes are known)",
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
    """The layer and the start of its params; options left out are those of the family."""

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
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()


SECTIONS = {"problem": ProblemSection, "model": ModelSection, "training": TrainingSection}
_OWN = {
    option.name: option
    for section, cls in [(None, Config), *SECTIONS.items()]
    for option in options_of(section, cls)
}
# Options of families that are set elsewhere: how a layer runs, and what stands in [problem].
_NOT_OF_MODEL = ("depth", "precision", "unroll", "remat", "lam", "probability")
_RESERVED = ("config", "help", "json", "resume")  # arguments of the command itself


def all_options() -> Mapping[str, Option]:
    """Every option by name: ours, and those of all families that are known now.

    Raises:
        ConfigError: a family has an option with the name of one of ours.
    """
    return _options_with(tuple(FAMILIES.values()))


@functools.lru_cache(maxsize=1)
def _options_with(families: tuple[type[Layer], ...]) -> Mapping[str, Option]:
    found: dict[str, Option] = {}
    meanings: dict[str, dict[str, list[str]]] = {}  # option -> help -> families
    for cls in families:
        for field in dataclasses.fields(cls):
            name = field.name
            if name in _NOT_OF_MODEL:
                continue
            if name in _OWN or name in _RESERVED:
                raise ConfigError(
                    f"train: the family {cls.__name__} has an option {name}, "
                    "which has another meaning here; rename it"
                )
            option = family_option(field, "model")
            found[name] = merged(found[name], option) if name in found else option
            helps = meanings.setdefault(name, {})
            helps.setdefault(field.metadata.get("help", ""), []).append(cls.__name__)
    for name, helps in meanings.items():
        text = "; ".join(f"{help} ({', '.join(names)})" for help, names in helps.items())
        found[name] = found[name]._replace(limits={**found[name].limits, "help": text.strip()})
    return MappingProxyType(_OWN | found)


def load(path: Path | None, flags: Mapping[str, Any]) -> Config:
    """The configuration of a TOML file and of flags, which override it.

    Relative paths in the file start at its folder, those of flags at the current one.

    Args:
        path: None takes flags and defaults alone.
        flags: by name, as text or as values; None where a flag was not given.

    Raises:
        ConfigError: an unreadable file, unknown names, wrong types, values out of range, options
            that do not fit together.
        FileNotFoundError: no such file.
    """
    options = all_options()
    values: dict[str, Any] = {"output": str(Path.cwd() / Config.output)}
    values |= {} if path is None else _flat(read_toml(path), path)
    for name, given in flags.items():
        if given is not None:
            value = from_text(options[name], given) if isinstance(given, str) else given
            values[name] = checked(options[name], value, f"--{name}", Path.cwd())
    return _resolved(_nested(values))


def to_toml(config: Config) -> str:
    """The configuration as TOML, without options that are None; `load` reads it back."""
    lines, section = [], None
    for option in sorted(all_options().values(), key=lambda o: [None, *SECTIONS].index(o.section)):
        if option.section != section:
            section = option.section
            lines += ["", f"[{section}]"]
        value = get(config, option)
        if value is not None:
            lines.append(f"{option.name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def get(config: Config, option: Option) -> Any:
    """The value of an option; None for an option of a family that was not given."""
    if option.section is None:
        return getattr(config, option.name)
    part = getattr(config, option.section)
    return getattr(part, option.name) if option.name in _OWN else part.options.get(option.name)


def differences(a: Config, b: Config) -> list[str]:
    """Where two configurations differ, the run folder aside: "training.steps (100, now 200)"."""
    options = [option for name, option in all_options().items() if name != "output"]
    pairs = [(option.full, get(a, option), get(b, option)) for option in options]
    return [f"{full} ({old}, now {new})" for full, old, new in pairs if old != new]


def family_of(config: Config) -> type[Layer]:
    """The class of the family."""
    return FAMILIES[config.model.family]


def make_layer(config: Config) -> Layer:
    """The layer of a configuration.

    Raises:
        ValueError, TypeError: options that the family refuses, or lacks.
    """
    problem, cls, options = config.problem, family_of(config), all_options()
    shared = {n: getattr(problem, n) for n in ("lam", "probability") if n in _names(cls)}
    own: dict[str, Any] = {
        name: activations.from_description(value) if options[name].kind is Activation else value
        for name, value in config.model.options.items()
    }
    return cls(config.model.depth, **shared, **own)


def _names(cls: type[Layer]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _flat(tables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Option name -> checked value."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        if key in SECTIONS and isinstance(value, dict):
            values |= {name: _read(name, v, key, path) for name, v in value.items()}
        elif key in SECTIONS:
            raise ConfigError(f"{path}: {key} must be a table, got {shown(value)}; try [{key}]")
        else:
            values[key] = _read(key, value, None, path)
    return values


def _read(name: str, value: Any, section: str | None, path: Path) -> Any:
    options = all_options()
    option = options.get(name)
    if option is None or option.section != section:
        full = shown(name if section is None else f"{section}.{name}")
        raise ConfigError(f"{path}: unknown key {full}{_hint(name, options)}")
    return checked(option, value, f"{path}: {option.full}", path.parent)


def _hint(name: str, options: Mapping[str, Option]) -> str:
    """What may have been meant."""
    near = [name] if name in options else difflib.get_close_matches(name, [*options, *SECTIONS], 1)
    if not near:
        return (
            f"; expected output, seed or [{'], ['.join(SECTIONS)}]; "
            "an option of a family of your own needs --import MODULE"
        )
    return f"; did you mean {options[near[0]].full if near[0] in options else f'[{near[0]}]'}?"


def _nested(values: Mapping[str, Any]) -> Config:
    options = all_options()

    def part(section):
        return {name: value for name, value in values.items() if options[name].section == section}

    model = part("model")
    own = {name: model.pop(name) for name in list(model) if name in _OWN}
    return Config(
        **part(None),
        problem=ProblemSection(**part("problem")),
        model=ModelSection(**own, options=model),
        training=TrainingSection(**part("training")),
    )


def _resolved(config: Config) -> Config:
    """The configuration with defaults that depend on other options, if all options fit together."""
    problem, model, cls = config.problem, config.model, family_of(config)
    defaults = _problem_defaults(config)
    optional = [n for n, o in _OWN.items() if o.section == "problem" and o.default is None]
    given = [name for name in optional if getattr(problem, name) is not None]
    where = f"dictionary {problem.dictionary}, signals {problem.signals}"
    _none_of([name for name in given if name not in defaults], where)
    _none_of([n for n in model.options if n not in _names(cls)], f"family {model.family}")
    for start, can in (("analytic", _can_start_analytic), ("calibrated", _can_calibrate)):
        if model.start == start and not can(cls):
            able = ", ".join(name for name, other in FAMILIES.items() if can(other))
            raise ConfigError(f"train: {model.family} cannot start {start}; that is for {able}")
    if config.training.method == "curriculum":
        _fits_a_curriculum(config)
    missing = {name: value for name, value in defaults.items() if getattr(problem, name) is None}
    return dataclasses.replace(config, problem=dataclasses.replace(problem, **missing))


def _can_start_analytic(cls: type[Layer]) -> bool:
    return cls.from_theory is not None or cls.starts_from_theory


def _can_calibrate(cls: type[Layer]) -> bool:
    return any(names_with_role(form.steps, "threshold") for form in cls.forms)


def _problem_defaults(config: Config) -> dict[str, Any]:
    """The options that go with the dictionary and the signals, with their defaults."""
    problem = config.problem
    defaults: dict[str, Any] = {}
    if problem.dictionary in GENERATED:
        defaults |= dict(m=250, d=500, dictionary_seed=0)
    if problem.dictionary == "ill_conditioned":
        defaults |= dict(kappa=10.0)
    if problem.signals == PLANTED:
        defaults |= dict(probability=0.1, snr=math.inf, test_signals=1000)
    if "probability" in _names(family_of(config)):
        defaults |= dict(probability=0.1)
    return defaults


def _fits_a_curriculum(config: Config) -> None:
    """Raise ConfigError for options that a curriculum has no use for.

    Its loss is that of one step, and its stages are short.
    """
    chosen = config.training
    wrong = [name for name in ("deep", "learn_dictionary") if getattr(chosen, name)]
    wrong += ["schedule cosine"] if chosen.schedule == "cosine" else []
    if all(form.steps is None for form in family_of(config).forms):
        wrong.append(f"family {config.model.family}")
    if wrong:
        raise ConfigError(
            f"train: {', '.join(wrong)} does not go with method curriculum; try end_to_end"
        )


def _none_of(given: list[str], what: str) -> None:
    if given:
        raise ConfigError(f"train: {', '.join(given)} does not go with {what}")
