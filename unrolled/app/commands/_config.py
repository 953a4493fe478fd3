"""The configuration of a run: read from TOML and flags, checked, written as TOML."""

import dataclasses
import functools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from unrolled import activations, records
from unrolled._base import checks
from unrolled.app.commands import _sections
from unrolled.app.commands._sections import (
    SECTIONS,
    Config,
    ConfigError,
    Model,
    ModelOptions,
    Problem,
)
from unrolled.layers import FAMILIES, Layer, as_activation
from unrolled.networks import Network, dsc

_LARGEST_BYTES = 2**20  # of a configuration, which is a page of text
_SHARED = ("lam", "probability")  # options of families that stand in [problem]
# Options of families that are set elsewhere, or that say how a layer runs.
_NOT_OF_MODEL = ("depth", "precision", "unroll", "remat", *_SHARED)
_RESERVED = ("config", "help", "json", "resume", "model")  # arguments, and the key of a chain
_OWN_FAMILY = "a family of your own needs --import MODULE"


class Option(NamedTuple):
    """One option, wherever it comes from."""

    name: str
    section: str | None
    fields: Mapping[str, dataclasses.Field]  # by family; under "" where it is of all of them

    @property
    def full(self) -> str:
        """The name with its section: "training.steps"."""
        return self.name if self.section is None else f"{self.section}.{self.name}"

    def add_flag(self, group: Any) -> None:
        """The flag of the option; its help says what it is in each family."""
        # A switch takes no text, which another family may want.
        fields = sorted(self.fields.values(), key=lambda field: records.kind_of(field) is bool)
        helps: dict[tuple[str, str], list[str]] = {}
        for family, field in self.fields.items():
            default = field.default  # absent, None or False are no news
            has_default = isinstance(default, int | float | str) and default is not False
            note = f"; default {default}" if has_default else ""
            helps.setdefault((field.metadata["help"], note), []).append(family)
        text = "; ".join(f"{help} ({', '.join(f)}{note})" for (help, note), f in helps.items())
        records.add_flag(group, fields[0], None if "" in self.fields else text.strip())


class Given(NamedTuple):
    """The value of an option, and where it comes from."""

    value: Any  # text of a flag, or as TOML has it
    name: str  # in messages
    where: str  # what messages begin with
    base: Path  # where relative paths start
    is_text: bool = False  # of a flag


Table = dict[str, Given]


def all_options() -> Mapping[str, Option]:
    """Every option by name: ours, and those of all families that are known now.

    Raises:
        ConfigError: a family has an option with the name of one of ours.
    """
    return _options_with(tuple(FAMILIES.values()))


@functools.lru_cache(maxsize=1)
def _options_with(families: tuple[type[Layer], ...]) -> Mapping[str, Option]:
    tables: list[tuple[str | None, type]] = [(None, Config), *SECTIONS.items()]
    own = {
        field.name: Option(field.name, section, {"": field})
        for section, cls in tables
        for field in dataclasses.fields(cls)
        if field.metadata["help"]
    }
    of_families: dict[str, dict[str, dataclasses.Field]] = {}
    for cls in families:
        for field in dataclasses.fields(cls):
            if field.name in _NOT_OF_MODEL:
                continue
            if field.name in own or field.name in _RESERVED:
                raise ConfigError(
                    f"train: the family {cls.__name__} has an option {field.name}, "
                    "which has another meaning here; rename it"
                )
            of_families.setdefault(field.name, {})[cls.__name__] = field
    shared = {name: Option(name, "model", fields) for name, fields in of_families.items()}
    return MappingProxyType(own | shared)


def load(path: Path | None, flags: Mapping[str, Any]) -> Config:
    """The configuration of a TOML file and of flags, which override it.

    Relative paths in the file start at its folder, those of flags at the current one.

    Args:
        path: None takes flags and defaults alone.
        flags: by name, as text or as values; None where a flag was not given.

    Raises:
        ConfigError: an unreadable file, unknown names, wrong types, values out of range, options
            that do not fit together, or that a family refuses or lacks.
        FileNotFoundError: no such file.
    """
    tables = {} if path is None else tables_of(_read_toml(path), path)
    options = all_options()
    for name, value in flags.items():
        if value is None:
            continue
        section = options[name].section
        table = tables.setdefault(section, {})
        if isinstance(table, list):
            raise ConfigError(f"--{name}: the file has a chain; set it there, in [[model]]")
        table[name] = Given(value, f"--{name}", "train", Path.cwd(), isinstance(value, str))
    return configuration(tables)


def _read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raise ConfigError for what is none."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected a TOML file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes; expected at most {_LARGEST_BYTES}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as TOML ({error})") from error


def tables_of(file: Mapping[str, Any], path: Path) -> dict[str | None, Any]:
    """The options of a file by section, under None those of no section; a chain has a list.

    Raises:
        ConfigError: unknown names, or a section that is no table.
    """
    tables: dict[str | None, Any] = {}
    for key, value in file.items():
        if key in SECTIONS and isinstance(value, dict):
            tables[key] = _table(value, key, path)
        elif key == "model" and isinstance(value, list) and value:
            tables[key] = [_table(layer, key, path) for layer in value]
        elif key in SECTIONS:
            got = checks.brief(value)
            raise ConfigError(f"{path}: {key} must be a table, got {got}; try [{key}]")
        else:
            tables.setdefault(None, {}).update(_table({key: value}, None, path))
    return tables


def _table(values: Any, section: str | None, path: Path) -> Table:
    if not isinstance(values, dict):
        got = checks.brief(values)
        raise ConfigError(f"{path}: model must be a list of tables, [[model]], got {got}")
    options = all_options()
    if section == "model" and "family" in values:  # first: without it its options are unknown
        _family({"family": Given(values["family"], "model.family", str(path), path.parent)})
    for name in values:
        if name not in options or options[name].section != section:
            full = checks.brief(name if section is None else f"{section}.{name}")
            raise ConfigError(f"{path}: unknown key {full}{_hint(name, options)}")
    return {n: Given(v, options[n].full, str(path), path.parent) for n, v in values.items()}


def _hint(name: str, options: Mapping[str, Option]) -> str:
    """What may have been meant."""
    likely = name if name in options else checks.nearest(name, [*options, *SECTIONS])
    if likely is None:
        return f"; expected output, seed or [{'], ['.join(SECTIONS)}]; an option of {_OWN_FAMILY}"
    return f"; did you mean {options[likely].full if likely in options else f'[{likely}]'}?"


def configuration(tables: Mapping[str | None, Any]) -> Config:
    """The configuration of tables, see `tables_of`.

    Raises:
        ConfigError: as in `load`.
    """
    try:
        return _configuration(tables)
    except ConfigError:
        raise
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _configuration(tables: Mapping[str | None, Any]) -> Config:
    top = _accepted(Config, tables.get(None, {}))
    layers = tables.get("model", {})
    chained = isinstance(layers, list)
    layers = layers if chained else [layers]
    families = [_family(table) for table in layers]
    problem = Problem(**_accepted(Problem, tables.get("problem", {})))
    problem = _sections.with_defaults(problem, families, chained)
    models = tuple(_model(table, cls, problem) for table, cls in zip(layers, families))
    training = _accepted(_sections.Training, tables.get("training", {}))
    if models[0].start == "recipe":
        method = training.get("method", _sections.Training.method)
        training = _sections.trained_by(models[0].layer.recipe, method) | training
    config = Config(
        **{"output": str(Path.cwd() / Config.output), **top},
        problem=problem,
        model=models if chained else models[0],
        training=_sections.Training(**training),
    )
    _sections.check_curriculum(config)
    return config


def _family(table: Table) -> type[Layer]:
    """The family of a table; raise ConfigError unless this process knows it."""
    if "family" not in table:
        return FAMILIES[ModelOptions.family]
    try:
        return FAMILIES[_accepted(ModelOptions, {"family": table["family"]})["family"]]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{error}; {_OWN_FAMILY}") from error


def _model(table: Table, cls: type[Layer], problem: Problem) -> Model:
    """The layer of a table, with the options of its family."""
    own = _sections.option_names(ModelOptions)
    chosen = ModelOptions(**_accepted(ModelOptions, {n: table[n] for n in table if n in own}))
    options = {name: entry for name, entry in table.items() if name not in own}
    _sections.refuse(
        [name for name in options if name not in _sections.option_names(cls)],
        f"family {chosen.family}",
    )
    _sections.check_start(cls, chosen.start)
    values: dict[str, Any] = {"lam": _sections.PLANTED_LAM if problem.lam is None else problem.lam}
    values |= {"probability": problem.probability}
    shared = {name: value for name, value in values.items() if name in _sections.option_names(cls)}
    layer = cls(chosen.depth, **shared, **_accepted(cls, options))
    return Model(layer=layer, start=chosen.start)


def _accepted(cls: type, table: Table) -> dict[str, Any]:
    """The options of a record as it takes them."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return {name: _value(fields[name], value) for name, value in table.items()}


def _value(field: dataclasses.Field, entry: Given) -> Any:
    value, name, where, base, is_text = entry
    check, most = field.metadata["check"], field.metadata["most"]
    value = records.from_text(field, value) if is_text else value
    value = records.from_plain(value, name, where)
    if check is as_activation:
        try:
            value = activations.from_description(value)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            expected = 'a name or a list such as ["elu", 0.5]'
            raise ConfigError(f"{where}: {name} must be {expected} ({error})") from error
    most = _sections.LARGEST.get(records.kind_of(field)) if most is None else most
    value = records.accept(field, value, name, where, most=most)
    return check.absolute(value, base) if isinstance(check, _sections.Paths) else value


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON can hold it, but for infinite numbers."""
    models = [
        {
            "family": model.family,
            "depth": model.depth,
            "start": model.start,
            "options": {
                name: value
                for name, value in records.to_plain(model.layer, activations.describe).items()
                if name not in _NOT_OF_MODEL and name not in _left_to_recipe(model)
            },
        }
        for model in config.layers
    ]
    return {
        "output": config.output,
        "seed": config.seed,
        "problem": records.to_plain(config.problem),
        "model": models if config.chained else models[0],
        "training": records.to_plain(config.training),
    }


def _left_to_recipe(model: Model) -> set[str]:
    """The options that the recipe of the family sets: those that have their defaults."""
    if model.start != "recipe":
        return set()
    fields = dataclasses.fields(model.layer)
    return {field.name for field in fields if getattr(model.layer, field.name) == field.default}


def _flat(value: Any) -> Any:
    """Tables without options that are None, and those of a family beside its name."""
    if isinstance(value, dict):
        whole = {**value, **value.get("options", {})}
        return {n: _flat(v) for n, v in whole.items() if v is not None and n != "options"}
    return list(map(_flat, value)) if isinstance(value, list) else value


def to_toml(config: Config) -> str:
    """The configuration as TOML, without options that are None; `load` reads it back."""
    import tomli_w

    return tomli_w.dumps(_flat(to_dict(config)))


def differences(a: Config, b: Config) -> list[str]:
    """Where two configurations differ, the run folder aside: "training.steps (100, now 200)"."""
    old, new = (dict(_by_full_name(_flat(to_dict(config)))) for config in (a, b))
    changed = records.changes(old | {"output": None}, new | {"output": None})
    return [f"{name} ({before}, now {now})" for name, (before, now) in changed.items()]


def _by_full_name(table: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its full name, as "model.depth", or "model.2.depth" in a chain."""
    if isinstance(table, list) and table and isinstance(table[0], dict):
        table = {str(j): layer for j, layer in enumerate(table, start=1)}
    if not isinstance(table, dict):
        yield above, table
        return
    for name, value in table.items():
        yield from _by_full_name(value, f"{above}.{name}" if above else name)


def with_lam(config: Config, lam: float) -> Config:
    """The configuration with a lam, which its layers have too where they have the option."""

    def one(model: Model) -> Model:
        if "lam" not in _sections.option_names(type(model.layer)):
            return model
        changed: dict[str, Any] = {"lam": lam}
        return dataclasses.replace(model, layer=dataclasses.replace(model.layer, **changed))

    model = config.model
    return dataclasses.replace(
        config,
        problem=dataclasses.replace(config.problem, lam=lam),
        model=tuple(map(one, model)) if isinstance(model, tuple) else one(model),
    )


def make_model(config: Config) -> Layer | Network:
    """The layer, or the chain, of a configuration."""
    layers = tuple(model.layer for model in config.layers)
    return dsc(layers) if config.chained else layers[0]
