"""Rows of arrays in a folder, written chunk by chunk, with which a killed process continues."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from unrolled._files import claimed, named, sweep, sync_folder, target, whole_file
from unrolled._json import plain

Shapes = dict[str, tuple[int, int]]  # of arrays by name: (rows, columns)
_JOURNAL, _LOCK = "chunks", "lock"  # files of the folder


class Rows:
    """Arrays of float32, and a line of the journal for every chunk of their rows.

    A line has a hash of itself, of the chunk's signals and of its rows in every array. So what a
    kill leaves in part, and what belongs to other signals, does not count and is written anew.
    """

    def __init__(self, files: list[BinaryIO], journal: BinaryIO, shapes: Shapes):
        self.files, self.journal, self.shapes = files, journal, shapes
        self.before: int | None = 0  # chunks at the start; None where they were of something else

    def kept(self, signals: np.ndarray) -> dict[str, Any] | None:
        """The line of the next chunk if it is whole and of these signals; else what follows goes.

        Args:
            signals: of the chunk, in rows.
        """
        places = [(file, file.tell()) for file in (*self.files, self.journal)]
        line = _next_line(self.journal) or {}
        columns = [columns for _, columns in self.shapes.values()]
        blobs = [file.read(4 * len(signals) * d) for file, d in zip(self.files, columns)]
        if line.pop("sha256", None) == _digest(signals, blobs, line):
            return line
        for file, place in places:
            file.seek(place)
        return None

    def append(
        self, signals: np.ndarray, arrays: Mapping[str, np.ndarray], line: dict[str, Any]
    ) -> dict[str, Any]:
        """Write a chunk in place of what follows, and return its line as `kept` will.

        Raises:
            OSError: it cannot be written.
        """
        blobs = [np.ascontiguousarray(arrays[name], "<f4").tobytes() for name in self.shapes]
        for file, blob in zip(self.files, blobs):
            _write_end(file, blob)
        line = plain(line)
        sealed = {**line, "sha256": _digest(signals, blobs, line)}
        _write_end(self.journal, json.dumps(sealed).encode() + b"\n")
        return line


@contextmanager
def open_rows(folder: Path, shapes: Shapes, of: dict[str, Any]) -> Iterator[Rows]:
    """The rows of a folder, from the first on.

    Rows are written through files, not memory maps: so a full disk is an OSError, where a map would
    end the process.

    Args:
        folder: it is made, and stays.
        shapes: of the whole arrays.
        of: what the rows belong to: what else is there is discarded.

    Raises:
        OSError: it cannot be written, or another process writes into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / _LOCK) as holder:
        if holder is not None:
            raise BlockingIOError(f"{folder}: process {holder} is writing into it")
        there = all(path.exists() for path in (folder / _JOURNAL, *_arrays(folder, shapes)))
        same = there and _head(folder) == plain(of)
        if not same:
            _begin(folder, shapes, of)
        with _opened_files(folder, shapes, "r+b") as rows:
            chunks = (folder / _JOURNAL).read_bytes().count(b"\n") - 1
            rows.before = chunks if same or not there else None
            yield rows


@contextmanager
def whole_rows(folder: Path, shapes: Shapes, of: dict[str, Any]) -> Iterator[Rows]:
    """The rows of a folder, to be read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: its rows belong to something else.
    """
    if not (folder / _JOURNAL).exists():
        raise FileNotFoundError(f"{folder}: no such shard")
    if _head(folder) != plain(of):
        raise ValueError(f"{folder}: belongs to other weights, signals, options or versions")
    with _opened_files(folder, shapes, "rb") as rows:
        yield rows


def gather(folders: Sequence[Path], shapes: Shapes, path: Path, move: bool = False) -> None:
    """Write the arrays of folders, one after another, to `path`, whole or not at all.

    Args:
        folders: whose rows are complete.
        shapes: of the arrays of all folders.
        path: `.npy` for the only array, `.npz` for all by name.
        move: without a copy where that can be, out of a single folder, which is then of no use. A
            link stays, and the file that it names is written.

    Raises:
        OSError: it cannot be written.
    """
    path, suffix = target(path), path.suffix
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [_arrays(folder, shapes) for folder in folders]
    if move and suffix == ".npy" and _on_one_disk(parts[0][0], path.parent):
        sweep(path)
        with parts[0][0].open("rb") as file:
            os.fsync(file.fileno())
        parts[0][0].replace(path)
        sync_folder(path.parent)
        return
    with whole_file(path) as whole:
        if suffix == ".npy":
            (shape,) = shapes.values()
            _copy([first for (first,) in parts], shape, whole)
            return
        with zipfile.ZipFile(whole, "w") as archive:
            for (name, shape), paths in zip(shapes.items(), zip(*parts)):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    _copy(paths, shape, entry)


def _on_one_disk(*paths: Path) -> bool:
    """Whether files can be moved between them; a link may lead to another disk."""
    return len({path.stat().st_dev for path in paths}) == 1


def discard(folder: Path) -> None:
    """Remove a folder of rows."""
    shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: Path, shapes: Shapes, of: dict[str, Any]) -> None:
    (folder / _JOURNAL).unlink(missing_ok=True)  # written last: it makes the arrays count
    for path, shape in zip(_arrays(folder, shapes), shapes.values()):
        with path.open("wb") as file:
            _write_header(file, shape)
    (folder / _JOURNAL).write_bytes(json.dumps(plain(of)).encode() + b"\n")


@contextmanager
def _opened_files(folder: Path, shapes: Shapes, mode: str) -> Iterator[Rows]:
    """The files of arrays and the journal, each behind its head."""
    with named(folder), ExitStack() as stack:
        files: list[Any] = [stack.enter_context(p.open(mode)) for p in _arrays(folder, shapes)]
        journal: Any = stack.enter_context((folder / _JOURNAL).open(mode))
        for file in files:
            _skip_header(file)
        journal.readline()
        yield Rows(files, journal, shapes)


def _skip_header(file: Any) -> None:
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)


def _head(folder: Path) -> dict[str, Any] | None:
    with (folder / _JOURNAL).open("rb") as journal:
        return _next_line(journal)


def _next_line(journal: BinaryIO) -> dict[str, Any] | None:
    """The next line; None at the end, and for one that a kill has cut."""
    try:
        line = json.loads(journal.readline())
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _digest(signals: np.ndarray, blobs: Sequence[bytes], line: dict[str, Any]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(signals).data)
    for blob in (*blobs, json.dumps(line, sort_keys=True).encode()):
        digest.update(blob)
    return digest.hexdigest()


def _write_end(file: BinaryIO, blob: bytes) -> None:
    """Write what ends the file here."""
    file.truncate()
    file.write(blob)
    file.flush()


def _arrays(folder: Path, shapes: Shapes) -> list[Path]:
    return [folder / f"{name}.npy" for name in shapes]


def _write_header(file: Any, shape: tuple[int, int]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _copy(paths: Sequence[Path], shape: tuple[int, int], to: Any) -> None:
    """Write the rows of files as one array."""
    _write_header(to, shape)
    for path in paths:
        with path.open("rb") as file:
            _skip_header(file)
            shutil.copyfileobj(file, to, 2**20)
