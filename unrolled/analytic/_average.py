"""Params of message passing whose thresholds are the best ones of state evolution."""

import jax
import numpy as np

from unrolled import _checks, layers
from unrolled._arguments import checked
from unrolled.analytic._schedules import HypothesisWarning
from unrolled.dictionaries import Dictionary, as_dictionary
from unrolled.layers import Unrolled
from unrolled.theory import state_evolution

# The support selection of a layer that is not told another.
_SUPPORT = layers.alista_at(0).support


@checked
def lamp(
    D: Dictionary,
    depth: int,
    *,
    probability: float,
    variance: float = 1.0,
    noise: float = 0.0,
    margin: float = 1.5,
) -> Unrolled:
    """Params of `layers.lamp` for Bernoulli-Gaussian codes, without a sample: W = D, and alphas.

    Each alpha is the best for the error after its own step, by `theory.state_evolution`.

    Args:
        D: (m, d), an array with unit atoms.
        depth: K.
        probability, variance: of the nonzeros of the codes.
        noise: sigma^2, the variance of the noise per entry of y.
        margin: the thresholds are those of `margin` times as many nonzeros: signals with more of
            them than most decide a ratio of sums.

    Returns:
        params with steps (W, alpha).

    Warns:
        HypothesisWarning: `theory.state_evolution` does not hold.

    Raises:
        TypeError, ValueError: as `theory.state_evolution`; margin below 1.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> [f"{a:.1f}" for a in ur.analytic.lamp(D, 3, probability=0.1).steps.alpha]
        ['1.4', '1.3', '1.2']
    """
    D, layer = as_dictionary(D, "analytic.lamp"), layers.lamp(depth)
    options = dict(probability=probability, variance=variance, noise=noise)
    alpha = _thresholds(layer, D, margin, "analytic.lamp", options)
    params = layer.init(None, D)
    return params._replace(steps=params.steps._replace(alpha=alpha))


@checked
def alista_at(
    D: Dictionary,
    depth: int,
    *,
    probability: float,
    variance: float = 1.0,
    noise: float = 0.0,
    margin: float = 1.5,
    support: tuple[float, float] | None = _SUPPORT,
) -> Unrolled:
    """Params of `layers.alista_at(onsager=True)` for Bernoulli-Gaussian codes, without a sample.

    Weights in closed form, gamma = 1, and each theta the best for the error after its own step, by
    `theory.state_evolution`. With margin 1 they are better for the typical signal, and worse in a
    ratio of sums.

    Args:
        D, depth, probability, variance, noise, margin: as in `lamp`.
        support: that of the layer.

    Returns:
        params with shared W and steps (gamma, theta, beta).

    Warns:
        HypothesisWarning: `theory.state_evolution` does not hold.

    Raises:
        TypeError, ValueError: as `theory.state_evolution`; margin below 1.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> params = ur.analytic.alista_at(D, 3, probability=0.1)
        >>> [f"{theta:.1f}" for theta in params.steps.theta], params.steps.gamma.tolist()
        (['1.3', '1.1', '1.1'], [1.0, 1.0, 1.0])
    """
    D = as_dictionary(D, "analytic.alista_at")
    layer = layers.alista_at(depth, onsager=True, support=support)
    options = dict(probability=probability, variance=variance, noise=noise)
    theta = _thresholds(layer, D, margin, "analytic.alista_at", options)
    params = layer.init(None, D)
    gamma = jax.device_put(np.ones(depth, theta.dtype))
    return params._replace(steps=params.steps._replace(gamma=gamma, theta=theta))


def _thresholds(layer, D: Dictionary, margin: float, where: str, options: dict):
    """The best thresholds for more nonzeros than there are, in the dtype of D."""
    margin = _checks.as_number(margin, "margin", where)
    if not margin >= 1:
        raise ValueError(f"{where}: margin must be at least 1, got {margin}")
    p = _checks.as_number(options["probability"], "probability", where)
    more = min(margin * p, (1 + p) / 2) if 0 < p < 1 else p  # state evolution refuses the others
    evolution = state_evolution(layer, D, **options | dict(probability=more))
    if not evolution.holds:
        _checks.warn(
            f"{where}: state evolution does not hold, as {evolution.reason}; message passing may "
            "diverge, try layers.vamp_bg, or analytic.calibrate on a sample",
            HypothesisWarning,
        )
    return jax.device_put(np.asarray(evolution.thresholds, D.dtype))
