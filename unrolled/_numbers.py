"""Numerical helpers that every floor shares."""

import jax.numpy as jnp
from jax import Array


def largest(x: Array) -> Array:
    """max(x), and nan if x has one: the reduction of XLA on a CPU drops it in long arrays."""
    return jnp.where(jnp.isnan(x).any(), jnp.nan, jnp.max(x))


def widened(x: Array) -> Array:
    """x, in float32 if it is narrower: there are no decompositions in half precision."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)
