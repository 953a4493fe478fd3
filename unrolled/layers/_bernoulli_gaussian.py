"""The best estimate of a Bernoulli-Gaussian code, and the families whose steps end in it."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import wide_dtype, widened
from unrolled._program import program
from unrolled.layers._layer import Layer
from unrolled.records import option


@checked
def bernoulli_gaussian_mean(
    r: Array, tau2: ArrayLike, *, probability: float, variance: float
) -> Array:
    r"""E[x | x + n = r] for x ~ N(0, variance) with this probability and else 0, n ~ N(0, tau2).

    .. math::
        \frac{v}{v + \tau^2} r \; \sigma\Big(\ln \frac{p}{1-p}
        + \tfrac12 \ln \frac{\tau^2}{v + \tau^2}
        + \frac{r^2}{2} \Big(\frac{1}{\tau^2} - \frac{1}{v + \tau^2}\Big)\Big).

    Args:
        r: any shape.
        tau2: noise variance, positive, broadcast against r.
        probability: p, in (0, 1).
        variance: v, positive.

    Returns:
        The estimate, of the shape of r.

    Example:
        >>> r, prior = jnp.array([0.1, 2.0]), dict(probability=0.1, variance=1.0)
        >>> [round(float(x), 3) for x in ur.layers.bernoulli_gaussian_mean(r, 0.01, **prior)]
        [0.002, 1.98]
    """
    probability = _checks.as_fraction(probability, "probability", "bernoulli_gaussian_mean")
    log_odds = math.log(probability) - math.log1p(-probability)
    r = _checks.as_float(r, "r", "bernoulli_gaussian_mean")
    _checks.broadcast("bernoulli_gaussian_mean", r=r, tau2=tau2)
    return _bernoulli_gaussian_mean(r, tau2, log_odds, variance)


@program()
def _bernoulli_gaussian_mean(r: Array, tau2: Any, log_odds: float, variance: float) -> Array:
    # In half precision r / tau2 would overflow, and the slope of the estimate would be nan.
    wide, tau2 = widened(r), jnp.asarray(tau2, wide_dtype(r.dtype))
    share, mean = posterior(wide, tau2, log_odds, variance)
    return (mean * share).astype(r.dtype)


def posterior(r: Array, tau2: Any, log_odds: Any, variance: Any) -> tuple[Array, Array]:
    """The probability that x is not zero given x + n = r, and the mean of x if it is not."""
    tau2 = jnp.minimum(tau2, float(jnp.finfo(r.dtype).max) / 2)  # the noise may leave the range
    total = variance + tau2
    odds = log_odds + jnp.log(tau2 / total) / 2
    # r^2 / 2 (1 / tau2 - 1 / total), without the difference and the square.
    share = jax.nn.sigmoid(odds + (r / tau2) * (r / total) * variance / 2)
    return share, variance / total * r


class Estimating(Layer):
    """A family whose steps end in `self.estimate(r, tau2)`, for codes with a known distribution.

    Example:
        >>> layer = ur.layers.tista(3, probability=0.1, variance=1.0)
        >>> [round(float(x), 3) for x in layer.estimate(jnp.array([0.1, 2.0]), 0.01)]
        [0.002, 1.98]
    """

    probability: float = option(
        default=0.1, above=0, below=1, help="probability that an entry of the code is nonzero"
    )
    variance: float = option(default=1.0, above=0, help="variance of the nonzeros of the code")

    def estimate(self, r: Array, tau2: Any) -> Array:
        """`bernoulli_gaussian_mean` for the options of the layer."""
        prior = dict(probability=self.probability, variance=self.variance)
        return bernoulli_gaussian_mean(r, tau2, **prior)
