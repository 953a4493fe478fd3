"""The proximal map of |x|^p with 0 < p <= 1: soft thresholding and its nonconvex kin."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import widened
from unrolled._program import program
from unrolled.activations._thresholds import shrink

# Newton's steps: from the right of the root of a convex function they fall to it. The slowest p,
# near 1, takes 6 to the rounding of float64.
_NEWTON = 8


@checked
def power_threshold(v: ArrayLike, theta: ArrayLike, p: float) -> Array:
    r"""The proximal map of theta norm(x, p)^p, entry by entry.

    .. math:: \arg\min_x (x - v)^2 / 2 + \theta |x|^p, \qquad 0 < p \le 1.

    It is soft thresholding for p = 1. For p < 1 it is 0 up to (2 - p) / (2 (1 - p)) s, jumps to s =
    (2 theta (1 - p))^(1 / (2 - p)), and approaches v. For p = 1/2 and 2/3 it is in closed form, for
    any other p from Newton's method to the rounding of the dtype. At the jump, where both sides are
    minima, it is 0.

    Args:
        v: any shape.
        theta: threshold, broadcast against `v`; non-negative.
        p: a static number in (0, 1].

    Returns:
        The shape of v and theta, broadcast.

    Raises:
        TypeError: p is traced or not a number.
        ValueError: p outside (0, 1], or a known theta that is negative or NaN.

    Reference: Krishnan, Fergus (2009) for 1/2 and 2/3; Xu, Chang, Xu, Zhang (2012) for 1/2.

    Example:
        >>> print(ur.activations.power_threshold(jnp.array([-3.0, 1.4, 2.0]), 1.0, 0.5).round(2))
        [-2.7   0.    1.61]
    """
    p = as_power(p, "power_threshold")
    if p == 1:
        return shrink(v, theta)
    _checks.nonnegative(theta, "theta", "power_threshold")
    v = _checks.as_float(v, "v", "power_threshold")
    _checks.broadcast("power_threshold", v=v, theta=theta)
    return _power_threshold(v, theta, p)


@program("p")
def _power_threshold(v: Array, theta: ArrayLike, p: float) -> Array:
    wide = widened(v)
    theta = jnp.asarray(theta, wide.dtype)
    some = theta > 0
    least = (2 * (1 - p) * jnp.where(some, theta, 1)) ** (1 / (2 - p))
    # In units of the least magnitude that is not 0, one function of one variable is left.
    c, edge = p / (2 * (1 - p)), (2 - p) / (2 * (1 - p))
    far = (c / float(jnp.finfo(wide.dtype).eps)) ** (1 / (2 - p))  # from there on x is w, rounded
    w = jnp.abs(wide) / least
    x = jnp.sign(wide) * least * _root_of(p)(jnp.clip(w, edge, far))
    x = jnp.where(w <= edge, 0 * wide, jnp.where(some & (w < far), x, wide))
    return jnp.where(some, x, wide).astype(v.dtype)


def as_power(p: float, where: str) -> float:
    """p as a static number in (0, 1].

    Raises:
        TypeError: traced, or not a number.
        ValueError: outside (0, 1].

    Example:
        >>> ur.activations.as_power(1, "caller")
        1.0
    """
    power = _checks.as_number(p, "p", where)
    if not 0 < power <= 1:
        raise ValueError(f"{where}: p must be in (0, 1], got {p}")
    return power


def _root_of(p: float) -> Callable[[Array], Array]:
    """w -> the larger root of x - w + c x^(p - 1), c = p / (2 (1 - p)), for w from the edge on."""
    c = p / (2 * (1 - p))
    closed = next((f for q, f in _CLOSED.items() if math.isclose(p, q)), None)

    def root(w: Array) -> Array:
        x = w if closed is None else closed(w)
        for _ in range(_NEWTON if closed is None else 1):  # 1 takes away the rounding
            x = x - (x - w + c * x ** (p - 1)) / (1 - c * (1 - p) * x ** (p - 2))
        return x

    return root


def _half(w: Array) -> Array:
    """A cubic in sqrt(x), by the cosine."""
    angle = jnp.arccos((w / 3) ** -1.5 / 4)
    return 2 / 3 * w * (1 + jnp.cos(2 / 3 * (jnp.pi - angle)))


def _two_thirds(w: Array) -> Array:
    """A quartic in x^(1/3), by its resolvent cubic and the hyperbolic cosine."""
    a = 2 / 3**0.25 * jnp.sqrt(jnp.cosh(jnp.arccosh(27 / 16 * 3**-1.5 * w**2) / 3))
    return ((a + jnp.sqrt(2 * w / a - a**2)) / 2) ** 3


_CLOSED = {1 / 2: _half, 2 / 3: _two_thirds}
