"""Pictures cut into patches, and put together again."""

import numpy as np

from unrolled import _checks


def to_patches(image: np.ndarray, size: int, stride: int | None = None) -> np.ndarray:
    """Square patches of a picture, flattened row by row.

    Args:
        image: (height, width).
        size: side of a patch.
        stride: distance of two patches; None for `size`, which tiles the picture.

    Returns:
        (patches, size^2).

    Raises:
        TypeError, ValueError: a size or a stride that is no positive integer, a picture that is not
            of two dimensions or smaller than a patch.

    Example:
        >>> ur.datasets.to_patches(np.arange(8).reshape(2, 4), 2).tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    size = _checks.as_index(size, "size", "to_patches", least=1)
    stride = size if stride is None else _checks.as_index(stride, "stride", "to_patches", least=1)
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


def from_patches(patches: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """The picture that the tiles of `to_patches(image, size)` came from, cropped to whole tiles.

    Args:
        patches: (patches, size^2).
        shape: (height, width) of the picture.
        size: side of a patch.

    Raises:
        TypeError, ValueError: a shape or a size that are no positive integers, another number of
            patches than tile the picture.

    Example:
        >>> image = np.arange(8).reshape(2, 4)
        >>> ur.datasets.from_patches(ur.datasets.to_patches(image, 2), (2, 4), 2).tolist()
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    where = "from_patches"
    size = _checks.as_index(size, "size", where, least=1)
    sides = _checks.as_indices(shape, "shape", where, least=1)
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
