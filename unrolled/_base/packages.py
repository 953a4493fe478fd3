"""Packages that only some functions need, and how a function says that one is missing."""

from importlib.util import find_spec

# The name of a package for pip and the extra that installs it; the base install has the others.
_EXTRAS = {
    "sklearn": ("scikit-learn", "data"),
    "PIL": ("Pillow", "data"),
    "flatbuffers": ("flatbuffers", "export"),
}


def is_installed(*packages: str) -> bool:
    """Whether Python finds all packages; they are not imported."""
    try:
        return None not in map(find_spec, packages)
    except (ImportError, ValueError):  # ValueError: a module without a spec
        return False


def absent(where: str, *packages: str) -> ImportError:
    """The error of a function that needs packages: it names the packages that are missing, and the
    command that installs these packages from a clone.

    Example:
        >>> from unrolled._base.packages import absent
        >>> print(absent("the digits", "sklearn_that_is_missing"))
        the digits: needs sklearn_that_is_missing, not installed; try pip install . in the clone
    """
    missing = [package for package in packages if not is_installed(package)] or [*packages]
    named, extras = zip(*(_EXTRAS.get(package, (package, "")) for package in missing))
    extra = ",".join(sorted({extra for extra in extras if extra}))
    target = f"'.[{extra}]'" if extra else "."
    what = f"needs {' and '.join(named)}, not installed"
    return ImportError(f"{where}: {what}; try pip install {target} in the clone")


def require(where: str, *packages: str) -> None:
    """Raise ImportError, see `absent`, unless all packages are installed."""
    if not is_installed(*packages):
        raise absent(where, *packages)
