"""Numerical helpers that all floors share."""

import jax
import jax.numpy as jnp
from jax import Array

# Measured coherences and norms are rounded up by this factor, far above the rounding of float64
# sums: a denominator that is zero must not come out positive.
UP = 1 + 1e-9


def largest(x: Array) -> Array:
    """max(x), nan if x contains one: XLA's reduction on a CPU loses it in long arrays."""
    return jnp.where(jnp.isnan(x).any(), jnp.nan, jnp.max(x))


def widened(x: Array) -> Array:
    """x, in float32 if it is narrower: JAX has no decompositions in half precision."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def largest_singular_value(A: Array) -> Array:
    """norm(A, 2), rounded up a little so that 1 / norm^2 is a safe step."""
    m, d = A.shape
    wide = widened(A)
    with jax.default_matmul_precision("highest"):
        gram = wide @ wide.T if m <= d else wide.T @ wide
    largest = jnp.linalg.eigvalsh(gram)[-1]
    return jnp.sqrt(largest * (1 + 8 * float(jnp.finfo(A.dtype).eps))).astype(A.dtype)
