"""Augmentation of pictures, on the device."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array, Key


def crop_and_flip(key: Key, X: Array, pad: int = 4, flip: bool = True) -> Array:
    """Every picture shifted by up to `pad` pixels each way, and mirrored with probability 1/2.

    A picture is padded with zeros on all sides, and one of the (2 pad + 1)^2 crops of its own size
    is drawn. The draws depend on the key and on the number of pictures only: the same key treats
    masks `M[..., None]` as it treats their pictures. The padding is black unless a mean has been
    subtracted from X.

    Args:
        key: a key or a seed.
        X: (N, H, W, C), uint8, bool or floating-point.
        pad: pixels on each side; static.
        flip: mirror left and right; static.

    Returns:
        (N, H, W, C), in the dtype of X.

    Raises:
        TypeError: X of another dtype, a pad that is no integer, a key that is none.
        ValueError: X of another shape, a negative pad.

    Source: He et al., "Deep residual learning", CVPR 2016, Section 4.2.

    Example:
        >>> X = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
        >>> for row in ur.datasets.crop_and_flip(1, X, pad=1)[0, :, :, 0].tolist():
        ...     print(row)
        [0, 0, 0, 0]
        [0, 3, 2, 1]
        [0, 7, 6, 5]
        [0, 11, 10, 9]
    """
    where = "crop_and_flip"
    key, pad = _checks.as_key(key, where), _checks.as_index(pad, "pad", where)
    X = jnp.asarray(X)
    if X.ndim != 4:
        raise ValueError(f"{where}: X has shape {X.shape}; expected (N, H, W, C)")
    if not (X.dtype in (jnp.uint8, jnp.bool_) or jnp.issubdtype(X.dtype, jnp.floating)):
        raise TypeError(f"{where}: X is {X.dtype}; expected uint8, bool or floating-point pictures")
    return _crop_and_flip(key, X, pad, bool(flip))


@partial(jax.jit, static_argnames=("pad", "flip"))
def _crop_and_flip(key: Array, X: Array, pad: int, flip: bool) -> Array:
    corner_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(corner_key, (len(X), 2), 0, 2 * pad + 1)
    if flip:  # before the crop: XLA would fuse it into what comes after, and read it many times
        mirrored = jax.random.bernoulli(flip_key, shape=(len(X), 1, 1, 1))
        X = jnp.where(mirrored, X[:, :, ::-1], X)
    padded = jnp.pad(X, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return jax.vmap(lambda x, corner: lax.dynamic_slice(x, (*corner, 0), X.shape[1:]))(
        padded, corners
    )
