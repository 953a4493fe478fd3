"""The ground floor: checks, numbers, programs, threads, files and text, for all other rooms."""

import sys


def offer(room: str, *others: str) -> None:
    """Give a room `__all__` and `dir`: the names that its files list, and some of other rooms.

    Type checkers learn these names from the `import *` of the room, and forbid `__all__` in it.
    """
    files = [file for name, file in [*sys.modules.items()] if name.startswith(f"{room}._")]
    names = sorted({*others, *(name for file in files for name in getattr(file, "__all__", ()))})
    vars(sys.modules[room]).update(__all__=names, __dir__=lambda: names)
