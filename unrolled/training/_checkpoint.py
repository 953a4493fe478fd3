"""The saved steps of a run: orbax writes each together with a manifest of its hashes."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unrolled import _checks
from unrolled._files import claimed, free_space, in_line, sync_folder
from unrolled._processes import Processes
from unrolled.records import Record, option
from unrolled.training import _manifest
from unrolled.training._manifest import CheckpointError, DamagedError

# Bytes of a step: a manifest that promises more is damaged, and nothing is allocated for it.
_LARGEST = 2**36
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
    """The saved steps of one folder; orbax writes each elsewhere and moves it in when complete."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp

        self.folder = folder
        self._args = ocp.args
        # Every process is alone for orbax, which would else wait for the others in each call.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(me, {me}, f"process {me}")
        # Not asynchronous: a full disk is reported at the step itself.
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
            ),
            multiprocessing_options=alone,
        )

    def all(self) -> list[int]:
        """Oldest first."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def close(self) -> None:
        """Release what orbax holds."""
        self._orbax.close()

    def save(self, step: int, leaves: dict[str, Any], **manifest: Any) -> None:
        """Write named leaves and their manifest as one step; a saved step is never overwritten.

        Raises:
            CheckpointError: not written; the earlier steps are as they were.
        """
        arrays, entries = _manifest.table(leaves)
        manifest = {"step": step, "leaves": entries, "versions": _manifest.versions(), **manifest}
        # orbax refuses arrays without entries: their manifest says all there is.
        state = self._args.StandardSave({n: array for n, array in arrays.items() if array.size})
        sealed = self._args.JsonSave(_manifest.seal("training", manifest))
        try:
            self._orbax.save(
                self.folder / str(step), args=self._args.Composite(state=state, manifest=sealed)
            )
            sync_folder(self.folder)
        except Exception as error:
            self.sweep()
            raise CheckpointError(
                f"{self.folder}: step {step} was not saved ({in_line(error)}); "
                f"{free_space(self.folder)}, the steps {[s for s in self.all() if s != step]} are "
                "whole; make room and run the same call again"
            ) from error

    def keep(self, n: int) -> None:
        """Delete all but the newest n steps, each after it was renamed: a kill leaves no half."""
        for step in self.all()[:-n]:
            (self.folder / str(step)).rename(self.folder / f"{step}.deleted")
        self.sweep()

    def sweep(self) -> None:
        """Delete what a kill or a fault left: steps half written, steps half deleted."""
        for pattern in ("*.orbax-checkpoint-tmp*", "*.deleted"):
            for path in self.folder.glob(pattern):
                if path.name.partition(".")[0].isdigit():  # a step; other files are the user's
                    shutil.rmtree(path, ignore_errors=True)

    def manifest(self, step: int) -> dict:
        """The manifest of a step.

        Raises:
            DamagedError: it is not what was saved.
        """
        try:
            items = self._orbax.restore(
                self.folder / str(step),
                args=self._args.Composite(manifest=self._args.JsonRestore()),
            )
            manifest = _manifest.unseal("training", items.manifest)
            if manifest["step"] != step:
                raise ValueError(f"its manifest is that of step {manifest['step']}")
            return manifest
        except Exception as error:
            raise self._damaged(step, error) from error

    def load(self, step: int, manifest: dict) -> dict[str, np.ndarray]:
        """The leaves of a step, bit for bit.

        Raises:
            DamagedError: they are not what was saved.
        """
        entries = manifest["leaves"]
        try:
            if (total := sum(map(_manifest.n_bytes, entries.values()))) > _LARGEST:
                raise ValueError(f"it promises {total} bytes; expected at most {_LARGEST}")
            blank = {
                name: np.empty(entry["shape"], _manifest.array_dtype(entry))
                for name, entry in entries.items()
            }
            wanted = {name: array for name, array in blank.items() if array.size}
            items = self._orbax.restore(
                self.folder / str(step),
                args=self._args.Composite(state=self._args.StandardRestore(wanted)),
            )
            arrays = blank | items.state
            for name, entry in entries.items():
                _manifest.verify(name, entry, arrays[name])
            return arrays
        except Exception as error:
            raise self._damaged(step, error) from error

    def set_aside(self, step: int) -> Path:
        """Rename a damaged step: it is no longer a step, but nothing of it is lost."""
        aside = next(
            path for i in range(1000) if not (path := self.folder / f"{step}.damaged-{i}").exists()
        )
        (self.folder / str(step)).rename(aside)
        return aside

    def _damaged(self, step: int, error: Exception) -> DamagedError:
        rest = [s for s in self.all() if s != step] or "none"
        return DamagedError(
            f"{self.folder / str(step)}: damaged ({in_line(error)}); other steps: {rest}; "
            "Checkpoint(folder, strict=False) resumes from the newest whole one"
        )


@contextmanager
def opened(checkpoint: Checkpoint, where: str, processes: Processes = _ALONE) -> Iterator[Steps]:
    """The steps of a folder that no other training uses meanwhile.

    Of several processes of one run the first locks it, sweeps it and writes.

    Raises:
        CheckpointError: not a folder, not writable, or in use.
    """
    with ExitStack() as stack:
        processes.together(
            lambda: stack.enter_context(_locked(checkpoint, where)), first_alone=True
        )
        steps = Steps(Path(checkpoint.folder).absolute())
        stack.callback(steps.close)
        processes.together(steps.sweep, first_alone=True)
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

    `accept(manifest)` is called before the arrays are read, and may raise.

    Raises:
        CheckpointError: the step is damaged and `strict`, or no step is whole.
    """
    damaged = []
    for step in reversed(steps.all()):
        try:
            manifest = steps.manifest(step)
            accept(manifest)
            whole = manifest, steps.load(step, manifest)
        except DamagedError as error:
            if strict:
                raise
            damaged.append((step, error))
            continue
        for broken, reason in damaged:
            aside = steps.set_aside(broken)
            _checks.warn(
                f"{where}: resumes from step {step}: {reason}. "
                f"Step {broken} is kept as {aside.name}."
            )
        return whole
    if damaged:
        raise CheckpointError(
            f"{where}: no step of {steps.folder} is whole; the newest: {damaged[0][1]}"
        )
    return None
