"""How far the codes of a perturbed chain can be (Theorem 3, its corollaries, and the bounds that
skip layers).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import Composed, as_dictionary, column_norms, spectral_norm, unit_atoms
from unrolled.theory._coherence import coherence, diagonal, weights_coherence
from unrolled.theory._models import effective, host_chain, layer_numbers, measured, of_length
from unrolled.theory._schedules import host_numbers, times
from unrolled.theory._uniqueness import (
    _cut,
    as_supports,
    bounded_counts,
    constraints,
    singular_values,
)

# Measured coherences are rounded up by this: a radicand that is zero must not come out positive.
UP = 1 + 1e-9


class Stability(NamedTuple):
    """Bounds on the distance of the codes of a perturbed chain from those of the exact one."""

    delta: np.ndarray  # (J,) norm(x_j - x~_j) <= delta_j, inf where nothing is known
    # (J,) norm(h) / norm(D_j h) for 2 s_j nonzeros, by mu(D_j): Theorem 3; 0 at s_j = 0
    factor: np.ndarray
    # (J,) the same by the weights W_j, inf without; delta uses the smaller of the two
    factor_W: np.ndarray
    holds: bool  # all of delta is finite


def stability(Ds, sparsities, eps, eps0: float, *, Ws=None) -> Stability:
    r"""Distance of {x_j}, with x_{j-1} = D_j x_j and x_0 = y, from {x~_j}, with norm(x~_{j-1} - D_j
    x~_j) <= eps_j.

    .. math::
        \delta_0 = \epsilon_0 \ge \|y - \tilde y\|_2, \qquad \delta_j = (\epsilon_j + \delta_{j-1}) \min(c_j, c'_j), \\
        c_j = 1 / \sqrt{1 - (t-1) \mu(D_j)}, \qquad t = \min(2 s_j, d_j), \\
        c'_j = \frac{\min(\|W_j\|_2, \sqrt{\omega^2 + (t-1) \max_{i \ne k} |w_i \cdot w_k|})}
        {1 - (t-1) \mu_{W_j} - \eta_j}, \qquad \omega = \max_i \|w_i\|_2, \; \eta_j = \max_i |1 - w_i \cdot d_i|.

    Both chains have the same D_j and at most s_j nonzeros in layer j. Weights with mu_W below
    mu(D_j) reach sparsities that mu(D_j) does not. For dictionaries D~_j of the second chain's own,
    add what `perturbed_eps` says to eps.

    Args:
        Ds: J dictionaries with unit atoms.
        sparsities: J integers s_j (the paper's lambda_j), at most d_j; at s_j = 0 both codes are 0.
        eps: one tolerance, or one per layer.
        eps0: bound on norm(y - y~).
        Ws: J weights shaped as their D_j, with w_i . d_i near 1; None, for all or for one, is c_j
            alone. (W_j = D_j never improves on it.)

    Raises:
        TypeError: traced arguments. ValueError: shapes or lengths that do not meet, sparsities
            above d_j, negative or NaN numbers, atoms off unit norm. Violated hypotheses are not
            errors: delta is inf and holds is False.

    Not claimed: that either chain has a solution.

    Reference: Li, Feng, Zhou (2024), Theorem 3, with the factor of any W beside the printed one.
    """
    where = "stability"
    (eps0,) = host_numbers(where, eps0=eps0)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds, t = _hypotheses(Ds, sparsities, where)
        eps = layer_numbers(eps, "eps", len(Ds), where).tolist()
        Ws = _weights((None,) * len(Ds) if Ws is None else Ws, len(Ds), where)
        factor = np.array([_factor(D, n) for D, n in zip(Ds, t)])
        factor_W = np.array([_factor_of_weights(W, D, n) for W, D, n in zip(Ws, Ds, t)])
    delta, error = np.empty(len(Ds)), eps0
    for j, c in enumerate(np.minimum(factor, factor_W).tolist()):
        delta[j] = error = _enlarged(eps[j] + error, c)
    return Stability(delta, factor, factor_W, bool(np.isfinite(delta).all()))


def noise_stability(Ds, sparsities, eps0: float) -> np.ndarray:
    r"""`stability` for chains that are both exact, with noise in the signal alone, in closed form;
    (J,).

    .. math:: \|x_j - \tilde x_j\|_2 \le \epsilon_0 \prod_{i \le j} (1 - (t_i - 1) \mu(D_i))^{-1/2}, \; t_i = \min(2 s_i, d_i).

    The noisy signal itself must be in the model, y~ = D_1 x~_1: for one that is only near it, eps_1
    = norm(y~ - D_1 x~_1) enters, and `stability` says more. Infinite where a factor is not
    positive.

    Args and errors as in `stability`.

    Reference: Li, Feng, Zhou (2024), Corollary 4, with the index i inside the product.
    """
    (eps0,) = host_numbers("noise_stability", eps0=eps0)
    gains = _gains(Ds, sparsities, "noise_stability")
    return np.array([_enlarged(eps0, gain) for gain in gains[0].tolist()])


def model_stability(Ds, sparsities, eps) -> np.ndarray:
    r"""`stability` for the same signal, with deviations eps_j from the model alone, in closed form;
    (J,).

    .. math:: \|x_j - \tilde x_j\|_2 \le \sum_{i \le j} \epsilon_i \Big/ \prod_{m=i}^{j} \sqrt{1 - (t_m - 1) \mu(D_m)}.

    Infinite where a factor is not positive. Args and errors as in `stability`.

    Reference: Li, Feng, Zhou (2024), Corollary 5.
    """
    gains = _gains(Ds, sparsities, "model_stability")
    eps = layer_numbers(eps, "eps", len(gains), "model_stability").tolist()
    return np.array(
        [sum(map(_enlarged, eps[: j + 1], gains[: j + 1, j].tolist())) for j in range(len(gains))]
    )


def _gains(Ds, sparsities, where: str) -> np.ndarray:
    """c_i ... c_j at [i, j >= i], (J, J): what an error in front of layer i becomes behind layer j."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds, t = _hypotheses(Ds, sparsities, where)
        factors = [_factor(D, n) for D, n in zip(Ds, t)]
    gains = np.zeros((len(Ds), len(Ds)))
    for i in range(len(Ds)):
        gain = 1.0
        for j in range(i, len(Ds)):
            gains[i, j] = gain = _enlarged(gain, factors[j])
    return gains


def perturbed_eps(Ds, Ds_perturbed, xs, eps=0.0) -> np.ndarray:
    r"""The eps of `stability` for a second chain with dictionaries of its own, (J,).

    .. math:: \epsilon_j + \|(\tilde D_j - D_j) \tilde x_j\|_2 \ge \|\tilde x_{j-1} - D_j \tilde x_j\|_2.

    Args:
        Ds, Ds_perturbed: D_j and D~_j, of the same shapes; the latter need no unit atoms.
        xs: the codes x~_j of the second chain, (d_j,) each.
        eps: its own tolerances, one or one per layer.

    Raises:
        TypeError: traced arguments. ValueError: shapes or lengths that do not meet, codes that are
            not finite.
    """
    where = "perturbed_eps"
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        _checks.on_host(xs, where)
        Ds, others = host_chain(Ds, where), host_chain(Ds_perturbed, where)
        of_length(others, "Ds_perturbed", len(Ds), where)
        of_length(xs, "xs", len(Ds), where)
        eps = layer_numbers(eps, "eps", len(Ds), where)
        for j, (D, other, x) in enumerate(zip(Ds, others, xs), start=1):
            if D.shape != other.shape or np.shape(x) != (D.shape[1],):
                raise ValueError(
                    f"{where}: D_{j} has shape {D.shape}, its perturbation {other.shape} and its code {np.shape(x)}; "
                    "expected (m, d) twice and (d,)"
                )
            _checks.finite(x, f"x_{j}", where)
            x = jnp.asarray(x, np.float64)
            eps[j - 1] += float(jnp.linalg.norm(other @ x - D @ x))
    return eps


class ProductStability(NamedTuple):
    """A bound on the codes behind several layers, through their product alone."""

    delta: float  # norm(x_{j0} - x~_{j0}), inf where nothing is known
    eps: float  # of the layers together, at most sum_i norm(D_[j+1,i-1], 2) eps_i
    mu: float  # coherence of the product, rounded up; inf where a column vanishes
    nu: float  # the smallest norm of its columns
    holds: bool


def product_stability(Ds, sparsity: int, eps, delta: float) -> ProductStability:
    r"""Distance of the codes x_{j0} through P = D_[j+1,j0] = D_{j+1} ... D_{j0}, without the
    factors of the layers between.

    .. math::
        \|x_{j_0} - \tilde x_{j_0}\|_2 \le
        \frac{\epsilon_{[j+1,j_0]} + \delta_j}{\nu \sqrt{1 - (t-1) \mu(P)}}, \qquad t = \min(2 s_{j_0}, d_{j_0}), \qquad
        \epsilon_{[j+1,j_0]} \le \sum_{i=j+1}^{j_0} \|D_{[j+1,i-1]}\|_2 \epsilon_i,

    with nu the smallest column norm of P: products of unit atoms are not unit atoms.

    Args:
        Ds: the dictionaries D_{j+1}, ..., D_{j0}, a slice of a chain (columns of any norm).
        sparsity: s_{j0}, at most d_{j0}; the layers between need none.
        eps: their tolerances, one or one per layer. For a measured norm(x~_j - P x~_{j0}), pass
            [Composed(*Ds)] and that.
        delta: bound on norm(x_j - x~_j), or on norm(y - y~) for j = 0.

    Raises: as `stability`, but for the norms of the atoms.

    Reference: Li, Feng, Zhou (2024), remark after Corollary 5, with lambda_{j0}, D_[j+1,j0] and nu
    in their places.
    """
    where = "product_stability"
    (delta,) = host_numbers(where, delta=delta)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where)
        (s,) = bounded_counts([sparsity], Ds[-1:], where)
        total = _accumulated(Ds, layer_numbers(eps, "eps", len(Ds), where).tolist())
        P, norms = effective(Ds)
        nu = float(norms.min())
        mu = float(measured(P)[0]) * UP if nu else math.inf
    c = _inverse_root(mu, nu, min(2 * int(s), Ds[-1].shape[1]))
    bound = _enlarged(total + delta, c)
    return ProductStability(bound, total, mu, nu, math.isfinite(bound))


class HolisticStability(NamedTuple):
    """A bound on the deepest codes of two chains on the same supports."""

    delta: float  # norm(x_J - x~_J), inf where the supports do not determine the codes
    eps: float  # bound on norm(M (x_J - x~_J))
    sigma_min: float  # smallest singular value of M
    holds: bool


def holistic_stability(Ds, supports, eps, eps0: float) -> HolisticStability:
    r"""Distance of x_J from x~_J, both chains on the supports S_1, ..., S_J, by the whole system at
    once.

    .. math::
        \|x_J - \tilde x_J\|_2 \le \epsilon / \sigma_{\min}(M), \qquad
        M = \mathrm{stack}[(D_{[1,J]})_{S_J}; K], \qquad
        \epsilon^2 = (\epsilon_0 + \epsilon_{[1,J]})^2 + \sum_{0<j<J} \epsilon_{[j+1,J]}^2,

    with K of `recover_on_supports` and eps_[j+1,J] of `product_stability`. With K alone in place of
    M the bound would apply to x_J = 0 only, since K x_J = 0.

    Args:
        Ds: J dictionaries (columns of any norm).
        supports: J sequences of distinct integers in [0, d_j).
        eps, eps0: as in `stability`.

    Raises: as `stability` and `recover_on_supports`.

    Reference: Li, Feng, Zhou (2024), remark after Corollary 5, repaired by the rows of y.
    """
    where = "holistic_stability"
    (eps0,) = host_numbers(where, eps0=eps0)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where)
        J, supports = len(Ds), as_supports(supports, Ds, where)
        eps = layer_numbers(eps, "eps", J, where).tolist()
        parts = [_accumulated(Ds[j:], eps[j:]) for j in range(J)]
        E, K = constraints(Ds, supports)
        spectrum = singular_values(E[0], K)
        sigma_min, cut = _rounded_down(spectrum), float(_cut(spectrum))
    total = math.hypot(eps0 + parts[0], *parts[1:])
    delta = _enlarged(total, 1 / sigma_min) if sigma_min > cut else math.inf
    return HolisticStability(delta, total, sigma_min, math.isfinite(delta))


def _hypotheses(Ds, sparsities, where: str) -> tuple[tuple, list[int]]:
    """The chain in float64, its atoms of unit norm, and t_j = min(2 s_j, d_j): nonzeros of a
    difference of codes.
    """
    Ds = host_chain(Ds, where)
    s = bounded_counts(sparsities, Ds, where)
    for D in Ds:
        unit_atoms(D, where)
    return Ds, [min(2 * int(n), D.shape[1]) for n, D in zip(s, Ds)]


def _weights(Ws, J: int, where: str) -> list:
    of_length(Ws, "Ws", J, where)
    _checks.on_host(Ws, where)
    return [W if W is None else _checks.cast(as_dictionary(W, where), np.float64) for W in Ws]


def _factor(D, t: int) -> float:
    """norm(h) / norm(D h) for at most t nonzeros, by mu(D)."""
    mu, norms = measured(D)
    return _inverse_root(float(mu) * UP, float(np.min(norms)), t)


def _inverse_root(mu: float, nu: float, t: int) -> float:
    """1 / sqrt(nu^2 (1 - (t-1) mu)), 0 at t = 0, inf where the radicand is not positive."""
    radicand = nu**2 * (1 - (t - 1) * mu)
    return 0.0 if t == 0 else 1 / math.sqrt(radicand) if radicand > 0 else math.inf


def _factor_of_weights(W, D, t: int) -> float:
    """norm(h) / norm(D h) for at most t nonzeros, by |(1 - eta - (t-1) mu_W) h| <= |(W' D h) on the
    support of h|.
    """
    if t == 0 or W is None:
        return math.inf if t else 0.0
    mu_W, eta, omega, product, norm = map(float, _measured_weights(W, D))
    denominator = 1 - eta - (t - 1) * mu_W * UP
    return (
        min(norm, math.sqrt(omega**2 + (t - 1) * product)) / denominator
        if denominator > 0
        else math.inf
    )


@jax.jit
def _measured_weights(W, D) -> tuple[Array, ...]:
    """mu_W, max abs(1 - w_i . d_i), max norm(w_i), max abs(w_i . w_j) over i != j, and norm(W, 2)."""
    mu_W = coherence(W, D).mu_W
    eta = jnp.abs(1 - diagonal(W, D)).max()
    return mu_W, eta, column_norms(W).max(), weights_coherence(W, W).mu_W, spectral_norm(W)


def _enlarged(error: float, factor: float) -> float:
    """error factor, where 0 (the code is 0) and inf (nothing is known) overrule whatever the error
    is.
    """
    return factor if factor in (0, math.inf) else error * factor


def _accumulated(Ds, eps) -> float:
    """sum_i norm(D_1 ... D_{i-1}, 2) eps_i, which bounds norm(x_0 - D_1 ... D_J x_J)."""
    norms = [1.0, *(float(_norm(Composed(*Ds[:i]))) for i in range(1, len(Ds)))]
    return float(sum(times(n, e) for n, e in zip(norms, eps)))


_norm = jax.jit(spectral_norm)


def _rounded_down(spectrum) -> float:
    """The smallest singular value less what rounding of the largest can put on it, inf if there is
    none.
    """
    if not len(spectrum):
        return math.inf
    smallest, largest = float(spectrum[-1]), float(spectrum[0])
    return max(0.0, smallest - len(spectrum) * np.finfo(float).eps * largest)
