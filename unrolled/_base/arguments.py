"""The decorator of every exported function: it checks arguments against the annotations.

The decorator reads the annotations once, when the function is defined. In a call, the check then
takes about a microsecond per argument. A floating-point JAX array, traced or not, passes without
further checks.
"""

import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.text import an

F = TypeVar("F", bound=Callable[..., Any])
_BY_PLACE = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
# (value, name of the argument, name of the function) -> the value to pass on
Take = Callable[[Any, str, str], Any]


class Kind(NamedTuple):
    """The kind of values that an annotation asks for."""

    what: str  # in messages: "an integer"
    take: Take
    cls: Any = None  # types whose instances all pass unchanged
    scalars: str = ""  # `dtype.kind` of arrays whose entries are values of this kind: "iu"
    of_arrays: bool = False
    items: bool = False  # whether the kind is a sequence


def checked(function: F) -> F:
    """Make a function refuse arguments that its annotations exclude, with a clear message.

    Integers that JAX would cut to 32 bits become floating point, NumPy numbers become Python
    numbers, and a seed becomes a key. If a function requires more of a value than its type, the
    function checks the value itself. An argument whose annotation contains `Any` is not checked
    here. If the annotation of `**run` names a TypedDict in `OPTIONS`, the signature shows the
    options of this TypedDict, and `Unpack` refuses all other names.

    Raises:
        TypeError: an argument has the wrong type, such as text instead of an array of real numbers,
            or there is no option with the given name.
        ValueError: numbers exceed the range of float32, but JAX computes in float32.

    Example:
        >>> from unrolled._base.arguments import checked
        >>> @checked
        ... def double(x: jax.Array, times: int = 1) -> jax.Array:
        ...     return jnp.asarray(x) * 2**times
        >>> float(double(np.int64(2**40)))
        2199023255552.0
        >>> double(1.0, times="twice")
        Traceback (most recent call last):
        TypeError: double: times must be an integer, got 'twice'
    """
    signature, closed = _with_options(inspect.signature(function))
    parameters = signature.parameters
    kinds = {name: _kind_of(parameter.annotation) for name, parameter in parameters.items()}
    takes = {name: kind and kind.take for name, kind in kinds.items()}
    in_order = [(name, takes[name]) for name, p in parameters.items() if p.kind in _BY_PLACE]
    caller = list(parameters).index("where") if "where" in parameters else None

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        where = function.__name__
        if caller is not None:  # the name in messages, instead of this function
            where = args[caller] if caller < len(args) else options.get("where", where)
        given = [
            take(value, name, where) if take else value
            for value, (name, take) in zip(args, in_order)
        ]
        for name, value in options.items():
            if closed and name not in parameters:
                raise TypeError(f"{where}: {unknown_option(name, parameters)}")
            if take := takes.get(name):
                options[name] = take(value, name, where)
        return function(*given, *args[len(given) :], **options)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]  # of the same signature


# The parameters that each TypedDict of options stands for. The file of runs adds its own.
OPTIONS: dict[Any, Mapping[str, inspect.Parameter]] = {}


def _with_options(signature: inspect.Signature) -> tuple[inspect.Signature, bool]:
    """The signature with the options of a TypedDict by name, and whether no others are allowed.

    `**run: Unpack[T]` takes only the options of T; `**more: Annotated[Any, T]` also takes others.
    """
    others = [*signature.parameters.values()]
    more = others[-1].annotation if others else None
    declared = OPTIONS.get(next(iter(typing.get_args(more)[-1:]), None))
    if declared is None:
        return signature, False
    closed = typing.get_origin(more) is typing.Unpack
    named = [declared[name] for name in typing.get_type_hints(typing.get_args(more)[-1])]
    parameters = [*others[:-1], *named, *([] if closed else others[-1:])]
    return signature.replace(parameters=parameters), closed


def unknown_option(name: str, names: Iterable[str]) -> str:
    """A message for an option that is none of `names`; it suggests a similar name."""
    likely = checks.nearest(name, names)
    return f"unknown option {name!r}" + (f", perhaps {likely!r}" if likely else "")


def _kind_of(annotation: Any) -> Kind | None:
    """The kind of values of an annotation; None if any value may be passed."""
    members = _members(annotation)
    known = [_kind_of_one(member) for member in members if member is not _NONE]
    kinds = list(dict.fromkeys(kind for kind in known if kind))
    if not kinds or None in known:
        return None
    kind = kinds[0] if len(kinds) == 1 else _union(kinds)
    return _optional(kind) if _NONE in members else kind


def _members(annotation: Any) -> list[Any]:
    """The members of a union and of its aliases; for any other annotation, the annotation alone."""
    if hasattr(annotation, "__value__") and annotation not in KNOWN:
        return _members(annotation.__value__)
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return [annotation]
    return [one for member in typing.get_args(annotation) for one in _members(member)]


def _kind_of_one(annotation: Any) -> Kind | None:
    if isinstance(annotation, Hashable) and annotation in KNOWN:
        return KNOWN[annotation]
    if isinstance(annotation, str) and annotation.isidentifier():
        return _named(annotation)
    if isinstance(annotation, TypeVar) and annotation.__bound__:
        return _kind_of(annotation.__bound__)
    origin, inside = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (Any, inspect.Parameter.empty) or not isinstance(origin, type):
        return None
    if origin is Callable or getattr(origin, "_is_protocol", False):
        return _FUNCTION
    if issubclass(origin, Mapping):
        return _instances(Mapping, "a mapping")
    if issubclass(origin, Iterable) and inside:
        refused = (str, bytes, Mapping) if issubclass(origin, Sequence) else (str, bytes)
        return _items(_kind_of(inside[0]), refused)
    return _instances(origin, an(origin.__name__))


def _refusal(value: Any, what: str, name: str, where: str) -> TypeError:
    return TypeError(f"{where}: {name} must be {what}, got {checks.brief(value)}")


def _optional(kind: Kind) -> Kind:
    def take(value: Any, name: str, where: str) -> Any:
        return None if value is None else kind.take(value, name, where)

    return kind._replace(take=take, cls=None)


def _instances(cls: Any, what: str) -> Kind:
    """Instances of a class, or of one of several classes, unchanged."""

    def take(value: Any, name: str, where: str) -> Any:
        if not isinstance(value, cls):
            raise TypeError(f"{where}: {name} is {an(type(value).__name__)}; expected {what}")
        return value

    return Kind(what, take, cls)


def _named(cls: str) -> Kind:
    """Instances of a class of an optional package, known only by the name of the class."""
    what = an(cls)

    def take(value: Any, name: str, where: str) -> Any:
        if cls not in (base.__name__ for base in type(value).__mro__):
            raise _refusal(value, what, name, where)
        return value

    return Kind(what, take)


def _items(item: Kind | None, refused: tuple[type, ...]) -> Kind:
    """Sequences. The items of a list or a tuple are checked; an iterator is not consumed."""
    what = "a sequence" if Mapping in refused else "an iterable"

    def take(value: Any, name: str, where: str) -> Any:
        if isinstance(value, refused) or not isinstance(value, Iterable):
            hint = f"; try ({value!r},)" if isinstance(value, int | float) else ""
            raise TypeError(f"{_refusal(value, what, name, where)}{hint}")
        if isinstance(value, np.ndarray | jax.Array):
            return _rows(value, item, name, where)
        if not (type(value) is list or type(value) is tuple):
            return value
        if item is None:
            return type(value)(checks.as_array(v) if type(v) is np.ndarray else v for v in value)
        names = (name if item.scalars else f"{name}[{i}]" for i in range(len(value)))
        taken = [item.take(one, its_name, where) for one, its_name in zip(value, names)]
        return taken if isinstance(value, list) else tuple(taken)

    return Kind(what, take, items=True)


def _rows(value: Any, item: Kind | None, name: str, where: str) -> Any:
    """The rows of an array that is passed for a sequence; numbers if the array has one axis."""
    if not value.ndim:
        raise _refusal(value, "a sequence", name, where)
    value = _array(value, name, where)
    if item is None or item.of_arrays or item.items:
        return value
    if value.ndim > 1 or value.dtype.kind not in item.scalars:
        raise _refusal(value, f"a sequence, each {item.what}", name, where)
    return value


def _union(kinds: list[Kind]) -> Kind:
    """The union of some kinds: try each kind, arrays last, because their message is most precise.

    The items of a flat list are checked one by one, because an array made from the list would turn
    True into 1.
    """
    what = " or ".join(kind.what for kind in kinds)
    plain = tuple(kind.cls for kind in kinds if kind.cls)
    rest = [kind for kind in kinds if not kind.cls]
    if not rest:
        return _instances(plain, what)
    *others, last = sorted(rest, key=lambda kind: (kind.of_arrays, not kind.items))
    alone = last.of_arrays or (not last.items and all(kind.items for kind in others))

    def take(value: Any, name: str, where: str) -> Any:
        if isinstance(value, plain):
            return value
        if not (last.of_arrays and isinstance(value, jax.Array | np.ndarray)):
            for kind in others:
                try:
                    return kind.take(value, name, where)
                except TypeError:
                    if last.of_arrays and kind.items and _is_flat(value):
                        raise
        try:
            return last.take(value, name, where)
        except TypeError as error:
            raise (error if alone else _refusal(value, what, name, where)) from None

    return Kind(what, take, of_arrays=last.of_arrays)


def _is_flat(value: Any) -> bool:
    """Whether a value is a list or a tuple of single values."""
    return type(value) in (list, tuple) and not any(
        isinstance(item, Iterable) and getattr(item, "ndim", 1) for item in value
    )


def _array(x: Any, name: str, where: str) -> Any:
    if type(x) is np.ndarray and x.dtype == np.float32:
        return x
    if isinstance(x, jax.Array) and checks.computes(x.dtype):
        return x
    return checks.within_float32(checks.as_numbers(x, name, where), name, where)


def _matrix(D: Any, name: str, where: str) -> Any:
    """A matrix with atoms in columns; integers become floating point."""
    D = _array(D, name, where)
    if isinstance(D, list | tuple) and checks.is_concrete(D):
        rows = checks.within_float32(np.asarray(D, np.float64), name, where)
        D = rows.astype(jnp.result_type(float))
    elif not isinstance(D, jax.Array | np.ndarray):
        D = jnp.asarray(D)
    if D.ndim != 2:
        raise ValueError(f"{where}: {name} has shape {D.shape}; expected (m, d), atoms in columns")
    if D.dtype.kind in "biu":
        D = D.astype(jnp.result_type(float))
    return D


def matrix_or(cls: type) -> Kind:
    """A matrix, or an instance of a class."""
    return _union([_instances(cls, ""), Kind("a dictionary", _matrix, of_arrays=True)])


def _integer(n: Any, name: str, where: str) -> Any:
    """Check an integer. A traced array passes: a function with static sizes reports it itself."""
    if isinstance(n, jax.core.Tracer) or (type(n) is int and n <= checks.LARGEST):
        return n
    return checks.as_index(n, name, where, least=-math.inf)


def _number(x: Any, name: str, where: str) -> Any:
    return x if isinstance(x, jax.core.Tracer | float) else checks.as_number(x, name, where)


def _function(f: Any, name: str, where: str) -> Any:
    if not callable(f):
        raise _refusal(f, _FUNCTION.what, name, where)
    return f


def _dtype(dtype: Any, name: str, where: str) -> Any:
    try:
        known = np.dtype(dtype)
    except (TypeError, ValueError):
        known = np.dtype("V")
    if not known.itemsize:
        raise _refusal(dtype, "a dtype", name, where)
    return known


_NONE = type(None)
_ARRAY = Kind("an array of numbers", _array, of_arrays=True)
_FUNCTION = Kind("a function", _function)
_PATH = _instances(os.PathLike, "a path")
_TEXT = _instances(str, "text")
# The kind of each annotation. The file of dictionaries adds the kind of dictionaries.
KNOWN = {
    checks.ArrayLike: _ARRAY,
    jax.Array: _ARRAY,
    np.ndarray: _ARRAY,
    checks.Key: Kind("a key", lambda key, name, where: checks.as_key(key, where)),
    checks.DTypeLike: Kind("a dtype", _dtype),
    bool: Kind("True or False", checks.as_bool),
    int: Kind("an integer", _integer, scalars="iu"),
    float: Kind("a number", _number, scalars="iufV"),
    str: _TEXT,
    Path: _PATH,
    os.PathLike: _PATH,
}
