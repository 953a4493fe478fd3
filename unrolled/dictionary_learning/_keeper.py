"""The result of learning, and what it continues from: a result, or a file of the same call."""

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._checks import Array
from unrolled._files import CheckpointError, check_writable, read_npz, write_whole
from unrolled._runs import in_line
from unrolled.dictionaries import Dictionary, dense
from unrolled.records import differences

# Seconds between two writes of the file: what a loss of power may cost.
_PERIOD = 5.0

_SEAL = "seal"  # the entry of a file with the fingerprint of all others


class Step(NamedTuple):
    """One sweep over the signals, or one batch of a stream."""

    step: int  # 1 for the first
    objective: float  # mean over the signals
    seconds: float  # since the start, those before an interruption included
    replaced: int = 0  # atoms that were unused or duplicates, and were replaced


class Learned(NamedTuple):
    """The result of dictionary learning."""

    D: Dictionary | tuple[Dictionary, ...]  # (m, d), unit atoms; of a chain one per layer
    X: Array | tuple[Array, ...] | None  # (signals, d), the codes; None of a stream
    objective: float  # mean over the signals, for D and X
    history: tuple[Step, ...]  # one record per step
    state: Any = None  # what the algorithm needs beside D and X to continue


def as_learned(resume: Any, where: str) -> Learned:
    """What a caller gives as `resume`.

    Raises:
        TypeError: it is no result of dictionary learning.
    """
    if not isinstance(resume, Learned):
        raise TypeError(
            f"{where}: resume is a {type(resume).__name__}; expected a `Learned` of this function"
        )
    return resume


# Called after every step.
Progress = Callable[[Step], Any]
Arrays = dict[str, np.ndarray]


class Keeper:
    """The history of one learning, its clock, and its file with what it needs to continue.

    Args:
        path: of the file; None for none.
        config: what the file must agree in.
        resume: a result whose history continues; a file that is there has precedence.
        progress: told every step.

    Raises:
        CheckpointError: the file is damaged, or of another learning.
    """

    def __init__(
        self,
        path: str | Path | None,
        config: dict[str, Any],
        resume: Learned | None,
        progress: Progress | None,
    ):
        self.path, self.config = None if path is None else Path(path), config
        self.progress = progress
        self.saved = time.monotonic()
        if self.path is not None:
            check_writable(self.path.parent)
            if not self.path.parent.is_dir():
                raise FileNotFoundError(f"{self.path}: there is no folder {self.path.parent}")
        self.arrays: Arrays | None = None  # those of the file
        self.history = [*as_learned(resume, config["method"]).history] if resume is not None else []
        if self.path is not None and self.path.exists():
            self.arrays, self.history = self._loaded(self.path)
        self.began = time.monotonic() - (self.history[-1].seconds if self.history else 0)

    def _loaded(self, path: Path) -> tuple[Arrays, list[Step]]:
        try:
            arrays = read_npz(path)
            seal = arrays.pop(_SEAL, None)  # older files have none
            if seal is not None and str(seal) != _sealed(arrays):
                raise ValueError("it has changed since it was saved")
            config = dict(json.loads(str(arrays.pop("config"))))
            history = [Step(*row) for row in json.loads(str(arrays.pop("history")))]
        except Exception as error:  # whatever a reader of foreign bytes raises
            raise CheckpointError(
                f"{path}: cannot be read as a learning: {in_line(error)}"
            ) from error
        # Older files have none of it: signals were told apart up to powers of two.
        config = {n: self.config[n] for n in ("exponent",) if n in self.config} | config
        if report := differences(config, self.config):
            raise CheckpointError(f"{path}: holds another learning; try another file:\n{report}")
        return _Entries(path, arrays), history

    def steps(self, last: int) -> range:
        """The numbers of the steps that are left."""
        return range(len(self.history) + 1, last + 1)

    def add(self, objective: float, replaced: int, arrays: Arrays, last: bool = False) -> None:
        """Note a step, save it, and tell of it."""
        seconds = time.monotonic() - self.began
        self.history.append(Step(len(self.history) + 1, objective, seconds, replaced))
        self.save(arrays, last)
        if self.progress is not None:
            self.progress(self.history[-1])

    def save(self, arrays: Arrays, last: bool = False) -> None:
        """Replace the file, unless that was done a moment ago; the last time in any case."""
        if self.path is None or not (last or time.monotonic() - self.saved > _PERIOD):
            return
        self.saved = time.monotonic()
        texts = {"config": json.dumps(self.config), "history": json.dumps(self.history)}
        blob = io.BytesIO()
        entries: dict[str, Any] = {name: np.array(text) for name, text in texts.items()}
        entries = {**arrays, **entries}
        entries[_SEAL] = np.array(_sealed(entries))
        np.savez(blob, **entries)
        write_whole(self.path, blob.getbuffer())


class _Entries(Arrays):
    """The arrays of a file; one that it lacks is a CheckpointError."""

    def __init__(self, path: Path, arrays: Arrays):
        super().__init__(arrays)
        self.path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise CheckpointError(f"{self.path}: cannot be read as a learning: it has no {name}")


def _sealed(arrays: Arrays) -> str:
    """A text that differs for other names or arrays."""
    names = sorted(arrays)
    return fingerprint(np.array(names), *(arrays[name] for name in names))


def fingerprint(*arrays: np.ndarray | None) -> str:
    """A text that differs for different arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        if array is not None:
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def text_of(value: Any) -> str:
    """A key, or where to start, in the config of a file."""
    if isinstance(value, str):
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(np.asarray(jax.random.key_data(value)).tolist())
    return fingerprint(np.asarray(dense(value)))
