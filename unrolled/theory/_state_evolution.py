"""State evolution: the typical error of message passing at each step, from a few scalars."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, Result, host_function, program
from unrolled._base.numbers import wide_dtype
from unrolled.dictionaries import Dictionary, Structured, as_dictionary, unit_atoms
from unrolled.theory._coherence import without_parts

__all__ = ["MessagePassing", "StateEvolution", "state_evolution"]


# Nodes of the standard normal law, dense near 0, because estimates bend there on the scale of tau.
_REACH, _CLUSTER, _NODES = 12.0, 8.0, 4001
_erf = np.vectorize(math.erf, otypes=[float])


class Prior(NamedTuple):
    """The law of an entry x: N(0, variance) with probability `probability`, otherwise 0."""

    probability: float
    variance: float


class Errors(NamedTuple):
    """The errors of an estimate at one noise level."""

    mse: float
    slope: float  # the mean derivative


def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the mean of f(z) with a standard normal z."""
    t = np.linspace(-1, 1, _NODES)
    z = _REACH * np.sinh(_CLUSTER * t) / np.sinh(_CLUSTER)
    weights = np.gradient(z) * np.exp(-(z**2) / 2)
    return z, weights / weights.sum()


_Z, _WEIGHTS = _rule()


def branches(prior: Prior, tau2: float) -> list[tuple[float, np.ndarray, float, float]]:
    """One tuple (share, u, k, s2) for the entries that are zero, and one for the nonzeros.

    u holds x + tau n at the nodes, and x given u has the law N(k u, s2).
    """
    p, v = prior
    k = v / (v + tau2)
    zero = (1 - p, math.sqrt(tau2) * _Z, 0.0, 0.0)
    return [zero, (p, math.sqrt(v + tau2) * _Z, k, k * tau2)]


def mean(values: np.ndarray) -> float:
    """The mean over the nodes."""
    return float(_WEIGHTS @ values)


def soft_threshold(prior: Prior, tau2: float, theta: float) -> Errors:
    """The errors of sign(u) max(abs(u) - theta, 0), in closed form.

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
    """The errors of E[x | x + sqrt(level) n = u] under the assumed prior, at noise level tau2."""
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
    """The magnitude that a share `fraction` of all u exceeds."""
    p, v = prior
    low, high = 0.0, 40 * math.sqrt(v + tau2)
    for _ in range(60):
        middle = (low + high) / 2
        above = (1 - p) * math.erfc(middle / math.sqrt(2 * tau2))
        above += p * math.erfc(middle / math.sqrt(2 * (v + tau2)))
        low, high = (middle, high) if above > fraction else (low, middle)
    return high


def least(f: Callable[[float], float], low: float, high: float) -> float:
    """The minimiser of f on [low, high], by a grid of logarithms and golden sections."""
    grid = np.geomspace(low, high, 48)
    best = int(np.argmin([f(t) for t in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(24):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, second) if f(first) <= f(second) else (first, high)
    return (low + high) / 2


# The number of drawn signals. The median of their errors is accurate to a decibel even if the
# errors of single signals have a standard deviation of 13 dB.
SIGNALS = 1024
# The number of standard deviations that gives a confidence of .99 that a median lies between two
# order statistics.
_CONFIDENCE = 2.576


def with_thresholds(layer: Any, D: Array, thresholds: np.ndarray | None) -> Any:
    """The initial params of a message passing layer with other thresholds; gamma, if present, is 1.

    Args:
        layer: a layer with `message_passing()`.
        D: (m, d), an array.
        thresholds: (K,); None keeps the thresholds of the initial params.
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
    """Bounds on the median NMSE of Bernoulli-Gaussian signals after each step, (2, K) in dB.

    The bounds hold with confidence .99. The function computes them from 1024 random signals, the
    same at every call. The bounds are NaN if codes are not finite, or if no signal has a nonzero.
    """
    rng, (m, d), dtype = np.random.default_rng(0), D.shape, D.dtype
    X = math.sqrt(prior.variance) * rng.standard_normal((SIGNALS, d))
    X *= rng.random((SIGNALS, d)) < prior.probability
    Y = X @ np.asarray(D, float).T + math.sqrt(noise) * rng.standard_normal((SIGNALS, m))
    arrays = (jax.device_put(np.asarray(a, dtype)) for a in (Y, X, math.sqrt(prior.variance)))
    errors = np.asarray(_errors(layer, checks.cast(params, dtype), D, *arrays), float)
    energies = np.sum(X**2, axis=1) / prior.variance
    some = energies > 0
    if not some.any():
        return np.full((2, layer.depth), np.nan)
    with np.errstate(divide="ignore"):  # an error of 0
        values = np.sort(10 * np.log10(errors[some] / energies[some, None]), axis=0)
    n, reach = len(values), _CONFIDENCE * math.sqrt(len(values)) / 2
    ranks = math.floor(n / 2 - reach) - 1, math.ceil(n / 2 + reach)  # from 0
    ends = values[np.clip(ranks, 0, n - 1)]
    return np.where(np.isnan(values).any(0), np.nan, ends)


@program("layer")
def _errors(layer: Any, params: Any, D: Array, Y: Array, X: Array, unit: Array) -> Array:
    """The squared errors of signals after each step, (signals, K), in units of the variance."""

    def one(y, x):
        return jnp.sum(((layer.iterates(params, D, y) - x[None]) / unit) ** 2, axis=-1)

    return jax.vmap(one)(Y, X)


# Variances stay above this part of the codes' variance, as in the layers.
_LEAST = 1e-15
_LARGEST = 1e100  # the largest noise, in units of the variance of the codes
# If codes have no zeros, or no nonzeros, this number replaces the share 0.
_EDGE = 1e-6
# The range of the search for the best thresholds, in units of the noise level or the residual.
_THRESHOLDS = 0.05, 40.0
# The least noise that the layers assume in an estimate.
_LEAST_LEVEL = {"amp": 1e-10, "projected": 1e-9, "vamp": 0.0}
# The average over the number of nonzeros covers this many standard deviations on either side.
_DEVIATIONS = 5.0
# The second moment of the spectrum of an iid Gaussian D may differ from its limit by this.
_SPREAD = 0.1
_NO_NOISE = 1e-9  # an assumed ratio that counts as no noise
_MOST_NONZEROS = 0.9  # the largest share in the corrections of `alista_at` and `tista`
# A prediction must agree with drawn signals within `_AGREES` dB. Errors below `_ROUNDING` dB are
# the rounding of float32.
_AGREES, _ROUNDING = 3.0, -100.0


class MessagePassing(NamedTuple):
    """The facts about a layer that state evolution needs, as `message_passing()` returns them.

    Attributes:
        step: "amp", "vamp", "oamp" (orthogonal, with W'D = (d/m) P and P a projection), or
            "projected", which is oamp without the correction term.
        estimate: "soft" or "select" with thresholds, or "bayes".
        threshold: the name of the field of the params that holds the thresholds, or None.
        probability, variance: the prior that the layer assumes; None takes the true prior.
        noise_ratio: the assumed ratio of the energy of the noise to the energy of the signal; None
            takes the true ratio.
        fractions: the support fraction of each step, or None.
        noise: the assumed variance of the noise per entry of y, or None.
    """

    step: str
    estimate: str
    threshold: str | None = None
    probability: float | None = None
    variance: float | None = None
    noise_ratio: float | None = None
    fractions: tuple[float, ...] | None = None
    noise: float | None = None


class StateEvolution(Result):
    """The error of a typical signal after each step, and whether the prediction holds."""

    nmse: np.ndarray  # (K + 1,), in dB; the first entry is for the code 0
    tau: np.ndarray  # (K,), the noise level before each estimate
    thresholds: np.ndarray | None  # (K,), in the units of the params
    holds: bool  # whether the testable hypotheses are met, and the errors of drawn signals agree
    reason: str  # why the prediction does not hold, or ""


@host_function
def state_evolution(
    layer: Any,
    D: Dictionary,
    *,
    probability: float,
    variance: float = 1.0,
    noise: float = 0.0,
    params: Any = None,
    mixed: bool = False,
) -> StateEvolution:
    r"""The error of a typical Bernoulli-Gaussian signal after each step of message passing.

    For `layers.lamp` and `lamp_bg`, where D is iid Gaussian,

    .. math::
        \tau_0^2 = \sigma^2 + \tfrac dm E X^2, \qquad
        \tau_{k+1}^2 = \sigma^2 + \tfrac dm E (\eta_k(X + \tau_k Z) - X)^2.

    Here X has the law of one entry of a code, Z is standard normal, and eta_k is the estimate of
    step k. For `layers.vamp_bg`, `alista_at(onsager=True)` and `tista(onsager=True)`, the
    prediction uses only the singular values of D, or only m and d; the right singular vectors must
    be uniformly random.

    The result predicts the error of the *median* signal of a large problem. Compare the prediction
    with medians, never with a ratio of sums, which a few hard signals dominate. We measured medians
    for D of 250 x 500 and 500 x 1000, with probability 0.1 and K = 16, without noise and at SNRs of
    40 and 20 dB. The prediction was within 1.2 dB of the median down to -100 dB. For `alista_at`
    with support selection, the prediction was within 1.8 dB in single steps.

    Args:
        layer: a layer of one of these families.
        D: (m, d), an array with unit atoms.
        probability, variance: probability and variance of the nonzeros of the codes.
        noise: sigma^2, the variance of the noise per entry of y.
        params: the params from which the function takes the thresholds. None takes the best
            thresholds, as `analytic.lamp` and `analytic.alista_at` do: each threshold minimises
            the error after its step, and `alista_at` has gamma = 1.
        mixed: whether to average the error over a Binomial(d, probability) number of nonzeros
            instead of taking the typical number. The average accounts for about half of the
            difference between the prediction and a ratio of sums.

    Returns:
        StateEvolution. `holds` is False, with a `reason`, if the layer is `lamp` or `lamp_bg` and D
        does not have the spectrum of an iid Gaussian D, or if `vamp_bg` or `tista` assumes a wrong
        noise. `holds` is also False for `vamp_bg` with `em`, because the prediction is for a layer
        that knows the prior and the noise, for `tista` if D is not of full rank, and for `tista`
        without `onsager`.

        A spectrum does not show whether the right singular vectors are random. So the function also
        runs the layer on 1024 random signals of this law, the same at every call. `holds` is False
        if, after any step, an end of the .99 confidence interval of the median of their errors is
        more than 3 dB from the prediction. Errors below -100 dB, which are rounding in float32,
        count as -100 dB.

    Raises:
        TypeError: the family has no state evolution, or D is structured or traced.
        ValueError: probability is outside (0, 1), variance <= 0, noise < 0 or beyond 1e100 times
            the variance, an atom is off unit norm, or params are not finite or have trained weights
            or step sizes.

    Not claimed: anything for a fixed size, because the theorems are limits. The theorems do not
    cover thresholds that depend on the residual of the same signal, or support selection. The
    prediction fails outside the hypotheses: for `lamp_bg` and a D with condition number 50, the
    predicted error is -95 dB and the measured error is +9 dB. For `tista` without `onsager`, the
    formula gives -120 dB, but the layer reaches -72 dB.

    Reference: Donoho, Maleki, Montanari (2009); Bayati, Montanari (2011); Rangan, Schniter,
    Fletcher (2019); Ma, Ping (2017).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 250, 500)
        >>> evolution = ur.theory.state_evolution(ur.layers.lamp_bg(8), D, probability=0.1)
        >>> evolution.nmse[[0, 1, 4, 8]].round().tolist(), evolution.holds
        ([0.0, -4.0, -17.0, -40.0], True)
    """
    where = "state_evolution"
    passing = _passing(layer, where)
    if isinstance(D, Structured):
        raise TypeError(
            f"{where}: D is a {type(D).__name__}; expected an array, as a random D is none of a "
            "structure: try dictionaries.dense(D), and compare with a measured median"
        )
    D = without_parts(as_dictionary(D, where), where)
    unit_atoms(D, where)
    prior = _prior(probability, variance, where)
    checks.nonnegative(noise, "noise", where)
    if not noise / prior.variance <= _LARGEST:
        raise ValueError(
            f"{where}: noise must be at most {_LARGEST:g} times the variance {prior.variance:g} of "
            f"the codes, got {noise}"
        )
    thresholds = None if params is None else _thresholds(layer, passing, params, D, where)
    s = np.linalg.svd(np.asarray(D, float), compute_uv=False)
    s = s[s > min(D.shape) * float(jnp.finfo(wide_dtype(D.dtype)).eps) * s[0]]
    # Use units in which the codes have variance 1.
    law, unit, prior = prior, prior.variance, prior._replace(variance=1.0)
    passing = _in_units(passing, unit)
    problem = _Problem(s, (D.shape[0], D.shape[1]), noise / unit)
    mse, tau, thresholds = _evolved(passing, problem, prior, layer.depth, thresholds)
    nmse, reason = _decibels(mse, prior), _unmet(passing, problem, prior)
    if not reason:
        # In half precision, rounding would make the signals disagree with the prediction.
        wide = checks.cast(D, wide_dtype(D.dtype))
        given = with_thresholds(layer, wide, thresholds) if params is None else params
        reason = _disagreement(nmse[1:], median_nmse(layer, given, wide, law, noise))
    if mixed:
        nmse = _decibels(_mixed(passing, problem, prior, layer.depth, thresholds), prior)
    return StateEvolution(nmse, math.sqrt(unit) * tau, thresholds, not reason, reason)


def _decibels(mse: np.ndarray, prior: Prior) -> np.ndarray:
    return 10 * np.log10(np.maximum(mse / prior.probability, _LEAST**2))


def _disagreement(predicted: np.ndarray, measured: np.ndarray) -> str:
    """Name the step whose median is farthest from the prediction; "" if all medians are near."""
    low, high = np.maximum(measured, _ROUNDING)
    expected = np.maximum(predicted, _ROUNDING)
    apart = np.maximum(np.abs(low - expected), np.abs(high - expected))
    if np.all(apart <= _AGREES):
        return ""
    k = int(np.argmax(apart))  # the first NaN if any
    return (
        f"the median of drawn signals is {measured[0, k]:.1f} to {measured[1, k]:.1f} dB after "
        f"step {k + 1}, where {predicted[k]:.1f} are predicted"
    )


class _Problem(NamedTuple):
    s: np.ndarray  # the nonzero singular values of D
    shape: tuple[int, int]
    noise: float


def _in_units(passing: MessagePassing, unit: float) -> MessagePassing:
    """The assumptions of a layer, divided by the variance `unit`."""
    variance, noise = (None if n is None else n / unit for n in (passing.variance, passing.noise))
    return passing._replace(variance=variance, noise=noise)


def _passing(layer: Any, where: str) -> MessagePassing:
    describe = getattr(layer, "message_passing", None)
    guarded = getattr(layer, "guard", None) is not None
    passing = None if describe is None or guarded else describe()
    if passing is None:
        raise TypeError(
            f"{where}: {layer!r} has no state evolution; expected lamp, lamp_bg, vamp_bg, tista or "
            "alista_at(onsager=True), with ReLU, thresholds by the code, no ridge and no guard"
        )
    return passing


def _prior(probability: float, variance: float, where: str) -> Prior:
    if not 0 < probability < 1:
        raise ValueError(f"{where}: probability must be above 0 and below 1, got {probability}")
    if not 0 < variance < math.inf:
        raise ValueError(f"{where}: variance must be above 0 and finite, got {variance}")
    return Prior(probability, variance)


def _thresholds(layer, passing: MessagePassing, params, D, where: str) -> np.ndarray | None:
    """The thresholds in params; ValueError if other leaves differ from the initial params."""
    layer.check(params, D)
    checks.finite(params, "params", where)
    start = layer.init(None, D)
    rest, expected = params, start
    if passing.threshold is not None:
        name = passing.threshold
        rest = rest._replace(steps=rest.steps._replace(**{name: None}))
        expected = expected._replace(steps=expected.steps._replace(**{name: None}))
    if passing.step == "oamp" and passing.threshold is not None:  # W'D is d / m times P
        one = np.ones(layer.depth, expected.steps.gamma.dtype)
        expected = expected._replace(steps=expected.steps._replace(gamma=one))
    leaves = zip(jax.tree_util.tree_leaves_with_path(rest), jax.tree.leaves(expected), strict=True)
    for (path, leaf), other in leaves:
        close = 1e3 * float(jnp.finfo(other.dtype).eps) * np.abs(np.asarray(other, float)).max()
        if not np.all(np.abs(np.asarray(leaf, float) - np.asarray(other, float)) <= close):
            raise ValueError(
                f"{where}: {path[-1].name} of the params differs from message passing on D; "
                "state evolution does not cover trained weights or step sizes, try params=None"
            )
    if passing.threshold is None:
        return None
    return np.abs(np.asarray(getattr(params.steps, passing.threshold), float))


def _unmet(passing: MessagePassing, problem: _Problem, prior: Prior) -> str:
    """The hypothesis that D or the noise violates, as far as a spectrum shows it, or ""."""
    (m, d), s2 = problem.shape, problem.s**2
    if passing.step == "projected":
        return "its steps are not free of divergence"
    if passing.step == "amp":  # trace (D D')^2 of an iid Gaussian D
        spread = m * np.sum(s2**2) / np.sum(s2) ** 2 / (1 + m / d)
        gaussian = abs(spread - 1) < _SPREAD
        return "" if gaussian else "the spectrum of D is not the spectrum of an iid Gaussian D"
    if passing.step == "vamp":
        energy = prior.probability * prior.variance * np.sum(s2) / m
        assumed, true = passing.noise_ratio or math.nan, problem.noise / energy
        right_noise = true <= 2 * assumed and (assumed <= 2 * true or assumed <= _NO_NOISE)
    else:
        assumed = problem.noise if passing.noise is None else passing.noise
        right_noise = problem.noise <= 2 * assumed and assumed <= 2 * problem.noise
        # The initial params of `tista` assume that D has full rank.
        if passing.estimate == "bayes" and len(s2) < min(m, d):
            return "D is not of full rank"
    wrong = "the noise that the layer assumes, or learns, is not the noise of the signals"
    return "" if right_noise else wrong


def _mixed(passing, problem, prior: Prior, depth: int, thresholds) -> np.ndarray:
    """The mean squared error after each step, averaged over the number of nonzeros."""
    (_, d), p = problem.shape, prior.probability
    half = _DEVIATIONS * math.sqrt(d * p * (1 - p))
    counts = range(max(0, math.floor(d * p - half)), min(d, math.ceil(d * p + half)) + 1)
    weights = np.exp(
        [
            math.lgamma(d + 1)
            - math.lgamma(s + 1)
            - math.lgamma(d - s + 1)
            + s * math.log(p)
            + (d - s) * math.log1p(-p)
            for s in counts
        ]
    )
    shares = np.clip(np.array(counts) / d, _EDGE * p, 1 - _EDGE * (1 - p))
    runs = [
        _evolved(passing, problem, prior._replace(probability=float(share)), depth, thresholds)[0]
        for share in shares
    ]
    return weights @ np.stack(runs) / weights.sum()


def _evolved(passing, problem: _Problem, prior: Prior, depth: int, thresholds):
    """Mean squared errors (K + 1,), noise levels (K,), and thresholds."""
    run = {"amp": _linear, "projected": _linear, "vamp": _vamp, "oamp": _oamp}[passing.step]
    mse, tau, chosen = run(passing, problem, prior, depth, thresholds)
    return np.array(mse), np.array(tau), np.array(chosen) if passing.threshold else None


def _assumed(passing: MessagePassing, prior: Prior) -> Prior:
    """The assumed prior; a variance of None is chosen to match the energy of the signal."""
    p = prior.probability if passing.probability is None else passing.probability
    v = prior.variance * prior.probability / p if passing.variance is None else passing.variance
    return Prior(p, v)


def _linear(passing, problem: _Problem, prior: Prior, depth: int, thresholds):
    """State evolution with noise levels affine in the error: AMP, and OAMP without correction."""
    m, d = problem.shape
    if passing.step == "amp":
        gain, noise = d / m, problem.noise
    else:
        step = min(d / min(m, d), 2.0)
        gain = 1 + (step**2 - 2 * step) * len(problem.s) / d
        noise = step**2 * problem.noise / d * np.sum(problem.s**-2.0)
    assumed = _assumed(passing, prior)
    mse, tau, chosen = [prior.probability * prior.variance], [], []
    for k in range(depth):
        tau2 = max(noise + gain * mse[-1], _LEAST * prior.variance)
        if passing.estimate == "soft":

            def error(alpha, tau2=tau2):
                return soft_threshold(prior, tau2, alpha * math.sqrt(tau2)).mse

            chosen.append(least(error, *_THRESHOLDS) if thresholds is None else thresholds[k])
            mse.append(error(chosen[-1]))
        else:
            level = max(tau2, _LEAST_LEVEL[passing.step] * assumed.variance)
            mse.append(bernoulli_gaussian(prior, tau2, assumed, level).mse)
        tau.append(math.sqrt(tau2))
    return mse, tau, chosen


def _vamp(passing, problem: _Problem, prior: Prior, depth: int, thresholds):
    """State evolution of VAMP: a linear estimate by the singular values, then one by the prior.

    The layer computes with its assumed noise, so each assumed variance has a true counterpart.
    """
    (m, d), s2 = problem.shape, problem.s**2
    assumed, power = _assumed(passing, prior), prior.probability * prior.variance
    signal = power * np.sum(s2) / m + problem.noise  # per entry of y
    noise = problem.noise if passing.noise_ratio is None else passing.noise_ratio * signal
    noise = max(noise, _LEAST * signal)
    mse, tau, believed, true = [power], [], signal * m / np.sum(s2), power
    for _ in range(depth):
        gain = s2 / (s2 + noise / believed)
        c = np.sum(gain) / d
        level = max(believed * (1 - c) / c, _LEAST * power)
        actual = true * (np.sum(gain**2) / (d * c**2) - 1)
        actual += problem.noise * np.sum(gain**2 / s2) / (d * c**2)
        actual = max(actual, _LEAST * power)
        error, a = bernoulli_gaussian(prior, actual, assumed, level)
        mse.append(error)
        tau.append(math.sqrt(actual))
        believed = max(level * a / (1 - a), _LEAST * power)
        true = max((error - a**2 * actual) / (1 - a) ** 2, _LEAST * power)
    return mse, tau, []


def _oamp(passing, problem: _Problem, prior: Prior, depth: int, thresholds):
    """State evolution of OAMP, with u = x + tau Z and c = d / rank(D).

    tau^2 = (c - 1) E (z - x)^2 + c^2 sigma^2 norm(D^+, "fro")^2 / d. If e is the error of the Bayes
    estimate, then the error of z = (x - a u) / (1 - a) is (e - a^2 tau^2) / (1 - a)^2, because the
    errors of z and u are not correlated.
    """
    d = problem.shape[1]
    c = d / len(problem.s)
    noise = c**2 * problem.noise * np.sum(problem.s**-2.0) / d
    mse, tau, chosen = [prior.probability * prior.variance], [], []
    before, error = None, mse[0]
    for k in range(depth):
        tau2 = max((c - 1) * error + noise, _LEAST * prior.variance)
        tau.append(math.sqrt(tau2))
        if passing.estimate == "bayes":
            assumed = _assumed(passing, prior)
            x_error, a = bernoulli_gaussian(prior, tau2, assumed, tau2)
            a = min(a, _MOST_NONZEROS)
            error = max((x_error - a**2 * tau2) / (1 - a) ** 2, 0.0)
            mse.append(x_error)
            continue
        size = _size(prior, tau2, before)
        fraction = passing.fractions[k] if passing.fractions else 0.0
        border = cut(prior, tau2, fraction) if fraction > 0 else math.inf

        def after(theta, tau2=tau2, size=size, border=border):
            return _selected(prior, tau2, theta * size, border)

        if thresholds is None:
            chosen.append(least(lambda theta: after(theta)[0], *_THRESHOLDS))
        else:
            chosen.append(thresholds[k])
        x_error, error, before = after(chosen[-1])
        mse.append(x_error)
    return mse, tau, chosen


def _size(prior: Prior, tau2: float, before) -> float:
    """The mean of abs(g), g = x - z + tau Z; x - z is N(mu, s2) given the previous u and branch."""
    if before is None:  # z = 0
        before = [(weight, 0 * u, k * prior.variance) for weight, u, k, _ in branches(prior, 0.0)]
    return sum(weight * mean_magnitude(mu, s2 + tau2) for weight, mu, s2 in before)


def _selected(prior: Prior, tau2: float, theta: float, border: float):
    """The errors of x and of z = x + a / (1 - a) (x - u), and x* - z per branch."""
    parts = []
    for weight, u, k, rest in branches(prior, tau2):
        size = np.abs(u)
        x = np.where(size > max(border, theta), u, np.sign(u) * np.maximum(size - theta, 0))
        parts.append((weight, u, k, rest, x))
    a = min(sum(weight * mean(x != 0) for weight, _, _, _, x in parts), _MOST_NONZEROS)
    x_error = z_error = 0.0
    before = []
    for weight, u, k, rest, x in parts:
        z = x + a / (1 - a) * (x - u)
        x_error += weight * (mean((x - k * u) ** 2) + rest)
        z_error += weight * (mean((z - k * u) ** 2) + rest)
        before.append((weight, k * u - z, rest))
    return x_error, z_error, before
