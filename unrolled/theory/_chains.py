"""Chains of dictionaries on the host, their products, and the numbers given per layer."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import DTypeLike
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    Structured,
    as_chain,
    column_norms,
    dense,
    magnitudes,
)
from unrolled.theory._schedules import host_numbers

# A column of a product that cancels to below this share of its terms counts as zero, because it may
# be mostly rounding.
CANCELLED = 1e-6


def host_chain(
    Ds: Sequence[Dictionary], where: str, dtype: DTypeLike | None = np.float64
) -> tuple[Operator, ...]:
    """`as_chain` for host functions, cast to `dtype`; a traced dictionary is a TypeError."""
    _checks.on_host(Ds, where)
    Ds = as_chain(Ds, where)
    return Ds if dtype is None else _checks.cast(Ds, dtype)


def effective(Ds: Sequence[Dictionary]) -> tuple[Operator, np.ndarray]:
    """D_1 ... D_J and its column norms, 0 where a column cancels.

    The product is a matrix, except that one structured dictionary stays as it is.
    """
    D = _product(Ds)
    magnitude = [magnitudes(A) if isinstance(A, Structured) else np.abs(A) for A in Ds]
    size = _product(magnitude)
    norms, sizes = (np.asarray(column_norms(A)) for A in (D, size))
    return D, np.where(norms > CANCELLED * sizes, norms, 0.0)


def _product(Ds: Sequence[Dictionary]) -> Operator:
    """D_1 ... D_J as a matrix, multiplied by numpy; one structured dictionary stays as it is."""
    if len(Ds) == 1 and isinstance(Ds[0], Structured):
        return Ds[0]
    return jnp.asarray(functools.reduce(np.matmul, [np.asarray(dense(D)) for D in Ds]))


def of_length(values: Sequence, name: str, J: int, where: str) -> None:
    """Raise ValueError unless there is one value per layer."""
    if len(values) != J:
        raise ValueError(f"{where}: {name} has length {len(values)}; expected {J}, one per layer")


def layer_counts(values: Sequence[int], J: int, where: str, name: str = "sparsities") -> np.ndarray:
    """J non-negative integers, (J,)."""
    of_length(values, name, J, where)
    return np.array([_checks.as_index(s, name, where) for s in values])


def layer_numbers(values: Any, name: str, J: int, where: str) -> np.ndarray:
    """J non-negative floats, (J,), of one number for all layers or a sequence of J."""
    values = values if isinstance(values, list | tuple) or np.ndim(values) else (values,) * J
    of_length(values, name, J, where)
    return np.array([host_numbers(where, **{name: v})[0] for v in values])
