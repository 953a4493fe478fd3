"""Named arrays in one file with a sealed manifest: the state of a run, and the weights of a row."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unrolled.training import _manifest
from unrolled.training._disk import write_whole
from unrolled.training._formats import from_npz, to_npz
from unrolled.training._forms import names
from unrolled.training._manifest import CheckpointError, DamagedError


def write(path: Path, tree: Any, **told: Any) -> None:
    """Put the leaves of a tree and what is told of them at `path`, whole or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    arrays, entries = _manifest.table(names(tree))
    manifest = {"leaves": entries, "versions": _manifest.versions(), "told": told}
    write_whole(path, to_npz(json.dumps(_manifest.seal("experiment", manifest)), arrays))


def read(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """The tree at `path`, bit for bit, and what was told of it; its structure is that of `like`.

    Raises:
        FileNotFoundError: no such file.
        DamagedError: it is not what was written.
        CheckpointError: it has other leaves than `like`.
    """
    manifest, arrays = _read(path)
    saved = _manifest.leaf_types(manifest["leaves"])
    wanted = _manifest.leaf_types(_manifest.table(names(like))[1])
    if report := _manifest.differences(saved, wanted):
        raise CheckpointError(f"{path}: holds another model:\n{report}")
    leaves = [
        _manifest.to_device(manifest["leaves"][name]["dtype"], arrays[name]) for name in names(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), manifest["told"]


def _read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    try:
        text, arrays = from_npz(path.read_bytes())
        manifest = _manifest.unseal("experiment", json.loads(text))
        for name, entry in manifest["leaves"].items():
            _manifest.verify(name, entry, arrays[name])
        return manifest, arrays
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged archive raises
        raise DamagedError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from error
