"""Writing that outlasts a kill, a full disk and a loss of power."""

import shutil
from pathlib import Path

from unrolled import _files
from unrolled.training._manifest import CheckpointError


def check_parent(path: Path) -> None:
    """Raise CheckpointError, before any work, unless a file can be written at `path`."""
    try:
        if not path.parent.is_dir():
            raise NotADirectoryError(f"the folder {path.parent} does not exist")
        _files.check_writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError("is a folder")
    except OSError as error:
        raise CheckpointError(
            f"save: {path}: cannot be written ({error.strerror or error}); {free_space(path)}"
        ) from error


def write_whole(path: Path, blob: bytes) -> None:
    """Put `blob` at `path` in one move: after a fault or a kill, the previous file is still there.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        _files.write_whole(path, blob)
    except OSError as error:
        raise CheckpointError(
            f"save: {path}: cannot be written ({error.strerror}); {free_space(path)}"
        ) from error


def free_space(path: Path) -> str:
    """The free space of the disk that holds `path`, for a message."""
    there = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
    return f"{shutil.disk_usage(there).free} bytes are free"
