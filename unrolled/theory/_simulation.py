"""The error of a typical signal as it is measured: on drawn ones, by the layer itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled._program import program
from unrolled.theory._scalar_channels import Prior

# Their median is known to a decibel where those of single signals have a deviation of 13.
SIGNALS = 256


def with_thresholds(layer: Any, D: Array, thresholds: np.ndarray | None) -> Any:
    """The start of a layer of message passing with other thresholds, and gamma = 1 if it has one.

    Args:
        layer: with `message_passing()`.
        D: (m, d), an array.
        thresholds: (K,); None leaves the start as it is.
    """
    params, passing = layer.init(None, D), layer.message_passing()
    if thresholds is None:
        return params
    chosen = {passing.threshold: thresholds}
    if passing.step == "oamp":
        chosen["gamma"] = np.ones(layer.depth)
    arrays = {name: jax.device_put(np.asarray(v, D.dtype)) for name, v in chosen.items()}
    return params._replace(steps=params.steps._replace(**arrays))


def median_nmse(layer: Any, params: Any, D: Array, prior: Prior, noise: float) -> np.ndarray:
    """The median over drawn Bernoulli-Gaussian signals of their NMSE after each step, (K,) in dB.

    The signals are the same at every call. NaN where codes are not finite, or no signal has a
    nonzero.
    """
    rng, (m, d), dtype = np.random.default_rng(0), D.shape, D.dtype
    X = math.sqrt(prior.variance) * rng.standard_normal((SIGNALS, d))
    X *= rng.random((SIGNALS, d)) < prior.probability
    Y = X @ np.asarray(D, float).T + math.sqrt(noise) * rng.standard_normal((SIGNALS, m))
    arrays = (jnp.asarray(a, dtype) for a in (Y, X, math.sqrt(prior.variance)))
    errors = np.asarray(_errors(layer, _checks.cast(params, dtype), D, *arrays), float)
    energies = np.sum(X**2, axis=1) / prior.variance
    some = energies > 0
    if not some.any():
        return np.full(layer.depth, np.nan)
    with np.errstate(divide="ignore"):  # an error of 0
        return np.median(10 * np.log10(errors[some] / energies[some, None]), axis=0)


@program("layer")
def _errors(layer: Any, params: Any, D: Array, Y: Array, X: Array, unit: Array) -> Array:
    """The squared errors of signals after each step, (signals, K), in units of the variance."""

    def one(y, x):
        return jnp.sum(((layer.iterates(params, D, y) - x[None]) / unit) ** 2, axis=-1)

    return jax.vmap(one)(Y, X)
