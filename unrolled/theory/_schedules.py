"""Threshold schedules of LISTA-CP with their certified errors (Theorem 12), and of chains (Theorem
6).
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import operands
from unrolled.theory._coherence import Coherence, _host, coherence, diagonal


class Schedule(NamedTuple):
    """Thresholds of K steps and the error that they certify, for every code of the class."""

    theta: np.ndarray  # (K,) thresholds
    # (K+1,) l1 error after k steps; error / s bounds l_inf, error / sqrt(s) bounds l2
    error: np.ndarray
    contraction: float  # a = (2s-1) mu_W + eta
    rate: float  # -ln a, inf at a = 0
    floor: float  # limit of the error, inf if a >= 1
    holds: bool  # the hypotheses hold: a < 1

    def steps_for(self, tol: float) -> float:
        """Steps until the certified l1 error is at most `tol`: 0 if it starts there, inf if the
        floor is above.
        """
        if math.isnan(tol):
            raise ValueError("steps_for: tol is nan")
        if tol >= self.error[0]:
            return 0
        if not self.holds or tol <= self.floor:
            return math.inf
        if self.contraction == 0:
            return 1
        return max(
            1, math.ceil(math.log((self.error[0] - self.floor) / (tol - self.floor)) / self.rate)
        )

    def steps_to_support(self, smallest: float, *, sparsity: int) -> float:
        """Steps until the support is that of the code, for codes whose nonzeros are at least
        `smallest`: error / s < smallest.

        Not claimed: equality before that, or with magnitudes below floor / s (inf).
        """
        s = _checks.as_index(sparsity, "sparsity", "steps_to_support")
        return self.steps_for(math.nextafter(s * smallest, 0.0)) if s else 0


def schedule(
    mu: float,
    C_W: float,
    *,
    sparsity: int,
    bound: float,
    noise: float = 0.0,
    depth: int,
    guard: float = 0.0,
    eta: float = 0.0,
) -> Schedule:
    r"""Thresholds of LISTA-CP with which no step has a false positive and the l1 error stays below
    `error`.

    .. math::
        E_0 = s B, \quad \theta_k = \mu_W E_k + C_W \delta + g, \quad
        E_{k+1} = a E_k + 2 s (C_W \delta + g), \quad a = (2s - 1) \mu_W + \eta.

    For every code with at most s nonzeros of magnitude at most B and noise of l1 norm at most
    delta, the iterates of x <- shrink(x + W'(y - D x), theta_k) from 0 keep their support inside
    that of the code, and error_k bounds their l1 error (divided by s the l_inf, by sqrt(s) the l2
    error). The support is found once error_k / s is below the smallest magnitude.

    Args:
        mu: coherence mu_W of the weights in hand, from `coherence(W, D)`.
        C_W: largest entry of W.
        sparsity, bound, noise: s, B and delta of the class.
        depth: K.
        guard: g, what rounding adds, from `rounding_guard`.
        eta: max abs(1 - w_i . d_i), for weights whose diagonal is not exactly 1.

    Returns:
        Schedule. With a >= 1 the same recursion comes back with holds = False, floor = inf and
        growing errors.

    Raises:
        TypeError: traced arguments. ValueError: negative or NaN ones.

    Reference: Li, Feng, Zhou (2024), Theorem 12, with the constants that its proof yields; Chen et
    al. (2018).
    """
    mu, C_W, bound, noise, guard, eta = _numbers(
        "schedule", mu=mu, C_W=C_W, bound=bound, noise=noise, guard=guard, eta=eta
    )
    s = _checks.as_index(sparsity, "sparsity", "schedule")
    K = _checks.as_index(depth, "depth", "schedule")
    a = times(max(2 * s - 1, 0), mu) + (eta if s else 0.0)
    c = times(C_W, noise) + guard
    error, theta = np.empty(K + 1), np.empty(K)
    error[0] = times(s, bound)
    with np.errstate(over="ignore"):
        for k in range(K):
            theta[k] = times(mu, error[k]) + c
            error[k + 1] = times(a, error[k]) + times(2 * s, c)
    holds = a < 1 and math.isfinite(c + bound)
    floor = 2 * s * c / (1 - a) if holds else math.inf
    return Schedule(theta, error, a, -math.log(a) if a else math.inf, floor, holds)


def deep_schedule(
    mus, C_Ws, *, sparsities, bounds, noises=None, depths, guards=None, etas=None
) -> tuple[Schedule, ...]:
    r"""Schedules of a chain: the certified error of one block is noise for the next, inside its
    thresholds.

    .. math:: \hat\delta_1 = \delta_1, \qquad \hat\delta_{j+1} = \delta_{j+1} + E^{(j)}_{K_j}.

    Block j runs on the code of block j-1; no block has a false positive, and its l1 error is below
    its `error`. Thresholds built for exact inputs, as in the printed proof, diverge where a block
    contracts slower than the next.

    Args: sequences over the J blocks, as in `schedule`; noises, guards and etas default to zeros.

    Raises:
        ValueError: sequences of different lengths.

    Reference: Li, Feng, Zhou (2024), Theorem 6, corrected.
    """
    J = len(mus)
    zeros = (0.0,) * J
    columns = {
        "C_Ws": C_Ws,
        "sparsities": sparsities,
        "bounds": bounds,
        "noises": noises if noises is not None else zeros,
        "depths": depths,
        "guards": guards if guards is not None else zeros,
        "etas": etas if etas is not None else zeros,
    }
    for name, column in columns.items():
        if len(column) != J:
            raise ValueError(
                f"deep_schedule: {name} has length {len(column)}; expected {J}, one per block"
            )
    blocks, inherited = [], 0.0
    for mu, C_W, s, B, delta, K, g, eta in zip(mus, *columns.values()):
        block = schedule(
            mu, C_W, sparsity=s, bound=B, noise=delta + inherited, depth=K, guard=g, eta=eta
        )
        blocks.append(block)
        inherited = block.error[-1]
    return tuple(blocks)


class ErrorBar(NamedTuple):
    """How far a given code can be from the true one."""

    linf: float
    l2: float
    l1: float
    holds: bool  # (2s-1) mu_W + eta < 1 and the given code is s-sparse


def error_bar(W, D, x: Array, y: Array, *, sparsity: int, noise: float = 0.0) -> ErrorBar:
    r"""Bounds on the error of any code x, from whatever solver, after the fact.

    .. math:: \|x - x^*\|_\infty \le \frac{\|W'(y - D x)\|_\infty + C_W \delta}{1 - (2s - 1) \mu_W - \eta},

    sqrt(2s) times that in l2 and 2s times in l1, for every s-sparse x* with y = D x* + e, norm(e,
    1) <= noise. Infinite, with holds = False, where the denominator is not positive or x has more
    than s nonzeros.
    """
    s, score, noise, found, eta = _after_the_fact("error_bar", W, D, x, y, sparsity, noise)
    denominator = 1 - max(2 * s - 1, 0) * found.mu_W - eta
    holds = denominator > 0 and int(np.count_nonzero(np.asarray(x))) <= s and math.isfinite(score)
    if not holds:
        return ErrorBar(math.inf, math.inf, math.inf, False)
    linf = (score + found.C_W * noise) / denominator if s else 0.0
    return ErrorBar(linf, math.sqrt(2 * s) * linf, 2 * s * linf, True)


def code_bound(W, D, y: Array, *, sparsity: int, noise: float = 0.0) -> float:
    r"""A bound B on the entries of the code behind y, where none is known: (|W'y|_inf + C_W delta)
    / (1 - (s-1) mu_W).

    Holds for every code with at most s nonzeros and noise of l1 norm at most `noise`; infinite
    where (s-1) mu_W + eta >= 1.
    """
    x = np.zeros(D.shape[1])
    s, score, noise, found, eta = _after_the_fact("code_bound", W, D, x, y, sparsity, noise)
    denominator = 1 - max(s - 1, 0) * found.mu_W - eta
    return (
        (score + found.C_W * noise) / denominator
        if denominator > 0 and math.isfinite(score)
        else math.inf
    )


def _after_the_fact(where: str, W, D, x, y, sparsity, noise):
    """s, |W'(y - D x)|_inf, delta, (mu_W, C_W) and eta, in float64 and rounded up."""
    (noise,) = _numbers(where, noise=noise)
    s = _checks.as_index(sparsity, "sparsity", where)
    _checks.on_host((W, D, x, y), where)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        D, W, x, y = (_checks.cast(a, np.float64) for a in (D, W, x, y))
        D, y, _ = operands(D, y, where)
        if x.shape != (D.shape[1],):
            raise ValueError(f"{where}: x has shape {x.shape}; expected ({D.shape[1]},)")
        mu, C_W = (float(v) for v in coherence(W, D))
        eta = float(np.abs(1 - np.asarray(diagonal(W, D))).max())
        score = np.abs(np.asarray((y - D @ x) @ W)).max()
    return s, float(score) * (1 + 1e-9), noise, Coherence(mu * (1 + 1e-9), C_W), eta


def times(a: float, b: float) -> float:
    """a b, with 0 inf = 0: a term that is absent stays absent when an error has overflowed."""
    return a * b if a and b else 0.0


def _numbers(where: str, **values) -> list[float]:
    """The values as host floats, each non-negative."""
    floats = [_host(value, name, where) for name, value in values.items()]
    for name, value in zip(values, floats):
        if not value >= 0:
            raise ValueError(f"{where}: {name} must be non-negative and not NaN, got {value}")
    return floats
