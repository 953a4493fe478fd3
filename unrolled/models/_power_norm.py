"""The norm of a convolutional dictionary by power iteration, for step sizes."""

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array
from unrolled.dictionaries import Conv


def power_norm(D: Conv, steps: int) -> Array:
    """norm(D, 2) from below, by power iteration from a fixed draw.

    The gradient is that of norm(D x) at the last x, which is that of the norm if x has converged.
    """
    fixed = lax.stop_gradient(D)

    def step(_: int, x: Array) -> Array:
        x = (fixed @ x) @ fixed
        return x / jnp.linalg.norm(x)

    start = jax.random.normal(jax.random.key(0), D.shape[1:], D.filters.dtype)
    return jnp.linalg.norm(D @ lax.fori_loop(0, steps, step, start))
