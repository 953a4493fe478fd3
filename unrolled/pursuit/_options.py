"""Checks of the options that pursuits share."""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import ldexp, wide_dtype
from unrolled.dictionaries import Dictionary, spread
from unrolled.pursuit._grids import flat_code


def static_tol(tol: float, where: str, otherwise: str = "") -> float:
    """A tolerance as a number, checked to be positive and finite: any code is within inf.

    Example:
        >>> from unrolled.pursuit._options import static_tol
        >>> static_tol(1e-6, "caller")
        1e-06
    """
    number = _checks.as_number(tol, "tol", where)
    if not 0 < number < math.inf:
        raise ValueError(f"{where}: tol must be positive and finite{otherwise}, got {tol}")
    return number


def static_steps(max_steps: int, where: str) -> int:
    """The most steps as an integer, cut to what a counter of 32 bits holds and none reaches.

    Example:
        >>> from unrolled.pursuit._options import static_steps
        >>> static_steps(100, "caller")
        100
    """
    return min(_checks.as_index(max_steps, "max_steps", where), 2**30)


def per_atom(D: Dictionary, y: Array, value: ArrayLike, name: str, where: str) -> Array:
    """One number or one per atom; one per filter of a `Conv` is repeated over its positions."""
    each = spread(D, in_precision_of(y, flat_code(D, value), name, where))
    if each.shape not in ((), (D.shape[1],)):
        raise ValueError(f"{where}: {name} has shape {each.shape}; expected () or ({D.shape[1]},)")
    return each


def in_precision_of(y: Array, value: ArrayLike, name: str, where: str) -> Array:
    """`value` in the dtype of y, float32 at least, whose range it must not leave."""
    dtype = wide_dtype(y.dtype)
    _checks.in_range(value, dtype, name, where)
    return jnp.asarray(value, dtype)


def in_dtype(lam: Array, k: Array, dtype: DTypeLike, where: str) -> Array:
    """lam 2^k in the dtype; ValueError if a known one leaves the range."""
    found = ldexp(lam, k).astype(dtype)
    if _checks.is_concrete(found):
        near, at = np.asarray(lam, float), np.asarray(found, float)
        # Numbers below the least normal one of float32 or float64 are zero in most operations.
        within = (at >= float(jnp.finfo(lam.dtype).tiny)) & np.isfinite(at)
        lost = (near > 0) & np.isfinite(near) & ~within
        if lost.any():
            size = math.log10(near[lost].flat[0]) + int(k) * math.log10(2)
            raise ValueError(
                f"{where}: lam, about 1e{round(size)}, leaves the range of {np.dtype(dtype)}; try "
                "signals and atoms near 1, or float64"
            )
    return found
