"""The LASSO in units near 1, the loop of its solvers, and their result."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import exponent, ldexp, norm, power_of_two
from unrolled.activations import relu
from unrolled.dictionaries import Dictionary, operands, spectral_norm
from unrolled.pursuit._gap import gap_near_one, half_energy
from unrolled.pursuit._options import per_atom, static_steps, static_tol

# Steps between two evaluations of the gap, which costs as much as a step.
_BLOCK = 10


class Pursuit(NamedTuple):
    """A code and how good it is."""

    x: Array  # (d,)
    gap: Array  # () duality gap of x for the LASSO, relative to norm(y)^2 / 2
    residual: Array  # () norm(y - D x)
    steps: Array  # () steps taken
    converged: Array  # () gap <= tol, and x is in the range of the dtype


class Problem(NamedTuple):
    """A LASSO in units in which squares and products of its numbers stay in the range of the dtype.

    D is divided by 2^a, y by 2^b, lam by 2^(a + b): then x is divided by 2^(b - a), exactly.
    """

    D: Dictionary
    y: Array  # (m,)
    lam: Array  # () or (d,)
    gamma: Any  # () step size; None where no step is taken
    exponents: tuple[Array, Array]  # a, b


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
    problem = scaled(D, y, lam, (a, b), 1 / ldexp(size, -a) ** 2)
    return problem, tol, static_steps(max_steps, where)


def scaled(
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


def in_units(activation: Callable[[Array], Array], k: Array) -> Callable[[Array], Array]:
    """The activation for numbers divided by 2^k: v -> rho(2^k v) / 2^k, which is ReLU for ReLU."""
    return activation if activation == relu else lambda v: ldexp(activation(ldexp(v, k)), -k)


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


def pursue(step, start, problem: Problem, tol: float | None, max_steps: int) -> Pursuit:
    """The loop on a problem near 1, to a relative gap, and its result in the units of the user."""
    D, y, lam, *_ = problem

    def relative_gap(state):
        return gap_near_one(D, y, state.x, lam) / half_energy(y)

    with jax.default_matmul_precision("highest"):
        state, steps = solve(step, start, relative_gap, tol=tol, max_steps=max_steps)
        return result(problem, state.x, 0 if tol is None else tol, steps)


def result(
    problem: Problem, x: Array, tol: float, steps: Array, nonnegative: bool = False
) -> Pursuit:
    D, y, lam, _, (a, b) = problem
    gap = gap_near_one(D, y, x, lam, nonnegative) / half_energy(y)
    found = ldexp(x, b - a)
    converged = (gap <= tol) & in_range(found, x, b - a)
    return Pursuit(found, gap, ldexp(norm(y - D @ x), b), steps, converged)


def in_range(found: Array, x: Array, k: Array) -> Array:
    """Whether found = x 2^k lost no more of x to the range of its dtype than rounding would."""
    eps = float(jnp.finfo(found.dtype).eps)
    missed = jnp.abs(ldexp(found.astype(x.dtype), -k) - x)
    return (missed <= 2 * eps * jnp.max(jnp.abs(x))).all()
