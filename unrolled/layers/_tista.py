"""TISTA (Ito, Takabe, Wadayama 2019): the best estimate of a Bernoulli-Gaussian code each step."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary, dense
from unrolled.layers._ista import Step
from unrolled.layers._layer import Acting, Layer
from unrolled.layers._options import option
from unrolled.layers._records import Fixed, Unrolled
from unrolled.pursuit import State
from unrolled.theory import pseudo_inverse

# The least error that is estimated, as in the paper: tau stays positive.
_LEAST_ERROR = 1e-9


def bernoulli_gaussian_mean(
    r: Array, tau2: ArrayLike, *, probability: float, variance: float
) -> Array:
    r"""E[x | x + n = r] for x ~ N(0, variance) with the given probability, else 0, n ~ N(0, tau2).

    .. math::
        \frac{v}{v + \tau^2} r \; \sigma\Big(\ln \frac{p}{1-p}
        + \tfrac12 \ln \frac{\tau^2}{v + \tau^2}
        + \frac{r^2}{2} \Big(\frac{1}{\tau^2} - \frac{1}{v + \tau^2}\Big)\Big).

    Args:
        r: any shape.
        tau2: noise variance, broadcast against r, positive.

    Example:
        >>> r, prior = jnp.array([0.1, 2.0]), dict(probability=0.1, variance=1.0)
        >>> ur.layers.bernoulli_gaussian_mean(r, 0.01, **prior).round(3).tolist()
        [0.002, 1.98]
    """
    total = variance + tau2
    odds = math.log(probability) - math.log1p(-probability) + jnp.log(tau2 / total) / 2
    return variance / total * r * jax.nn.sigmoid(odds + r**2 / 2 * (1 / tau2 - 1 / total))


class tista(Layer):
    r"""K steps of trainable ISTA for codes whose distribution is known; K step sizes are learned.

    .. math::
        r = x + \gamma_k D^+ (y - D x), \qquad x \leftarrow E[x^* | x^* + \tau_k n = r], \qquad
        \tau_k^2 = \frac{v}{d} (d + (\gamma_k^2 - 2 \gamma_k) m)
        + \frac{\gamma_k^2 \sigma^2}{d} \|D^+\|_F^2,

    with v = max((norm(y - D x)^2 - m sigma^2) / norm(D, "fro")^2, 1e-9), an estimate of the mean
    square error.

    Params: shared W = (D^+)', fixed, and steps gamma; `init` sets gamma = 1.

    Reference: Ito, Takabe, Wadayama (2019). Not claimed: sparse codes; entries are small, not zero.
    """

    probability: float = option(default=0.1, above=0, below=1, help="of a nonzero of the code")
    variance: float = option(default=1.0, above=0, help="of the nonzeros of the code")
    noise: float = option(default=0.0, least=0, help="sigma^2, the noise variance per entry of y")

    forms = (Unrolled(Fixed, Step),)

    def init(self, key, D):
        D = as_dictionary(D, self.family)
        return Unrolled(Fixed(pseudo_inverse(D).T), Step(jnp.ones(self.depth, D.dtype)))

    def step(self, shared, p, D, y, state):
        W, (m, d), gamma = lax.stop_gradient(shared.W), D.shape, p.gamma
        residual = y - D @ state.x
        energy = jnp.sum(dense(D) ** 2)
        least = max(_LEAST_ERROR, float(jnp.finfo(y.dtype).tiny))  # above 0 in half precision too
        v = jnp.maximum((jnp.sum(residual**2) - m * self.noise) / energy, least)
        tau2 = v / d * (d + (gamma**2 - 2 * gamma) * m)
        tau2 = tau2 + gamma**2 * self.noise / d * jnp.sum(W**2)
        prior = dict(probability=self.probability, variance=self.variance)
        r = state.x + gamma * (residual @ W)
        return State(bernoulli_gaussian_mean(r, jnp.maximum(tau2, least), **prior))

    def weights(self, shared, p, D):
        return Acting(shared.W, p.gamma)
