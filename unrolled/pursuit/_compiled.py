"""Linear algebra on a few active atoms, compiled by numba.

This file imports numba, so other files import this file only inside functions.
"""

import functools
import hashlib
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

# The compiler may reorder sums to use vector registers; NaN and inf keep their meaning.
# No Python code calls these functions, so they have no wrappers, which would take long to compile.
# A literal argument, such as k = 0, has a type of its own, and the callee would be compiled for it,
# too; np.int64(0) has the type of all other integers.
compiled = njit(  # type: ignore[call-overload]  # its stubs lack the last two options
    error_model="numpy",
    fastmath={"reassoc", "contract", "nsz", "arcp"},
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)


@functools.cache
def digest() -> str:
    """A digest of the source of this file."""
    source = pkgutil.get_data(__name__.rpartition(".")[0], "_compiled.py")
    return hashlib.sha256(source or b"").hexdigest()[:12]


def name(function: Callable) -> None:
    """Name a function by the source of this file, whose functions it calls.

    numba finds the machine code by the name and the file of a function alone, also after a change
    of the functions that it calls.
    """
    function.__qualname__ = f"{function.__name__}_{digest()}"


def cached(signatures: Any = None, **options: Any) -> Callable:
    """`njit` without the GIL; the machine code is cached on disk if a folder is writable."""

    def decorated(function: Callable) -> Callable:
        name(function)
        try:
            return njit(signatures, nogil=True, cache=True, **options)(function)
        except (RuntimeError, OSError):
            return njit(signatures, nogil=True, **options)(function)

    return decorated


@compiled
def subtract(out, b, A, rows, x, k, n):
    """out = b - sum_i x_i A[rows_i], with n entries and k rows."""
    i = 0
    if k >= 4:
        r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
        a0, a1, a2, a3 = x[0], x[1], x[2], x[3]
        for j in range(n):
            out[j] = b[j] - (a0 * A[r0, j] + a1 * A[r1, j] + a2 * A[r2, j] + a3 * A[r3, j])
        i = 4
    else:
        for j in range(n):
            out[j] = b[j]
    while i + 4 <= k:
        r0, r1, r2, r3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        a0, a1, a2, a3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(n):
            out[j] -= a0 * A[r0, j] + a1 * A[r1, j] + a2 * A[r2, j] + a3 * A[r3, j]
        i += 4
    while i < k:
        r0, a0 = rows[i], x[i]
        for j in range(n):
            out[j] -= a0 * A[r0, j]
        i += 1


@compiled
def swap_in(A, i, j, n):
    """Swap rows i and j, and columns i and j, of a matrix of n rows."""
    for c in range(n):
        A[i, c], A[j, c] = A[j, c], A[i, c]
    for c in range(n):
        A[c, i], A[c, j] = A[c, j], A[c, i]


@compiled
def clear(x, n):
    """x[:n] = 0; as numba compiles this slice, it compiles an error of shapes for seconds."""
    for i in range(n):
        x[i] = 0


@compiled
def copy(x, y):
    """x[:] = y, as `clear`."""
    for i in range(len(x)):
        x[i] = y[i]


@compiled
def border(A, M, u, order, k):
    """Write the code of atom k in the active atoms to u; return the squared residual."""
    clear(u, k)
    subtract(u, u, M, order, A[k], k, k)
    pivot = A[k, k]
    for i in range(k):
        u[i] = -u[i]
        pivot -= A[k, i] * u[i]
    return pivot


@compiled
def extend(M, u, pivot, k):
    """Extend the inverse by one atom."""
    for i in range(k):
        f = u[i] / pivot
        for j in range(k):
            M[i, j] += f * u[j]
        M[i, k] = M[k, i] = -f
    M[k, k] = 1 / pivot


@compiled
def factor(A, L, k, least):
    """Write the Cholesky factor of the first k rows of A to L; return whether it exists.

    It counts as missing if the pivot of a row is at most `least` times its diagonal entry.
    """
    for i in range(0, k, 4):
        full = i + 4 <= k
        for j in range(0, i if full else 0, 4):
            _block(A, L, i, j)
        for row in range(i, min(i + 4, k)):
            for j in range(i if full else 0, row + 1):
                value = A[row, j]
                for c in range(j):
                    value -= L[row, c] * L[j, c]
                if j < row:
                    L[row, j] = value / L[j, j]
                elif value > least * A[row, row]:
                    L[row, row] = np.sqrt(value)
                else:
                    return False
    return True


@compiled
def _block(A, L, i, j):
    """Four rows, from i, and four columns, from j, of a Cholesky factor: 16 sums in registers."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.0
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = 0.0
    for k in range(j):
        u0, u1, u2, u3 = L[i, k], L[i + 1, k], L[i + 2, k], L[i + 3, k]
        v0, v1, v2, v3 = L[j, k], L[j + 1, k], L[j + 2, k], L[j + 3, k]
        a0, a1, a2, a3 = a0 + u0 * v0, a1 + u0 * v1, a2 + u0 * v2, a3 + u0 * v3
        b0, b1, b2, b3 = b0 + u1 * v0, b1 + u1 * v1, b2 + u1 * v2, b3 + u1 * v3
        c0, c1, c2, c3 = c0 + u2 * v0, c1 + u2 * v1, c2 + u2 * v2, c3 + u2 * v3
        d0, d1, d2, d3 = d0 + u3 * v0, d1 + u3 * v1, d2 + u3 * v2, d3 + u3 * v3
    L[i, j], L[i, j + 1], L[i, j + 2], L[i, j + 3] = a0, a1, a2, a3
    L[i + 1, j], L[i + 1, j + 1], L[i + 1, j + 2], L[i + 1, j + 3] = b0, b1, b2, b3
    L[i + 2, j], L[i + 2, j + 1], L[i + 2, j + 2], L[i + 2, j + 3] = c0, c1, c2, c3
    L[i + 3, j], L[i + 3, j + 1], L[i + 3, j + 2], L[i + 3, j + 3] = d0, d1, d2, d3
    for row in range(i, i + 4):
        for column in range(j, j + 4):
            value = A[row, column] - L[row, column]
            for k in range(j, column):
                value -= L[row, k] * L[column, k]
            L[row, column] = value / L[column, column]


@compiled
def solve(L, x, k):
    """Overwrite x with the solution of L L' z = x."""
    for i in range(k):
        for j in range(i):
            x[i] -= L[i, j] * x[j]
        x[i] /= L[i, i]
    for i in range(k - 1, -1, -1):
        x[i] /= L[i, i]
        for j in range(i):
            x[j] -= L[i, j] * x[i]
