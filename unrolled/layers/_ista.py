"""ISTA and FISTA as networks: the step of the solver, K times, each with its own parameters."""

from typing import NamedTuple

import jax.numpy as jnp

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary, spectral_norm
from unrolled.layers._layer import Acting
from unrolled.layers._options import option
from unrolled.layers._records import Gamma, Theta, Unrolled, magnitude
from unrolled.layers._shrinking import Coupled, Shrinking
from unrolled.pursuit import Momentum, State, fista_step, ista_step


class StepAndThreshold(NamedTuple):
    """What one step learns: its step size and its threshold."""

    gamma: Gamma
    theta: Theta


class Step(NamedTuple):
    """A step size alone."""

    gamma: Gamma


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


class ista(Coupled, Shrinking):
    r"""K steps x <- shrink(x + gamma_k D'(y - D x), theta_k).

    Params: steps (gamma, theta), none shared. `init` sets them to 1/L and lam/L: then it is the
    solver `pursuit.ista`, step by step. Learned, it is step-LISTA (Ablin et al. 2019).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> layer = ur.layers.ista(10, lam=0.1)
        >>> x = layer.apply(layer.init(None, D), D, D[:, 1])
        >>> x.round(2).tolist()
        [0.0, 0.89, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO at the start")

    forms = (Unrolled(None, StepAndThreshold),)
    starts_from_theory = True

    def init(self, key, D):
        return ista_params(as_dictionary(D, self.family), self.lam, self.depth)

    def weights(self, shared, p, D):
        return Acting(D, p.gamma)


class step_lista(Shrinking):
    r"""K steps x <- shrink(x + gamma_k D'(y - D x), gamma_k lam): ISTA with K learned step sizes.

    Params: steps gamma, used as abs(gamma). `init` sets 1/L; then it is `pursuit.ista`. lam is not
        a
    parameter: whatever the steps, a fixed point solves the LASSO with this lam. Train with
    `training.lasso(lam)`.

    Reference: Ablin, Moreau, Massias, Gramfort (2019).
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO")

    forms = (Unrolled(None, Step),)
    starts_from_theory = True

    def init(self, key, D):
        D = as_dictionary(D, self.family)
        return Unrolled(None, Step(jnp.full(self.depth, 1 / lipschitz(D, self.family), D.dtype)))

    def step(self, shared, p, D, y, state):
        gamma = magnitude(p.gamma)  # a threshold must not be negative
        return State(ista_step(D, y, state.x, gamma, gamma * self.lam, self.activation))

    def weights(self, shared, p, D):
        return Acting(D, magnitude(p.gamma))


class fista(Shrinking):
    r"""K steps of FISTA, without restart: an ISTA step at z, then untrained momentum.

    Params as in `ista`. With 1/L and lam/L its objective is within 2 L norm(x*)^2 / (k + 1)^2 of
    the optimum.

    Reference: Beck, Teboulle (2009), Theorem 4.4.
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO at the start")

    forms = ista.forms
    starts_from_theory = True

    def init(self, key, D):
        return ista_params(as_dictionary(D, self.family), self.lam, self.depth)

    def start(self, D, y):
        x = jnp.zeros(D.shape[1], y.dtype)
        return Momentum(x, x, jnp.ones((), y.dtype))

    def step(self, shared, p, D, y, state):
        return fista_step(D, y, state, p.gamma, p.theta, self.activation)

    def weights(self, shared, p, D):
        return Acting(D, p.gamma)
