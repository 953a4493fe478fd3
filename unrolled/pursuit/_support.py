"""FISTA finds the support of a LASSO, conjugate gradients solve on it; derivatives on a support."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._base import loops
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import exponent, ldexp, times_power
from unrolled.activations import relu, shrink
from unrolled.dictionaries import Operator, column_norms
from unrolled.pursuit._gap import least_between, relative_gap
from unrolled.pursuit._ista import Momentum, extrapolated

# Steps of FISTA between two evaluations of the gap.
_BLOCK = 10
# Blocks between two finishes by conjugate gradients, at most.
_OFTEN = 16


class Penalized(NamedTuple):
    """1/2 norm(y - D x)^2 + lam norm(x, 1) + l2/2 norm(x)^2, all numbers near 1."""

    D: Operator
    y: Array  # (m,)
    lam: Array  # () or (d,)
    l2: Array  # ()


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def code(
    nonnegative: bool, tol: float, max_steps: int, problem: Penalized, start: Array, size: Array
) -> tuple[Array, Array, Array]:
    """x, its relative gap, and the steps taken, from the code `start`; size is norm(D, 2)."""
    D, y, lam, l2 = problem
    gamma = 1 / (size**2 + l2)

    def relative(x):
        return relative_gap(D, y, lam, x, l2, nonnegative)

    def step(state, _):
        v = state.z + gamma * ((y - D @ state.z) @ D)
        x = relu(v - gamma * lam) if nonnegative else shrink(v, gamma * lam)
        return extrapolated(state, x / (1 + gamma * l2), True), None

    def body(carry):
        state, steps, _ = carry
        state, steps = loops.scan(step, state, length=_BLOCK)[0], steps + _BLOCK
        gap = relative(state.x)
        # After 1, 2, 4, ... blocks, then every 16: as many products as for the steps, or fewer.
        blocks = steps // _BLOCK
        due = (blocks & (blocks - 1) == 0) | (blocks % _OFTEN == 0)
        limit = jnp.minimum(steps, _OFTEN * _BLOCK)
        due = due & (gap > tol)
        x = on_support(problem, state.x, jnp.where(due, limit, 0))
        x = relu(x) if nonnegative else x
        state = jax.tree.map(partial(jnp.where, due), _rest(x), state)
        return state, steps, jnp.where(due, relative(x), gap)

    zero = jnp.zeros_like(start)
    start = relu(start) if nonnegative else start
    start = jnp.where(relative(zero) <= tol, zero, start)
    state, steps, gap = loops.while_loop(
        lambda carry: (carry[2] > tol) & (carry[1] < max_steps),
        body,
        (_rest(start), jnp.zeros((), int), relative(start)),
    )
    return state.x, gap, steps


@code.defjvp
def _derivative(nonnegative, tol, max_steps, primals, tangents):
    x, gap, steps = code(nonnegative, tol, max_steps, *primals)
    dx = tangent(slope, 10 * min(primals[0].D.shape), primals[0], tangents[0], x)
    return (x, gap, steps), (dx, jnp.zeros_like(gap), jnp.zeros((), jax.dtypes.float0))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def on_branch(slope: Callable[[Any, Array], Array], limit: int, params: Any, x: Array) -> Array:
    """x, with the derivative of the point where slope(params, x) = 0 on the support of x.

    The support is held fixed, and that of x itself is not asked for.

    Args:
        slope: (params, x) -> the negative gradient of the objective, (d,), whose entries off the
            support do not count.
        limit: the most steps of conjugate residuals.
        params: what x depends on, a tuple of arrays, D first.
        x: (d,), a stationary point, in numbers near 1.
    """
    return x


@on_branch.defjvp
def _branch(slope, limit, primals, tangents):
    params, x = primals
    x = on_branch(slope, limit, params, x)  # which a second derivative moves, too
    return x, tangent(slope, limit, params, tangents[0], x)


def units_of_small_atoms(D: Operator) -> Array:
    """k, (d,), with atoms 2^k d_i of at least a 16th of the largest norm; 0 for all others."""
    sizes = exponent(column_norms(D)[None], 0)[0]
    return jnp.maximum(jnp.max(sizes) - sizes - 4, 0)


def tangent(
    slope: Callable[[Any, Array], Array], limit: int, params: Any, moved: Any, x: Array
) -> Array:
    """How `on_branch` moves where params move, the least squares answer where atoms depend.

    It solves in `units_of_small_atoms`: small atoms of a support do not depend on others.
    """
    on, units = x != 0, units_of_small_atoms(params[0])

    def curvature(v):
        own = ldexp(jnp.where(on, v, 0), units)
        _, change = jax.jvp(lambda x: slope(params, x), (x,), (own,))
        return jnp.where(on, ldexp(-change, units), v)

    with jax.default_matmul_precision("highest"):
        _, change = jax.jvp(lambda p: jnp.where(on, slope(p, x), 0), (params,), (moved,))
        solve = partial(conjugate_residuals, limit=limit)
        scaled = lax.custom_linear_solve(curvature, ldexp(change, units), solve, symmetric=True)
        return ldexp(scaled, units)


def _rest(x: Array) -> Momentum:
    return Momentum(x, x, jnp.ones((), x.dtype))


def on_support(problem: Penalized, x: Array, limit: Array) -> Array:
    """The least objective from x towards the minimiser on its support, `limit` steps at most."""
    signs = jnp.sign(x)
    descent = jnp.where(signs != 0, slope(problem, x), 0)
    change = conjugate_gradients(partial(_curvature, problem, signs), descent, limit)
    lam = jnp.broadcast_to(problem.lam, x.shape)
    return least_between(jnp, *(v[None] for v in (x, change, descent, lam, signs)))[0]


def slope(problem: Penalized, x: Array) -> Array:
    """The negative gradient of the objective, which holds in the entries of the support of x."""
    D, y, lam, l2 = problem
    return (y - D @ x) @ D - l2 * x - lam * jnp.sign(x)


def _curvature(problem: Penalized, signs: Array, v: Array) -> Array:
    """(D_S' D_S + l2) v on the support S of the signs, v elsewhere."""
    on_support = jnp.where(signs != 0, v, 0)
    return jnp.where(signs != 0, (problem.D @ on_support) @ problem.D + problem.l2 * on_support, v)


def conjugate_gradients(A: Callable[[Array], Array], b: Array, limit: ArrayLike) -> Array:
    """v with A v = b, for a symmetric positive semidefinite A, in at most `limit` steps from 0.

    A is near 1. Where it is singular, rounding leaves a part of b outside of its range: the steps
    end in a direction whose curvature is rounding.
    """
    eps = float(jnp.finfo(b.dtype).eps)
    least = eps**2 * jnp.vdot(b, b)

    def body(carry):
        v, r, p, size, k, _ = carry
        q = A(p)
        curvature = jnp.vdot(p, q)
        curved = curvature > eps * jnp.vdot(p, p)
        step = jnp.where(curved, size / jnp.where(curved, curvature, 1), 0)
        r = r - step * q
        smaller = jnp.vdot(r, r)
        return v + step * p, r, r + smaller / size * p, smaller, k + 1, curved

    def not_done(carry):
        *_, size, k, curved = carry
        return (size > least) & (k < limit) & curved

    none, curved = jnp.zeros((), int), jnp.ones((), bool)
    start = jnp.zeros_like(b), b, b, jnp.vdot(b, b), none, curved
    return loops.while_loop(not_done, body, start)[0]


def conjugate_residuals(A: Callable[[Array], Array], b: Array, limit: ArrayLike) -> Array:
    """v with the least norm(A v - b), where A may be singular: atoms of a support may depend.

    Conjugate gradients need a b in the range of A. Here its part outside stays in the residual r,
    until A r is the rounding of r. A derivative b has any scale, so it is first divided by a power
    of two near it.
    """
    eps, scale = float(jnp.finfo(b.dtype).eps), exponent(b)
    b = times_power(b, -scale)
    least = eps**2 * jnp.vdot(b, b)

    def not_done(carry):
        _, r, Ar, _, _, k = carry
        singular = jnp.vdot(Ar, Ar) <= (8 * eps) ** 2 * jnp.vdot(r, r)
        return (jnp.vdot(r, r) > least) & ~singular & (k < limit)

    def body(carry):
        v, r, Ar, p, Ap, k = carry
        size, curvature = jnp.vdot(r, Ar), jnp.vdot(Ap, Ap)
        step = size / curvature
        v, r = v + step * p, r - step * Ap
        Ar = A(r)
        ratio = jnp.vdot(r, Ar) / size
        return v, r, Ar, r + ratio * p, Ar + ratio * Ap, k + 1

    Ab = A(b)
    start = jnp.zeros_like(b), b, Ab, b, Ab, jnp.zeros((), int)
    return ldexp(loops.while_loop(not_done, body, start)[0], scale)
