"""Results of functions: frozen records of named fields.

A result is a dataclass and a pytree whose parts are its fields. A result is not a tuple and cannot
be unpacked, so a later version may add a field. Params and the states of loops are NamedTuples.
"""

import dataclasses
import reprlib
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, dataclass_transform

import jax
import numpy as np


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Result:
    """The base class of results: write `class Found(Result):` with annotated fields.

    As in a NamedTuple, every field is a part of the pytree, under its name, and may have a default.
    Two results are equal if they have the same class, structure and numbers; here nan equals nan.
    The `repr` shows shapes instead of large arrays.

    Example:
        >>> from unrolled._base.results import Result
        >>> class Found(Result):
        ...     x: jax.Array
        ...     steps: int = 0
        >>> found = Found(jnp.zeros(100))
        >>> found.replace(steps=3)
        Found(x=float32[100], steps=3)
        >>> jax.tree.map(jnp.shape, found) == Found((100,), ())
        True
        >>> x, steps = found
        Traceback (most recent call last):
        TypeError: Found: a result is not a tuple; take its fields by name: .x, .steps
    """

    _fields: ClassVar[tuple[str, ...]]  # the names, in their order

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        made: Any = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        cls._fields = tuple(field.name for field in dataclasses.fields(made))
        jax.tree_util.register_dataclass(cls, cls._fields, ())

    def replace(self, **changes: Any) -> Self:
        """A copy of the result with new values of some fields.

        Raises:
            TypeError: there is no such field.
        """
        if unknown := changes.keys() - set(self._fields):
            names = ", ".join(map(repr, sorted(unknown)))
            raise TypeError(_refusal(self, f"there is no field {names}"))
        return type(self)(**self.asdict() | changes)

    def asdict(self) -> dict[str, Any]:
        """The fields by name. Records within the fields stay records."""
        return {name: getattr(self, name) for name in self._fields}

    def __repr__(self) -> str:
        return _short.record(self, _short.maxlevel)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        (mine, form), (others, form_of_other) = map(jax.tree.flatten, (self, other))
        same: Any = form == form_of_other  # type: ignore[operator]  # in the stubs of JAX
        return same and all(map(_equal, mine, others))

    def __hash__(self) -> int:
        return hash((type(self), *map(_hashed, jax.tree.leaves(self))))

    if not TYPE_CHECKING:  # otherwise type checkers would allow a result to be unpacked

        def __iter__(self) -> NoReturn:
            raise TypeError(_refusal(self, "a result is not a tuple"))

        def __getitem__(self, place: Any) -> NoReturn:
            raise TypeError(_refusal(self, "a result is not indexed"))


def _refusal(result: Result, what: str) -> str:
    names = ", ".join(f".{name}" for name in result._fields)
    return f"{type(result).__name__}: {what}; take its fields by name: {names}"


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    floats = all(jax.numpy.issubdtype(np.asarray(v).dtype, np.inexact) for v in (a, b))
    return np.array_equal(a, b, equal_nan=floats)


def _hashed(leaf: Any) -> int:
    """The hash of a leaf, equal for all nan; TypeError for an array."""
    code = hash(leaf)
    return code if leaf == leaf else 0


class _Short(reprlib.Repr):
    """`repr` in one line, with the first parts of long containers and the shapes of arrays."""

    def repr_instance(self, value: Any, level: int) -> str:
        if isinstance(value, jax.Array | np.ndarray) and value.size > self.maxarray:
            return f"{value.dtype}{list(value.shape)}".replace(" ", "")
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self.record(value, level)
        return " ".join(repr(value).split())

    def record(self, value: Any, level: int) -> str:
        """A record with the short form of each field."""
        parts = (f"{name}={self.repr1(getattr(value, name), level)}" for name in value._fields)
        return f"{type(value).__name__}({', '.join(parts)})"


_short = _Short()
_short.maxarray = 16  # entries
_short.maxstring = _short.maxother = 200
