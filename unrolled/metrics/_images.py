"""Scores of images."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled._checks import Array
from unrolled._numbers import exponent, ldexp
from unrolled._program import program
from unrolled.metrics._decibels import decibels, energies, same_shape


def psnr(estimate: Array, reference: Array, peak: float = 1.0) -> Array:
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
    return -decibels((mean, j), (ldexp(top, -k) ** 2, k)).astype(estimate.dtype)
