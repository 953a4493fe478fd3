"""Accelerated proximal descent for least squares with a penalty; the objective never rises."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array

# What the bound L of the curvature is multiplied by, after a step and where it was too small.
_LOWER, _HIGHER = 0.95, 1.5


class Fit(NamedTuple):
    """1/2 sum_i v_i (y_i - (A u)_i)^2 + h(u), with steps in the metric of the scales M."""

    y: Array
    v: Array | None  # weights, as y; None for ones
    product: Callable[[Array], Array]  # u -> A u
    adjoint: Callable[[Array], Array]  # r -> A'r
    scales: Array  # M, positive, broadcast to u
    prox: Callable[[Array, Array], Array]  # (u, step) -> the prox of step h at u
    penalty: Callable[[Array], Array]  # u -> the terms of h, as u


class Descent(NamedTuple):
    """FISTA at u, extrapolated to z, with both products."""

    u: Array
    Au: Array
    z: Array
    Az: Array
    t: Array  # () momentum counter
    L: Array  # () A'VA <= L M, as far as it is known


def descend(fit: Fit, u: Array, Au: Array, L: Array, steps: int) -> Descent:
    r"""Steps of FISTA from u; one that would raise the objective only ends the momentum.

    .. math:: u_+ = prox_{h / (L M)} \big( z + (L M)^{-1} A' V (y - A z) \big).

    L follows the curvature along the steps, :math:`\|A (u_+ - z)\|_V^2 \le L \|u_+ - z\|_M^2`,
    which costs no product.

    Reference: Beck, Teboulle (2009) for FISTA and its monotone form; O'Donoghue, Candes (2015) for
    the restart.
    """
    start = Descent(u, Au, u, Au, jnp.ones((), u.dtype), L)
    return lax.scan(lambda state, _: (_step(fit, state), None), start, length=steps)[0]


def _rise(fit: Fit, u: Array, Au: Array, new: Array, product: Array) -> Array:
    """The objective at `new` less that at u, without the cancellation of two large sums."""
    middle = fit.y - (Au + product) / 2
    penalties = jnp.sum(fit.penalty(new) - fit.penalty(u))
    return penalties - jnp.vdot(product - Au, weighted(fit.v, middle))


def weighted(v: Array | None, r: Array) -> Array:
    """V r."""
    return r if v is None else v * r


def _step(fit: Fit, state: Descent) -> Descent:
    u, Au, z, Az, t, L = state
    step = 1 / (L * fit.scales)
    new = fit.prox(z + step * fit.adjoint(weighted(fit.v, fit.y - Az)), step)
    product = fit.product(new)
    moved, change = new - z, product - Az
    # Rounding of the products must not pass for curvature.
    eps = float(jnp.finfo(u.dtype).eps)
    noise = (8 * eps) ** 2 * jnp.vdot(fit.y, weighted(fit.v, fit.y))
    curved = jnp.vdot(change, weighted(fit.v, change))
    safe = curved <= L * jnp.sum(fit.scales * moved**2) + noise
    taken = safe & (_rise(fit, u, Au, new, product) <= 0)
    uphill = jnp.sum(fit.scales * (z - new) * (new - u)) > 0
    t = jnp.where(uphill, 1, t)
    t_next = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    momentum = (t - 1) / t_next
    forward = Descent(
        new,
        product,
        new + momentum * (new - u),
        product + momentum * (product - Au),
        t_next,
        _LOWER * L,
    )
    # Where the step was too long, again from z; where the objective would rise, from u.
    back = Descent(
        u,
        Au,
        jnp.where(safe, u, z),
        jnp.where(safe, Au, Az),
        jnp.where(safe, 1, t),
        jnp.where(safe, L, _HIGHER * L),
    )
    return jax.tree.map(lambda a, b: jnp.where(taken, a, b), forward, back)
