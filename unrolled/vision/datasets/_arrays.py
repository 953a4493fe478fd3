"""Arrays of `.npy` and `.npz` files."""

import zipfile
from pathlib import Path

import numpy as np

from unrolled._base.arguments import checked
from unrolled._base.files import LARGEST_BYTES, check_file
from unrolled._base.text import in_rows


@checked
def read_array(path: str | Path, name: str | None = None) -> np.ndarray:
    """One real array from a `.npy` file, or from a `.npz` file by its name.

    Args:
        path: the file.
        name: the entry of a `.npz` file; None for its only entry.

    Returns:
        The array, in float64 if the file has it, else in float32.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file, or a folder.
        ValueError: not a readable `.npy` or `.npz` file, a missing or ambiguous entry, values that
            are not real numbers (pickled objects are never loaded), NaN or infinite values, or more
            than 2 GiB.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/D.npy", np.eye(2))
        ...     ur.vision.datasets.read_array(f"{folder}/D.npy").tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    array = open_array(path, name)
    if array.nbytes > LARGEST_BYTES:
        raise ValueError(
            f"{path}: {array.nbytes / 2**30:.1f} GiB; expected at most {LARGEST_BYTES / 2**30:.0f}"
        )
    return _checked(array, path)


@checked
def open_array(path: str | Path, name: str | None = None) -> np.ndarray:
    """The array of `read_array` in the dtype of its file, its values neither read nor checked.

    A `.npy` file may have any size: it is mapped into memory. `read_rows` reads parts of it.

    Args:
        path, name: as in `read_array`.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: as in `read_array`, for all but the values
            and the size.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/Y.npy", np.zeros((1000, 2)))
        ...     ur.vision.datasets.open_array(f"{folder}/Y.npy").shape
        (1000, 2)
    """
    path = Path(path)
    check_file(path)
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path}: expected a .npy or .npz file")
    try:
        array = (
            np.load(path, allow_pickle=False, mmap_mode="r")
            if path.suffix == ".npy"
            else _entry(path, name)
        )
        if not isinstance(array, np.ndarray):
            raise ValueError(
                f"expected an array in a {path.suffix} file, found {type(array).__name__}"
            )
    except Exception as error:  # whatever numpy, zipfile and zlib raise of foreign bytes
        if "contains pickled" in str(error):  # as numpy takes all bytes that it does not know
            error = ValueError("it holds no array of numbers")
        raise ValueError(f"{path}: not a readable array file ({error})") from error
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{path}: entries are {array.dtype}; expected real numbers")
    return array


@checked
def read_rows(array: np.ndarray, path: str | Path, first: int, n: int) -> np.ndarray:
    """At most n rows of an array from `open_array`, as `read_array` returns them.

    Args:
        array: the array of the file.
        path: the file, for messages.
        first: the index of the first row.
        n: how many rows.

    Raises:
        ValueError: NaN or infinite values.

    Example:
        >>> ur.vision.datasets.read_rows(np.arange(6).reshape(3, 2), "Y.npy", 1, 5).tolist()
        [[2.0, 3.0], [4.0, 5.0]]
    """
    if not array.ndim:
        raise ValueError("read_rows: array has shape (); expected (n, ...)")
    return _checked(array[first : first + n], path, first)


def _checked(array: np.ndarray, path: str | Path, first: int = 0) -> np.ndarray:
    """A copy in float32 or float64; ValueError if an entry is not finite."""
    array = np.array(
        array, np.float32 if array.dtype.itemsize < 8 or array.dtype.kind != "f" else np.float64
    )
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: has NaN or infinite entries{_where(array, first)}")
    return array


def _where(array: np.ndarray, first: int) -> str:
    """Which rows are not finite, the first few by index, counted from `first`."""
    if array.ndim < 1:
        return ""
    return in_rows(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1)) + first)


@checked
def entries(path: str | Path) -> list[str]:
    """The names of the arrays in a `.npz` file.

    Args:
        path: the file.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file, or a folder.
        ValueError: not a readable `.npz` file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/codes.npz", x_1=np.ones(3), x_2=np.ones(5))
        ...     ur.vision.datasets.entries(f"{folder}/codes.npz")
        ['x_1', 'x_2']
    """
    path = Path(path)
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:  # whatever zipfile raises of foreign bytes
        raise ValueError(f"{path}: not a readable array file ({error})") from error


def _entry(path: Path, name: str | None) -> np.ndarray:
    # The file is opened here, since np.load leaves it open when the archive is damaged.
    if not zipfile.is_zipfile(path):
        raise ValueError("expected an archive in a .npz file")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        chosen = (
            name if name in archive.files else archive.files[0] if len(archive.files) == 1 else None
        )
        if chosen is None:
            raise ValueError(
                f"entries {archive.files}; expected one called {name!r}, or a single one"
            )
        size = archive.zip.getinfo(f"{chosen}.npy").file_size
        if size > LARGEST_BYTES:
            raise ValueError(f"entry {chosen!r} unpacks to {size / 2**30:.1f} GiB")
        with archive.zip.open(f"{chosen}.npy") as entry:
            array = np.lib.format.read_array(entry, allow_pickle=False)
            if entry.read(1):  # which looks at the checksum, too
                raise ValueError(f"entry {chosen!r} has more bytes than its header says")
        return array
