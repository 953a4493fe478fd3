"""Signals and codes of a `Conv` as they are: grids in, grids out; and flat vectors as before."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled.dictionaries import Conv, Dictionary

Grid = tuple[int, ...] | None


def flat_signal(D: Dictionary, y: ArrayLike, where: str, *, batch: int = 0) -> tuple[Any, Grid]:
    """y flat, and the grid of its code if y is a grid of D (else None).

    Args:
        D: (m, d).
        y: `D.signal_grid`, or `D.signal_shape` for one channel, after `batch` leading axes;
            anything else is returned as it is.
        where: the name of the caller, which messages begin with.
        batch: the number of leading axes.

    Example:
        >>> from unrolled.pursuit._grids import flat_signal
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 2, 2)), (3, 4))
        >>> y, grid = flat_signal(D, jnp.ones((3, 4)), "caller")
        >>> y.shape, grid
        ((12,), (2, 2, 3))
    """
    if not isinstance(D, Conv):
        return y, None
    shape = np.shape(y)
    channels, *spatial = D.signal_grid
    grids = [D.signal_grid] + ([tuple(spatial)] if channels == 1 and len(spatial) > 1 else [])
    if shape[batch:] not in grids:
        return y, None
    return _checks.as_float(y, "y", where).reshape(*shape[:batch], -1), D.code_grid


def flat_code(D: Dictionary, x: ArrayLike) -> ArrayLike:
    """A code (or penalties) of shape `D.code_grid` flat; anything else as it is."""
    if isinstance(D, Conv) and np.shape(x)[-len(D.code_grid) :] == D.code_grid:
        x = jnp.asarray(x)
        return x.reshape(*x.shape[: -len(D.code_grid)], math.prod(D.code_grid))
    return x


def on_grid(found: Any, grid: Grid) -> Any:
    """A result whose codes have the shape of `grid`, if there is one."""
    if grid is None:
        return found
    return found._replace(x=found.x.reshape(*found.x.shape[:-1], *grid))
