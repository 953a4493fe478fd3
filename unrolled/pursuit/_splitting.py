"""Splitting: ADMM with one split per penalty, and half-quadratic splitting for |x|^p."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._base import checks, loops
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import widened
from unrolled.activations import as_power, power_threshold
from unrolled.dictionaries import Conv, Dictionary, Operator, Structured, spread
from unrolled.pursuit._gap import relative_gap
from unrolled.pursuit._ista import State
from unrolled.pursuit._problem import (
    Found,
    Problem,
    Pursuit,
    fixed_norm,
    single,
    solve,
    static_steps,
    static_tol,
)
from unrolled.pursuit._support import on_branch

# Over-relaxation, within (0, 2).
_RELAXATION = 1.6
# Every so many steps, for the first so many, rho is balanced.
_PERIOD, _BALANCED = 10, 2000
# By how much rho may change at once.
_MOST = 10.0


class Splits(NamedTuple):
    """The state of ADMM."""

    x: Array  # (d,)
    v: Any  # the copies of K x, a tree
    u: Any  # their scaled multipliers; rho u is a subgradient of the penalties at v
    rho: Array  # ()
    steps: Array  # ()


def admm(
    minimise: Callable[[Array, Array], Array],
    forward: Callable[[Array], Any],
    prox: Callable[[Any, Array], Any],
    start: Array,
) -> tuple[Callable[[Splits], Splits], Splits]:
    r"""min f(x) + g(K x) by the alternating direction method of multipliers.

    .. math::
        x &\leftarrow \arg\min_x f(x) + \rho/2 \|K x - v + u\|^2, \\
        v_+ &= prox_{g/\rho}(w + u), \qquad w = \alpha K x + (1 - \alpha) v, \\
        u &\leftarrow u + w - v_+.

    rho is balanced now and then between the relative primal and dual residuals. It stays after a
    while, so that ADMM converges.

    Args:
        minimise: (b, rho) -> argmin_x f(x) + rho (x'K'K x / 2 - b'x).
        forward: x -> K x, linear, any tree of arrays.
        prox: (w, rho) -> argmin_v g(v) + rho/2 norm(v - w)^2.
        start: x to begin from.

    Returns:
        The step, and the state to begin from.

    Reference: Boyd, Parikh, Chu, Peleato, Eckstein (2011); Wohlberg (2017) for the balance.
    """

    def step(state: Splits) -> Splits:
        x, v, u, rho, steps = state
        x = minimise(loops.adjoint(forward, x, _minus(v, u)), rho)
        image = forward(x)
        w = jax.tree.map(lambda a, b: _RELAXATION * a + (1 - _RELAXATION) * b, image, v)
        after = prox(jax.tree.map(jnp.add, w, u), rho)
        u = jax.tree.map(lambda u, w, v: u + w - v, u, w, after)
        primal = _size(_minus(image, after)) / jnp.maximum(_size(image), _size(after))
        dual = _size(_minus(after, v)) / _size(u)
        factor = jnp.clip(jnp.sqrt(primal / dual), 1 / _MOST, _MOST)
        due = (steps % _PERIOD == _PERIOD - 1) & (steps < _BALANCED) & jnp.isfinite(factor)
        factor = jnp.where(due, factor, 1)
        return Splits(x, after, jax.tree.map(lambda u: u / factor, u), rho * factor, steps + 1)

    image = forward(start)
    zero = jax.tree.map(jnp.zeros_like, image)
    return step, Splits(start, image, zero, jnp.ones((), start.dtype), jnp.zeros((), int))


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _size(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def null_space(B: Array) -> tuple[Array, Array]:
    """N, (d, d), whose nonzero columns are an orthonormal basis of {x : B x = 0}; and B^+, (d, n).

    B is (n, d) with n >= d. Singular values within the rounding of the largest count as zero,
    which does not grow with the number of rows.
    """
    wide = widened(B)
    U, values, V = jnp.linalg.svd(wide, full_matrices=False)
    n, d = B.shape
    cut = min(n, 10 * d) * float(jnp.finfo(B.dtype).eps) * jnp.max(values)
    large = values > cut
    inverse = jnp.where(large, 1 / jnp.where(large, values, 1), 0)
    N, pseudo = jnp.where(large[None, :], 0, V.T), (V.T * inverse[None, :]) @ U.T
    return N.astype(B.dtype), pseudo.astype(B.dtype)


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
    r"""The penalty sum |x|^p, convex or not, by half-quadratic splitting, from x = 0.

    .. math:: F(x) = \|y - D x\|^2 / 2 + lam \sum_i |x_i|^p, \qquad 0 < p \le 1.

    A copy z of x takes the data term. In every stage beta is fixed, and `steps` times

    .. math::
        z &\leftarrow \arg\min_z \|y - D z\|^2 / 2 + \beta/2 \, \|z - x\|^2
            = x + D'(D D' + \beta I)^{-1} (y - D x), \\
        x &\leftarrow \arg\min_x lam \sum_i |x_i|^p + \beta/2 \, \|z - x\|^2,

    so that the sum of all three terms never rises within a stage. Then beta grows by a constant
    factor. For p = 1 the minimum of a stage is within a factor 1 + L / beta of that of F. What is
    left is removed by proximal gradient steps on F itself, of size 1 / L with L = norm(D, 2)^2,
    which never raise F either. Differentiable in D, y and lam, as `lasso` is, with the support held
    fixed.

    The linear system is solved by Cholesky for a matrix, in Fourier space for a circular `Conv` of
    stride 1, and else by conjugate gradients. It is factored once per stage, also for a batch that
    `jax.vmap` makes.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        lam: penalty weight, one number, one per atom, or one per filter of a `Conv`. (The paper
            puts lambda on the data term, lambda/2 norm(y - D x)^2 + sum |x|^p: lam = 1 / lambda.)
        p: in (0, 1], static; the paper has 1 and 0.8.
        beta: the first and the last beta, in units of L.
        stages: how many values beta takes, a geometric sequence.
        steps: pairs of steps per stage.
        tol: where the proximal steps stop, see below.
        max_steps: the most proximal steps, rounded up to a multiple of 10; 0 for none.

    Returns:
        Pursuit. For p = 1 `gap` and `converged` are those of `lasso`. For p < 1 no bound is known:
        `gap` is inf, and `converged` says that x is stationary: D'(y - D x) is the derivative of
        the penalty on the support of x, up to tol max abs(D'y). `steps` counts both kinds.

    Raises:
        TypeError: operands that are not real numbers; p, tol or a count is traced.
        ValueError: shapes that do not fit, lam < 0 (where known), p outside (0, 1], beta that is
            not 0 < first <= last, no stages or no steps, D = 0 (where known), or tol <= 0; for
            p < 1, lam outside of the range of the dtype (where known).

    Not claimed: for p < 1, a global minimum, or that the support is right.

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
    steps = checks.as_index(steps, "steps", where, least=1)
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    return single(Splitting(p, betas, steps, tol, max_steps), where, D, y, lam, size=fixed_norm)


@checked
def half_quadratic_step(
    D: Dictionary, y: Array, x: Array, beta: ArrayLike, theta: ArrayLike, p: float
) -> Array:
    """The pair of steps of `half_quadratic` with theta = lam / beta.

    Args:
        D: (m, d), in float32 at least.
        y, x: (m,) and (d,).
        beta: weight of the coupling, (), positive.
        theta: thresholds, (), (d,), or one per filter of a `Conv`.
        p: in (0, 1], static.

    Returns:
        The next code, (d,).

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
    stages = checks.as_index(stages, "stages", where, least=1)
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
        gap = missed if self.p == 1 else jnp.full_like(missed, jnp.inf)
        return Found(x, gap, steps, missed <= self.tol)

    def _minimised(
        self, D: Operator, y: Array, lam: Array, gamma: Array, x: Array
    ) -> tuple[Array, Array, Array]:
        """A stationary point, how far it is from one, and the steps."""
        p = self.p

        def stage(x: Array, beta: Array) -> tuple[Array, None]:
            correction = _correction(D, beta)

            def step(x: Array, _: None) -> tuple[Array, None]:
                z = x + correction(y - D @ x)
                return power_threshold(z, lam / beta, p), None

            return loops.scan(step, x, length=self.steps)

        def descend(state: State) -> State:
            x = state.x
            return State(power_threshold(x + gamma * ((y - D @ x) @ D), gamma * lam, p))

        def misses(state: State) -> Array:
            if p == 1:
                return relative_gap(D, y, lam, state.x)
            return _off_stationary(D, y, state.x, lam, p)

        x, _ = loops.scan(stage, x, jnp.asarray(self.betas, y.dtype) / gamma)
        state, last, missed = solve(
            descend, State(x), misses, tol=self.tol, max_steps=self.max_steps
        )
        return state.x, missed, len(self.betas) * self.steps + last


def _off_stationary(D: Operator, y: Array, x: Array, lam: Array, p: float) -> Array:
    """How far x is from stationary on its support, over max abs(D'y)."""
    off = jnp.max(jnp.abs(jnp.where(x != 0, _slope(p, (D, y, lam), x), 0 * x)))
    unit = jnp.max(jnp.abs(y @ D))
    return off / jnp.where(unit > 0, unit, 1)


def _slope(p: float, params: tuple[Operator, Array, Array], x: Array) -> Array:
    """The negative gradient of F in the entries of the support of x."""
    D, y, lam = params
    return (y - D @ x) @ D - lam * p * jnp.sign(x) * jnp.where(x != 0, jnp.abs(x), 1) ** (p - 1)


def _correction(D: Any, beta: Array) -> Correction:
    """r -> D'(D D' + beta I)^{-1} r, with what does not depend on r computed once."""
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
    """With the smaller one of D D' and D'D, as D'(D D' + beta I)^{-1} = (D'D + beta I)^{-1} D'."""
    m, d = D.shape
    gram = D @ D.T if m <= d else D.T @ D
    factor = jax.scipy.linalg.cho_factor(gram + beta * jnp.eye(len(gram), dtype=D.dtype))
    if m <= d:
        return lambda r: jax.scipy.linalg.cho_solve(factor, r) @ D
    return lambda r: jax.scipy.linalg.cho_solve(factor, r @ D)


def _by_fourier(D: Conv, beta: Array) -> Correction:
    """D D' is diagonal in Fourier space but for the channels: one small matrix per frequency."""
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
