"""Params as records. The annotations of the fields give shapes and roles; all checks use them."""

import functools
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, checked, program
from unrolled.dictionaries import Dictionary, Structured, block_of

__all__ = [
    "Fixed",
    "Gamma",
    "Matrix",
    "Number",
    "Shape",
    "Square",
    "Theta",
    "Unrolled",
    "Weights",
    "magnitude",
    "repeat",
    "stack",
    "unstack",
]


THRESHOLD, RELATIVE = "threshold", "relative threshold"
STEP_SIZE, WEIGHTS, ORDER = "step size", "weights", "order"
_ROLES = (THRESHOLD, RELATIVE, STEP_SIZE, WEIGHTS, ORDER)


@dataclass(frozen=True, init=False)
class Shape:
    """The shapes and the role of a field, as in `Annotated[Array, Shape("d", role="threshold")]`.

    Args:
        shapes: the shapes that the field may have at one step: "" for one number, sizes of D such
            as "m,d", or "filters" for one number per filter of a convolutional D.
        role: "threshold" for a field that is never negative: training takes its absolute value,
            `calibrate` sets the field, and `search` refuses negative values. "relative threshold"
            for a threshold per unit of the residual, whose sign has no effect; `calibrate` sets the
            field. "step size" for a step size that `calibrate` sets. "weights" for a matrix that
            `calibrate` may scale. "order" for ranks, which have no gradient and are not trained.
            None for all other fields.

    Raises:
        ValueError: a shape or the role is unknown.

    Example:
        >>> ur.layers.Shape("", "m,d").of(jnp.ones((2, 3)))
        [(), (2, 3)]
    """

    shapes: tuple[str, ...]
    role: str | None

    def __init__(self, *shapes: str, role: str | None = None):
        for shape in shapes:
            if shape != "filters" and not set(shape.split(",")) <= {"", "m", "d"}:
                raise ValueError(
                    f'Shape: unknown shape {shape!r}; expected "", sizes of D as in "m,d", or '
                    '"filters"'
                )
        if role not in (None, *_ROLES):
            raise ValueError(f"Shape: unknown role {role!r}; expected {', '.join(_ROLES)}, or None")
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "role", role)

    def of(self, D: Dictionary) -> list[tuple[int, ...]]:
        """The shapes of the field for this dictionary, as tuples of numbers."""
        sizes = dict(zip("md", D.shape))
        shapes, alike = [], block_of(D) > 1 and self.role in (THRESHOLD, RELATIVE, STEP_SIZE)
        for shape in self.shapes:
            if shape == "filters":
                shapes += [D.groups] if isinstance(D, Structured) and D.groups else []
            elif not (alike and shape == "d"):  # the entries of a part share one threshold
                shapes.append(tuple(sizes[letter] for letter in shape.split(",") if letter))
        return shapes


T = TypeVar("T")
Matrix = Annotated[Any, Shape("m,d", role=WEIGHTS)]  # an array or a structured dictionary
Square = Annotated[ArrayLike, Shape("d,d")]
Number = Annotated[ArrayLike, Shape("")]
Gamma = Annotated[ArrayLike, Shape("", "d", role=STEP_SIZE)]
Theta = Annotated[ArrayLike, Shape("", "d", "filters", role=THRESHOLD)]


class Unrolled(NamedTuple):
    """Params of K steps: `shared` for all steps together, and `steps` with the params of each step.

    `shared` is None if the steps share no params, and `steps` is None if they share all params.
    Otherwise `steps` has one of two forms: a NamedTuple whose leaves have a leading axis of length
    K, which runs as one scan; or a plain tuple of K NamedTuples, which runs as a Python loop. The
    loop is better for a single signal, because a scan copies the weights of each step. `stack` and
    `unstack` convert between the two forms.

    `jax.export` can write functions whose arguments are params or dictionaries. To read a file with
    such a function, import `unrolled`, and also the module that defines your own family, if you
    have one.
    """

    shared: Any  # params that all steps share, or None
    steps: Any  # params of the steps: stacked, or a tuple


programs.exportable(Unrolled)


class Fixed(NamedTuple, Generic[T]):
    """Shared weights that `fit` does not change; `Fixed[Record]` holds a record, not a matrix.

    In your own optax loop, mask fixed weights by `training.trainable`; otherwise weight decay
    changes the weights.
    """

    W: T  # (m, d), or a record


class Weights(NamedTuple):
    """Shared weights that are trained."""

    W: Matrix


class Field(NamedTuple):
    """One field of a record: the record that it holds (None for an array), and its shape."""

    record: Any
    shape: Shape | None


@checked
def stack(params: Unrolled) -> Unrolled:
    """Turn a tuple of K steps into one NamedTuple with a leading axis K, for a scan.

    Example:
        >>> Unrolled, Step = ur.layers.Unrolled, ur.layers.Step
        >>> ur.layers.stack(Unrolled(None, (Step(jnp.ones(())), Step(jnp.zeros(()))))).steps.gamma
        Array([1., 0.], dtype=float32)
    """
    if type(params.steps) is not tuple:
        return params
    if not params.steps:
        raise ValueError("stack: there are no steps to stack")
    return Unrolled(params.shared, _stacked(params.steps))


@program()
def _stacked(steps: tuple) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)


@checked
def unstack(params: Unrolled) -> Unrolled:
    """Turn stacked steps into a tuple of K NamedTuples, for a Python loop.

    Call `unstack` outside `jit`.

    Example:
        >>> params = ur.layers.Unrolled(None, ur.layers.Step(jnp.array([1.0, 0.5])))
        >>> [float(p.gamma) for p in ur.layers.unstack(params).steps]
        [1.0, 0.5]
    """
    if type(params.steps) is tuple or params.steps is None:
        return params
    return Unrolled(params.shared, _unstacked(params.steps))


@program()
def _unstacked(steps: Any) -> tuple:
    return tuple(jax.tree.map(operator.itemgetter(k), steps) for k in range(depth_of(steps)))


@checked
def repeat(tree: Any, depth: int) -> Any:
    """`tree` with every leaf repeated `depth` times along a new leading axis, for untied steps.

    Raises:
        TypeError: a leaf is not an array of numbers.

    Example:
        >>> ur.layers.repeat(ur.layers.Weights(jnp.eye(2)), 3).W.shape
        (3, 2, 2)
    """
    checks.arrays(tree, "tree", "repeat")
    for leaf in jax.tree.leaves(tree):
        shape, dtype = (depth, *np.shape(leaf)), jnp.result_type(leaf)
        checks.check_memory(shape, dtype, "what is untied", "repeat")
    return _repeat(tree, depth)


@program("depth")
def _repeat(tree: Any, depth: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], depth, axis=0), tree)


@checked
def magnitude(v: ArrayLike) -> Array:
    """abs(v) with derivative 1 at 0, so that training can move v away from 0.

    Example:
        >>> jax.vmap(jax.grad(ur.layers.magnitude))(jnp.array([-2.0, 0.0, 2.0])).tolist()
        [-1.0, 1.0, 1.0]
    """
    v = checks.as_float(v, "v", "magnitude")
    return jnp.where(v >= 0, v, -v)


def depth_of(steps: Any) -> int:
    """The number K of stacked steps."""
    return jax.tree.leaves(steps)[0].shape[0]


def is_record(node: Any) -> bool:
    """Whether `node` is a NamedTuple.

    Example:
        >>> ur.layers.is_record(ur.layers.Step(1.0)), ur.layers.is_record((1.0,))
        (True, False)
    """
    return isinstance(node, tuple) and hasattr(node, "_fields")


@functools.lru_cache(maxsize=512)
def fields_of(kind: Any) -> types.MappingProxyType:
    """The fields of a record by their names, from the annotations of its class.

    Raises:
        TypeError: the annotations cannot be read, because they use a name that is local to a
            function.
    """
    cls, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{cls.__name__}: the annotations cannot be read ({error}); define the record, and "
            "everything that its annotations name, at the top level of a module"
        ) from error
    kind_of = {T: Matrix} if cls is Fixed else {}
    kind_of |= dict(zip(getattr(cls, "__parameters__", ()), arguments))
    kinds = {name: hints.get(name, Any) for name in cls._fields}
    return types.MappingProxyType({name: _field(kind_of.get(k, k)) for name, k in kinds.items()})


def _field(hint) -> Field:
    shape = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Shape)), None)
    kind = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    return Field(kind if hasattr(typing.get_origin(kind) or kind, "_fields") else None, shape)


def name_of(kind: Any) -> str:
    """The name of a record with its fields, such as "Weights(W)"; "None" for None."""
    if kind is None:
        return "None"
    cls = typing.get_origin(kind) or kind
    return f"{cls.__name__}({', '.join(cls._fields)})" if hasattr(cls, "_fields") else cls.__name__


def matches(kind: Any, value: Any) -> bool:
    """Whether `value` and its nested records are of this kind; None matches only None."""
    if kind is None:
        return value is None
    if type(value) is not (typing.get_origin(kind) or kind):
        return False
    fields = fields_of(kind).items()
    return all(f.record is None or matches(f.record, getattr(value, name)) for name, f in fields)


def records_in(kind: Any) -> dict[str, type]:
    """The classes of a record and of the records nested in it, by their names."""
    if kind is None:
        return {}
    cls = typing.get_origin(kind) or kind
    records = {cls.__name__: cls}
    for field in fields_of(kind).values():
        records |= records_in(field.record)
    return records


@checked
def records_of(forms: tuple[Unrolled, ...]) -> dict[str, type]:
    """The classes of the records in params of these forms, by their names.

    Example:
        >>> list(ur.layers.records_of(ur.layers.hyperlista.forms))
        ['Hyper', 'Fixed', 'Analytic']
    """
    kinds = [kind for form in forms for kind in form]
    return {name: cls for kind in kinds for name, cls in records_in(kind).items()}


def check_forms(forms: Any, where: str) -> None:
    """Raise TypeError unless `forms` is one or more `Unrolled` of classes of records."""
    fits = isinstance(forms, tuple | list) and all(isinstance(form, Unrolled) for form in forms)
    kinds = [typing.get_origin(kind) or kind for form in forms for kind in form] if fits else []
    if not kinds or not all(kind is None or _is_kind(kind) for kind in kinds):
        raise TypeError(
            f"{where}: forms must say which records (shared, one step) the params may be, as a "
            f"tuple of Unrolled of their classes; got {forms!r}, try forms = (Unrolled(None, "
            "StepAndThreshold),)"
        )


def _is_kind(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "_fields")


@checked
def check_params(
    params: Any, D: Dictionary, forms: tuple[Unrolled, ...], depth: int, where: str
) -> None:
    """Raise unless `params` have one of the forms and `depth` steps, and fit the shape of D.

    Args:
        params: the params to check.
        D: (m, d).
        forms: the possible classes of `shared` and of one step, as a tuple of `Unrolled(shared
            class, step class)`.
        depth: K.
        where: the name of the caller, with which messages begin.

    Raises:
        TypeError: the records match no form, or a field is None instead of an array.
        ValueError: the number of steps or a shape is wrong, or a threshold is negative and not
            traced.

    Example:
        >>> layer, D = ur.alista(3), jnp.eye(2)
        >>> ur.layers.check_params(layer.init(None, D), D, layer.forms, 4, "caller")
        Traceback (most recent call last):
        ValueError: caller: params have [3] steps but the layer has depth 4
    """
    form = check_records(params, forms, depth, where)
    _check_record(form.shared, params.shared, D, 0, where)
    for part in _parts(params):
        _check_record(form.steps, part, D, int(type(params.steps) is not tuple), where)


@checked
def check_records(params: Any, forms: tuple[Unrolled, ...], depth: int, where: str) -> Unrolled:
    """The form of `params`; raises unless `params` have one of the forms and `depth` steps.

    The arguments and the errors are as in `check_params`.

    Example:
        >>> layer = ur.alista(3)
        >>> params = layer.init(None, jnp.eye(2))
        >>> ur.layers.check_records(params, layer.forms, 3, "caller") is layer.forms[0]
        True
    """
    if not isinstance(params, Unrolled):
        raise TypeError(
            f"{where}: params must be Unrolled(shared, steps), got {type(params).__name__}"
        )
    form = _form_of(params, _parts(params), forms, where)
    lengths = _lengths(params.steps, depth)
    if lengths != {depth}:
        raise ValueError(
            f"{where}: params have {sorted(lengths)} steps but the layer has depth {depth}"
        )
    return form


def _parts(params: Unrolled) -> tuple:
    """The records of single steps, or the one record of stacked steps."""
    return params.steps if type(params.steps) is tuple else (params.steps,)


def _form_of(params: Unrolled, parts: tuple, forms, where: str) -> Unrolled:
    for form in forms:
        if matches(form.shared, params.shared) and all(matches(form.steps, p) for p in parts):
            return form
    expected = " or ".join(f"({name_of(form.shared)}, {name_of(form.steps)})" for form in forms)
    records = (params.shared, parts[0] if parts else None)
    got = ", ".join(name_of(None if part is None else type(part)) for part in records)
    raise TypeError(
        f"{where}: params have the records ({got}); expected {expected} in (shared, steps): "
        "another family?"
    )


def _lengths(steps, depth: int) -> set[int]:
    """The set of lengths of the leading axes of the leaves; {depth} if there are no leaves."""
    if type(steps) is tuple:
        return {len(steps)}
    leaves = map(jnp.asarray, jax.tree.leaves(steps))
    return {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves} or {depth}


def _check_record(kind: Any, value: Any, D: Dictionary, lead: int, where: str) -> None:
    """Raise if a field is None, has a wrong shape after `lead` axes, or is a negative threshold."""
    for name, field in fields_of(kind).items() if kind is not None else ():
        entry = getattr(value, name)
        if field.record is not None:
            _check_record(field.record, entry, D, lead, where)
        elif field.shape is not None:
            if entry is None:
                raise TypeError(f"{where}: {name} is None; expected an array")
            shape = entry.shape if isinstance(entry, Structured) else np.shape(entry)[lead:]
            expected = field.shape.of(D)
            if shape not in expected:
                hint = " Were the params made for another dictionary?" if len(shape) > 1 else ""
                raise ValueError(
                    f"{where}: {name} has shape {shape} at a step; "
                    f"expected one of {expected}.{hint}"
                )
            if field.shape.role == THRESHOLD:
                checks.nonnegative(entry, name, where)


@checked
def names_with_role(record: Any, *roles: str) -> list[str]:
    """The names of the fields with one of these roles, for a record or for its class.

    Fields of nested records are not included.

    Example:
        >>> ur.layers.names_with_role(ur.layers.StepAndThreshold, "threshold")
        ['theta']
    """
    if record is None:
        return []
    checks.has(record, "_fields", "a record of params", "record", "names_with_role")
    kind: Any = type(record) if is_record(record) else record
    return [
        name
        for name, field in fields_of(kind).items()
        if field.shape is not None and field.shape.role in roles
    ]


def fold_thresholds(params: Any) -> Any:
    """`params` in which the `magnitude` of each threshold replaces the threshold.

    Example:
        >>> steps = ur.layers.StepAndThreshold(jnp.array([-1.0]), jnp.array([-0.5]))
        >>> ur.layers.fold_thresholds(steps).theta.tolist()
        [0.5]
    """
    if is_record(params):
        named = names_with_role(params, THRESHOLD)
        return params._replace(
            **{
                name: jax.tree.map(magnitude, part) if name in named else fold_thresholds(part)
                for name, part in params._asdict().items()
            }
        )
    if type(params) in (tuple, list):
        return type(params)(map(fold_thresholds, params))
    if type(params) is dict:
        return {name: fold_thresholds(part) for name, part in params.items()}
    return params


def is_trained(params: Any) -> Any:
    """`params` with False inside a `Fixed` and for fields with the role "order", else True."""

    def marked(node: Any) -> Any:
        if isinstance(node, Fixed) or not is_record(node):
            return jax.tree.map(lambda leaf: not isinstance(node, Fixed), node)
        orders = names_with_role(node, ORDER)
        parts = node._asdict().items()
        return node._replace(**{n: False if n in orders else is_trained(p) for n, p in parts})

    return jax.tree.map(marked, params, is_leaf=is_record)


def by_role(params: Any, numbers: Mapping[str, float]) -> Any:
    """A tree prefix of `params`: for each field the number of its role, or 1.

    Example:
        >>> from unrolled.layers._records import by_role
        >>> by_role(ur.layers.StepAndThreshold(jnp.ones(3), jnp.ones(3)), {"threshold": 0.5})
        StepAndThreshold(gamma=1.0, theta=0.5)
    """
    if type(params) is tuple:
        return tuple(by_role(part, numbers) for part in params)
    if not is_record(params):
        return None if params is None else 1.0
    kind: Any = type(params)
    fields = fields_of(kind)
    roles = {name: field.shape and field.shape.role for name, field in fields.items()}
    return params._replace(
        **{
            name: numbers[roles[name]] if roles[name] in numbers else by_role(part, numbers)
            for name, part in params._asdict().items()
        }
    )


def mean_thresholds(steps: Any) -> np.ndarray | None:
    """The mean threshold of each of the stacked steps, (K,); None for steps without thresholds."""
    names = names_with_role(steps, THRESHOLD)
    if not names:
        return None
    theta = np.asarray(getattr(steps, names[0]))
    return theta.reshape(len(theta), -1).mean(1)


@checked
def along_atoms(params: Unrolled) -> Unrolled:
    """For every leaf of the params, whether its last axis is the axis of atoms.

    The function reads the annotations of the fields, because a shape is not enough: an (m, m)
    matrix has no axis of atoms, even if m = d.

    Example:
        >>> layer, D = ur.lista_cp(2), ur.dictionaries.dct(4, 6)
        >>> ur.layers.along_atoms(layer.init(None, D))
        Unrolled(shared=Weights(W=True), steps=Threshold(theta=False))
    """
    stacked = type(params.steps) is not tuple
    return Unrolled(_along_atoms(params.shared, None, 0), _along_atoms(params.steps, None, stacked))


def _along_atoms(part: Any, shape: Shape | None, lead: int) -> Any:
    """`along_atoms` for a record, or for a field with this `Shape` after `lead` axes."""
    if is_record(part):
        kind: Any = type(part)
        shapes = {name: field.shape for name, field in fields_of(kind).items()}
        fields = part._asdict().items()
        return kind(**{name: _along_atoms(entry, shapes[name], lead) for name, entry in fields})
    if type(part) is tuple:
        return tuple(_along_atoms(entry, shape, lead) for entry in part)
    sizes = [text.split(",") if text else [] for text in shape.shapes] if shape else []

    def ends_in_atoms(leaf):
        own = [names for names in sizes if len(names) == np.ndim(leaf) - lead]
        return not isinstance(part, Structured) and any(names[-1:] == ["d"] for names in own)

    return jax.tree.map(ends_in_atoms, part)
