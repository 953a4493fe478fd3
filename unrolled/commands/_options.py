"""Options as data: name, type, limits and help; their values from TOML or text, and back."""

import dataclasses
import difflib
import json
import math
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from unrolled import activations
from unrolled.activations import Activation
from unrolled.layers import as_activation, as_support

_LARGEST_BYTES = 2**20  # of a configuration, which is a page of text
_LARGEST_INTEGER = 2**31 - 1
_LARGEST_FLOAT = 1e30  # well within float32
_LONGEST = 60  # characters of a value in a message


class ConfigError(ValueError):
    """A configuration that cannot be read, or that asks for something impossible."""


def setting(default: Any, text: str, **limits: Any) -> Any:
    """A field of a dataclass with its help and its limits.

    Args:
        default: its value where none is given.
        text: shown by `--help`.
        limits: `choices`, `least`, `above`, `most`; `words`, which a path may be instead of a file;
            `unknown`, advice on a value that is not among the choices; `several`, whether a list of
            files may stand for one.
    """
    return dataclasses.field(default=default, metadata=dict(help=text, **limits))


class Option(NamedTuple):
    """One option, wherever it comes from."""

    name: str
    section: str | None
    # int, float, bool, str, tuple (of two numbers), Activation (a description by
    # `activations.describe`), or object (whatever a file can hold).
    kind: type
    default: Any
    limits: Mapping[str, Any]  # those of `setting`, and its help

    @property
    def full(self) -> str:
        """The name with its section: "training.steps"."""
        return self.name if self.section is None else f"{self.section}.{self.name}"


def options_of(section: str | None, cls: type) -> list[Option]:
    """The settings of a dataclass."""
    hints = typing.get_type_hints(cls)
    return [
        Option(field.name, section, _kind(hints[field.name]), field.default, field.metadata)
        for field in dataclasses.fields(cls)
        if "help" in field.metadata
    ]


def _kind(hint: Any) -> type:
    """int for `int` and for `int | None`, and so on."""
    return next((part for part in typing.get_args(hint) if part is not NoneType), hint)


_KINDS = {"int": int, "float": float, "bool": bool, "str": str}


def family_option(field: dataclasses.Field, section: str) -> Option:
    """An option of a family of layers; the layer itself has the last word on its value."""
    told = field.metadata
    limits = {name: told[name] for name in ("least", "above") if told.get(name) is not None}
    name = str(getattr(field.type, "__name__", field.type)).removesuffix(" | None")
    kind = _KINDS.get(name, object)
    if told.get("check") is as_support:
        kind, limits = tuple, dict(least=0, most=1)
    elif told.get("check") is as_activation:
        kind, limits = Activation, dict(choices=activations.NAMED)
    return Option(field.name, section, kind, None, limits | {"help": told.get("help", "")})


def merged(a: Option, b: Option) -> Option:
    """One option for those of two families; what they disagree on is left to the layers."""
    if a.kind is not b.kind:
        return a._replace(kind=object, limits={})
    limits = {name: limit for name, limit in a.limits.items() if b.limits.get(name) == limit}
    return a._replace(limits=limits)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: a folder, a large file, or no TOML. FileNotFoundError: no such file.
    """
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


_EXPECTED = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "two numbers",
    Activation: 'a name or a list such as ["elu", 0.5]',
    object: "a number, a string or a list of them",
}


def from_text(option: Option, text: str) -> Any:
    """The value of a flag."""
    kind = option.kind
    try:
        if kind is tuple:
            return [float(part) for part in text.split(",")]
        if kind is Activation:
            return json.loads(text) if text.startswith("[") else text
        return _literal(text) if kind is object else kind(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"--{option.name} must be {_EXPECTED[kind]}, got {shown(text)}"
        ) from error


def _literal(text: str) -> Any:
    """A number, true, false or a list as JSON has them, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def checked(option: Option, value: Any, where: str, base: Path) -> Any:
    """`value` in the type of the option and within its limits.

    A relative path starts at `base`.

    Raises:
        ConfigError: another type, or beyond the limits; `where` says which option it is.
    """
    limits = option.limits
    if limits.get("several") and isinstance(value, list | tuple):
        one = option._replace(limits={**limits, "several": False, "words": ()})
        return tuple(checked(one, part, where, base) for part in value)
    value = _typed(option.kind, value, where)
    if isinstance(value, str):
        if not (value and value.isprintable()):
            raise ConfigError(f"{where} must be printable and not empty, got {value!r}")
        _one_of(value, limits, where)
        is_path = value not in limits.get("words", (value,))
        return str(base.absolute() / value) if is_path else value
    if option.kind in (int, float, tuple):
        for number in value if option.kind is tuple else [value]:
            _in_range(number, limits, option.kind, where)
    return value


def _typed(kind: type, value: Any, where: str) -> Any:
    numbers = isinstance(value, int | float) and not isinstance(value, bool)
    several = isinstance(value, list | tuple)
    try:
        if kind is float and numbers:
            return float(value)
        if kind is tuple and several and len(value) == 2:
            return tuple(_typed(float, part, where) for part in value)
    except OverflowError as error:
        raise ConfigError(
            f"{where} must be {_EXPECTED[kind]}, got one beyond all floats"
        ) from error
    if kind is Activation and several:
        return _described(value, where)
    if kind is object and several:
        return tuple(_typed(kind, part, where) for part in value)
    if kind is object and isinstance(value, int | float):
        return value
    if kind in (Activation, object, str) and isinstance(value, str):
        return value
    if kind in (int, bool) and type(value) is kind:
        return value
    raise ConfigError(f"{where} must be {_EXPECTED[kind]}, got {shown(value)}")


def _described(value: Any, where: str) -> Any:
    """The one description of an activation that a list describes, with tuples for lists."""
    try:
        return _frozen(activations.describe(activations.from_description(value)))
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where} must be {_EXPECTED[Activation]} ({reason})") from error


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _one_of(value: str, limits: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless a value is among the choices, if there are any."""
    choices = limits.get("choices", (value,))
    if value in choices:
        return
    near = difflib.get_close_matches(value, choices, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    hint += f"; {limits['unknown']}" if "unknown" in limits else ""
    raise ConfigError(f"{where}: unknown {value!r}; expected one of {', '.join(choices)}{hint}")


def _in_range(value: float, limits: Mapping[str, Any], kind: type, where: str) -> None:
    least, above = limits.get("least", -math.inf), limits.get("above")
    most = limits.get("most", _LARGEST_INTEGER if kind is int else _LARGEST_FLOAT)
    good = least <= value <= most if above is None else above < value <= most
    if not good:
        span = f"at least {least}" if above is None else f"above {above}"
        span += f" and at most {most}" if value > most else ""
        raise ConfigError(f"{where} must be {span}, got {shown(value)}")


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # a JSON string is a TOML one but for DEL, which is not printable
        return json.dumps(value, ensure_ascii=False)
    return f"[{', '.join(map(toml_value, value))}]" if isinstance(value, tuple) else repr(value)


def shown(value: Any) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
