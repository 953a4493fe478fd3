"""Atoms without a penalty: the part of a residual that they do not see, by conjugate gradients."""

import math
from functools import partial

import jax.numpy as jnp
from jax import lax

from unrolled._base import loops
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import exponent, ldexp, norm, power_of_two
from unrolled.dictionaries import Operator, column_norms


def freed(D: Operator, free: Array, r: Array, h: Array) -> tuple[Array, Array, Array]:
    """r without its part in the span of the free atoms, D' of it, and how far rounding moved it.

    With |D_f'r| = e it is at most e / sigma off, sigma the least singular value of these atoms. The
    code of a vector without structure in them tells sigma.
    """
    m, d = D.shape
    k = exponent(column_norms(D))
    D = D * power_of_two(-k, r.dtype)
    fixed_D, fixed_r = lax.stop_gradient((D, r))
    level = m * float(jnp.finfo(r.dtype).eps) * column_norms(fixed_D) * norm(fixed_r)
    once = partial(_least_squares, fixed_D, free)
    c = loops.fori_loop(
        0, 2, lambda _, c: c + once(fixed_r - fixed_D @ c, level, 2 * min(m, d)), jnp.zeros_like(h)
    )
    nu = r - D @ c
    h = nu @ D
    probe = jnp.cos(jnp.arange(1, m + 1, dtype=r.dtype) ** 2)
    inverse = norm(once(probe, jnp.zeros_like(level), 2 * jnp.count_nonzero(free) + 8))
    seen = norm(jnp.where(free, h, 0))
    # Products below the range of the dtype end the steps at once: then sigma is not known.
    off = jnp.where(inverse > 0, seen * inverse * math.sqrt(m) / norm(probe), jnp.inf)
    return nu, ldexp(jnp.where(free, 0, h), k), jnp.where(seen > 0, off, 0)


def _least_squares(D: Operator, free: Array, r: Array, level: Array, limit: ArrayLike) -> Array:
    """The code of r in the free atoms, by conjugate gradients until |D'r| <= level (CGLS)."""

    def not_done(s):
        *_, g, size, k = s
        return (jnp.abs(g) > level).any() & (size > 0) & (k < limit)

    def body(s):
        c, nu, p, g, size, k = s
        q = D @ p
        curvature = jnp.sum(q**2)
        step = jnp.where(curvature > 0, size / jnp.where(curvature > 0, curvature, 1), 0)
        c, nu = c + step * p, nu - step * q
        g = jnp.where(free, nu @ D, 0)
        smaller = jnp.sum(g**2)
        return c, nu, g + smaller / size * p, g, smaller, k + 1

    g = jnp.where(free, r @ D, 0)
    start = jnp.zeros_like(g), r, g, g, jnp.sum(g**2), jnp.zeros((), int)
    return loops.while_loop(not_done, body, start)[0]
