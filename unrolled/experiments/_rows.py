"""The rows of an experiment: a file each, so that several processes add to one folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from unrolled import _files
from unrolled._arguments import checked
from unrolled._files import CheckpointError, write_whole
from unrolled._json import sealed, to_json, unsealed
from unrolled.training import restore_tree, save_tree

_PARTS = ROWS, STATES, WEIGHTS, PICTURES = "rows", "states", "weights", "pictures"
_FORMAT = 1
_KEYS = (
    *("recipe", "deviations", "layers", "images", "parameters", "status", "scores", "features"),
    *("curve", "seconds", "environment"),
)


def open_folder(folder: str | Path) -> Path:
    """The folder of an experiment, made if it is not there.

    Raises:
        NotADirectoryError: a file has that name.
        ValueError: it is not empty, and holds no experiment.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; expected a folder to write into")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ROWS).is_dir():
        raise ValueError(
            f"{folder}: is not empty and holds no experiment; try another --output, or an empty one"
        )
    for part in _PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def opened(folder: str | Path) -> Iterator[Path]:
    """`open_folder` for a block; a folder that was not there is gone again if the block refuses."""
    made = not Path(folder).exists()
    folder = open_folder(folder)
    try:
        yield folder
    except (ValueError, TypeError):
        with suppress(OSError):  # it holds something
            for part in (*_PARTS, "") if made else ():
                (folder / part).rmdir()
        raise


def write_row(folder: Path, name: str, row: dict[str, Any]) -> None:
    """Add a row, whole or not at all."""
    text = to_json(sealed({"format": _FORMAT, **row}))
    write_whole(folder / ROWS / f"{name}.json", text.encode())


def read_row(folder: Path, name: str) -> dict[str, Any] | None:
    """The row of that name; None if there is none.

    Raises:
        CheckpointError: its file is not one, or has changed since it was written.
    """
    path = Path(folder) / ROWS / f"{name}.json"
    return _read(path) if path.is_file() else None


@checked
def read_rows(folder: str | Path) -> dict[str, dict[str, Any]]:
    """All rows by their names, in the order of these.

    Raises:
        FileNotFoundError: no experiment.
        CheckpointError: a file that is no row, or has changed since it was written.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:  # of an experiment that has not begun
        ...     pathlib.Path(folder, "rows").mkdir()
        ...     ur.experiments.read_rows(folder)
        {}
    """
    rows = Path(folder) / ROWS
    if not rows.is_dir():
        raise FileNotFoundError(f"{folder}: holds no experiment; expected a folder {ROWS} in it")
    return {path.stem: _read(path) for path in sorted(rows.glob("*.json"))}


def _read(path: Path) -> dict[str, Any]:
    try:
        row = unsealed(json.loads(path.read_text(encoding="utf-8")))
        if row["format"] != _FORMAT:
            raise ValueError(f"format {row['format']}; expected {_FORMAT}")
        if missing := [key for key in _KEYS if key not in row]:
            raise ValueError(f"without {', '.join(missing)}")
        return row
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a row of an experiment ({error}); remove the file to run it again"
        ) from error


def write_pictures(folder: Path, name: str, pictures: dict[str, np.ndarray]) -> None:
    """Keep pictures and masks beside a row."""
    save_tree(folder / PICTURES / f"{name}.npz", pictures)


@checked
def read_pictures(folder: str | Path, name: str) -> dict[str, np.ndarray] | None:
    """The pictures X, and masks `truth` and `predicted`, of a row; None if it has none.

    Raises:
        CheckpointError: their file is damaged.

    Example:
        >>> ur.experiments.read_pictures("an-experiment", "a-row") is None
        True
    """
    path = Path(folder) / PICTURES / f"{name}.npz"
    if not path.is_file():
        return None
    try:
        arrays, _ = restore_tree(path)
        return {entry: arrays[entry] for entry in ("X", "truth", "predicted")}
    except (ValueError, KeyError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CheckpointError(
            f"{path}: not the pictures of a row ({reason}); remove the file to continue without "
            "them"
        ) from error


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process alone runs a row meanwhile: it is locked until the block ends.

    The lock of a process that was killed ends with it.
    """
    with _files.claimed(folder / STATES / f"{name}.lock") as holder:
        yield holder is None
