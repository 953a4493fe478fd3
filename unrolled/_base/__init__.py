"""Modules that all other packages use: checks, numbers, programs, threads, files and text."""

import difflib
import sys
from collections.abc import Iterable


def missing(
    room: str, name: str, known: Iterable[str], inside: Iterable[str] = ()
) -> AttributeError:
    """The error for a name that a module lacks; it suggests a place or a similar name."""
    lower = {word.lower(): word for word in known}
    close = () if name.startswith("_") else difflib.get_close_matches(name.lower(), lower, 1)
    near = " or ".join(inside) or "".join(lower[word] for word in close)
    end = f"; perhaps {near}" if near else ""
    return AttributeError(f"module {room!r} has no attribute {name!r}{end}", name=name, obj=None)


def offer(room: str, *others: str, results: str = "", own: str = "") -> None:
    """Give a package `__all__` and `dir`: the names that its files list, and the names in `others`.

    Two separate lists hold the names that most users do not call. `__results__` lists the types of
    results, errors and warnings. `__own__` lists the names with which you write a layer or a
    dictionary, and the types of params and states. The pages show these names last.

    Type checkers read the names from `import *` in the package, and forbid `__all__` there.
    """
    files = [file for name, file in [*sys.modules.items()] if name.startswith(f"{room}._")]
    listed = {name for file in files for name in getattr(file, "__all__", ())}
    apart = {"__results__": sorted(results.split()), "__own__": sorted(own.split())}
    names = sorted({*listed, *others}.difference(*apart.values()))

    def absent(name: str) -> None:
        raise missing(room, name, sum(apart.values(), names))

    vars(sys.modules[room]).update(apart, __all__=names, __dir__=lambda: names, __getattr__=absent)
