"""The objective of the LASSO, and a bound of its excess over the minimum."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled._checks import Array
from unrolled._numbers import at_least, exponent, ldexp
from unrolled.dictionaries import Dictionary


def lasso_objective(D: Dictionary, y: Array, x: Array, lam: ArrayLike) -> Array:
    """1/2 norm(y - D x)^2 + lam norm(x, 1).

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> float(ur.pursuit.lasso_objective(D, y, jnp.array([2.0, 0.0]), 1.0))
        2.625
    """
    r = y - D @ x
    return jnp.sum(r * (r / 2)) + lam * jnp.sum(jnp.abs(x))  # r^2 may leave the range, r^2/2 not


def duality_gap(D: Dictionary, y: Array, x: Array, lam: ArrayLike) -> Array:
    r"""An upper bound of F(x) - F* for the LASSO that needs no F*.

    It comes from the dual point s r, with r = y - D x and s = min(1, min_i lam_i / |D'r|_i), as a
    sum of non-negative terms without cancellation:

    .. math:: gap = (1 - s)^2 \|r\|^2 / 2 + \sum_i (lam_i |x_i| - s x_i (D'r)_i).

    It is a bound with any r in place of y - D x, up to norm(e) (norm(e) + sqrt(2 gap)) if they
    differ by e: rounding of r hardly matters. That of D'r changes it, for unit atoms by some
    eps norm(r) (2 norm(x, 1) + sqrt(2 gap) norm(r) / lam). Computed again in float64, from a code
    found in float32, the gap has another r; where atoms nearly depend it may be much larger.

    Args:
        D: (m, d).
        y, x: (m,) and (d,).
        lam: penalty weight, () or (d,).

    Returns:
        The gap, (), in the units of norm(y)^2.

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> float(ur.pursuit.duality_gap(D, y, jnp.array([2.0, 0.0]), 1.0))
        0.0
    """
    # Over a power of two near y or D x the terms stay in the range, wherever their sum does.
    r = y - D @ x
    k = exponent(jnp.stack([jnp.asarray(y, r.dtype), r]))
    y, x, weight = (ldexp(jnp.asarray(v, r.dtype), -k) for v in (y, x, lam))
    return ldexp(gap_near_one(D, y, x, weight), 2 * k)


def gap_near_one(D: Dictionary, y: Array, x: Array, lam: Array, nonnegative: bool = False) -> Array:
    """`duality_gap` for y and D x near 1, or that over x >= 0, inf for other codes.

    A dual point of x >= 0 is bounded on one side only.
    """
    r = y - D @ x
    g = r @ D
    size = g if nonnegative else jnp.abs(g)
    over = size > lam
    s = jnp.min(jnp.where(over, lam / jnp.where(over, size, 1), 1))
    gap = (1 - s) ** 2 * jnp.sum(r**2) / 2 + jnp.sum(at_least(lam * jnp.abs(x) - s * x * g, 0))
    return jnp.where((x < 0).any(), jnp.inf, gap) if nonnegative else gap


def half_energy(y: Array) -> Array:
    """norm(y)^2 / 2, or 1 for y = 0: the unit of the gap."""
    energy = jnp.sum(y**2) / 2
    return jnp.where(energy > 0, energy, 1)
