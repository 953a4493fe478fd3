"""Convolutional basis pursuit with a bound on the residual of every patch."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import ldexp, norm
from unrolled.activations import shrink
from unrolled.dictionaries import Conv, Dictionary, dense
from unrolled.pursuit._deep import Chain, as_problem, as_start
from unrolled.pursuit._options import static_steps, static_tol
from unrolled.pursuit._problem import in_range, solve
from unrolled.pursuit._splitting import Splits, admm


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
        >>> found = ur.pursuit.local_error(D, y, 0.1, tol=1e-4)
        >>> bool(found.converged), bool(jnp.linalg.norm(D.patches(y - D @ found.x)[0]) < 0.101)
        (True, True)
    """
    where = "local_error"
    as_convolution(D, where)
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    radius = as_number(radius, "radius", where)
    chain = as_problem(where, (D,), y, (0.0,))
    radius = ldexp(radius.astype(chain.y.dtype), -chain.b)
    return _local_error(chain, radius, as_start(chain, start, where), tol, max_steps)


def as_convolution(D: Dictionary, where: str) -> None:
    """Raise TypeError unless D is a `Conv`."""
    if not isinstance(D, Conv):
        raise TypeError(f"{where}: D is a {type(D).__name__}; expected a Conv, which has patches")


def as_number(value: ArrayLike, name: str, where: str) -> Array:
    """A real number that is not known to be negative or infinite."""
    number = _checks.as_float(value, name, where)
    if number.ndim:
        raise ValueError(f"{where}: {name} has shape {number.shape}; expected one number")
    _checks.nonnegative(value, name, where)
    _checks.finite(value, name, where)
    return number


# Compiled once per shape and options, as in `ista`.
@partial(jax.jit, static_argnums=(3, 4))
def _local_error(
    chain: Chain, radius: Array, start: Array, tol: float, max_steps: int
) -> Constrained:
    D: Any = chain.Ds[0]  # a Conv
    y = chain.y
    ones = jnp.ones_like(y)
    with jax.default_matmul_precision("highest"):
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
        state, steps = solve(
            step, state, lambda s: jnp.maximum(*judged(s)), tol=tol, max_steps=max_steps
        )
        x, (gap, violation) = state.v[0], judged(state)
        found = ldexp(x, chain.up[0])
        met = (gap <= tol) & (violation <= tol) & in_range(found, x, chain.up[0])
        return Constrained(found, gap, violation, ldexp(norm(y - D @ x), chain.b), steps, met)


def _norms(patches: Array) -> Array:
    return jnp.sqrt(jnp.sum(patches**2, 1))


def _within(patches: Array, radius: Array) -> Array:
    """Every patch shortened to the radius."""
    norms = _norms(patches)
    factor = jnp.where(norms > radius, radius / jnp.where(norms > 0, norms, 1), 1)
    return patches * factor[:, None]


def _sum(D: Conv, patches: Array, y: Array) -> Any:
    """sum_i R_i' q_i."""
    return jax.linear_transpose(D.patches, y)(patches)[0]
