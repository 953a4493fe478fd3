"""What a training is, as frozen dataclasses: read from TOML and from flags, checked, and written
back as TOML.

Every option has one name, the same in the file and as a flag, and no two sections share one.
"""

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any

from unrolled.commands._options import (
    ConfigError,
    Option,
    checked,
    family_option,
    from_text,
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
class ProblemSection:
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
class ModelSection:
    """The layer and where its params start; options left out are those of the family."""

    family: str = setting("alista", "the family of the layer", choices=FAMILIES)
    depth: int = setting(16, "steps K", least=1, most=10_000)
    start: str = setting(
        "init",
        "init, analytic (as theory sets params for the class of the sample) or calibrated",
        choices=("init", "analytic", "calibrated"),
    )
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the family


@dataclasses.dataclass(frozen=True)
class TrainingSection:
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
    problem: ProblemSection = ProblemSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()


SECTIONS = {"problem": ProblemSection, "model": ModelSection, "training": TrainingSection}
_OWN = {
    option.name: option
    for section, cls in {None: Config, **SECTIONS}.items()
    for option in options_of(section, cls)
}
# How a layer runs, and what stands in [problem].
_NOT_OF_MODEL = {"depth", "precision", "unroll", "remat", "lam", "probability"}


def all_options() -> dict[str, Option]:
    """Every option by name: ours, and those of all families that are known now.

    Raises:
        ConfigError: a family has an option with the name of one of ours.
    """
    told: dict[str, dict[str, list[str]]] = {}
    found: dict[str, Option] = {}
    for family, cls in FAMILIES.items():
        for field in dataclasses.fields(cls):
            name, help = field.name, field.metadata.get("help", "")
            if name in _NOT_OF_MODEL:
                continue
            if name in _OWN:
                raise ConfigError(
                    f"train: {family} has an option {name}, but {_OWN[name].full} has that name; "
                    "rename it"
                )
            told.setdefault(name, {}).setdefault(help, []).append(family)
            found.setdefault(name, family_option(field, "model"))
    for name, helps in told.items():
        text = "; ".join(f"{help} ({', '.join(names)})" for help, names in helps.items())
        found[name] = found[name]._replace(limits={**found[name].limits, "help": text})
    return _OWN | found


def load(path: Path | None, flags: dict[str, Any]) -> Config:
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
    values = {"output": str(Path.cwd() / Config.output)}
    values |= {} if path is None else _flat(read_toml(path), path)
    for name, given in flags.items():
        if given is not None:
            option = options[name]
            value = from_text(option, given) if isinstance(given, str) else given
            values[name] = checked(option, value, f"--{name}", Path.cwd())
    return _resolved(_nested(values))


def to_toml(config: Config) -> str:
    """The configuration as TOML, without options that are None; `load` gives it back."""
    lines, section = [], None
    for option in sorted(all_options().values(), key=lambda o: [None, *SECTIONS].index(o.section)):
        if option.section != section:
            section = option.section
            lines += ["", f"[{section}]"]
        value = get(config, option)
        if value is not None:
            lines.append(f"{option.name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def get(config: Config, option: Option):
    """The value of an option; None for one of a family that was not given."""
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
    """The layer that the configuration speaks of.

    Raises:
        ValueError, TypeError: options that the family refuses, or that it needs.
    """
    problem, cls = config.problem, family_of(config)
    shared = {"lam": problem.lam, "probability": problem.probability}
    shared = {name: value for name, value in shared.items() if name in _names(cls)}
    return cls(config.model.depth, **shared, **config.model.options)


def _names(cls: type[Layer]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


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
    options = all_options()
    option = options.get(name)
    if option is None or option.section != section:
        full = shown(name if section is None else f"{section}.{name}")
        raise ConfigError(f"{path}: unknown key {full}{_hint(name, options)}")
    return checked(option, value, f"{path}: {option.full}", path.parent)


def _hint(name: str, options: dict[str, Option]) -> str:
    """What may have been meant."""
    near = [name] if name in options else difflib.get_close_matches(name, [*options, *SECTIONS], 1)
    if not near:
        return f"; expected output, seed or [{'], ['.join(SECTIONS)}]"
    return f"; did you mean {options[near[0]].full if near[0] in options else f'[{near[0]}]'}?"


def _nested(values: dict[str, Any]) -> Config:
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
    """With the defaults that depend on other options filled in, once the options fit together."""
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
    problem, defaults = config.problem, {}
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
    """Raise ConfigError for what a curriculum has no use for.

    Its loss looks at one step, and its stages are short.
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
