"""Params and dictionaries as plain JSON and named arrays, and back: the form of a tree, without
pickle.

A form is None, the name of a leaf, or {"kind": ..., "parts": {...}} with "static" values for a
dictionary that has some. The kinds are the records of `unrolled.layers` and that of ML-LISTA, the
dictionaries, tuples, lists and dicts: a file cannot name anything else.
"""

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp

from unrolled import layers
from unrolled._checks import Array
from unrolled.dictionaries import (
    Composed,
    Concatenated,
    Conv,
    Rescaled,
    Sparse,
    Structured,
    Transposed,
)
from unrolled.networks import Analysis

RECORDS = {
    kind.__name__: kind
    for kind in (*vars(layers).values(), Analysis)
    if isinstance(kind, type) and issubclass(kind, tuple) and kind is not layers.Layer
}
DICTIONARIES = {
    kind.__name__: kind for kind in (Composed, Concatenated, Conv, Sparse, Transposed, Rescaled)
}
_PLAIN = {"tuple": tuple, "list": list, "dict": dict}


def describe(tree: Any, name: str) -> tuple[Any, dict[str, Array]]:
    """The form of `tree`, and its leaves by their dotted path below `name`.

    Raises:
        TypeError: a node of a kind that `build` would not know.
    """
    if tree is None:
        return None, {}
    split = _split(tree, name)
    if split is None:
        return name, {name: tree}
    kind, parts, static = split
    forms, leaves = {}, {}
    for key, part in parts.items():
        forms[key], found = describe(part, f"{name}.{key}")
        leaves |= found
    return {"kind": kind, "parts": forms, **({"static": static} if static else {})}, leaves


def names(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by their dotted paths, also of one that has no form."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def build(form: Any, leaves: dict[str, Array]) -> Any:
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
    kind, parts = (
        form.get("kind"),
        {key: build(part, leaves) for key, part in form["parts"].items()},
    )
    if kind in ("tuple", "list"):
        if list(parts) != [str(i) for i in range(len(parts))]:
            raise ValueError(f"a {kind} has the entries {list(parts)}")
        return _PLAIN[kind](parts.values())
    if kind == "dict":
        return parts
    if kind in RECORDS:
        _expect(kind, parts, RECORDS[kind]._fields)
        return RECORDS[kind](**parts)
    if kind in DICTIONARIES:
        return _dictionary(DICTIONARIES[kind], parts, form.get("static", {}))
    raise ValueError(
        f"the form names an unknown kind {str(kind)[:80]!r}; was the file made by a newer version?"
    )


def kinds(form) -> str:
    """A form in one line: the kinds of its nodes."""
    if not isinstance(form, dict):
        return "None" if form is None else "array"
    return f"{form['kind']}({', '.join(f'{key}={kinds(part)}' for key, part in form['parts'].items())})"


def _split(node, name: str) -> tuple[str, dict, dict] | None:
    """(kind, parts, static) of an inner node, None for a leaf."""
    kind = type(node).__name__
    if RECORDS.get(kind) is type(node):
        return kind, node._asdict(), {}
    if DICTIONARIES.get(kind) is type(node):
        values = {field.name: getattr(node, field.name) for field in fields(node)}
        static = {key: value for key, value in values.items() if _is_static(value)}
        return kind, {key: value for key, value in values.items() if key not in static}, static
    if type(node) in (tuple, list):
        return kind, {str(i): part for i, part in enumerate(node)}, {}
    if type(node) is dict:
        if not all(isinstance(key, str) and key.isidentifier() for key in node):
            raise TypeError(f"{name}: a dict must have names as keys to be saved, got {list(node)}")
        return kind, node, {}
    if (
        isinstance(node, (tuple, dict, Structured))
        or not hasattr(node, "dtype")
        and not isinstance(node, (int, float))
    ):
        raise TypeError(
            f"{name}: cannot save a {kind}; expected arrays in records of unrolled.layers, dictionaries, tuples, "
            "lists or dicts"
        )
    return None


def _is_static(value) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(entry, (int, str)) for entry in values)


def _dictionary(kind: type, parts: dict, static: dict):
    """A dictionary from its fields, past the constructor, as a pytree is rebuilt: it has cast and
    normalised them once.
    """
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in static.items()
    }
    if not all(map(_is_static, values.values())):
        raise ValueError(f"{kind.__name__} has the static fields {str(static)[:80]}")
    values |= parts
    _expect(kind.__name__, values, [field.name for field in fields(kind)])
    if (
        kind is Conv
    ):  # its static fields decide shapes: checked by the constructor, on one of the banks of all steps
        filters = values["filters"]
        lead = max(0, filters.ndim - 2 - len(values["signal_shape"]))
        one = Conv(
            **values
            | {"filters": jnp.zeros(filters.shape[lead:], filters.dtype) if lead else filters}
        )
        return jax.tree.structure(one).unflatten([filters])
    D = object.__new__(kind)
    for key, value in values.items():
        object.__setattr__(D, key, value)
    return D


def _expect(kind: str, parts: dict, names) -> None:
    if set(parts) != set(names):
        raise ValueError(f"{kind} has the fields {sorted(parts)}; expected {sorted(names)}")
