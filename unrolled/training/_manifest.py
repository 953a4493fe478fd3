"""The manifest of saved numbers: sealed JSON with dtype, shape and sha256 of every leaf."""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _json
from unrolled._arguments import checked
from unrolled._files import CheckpointError
from unrolled._processes import copy_of
from unrolled.training._forms import describe, names

FORMAT = 1  # of the manifest; a newer one is refused
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
)


class DamagedError(CheckpointError):
    """A file or a step that cannot be read as what was written."""


def _numbers(leaf: Any) -> tuple[str, Any]:
    """The dtype of a leaf, and the leaf as an array; a random key is saved as its data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return array.dtype.name, array


def on_host(leaf: Any) -> tuple[str, np.ndarray]:
    """The dtype and the bits of a leaf."""
    dtype, numbers = _numbers(leaf)
    array = copy_of(numbers)  # a copy: the buffer of a leaf may be given to the next step
    return dtype, array.astype(array.dtype.newbyteorder("="), copy=False)


def to_device(dtype: str, array: np.ndarray) -> jax.Array:
    """The leaf of which `on_host` gave the dtype and the bits.

    Raises:
        ValueError: 64 bits in a process that runs without them.
    """
    if dtype.startswith("key "):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=dtype.removeprefix("key "))
    if array.dtype.itemsize == 8 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError(
            f"holds {dtype}, but JAX runs in float32 here; enable float64, "
            "or load `with jax.enable_x64(True)`"
        )
    return jnp.asarray(array)


def table(leaves: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """The arrays of named leaves, and their entries of the manifest."""
    arrays, entries = {}, {}
    for name, leaf in leaves.items():
        dtype, arrays[name] = on_host(leaf)
        if not dtype.startswith("key ") and dtype not in _DTYPES:
            raise TypeError(f"{name} has dtype {dtype}; expected one of {', '.join(_DTYPES)}")
        entries[name] = {
            "dtype": dtype,
            "shape": list(arrays[name].shape),
            "sha256": sha256(arrays[name]),
        }
    return arrays, entries


def array_dtype(entry: dict) -> np.dtype:
    """The dtype of the array of an entry.

    Raises:
        ValueError: not a dtype that is ever saved.
    """
    dtype = str(entry["dtype"])
    if dtype.startswith("key "):
        return np.dtype(np.uint32)
    if dtype not in _DTYPES:
        raise ValueError(f"an array has dtype {dtype[:40]!r}")
    return jnp.dtype(dtype)


def verify(name: str, entry: dict, array: np.ndarray) -> None:
    """Raise ValueError if the array is not the one that was saved."""
    if array.dtype != array_dtype(entry) or list(array.shape) != entry["shape"]:
        expected = f"{entry['dtype']} {tuple(entry['shape'])}"
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected {expected}")
    if sha256(array) != entry["sha256"]:
        raise ValueError(f"{name} has changed since it was saved: its sha256 differs")


def bits(array: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy where they lie in order."""
    return array.ravel().view(np.uint8).data


def sha256(array: np.ndarray) -> str:
    """The hash of the bits of an array."""
    return hashlib.sha256(bits(array)).hexdigest()


@checked
def digest(tree: Any) -> str:
    """The sha256 of a tree, as of a dictionary: of its kinds, static fields, shapes and bits.

    Example:
        >>> D = ur.dictionaries.dct(4, 6)
        >>> ur.training.digest(D) == ur.training.digest(D + 0), len(ur.training.digest(D))
        (True, 64)
    """
    try:
        form, leaves = describe(tree, "D")
    except TypeError:  # of a kind that has no form
        form, leaves = str(jax.tree.structure(tree)), names({"D": tree})
    return _json.digest([form, table(leaves)[1]])


def versions() -> dict[str, str]:
    """The versions of what computes here, as files of weights hold them.

    Example:
        >>> sorted(set(ur.training.versions()) - {"unrolled"})
        ['jax', 'jaxlib', 'numpy', 'optax']
    """
    others = {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")}
    try:
        return {"unrolled": metadata.version("unrolled"), **others}
    except metadata.PackageNotFoundError:  # used from its source
        return others


def seal(kind: str, manifest: dict) -> dict:
    """The manifest with its format, kind and a sha256 of itself."""
    whole = {"format": FORMAT, "kind": kind, **manifest}
    return {**whole, "sha256": _json.digest(whole)}


def unseal(path: Path, kind: str, manifest: Any) -> dict:
    """The manifest of a file if it is whole and of this kind.

    Raises:
        CheckpointError: whole, and of a newer format.
        ValueError: damaged, or of another kind.
    """
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise ValueError("its manifest is not one of unrolled")
    whole = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != _json.digest(whole):
        raise ValueError("its manifest has changed since it was saved: its sha256 differs")
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {manifest['format']}, newer than {FORMAT}; try a newer unrolled"
        )
    if manifest.get("kind") != kind:
        raise ValueError(f"it holds {str(manifest.get('kind'))[:40]!r}; expected {kind!r}")
    return whole


def types_of_entries(entries: dict[str, dict]) -> dict[str, str]:
    """Entries as "float32 (3, 4)", for `records.differences`."""
    return {name: f"{entry['dtype']} {tuple(entry['shape'])}" for name, entry in entries.items()}


def types_of(leaves: dict[str, Any]) -> dict[str, str]:
    """The same of leaves, none of which is copied."""
    numbers = {name: _numbers(leaf) for name, leaf in leaves.items()}
    return {name: f"{dtype} {array.shape}" for name, (dtype, array) in numbers.items()}
