"""Finished chunks of a long command, kept next to its output, so that a second run continues."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unrolled._base.files import target, write_whole
from unrolled._base.text import digest, plain

AFTER = 5.0  # seconds of a run, after which chunks are kept


class Partial:
    """A folder of chunks: arrays by name, by the bits of their nonzeros, and plain numbers.

    The folder belongs to one job. A job is new if the path, the size or the time of a file differs,
    or an option; then the folder is emptied.
    """

    def __init__(self, output: Path, files: list[Path], options: dict[str, Any]):
        self.folder = target(output).with_name(f".{output.name}.chunks")
        stats = [(str(path.absolute()), path.stat()) for path in files if path.exists()]
        inputs = [[name, of.st_size, of.st_mtime_ns] for name, of in stats]
        self.job = digest(plain({"inputs": inputs, **options}))
        self.began = time.monotonic()
        if self.folder.exists() and self._kept_job() != self.job:
            shutil.rmtree(self.folder)

    def _kept_job(self) -> str:
        path = self.folder / "job"
        return path.read_text() if path.exists() else ""

    def read(self, first: int) -> tuple[dict[str, np.ndarray], Any] | None:
        """The chunk that begins at a row; None if it was not kept."""
        path = self.folder / f"{first}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as kept:
            arrays = {}
            for name in json.loads(str(kept["names"])):
                shape, dtype = json.loads(str(kept[f"{name}.form"]))
                array = np.zeros(shape, dtype)
                _bits(array)[kept[f"{name}.where"]] = kept[f"{name}.bits"]
                arrays[name] = array
            return arrays, json.loads(str(kept["numbers"]))

    def write(self, first: int, arrays: dict[str, np.ndarray], numbers: Any) -> None:
        """Keep a chunk, if the run has taken some seconds."""
        if time.monotonic() - self.began < AFTER:
            return
        if not self.folder.exists():
            self.folder.mkdir()
            write_whole(self.folder / "job", self.job.encode())
        parts: dict[str, Any] = {
            "numbers": json.dumps(plain(numbers)),
            "names": json.dumps([*arrays]),
        }
        for name, array in arrays.items():
            bits = _bits(array := np.ascontiguousarray(array))
            where = np.flatnonzero(bits)
            parts[f"{name}.form"] = json.dumps([array.shape, array.dtype.str])
            parts |= {f"{name}.where": where, f"{name}.bits": bits[where]}
        path = self.folder / f"{first}.npz"
        np.savez(path.with_suffix(".new.npz"), **parts)
        path.with_suffix(".new.npz").replace(path)

    @contextmanager
    def kept_if_interrupted(self) -> Iterator[None]:
        """Remove the chunks at the end and after an error, but not if the run is interrupted."""
        try:
            yield
        except Exception:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        shutil.rmtree(self.folder, ignore_errors=True)


def _bits(array: np.ndarray) -> np.ndarray:
    """The entries as integers: a negative zero is not zero."""
    return array.reshape(-1).view(f"u{array.dtype.itemsize}")
