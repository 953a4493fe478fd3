"""TISTA (Ito, Takabe, Wadayama 2019): ISTA for Bernoulli-Gaussian codes, step sizes learned."""

import math

import jax.numpy as jnp
from jax import lax

from unrolled._numbers import energy, ldexp, widened
from unrolled._program import program
from unrolled.dictionaries import Dictionary, as_dictionary, column_norms, dense
from unrolled.layers._bernoulli_gaussian import Estimating
from unrolled.layers._ista import Step
from unrolled.layers._lamp import nonzero
from unrolled.layers._layer import Acting
from unrolled.layers._records import Fixed, Unrolled
from unrolled.pursuit import State
from unrolled.records import option
from unrolled.theory import MessagePassing, pseudo_inverse

# The least error that is estimated, as in the paper: tau stays positive.
_LEAST_ERROR = 1e-9


class tista(Estimating):
    r"""K steps of ISTA for codes with a known distribution; K step sizes are learned.

    .. math::
        r = x + \gamma_k D^+ (y - D x), \qquad x \leftarrow E[x^* | x^* + \tau_k n = r], \qquad
        \tau_k^2 = \frac{v}{d} (d + (\gamma_k^2 - 2 \gamma_k) m)
        + \frac{\gamma_k^2 \sigma^2}{d} \|D^+\|_F^2,

    where v = max((norm(y - D x)^2 - m sigma^2) / norm(D, "fro")^2, 1e-9) estimates the mean square
    error.

    Params: shared W = (D^+)', fixed, and steps gamma. `init` sets gamma = d / min(m, d), at which
    the errors of r are unbiased, and at most 2, beyond which a step expands.

    Reference: Ito, Takabe, Wadayama (2019). Not claimed: sparse codes; entries are small, not zero.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.tista(8, probability=0.02), 2 * D[:, 3] - D[:, 7]
        >>> jnp.flatnonzero(jnp.abs(layer.apply(layer.init(None, D), D, y)) > 0.1).tolist()
        [3, 7]
    """

    noise: float = option(default=0.0, least=0, help="sigma^2, the noise variance per entry of y")

    forms = (Unrolled(Fixed, Step),)

    def init(self, key, D):
        D = as_dictionary(D, self.family)
        nonzero(column_norms(D), self.family)
        gamma = min(D.shape[1] / min(D.shape), 2.0)
        return _start(D, gamma, self.depth)

    def step(self, shared, p, D, y, state):
        W, (m, d), gamma = lax.stop_gradient(shared.W), D.shape, p.gamma
        residual = y - D @ state.x
        # Sums of squares, each over a power of 4: on their own they may leave the range.
        (E, i), (e, j), (w, k) = energy(dense(D)), energy(residual), energy(W)
        noise, n = math.frexp(self.noise)
        excess = ldexp(e / E, 2 * (j - i)) - m * ldexp(noise / E, n - 2 * i)
        v, g = jnp.maximum(excess, _LEAST_ERROR), widened(gamma)
        tau2 = v / d * (d + (g**2 - 2 * g) * m)
        tau2 = tau2 + g**2 / d * ldexp(noise * w, n + 2 * k)
        r = state.x + gamma * (residual @ W)
        return State(self.estimate(r, jnp.maximum(tau2, _LEAST_ERROR)))

    def weights(self, shared, p, D):
        return Acting(shared.W, p.gamma)

    def message_passing(self):
        return MessagePassing("projected", "bayes", None, self.probability, self.variance)


@program("depth")
def _start(D: Dictionary, gamma: float, depth: int) -> Unrolled:
    return Unrolled(Fixed(pseudo_inverse(D).T), Step(jnp.full(depth, gamma, D.dtype)))
