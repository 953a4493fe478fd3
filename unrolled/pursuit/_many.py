"""The frame of the solvers of many signals: rows scaled near 1, solved on the host, in threads.

Nothing here is compiled for a number of rows: scaling and packing are numpy's.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, programs
from unrolled._base.numbers import host_exponent, wide_dtype
from unrolled._base.threads import threads
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    Structured,
    as_dictionary,
    as_flat,
    dense,
    is_complex,
)
from unrolled.pursuit import _problem
from unrolled.pursuit._derivative import Conditions, with_derivative
from unrolled.pursuit._problem import Grid, Pursuit, least_of
from unrolled.pursuit._sparse import Collected, check_out

_LARGEST = np.finfo(float).max


def operands_of_many(
    D: Dictionary, Y: Any, where: str, viewed: bool = False
) -> tuple[Operator, Any, np.dtype, Grid]:
    """Checked arguments: D, signals in rows, the dtype of the result and the grid of a code.

    The signals of a mapped file stay in the file if they are flat. If `viewed` is set, signals of
    the file that `as_flat` would flatten also stay there, in their own form.
    """
    mapped = isinstance(Y, np.memmap) and Y.ndim > 1 and len(Y) > 0
    flat = mapped and as_flat(D, Y[:1], 1)[1] is None
    mapped = flat or (mapped and viewed)
    some, grid = _problem.flat_signal(D, Y[:1] if mapped else Y, where, batch=1)
    D, some = as_dictionary(D, where, on_host=True), checks.on_host_or_device(some, "Y", where)
    if some.ndim != 2 or some.shape[1] != D.shape[0]:
        shape, m = Y.shape if mapped else some.shape, D.shape[0]
        entries = f"{m})"
        if is_complex(D):
            entries = f"{m // 2}) of complex numbers, or (batch, {m}) of pairs"
        raise ValueError(
            f"{where}: Y has shape {shape}; expected (batch, {entries}, signals in rows"
            f"{checks.flattened('Y', shape)}"
        )
    some = Y if mapped and not flat else Y.reshape(len(Y), -1) if mapped else some
    return D, some, checks.common_dtype(D, some), grid


class Answers(NamedTuple):
    """The fields of `Pursuit` for many signals, as arrays of numpy."""

    x: Any  # (n, d), an array or `Collected`
    gap: np.ndarray  # (n,)
    residual: np.ndarray
    steps: np.ndarray
    converged: np.ndarray
    margin: np.ndarray

    @classmethod
    def empty(cls, n: int, d: int, dtype: np.dtype, into: Any = None) -> "Answers":
        """Zero codes whose gaps are infinite; the codes go into an array if it is given."""
        steps = np.zeros(n, jax.dtypes.canonicalize_dtype(int))
        gap, residual = np.full(n, np.inf, dtype), np.full(n, np.nan, dtype)
        x = aligned((n, d), dtype) if into is None else into
        if isinstance(x, np.ndarray) and into is not None:
            x[:] = 0
        margin = np.zeros(n, dtype)
        return cls(x, gap, residual, steps, np.zeros(n, bool), margin)

    def put(self, rows: np.ndarray, atoms: np.ndarray, codes: np.ndarray) -> None:
        """Write codes by their entries at some atoms, (n, w) in ascending order; 0 is unused."""
        if isinstance(self.x, Collected):
            self.x.add(rows, atoms, codes)
        else:
            i, j = np.nonzero(codes)
            self.x[rows[i], atoms[i, j]] = codes[i, j]


def destination(
    D: Operator, Y: Any, sparse: bool, out: Any, dtype: np.dtype, grid: Any, where: str
) -> Any:
    """Where to write the codes: `out`, an object that keeps the nonzeros, or None."""
    sparse, shape = checks.as_bool(sparse, "sparse", where), (len(Y), D.shape[1])
    if not sparse and out is None:
        try:
            checks.check_memory(shape, dtype, "the array of codes", where)
        except MemoryError as error:
            raise MemoryError(f"{error}; try sparse=True, or a memmap for out") from None
        return None
    if sparse and out is not None:
        raise ValueError(f"{where}: expected one of sparse and out, got both")
    checks.on_host((D, Y), where, "an argument of a call with sparse or out")
    if grid is not None:
        raise ValueError(
            f"{where}: sparse and out need flat signals, got Y with shape {np.shape(Y)} after the "
            f"signals were flattened; expected (batch, {D.shape[0]})"
        )
    return Collected(*shape, np.dtype(dtype)) if sparse else check_out(out, shape, dtype, where)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at an address that lets JAX take the array on a CPU without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)


def on_the_host(
    host: Callable[..., Answers],
    operands: tuple,
    d: int,
    dtype: np.dtype,
    grid: Grid = None,
    conditions: Conditions | None = None,
    into: Any = None,
) -> Pursuit:
    """The codes of the signals, computed by a function of numpy, also within a compiled program.

    Args:
        host: function that takes the operands as numpy arrays; D may be structured.
        operands: D, (m, d), the signals, (n, m), and further arrays or None.
        d: the length of a code.
        dtype: the dtype of the codes, the gaps and the residuals.
        grid: the form of a code, as `operands_of_many` returns it.
        conditions: the arguments on which the codes depend, for the derivative of the codes.
        into: the caller's array, into which the host writes the codes.
    """
    if not checks.is_concrete(operands):
        operands = jax.lax.stop_gradient(operands)

    def answers(*operands):
        return host(*map(in_numpy, operands))

    if checks.is_concrete(operands):
        x, *rest = answers(*operands)
        if isinstance(x, Collected):
            codes: Any = x.codes()
            return Pursuit(codes, *map(jax.device_put, rest))
    else:
        n = len(operands[1])
        shapes = jax.tree.map(
            lambda v: jax.ShapeDtypeStruct((n, *v.shape[1:]), v.dtype), Answers.empty(0, d, dtype)
        )
        operands = tuple(v if v is None else dense(v) for v in operands)
        x, *rest = programs.host_callback(answers, shapes, *operands, vmap_method="sequential")
    if conditions is not None and not checks.is_concrete(conditions):
        x = with_derivative(jnp.asarray(x), conditions)
    if grid is not None:
        x = grid(x) if callable(grid) else x.reshape(-1, *grid)
    given = into is not None
    return Pursuit(x if given else jax.device_put(x), *map(jax.device_put, rest))


def in_numpy(v: Any) -> Any:
    """A known array as an array of numpy, if it is in the memory of the host; else unchanged."""
    on_device = isinstance(v, jax.Array) and {d.platform for d in v.devices()} != {"cpu"}
    return v if v is None or isinstance(v, np.ndarray | Structured) or on_device else np.asarray(v)


def rows_of(Y: np.ndarray, rows: slice, dtype: np.dtype, where: str) -> np.ndarray:
    """Some signals in float64; signals of a file come through float32 unless dtype is float64."""
    some = Y[rows]
    if isinstance(Y, np.memmap) and Y.dtype == np.float64 != dtype:
        some = checks.in_float32(np.array(some), f"Y[{rows.start}:{rows.stop}]", where)
    return some.astype(float, order="C")


class Units(NamedTuple):
    """The arguments, scaled chunk by chunk: D is 2^a times a matrix near 1."""

    Y: np.ndarray
    lam: np.ndarray
    l2: float
    start: np.ndarray | None
    masks: np.ndarray | None
    dtype: np.dtype  # of the codes
    a: int
    sizes: np.ndarray  # (d,), of the scaled atoms: their largest entries, or their norms
    relative: bool = False  # whether lam is a ratio to lam_max of every signal
    tol: float = 1e-6
    nonnegative: bool = False
    max_steps: int = 10_000

    @property
    def ridge(self) -> float:
        """l2, scaled."""
        return float(min(np.ldexp(self.l2, -2 * self.a), _LARGEST))

    @property
    def digits(self) -> int:
        """The binary digits of an entry of a code."""
        return int(jnp.finfo(self.dtype).nmant) + 1

    @property
    def finest(self) -> int:
        """The exponent of the smallest number of the dtype."""
        return int(jnp.finfo(self.dtype).minexp) - self.digits + 1

    def signals(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Some signals, divided by 2^b; b, (n, 1); and the masks if every signal has its own."""
        y, known = rows_of(self.Y, rows, self.dtype, "lasso_batch"), self.masks
        if known is not None:
            known = known if known.ndim == 1 else known[rows]
            y = np.where(known, y, 0)
        b = host_exponent(y, 1)
        return np.ldexp(y, -b), b, None if known is None or known.ndim == 1 else known

    def penalties(self, rows: slice, b: np.ndarray, products: np.ndarray) -> np.ndarray:
        """The penalties of some signals, (n, 1) or (n, d), in units of 2^(a + b)."""
        lam = np.asarray(self.lam[rows] if len(self.lam) > 1 else self.lam, float)
        with np.errstate(invalid="ignore", over="ignore"):
            if self.relative:
                high, low = (f(products, 1, keepdims=True) for f in (np.max, np.min))
                return lam * np.maximum(high, 0 if self.nonnegative else -low)
            return np.minimum(np.ldexp(lam, -(self.a + b)), _LARGEST)

    def codable(self, y: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """The indices of the signals that get a code.

        An atom that is below the range in these units may belong to the code if its penalty is also
        below the range. Then the signal gets no code.
        """
        range_of = wide_dtype(self.dtype), np.dtype(float)
        least = max(least_of(range_of[0]), math.sqrt(least_of(range_of[1])))  # D'D has squares
        lost = (self.sizes > 0) & (self.sizes < least)
        finite = np.isfinite(y).all(1) & np.isfinite(lam).all(1)
        return np.flatnonzero(finite & ~(lost & (lam < least)).any(1) if lost.any() else finite)

    def starts(self, rows: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        """The codes to start from, scaled; a code that leaves the range becomes 0."""
        if self.start is None:
            return None
        with np.errstate(over="ignore"):
            codes = np.ldexp(self.start[rows].astype(float), self.a - b[:, None])
        codes[~np.isfinite(codes).all(1)] = 0
        return codes

    def store(self, answers, rows, b, x, gap, residual, steps, margin, atoms=None) -> None:
        """Write scaled codes and numbers into the rows of the answers, in the caller's units.

        If atoms, (n, w) in ascending order, are given, x has the entries of these atoms alone; an
        unused slot has the entry 0.
        """
        with np.errstate(over="ignore"):
            codes = np.ldexp(x, b[:, None] - self.a).astype(self.dtype)
        gap = np.where(np.isfinite(codes).all(1), gap, np.inf)
        if atoms is None:
            answers.x[rows] = codes
        else:
            answers.put(rows, atoms, codes)
        fields = gap, np.ldexp(residual, b), steps, gap <= self.tol, margin
        for field, values in zip(answers[1:], fields):
            field[rows] = values


def share(work: Callable[[slice], None], n: int, chunk: int) -> None:
    """Call `work` on slices of at most `chunk` of n rows, on all cores."""
    rows = [slice(first, min(first + chunk, n)) for first in range(0, n, max(chunk, 1))]
    if len(rows) > 1:
        with threads() as team:
            team.share(work, rows)
    elif rows:
        work(rows[0])
