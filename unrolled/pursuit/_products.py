"""Products of many rows with any dictionary, by programs that serve any number of rows."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled.dictionaries import Operator

_TOGETHER = 32  # rows in one call of a program; zeros fill up the last call


def products(D: Operator, R: np.ndarray) -> np.ndarray:
    """R D in the dtype of D, (n, d), computed where the arrays of D are."""
    return _in_parts(_analysed, D, len(R), lambda rows: R[rows].astype(D.dtype), D.shape[1])


def columns(D: Operator, which: np.ndarray) -> np.ndarray:
    """Some atoms in rows, (k, m), in float64."""

    def units(rows: slice) -> np.ndarray:
        return (np.arange(D.shape[1]) == which[rows, None]).astype(float)

    with jax.enable_x64(True):
        wide = checks.cast(D, np.float64)
        return _in_parts(_synthesised, wide, len(which), units, D.shape[0])


@jax.jit
def _analysed(D: Operator, R: Array) -> Array:
    return R @ D


@jax.jit
def _synthesised(D: Operator, X: Array) -> Array:
    return (D @ X.T).T


def _in_parts(
    program: Callable, D: Any, n: int, rows_of: Callable[[slice], np.ndarray], width: int
) -> np.ndarray:
    results = [np.zeros((0, width), D.dtype)]
    for first in range(0, n, _TOGETHER):
        some = rows_of(slice(first, min(first + _TOGETHER, n)))
        padded = np.pad(some, ((0, _TOGETHER - len(some)), (0, 0)))
        with jax.default_matmul_precision("highest"):
            results.append(np.asarray(program(D, padded))[: len(some)])
    return np.concatenate(results)
