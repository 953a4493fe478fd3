"""Writing that outlasts a kill, a full disk and a loss of power."""

import shutil
from pathlib import Path

from unrolled import _files
from unrolled.training._manifest import CheckpointError


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
