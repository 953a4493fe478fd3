"""Files of named arrays with a sealed manifest, in two formats, and of any tree of arrays.

Reading trusts no header: what it promises is compared with the bytes before anything is allocated.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import numpy as np

from unrolled import _files
from unrolled._arguments import checked
from unrolled.records import differences
from unrolled.training import _manifest
from unrolled.training._forms import names
from unrolled.training._manifest import CheckpointError, DamagedError, array_dtype

Leaves = dict[str, Any]
_Tree = TypeVar("_Tree")

# Names of dtypes in a `.safetensors` header.
_SAFETENSORS = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}
_LARGEST_HEADER = 10**8  # bytes, as in the reference implementation of safetensors
_LARGEST_FILE = 2**33  # bytes: a file is read into memory at once
_KIND = "tree"


def check_parent(path: Path) -> None:
    """Raise CheckpointError, before any work, unless a file can be written at `path`."""
    try:
        if not path.parent.is_dir():
            raise NotADirectoryError(f"the folder {path.parent} does not exist")
        _files.check_writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError("is a folder")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    why = f"{error.strerror or error}); {_files.free_space(path)}"
    return CheckpointError(f"save: {path}: cannot be written ({why}")


def write(path: Path, kind: str, leaves: Leaves, to_bytes: Callable, /, **manifest: Any) -> None:
    """Put leaves with their hashes at `path`, whole or not at all, by `to_npz` or the other.

    Raises:
        TypeError: a leaf of a dtype that cannot be saved, or what JSON cannot hold.
        CheckpointError: the file cannot be written.
    """
    arrays, entries = _manifest.table(leaves)
    manifest = {"leaves": entries, "versions": _manifest.versions(), **manifest}
    blob = to_bytes(json.dumps(_manifest.seal(kind, manifest)), arrays)
    try:
        _files.write_whole(path, blob)
    except OSError as error:
        raise _unwritable(path, error) from error


def read(path: Path, kind: str, from_bytes: Callable) -> tuple[dict, dict[str, np.ndarray]]:
    """The manifest and the arrays of such a file, every hash checked.

    Raises:
        Exception: whatever a reader of foreign bytes raises.
    """
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"it has {path.stat().st_size} bytes; expected at most {_LARGEST_FILE}")
    text, arrays = from_bytes(path.read_bytes())
    manifest = _manifest.unseal(kind, json.loads(text))
    entries = manifest["leaves"]
    if set(arrays) != set(entries):
        raise ValueError(f"it holds the arrays {sorted(arrays)}; expected {sorted(entries)}")
    arrays = {name: arrays[name].view(array_dtype(entry)) for name, entry in entries.items()}
    for name, entry in entries.items():
        _manifest.verify(name, entry, arrays[name])
    return manifest, arrays


def to_npz(text: str, arrays: dict[str, np.ndarray]) -> bytes:
    """A `.npz` file, uncompressed, with the text as `manifest.json`."""
    blob = io.BytesIO()
    # Stored, not compressed: a file cannot unpack to more than it holds.
    with zipfile.ZipFile(blob, "w") as archive:
        archive.writestr(zipfile.ZipInfo("manifest.json"), text)
        for name, array in arrays.items():
            plain = array if array.dtype.kind in "biuf" else array.view(f"u{array.dtype.itemsize}")
            entry = io.BytesIO()
            np.lib.format.write_array(entry, plain, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue())
    return blob.getvalue()


def from_npz(blob: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """The text and the arrays of such a file.

    Raises:
        ValueError: it is compressed, or promises more than it has.
    """
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it has compressed entries; `save` writes none")
        if sum(entry.file_size for entry in entries) > len(blob):
            raise ValueError("its entries promise more bytes than the file has")
        names = [entry.filename for entry in entries if entry.filename != "manifest.json"]
        arrays = {n.removesuffix(".npy"): _from_npy(archive.read(n)) for n in names}
        return archive.read("manifest.json").decode(), arrays


def _from_npy(blob: bytes) -> np.ndarray:
    """The array of a .npy entry, from its bytes.

    Raises:
        ValueError: the header does not fit the bytes, or describes objects.
    """
    stream = io.BytesIO(blob)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an entry is not a .npy file of version 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "biuf" or fortran_order:
        raise ValueError(f"an entry has dtype {dtype}; expected real numbers in row-major order")
    return np.frombuffer(blob, dtype, offset=stream.tell()).reshape(shape)


def to_safetensors(text: str, arrays: dict[str, np.ndarray]) -> bytes:
    """A `.safetensors` file with the text in its metadata."""
    header: dict[str, dict] = {"__metadata__": {"unrolled": text}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind = _SAFETENSORS[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    size = len(head).to_bytes(8, "little")
    return b"".join([size, head, *(array.tobytes() for array in arrays.values())])


def from_safetensors(blob: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """The text and the arrays of such a file.

    Raises:
        ValueError: the header does not cover the bytes exactly.
    """
    length = int.from_bytes(blob[:8], "little")
    if len(blob) < 8 or length > min(len(blob) - 8, _LARGEST_HEADER):
        raise ValueError(f"its header promises {length} bytes, the file has {len(blob)}")
    header, data = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    text = header.pop("__metadata__")["unrolled"]
    names, arrays, reached = {kind: dtype for dtype, kind in _SAFETENSORS.items()}, {}, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if begin != reached or end > len(data):
            raise ValueError(
                f"{name} lies at the bytes {begin} to {end}; expected them to begin at {reached}"
            )
        dtype = array_dtype({"dtype": names[entry["dtype"]]})
        arrays[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
        reached = end
    if reached != len(data):
        raise ValueError(f"it has {len(data) - reached} bytes that belong to no array")
    return text, arrays


FORMATS = {".npz": (to_npz, from_npz), ".safetensors": (to_safetensors, from_safetensors)}


@checked
def save_tree(path: str | Path, tree: Any, **metadata: Any) -> None:
    """Write the arrays of a tree and their hashes at `path`, whole or not at all.

    Args:
        path: a `.npz` file.
        tree: any pytree of arrays, such as the state of an optimiser.
        metadata: anything that JSON can hold, nan and infinities too.

    Raises:
        TypeError: a leaf of a dtype that cannot be saved, two leaves with one dotted path, metadata
            that JSON cannot hold.
        CheckpointError: the file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.npz"
        >>> ur.training.save_tree(path, {"a": jnp.ones(2), "b": (jnp.zeros(3),)}, step=7)
        >>> ur.training.restore_tree(path, {"a": jnp.zeros(2), "b": (jnp.zeros(3),)})[1]
        {'step': 7}
    """
    try:
        json.dumps(metadata, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"save_tree: metadata must be what JSON can hold ({error})") from error
    write(Path(path), _KIND, names(tree), to_npz, metadata=metadata)


@overload
def restore_tree(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...


@overload
def restore_tree(path: str | Path, like: _Tree) -> tuple[_Tree, dict[str, Any]]: ...


@checked
def restore_tree(path: str | Path, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """The tree that `save_tree` wrote, bit for bit, and its metadata.

    Args:
        path: the file.
        like: a tree of the same structure, shapes and dtypes; None for the arrays on the host, by
            their dotted paths in the tree.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file, or a folder.
        CheckpointError: it is damaged; it has other leaves than `like` (with a table); 64-bit
            numbers in a process without them.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.npz"
        >>> ur.training.save_tree(path, [jnp.arange(3.0)])
        >>> ur.training.restore_tree(path, [jnp.zeros(3)])[0][0].tolist()
        [0.0, 1.0, 2.0]
        >>> ur.training.restore_tree(path)[0]
        {'0': array([0., 1., 2.], dtype=float32)}
    """
    path = Path(path)
    _files.check_file(path)
    try:
        manifest, arrays = read(path, _KIND, from_npz)
    except Exception as error:  # whatever a reader of foreign bytes raises
        raise DamagedError(f"{path}: damaged ({_files.in_line(error)})") from error
    if like is None:
        # Copies: what is read is not to be written on.
        return {name: array.copy() for name, array in arrays.items()}, manifest["metadata"]
    entries, wanted = manifest["leaves"], names(like)
    expected = _manifest.leaf_types(_manifest.table(wanted)[1])
    if report := differences(_manifest.leaf_types(entries), expected):
        raise CheckpointError(f"{path}: holds another tree:\n{report}")
    try:
        leaves = [_manifest.to_device(entries[name]["dtype"], arrays[name]) for name in wanted]
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves), manifest["metadata"]
