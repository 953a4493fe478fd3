"""TISTA (Ito, Takabe, Wadayama 2019): ISTA for Bernoulli-Gaussian codes, step sizes learned."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array, Key
from unrolled._numbers import energy, ldexp, widened
from unrolled._program import program
from unrolled.dictionaries import Dictionary, as_dictionary, column_norms, dense
from unrolled.layers._bernoulli_gaussian import Estimating
from unrolled.layers._ista import Step
from unrolled.layers._lamp import nonzero
from unrolled.layers._layer import Acting, Recipe
from unrolled.layers._records import Fixed, Unrolled
from unrolled.pursuit import State
from unrolled.records import option
from unrolled.theory import MessagePassing, pseudo_inverse

# The least error that is estimated, as in the paper: tau stays positive.
_LEAST_ERROR = 1e-9
# With the correction it falls further: this part of the variance of the codes.
_LEAST_CORRECTED = 1e-13
_LARGEST_SLOPE = 0.9  # that the correction sees


class Freed(NamedTuple):
    """The state: the code, and where the next step begins."""

    x: Array  # (d,)
    z: Array  # (d,)


class tista(Estimating):
    r"""K steps of ISTA for codes with a known distribution; K step sizes are learned.

    .. math::
        r = x + \gamma_k D^+ (y - D x), \qquad x \leftarrow E[x^* | x^* + \tau_k n = r], \qquad
        \tau_k^2 = \frac{v}{d} (d + (\gamma_k^2 - 2 \gamma_k) \min(m, d))
        + \frac{\gamma_k^2 \sigma^2}{d} \|D^+\|_F^2,

    where v = max((norm(y - D x)^2 - m sigma^2) / norm(D, "fro")^2, 1e-9) estimates the mean square
    error. With `onsager` the next step begins, with the same formulas, not at x but at

    .. math:: z = \frac{x - a r}{1 - a},

    a being the mean derivative of the estimate: its error is not correlated with that of r, as
    tau_k asks.

    Params: shared W = (D^+)', fixed, and steps gamma. `init` sets gamma = d / min(m, d), at which
    the errors of r are unbiased, and without `onsager` at most 2, beyond which a step expands.

    It knows no lam, but a law of the codes: in the objective of the LASSO the start can be above
    ISTA at the same depth.

    Reference: Ito, Takabe, Wadayama (2019); Ma, Ping (2017) for the correction, and
    `theory.state_evolution` for its error. Not claimed: sparse codes; entries are small, not zero.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.tista(8, probability=0.02), 2 * D[:, 3] - D[:, 7]
        >>> jnp.flatnonzero(jnp.abs(layer.apply(layer.init(None, D), D, y)) > 0.1).tolist()
        [3, 7]
    """

    noise: float = option(default=0.0, least=0, help="variance sigma^2 of the noise per entry of y")
    onsager: bool = option(default=False, help="use the correction of message passing")

    forms = (Unrolled(Fixed, Step),)
    recipe = Recipe(rate=1e-2, options=lambda law, chosen: law.prior | {"noise": law.noise})

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        nonzero(column_norms(D), self.family)
        gamma = D.shape[1] / min(D.shape)
        return _start(D, gamma if self.onsager else min(gamma, 2.0), self.depth)

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return Freed(zero, zero) if self.onsager else State(zero)

    def step(self, shared, p, D, y, state):
        W, (m, d), gamma = lax.stop_gradient(shared.W), D.shape, p.gamma
        least = _LEAST_CORRECTED * self.variance if self.onsager else _LEAST_ERROR
        z = state.z if self.onsager else state.x
        residual = y - D @ z
        # Sums of squares, each over a power of 4: on their own they may leave the range.
        (E, i), (e, j), (w, k) = energy(dense(D)), energy(residual), energy(W)
        noise, n = math.frexp(self.noise)
        excess = ldexp(e / E, 2 * (j - i)) - m * ldexp(noise / E, n - 2 * i)
        v, g = jnp.maximum(excess, least), widened(gamma)
        tau2 = v / d * (d + (g**2 - 2 * g) * min(m, d))  # the rank of D, if it is full
        tau2 = tau2 + g**2 / d * ldexp(noise * w, n + 2 * k)
        tau2 = jnp.maximum(tau2, least)
        r = z + gamma * (residual @ W)
        if not self.onsager:
            return State(self.estimate(r, tau2))
        x, slope = jax.jvp(lambda r: self.estimate(r, tau2), (r,), (jnp.ones_like(r),))
        a = jnp.minimum(jnp.mean(slope), _LARGEST_SLOPE)
        return Freed(x, (x - a * r) / (1 - a))

    def weights(self, shared, p, D):
        return Acting(shared.W, p.gamma)

    def message_passing(self):
        step = "oamp" if self.onsager else "projected"
        prior = self.probability, self.variance
        return MessagePassing(step, "bayes", None, *prior, noise=self.noise)


@program("depth")
def _start(D: Dictionary, gamma: float, depth: int) -> Unrolled:
    return Unrolled(Fixed(pseudo_inverse(D).T), Step(jnp.full(depth, gamma, D.dtype)))
