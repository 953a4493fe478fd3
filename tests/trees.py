"""What `chex` does not say of two trees of arrays."""

import jax
import numpy as np


def same(a, b, equal_nan=False):
    """True if two trees have one structure, dtypes, shapes and bits; a NaN equals none."""
    pairs = [map(np.asarray, pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b))]
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y, equal_nan) and x.tobytes() == y.tobytes()
        for x, y in pairs
    )
