"""A learning that goes on: from its own result, or from a file that the same call has written."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unrolled._files import CheckpointError, check_writable, write_whole
from unrolled.dictionary_learning._learned import Step

# Called after every step.
Progress = Callable[[Step], Any]
Arrays = dict[str, np.ndarray]


class Keeper:
    """The file of one learning, with what it needs to go on; None for none."""

    def __init__(self, path: str | Path | None, config: dict[str, Any]):
        self.path, self.config = None if path is None else Path(path), config
        if self.path is not None:
            check_writable(self.path.parent)

    def load(self) -> tuple[Arrays, tuple[Step, ...]] | None:
        """What the file holds, None if there is none.

        Raises:
            CheckpointError: it is damaged, or of another learning.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            config = json.loads(str(arrays.pop("config")))
            history = tuple(Step(*row) for row in json.loads(str(arrays.pop("history"))))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self.path}: cannot be read as a learning: {error}") from error
        if config != self.config:
            names = [n for n in {**config, **self.config} if config.get(n) != self.config.get(n)]
            differ = ", ".join(f"{n}={config.get(n)} (now {self.config.get(n)})" for n in names)
            raise CheckpointError(f"{self.path}: holds another learning, with {differ}")
        return arrays, history

    def save(self, arrays: Arrays, history: tuple[Step, ...]) -> None:
        """Replace the file."""
        if self.path is None:
            return
        texts = {"config": json.dumps(self.config), "history": json.dumps(history)}
        blob = io.BytesIO()
        np.savez(blob, **arrays, **{name: np.array(text) for name, text in texts.items()})
        write_whole(self.path, blob.getbuffer())


def fingerprint(*arrays: np.ndarray | None) -> str:
    """A text that differs for different arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        if array is not None:
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
