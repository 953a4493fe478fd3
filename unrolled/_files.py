"""Files that are written whole, or not at all, and arrays that are read whole, or not at all."""

import io
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np


class CheckpointError(ValueError):
    """A file or folder of saved numbers is damaged, cannot be written, or is of something else."""


def check_writable(folder: Path) -> None:
    """Raise OSError unless files can be written into a folder, or it can be made; nothing is left.

    Raises:
        NotADirectoryError: a file has its name, or that of a folder above it.
        OSError: it cannot be written.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there}: is a file; expected a folder to write into")
    with tempfile.TemporaryFile(dir=there):
        pass


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


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file by name, with the checksum of every entry compared.

    `np.load` reads as much as the header of an array says, and without the end of an entry there is
    no checksum.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or no such file.
    """
    blob = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(blob) as archive:
            return {n.removesuffix(".npy"): _from_npy(archive.read(n)) for n in archive.namelist()}
    except Exception as error:  # whatever numpy, zipfile and zlib raise of foreign bytes
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _from_npy(blob: bytes) -> np.ndarray:
    stream = io.BytesIO(blob)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):
        raise ValueError(f"an array of shape {array.shape} has more bytes than it needs")
    return array


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
