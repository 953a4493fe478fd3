"""Readers with checks: arrays, pictures and the sample photographs; errors name the file."""

import os
import zipfile
from pathlib import Path

import numpy as np

# Larger arrays (2 GiB) are refused before they are read into memory.
_LARGEST_BYTES = 2**31
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp")


def read_array(path: str | Path, name: str | None = None) -> np.ndarray:
    """One real array from a `.npy` file, or from a `.npz` file by its name.

    Args:
        path: the file.
        name: the entry of a `.npz` file; None for its only entry.

    Returns:
        The array, in float64 if the file has it, else in float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable `.npy` or `.npz` file, a missing or ambiguous entry, values that
            are not real numbers (pickled objects are never loaded), NaN or infinite values, or more
            than 2 GiB.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/D.npy", np.eye(2))
        ...     ur.datasets.read_array(f"{folder}/D.npy").tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    array = open_array(path, name)
    if array.nbytes > _LARGEST_BYTES:
        raise ValueError(
            f"{path}: {array.nbytes / 2**30:.1f} GiB; expected at most {_LARGEST_BYTES / 2**30:.0f}"
        )
    return _checked(array, path)


def open_array(path: str | Path, name: str | None = None) -> np.ndarray:
    """The array of `read_array` in the dtype of its file, its values neither read nor checked.

    A `.npy` file may have any size: it is mapped into memory. `read_rows` reads parts of it.

    Args:
        path, name: as in `read_array`.

    Raises:
        FileNotFoundError, ValueError: as in `read_array`, for all but the values and the size.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/Y.npy", np.zeros((1000, 2)))
        ...     ur.datasets.open_array(f"{folder}/Y.npy").shape
        (1000, 2)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
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
    except (
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
        KeyError,
        MemoryError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(f"{path}: not a readable array file ({error})") from error
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{path}: entries are {array.dtype}; expected real numbers")
    return array


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
        >>> ur.datasets.read_rows(np.arange(6).reshape(3, 2), "Y.npy", 1, 5).tolist()
        [[2.0, 3.0], [4.0, 5.0]]
    """
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
    rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1)) + first
    others = f" and {len(rows) - 3} others" if len(rows) > 3 else ""
    return f" (in row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:3]))}{others})"


def entries(path: str | Path) -> list[str]:
    """The names of the arrays in a `.npz` file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/codes.npz", x_1=np.ones(3), x_2=np.ones(5))
        ...     ur.datasets.entries(f"{folder}/codes.npz")
        ['x_1', 'x_2']
    """
    with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return archive.files


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
        if size > _LARGEST_BYTES:
            raise ValueError(f"entry {chosen!r} unpacks to {size / 2**30:.1f} GiB")
        return archive[chosen]


def read_image(path: str | Path) -> np.ndarray:
    """A picture as grey values in [0, 1].

    Returns:
        (height, width), float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable picture.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.full((2, 3), 255, np.uint8)).save(f"{folder}/white.png")
        ...     ur.datasets.read_image(f"{folder}/white.png").tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow; install unrolled[data]") from error
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):  # 16 bits, which the 8 of "L" would cut off
                return np.asarray(picture, np.float32) / 65535
            return np.asarray(picture.convert("L"), np.float32) / 255
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error


def read_images(path: str | Path) -> dict[str, np.ndarray]:
    """The pictures of a folder as grey values in [0, 1], in the order of their names.

    Other files, and folders inside it, are ignored. One picture is read as a folder of one.

    Args:
        path: the folder, or the picture.

    Returns:
        Arrays (height, width) by file name without suffix.

    Raises:
        FileNotFoundError: no such folder or picture.
        ValueError: no picture in it, one that cannot be read, or two with the same name.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b", "a"):
        ...         Image.fromarray(np.zeros((2, 3), np.uint8)).save(f"{folder}/{name}.png")
        ...     {name: x.shape for name, x in ur.datasets.read_images(folder).items()}
        {'a': (2, 3), 'b': (2, 3)}
    """
    folder = Path(path)
    if folder.is_file():
        return {folder.stem: read_image(folder)}
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder or picture")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not paths:
        raise ValueError(f"{folder}: no picture in it; expected files {', '.join(_PICTURES)}")
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"{folder}: two pictures have the same name but for the suffix")
    return {path.stem: read_image(path) for path in paths}


def locate(name: str, root: str | Path | None = None) -> Path:
    """The folder of a data collection.

    Args:
        name: of the folder.
        root: where it is; by default the value of the environment variable UNROLLED_DATA.

    Raises:
        FileNotFoundError: no root is known, or there is no such folder.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as root:
        ...     pathlib.Path(root, "digits").mkdir()
        ...     ur.datasets.locate("digits", root).name
        'digits'
    """
    root = root or os.environ.get("UNROLLED_DATA")
    if not root:
        raise FileNotFoundError(
            f"{name}: no root given; pass a path or set UNROLLED_DATA to the folder that holds it"
        )
    if not (Path(root) / name).is_dir():
        raise FileNotFoundError(f"{Path(root) / name}: no such folder")
    return Path(root) / name


def photographs() -> dict[str, np.ndarray]:
    """The sample photographs of scikit-learn, "china" and "flower", as grey values in [0, 1].

    Returns:
        Arrays (427, 640) by name.

    Raises:
        ImportError: scikit-learn or Pillow is not installed.

    Example:
        >>> {name: picture.shape for name, picture in ur.datasets.photographs().items()}
        {'china': (427, 640), 'flower': (427, 640)}
    """
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            "the sample photographs need scikit-learn and Pillow; install unrolled[data]"
        ) from error
    # ITU-R 601 weights, as in Pillow's grey conversion.
    weights = np.asarray([0.299, 0.587, 0.114], np.float32) / 255
    return {
        name: load_sample_image(f"{name}.jpg").astype(np.float32) @ weights
        for name in ("china", "flower")
    }


def to_patches(image: np.ndarray, size: int, stride: int | None = None) -> np.ndarray:
    """Square patches of a picture, flattened row by row.

    Args:
        image: (height, width).
        size: side of a patch.
        stride: distance of two patches; None for `size`, which tiles the picture.

    Returns:
        (patches, size^2).

    Raises:
        ValueError: a picture smaller than a patch.

    Example:
        >>> ur.datasets.to_patches(np.arange(8).reshape(2, 4), 2).tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    if min(image.shape) < size:
        raise ValueError(
            f"to_patches: picture {image.shape} is smaller than a patch of {size} x {size}"
        )
    stride = stride or size
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))[::stride, ::stride]
    return windows.reshape(-1, size * size).copy()


def from_patches(patches: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """The picture that the tiles of `to_patches(image, size)` came from, cropped to whole tiles.

    Args:
        patches: (patches, size^2).
        shape: (height, width) of the picture.
        size: side of a patch.

    Example:
        >>> image = np.arange(8).reshape(2, 4)
        >>> ur.datasets.from_patches(ur.datasets.to_patches(image, 2), (2, 4), 2).tolist()
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    rows, columns = shape[0] // size, shape[1] // size
    tiles = np.asarray(patches).reshape(rows, columns, size, size)
    return tiles.transpose(0, 2, 1, 3).reshape(rows * size, columns * size)
