"""Options as data: a name, a type, limits and a help; their values from TOML or from text, and
back.
"""

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
from unrolled.layers import as_activation, as_support

# A configuration is a page of text.
_LARGEST_BYTES = 2**20
_LARGEST_INTEGER = 2**31 - 1
_LARGEST_FLOAT = 1e30  # of what float32 can hold


class ConfigError(ValueError):
    """A configuration that cannot be read, or that asks for what there is not."""


def setting(default, text: str, **limits):
    """A field with its help and its limits: choices, least, most, above; `words` marks a path and
    says what is none.
    """
    return dataclasses.field(default=default, metadata=dict(help=text, **limits))


class Option(NamedTuple):
    """One option, wherever it comes from."""

    name: str
    section: str | None
    kind: type  # int, float, bool, str or tuple
    default: Any
    limits: Mapping[str, Any]  # those of `setting`, and its help

    @property
    def full(self) -> str:
        return self.name if self.section is None else f"{self.section}.{self.name}"


def options_of(section: str | None, cls) -> list[Option]:
    """The settings of a dataclass."""
    hints = typing.get_type_hints(cls)
    return [
        Option(field.name, section, _kind(hints[field.name]), field.default, field.metadata)
        for field in dataclasses.fields(cls)
        if "help" in field.metadata
    ]


def _kind(hint) -> type:
    """int of `int` and of `int | None`, and so on."""
    hint = next((part for part in typing.get_args(hint) if part is not NoneType), hint)
    return hint if hint in (int, float, bool, str) else tuple


def family_option(field: dataclasses.Field, section: str) -> Option:
    """An option of a family of layers; the layer itself has the last word on its value."""
    told = field.metadata
    limits = {name: told[name] for name in ("least", "above") if told.get(name) is not None}
    kinds = {"int": int, "float": float, "bool": bool}
    kind = kinds.get(getattr(field.type, "__name__", field.type), str)
    if told.get("check") is as_support:
        kind, limits = tuple, dict(least=0, most=1)
    elif told.get("check") is as_activation:
        limits = dict(choices=activations.NAMED)
    return Option(field.name, section, kind, None, limits | {"help": told.get("help", "")})


def read_toml(path: Path) -> dict:
    """The tables of a TOML file."""
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
}


def from_text(option: Option, text: str):
    """The value of a flag."""
    try:
        if option.kind is tuple:
            return [float(part) for part in text.split(",")]
        return option.kind(text)
    except ValueError as error:
        raise ConfigError(
            f"--{option.name} must be {_EXPECTED[option.kind]}, got {text!r}"
        ) from error


def checked(option: Option, value, where: str, base: Path):
    """`value` in the type of the option and within its limits; paths made absolute from `base`."""
    value = _typed(option.kind, value, where)
    limits = option.limits
    if option.kind is str and not (value and value.isprintable()):
        raise ConfigError(f"{where} must be printable and not empty, got {value!r}")
    if value not in limits.get("choices", (value,)):
        near = difflib.get_close_matches(value, limits["choices"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{where}: unknown {value!r}; expected one of {', '.join(limits['choices'])}{hint}"
        )
    if option.kind in (int, float, tuple):
        for number in value if option.kind is tuple else [value]:
            _in_range(number, limits, option.kind, where)
    is_path = value not in limits.get("words", (value,))
    return str(base.absolute() / value) if is_path else value


def _typed(kind: type, value, where: str):
    numbers = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        if kind is float and numbers:
            return float(value)
        if kind is tuple and isinstance(value, list | tuple) and len(value) == 2:
            return tuple(_typed(float, part, where) for part in value)
    except OverflowError as error:
        raise ConfigError(
            f"{where} must be {_EXPECTED[kind]}, got one beyond all floats"
        ) from error
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise ConfigError(f"{where} must be {_EXPECTED[kind]}, got {shown(value)}")


def _in_range(value, limits, kind: type, where: str) -> None:
    least, above = limits.get("least", -math.inf), limits.get("above")
    most = limits.get("most", _LARGEST_INTEGER if kind is int else _LARGEST_FLOAT)
    good = least <= value <= most if above is None else above < value <= most
    if not good:
        span = f"at least {least}" if above is None else f"above {above}"
        span += f" and at most {most}" if value > most else ""
        raise ConfigError(f"{where} must be {span}, got {shown(value)}")


def toml_value(value) -> str:
    """As TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # a JSON string is a TOML one but for DEL, which is not printable
        return json.dumps(value, ensure_ascii=False)
    return f"[{', '.join(map(toml_value, value))}]" if isinstance(value, tuple) else repr(value)


def shown(value) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
