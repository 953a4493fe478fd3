"""Records identified by their options: equal options give the same object."""

import collections
import dataclasses
import difflib
import inspect
import math
import re
import textwrap
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

import jax
import numpy as np

from unrolled import _checks


def option(
    *,
    default: Any = dataclasses.MISSING,
    help: str = "",
    check: Callable | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    kw_only: bool = True,
    absent: Any = dataclasses.MISSING,
) -> Any:
    """An option of a family: a field of its class with a default, limits and a help text.

    Fields annotated `int`, `float`, `float | None` or `bool` are checked as such: an int without
    `least` must not be negative, and a float must be finite. A value of another type is taken as it
    is, unless there is a `check`.

    Args:
        default: the default value; without one the option is required.
        help: the text that `help` of the class and of the command line shows.
        check: `check(value, name, where)` returns the value in its one hashable form, or raises.
        least, above, below: limits of a number: `>= least`, `> above`, `< below`.
        kw_only: False for an option that is also given by position.
        absent: the value in files from before there was the option, where it is not the default.

    Example:
        >>> class _relaxed(ur.layers.ista):
        ...     relaxation: float = ur.layers.option(default=1.0, above=0, below=2)
        >>> _relaxed(3, relaxation=1.5)
        _relaxed(3, relaxation=1.5)
        >>> _relaxed(3, relaxation=2)
        Traceback (most recent call last):
        ValueError: _relaxed: relaxation must be above 0 and below 2 and finite, got 2.0
    """
    limits = dict(least=least, above=above, below=below)
    metadata = dict(help=help, check=check, absent=absent, **limits)
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


_LOCK = threading.Lock()
_KNOWN: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
# The latest records stay alive even if nobody holds them. Otherwise a program that builds its layer
# anew at every call would be traced anew at every call.
_RECENT: collections.deque = collections.deque(maxlen=256)


class _Interned(type):
    """Checks the options, then returns the one record that has them."""

    bound: tuple[str, ...]
    __signature__: inspect.Signature

    def __call__(cls: Any, *args: Any, **given: Any) -> Any:
        where = cls.__name__
        if problem := _misfit(cls, args, given):
            names = ", ".join(cls.__signature__.parameters)
            raise TypeError(f"{where}: {problem}; the options are {names}")
        made = super().__call__(*args, **given)
        for field in dataclasses.fields(cls):
            object.__setattr__(made, field.name, _checked(field, getattr(made, field.name), where))
        with _LOCK:
            known = _KNOWN.setdefault((cls, *made.options.values()), made)
            if known is made:  # `jit` would trace a fresh bound method anew
                vars(made).update({name: getattr(made, name) for name in cls.bound})
            _RECENT.append(known)
        return known


@dataclass_transform(
    frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(option,)
)
class Interned(metaclass=_Interned):
    """A frozen record of options with pure methods; equal options give the same object.

    Hence records are equal exactly if they are identical. A record can be a static argument of
    `jit` and is a pytree node without leaves. It can be pickled, copied, and changed with
    `dataclasses.replace`. Its `repr` is the expression that makes it. Options must be hashable:
    numbers, strings, tuples, activations.

    Example:
        >>> layer = ur.lista_cp(3, lam=0.2)
        >>> layer is ur.lista_cp(3, lam=0.2), layer
        (True, lista_cp(3, lam=0.2))
        >>> jax.tree.leaves(layer)
        []
    """

    # The methods that are bound once, because `jit` tells functions apart by identity.
    bound: ClassVar[tuple[str, ...]] = ()
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]
        __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        _refuse_hidden(cls)
        dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)(cls)
        cls.__signature__ = _signature(cls)
        cls.__doc__ = _documented(cls)
        jax.tree_util.register_static(cls)

    @classmethod
    def absent(cls) -> dict[str, Any]:
        """The options that older files lack, with the values that they had then."""
        values = {field.name: field.metadata["absent"] for field in dataclasses.fields(cls)}
        return {name: v for name, v in values.items() if v is not dataclasses.MISSING}

    @property
    def options(self) -> dict[str, Any]:
        """All options by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

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
        return _remade, (type(self), self.options)


def _misfit(cls: Any, args: tuple, given: dict[str, Any]) -> str | None:
    """Why these are not the options of a class, in words that do not depend on the Python."""
    parameters = cls.__signature__.parameters
    first = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    known = {*first[: len(args)], *given}
    if len(args) > len(first):
        return f"{len(args)} options given by position, expected {len(first)} ({', '.join(first)})"
    for name in given:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, 1)
            return f"unknown option {name!r}" + (f", perhaps {near[0]!r}" if near else "")
        if name in first[: len(args)]:
            return f"{name} given by position and by name"
    for name, p in parameters.items():
        if p.default is p.empty and name not in known:
            meaning = cls.__dataclass_fields__[name].metadata.get("help")
            return f"{name} is missing" + (f" ({meaning})" if meaning else "")
    return None


def _remade(cls, options):
    return cls(**options)


def _checked(field: dataclasses.Field, value, where: str):
    """The value of an option in its one hashable form."""
    name, limits = field.name, field.metadata
    if not _checks.is_concrete(value):
        raise TypeError(f"{where}: {name} must be static, got a traced value; try static_argnames")
    if limits.get("check") is not None:
        value = limits["check"](value, name, where)
    elif field.type in (int, "int"):
        value = _checks.as_index(value, name, where, least=limits.get("least") or 0)
        _within(value, name, where, limits)
    elif value is None and field.type in (float | None, "float | None"):
        pass
    elif field.type in (float, "float", float | None, "float | None"):
        value = as_number(value, name, where)
        _within(value, name, where, limits)
    elif field.type in (bool, "bool"):
        value = _checks.as_bool(value, name, where)
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{where}: option {name} must be a number, a string, a tuple or another hashable "
            f"value, got {type(value).__name__}"
        ) from error
    return value


def as_number(value, name: str, where: str) -> float:
    """`value` as a float; neither text nor a bool is one."""
    if isinstance(value, str | bytes | bool | np.bool_) or np.ndim(value):
        raise TypeError(f"{where}: {name} must be a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: {name} must be a number, got {value!r}") from error


def _within(number: float, name: str, where: str, limits) -> None:
    """Raise ValueError unless a number is finite and within the limits of its option."""
    least, above, below = (limits.get(limit) for limit in ("least", "above", "below"))
    bounds = [f"at least {least}"] if least is not None else []
    bounds += [f"above {above}"] if above is not None else []
    bounds += [f"below {below}"] if below is not None else []
    good = math.isfinite(number) and (least is None or number >= least)
    if not (good and (above is None or number > above) and (below is None or number < below)):
        raise ValueError(
            f"{where}: {name} must be {' and '.join([*bounds, 'finite'])}, got {number}"
        )


def _refuse_hidden(cls) -> None:
    """Raise TypeError for an option that would be ignored, or that would hide a method."""
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
    """What `help` shows: options given by position, then the family's own, then inherited ones."""
    Parameter, parameters = inspect.Parameter, []
    for field in _ordered(cls):
        kind = Parameter.KEYWORD_ONLY if field.kw_only else Parameter.POSITIONAL_OR_KEYWORD
        default = Parameter.empty if field.default is dataclasses.MISSING else field.default
        parameters.append(Parameter(field.name, kind, default=default, annotation=field.type))
    return inspect.Signature(parameters)


def _ordered(cls) -> list[dataclasses.Field]:
    """The fields given by position, then those of the nearest class, and so on."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    order = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
    nearest = [fields[name] for name in dict.fromkeys(order) if name in fields]
    return sorted(nearest, key=lambda field: bool(field.kw_only))


_ARGUMENT = textwrap.TextWrapper(88, initial_indent=4 * " ", subsequent_indent=8 * " ")


def _documented(cls) -> str:
    """The docstring of the class with its options under `Args`, before any `Reference`."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or cls.__name__)
    told = [(field.name, field.metadata.get("help")) for field in _ordered(cls)]
    lines = [_ARGUMENT.fill(f"{name}: {help}.") for name, help in told if help]
    if not lines:
        return text
    head, *rest = re.split(r"^(?=Reference:|Example:)", text, maxsplit=1, flags=re.MULTILINE)
    return "\n".join([head.rstrip(), "", "Args:", *lines, "", *rest])
