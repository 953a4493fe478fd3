"""Convolutional sparse coding with a penalty on the fullest stripe."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from unrolled._checks import Array
from unrolled._numbers import ldexp, norm
from unrolled.activations import shrink
from unrolled.dictionaries import Conv, dense
from unrolled.pursuit._deep import Chain, as_problem, as_start
from unrolled.pursuit._gap import half_energy
from unrolled.pursuit._local_error import as_convolution, as_number
from unrolled.pursuit._options import static_steps, static_tol
from unrolled.pursuit._problem import Pursuit, in_range, solve
from unrolled.pursuit._splitting import Splits, admm

# The most steps of Newton's method, which ends after as many as a piecewise linear function has
# pieces on the way, seldom more than ten.
_NEWTON = 50


def local_sparsity(
    D: Conv,
    y: ArrayLike,
    lam: ArrayLike,
    *,
    tol: float = 1e-6,
    max_steps: int = 10_000,
    start: ArrayLike | None = None,
) -> Pursuit:
    r"""A code whose fullest stripe has a small l1 norm: the convex form of the stripe norm.

    .. math:: \min_x \|y - D x\|_2^2 / 2 + lam \max_i \|S_i x\|_1.

    S_i takes the stripe of position i: all coefficients whose atoms overlap its atoms, as in
    `theory.stripe_norm`, fewer at a border. Only the fullest stripes are shrunk, so the code is
    less sparse elsewhere than that of the LASSO.

    ADMM keeps a copy of every stripe. The gap comes from their multipliers q_i, corrected to sum up
    to D'(y - D x), and the dual problem

    .. math:: \max_r r'y - \|r\|^2/2 : D'r = \sum_i S_i' q_i, \; \sum_i \|q_i\|_\infty \le lam.

    Args:
        D: a `Conv`, (m, d), for one eigenvalue decomposition of m x m.
        y: (m,).
        lam: penalty weight, one number.
        tol: relative duality gap to stop at.
        max_steps: the most steps, rounded up to a multiple of 10.
        start: code to begin from, (d,); zero by default.

    Returns:
        Pursuit, whose gap is that of this problem, relative to norm(y)^2 / 2.

    Raises:
        TypeError: D is not a `Conv`, operands that are not real numbers, or a traced tol.
        ValueError: shapes that do not fit, lam < 0 or D = 0 (where known), or tol <= 0.

    Reference: Rey-Otero, Sulam, Elad (2020), for the formulation; the splitting is derived here.

    Example:
        >>> filters = jax.random.normal(jax.random.key(0), (2, 1, 4))
        >>> D = ur.dictionaries.Conv(filters, 12, boundary="circular")
        >>> y = D @ jnp.zeros(24).at[jnp.array([3, 17])].set(1.0)
        >>> found = ur.pursuit.local_sparsity(D, y, 0.1, tol=1e-4)
        >>> bool(found.converged), bool(jnp.abs(D.stripes(found.x)).sum(1).max() < 2)
        (True, True)
    """
    where = "local_sparsity"
    as_convolution(D, where)
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    chain = as_problem(where, (D,), y, (as_number(lam, "lam", where),))
    return _local_sparsity(chain, as_start(chain, start, where), tol, max_steps)


# Compiled once per shape and options, as in `ista`.
@partial(jax.jit, static_argnums=(2, 3))
def _local_sparsity(chain: Chain, start: Array, tol: float, max_steps: int) -> Pursuit:
    D: Any = chain.Ds[0]  # a Conv
    y, (lam,) = chain.y, chain.lams
    with jax.default_matmul_precision("highest"):
        transpose = jax.linear_transpose(D.stripes, start)

        def together(stripes):
            """sum_i S_i' q_i."""
            return transpose(stripes)[0]

        # In how many stripes an entry is. With the code times its root, S'S is the identity.
        times = together(D.stripes(jnp.ones_like(start)))
        root = jnp.sqrt(times)
        A = dense(D) / root[None, :]
        w, U = jnp.linalg.eigh(A @ A.T)
        c = y @ A

        def minimise(b, rho):
            h = c + rho * b
            return (h - (U @ ((U.T @ (A @ h)) / (jnp.maximum(w, 0) + rho))) @ A) / rho

        def code(state):
            """The mean of the copies, zero where all of them are."""
            return together(state.v) / times

        def gap(state: Splits) -> Array:
            x, q = code(state), state.rho * state.u
            r = y - D @ x
            q = q + D.stripes((r @ D - together(q)) / times)
            total = jnp.sum(jnp.max(jnp.abs(q), 1))
            s = jnp.where(total > lam, lam / jnp.where(total > lam, total, 1), 1)
            stripes = D.stripes(x)
            excess = lam * jnp.max(jnp.sum(jnp.abs(stripes), 1)) - s * jnp.sum(q * stripes)
            return ((1 - s) ** 2 * jnp.sum(r**2) / 2 + jnp.maximum(excess, 0)) / half_energy(y)

        step, state = admm(
            minimise,
            lambda x: D.stripes(x / root),
            lambda stripes, rho: lower_the_fullest(stripes, lam / rho),
            start * root,
        )
        state, steps = solve(step, state, gap, tol=tol, max_steps=max_steps)
        x, least = code(state), gap(state)
        found = ldexp(x, chain.up[0])
        met = (least <= tol) & in_range(found, x, chain.up[0])
        return Pursuit(found, least, ldexp(norm(y - D @ x), chain.b), steps, met)


def lower_the_fullest(rows: Array, lam: Array) -> Array:
    r"""The proximal map of lam max_i norm(row_i, 1).

    .. math:: p_i = shrink(row_i, \theta_i), \qquad \sum_i \theta_i = lam, \qquad
        \|p_i\|_1 = \tau \; \text{where} \; \theta_i > 0.

    theta_i(tau) = max_k (sum of the k largest of row_i - tau) / k is the shrinkage to norm tau. The
    sum over i is convex, decreasing and piecewise linear in tau, so Newton's method from tau = 0
    ends at the solution. All is zero if lam is at least the sum of the largest magnitudes.
    """
    sums = jnp.cumsum(-jnp.sort(-jnp.abs(rows), 1), 1)
    k = jnp.arange(1, rows.shape[1] + 1, dtype=rows.dtype)[None, :]

    def thresholds(tau):
        each = (sums - tau) / k
        at = jnp.argmax(each, 1)
        theta = jnp.maximum(jnp.max(each, 1), 0)
        return theta, jnp.sum(jnp.where(theta > 0, 1 / (at + 1).astype(rows.dtype), 0))

    def body(carry):
        tau, _, n = carry
        theta, slope = thresholds(tau)
        after = tau + (jnp.sum(theta) - lam) / jnp.where(slope > 0, slope, 1)
        after = jnp.maximum(after, tau)
        return after, after > tau, n + 1

    zero = jnp.zeros((), rows.dtype)
    tau, *_ = lax.while_loop(
        lambda carry: carry[1] & (carry[2] < _NEWTON), body, (zero, jnp.asarray(True), 0)
    )
    theta, _ = thresholds(tau)
    # Where tau = 0, the thresholds only need to be large enough.
    return jnp.where(tau > 0, shrink(rows, theta[:, None]), 0)
