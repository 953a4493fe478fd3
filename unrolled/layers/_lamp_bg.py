"""LAMP with the Bernoulli-Gaussian estimator, for codes with a known distribution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from unrolled._checks import Array, Key
from unrolled._numbers import energy, exponent, ldexp, times_power, widened
from unrolled.dictionaries import Dictionary, as_dictionary
from unrolled.layers._bernoulli_gaussian import Estimating
from unrolled.layers._lamp import DAMPED, Message, message_passing
from unrolled.layers._layer import Acting, Recipe
from unrolled.layers._records import Unrolled
from unrolled.theory import MessagePassing

# Noise variance per variance of the codes below which nothing is left to estimate (-100 dB): the
# odds stay finite.
_LEAST_NOISE = 1e-10


class Estimated(NamedTuple):
    """The state: the code, the residual with its memory, and the share of it to keep."""

    x: Array  # (d,)
    v: Array  # (m,)
    memory: Array  # ()


class lamp_bg(Estimating):
    r"""K steps of LAMP whose shrinkage is the best estimate of a Bernoulli-Gaussian code.

    .. math::
        v_k = y - D x_k + b_k v_{k-1}, \qquad \tau_k = \alpha_k \|v_k\|_2 / \sqrt m, \qquad
        u = x_k + W_k' v_k, \\
        x_{k+1} = \eta(u; \tau_k), \qquad b_{k+1} = \tfrac1m \sum_i \eta'(u_i; \tau_k), \qquad
        \eta(u; \tau) = E[x | x + \tau n = u].

    Params: steps (W, alpha), of which the magnitude of alpha counts. `init` is approximate message
    passing: W = D and alpha = 1 for unit atoms, the same in the units of D for others. The residual
    gives the noise level.

    It knows no lam, but a law of the codes: in the objective of the LASSO the start can be above
    ISTA at the same depth.

    Reference: Borgerding, Schniter, Rangan (2017), the shrinkage eta_bg, whose prior they learn
    too; Donoho, Maleki, Montanari (2009) for the start. Not claimed: sparse codes, entries are
    small but not zero; convergence for other than Gaussian D.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.lamp_bg(8, probability=0.02), 2 * D[:, 3] - D[:, 7]
        >>> jnp.flatnonzero(jnp.abs(layer.apply(layer.init(None, D), D, y)) > 0.1).tolist()
        [3, 7]
    """

    forms = (Unrolled(None, Message),)
    recipe = Recipe(rate=1e-4, options=lambda law, chosen: law.prior, damped=DAMPED)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        return message_passing(as_dictionary(D, self.family), 1.0, self.depth, self.family)

    def start(self, D, y):
        return Estimated(jnp.zeros(D.shape[1], y.dtype), jnp.zeros_like(y), jnp.zeros((), y.dtype))

    def step(self, shared, p, D, y, state):
        m = y.shape[0]
        v = y - D @ state.x + state.memory * state.v
        least = max(_LEAST_NOISE * self.variance, float(jnp.finfo(y.dtype).tiny))
        (e, k), j = energy(v), exponent(p.alpha)  # squares alone may leave the range
        tau2 = ldexp(times_power(widened(p.alpha), -j) ** 2 * e / m, 2 * (j + k))
        tau2 = jnp.maximum(tau2, least)
        u = state.x + v @ p.W
        x, slope = jax.jvp(lambda u: self.estimate(u, tau2), (u,), (jnp.ones_like(u),))
        return Estimated(x, v, jnp.sum(slope) / m)

    def weights(self, shared, p, D):
        return Acting(p.W)

    def message_passing(self):
        return MessagePassing("amp", "bayes", None, self.probability, self.variance)
