"""What all runs that are kept share: one process in a place, and the words of their messages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unrolled._files import lock


@contextmanager
def claimed(path: Path) -> Iterator[str | None]:
    """Lock a file that stands for a run, and write the id of this process into it.

    It yields None, or the id of the process that has locked the file.
    """
    with path.open("a+") as file:
        mine = lock(file)
        if mine:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        file.seek(0)
        yield None if mine else file.read() or "?"


def in_line(error: Exception) -> str:
    """The message of an error in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"


def free_space(path: Path) -> str:
    """The free space of the disk that holds `path`, for a message."""
    there = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
    return f"{shutil.disk_usage(there).free} bytes are free"
