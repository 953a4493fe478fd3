"""The frame of the solvers of many signals: rows scaled near 1, solved on the host, in threads.

Nothing here is compiled for a number of rows: scaling and packing are numpy's.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.threads import threads
from unrolled.dictionaries import Dictionary, Operator, as_dictionary, as_flat
from unrolled.pursuit import _problem
from unrolled.pursuit._problem import Grid, Pursuit


def operands_of_many(D: Dictionary, Y: Any, where: str) -> tuple[Operator, Any, np.dtype, Grid]:
    """Checked arguments: D, signals in rows, the dtype of the result and the grid of a code.

    The signals of a mapped file stay in the file if they are flat.
    """
    mapped = isinstance(Y, np.memmap) and Y.ndim > 1 and len(Y) > 0
    mapped = mapped and as_flat(D, Y[:1], 1)[1] is None
    some, grid = _problem.flat_signal(D, Y[:1] if mapped else Y, where, batch=1)
    D, some = as_dictionary(D, where), checks.on_host_or_device(some, "Y", where)
    if some.ndim != 2 or some.shape[1] != D.shape[0]:
        shape = Y.shape if mapped else some.shape
        raise ValueError(
            f"{where}: Y has shape {shape}; expected (batch, {D.shape[0]}), signals in rows"
            f"{checks.flattened('Y', shape)}"
        )
    return D, Y.reshape(len(Y), -1) if mapped else some, checks.common_dtype(D, some), grid


class Answers(NamedTuple):
    """The fields of `Pursuit` for many signals, as arrays of numpy."""

    x: np.ndarray  # (n, d)
    gap: np.ndarray  # (n,)
    residual: np.ndarray
    steps: np.ndarray
    converged: np.ndarray

    @classmethod
    def empty(cls, n: int, d: int, dtype: np.dtype) -> "Answers":
        """Zero codes whose gaps are infinite."""
        steps = np.zeros(n, jax.dtypes.canonicalize_dtype(int))
        gap, residual = np.full(n, np.inf, dtype), np.full(n, np.nan, dtype)
        return cls(aligned((n, d), dtype), gap, residual, steps, np.zeros(n, bool))


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at an address that lets JAX take the array on a CPU without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)


def on_the_host(
    host: Callable[..., Answers], operands: tuple, d: int, dtype: np.dtype, grid: Grid = None
) -> Pursuit:
    """The codes of the signals, computed by a function of numpy, also within a compiled program.

    Args:
        host: function that takes the operands as numpy arrays.
        operands: D, (m, d), the signals, (n, m), and further arrays or None.
        d: the length of a code.
        dtype: the dtype of the codes, the gaps and the residuals.
        grid: the form of a code, as `operands_of_many` returns it.
    """

    def answers(*operands):
        return host(
            *(v if v is None or isinstance(v, np.ndarray) else np.asarray(v) for v in operands)
        )

    if checks.is_concrete(operands):
        x, *rest = answers(*operands)
    else:
        n = len(operands[1])
        shapes = jax.tree.map(
            lambda v: jax.ShapeDtypeStruct((n, *v.shape[1:]), v.dtype), Answers.empty(0, d, dtype)
        )
        operands = tuple(v if v is None else jnp.asarray(v) for v in operands)
        x, *rest = jax.pure_callback(answers, shapes, *operands, vmap_method="sequential")
    if grid is not None:
        x = grid(x) if callable(grid) else x.reshape(-1, *grid)
    return Pursuit(*map(jax.device_put, (x, *rest)))


def rows_of(Y: np.ndarray, rows: slice, dtype: np.dtype, where: str) -> np.ndarray:
    """Some signals in float64; signals of a file come through float32 unless dtype is float64."""
    some = Y[rows]
    if isinstance(Y, np.memmap) and Y.dtype == np.float64 != dtype:
        some = checks.in_float32(np.array(some), f"Y[{rows.start}:{rows.stop}]", where)
    return some.astype(float)


def share(work: Callable[[slice], None], n: int, chunk: int) -> None:
    """Call `work` on slices of at most `chunk` of n rows, on all cores."""
    rows = [slice(first, min(first + chunk, n)) for first in range(0, n, chunk)]
    if len(rows) > 1:
        with threads() as team:
            team.share(work, rows)
    elif rows:
        work(rows[0])
