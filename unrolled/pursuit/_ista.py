"""ISTA and FISTA for the LASSO, min 1/2 norm(y - D x)^2 + lam norm(x, 1), to a duality gap."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import widened
from unrolled.activations import by_name, relu, shrink
from unrolled.dictionaries import Dictionary, spectral_norm, spread
from unrolled.pursuit._grids import flat_signal, on_grid
from unrolled.pursuit._problem import Problem, Pursuit, in_units, prepare, pursue


class State(NamedTuple):
    """The state of a method without memory: the code alone."""

    x: Array  # (d,)


class Momentum(NamedTuple):
    """The state of FISTA: the code, the extrapolated point, and the momentum counter t."""

    x: Array  # (d,)
    z: Array  # (d,)
    t: Array  # ()


def lipschitz(D: Dictionary, where: str) -> Array:
    """L = norm(D, 2)^2, the Lipschitz constant of the gradient D'(D x - y), for the step 1 / L.

    Raises:
        ValueError: a known D is zero, or L is outside of the range of its dtype.

    Example:
        >>> round(float(ur.pursuit.lipschitz(2 * jnp.eye(3), "caller")), 3)
        4.0
    """
    size = spectral_norm(D)
    L = size**2
    if _checks.is_concrete(size) and not size > 0:
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    if _checks.is_concrete(L) and not (L > 0 and 1 / L > 0):
        raise ValueError(
            f"{where}: norm(D) is {float(size):.3g}, and the step size 1 / norm(D)^2 leaves the "
            f"range of {L.dtype}; divide D by a constant"
        )
    return L


def ista_step(
    D: Dictionary,
    y: Array,
    x: Array,
    gamma: ArrayLike,
    theta: ArrayLike,
    activation: Callable[[Array], Array] = relu,
) -> Array:
    """x <- shrink(x + gamma D'(y - D x), theta): one gradient step, one shrinkage.

    The solver and the layer share this function.

    Args:
        D: (m, d).
        y, x: (m,) and (d,).
        gamma: step size, () or (d,).
        theta: thresholds, (), (d,), or one per filter of a `Conv`.
        activation: replaces ReLU in the shrinkage.

    Returns:
        The next code, (d,).

    Reference: Daubechies, Defrise, De Mol (2004).

    Example:
        >>> D, y = jnp.eye(3), jnp.array([3.0, 0.5, -2.0])
        >>> ur.pursuit.ista_step(D, y, jnp.zeros(3), 1.0, 1.0).tolist()
        [2.0, 0.0, -1.0]
    """
    return shrink(x + gamma * ((y - D @ x) @ D), spread(D, theta), activation)


def fista_step(
    D: Dictionary,
    y: Array,
    state: Momentum,
    gamma: ArrayLike,
    theta: ArrayLike,
    activation: Callable[[Array], Array] = relu,
    restart: bool = False,
) -> Momentum:
    r"""An ISTA step at the extrapolated point z, then the next extrapolation.

    .. math:: t_+ = (1 + \sqrt{1 + 4 t^2}) / 2, \qquad z_+ = x_+ + (t - 1) / t_+ \, (x_+ - x).

    Args:
        D, y, gamma, theta, activation: as in `ista_step`.
        state: x, z and t; at the start x = z = 0 and t = 1.
        restart: set t = 1 whenever the momentum points uphill, (z - x_+) . (x_+ - x) > 0.

    Returns:
        The next state.

    Reference: Beck, Teboulle (2009); O'Donoghue, Candes (2015) for the restart.

    Example:
        >>> D, y, zero = jnp.eye(2), jnp.array([3.0, 0.5]), jnp.zeros(2)
        >>> start = ur.pursuit.Momentum(zero, zero, jnp.ones(()))
        >>> ur.pursuit.fista_step(D, y, start, 1.0, 1.0).x.tolist()
        [2.0, 0.0]
    """
    return extrapolated(state, ista_step(D, y, state.z, gamma, theta, activation), restart)


def extrapolated(state: Momentum, x: Array, restart: bool) -> Momentum:
    """The state of FISTA after a step from `state.z` to x; see `fista_step`.

    Example:
        >>> state = ur.pursuit.Momentum(jnp.ones(2), jnp.ones(2), jnp.asarray(2.0))
        >>> z = ur.pursuit.extrapolated(state, 2 * jnp.ones(2), restart=False).z
        >>> [round(entry, 3) for entry in z.tolist()]  # 2 + 1 / t_+
        [2.39, 2.39]
    """
    step = x - state.x
    t = (
        jnp.where(jnp.vdot(state.z - x, step) > 0, jnp.ones_like(state.t), state.t)
        if restart
        else state.t
    )
    wide = widened(t)  # t^2 leaves the range of half precision
    t_next = ((1 + jnp.sqrt(1 + 4 * wide**2)) / 2).astype(t.dtype)
    return Momentum(x, x + (t - 1) / t_next * step, t_next)


def ista(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike,
    *,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    activation: Callable[[Array], Array] = relu,
) -> Pursuit:
    r"""The LASSO by ISTA, from x = 0.

    .. math:: x \leftarrow shrink(x + D'(y - D x) / L, lam / L), \qquad L = \|D\|_2^2.

    The objective never rises, and F(x_k) - F* <= L norm(x*)^2 / (2 k).

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        lam: penalty weight, one number, one per atom, or one per filter of a `Conv`; lam >= max
            abs(D'y) gives x = 0. (A paper that puts lambda on the data term, norm(x, 1) + lambda
            norm(y - D x)^2, has lam = 1 / (2 lambda).)
        tol: relative duality gap to stop at; None runs exactly `max_steps` steps and is
            differentiable in reverse mode.
        max_steps: the most steps; with a tol, rounded up to a multiple of 10.
        activation: replaces ReLU in the shrinkage; the gap certifies the LASSO, so ReLU only.

    Returns:
        Pursuit. In float32 the gap of hard problems stalls near 1e-6.

    Raises:
        TypeError: operands that are not real numbers, or a traced tol or max_steps.
        ValueError: shapes that do not fit, lam < 0 or beyond the range of the dtype, D = 0
            (where known), or tol <= 0.

    Reference: Daubechies, Defrise, De Mol (2004); Beck, Teboulle (2009), Theorem 3.1.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> found = ur.pursuit.ista(D, D[:, 3] - 0.5 * D[:, 20], 0.01)
        >>> bool(found.converged), jnp.flatnonzero(jnp.abs(found.x) > 0.1).tolist()
        (True, [3, 20])
    """
    activation = by_name(activation)
    y, grid = flat_signal(D, y, "ista")
    problem, tol, max_steps = prepare("ista", D, y, lam, tol, max_steps)
    found = _ista(problem, tol, max_steps, activation)
    return on_grid(found, grid)


# The loops are compiled once per shape and options: an eager loop would be at every call.
@partial(jax.jit, static_argnums=(1, 2, 3))
def _ista(problem: Problem, tol: float | None, max_steps: int, activation: Callable) -> Pursuit:
    D, y, lam, gamma, (a, b) = problem
    activation = in_units(activation, b - a)

    def step(state):
        return State(ista_step(D, y, state.x, gamma, gamma * lam, activation))

    return pursue(step, State(jnp.zeros(D.shape[1], y.dtype)), problem, tol, max_steps)


def fista(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike,
    *,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    restart: bool = True,
    activation: Callable[[Array], Array] = relu,
) -> Pursuit:
    r"""The LASSO by FISTA: ISTA steps at extrapolated points, see `fista_step`.

    Without restart F(x_k) - F* <= 2 L norm(x*)^2 / (k + 1)^2. With restart there is no such
    guarantee, but the local rate is linear and the gap is reached sooner.

    Args:
        D, y, lam, tol, max_steps, activation: as in `ista`.
        restart: drop the momentum whenever it points uphill.

    Returns:
        Pursuit, as from `ista`.

    Raises:
        TypeError, ValueError: as in `ista`.

    Reference: Beck, Teboulle (2009), Theorem 4.4; O'Donoghue, Candes (2015) for the restart.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> found = ur.pursuit.fista(D, D[:, 3] - 0.5 * D[:, 20], 0.01)
        >>> bool(found.converged), jnp.flatnonzero(jnp.abs(found.x) > 0.1).tolist()
        (True, [3, 20])
    """
    activation = by_name(activation)
    y, grid = flat_signal(D, y, "fista")
    problem, tol, max_steps = prepare("fista", D, y, lam, tol, max_steps)
    restart = _checks.as_bool(restart, "restart", "fista")
    found = _fista(problem, tol, max_steps, activation, restart)
    return on_grid(found, grid)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _fista(
    problem: Problem, tol: float | None, max_steps: int, activation: Callable, restart: bool
) -> Pursuit:
    D, y, lam, gamma, (a, b) = problem
    activation, x = in_units(activation, b - a), jnp.zeros(D.shape[1], y.dtype)

    def step(state):
        return fista_step(D, y, state, gamma, gamma * lam, activation, restart)

    return pursue(step, Momentum(x, x, jnp.ones((), y.dtype)), problem, tol, max_steps)
