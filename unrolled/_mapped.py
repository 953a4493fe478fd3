"""Arrays of files that are mapped into memory: rows are read when a sampler draws them.

A draw inside a compiled step calls back to the host, in each process for its own devices alone.
There a fault cannot be raised: the other processes would wait for this one in their next exchange.
The rows are NaN then, and the sampler keeps the fault for those who ask on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from unrolled import _checks, _text
from unrolled._checks import Array, DTypeLike, Key

# Larger arrays (2 GiB) are not read into memory.
LARGEST_BYTES = 2**31
_ARRAY = jax.Array | np.ndarray


class Rows:
    """The rows of a mapped array, in a dtype; their values are not read before they are asked for.

    Args:
        array: (rows, n).
        dtype: of what is read.
        name: what messages begin with.
        first: the index of the first row in the file.
    """

    def __init__(self, array: np.ndarray, dtype: DTypeLike, name: str, first: int = 0):
        self.array, self.dtype, self.name, self.first = array, np.dtype(dtype), name, first
        self.shape = array.shape
        self.fault: str | None = None  # of the first draw that failed

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.read(np.arange(len(self))), dtype)

    def __getitem__(self, rows: Any) -> Any:
        """Some rows: unread those of a slice, drawn those of an array of indices."""
        if isinstance(rows, slice):
            first = range(self.first, self.first + len(self))[rows].start
            return Rows(self.array[rows], self.dtype, self.name, first)
        answer = jax.ShapeDtypeStruct((*rows.shape, *self.shape[1:]), self.dtype)

        def call(rows: Array) -> Array:
            return jax.pure_callback(self._drawn, answer, rows, vmap_method="sequential")

        # Each device reads its own rows, also those of axes that the compiler partitions.
        mesh = jax.sharding.get_abstract_mesh()
        pairs = zip(mesh.axis_names, mesh.axis_types)
        if others := {name for name, kind in pairs if kind != AxisType.Manual}:
            call = jax.shard_map(
                call, axis_names=others, in_specs=P(), out_specs=P(), check_vma=False
            )
        return call(rows)

    def astype(self, dtype: DTypeLike) -> "Rows":
        return Rows(self.array, dtype, self.name, self.first)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The values of some rows.

        Raises:
            ValueError: NaN or infinite values, or what float32 loses; a file that was cut.
        """
        root: Any = self.array
        while isinstance(root.base, np.ndarray):
            root = root.base
        length, whole = root.base.size(), root.offset + root.nbytes
        if length < whole:  # reading behind the end, the system would end this process
            raise ValueError(f"{self.name} has {length} bytes, {whole} when it was opened")
        values, info = np.asarray(self.array[rows]), np.finfo(self.dtype)
        ends = values.max(1, initial=0), values.min(1, initial=0)
        size = np.maximum(*(np.abs(end.astype(float)) for end in ends))
        usual = (size == 0) | ((size >= info.tiny / info.eps) & (size <= info.max))
        if not usual.all():
            self._check(values, rows)
        return values.astype(self.dtype, copy=False)

    def _check(self, values: np.ndarray, rows: np.ndarray) -> None:
        """Raise ValueError for rows that are not finite, or that float32 loses."""
        lost = np.flatnonzero(~np.isfinite(values).all(1))
        what, then = "has NaN or infinite entries", ""
        if self.dtype == np.float32 and not len(lost):
            lost, what = _checks.narrowed(values)[1], "leaves the range of float32"
            then = ", where entries become 0 or infinite; try numbers near 1"
        if len(lost):
            where = _text.in_rows(np.unique(rows[lost]) + self.first)
            raise ValueError(f"{self.name} {what}{where}{then}")

    def _drawn(self, rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        try:
            return self.read(rows)
        except ValueError as fault:
            self.fault = self.fault or str(fault)
            return np.full((*rows.shape, *self.shape[1:]), np.nan, self.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Draws:
    """A sampler of arrays of which some are `Rows`."""

    sample: Callable[[Key], Any]
    files: tuple[Rows, ...] = field(metadata=dict(static=True))

    def __call__(self, key: Key) -> Any:
        batch = self.sample(key)
        if _checks.is_concrete(batch):
            check_draws(self, batch)
        return batch

    def check(self) -> None:
        """Raise ValueError if a draw so far has met rows that cannot be used."""
        for file in self.files:
            if file.fault is not None:
                raise ValueError(file.fault)


def as_argument(sample: Any) -> Any:
    """A sampler as a pytree: the arrays of its leaves are not compiled into a program of it.

    An array that a function holds becomes a constant of the program, copied by each pass of the
    compiler and kept with what is compiled: gigabytes for signals of one's own.
    """
    leaves, tree = jax.tree.flatten(sample)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, _ARRAY) and leaf.ndim}

    def draw(arrays: dict[int, Array], key: Key) -> Any:
        return jax.tree.unflatten(tree, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])(key)

    return jax.tree_util.Partial(draw, arrays)


def drawing(sample: Any) -> Callable[[Key], Any]:
    """The sampler, compiled."""
    return partial(jax.jit(lambda sample, key: sample(key)), as_argument(sample))


def check_draws(sample: Any, batch: Any) -> None:
    """Raise ValueError if a sampler reads files, and met a fault in this batch or before it."""
    if isinstance(sample, Draws):
        jax.block_until_ready(batch)
        sample.check()


def as_data(Y: Any, X: Any, where: str) -> tuple[Any, Any]:
    """Signals and their codes, checked: arrays of JAX, and `Rows` of what is mapped.

    Raises:
        TypeError, ValueError: as `_checks.as_signals` and `_checks.as_rows`, for all but the values
            of what is mapped.
    """
    Y = _as_rows(_checks.as_signals, Y, "Y", where)
    return Y, jax.tree.map(lambda codes: _as_rows(_checks.as_rows, codes, "X", where, len(Y)), X)


def _as_rows(check: Any, array: Any, name: str, where: str, n: int | None = None) -> Any:
    mapped = isinstance(array, np.memmap) and array.filename is not None  # copies have no file
    if not mapped and not isinstance(array, Rows):
        return check(array, name, where, *(() if n is None else (n,)))
    _checks.check_rows(array.shape, name, where, n)
    most = np.iinfo(jax.dtypes.canonicalize_dtype(int)).max
    if len(array) > most:
        raise ValueError(f"{where}: {name} has {len(array)} rows; JAX draws indices up to {most}")
    if not mapped:
        return array
    like = check(np.zeros((1, array.shape[1]), array.dtype), name, where)
    return Rows(array, like.dtype, f"{where}: {array.filename}")
