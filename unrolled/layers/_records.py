"""Params as records: what a field holds stands beside the field, and every check reads it there."""

import functools
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import Structured

THRESHOLD, STEP_SIZE = "threshold", "step size"


@dataclass(frozen=True, init=False)
class Shape:
    """What a field of params holds: `theta: Annotated[Array, Shape("", "d", role="threshold")]`.

    Args:
        shapes: the shapes that it may have at a step: "" for one number, "m,d" and so on for sizes
            of D, "filters" for one number per filter of a convolutional D.
        role: "threshold": never negative, training folds it, `calibrate` and `search` set it;
            "step size": `calibrate` sets it; None for all else.
    """

    shapes: tuple[str, ...]
    role: str | None

    def __init__(self, *shapes: str, role: str | None = None):
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "role", role)

    def of(self, D) -> list[tuple[int, ...]]:
        """The shapes as numbers, for a dictionary."""
        sizes = dict(zip("md", D.shape))
        found = []
        for shape in self.shapes:
            if shape == "filters":
                found += [D.groups] if isinstance(D, Structured) and D.groups else []
            else:
                found.append(tuple(sizes[letter] for letter in shape.split(",") if letter))
        return found


T = TypeVar("T")
Matrix = Annotated[Any, Shape("m,d")]  # an array or a structured dictionary
Square = Annotated[Array, Shape("d,d")]
Number = Annotated[Array, Shape("")]
Gamma = Annotated[Array, Shape("", "d", role=STEP_SIZE)]
Theta = Annotated[Array, Shape("", "d", "filters", role=THRESHOLD)]


class Unrolled(NamedTuple):
    """Params of K steps: `shared` by all of them (None if there are none), and one set per step.

    `steps` is a NamedTuple whose leaves lead with K, run as one scan, or a plain tuple of K
    NamedTuples, run as a Python loop: the form for a single signal, where a scan would copy each
    step's weights. `stack` and `unstack` go between. None stands for steps that share everything.
    """

    shared: Any
    steps: Any


class Fixed(NamedTuple, Generic[T]):
    """Shared weights that training leaves alone (ALISTA), or `Fixed[Record]`: a fixed record."""

    W: T  # (m, d) where nothing else is said


class Weights(NamedTuple):
    """Shared weights that are trained."""

    W: Matrix


class Field(NamedTuple):
    """One field of a record: the record that it holds (None for an array), and its shape."""

    record: Any
    shape: Shape | None


def stack(params: Unrolled) -> Unrolled:
    """Steps as one NamedTuple with leading K (for a scan), from a tuple of K NamedTuples."""
    if type(params.steps) is not tuple:
        return params
    if not params.steps:
        raise ValueError("stack: there are no steps to stack")
    steps = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params.steps)
    return Unrolled(params.shared, steps)


def unstack(params: Unrolled) -> Unrolled:
    """Steps as a tuple of K NamedTuples (for a Python loop), from one with leading K.

    Call it outside of `jit`.
    """
    if type(params.steps) is tuple or params.steps is None:
        return params
    K = depth_of(params.steps)
    steps = tuple(jax.tree.map(operator.itemgetter(k), params.steps) for k in range(K))
    return Unrolled(params.shared, steps)


def repeat(tree, depth: int):
    """Every leaf `depth` times along a new leading axis: the start of an untied network."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], depth, axis=0), tree)


def magnitude(v: Array) -> Array:
    """abs(v), with derivative 1 at 0 where `jnp.abs` has 0: what starts at 0 can move."""
    return jnp.where(v >= 0, v, -v)


def depth_of(steps) -> int:
    """K of stacked steps."""
    return jax.tree.leaves(steps)[0].shape[0]


def is_record(node) -> bool:
    """True for a NamedTuple, in which the params of a part stand."""
    return isinstance(node, tuple) and hasattr(node, "_fields")


@functools.lru_cache(maxsize=512)
def fields_of(kind) -> types.MappingProxyType:
    """Name -> `Field` of a record, from the annotations of its class.

    Raises:
        TypeError: annotations that cannot be read, such as names that are local to a function.
    """
    cls, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{cls.__name__}: its annotations cannot be read ({error}); "
            "define the record, and what it names, at the top of a module"
        ) from error
    given = dict(zip(getattr(cls, "__parameters__", ()), arguments))
    default = {T: Matrix} if cls is Fixed else {}
    return types.MappingProxyType(
        {name: _field((default | given).get(hints[name], hints[name])) for name in cls._fields}
    )


def _field(hint) -> Field:
    shape = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Shape)), None)
    held = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    return Field(held if hasattr(typing.get_origin(held) or held, "_fields") else None, shape)


def name_of(kind) -> str:
    """A record and its fields as text: "Weights(W)"; "None" for no record."""
    if kind is None:
        return "None"
    cls = typing.get_origin(kind) or kind
    return f"{cls.__name__}({', '.join(cls._fields)})" if hasattr(cls, "_fields") else cls.__name__


def matches(kind, value) -> bool:
    """True if `value` is a record of this kind, nested records included; kind None is no record."""
    if kind is None:
        return value is None
    if type(value) is not (typing.get_origin(kind) or kind):
        return False
    found = fields_of(kind).items()
    return all(f.record is None or matches(f.record, getattr(value, name)) for name, f in found)


def records_in(kind) -> dict[str, type]:
    """All records of a kind by name, itself included."""
    if kind is None:
        return {}
    cls = typing.get_origin(kind) or kind
    found = {cls.__name__: cls}
    for field in fields_of(kind).values():
        found |= records_in(field.record)
    return found


def records_of(forms: tuple[Unrolled, ...]) -> dict[str, type]:
    """The records of the params of some forms by name."""
    kinds = [kind for form in forms for kind in form]
    return {name: cls for kind in kinds for name, cls in records_in(kind).items()}


def check_params(params: Unrolled, D, forms: tuple[Unrolled, ...], depth: int, where: str) -> None:
    """Raise where `params` are of none of the forms, not of `depth` steps, or not for D."""
    if not isinstance(params, Unrolled):
        raise TypeError(
            f"{where}: params must be Unrolled(shared, steps), got {type(params).__name__}"
        )
    stacked = type(params.steps) is not tuple
    parts = (params.steps,) if stacked else params.steps
    form = _form_of(params, parts, forms, where)
    lengths = _lengths(params.steps, depth)
    if lengths != {depth}:
        raise ValueError(
            f"{where}: params have {sorted(lengths)} steps but the layer has depth {depth}"
        )
    check_record(form.shared, params.shared, D, 0, where)
    for part in parts:
        check_record(form.steps, part, D, int(stacked), where)


def _form_of(params: Unrolled, parts: tuple, forms, where: str) -> Unrolled:
    for form in forms:
        if matches(form.shared, params.shared) and all(matches(form.steps, p) for p in parts):
            return form
    expected = " or ".join(f"({name_of(form.shared)}, {name_of(form.steps)})" for form in forms)
    found = (params.shared, parts[0] if parts else None)
    got = ", ".join(name_of(None if part is None else type(part)) for part in found)
    raise TypeError(
        f"{where}: params have the records ({got}); expected {expected} in (shared, steps): "
        "another family?"
    )


def _lengths(steps, depth: int) -> set[int]:
    """The numbers of steps that the leaves of the params have."""
    if steps is None:
        return {depth}
    if type(steps) is tuple:
        return {len(steps)}
    return {leaf.shape[0] if leaf.ndim else 0 for leaf in map(jnp.asarray, jax.tree.leaves(steps))}


def check_record(kind, value, D, lead: int, where: str) -> None:
    """Raise ValueError for another shape after `lead` axes, or for a known negative threshold."""
    for name, field in fields_of(kind).items() if kind is not None else ():
        held = getattr(value, name)
        if field.record is not None:
            check_record(field.record, held, D, lead, where)
        elif field.shape is not None:
            shape = held.shape if isinstance(held, Structured) else np.shape(held)[lead:]
            expected = field.shape.of(D)
            if shape not in expected:
                hint = " Were the params made for another dictionary?" if len(shape) > 1 else ""
                raise ValueError(
                    f"{where}: {name} has shape {shape} at a step; "
                    f"expected one of {expected}.{hint}"
                )
            if field.shape.role == THRESHOLD:
                _checks.nonnegative(held, name, where)


def names_with_role(record, role: str) -> list[str]:
    """The fields of a record, or of its class, that have a role."""
    if record is None:
        return []
    kind = type(record) if is_record(record) else record
    return [
        name
        for name, field in fields_of(kind).items()
        if field.shape is not None and field.shape.role == role
    ]


def fold_thresholds(params):
    """The params with every threshold as the non-negative `magnitude` of it."""
    return map_role(THRESHOLD, magnitude, params)


def map_role(role: str, f: Callable, tree):
    """`tree` with `f` of every leaf of the fields that have a role."""
    if is_record(tree):
        named = names_with_role(tree, role)
        return tree._replace(
            **{
                name: jax.tree.map(f, part) if name in named else map_role(role, f, part)
                for name, part in tree._asdict().items()
            }
        )
    if type(tree) in (tuple, list):
        return type(tree)(map_role(role, f, part) for part in tree)
    if type(tree) is dict:
        return {name: map_role(role, f, part) for name, part in tree.items()}
    return tree
