"""Layered pursuits: thresholds and penalties without false positives, and the errors they leave."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import UP, largest
from unrolled._base.programs import host_function
from unrolled.dictionaries import Dictionary, Operator, unit_atoms
from unrolled.theory import _convergence, _models, _uniqueness
from unrolled.theory._coherence import diagonal, weights_coherence
from unrolled.theory._schedules import host_numbers, times


class LayeredSchedule(NamedTuple):
    """Thresholds or penalties of a layered pursuit, and what they guarantee."""

    lams: np.ndarray  # (J,) no false positive in layer j; inf where the hypotheses fail
    error: np.ndarray  # (J,) norm(x_j - x^_j, inf), so entries larger than that are found
    holds: bool  # all of them are finite


@host_function
def layered_thresholds(
    Ds: Sequence[Dictionary],
    *,
    sparsities: Sequence[int],
    bounds: ArrayLike | Sequence[ArrayLike],
    noise: ArrayLike = 0.0,
    stripes: bool = False,
) -> LayeredSchedule:
    r"""Thresholds of `pursuit.layered_thresholding` without false positives.

    .. math::
        \theta_j &= \mu_j s_j B_j + \delta_j, \qquad
        \|x_j - \hat x_j\|_\infty \le e_j
            = \theta_j + ((s_j - 1) \mu_j + \eta_j) B_j + \delta_j, \\
        \delta_1 &= \sqrt{1 + \eta_1} \, noise, \qquad \delta_{j+1} = g_{j+1} e_j.

    Here mu = max abs(d_i . d_k), i != k, and eta = max abs(1 - d_i . d_i). The codes obey x_{j-1} =
    D_j x_j with at most s_j nonzeros of magnitude at most B_j, and y = D_1 x_1 + e. g_{j+1} is the
    largest sum of s_j magnitudes of one atom of D_{j+1}. The support is found where the nonzeros
    are above e_j. The error does not vanish with the noise: it grows with the contrast of the
    nonzeros.

    Proof: d_i . x_{j-1} = (d_i . d_i) x_i + sum_{k != i} d_i . d_k x_k + d_i . e, where the sum is
    at most mu s B off the support and mu (s - 1) B on it.

    Args:
        Ds: J dictionaries with unit atoms.
        sparsities: J integers s_j, at most d_j.
        bounds: B_j, one or one per layer.
        noise: bound on abs(d_i . e) for the atoms of D_1 at norm 1, such as norm(e, 2), or, for a
            `Conv`, the largest norm of e on the support of an atom.
        stripes: s_j bounds the nonzeros of every stripe of a `Conv` (`stripe_norm`), not of the
            whole code; g_{j+1} is then the largest l1 norm of an atom.

    Raises:
        TypeError: a traced argument.
        ValueError: shapes or lengths that do not fit, sparsities above d_j, negative or NaN
            numbers, atoms off unit norm.

    Not claimed: anything about rounding.

    Reference: Papyan, Romano, Elad (2017), for its form; the constants are derived here.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> result = ur.theory.layered_thresholds([D], sparsities=[2], bounds=1.0)
        >>> result.lams.round(3).tolist(), result.error.round(3).tolist()
        ([0.25], [0.375])
    """
    where = "layered_thresholds"
    Ds, s, products, gains, delta = _measured(Ds, sparsities, noise, stripes, where)
    lams, errors = [], []
    bounds = _models.layer_numbers(bounds, "bounds", len(Ds), where)
    for n, (mu, eta), B, gain in zip(s, products, bounds, gains):
        lams.append(times(mu * n, B) + delta)
        errors.append(lams[-1] + times(mu * max(n - 1, 0) + eta, B) + delta if n else 0.0)
        delta = times(gain, errors[-1])
    return _schedule(lams, errors)


@host_function
def layered_penalties(
    Ds: Sequence[Dictionary], *, sparsities: Sequence[int], noise: ArrayLike, stripes: bool = False
) -> LayeredSchedule:
    r"""Penalties of `pursuit.layered_basis_pursuit` without false positives.

    .. math::
        lam_j &= \delta_j \frac{1 + \mu_j - \eta_j}{1 - (2 s_j - 1) \mu_j - \eta_j}, \qquad
        \|x_j - \hat x_j\|_\infty \le e_j
            = \frac{lam_j + \delta_j}{1 - (s_j - 1) \mu_j - \eta_j}, \\
        \delta_1 &= \sqrt{1 + \eta_1} \, noise, \qquad \delta_{j+1} = g_{j+1} e_j.

    mu and eta are those of `layered_thresholds`. The codes obey x_{j-1} = D_j x_j with at most s_j
    nonzeros of any size, (2 s_j - 1) mu_j + eta_j < 1, and y = D_1 x_1 + e. The error is in
    proportion to the noise, and there is none without: then lam_j = 0 stands for the equality
    constraints of DSC_1.

    Proof: let x^ be the solution on the support S, and G = D_S'D_S, for which norm(G^-1, inf) <= 1
    / (1 - (s - 1) mu - eta). Then x - x^ = G^-1 (lam sign - D_S'e), which gives the error. Off S,
    abs(d_i'D_S) sums up to s mu, so that abs(d_i . r) <= rho (lam + delta) + delta with rho = s mu
    / (1 - (s - 1) mu - eta) < 1; this is at most lam by the choice of lam.

    Args:
        Ds, sparsities, noise, stripes: as in `layered_thresholds`.

    Raises: as in `layered_thresholds`.

    Not claimed: anything about rounding, or about solutions with a large duality gap.

    Reference: Papyan, Romano, Elad (2017), for its form; Tropp (2006) for the argument;
    the constants are derived here.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> result = ur.theory.layered_penalties([D], sparsities=[2], noise=0.1)
        >>> result.lams.round(3).tolist(), result.error.round(3).tolist(), result.holds
        ([0.18], [0.32], True)
    """
    Ds, s, products, gains, delta = _measured(Ds, sparsities, noise, stripes, "layered_penalties")
    lams, errors = [], []
    for n, (mu, eta), gain in zip(s, products, gains):
        slack = 1 - (2 * n - 1) * mu - eta
        lams.append(UP * delta * (1 + mu - eta) / slack if slack > 0 else np.inf)
        inverse = 1 / (1 - (n - 1) * mu - eta) if slack > 0 else np.inf
        errors.append(times(lams[-1] + delta, inverse) if n else 0.0)
        delta = times(gain, errors[-1])
    return _schedule(lams, errors)


def _measured(
    Ds: Sequence[Dictionary], sparsities: Sequence[int], noise: ArrayLike, stripes: bool, where: str
) -> tuple[tuple[Operator, ...], list[int], list[tuple[float, float]], list[float], float]:
    """The chain, s, (mu, eta) rounded up, the gain of every layer for the next, the noise."""
    (delta,) = host_numbers(where, noise=noise)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = _models.host_chain(Ds, where)
        s = _uniqueness.bounded_counts(sparsities, Ds, where).tolist()
        for D in Ds:
            unit_atoms(D, where)
        products = [(float(mu) * UP, float(eta) * UP) for mu, eta in map(_coherence_and_norms, Ds)]
        counts = [D.shape[0] for D in Ds[1:]] if stripes else s[:-1]
        gains = [_convergence.sum_of_largest(D, n) for D, n in zip(Ds[1:], counts)]
    (_, eta), *_ = products
    return Ds, s, products, [*gains, 0.0], times(math.sqrt(1 + eta), delta)


# Compiled as a whole, as `measured` is.
@jax.jit
def _coherence_and_norms(D: Dictionary) -> tuple[Array, Array]:
    """max abs(d_i . d_k) over i != k, and max abs(1 - d_i . d_i): atoms are of norm 1 to 1e-4."""
    return weights_coherence(D, D).mu_W, largest(jnp.abs(1 - diagonal(D, D)))


def _schedule(lams: Sequence[float], errors: Sequence[float]) -> LayeredSchedule:
    finite = bool(np.isfinite([*lams, *errors]).all())
    return LayeredSchedule(np.asarray(lams), np.asarray(errors), finite)
