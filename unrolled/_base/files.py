"""Files that are written completely or not at all, and locks of files; arrays in files, whose rows
are read when a sampler draws them.
"""

import errno
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from unrolled._base import checks, text
from unrolled._base.checks import Array, DTypeLike, Key


class CheckpointError(ValueError):
    """A file or folder of saved numbers is damaged, cannot be written, or has other contents."""


def check_file(path: Path) -> None:
    """Raise FileNotFoundError or IsADirectoryError unless there is a file to read."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file")
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"{path}: {what}")


def check_writable(folder: Path) -> None:
    """Raise OSError unless files can be written into a folder, or the folder can be made.

    The check leaves no file or folder behind.

    Raises:
        NotADirectoryError: a file has the name of the folder, or of a parent folder.
        OSError: the folder cannot be written.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there}: is a file; expected a folder to write into")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:  # names the file that was tried
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
    """A file to write into, which appears at `path` when the block ends.

    If the system supports files without a name, the file has no name until its bytes are on the
    disk, and then it has a temporary name next to `path` for a moment. On other systems the file
    has the temporary name from the start. After an error or a kill the previous file still exists,
    and the next call for `path` removes a temporary file that a kill has left. If `path` is a link,
    the link stays, and the file to which the link points is written.

    Raises:
        IsADirectoryError: a folder has this name.
        OSError: the file cannot be written.
    """
    path = target(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file")
    # A folder in the file system of `path`; the folder of `path` may be made within the block.
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
                    # `src_dir_fd` only makes Python follow the link to the descriptor.
                    os.link(_in_proc(file), partial, src_dir_fd=file.fileno())
                partial.replace(path)
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def target(path: Path) -> Path:
    """The absolute path of a file, or of the file to which a symbolic link points.

    Raises:
        OSError: the link points to itself.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path.absolute()
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return path


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Make an OSError that names no file, such as for a full disk, name the path."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def _nameless(folder: Path) -> BinaryIO | None:
    """A new file without a name, to be named later; None if the system lacks such files."""
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
    """Remove the temporary files of killed processes: all files that no process has locked."""
    for rest in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), rest.open("rb") as file:
            if lock(file):
                rest.unlink()


def lock(file: IO) -> bool:
    """Lock an open file; False if another process holds the lock. A lock ends with its process.

    On Windows, which has no such locks, the result is always True.
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
    """Lock a file that stands for a run, and write the id of this process into it.

    The lock ends when the block ends. The block gets None, or the id of the process that has locked
    the file. A file that a killed process leaves is not locked. When the block ends, the file is
    removed unless `stays` is True.
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
                continue  # another process removed the file between these lines
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


# Arrays of more bytes than this (2 GiB) are not read into memory.
LARGEST_BYTES = 2**31
_ARRAY = jax.Array | np.ndarray


class MappedRows:
    """The rows of a memory-mapped array, in a dtype; values are read only when they are needed.

    Args:
        array: the mapped array, of shape (rows, n).
        dtype: the dtype to which rows are cast when they are read.
        name: the name of the array, for messages.
        first: the index of the first row in the file.
    """

    def __init__(self, array: np.ndarray, dtype: DTypeLike, name: str, first: int = 0):
        self.array, self.dtype, self.name, self.first = array, np.dtype(dtype), name, first
        self.shape = array.shape
        self.fault: str | None = None  # fault of the first draw that failed

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.read(np.arange(len(self))), dtype)

    def __getitem__(self, rows: Any) -> Any:
        """Some rows: a slice gives unread rows, and an array of indices gives drawn rows."""
        if isinstance(rows, slice):
            first = range(self.first, self.first + len(self))[rows].start
            return MappedRows(self.array[rows], self.dtype, self.name, first)
        answer = jax.ShapeDtypeStruct((*rows.shape, *self.shape[1:]), self.dtype)

        def call(rows: Array) -> Array:
            return jax.pure_callback(self._drawn, answer, rows, vmap_method="sequential")

        # Each device reads its rows, also on axes that the compiler partitions.
        mesh = jax.sharding.get_abstract_mesh()
        pairs = zip(mesh.axis_names, mesh.axis_types)
        if others := {name for name, kind in pairs if kind != AxisType.Manual}:
            call = jax.shard_map(
                call, axis_names=others, in_specs=P(), out_specs=P(), check_vma=False
            )
        return call(rows)

    def astype(self, dtype: DTypeLike) -> "MappedRows":
        return MappedRows(self.array, dtype, self.name, self.first)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read the values of some rows.

        Raises:
            ValueError: values are NaN or infinite, float32 loses values, or the file has become
                shorter.
        """
        root: Any = self.array
        while isinstance(root.base, np.ndarray):
            root = root.base
        length, whole = root.base.size(), root.offset + root.nbytes
        if length < whole:  # the system would end a process that reads past the end
            raise ValueError(f"{self.name} has {length} bytes, {whole} when it was opened")
        values, info = np.asarray(self.array[rows]), np.finfo(self.dtype)
        ends = values.max(1, initial=0), values.min(1, initial=0)
        size = np.maximum(*(np.abs(end.astype(float)) for end in ends))
        usual = (size == 0) | ((size >= info.tiny / info.eps) & (size <= info.max))
        if not usual.all():
            self._check(values, rows)
        return values.astype(self.dtype, copy=False)

    def _check(self, values: np.ndarray, rows: np.ndarray) -> None:
        """Raise ValueError for rows that are not finite, or that float32 loses."""
        lost = np.flatnonzero(~np.isfinite(values).all(1))
        what, then = "has NaN or infinite entries", ""
        if self.dtype == np.float32 and not len(lost):
            lost, what = checks.narrowed(values)[1], "leaves the range of float32"
            then = ", where entries become 0 or infinite; try numbers near 1"
        if len(lost):
            where = text.in_rows(np.unique(rows[lost]) + self.first)
            raise ValueError(f"{self.name} {what}{where}{then}")

    def _drawn(self, rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        try:
            return self.read(rows)
        except ValueError as fault:
            self.fault = self.fault or str(fault)
            return np.full((*rows.shape, *self.shape[1:]), np.nan, self.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Draws:
    """A sampler that draws from arrays; some of these arrays are `MappedRows`."""

    sample: Callable[[Key], Any]
    files: tuple[MappedRows, ...] = field(metadata=dict(static=True))

    def __call__(self, key: Key) -> Any:
        batch = self.sample(key)
        if checks.is_concrete(batch):
            check_draws(self, batch)
        return batch

    def check(self) -> None:
        """Raise ValueError if some draw so far contained rows that cannot be used."""
        for file in self.files:
            if file.fault is not None:
                raise ValueError(file.fault)


def as_argument(sample: Any) -> Any:
    """A sampler as a pytree, so that the arrays in its leaves are not compiled into its program.

    An array that a function holds becomes a constant of the program. Each pass of the compiler
    copies the constant, and the compiled program keeps it. For your own signals this can take
    gigabytes.
    """
    leaves, tree = jax.tree.flatten(sample)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, _ARRAY) and leaf.ndim}

    def draw(arrays: dict[int, Array], key: Key) -> Any:
        return jax.tree.unflatten(tree, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])(key)

    return jax.tree_util.Partial(draw, arrays)


def drawing(sample: Any) -> Callable[[Key], Any]:
    """The sampler, compiled."""
    return partial(jax.jit(lambda sample, key: sample(key)), as_argument(sample))


def check_draws(sample: Any, batch: Any) -> None:
    """Raise ValueError if a sampler has read unusable rows from a file, in this batch or before."""
    if isinstance(sample, Draws):
        jax.block_until_ready(batch)
        sample.check()


def as_data(Y: Any, X: Any, where: str) -> tuple[Any, Any]:
    """Signals and their codes, checked: JAX arrays, and `MappedRows` for mapped arrays.

    Raises:
        TypeError, ValueError: see `checks.as_signals` and `checks.as_rows`; the values of mapped
            arrays are not checked here.
    """
    Y = _as_rows(checks.as_signals, Y, "Y", where)
    return Y, jax.tree.map(lambda codes: _as_rows(checks.as_rows, codes, "X", where, len(Y)), X)


def _as_rows(check: Any, array: Any, name: str, where: str, n: int | None = None) -> Any:
    mapped = isinstance(array, np.memmap) and array.filename is not None  # copies have no file
    if not mapped and not isinstance(array, MappedRows):
        return check(array, name, where, *(() if n is None else (n,)))
    checks.check_rows(array.shape, name, where, n)
    most = np.iinfo(jax.dtypes.canonicalize_dtype(int)).max
    if len(array) > most:
        raise ValueError(f"{where}: {name} has {len(array)} rows; JAX draws indices up to {most}")
    if not mapped:
        return array
    like = check(np.zeros((1, array.shape[1]), array.dtype), name, where)
    return MappedRows(array, like.dtype, f"{where}: {array.filename}")
