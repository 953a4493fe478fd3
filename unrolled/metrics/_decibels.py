"""Errors in decibels, at any scale."""

import math

import jax.numpy as jnp
import numpy as np

from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike, as_float, common_dtype
from unrolled._numbers import energy, exponent, ldexp, times_power, widened
from unrolled._program import program

# Ratios of magnitudes of two numbers up to this power of two have a square in float32.
_RATIO = 60


def energies(
    estimates: Array, X: Array, axis: int | None = None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The sums of (x^ - x)^2 and of x^2, each as (e, k) for e 2^(2 k)."""
    estimates, X = widened(estimates), widened(X)
    error, k = energy(estimates / 2 - X / 2, axis)  # a difference of halves cannot overflow
    return (error, k + 1), energy(X, axis)


def decibels(above: tuple[Array, Array], below: tuple[Array, Array]) -> Array:
    """10 log10 of a ratio of two such sums, also where the ratio is out of range."""
    (top, j), (bottom, k) = above, below
    within = jnp.clip(j - k, -_RATIO, _RATIO)
    ratio = ldexp(top / bottom, 2 * within)
    return 10 * jnp.log10(ratio) + 20 * math.log10(2) * (j - k - within).astype(ratio.dtype)


@program("axis")
def relative_error(estimates: Array, X: Array, axis: int | None = None) -> Array:
    """10 log10 of sum (x^ - x)^2 / sum x^2."""
    return decibels(*energies(estimates, X, axis)).astype(X.dtype)


def same_shape(a: ArrayLike, b: ArrayLike, where: str) -> tuple[Array, Array]:
    """Both as floats of one dtype (bytes would wrap around), checked to have one shape."""
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"{where}: shapes {np.shape(a)} and {np.shape(b)} differ; expected equal ones"
        )
    a, b = as_float(a, "the first argument", where), as_float(b, "the second argument", where)
    dtype = common_dtype(a, b)
    return a.astype(dtype), b.astype(dtype)


@checked
def psnr(estimate: ArrayLike, reference: ArrayLike, peak: float = 1.0) -> Array:
    """20 log10(peak / rms(estimate - reference)) in dB, over all entries; nothing is clipped.

    Args:
        estimate, reference: images or batches of them, of one shape.
        peak: the largest possible value.

    Returns:
        PSNR in dB, (); nan without entries.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> picture = jnp.full((4, 4), 0.5)
        >>> round(float(ur.metrics.psnr(picture + 0.1, picture)), 3)
        20.0
    """
    return _psnr(*same_shape(estimate, reference, "psnr"), peak)


@program()
def _psnr(estimate: Array, reference: Array, peak: ArrayLike) -> Array:
    (error, j), _ = energies(estimate, reference)
    top = jnp.asarray(peak, error.dtype)
    k = exponent(top)
    mean = error / estimate.size
    return -decibels((mean, j), (times_power(top, -k) ** 2, k)).astype(estimate.dtype)
