"""Pictures in one folder per class, and pictures with masks of an object."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Result, checked
from unrolled.vision.datasets._arrays import _PICTURES, open_picture, picture_files
from unrolled.vision.datasets._collections import Images, locate

__all__ = ["Masks", "class_folders", "masks"]


Pair = tuple[Path, Path]  # the files of a picture and of its mask

# The names of the folders of pictures and of masks, in the order in which they are tried.
_LAYOUTS = (
    ("images", "masks"),
    ("images", "ground_truth_mask"),
    ("DUTS-TR-Image", "DUTS-TR-Mask"),
    ("DUTS-TE-Image", "DUTS-TE-Mask"),
    ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
)

_DUTS = ("DUTS-TR", "DUTS-TE")

_EXPECTED = (
    "expected the folders images and masks (ECSSD, "
    "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html), DUTS-TR and DUTS-TE "
    "(http://saliencydetection.net/duts/), or DUT-OMRON-image and pixelwiseGT-new-PNG "
    "(http://saliencydetection.net/dut-omron/)"
)

# A mask is nearly binary if at most this share of its pixels lies between these grey values.
_SOFT_SHARE, _DARK, _BRIGHT = 0.1, 25, 230


class Masks(Result):
    """Pictures with masks, split for training and testing.

    Attributes:
        train, test: pairs (X, M) of pictures (N, H, W, 3), uint8, and masks (N, H, W), bool.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


@checked
def masks(folder: str | Path, size: tuple[int, int], split: str | Path | None = None) -> Masks:
    """Pictures and the masks of their objects, resized to one size.

    A picture and its mask have the same name up to the suffix. `masks` accepts these layouts:

    - ECSSD: `images/` with `masks/` or `ground_truth_mask/`, and a split file;
    - DUTS: `DUTS-TR/` with `DUTS-TR-Image/` and `DUTS-TR-Mask/`, for training, and `DUTS-TE/` with
      `DUTS-TE-Image/` and `DUTS-TE-Mask/`, for testing;
    - the folder `DUTS-TR/` or `DUTS-TE/` alone;
    - DUT-OMRON: `DUT-OMRON-image/` with `pixelwiseGT-new-PNG/`.

    If a folder has no split file and is not the whole of DUTS, all of its pairs are for testing.

    Args:
        folder: path of the folder, or its name in the folder that the environment variable
            UNROLLED_DATA gives.
        size: (H, W) of the result; the aspect ratio is not kept. The filter is bilinear, and a
            pixel belongs to the object if the filter gives the object a weight of at least half.
        split: a JSON file with the lists of names "train" and "test", in the folder or elsewhere;
            by default the file `split*.json` in the folder, if there is one.

    Returns:
        Masks. The pairs are in the order of the split file, or sorted by name if there is no split
        file.

    Raises:
        FileNotFoundError: the folder or split file does not exist, or the folder has none of the
            layouts.
        TypeError: size is not a pair of integers.
        ValueError: a picture has no mask, a mask has no picture, a picture and its mask differ in
            size, or a file cannot be read. `masks` also raises ValueError if a mask is not nearly
            binary (more than 10 % of its pixels are grey, or no pixel is bright), or if the split
            is empty or contains a pair twice or a missing pair.
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
        ...     X, M = ur.vision.datasets.masks(folder, size=(4, 6)).test
        >>> X.shape, M.shape, int(M.sum())
        ((1, 4, 6, 3), (1, 4, 6), 4)
    """
    sides = checks.as_indices(size, "size", "masks", least=1)
    if len(sides) != 2:
        raise TypeError(f"masks: size must be a pair (H, W), got {size!r}")
    train, test = (_read_masks(pairs, *sides) for pairs in _find_pairs(folder, split))
    return Masks(train, test)


def _read_masks(pairs: list[Pair], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(pairs), height, width)
    checks.announce((*shape, 3), np.uint8, "the pictures", "masks")
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

    if picture.mode.startswith("I"):  # 16 bits; `convert` would cut off at 255
        values = np.clip(np.asarray(picture) // 257, 0, 255)
        picture = Image.fromarray(values.astype(np.uint8))
    return picture.convert("RGB")


def _hard(mask: Any, path: Path) -> Any:
    """The mask with 255 for the object and 0 elsewhere."""
    from PIL import Image

    grey = np.asarray(mask.convert("L"))
    brightest = grey.max()
    if brightest > 1:  # otherwise the object has the value 1
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
    """Width and height as text, in Pillow's order."""
    return " x ".join(map(str, size))


def _find_pairs(folder: str | Path, split: str | Path | None) -> tuple[list[Pair], list[Pair]]:
    """The pairs for training and for testing; arguments and errors are as in `masks`."""
    folder = _existing(folder)
    split_file = _split_file(folder, split)
    if all((folder / name).is_dir() for name in _DUTS):
        if split_file is not None:
            raise ValueError(f"{split_file}: a split file; expected none, since DUTS has its parts")
        train, test = (list(_pairs(folder / name).values()) for name in _DUTS)
        return train, test
    pairs = _pairs(folder)
    if split_file is None:
        return [], list(pairs.values())
    parts = _names(split_file)
    missing = [name for part in parts for name in part if name not in pairs]
    if missing:
        raise ValueError(f"{split_file}: {_some(missing)} not among the pictures of {folder}")
    train, test = ([pairs[name] for name in part] for part in parts)
    return train, test


def _existing(folder: str | Path) -> Path:
    if Path(folder).is_dir():
        return Path(folder)
    try:
        return locate(str(folder))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder}: no such folder, nor below UNROLLED_DATA; {_EXPECTED}"
        ) from None


def _pairs(folder: Path) -> dict[str, Pair]:
    """The pairs of a folder by name, sorted by name."""
    for names in _LAYOUTS:
        pictures, masks = (folder / name for name in names)
        if pictures.is_dir() and masks.is_dir():
            break
    else:
        raise FileNotFoundError(f"{folder}: no pictures with masks in it; {_EXPECTED}")
    first, second = picture_files(pictures), picture_files(masks)
    for here, there, where in ((first, second, masks), (second, first, pictures)):
        alone = [name for name in here if name not in there]
        if alone:
            raise ValueError(f"{where}: {_some(alone)} missing; expected pairs of the same names")
    return {name: (path, second[name]) for name, path in first.items()}


def _split_file(folder: Path, split: str | Path | None) -> Path | None:
    if split is None:
        files = sorted(folder.glob("split*.json"))
        if len(files) > 1:
            raise ValueError(f"{folder}: {_some([p.name for p in files])}; choose one by `split`")
        return files[0] if files else None
    for path in (Path(split), folder / split):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{split}: no such split file, nor in {folder}")


def _names(path: Path) -> tuple[list[str], list[str]]:
    """The names for training and for testing."""
    try:
        split = json.loads(path.read_bytes())
        train, test = split["train"], split["test"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a split file ({error!r}); expected JSON with the lists train and test"
        ) from error
    for name, part in (("train", train), ("test", test)):
        if not isinstance(part, list) or not all(isinstance(entry, str) for entry in part):
            raise ValueError(f"{path}: {name} is not a list of names; expected names, no suffix")
        if not part:
            raise ValueError(f"{path}: {name} is empty; expected one name or more")
    twice = [name for name, times in Counter([*train, *test]).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: {_some(twice)} named twice; expected each name once")
    return train, test


def _some(names: list[str]) -> str:
    """The first three names and the number of other names, as text."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


_TRAIN, _TEST = "train", ("test", "val")
_HELD_OUT = 5  # without split folders, one in 5 pictures of a class is for testing


@checked
def is_class_folders(folder: str | Path) -> bool:
    """Whether a folder contains one folder of pictures for each class, and no masks.

    Example:
        >>> ur.vision.datasets.is_class_folders("no such folder")
        False
    """
    folder = Path(folder)
    if not folder.is_dir():
        return False
    if _parts(folder) is not None:
        return True
    classes = _folders(folder)
    names = {path.name.lower() for path in classes}
    paired = any(word in name for name in names for word in ("mask", "image", "gt", "ground"))
    filled = all(any(p.suffix.lower() in _PICTURES for p in f.iterdir()) for f in classes)
    return len(classes) > 1 and not paired and filled


@checked
def class_folders(folder: str | Path, side: int = 32) -> Images:
    """Pictures of classes, in the layout of torchvision's ImageFolder: `folder/class/picture.png`.

    Each folder is a class, and the classes are sorted by name. Pictures may lie at any depth in the
    folder of their class. If folders `train` and `test` (or `val`) contain folders of classes,
    `train` is for training and `test` (or `val`) is for testing. Otherwise the last fifth of every
    class in the order of names, at least one picture, is for testing.

    Args:
        folder: path of the folder.
        side: pictures are converted to RGB and resized to side x side; the aspect ratio is not
            kept.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: there are fewer than two classes, a class has too few pictures, a class for
            testing is not a class for training, or a file cannot be read.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         pathlib.Path(folder, name).mkdir()
        ...         for i in range(5):
        ...             Image.fromarray(np.zeros((4, 6), np.uint8)).save(f"{folder}/{name}/{i}.png")
        ...     images = ur.vision.datasets.class_folders(folder, side=8)
        >>> images.classes, images.train[0].shape, images.test[1].tolist()
        (('cat', 'dog'), (8, 8, 8, 3), [0, 1])
    """
    folder, side = Path(folder), checks.as_index(side, "side", "class_folders", least=1)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    parts = _parts(folder)
    train = _classes(folder if parts is None else parts[0])
    if len(train) < 2:
        raise ValueError(
            f"{folder}: expected at least 2 folders of pictures, one for each class, got "
            f"{', '.join(train) or 'none'}"
        )
    if parts is None:
        if few := [name for name, pictures in train.items() if len(pictures) < 2]:
            raise ValueError(
                f"{folder}: {', '.join(few)} has one picture; expected 2 or more, to train and test"
            )
        cuts = {name: max(1, len(pictures) // _HELD_OUT) for name, pictures in train.items()}
        test = {name: pictures[-cuts[name] :] for name, pictures in train.items()}
        train = {name: pictures[: -cuts[name]] for name, pictures in train.items()}
    else:
        test = _classes(parts[1])
        if unknown := [name for name in test if name not in train]:
            raise ValueError(f"{parts[1]}: {', '.join(unknown)} is not a class of {parts[0]}")
    classes = tuple(train)
    return Images(str(folder), _loaded(train, classes, side), _loaded(test, classes, side), classes)


def _parts(folder: Path) -> tuple[Path, Path] | None:
    """The folders for training and testing; None if there are no such folders."""
    parts = [folder / name for name in (_TRAIN, *_TEST) if (folder / name).is_dir()]
    whole = len(parts) > 1 and parts[0].name == _TRAIN
    return (parts[0], parts[1]) if whole and all(map(_classes, parts[:2])) else None


def _folders(folder: Path) -> list[Path]:
    inside = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return sorted(inside)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)


def _classes(folder: Path) -> dict[str, list[Path]]:
    classes = {path.name: _pictures(path) for path in _folders(folder)}
    return {name: pictures for name, pictures in classes.items() if pictures}


def _loaded(
    paths_of: dict[str, list[Path]], classes: tuple[str, ...], side: int
) -> tuple[np.ndarray, np.ndarray]:
    files = [(path, classes.index(name)) for name, paths in paths_of.items() for path in paths]
    X = np.empty((len(files), side, side, 3), np.uint8)
    for i, (path, _) in enumerate(files):
        X[i] = _resized(_rgb(open_picture(path)), side, side)
    return X, np.asarray([label for _, label in files], np.int32)
