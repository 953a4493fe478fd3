"""Estimates of one entry x from x + tau n: their errors for Bernoulli-Gaussian x, by quadrature."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Standard normal nodes, dense near 0: there the estimates turn, on the scale of tau.
_REACH, _CLUSTER, _NODES = 12.0, 8.0, 4001
_erf = np.vectorize(math.erf, otypes=[float])


class Prior(NamedTuple):
    """x is N(0, variance) with this probability, and else 0."""

    probability: float
    variance: float


class Errors(NamedTuple):
    """Of an estimate at one noise level."""

    mse: float
    slope: float  # the mean derivative


def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the mean of f(z), z standard normal."""
    t = np.linspace(-1, 1, _NODES)
    z = _REACH * np.sinh(_CLUSTER * t) / np.sinh(_CLUSTER)
    weights = np.gradient(z) * np.exp(-(z**2) / 2)
    return z, weights / weights.sum()


_Z, _WEIGHTS = _rule()


def branches(prior: Prior, tau2: float) -> list[tuple[float, np.ndarray, float, float]]:
    """Of zeros and nonzeros: share, u = x + tau n at the nodes, (k, s2) of x ~ N(k u, s2)."""
    p, v = prior
    k = v / (v + tau2)
    zero = (1 - p, math.sqrt(tau2) * _Z, 0.0, 0.0)
    return [zero, (p, math.sqrt(v + tau2) * _Z, k, k * tau2)]


def mean(values: np.ndarray) -> float:
    """The mean over the nodes."""
    return float(_WEIGHTS @ values)


def soft_threshold(prior: Prior, tau2: float, theta: float) -> Errors:
    """sign(u) max(abs(u) - theta, 0), in closed form.

    Per branch with u ~ N(0, T): E eta^2 = T ((1 + t^2) q - 2 t phi(t)), E u eta = T q, E eta' = q,
    where t = theta / sqrt(T) and q = P(abs(u) > theta).
    """
    p, v = prior
    mse = slope = 0.0
    for weight, variance in ((1 - p, 0.0), (p, v)):
        T = variance + tau2
        t = theta / math.sqrt(T)
        q = math.erfc(t / math.sqrt(2))
        phi = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        mse += weight * (T * ((1 + t * t) * q - 2 * t * phi) - 2 * variance * q + variance)
        slope += weight * q
    return Errors(mse, slope)


def bernoulli_gaussian(prior: Prior, tau2: float, assumed: Prior, level: float) -> Errors:
    """E[x | x + sqrt(level) n = u] of the assumed prior, at the true noise level tau2."""
    p, v = assumed
    gain, h = v / (v + level), v / (v + level) / level
    mse = slope = 0.0
    for weight, u, k, rest in branches(prior, tau2):
        odds = math.log(p) - math.log1p(-p) + math.log(level / (v + level)) / 2 + u**2 * h / 2
        share = (1 + np.tanh(odds / 2)) / 2
        x = gain * share * u
        mse += weight * (mean((x - k * u) ** 2) + rest)
        slope += weight * mean(gain * share + x * u * h * (1 - share))
    return Errors(mse, slope)


def mean_magnitude(mu: np.ndarray, variance: float) -> float:
    """The mean over the nodes of E abs(mu + sqrt(variance) n)."""
    s = math.sqrt(variance)
    ratio = mu / s
    return mean(
        s * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + mu * _erf(ratio / math.sqrt(2))
    )


def cut(prior: Prior, tau2: float, fraction: float) -> float:
    """The magnitude that the share `fraction` of all u exceeds."""
    p, v = prior
    low, high = 0.0, 40 * math.sqrt(v + tau2)
    for _ in range(60):
        middle = (low + high) / 2
        above = (1 - p) * math.erfc(middle / math.sqrt(2 * tau2))
        above += p * math.erfc(middle / math.sqrt(2 * (v + tau2)))
        low, high = (middle, high) if above > fraction else (low, middle)
    return high


def least(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f is least on [low, high]: a grid of logarithms, then golden sections."""
    grid = np.geomspace(low, high, 48)
    best = int(np.argmin([f(t) for t in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(24):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, second) if f(first) <= f(second) else (first, high)
    return (low + high) / 2
