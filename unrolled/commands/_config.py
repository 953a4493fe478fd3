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
from unrolled.networks import Network, dsc

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
_OWN = {
    option.name: option
    for section, cls in [(None, Config), *SECTIONS.items()]
    for option in options_of(section, cls)
}
# Options of families that are set elsewhere: how a layer runs, and what stands in [problem].
_NOT_OF_MODEL = ("depth", "precision", "unroll", "remat", "lam", "probability")
_RESERVED = ("config", "help", "json", "resume", "model")  # arguments, and what `_flat` returns


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
            if "model" in values and options[name].section == "model":
                raise ConfigError(f"--{name}: the file has a chain; set it there, in [[model]]")
            value = from_text(options[name], given) if isinstance(given, str) else given
            values[name] = checked(options[name], value, f"--{name}", Path.cwd())
    return _resolved(_nested(values))


def to_toml(config: Config) -> str:
    """The configuration as TOML, without options that are None; `load` reads it back."""
    lines = _assignments(None, config)
    for section in SECTIONS:
        for part in _parts(config, section):
            head = f"[[{section}]]" if section == "model" and config.chained else f"[{section}]"
            lines += ["", head, *_assignments(section, part)]
    return "\n".join(lines) + "\n"


def _assignments(section: str | None, part: Any) -> list[str]:
    """The values of one table as TOML."""
    options = [option for option in all_options().values() if option.section == section]
    values = [(option.name, get(part, option)) for option in options]
    return [f"{name} = {toml_value(value)}" for name, value in values if value is not None]


def _parts(config: Config, section: str | None) -> tuple:
    """The tables of a section; more than one for the layers of a chain."""
    if section == "model":
        return config.layers
    return (config if section is None else getattr(config, section),)


def get(part: Any, option: Option) -> Any:
    """The value of an option in its table; None for an option of a family that was not given."""
    return getattr(part, option.name) if option.name in _OWN else part.options.get(option.name)


def differences(a: Config, b: Config) -> list[str]:
    """Where two configurations differ, the run folder aside: "training.steps (100, now 200)"."""
    olds, news = _values(a), _values(b)
    pairs = [(name, olds.get(name), news.get(name)) for name in olds | news]
    return [f"{name} ({old}, now {new})" for name, old, new in pairs if old != new]


def _values(config: Config) -> dict[str, Any]:
    """Every option by its full name, as "model.depth", or "model.2.depth" in a chain."""
    found = {}
    for option in all_options().values():
        for j, part in enumerate(_parts(config, option.section), start=1):
            chained = option.section == "model" and config.chained
            full = f"model.{j}.{option.name}" if chained else option.full
            found[full] = get(part, option)
    return {name: value for name, value in found.items() if name != "output"}


def family_of(model: ModelSection) -> type[Layer]:
    """The class of the family."""
    return FAMILIES[model.family]


def make_model(config: Config) -> Layer | Network:
    """The layer, or the chain, of a configuration.

    Raises:
        ValueError, TypeError: options that the family refuses, or lacks.
    """
    layers = tuple(_layer(model, config.problem) for model in config.layers)
    return dsc(layers) if config.chained else layers[0]


def _layer(model: ModelSection, problem: ProblemSection) -> Layer:
    cls, options = family_of(model), all_options()
    shared = {n: getattr(problem, n) for n in ("lam", "probability") if n in _names(cls)}
    own: dict[str, Any] = {
        name: activations.from_description(value) if options[name].kind is Activation else value
        for name, value in model.options.items()
    }
    return cls(model.depth, **shared, **own)


def _names(cls: type[Layer]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _flat(tables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Option name -> checked value."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        if key in SECTIONS and isinstance(value, dict):
            values |= {name: _read(name, v, key, path) for name, v in value.items()}
        elif key == "model" and isinstance(value, list) and value:
            values[key] = [_flat_layer(table, path) for table in value]
        elif key in SECTIONS:
            raise ConfigError(f"{path}: {key} must be a table, got {shown(value)}; try [{key}]")
        else:
            values[key] = _read(key, value, None, path)
    return values


def _flat_layer(table: Any, path: Path) -> dict[str, Any]:
    """One table of [[model]]."""
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: model must be a list of tables, [[model]], got {shown(table)}")
    return {name: _read(name, value, "model", path) for name, value in table.items()}


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
    values = dict(values)
    layers = values.pop("model", None)  # of a chain

    def part(section):
        return {name: value for name, value in values.items() if options[name].section == section}

    def model(given):
        own = {name: value for name, value in given.items() if name in _OWN}
        return ModelSection(**own, options={n: v for n, v in given.items() if n not in _OWN})

    return Config(
        **part(None),
        problem=ProblemSection(**part("problem")),
        model=model(part("model")) if layers is None else tuple(map(model, layers)),
        training=TrainingSection(**part("training")),
    )


def _resolved(config: Config) -> Config:
    """The configuration with defaults that depend on other options, if all options fit together."""
    problem = config.problem
    _fits_its_dictionaries(config)
    defaults = _problem_defaults(config)
    optional = [n for n, o in _OWN.items() if o.section == "problem" and o.default is None]
    given = [name for name in optional if getattr(problem, name) is not None]
    where = f"dictionary {problem.dictionary}, signals {problem.signals}"
    _none_of([name for name in given if name not in defaults], where)
    for model in config.layers:
        _check_layer(model)
    if config.training.method == "curriculum":
        _fits_a_curriculum(config)
    missing = {name: value for name, value in defaults.items() if getattr(problem, name) is None}
    return dataclasses.replace(config, problem=dataclasses.replace(problem, **missing))


def _fits_its_dictionaries(config: Config) -> None:
    """Raise ConfigError unless a chain has a dictionary per layer, and a layer has one."""
    given, J = config.problem.dictionary, len(config.layers)
    if config.chained and not (isinstance(given, tuple) and len(given) == J):
        got = len(given) if isinstance(given, tuple) else "one"
        raise ConfigError(
            f"train: [[model]] has {J} layers; expected as many files, problem.dictionary = "
            f'["D_1.npy", "D_2.npy", ...], got {got}'
        )
    if isinstance(given, tuple) and not config.chained:
        raise ConfigError(
            f"train: problem.dictionary has {len(given)} files; expected one for [model], "
            "or a [[model]] for each"
        )


def _check_layer(model: ModelSection) -> None:
    """Raise ConfigError unless the options and the start of a layer are of its family."""
    cls = family_of(model)
    _none_of([n for n in model.options if n not in _names(cls)], f"family {model.family}")
    for start, can in (("analytic", _can_start_analytic), ("calibrated", _can_calibrate)):
        if model.start == start and not can(cls):
            able = ", ".join(name for name, other in FAMILIES.items() if can(other))
            raise ConfigError(f"train: {model.family} cannot start {start}; that is for {able}")


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
    if any("probability" in _names(family_of(model)) for model in config.layers):
        defaults |= dict(probability=0.1)
    return defaults


def _fits_a_curriculum(config: Config) -> None:
    """Raise ConfigError for options that a curriculum has no use for.

    Its loss is that of one step, and its stages are short.
    """
    chosen = config.training
    wrong = [name for name in ("deep", "learn_dictionary") if getattr(chosen, name)]
    wrong += ["schedule cosine"] if chosen.schedule == "cosine" else []
    if config.chained:
        wrong.append("a chain")
    elif all(form.steps is None for form in family_of(config.layers[0]).forms):
        wrong.append(f"family {config.layers[0].family}")
    if wrong:
        raise ConfigError(
            f"train: {', '.join(wrong)} does not go with method curriculum; try end_to_end"
        )


def _none_of(given: list[str], what: str) -> None:
    if given:
        raise ConfigError(f"train: {', '.join(given)} does not go with {what}")
