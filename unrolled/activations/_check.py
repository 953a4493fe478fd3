"""Measured constants of activations, against those that they claim."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.activations._activation import Activation

# Magnitudes of the grid: even steps near 0, where activations bend, and steps of .2 % from the
# bends of steeply scaled ones to where a tail shows that it is unbounded.
_EVEN, _FROM, _TO, _POINTS = 20.0, 1e-8, 1e6, 20_000
# Values per call of the function.
_CHUNK = 4096
# Rounding of a value, in eps times its size; and what a constant may be exceeded by, relatively.
_ROUNDING, _SLACK = 16, 1e-9


class Constants(NamedTuple):
    """The constants of an activation as a grid shows them; the true ones are at least these."""

    tail_lipschitz: float  # L_h, of the part beside ReLU
    tail_sup: float  # beta, the largest magnitude of it
    tail_oscillation: float  # its largest less its least value
    relu_gap: float  # the largest distance from ReLU
    line_oscillation: float  # the largest less the least difference from ReLU


def check(act: Activation) -> Constants:
    """Measure the constants of an activation on a dense grid, and refuse it if they are larger.

    The grid has 80,001 points up to magnitudes of 1e6, or of `reach`, in float64. The theory
    trusts the constants of an `Activation`: `theory.activation_schedule` checks one of your own.
    Results are cached.

    Returns:
        Constants, as measured.

    Raises:
        TypeError: not an Activation.
        ValueError: a measured constant exceeds the claimed one, rho(x) is not x on x >= 0 or is
            positive on x <= 0 although the record says so, or a value is not finite or has another
            shape than x. The message names the constant, the claim and the measurement.

    Not claimed: that constants which pass are true. What lies between two points is not seen.

    Example:
        >>> round(ur.activations.check(ur.activations.silu).relu_gap, 6)
        0.278465
    """
    if not isinstance(act, Activation):
        raise TypeError(f"check: expected an Activation, whose constants are known; got {act!r}")
    try:
        return _checked(act)
    except TypeError as error:  # parameters that do not hash
        if "unhashable" not in str(error):
            raise
        return _checked.__wrapped__(act)


@functools.lru_cache(maxsize=256)
def _checked(act: Activation) -> Constants:
    x = _grid(act.reach)
    rho = _values(act, x)
    eps = float(jnp.finfo(rho.dtype).eps)
    rho = rho.astype(np.float64)
    tolerance = _ROUNDING * eps * (np.abs(x) + np.abs(rho))
    tail, off = x <= 0, rho - np.maximum(x, 0)
    slopes = (np.abs(np.diff(rho)) - tolerance[1:] - tolerance[:-1]) / np.diff(x)
    measured = Constants(
        max(float(slopes[tail[1:]].max()), 0.0),
        float((np.abs(rho) - tolerance)[tail].max()),
        _spread(rho, tolerance, tail),
        max(float((np.abs(off) - tolerance).max()), 0.0),
        _spread(off, tolerance, slice(None)),
    )
    for name, value in measured._asdict().items():
        claimed = getattr(act, name)
        if not value <= claimed * (1 + _SLACK):
            raise ValueError(f"check: {act} claims {name} = {claimed:.9g}, measured {value:.9g}")
    for name, excess, at in (
        ("identity_on_positives", np.abs(off) - tolerance, ~tail | (x == 0)),
        ("nonpositive_tail", rho - tolerance, tail),
    ):
        if getattr(act, name) and (excess[at] > 0).any():
            k = np.flatnonzero(at)[int(np.argmax(excess[at]))]
            raise ValueError(
                f"check: {act} claims {name} = True, measured rho({x[k]:.9g}) = {rho[k]:.9g}"
            )
    return measured


def _spread(values: np.ndarray, tolerance: np.ndarray, at: np.ndarray | slice) -> float:
    """sup - inf, less the rounding of both."""
    return max(float((values - tolerance)[at].max() - (values + tolerance)[at].min()), 0.0)


def _grid(reach: float) -> np.ndarray:
    if not reach > 0:
        raise ValueError(f"check: reach must be positive, got {reach}")
    even = np.linspace(0, min(_EVEN, reach), _POINTS + 1)
    least = min(_FROM, reach * _FROM)
    size = np.concatenate([even, np.geomspace(least, min(_TO, reach), _POINTS)])
    return np.unique(np.concatenate([-size, size]))


def _values(act: Activation, x: np.ndarray) -> np.ndarray:
    # Under an outer jit too the values are computed now.
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        parts = []
        for part in np.array_split(x, math.ceil(len(x) / _CHUNK)):
            values = act(jnp.asarray(part))
            if np.shape(values) != part.shape or not jnp.issubdtype(values.dtype, jnp.floating):
                raise ValueError(
                    f"check: {act} maps float64 {part.shape} to {values.dtype} "
                    f"{np.shape(values)}; expected floats of the same shape"
                )
            parts.append(np.asarray(values))
    rho = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(rho))
    if len(bad):
        raise ValueError(f"check: {act} is {rho[bad[0]]} at x = {x[bad[0]]:.9g}")
    return rho
