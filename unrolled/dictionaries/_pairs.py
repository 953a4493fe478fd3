"""Complex numbers as pairs (real, imaginary) of real numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike

__all__ = ["from_pairs", "to_pairs"]


def to_pairs(z: ArrayLike) -> Any:
    """Complex numbers, (..., n), as pairs (real, imaginary) of real numbers, (..., 2 n).

    If z is a numpy array, the result is a numpy array.

    Example:
        >>> ur.dictionaries.to_pairs(np.array([1 + 2j, 3j])).tolist()
        [1.0, 2.0, 0.0, 3.0]
    """
    xp: Any = jnp if isinstance(z, jax.Array) else np
    try:
        numbers: Any = z if xp is jnp else np.asarray(z)
    except ValueError:  # ragged
        numbers = np.array(None)
    if not (jnp.issubdtype(numbers.dtype, np.number) or numbers.dtype == bool):
        raise TypeError(
            f"to_pairs: z is {type(z).__name__}; expected an array of numbers, (..., n)"
        )
    if not numbers.ndim:
        raise ValueError("to_pairs: z has shape (); expected an array of numbers, (..., n)")
    pairs = xp.stack([numbers.real, numbers.imag], -1)
    return pairs.reshape(*numbers.shape[:-1], 2 * numbers.shape[-1])


def from_pairs(v: ArrayLike) -> Array:
    """Complex numbers, (..., n), from pairs of real numbers, (..., 2 n); the inverse of `to_pairs`.

    Raises:
        TypeError: the numbers are in half precision, which has no complex numbers.
        ValueError: the number of real numbers is odd.

    Example:
        >>> ur.dictionaries.from_pairs(jnp.array([1.0, 2.0, 0.0, 3.0])).tolist()
        [(1+2j), 3j]
    """
    v = checks.as_float(v, "v", "from_pairs")
    if not v.ndim or v.shape[-1] % 2:
        raise ValueError(f"from_pairs: v has shape {v.shape}; expected pairs, (..., 2 n)")
    if v.dtype.itemsize < 4:
        raise TypeError(f"from_pairs: v is {v.dtype}; expected float32 or float64")
    return _from_pairs(v)


@jax.jit
def _from_pairs(v: Array) -> Array:
    return lax.complex(v[..., 0::2], v[..., 1::2])


def complex_of(v: Any) -> Any:
    """The complex numbers of pairs, in numpy for a numpy array; half precision becomes float32."""
    if isinstance(v, np.ndarray):
        return v[..., 0::2] + 1j * v[..., 1::2]
    return _from_pairs(v.astype(jnp.float32) if v.dtype.itemsize < 4 else v)


@dataclass(frozen=True)
class InPairs:
    """A function of complex vectors as a function of pairs; equal for equal functions."""

    product: Callable[[Any], Any]

    def __call__(self, v: Any) -> Any:
        image = self.product(complex_of(v))
        return to_pairs(image if isinstance(image, jax.Array) else np.asarray(image))
