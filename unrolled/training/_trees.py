"""Any tree of arrays in one file with a sealed manifest, such as the variables of a model."""

import json
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import numpy as np

from unrolled._files import in_line
from unrolled.records import differences
from unrolled.training import _manifest
from unrolled.training._formats import from_npz, read, to_npz, write
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
    try:
        json.dumps(metadata, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"save_tree: metadata must be what JSON can hold ({error})") from error
    write(Path(path), _KIND, names(tree), to_npz, metadata=metadata)


@overload
def restore_tree(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...
@overload
def restore_tree(path: str | Path, like: _Tree) -> tuple[_Tree, dict[str, Any]]: ...
def restore_tree(path: str | Path, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """The tree that `save_tree` wrote, bit for bit, and its metadata.

    Args:
        path: the file.
        like: a tree of the same structure, shapes and dtypes; None for the arrays on the host, by
            their dotted paths in the tree.

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
        >>> ur.training.restore_tree(path)[0]
        {'0': array([0., 1., 2.], dtype=float32)}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        manifest, arrays = read(path, _KIND, from_npz)
    except Exception as error:  # whatever a reader of foreign bytes raises
        raise DamagedError(f"{path}: damaged ({in_line(error)})") from error
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
