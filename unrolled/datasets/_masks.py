"""Pictures with masks of an object, from the folders of data sets for segmentation."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unrolled import _checks
from unrolled.datasets._pairs import Pair, find_pairs
from unrolled.datasets._pictures import open_picture

# A mask is nearly binary if at most this share of its pixels lies between these grey values.
_SOFT_SHARE, _DARK, _BRIGHT = 0.1, 25, 230


class Masks(NamedTuple):
    """Pictures with masks, split for training and testing.

    Attributes:
        train, test: pairs (X, M) of pictures (N, H, W, 3), uint8, and masks (N, H, W), bool.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def masks(folder: str | Path, size: tuple[int, int], split: str | Path | None = None) -> Masks:
    """Pictures and the masks of their objects, resized to one size.

    The layouts that are known, with pictures and masks that have the same names but for the suffix:

    - ECSSD: `images/` with `masks/` or `ground_truth_mask/`, and a split file;
    - DUTS: `DUTS-TR/` with `DUTS-TR-Image/` and `DUTS-TR-Mask/`, for training, and `DUTS-TE/`
      likewise, for testing;
    - DUT-OMRON: `DUT-OMRON-image/` with `pixelwiseGT-new-PNG/`; also one of the parts of DUTS.

    Without a split file, all pairs of a folder other than that of DUTS are for testing.

    Args:
        folder: its path, or its name below the folder UNROLLED_DATA.
        size: (H, W) of the result; the ratio of the sides is not kept. The filter is bilinear, and
            a pixel is of the object if at least half of what the filter sees is.
        split: a JSON file with the lists of names "train" and "test", in the folder or elsewhere;
            by default the one in the folder called `split*.json`, if there is one.

    Returns:
        Masks, in the order of the split file or else of the names.

    Raises:
        FileNotFoundError: no such folder or split file, or none of the layouts.
        TypeError: a size that is no pair of integers.
        ValueError: a picture without its mask or the reverse, sizes of a picture and its mask that
            differ, a mask that is not nearly binary (more than 10 % of its pixels are grey, or none
            is bright), a file that cannot be read, or a split that is empty, names a pair twice or
            names one that is not there.
        ImportError: Pillow is not installed.

    Source: Yan et al., CVPR 2013 (ECSSD); Wang et al., CVPR 2017 (DUTS); Yang et al., CVPR 2013
    (DUT-OMRON).

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, values in (("images", np.zeros((4, 6, 3))), ("masks", np.eye(4, 6))):
        ...         pathlib.Path(folder, name).mkdir()
        ...         picture = Image.fromarray((255 * values).astype(np.uint8))
        ...         picture.save(f"{folder}/{name}/a.png")
        ...     X, M = ur.datasets.masks(folder, size=(4, 6)).test
        >>> X.shape, M.shape, int(M.sum())
        ((1, 4, 6, 3), (1, 4, 6), 4)
    """
    height, width = _size(size)
    train, test = find_pairs(folder, split)
    return Masks(_read_masks(train, height, width), _read_masks(test, height, width))


def _size(size: Any) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise TypeError(f"masks: size must be a pair (H, W), got {size!r}")
    height, width = (_checks.as_index(side, "a side of size", "masks", least=1) for side in size)
    return height, width


def _read_masks(pairs: list[Pair], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(pairs), height, width)
    _checks.announce((*shape, 3), np.uint8, "the pictures", "masks")
    X, M = np.empty((*shape, 3), np.uint8), np.empty(shape, bool)
    for i, (picture_file, mask_file) in enumerate(pairs):
        picture, mask = open_picture(picture_file), open_picture(mask_file)
        if picture.size != mask.size:
            raise ValueError(
                f"{picture_file} is {_by(picture.size)} and {mask_file} is {_by(mask.size)}; "
                "expected a mask of the size of its picture"
            )
        X[i] = _resized(_rgb(picture), height, width)
        M[i] = _resized(_hard(mask, mask_file), height, width) >= 128
    return X, M


def _rgb(picture: Any) -> Any:
    """The picture with three channels of 8 bits."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits, which `convert` would cut off at 255
        values = np.clip(np.asarray(picture) // 257, 0, 255)
        picture = Image.fromarray(values.astype(np.uint8))
    return picture.convert("RGB")


def _hard(mask: Any, path: Path) -> Any:
    """The mask with 255 for the object and 0 elsewhere."""
    from PIL import Image

    grey = np.asarray(mask.convert("L"))
    brightest = grey.max()
    if brightest > 1:  # else the object is 1
        soft = np.mean((grey > _DARK) & (grey < _BRIGHT))
        if soft > _SOFT_SHARE or brightest < _BRIGHT:
            raise ValueError(
                f"{path}: not a binary mask; {soft:.0%} of its pixels are grey and the brightest "
                f"is {brightest}; expected 0 and 255, or 0 and 1"
            )
    return Image.fromarray(np.where(grey > brightest // 2, 255, 0).astype(np.uint8))


def _resized(picture: Any, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _by(size: Iterable[int]) -> str:
    """Width and height, as pictures give them."""
    return " x ".join(map(str, size))
