"""Numbers that judge codes and images. Batches are (batch, d); every function runs under jit.

Two definitions of NMSE are in use and differ by many dB when a few signals fail: `nmse` is a ratio
of sums, `mean_nmse` a mean of decibels. Report both, with `failure_rate`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled._checks import Array, as_float, common_dtype


def nmse(estimates: Array, X: Array) -> Array:
    """10 log10(sum norm(x^ - x)^2 / sum norm(x)^2) over the batch, dB: the definition of LISTA-CPSS
    and ALISTA.
    """
    estimates, X = _same(estimates, X, "nmse")
    return 10 * jnp.log10(jnp.sum((estimates - X) ** 2) / jnp.sum(X**2))


def signal_nmse(estimates: Array, X: Array) -> Array:
    """10 log10(norm(x^ - x)^2 / norm(x)^2) of every signal, dB; (batch,). A zero code gives nan or
    inf.
    """
    estimates, X = _same(estimates, X, "signal_nmse")
    return 10 * jnp.log10(jnp.sum((estimates - X) ** 2, -1) / jnp.sum(X**2, -1))


def mean_nmse(estimates: Array, X: Array) -> Array:
    """Mean over the signals of `signal_nmse`, floored at -300 dB: the definition of Open-L2O.

    Zero codes are left out (nan if all are).
    """
    per_signal = jnp.maximum(signal_nmse(estimates, X), -300.0)
    nonzero = jnp.any(X != 0, -1)
    return jnp.mean(per_signal, where=nonzero)


def failure_rate(estimates: Array, X: Array, level: float = -20.0) -> Array:
    """Share of the signals whose error is not below `level` dB; an estimate with NaN fails."""
    estimates, X = _same(estimates, X, "failure_rate")
    error, energy = jnp.sum((estimates - X) ** 2, -1), jnp.sum(X**2, -1)
    return jnp.mean(~(error <= 10 ** (level / 10) * energy))


class SupportScores(NamedTuple):
    """How well a support is found, averaged over the signals."""

    precision: Array  # share of the chosen entries that are right, 1 where none is chosen
    recall: Array  # share of the true entries that are chosen, 1 where there is none
    false_positives: Array  # chosen entries that are wrong, per signal


def support_scores(estimates: Array, X: Array, tolerance: float = 0.0) -> SupportScores:
    """Precision and recall of the support; an entry is chosen if its magnitude exceeds `tolerance`."""
    estimates, X = _same(estimates, X, "support_scores")
    chosen, true = jnp.abs(estimates) > tolerance, X != 0
    hits, n_chosen, n_true = (
        jnp.sum(mask, -1, dtype=float) for mask in (chosen & true, chosen, true)
    )
    precision = jnp.where(n_chosen > 0, hits / jnp.maximum(n_chosen, 1), 1.0)
    recall = jnp.where(n_true > 0, hits / jnp.maximum(n_true, 1), 1.0)
    return SupportScores(precision.mean(), recall.mean(), (n_chosen - hits).mean())


def kkt_violation(D, y: Array, x: Array, lam: Array) -> Array:
    """Largest violation of the optimality of x for 1/2 norm(y - D x)^2 + lam norm(x, 1), in units
    of lam.

    On the support D' r = lam sign(x), off it abs(D' r) <= lam. Asks lam > 0.

    Raises:
        ValueError: y or x of the wrong shape.
    """
    if (np.shape(y), np.shape(x)) != ((D.shape[0],), (D.shape[1],)):
        raise ValueError(
            f"kkt_violation: D has shape {D.shape}, y {np.shape(y)} and x {np.shape(x)}; they must fit"
        )
    g = (y - D @ x) @ D
    violation = jnp.where(
        x != 0, jnp.abs(g - lam * jnp.sign(x)), jnp.maximum(jnp.abs(g) - lam, 0.0)
    )
    return violation.max() / lam


def psnr(estimate: Array, reference: Array, peak: float = 1.0) -> Array:
    """20 log10(peak / rms(estimate - reference)), dB, over all entries; nothing is clipped."""
    estimate, reference = _same(estimate, reference, "psnr")
    return -10 * jnp.log10(jnp.mean((estimate - reference) ** 2) / peak**2)


def _same(a: Array, b: Array, where: str) -> tuple[Array, Array]:
    """Both as floats (bytes would wrap around), of one shape."""
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"{where}: shapes {np.shape(a)} and {np.shape(b)} differ; expected equal ones"
        )
    a, b = as_float(a, "the first argument", where), as_float(b, "the second argument", where)
    dtype = common_dtype(a, b)
    return a.astype(dtype), b.astype(dtype)
