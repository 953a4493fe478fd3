"""TISTA (Ito, Takabe, Wadayama 2019): the best estimate of a Bernoulli-Gaussian code in place of
shrinkage.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary, dense
from unrolled.layers._ista import Step, zero_state
from unrolled.layers._unroll import Fixed, Layer, Unrolled, factory, make_layer
from unrolled.pursuit import State
from unrolled.theory import pseudo_inverse


def bernoulli_gaussian_mean(r: Array, tau2: Array, *, probability: float, variance: float) -> Array:
    r"""E[x | x + n = r] for x ~ N(0, variance) with the given probability, else 0, and n ~ N(0,
    tau2).

    .. math::
        \frac{v}{v + \tau^2} r \; \sigma\Big(\ln \frac{p}{1-p} + \tfrac12 \ln \frac{\tau^2}{v + \tau^2}
        + \frac{r^2}{2} \Big(\frac{1}{\tau^2} - \frac{1}{v + \tau^2}\Big)\Big).

    Args:
        r: any shape.
        tau2: noise variance, broadcast against r, positive.
    """
    total = variance + tau2
    odds = math.log(probability) - math.log1p(-probability) + jnp.log(tau2 / total) / 2
    return variance / total * r * jax.nn.sigmoid(odds + r**2 / 2 * (1 / tau2 - 1 / total))


def check_prior(probability: float, variance: float, where: str) -> None:
    """Raise ValueError unless 0 < probability < 1 and 0 < variance < inf."""
    for name, value, most in (("probability", probability, 1), ("variance", variance, math.inf)):
        if not 0 < value < most:
            raise ValueError(f"{where}: {name} must be above 0 and below {most}, got {value}")


@factory
def tista(
    depth: int,
    *,
    probability: float = 0.1,
    variance: float = 1.0,
    noise: float = 0.0,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps of trainable ISTA for codes whose distribution is known; K step sizes are learned.

    .. math::
        r = x + \gamma_k D^+ (y - D x), \qquad x \leftarrow E[x^* | x^* + \tau_k n = r], \qquad
        \tau_k^2 = \frac{v}{d} (d + (\gamma_k^2 - 2 \gamma_k) m) + \frac{\gamma_k^2 \sigma^2}{d} \|D^+\|_F^2,

    with v = max((norm(y - D x)^2 - m sigma^2) / norm(D, "fro")^2, 1e-9), an estimate of the mean
    square error.

    Params: shared W = (D^+)', fixed, and steps gamma; `init` sets gamma = 1.

    Args:
        probability, variance: of the nonzeros of the code.
        noise: sigma^2, the variance of the noise in each entry of y.

    Reference: Ito, Takabe, Wadayama (2019). Not claimed: sparse codes; entries are small, not zero.
    """
    check_prior(probability, variance, "tista")
    _checks.nonnegative(noise, "noise", "tista")

    def init(key, D):
        D = as_dictionary(D, "tista")
        return Unrolled(Fixed(pseudo_inverse(D).T), Step(jnp.ones(depth, D.dtype)))

    def step(shared, p, D, y, state):
        W, (m, d), gamma = lax.stop_gradient(shared.W), D.shape, p.gamma
        residual = y - D @ state.x
        energy = jnp.sum(dense(D) ** 2)
        least = max(1e-9, float(jnp.finfo(y.dtype).tiny))  # above 0 in half precision too
        v = jnp.maximum((jnp.sum(residual**2) - m * noise) / energy, least)
        tau2 = v / d * (d + (gamma**2 - 2 * gamma) * m) + gamma**2 * noise / d * jnp.sum(W**2)
        tau2 = jnp.maximum(tau2, least)
        r = state.x + gamma * (residual @ W)
        return State(bernoulli_gaussian_mean(r, tau2, probability=probability, variance=variance))

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer(
        "tista", depth, ((Fixed._fields, Step._fields),), init, zero_state, step, **options
    )
