"""Files that are written whole, or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, blob: bytes | memoryview) -> None:
    """Put `blob` at `path` in one move.

    The bytes go to a temporary file beside `path`, which is renamed once they are on the disk.
    After a fault or a kill the previous file is still there.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
