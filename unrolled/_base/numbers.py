"""Numerical helpers for all packages: sums of squares at any scale, and maxima that keep nan.

A square leaves the range of a dtype long before its root does. The helpers here divide by a power
of two near the largest magnitude first, and multiply by this power at the end. Both operations are
exact, so at ordinary scales no bit changes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base.checks import Array, ArrayLike, DTypeLike

Axes = int | tuple[int, ...] | None

# Measured coherences and norms are rounded up by this factor, which is far above the rounding of
# float64 sums: rounding must not make a zero denominator positive.
UP = 1 + 1e-9


def up(*values: Any) -> float:
    """`UP`, or 1 + 8 eps if one of the values is an array whose dtype rounds more coarsely."""
    dtypes = [value.dtype for value in values if hasattr(value, "dtype")]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return max([UP, *(1 + 8 * float(jnp.finfo(dtype).eps) for dtype in floats)])


def largest(x: Array, axis: Axes = None) -> Array:
    """max(x), nan if x contains nan: XLA's reduction on a CPU loses nan in long arrays."""
    return jnp.where(jnp.isnan(x).any(axis), jnp.nan, jnp.max(x, axis))


def at_least(x: Array, floor: ArrayLike) -> Array:
    """max(x, floor), but nan if x is nan: XLA's maximum fused with a sum loses nan on a CPU."""
    return jnp.where(x < floor, jnp.asarray(floor, x.dtype), x)


def widened(x: Array) -> Array:
    """x, in float32 if its dtype is narrower: JAX has no decompositions in half precision."""
    return x.astype(wide_dtype(x.dtype))


def wide_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype, or float32 if the dtype is narrower."""
    return np.dtype(dtype if np.dtype(dtype).itemsize >= 4 else np.float32)


@partial(jax.jit, static_argnames="axis")
def exponent(x: Array, axis: Axes = None) -> Array:
    """k with 2^k <= max abs(x) < 2^(k + 1), an integer; 0 where the maximum is 0 or infinite.

    If an axis is given, the result keeps the axis, with length 1. Both 2^k and 2^-k are normal
    numbers of the dtype of x, so at the upper end of the range k may be one less than stated above.
    k carries no gradient.
    """
    most = -int(jnp.finfo(x.dtype).minexp)
    x = lax.stop_gradient(widened(x))
    size = jnp.max(jnp.abs(x), axis, keepdims=axis is not None, initial=0)
    integer, digits, bias = _layout(x.dtype)
    k = (lax.bitcast_convert_type(size, integer) >> digits) - bias
    normal = (k > -bias) & (k <= bias)
    k = lax.select(normal, lax.clamp(integer(-most), k, integer(most)), jnp.zeros_like(k))
    return k.astype(jnp.int32)


def any_nonzero(x: Array, axis: int) -> Array:
    """(x != 0).any(axis), also for subnormal numbers, which XLA takes for 0 on most devices."""
    wide = widened(x)
    integer = _layout(wide.dtype)[0]
    bits = lax.bitcast_convert_type(wide, integer) & np.iinfo(integer).max  # without the sign
    return jnp.max(bits, axis) > 0  # XLA would compare single entries as floats


@jax.jit
def times_power(x: Array, k: Array) -> Array:
    """x 2^k, where k or -k is from `exponent`; for sums of exponents use `ldexp`.

    This function needs half as many operations as `ldexp`.
    """
    wide = widened(x)
    return (wide * power_of_two(k, wide.dtype)).astype(x.dtype)


@jax.jit
def ldexp(x: Array, k: Array) -> Array:
    """x 2^k, exact unless the result leaves the range; |k| < 2^8, or 2^11 in float64.

    jnp.ldexp computes a general power, which is slower and not exact everywhere.
    """
    wide, half = widened(x), k >> 1  # neither factor leaves the range before the result does
    first, second = (power_of_two(part, wide.dtype) for part in (half, k - half))
    return (wide * first * second).astype(x.dtype)


def power_of_two(k: Array, dtype: DTypeLike) -> Array:
    """2^k, exact if 2^k is a normal number of the dtype."""
    wide = wide_dtype(dtype)
    integer, digits, bias = _layout(wide)
    k = lax.clamp(integer(1 - bias), jnp.asarray(k, integer), integer(bias))
    return lax.bitcast_convert_type((k + bias) << digits, wide).astype(dtype)


def _layout(dtype: DTypeLike) -> tuple[type, int, int]:
    """The integer type of the same width, the bits of the mantissa, the bias of the exponent."""
    return (np.int64, 52, 1023) if np.dtype(dtype).itemsize == 8 else (np.int32, 23, 127)


def mean_norm(X: np.ndarray) -> float:
    """The mean norm of the rows, in float64."""
    k = np.frexp(np.abs(X).max(initial=0))[1]
    scaled = np.ldexp(X.astype(float), -k)
    return float(np.ldexp(np.mean(np.linalg.norm(scaled, axis=1)), k))


def held_back(n: int) -> int:
    """How many of n signals are held back for validation: a tenth, from 1 to 1,000."""
    return min(max(1, n // 10), 1000)


@partial(jax.jit, static_argnames="axis")
def energy(x: Array, axis: Axes = None) -> tuple[Array, Array]:
    """(e, k) with sum(x^2) = e 2^(2 k); e neither overflows nor underflows."""
    k = exponent(x, axis)
    near = times_power(widened(x), -k)
    # The same numbers. Without this line, XLA computes (x c)^2 of a known x as x^2 c^2, and x^2 may
    # leave the range.
    near = lax.reduce_precision(near, jnp.finfo(near.dtype).nexp, jnp.finfo(near.dtype).nmant)
    e = jnp.sum(near**2, axis)
    return e, k.reshape(e.shape)


def host_exponent(x: np.ndarray, axis: Axes = None) -> Any:
    """`exponent` of a numpy array, in numpy."""
    high, low = (f(x, axis, keepdims=axis is not None, initial=0) for f in (np.max, np.min))
    size = np.maximum(high, -low)
    return np.where((size > 0) & np.isfinite(size), np.frexp(size)[1] - 1, 0)


def host_energy(x: np.ndarray, axis: Axes = None) -> tuple[Any, Any]:
    """`energy` of a numpy array, in numpy."""
    k = host_exponent(x, axis)
    near = np.asarray(np.ldexp(x, -k))
    e = np.sum(np.square(near, out=near), axis, dtype=float)
    return e, k.reshape(np.shape(e))


@partial(jax.jit, static_argnames="axis")
def norm(x: Array, axis: Axes = None) -> Array:
    """sqrt(sum(x^2)), correct if the root is in the range of the dtype; its gradient at 0 is 0."""
    e, k = energy(x, axis)
    zero = e == 0
    root = jnp.sqrt(lax.select(zero, jnp.ones_like(e), e))
    root = lax.select(zero, jnp.zeros_like(e), root)
    return times_power(root, k).astype(x.dtype)


@jax.jit
def largest_singular_value(A: Array) -> Array:
    """norm(A, 2), rounded up a little so that 1 / norm^2 is a safe step."""
    m, d = A.shape
    k = exponent(A)
    wide = times_power(widened(A), -k)
    with jax.default_matmul_precision("highest"):
        gram = wide @ wide.T if m <= d else wide.T @ wide
    top = jnp.linalg.eigvalsh(gram)[-1]
    return times_power(jnp.sqrt(top * (1 + 8 * float(jnp.finfo(A.dtype).eps))), k).astype(A.dtype)


def pseudo_inverse(A: Array) -> Array:
    """The pseudo-inverse A^+, of shape (d, m).

    Singular values up to 10 min(m, d) eps times the largest count as rounding errors. JAX cuts at
    10 max(m, d) eps times the largest: 6 % of the largest for 50,000 atoms in float32.
    """
    return jnp.linalg.pinv(A, rtol=10 * min(A.shape) * float(jnp.finfo(A.dtype).eps))
