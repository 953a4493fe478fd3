"""Pictures as grey values, and the sample photographs."""

from pathlib import Path
from typing import Any

import numpy as np

from unrolled._arguments import checked
from unrolled._files import check_file

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp")


@checked
def read_image(path: str | Path) -> np.ndarray:
    """A picture as grey values in [0, 1].

    Returns:
        (height, width), float32.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file, or a folder.
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
    picture = open_picture(path)
    if picture.mode.startswith("I"):  # 16 bits, which the 8 of "L" would cut off
        return np.asarray(picture, np.float32) / 65535
    return np.asarray(picture.convert("L"), np.float32) / 255


def open_picture(path: str | Path) -> Any:
    """A picture of Pillow, with its pixels in memory.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError, ImportError: as in `read_image`.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow; install unrolled[data]") from error
    path = Path(path)
    check_file(path)
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode == "F":  # whose white is unknown; Pillow would take 255 for it
                raise ValueError("its grey values are floats; try a .npy file")
            return picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error


@checked
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
    return {name: read_image(path) for name, path in picture_files(folder).items()}


def picture_files(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by file name without suffix, in the order of their names.

    Raises:
        ValueError: there is none, or two have the same name.
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
