"""The configuration of a training: read from TOML and flags, checked, written as TOML."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unrolled import activations
from unrolled.activations import Activation
from unrolled.commands._consistency import resolved
from unrolled.commands._options import (
    ConfigError,
    Option,
    checked,
    family_option,
    from_text,
    merged,
    options_of,
    read_toml,
    shown,
    toml_value,
)
from unrolled.commands._sections import (
    SECTIONS,
    Config,
    ModelSection,
    ProblemSection,
    TrainingSection,
    family_of,
    option_names,
)
from unrolled.layers import FAMILIES, Layer
from unrolled.networks import Network, dsc

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
    return resolved(_nested(values))


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


def make_model(config: Config) -> Layer | Network:
    """The layer, or the chain, of a configuration.

    Raises:
        ValueError, TypeError: options that the family refuses, or lacks.
    """
    layers = tuple(_layer(model, config.problem) for model in config.layers)
    return dsc(layers) if config.chained else layers[0]


def _layer(model: ModelSection, problem: ProblemSection) -> Layer:
    cls, options = family_of(model), all_options()
    shared = {n: getattr(problem, n) for n in ("lam", "probability") if n in option_names(cls)}
    own: dict[str, Any] = {
        name: activations.from_description(value) if options[name].kind is Activation else value
        for name, value in model.options.items()
    }
    return cls(model.depth, **shared, **own)


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
