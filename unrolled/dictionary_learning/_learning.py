"""The loop of all learning functions: start or continue, run sweeps, and return the result.

Learning can continue from a result, or from a file that the same call has saved.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Key, Result
from unrolled._base.files import CheckpointError, check_writable, claimed, in_line
from unrolled._base.numbers import wide_dtype
from unrolled.dictionaries import Dictionary, as_dictionary, dct, dense, normalize
from unrolled.records import differences
from unrolled.training import Run, restore_tree, save_tree, writer

__all__ = ["Learned", "Step"]


# Seconds between two writes of the file: a power failure loses at most the work of this time.
_PERIOD = 5.0


class Step(Result):
    """One sweep over the signals, or one batch of a stream."""

    step: int  # 1 for the first step
    objective: float  # mean over the signals
    seconds: float  # since the start, including the time before an interruption
    replaced: int = 0  # number of unused or duplicate atoms that were replaced
    validation: float | None = None  # mean over held-out signals, for D after the step


class Learned(Result):
    """The result of dictionary learning."""

    D: Any  # (m, d), unit atoms; for a chain, a tuple with one D per layer
    X: Any  # (signals, d), the codes; for a chain, a tuple; for a stream, None
    objective: float  # mean over the signals, for D and X
    history: tuple[Step, ...]  # one record per step
    state: Any = None  # arrays that the algorithm needs in addition to D and X to continue


# Called after every step.
Progress = Callable[[Step], Any]
Arrays = dict[str, Any]  # host arrays, and texts


@contextmanager
def keeping(
    path: str | Path | None,
    config: dict[str, Any],
    resume: Learned | None,
    progress: Progress | None,
) -> Iterator["Keeper"]:
    """A `Keeper` whose file no other process uses at the same time.

    Args:
        path: path of the file; None for no file.
        config: settings that the file must match.
        resume: a result whose history continues; an existing file has precedence.
        progress: function called with every step.

    Raises:
        CheckpointError: the file is damaged, comes from another call, or is in use.
    """
    where = config["method"]
    history = [*resume.history] if resume is not None else []
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
    """The history of one call, its clock, and the file from which the call can continue."""

    def __init__(
        self,
        path: Path | None,
        config: dict[str, Any],
        history: list[Step],
        progress: Progress | None,
    ):
        self.path, self.config, self.history, self.progress = path, config, history, progress
        self.saved = time.monotonic()
        self.arrays: Arrays | None = None  # arrays of the file
        if path is not None and path.exists():
            self.arrays, self.history = self._loaded(path)
        self.began = time.monotonic() - (self.history[-1].seconds if self.history else 0)

    def _loaded(self, path: Path) -> tuple[Arrays, list[Step]]:
        try:
            arrays, facts = _read(path)
            config, history = dict(facts["config"]), [Step(*row) for row in facts["history"]]
        except Exception as error:  # a damaged file may raise any error
            reason = in_line(error).removeprefix(f"{path}: ")
            raise CheckpointError(f"{path}: cannot be read as a learning: {reason}") from error
        if report := differences(config, self.config):
            raise CheckpointError(f"{path}: holds another learning; try another file:\n{report}")
        return _Entries(path, arrays), history

    def steps(self, last: int) -> range:
        """The indices of the remaining steps, from 1."""
        return range(len(self.history) + 1, last + 1)

    def add(
        self,
        objective: float,
        replaced: int,
        validation: float | None,
        arrays: Arrays,
        last: bool = False,
    ) -> None:
        """Record a step, save the state, and report the step to `progress`."""
        step, seconds = len(self.history) + 1, time.monotonic() - self.began
        self.history.append(Step(step, objective, seconds, replaced, validation))
        self.save(arrays, last)
        if self.progress is not None:
            self.progress(self.history[-1])

    def save(self, arrays: Arrays, last: bool = False) -> None:
        """Replace the file after the last step, or if `_PERIOD` seconds have passed."""
        if self.path is None or not (last or time.monotonic() - self.saved > _PERIOD):
            return
        self.saved = time.monotonic()
        texts = {name: value for name, value in arrays.items() if isinstance(value, str)}
        arrays = {name: value for name, value in arrays.items() if name not in texts}
        # Keep the order in memory too: the rounding of a product depends on this order.
        columns = [name for name, array in arrays.items() if not array.flags.c_contiguous]
        rows = [list(step.asdict().values()) for step in self.history]
        facts = dict(config=self.config, history=rows, texts=texts, columns=columns)
        save_tree(self.path, arrays, **facts)


class _Entries(Arrays):
    """The arrays of a file; raise CheckpointError for an array that the file lacks."""

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
    """The text of a key, or of a start, in the config of a file."""
    if isinstance(value, str):
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(np.asarray(jax.random.key_data(value)).tolist())
    return fingerprint(np.asarray(dense(value)))


class Options(NamedTuple):
    """A caller's arguments that all learning functions share; see `ksvd` for their meaning."""

    sweeps: int | None  # None for a stream, which has as many steps as batches
    key: Key
    progress: Progress | None
    resume: Learned | None
    checkpoint: str | Path | None
    start: str | Dictionary = "data"
    weights: ArrayLike | None = None
    mask: ArrayLike | None = None
    run: Run = Run()  # a method takes its callbacks and log


class Method(Protocol):
    """An algorithm for `learn`, which calls these methods. A state may be any value."""

    where: str  # the name of the function

    def config(self) -> dict[str, Any]:
        """Settings that a file must match, in addition to the method and the key."""

    def start(self, rng: np.random.Generator) -> Any:
        """The state before the first sweep."""

    def resumed(self, resume: Learned) -> Any:
        """The state with which a call continues a result."""

    def restored(self, arrays: Arrays, keeper: Keeper) -> Any:
        """The state that `arrays` has saved."""

    def arrays(self, state: Any) -> Arrays:
        """The arrays and texts of a state, as a file keeps them."""

    def steps(self, keeper: Keeper, sweeps: Any) -> Iterable[int]:
        """The indices of the remaining sweeps, from 1."""
        return keeper.steps(sweeps)

    def sweep(self, state: Any, step: int, rng: np.random.Generator) -> tuple[Any, float, int]:
        """The state after a sweep, the objective, and the number of replaced atoms."""

    def held_out(self, state: Any, step: int) -> float | None:
        """The mean objective on held-out signals after a sweep; None if it is not evaluated."""
        return None

    def warn(self, state: Any) -> None:
        """Warn about the last state of a call if it needs a warning."""
        return

    def result(self, state: Any) -> Learned:
        """The result of a state, without its history."""

    def chosen(self, last: Learned) -> Learned:
        """The result of a call whose last state has the result `last`."""
        return last


def learn(method: Method, options: Options) -> Learned:
    """Run a method from its start, from a result or from a file, and return the result.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`.
    """
    where, sweeps = method.where, options.sweeps
    if sweeps is not None:
        sweeps = checks.as_index(sweeps, "sweeps", where)
    key = checks.as_key(options.key, where)
    config: dict[str, Any] = {"method": where}
    if options.checkpoint is not None:
        config |= {"key": text_of(key)} | method.config()
    kept = keeping(options.checkpoint, config, options.resume, options.progress)
    with kept as keeper, writer(options.run.log) as write:
        if keeper.arrays is not None:
            state = method.restored(keeper.arrays, keeper)
        elif options.resume is not None:
            state = method.resumed(options.resume)
            if isinstance(options.resume.state, dict):  # from D and X before rounding
                state = method.restored(options.resume.state, keeper)
        else:
            state = method.start(generator(key, 0))
        for step in method.steps(keeper, sweeps):
            state, objective, replaced = method.sweep(state, step, generator(key, step))
            validation = method.held_out(state, step)
            arrays = method.arrays(state)
            keeper.add(objective, replaced, validation, arrays, last=step == sweeps)
            write(keeper.history[-1], None)
            for callback in options.run.callbacks:
                callback(keeper.history[-1], method.result(state).D)
        if sweeps is None:
            keeper.save(method.arrays(state), last=True)
    if keeper.history:
        method.warn(state)
    result = method.chosen(method.result(state)).replace(history=tuple(keeper.history))
    half = jnp.finfo(checks.common_dtype(result.D, result.X)).bits < 32
    return result.replace(state=method.arrays(state)) if half and result.state is None else result


def generator(key: jax.Array, step: int) -> np.random.Generator:
    """The random generator of one step."""
    return np.random.default_rng([*np.asarray(jax.random.key_data(key)).tolist(), step])


# Atoms whose inner product exceeds this value are duplicates.
PARALLEL = 0.99


class Signals(NamedTuple):
    """Signals and weights scaled near 1; the caller's arrays are Y 2^exponent and V 2^scale."""

    Y: np.ndarray  # (n, m), zero where unknown
    V: np.ndarray | None  # (n, m) weights of squared errors, the largest in (1/2, 1]; None for ones
    exponent: int
    dtype: np.dtype  # dtype of the result
    scale: int = 0

    @property
    def top(self) -> float:
        """The largest weight."""
        return 1.0 if self.V is None else float(self.V.max())

    def objective(self, R: np.ndarray) -> float:
        """The mean of 1/2 sum_i v_i r_i^2 over residuals R, in the units of the given signals."""
        squares = R * R if self.V is None else self.V * R * R
        return self.in_units(np.sum(squares, dtype=float) / (2 * len(R)))

    def in_units(self, objective: Any) -> float:
        """An objective in the units of the given signals; inf if it exceeds the largest float."""
        return times_two_to(2 * self.exponent + self.scale, objective)

    def errors(self, R: np.ndarray) -> np.ndarray:
        """sum_i v_i r_i^2 for every residual in R, an array of shape (n,)."""
        return np.sum(R * R if self.V is None else self.V * R * R, 1)

    def target(self, R: np.ndarray) -> np.ndarray:
        """v y + (1 - v) D x, for R = Y - X D' and weights v divided by the largest weight.

        For any atoms, the unweighted error on this target is at least the weighted error of the
        atoms; for D, the two errors are equal.
        """
        return self.Y if self.V is None else self.Y - (1 - self.V / self.top) * R

    def weighted(self, R: np.ndarray) -> np.ndarray:
        """v R, for weights v divided by the largest weight: `target(R)` minus D x."""
        return R if self.V is None else self.V / self.top * R

    def fingerprint(self) -> str:
        """A text that differs for different signals or weights."""
        if self.V is None:
            return fingerprint(self.Y)
        with np.errstate(over="ignore"):
            weights = np.ldexp(self.V, self.scale)
        inside = np.isfinite(weights).all()
        return fingerprint(self.Y, *((weights,) if inside else (self.V, np.array(self.scale))))

    def rescaled(self, exponent: int) -> "Signals":
        """The same signals, divided by 2^exponent."""
        return self._replace(Y=np.ldexp(self.Y, self.exponent - exponent), exponent=exponent)

    def filled(self, R: np.ndarray) -> np.ndarray:
        """The signals, with their approximation Y - R at unknown entries."""
        return self.Y if self.V is None else np.where(self.V > 0, self.Y, self.Y - R)


def weighted_signals(
    Y: ArrayLike,
    where: str,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    name: str = "Y",
    *,
    unknown: bool = False,
) -> Signals:
    """Check the signals and weights that a caller gives.

    If all weights are zero, raise ValueError unless `unknown` allows signals without known entries.
    """
    checks.on_host((Y, weights, mask), where, f"{name}, weights or mask")
    rows = checks.as_float(Y, name, where)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{where}: {name} has shape {rows.shape}; expected (signals, m), signals in rows"
            f"{checks.flattened(name, rows.shape)}"
        )
    Y = np.asarray(rows).astype(wide_dtype(rows.dtype))
    V, scale = _weights(Y.shape, Y.dtype, weights, mask, where)
    if V is not None and not V.any() and not unknown:
        raise ValueError(f"{where}: all weights are zero")
    finite = np.isfinite(Y) if V is None else np.isfinite(Y) | (V == 0)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"{where}: {name} has NaN or infinite entries, the first at ({row}, {column}); "
            "leave such signals out, or give the known entries as `mask`, where there is one"
        )
    if V is not None:
        Y = np.where(V > 0, Y, 0)
    exponent = int(np.frexp(np.abs(Y).max())[1])
    return Signals(np.ldexp(Y, -exponent), V, exponent, rows.dtype, scale)


def _weights(
    shape: tuple[int, ...],
    dtype: np.dtype,
    weights: ArrayLike | None,
    mask: ArrayLike | None,
    where: str,
) -> tuple[np.ndarray | None, int]:
    """(V, k) with V 2^k = weights times mask, (n, m); V is None if weights and mask are None.

    The largest entry of V is in (1/2, 1], so that squares times weights are in the range of the
    dtype.
    """
    if weights is None and mask is None:
        return None, 0
    V = np.ones(shape)
    for value, name in ((weights, "weights"), (mask, "mask")):
        if value is None:
            continue
        value = np.asarray(value)
        value = value[:, None] if value.shape == shape[:1] else value
        if value.shape not in (shape, (shape[0], 1)):
            raise ValueError(
                f"{where}: {name} has shape {value.shape}; expected {shape} or ({shape[0]},)"
            )
        if name == "mask" and value.dtype != bool:
            raise TypeError(f"{where}: mask has dtype {value.dtype}; expected bool, True for known")
        checks.nonnegative(value, name, where)
        checks.finite(value, name, where)
        V *= value.astype(float)
    part, k = np.frexp(V.max())
    k = int(k) - int(part == 0.5)
    return np.ldexp(V, -k).astype(dtype), k


def atom_count(d: int, n: int, where: str) -> int:
    """Check the number of atoms that a caller gives, for n signals."""
    d = checks.as_index(d, "d", where, least=1)
    if d > n:
        raise ValueError(f"{where}: d is {d} but there are {n} signals; expected at most as many")
    return d


def times_two_to(exponent: int, objective: Any) -> float:
    """An objective times 2^exponent; inf if the product exceeds the largest float."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(float(objective), exponent))


def scaled_penalty(lam: float, exponent: int) -> float:
    """lam for signals divided by 2^exponent; at most 2^100, which no correlation reaches."""
    with np.errstate(over="ignore"):
        return min(float(np.ldexp(lam, -exponent)), 2.0**100)


def as_lam(lam: Any, where: str) -> float:
    """A penalty weight as a positive number."""
    value = checks.as_number(lam, "lam", where)
    if not 0 < value < math.inf:
        raise ValueError(f"{where}: lam must be positive and finite, got {lam}")
    return value


def unit_rows(A: np.ndarray) -> np.ndarray:
    """Rows divided by their norms, even if the squares leave the range; zero rows stay."""
    A = np.ldexp(A, -np.frexp(np.abs(A).max(1, keepdims=True, initial=0))[1])
    norms = np.linalg.norm(A, axis=1, keepdims=True)
    return A / np.where(norms > 0, norms, 1)


def correction(X: np.ndarray, R: np.ndarray) -> np.ndarray:
    """The least C, (m, d), that minimises norm(R - X C'), for codes and residuals in rows.

    If atoms D leave R = Y - X D', the best atoms are D + C. The codes of one atom may be much
    smaller than the codes of another atom, so "least" refers to columns of X divided by their
    norms. No column of X may be zero.
    """
    peaks = np.abs(X).max(0)  # squares of the raw columns may leave the range
    U = X / peaks
    sizes = np.linalg.norm(U, axis=0)
    U /= sizes
    rounding = U.shape[1] * np.finfo(U.dtype).eps
    with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the error
        return R.T @ U @ np.linalg.pinv(U.T @ U, rcond=rounding, hermitian=True) / sizes / peaks


def start_atoms(
    start: str | Dictionary, signals: Signals, d: int, rng: np.random.Generator, where: str
) -> np.ndarray:
    """Initial unit atoms, (m, d): random signals, cosines, or the given atoms."""
    Y = signals.Y
    n, m = Y.shape
    if isinstance(start, str):
        if start == "data":
            return distinct(Y[rng.permutation(n)], np.zeros((m, 0), Y.dtype), d, rng).T
        if start == "dct":
            return _cosines(m, d).astype(Y.dtype)
        raise ValueError(f'{where}: unknown start {start!r}; expected "data", "dct" or a D')
    checks.on_host(start, where, "start")
    D = as_dictionary(start, where)
    if D.shape != (m, d):
        raise ValueError(f"{where}: start has shape {D.shape}; expected ({m}, {d})")
    return np.array(dense(normalize(D)[0]), Y.dtype)


def _cosines(m: int, d: int) -> np.ndarray:
    """The first d atoms of a cosine dictionary, for square patches if m is a square number."""
    root = math.isqrt(m)
    square = root > 1 and root * root == m
    side = max(root, math.isqrt(max(d, 1) - 1) + 1)
    with jax.enable_x64(True):
        D = dct((root, root), (side, side)) if square else dct(m, max(m, d))
        return np.asarray(D)[:, :d]


def distinct(
    candidates: np.ndarray, D: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` unit rows: candidates, then noise if there are too few candidates.

    A candidate is left out if it is nearly parallel to an earlier row or to an atom of D.
    """
    rows = unit_rows(candidates)
    rows = rows[np.abs(rows).max(1) > 0]
    taken = np.concatenate([D.T, np.zeros((count, len(D)), D.dtype)])
    size = D.shape[1]

    def offer(row: np.ndarray) -> None:
        nonlocal size
        if size < len(taken) and np.abs(taken[:size] @ row).max(initial=0) < PARALLEL:
            taken[size] = row
            size += 1

    for row in rows:
        if size == len(taken):
            break
        offer(row)
    for row in unit_rows(rng.standard_normal((len(taken) - size, len(D))).astype(D.dtype)):
        taken[size] = row  # in one or two dimensions every row may be parallel to an atom
        size += 1
    return taken[D.shape[1] :]


def fresh_atoms(
    D: np.ndarray,
    which: np.ndarray,
    candidates: np.ndarray,
    errors: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Unit rows to replace the atoms `which`: the candidates with the largest errors above 0."""
    worst = np.argsort(-errors, kind="stable")[: 10 * len(which)]
    worst = worst[errors[worst] > 0]
    return distinct(candidates[worst], np.delete(D, which, 1), len(which), rng)
