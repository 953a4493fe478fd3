"""Schedules for activations other than ReLU (Theorems 9, 15 and 10, corrected)."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from unrolled._base import checks
from unrolled._base.checks import ArrayLike
from unrolled._base.numbers import up
from unrolled.activations import Activation, check, is_known
from unrolled.theory._schedules import host_numbers, times


class ActivationSchedule(NamedTuple):
    """Thresholds for a general activation, and the error on the support and off it."""

    theta: np.ndarray  # (K,)
    error: np.ndarray  # (K+1,) l1 error, on_support + off_support
    on_support: np.ndarray  # (K+1,)
    off_support: np.ndarray  # (K+1,)
    contraction: float  # spectral radius of the recursion around `floor`
    rate: float  # -ln(contraction), inf at 0
    floor: float  # limit of the error, with a multiple of the tail; inf without contraction
    theorem: str  # "12" (ReLU), "15" (rho(x) = x on x >= 0), "10" (near ReLU), "" for none
    holds: bool  # the recursion contracts, so its errors bound those of every code of the class
    vacuous: bool  # the error ends no lower than s B, where x = 0 begins: it says nothing


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
    r"""Thresholds of LISTA-CP with an activation other than ReLU, and their certified errors.

    The step is x <- rho(u - theta) - rho(-u - theta), u = x + W'(y - D x). Its deviation H from
    soft thresholding obeys |H| <= min(2 L_h |u|, osc) where |u| <= theta, and |H| <= osc elsewhere,
    so

    .. math::
        \theta &= \max(\mu_W, \eta) (E_S + E_O) + c, \qquad c = C_W \delta + g, \\
        E_S &\leftarrow ((s-1) \mu_W + \eta) E_S + s \mu_W E_O
            + s (c + \theta + \min(osc, L_h (B + 2 \theta))), \\
        E_O &\leftarrow (d - s) \min(2 L_h \theta, osc).

    Entries off the support are at most min(2 L_h theta_k, osc), but no longer zero. Each minimum is
    osc or linear, so the recursion is the least of four affine ones (of one with an unbounded tail,
    or with L_h unknown). It converges if and only if one of their matrices has a spectral radius
    below 1, and its limit `floor` is the least of their fixed points. Sufficient conditions for eta
    = 0 are (2s-1) mu_W < 1 for a bounded tail, and mu_W (2 L_h d + 2 s) < 1 for any. The condition
    of Theorem 9, mu_W (2 L_h d + (2 - 2 L_h) s) < 1, holds for a bounded tail only, and there
    implies the first. The floor contains a multiple of the oscillation of the tail, which the
    printed (34) omits; `scale(activation, k)` divides it by k. If rho is not x on x >= 0 (Theorem
    10), osc is the oscillation of rho - relu over the whole line, and L_h is not used.

    Args:
        activation: rho, with its constants.
        d: length of the code.
        mu, C_W, sparsity, bound, noise, depth, guard, eta: as in `schedule`.

    Returns:
        ActivationSchedule. Without contraction, the same recursion is returned with holds = False
        and floor = inf. A true bound may still say nothing, because the tail is large or the depth
        small: `vacuous` is True unless the error ends below s B, or at 0. If an argument of rho,
        at most B + 2 theta, may exceed its `reach`, nothing holds and contraction = inf.

    Raises:
        TypeError: a bare function in place of an Activation, or a traced argument.
        ValueError: a negative or NaN argument, or an activation of your own whose constants
            `activations.check` refutes.

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
    # With a deviating tail, |u_i - x*_i| <= M (E_S + E_O) + c must hold on the support too.
    M, c = max(mu, eta) if osc else mu, times(C_W, noise) + guard
    recursion = _Recursion(mu, M, c, eta, min(s, d), d, B, L, osc, enlarged)
    theta, E_S, E_O = recursion.errors(K)
    with np.errstate(over="ignore"):
        error = E_S + E_O
    contraction, floor = recursion.limit()
    # No argument +-u - theta exceeds B + 2 theta: there the constants must hold, now and later.
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
    """Raise unless the constants of an activation are known, and true of it.

    Raises:
        TypeError: a bare function. ValueError: constants that `activations.check` refutes.
    """
    if not isinstance(activation, Activation):
        raise TypeError(
            f"{where}: the theory needs the constants of an Activation, got {activation!r}"
        )
    if not is_known(activation):
        check(activation)


def tail_of(activation: Activation) -> tuple[float, float]:
    """L_h and osc: a step differs from soft thresholding at u by at most min(2 L_h |u|, osc).

    The first bound holds where |u| <= theta, the second everywhere.
    """
    if activation.identity_on_positives:
        return activation.tail_lipschitz, activation.tail_oscillation
    return math.inf, min(activation.line_oscillation, 2 * activation.relu_gap)


class _Recursion(NamedTuple):
    """The numbers of the recursion for the errors on the support and off it."""

    mu: float
    M: float
    c: float
    eta: float
    s: int
    d: int
    B: float
    L: float
    osc: float
    enlarged: float  # a spectral radius must be below 1 when it is that much larger

    def tail(self, u: float) -> float:
        """Bound on the deviation at an argument of size u."""
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
        """The contraction and the limit of the error; (a, inf) with a >= 1 without contraction.

        The recursion is monotone, and the least of affine maps (E_S, E_O) -> A (E_S, E_O) + b. So
        it stays below the fixed point of each map that contracts, and its own limit is one of them.
        """
        mu, M, c, eta, s, d, B, L, osc, enlarged = self
        if not math.isfinite(mu + M + c + eta + B):
            return math.inf, math.inf
        if not (s * B or c) and (math.isfinite(L) or not osc):
            return 0.0, 0.0  # the error begins at a fixed point, zero, and stays there
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

    "12": it is ReLU. "15": it is x on x >= 0, and its tail is bounded or Lipschitz (Theorem 9
    composes such activations). "10": its distance from ReLU is bounded. None: SELU, whose slope on
    x > 0 is not 1; use scale(elu(1.6732632423543772), k). Whether the hypotheses hold depends on
    mu_W, s and d, and is answered by `activation_schedule`.

    Raises:
        TypeError: not an Activation.

    Example:
        >>> [ur.theory.theorem_of(rho) for rho in (ur.activations.relu, ur.activations.gelu)]
        ['12', '10']
    """
    if not isinstance(activation, Activation):
        raise TypeError(
            f"theorem_of: the theory needs the constants of an Activation, got {activation!r}"
        )
    if activation.relu_gap == 0:
        return "12"
    if activation.identity_on_positives:
        return "15" if math.isfinite(min(activation.tail_lipschitz, activation.tail_sup)) else ""
    return "10" if math.isfinite(activation.relu_gap) else ""


def _spectral_radius(a: float, b: float, c: float, d: float) -> float:
    """The largest eigenvalue of [[a, b], [c, d]] with entries >= 0."""
    return (a + d + math.hypot(a - d, 2 * math.sqrt(b * c))) / 2
