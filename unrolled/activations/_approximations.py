"""Approximations of ReLU: sums of sigmoids, and scaled and composed activations."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.numbers import widened
from unrolled.activations._activation import Activation, _celu, _elu, parameter, shown

# Iterated suprema are raised by this part, above the rounding of the few steps that find them.
_ROUNDED_UP = 1e-7
# The loop over the compositions is written out when an activation is traced.
_MOST_TIMES = 1000
# With this k the two terms of the bound, ln 2 / k and h^2 k / 16, are equal and their sum least.
_STEEPNESS = 4 * math.sqrt(math.log(2))


def _sigmoid_sum(x, h, M, k):
    t = jnp.asarray((np.arange(math.ceil(M / h)) + 0.5) * h, x.dtype)
    shifted = jnp.expand_dims(x, -1) - t.reshape((1,) * x.ndim + t.shape)
    return jnp.asarray(h, x.dtype) * jnp.sum(jax.nn.sigmoid(k * shifted), -1)


@checked
def sigmoid_sum(h: float, M: float, k: float | None = None) -> Activation:
    r"""A sum of shifted sigmoids near ReLU on [-M, M]: the sub-network of Theorem 10 for sigmoid.

    .. math:: \rho(x) = h \sum_{i < M / h} \sigma(k (x - t_i)), \quad t_i = (i + 1/2) h, \qquad
        \sup_{|x| \le M} |\rho(x) - relu(x)| \le \frac{\ln 2}{k} + \min(h/2, h^2 k / 16).

    The sum is a midpoint rule for the integral of sigma(k (x - t)) over 0 <= t <= M, which is
    (softplus(k x) - softplus(k (x - M))) / k, within ln 2 / k of ReLU; the minimum bounds the error
    of the rule. Beyond M it saturates: the constants hold for abs(x) <= `reach` = M, and
    `theory.activation_schedule` checks that no argument is larger.

    Args:
        h: distance between the sigmoids, of which there are ceil(M / h).
        M: largest argument.
        k: steepness; 4 sqrt(ln 2) / h by default, for which the gap is at most .417 h.

    Raises:
        ValueError: an argument that is not positive and finite, or h > M.

    Reference: Li, Feng, Zhou (2024), Theorem 10, made explicit.

    Example:
        >>> rho = ur.activations.sigmoid_sum(0.1, 2.0)
        >>> rho(jnp.array([-1.0, 0.5])).round(2).tolist(), round(rho.relu_gap, 4)
        ([0.0, 0.5], 0.0416)
    """
    return _sum("sigmoid_sum", _sigmoid_sum, h, M, k, 1.0)


def _tanh_sum(x, h, M, k):
    return _sigmoid_sum(x, h, M, 2 * k)


@checked
def tanh_sum(h: float, M: float, k: float | None = None) -> Activation:
    r"""A sum of shifted tanh near ReLU on [-M, M]: the sub-network of Theorem 10 for tanh.

    .. math:: \rho(x) = \frac{h}{2} \sum_{i < M / h} (1 + \tanh(k (x - t_i))),

    which is `sigmoid_sum` with 2 k in place of k.

    Args:
        h, M, k: as in `sigmoid_sum`; k is 2 sqrt(ln 2) / h by default.

    Raises:
        ValueError: as `sigmoid_sum`.

    Example:
        >>> rho = ur.activations.tanh_sum(0.1, 2.0)
        >>> rho(jnp.array([-1.0, 0.5])).round(2).tolist(), round(rho.relu_gap, 4)
        ([0.0, 0.5], 0.0416)
    """
    return _sum("tanh_sum", _tanh_sum, h, M, k, 2.0)


def _sum(name: str, function: Callable, h, M, k, factor: float) -> Activation:
    """A sum of sigmoids whose steepness is `factor` k."""
    h, M = (parameter(v, n, name, positive=True) for n, v in (("h", h), ("M", M)))
    if h > M:
        raise ValueError(f"{name}: expected h <= M, got h = {h} and M = {M}")
    k = _STEEPNESS / h / factor if k is None else parameter(k, "k", name, positive=True)
    steep = factor * k
    gap = math.log(2) / steep + min(h / 2, h * h * steep / 16)
    return Activation(
        f"{name}({shown(h)}, {shown(M)}, {shown(k)})",
        1 / 2 + h * steep / 8,
        gap,
        gap,
        gap,
        function,
        (h, M, k),
        2 * gap,
        reach=M,
    )


def _scaled(x, act, k):
    wide = widened(x)  # k alone may be above the range of half precision
    return (act(wide * k) / k).astype(x.dtype)


@checked
def scale(act: Activation, k: float) -> Activation:
    """rho(k x) / k: the tail and the distance from ReLU shrink by k, the slopes stay.

    Args:
        act: rho.
        k: positive and finite.

    Raises:
        TypeError: act is not an `Activation`. ValueError: k out of range.

    Reference: Li, Feng, Zhou (2024), Theorem 10.

    Example:
        >>> ur.activations.scale(ur.activations.softplus, 100.0).relu_gap < 0.007
        True
    """
    _has_constants(act, "scale")
    k = parameter(k, "k", "scale", positive=True)
    return Activation(
        f"scale({act.name}, {shown(k)})",
        act.tail_lipschitz,
        act.tail_sup / k,
        act.tail_oscillation / k,
        act.relu_gap / k,
        _scaled,
        (act, k),
        act.line_oscillation / k,
        act.identity_on_positives,
        act.nonpositive_tail,
        act.reach / k,
    )


def _has_constants(act, where: str) -> None:
    if not isinstance(act, Activation):
        raise TypeError(f"{where}: expected an Activation, whose constants are known; got {act!r}")


def _composed(x, act, times):
    for _ in range(times):
        x = act(x)
    return x


def compose(act: Activation, times: int) -> Activation:
    r"""rho applied `times` times, the rho^m of Theorem 9; `scale` shrinks the tail at less cost.

    The constants are valid upper bounds, not always exact. If rho(x) = x on x >= 0 and h <= 0, the
    tail of rho^m is at most min(beta, L_h^(m-1) beta) and L_h^m-Lipschitz; if h is also monotone
    (ELU, CELU), its supremum is found by iterating from -beta. Otherwise
    relu_gap(rho^m) <= m relu_gap(rho), since ReLU is idempotent and 1-Lipschitz.

    Args:
        act: rho.
        times: m, from 1 to 1000.

    Raises:
        TypeError: act is not an `Activation`, or times is not an integer.
        ValueError: times out of range.

    Reference: Li, Feng, Zhou (2024), Theorem 9.

    Example:
        >>> rho = ur.activations.elu(0.5)
        >>> [round(ur.activations.compose(rho, m).tail_sup, 3) for m in (1, 2, 3)]
        [0.5, 0.197, 0.089]
    """
    _has_constants(act, "compose")
    m = checks.as_index(times, "times", "compose", least=1)
    if m > _MOST_TIMES:
        raise ValueError(
            f"compose: times must be at most {_MOST_TIMES}, got {m}; try scale, which is one step"
        )
    if m == 1:
        return act
    gap = m * act.relu_gap
    lipschitz, sup, oscillation, line = math.inf, gap, 2 * gap, 2 * gap
    if act.identity_on_positives and act.nonpositive_tail:
        lipschitz = act.tail_lipschitz**m
        sup = _iterated_sup(act, m)
        gap = line = oscillation = sup
    return Activation(
        f"compose({act.name}, {m})",
        lipschitz,
        sup,
        oscillation,
        gap,
        _composed,
        (act, m),
        line,
        act.identity_on_positives,
        act.nonpositive_tail,
        # rho moves no argument up by more than the gap.
        max(act.reach - (m - 1) * act.relu_gap, 0.0) if math.isfinite(act.reach) else math.inf,
    )


def _iterated_sup(act: Activation, m: int) -> float:
    """sup abs(h^m): beta_{k+1} = abs(h(-beta_k)) for monotone tails, else min(1, L) beta_k."""
    sup = act.tail_sup
    for _ in range(m - 1):
        if act.function is _elu:
            sup = -act.parameters[0] * math.expm1(-sup)
        elif act.function is _celu:
            sup = -act.parameters[0] * math.expm1(-sup / act.parameters[0])
        else:
            sup = min(1.0, act.tail_lipschitz) * sup
    return sup * (1 + _ROUNDED_UP) if math.isfinite(sup) else sup
