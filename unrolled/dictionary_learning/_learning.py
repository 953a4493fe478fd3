"""The skeleton of a learning: start or continue, sweep after sweep, and the result.

It continues from a result, or from a file of the same call.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import ArrayLike, Key
from unrolled._files import CheckpointError, check_writable, claimed, in_line
from unrolled.dictionaries import Dictionary, dense
from unrolled.records import differences
from unrolled.training import restore_tree, save_tree

# Seconds between two writes of the file: what a loss of power may cost.
_PERIOD = 5.0


class Step(NamedTuple):
    """One sweep over the signals, or one batch of a stream."""

    step: int  # 1 for the first
    objective: float  # mean over the signals
    seconds: float  # since the start, those before an interruption included
    replaced: int = 0  # atoms that were unused or duplicates, and were replaced


class Learned(NamedTuple):
    """The result of dictionary learning."""

    D: Any  # (m, d), unit atoms; of a chain a tuple, one per layer
    X: Any  # (signals, d), the codes; of a chain a tuple; None of a stream
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
Arrays = dict[str, Any]  # arrays of the host, and texts


@contextmanager
def keeping(
    path: str | Path | None,
    config: dict[str, Any],
    resume: Learned | None,
    progress: Progress | None,
) -> Iterator["Keeper"]:
    """A `Keeper` whose file no other process uses meanwhile.

    Args:
        path: of the file; None for none.
        config: what the file must agree in.
        resume: a result whose history continues; a file that is there has precedence.
        progress: told every step.

    Raises:
        CheckpointError: the file is damaged, of another learning, or in use.
    """
    where = config["method"]
    history = [*as_learned(resume, where).history] if resume is not None else []
    if path is None:
        yield Keeper(None, config, history, progress)
        return
    path = Path(path)
    check_writable(path.parent)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    with claimed(path.with_name(f".{path.name}.lock")) as holder:
        if holder is not None:
            raise CheckpointError(
                f"{where}: {path}: in use by process {holder}; expected a file of its own"
            )
        yield Keeper(path, config, history, progress)


class Keeper:
    """The history of one learning, its clock, and its file with what it needs to continue."""

    def __init__(
        self,
        path: Path | None,
        config: dict[str, Any],
        history: list[Step],
        progress: Progress | None,
    ):
        self.path, self.config, self.history, self.progress = path, config, history, progress
        self.saved = time.monotonic()
        self.arrays: Arrays | None = None  # those of the file
        if path is not None and path.exists():
            self.arrays, self.history = self._loaded(path)
        self.began = time.monotonic() - (self.history[-1].seconds if self.history else 0)

    def _loaded(self, path: Path) -> tuple[Arrays, list[Step]]:
        try:
            arrays, facts = _read(path)
            config, history = dict(facts["config"]), [Step(*row) for row in facts["history"]]
        except Exception as error:  # whatever a reader of foreign bytes raises
            reason = in_line(error).removeprefix(f"{path}: ")
            raise CheckpointError(f"{path}: cannot be read as a learning: {reason}") from error
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
        texts = {name: value for name, value in arrays.items() if isinstance(value, str)}
        arrays = {name: value for name, value in arrays.items() if name not in texts}
        # The order in memory too: a product rounds by it.
        columns = [name for name, array in arrays.items() if not array.flags.c_contiguous]
        facts = dict(config=self.config, history=self.history, texts=texts, columns=columns)
        save_tree(self.path, arrays, **facts)


class _Entries(Arrays):
    """The arrays of a file; one that it lacks is a CheckpointError."""

    def __init__(self, path: Path, arrays: Arrays):
        super().__init__(arrays)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"{self.path}: cannot be read as a learning: it has no {name}")


def _read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and texts of a file, and its config and history."""
    arrays, facts = restore_tree(path)
    ordered = {name: np.asfortranarray(arrays[name]) for name in {*facts["columns"]} & {*arrays}}
    return arrays | ordered | facts["texts"], facts


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


class Options(NamedTuple):
    """The arguments that learnings share, as a caller gave them; `ksvd` says what they are."""

    sweeps: int | None  # None of a stream, which has as many steps as batches
    key: Key
    progress: Progress | None
    resume: Learned | None
    checkpoint: str | Path | None
    start: str | Dictionary = "data"
    weights: ArrayLike | None = None
    mask: ArrayLike | None = None


class Method(Protocol):
    """One way to learn, of given signals: what `learn` asks for. A state is any value."""

    where: str  # the name of the function

    def config(self) -> dict[str, Any]:
        """What a file must agree in, beside the method and the key."""

    def start(self, rng: np.random.Generator) -> Any:
        """The state before the first sweep."""

    def resumed(self, resume: Learned) -> Any:
        """The state in which a result ended."""

    def restored(self, arrays: Arrays, keeper: Keeper) -> Any:
        """The state that `arrays` gave."""

    def arrays(self, state: Any) -> Arrays:
        """A state as a file keeps it."""

    def steps(self, keeper: Keeper, sweeps: Any) -> Iterable[int]:
        """The numbers of the sweeps that are left."""
        return keeper.steps(_checks.as_index(sweeps, "sweeps", self.where))

    def sweep(self, state: Any, step: int, rng: np.random.Generator) -> tuple[Any, float, int]:
        """The state after a sweep, the objective, and how many atoms were replaced."""

    def warn(self, state: Any) -> None:
        """Warn of a state after which a sweep has ended."""
        return

    def result(self, state: Any) -> Learned:
        """The result, without its history."""


def learn(method: Method, options: Options) -> Learned:
    """The result of a method, from its start, from a result or from a file.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`.
    """
    where, sweeps = method.where, options.sweeps
    if sweeps is not None:
        sweeps = _checks.as_index(sweeps, "sweeps", where)
    key = _checks.as_key(options.key, where)
    config: dict[str, Any] = {"method": where}
    if options.checkpoint is not None:
        config |= {"key": text_of(key)} | method.config()
    with keeping(options.checkpoint, config, options.resume, options.progress) as keeper:
        if keeper.arrays is not None:
            state = method.restored(keeper.arrays, keeper)
        elif options.resume is not None:
            state = method.resumed(options.resume)
            if isinstance(options.resume.state, dict):  # of D and X before they were rounded
                state = method.restored(options.resume.state, keeper)
        else:
            state = method.start(generator(key, 0))
        for step in method.steps(keeper, sweeps):
            state, objective, replaced = method.sweep(state, step, generator(key, step))
            keeper.add(objective, replaced, method.arrays(state), last=step == sweeps)
        if sweeps is None:
            keeper.save(method.arrays(state), last=True)
    if keeper.history:
        method.warn(state)
    result = method.result(state)._replace(history=tuple(keeper.history))
    half = jnp.finfo(_checks.common_dtype(result.D, result.X)).bits < 32
    return result._replace(state=method.arrays(state)) if half and result.state is None else result


def generator(key: jax.Array, step: int) -> np.random.Generator:
    """The random numbers of one step."""
    return np.random.default_rng([*np.asarray(jax.random.key_data(key)).tolist(), step])
