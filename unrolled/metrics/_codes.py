"""Scores of codes and images. Batches are (batch, d); every function runs under jit.

Two definitions of NMSE are in use and differ by many dB when a few signals fail: `nmse` is a ratio
of sums, `mean_nmse` a mean of decibels. Report both, with `failure_rate`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled._checks import Array, as_float, common_dtype
from unrolled._numbers import at_least, energy, exponent, largest, ldexp, widened
from unrolled.dictionaries import Dictionary, operands

# Ratios of magnitudes of two numbers up to this power of two have a square in float32.
_RATIO = 60
# Decibels of an exact estimate, where the logarithm is -inf.
_FLOOR = -300.0


def nmse(estimates: Array, X: Array) -> Array:
    r"""The normalised error of a batch in dB, as a ratio of sums: that of LISTA-CPSS and ALISTA.

    .. math:: 10 \log_{10} \sum_i \|\hat x_i - x_i\|^2 / \sum_i \|x_i\|^2.

    Args:
        estimates, X: (batch, d).

    Returns:
        NMSE in dB, ().

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> X = jnp.ones((2, 5))
        >>> round(float(ur.metrics.nmse(0.9 * X, X)), 3)
        -20.0
    """
    estimates, X = _same(estimates, X, "nmse")
    return _decibels(*_energies(estimates, X)).astype(X.dtype)


def signal_nmse(estimates: Array, X: Array) -> Array:
    """10 log10(norm(x^ - x)^2 / norm(x)^2) of every signal, in dB; nan or inf for a zero code.

    Args:
        estimates, X: (batch, d).

    Returns:
        (batch,).

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> X = jnp.ones((2, 5))
        >>> ur.metrics.signal_nmse(X * jnp.array([[0.9], [0.99]]), X).round(1).tolist()
        [-20.0, -40.0]
    """
    estimates, X = _same(estimates, X, "signal_nmse")
    return _decibels(*_energies(estimates, X, -1)).astype(X.dtype)


def mean_nmse(estimates: Array, X: Array) -> Array:
    """The mean of `signal_nmse` over the signals, floored at -300 dB: that of Open-L2O.

    Args:
        estimates, X: (batch, d); zero codes are left out.

    Returns:
        Decibels, (); nan if all codes are zero.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> X = jnp.ones((2, 5))
        >>> round(float(ur.metrics.mean_nmse(X * jnp.array([[0.9], [0.99]]), X)), 1)
        -30.0
    """
    per_signal = at_least(signal_nmse(estimates, X), _FLOOR)
    nonzero = jnp.any(X != 0, -1)
    return jnp.mean(per_signal, where=nonzero)


def failure_rate(estimates: Array, X: Array, level: float = -20.0) -> Array:
    """Share of the signals whose NMSE exceeds `level` dB; an estimate with NaN fails.

    Args:
        estimates, X: (batch, d).
        level: in dB.

    Returns:
        In [0, 1], ().

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> X = jnp.ones((2, 5))
        >>> float(ur.metrics.failure_rate(X * jnp.array([[0.5], [0.99]]), X))
        0.5
    """
    estimates, X = _same(estimates, X, "failure_rate")
    (error, j), (size, k) = _energies(estimates, X, -1)
    return jnp.mean(~(ldexp(error, 2 * (j - k)) <= 10 ** (level / 10) * size))


class SupportScores(NamedTuple):
    """How well a support is found, averaged over the signals for which a score is defined."""

    precision: Array  # () share of the chosen entries that are right; undefined if none is chosen
    recall: Array  # () share of the true entries that are chosen; undefined if there is none
    false_positives: Array  # () chosen entries that are wrong, per signal


def support_scores(estimates: Array, X: Array, tolerance: float = 0.0) -> SupportScores:
    """Precision and recall of the support, and false positives per signal.

    Args:
        estimates, X: (batch, d).
        tolerance: an entry of an estimate is chosen if its magnitude exceeds this.

    Returns:
        SupportScores; a score is nan if it is undefined for every signal, or a code has a NaN.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> X = jnp.array([[1.0, 2.0, 0.0, 0.0]])
        >>> [float(v) for v in ur.metrics.support_scores(jnp.array([[1.0, 0.0, 0.5, 0.0]]), X)]
        [0.5, 0.5, 1.0]
    """
    estimates, X = _same(estimates, X, "support_scores")
    known = ~(jnp.isnan(estimates) | jnp.isnan(X)).any(-1)
    chosen, true = jnp.abs(estimates) > tolerance, X != 0
    hits, n_chosen, n_true = (
        jnp.sum(mask, -1, dtype=float) for mask in (chosen & true, chosen, true)
    )
    precision = jnp.mean(hits / jnp.maximum(n_chosen, 1), where=n_chosen > 0)
    recall = jnp.mean(hits / jnp.maximum(n_true, 1), where=n_true > 0)
    scores = (precision, recall, (n_chosen - hits).mean())
    return SupportScores(*(jnp.where(known.all(), score, jnp.nan) for score in scores))


def kkt_violation(D: Dictionary, y: Array, x: Array, lam: ArrayLike) -> Array:
    """The largest violation of the optimality of x for the LASSO, in units of lam.

    For r = y - D x, optimality is D' r = lam sign(x) on the support and abs(D' r) <= lam off it.

    Args:
        D: (m, d).
        y, x: (m,) and (d,).
        lam: penalty weight, positive.

    Returns:
        The violation, (); 0 at a solution.

    Raises:
        ValueError: y or x of the wrong shape.

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> float(ur.metrics.kkt_violation(D, y, jnp.array([2.0, 0.0]), 1.0))
        0.0
    """
    if (np.shape(y), np.shape(x)) != ((D.shape[0],), (D.shape[1],)):
        raise ValueError(
            f"kkt_violation: D has shape {D.shape}, y {np.shape(y)} and x {np.shape(x)}; they "
            "must fit"
        )
    D, y, (x,) = operands(D, y, "kkt_violation", params=(as_float(x, "x", "kkt_violation"),))
    g = (y - D @ x) @ D
    lam = jnp.asarray(lam, g.dtype)
    violation = jnp.where(x != 0, jnp.abs(g - lam * jnp.sign(x)), at_least(jnp.abs(g) - lam, 0.0))
    return largest(violation) / lam


def psnr(estimate: Array, reference: Array, peak: float = 1.0) -> Array:
    """20 log10(peak / rms(estimate - reference)) in dB, over all entries; nothing is clipped.

    Args:
        estimate, reference: images or batches of them, of one shape.
        peak: the largest possible value.

    Returns:
        PSNR in dB, ().

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> picture = jnp.full((4, 4), 0.5)
        >>> round(float(ur.metrics.psnr(picture + 0.1, picture)), 3)
        20.0
    """
    estimate, reference = _same(estimate, reference, "psnr")
    (error, j), _ = _energies(estimate, reference)
    top = jnp.asarray(peak, error.dtype)
    k = exponent(top)
    mean = error / max(1, estimate.size)
    return -_decibels((mean, j), (ldexp(top, -k) ** 2, k)).astype(estimate.dtype)


def _energies(
    estimates: Array, X: Array, axis: int | None = None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The sums of (x^ - x)^2 and of x^2, each as (e, k) for e 2^(2 k)."""
    estimates, X = widened(estimates), widened(X)
    error, k = energy(estimates / 2 - X / 2, axis)  # a difference of halves cannot overflow
    return (error, k + 1), energy(X, axis)


def _decibels(above: tuple[Array, Array], below: tuple[Array, Array]) -> Array:
    """10 log10 of a ratio of two such sums, also where the ratio is out of range."""
    (top, j), (bottom, k) = above, below
    within = jnp.clip(j - k, -_RATIO, _RATIO)
    ratio = ldexp(top / bottom, 2 * within)
    return 10 * jnp.log10(ratio) + 20 * math.log10(2) * (j - k - within).astype(ratio.dtype)


def _same(a: Array, b: Array, where: str) -> tuple[Array, Array]:
    """Both as floats of one dtype (bytes would wrap around), checked to have one shape."""
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"{where}: shapes {np.shape(a)} and {np.shape(b)} differ; expected equal ones"
        )
    a, b = as_float(a, "the first argument", where), as_float(b, "the second argument", where)
    dtype = common_dtype(a, b)
    return a.astype(dtype), b.astype(dtype)
