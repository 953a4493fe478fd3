"""Where a collection of data lies, and whether it is whole."""

import os
from collections.abc import Iterable
from pathlib import Path

from unrolled._arguments import checked


@checked
def locate(name: str, root: str | Path | None = None) -> Path:
    """The folder of a data collection.

    Args:
        name: of the folder.
        root: where it is; by default the value of the environment variable UNROLLED_DATA.

    Raises:
        FileNotFoundError: no root is known, or there is no such folder.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as root:
        ...     pathlib.Path(root, "digits").mkdir()
        ...     ur.datasets.locate("digits", root).name
        'digits'
    """
    root = root or os.environ.get("UNROLLED_DATA")
    if not root:
        raise FileNotFoundError(
            f"{name}: no root given; pass a path or set UNROLLED_DATA to the folder that holds it"
        )
    if not (Path(root) / name).is_dir():
        raise FileNotFoundError(f"{Path(root) / name}: no such folder")
    return Path(root) / name


def find(name: str, root: str | Path | None, files: Iterable[str], source: str) -> Path:
    """The folder `name` in the root, or the root itself, that holds all of the files.

    Args:
        name, root: as in `locate`.
        files: their names, all of which must be there.
        source: what the collection is and where it comes from, for messages.

    Raises:
        FileNotFoundError: no root is known, no such folder, or files are missing.
    """
    files = list(files)
    root = root or os.environ.get("UNROLLED_DATA")
    if root and any((Path(root) / file).is_file() for file in files):
        folder = Path(root)
    else:
        try:
            folder = locate(name, root)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; expected {source}") from None
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} missing; expected {source}")
    return folder
