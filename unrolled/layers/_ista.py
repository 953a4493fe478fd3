"""ISTA and FISTA as networks: the solver's step, K times, with a step size and a threshold per
step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.dictionaries import as_dictionary, spectral_norm
from unrolled.layers._unroll import Layer, Unrolled, factory, magnitude, make_layer
from unrolled.pursuit import Momentum, State, fista_step, ista_step


class StepAndThreshold(NamedTuple):
    """What one step learns: its step size and its threshold."""

    gamma: Array  # ()
    theta: Array  # (), (d,) or one per filter


FORMS = (((), StepAndThreshold._fields),)


class Step(NamedTuple):
    """A step size alone."""

    gamma: Array  # ()


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

    Params: steps (gamma, theta), no shared ones. `init` sets them to 1/L and lam/L: then it is the
    solver `pursuit.ista`, step by step. Learned, it is step-LISTA (Ablin et al. 2019).
    """

    def init(key, D):
        return ista_params(as_dictionary(D, "ista"), lam, depth)

    def step(shared, p, D, y, state):
        return State(ista_step(D, y, state.x, p.gamma, p.theta, activation))

    return make_layer(
        "ista",
        depth,
        FORMS,
        init,
        zero_state,
        step,
        precision=precision,
        unroll=unroll,
        remat=remat,
    )


@factory
def step_lista(
    depth: int,
    *,
    lam: float = 0.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps x <- shrink(x + gamma_k D'(y - D x), gamma_k lam): ISTA for the LASSO with K learned
    step sizes.

    Params: steps gamma, used as abs(gamma). `init` sets 1/L; then it is `pursuit.ista`. lam is not
    a parameter: whatever the steps, a fixed point is a solution of the LASSO with this lam. Train
    with `training.lasso(lam)`.

    Reference: Ablin, Moreau, Massias, Gramfort (2019).
    """

    def init(key, D):
        D = as_dictionary(D, "step_lista")
        return Unrolled(None, Step(jnp.full(depth, 1 / lipschitz(D, "step_lista"), D.dtype)))

    def step(shared, p, D, y, state):
        gamma = magnitude(p.gamma)  # a threshold must not be negative
        return State(ista_step(D, y, state.x, gamma, gamma * lam, activation))

    forms = (((), Step._fields),)
    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("step_lista", depth, forms, init, zero_state, step, **options)


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
    r"""K steps of FISTA, without restart: an ISTA step at z, then momentum (t - 1) / t_next,
    untrained.

    Params as in `ista`. With 1/L and lam/L its objective is within 2 L norm(x*)^2 / (k + 1)^2 of
    the optimum.

    Reference: Beck, Teboulle (2009), Theorem 4.4.
    """

    def init(key, D):
        return ista_params(as_dictionary(D, "fista"), lam, depth)

    def start(D, y):
        x = jnp.zeros(D.shape[1], y.dtype)
        return Momentum(x, x, jnp.ones((), y.dtype))

    def step(shared, p, D, y, state):
        return fista_step(D, y, state, p.gamma, p.theta, activation)

    return make_layer(
        "fista", depth, FORMS, init, start, step, precision=precision, unroll=unroll, remat=remat
    )
