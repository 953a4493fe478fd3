"""Arrays that are written row by row, in constant memory, and appear whole or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from unrolled._files import sync_folder

Append = Callable[[dict[str, np.ndarray]], None]


@contextmanager
def partial_arrays(path: Path, shapes: dict[str, tuple[int, int]]) -> Iterator[Append]:
    """`append(rows by name)` to arrays of float32 that are at `path` when the block ends.

    After an error nothing is written, and an older file is still there. Rows go to files beside
    `path`, and not through memory maps: so a full disk is an OSError, where a map would end the
    process.

    Args:
        path: `.npy` for the last array alone, `.npz` for all by name.
        shapes: name -> (rows, columns).

    Raises:
        OSError: they cannot be written.
    """
    names = list(shapes) if path.suffix == ".npz" else list(shapes)[-1:]
    # In the file system of `path`, whose folder is made when all is written.
    there = next(folder for folder in path.absolute().parents if folder.exists())
    with tempfile.TemporaryDirectory(".partial", f".{path.name}.", there) as folder:
        files = {name: Path(folder, f"{name}.npy") for name in names}
        for name, file in files.items():
            with file.open("wb") as opened:
                header = {"descr": "<f4", "fortran_order": False, "shape": shapes[name]}
                np.lib.format.write_array_header_1_0(opened, header)

        def append(rows: dict[str, np.ndarray]) -> None:
            for name, file in files.items():
                with file.open("ab") as opened:
                    opened.write(np.ascontiguousarray(rows[name], "<f4").data)

        yield append
        whole = files[names[-1]]
        if path.suffix == ".npz":
            whole = Path(folder, "whole.npz")
            maps = {
                name: np.load(file, mmap_mode="r", allow_pickle=False)
                for name, file in files.items()
            }
            np.savez(whole, **maps)
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        whole.replace(path)
        sync_folder(path.absolute().parent)
