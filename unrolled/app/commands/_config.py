"""The configuration of a run: read from TOML and flags, checked, and written as TOML.

Every option has one name, the same in the file and as a flag, and belongs to only one section.
"""

import dataclasses
import functools
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from unrolled import activations, records
from unrolled._base import checks
from unrolled.layers import FAMILIES, Layer, Recipe, as_activation, names_with_role
from unrolled.networks import Network, dsc
from unrolled.records import Record, option
from unrolled.training import PlainRun, has_recipe

GENERATED = ("gaussian", "ill_conditioned")
LOSSES = ("supervised", "log_nmse", "mostly_last", "lasso", "reconstruction")
OPTIMIZERS = (
    *("adam", "adamw", "adabelief", "amsgrad", "lion"),
    *("nadam", "radam", "rmsprop", "sgd", "yogi"),
)
PLANTED = "planted"
UNSUPERVISED = "unsupervised"  # the method of `training.unsupervised`
PLANTED_LAM = 0.1  # for codes whose entries are near 1
WITH_CODES = ("supervised", "log_nmse", "mostly_last")  # losses that compare with known codes
# The starts of params, and whether a family has each start.
STARTS: dict[str, Callable[[type[Layer]], bool]] = {
    "init": lambda family: True,
    "analytic": lambda family: family.from_theory is not None or family.starts_from_theory,
    "calibrated": lambda family: any(
        names_with_role(form.steps, "threshold", "relative threshold") for form in family.forms
    ),
    "recipe": lambda family: True,
}
LARGEST = {int: 2**31 - 1, float: 1e30}  # well within the range of numbers in JAX
_SIZE = 2**14  # the most rows or columns of a generated dictionary


class ConfigError(ValueError):
    """A configuration that cannot be read, or that asks for something impossible."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """The check of an option whose value is a word, a file, or several files."""

    words: tuple[str, ...] = ()
    several: bool = False

    def __call__(self, value: Any, name: str, where: str) -> Any:
        """The value, or a tuple for several files; raise unless every value is printable."""
        if self.several and isinstance(value, tuple):
            return tuple(dataclasses.replace(self, several=False)(v, name, where) for v in value)
        if not isinstance(value, str):
            raise TypeError(f"{where}: {name} must be a string, got {checks.brief(value)}")
        if not (value and value.isprintable()):
            raise ValueError(
                f"{where}: {name} must be printable and not empty, got {checks.brief(value)}"
            )
        return value

    def absolute(self, value: Any, base: Path) -> Any:
        """The value with absolute paths; relative paths start at `base`."""
        if isinstance(value, tuple):
            return tuple(str(base.absolute() / path) for path in value)
        return value if value in self.words else str(base.absolute() / value)


class Problem(Record):
    """The dictionary, the signals, and the weight of the LASSO.

    Args:
        m: signal length of a generated D (default 250).
        d: number of atoms of a generated D (default 500).
        kappa: condition number of an ill_conditioned D (default 10).
        dictionary_seed: seed of a generated D (default 0).
        signals: planted, or a .npy or .npz file (entry Y, and if codes are known X, for a chain
            X_1, X_2, ...).
        codes: compute codes of the signals in a file once, by pursuit.lasso_batch with lam, and
            save the codes with the weights (default: read the codes in the file, if any).
        ratio: lam of --codes lasso if --lam is not given, as a fraction of the lam at which nine
            signals in ten have the code 0 (default 0.1).
        probability: probability that an entry of a generated code, or in TISTA's prior, is nonzero
            (default 0.1).
        snr: signal-to-noise ratio of the generated signals, dB (default inf: no noise).
        test_signals: number of generated signals to test on (default 1000).
        lam: weight of the LASSO, in the loss and at the start of families that use it (default 0.1
            if codes are known; else a tenth of the lam at which nine codes in ten are 0).
    """

    dictionary: str | tuple[str, ...] = option(
        default="gaussian",
        check=Paths(GENERATED, several=True),
        help=f"{' or '.join(GENERATED)}, or a .npy or .npz file (entry D); for a chain a list of "
        "files",
    )
    m: int | None = option(default=None, least=1, most=_SIZE)
    d: int | None = option(default=None, least=1, most=_SIZE)
    kappa: float | None = option(default=None, least=1)
    dictionary_seed: int | None = option(default=None, least=0, most=2**32 - 1)
    signals: str = option(default=PLANTED, check=Paths((PLANTED,)))
    codes: str | None = option(default=None, choices=("lasso",))
    ratio: float | None = option(default=None, above=0, most=1)
    probability: float | None = option(default=None, above=0, most=1)
    snr: float | None = option(default=None, least=-300, most=math.inf)
    test_signals: int | None = option(default=None, least=1, most=10**6)
    lam: float | None = option(default=None, least=0)


class ModelOptions(Record):
    """The options of a model that every family has.

    Args:
        family: family of the layer.
        depth: number of steps K.
        start: how the params start; analytic sets the params by theory for the class of signals;
            recipe also sets the options of the family and of the training, unless you set them, to
            values that suit the family and known codes.
    """

    family: str = option(default="alista", choices=FAMILIES)
    depth: int = option(default=16, least=1, most=10_000)
    start: str = option(default="init", choices=STARTS)


class Model(Record):
    """A layer, and how its params start."""

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

    @property
    def needs_codes(self) -> bool:
        """Whether the start needs the known codes of a sample."""
        by_theory = self.start == "analytic" and self.layer.from_theory is not None
        return by_theory or self.start == "recipe"

    @property
    def set_on_signals(self) -> bool:
        """Whether the start needs signals of the problem."""
        return self.needs_codes or self.start == "calibrated"


class Training(PlainRun):
    """The loss, the optimiser, and when to evaluate and to save.

    Args:
        method: train all steps at once (end_to_end), or one step after another (curriculum);
            unsupervised, which trains bcd by one recipe (or lfista_cp, if you name it), is the
            default for signals without codes if no family, start, loss or method is given.
        loss: loss of the codes.
        deep: sum the loss over all steps, not only the last one.
        optimizer: optimiser of optax.
        rate: learning rate of the optimiser.
        schedule: schedule of the learning rate.
        clip: norm to which larger gradients are clipped; inf for no clipping.
        steps: training steps; in a curriculum, the steps of each of its 3 K stages; with
            unsupervised, the steps after its trials (default 2000).
        batch: number of signals in a batch.
        learn_dictionary: also train D.
        save_every: training steps between two checkpoints.
    """

    method: str = option(default="end_to_end", choices=("end_to_end", "curriculum", UNSUPERVISED))
    loss: str = option(default="supervised", choices=LOSSES)
    deep: bool = option(default=False)
    optimizer: str = option(default="adam", choices=OPTIMIZERS)
    rate: float = option(default=1e-3, above=0)
    schedule: str = option(default="constant", choices=("constant", "cosine"))
    clip: float = option(default=math.inf, above=0, most=math.inf)
    steps: int = option(default=1000, least=1)
    batch: int = option(default=64, least=1)
    learn_dictionary: bool = option(default=False)
    save_every: int = option(default=500, least=1)


class Config(Record):
    """The configuration of a run.

    Args:
        output: the run folder.
        seed: seed of all random numbers except those of the dictionary.
    """

    output: str = option(default="unrolled-run", check=Paths())
    seed: int = option(default=0, check=checks.as_seed)
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


def _option_names(cls: type) -> set[str]:
    """The options of a family."""
    return {field.name for field in dataclasses.fields(cls)}


def _refuse(names: list[str], what: str) -> None:
    """Raise ConfigError if `names`, the options that do not go with `what`, is not empty."""
    if names:
        raise ConfigError(f"train: {', '.join(names)} does not go with {what}")


def _with_defaults(problem: Problem, families: list[type[Layer]], chained: bool) -> Problem:
    """The problem with the defaults that depend on its other options.

    Raises:
        ConfigError: an option does not go with the dictionary, the signals or the families.
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
    if any("probability" in _option_names(family) for family in families):
        defaults |= dict(probability=0.1)
    fields = [field for field in dataclasses.fields(Problem) if field.default is None]
    optional = {field.name: getattr(problem, field.name) for field in fields}
    idle = [name for name, value in optional.items() if value is not None and name not in defaults]
    _refuse(idle, f"dictionary {problem.dictionary}, signals {problem.signals}")
    missing = {name: value for name, value in defaults.items() if optional[name] is None}
    return dataclasses.replace(problem, **missing)


def _check_dictionaries(problem: Problem, layers: int, chained: bool) -> None:
    """Raise ConfigError unless there is one dictionary for each layer."""
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


def _trained_by(recipe: Recipe, method: str) -> dict[str, Any]:
    """The training options for which a recipe has a value."""
    options: dict[str, Any] = dict(loss="mostly_last", clip=1.0, steps=recipe.steps)
    options |= {"schedule": "cosine"} if method == "end_to_end" else {"steps": 50}
    return options | ({"rate": recipe.rate} if recipe.rate else {})


def _check_pairs(config: Config) -> None:
    """Raise ConfigError if a family lacks the start, or a curriculum cannot use an option.

    A curriculum trains on the loss of one step at a time, in short stages.
    """
    training, layer = config.training, config.layers[0].layer
    if training.method == UNSUPERVISED:
        _check_unsupervised(config)
    for model in config.layers:
        if not (can := STARTS[model.start])(type(model.layer)):
            able = ", ".join(name for name, family in FAMILIES.items() if can(family))
            raise ConfigError(
                f"train: {model.family} cannot start {model.start}; that is for {able}"
            )
    if training.method != "curriculum":
        return
    wrong = ["deep"] if training.deep else []
    wrong += ["schedule cosine"] if training.schedule == "cosine" else []
    if config.chained:
        wrong.append("a chain")
    elif all(form.steps is None for form in layer.forms):
        wrong.append(f"family {layer.family}")
    if wrong:
        raise ConfigError(
            f"train: {', '.join(wrong)} does not go with method curriculum; try end_to_end"
        )


_SET_BY_RECIPE = ("deep", "optimizer", "rate", "schedule", "clip", "learn_dictionary")


def _check_unsupervised(config: Config) -> None:
    """Raise ConfigError if an option is given that the recipe for signals without codes sets."""
    training, (model, *others) = config.training, config.layers
    _refuse(["a chain"] if others else [], f"method {UNSUPERVISED}")
    wrong = [] if has_recipe(model.layer) else [repr(model.layer)]
    wrong += [] if model.start == "init" else [f"start {model.start}"]
    wrong += [] if training.loss == "lasso" else [f"loss {training.loss}"]
    default = Training()
    wrong += [n for n in _SET_BY_RECIPE if getattr(training, n) != getattr(default, n)]
    _refuse(wrong, f"method {UNSUPERVISED}, which sets it; name a family and a loss for another")


# Reading and writing

_LARGEST_BYTES = 2**20  # of a file; a configuration is a page of text
_SHARED = ("lam", "probability")  # options of families that stand in [problem]
# Options of families without a flag: another option sets them, or they say how a layer runs.
_NOT_OF_MODEL = ("depth", "precision", "unroll", "remat", *_SHARED)
_RESERVED = ("config", "help", "json", "resume", "model")  # arguments, and the key of a chain
_OWN_FAMILY = "a family of your own needs --import MODULE"


class Option(NamedTuple):
    """One option, from a file or from a flag."""

    name: str
    section: str | None
    fields: Mapping[str, dataclasses.Field]  # by family; under "" if all families have the option

    @property
    def full(self) -> str:
        """The name with its section: "training.steps"."""
        return self.name if self.section is None else f"{self.section}.{self.name}"

    def add_flag(self, group: Any) -> None:
        """Add the flag of the option; its help says what the option is in each family."""
        # A switch takes no text, but another family may need text.
        fields = sorted(self.fields.values(), key=lambda field: records.kind_of(field) is bool)
        helps: dict[tuple[str, str], list[str]] = {}
        for family, field in self.fields.items():
            default = field.default  # the help omits it if it is missing, None or False
            has_default = isinstance(default, int | float | str) and default is not False
            note = f"; default {default}" if has_default else ""
            helps.setdefault((field.metadata["help"], note), []).append(family)
        text = "; ".join(f"{help} ({', '.join(f)}{note})" for (help, note), f in helps.items())
        records.add_flag(group, fields[0], None if "" in self.fields else text.strip())


class Given(NamedTuple):
    """The value of an option, and where the value comes from."""

    value: Any  # the text of a flag, or the value in TOML
    name: str  # the name of the option, for messages
    where: str  # the name of the caller or the file, for messages
    base: Path  # where relative paths start
    is_text: bool = False  # whether the value is the text of a flag


Table = dict[str, Given]
_BCD = Given("bcd", "model.family", "train", Path())


def all_options() -> Mapping[str, Option]:
    """Every option by name: the options of the command, and of all families that are known now.

    Raises:
        ConfigError: an option of a family has the name of an option of the command.
    """
    return _options_with(tuple(FAMILIES.values()))


@functools.lru_cache(maxsize=1)
def _options_with(families: tuple[type[Layer], ...]) -> Mapping[str, Option]:
    tables: list[tuple[str | None, type[Record]]] = [(None, Config), *SECTIONS.items()]
    own = {
        field.name: Option(field.name, section, {"": field})
        for section, cls in tables
        for field in map(cls.__dataclass_fields__.__getitem__, cls.__signature__.parameters)
        if field.name not in SECTIONS
    }
    of_families: dict[str, dict[str, dataclasses.Field]] = {}
    for cls in families:
        for field in dataclasses.fields(cls):
            if _is_set_elsewhere(cls, field.name):
                continue
            if field.name in own or field.name in _RESERVED:
                raise ConfigError(
                    f"train: the family {cls.__name__} has an option {field.name}, "
                    "which has another meaning here; rename it"
                )
            of_families.setdefault(field.name, {})[cls.__name__] = field
    shared = {name: Option(name, "model", fields) for name, fields in of_families.items()}
    return MappingProxyType(own | shared)


def _is_set_elsewhere(family: type[Layer], name: str) -> bool:
    """Whether an option of a family has no flag, such as one that the recipe's search sets."""
    return name in _NOT_OF_MODEL or name in family.recipe.searched


def load(path: Path | None, flags: Mapping[str, Any]) -> Config:
    """The configuration of a TOML file and of flags; flags override the file.

    Relative paths in the file start at the folder of the file; relative paths in flags start at the
    current folder.

    Args:
        path: the file; if None, the configuration has only flags and defaults.
        flags: name -> text or value; None for a flag that was not given.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, a value has the wrong type or is
            out of range, options do not fit together, or a family refuses or lacks an option.
        FileNotFoundError: the file does not exist.
    """
    tables = {} if path is None else tables_of(_read_toml(path), path)
    options = all_options()
    for name, value in flags.items():
        if value is None:
            continue
        section = options[name].section
        table = tables.setdefault(section, {})
        if isinstance(table, list):
            raise ConfigError(
                f"{records.flag_of(name)}: the file has a chain; set it there, in [[model]]"
            )
        table[name] = Given(
            value, records.flag_of(name), "train", Path.cwd(), isinstance(value, str)
        )
    return configuration(tables)


def leaves_open(path: Path | None, flags: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether the file and the flags give none of these options, and the file has no chain."""
    tables = {} if path is None else tables_of(_read_toml(path), path)
    if any(isinstance(table, list) for table in tables.values()):
        return False
    given = {name for table in tables.values() for name in table}
    given |= {name for name, value in flags.items() if value is not None}
    return not given & set(names)


def _read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raise ConfigError for other files."""
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
    """The options of a file by section; for a chain, a list of tables.

    Options outside of all sections have the key None.

    Raises:
        ConfigError: a name is unknown, or a section is not a table.
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
    if section == "model" and "family" in values:  # first: the known options depend on it
        _family({"family": Given(values["family"], "model.family", str(path), path.parent)})
    for name in values:
        if name not in options or options[name].section != section:
            full = checks.brief(name if section is None else f"{section}.{name}")
            raise ConfigError(f"{path}: unknown key {full}{_hint(name, options)}")
    return {n: Given(v, options[n].full, str(path), path.parent) for n, v in values.items()}


def _hint(name: str, options: Mapping[str, Option]) -> str:
    """The end of a message: the option that the user may have meant."""
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
    training = _accepted(Training, tables.get("training", {}))
    if training.get("method") == UNSUPERVISED:
        training = {"loss": "lasso", "steps": 2000} | training
        layers = layers if chained else {"family": _BCD} | layers
    layers = layers if chained else [layers]
    families = [_family(table) for table in layers]
    problem = Problem(**_accepted(Problem, tables.get("problem", {})))
    problem = _with_defaults(problem, families, chained)
    models = tuple(_model(table, cls, problem) for table, cls in zip(layers, families))
    if models[0].start == "recipe":
        method = training.get("method", Training.method)
        training = _trained_by(models[0].layer.recipe, method) | training
    config = Config(
        **{"output": str(Path.cwd() / Config.output), **top},
        problem=problem,
        model=models if chained else models[0],
        training=Training(**training),
    )
    _check_pairs(config)
    return config


def _family(table: Table) -> type[Layer]:
    """The family of a table; raise ConfigError if the family is unknown."""
    if "family" not in table:
        return FAMILIES[ModelOptions.family]
    try:
        return FAMILIES[_accepted(ModelOptions, {"family": table["family"]})["family"]]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{error}; {_OWN_FAMILY}") from error


def _model(table: Table, cls: type[Layer], problem: Problem) -> Model:
    """The layer of a table, with the options of its family."""
    own = _option_names(ModelOptions)
    chosen = ModelOptions(**_accepted(ModelOptions, {n: table[n] for n in table if n in own}))
    options = {name: entry for name, entry in table.items() if name not in own}
    _refuse(
        [name for name in options if name not in _option_names(cls)],
        f"family {chosen.family}",
    )
    values: dict[str, Any] = {"lam": PLANTED_LAM if problem.lam is None else problem.lam}
    values |= {"probability": problem.probability}
    shared = {name: value for name, value in values.items() if name in _option_names(cls)}
    layer = cls(chosen.depth, **shared, **_accepted(cls, options))
    return Model(layer=layer, start=chosen.start)


def _accepted(cls: type, table: Table) -> dict[str, Any]:
    """The options of a table, in the types of the fields of `cls`."""
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
    most = LARGEST.get(records.kind_of(field)) if most is None else most
    value = records.accept(field, value, name, where, most=most)
    return check.absolute(value, base) if isinstance(check, Paths) else value


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration in types that JSON can hold, except infinite numbers."""
    models = [
        {
            "family": model.family,
            "depth": model.depth,
            "start": model.start,
            "options": {
                name: value
                for name, value in records.to_plain(model.layer, activations.describe).items()
                if not _is_set_elsewhere(type(model.layer), name)
                and name not in _left_to_recipe(model)
            },
        }
        for model in config.layers
    ]
    return {
        "output": config.output,
        "seed": config.seed,
        "problem": records.to_plain(config.problem),
        "model": models if config.chained else models[0],
        "training": {
            name: value
            for name, value in records.to_plain(config.training).items()
            if config.training.method != UNSUPERVISED or name not in _SET_BY_RECIPE
        },
    }


def _left_to_recipe(model: Model) -> set[str]:
    """The options that a start by recipe sets: all options with their default values."""
    if model.start != "recipe":
        return set()
    fields = dataclasses.fields(model.layer)
    return {field.name for field in fields if getattr(model.layer, field.name) == field.default}


def _flat(value: Any) -> Any:
    """Tables without options that are None; a family's options stand next to its name."""
    if isinstance(value, dict):
        whole = {**value, **value.get("options", {})}
        return {n: _flat(v) for n, v in whole.items() if v is not None and n != "options"}
    return list(map(_flat, value)) if isinstance(value, list) else value


def to_toml(config: Config) -> str:
    """The configuration as TOML, without options that are None; `load` reads it back."""
    import tomli_w

    return tomli_w.dumps(_flat(to_dict(config)))


def differences(a: Config, b: Config) -> list[str]:
    """The differences, as in "training.steps (100, now 200)", without the run folder."""
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


def make_model(config: Config) -> Layer | Network:
    """The layer, or the chain, of a configuration."""
    layers = tuple(model.layer for model in config.layers)
    return dsc(layers) if config.chained else layers[0]
