"""Convert models, params and dictionaries to plain JSON and named arrays, and back. A manifest with
its own hash describes the arrays.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import activations
from unrolled._base import checks, text
from unrolled._base.doors import Array, Result, checked
from unrolled._base.files import CheckpointError
from unrolled._base.processes import copy_of
from unrolled._base.text import an
from unrolled.dictionaries import KINDS, Conv, Structured
from unrolled.layers import FAMILIES, Layer, Unrolled, check_records, is_record, records_of
from unrolled.networks import NETWORKS, Analysis, Network
from unrolled.records import to_plain
from unrolled.training._types import Model

__all__ = ["CheckpointError"]


Records = Mapping[str, Any]  # classes of records, by their names
Leaves = dict[str, Array]  # arrays by their dotted paths

_SEQUENCES = {"tuple": tuple, "list": list}
_BASE: Records = {"Unrolled": Unrolled}
# The classes of params that can be saved without a model.
LIBRARY: Records = {
    name: cls
    for family in FAMILIES.values()
    if family.__module__.startswith("unrolled.")
    for name, cls in records_of(family.forms).items()
} | {"Analysis": Analysis, **_BASE}


class UnknownFamilyError(ValueError):
    """A file names a family that is not defined in this process."""


def describe_model(model: Model) -> dict[str, Any]:
    """The family and all options, including defaults, because default values may change.

    Raises:
        TypeError: JSON cannot hold an option.
    """
    key = "family" if isinstance(model, Layer) else "network"
    return {key: model.family} | to_plain(model, _describe_option)


def _describe_option(value: Any) -> Any:
    """The JSON form of an option that is not a number, text or tuple; None if there is no form."""
    if isinstance(value, Layer | Network):
        return describe_model(value)
    return {"activation": activations.describe(value)} if callable(value) else None


def build_model(described: Mapping[str, Any]) -> Model:
    """The model of a description, whose options are checked as in a call of its class.

    Raises:
        UnknownFamilyError: the family is not defined in this process.
        ValueError, TypeError: `described` is not a description, or the family refuses an option.
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
    """Whether a description of an option describes an activation."""
    return isinstance(value, dict) and list(value) == ["activation"]


def _build_option(value: Any) -> Any:
    if is_activation(value):
        return activations.from_description(value["activation"])
    if isinstance(value, dict):
        return build_model(value)
    return tuple(map(_build_option, value)) if isinstance(value, list) else value


def check_form(params: Any, model: Model) -> None:
    """Raise unless params have the records and the steps of a model; D is not needed.

    Raises:
        TypeError: the params belong to another family.
        ValueError: the number of steps or blocks differs.
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
    """The form of params, and their leaves by dotted path; see `describe`."""
    if not isinstance(model, Network):
        return describe(params, "params", _records(model))
    parts: dict[str, Any] = {}
    leaves: dict[str, Array] = {}
    for j, block in enumerate(params):
        parts[str(j)], own = describe(block, f"params.{j}", _records(model, j))
        leaves |= own
    return {"kind": "tuple", "parts": parts}, leaves


def build_params(form: Any, leaves: Leaves, model: Model | None) -> Any:
    """The params that a form describes; see `build`."""
    if not isinstance(model, Network):
        return build(form, leaves, _records(model))
    blocks = form["parts"].values()
    return tuple(build(block, leaves, _records(model, j)) for j, block in enumerate(blocks))


def _records(model: Model | None, j: int = 0) -> Records:
    """The classes in the params of a layer, or of block j of a network."""
    if model is None:
        return LIBRARY
    forms = model.forms if isinstance(model, Layer) else model.forms(j)
    return {**records_of(forms), **_BASE}


def describe(tree: Any, name: str, records: Records = LIBRARY) -> tuple[Any, Leaves]:
    """The form of `tree`, and its leaves by their dotted paths below `name`.

    Raises:
        TypeError: a node has a type that `build` does not know.
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
    """The leaves of a tree by their dotted paths.

    Raises:
        TypeError: two leaves have the same path, as in {"a.b": x, "a": {"b": y}}.
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
    """The tree that a form describes.

    Raises:
        ValueError: a kind is unknown, a field does not belong to its kind, or a leaf is missing.
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
    """The kinds of the nodes of a tree, as one line of text."""
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
                of_D = name.partition(".")[0] == "D"
                raise TypeError(
                    f"{name}: cannot save the static field {key} of {kind}, "
                    f"{checks.brief(value)}; expected numbers, text or tuples of them"
                    f"{', try dictionary=False, and keep the code that makes D' if of_D else ''}"
                )
        parts = {key: value for key, value in values.items() if key in children}
        if type(node) is Conv and not any(delta > 1 for delta in node.dilation):
            del static["dilation"]  # older versions wrote files and hashes without it
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
        hint = "; try its fields, as `asdict()` gives them" if isinstance(node, Result) else ""
        raise TypeError(
            f"{name}: cannot save {an(kind)}; expected arrays in records of the family, "
            f"dictionaries (frozen dataclasses), tuples, lists or dicts{hint}"
        )
    return None


def _children(node: Any) -> set[str]:
    """The names of the fields of a dictionary that are children of its pytree."""
    paths, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
    return {jax.tree_util.keystr(path, simple=True) for path, _ in paths}


def _is_static(value: Any) -> bool:
    """Whether JSON can hold the value, with lists in place of tuples."""
    if isinstance(value, tuple):
        return all(map(_is_static, value))
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, int | str)


def _from_lists(value: Any) -> Any:
    return tuple(map(_from_lists, value)) if isinstance(value, list) else value


def _dictionary(kind: Any, parts: dict, static: dict) -> Structured:
    """A dictionary made from saved fields, without a second conversion by the constructor."""
    values: dict[str, Any]
    values = {key: _from_lists(value) for key, value in static.items()}
    if not all(map(_is_static, values.values())):
        raise ValueError(f"{kind.__name__} has the static fields {str(static)[:80]}")
    values |= parts
    if kind is Conv:
        values.setdefault("dilation", 1)
    _expect(kind.__name__, values, [field.name for field in fields(kind)])
    if kind is Conv:
        # The shapes depend on the static fields. The constructor checks these fields with the
        # filters of one step.
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


FORMAT = 1  # the format of the manifest; readers refuse a newer format
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
)


class DamagedError(CheckpointError):
    """A file or a saved step differs from the bytes that were written."""


def _numbers(leaf: Any) -> tuple[str, Any]:
    """The dtype of a leaf, and the leaf as an array; a random key becomes its key data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return array.dtype.name, array


def on_host(leaf: Any) -> tuple[str, np.ndarray]:
    """The dtype and the bits of a leaf."""
    dtype, numbers = _numbers(leaf)
    array = copy_of(numbers)  # a copy, because the next step may consume the buffer
    return dtype, array.astype(array.dtype.newbyteorder("="), copy=False)


def to_device(dtype: str, array: np.ndarray) -> jax.Array:
    """The leaf with this dtype and these bits: the inverse of `on_host`.

    Raises:
        ValueError: the array has 64-bit numbers and the process runs without them.
    """
    if dtype.startswith("key "):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=dtype.removeprefix("key "))
    if array.dtype.itemsize == 8 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError(
            f"holds {dtype}, but JAX runs in float32 here; enable float64, "
            "or load `with jax.enable_x64(True)`"
        )
    return jnp.asarray(array)


def table(leaves: dict[str, Any], where: str) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """The arrays of named leaves, and the entries of these arrays in the manifest."""
    arrays, entries = {}, {}
    for name, leaf in leaves.items():
        dtype, arrays[name] = on_host(leaf)
        if not dtype.startswith("key ") and dtype not in _DTYPES:
            raise TypeError(
                f"{where}: {name or 'the tree'} has dtype {dtype}; expected one of "
                f"{', '.join(_DTYPES)}"
            )
        entries[name] = {
            "dtype": dtype,
            "shape": list(arrays[name].shape),
            "sha256": sha256(arrays[name]),
        }
    return arrays, entries


def array_dtype(entry: dict) -> np.dtype:
    """The dtype of the array that an entry describes.

    Raises:
        ValueError: `write` does not save arrays of this dtype.
    """
    dtype = str(entry["dtype"])
    if dtype.startswith("key "):
        return np.dtype(np.uint32)
    if dtype not in _DTYPES:
        raise ValueError(f"an array has dtype {dtype[:40]!r}")
    return jnp.dtype(dtype)


def verify(name: str, entry: dict, array: np.ndarray) -> None:
    """Raise ValueError if the array is not the array that was saved."""
    if array.dtype != array_dtype(entry) or list(array.shape) != entry["shape"]:
        expected = f"{entry['dtype']} {tuple(entry['shape'])}"
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected {expected}")
    if sha256(array) != entry["sha256"]:
        raise ValueError(f"{name} has changed since it was saved: its sha256 differs")


def bits(array: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy if the array is contiguous."""
    return array.ravel().view(np.uint8).data


def sha256(array: np.ndarray) -> str:
    """The hash of the bits of an array."""
    return hashlib.sha256(bits(array)).hexdigest()


@checked
def digest(tree: Any) -> str:
    """The sha256 of the kinds, static fields, shapes and bits of a tree, such as a dictionary.

    Example:
        >>> D = ur.dictionaries.dct(4, 6)
        >>> ur.training.digest(D) == ur.training.digest(D + 0), len(ur.training.digest(D))
        (True, 64)
    """
    try:
        form, leaves = describe(tree, "D")
    except TypeError:  # a node has a type without a form
        form, leaves = str(jax.tree.structure(tree)), names({"D": tree})
    return text.digest([form, table(leaves, "digest")[1]])


def versions() -> dict[str, str]:
    """The versions of the installed libraries, for files of weights.

    Example:
        >>> sorted(set(ur.training.versions()) - {"unrolled"})
        ['jax', 'jaxlib', 'numpy', 'optax']
    """
    others = {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")}
    try:
        return {"unrolled": metadata.version("unrolled"), **others}
    except metadata.PackageNotFoundError:  # the library is used from its source tree
        return others


def seal(kind: str, manifest: dict) -> dict:
    """The manifest with its format, its kind and its sha256."""
    whole = {"format": FORMAT, "kind": kind, **manifest}
    return {**whole, "sha256": text.digest(whole)}


def unseal(path: Path, kind: str, manifest: Any) -> dict:
    """The manifest of a file, if the file is whole and of this kind.

    Raises:
        CheckpointError: the file is whole but has a newer format.
        ValueError: the file is damaged, or of another kind.
    """
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise ValueError("its manifest is not one of unrolled")
    whole = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != text.digest(whole):
        raise ValueError("its manifest has changed since it was saved: its sha256 differs")
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {manifest['format']}, newer than {FORMAT}; try a newer unrolled"
        )
    if manifest.get("kind") != kind:
        raise ValueError(f"it holds {str(manifest.get('kind'))[:40]!r}; expected {kind!r}")
    return whole


def types_of_entries(entries: dict[str, dict]) -> dict[str, str]:
    """Text such as "float32 (3, 4)" for each entry, for `records.differences`."""
    return {name: f"{entry['dtype']} {tuple(entry['shape'])}" for name, entry in entries.items()}


def types_of(leaves: dict[str, Any]) -> dict[str, str]:
    """Text such as "float32 (3, 4)" for each leaf in memory, made without a copy of the leaf."""
    numbers = {name: _numbers(leaf) for name, leaf in leaves.items()}
    return {name: f"{dtype} {array.shape}" for name, (dtype, array) in numbers.items()}
