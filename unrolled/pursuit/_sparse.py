"""Codes as the indices and the values of their nonzeros."""

from typing import Any

import jax
import numpy as np

from unrolled._base.checks import Array
from unrolled._base.results import Result
from unrolled.dictionaries import Dictionary

__all__ = ["SparseCodes"]


class SparseCodes(Result):
    """n codes by their nonzeros, with the width of the code that has most nonzeros.

    For a dictionary D, `D @ codes` is the signals D x of all codes, (n, m).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> codes = ur.pursuit.lasso_batch(D, (D[:, 3:5] + D[:, 20:22]).T, 0.1, sparse=True).x
        >>> codes.indices.tolist(), codes.counts.tolist(), codes.shape
        ([[3, 20], [4, 21]], [2, 2], (2, 32))
        >>> bool((codes.scipy().toarray() == codes.dense()).all()), (D @ codes).shape
        (True, (2, 16))
    """

    indices: Array  # (n, width), ascending in each code; 0 in unused slots
    values: Array  # (n, width); 0 in unused slots
    counts: Array  # (n,) the numbers of nonzeros
    d: int  # the length of a code

    __array_ufunc__ = None  # an array of numpy on the left defers to __rmatmul__

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self.counts), int(self.d)

    def dense(self) -> Array:
        """The codes, (n, d)."""
        return jax.device_put(self.scipy().toarray())

    def scipy(self) -> Any:
        """The codes as a `scipy.sparse.csr_array`, (n, d); half precision becomes float32."""
        from scipy import sparse

        counts, values = np.asarray(self.counts), np.asarray(self.values)
        used = np.arange(values.shape[1]) < counts[:, None]
        values = values.astype(np.float32) if values.dtype.itemsize < 4 else values
        starts = np.concatenate([[0], np.cumsum(counts)])
        return sparse.csr_array((values[used], np.asarray(self.indices)[used], starts), self.shape)

    def __rmatmul__(self, D: Dictionary) -> Array:
        if np.shape(D)[-1:] != (self.d,):
            raise ValueError(f"D @ codes: D has shape {np.shape(D)}; expected (m, {self.d})")
        if isinstance(D, np.ndarray | jax.Array):
            return jax.device_put((self.scipy() @ np.asarray(D).T).astype(self.values.dtype))
        return (D @ self.dense().T).T


class Collected:
    """Rows of dense codes, which are kept as the indices and the values of their nonzeros."""

    def __init__(self, n: int, d: int, dtype: np.dtype):
        self.n, self.d, self.dtype = n, d, dtype
        self.parts: list[tuple[np.ndarray, ...]] = []

    def __setitem__(self, rows: np.ndarray, codes: np.ndarray) -> None:
        self.add(rows, np.broadcast_to(np.arange(self.d), codes.shape), codes)

    def add(self, rows: np.ndarray, indices: np.ndarray, values: np.ndarray) -> None:
        """Set rows by some of their entries, in ascending order."""
        used = values != 0
        self.parts.append((rows, used.sum(1), indices[used].astype(np.int32), values[used]))

    def codes(self) -> SparseCodes:
        """The codes of all rows; a row that was not set is zero."""
        width = max((int(counts.max(initial=0)) for _, counts, *_ in self.parts), default=0)
        indices, values = np.zeros((self.n, width), np.int32), np.zeros((self.n, width), self.dtype)
        total = np.zeros(self.n, np.int32)
        while self.parts:
            rows, counts, own, entries = self.parts.pop()
            used = np.arange(width) < counts[:, None]
            for whole, part in ((indices, own), (values, entries)):
                block = np.zeros(used.shape, whole.dtype)
                block[used] = part
                whole[rows] = block
            total[rows] = counts
        put = jax.device_put
        return SparseCodes(put(indices), put(values), put(total), self.d)


def check_out(out: Any, shape: tuple[int, int], dtype: np.dtype, where: str) -> np.ndarray:
    """The array to write codes into, such as a memmap.

    Raises:
        TypeError, ValueError: out is not a writable numpy array of this shape and dtype.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{where}: out is {type(out).__name__}; expected a numpy array")
    if out.shape != shape or out.dtype != dtype or not out.flags.writeable:
        kind = "" if out.flags.writeable else ", not writable"
        raise ValueError(
            f"{where}: out has shape {out.shape} and dtype {out.dtype}{kind}; expected {shape}, "
            f"{np.dtype(dtype)}"
        )
    return out
