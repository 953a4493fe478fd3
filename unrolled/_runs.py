"""What all runs that are kept share: one process in a place, and the words of their messages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from unrolled._files import lock


@contextmanager
def claimed(path: Path, *, stays: bool = False) -> Iterator[str | None]:
    """Lock a file that stands for a run, with the id of this process in it, until the block ends.

    It yields None, or the id of the process that has locked the file. What a killed process leaves
    is locked by nobody. Unless it `stays`, the file goes with the block.
    """
    with _opened(path) as (file, mine):
        if mine:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        file.seek(0)
        try:
            yield None if mine else file.read() or "?"
        finally:
            if mine and not stays:
                path.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO, bool]]:
    """The file, and whether this process has locked it."""
    while True:
        with path.open("a+") as file:
            mine = lock(file)
            if mine and not os.fstat(file.fileno()).st_nlink:
                continue  # its process has removed it between these lines
            yield file, mine
            return


def in_line(error: Exception) -> str:
    """The message of an error in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"


def free_space(path: Path) -> str:
    """The free space of the disk that holds `path`, for a message."""
    there = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
    return f"{shutil.disk_usage(there).free} bytes are free"
