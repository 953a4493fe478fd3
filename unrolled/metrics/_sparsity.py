"""How sparse codes and features are."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import exponent, ldexp, widened
from unrolled._program import program


class Sparsity(NamedTuple):
    """Three measures in [0, 1], 1 for a zero sample, averaged over the samples."""

    zeros: Array  # () share of the entries that are zero
    below: Array  # () share of the entries that are small beside the largest of their sample
    hoyer: Array  # () Hoyer's measure: 0 if all magnitudes are equal, 1 if one is not zero


def sparsity(x: Array, fraction: ArrayLike = 0.01) -> Sparsity:
    r"""The sparsity of codes or features, per sample and averaged over the samples.

    For a sample x with n entries: the share of x_i = 0, the share of abs(x_i) <= fraction max
    abs(x_j), which also judges activations such as ELU and Mish, whose outputs are hardly ever
    zero, and Hoyer's measure

    .. math:: \frac{\sqrt n - \|x\|_1 / \|x\|_2}{\sqrt n - 1}.

    A sample of zeros counts as 1 in all three.

    Args:
        x: (N, ...), one sample for each index of the leading axis, with two entries or more.
        fraction: of the largest magnitude of the sample, in [0, 1].

    Returns:
        Sparsity; all its measures are nan if an entry is NaN or infinite.

    Raises:
        TypeError: complex or non-numeric x.
        ValueError: x of another shape or without samples; a known fraction outside [0, 1].

    Source: Hoyer, "Non-negative matrix factorization with sparseness constraints", JMLR 2004. The
    share below a fraction depends on the largest entry alone: one outlier makes a sample sparse.

    Example:
        >>> x = jnp.array([[4.0, 0.0, 0.0, 0.0], [1.0, 1.0, -1.0, 1e-3]])
        >>> [round(float(measure), 3) for measure in ur.metrics.sparsity(x)]
        [0.375, 0.5, 0.634]
    """
    where = "sparsity"
    x = _checks.as_float(x, "x", where)
    n = math.prod(x.shape[1:])
    if x.ndim < 2 or len(x) == 0 or n < 2:
        raise ValueError(
            f"{where}: x has shape {x.shape}; expected (N, ...), samples with two entries or more"
        )
    _checks.nonnegative(fraction, "fraction", where)
    if _checks.is_concrete(fraction) and np.any(np.asarray(fraction) > 1):
        raise ValueError(f"{where}: fraction must be at most 1, got {fraction}")
    return _sparsity(x, fraction)


@program()
def _sparsity(x: Array, fraction: ArrayLike) -> Sparsity:
    x = widened(x).reshape(len(x), -1)
    finite = jnp.isfinite(x).all()
    size = jnp.abs(ldexp(x, -exponent(x, 1)))  # no square leaves the range
    small = size <= jnp.asarray(fraction, x.dtype) * size.max(1, keepdims=True)
    measures = ((x == 0).mean(1, dtype=x.dtype), small.mean(1, dtype=x.dtype), _hoyer(size))
    return Sparsity(*(jnp.where(finite, jnp.mean(measure), jnp.nan) for measure in measures))


def _hoyer(size: Array) -> Array:
    """Hoyer's measure of the rows of magnitudes (N, n)."""
    l1, l2 = size.sum(1), jnp.sqrt((size**2).sum(1))
    root = math.sqrt(size.shape[1])
    measure = (root - l1 / jnp.where(l2 == 0, 1, l2)) / (root - 1)
    return jnp.where(l2 == 0, 1, jnp.clip(measure, 0, 1))  # rounding may leave [0, 1]
