"""The average over the shifts of a strided grid: what makes an estimate independent of where the
grid lies.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array

_AT_ONCE = 8  # bounds the memory: so many windows are worked on together


def shift_average(estimate: Callable, picture: Array, *, kernel: int, stride: int) -> Array:
    """The mean of `estimate(window)` over all stride^2 shifts of the grid, (H, W).

    The picture is reflected at its borders so far that under every shift each pixel lies under as
    many kernels as on an infinite grid. All windows have one shape: sides of `kernel` + multiples
    of `stride`.

    Args:
        estimate: maps a window to an estimate of the same shape; traced once.
        picture: (H, W).

    Raises:
        ValueError: a picture that is not (H, W), a stride below 1 or above the kernel.
    """
    reach = kernel - 1

    def one(window, shift):
        return lax.dynamic_slice(
            estimate(window), (reach - shift[0], reach - shift[1]), picture.shape
        )

    return jnp.mean(over_shifts(one, picture, kernel=kernel, stride=stride), 0)


def over_shifts(function: Callable, picture: Array, *, kernel: int, stride: int) -> Array:
    """`function(window, shift)` for all stride^2 shifts, stacked; the corner of a window is pixel
    shift - (kernel - 1).
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
