"""Any tree of arrays in one file with a sealed manifest, such as the variables of a model."""

import json
from pathlib import Path
from typing import Any, TypeVar

import jax

from unrolled.records import differences
from unrolled.training import _manifest
from unrolled.training._disk import write_whole
from unrolled.training._formats import from_npz, to_npz
from unrolled.training._forms import names
from unrolled.training._manifest import CheckpointError, DamagedError

_Tree = TypeVar("_Tree")
_KIND = "tree"


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
    arrays, entries = _manifest.table(names(tree))
    manifest = {"leaves": entries, "versions": _manifest.versions(), "metadata": metadata}
    try:
        text = json.dumps(_manifest.seal(_KIND, manifest))
    except TypeError as error:
        raise TypeError(f"save_tree: metadata must be what JSON can hold ({error})") from error
    write_whole(Path(path), to_npz(text, arrays))


def restore_tree(path: str | Path, like: _Tree) -> tuple[_Tree, dict[str, Any]]:
    """The tree that `save_tree` wrote, bit for bit, and its metadata.

    Args:
        path: the file.
        like: a tree of the same structure, shapes and dtypes.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is damaged; it has other leaves than `like` (with a table); 64-bit
            numbers in a process without them.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.npz"
        >>> ur.training.save_tree(path, [jnp.arange(3.0)])
        >>> ur.training.restore_tree(path, [jnp.zeros(3)])[0][0].tolist()
        [0.0, 1.0, 2.0]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        text, arrays = from_npz(path.read_bytes())
        manifest = _manifest.unseal(_KIND, json.loads(text))
        entries = manifest["leaves"]
        arrays = {name: arrays[name].view(_manifest.array_dtype(e)) for name, e in entries.items()}
        for name, entry in entries.items():
            _manifest.verify(name, entry, arrays[name])
    except Exception as error:  # whatever a reader of foreign bytes raises
        raise DamagedError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from error
    wanted = names(like)
    given = _manifest.leaf_types(_manifest.table(wanted)[1])
    if report := differences(_manifest.leaf_types(entries), given):
        raise CheckpointError(f"{path}: holds another tree:\n{report}")
    try:
        leaves = [_manifest.to_device(entries[name]["dtype"], arrays[name]) for name in wanted]
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves), manifest["metadata"]
