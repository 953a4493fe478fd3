"""Records that are known by their options: equal options make the same object."""

import collections
import dataclasses
import inspect
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, dataclass_transform

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
) -> Any:
    """An option of a family: a field of its class, with what it may be and what it means.

    `depth: int = option(default=16, least=1, help="the number of steps")`. An `int`, a `float` and
    a `bool` are checked as such, floats are finite; other types need a `check`.

    Args:
        default: the value where none is given; without one the option must be given.
        help: shown by `help` of the class and of the command line.
        check: `check(value, name, where)` returns the value in its one hashable form, or raises.
        least, above, below: limits of a number.
        kw_only: False for an option that is given by position.
    """
    metadata = dict(help=help, check=check, least=least, above=above, below=below)
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


_LOCK = threading.Lock()
_KNOWN: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
# Records that nobody holds at the moment: without them a program that makes its layer again at
# every call would be traced again at every call.
_RECENT: collections.deque = collections.deque(maxlen=256)


class _Interned(type):
    """Makes the record of some options once, after every option has been checked."""

    def __call__(cls, *args, **given):
        where = cls.__name__
        try:
            made = super().__call__(*args, **given)
        except TypeError as error:
            problem = str(error).rpartition("__init__() ")[2]
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise TypeError(f"{where}: {problem}; the options are {names}") from error
        for field in dataclasses.fields(cls):
            object.__setattr__(made, field.name, _checked(field, getattr(made, field.name), where))
        with _LOCK:
            known = _KNOWN.setdefault((cls, *made.options.values()), made)
        if known is made:  # bound once: a fresh bound method would be traced again
            vars(made).update({name: getattr(made, name) for name in cls.bound})
        _RECENT.append(known)
        return known


@dataclass_transform(
    frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(option,)
)
class Interned(metaclass=_Interned):
    """A frozen record of options with pure methods; equal options make the same object.

    So two records are equal where they are identical, a record is a static argument of `jit`, and a
    leafless node of a pytree. It can be pickled, copied and changed by `dataclasses.replace`. Its
    `repr` is what one types. Options are numbers, text, tuples, activations: what can be hashed.
    """

    # Methods that are bound once, as `jit` compares functions by identity.
    bound: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        _refuse_hidden(cls)
        dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)(cls)
        cls.__signature__ = _signature(cls)
        cls.__doc__ = _documented(cls)
        jax.tree_util.register_static(cls)

    @property
    def options(self) -> dict[str, Any]:
        """Every option by its name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        positional, named = [], []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not field.kw_only:
                positional.append(repr(value))
            elif value != field.default:
                named.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(positional + named)})"

    def __reduce__(self):
        return _remade, (type(self), self.options)


def _remade(cls, options):
    return cls(**options)


def _checked(field: dataclasses.Field, value, where: str):
    """The value of an option in its one hashable form."""
    name, told = field.name, field.metadata
    if told.get("check") is not None:
        value = told["check"](value, name, where)
    elif field.type in (int, "int"):
        value = _checks.as_index(value, name, where, least=told.get("least") or 0)
    elif field.type in (float, "float"):
        value = _number(value, name, where, told)
    elif field.type in (bool, "bool"):
        value = _boolean(value, name, where)
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{where}: option {name} must be a number, text, a tuple or another hashable value, "
            f"got {type(value).__name__}"
        ) from error
    return value


def _number(value, name: str, where: str, limits) -> float:
    """A finite float within its limits."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{where}: {name} must be static, got a traced value; try static_argnames")
    if isinstance(value, str | bytes | bool | np.bool_) or np.ndim(value):
        raise TypeError(f"{where}: {name} must be a number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: {name} must be a number, got {value!r}") from error
    least, above, below = (limits.get(limit) for limit in ("least", "above", "below"))
    bounds = [f"at least {least}"] if least is not None else []
    bounds += [f"above {above}"] if above is not None else []
    bounds += [f"below {below}"] if below is not None else []
    good = math.isfinite(number) and (least is None or number >= least)
    if not (good and (above is None or number > above) and (below is None or number < below)):
        raise ValueError(
            f"{where}: {name} must be {' and '.join([*bounds, 'finite'])}, got {number}"
        )
    return number


def _boolean(value, name: str, where: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{where}: {name} must be True or False, got {value!r}")
    return bool(value)


def _refuse_hidden(cls) -> None:
    """Raise TypeError where a field would be ignored, or would hide a method."""
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
                f"{cls.__name__}: {name} is an option; give it its type again, "
                f"such as `{name}: float = option(default=...)`"
            )
    for name, kind in own.items():
        if name in inherited or "ClassVar" in str(kind):
            continue
        if any(name in vars(base) for base in cls.__mro__[1:]):
            raise TypeError(f"{cls.__name__}: the option {name} would hide what Layer calls {name}")


def _signature(cls) -> inspect.Signature:
    """What `help` shows: by position first, then the family's own, then how the loop runs."""
    kinds = {False: inspect.Parameter.POSITIONAL_OR_KEYWORD, True: inspect.Parameter.KEYWORD_ONLY}
    ordered = sorted(_by_family(cls), key=lambda field: field.kw_only)
    return inspect.Signature(
        [
            inspect.Parameter(
                field.name,
                kinds[field.kw_only],
                default=inspect.Parameter.empty
                if field.default is dataclasses.MISSING
                else field.default,
                annotation=field.type,
            )
            for field in ordered
        ]
    )


def _by_family(cls) -> list[dataclasses.Field]:
    """The fields, those of the nearest class first."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    order = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
    return [fields[name] for name in dict.fromkeys(order) if name in fields]


def _documented(cls) -> str:
    """The docstring of the class, and what its options mean."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or cls.__name__)
    told = [(field.name, field.metadata.get("help")) for field in _by_family(cls)]
    lines = [f"    {name}: {help}." for name, help in told if help]
    return "\n".join([text, "", "Args:", *lines, ""]) if lines else text
