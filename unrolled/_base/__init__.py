"""The ground floor: checks, numbers, programs, threads, files and text, for all other rooms."""

import difflib
import sys
from collections.abc import Iterable


def missing(
    room: str, name: str, known: Iterable[str], inside: Iterable[str] = ()
) -> AttributeError:
    """The error of a module without a name: what has the name inside of it, else a similar name."""
    lower = {word.lower(): word for word in known}
    close = () if name.startswith("_") else difflib.get_close_matches(name.lower(), lower, 1)
    near = " or ".join(inside) or "".join(lower[word] for word in close)
    end = f"; perhaps {near}" if near else ""
    return AttributeError(f"module {room!r} has no attribute {name!r}{end}", name=name, obj=None)


def offer(room: str, *others: str, results: str = "", own: str = "") -> None:
    """Give a room `__all__` and `dir`: the names that its files list, and some of other rooms.

    Two kinds of names are in the room, and in lists of their own. `__results__` has the types of
    results, errors and warnings; `__own__` has what you write a layer, a dictionary or another part
    with, and the types of params and states. The pages show them below what everybody calls.

    Type checkers learn these names from the `import *` of the room, and forbid `__all__` in it.
    """
    files = [file for name, file in [*sys.modules.items()] if name.startswith(f"{room}._")]
    listed = {name for file in files for name in getattr(file, "__all__", ())}
    apart = {"__results__": sorted(results.split()), "__own__": sorted(own.split())}
    names = sorted({*listed, *others}.difference(*apart.values()))

    def absent(name: str) -> None:
        raise missing(room, name, sum(apart.values(), names))

    vars(sys.modules[room]).update(apart, __all__=names, __dir__=lambda: names, __getattr__=absent)
