"""Distances from exact codes to codes of a perturbed chain, or of a layered pursuit."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, host_function, program
from unrolled._base.numbers import UP, largest
from unrolled.dictionaries import Composed, Dictionary, Operator
from unrolled.theory import _uniqueness
from unrolled.theory._coherence import coherence, diagonal, measured, weights_coherence
from unrolled.theory._convergence import sum_of_largest
from unrolled.theory._models import effective, host_chain, layer_numbers, of_length
from unrolled.theory._schedules import host_numbers, times

__all__ = [
    "HolisticStability",
    "LayeredSchedule",
    "ProductStability",
    "Stability",
    "holistic_stability",
    "layered_penalties",
    "layered_thresholds",
    "model_stability",
    "noise_stability",
    "perturbed_eps",
    "product_stability",
    "stability",
]


class Stability(Result):
    """Bounds on the distances between the codes of a perturbed chain and of the exact chain."""

    delta: np.ndarray  # (J,) norm(x_j - x~_j) <= delta_j, inf if no bound is known
    # (J,) bound on norm(h) / norm(D_j h) for 2 s_j nonzeros, by mu(D_j): Theorem 3; 0 at s_j = 0
    factor: np.ndarray
    # (J,) the same bound by the weights W_j, inf without weights; delta uses the smaller bound
    factor_W: np.ndarray
    holds: bool  # whether all entries of delta are finite


@host_function
def stability(
    Ds: Sequence[Dictionary],
    sparsities: Sequence[int],
    eps: ArrayLike | Sequence[ArrayLike],
    eps0: ArrayLike,
    *,
    Ws: Sequence[Dictionary | None] | None = None,
) -> Stability:
    r"""Bounds on the distances between the codes of a perturbed chain and of an exact chain.

    The exact chain has x_{j-1} = D_j x_j with x_0 = y, and the perturbed chain has
    norm(x~_{j-1} - D_j x~_j, 2) <= eps_j with x~_0 = y~.

    .. math::
        \delta_0 &= \epsilon_0 \ge \|y - \tilde y\|_2, \qquad
        \delta_j = (\epsilon_j + \delta_{j-1}) \min(c_j, c'_j), \\
        c_j &= 1 / \sqrt{1 - (t-1) \mu(D_j)}, \qquad t = \min(2 s_j, d_j), \\
        c'_j &= \frac{\min(\|W_j\|_2, \sqrt{\omega^2 + (t-1) \max_{i \ne k} |w_i \cdot w_k|})}
        {1 - (t-1) \mu_{W_j} - \eta_j}, \\
        \omega &= \max_i \|w_i\|_2, \qquad \eta_j = \max_i |1 - w_i \cdot d_i|.

    Both chains have the same D_j and at most s_j nonzeros in layer j. Weights with mu_W below
    mu(D_j) can give finite bounds at sparsities for which c_j is infinite. If the second chain has
    other dictionaries, pass the eps of `perturbed_eps`.

    Args:
        Ds: J dictionaries with unit atoms.
        sparsities: J integers s_j (the paper's lambda_j), at most d_j; at s_j = 0 both codes are 0.
        eps: one tolerance, or one per layer.
        eps0: bound on norm(y - y~, 2).
        Ws: J weights W_j of the shapes of D_j, with w_i . d_i near 1. For a layer with W_j = None,
            and for all layers if Ws is None, the bound uses only c_j. With W_j = D_j, c'_j is at
            least c_j.

    Returns:
        Stability. If a layer violates the hypotheses, the function does not raise an error: delta
        is inf from this layer on, until a layer with s_j = 0, and holds is False.

    Raises:
        TypeError: an argument is traced.
        ValueError: shapes or lengths do not fit, a sparsity exceeds d_j, a number is negative or
            NaN, or an atom is off unit norm.

    Not claimed: that either chain has a solution.

    Reference: Li, Feng, Zhou (2024), Theorem 3; the factor c'_j for any W is derived here.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> bounds = ur.theory.stability([D], sparsities=[3], eps=0.0, eps0=0.1)
        >>> bounds.delta.round(3).tolist(), bounds.holds
        ([0.163], True)
    """
    where = "stability"
    (eps0,) = host_numbers(where, eps0=eps0)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds, t = _hypotheses(Ds, sparsities, where)
        tolerances = layer_numbers(eps, "eps", len(Ds), where).tolist()
        Ws = _weights((None,) * len(Ds) if Ws is None else Ws, len(Ds), where)
        factor = np.array([_factor(D, n) for D, n in zip(Ds, t)])
        factor_W = np.array([_factor_of_weights(W, D, n) for W, D, n in zip(Ws, Ds, t)])
    delta, error = np.empty(len(Ds)), eps0
    for j, c in enumerate(np.minimum(factor, factor_W).tolist()):
        delta[j] = error = _enlarged(tolerances[j] + error, c)
    return Stability(delta, factor, factor_W, bool(np.isfinite(delta).all()))


@host_function
def noise_stability(
    Ds: Sequence[Dictionary], sparsities: Sequence[int], eps0: ArrayLike
) -> np.ndarray:
    r"""The bounds of `stability`, (J,), in closed form for two exact chains and a noisy signal.

    .. math::
        \|x_j - \tilde x_j\|_2 \le \epsilon_0 \prod_{i \le j} (1 - (t_i - 1) \mu(D_i))^{-1/2},
        \qquad t_i = \min(2 s_i, d_i).

    The noisy signal must be in the model, y~ = D_1 x~_1. If the signal is only close to the model,
    use `stability` with eps_1 = norm(y~ - D_1 x~_1, 2). The bound is inf if a factor
    1 - (t_i - 1) mu(D_i) is not positive.

    Args and Raises: as in `stability`.

    Reference: Li, Feng, Zhou (2024), Corollary 4, with the index i inside the product.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> ur.theory.noise_stability([D], [3], eps0=0.1).round(3).tolist()
        [0.163]
    """
    (eps0,) = host_numbers("noise_stability", eps0=eps0)
    gains = _gains(Ds, sparsities, "noise_stability")
    return np.array([_enlarged(eps0, gain) for gain in gains[0].tolist()])


@host_function
def model_stability(
    Ds: Sequence[Dictionary], sparsities: Sequence[int], eps: ArrayLike | Sequence[ArrayLike]
) -> np.ndarray:
    r"""The bounds of `stability`, (J,), in closed form for two chains of the same signal.

    .. math::
        \|x_j - \tilde x_j\|_2 \le
        \sum_{i \le j} \epsilon_i \Big/ \prod_{m=i}^{j} \sqrt{1 - (t_m - 1) \mu(D_m)},
        \qquad t_m = \min(2 s_m, d_m).

    One chain is exact, and the other chain deviates from the model by at most eps_j in layer j. The
    bound is inf if a factor 1 - (t_m - 1) mu(D_m) is not positive.

    Args and Raises: as in `stability`.

    Reference: Li, Feng, Zhou (2024), Corollary 5.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> ur.theory.model_stability([D], [3], eps=0.1).round(3).tolist()
        [0.163]
    """
    gains = _gains(Ds, sparsities, "model_stability")
    tolerances = layer_numbers(eps, "eps", len(gains), "model_stability").tolist()
    return np.array(
        [
            sum(map(_enlarged, tolerances[: j + 1], gains[: j + 1, j].tolist()))
            for j in range(len(gains))
        ]
    )


def _gains(Ds: Sequence[Dictionary], sparsities: Sequence[int], where: str) -> np.ndarray:
    """The gains c_i ... c_j from the input of layer i to the code x_j, at [i, j] for j >= i."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds, t = _hypotheses(Ds, sparsities, where)
        factors = [_factor(D, n) for D, n in zip(Ds, t)]
    gains = np.zeros((len(Ds), len(Ds)))
    for i in range(len(Ds)):
        gain = 1.0
        for j in range(i, len(Ds)):
            gains[i, j] = gain = _enlarged(gain, factors[j])
    return gains


@host_function
def perturbed_eps(
    Ds: Sequence[Dictionary],
    Ds_perturbed: Sequence[Dictionary],
    xs: Sequence[ArrayLike],
    eps: ArrayLike | Sequence[ArrayLike] = 0.0,
) -> np.ndarray:
    r"""The eps, (J,), to pass to `stability` for a second chain with other dictionaries.

    .. math::
        \epsilon_j + \|(\tilde D_j - D_j) \tilde x_j\|_2
        \ge \|\tilde x_{j-1} - D_j \tilde x_j\|_2.

    Args:
        Ds, Ds_perturbed: D_j and D~_j, of the same shapes; the atoms of D~_j may have any norm.
        xs: the codes x~_j of the second chain, (d_j,) each.
        eps: the tolerances of the second chain, one number or one per layer.

    Raises:
        TypeError: an argument is traced.
        ValueError: shapes or lengths do not fit, or a code is not finite.

    Example:
        >>> D, x = ur.dictionaries.identity_hadamard(64), jnp.zeros(128).at[0].set(2.0)
        >>> ur.theory.perturbed_eps([D], [1.01 * D], [x]).round(3).tolist()
        [0.02]
    """
    where = "perturbed_eps"
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds, others = host_chain(Ds, where), host_chain(Ds_perturbed, where)
        of_length(others, "Ds_perturbed", len(Ds), where)
        of_length(xs, "xs", len(Ds), where)
        eps = layer_numbers(eps, "eps", len(Ds), where)
        for j, (D, other, x) in enumerate(zip(Ds, others, xs), start=1):
            if D.shape != other.shape or np.shape(x) != (D.shape[1],):
                raise ValueError(
                    f"{where}: D_{j} has shape {D.shape}, its perturbation {other.shape} and its "
                    f"code {np.shape(x)}; expected (m, d) twice and (d,)"
                )
            checks.finite(x, f"x_{j}", where)
            eps[j - 1] += float(_moved(D, other, np.asarray(x, np.float64)))
    return eps


@program()
def _moved(D: Dictionary, other: Dictionary, x: Any) -> Array:
    """norm(D~ x - D x)."""
    return jnp.linalg.norm(other @ x - D @ x)


class ProductStability(Result):
    """A bound on the distance between codes after several layers, by the product of the layers."""

    delta: float  # bound on norm(x_{j0} - x~_{j0}), inf if no bound is known
    eps: float  # bound on the tolerance of the product, sum_i norm(D_[j+1,i-1], 2) eps_i
    mu: float  # coherence of the product, rounded up; inf if a column vanishes
    nu: float  # the smallest norm of a column of the product
    holds: bool  # whether delta is finite


@host_function
def product_stability(
    Ds: Sequence[Dictionary], sparsity: int, eps: ArrayLike | Sequence[ArrayLike], delta: ArrayLike
) -> ProductStability:
    r"""A bound on norm(x_{j0} - x~_{j0}) by the product P = D_[j+1,j0] = D_{j+1} ... D_{j0}.

    .. math::
        \|x_{j_0} - \tilde x_{j_0}\|_2 &\le
        \frac{\epsilon_{[j+1,j_0]} + \delta_j}{\nu \sqrt{1 - (t-1) \mu(P)}},
        \qquad t = \min(2 s_{j_0}, d_{j_0}), \\
        \epsilon_{[j+1,j_0]} &\le \sum_{i=j+1}^{j_0} \|D_{[j+1,i-1]}\|_2 \epsilon_i.

    Here nu is the smallest column norm of P, because columns of P need not have unit norm. Unlike
    `stability`, the bound does not multiply the factors c_i of the layers j+1, ..., j0.

    Args:
        Ds: the dictionaries D_{j+1}, ..., D_{j0}, a slice of a chain, with columns of any norm.
        sparsity: s_{j0}, at most d_{j0}; the codes before x_{j0} need not be sparse.
        eps: the tolerances of the layers, one number or one per layer. To use a measured
            norm(x~_j - P x~_{j0}, 2), pass this norm and Ds = [Composed(*Ds)].
        delta: bound on norm(x_j - x~_j, 2), or on norm(y - y~, 2) for j = 0.

    Raises: as in `stability`, except that the atoms may have any norm.

    Reference: Li, Feng, Zhou (2024), remark after Corollary 5, with corrected lambda_{j0} and
    D_[j+1,j0], and with nu added.

    Example:
        >>> D_1 = np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 1.0]])
        >>> D_2 = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]) / np.sqrt([2.0, 1.0])
        >>> bounds = ur.theory.product_stability([D_1, D_2], sparsity=1, eps=0.0, delta=0.1)
        >>> bounds.mu, round(bounds.nu, 3), round(bounds.delta, 3)
        (0.0, 0.632, 0.158)
    """
    where = "product_stability"
    (delta,) = host_numbers(where, delta=delta)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where)
        (s,) = _uniqueness.bounded_counts([sparsity], Ds[-1:], where)
        total = _accumulated(Ds, layer_numbers(eps, "eps", len(Ds), where).tolist())
        P, norms = effective(Ds)
        nu = float(norms.min())
        mu = float(measured(P)[0]) * UP if nu else math.inf
    c = _inverse_root(mu, nu, min(2 * int(s), Ds[-1].shape[1]))
    bound = _enlarged(total + delta, c)
    return ProductStability(bound, total, mu, nu, math.isfinite(bound))


class HolisticStability(Result):
    """A bound on the distance between the deepest codes of two chains on the same supports."""

    delta: float  # bound on norm(x_J - x~_J), inf if the supports do not determine the codes
    eps: float  # bound on norm(M (x_J - x~_J))
    sigma_min: float  # smallest singular value of M
    holds: bool  # whether delta is finite


@host_function
def holistic_stability(
    Ds: Sequence[Dictionary],
    supports: Sequence[ArrayLike | Sequence[int]],
    eps: ArrayLike | Sequence[ArrayLike],
    eps0: ArrayLike,
) -> HolisticStability:
    r"""A bound on norm(x_J - x~_J) for two chains on the supports S_1, ..., S_J, by one system.

    .. math::
        \|x_J - \tilde x_J\|_2 &\le \epsilon / \sigma_{\min}(M), \qquad
        M = \mathrm{stack}[(D_{[1,J]})_{S_J}; K], \\
        \epsilon^2 &= (\epsilon_0 + \epsilon_{[1,J]})^2 + \sum_{0<j<J} \epsilon_{[j+1,J]}^2.

    Here K is the matrix of `recover_on_supports`, and eps_[j+1,J] is the tolerance of
    `product_stability`. As printed, with K instead of M, the bound requires an injective K, so it
    covers only x_J = 0, because K x_J = 0.

    Args:
        Ds: J dictionaries, with columns of any norm.
        supports: J sequences of distinct integers in [0, d_j).
        eps, eps0: as in `stability`.

    Raises: as in `stability` and `recover_on_supports`.

    Reference: Li, Feng, Zhou (2024), remark after Corollary 5, with the rows of y added.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> bounds = ur.theory.holistic_stability([D], [[3, 70]], eps=0.0, eps0=0.1)
        >>> round(bounds.sigma_min, 3), round(bounds.delta, 3)
        (0.935, 0.107)
    """
    where = "holistic_stability"
    (eps0,) = host_numbers(where, eps0=eps0)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where)
        J, supports = len(Ds), _uniqueness.as_supports(supports, Ds, where)
        tolerances = layer_numbers(eps, "eps", J, where).tolist()
        parts = [_accumulated(Ds[j:], tolerances[j:]) for j in range(J)]
        E, K, rounding = _uniqueness.constraints(Ds, supports)
        spectrum = np.asarray(_uniqueness.singular_values(E[0], K))
        sigma_min, cut = _rounded_down(spectrum, rounding), float(_uniqueness.rank_cut(spectrum))
    total = math.hypot(eps0 + parts[0], *parts[1:])
    delta = _enlarged(total, 1 / sigma_min) if sigma_min > cut else math.inf
    return HolisticStability(delta, total, sigma_min, math.isfinite(delta))


def _hypotheses(
    Ds: Sequence[Dictionary], sparsities: Sequence[int], where: str
) -> tuple[tuple[Operator, ...], list[int]]:
    """The chain in float64, checked for unit atoms, and t_j = min(2 s_j, d_j).

    A difference of two codes has at most t_j nonzeros.
    """
    Ds = host_chain(Ds, where)
    s = _uniqueness.bounded_counts(sparsities, Ds, where)
    for D in Ds:
        dictionaries.unit_atoms(D, where)
    return Ds, [min(2 * int(n), D.shape[1]) for n, D in zip(s, Ds)]


def _weights(Ws: Sequence[Dictionary | None], J: int, where: str) -> list[Operator | None]:
    """The weights in float64, or None, one per layer."""
    of_length(Ws, "Ws", J, where)
    return [
        W if W is None else checks.cast(dictionaries.as_dictionary(W, where, "W"), np.float64)
        for W in Ws
    ]


def _factor(D: Dictionary, t: int) -> float:
    """Bound on norm(h) / norm(D h) for h with at most t nonzeros, by mu(D)."""
    mu, norms = measured(D)
    return _inverse_root(float(mu) * UP, float(np.min(norms)), t)


def _inverse_root(mu: float, nu: float, t: int) -> float:
    """1 / sqrt(nu^2 (1 - (t-1) mu)), 0 at t = 0, inf if the radicand is not positive."""
    radicand = nu**2 * (1 - (t - 1) * mu)
    return 0.0 if t == 0 else 1 / math.sqrt(radicand) if radicand > 0 else math.inf


def _factor_of_weights(W: Dictionary | None, D: Dictionary, t: int) -> float:
    """Bound on norm(h) / norm(D h) for h with at most t nonzeros, by W; inf without W.

    On the support of h, (1 - eta - (t-1) mu_W) norm(h) <= norm(W' D h).
    """
    if t == 0 or W is None:
        return math.inf if t else 0.0
    mu_W, eta, omega, product, norm = map(float, _measured_weights(W, D))
    denominator = 1 - eta - (t - 1) * mu_W * UP
    gain = min(norm, math.sqrt(omega**2 + (t - 1) * product))
    return gain / denominator if denominator > 0 else math.inf


@jax.jit
def _measured_weights(W: Dictionary, D: Dictionary) -> tuple[Array, ...]:
    """mu_W, max abs(1 - w_i . d_i), max norm(w_i), max abs(w_i . w_j) for i != j, norm(W, 2)."""
    mu_W = coherence(W, D).mu_W
    eta, omega = largest(jnp.abs(1 - diagonal(W, D))), largest(dictionaries.column_norms(W))
    return mu_W, eta, omega, weights_coherence(W, W).mu_W, dictionaries.spectral_norm(W)


def _enlarged(error: float, factor: float) -> float:
    """error times factor, except that a factor of 0 or inf is the result for every error.

    If the factor is 0, the code is 0; if the factor is inf, no bound is known.
    """
    return factor if factor in (0, math.inf) else error * factor


def _accumulated(Ds: Sequence[Dictionary], eps: Sequence[float]) -> float:
    """The sum of norm(D_1 ... D_{i-1}, 2) eps_i over i, a bound on norm(x_0 - D_1 ... D_J x_J)."""
    norms = [1.0, *(float(_norm(Composed(*Ds[:i]))) for i in range(1, len(Ds)))]
    return float(sum(times(n, e) for n, e in zip(norms, eps)))


_norm = jax.jit(dictionaries.spectral_norm)


def _rounded_down(spectrum: np.ndarray, rounding: float) -> float:
    """The smallest singular value minus the given rounding and the rounding of the largest value.

    The result is inf for an empty spectrum.
    """
    if not len(spectrum):
        return math.inf
    smallest, top = float(spectrum[-1]), float(spectrum[0])
    return max(0.0, smallest - len(spectrum) * float(np.finfo(float).eps) * top - rounding)


class LayeredSchedule(Result):
    """Thresholds or penalties of a layered pursuit, and their guarantees."""

    # (J,) thresholds or penalties that exclude false positives in layer j; inf if hypotheses fail
    lams: np.ndarray
    # (J,) bound on norm(x_j - x^_j, inf); the pursuit finds every entry of larger magnitude
    error: np.ndarray
    holds: bool  # whether all numbers are finite


@host_function
def layered_thresholds(
    Ds: Sequence[Dictionary],
    *,
    sparsities: Sequence[int],
    bounds: ArrayLike | Sequence[ArrayLike],
    noise: ArrayLike = 0.0,
    stripes: bool = False,
) -> LayeredSchedule:
    r"""Thresholds with which `pursuit.layered_thresholding` has no false positives.

    .. math::
        \theta_j &= \mu_j s_j B_j + \delta_j, \qquad
        \|x_j - \hat x_j\|_\infty \le e_j
            = \theta_j + ((s_j - 1) \mu_j + \eta_j) B_j + \delta_j, \\
        \delta_1 &= \sqrt{1 + \eta_1} \, noise, \qquad \delta_{j+1} = g_{j+1} e_j.

    Here mu = max abs(d_i . d_k), i != k, and eta = max abs(1 - d_i . d_i) for the atoms of a layer.
    The codes obey x_{j-1} = D_j x_j with at most s_j nonzeros of magnitude at most B_j, and
    y = D_1 x_1 + e. The gain g_{j+1} is the largest sum of the magnitudes of s_j entries of one
    atom of D_{j+1}. The pursuit finds the support if the magnitudes of all nonzeros are above e_j.
    The error does not vanish with the noise, because e_j also grows with B_j.

    Proof: d_i . x_{j-1} = (d_i . d_i) x_i + sum_{k != i} d_i . d_k x_k, and the error of the input
    of layer j changes this product by at most delta_j. The sum is at most mu s B off the support,
    and at most mu (s - 1) B on the support.

    Args:
        Ds: J dictionaries with unit atoms.
        sparsities: J integers s_j, at most d_j.
        bounds: B_j, one number or one per layer.
        noise: bound on abs(d_i . e) for the atoms of D_1 scaled to norm 1, such as norm(e, 2). For
            a `Conv`, the largest norm of e on the support of an atom is such a bound, too.
        stripes: whether s_j bounds the nonzeros of every stripe of a `Conv` (`stripe_norm`) instead
            of the nonzeros of the whole code; g_{j+1} is then the largest l1 norm of an atom.

    Raises:
        TypeError: an argument is traced.
        ValueError: shapes or lengths do not fit, a sparsity exceeds d_j, a number is negative or
            NaN, or an atom is off unit norm.

    Not claimed: anything about rounding.

    Reference: Papyan, Romano, Elad (2017), for the form; the constants are derived here.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> result = ur.theory.layered_thresholds([D], sparsities=[2], bounds=1.0)
        >>> result.lams.round(3).tolist(), result.error.round(3).tolist()
        ([0.25], [0.375])
    """
    where = "layered_thresholds"
    Ds, s, products, gains, delta = _measured(Ds, sparsities, noise, stripes, where)
    lams, errors = [], []
    bounds = layer_numbers(bounds, "bounds", len(Ds), where)
    for n, (mu, eta), B, gain in zip(s, products, bounds, gains):
        lams.append(times(mu * n, B) + delta)
        errors.append(lams[-1] + times(mu * max(n - 1, 0) + eta, B) + delta if n else 0.0)
        delta = times(gain, errors[-1])
    return _schedule(lams, errors)


@host_function
def layered_penalties(
    Ds: Sequence[Dictionary], *, sparsities: Sequence[int], noise: ArrayLike, stripes: bool = False
) -> LayeredSchedule:
    r"""Penalties with which `pursuit.layered_basis_pursuit` has no false positives.

    .. math::
        lam_j &= \delta_j \frac{1 + \mu_j - \eta_j}{1 - (2 s_j - 1) \mu_j - \eta_j}, \qquad
        \|x_j - \hat x_j\|_\infty \le e_j
            = \frac{lam_j + \delta_j}{1 - (s_j - 1) \mu_j - \eta_j}, \\
        \delta_1 &= \sqrt{1 + \eta_1} \, noise, \qquad \delta_{j+1} = g_{j+1} e_j.

    Here mu, eta and g are as in `layered_thresholds`. The codes obey x_{j-1} = D_j x_j with at most
    s_j nonzeros of any size, (2 s_j - 1) mu_j + eta_j < 1, and y = D_1 x_1 + e. The error is
    proportional to the noise. Without noise the error is 0, and lam_j = 0 stands for the equality
    constraints of DSC_1.

    Proof: let x^ be the solution on the support S, and let G = D_S'D_S. Then
    norm(G^-1, inf) <= 1 / (1 - (s - 1) mu - eta), and x - x^ = G^-1 (lam sign - D_S'e), which gives
    e_j. Off S, the sum of abs(d_i'D_S) is at most s mu. So the residual r of x^ obeys
    abs(d_i . r) <= rho (lam + delta) + delta with rho = s mu / (1 - (s - 1) mu - eta) < 1. By the
    choice of lam this bound is at most lam.

    Args:
        Ds, sparsities, noise, stripes: as in `layered_thresholds`.

    Raises: as in `layered_thresholds`.

    Not claimed: anything about rounding, or about codes that solve a layer only up to a large
    duality gap.

    Reference: Papyan, Romano, Elad (2017), for the form; Tropp (2006) for the argument;
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
    """The chain, the s_j, pairs (mu, eta) rounded up, gains from layer to layer, and delta_1."""
    (delta,) = host_numbers(where, noise=noise)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where)
        s = _uniqueness.bounded_counts(sparsities, Ds, where).tolist()
        for D in Ds:
            dictionaries.unit_atoms(D, where)
        products = [(float(mu) * UP, float(eta) * UP) for mu, eta in map(_coherence_and_norms, Ds)]
        counts = [D.shape[0] for D in Ds[1:]] if stripes else s[:-1]
        gains = [sum_of_largest(D, n) for D, n in zip(Ds[1:], counts)]
    (_, eta), *_ = products
    return Ds, s, products, [*gains, 0.0], times(math.sqrt(1 + eta), delta)


# Compiled as a whole, like `measured`.
@jax.jit
def _coherence_and_norms(D: Dictionary) -> tuple[Array, Array]:
    """max abs(d_i . d_k) over i != k, and max abs(1 - d_i . d_i), for norms within 1e-4 of 1."""
    return weights_coherence(D, D).mu_W, largest(jnp.abs(1 - diagonal(D, D)))


def _schedule(lams: Sequence[float], errors: Sequence[float]) -> LayeredSchedule:
    finite = bool(np.isfinite([*lams, *errors]).all())
    return LayeredSchedule(np.asarray(lams), np.asarray(errors), finite)
