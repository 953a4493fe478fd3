"""Arrays that are written row by row, in constant memory, and appear whole or not at all."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from unrolled._files import whole_file

Append = Callable[[dict[str, np.ndarray]], None]


@contextmanager
def partial_arrays(path: Path, shapes: dict[str, tuple[int, int]]) -> Iterator[Append]:
    """`append(rows by name)` to arrays of float32 that are at `path` when the block ends.

    After an error or a kill nothing is written, and an older file is still there. Rows go to files
    without a name, and not through memory maps: so a full disk is an OSError, where a map would end
    the process.

    Args:
        path: `.npy` for the last array alone, `.npz` for all by name.
        shapes: name -> (rows, columns).

    Raises:
        OSError: they cannot be written.
    """
    path = path.absolute()
    there = next(folder for folder in path.parents if folder.exists())
    files: dict[str, BinaryIO] = {}
    with ExitStack() as stack:
        whole = stack.enter_context(whole_file(path))
        if path.suffix == ".npz":  # one array after another: their rows are gathered before
            for name in shapes:
                files[name] = stack.enter_context(tempfile.TemporaryFile(dir=there))
        else:
            name = list(shapes)[-1]
            files[name] = whole
            header = {"descr": "<f4", "fortran_order": False, "shape": shapes[name]}
            np.lib.format.write_array_header_1_0(whole, header)

        def append(rows: dict[str, np.ndarray]) -> None:
            for name, file in files.items():
                file.write(np.ascontiguousarray(rows[name], "<f4").data)

        yield append
        if path.suffix == ".npz":
            maps: dict[str, Any] = {}
            for name, file in files.items():
                file.flush()
                maps[name] = np.memmap(file, "<f4", "r", shape=shapes[name])
            np.savez(whole, **maps)
        path.parent.mkdir(parents=True, exist_ok=True)
