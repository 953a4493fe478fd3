"""ISTA and FISTA for the LASSO, 1/2 norm(y - D x)^2 + lam norm(x, 1), run to a duality gap by one
loop.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import by_name, relu, shrink
from unrolled.dictionaries import operands, spectral_norm, spread


class Pursuit(NamedTuple):
    """A code and what is known about it."""

    x: Array  # (d,)
    gap: Array  # duality gap of x for the LASSO, relative to norm(y)^2 / 2
    residual: Array  # norm(y - D x)
    steps: Array  # steps taken
    converged: Array  # gap <= tol


class State(NamedTuple):
    """The code alone: what a method without memory carries."""

    x: Array  # (d,)


class Momentum(NamedTuple):
    """The state of FISTA: the code, the extrapolated point, and the momentum counter t."""

    x: Array  # (d,)
    z: Array  # (d,)
    t: Array  # ()


def ista_step(
    D, y: Array, x: Array, gamma: Array, theta: Array, activation: Callable = relu
) -> Array:
    """x <- shrink(x + gamma D'(y - D x), theta): one gradient step, one shrinkage.

    Reference: Daubechies, Defrise, De Mol (2004). Solver and layer share this function.
    """
    return shrink(x + gamma * ((y - D @ x) @ D), spread(D, theta), activation)


def fista_step(
    D,
    y: Array,
    state: Momentum,
    gamma: Array,
    theta: Array,
    activation: Callable = relu,
    restart: bool = False,
) -> Momentum:
    """An ISTA step at z, then extrapolation by the momentum of t <- (1 + sqrt(1 + 4 t^2)) / 2.

    With `restart` the momentum is dropped whenever it points uphill: (z - x_new) . (x_new - x) > 0.

    Reference: Beck, Teboulle (2009); O'Donoghue, Candes (2015) for the restart.
    """
    x = ista_step(D, y, state.z, gamma, theta, activation)
    step = x - state.x
    t = (
        jnp.where(jnp.vdot(state.z - x, step) > 0, jnp.ones_like(state.t), state.t)
        if restart
        else state.t
    )
    t_next = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    return Momentum(x, x + (t - 1) / t_next * step, t_next)


def lasso_objective(D, y: Array, x: Array, lam: Array) -> Array:
    """1/2 norm(y - D x)^2 + lam norm(x, 1)."""
    return jnp.sum((y - D @ x) ** 2) / 2 + lam * jnp.sum(jnp.abs(x))


def duality_gap(D, y: Array, x: Array, lam: Array) -> Array:
    r"""An upper bound of F(x) - F* that needs no F*, from the dual point nu = s r, s = min(1, min_i
    lam_i / |D'r|_i).

    Written without cancellation, as sums of non-negative terms, so that it is accurate in float32:

    .. math:: gap = (1 - s)^2 \|r\|^2 / 2 + \sum_i (lam_i |x_i| - s x_i (D'r)_i), \quad r = y - D x.

    Args: lam is a scalar or one weight per entry of x.
    """
    r = y - D @ x
    g = r @ D
    s = jnp.min(jnp.where(jnp.abs(g) > lam, lam / jnp.abs(g), jnp.ones_like(g)))
    return (1 - s) ** 2 * jnp.sum(r**2) / 2 + jnp.sum(jnp.maximum(lam * jnp.abs(x) - s * x * g, 0))


# Steps between two looks at the gap, which costs as much as a step.
_BLOCK = 10


def solve(step: Callable, start, gap: Callable, *, tol: float | None, max_steps: int):
    """The one loop: `state <- step(state)` until gap(state) <= tol, looked at every 10 steps.

    With tol=None exactly `max_steps` steps run as one scan, which reverse-mode differentiation can
    unroll.

    Returns:
        the last state and the number of steps.
    """

    def run(state, n):
        return lax.scan(lambda state, _: (step(state), None), state, length=n)[0]

    if tol is None:
        return run(start, max_steps), jnp.asarray(max_steps)

    def body(carry):
        state, steps, _ = carry
        state = run(state, _BLOCK)
        return state, steps + _BLOCK, gap(state)

    def goes_on(carry):
        _, steps, current = carry
        return (current > tol) & (steps < max_steps)

    state, steps, _ = lax.while_loop(goes_on, body, (start, jnp.zeros((), int), gap(start)))
    return state, steps


def ista(
    D,
    y: Array,
    lam: Array,
    *,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    activation: Callable = relu,
) -> Pursuit:
    r"""LASSO by ISTA: x <- shrink(x + D'(y - D x) / L, lam / L), L = norm(D, 2)^2, from 0.

    The objective never rises, and F(x_k) - F* <= L norm(x*)^2 / (2 k).

    Args:
        D: (m, d).
        y: (m,).
        lam: penalty weight, one number, one per atom or (`Conv`) one per filter; lam >= max
            abs(D'y) gives x = 0. (A paper that puts lambda on the data term, norm(x, 1) + lambda
            norm(y - D x)^2, has lam = 1 / (2 lambda).)
        tol: relative duality gap to stop at; None runs exactly `max_steps` steps, differentiable in
            reverse mode.
        max_steps: at most so many steps; with a tol, rounded up to a multiple of 10.
        activation: replaces ReLU in the shrinkage; the gap certifies only ReLU's.

    Returns:
        Pursuit. In float32 the gap of hard problems stalls near 1e-6.

    Raises:
        ValueError, TypeError: shapes that do not fit, lam < 0, D = 0 (where known), tol <= 0.
    """
    D, y, lam, gamma, tol, max_steps = _prepare("ista", D, y, lam, tol, max_steps)

    activation = by_name(activation)

    def step(state):
        return State(ista_step(D, y, state.x, gamma, gamma * lam, activation))

    return _pursue(step, State(jnp.zeros(D.shape[1], y.dtype)), D, y, lam, tol, max_steps)


def fista(
    D,
    y: Array,
    lam: Array,
    *,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    restart: bool = True,
    activation: Callable = relu,
) -> Pursuit:
    r"""LASSO by FISTA: ISTA steps at extrapolated points; arguments and errors as in `ista`.

    Without restart F(x_k) - F* <= 2 L norm(x*)^2 / (k + 1)^2. With it (the default) there is no
    such guarantee but the local rate is linear and the gap is reached sooner.
    """
    D, y, lam, gamma, tol, max_steps = _prepare("fista", D, y, lam, tol, max_steps)
    x, activation = jnp.zeros(D.shape[1], y.dtype), by_name(activation)

    def step(state):
        return fista_step(D, y, state, gamma, gamma * lam, activation, restart)

    return _pursue(step, Momentum(x, x, jnp.ones((), y.dtype)), D, y, lam, tol, max_steps)


def threshold(
    D, y: Array, theta: Array, *, activation: Callable = relu, tol: float = 1e-6
) -> Pursuit:
    """One layer of a CNN as a pursuit: x = shrink(D'y, theta), the LASSO's solution where D is
    orthonormal.

    `gap` and `converged` judge it as a solution of the LASSO with lam = theta (scalar, or one per
    atom).
    """
    D, y, _ = operands(D, y, "threshold")
    _checks.nonnegative(theta, "theta", "threshold")
    theta, activation = _per_atom(D, y, theta, "theta", "threshold"), by_name(activation)
    with jax.default_matmul_precision("highest"):
        x = shrink(y @ D, theta, activation)
        return _result(D, y, x, theta, tol, jnp.ones((), int))


def _prepare(where, D, y, lam, tol, max_steps):
    D, y, _ = operands(D, y, where)
    _checks.nonnegative(lam, "lam", where)
    _checks.finite(lam, "lam", where)
    lam = _per_atom(D, y, lam, "lam", where)
    if isinstance(tol, jax.core.Tracer):
        raise TypeError(f"{where}: tol must be static, got a traced value; try static_argnames")
    if tol is not None and not tol > 0:
        raise ValueError(
            f"{where}: tol must be positive, or None for a fixed number of steps; got {tol}"
        )
    norm = spectral_norm(D)
    if _checks.is_concrete(norm) and not norm > 0:
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    gamma = 1 / norm**2
    tol = None if tol is None else float(tol)
    return D, y, lam, gamma, tol, _checks.as_index(max_steps, "max_steps", where)


def _per_atom(D, y, value, name: str, where: str) -> Array:
    """One number, or one per atom; one per filter of a `Conv` is spread over its positions."""
    value = spread(D, jnp.asarray(value, y.dtype))
    if value.shape not in ((), (D.shape[1],)):
        raise ValueError(f"{where}: {name} has shape {value.shape}; expected () or ({D.shape[1]},)")
    return value


def _pursue(step, start, D, y, lam, tol, max_steps) -> Pursuit:
    energy = jnp.sum(y**2) / 2

    def relative_gap(state):
        return duality_gap(D, y, state.x, lam) / jnp.where(energy > 0, energy, 1)

    with jax.default_matmul_precision("highest"):
        state, steps = solve(step, start, relative_gap, tol=tol, max_steps=max_steps)
        return _result(D, y, state.x, lam, 0 if tol is None else tol, steps)


def _result(D, y, x, lam, tol, steps) -> Pursuit:
    energy = jnp.sum(y**2) / 2
    gap = duality_gap(D, y, x, lam) / jnp.where(energy > 0, energy, 1)
    return Pursuit(x, gap, jnp.linalg.norm(y - D @ x), steps, gap <= tol)
