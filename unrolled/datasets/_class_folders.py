"""Pictures in folders that are named by their classes."""

from pathlib import Path

import numpy as np

from unrolled import _checks
from unrolled._arguments import checked
from unrolled.datasets._images import Images
from unrolled.datasets._masks import _resized, _rgb
from unrolled.datasets._pictures import _PICTURES, open_picture

_TRAIN, _TEST = "train", ("test", "val")
_HELD_OUT = 5  # one picture of so many of a class tests, where no folder says which


@checked
def is_class_folders(folder: str | Path) -> bool:
    """Whether a folder holds folders of pictures, and no pictures with masks.

    Example:
        >>> ur.datasets.is_class_folders("no such folder")
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
    return len(classes) > 1 and not paired and all(map(_has_pictures, classes))


@checked
def class_folders(folder: str | Path, side: int = 32) -> Images:
    """Pictures of classes, as torchvision's ImageFolder has them: `folder/class/picture.png`.

    The classes are the folders in the order of their names, with their pictures at any depth. With
    folders `train` and `test` (or `val`), each of such folders, these are the two splits; else the
    last fifth of every class, at least one picture in the order of names, is for testing.

    Args:
        folder: its path.
        side: pictures are made RGB and resized to side x side; the ratio of the sides is not kept.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: fewer than two classes, a class with too few pictures, test classes that are not
            trained, or a file that cannot be read.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         pathlib.Path(folder, name).mkdir()
        ...         for i in range(5):
        ...             Image.fromarray(np.zeros((4, 6), np.uint8)).save(f"{folder}/{name}/{i}.png")
        ...     images = ur.datasets.class_folders(folder, side=8)
        >>> images.classes, images.train[0].shape, images.test[1].tolist()
        (('cat', 'dog'), (8, 8, 8, 3), [0, 1])
    """
    folder, side = Path(folder), _checks.as_index(side, "side", "class_folders", least=1)
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
            raise ValueError(f"{parts[1]}: {', '.join(unknown)} is no class of {parts[0]}")
    classes = tuple(train)
    return Images(str(folder), _loaded(train, classes, side), _loaded(test, classes, side), classes)


def _parts(folder: Path) -> tuple[Path, Path] | None:
    """The folders that say what trains and what tests, if there are any."""
    parts = [folder / name for name in (_TRAIN, *_TEST) if (folder / name).is_dir()]
    whole = len(parts) > 1 and parts[0].name == _TRAIN
    return (parts[0], parts[1]) if whole and all(map(_classes, parts[:2])) else None


def _folders(folder: Path) -> list[Path]:
    inside = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return sorted(inside)


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in _PICTURES for path in folder.iterdir())


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
