"""Arrays from files of numpy and other programs, grey values of pictures, and patches."""

import zipfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, checked
from unrolled._base.files import LARGEST_BYTES, check_file
from unrolled._base.packages import absent, require
from unrolled._base.text import in_rows

__all__ = [
    "READERS",
    "crop_and_flip",
    "from_patches",
    "photographs",
    "read_array",
    "read_image",
    "read_images",
    "to_patches",
]


def _csv(path: Path, name: str | None) -> np.ndarray:
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        line = f"np.save('Y.npy', pandas.read_csv('{path.name}').to_numpy())"
        raise ValueError(f"{error}; a header or names of rows? Try {line}") from error


def _mat(path: Path, name: str | None) -> np.ndarray:
    from scipy.io import loadmat

    try:
        arrays = {key: array for key, array in loadmat(path).items() if key[:2] != "__"}
    except NotImplementedError as error:
        line = "save('Y.mat', 'Y', '-v7')"
        raise ValueError(f"MATLAB wrote version 7.3; there try {line}") from error
    return arrays[_chosen(name, list(arrays))]


def _converted(line: str) -> Callable[[Path, str | None], np.ndarray]:
    """A reader that raises ValueError; the message has the line that makes a `.npy` file."""

    def refuse(path: Path, name: str | None) -> np.ndarray:
        array = line.format(path.name, name or "Y")
        raise ValueError(f"not one of numpy; try np.save('{path.stem}.npy', {array})")

    return refuse


# The readers for files of other programs by suffix: (path, name of the entry) -> array.
READERS: dict[str, Callable[[Path, str | None], np.ndarray]] = {
    ".csv": _csv,
    ".mat": _mat,
    ".h5": _converted("h5py.File('{}')['{}'][()]"),
    ".parquet": _converted("pandas.read_parquet('{}').to_numpy()"),
}


@checked
def read_array(
    path: str | Path, name: str | None = None, *, with_complex: bool = False
) -> np.ndarray:
    """One real array from a file, or a named array from an archive.

    The file has the suffix `.npy` or `.npz` or a suffix in `READERS`. A `.csv` file has numbers
    separated by commas and no header. A `.mat` file must be older than version 7.3.

    Args:
        path: the file.
        name: the entry of a `.npz` or `.mat` file; None for the only entry of the file. A file of
            `np.savez(path, array)`, whose only entry has no name, is accepted for every name.
        with_complex: if True, complex numbers are accepted, too.

    Returns:
        The array, in float64 if the file has float64, else in float32. The parts of complex numbers
        follow the same rule.

    Raises:
        FileNotFoundError, IsADirectoryError: the file is missing, or is a folder.
        ValueError: the file has another suffix or cannot be read, an entry is missing or ambiguous,
            values are not real numbers (pickled objects are never loaded), values are NaN or
            infinite, or the array takes more than 2 GiB. For an `.h5` or `.parquet` file the
            message has the line that converts the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/D.npy", np.eye(2))
        ...     ur.vision.datasets.read_array(f"{folder}/D.npy").tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    array = open_array(path, name, with_complex=with_complex)
    if array.nbytes > LARGEST_BYTES:
        raise ValueError(
            f"{path}: {array.nbytes / 2**30:.1f} GiB; expected at most {LARGEST_BYTES / 2**30:.0f}"
        )
    return _checked(array, path)


@checked
def open_array(
    path: str | Path, name: str | None = None, *, with_complex: bool = False
) -> np.ndarray:
    """The array of `read_array` in the dtype of its file; values are neither read nor checked.

    A `.npy` file may have any size because `open_array` maps the file into memory. `read_rows`
    reads some rows of the array.

    Args:
        path, name, with_complex: as in `read_array`.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: as in `read_array`, but `open_array`
            accepts arrays that are too large and arrays with NaN or infinite values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/Y.npy", np.zeros((1000, 2)))
        ...     ur.vision.datasets.open_array(f"{folder}/Y.npy").shape
        (1000, 2)
    """
    path = Path(path)
    check_file(path)
    if path.suffix not in (".npy", ".npz", *READERS):
        raise ValueError(f"{path}: expected a .npy or .npz file, or .csv or .mat")
    if path.suffix in READERS and (size := path.stat().st_size) > LARGEST_BYTES:
        raise ValueError(f"{path}: {size / 2**30:.1f} GiB; try np.save, whose files may be larger")
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False, mmap_mode="r")
        else:
            array = READERS.get(path.suffix, _entry)(path, name)
        if not isinstance(array, np.ndarray):
            raise ValueError(
                f"expected an array in a {path.suffix} file, found {type(array).__name__}"
            )
    except Exception as error:  # the libraries raise many exceptions for bytes in other formats
        if "contains pickled" in str(error):  # numpy's message for all bytes in other formats
            error = ValueError("it holds no array of numbers")
        raise ValueError(f"{path}: not a readable array file ({error})") from error
    if array.dtype.kind not in ("fiuc" if with_complex else "fiu"):
        raise ValueError(f"{path}: entries are {array.dtype}; expected real numbers")
    return array


@checked
def read_rows(array: np.ndarray, path: str | Path, first: int, n: int) -> np.ndarray:
    """At most n rows of an array from `open_array`, in the dtype that `read_array` returns.

    Args:
        array: the array of the file.
        path: the file, for messages.
        first: the index of the first row.
        n: number of rows.

    Raises:
        ValueError: values are NaN or infinite.

    Example:
        >>> ur.vision.datasets.read_rows(np.arange(6).reshape(3, 2), "Y.npy", 1, 5).tolist()
        [[2.0, 3.0], [4.0, 5.0]]
    """
    if not array.ndim:
        raise ValueError("read_rows: array has shape (); expected (n, ...)")
    return _checked(array[first : first + n], path, first)


def _checked(array: np.ndarray, path: str | Path, first: int = 0) -> np.ndarray:
    """A copy in single or double precision; raises ValueError if an entry is not finite."""
    real, is_complex = array.real.dtype, array.dtype.kind == "c"
    single = real.itemsize < 8 or real.kind != "f"
    array = np.array(array, np.result_type("f4" if single else "f8", "c8" if is_complex else "f4"))
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: has NaN or infinite entries{_where(array, first)}")
    return array


def _where(array: np.ndarray, first: int) -> str:
    """A text with the indices, counted from `first`, of the first few rows that are not finite."""
    if array.ndim < 1:
        return ""
    return in_rows(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1)) + first)


@checked
def entries(path: str | Path) -> list[str]:
    """The names of the arrays in a `.npz` file.

    Args:
        path: the file.

    Raises:
        FileNotFoundError, IsADirectoryError: the file is missing, or is a folder.
        ValueError: the file is not a readable `.npz` file.

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
    except Exception as error:  # zipfile raises many exceptions for bytes in other formats
        raise ValueError(f"{path}: not a readable array file ({error})") from error


_UNNAMED = "arr_0"  # what `np.savez(path, array)` calls the array


def _chosen(name: str | None, names: list[str]) -> str:
    """The given name; if the only entry has no name, this entry; without `name`, the only entry."""
    if name is not None and name in names:
        return name
    if names == [_UNNAMED] or (name is None and len(names) == 1):
        return names[0]
    what = "a single one" if name is None else f"one called {name!r}"
    raise ValueError(f"entries {names}; expected {what}")


def _entry(path: Path, name: str | None) -> np.ndarray:
    # Open the file here: np.load leaves the file open if the archive is damaged.
    if not zipfile.is_zipfile(path):
        raise ValueError("expected an archive in a .npz file")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        chosen = _chosen(name, archive.files)
        size = archive.zip.getinfo(f"{chosen}.npy").file_size
        if size > LARGEST_BYTES:
            raise ValueError(f"entry {chosen!r} unpacks to {size / 2**30:.1f} GiB")
        with archive.zip.open(f"{chosen}.npy") as entry:
            array = np.lib.format.read_array(entry, allow_pickle=False)
            if entry.read(1):  # reading to the end also verifies the checksum
                raise ValueError(f"entry {chosen!r} has more bytes than its header says")
        return array


_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp")


@checked
def read_image(path: str | Path) -> np.ndarray:
    """A picture as grey values in [0, 1].

    Returns:
        The grey values, (height, width), float32.

    Raises:
        FileNotFoundError, IsADirectoryError: the file is missing, or is a folder.
        ValueError: the file is not a readable picture.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.full((2, 3), 255, np.uint8)).save(f"{folder}/white.png")
        ...     ur.vision.datasets.read_image(f"{folder}/white.png").tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    picture = open_picture(path)
    if picture.mode.startswith("I"):  # 16 bits; converting to "L" would leave 8 bits
        return np.asarray(picture, np.float32) / 65535
    return np.asarray(picture.convert("L"), np.float32) / 255


def open_picture(path: str | Path) -> Any:
    """A Pillow image whose pixels are in memory.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError, ImportError: as in `read_image`.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise absent("reading pictures", "PIL") from error
    path = Path(path)
    check_file(path)
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode == "F":  # the value of white is unknown; Pillow assumes 255
                raise ValueError("its grey values are floats; try a .npy file")
            return picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error


@checked
def read_images(path: str | Path) -> dict[str, np.ndarray]:
    """The pictures of a folder as grey values in [0, 1], in the order of their names.

    Other files, and folders inside the folder, are ignored. A single picture is read as a folder of
    one picture.

    Args:
        path: the folder, or the picture.

    Returns:
        A dict from the file name without its suffix to the array (height, width).

    Raises:
        FileNotFoundError: the folder or picture does not exist.
        ValueError: the folder has no picture, a picture cannot be read, or two pictures have the
            same name.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b", "a"):
        ...         Image.fromarray(np.zeros((2, 3), np.uint8)).save(f"{folder}/{name}.png")
        ...     {name: x.shape for name, x in ur.vision.datasets.read_images(folder).items()}
        {'a': (2, 3), 'b': (2, 3)}
    """
    folder = Path(path)
    if folder.is_file():
        return {folder.stem: read_image(folder)}
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder or picture")
    return {name: read_image(path) for name, path in picture_files(folder).items()}


def picture_files(folder: Path) -> dict[str, Path]:
    """The paths of the pictures in a folder, by file name without its suffix, sorted by name.

    Raises:
        ValueError: the folder has no picture, or two pictures have the same name.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not paths:
        raise ValueError(f"{folder}: no picture in it; expected files {', '.join(_PICTURES)}")
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"{folder}: two pictures have the same name but for the suffix")
    return {path.stem: path for path in paths}


def photographs() -> dict[str, np.ndarray]:
    """The sample photographs of scikit-learn, "china" and "flower", as grey values in [0, 1].

    Returns:
        A dict from each name to an array (427, 640).

    Raises:
        ImportError: scikit-learn or Pillow is not installed.

    Example:
        >>> {name: picture.shape for name, picture in ur.vision.datasets.photographs().items()}
        {'china': (427, 640), 'flower': (427, 640)}
    """
    # Importing scikit-learn would take longer than reading the two files.
    require("the sample photographs", "sklearn", "PIL")
    spec: Any = find_spec("sklearn")
    folder = Path(spec.origin).parent / "datasets" / "images"
    # ITU-R 601 weights, as in Pillow's grey conversion.
    weights = np.asarray([0.299, 0.587, 0.114], np.float32) / 255
    return {
        name: np.asarray(open_picture(folder / f"{name}.jpg"), np.float32) @ weights
        for name in ("china", "flower")
    }


@checked
def to_patches(image: np.ndarray, size: int, stride: int | None = None) -> np.ndarray:
    """Square patches of a picture, flattened row by row.

    Args:
        image: the picture, (height, width).
        size: side of a patch.
        stride: distance between two neighbouring patches; None for `size`, which tiles the picture.

    Returns:
        The patches, one per row, (patches, size^2).

    Raises:
        TypeError, ValueError: size or stride is not a positive integer, the picture does not have
            two dimensions, or the picture is smaller than a patch.

    Example:
        >>> ur.vision.datasets.to_patches(np.arange(8).reshape(2, 4), 2).tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    size = checks.as_index(size, "size", "to_patches", least=1)
    stride = size if stride is None else checks.as_index(stride, "stride", "to_patches", least=1)
    if np.ndim(image) != 2:
        raise ValueError(
            f"to_patches: picture has shape {np.shape(image)}; expected (height, width)"
        )
    if min(image.shape) < size:
        raise ValueError(
            f"to_patches: picture {image.shape} is smaller than a patch of {size} x {size}"
        )
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))[::stride, ::stride]
    return windows.reshape(-1, size * size).copy()


@checked
def from_patches(patches: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """The picture whose tiles `to_patches(image, size)` returned, cropped to whole tiles.

    Args:
        patches: the patches, one per row, (patches, size^2).
        shape: (height, width) of the picture.
        size: side of a patch.

    Raises:
        TypeError, ValueError: an entry of shape or the size is not a positive integer, or the
            number of patches differs from the number of tiles.

    Example:
        >>> image = np.arange(8).reshape(2, 4)
        >>> patches = ur.vision.datasets.to_patches(image, 2)
        >>> ur.vision.datasets.from_patches(patches, (2, 4), 2).tolist()
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    where = "from_patches"
    size = checks.as_index(size, "size", where, least=1)
    sides = checks.as_indices(shape, "shape", where, least=1)
    if len(sides) != 2:
        raise ValueError(f"{where}: picture has shape {sides}; expected (height, width)")
    rows, columns = sides[0] // size, sides[1] // size
    if np.shape(patches) != (rows * columns, size * size):
        raise ValueError(
            f"{where}: patches have shape {np.shape(patches)}; expected "
            f"{(rows * columns, size * size)} for a picture of {sides}"
        )
    tiles = np.asarray(patches).reshape(rows, columns, size, size)
    return tiles.transpose(0, 2, 1, 3).reshape(rows * size, columns * size)


@checked
def crop_and_flip(key: Key, X: ArrayLike, pad: int = 4, flip: bool = True) -> Array:
    """Pictures shifted by up to `pad` pixels in each direction and mirrored with probability 1/2.

    A picture is padded with zeros on all sides, and one of the (2 pad + 1)^2 crops of the original
    size is drawn. The draws depend only on the key and on the number of pictures. With the same
    key, masks `M[..., None]` are therefore shifted and mirrored like their pictures. The padding is
    black unless a mean has been subtracted from X.

    Args:
        key: a key or a seed.
        X: the pictures, (N, H, W, C), uint8, bool or floating-point.
        pad: number of pixels on each side; static.
        flip: if True, mirror left and right; static.

    Returns:
        The pictures, (N, H, W, C), in the dtype of X.

    Raises:
        TypeError: X has another dtype, pad is not an integer, or key is not a key.
        ValueError: X has another shape, or pad is negative.

    Source: He et al., "Deep residual learning", CVPR 2016, Section 4.2.

    Example:
        >>> X = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
        >>> for row in ur.vision.datasets.crop_and_flip(1, X, pad=1)[0, :, :, 0].tolist():
        ...     print(row)
        [0, 0, 0, 0]
        [2, 1, 0, 0]
        [6, 5, 4, 0]
        [10, 9, 8, 0]
    """
    where = "crop_and_flip"
    pad = checks.as_index(pad, "pad", where)
    X = jnp.asarray(X)
    if X.ndim != 4:
        raise ValueError(f"{where}: X has shape {X.shape}; expected (N, H, W, C)")
    if not (X.dtype in (jnp.uint8, jnp.bool_) or jnp.issubdtype(X.dtype, jnp.floating)):
        raise TypeError(f"{where}: X is {X.dtype}; expected uint8, bool or floating-point pictures")
    return _crop_and_flip(key, X, pad, flip)


@partial(jax.jit, static_argnames=("pad", "flip"))
def _crop_and_flip(key: Array, X: Array, pad: int, flip: bool) -> Array:
    corner_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(corner_key, (len(X), 2), 0, 2 * pad + 1)
    if flip:  # after the crop, XLA would fuse the flip with operations that read it many times
        mirrored = jax.random.bernoulli(flip_key, shape=(len(X), 1, 1, 1))
        X = jnp.where(mirrored, X[:, :, ::-1], X)
    padded = jnp.pad(X, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return jax.vmap(lambda x, corner: lax.dynamic_slice(x, (*corner, 0), X.shape[1:]))(
        padded, corners
    )
