"""Averages over the shifts of a strided grid, independent of where the grid lies."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array

_AT_ONCE = 8  # windows processed together, which bounds the memory


def shift_average(
    estimate: Callable[[Array], Array], picture: Array, *, kernel: int, stride: int
) -> Array:
    """The mean of an estimate over all stride^2 shifts of a strided grid.

    The picture is padded by reflection, so far that under every shift each pixel is covered by as
    many kernels as on an infinite grid. All windows have the same shape; each side is `kernel` plus
    a multiple of `stride`.

    Args:
        estimate: maps a window to an estimate of the same shape; traced once.
        picture: (H, W).
        kernel: side of the square kernels, in pixels.
        stride: step of the grid, in pixels, from 1 to `kernel`.

    Returns:
        (H, W).

    Raises:
        TypeError: kernel or stride is not an integer.
        ValueError: the picture is not (H, W), the stride is below 1 or above the kernel.

    Reference: Simon, Elad, "Rethinking the CSC model for natural images" (2019), who average the
    estimates of all shifts.

    Example:
        >>> from unrolled.models import shift_average
        >>> def block_means(window):  # over blocks of 2 x 2 pixels
        ...     H, W = window.shape
        ...     means = window.reshape(H // 2, 2, W // 2, 2).mean((1, 3))
        ...     return jnp.kron(means, jnp.ones((2, 2)))
        >>> picture = jnp.zeros((5, 5)).at[2, 2].set(16.0)
        >>> shift_average(block_means, picture, kernel=2, stride=2)[2].tolist()
        [0.0, 2.0, 4.0, 2.0, 0.0]
    """
    reach = _checks.as_index(kernel, "kernel", "shift_average", least=1) - 1

    def one(window: Array, shift: Array) -> Array:
        return lax.dynamic_slice(
            estimate(window), (reach - shift[0], reach - shift[1]), picture.shape
        )

    return jnp.mean(over_shifts(one, picture, kernel=kernel, stride=stride), 0)


def over_shifts(
    function: Callable[[Array, Array], Any], picture: Array, *, kernel: int, stride: int
) -> Any:
    """The results of `function(window, shift)` for all stride^2 shifts, stacked.

    The corner of a window is the pixel shift - (kernel - 1).
    """
    n, s = (
        _checks.as_index(value, name, "shift_average", least=1)
        for value, name in ((kernel, "kernel"), (stride, "stride"))
    )
    if picture.ndim != 2 or 0 in picture.shape:
        raise ValueError(f"shift_average: the picture has shape {picture.shape}; expected (H, W)")
    if s > n:
        raise ValueError(
            f"shift_average: stride {s} leaves gaps between kernels of {n}; expected at most {n}"
        )
    sides = [n + s * -(-(n - 1 + N - s) // s) for N in picture.shape]
    padded = jnp.pad(
        picture,
        [(n - 1, side + s - n - N) for side, N in zip(sides, picture.shape)],
        mode="reflect",
    )
    shifts = jnp.stack(jnp.meshgrid(jnp.arange(s), jnp.arange(s), indexing="ij"), -1).reshape(-1, 2)
    return lax.map(
        lambda shift: function(lax.dynamic_slice(padded, shift, sides), shift),
        shifts,
        batch_size=_AT_ONCE,
    )
