"""Records identified by their options: equal options give the same object.

Layer families, recipes, configurations and checkpoints are records. Each option declares its type,
limits and help text once; checks, signatures, help, flags, files and messages use this declaration.
"""

import argparse
import collections
import dataclasses
import inspect
import json
import math
import re
import textwrap
import threading
import types
import weakref
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

import jax

from unrolled._base import checks, text
from unrolled._base.arguments import checked, unknown_option

__all__ = ["Record", "changed", "changes", "differences", "option"]
__own__ = [
    "Interned",
    "accept",
    "add_flag",
    "from_plain",
    "from_text",
    "kind_of",
    "to_plain",
    "values_of",
]


def option(
    *,
    default: Any = dataclasses.MISSING,
    help: str = "",
    check: Callable | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    choices: Collection[str] | None = None,
    kw_only: bool = True,
    absent: Any = dataclasses.MISSING,
) -> Any:
    """An option of a record: a field of its class with a default, limits and a help text.

    Values of fields annotated `int`, `float`, `bool` or `str`, alone or in a union with None, are
    checked: an int without `least` must not be negative, and a float without `most` must be finite.
    A field with another annotation accepts any hashable value, unless the field has a `check`.

    Args:
        default: the default value; an option without a default is required.
        help: the text that the docstring of the class and `--help` of the command line show; or
            write the text into the docstring of the class, under `Args:`.
        check: a function; `check(value, name, where)` returns the value in a canonical, hashable
            form, or raises an error.
        least, above, below, most: limits of a number: `>= least`, `> above`, `< below`, `<= most`.
        choices: the allowed words; words can be added later, such as the names of new families.
        kw_only: False if the option can also be given by position.
        absent: the value for files that are older than the option, if this value differs from the
            default.

    Example:
        >>> class _relaxed(ur.layers.ista):
        ...     relaxation: float = ur.layers.option(default=1.0, above=0, below=2)
        >>> _relaxed(3, relaxation=1.5)
        _relaxed(3, relaxation=1.5)
        >>> _relaxed(3, relaxation=2)
        Traceback (most recent call last):
        ValueError: _relaxed: relaxation must be above 0 and below 2 and finite, got 2.0
    """
    limits = dict(least=least, above=above, below=below, most=most, choices=choices)
    metadata = dict(help=help, check=check, absent=absent, **limits)
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


_LOCK = threading.Lock()
_KNOWN: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
# The most recent records are kept alive even if nothing refers to them. Otherwise a program that
# creates its layer anew at every call would also trace it anew at every call.
_RECENT: collections.deque = collections.deque(maxlen=256)


class _Interned(type):
    """The metaclass of records: a call checks options and returns the one record that has them."""

    bound: tuple[str, ...]
    is_kept: bool
    __signature__: inspect.Signature

    def _record(cls: Any, *args: Any, **options: Any) -> Any:
        where = cls.__name__
        if problem := _misfit(cls, args, options):
            names = ", ".join(cls.__signature__.parameters)
            raise TypeError(f"{where}: {problem}; the options are {names}")
        made = super().__call__(*args, **options)
        for field in dataclasses.fields(cls):
            value = accept(field, getattr(made, field.name), field.name, where)
            object.__setattr__(made, field.name, value)
        with _LOCK:
            interned = _KNOWN.setdefault((cls, *map(_typed, values_of(made).values())), made)
            if interned is made:  # `jit` would trace a fresh bound method anew
                vars(made).update({name: getattr(made, name) for name in cls.bound})
            if cls.is_kept:
                _RECENT.append(interned)
        return interned

    if not TYPE_CHECKING:  # otherwise type checkers would give every record the type Any
        __call__ = _record


@dataclass_transform(
    frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(option,)
)
class Record(metaclass=_Interned):
    """A frozen record of options; equal options give the same object.

    Two records are therefore equal only if they are the same object. A record can be a static
    argument of `jit` and is a pytree node without leaves. You can pickle a record, copy it, and
    change it with `dataclasses.replace`. The `repr` of a record is the expression that creates the
    record. Options must be hashable: numbers, strings, tuples, activations.

    Example:
        >>> class _pair(ur.records.Record):
        ...     first: int = ur.records.option(default=1, help="a number")
        ...     second: str = ur.records.option(default="a", choices=("a", "b"))
        >>> _pair(first=2), _pair(first=2) is _pair(second="a", first=2)
        (_pair(first=2), True)
        >>> _pair(second="c")
        Traceback (most recent call last):
        ValueError: _pair: unknown second 'c'; expected one of a, b
    """

    # Methods that are bound once, because `jit` distinguishes functions by identity.
    bound: ClassVar[tuple[str, ...]] = ()
    # Whether the most recent records stay alive. False for records that hold what users own.
    is_kept: ClassVar[bool] = True
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]
        __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        _refuse_hidden(cls)
        helps = text.entries(inspect.cleandoc(vars(cls).get("__doc__") or ""), "Args")
        own = vars(cls).get("__annotations__", {})
        dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)(cls)
        for field in dataclasses.fields(cls):  # `lam: float = 0.1` is an option without limits
            metadata = {**option().metadata, **field.metadata}
            if field.name in own and field.name in helps:
                metadata["help"] = helps[field.name].removesuffix(".")
            field.metadata = types.MappingProxyType(metadata)
        cls.__signature__ = _signature(cls)
        cls.__doc__ = _documented(cls)
        jax.tree_util.register_static(cls)

    @classmethod
    def absent(cls) -> dict[str, Any]:
        """The options that older files lack, with the values that those files imply."""
        values = {field.name: field.metadata["absent"] for field in dataclasses.fields(cls)}
        return {name: v for name, v in values.items() if v is not dataclasses.MISSING}

    def __repr__(self) -> str:
        parts = []
        for name, parameter in type(self).__signature__.parameters.items():
            value = getattr(self, name)
            if parameter.kind is not parameter.KEYWORD_ONLY:
                parts.append(repr(value))
            elif value != parameter.default:
                parts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __reduce__(self):
        return _remade, (type(self), values_of(self))


@checked
def values_of(record: Any) -> dict[str, Any]:
    """All options of a record by name.

    Example:
        >>> ur.records.values_of(ur.training.Checkpoint("a"))["keep"]
        3
    """
    checks.has(record, "__dataclass_fields__", "a record", "record", "values_of")
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _typed(value: Any) -> Any:
    """A key that distinguishes 1, 1.0 and True, also in tuples, because records show the given
    value."""
    return tuple(map(_typed, value)) if type(value) is tuple else (type(value), value)


def _misfit(cls: Any, args: tuple, options: dict[str, Any]) -> str | None:
    """Why a class rejects these options, in words that do not depend on the Python version."""
    parameters = cls.__signature__.parameters
    first = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    filled = {*first[: len(args)], *options}
    if len(args) > len(first):
        return f"{len(args)} options given by position, expected {len(first)} ({', '.join(first)})"
    for name in options:
        if name not in parameters:
            return unknown_option(name, parameters)
        if name in first[: len(args)]:
            return f"{name} given by position and by name"
    for name, p in parameters.items():
        if p.default is p.empty and name not in filled:
            meaning = cls.__dataclass_fields__[name].metadata["help"]
            return f"{name} is missing" + (f" ({meaning})" if meaning else "")
    return None


def _remade(cls, options):
    return cls(**options)


@checked
def kind_of(field: dataclasses.Field) -> type:
    """The annotated type, or the first of a union, if it is int, float, bool or str; else object.

    Example:
        >>> import dataclasses
        >>> [ur.records.kind_of(f).__name__ for f in dataclasses.fields(ur.layers.ista)]
        ['str', 'int', 'bool', 'int', 'float', 'object', 'bool', 'float', 'float']
    """
    name = str(getattr(field.type, "__name__", field.type)).partition(" | ")[0]
    return _KINDS.get(name, object)


@checked
def accept(field: dataclasses.Field, value: Any, name: str, where: str, **limits: Any) -> Any:
    """The value of an option in its canonical, hashable form.

    Args:
        field: the option.
        value: the given value.
        name: name of the option in messages, such as "--depth" or "model.depth".
        where: the beginning of messages.
        limits: further limits, as in `option`.

    Raises:
        TypeError: the value has the wrong type, or is traced.
        ValueError: the value violates a limit.

    Example:
        >>> depth = ur.alista.__dataclass_fields__["depth"]
        >>> ur.records.accept(depth, 3, "--depth", "caller", most=2)
        Traceback (most recent call last):
        ValueError: caller: --depth must be at most 2, got 3
    """
    if not checks.is_concrete(value):
        raise TypeError(f"{where}: {name} must be static, got a traced value; try static_argnames")
    limits, kind = {**field.metadata, **limits}, kind_of(field)
    if limits.get("check") is not None:
        value = limits["check"](value, name, where)
    elif kind is object or (value is None and str(field.type).endswith("| None")):
        pass
    elif kind is bool:
        value = checks.as_bool(value, name, where)
    elif kind is str:
        _one_of(value, name, where, limits.get("choices"))
    else:
        if kind is int:
            most = checks.LARGEST if limits.get("most") is None else math.inf
            value = checks.as_index(value, name, where, least=limits.get("least") or 0, most=most)
        else:
            value = checks.as_number(value, name, where) + 0.0  # turns -0.0 into 0.0
        _within(value, name, where, limits)
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{where}: option {name} must be a number, a string, a tuple or another hashable "
            f"value, got {type(value).__name__}"
        ) from error
    return value


_KINDS: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


def _one_of(value: Any, name: str, where: str, choices: Collection[str] | None) -> None:
    """Raise unless a value is a string and, if there are choices, one of the choices."""
    if not isinstance(value, str):
        raise TypeError(f"{where}: {name} must be a string, got {checks.brief(value)}")
    if choices is not None:
        checks.one_of(value, choices, name, where)


def _within(number: float, name: str, where: str, limits: Mapping[str, Any]) -> None:
    """Raise ValueError unless a number is within the limits; without `most` it must be finite.

    If there are several limits, the message states `most` only if the number is above `most`.
    """
    least, above, below, most = (limits.get(limit) for limit in ("least", "above", "below", "most"))
    good = isinstance(number, int) or math.isfinite(number)
    good = number <= most if most is not None else good
    good = good and (least is None or number >= least)
    if good and (above is None or number > above) and (below is None or number < below):
        return
    bounds = [f"at least {least}"] if least is not None else []
    bounds += [f"above {above}"] if above is not None else []
    bounds += [f"below {below}"] if below is not None else []
    if most is None:
        bounds.append("finite")
    elif number > most or not bounds:
        bounds.append(f"at most {most}")
    raise ValueError(f"{where}: {name} must be {' and '.join(bounds)}, got {checks.brief(number)}")


def _refuse_hidden(cls) -> None:
    """Raise TypeError for an option that would be ignored or that would hide a method."""
    own = inspect.get_annotations(cls)
    inherited = {
        field.name
        for base in cls.__mro__[1:]
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }
    for name in vars(cls):
        if name in inherited and name not in own:
            raise TypeError(
                f"{cls.__name__}: {name} is an option; repeat its type, "
                f"as in `{name}: float = option(default=...)`"
            )
    for name, kind in own.items():
        if name in inherited or "ClassVar" in str(kind):
            continue
        if any(name in vars(base) for base in cls.__mro__[1:]):
            raise TypeError(
                f"{cls.__name__}: the option {name} would hide an inherited attribute of that "
                "name; choose another name"
            )


def _signature(cls: Any) -> inspect.Signature:
    """The signature for `help`: positional options, new options, then inherited options."""
    Parameter, parameters = inspect.Parameter, []
    for field in _ordered(cls):
        kind = Parameter.KEYWORD_ONLY if field.kw_only else Parameter.POSITIONAL_OR_KEYWORD
        default = Parameter.empty if field.default is dataclasses.MISSING else field.default
        parameters.append(Parameter(field.name, kind, default=default, annotation=field.type))
    return inspect.Signature(parameters)


def _ordered(cls) -> list[dataclasses.Field]:
    """The positional fields, then the fields of the class, then the fields that it inherits."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    order = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
    nearest = [fields[name] for name in dict.fromkeys(order) if name in fields]
    return sorted(nearest, key=lambda field: bool(field.kw_only))


_ARGUMENT = textwrap.TextWrapper(88, initial_indent=4 * " ", subsequent_indent=8 * " ")


def _documented(cls) -> str:
    """The docstring of the class with its options under `Args`, before any `Reference`."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or cls.__name__)
    text = re.sub(r"^Args:\n(    .*\n?)+\n?", "", text, flags=re.MULTILINE).rstrip()
    helps = [(field.name, field.metadata["help"]) for field in _ordered(cls)]
    lines = [_ARGUMENT.fill(f"{name}: {help}.") for name, help in helps if help]
    if not lines:
        return text
    head, *rest = re.split(
        r"^(?=Raises:|Reference:|Example:)", text, maxsplit=1, flags=re.MULTILINE
    )
    return "\n".join([head.rstrip(), "", "Args:", *lines, "", *rest])


class Interned(Record):
    """A record of options with pure methods; layers and networks are records of this class.

    Example:
        >>> layer = ur.lista_cp(3, lam=0.2)
        >>> layer is ur.lista_cp(3, lam=0.2), layer
        (True, lista_cp(3, lam=0.2))
        >>> jax.tree.leaves(layer)
        []
    """

    @property
    def options(self) -> dict[str, Any]:
        """All options by name."""
        return values_of(self)


# Files, flags and messages


@checked
def to_plain(record: Any, write: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """The options of a record as JSON can store them, with lists instead of tuples.

    Args:
        record: the record.
        write: a function that returns the stored form of a value that is not a number, text or
            tuple, or None if the value has no such form.

    Raises:
        TypeError: a value has no form that can be stored.

    Example:
        >>> ur.records.to_plain(ur.layers.ista(2), str)["activation"]
        'relu'
    """
    where = type(record).__name__
    return {n: _plain(v, write, f"{where}: option {n}") for n, v in values_of(record).items()}


def _plain(value: Any, write: Callable[[Any], Any] | None, where: str) -> Any:
    if isinstance(value, tuple):
        return [_plain(part, write, where) for part in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    form = None if write is None else write(value)
    if form is None:
        raise TypeError(
            f"{where} is {value!r}, which cannot be saved; expected numbers, text or tuples"
        )
    return form


@checked
def from_plain(value: Any, name: str, where: str) -> Any:
    """A value read from a file, with tuples instead of lists.

    Raises:
        TypeError: the value is not a number, text, or a list of numbers and texts.

    Example:
        >>> ur.records.from_plain(["elu", [0.5]], "activation", "caller")
        ('elu', (0.5,))
    """
    if isinstance(value, list | tuple):
        return tuple(from_plain(part, name, where) for part in value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(
        f"{where}: {name} must be a number, a string or a list of them, got {checks.brief(value)}"
    )


@checked
def from_text(field: dataclasses.Field, text: str) -> Any:
    """The value of a flag, not yet checked: text that does not spell a number stays text.

    If the option is neither a number nor a string, the text may be JSON or a list without brackets.

    Example:
        >>> import dataclasses
        >>> options = {field.name: field for field in dataclasses.fields(ur.alista)}
        >>> [ur.records.from_text(options[n], "0.1, 1") for n in ("lam", "precision", "support")]
        ['0.1, 1', '0.1, 1', [0.1, 1]]
    """
    kind = kind_of(field)
    readings: list[Callable[[], Any]] = [lambda: json.loads(text), lambda: json.loads(f"[{text}]")]
    if kind in (int, float, str):
        readings = [lambda: kind(text)]
    for reading in readings:
        with suppress(ValueError, RecursionError):
            return reading()
    return text


_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}


@checked
def add_flag(group: Any, field: dataclasses.Field, help: str | None = None) -> None:
    """Add the flag `--name` of an option to an argparse parser or group; the value stays text.

    Hyphens replace the underscores of the name.

    Args:
        group: an argparse parser or argument group.
        field: the option.
        help: text that replaces the help of the option, if several records share the flag.

    Example:
        >>> import argparse
        >>> parser = argparse.ArgumentParser()
        >>> ur.records.add_flag(parser, ur.alista.__dataclass_fields__["depth"])
        >>> parser.parse_args(["--depth", "3"])
        Namespace(depth='3')
    """
    checks.has(group, "add_argument", "a parser or a group of argparse", "group", "add_flag")
    choices, default = field.metadata["choices"], field.default
    notes = [", ".join(choices)] if choices is not None else []
    notes += [] if help is not None or default in (None, False) else [f"default {default}"]
    text = help if help is not None else field.metadata["help"]
    text += f" ({'; '.join(notes)})" if notes else ""
    how: dict[str, Any] = {"metavar": _METAVARS.get(kind_of(field), "VALUE")}
    if kind_of(field) is bool:
        how = {"action": argparse.BooleanOptionalAction}
    group.add_argument(flag_of(field.name), default=None, help=text.replace("%", "%%"), **how)


def flag_of(name: str) -> str:
    """The flag of an option: `--test-signals` for "test_signals"."""
    return f"--{name.replace('_', '-')}"


@checked
def changed(record: Any) -> dict[str, Any]:
    """The options that differ from their defaults.

    Example:
        >>> ur.records.changed(ur.lista_cp(3, lam=0.2))
        {'depth': 3, 'lam': 0.2}
    """
    checks.has(record, "__signature__", "a record", "record", "changed")
    parameters = type(record).__signature__.parameters
    return {n: v for n, v in values_of(record).items() if v != parameters[n].default}


changes = checked(text.changes)
differences = checked(text.differences)
