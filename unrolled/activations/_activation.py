"""Activations with their constants: common ones, and sums of sigmoids that approximate ReLU."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, Result, checked, program
from unrolled._base.numbers import widened

__all__ = [
    "Activation",
    "Constants",
    "celu",
    "check",
    "compose",
    "elu",
    "gelu",
    "gelu_tanh",
    "hard_swish",
    "leaky_relu",
    "mish",
    "relu",
    "scale",
    "selu",
    "sigmoid_sum",
    "silu",
    "softplus",
    "tanh_sum",
]


# jax.nn.relu loses NaN when XLA fuses its maximum with a sum on a CPU.
def _relu(x):
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@dataclass(frozen=True, repr=False)
class Activation:
    r"""A scalar activation rho and its constants; hashable and equal by value.

    An activation can be a static argument of `jit` without retracing. The constants are upper
    bounds; the constants of the activations in `NAMED` are the exact suprema, rounded up. In the
    list below, h denotes rho on the tail x <= 0.

    Attributes:
        name: the name that tables, messages and `repr` show.
        tail_lipschitz: L_h, the Lipschitz constant of h.
        tail_sup: beta = sup abs(h).
        tail_oscillation: sup h - inf h.
        relu_gap: sup abs(rho - relu) over abs(x) <= reach.
        function: called as `function(x, *parameters)`; give a module-level function, not a lambda.
        parameters: hashable arguments of `function`.
        line_oscillation: sup - inf of rho - relu over abs(x) <= reach (at most twice `relu_gap`).
        identity_on_positives: rho(x) = x for x >= 0, the hypothesis of Theorems 9 and 15.
        nonpositive_tail: rho(x) <= 0 for x <= 0; otherwise composing does not shrink the tail.
        reach: the constants hold for abs(x) <= reach, the whole line by default.

    `check` compares the constants with the function.

    Example:
        >>> rho = ur.activations.elu(0.5)
        >>> rho, rho.tail_sup, float(rho(jnp.float32(2.0)))
        (elu(0.5), 0.5, 2.0)
    """

    name: str
    tail_lipschitz: float
    tail_sup: float
    tail_oscillation: float
    relu_gap: float
    function: Callable[..., Array] = _relu
    parameters: tuple = ()
    line_oscillation: float = math.inf
    identity_on_positives: bool = False
    nonpositive_tail: bool = False
    reach: float = math.inf

    def __call__(self, x: Array) -> Array:
        x = checks.as_float(x, "x", self.name)
        return _value(self.function, self.parameters, x)

    def __repr__(self) -> str:
        return self.name


@program("function", "parameters")
def _value(function: Callable[..., Array], parameters: tuple, x: Array) -> Array:
    return function(x, *parameters)


def one_signed(name, function, parameters=(), *, lipschitz, sup, gap, exact=False) -> Activation:
    """An activation whose tail and difference from ReLU keep one sign: sup = oscillation."""
    return Activation(
        name, lipschitz, sup, sup, gap, function, parameters, gap, exact, nonpositive_tail=exact
    )


def parameter(
    value: float, name: str, where: str, *, most: float = math.inf, positive: bool = False
) -> float:
    """A parameter of an activation as a float, checked."""
    value = float(value)
    if not (0 < value if positive else 0 <= value) or not value <= most or not math.isfinite(value):
        bounds = f"{'above' if positive else 'at least'} 0" + (
            f" and at most {most:g}" if most < math.inf else ""
        )
        raise ValueError(f"{where}: {name} must be {bounds}, got {value}")
    return value


def shown(value: float) -> str:
    """A parameter as text, without loss of digits."""
    return short if float(short := f"{value:g}") == value else repr(value)


# Module-level functions of our own: functions of jax.nn cannot be pickled, and jax.nn.celu and
# jax.nn.relu lose NaN.
def _leaky_relu(x, slope):
    return jax.nn.leaky_relu(x, slope)


def _elu(x, alpha):
    return jax.nn.elu(x, alpha)


def _celu(x, alpha):
    wide = widened(x)  # alpha may be below the range of half precision
    tail = alpha * jnp.expm1(jnp.where(wide > 0, jnp.zeros_like(wide), wide) / alpha)
    return jnp.where(wide > 0, wide, tail).astype(x.dtype)


def _selu(x):
    return jax.nn.selu(x)


def _silu(x):
    return jax.nn.silu(x)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x):
    # For abs(x) >= 10 the tanh is +-1 in float64; clipping keeps the cube's derivative finite.
    clipped = jnp.clip(x, -10, 10)
    return x * (0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (clipped + 0.044715 * clipped**3))))


def _mish(x):
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2) with e = exp(x): one exponential, not three
    # functions. For x >= 20 the ratio is 1 in float64. Half precision cannot hold such
    # exponentials.
    wide = widened(x)
    e = jnp.exp(jnp.minimum(wide, jnp.asarray(20, wide.dtype)))
    n = e * (e + 2)
    return (wide * (n / (n + 2))).astype(x.dtype)


def _softplus(x):
    return jax.nn.softplus(x)


def _hard_swish(x):
    return jax.nn.hard_swish(x)


relu = one_signed("relu", _relu, lipschitz=0.0, sup=0.0, gap=0.0, exact=True)
silu = one_signed("silu", _silu, lipschitz=0.5, sup=0.27846455, gap=0.27846455)
gelu = one_signed("gelu", _gelu, lipschitz=0.5, sup=0.16997121, gap=0.16997121)
gelu_tanh = one_signed("gelu_tanh", _gelu_tanh, lipschitz=0.5, sup=0.17004076, gap=0.17004076)
mish = one_signed("mish", _mish, lipschitz=0.6, sup=0.30884342, gap=0.30884342)
softplus = one_signed("softplus", _softplus, lipschitz=0.5, sup=0.69314719, gap=0.69314719)
hard_swish = one_signed("hard_swish", _hard_swish, lipschitz=0.5, sup=0.375, gap=0.375)
# SELU has slope 1.0507 on x > 0, so no scaling brings it near ReLU; selu(k x) / (1.0507 k) is
# scale(elu(1.6732632423543772), k).
selu = Activation("selu", 1.7580994, 1.7580994, 1.7580994, math.inf, _selu)


@checked
def leaky_relu(slope: float) -> Activation:
    """max(x, 0) + slope min(x, 0); its tail is unbounded unless slope = 0.

    Raises:
        ValueError: slope is outside [0, 1].

    Example:
        >>> ur.activations.leaky_relu(0.1)(jnp.array([-10.0, 10.0])).tolist()
        [-1.0, 10.0]
    """
    slope = parameter(slope, "slope", "leaky_relu", most=1.0)
    unbounded = math.inf if slope else 0.0
    return one_signed(
        f"leaky_relu({shown(slope)})",
        _leaky_relu,
        (slope,),
        lipschitz=slope,
        sup=unbounded,
        gap=unbounded,
        exact=True,
    )


@checked
def elu(alpha: float = 1.0) -> Activation:
    """x for x >= 0, alpha (exp(x) - 1) below; Theorem 9 requires alpha < 1.

    Raises:
        ValueError: alpha is negative, infinite or NaN.

    Example:
        >>> ur.activations.elu(0.5).tail_lipschitz
        0.5
    """
    alpha = parameter(alpha, "alpha", "elu")
    return one_signed(
        f"elu({shown(alpha)})", _elu, (alpha,), lipschitz=alpha, sup=alpha, gap=alpha, exact=True
    )


@checked
def celu(alpha: float = 1.0) -> Activation:
    """x for x >= 0, alpha (exp(x / alpha) - 1) below: slope 1 at 0-, bounded by alpha.

    Raises:
        ValueError: alpha is not positive, infinite or NaN.

    Example:
        >>> ur.activations.celu(0.5).tail_lipschitz, ur.activations.celu(0.5).tail_sup
        (1.0, 0.5)
    """
    alpha = parameter(alpha, "alpha", "celu", positive=True)
    return one_signed(
        f"celu({shown(alpha)})", _celu, (alpha,), lipschitz=1.0, sup=alpha, gap=alpha, exact=True
    )


# Magnitudes of the grid: equal steps near 0, where activations bend, and steps of 0.2 % from 1e-8,
# where steeply scaled activations bend, to 1e6, where unbounded tails are large.
_EVEN, _FROM, _TO, _POINTS = 20.0, 1e-8, 1e6, 20_000
# Values per call of the function.
_CHUNK = 4096
# Rounding of a value as a multiple of eps times its size, and the relative amount by which a
# measured constant may exceed the claimed constant.
_ROUNDING, _SLACK = 16, 1e-9


class Constants(Result):
    """Constants of an activation, measured on a grid; the true constants are at least these."""

    tail_lipschitz: float  # L_h, the Lipschitz constant of the tail
    tail_sup: float  # beta, the largest magnitude of the tail
    tail_oscillation: float  # the largest minus the least value of the tail
    relu_gap: float  # the largest distance from ReLU
    line_oscillation: float  # the largest minus the least difference from ReLU


def check(act: Activation) -> Constants:
    """Measure the constants of an activation on a dense grid; raise if one exceeds its claim.

    The grid has 80,001 points in float64 with magnitudes up to 1e6, or up to `reach`. The theory
    assumes that the constants of an `Activation` are correct. Hence `theory.activation_schedule`
    calls `check` for every activation that this package did not make. Results are cached.

    Returns:
        The measured Constants.

    Raises:
        TypeError: act is not an `Activation`.
        ValueError: a measured constant exceeds its claim, `identity_on_positives` or
            `nonpositive_tail` is claimed but does not hold, or a value is not finite or has another
            shape than x. The message names the constant, the claim and the measurement.

    Not claimed: that constants which pass the check are correct. `check` tests only grid points.

    Example:
        >>> round(ur.activations.check(ur.activations.silu).relu_gap, 6)
        0.278465
    """
    if not isinstance(act, Activation):
        raise TypeError(f"check: expected an Activation, whose constants are known; got {act!r}")
    try:
        return _checked(act)
    except TypeError as error:  # the parameters are not hashable
        if "unhashable" not in str(error):
            raise
        return _checked.__wrapped__(act)


@functools.lru_cache(maxsize=256)
def _checked(act: Activation) -> Constants:
    x = _grid(act.reach)
    rho = _values(act, x)
    eps = float(jnp.finfo(rho.dtype).eps)
    rho = rho.astype(np.float64)
    tolerance = _ROUNDING * eps * (np.abs(x) + np.abs(rho))
    tail, off = x <= 0, rho - np.maximum(x, 0)
    slopes = (np.abs(np.diff(rho)) - tolerance[1:] - tolerance[:-1]) / np.diff(x)
    measured = Constants(
        max(float(slopes[tail[1:]].max()), 0.0),
        float((np.abs(rho) - tolerance)[tail].max()),
        _spread(rho, tolerance, tail),
        max(float((np.abs(off) - tolerance).max()), 0.0),
        _spread(off, tolerance, slice(None)),
    )
    for name, value in measured.asdict().items():
        claimed = getattr(act, name)
        if not value <= claimed * (1 + _SLACK):
            raise ValueError(f"check: {act} claims {name} = {claimed:.9g}, measured {value:.9g}")
    for name, excess, at in (
        ("identity_on_positives", np.abs(off) - tolerance, ~tail | (x == 0)),
        ("nonpositive_tail", rho - tolerance, tail),
    ):
        if getattr(act, name) and (excess[at] > 0).any():
            k = np.flatnonzero(at)[int(np.argmax(excess[at]))]
            raise ValueError(
                f"check: {act} claims {name} = True, measured rho({x[k]:.9g}) = {rho[k]:.9g}"
            )
    return measured


def _spread(values: np.ndarray, tolerance: np.ndarray, at: np.ndarray | slice) -> float:
    """sup - inf, reduced by the rounding of both."""
    return max(float((values - tolerance)[at].max() - (values + tolerance)[at].min()), 0.0)


def _grid(reach: float) -> np.ndarray:
    if not reach > 0:
        raise ValueError(f"check: reach must be positive, got {reach}")
    even = np.linspace(0, min(_EVEN, reach), _POINTS + 1)
    least = min(_FROM, reach * _FROM)
    size = np.concatenate([even, np.geomspace(least, min(_TO, reach), _POINTS)])
    return np.unique(np.concatenate([-size, size]))


def _values(act: Activation, x: np.ndarray) -> np.ndarray:
    # The values are computed now, even under an outer jit.
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        parts = []
        for part in np.array_split(x, math.ceil(len(x) / _CHUNK)):
            values = act(jnp.asarray(part))
            if np.shape(values) != part.shape or not jnp.issubdtype(values.dtype, jnp.floating):
                raise ValueError(
                    f"check: {act} maps float64 {part.shape} to {values.dtype} "
                    f"{np.shape(values)}; expected floats of the same shape"
                )
            parts.append(np.asarray(values))
    rho = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(rho))
    if len(bad):
        raise ValueError(f"check: {act} is {rho[bad[0]]} at x = {x[bad[0]]:.9g}")
    return rho


# Iterated suprema are increased by this relative amount, which exceeds the rounding of the
# iteration.
_ROUNDED_UP = 1e-7
# The loop over the compositions is unrolled when an activation is traced.
_MOST_TIMES = 1000
# For k = _STEEPNESS / h, the two terms of the bound, ln 2 / k and h^2 k / 16, are equal and their
# sum is minimal.
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

    The sum is a midpoint rule for the integral of sigma(k (x - t)) over 0 <= t <= M. This integral
    is (softplus(k x) - softplus(k (x - M))) / k, which is within ln 2 / k of ReLU; the minimum in
    the inequality bounds the error of the midpoint rule. Beyond M the sum saturates. Hence the
    constants hold for abs(x) <= `reach` = M, and `theory.activation_schedule` checks that no
    argument is larger.

    Args:
        h: distance between the sigmoids; there are ceil(M / h) sigmoids.
        M: largest argument.
        k: steepness; by default 4 sqrt(ln 2) / h, for which `relu_gap` is at most 0.417 h.

    Raises:
        ValueError: an argument is not positive and finite, or h > M.

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

    .. math:: \rho(x) = \frac{h}{2} \sum_{i < M / h} (1 + \tanh(k (x - t_i))).

    This function is `sigmoid_sum` with steepness 2 k.

    Args:
        h, M, k: as in `sigmoid_sum`; k is 2 sqrt(ln 2) / h by default.

    Raises:
        ValueError: as in `sigmoid_sum`.

    Example:
        >>> rho = ur.activations.tanh_sum(0.1, 2.0)
        >>> rho(jnp.array([-1.0, 0.5])).round(2).tolist(), round(rho.relu_gap, 4)
        ([0.0, 0.5], 0.0416)
    """
    return _sum("tanh_sum", _tanh_sum, h, M, k, 2.0)


def _sum(name: str, function: Callable, h, M, k, factor: float) -> Activation:
    """A sum of sigmoids whose steepness is `factor` times k."""
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
    wide = widened(x)  # k alone may exceed the range of half precision
    return (act(wide * k) / k).astype(x.dtype)


@checked
def scale(act: Activation, k: float) -> Activation:
    """rho(k x) / k, which divides the tail of rho and the distance of rho from ReLU by k.

    The Lipschitz constant of the tail stays the same.

    Args:
        act: rho.
        k: positive and finite.

    Raises:
        TypeError: act is not an `Activation`.
        ValueError: k is not positive and finite.

    Reference: Li, Feng, Zhou (2024), Theorem 10.

    Example:
        >>> ur.activations.scale(ur.activations.softplus, 100.0).relu_gap < 0.007
        True
    """
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


def _composed(x, act, times):
    for _ in range(times):
        x = act(x)
    return x


@checked
def compose(act: Activation, times: int) -> Activation:
    r"""rho applied `times` times, the rho^m of Theorem 9; `scale` shrinks the tail at less cost.

    The constants are valid upper bounds, not always exact. If rho(x) = x on x >= 0 and h <= 0, the
    tail of rho^m is L_h^m-Lipschitz and at most min(beta, L_h^(m-1) beta) in magnitude. If h is
    also monotone (ELU, CELU), the supremum of the tail is found by iterating h from -beta. Without
    these hypotheses, relu_gap(rho^m) <= m relu_gap(rho), since ReLU is idempotent and 1-Lipschitz.

    Args:
        act: rho.
        times: m, from 1 to 1000.

    Raises:
        TypeError: act is not an `Activation`, or times is not an integer.
        ValueError: times is out of range.

    Reference: Li, Feng, Zhou (2024), Theorem 9.

    Example:
        >>> rho = ur.activations.elu(0.5)
        >>> [round(ur.activations.compose(rho, m).tail_sup, 3) for m in (1, 2, 3)]
        [0.5, 0.197, 0.089]
    """
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
        # rho increases no argument by more than the gap.
        max(act.reach - (m - 1) * act.relu_gap, 0.0) if math.isfinite(act.reach) else math.inf,
    )


def _iterated_sup(act: Activation, m: int) -> float:
    """A bound on sup abs(h^m): iterate abs(h(-beta)) if h is ELU or CELU, else min(1, L) beta."""
    sup = act.tail_sup
    for _ in range(m - 1):
        if act.function is _elu:
            sup = -act.parameters[0] * math.expm1(-sup)
        elif act.function is _celu:
            sup = -act.parameters[0] * math.expm1(-sup / act.parameters[0])
        else:
            sup = min(1.0, act.tail_lipschitz) * sup
    return sup * (1 + _ROUNDED_UP) if math.isfinite(sup) else sup
