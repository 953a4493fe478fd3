"""Splitting: ADMM for local norms of convolutions, and half-quadratic splitting for |x|^p."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import norm
from unrolled._base.results import Result
from unrolled.activations import as_power, power_threshold, shrink
from unrolled.dictionaries import Conv, Dictionary, Operator, Structured, dense, spread
from unrolled.pursuit._admm import PERIOD, Splits, admm, begin
from unrolled.pursuit._gap import dual_factor, half_energy, relative_gap
from unrolled.pursuit._ista import State
from unrolled.pursuit._lasso import on_branch
from unrolled.pursuit._problem import (
    Found,
    Problem,
    Pursuit,
    check_number,
    checked_chain,
    deep,
    fixed_norm,
    rounded,
    run,
    single,
    solve,
    static_steps,
    static_tol,
)

__all__ = ["Constrained", "half_quadratic", "half_quadratic_step", "local_error", "local_sparsity"]


# The maximum number of steps of Newton's method. The method takes one step for each piece of a
# piecewise linear function that it crosses, seldom more than ten steps.
_NEWTON = 50


class Constrained(Result):
    """The minimiser of a constrained problem, with its gap, violation and residual."""

    x: Array  # (d,)
    gap: Array  # () abs(norm(x, 1) - dual) over the larger of norm(x, 1) and the dual value
    violation: Array  # () the excess over the bound, relative to the bounded norm at x = 0
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

    R_i extracts the window at position i of the signal, as large as the kernel, with all channels;
    windows wrap around the border. The constraint keeps the residual within a known noise level in
    every patch. A single bound on norm(y - D x) would allow larger errors in some parts of the
    signal if the errors in other parts are smaller. With a kernel as large as the signal, the
    constraint is this single bound.

    ADMM keeps copies of x and of every patch of D x. The dual value comes from the multipliers q_i
    of the patches, which are scaled to be feasible:

    .. math:: \max_q \sum_i q_i' R_i y - radius \|q_i\|_2 : \|D' \sum_i R_i' q_i\|_\infty \le 1.

    Args:
        D: a `Conv`, (m, d); the function computes one Cholesky factor of an m x m matrix.
        y: (m,).
        radius: bound on the norm of every patch of the residual; 0 gives basis pursuit.
        tol: relative duality gap and violation to stop at.
        max_steps: maximum number of steps, rounded up to a multiple of 10.
        start: the code to start from, of shape (d,); zero by default.

    Returns:
        Constrained. `violation` is the amount by which the largest norm of a patch of the residual
        exceeds the radius, relative to the largest norm of a patch of y. If no code satisfies the
        constraint, `converged` is False.

    Raises:
        TypeError: D is not a `Conv`, an operand is not real, or tol is traced.
        ValueError: shapes do not fit, radius < 0 or D = 0 (if known), or tol <= 0.

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
    """The method of `local_error`; gap and violation belong to the code rounded to the dtype."""

    tol: float
    max_steps: int
    dtype: np.dtype

    def __call__(self, problem: Problem, start: Array) -> Found:
        D: Any = problem.Ds[0]  # a Conv
        y, radius = problem.y, problem.level
        ones = jnp.ones_like(y)
        # Every sample is in c^2 patches, so the patches of D x divided by c have the norm of D x.
        c = norm(D.patches(ones)) / norm(ones)
        target = D.patches(y) / c
        ball = radius / c
        A = dense(D)
        factor = jax.scipy.linalg.cho_factor(A @ A.T + jnp.eye(len(y), dtype=y.dtype))

        def forward(x):
            return x, D.patches(D @ x) / c

        def nearest(w, _):  # uses products with D; only the factor needs the matrix
            b = programs.adjoint(forward, start, w)
            return forward(b - jax.scipy.linalg.cho_solve(factor, D @ b) @ D)

        def prox(v, rho):
            code, patches = v
            return shrink(code, 1 / rho), target + _within(patches - target, ball)

        def judged(state: Splits) -> tuple[Array, Array]:
            """The relative gap and violation."""
            x, q = state.v[0], -state.rho * state.u[1]
            bound = jnp.max(jnp.abs(_sum(D, q, y) / c @ D))
            value = jnp.sum(q * target) - ball * jnp.sum(_norms(q))
            value = value / jnp.maximum(bound, 1)
            value = jnp.where(value < 0, 0, value)  # multipliers of zero prove the bound 0
            size = jnp.sum(jnp.abs(x))
            unit = jnp.maximum(size, jnp.abs(value))
            gap = jnp.abs(size - value) / jnp.where(unit > 0, unit, 1)
            over = jnp.max(_norms(target - D.patches(D @ x) / c)) - ball
            largest = jnp.max(_norms(target))
            return gap, jnp.maximum(over, 0) / jnp.where(largest > 0, largest, 1)

        state, steps, (gap, violation) = solve(
            admm(nearest, prox),
            begin(forward(start)),
            judged,
            tol=self.tol,
            max_steps=self.max_steps,
            period=PERIOD,
        )
        if self.dtype != y.dtype:
            x, patches = state.v
            gap, violation = judged(state._replace(v=(rounded(x, self.dtype), patches)))
        met = (gap <= self.tol) & (violation <= self.tol)
        return Found(state.v[0], gap, steps, met, more=(violation,))


def _norms(patches: Array) -> Array:
    return jnp.sqrt(jnp.sum(patches**2, 1))


def _within(patches: Array, radius: Array) -> Array:
    """The patches, with norms reduced to at most the radius."""
    norms = _norms(patches)
    factor = jnp.where(norms > radius, radius / jnp.where(norms > 0, norms, 1), 1)
    return patches * factor[:, None]


def _sum(D: Conv, patches: Array, y: Array) -> Any:
    """sum_i R_i' q_i."""
    return programs.adjoint(D.patches, y, patches)


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

    S_i extracts the stripe of position i: all coefficients whose atoms overlap the atoms at
    position i, as in `theory.stripe_norm`. A stripe at a border has fewer coefficients. The penalty
    shrinks only the fullest stripes, so in the other stripes the code is less sparse than the LASSO
    code.

    ADMM keeps a copy of every stripe. The gap comes from the multipliers q_i of the stripes,
    corrected so that sum_i S_i' q_i = D'(y - D x), and from the dual problem

    .. math:: \max_r r'y - \|r\|^2/2 : D'r = \sum_i S_i' q_i, \; \sum_i \|q_i\|_\infty \le lam.

    Args:
        D: a `Conv`, (m, d); the function computes one eigenvalue decomposition of an m x m matrix.
        y: (m,).
        lam: penalty weight, one number.
        tol: relative duality gap to stop at.
        max_steps: maximum number of steps, rounded up to a multiple of 10.
        start: the code to start from, of shape (d,); zero by default.

    Returns:
        Pursuit, with the gap of this problem, relative to norm(y)^2 / 2.

    Raises:
        TypeError: D is not a `Conv`, an operand is not real, or tol is traced.
        ValueError: shapes do not fit, lam < 0 or D = 0 (if known), or tol <= 0.

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
    chain = deep(method, where, (D,), y, (lam,), start=start)
    return Pursuit(chain.xs[0], chain.gap, chain.residual, chain.steps, chain.converged)


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
            return programs.adjoint(D.stripes, start, stripes)

        # The number of stripes that contain each entry. For the code times the root of this number,
        # S'S = I.
        times = together(D.stripes(jnp.ones_like(start)))
        root = jnp.sqrt(times)
        A = dense(D) / root[None, :]
        sigma, U = jnp.linalg.eigh(A @ A.T)
        c = y @ A

        def nearest(w, rho):
            h = c + rho * together(w) / root
            x = (h - (U @ ((U.T @ (A @ h)) / (jnp.maximum(sigma, 0) + rho))) @ A) / rho
            return D.stripes(x / root)

        def code(state):
            """The mean of the copies; an entry is zero if it is zero in all copies."""
            return together(state.v) / times

        def gap(x: Array, state: Splits) -> Array:
            q = state.rho * state.u
            r = y - D @ x
            q = q + D.stripes((r @ D - together(q)) / times)
            total = jnp.sum(jnp.max(jnp.abs(q), 1))
            s = dual_factor(lam, total)
            stripes = D.stripes(x)
            excess = lam * jnp.max(jnp.sum(jnp.abs(stripes), 1)) - s * jnp.sum(q * stripes)
            return ((1 - s) ** 2 * jnp.sum(r**2) / 2 + jnp.maximum(excess, 0)) / half_energy(y)

        state, steps, least = solve(
            admm(nearest, lambda stripes, rho: lower_the_fullest(stripes, lam / rho)),
            begin(D.stripes(start)),
            lambda s: gap(code(s), s),
            tol=self.tol,
            max_steps=self.max_steps,
            period=PERIOD,
        )

        def judge(x):
            least = gap(x, state)
            return least, least <= self.tol

        return Found(code(state), least, steps, least <= self.tol, judge=judge)


def lower_the_fullest(rows: Array, lam: Array) -> Array:
    r"""The proximal map of lam max_i norm(row_i, 1).

    .. math:: p_i = shrink(row_i, \theta_i), \qquad \sum_i \theta_i = lam, \qquad
        \|p_i\|_1 = \tau \; \text{where} \; \theta_i > 0.

    The threshold that shrinks row_i to norm tau is theta_i(tau) = max_k (sum of the k largest
    magnitudes of row_i - tau) / k. The sum of theta_i over i is convex, decreasing and piecewise
    linear in tau, so Newton's method from tau = 0 ends at the solution. All rows become zero if lam
    is at least the sum over i of the largest magnitude of row_i.
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
    tau, *_ = programs.while_loop(
        lambda carry: carry[1] & (carry[2] < _NEWTON), body, (zero, jnp.asarray(True), 0)
    )
    theta, _ = thresholds(tau)
    # If tau = 0, the thresholds only need to be large enough.
    return jnp.where(tau > 0, shrink(rows, theta[:, None]), 0)


Correction = Callable[[Array], Array]


def half_quadratic(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike,
    p: float = 1.0,
    *,
    beta: tuple[float, float] = (0.1, 100.0),
    stages: int = 8,
    steps: int = 20,
    tol: float = 1e-6,
    max_steps: int = 10_000,
) -> Pursuit:
    r"""Sparse coding with the penalty sum |x|^p, convex or not, by half-quadratic splitting.

    .. math:: F(x) = \|y - D x\|^2 / 2 + lam \sum_i |x_i|^p, \qquad 0 < p \le 1.

    A copy z of x replaces x in the data term. The first x is 0. In every stage beta is fixed, and
    the function repeats `steps` times

    .. math::
        z &\leftarrow \arg\min_z \|y - D z\|^2 / 2 + \beta/2 \, \|z - x\|^2
            = x + D'(D D' + \beta I)^{-1} (y - D x), \\
        x &\leftarrow \arg\min_x lam \sum_i |x_i|^p + \beta/2 \, \|z - x\|^2.

    The sum of all three terms never rises within a stage. After a stage, beta grows by a constant
    factor. For p = 1, the minimum of a stage is within a factor 1 + L / beta of the minimum of F.
    After the last stage, proximal gradient steps on F, of size 1 / L with L = norm(D, 2)^2, remove
    the remaining excess; these steps never raise F. The function is differentiable in D, y and lam,
    like `lasso`, with the support held fixed.

    The linear system is solved by a Cholesky factor if D is a matrix, in Fourier space if D is a
    circular `Conv` of stride 1, and by conjugate gradients otherwise. The system is factored once
    per stage, also under `jax.vmap` over signals.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`, whose code has the shape `D.code_grid`.
        lam: penalty weight: one number, one per atom, or one per filter of a `Conv`. (Zeiler et al.
            put lambda on the data term, lambda/2 norm(y - D x)^2 + sum |x|^p, so lam = 1 / lambda.)
        p: the exponent in (0, 1], static; Zeiler et al. use 1 and 0.8.
        beta: the first and the last beta, in units of L.
        stages: number of stages; their betas are a geometric sequence.
        steps: number of pairs of steps per stage.
        tol: tolerance at which the proximal steps stop, see Returns.
        max_steps: maximum number of proximal steps, rounded up to a multiple of 10; 0 for none.

    Returns:
        Pursuit. For p = 1, `gap` and `converged` are as in `lasso`. For p < 1 no bound is known, so
        `gap` is inf, and `converged` says that x is stationary: on the support of x, D'(y - D x)
        equals the derivative of the penalty, with errors of at most `tol max abs(D'y)`. `steps`
        counts the steps of all stages and the proximal steps.

    Raises:
        TypeError: an operand is not real, or p, tol or a count is traced.
        ValueError: shapes do not fit, a known lam is negative, p is outside (0, 1], beta is not
            0 < first <= last, there are no stages or no steps, a known D is 0, or tol <= 0; for
            p < 1, a known lam is outside of the range of the dtype.

    Not claimed: for p < 1, a global minimum or the correct support.

    Reference: Zeiler, Krishnan, Taylor, Fergus (2010), section 2.2; Krishnan, Fergus (2009).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.half_quadratic(D, D[:, 3] - 0.5 * D[:, 20], 0.01, p=0.5)
        >>> bool(result.converged), jnp.flatnonzero(result.x).tolist()
        (True, [3, 20])
    """
    where = "half_quadratic"
    p = as_power(p, where)
    betas = _schedule(beta, stages, where)
    steps = checks.as_depth(steps, "steps", where, least=1)
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    return single(Splitting(p, betas, steps, tol, max_steps), where, D, y, lam, size=fixed_norm)


@checked
def half_quadratic_step(
    D: Dictionary, y: Array, x: Array, beta: ArrayLike, theta: ArrayLike, p: float
) -> Array:
    """One pair of steps of `half_quadratic`, with theta = lam / beta.

    Args:
        D: (m, d), in float32 or wider.
        y, x: (m,) and (d,).
        beta: positive weight of the coupling term, one number.
        theta: thresholds: one number, one per atom, or one per filter of a `Conv`.
        p: the exponent in (0, 1], static.

    Returns:
        The next code, of shape (d,).

    Example:
        >>> D, y = jnp.eye(2), jnp.array([4.0, 0.5])
        >>> x = ur.pursuit.half_quadratic_step(D, y, jnp.zeros(2), 1.0, 0.5, 1)
        >>> [round(float(entry), 3) for entry in x]
        [1.5, 0.0]
    """
    checks.vector(x, "x", "half_quadratic_step")
    z = x + _correction(D, jnp.asarray(beta, x.dtype))(y - D @ x)
    return power_threshold(z, spread(D, theta), p)


def _schedule(beta: Any, stages: int, where: str) -> tuple[float, ...]:
    """The betas of the stages, in units of L."""
    stages = checks.as_depth(stages, "stages", where, least=1)
    is_pair = isinstance(beta, tuple | list) and len(beta) == 2
    first, last = (checks.as_number(b, "beta", where) for b in beta) if is_pair else (0.0, 0.0)
    if not 0 < first <= last < 1e9:
        raise ValueError(
            f"{where}: beta must be (first, last) with 0 < first <= last < 1e9, got {beta!r}"
        )
    return tuple(first * (last / first) ** (k / max(1, stages - 1)) for k in range(stages))


@dataclass(frozen=True)
class Splitting:
    """The method of `half_quadratic`."""

    p: float
    betas: tuple[float, ...]
    steps: int
    tol: float
    max_steps: int

    def __call__(self, problem: Problem, x: Array) -> Found:
        (D,), y, (lam,), _, _, (size,), *_ = problem
        # The units of lam depend on p.
        lam = lam * jnp.exp2((1 - self.p) * (-problem.up[0]).astype(y.dtype))
        x, missed, steps = self._minimised(*lax.stop_gradient((D, y, lam, 1 / size**2, x)))
        x = on_branch(partial(_slope, self.p), 10 * min(D.shape), (D, y, lam), x)

        def judge(x, missed=None):
            missed = self._missed(D, y, lam, x) if missed is None else missed
            gap = missed if self.p == 1 else jnp.full_like(missed, jnp.inf)
            return gap, missed <= self.tol

        gap, met = judge(x, missed)
        return Found(x, gap, steps, met, judge=judge)

    def _missed(self, D: Operator, y: Array, lam: Array, x: Array) -> Array:
        """The gap if p is 1, else the deviation of x from stationarity."""
        if self.p == 1:
            return relative_gap(D, y, lam, x)
        return _off_stationary(D, y, x, lam, self.p)

    def _minimised(
        self, D: Operator, y: Array, lam: Array, gamma: Array, x: Array
    ) -> tuple[Array, Array, Array]:
        """A nearly stationary point, its deviation from stationarity, and the number of steps."""
        p = self.p

        def stage(x: Array, beta: Array) -> tuple[Array, None]:
            correction = _correction(D, beta)

            def step(x: Array, _: None) -> tuple[Array, None]:
                z = x + correction(y - D @ x)
                return power_threshold(z, lam / beta, p), None

            return programs.scan(step, x, length=self.steps)

        def descend(state: State) -> State:
            x = state.x
            return State(power_threshold(x + gamma * ((y - D @ x) @ D), gamma * lam, p))

        x, _ = programs.scan(stage, x, jnp.asarray(self.betas, y.dtype) / gamma)
        state, last, missed = solve(
            descend,
            State(x),
            lambda state: self._missed(D, y, lam, state.x),
            tol=self.tol,
            max_steps=self.max_steps,
        )
        return state.x, missed, len(self.betas) * self.steps + last


def _off_stationary(D: Operator, y: Array, x: Array, lam: Array, p: float) -> Array:
    """The deviation of x from stationarity on its support, relative to max abs(D'y)."""
    off = jnp.max(jnp.abs(jnp.where(x != 0, _slope(p, (D, y, lam), x), 0 * x)))
    unit = jnp.max(jnp.abs(y @ D))
    return off / jnp.where(unit > 0, unit, 1)


def _slope(p: float, params: tuple[Operator, Array, Array], x: Array) -> Array:
    """The negative gradient of F in the entries of the support of x."""
    D, y, lam = params
    return (y - D @ x) @ D - lam * p * jnp.sign(x) * jnp.where(x != 0, jnp.abs(x), 1) ** (p - 1)


def _correction(D: Any, beta: Array) -> Correction:
    """r -> D'(D D' + beta I)^{-1} r; the factor is computed once."""
    if not isinstance(D, Structured):
        return _by_cholesky(D, beta)
    if isinstance(D, Conv) and D.boundary == "circular" and set(D.stride) == {1}:
        return _by_fourier(D, beta)

    def solve_by_gradients(r: Array) -> Array:
        eps = float(jnp.finfo(r.dtype).eps)
        q, _ = jax.scipy.sparse.linalg.cg(
            lambda q: D @ (q @ D) + beta * q, r, tol=eps, maxiter=2 * len(r)
        )
        return q @ D

    return solve_by_gradients


def _by_cholesky(D: Array, beta: Array) -> Correction:
    """The correction from a Cholesky factor of the smaller of D D' + beta I and D'D + beta I."""
    m, d = D.shape
    gram = D @ D.T if m <= d else D.T @ D
    factor = jax.scipy.linalg.cho_factor(gram + beta * jnp.eye(len(gram), dtype=D.dtype))
    if m <= d:
        return lambda r: jax.scipy.linalg.cho_solve(factor, r) @ D
    return lambda r: jax.scipy.linalg.cho_solve(factor, r @ D)


def _by_fourier(D: Conv, beta: Array) -> Correction:
    """The correction in Fourier space, where D D' is one small matrix of channels per frequency."""
    axes = tuple(range(1, 1 + len(D.signal_shape)))
    folded = D.entries()
    H = jnp.fft.rfftn(folded, D.signal_shape, tuple(axis + 1 for axis in axes))
    H = jnp.moveaxis(H.reshape(*H.shape[:2], -1), -1, 0)  # (frequencies, n_atoms, n_channels)
    gram = jnp.einsum("fac,fae->fce", H, H.conj())
    ridge = (beta * jnp.eye(gram.shape[-1], dtype=folded.dtype)).astype(gram.dtype)
    inverse = jnp.linalg.inv(gram + ridge[None])

    def solve_in_fourier_space(r: Array) -> Array:
        R = jnp.fft.rfftn(r.reshape(D.signal_grid), axes=axes)
        Q = jnp.einsum("fce,ef->cf", inverse, R.reshape(len(R), -1)).reshape(R.shape)
        return jnp.fft.irfftn(Q, D.signal_shape, axes).reshape(-1) @ D

    return solve_in_fourier_space
