"""Writing that outlasts a kill, a full disk and a loss of power."""

import os
import shutil
from pathlib import Path

from unrolled.training._manifest import CheckpointError


def write_whole(path: Path, blob: bytes) -> None:
    """Put `blob` at `path` in one move: after a fault or a kill, what was there before is still
    there.

    Raises:
        CheckpointError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"save: {path}: cannot be written ({error.strerror}); {free_bytes(path)}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> str:
    there = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
    return f"{shutil.disk_usage(there).free} bytes are free"
