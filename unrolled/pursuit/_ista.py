"""ISTA and FISTA for the LASSO, min 1/2 norm(y - D x)^2 + lam norm(x, 1), to a duality gap."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import at_least, exponent, ldexp, norm, power_of_two, wide_dtype, widened
from unrolled.activations import by_name, nonnegative_threshold, relu, shrink
from unrolled.dictionaries import Dictionary, operands, spectral_norm, spread
from unrolled.pursuit._grids import flat_code, flat_signal, on_grid


class Pursuit(NamedTuple):
    """A code and how good it is."""

    x: Array  # (d,)
    gap: Array  # () duality gap of x for the LASSO, relative to norm(y)^2 / 2
    residual: Array  # () norm(y - D x)
    steps: Array  # () steps taken
    converged: Array  # () gap <= tol, and x is in the range of the dtype


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
        ValueError: a known D is zero.

    Example:
        >>> round(float(ur.pursuit.lipschitz(2 * jnp.eye(3), "caller")), 3)
        4.0
    """
    L = spectral_norm(D) ** 2
    if _checks.is_concrete(L) and not L > 0:
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
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


def lasso_objective(D: Dictionary, y: Array, x: Array, lam: ArrayLike) -> Array:
    """1/2 norm(y - D x)^2 + lam norm(x, 1).

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> float(ur.pursuit.lasso_objective(D, y, jnp.array([2.0, 0.0]), 1.0))
        2.625
    """
    r = y - D @ x
    return jnp.sum(r * (r / 2)) + lam * jnp.sum(jnp.abs(x))  # r^2 may leave the range, r^2/2 not


def duality_gap(D: Dictionary, y: Array, x: Array, lam: ArrayLike) -> Array:
    r"""An upper bound of F(x) - F* for the LASSO that needs no F*.

    It comes from the dual point s r, with r = y - D x and s = min(1, min_i lam_i / |D'r|_i), as a
    sum of non-negative terms without cancellation, so that it is accurate in float32:

    .. math:: gap = (1 - s)^2 \|r\|^2 / 2 + \sum_i (lam_i |x_i| - s x_i (D'r)_i).

    Args:
        D: (m, d).
        y, x: (m,) and (d,).
        lam: penalty weight, () or (d,).

    Returns:
        The gap, (), in the units of norm(y)^2.

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> float(ur.pursuit.duality_gap(D, y, jnp.array([2.0, 0.0]), 1.0))
        0.0
    """
    # Over a power of two near y or D x the terms stay in the range, wherever their sum does.
    r = y - D @ x
    k = exponent(jnp.stack([jnp.asarray(y, r.dtype), r]))
    y, x, weight = (ldexp(jnp.asarray(v, r.dtype), -k) for v in (y, x, lam))
    return ldexp(gap_near_one(D, y, x, weight), 2 * k)


def gap_near_one(D: Dictionary, y: Array, x: Array, lam: Array, nonnegative: bool = False) -> Array:
    """`duality_gap` for y and D x near 1, or that over x >= 0, inf for other codes.

    A dual point of x >= 0 is bounded on one side only.
    """
    r = y - D @ x
    g = r @ D
    size = g if nonnegative else jnp.abs(g)
    over = size > lam
    s = jnp.min(jnp.where(over, lam / jnp.where(over, size, 1), 1))
    gap = (1 - s) ** 2 * jnp.sum(r**2) / 2 + jnp.sum(at_least(lam * jnp.abs(x) - s * x * g, 0))
    return jnp.where((x < 0).any(), jnp.inf, gap) if nonnegative else gap


# Steps between two evaluations of the gap, which costs as much as a step.
_BLOCK = 10


def solve(
    step: Callable[[Any], Any],
    start: Any,
    gap: Callable[[Any], Array],
    *,
    tol: float | None,
    max_steps: int,
) -> tuple[Any, Array]:
    """The loop of all solvers: `state <- step(state)` until gap(state) <= tol.

    The gap is evaluated every `_BLOCK` steps. With tol=None exactly `max_steps` steps run as one
    scan, which can be differentiated in reverse mode.

    Returns:
        The last state and the number of steps.
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
        ValueError: shapes that do not fit, lam < 0, D = 0 (where known), or tol <= 0.

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
def _ista(problem: "Problem", tol: float | None, max_steps: int, activation: Callable) -> Pursuit:
    D, y, lam, gamma, (a, b) = problem
    activation = in_units(activation, b - a)

    def step(state):
        return State(ista_step(D, y, state.x, gamma, gamma * lam, activation))

    return _pursue(step, State(jnp.zeros(D.shape[1], y.dtype)), problem, tol, max_steps)


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
    found = _fista(problem, tol, max_steps, activation, bool(restart))
    return on_grid(found, grid)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _fista(
    problem: "Problem", tol: float | None, max_steps: int, activation: Callable, restart: bool
) -> Pursuit:
    D, y, lam, gamma, (a, b) = problem
    activation, x = in_units(activation, b - a), jnp.zeros(D.shape[1], y.dtype)

    def step(state):
        return fista_step(D, y, state, gamma, gamma * lam, activation, restart)

    return _pursue(step, Momentum(x, x, jnp.ones((), y.dtype)), problem, tol, max_steps)


def threshold(
    D: Dictionary,
    y: ArrayLike,
    theta: ArrayLike,
    *,
    activation: Callable[[Array], Array] = relu,
    tol: float = 1e-6,
) -> Pursuit:
    """One layer of a CNN as a pursuit: x = shrink(D'y, theta).

    It solves the LASSO with lam = theta if D is orthonormal; `gap` and `converged` judge it as a
    solution of that problem for any D.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        theta: one number, one per atom, or one per filter of a `Conv`.
        activation: replaces ReLU in the shrinkage.
        tol: relative duality gap up to which `converged` is True.

    Returns:
        Pursuit, with one step.

    Raises:
        TypeError: operands that are not real numbers, or a traced tol.
        ValueError: shapes that do not fit, theta < 0 (where known), or tol <= 0.

    Reference: Papyan, Romano, Elad (2017).

    Example:
        >>> found = ur.pursuit.threshold(jnp.eye(3), jnp.array([3.0, 0.5, -2.0]), 1.0)
        >>> found.x.tolist(), bool(found.converged)
        ([2.0, 0.0, -1.0], True)
    """
    y, grid = flat_signal(D, y, "threshold")
    return on_grid(thresholded("threshold", D, y, theta, activation, tol), grid)


def thresholded(
    where: str,
    D: Dictionary,
    y: ArrayLike,
    theta: ArrayLike,
    activation: Callable[[Array], Array],
    tol: float,
    nonnegative: bool = False,
) -> Pursuit:
    """`threshold`, or for x >= 0 the rectifier rho(D'y - theta), judged by the gap over x >= 0."""
    D, y, _ = operands(D, y, where)
    _checks.nonnegative(theta, "theta", where)
    theta, tol = per_atom(D, y, theta, "theta", where), static_tol(tol, where)
    b = exponent(y)
    problem = _scaled(D, y, theta, (jnp.zeros((), jnp.int32), b))
    prox = nonnegative_threshold if nonnegative else shrink
    with jax.default_matmul_precision("highest"):
        x = prox(problem.y @ D, problem.lam, in_units(by_name(activation), b))
        return _result(problem, x, tol, jnp.ones((), int), nonnegative)


def in_units(activation: Callable[[Array], Array], k: Array) -> Callable[[Array], Array]:
    """The activation for numbers divided by 2^k: v -> rho(2^k v) / 2^k, which is ReLU for ReLU."""
    return activation if activation == relu else lambda v: ldexp(activation(ldexp(v, k)), -k)


class Problem(NamedTuple):
    """A LASSO in units in which squares and products of its numbers stay in the range of the dtype.

    D is divided by 2^a, y by 2^b, lam by 2^(a + b): then x is divided by 2^(b - a), exactly.
    """

    D: Dictionary
    y: Array  # (m,)
    lam: Array  # () or (d,)
    gamma: Any  # () step size; None where no step is taken
    exponents: tuple[Array, Array]  # a, b


def _scaled(
    D: Dictionary,
    y: Array,
    lam: Array,
    exponents: tuple[Array, Array],
    gamma: Array | None = None,
) -> Problem:
    a, b = exponents
    # A penalty above the range of the dtype in these units acts like the largest in it.
    lam = jnp.minimum(ldexp(lam, -(a + b)), float(jnp.finfo(y.dtype).max)).astype(y.dtype)
    return Problem(D * power_of_two(-a, y.dtype), ldexp(y, -b), lam, gamma, exponents)


def prepare(
    where: str,
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike,
    tol: float | None,
    max_steps: int,
) -> tuple[Problem, float | None, int]:
    """The checked problem with its step size, and the checked options."""
    D, y, _ = operands(D, y, where)
    _checks.nonnegative(lam, "lam", where)
    _checks.finite(lam, "lam", where)
    lam = per_atom(D, y, lam, "lam", where)
    tol = None if tol is None else static_tol(tol, where, ", or None for a fixed number of steps")
    size = spectral_norm(D)
    if _checks.is_concrete(size) and not size > 0:
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    a, b = exponent(size), exponent(y)
    problem = _scaled(D, y, lam, (a, b), 1 / ldexp(size, -a) ** 2)
    return problem, tol, static_steps(max_steps, where)


def static_tol(tol: float, where: str, otherwise: str = "") -> float:
    """A tolerance as a number, checked to be positive.

    Example:
        >>> from unrolled.pursuit._ista import static_tol
        >>> static_tol(1e-6, "caller")
        1e-06
    """
    number = _checks.as_number(tol, "tol", where)
    if not number > 0:
        raise ValueError(f"{where}: tol must be positive{otherwise}, got {tol}")
    return number


def static_steps(max_steps: int, where: str) -> int:
    """The most steps as an integer, cut to what a counter of 32 bits holds and none reaches.

    Example:
        >>> from unrolled.pursuit._ista import static_steps
        >>> static_steps(100, "caller")
        100
    """
    return min(_checks.as_index(max_steps, "max_steps", where), 2**30)


def per_atom(D: Dictionary, y: Array, value: ArrayLike, name: str, where: str) -> Array:
    """One number or one per atom; one per filter of a `Conv` is repeated over its positions."""
    each = spread(D, in_precision_of(y, flat_code(D, value), name, where))
    if each.shape not in ((), (D.shape[1],)):
        raise ValueError(f"{where}: {name} has shape {each.shape}; expected () or ({D.shape[1]},)")
    return each


def in_precision_of(y: Array, value: ArrayLike, name: str, where: str) -> Array:
    """`value` in the dtype of y, float32 at least, whose range it must not leave."""
    dtype = wide_dtype(y.dtype)
    _checks.in_range(value, dtype, name, where)
    return jnp.asarray(value, dtype)


def _pursue(step, start, problem: Problem, tol: float | None, max_steps: int) -> Pursuit:
    D, y, lam, *_ = problem

    def relative_gap(state):
        return gap_near_one(D, y, state.x, lam) / half_energy(y)

    with jax.default_matmul_precision("highest"):
        state, steps = solve(step, start, relative_gap, tol=tol, max_steps=max_steps)
        return _result(problem, state.x, 0 if tol is None else tol, steps)


def _result(
    problem: Problem, x: Array, tol: float, steps: Array, nonnegative: bool = False
) -> Pursuit:
    D, y, lam, _, (a, b) = problem
    gap = gap_near_one(D, y, x, lam, nonnegative) / half_energy(y)
    found = ldexp(x, b - a)
    converged = (gap <= tol) & in_range(found, x, b - a)
    return Pursuit(found, gap, ldexp(norm(y - D @ x), b), steps, converged)


def in_range(found: Array, x: Array, k: Array) -> Array:
    """Whether found = x 2^k lost no more of x to the range of its dtype than rounding would."""
    eps = float(jnp.finfo(x.dtype).eps)
    missed = jnp.abs(ldexp(found, -k) - x)
    return (missed <= 2 * eps * jnp.max(jnp.abs(x))).all()


def half_energy(y: Array) -> Array:
    """norm(y)^2 / 2, or 1 for y = 0: the unit of the gap."""
    energy = jnp.sum(y**2) / 2
    return jnp.where(energy > 0, energy, 1)
