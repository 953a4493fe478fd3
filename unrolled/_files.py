"""Files that are written whole or not at all, and locked by one process; words on what fails."""

import errno
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO


class CheckpointError(ValueError):
    """A file or folder of saved numbers is damaged, cannot be written, or is of something else."""


def check_file(path: Path) -> None:
    """Raise FileNotFoundError, or IsADirectoryError, unless there is a file to read."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file")
    if not path.is_file():
        what = "is no regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"{path}: {what}")


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
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:  # which names the file that was tried
        words = f"{error.strerror}; no file can be written there"
        raise type(error)(error.errno, words, str(there)) from None


def write_whole(path: Path, blob: bytes | memoryview) -> None:
    """Put `blob` at `path` in one move; see `whole_file`.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as file:
        file.write(blob)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which is at `path` when the block ends.

    It has no name before its bytes are on the disk, where the system has such files, and then one
    beside `path` for a moment; elsewhere it has that name from the start. After a fault or a kill
    the previous file is still there. What a kill leaves, the next call for `path` removes. A link
    stays, and the file that it names is written.

    Raises:
        IsADirectoryError: a folder has its name.
        OSError: the file cannot be written.
    """
    path = target(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file")
    # In the file system of `path`, whose folder may be made within the block.
    folder = next(folder for folder in path.parents if folder.exists())
    sweep(folder / path.name)
    partial = folder / f".{path.name}.{secrets.token_hex(4)}.partial"
    nameless = _nameless(folder)
    try:
        with named(path):
            with partial.open("x+b") if nameless is None else nameless as file:
                lock(file)
                yield file
                file.flush()
                os.fsync(file.fileno())
                if nameless is not None:
                    # `src_dir_fd`, of no effect here, has the link to the descriptor followed.
                    os.link(_in_proc(file), partial, src_dir_fd=file.fileno())
                partial.replace(path)
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def target(path: Path) -> Path:
    """The absolute path of a file, or of the file that a symbolic link names.

    Raises:
        OSError: the link names itself.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path.absolute()
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return path


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError that names no file, as that of a full disk, names the path."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def _nameless(folder: Path) -> BinaryIO | None:
    """A new file without a name, which may get one; None where there are no such files."""
    try:
        file = os.fdopen(os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o666), "w+b")
    except (AttributeError, OSError):
        return None
    if os.path.exists(_in_proc(file)):
        return file
    file.close()
    return None


def _in_proc(file: BinaryIO) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def sweep(path: Path) -> None:
    """Remove what killed processes left of a file: whatever of it no process has locked."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), partial.open("rb") as file:
            if lock(file):
                partial.unlink()


def lock(file: IO) -> bool:
    """Lock an open file, unless another process has; the lock of a killed process ends with it.

    Windows has no such locks: there all files count as free.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claimed(path: Path, *, stays: bool = False) -> Iterator[str | None]:
    """Lock a file that stands for a run, with the id of this process in it, until the block ends.

    It yields None, or the id of the process that has locked the file. What a killed process leaves
    is locked by nobody. Unless it `stays`, the file goes with the block.
    """
    with _opened(path) as (file, mine):
        if mine:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        file.seek(0)
        try:
            yield None if mine else file.read() or "?"
        finally:
            if mine and not stays:
                path.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO, bool]]:
    """The file, and whether this process has locked it."""
    while True:
        with path.open("a+") as file:
            mine = lock(file)
            if mine and not os.fstat(file.fileno()).st_nlink:
                continue  # its process has removed it between these lines
            yield file, mine
            return


def in_line(error: BaseException) -> str:
    """The message of an error in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"


def free_space(path: Path) -> str:
    """The free space of the disk that holds `path`, for a message."""
    there = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
    return f"{shutil.disk_usage(there).free} bytes are free"
