"""One schedule of thresholds with which the steps provably find every code of a sample."""

from typing import Any

import jax
import numpy as np

from unrolled import theory
from unrolled._base import checks
from unrolled._base.doors import ArrayLike, host_function
from unrolled.analytic._params import stored_thresholds
from unrolled.analytic._schedules import HypothesisWarning
from unrolled.dictionaries import Dictionary, as_dictionary
from unrolled.layers import Unrolled
from unrolled.theory import MeasuredLayer, Noise

__all__ = ["from_sample"]


_NAMED = 4  # number of codes that a warning names
_FIRST = 2000  # the first round leaves out one code in 2000, each next round twice as many


@host_function
def from_sample(
    layer: Any,
    D: Dictionary,
    X: Any,  # complex if D is a `Complex`
    *,
    slack: float = 1.02,
    noise: ArrayLike = 0.0,
    noise_norm: str | None = None,
    confidence: float = 1 - 1e-6,
    leave_out: float = 0.0,
    W: Dictionary | None = None,
) -> Unrolled:
    r"""Params with the least thresholds for which the steps provably find every code of a sample.

    .. math:: \theta_k = slack \, \max_{x \in X} \max_{i \notin S(x)} A_i(x, E_k),

    `theory.certify_signals` defines E_k and A, which bound errors entry by entry, and checks for
    which fresh codes these thresholds suffice. For a Gaussian D, (250, 500), and codes with 12
    nonzeros, 39 steps with thresholds from a sample of 30,000 codes provably find 99.9 % of fresh
    codes. The worst-case theorems cover codes with at most 2 nonzeros. The products |W'D| form a
    d x d matrix, as in `certify_signals`.

    Args:
        layer: a layer whose depth is the length of the schedule. Its family must have steps x <-
            shrink(x + gamma W'(y - D x), theta) and take params from theory, as in
            `layers.alista(39, support=(1, 1))`. With support selection, proofs cover codes with
            more nonzeros than with soft thresholds.
        D: (m, d), unit atoms.
        X: (n, d), codes of the class, or these codes in another form that D accepts.
        slack: at least 1; with a larger slack, the threshold of each step suffices for more fresh
            codes, but more steps are needed.
        noise, noise_norm, confidence: bound on the noise, one number or one per code, (n,), its
            norm, and the confidence for Gaussian noise, as in `theory.certify_signals`.
        leave_out: the share of the sample that the schedule may leave out. While some codes are not
            proved, `from_sample` leaves out the codes that need the largest last threshold, first a
            few, then more.
        W: (m, d), weights; by default `theory.frobenius_weights(D)`.

    Returns:
        The params of `layer.from_theory(W, theta)`. If a step fails for all codes, the thresholds
            of the steps after it are the threshold of this step.

    Warns:
        HypothesisWarning: some codes are not proved. With noise, a code counts as proved if its
            last error bound is below its first error bound. A single code can prevent the
            contraction of the whole schedule; try `leave_out`.

    Raises:
        TypeError: the layer has another form, or an argument is traced.
        ValueError: X has no code, codes do not fit, slack is below 1, or leave_out is outside
            [0, 1).

    Not claimed: that the steps find a fresh code; `theory.certify_signals` checks this for each
    code. To estimate the share of the codes of the class that are proved, use a second sample and
    `theory.exceedance`.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 100, 200)
        >>> sample, fresh = (ur.problems.exact_sparse(key, (500, 200), 4) for key in (1, 2))
        >>> layer = ur.alista(30, support=(1, 1))
        >>> params = ur.analytic.from_sample(layer, D, sample)
        >>> bool(ur.theory.certify_signals(layer, params, D, fresh).proved.mean() > 0.98)
        True
    """
    where = "from_sample"
    D = as_dictionary(D, where)
    slack = checks.as_number(slack, "slack", where)
    if not 1 <= slack < np.inf:
        raise ValueError(f"{where}: slack must be at least 1 and finite, got {slack:g}")
    leave_out = checks.as_number(leave_out, "leave_out", where)
    if not 0 <= leave_out < 1:
        raise ValueError(f"{where}: leave_out must be in [0, 1), got {leave_out:g}")
    W = theory.frobenius_weights(D) if W is None else as_dictionary(W, where, "W")
    if getattr(layer, "from_theory", None) is None:
        raise TypeError(f"{where}: {layer} takes no params from theory; try layers.alista")
    unset = layer.from_theory(W, jax.device_put(np.ones(layer.depth, D.dtype)))
    measured = MeasuredLayer.of(layer, unset, D, where)
    codes = theory.codes_of(X, D, where)
    if not len(codes):
        raise ValueError(f"{where}: X has no code; expected a sample of the class")
    noises = Noise.of(noise, noise_norm, confidence, len(codes), measured.measured, where)
    thresholds: list[float] = []
    last = np.zeros(0)

    def choose(step: Any, needed: np.ndarray) -> np.ndarray:
        nonlocal last
        last = needed
        thresholds.append(_stored(slack * float(needed.max()), D.dtype))
        return np.asarray(thresholds[-1])

    kept, few = np.arange(len(codes)), 1 + len(codes) // _FIRST
    least = len(codes) - int(leave_out * len(codes))
    while True:
        thresholds.clear()
        errors, _, _, left = measured.bounds(codes[kept], noises.rows(kept), choose)
        # Noise hides small nonzeros, so with noise the support need not be found.
        ends, some = errors[:, -1] < errors[:, 0], noises.deltas[kept] > 0
        proved = np.where(some, ends, theory.are_found(codes[kept], left))
        furthest = np.argsort(-np.where(proved, -np.inf, last))[: np.sum(~proved)]
        if not len(furthest) or len(kept) == least:
            break
        kept = np.delete(kept, furthest[: min(few, len(kept) - least)])
        few *= 2
    if len(furthest):
        named = ", ".join(map(str, kept[furthest[:_NAMED]]))
        checks.warn(
            f"{len(furthest)} of {len(kept)} codes are not proved in {layer.depth} steps. The "
            f"furthest codes are X[i], i = {named}; try more steps, fewer nonzeros, or a larger "
            f"leave_out than {leave_out:g}",
            HypothesisWarning,
        )
    thresholds += thresholds[-1:] * (layer.depth - len(thresholds))  # after a step that fails
    return layer.from_theory(W, jax.device_put(np.asarray(thresholds, D.dtype)))


def _stored(theta: float, dtype: Any) -> float:
    """The stored threshold, at least theta unless theta is out of the range of the dtype."""
    return float(stored_thresholds(np.asarray(theta), dtype))
