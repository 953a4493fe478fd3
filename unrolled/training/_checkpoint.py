"""The saved steps of a run: a file each, with a manifest of its hashes."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unrolled._base import checks
from unrolled._base.files import claimed, free_space, in_line, sweep
from unrolled._base.processes import Processes
from unrolled.records import Record, option
from unrolled.training._formats import from_npz, read, to_npz, write
from unrolled.training._forms import CheckpointError, DamagedError

_ALONE = Processes()


def _as_folder(value: Any, name: str, where: str) -> str | os.PathLike:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{where}: {name} must be a path, got {type(value).__name__}")
    return value


class Checkpoint(Record):
    """Where and how often a run saves.

    Example:
        >>> ur.training.Checkpoint("runs/a", every=500).keep
        3
    """

    folder: str | Path = option(
        check=_as_folder, kw_only=False, help="of one run; it is made if it does not exist"
    )
    every: int | None = option(
        default=None,
        least=1,
        kw_only=False,
        help="training steps between two saves, and the most that a kill can lose; None saves at "
        "every evaluation",
    )
    keep: int = option(
        default=3, least=1, kw_only=False, help="how many of the newest steps are kept"
    )
    dictionary: bool = option(
        default=True,
        kw_only=False,
        help="False leaves D out, for a large D that is kept elsewhere; its hash is always saved",
    )
    strict: bool = option(
        default=True,
        kw_only=False,
        help="False sets a damaged newest step aside, with a warning, and resumes from the one "
        "before it",
    )


class Steps:
    """The saved steps of one folder, a file each."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"{step}.npz"

    def all(self) -> list[int]:
        """Oldest first.

        Raises:
            CheckpointError: there are steps that orbax wrote.
        """
        if foreign := _numbers(path.parent.name for path in self.folder.glob("*/manifest")):
            raise CheckpointError(
                f"{self.folder}: an older version of unrolled (0.1.0 or before) wrote the steps "
                f"{foreign} with orbax; `restore` one with that version and `save` its params to a "
                "file, or try another folder"
            )
        return _numbers(path.stem for path in self.folder.glob("*.npz"))

    def save(self, step: int, leaves: dict[str, Any], **manifest: Any) -> None:
        """Write named leaves and their manifest as one step, whole or not at all.

        Raises:
            CheckpointError: not written; the earlier steps are as they were.
        """
        try:
            write("fit", self.path(step), "training", leaves, to_npz, step=step, **manifest)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.folder}: step {step} was not saved ({in_line(error.__cause__ or error)}); "
                f"{free_space(self.folder)}, the steps {self.all()} are whole; make room and run "
                "the same call again"
            ) from error

    def keep(self, n: int) -> None:
        """Delete all but the newest n steps."""
        for step in self.all()[:-n]:
            self.path(step).unlink()

    def sweep(self) -> None:
        """Remove what killed processes left of steps."""
        for partial in self.folder.glob(".*.npz.*.partial"):
            for step in _numbers([partial.name.split(".")[1]]):
                sweep(self.path(step))

    def load(self, step: int) -> tuple[dict, dict[str, np.ndarray]]:
        """The manifest and the leaves of a step, bit for bit, in its mapped file.

        Raises:
            DamagedError: they are not what was saved.
            CheckpointError: a newer version saved them.
        """
        try:
            manifest, arrays = read(self.path(step), "training", from_npz)
            if manifest["step"] != step:
                raise ValueError(f"its manifest is that of step {manifest['step']}")
            return manifest, arrays
        except CheckpointError:
            raise
        except Exception as error:  # whatever a reader of foreign bytes raises
            rest = [s for s in self.all() if s != step] or "none"
            raise DamagedError(
                f"{self.path(step)}: damaged ({in_line(error)}); other steps: {rest}; "
                "Checkpoint(folder, strict=False) resumes from the newest whole one"
            ) from error

    def set_aside(self, step: int) -> Path:
        """Rename a damaged step: it is no longer a step, but nothing of it is lost."""
        aside = next(
            path for i in range(1000) if not (path := self.folder / f"{step}.damaged-{i}").exists()
        )
        return self.path(step).rename(aside)


def _numbers(names: Iterable[str]) -> list[int]:
    """Those of the names that are numbers, in order."""
    return sorted(int(name) for name in names if name.isdecimal())


@contextmanager
def opened(checkpoint: Checkpoint, where: str, processes: Processes = _ALONE) -> Iterator[Steps]:
    """The steps of a folder that no other training uses meanwhile.

    Of several processes of one run the first locks it, sweeps it and writes.

    Raises:
        CheckpointError: not a folder, not writable, or in use.
    """
    with ExitStack() as stack:
        processes.on_all(lambda: stack.enter_context(_locked(checkpoint, where)), first_alone=True)
        steps = Steps(Path(checkpoint.folder).absolute())
        processes.on_all(steps.sweep, first_alone=True)
        yield steps


@contextmanager
def _locked(checkpoint: Checkpoint, where: str) -> Iterator[None]:
    """The folder, made and claimed."""
    folder = Path(checkpoint.folder).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise CheckpointError(
            f"{where}: checkpoint {folder}: cannot write there ({error.strerror})"
        ) from error
    with claimed(folder / "lock", stays=True) as holder:
        if holder is not None:
            raise CheckpointError(
                f"{where}: checkpoint {folder}: in use by process {holder}; "
                "expected a folder of its own"
            )
        yield


def newest(
    steps: Steps, strict: bool, accept: Callable[[dict], None], where: str
) -> tuple[dict, dict[str, np.ndarray]] | None:
    """Manifest and arrays of the newest step, None if there is none.

    `accept(manifest)` may raise.

    Raises:
        CheckpointError: the step is damaged and `strict`, or of a newer version; no step is whole.
    """
    damaged = []
    for step in reversed(steps.all()):
        try:
            whole = steps.load(step)
        except DamagedError as error:
            if strict:
                raise
            damaged.append((step, error))
            continue
        accept(whole[0])
        for broken, reason in damaged:
            aside = steps.set_aside(broken)
            checks.warn(
                f"{where}: resumes from step {step}: {reason}. "
                f"Step {broken} is kept as {aside.name}."
            )
        return whole
    if damaged:
        raise CheckpointError(
            f"{where}: no step of {steps.folder} is whole; the newest: {damaged[0][1]}"
        )
    return None
