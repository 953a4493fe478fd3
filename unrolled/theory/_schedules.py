"""Threshold schedules with certified errors: Theorems 12 and 6; beyond ReLU, Theorems 15 and 10."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, checked, host_function, program
from unrolled._base.numbers import UP, up
from unrolled.activations import Activation, check, is_known
from unrolled.dictionaries import Dictionary, Operator, as_dictionary, column_norms, magnitudes
from unrolled.theory._coherence import coherence, diagonal, host_float, of_real_entries

__all__ = [
    "ActivationSchedule",
    "ErrorBar",
    "Schedule",
    "activation_schedule",
    "code_bound",
    "deep_schedule",
    "error_bar",
    "schedule",
    "theorem_of",
]


class Schedule(Result):
    """Thresholds of K steps, and the error that the thresholds certify for every code of the class.

    Example:
        >>> schedule = ur.theory.schedule(0.1, 1.0, sparsity=3, bound=1.0, depth=10)
        >>> schedule.steps_for(0.01)
        9
        >>> schedule.steps_to_support(0.5, sparsity=3)
        2
    """

    theta: np.ndarray  # (K,) thresholds
    # (K+1,) l1 error after k steps; error / s bounds l_inf, error / sqrt(s) bounds l2
    error: np.ndarray
    contraction: float  # a = (2s-1) mu_W + eta
    rate: float  # -ln a, inf at a = 0
    floor: float  # limit of the error, inf unless `holds`
    holds: bool  # whether a < 1 by more than rounding, and all inputs are finite

    def steps_for(self, tol: float) -> float:
        """Number of steps until the certified l1 error is at most `tol`.

        The result is 0 if the initial error is at most `tol`, and inf if no number of steps
        suffices. No number of steps suffices for a `tol` below the floor. For a `tol` equal to the
        floor, one step suffices if a = 0, and no number of steps suffices if a > 0.
        """
        if math.isnan(tol := checks.as_number(tol, "tol", "steps_for")):
            raise ValueError("steps_for: tol is nan")
        if tol >= self.error[0]:
            return 0
        if not self.holds or tol < self.floor:
            return math.inf
        if self.contraction == 0:
            return 1
        if tol == self.floor:
            return math.inf
        ratio = math.log(self.error[0] - self.floor) - math.log(tol - self.floor)
        K = max(1, math.ceil(ratio / self.rate))
        # The logarithms round, so the function also compares the errors.
        return next((k for k in (K - 1, K) if k and self._after(k) <= tol), K + 1)

    def _after(self, k: int) -> float:
        """The error after k steps; for k beyond the depth of the schedule, by the closed form."""
        if k < len(self.error):
            return float(self.error[k])
        return self.floor + (float(self.error[0]) - self.floor) * self.contraction**k

    def steps_to_support(self, smallest: float, *, sparsity: int) -> float:
        """Number of steps until error / s is below `smallest`, the least magnitude of a nonzero.

        From that step on, the support of the iterate equals the support of the code. The result
        is inf if `smallest` is not above floor / s.

        Not claimed: that the supports differ before that step.
        """
        s = checks.as_index(sparsity, "sparsity", "steps_to_support")
        return self.steps_for(math.nextafter(s * smallest, 0.0)) if s else 0


def schedule(
    mu: ArrayLike,
    C_W: ArrayLike,
    *,
    sparsity: int,
    bound: ArrayLike,
    noise: ArrayLike = 0.0,
    depth: int,
    guard: ArrayLike = 0.0,
    eta: ArrayLike = 0.0,
) -> Schedule:
    r"""Thresholds with which LISTA-CP has no false positives, and the l1 error that they certify.

    .. math::
        E_0 = s B, \quad \theta_k = \mu_W E_k + C_W \delta + g, \quad
        E_{k+1} = a E_k + 2 s (C_W \delta + g), \quad a = (2s - 1) \mu_W + \eta.

    The class consists of the codes with at most s nonzeros of magnitude at most B, observed with
    noise of l1 norm at most delta. For each code, the iterates of
    x <- shrink(x + W'(y - D x), theta_k) from 0 keep their support inside the support of the code.
    E_k bounds the l1 error, E_k / s bounds the l_inf error, and E_k / sqrt(s) bounds the l2 error.
    The iterates have the full support once E_k / s is below the smallest magnitude of a nonzero.

    Args:
        mu: coherence mu_W of the weights in use, from `coherence(W, D)`. A float32 mu may be too
            low by its rounding, so for a float32 mu the schedule requires a (1 + 8 eps) < 1.
        C_W: largest magnitude of an entry of W, or `noise_gain(W)` if `noise` bounds the l2 norm of
            the noise.
        sparsity, bound, noise: s, B and delta of the class.
        depth: K, the number of steps.
        guard: g, the effect of rounding, from `rounding_guard`.
        eta: max abs(1 - w_i . d_i), for weights with w_i . d_i not exactly 1.

    Returns:
        Schedule. If a is not below 1 by more than rounding, thresholds and errors follow the same
        recursion, with holds = False and floor = inf.

    Raises:
        TypeError: an argument is traced.
        ValueError: an argument is negative or NaN.

    Reference: Li, Feng, Zhou (2024), Theorem 12, with the constants of its proof; Chen et al.
    (2018).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> of = ur.theory.coherence(D, D)
        >>> schedule = ur.theory.schedule(of.mu_W, of.C_W, sparsity=3, bound=1.0, depth=20)
        >>> schedule.contraction, schedule.holds
        (0.625, True)
        >>> round(float(schedule.error[-1]), 6)
        0.000248
    """
    enlarged = up(mu, eta)
    mu, C_W, bound, noise, guard, eta = host_numbers(
        "schedule", mu=mu, C_W=C_W, bound=bound, noise=noise, guard=guard, eta=eta
    )
    s = checks.as_index(sparsity, "sparsity", "schedule")
    K = checks.as_depth(depth, "depth", "schedule")
    a = times(max(2 * s - 1, 0), mu) + (eta if s else 0.0)
    c = times(C_W, noise) + guard
    error, theta = np.empty(K + 1), np.empty(K)
    error[0] = times(s, bound)
    with np.errstate(over="ignore"):
        for k in range(K):
            theta[k] = times(mu, error[k]) + c
            error[k + 1] = times(a, error[k]) + times(2 * s, c)
    holds = a * enlarged < 1 and all(map(math.isfinite, (c, bound, error[0])))
    floor = 2 * s * c / (1 - a) if holds else math.inf
    return Schedule(theta, error, a, -math.log(a) if a else math.inf, floor, holds)


@checked
def deep_schedule(
    mus: Sequence[ArrayLike],
    C_Ws: Sequence[ArrayLike],
    *,
    sparsities: Sequence[int],
    bounds: Sequence[ArrayLike],
    noises: Sequence[ArrayLike] | None = None,
    depths: Sequence[int],
    guards: Sequence[ArrayLike] | None = None,
    etas: Sequence[ArrayLike] | None = None,
    gains: Sequence[ArrayLike] | None = None,
) -> tuple[Schedule, ...]:
    r"""Schedules of J chained blocks; the certified error of a block is noise for the next block.

    .. math:: c_1 = C_1 \delta_1 + g_1, \qquad
        c_{j+1} = C_{j+1} \delta_{j+1} + G_{j+1} E^{(j)}_{K_j} + g_{j+1}, \qquad G_j \le C_j.

    Here c_j stands for C_W delta + g in `schedule`, so the inherited error enters the thresholds.
    Block j runs on the code of block j-1. No block has a false positive, and the l1 error of a
    block is at most its `error`. With thresholds for exact inputs, as in the printed proof, the
    chain can diverge, for example if a block contracts more slowly than the next block.

    Args:
        mus, C_Ws, sparsities, bounds, noises, depths, guards, etas: one value per block, as in
            `schedule`; noises, guards and etas are zero by default.
        gains: G_j, the factors for the error of the block before, such as
            `error_gain(W_j, sparsity=s_{j-1})`; C_Ws by default. The first gain is not used.

    Returns:
        One Schedule per block.

    Raises:
        TypeError: an argument is traced.
        ValueError: sequences have different lengths, or a value is negative or NaN.

    Reference: Li, Feng, Zhou (2024), Theorem 6, corrected.

    Example:
        >>> first, second = ur.theory.deep_schedule(
        ...     (1 / 32, 1 / 5), (1.0, 1.0), sparsities=(4, 2), bounds=(1.0, 1.0), depths=(20, 20)
        ... )
        >>> round(first.contraction, 3), round(second.contraction, 3)
        (0.219, 0.6)
        >>> round(float(second.error[-1]), 5)
        7e-05
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
        "gains": gains if gains is not None else C_Ws,
    }
    for name, column in columns.items():
        if len(column) != J:
            raise ValueError(
                f"deep_schedule: {name} has length {len(column)}; expected {J}, one per block"
            )
    blocks, inherited = [], 0.0
    for mu, C_W, s, B, delta, K, g, eta, gain in zip(mus, *columns.values()):
        g, gain = host_numbers("deep_schedule", guard=g, gain=gain)
        guard = g + times(gain, inherited)
        block = schedule(mu, C_W, sparsity=s, bound=B, noise=delta, depth=K, guard=guard, eta=eta)
        blocks.append(block)
        inherited = float(block.error[-1])
    return tuple(blocks)


class ErrorBar(Result):
    """Bounds on the distance of a given code from the true code."""

    linf: float  # bound on the largest entry of the error
    l2: float  # bound on the l2 norm of the error
    l1: float  # bound on the l1 norm of the error
    holds: bool  # whether the bounds are finite: q > 0, or the conditioning covers n atoms


@of_real_entries("W D x y")
@host_function
def error_bar(
    W: Dictionary | None,
    D: Dictionary,
    x: ArrayLike,
    y: ArrayLike,
    *,
    sparsity: int,
    noise: ArrayLike = 0.0,
    conditioning: float | None = None,
) -> ErrorBar:
    r"""Bounds on the error of a given code x from any solver.

    .. math::
        \|x - x^*\|_\infty &\le (|r|_{(1)} + c) / q, \qquad r = W'(y - D x), \\
        \|x - x^*\|_1 &\le (|r|_{(1)} + \dots + |r|_{(n)} + n c) / q, \\
        n &= \min(\|x\|_0 + s, d), \quad q = 1 - (n - 1) \mu_W - \eta, \quad
        c = C_W \delta + g.

    Here |r|_(1) >= |r|_(2) >= ... are the sorted magnitudes of r, and g bounds the rounding of r.
    The bounds hold for every x* with at most s nonzeros and y = D x* + e, norm(e, 1) <= noise. The
    l2 bound is the geometric mean of the l_inf and the l1 bound. For x = 0 the l_inf bound is
    `code_bound`. If kappa is a lower bound on the singular values of every set of n atoms, then

    .. math:: \|x - x^*\|_2 \le (\|y - D x\|_2 + \delta) / \kappa,

    and the error bar is the smaller bound in each norm. For a D of 250 x 500, and x and x* with 50
    nonzeros each, mu_W gives no bound, but a Gaussian D has kappa = .038. Without noise, a code
    with a residual of 1e-4 norm(y) is then within 2.6e-3 norm(y) of every x*.

    Args:
        W: (m, d), weights with w_i . d_i near 1; None to use only kappa.
        D: (m, d), unit atoms.
        x: (d,), the code, with any number of nonzeros.
        y: (m,), the signal.
        sparsity, noise: s and delta of the class of x*.
        conditioning: kappa, from `gaussian_conditioning`, whose result also holds the number of
            atoms that kappa covers. A plain number must cover norm(x, 0) + s atoms.

    Returns:
        ErrorBar, in float64. The bounds are infinite and holds is False if q is not positive and
        kappa is 0, is not given, or covers fewer than n atoms.

    Raises:
        TypeError: an argument is traced.
        ValueError: shapes differ, an atom is off unit norm, noise or conditioning is negative or
            NaN, or neither W nor conditioning is given.

    Not claimed: bounds by interval arithmetic; mu_W is computed in float64 and rounded up. An error
    bar by `gaussian_conditioning` holds with the confidence of kappa, a probability over the draw
    of D.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> x = jnp.zeros(128).at[jnp.array([3, 70])].set(1.0)
        >>> bar = ur.theory.error_bar(D, D, 0.99 * x, D @ x, sparsity=2)
        >>> round(bar.linf, 3), bar.holds
        (0.014, True)
    """
    where = "error_bar"
    bars = []
    if W is not None:
        bars.append(_after_the_fact(where, W, D, x, y, sparsity, noise))
    if conditioning is not None:
        bars.append(_conditioned(where, D, x, y, sparsity, noise, conditioning))
    if not bars:
        raise ValueError(f"{where}: expected W, conditioning or both, got neither")
    return jax.tree.map(lambda *ends: min(ends), *bars).replace(
        holds=any(bar.holds for bar in bars)
    )


@of_real_entries("W D y")
@host_function
def code_bound(
    W: Dictionary, D: Dictionary, y: ArrayLike, *, sparsity: int, noise: ArrayLike = 0.0
) -> float:
    r"""A bound B on the entries of the true code of y, for use if no bound is known.

    .. math:: \|x^*\|_\infty \le \frac{\|W'y\|_\infty + C_W \delta + g}{1 - (s - 1) \mu_W - \eta}.

    The bound holds for every x* with at most s nonzeros and y = D x* + e, norm(e, 1) <= noise. The
    bound is the `linf` of `error_bar` at x = 0, and is infinite if the denominator is not positive.

    Args and Raises: as in `error_bar`.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> x = jnp.zeros(128).at[jnp.array([3, 70])].set(1.0)
        >>> round(ur.theory.code_bound(D, D, D @ x, sparsity=2), 3)
        1.0
    """
    return _after_the_fact("code_bound", W, D, None, y, sparsity, noise).linf


def _after_the_fact(
    where: str,
    W: Dictionary,
    D: Dictionary,
    x: ArrayLike | None,
    y: ArrayLike,
    sparsity: int,
    noise: ArrayLike,
) -> ErrorBar:
    """`error_bar` by the coherence of W, in float64; x = None stands for 0."""
    (noise,) = host_numbers(where, noise=noise)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        D, x, y, n = _wide(where, D, x, y, sparsity)
        W, (m, d) = checks.cast(W, np.float64), D.shape
        measured = coherence(W, D)
        mu, C_W = float(measured.mu_W), float(measured.C_W)
        own, scores, sizes = map(np.asarray, _scores(W, D, x, y))
        eta, scores = float(np.abs(1 - own).max()), np.abs(scores)
    if not n:
        return ErrorBar(0.0, 0.0, 0.0, True)
    # Two sums, of m and of at most d products, rounded by eps / 2; doubled for second-order terms.
    scores = scores + (m + d + 4) * np.finfo(float).eps * sizes
    q = 1 - times(n - 1, mu * UP) - eta
    top = -np.sort(-scores)[:n]
    if not q > 0 or not np.isfinite(top).all():
        return ErrorBar(math.inf, math.inf, math.inf, False)
    c = times(C_W, noise)
    linf, l1 = float(top[0] + c) / q * UP, float(top.sum() + n * c) / q * UP
    # Rounding may lift the product of the roots above the other two bounds.
    l2 = min(math.sqrt(linf) * math.sqrt(l1), math.sqrt(n) * linf, l1)
    return ErrorBar(linf, l2, l1, math.isfinite(l1))


def _conditioned(
    where: str,
    D: Dictionary,
    x: ArrayLike,
    y: ArrayLike,
    sparsity: int,
    noise: ArrayLike,
    conditioning: float,
) -> ErrorBar:
    """`error_bar` by a bound on the singular values of n unit atoms."""
    noise, kappa = host_numbers(where, noise=noise, conditioning=conditioning)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        stored = float(jnp.finfo(as_dictionary(D, where).dtype).eps)
        D, x, y, n = _wide(where, D, x, y, sparsity)
        dictionaries.unit_atoms(D, where)
        m, d = D.shape
        misfit, sizes, norms = map(np.asarray, _residual_and_sizes(D, x, y))
    if not n:
        return ErrorBar(0.0, 0.0, 0.0, True)
    # Stored atoms differ from drawn atoms by two roundings of each entry, in n columns. kappa may
    # refer to unit atoms or to the given D, so norms above 1 do not enlarge kappa.
    kappa = min(1.0, float(norms.min())) * (kappa - stored * math.sqrt(n))
    residual = float(np.linalg.norm(np.abs(misfit) + (d + 2) * np.finfo(float).eps * sizes))
    enough = n <= min(m, getattr(conditioning, "atoms", n))
    if not (enough and kappa > 0 and math.isfinite(residual)):
        return ErrorBar(math.inf, math.inf, math.inf, False)
    l2 = (residual + noise) / kappa * UP
    return ErrorBar(l2, l2, math.sqrt(n) * l2 * UP, math.isfinite(l2))


def _wide(
    where: str, D: Dictionary, x: ArrayLike | None, y: ArrayLike, sparsity: int
) -> tuple[Operator, np.ndarray, Array, int]:
    """D, x and y in float64, and the largest number of nonzeros of x - x*."""
    s = checks.as_index(sparsity, "sparsity", where)
    D, x, y = (checks.cast(a, np.float64) for a in (D, x, y))
    D, y, _ = dictionaries.operands(D, y, where)
    d = D.shape[1]
    x = np.zeros(d) if x is None else np.asarray(x)
    if x.shape != (d,):
        raise ValueError(f"{where}: x has shape {x.shape}; expected ({d},)")
    return D, x, y, min(int(np.count_nonzero(x)) + s, d)


@program()
def _residual_and_sizes(D: Dictionary, x: ArrayLike, y: Array) -> tuple[Array, Array, Array]:
    """y - D x, |y| + |D| |x|, and the norms of the atoms."""
    return y - D @ x, jnp.abs(y) + magnitudes(D) @ jnp.abs(x), column_norms(D)


@program()
def _scores(W: Dictionary, D: Dictionary, x: Any, y: Array) -> tuple[Array, Array, Array]:
    """w_i . d_i, W'(y - D x), and |W|'(|y| + |D| |x|)."""
    sizes = (jnp.abs(y) + magnitudes(D) @ jnp.abs(x)) @ magnitudes(W)
    return diagonal(W, D), (y - D @ x) @ W, sizes


def times(a: float, b: float) -> float:
    """The product a b, with 0 times inf = 0, so absent terms stay absent if an error overflows."""
    return a * b if a and b else 0.0


def host_numbers(where: str, **values: ArrayLike) -> list[float]:
    """The values as Python floats, checked to be non-negative."""
    floats = [host_float(value, name, where) for name, value in values.items()]
    for name, value in zip(values, floats):
        if not value >= 0:
            raise ValueError(f"{where}: {name} must be non-negative and not NaN, got {value}")
    return floats


class ActivationSchedule(Result):
    """Thresholds for a general activation, and the error on and off the support."""

    theta: np.ndarray  # (K,)
    error: np.ndarray  # (K+1,) l1 error, on_support + off_support
    on_support: np.ndarray  # (K+1,)
    off_support: np.ndarray  # (K+1,)
    contraction: float  # spectral radius of the recursion around `floor`
    rate: float  # -ln(contraction), inf at 0
    floor: float  # limit of the error, with a multiple of the tail; inf without contraction
    theorem: str  # "12" (ReLU), "15" (rho(x) = x on x >= 0), "10" (near ReLU), "" for none
    holds: bool  # whether the recursion contracts, so that the bounds hold for the whole class
    vacuous: bool  # whether the last error is at least s B, the error of x = 0, or holds is False


def activation_schedule(
    activation: Activation,
    mu: ArrayLike,
    C_W: ArrayLike,
    *,
    d: int,
    sparsity: int,
    bound: ArrayLike,
    noise: ArrayLike = 0.0,
    depth: int,
    guard: ArrayLike = 0.0,
    eta: ArrayLike = 0.0,
) -> ActivationSchedule:
    r"""Thresholds of LISTA-CP for an activation other than ReLU, and their certified errors.

    The step is x <- rho(u - theta) - rho(-u - theta), u = x + W'(y - D x). Let L_h be the Lipschitz
    constant of rho on x <= 0, and let osc be the oscillation (sup minus inf) of rho there. The
    deviation H of the step from soft thresholding obeys |H| <= min(2 L_h |u|, osc) if |u| <= theta,
    and |H| <= osc otherwise. So E_S and E_O, which start at s B and 0, bound the l1 error on the
    support and off the support:

    .. math::
        \theta &= \max(\mu_W, \eta) (E_S + E_O) + c, \qquad c = C_W \delta + g, \\
        E_S &\leftarrow ((s-1) \mu_W + \eta) E_S + s \mu_W E_O
            + s (c + \theta + \min(osc, L_h (B + 2 \theta))), \\
        E_O &\leftarrow (d - s) \min(2 L_h \theta, osc).

    If osc = 0, mu_W replaces max(mu_W, eta). Entries off the support are no longer zero, but have
    magnitudes of at most min(2 L_h theta_k, osc). Each minimum is either osc or linear, so the
    recursion is the minimum of four affine maps (of one map if the tail is unbounded or L_h is
    unknown). The recursion converges if and only if the matrix of at least one map has a spectral
    radius below 1, and the limit `floor` is the least of the fixed points. For eta = 0, each of two
    conditions suffices: (2s-1) mu_W < 1 with a bounded tail, or mu_W (2 L_h d + 2 s) < 1. The
    condition of Theorem 9, mu_W (2 L_h d + (2 - 2 L_h) s) < 1, is correct only for a bounded tail,
    and then implies the first condition. The floor contains a multiple of the oscillation of the
    tail, which equation (34) as printed omits; `scale(activation, k)` divides the oscillation by k.
    If rho(x) differs from x for some x >= 0 (Theorem 10), osc is the oscillation of rho - relu over
    the whole line, and L_h is not used.

    Args:
        activation: rho, with its constants.
        d: length of the code.
        mu, C_W, sparsity, bound, noise, depth, guard, eta: as in `schedule`.

    Returns:
        ActivationSchedule. If the recursion does not contract, thresholds and errors still follow
        it, with holds = False and floor = inf. A true bound may still say nothing, because the tail
        is large or the depth is small: `vacuous` is True unless holds is True and the last error is
        below s B, or 0. Arguments of rho have magnitudes of at most B + 2 max(theta). If this
        number may exceed the `reach` of rho, holds is False and contraction is inf.

    Raises:
        TypeError: the activation is a bare function, or an argument is traced.
        ValueError: an argument is negative or NaN, or `activations.check` refutes the constants of
            your own activation.

    Reference: Li, Feng, Zhou (2024), Theorems 9, 10 and 15, corrected.

    Example:
        >>> elu = ur.activations.scale(ur.activations.elu(1.0), 1e4)
        >>> schedule = ur.theory.activation_schedule(
        ...     elu, 1 / 8, 1.0, d=128, sparsity=2, bound=1.0, depth=30
        ... )
        >>> schedule.theorem, schedule.holds, round(schedule.floor, 3)
        ('15', True, 0.023)
    """
    where = "activation_schedule"
    known(activation, where)
    enlarged = up(mu, eta)
    mu, C_W, B, noise, guard, eta = host_numbers(
        where, mu=mu, C_W=C_W, bound=bound, noise=noise, guard=guard, eta=eta
    )
    s, K = checks.as_index(sparsity, "sparsity", where), checks.as_depth(depth, "depth", where)
    d = checks.as_index(d, "d", where, least=1)
    L, osc = tail_of(activation)
    # With a tail, |u_i - x*_i| <= M (E_S + E_O) + c must also hold on the support.
    M, c = max(mu, eta) if osc else mu, times(C_W, noise) + guard
    recursion = _Recursion(mu, M, c, eta, min(s, d), d, B, L, osc, enlarged)
    theta, E_S, E_O = recursion.errors(K)
    with np.errstate(over="ignore"):
        error = E_S + E_O
    contraction, floor = recursion.limit()
    # No argument +-u - theta exceeds B + 2 theta, so the constants must hold up to this number.
    largest = max(float(error.max()), floor)
    if not B + 2 * (times(M, largest) + c) <= activation.reach:
        contraction = floor = math.inf
    holds = math.isfinite(floor)
    theorem = theorem_of(activation) if holds else ""
    rate = -math.log(contraction) if contraction else math.inf
    vacuous = not (holds and (error[-1] < error[0] or error[-1] == 0))
    return ActivationSchedule(
        theta, error, E_S, E_O, contraction, rate, floor, theorem, holds, vacuous
    )


def known(activation: Any, where: str) -> None:
    """Raise unless the constants of an activation are known and true.

    Raises:
        TypeError: the activation is a bare function.
        ValueError: `activations.check` refutes the constants.
    """
    _with_constants(activation, where)
    if not is_known(activation):
        check(activation)


def tail_of(activation: Activation) -> tuple[float, float]:
    """L_h and osc: a step differs from soft thresholding at u by at most min(2 L_h |u|, osc).

    The bound 2 L_h |u| holds if |u| <= theta, and the bound osc holds everywhere.
    """
    if activation.identity_on_positives:
        return activation.tail_lipschitz, activation.tail_oscillation
    return math.inf, min(activation.line_oscillation, 2 * activation.relu_gap)


class _Recursion(NamedTuple):
    """The numbers in the recursion for the errors on the support and off the support."""

    mu: float
    M: float
    c: float
    eta: float
    s: int
    d: int
    B: float
    L: float
    osc: float
    enlarged: float  # the spectral radius times this must be below 1

    def tail(self, u: float) -> float:
        """A bound on the deviation at an argument of size u."""
        return min(self.osc, times(self.L, u)) if math.isfinite(self.L) else self.osc

    def errors(self, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """theta, (K,), and E_S and E_O, (K + 1,)."""
        mu, M, c, eta, s, d, B, *_ = self
        E_S, E_O, theta = np.zeros(K + 1), np.zeros(K + 1), np.zeros(K)
        E_S[0] = times(s, B)
        with np.errstate(over="ignore"):
            for k in range(K):
                theta[k] = times(M, E_S[k] + E_O[k]) + c
                if s:
                    drift = times(times(s - 1, mu) + eta, E_S[k]) + times(s * mu, E_O[k])
                    E_S[k + 1] = drift + s * (c + theta[k] + self.tail(B + 2 * theta[k]))
                E_O[k + 1] = times(d - s, self.tail(2 * theta[k]))
        return theta, E_S, E_O

    def limit(self) -> tuple[float, float]:
        """The contraction a and the limit of the error; the limit is inf if a >= 1.

        The recursion is monotone, and it is the minimum of affine maps (E_S, E_O) -> A (E_S, E_O) +
        b. So it stays below the fixed point of each contracting map, and its limit is one of these
        fixed points.
        """
        mu, M, c, eta, s, d, B, L, osc, enlarged = self
        if not math.isfinite(mu + M + c + eta + B):
            return math.inf, math.inf
        if not (s * B or c) and (math.isfinite(L) or not osc):
            return 0.0, 0.0  # the error starts at zero, a fixed point
        own = (s - 1) * mu + eta if s else 0.0
        limits, least = [], math.inf
        tails = [(0.0, osc)] * math.isfinite(osc) + [(L, 0.0)] * math.isfinite(L)  # a u + b
        for (slope, constant), (off_slope, off_constant) in itertools.product(tails, repeat=2):
            gain = s * M * (1 + 2 * slope)
            pull = 2 * off_slope * (d - s) * M
            b = s * (2 * c + constant + slope * (B + 2 * c))
            b_off = (d - s) * (off_constant + 2 * off_slope * c)
            A = own + gain, s * mu + gain, pull, pull
            radius = _spectral_radius(*A)
            least = min(least, radius)
            determinant = (1 - A[0]) * (1 - A[3]) - A[1] * A[2]
            if radius * enlarged < 1 and determinant > 0:
                on = ((1 - A[3]) * b + A[1] * b_off) / determinant
                off = (A[2] * b + (1 - A[0]) * b_off) / determinant
                limits.append((on + off, radius))
        floor, contraction = min(limits, default=(math.inf, max(least, 1.0)))
        return contraction, floor


def theorem_of(activation: Activation) -> str:
    """The theorem that covers an activation: "12", "15", "10", or "" for none.

    "12": the activation is ReLU. "15": the activation is x on x >= 0, and its tail is bounded or
    Lipschitz (Theorem 9 composes such activations). "10": the distance of the activation from ReLU
    is bounded. "": no theorem covers the activation. For example, no theorem covers SELU, whose
    slope on x > 0 is not 1; use scale(elu(1.6732632423543772), k) instead. `activation_schedule`
    says whether the hypotheses hold, which depends on mu_W, s and d.

    Raises:
        TypeError: the argument is not an Activation.

    Example:
        >>> [ur.theory.theorem_of(rho) for rho in (ur.activations.relu, ur.activations.gelu)]
        ['12', '10']
    """
    _with_constants(activation, "theorem_of")
    if activation.relu_gap == 0:
        return "12"
    if activation.identity_on_positives:
        return "15" if math.isfinite(min(activation.tail_lipschitz, activation.tail_sup)) else ""
    return "10" if math.isfinite(activation.relu_gap) else ""


def _with_constants(activation: Any, where: str) -> None:
    if not isinstance(activation, Activation):
        raise TypeError(
            f"{where}: the theory needs the constants of an Activation, got {activation!r}"
        )


def _spectral_radius(a: float, b: float, c: float, d: float) -> float:
    """The largest eigenvalue of [[a, b], [c, d]] with entries >= 0."""
    return (a + d + math.hypot(a - d, 2 * math.sqrt(b * c))) / 2
