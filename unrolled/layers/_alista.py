"""ALISTA (Liu, Chen, Wang, Yin 2019): weights from theory, learned or recomputed."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary, spread
from unrolled.layers._ista import StepAndThreshold, lipschitz
from unrolled.layers._layer import Acting
from unrolled.layers._options import option
from unrolled.layers._records import Fixed, Unrolled, Weights
from unrolled.layers._shrinking import Coupled, Selecting
from unrolled.theory import frobenius_weights


def with_unit_steps(theta: Array) -> StepAndThreshold:
    """gamma = 1 beside the thresholds of K steps."""
    return StepAndThreshold(jnp.ones(len(theta), theta.dtype), theta)


class alista(Coupled, Selecting):
    r"""K steps x <- shrink(x + gamma_k W'(y - D x), theta_k) with W fixed; 2 K numbers are learned.

    Params: shared W (no gradient passes, and `fit` leaves it alone), steps (gamma, theta). `init`
    takes the closed-form `frobenius_weights(D)`, gamma = 1 and the given `theta`.

    Reference: Liu, Chen, Wang, Yin (2019). Their support selection is about (0.012, 0.13).

    Example:
        >>> layer, D = ur.alista(16, support=(0.012, 0.12)), ur.dictionaries.dct(8, 16)
        >>> layer.depth, layer.support, layer is ur.alista(16, support=(0.012, 0.12))
        (16, (0.012, 0.12), True)
        >>> layer.apply(layer.init(None, D), D, D[:, 3]).shape
        (16,)
    """

    theta: float = option(default=0.1, least=0, help="threshold at the start")

    forms = (Unrolled(Fixed, StepAndThreshold),)

    def init(self, key, D):
        D = as_dictionary(D, self.family)
        return self.from_theory(frobenius_weights(D), jnp.full(self.depth, self.theta, D.dtype))

    def weights(self, shared, p, D):
        return Acting(lax.stop_gradient(shared.W), p.gamma)

    def from_theory(self, W, theta):
        return Unrolled(Fixed(W), with_unit_steps(theta))


class tilista(Coupled, Selecting):
    r"""K steps x <- shrink(x + gamma_k W'(y - D x), theta_k) with one trained W: TiLISTA.

    Params: shared W, steps (gamma, theta): m d + 2 K numbers. `init` is ISTA: W = D / L, gamma = 1,
    theta = lam / L. Params of `alista` become its own with
    `Unrolled(Weights(params.shared.W), params.steps)`.

    Reference: Liu, Chen, Wang, Yin (2019), equation (15).
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO at the start")

    forms = (Unrolled(Weights, StepAndThreshold),)

    def init(self, key, D):
        D = as_dictionary(D, self.family)
        L = lipschitz(D, self.family)
        return self.from_theory(D / L, jnp.full(self.depth, self.lam / L, D.dtype))

    def weights(self, shared, p, D):
        return Acting(shared.W, p.gamma)

    def from_theory(self, W, theta):
        return Unrolled(Weights(W), with_unit_steps(theta))


class WithWeights(NamedTuple):
    """The state: the code, and the weights of the dictionary in use."""

    x: Array  # (d,)
    W: Any  # (m, d)


class robust_alista(Selecting):
    r"""ALISTA with W(D) in closed form for the D of each call.

    K steps x <- shrink(x + gamma_k W(D)'(y - D x), theta_k). Params: steps (gamma, theta), none
    shared; `init` as in `alista`. W is `frobenius_weights(D)`, one pseudo-inverse per dictionary,
    and gradients pass through it to D. Codes of a traced D with a zero atom are nan. For
    dictionaries that change from signal to signal map over both, `jax.vmap(layer.apply, (None, 0,
    0))(params, Ds, Y)`, and let the sampler of `fit` return (Y, X, Ds).

    Reference: Liu, Chen, Wang, Yin (2019), section 4, where a network of four layers approximates
    W(D).
    """

    theta: float = option(default=0.1, least=0, help="threshold at the start")

    forms = (Unrolled(None, StepAndThreshold),)

    def init(self, key, D):
        D = as_dictionary(D, self.family)
        return Unrolled(None, with_unit_steps(jnp.full(self.depth, self.theta, D.dtype)))

    def start(self, D, y):
        return WithWeights(jnp.zeros(D.shape[1], y.dtype), frobenius_weights(D))

    def step(self, shared, p, D, y, state, fraction=None):
        u = state.x + p.gamma * ((y - D @ state.x) @ state.W)
        return state._replace(x=self.shrink(u, spread(D, p.theta), fraction))

    def weights(self, shared, p, D):
        return Acting(frobenius_weights(D), p.gamma)
