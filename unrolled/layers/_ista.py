"""ISTA and FISTA as networks: the solver's step, K times, with a step size and a threshold per step."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.dictionaries._base import as_dictionary, spectral_norm
from unrolled.layers._unroll import Layer, Unrolled, factory, make_layer
from unrolled.pursuit._ista import Momentum, State, fista_step, ista_step


class StepAndThreshold(NamedTuple):
    """What one step learns: its step size and its threshold."""

    gamma: Array  # ()
    theta: Array  # (), (d,) or one per filter


FORMS = (((), StepAndThreshold._fields),)


def zero_state(D, y: Array) -> State:
    """The code 0."""
    return State(jnp.zeros(D.shape[1], y.dtype))


def ista_params(D, lam: float, depth: int) -> Unrolled:
    """gamma = 1 / L and theta = lam / L at every step, L = norm(D, 2)^2."""
    gamma = jnp.full(depth, 1 / lipschitz(D, "ista"), D.dtype)
    return Unrolled(None, StepAndThreshold(gamma, gamma * lam))


def lipschitz(D, where: str) -> Array:
    """L = norm(D, 2)^2; a known D = 0 is a ValueError."""
    L = spectral_norm(D) ** 2
    if _checks.is_concrete(L) and not L > 0:
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    return L


@factory
def ista(
    depth: int,
    *,
    lam: float = 0.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps x <- shrink(x + gamma_k D'(y - D x), theta_k).

    Params: steps (gamma, theta), no shared ones. `init` sets them to 1/L and lam/L: then it is the solver
    `pursuit.ista`, step by step. Learned, it is step-LISTA (Ablin et al. 2019).
    """

    def init(key, D):
        return ista_params(as_dictionary(D, "ista"), lam, depth)

    def step(shared, p, D, y, state):
        return State(ista_step(D, y, state.x, p.gamma, p.theta, activation))

    return make_layer("ista", depth, FORMS, init, zero_state, step, precision=precision, unroll=unroll, remat=remat)


@factory
def fista(
    depth: int,
    *,
    lam: float = 0.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps of FISTA, without restart: an ISTA step at z, then momentum (t - 1) / t_next, untrained.

    Params as in `ista`. With 1/L and lam/L its objective is within 2 L norm(x*)^2 / (k + 1)^2 of the optimum.

    Reference: Beck, Teboulle (2009), Theorem 4.4.
    """

    def init(key, D):
        return ista_params(as_dictionary(D, "fista"), lam, depth)

    def start(D, y):
        x = jnp.zeros(D.shape[1], y.dtype)
        return Momentum(x, x, jnp.ones((), y.dtype))

    def step(shared, p, D, y, state):
        return fista_step(D, y, state, p.gamma, p.theta, activation)

    return make_layer("fista", depth, FORMS, init, start, step, precision=precision, unroll=unroll, remat=remat)


def support_schedule(support: tuple[float, float] | None, depth: int, where: str) -> tuple[float, ...] | None:
    """Support fractions min(k rate, largest) for k = 1..K from (rate, largest); None selects nothing.

    Raises:
        ValueError: not 0 <= rate and 0 <= largest <= 1.
    """
    if support is None:
        return None
    try:
        rate, largest = (float(v) for v in support)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: support must be (rate, largest), got {support!r}") from error
    if not (0 <= rate < math.inf and 0 <= largest <= 1):
        raise ValueError(f"{where}: support must be (rate >= 0, largest in [0, 1]), got {support}")
    return tuple(min(k * rate, largest) for k in range(1, depth + 1))
