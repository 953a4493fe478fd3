"""Convolutional pursuits with local norms: of every patch, and of the fullest stripe."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import loops
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import norm
from unrolled.activations import shrink
from unrolled.dictionaries import Conv, Dictionary, dense
from unrolled.pursuit._gap import dual_factor, half_energy
from unrolled.pursuit._problem import (
    Found,
    Problem,
    Pursuit,
    check_number,
    checked_chain,
    deep,
    rounded,
    run,
    solve,
    static_steps,
    static_tol,
)
from unrolled.pursuit._splitting import Splits, admm

# The most steps of Newton's method, which ends after as many as a piecewise linear function has
# pieces on the way, seldom more than ten.
_NEWTON = 50


class Constrained(NamedTuple):
    """A code that minimises under a constraint, and how good it is."""

    x: Array  # (d,)
    gap: Array  # () abs(norm(x, 1) - dual) / norm(x, 1), or over the dual value if that is larger
    violation: Array  # () excess over the constraint, relative to the constraint on x = 0
    residual: Array  # () norm(y - D x)
    steps: Array  # () steps taken
    converged: Array  # () gap and violation <= tol, and x is in the range of the dtype


def local_error(
    D: Conv,
    y: ArrayLike,
    radius: ArrayLike,
    *,
    tol: float = 1e-6,
    max_steps: int = 10_000,
    start: ArrayLike | None = None,
) -> Constrained:
    r"""The code of least l1 norm whose residual is small in every patch.

    .. math:: \min_x \|x\|_1 : \|R_i (y - D x)\|_2 \le radius \quad \text{for all } i.

    R_i takes the window at position i of the signal, as large as the kernel, with all channels, on
    a circle. So a budget of noise that is known per patch holds everywhere, where one bound on
    norm(y - D x) lets some parts of the signal pay for others. A kernel as large as the signal is
    that one bound.

    ADMM keeps a copy of every patch of D x, and of x. The dual value comes from the multipliers of
    the patches q_i, scaled to be feasible,

    .. math:: \max_q \sum_i q_i' R_i y - radius \|q_i\|_2 : \|D' \sum_i R_i' q_i\|_\infty \le 1.

    Args:
        D: a `Conv`, (m, d), for one Cholesky factor of m x m.
        y: (m,).
        radius: bound on the norm of every patch of the residual; 0 is basis pursuit.
        tol: relative duality gap and violation to stop at.
        max_steps: the most steps, rounded up to a multiple of 10.
        start: code to begin from, (d,); zero by default.

    Returns:
        Constrained. `violation` is how much the worst patch exceeds the radius, relative to the
        worst patch of y. If no code meets the radius, `converged` is False.

    Raises:
        TypeError: D is not a `Conv`, operands that are not real numbers, or a traced tol.
        ValueError: shapes that do not fit, radius < 0 or D = 0 (where known), or tol <= 0.

    Reference: Rey-Otero, Sulam, Elad (2020), for the formulation; the splitting is derived here.

    Example:
        >>> filters = jax.random.normal(jax.random.key(0), (2, 1, 4))
        >>> D = ur.dictionaries.Conv(filters, 12, boundary="circular")
        >>> y = D @ jnp.zeros(24).at[jnp.array([3, 17])].set(1.0)
        >>> result = ur.pursuit.local_error(D, y, 0.1, tol=1e-4)
        >>> bool(result.converged), bool(jnp.linalg.norm(D.patches(y - D @ result.x)[0]) < 0.101)
        (True, True)
    """
    where = "local_error"
    check_convolution(D, where)
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    check_number(radius, "radius", where)
    form, arrays = checked_chain(where, (D,), y, (0.0,), level=radius, start=start)
    method = LocalError(tol, max_steps, form.dtype)
    (x,), gap, residual, steps, converged, violation = run(method, form, *arrays)
    return Constrained(x, gap, violation, residual, steps, converged)


def check_convolution(D: Dictionary, where: str) -> None:
    """Raise TypeError unless D is a `Conv`."""
    if not isinstance(D, Conv):
        raise TypeError(f"{where}: D is a {type(D).__name__}; expected a Conv, which has patches")


@dataclass(frozen=True)
class LocalError:
    """The method of `local_error`; the violation that counts is that of the code in the dtype."""

    tol: float
    max_steps: int
    dtype: np.dtype

    def __call__(self, problem: Problem, start: Array) -> Found:
        D: Any = problem.Ds[0]  # a Conv
        y, radius = problem.y, problem.level
        ones = jnp.ones_like(y)
        # Every sample is in so many patches: with c, the patches of D x are as large as D x.
        c = norm(D.patches(ones)) / norm(ones)
        target = D.patches(y) / c
        ball = radius / c
        A = dense(D)
        factor = jax.scipy.linalg.cho_factor(A @ A.T + jnp.eye(len(y), dtype=y.dtype))

        def minimise(b, _):
            return b - jax.scipy.linalg.cho_solve(factor, D @ b) @ D

        def forward(x):
            return x, D.patches(D @ x) / c

        def prox(v, rho):
            code, patches = v
            return shrink(code, 1 / rho), target + _within(patches - target, ball)

        def judged(state: Splits) -> tuple[Array, Array]:
            """The relative gap and violation."""
            x, q = state.v[0], -state.rho * state.u[1]
            bound = jnp.max(jnp.abs(_sum(D, q, y) / c @ D))
            value = jnp.sum(q * target) - ball * jnp.sum(_norms(q))
            value = value / jnp.maximum(bound, 1)
            value = jnp.where(value < 0, 0, value)  # no multipliers at all prove 0
            size = jnp.sum(jnp.abs(x))
            unit = jnp.maximum(size, jnp.abs(value))
            gap = jnp.abs(size - value) / jnp.where(unit > 0, unit, 1)
            over = jnp.max(_norms(target - D.patches(D @ x) / c)) - ball
            largest = jnp.max(_norms(target))
            return gap, jnp.maximum(over, 0) / jnp.where(largest > 0, largest, 1)

        step, state = admm(minimise, forward, prox, start)
        state, steps, (gap, violation) = solve(
            step, state, judged, tol=self.tol, max_steps=self.max_steps
        )
        if self.dtype != y.dtype:
            x, patches = state.v
            _, violation = judged(state._replace(v=(rounded(x, self.dtype), patches)))
        met = (gap <= self.tol) & (violation <= self.tol)
        return Found(state.v[0], gap, steps, met, more=(violation,))


def _norms(patches: Array) -> Array:
    return jnp.sqrt(jnp.sum(patches**2, 1))


def _within(patches: Array, radius: Array) -> Array:
    """Every patch shortened to the radius."""
    norms = _norms(patches)
    factor = jnp.where(norms > radius, radius / jnp.where(norms > 0, norms, 1), 1)
    return patches * factor[:, None]


def _sum(D: Conv, patches: Array, y: Array) -> Any:
    """sum_i R_i' q_i."""
    return loops.adjoint(D.patches, y, patches)


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
        >>> result = ur.pursuit.local_sparsity(D, y, 0.1, tol=1e-4)
        >>> bool(result.converged), bool(jnp.abs(D.stripes(result.x)).sum(1).max() < 2)
        (True, True)
    """
    where = "local_sparsity"
    check_convolution(D, where)
    method = LocalSparsity(static_tol(tol, where), static_steps(max_steps, where))
    check_number(lam, "lam", where)
    (x,), *rest = deep(method, where, (D,), y, (lam,), start=start)
    return Pursuit(x, *rest)


@dataclass(frozen=True)
class LocalSparsity:
    """The method of `local_sparsity`."""

    tol: float
    max_steps: int

    def __call__(self, problem: Problem, start: Array) -> Found:
        D: Any = problem.Ds[0]  # a Conv
        y, (lam,) = problem.y, problem.lams

        def together(stripes):
            """sum_i S_i' q_i."""
            return loops.adjoint(D.stripes, start, stripes)

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
            s = dual_factor(lam, total)
            stripes = D.stripes(x)
            excess = lam * jnp.max(jnp.sum(jnp.abs(stripes), 1)) - s * jnp.sum(q * stripes)
            return ((1 - s) ** 2 * jnp.sum(r**2) / 2 + jnp.maximum(excess, 0)) / half_energy(y)

        step, state = admm(
            minimise,
            lambda x: D.stripes(x / root),
            lambda stripes, rho: lower_the_fullest(stripes, lam / rho),
            start * root,
        )
        state, steps, least = solve(step, state, gap, tol=self.tol, max_steps=self.max_steps)
        return Found(code(state), least, steps, least <= self.tol)


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
    tau, *_ = loops.while_loop(
        lambda carry: carry[1] & (carry[2] < _NEWTON), body, (zero, jnp.asarray(True), 0)
    )
    theta, _ = thresholds(tau)
    # Where tau = 0, the thresholds only need to be large enough.
    return jnp.where(tau > 0, shrink(rows, theta[:, None]), 0)
