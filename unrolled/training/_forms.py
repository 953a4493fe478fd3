"""Models, params and dictionaries as plain JSON and named arrays, and back, without pickle.

The form of a tree is None, the name of a leaf, or {"kind": ..., "parts": {...}}, with a "static"
entry for the static fields of a dictionary. The kinds are the records of the model's own params,
the dictionaries, tuples, lists and dicts; a form cannot name anything else. A model is described by
its family and all its options: a file names a family that this process knows, never code to import.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

import jax
import jax.numpy as jnp

from unrolled import _checks, activations
from unrolled._checks import Array
from unrolled.dictionaries import KINDS, Conv, Structured
from unrolled.layers import FAMILIES, Layer, Unrolled, check_records, is_record, records_of
from unrolled.networks import NETWORKS, Analysis, Network
from unrolled.records import to_plain
from unrolled.training._records import Model

Records = Mapping[str, Any]  # the classes of records by name
Leaves = dict[str, Array]  # by their dotted path

_SEQUENCES = {"tuple": tuple, "list": list}
_BASE: Records = {"Unrolled": Unrolled}
# The records of params that are saved without their model.
LIBRARY: Records = {
    name: cls
    for family in FAMILIES.values()
    if family.__module__.startswith("unrolled.")
    for name, cls in records_of(family.forms).items()
} | {"Analysis": Analysis, **_BASE}


class UnknownFamilyError(ValueError):
    """A file names a family that nobody has defined in this process."""


def describe_model(model: Model) -> dict[str, Any]:
    """The family and every option, also those at their defaults, which may change.

    Raises:
        TypeError: an option that JSON cannot hold.
    """
    key = "family" if isinstance(model, Layer) else "network"
    return {key: model.family} | to_plain(model, _describe_option)


def _describe_option(value: Any) -> Any:
    """The form of what is no number, text or tuple; None where there is none."""
    if isinstance(value, Layer | Network):
        return describe_model(value)
    return {"activation": activations.describe(value)} if callable(value) else None


def build_model(described: Mapping[str, Any]) -> Model:
    """The model of a description; every option is checked as if it had been typed.

    Raises:
        UnknownFamilyError: a family that is not known here.
        ValueError, TypeError: no description, or options that the family refuses.
    """
    options = {name: _build_option(value) for name, value in described.items()}
    what, kinds = ("family", FAMILIES) if "family" in options else ("network", NETWORKS)
    name = options.pop(what, None)
    if name not in kinds:
        raise UnknownFamilyError(
            f"unknown {what} {str(name)[:80]!r}; import the module that defines it first; "
            f"known here: {', '.join(kinds)}"
        )
    return kinds[name](**kinds[name].absent() | options)


def is_activation(value: Any) -> bool:
    """True for the description of an option that is an activation."""
    return isinstance(value, dict) and list(value) == ["activation"]


def _build_option(value: Any) -> Any:
    if is_activation(value):
        return activations.from_description(value["activation"])
    if isinstance(value, dict):
        return build_model(value)
    return tuple(map(_build_option, value)) if isinstance(value, list) else value


def check_form(params: Any, model: Model) -> None:
    """Raise unless params have the records and the steps of a model; there is no D to fit.

    Raises:
        TypeError: params of another family.
        ValueError: another number of steps or blocks.
    """
    if isinstance(model, Layer):
        check_records(params, model.forms, model.depth, "save")
        return
    depths = [layer.depth for layer in model.layers] or [model.depth] * len(params)
    if len(params) != len(depths):
        raise ValueError(f"save: params have {len(params)} blocks; expected {len(depths)}")
    for j, (block, depth) in enumerate(zip(params, depths)):
        check_records(block, model.forms(j), depth, "save")


def describe_params(params: Any, model: Model | None) -> tuple[Any, Leaves]:
    """The form of params, and their leaves by path; see `describe`."""
    if not isinstance(model, Network):
        return describe(params, "params", _records(model))
    parts: dict[str, Any] = {}
    leaves: dict[str, Array] = {}
    for j, block in enumerate(params):
        parts[str(j)], own = describe(block, f"params.{j}", _records(model, j))
        leaves |= own
    return {"kind": "tuple", "parts": parts}, leaves


def build_params(form: Any, leaves: Leaves, model: Model | None) -> Any:
    """The params of a form; see `build`."""
    if not isinstance(model, Network):
        return build(form, leaves, _records(model))
    blocks = form["parts"].values()
    return tuple(build(block, leaves, _records(model, j)) for j, block in enumerate(blocks))


def _records(model: Model | None, j: int = 0) -> Records:
    """The records that the params of a layer, or of block j of a network, are made of."""
    if model is None:
        return LIBRARY
    forms = model.forms if isinstance(model, Layer) else model.forms(j)
    return {**records_of(forms), **_BASE}


def describe(tree: Any, name: str, records: Records = LIBRARY) -> tuple[Any, Leaves]:
    """The form of `tree`, and its leaves by their dotted path below `name`.

    Raises:
        TypeError: a node of a kind that `build` would not know.
    """
    if tree is None:
        return None, {}
    split = _split(tree, name, records)
    if split is None:
        return name, {name: tree}
    kind, parts, static = split
    forms: dict[str, Any] = {}
    leaves: dict[str, Array] = {}
    for key, part in parts.items():
        forms[key], own = describe(part, f"{name}.{key}", records)
        leaves |= own
    return {"kind": kind, "parts": forms, **({"static": static} if static else {})}, leaves


def names(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by their dotted paths; the tree needs no form.

    Raises:
        TypeError: two leaves have one path, as in {"a.b": x, "a": {"b": y}}.
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves: dict[str, Any] = {}
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in leaves:
            raise TypeError(f"two leaves have the path {name!r}; expected keys without dots")
        leaves[name] = leaf
    return leaves


def build(form: Any, leaves: Leaves, records: Records = LIBRARY) -> Any:
    """The tree of a form.

    Raises:
        ValueError: an unknown kind, fields that its kind does not have, or a missing leaf.
    """
    if form is None:
        return None
    if isinstance(form, str):
        if form not in leaves:
            raise ValueError(f"there is no array {form!r}")
        return leaves[form]
    if not isinstance(form, dict) or not isinstance(form.get("parts"), dict):
        raise ValueError(f"the form has a node {str(form)[:80]!r}")
    kind = str(form.get("kind"))
    parts = {key: build(part, leaves, records) for key, part in form["parts"].items()}
    if kind in _SEQUENCES:
        if list(parts) != [str(i) for i in range(len(parts))]:
            raise ValueError(f"a {kind} has the entries {list(parts)}")
        return _SEQUENCES[kind](parts.values())
    if kind == "dict":
        return parts
    if kind in records:
        _expect(kind, parts, records[kind]._fields)
        return records[kind](**parts)
    if kind in KINDS:
        return _dictionary(KINDS[kind], parts, form.get("static", {}))
    raise ValueError(
        f"the form names an unknown kind {kind[:80]!r}; was the file made by a newer version, "
        "or without its layer?"
    )


def kinds(tree: Any) -> str:
    """The kinds of the nodes of any tree, as one line of text."""
    if tree is None:
        return "None"
    parts, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    if any(not path for path, _ in parts):
        return "array"
    shown = (f"{jax.tree_util.keystr(path, simple=True)}={kinds(part)}" for path, part in parts)
    return f"{type(tree).__name__}({', '.join(shown)})"


def _split(node: Any, name: str, records: Records) -> tuple[str, dict, dict] | None:
    """The kind, the parts and the static fields of an inner node; None for a leaf."""
    kind = type(node).__name__
    if records.get(kind) is type(node):
        return kind, node._asdict(), {}
    if KINDS.get(kind) is type(node) and is_dataclass(node):
        values = {field.name: getattr(node, field.name) for field in fields(node)}
        children = _children(node)
        static = {key: value for key, value in values.items() if key not in children}
        for key, value in static.items():
            if not _is_static(value):
                raise TypeError(
                    f"{name}: cannot save the static field {key} of {kind}, "
                    f"{_checks.brief(value)}; expected numbers, text or tuples of them"
                )
        parts = {key: value for key, value in values.items() if key in children}
        if type(node) is Conv and not any(delta > 1 for delta in node.dilation):
            del static["dilation"]  # as in the files and hashes from before there was dilation
        return kind, parts, static
    if type(node) in (tuple, list):
        return kind, {str(i): part for i, part in enumerate(node)}, {}
    if type(node) is dict:
        if not all(isinstance(key, str) and key.isidentifier() for key in node):
            raise TypeError(f"{name}: a saved dict must have names as keys, got {list(node)}")
        return kind, node, {}
    if is_record(node) and records is LIBRARY:
        raise TypeError(
            f"{name}: cannot save a {kind}; give its model, `save(path, params, D, layer=layer)`"
        )
    numeric = hasattr(node, "dtype") or isinstance(node, (int, float))
    if isinstance(node, (tuple, dict, Structured)) or not numeric:
        raise TypeError(
            f"{name}: cannot save a {kind}; expected arrays in records of the family, "
            "dictionaries (frozen dataclasses), tuples, lists or dicts"
        )
    return None


def _children(node: Any) -> set[str]:
    """The names of the fields of a dictionary that its pytree has as children."""
    paths, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
    return {jax.tree_util.keystr(path, simple=True) for path, _ in paths}


def _is_static(value: Any) -> bool:
    """Whether JSON holds the value, with lists for tuples."""
    if isinstance(value, tuple):
        return all(map(_is_static, value))
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, int | str)


def _from_lists(value: Any) -> Any:
    return tuple(map(_from_lists, value)) if isinstance(value, list) else value


def _dictionary(kind: Any, parts: dict, static: dict) -> Structured:
    """A dictionary from its fields, without its constructor, which has converted them before."""
    values: dict[str, Any]
    values = {key: _from_lists(value) for key, value in static.items()}
    if not all(map(_is_static, values.values())):
        raise ValueError(f"{kind.__name__} has the static fields {str(static)[:80]}")
    values |= parts
    if kind is Conv:
        values.setdefault("dilation", 1)
    _expect(kind.__name__, values, [field.name for field in fields(kind)])
    if kind is Conv:
        # Its static fields decide shapes. The constructor checks them, on the bank of one step.
        filters = values["filters"]
        lead = max(0, filters.ndim - 2 - len(values["signal_shape"]))
        bank = jnp.zeros(filters.shape[lead:], filters.dtype) if lead else filters
        return jax.tree.unflatten(jax.tree.structure(Conv(**values | {"filters": bank})), [filters])
    D = object.__new__(kind)
    vars(D).update(values)
    return D


def _expect(kind: str, parts: dict, expected: Iterable[str]) -> None:
    """Raise ValueError unless the parts have these names."""
    if set(parts) != set(expected):
        raise ValueError(f"{kind} has the fields {sorted(parts)}; expected {sorted(expected)}")
