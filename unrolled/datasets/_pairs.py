"""Which picture goes with which mask, and which pairs are for training."""

import json
from collections import Counter
from pathlib import Path

from unrolled.datasets._locate import locate
from unrolled.datasets._pictures import picture_files

Pair = tuple[Path, Path]  # the files of a picture and of its mask

# Folders of pictures and of their masks.
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


def find_pairs(folder: str | Path, split: str | Path | None) -> tuple[list[Pair], list[Pair]]:
    """The pairs for training and for testing; arguments and faults are those of `masks`."""
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
    """The pairs of a folder by name, in the order of their names."""
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
            raise ValueError(f"{path}: {name} is no list of names; expected names without suffix")
        if not part:
            raise ValueError(f"{path}: {name} is empty; expected one name or more")
    twice = [name for name, times in Counter([*train, *test]).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: {_some(twice)} named twice; expected each name once")
    return train, test


def _some(names: list[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")
