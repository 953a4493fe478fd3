"""Files of named arrays, in two formats, for any tree of arrays and for the saved steps of a run. A
manifest with its own hash describes the arrays.

Every reader compares the header of a file with its bytes before the reader allocates memory.
"""

import io
import json
import mmap
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import jax
import numpy as np

from unrolled._base import checks, files
from unrolled._base.arguments import checked
from unrolled._base.files import claimed, free_space, in_line, sweep
from unrolled._base.processes import Processes
from unrolled.records import Record, differences, option
from unrolled.training import _forms
from unrolled.training._forms import CheckpointError, DamagedError, array_dtype, bits, names

__all__ = ["Checkpoint", "restore_tree", "save_tree"]


Leaves = dict[str, Any]
_Tree = TypeVar("_Tree")

# The names of dtypes in a `.safetensors` header.
_SAFETENSORS = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}
_LARGEST_HEADER = 10**8  # bytes, as in the reference implementation of safetensors
_LARGEST_NPY_HEADER = 2**16 + 10  # bytes, in version 1.0 of the format
_MANIFEST = "manifest.json"
_KIND = "tree"


def check_parent(path: Path) -> None:
    """Raise CheckpointError unless a file can be written at `path`."""
    try:
        if not path.parent.is_dir():
            raise NotADirectoryError(f"the folder {path.parent} does not exist")
        files.check_writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError("is a folder")
    except OSError as error:
        raise _unwritable("save", path, error) from error


def _unwritable(where: str, path: Path, error: OSError) -> CheckpointError:
    why = f"{error.strerror or error}); {free_space(path)}"
    return CheckpointError(f"{where}: {path}: cannot be written ({why}")


def write(
    where: str, path: Path, kind: str, leaves: Leaves, put: Callable, /, **manifest: Any
) -> None:
    """Write leaves and their hashes to `path`, completely or not at all, by the writer `put`.

    Raises:
        TypeError: the dtype of a leaf cannot be saved, or JSON cannot hold the manifest.
        CheckpointError: the file cannot be written.
    """
    arrays, entries = _forms.table(leaves, where)
    manifest = {"leaves": entries, "versions": _forms.versions(), **manifest}
    text = json.dumps(_forms.seal(kind, manifest))
    try:
        with files.whole_file(path) as file:
            put(file, text, arrays)
    except OSError as error:
        raise _unwritable(where, path, error) from error


def read(path: Path, kind: str, take: Callable) -> tuple[dict, dict[str, np.ndarray]]:
    """The manifest and the arrays of a file that `write` wrote, after checking every hash.

    The arrays lie in the mapped file: copy an array that must not depend on the file.

    Raises:
        CheckpointError: the file has a newer format.
        Exception: any error that reading damaged bytes can raise.
    """
    with path.open("rb") as file:
        text, arrays = take(file)
    manifest = _forms.unseal(path, kind, json.loads(text))
    entries = manifest["leaves"]
    if set(arrays) != set(entries):
        raise ValueError(f"it holds the arrays {sorted(arrays)}; expected {sorted(entries)}")
    arrays = {name: arrays[name].view(array_dtype(entry)) for name, entry in entries.items()}
    for name, entry in entries.items():
        _forms.verify(name, entry, arrays[name])
    return manifest, arrays


def _mapped(file: BinaryIO) -> memoryview:
    """The bytes of a file as mapped memory: the operating system reads bytes on access."""
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def to_npz(file: BinaryIO, text: str, arrays: dict[str, np.ndarray]) -> None:
    """Write an uncompressed `.npz` file, with the text as its entry `manifest.json`."""
    # Entries are stored uncompressed, so that a file cannot unpack to more than its size.
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(_MANIFEST), text)
        for name, array in arrays.items():
            plain = array if array.dtype.kind in "biuf" else array.view(f"u{array.dtype.itemsize}")
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.file_size = plain.nbytes  # tells zipfile whether the entry needs 64-bit sizes
            with archive.open(entry, "w") as stream:
                np.lib.format.write_array(stream, plain, allow_pickle=False)


def from_npz(file: BinaryIO) -> tuple[str, dict[str, np.ndarray]]:
    """The text and the arrays of a `.npz` file.

    Raises:
        ValueError: the file is compressed, or the sizes of its entries exceed the file.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it has compressed entries; `save` writes none")
    blob = _mapped(file)
    parts = {entry.filename: _stored(blob, entry) for entry in entries}
    if _MANIFEST not in parts:
        raise ValueError(f"it has no {_MANIFEST}: an older version wrote it, or another program")
    text = bytes(parts.pop(_MANIFEST)).decode()
    return text, {name.removesuffix(".npy"): _from_npy(part) for name, part in parts.items()}


def _stored(blob: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of an entry, which start after its header, name and extra field.

    Raises:
        ValueError: the file ends too early.
    """
    lengths = np.frombuffer(blob, "<u2", 2, entry.header_offset + 26)
    start = entry.header_offset + 30 + int(lengths.sum())
    if start + entry.file_size > len(blob):
        raise ValueError("its entries promise more bytes than the file has")
    return blob[start : start + entry.file_size]


def _from_npy(blob: memoryview) -> np.ndarray:
    """The array of a .npy entry, without a copy.

    Raises:
        ValueError: the header does not fit the bytes, or the dtype is not numeric.
    """
    stream = io.BytesIO(blob[:_LARGEST_NPY_HEADER])
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an entry is not a .npy file of version 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "biuf" or fortran_order:
        raise ValueError(f"an entry has dtype {dtype}; expected real numbers in row-major order")
    return np.frombuffer(blob, dtype, offset=stream.tell()).reshape(shape)


def to_safetensors(file: BinaryIO, text: str, arrays: dict[str, np.ndarray]) -> None:
    """Write a `.safetensors` file with the text in its metadata."""
    header: dict[str, dict] = {"__metadata__": {"unrolled": text}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind = _SAFETENSORS[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    for array in arrays.values():
        file.write(bits(array))


def from_safetensors(file: BinaryIO) -> tuple[str, dict[str, np.ndarray]]:
    """The text and the arrays of a `.safetensors` file; the text of another program is "".

    Raises:
        ValueError: the header does not cover the bytes exactly.
    """
    blob = _mapped(file)
    length = int.from_bytes(blob[:8], "little")
    if len(blob) < 8 or length > min(len(blob) - 8, _LARGEST_HEADER):
        raise ValueError(f"its header promises {length} bytes, the file has {len(blob)}")
    header, data = json.loads(bytes(blob[8 : 8 + length])), blob[8 + length :]
    text = header.pop("__metadata__", {}).get("unrolled", "")
    names, arrays, reached = {kind: dtype for dtype, kind in _SAFETENSORS.items()}, {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != reached or end > len(data):
            raise ValueError(
                f"{name} lies at the bytes {begin} to {end}; expected them to begin at {reached}"
            )
        dtype = array_dtype({"dtype": names[entry["dtype"]]})
        arrays[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
        reached = end
    if reached != len(data):
        raise ValueError(f"it has {len(data) - reached} bytes that belong to no array")
    return text, arrays


FORMATS = {".npz": (to_npz, from_npz), ".safetensors": (to_safetensors, from_safetensors)}


@checked
def save_tree(path: str | Path, tree: Any, **metadata: Any) -> None:
    """Write the arrays of a tree and their hashes to `path`, completely or not at all.

    Args:
        path: a `.npz` file.
        tree: any pytree of arrays, such as the state of an optimiser.
        metadata: anything that JSON can hold, and also nan and infinities.

    Raises:
        TypeError: the dtype of a leaf cannot be saved, two leaves have the same dotted path, or
            JSON cannot hold the metadata.
        CheckpointError: the file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.npz"
        >>> ur.training.save_tree(path, {"a": jnp.ones(2), "b": (jnp.zeros(3),)}, step=7)
        >>> ur.training.restore_tree(path, {"a": jnp.zeros(2), "b": (jnp.zeros(3),)})[1]
        {'step': 7}
    """
    try:
        json.dumps(metadata, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"save_tree: metadata must be what JSON can hold ({error})") from error
    write("save_tree", Path(path), _KIND, names(tree), to_npz, metadata=metadata)


@overload
def restore_tree(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...


@overload
def restore_tree(path: str | Path, like: _Tree) -> tuple[_Tree, dict[str, Any]]: ...


@checked
def restore_tree(path: str | Path, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """Read a tree that `save_tree` wrote, bit for bit, and its metadata.

    Args:
        path: the file.
        like: a tree with the same structure, shapes and dtypes. None returns a dict of arrays on
            the host, whose keys are the dotted paths in the tree.

    Raises:
        FileNotFoundError, IsADirectoryError: the file does not exist, or is a folder.
        CheckpointError: the file is damaged, has a newer format, has other leaves than `like` (the
            message has a table), or has 64-bit numbers and the process runs without them.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.npz"
        >>> ur.training.save_tree(path, [jnp.arange(3.0)])
        >>> ur.training.restore_tree(path, [jnp.zeros(3)])[0][0].tolist()
        [0.0, 1.0, 2.0]
        >>> ur.training.restore_tree(path)[0]
        {'0': array([0., 1., 2.], dtype=float32)}
    """
    path = Path(path)
    files.check_file(path)
    try:
        manifest, arrays = read(path, _KIND, from_npz)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a reader of foreign bytes raises
        raise DamagedError(f"{path}: damaged ({in_line(error)})") from error
    if like is None:
        # Copies, because the arrays lie in the mapped file.
        return {name: array.copy() for name, array in arrays.items()}, manifest["metadata"]
    entries, wanted = manifest["leaves"], names(like)
    saved, requested = _forms.types_of_entries(entries), _forms.types_of(wanted)
    if report := differences(saved, requested):
        raise CheckpointError(f"{path}: holds another tree:\n{report}")
    try:
        leaves = [_forms.to_device(entries[name]["dtype"], arrays[name]) for name in wanted]
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves), manifest["metadata"]


# The saved steps of a run, one file per step

_ALONE = Processes()


def _as_folder(value: Any, name: str, where: str) -> str | os.PathLike:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{where}: {name} must be a path, got {type(value).__name__}")
    return value


class Checkpoint(Record):
    """The folder in which a run saves, and how often the run saves.

    Args:
        folder: folder of one run; made if it does not exist.
        every: training steps between two saves, the most steps that a killed run can lose; None
            saves at every evaluation.
        keep: number of saved steps to keep; older steps are deleted.
        dictionary: False saves only the hash of D, for a large D that you keep elsewhere.
        strict: False sets a damaged newest step aside, with a warning, and resumes from the step
            before it.

    Example:
        >>> ur.training.Checkpoint("runs/a", every=500).keep
        3
    """

    folder: str | Path = option(check=_as_folder, kw_only=False)
    every: int | None = option(default=None, least=1, kw_only=False)
    keep: int = option(default=3, least=1, kw_only=False)
    dictionary: bool = option(default=True, kw_only=False)
    strict: bool = option(default=True, kw_only=False)


class Steps:
    """The saved steps in one folder, one file per step."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"{step}.npz"

    def all(self) -> list[int]:
        """The numbers of the saved steps, oldest first.

        Raises:
            CheckpointError: orbax wrote the steps in the folder.
        """
        if foreign := _numbers(path.parent.name for path in self.folder.glob("*/manifest")):
            raise CheckpointError(
                f"{self.folder}: an older version of unrolled (0.1.0 or before) wrote the steps "
                f"{foreign} with orbax; `restore` one with that version and `save` its params to a "
                "file, or try another folder"
            )
        return _numbers(path.stem for path in self.folder.glob("*.npz"))

    def save(self, step: int, leaves: dict[str, Any], **manifest: Any) -> None:
        """Write named leaves and their manifest as one step, completely or not at all.

        Raises:
            CheckpointError: the step cannot be written; earlier steps stay intact.
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
        """Remove incomplete files of killed processes."""
        for partial in self.folder.glob(".*.npz.*.partial"):
            for step in _numbers([partial.name.split(".")[1]]):
                sweep(self.path(step))

    def load(self, step: int) -> tuple[dict, dict[str, np.ndarray]]:
        """The manifest of a step and its leaves, bit for bit; the leaves lie in the mapped file.

        Raises:
            DamagedError: the file differs from the saved file.
            CheckpointError: a newer version saved the step.
        """
        try:
            manifest, arrays = read(self.path(step), "training", from_npz)
            if manifest["step"] != step:
                raise ValueError(f"its manifest belongs to step {manifest['step']}")
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
        """Rename the file of a damaged step, so that it no longer counts as a step."""
        aside = next(
            path for i in range(1000) if not (path := self.folder / f"{step}.damaged-{i}").exists()
        )
        return self.path(step).rename(aside)


def _numbers(names: Iterable[str]) -> list[int]:
    """The names that are numbers, in order."""
    return sorted(int(name) for name in names if name.isdecimal())


@contextmanager
def opened(checkpoint: Checkpoint, where: str, processes: Processes = _ALONE) -> Iterator[Steps]:
    """Lock a folder for this training, and yield its steps.

    If several processes share a run, only the first process locks the folder, removes incomplete
    files and writes steps.

    Raises:
        CheckpointError: the path is not a folder, not writable, or in use.
    """
    with ExitStack() as stack:
        processes.on_all(lambda: stack.enter_context(_locked(checkpoint, where)), first_alone=True)
        steps = Steps(Path(checkpoint.folder).absolute())
        processes.on_all(steps.sweep, first_alone=True)
        yield steps


@contextmanager
def _locked(checkpoint: Checkpoint, where: str) -> Iterator[None]:
    """Make the folder and lock it."""
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
    """The manifest and arrays of the newest whole step; None if there is no step.

    `accept(manifest)` raises if the step belongs to another run.

    Raises:
        CheckpointError: the newest step is damaged and `strict` is True; a newer version saved the
            step; or all steps are damaged.
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
