"""Shrinkage by two activations, other thresholds, support selection, and the proximal map of
|x|^p.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, checked, program
from unrolled._base.numbers import widened
from unrolled._base.programs import compiler_splits
from unrolled.activations._activation import relu

__all__ = [
    "firm_threshold",
    "hard_threshold",
    "jump_relu",
    "nonnegative_threshold",
    "power_threshold",
    "select_support",
    "shrink",
    "soft_threshold",
]


@checked
def shrink(v: ArrayLike, theta: ArrayLike, activation: Callable[[Array], Array] = relu) -> Array:
    r"""Shrinkage by two activations: rho(v - theta) - rho(-v - theta).

    With ReLU, shrinkage is the soft threshold sign(v) max(abs(v) - theta, 0), with derivative 0 at
    the kink. This derivative is computed from the result, in forward and reverse mode and at any
    order, so that a backward pass stores only x.

    Args:
        v: any shape.
        theta: threshold, broadcast against `v`; non-negative.
        activation: rho.

    Returns:
        An array with the broadcast shape of v and theta.

    Raises:
        ValueError: a known theta is negative or NaN. A traced theta is not checked: a negative
            theta expands v instead of shrinking it.

    Reference: Li, Feng, Zhou (2024), equations (20) and (33).

    Example:
        >>> ur.shrink(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [-2.0, 0.0, 1.0]
    """
    return _shrink(*_operands(v, theta, "shrink"), activation)


@program("activation")
def _shrink(v: Array, theta: ArrayLike, activation: Callable[[Array], Array]) -> Array:
    if activation == relu:
        return _soft(v, jnp.asarray(theta, jnp.result_type(v, theta)))
    return activation(v - theta) - activation(-v - theta)


def _operands(v: ArrayLike, theta: ArrayLike, where: str) -> tuple[Array, ArrayLike]:
    """v in floating point, and a real threshold that is not known to be negative or NaN."""
    v = checks.as_float(v, "v", where)
    real = _real(theta, v, "theta", where)
    checks.broadcast(where, v=v, theta=real)
    checks.nonnegative(theta, "theta", where)  # the given theta: `real` may be traced inside jit
    return v, real


def _real(theta: ArrayLike, v: Array, name: str, where: str) -> ArrayLike:
    """A threshold in floating point: numbers and integer arrays take the dtype of v."""
    if isinstance(theta, bool | int | float):
        return float(theta)
    integer = not jnp.issubdtype(getattr(theta, "dtype", float), jnp.floating)
    theta = checks.as_float(theta, name, where)
    return theta.astype(v.dtype) if integer else theta


@jax.custom_jvp
def _soft(v: Array, theta: Array) -> Array:
    return relu(v - theta) - relu(-v - theta)


@_soft.defjvp
def _soft_jvp(primals, tangents):
    dv, dtheta = tangents
    x = _soft(*primals)
    return x, jnp.where(x != 0, dv - jnp.sign(x) * dtheta, jnp.zeros_like(x))


@checked
def soft_threshold(v: ArrayLike, theta: ArrayLike) -> Array:
    """sign(v) max(abs(v) - theta, 0), the proximal map of theta norm(x, 1); see `shrink`.

    Example:
        >>> ur.soft_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [-2.0, 0.0, 1.0]
    """
    return shrink(v, theta)


@checked
def hard_threshold(v: ArrayLike, theta: ArrayLike) -> Array:
    """v where abs(v) > theta, else 0: a proximal map of theta^2/2 norm(x, 0). NaN stays NaN.

    Raises:
        ValueError: a known theta is negative or NaN.

    Example:
        >>> ur.activations.hard_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [-3.0, 0.0, 2.0]
    """
    return _hard_threshold(*_operands(v, theta, "hard_threshold"))


@program()
def _hard_threshold(v: Array, theta: ArrayLike) -> Array:
    return jnp.where(jnp.abs(v) <= theta, jnp.zeros_like(v), v)


@checked
def jump_relu(v: ArrayLike, theta: ArrayLike, bandwidth: float = 1e-3) -> Array:
    r"""v where v > theta, else 0, with a surrogate derivative in theta. NaN stays NaN.

    The function jumps at theta, so its derivative in theta is 0 almost everywhere. But its mean
    over values v with density p has the derivative -theta p(theta), which the mean of the surrogate
    estimates:

    .. math:: -\frac{\theta}{h} \, 1\!\left[|v - \theta| < h / 2\right], \qquad
        h = \text{bandwidth}.

    Args:
        v: any shape.
        theta: threshold, broadcast against `v`; non-negative.
        bandwidth: h, in the units of v.

    Raises:
        ValueError: a known theta is negative or NaN, or the bandwidth is not positive.

    Reference: Erichson, Yao, Mahoney (2019); Rajamanoharan et al. (2024) for the surrogate.

    Example:
        >>> ur.activations.jump_relu(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [0.0, 0.0, 2.0]
        >>> float(jax.grad(ur.activations.jump_relu, 1)(1.1, 1.0, 0.5))  # -theta / h
        -2.0
    """
    h = checks.as_number(bandwidth, "bandwidth", "jump_relu")
    if not 0 < h < math.inf:
        raise ValueError(f"jump_relu: bandwidth must be positive and finite, got {h}")
    return _jump_relu(*_operands(v, theta, "jump_relu"), h)


@program("h")
def _jump_relu(v: Array, theta: ArrayLike, h: float) -> Array:
    return _jump(v, jnp.asarray(theta, jnp.result_type(v, theta)), h)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _jump(v: Array, theta: Array, h: float) -> Array:
    return jnp.where(v <= theta, jnp.zeros_like(v), v)


@_jump.defjvp
def _jump_jvp(h, primals, tangents):
    (v, theta), (dv, dtheta) = primals, tangents
    near = jnp.where(jnp.abs(v - theta) < h / 2, theta / h, 0)
    return _jump(v, theta, h), jnp.where(v <= theta, 0, dv) - near * dtheta


@checked
def firm_threshold(v: ArrayLike, theta: ArrayLike, upper: ArrayLike) -> Array:
    """0 if abs(v) <= theta, v if abs(v) >= upper, else linear; the soft threshold if upper = inf.

    Raises:
        ValueError: known thresholds violate 0 <= theta < upper.

    Reference: Gao, Bruce (1997).

    Example:
        >>> ur.activations.firm_threshold(jnp.array([0.5, 1.5, 3.0]), 1.0, 2.0).tolist()
        [0.0, 1.0, 3.0]
    """
    v, theta = _operands(v, theta, "firm_threshold")
    checks.broadcast("firm_threshold", v=v, upper=upper)
    if checks.is_concrete((theta, upper)) and not np.all(np.asarray(theta) < np.asarray(upper)):
        raise ValueError(
            f"firm_threshold: expected theta < upper, got theta={theta}, upper={upper}"
        )
    return _firm_threshold(v, theta, _real(upper, v, "upper", "firm_threshold"))


@program()
def _firm_threshold(v: Array, theta: ArrayLike, upper: ArrayLike) -> Array:
    between = relu(jnp.abs(v) - theta) / (1 - theta / upper)  # also for upper = inf
    return jnp.sign(v) * jnp.minimum(between, jnp.abs(v))


@checked
def nonnegative_threshold(
    v: ArrayLike, theta: ArrayLike, activation: Callable[[Array], Array] = relu
) -> Array:
    """rho(v - theta): a CNN's biased ReLU, the proximal map of theta norm(x, 1) on x >= 0.

    Raises:
        ValueError: a known theta is negative or NaN.

    Example:
        >>> ur.activations.nonnegative_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [0.0, 0.0, 1.0]
    """
    return _nonnegative_threshold(*_operands(v, theta, "nonnegative_threshold"), activation)


@program("activation")
def _nonnegative_threshold(
    v: Array, theta: ArrayLike, activation: Callable[[Array], Array]
) -> Array:
    return activation(v - theta)


@checked
def select_support(
    v: ArrayLike, theta: ArrayLike, fraction: ArrayLike, activation: Callable[[Array], Array] = relu
) -> Array:
    r"""Shrinkage that passes the largest entries unshrunk: the support selection of LISTA-CPSS.

    An entry passes if its magnitude exceeds theta and is one of the round(fraction d) largest
    magnitudes. The comparison with the next magnitude is strict, so that entries which tie with the
    next magnitude are shrunk. The selection carries no gradient.

    Args:
        v: (d,).
        theta: () or (d,), non-negative.
        fraction: share of the entries, in [0, 1]; may be traced.
        activation: rho of the shrinkage.

    Returns:
        (d,).

    Raises:
        ValueError: v has another shape, a known fraction is outside [0, 1], or a known theta is
            negative or NaN.

    Reference: Chen, Liu, Wang, Yin (2018), section 2.3.

    Example:
        >>> ur.activations.select_support(jnp.array([-3.0, 0.5, 2.0, 1.5]), 1.0, 0.5).tolist()
        [-3.0, 0.0, 2.0, 0.5]
    """
    checks.one_number(fraction, "fraction", "select_support")
    if checks.is_concrete(fraction) and not 0 <= float(np.asarray(fraction)) <= 1:
        raise ValueError(f"select_support: fraction must be in [0, 1], got {fraction}")
    v, theta = _operands(v, theta, "select_support")
    checks.vector(v, "v", "select_support")
    return _select_support(v, theta, fraction, activation)


@program("activation")
def _select_support(
    v: Array, theta: ArrayLike, fraction: ArrayLike, activation: Callable[[Array], Array]
) -> Array:
    passes = _selected(jnp.abs(v), theta, fraction)
    return jnp.where(passes, v, shrink(v, theta, activation))


@checked
def selected(magnitude: Array, theta: ArrayLike, fraction: ArrayLike) -> Array:
    """Which magnitudes exceed theta and are among the round(fraction d) largest.

    `select_support` uses this selection.

    Args:
        magnitude: (d,), non-negative.
        theta: () or (d,).
        fraction: share of the entries, in [0, 1]; may be traced.

    Returns:
        Bools, (d,).

    Example:
        >>> ur.activations.selected(jnp.array([3.0, 0.5, 2.0, 1.5]), 1.0, 0.5).tolist()
        [True, False, True, False]
    """
    checks.vector(magnitude, "magnitude", "selected")
    checks.broadcast("selected", magnitude=magnitude, theta=theta)
    return _selected_alone(magnitude, theta, fraction)


@program()
def _selected_alone(magnitude: Array, theta: ArrayLike, fraction: ArrayLike) -> Array:
    return _selected(magnitude, theta, fraction)


def _selected(magnitude: Array, theta: ArrayLike, fraction: ArrayLike) -> Array:
    d = magnitude.shape[-1]
    count = jnp.round(jnp.asarray(fraction, jnp.float32) * d).astype(jnp.int32)
    # For count = d there is no next magnitude, and every entry that exceeds theta passes.
    none = -jnp.ones((), magnitude.dtype)
    border = jnp.where(count < d, kth_largest(magnitude, jnp.minimum(count + 1, d)), none)
    return (magnitude > border) & (magnitude > theta)


def kth_largest(magnitude: Array, k: ArrayLike) -> Array:
    r"""The k-th largest of non-negative numbers, exactly, by a binary search over the bit pattern.

    Non-negative floats have the same order as their bit patterns, so the answer is built bit by bit
    from the highest bit. A bit is set if at least k entries are no smaller than the resulting
    number. The search takes about 30 passes that compare and count, and is many times faster than a
    sort.

    Args:
        magnitude: (d,), non-negative.
        k: integer in 1..d; may be traced.

    Returns:
        An array of shape () in the dtype of `magnitude`.

    Raises:
        TypeError: k is not an integer.
        ValueError: the magnitudes have another shape, or a known k is outside 1..d.

    Example:
        >>> float(ur.activations.kth_largest(jnp.array([3.0, 1.0, 2.0]), 2))
        2.0
    """
    magnitude = checks.as_float(magnitude, "magnitude", "kth_largest")
    checks.vector(magnitude, "magnitude", "kth_largest")
    checks.integer(k, "k", "kth_largest")
    if checks.is_concrete(k) and not 1 <= int(np.asarray(k)) <= magnitude.size:
        raise ValueError(f"kth_largest: k must be in 1..{magnitude.size}, got {k}")
    return _kth_largest(magnitude, k).astype(magnitude.dtype)


@program()
def _kth_largest(magnitude: Array, k: ArrayLike) -> Array:
    magnitude, k = widened(magnitude), jnp.asarray(k).astype(jnp.int32)
    integer = jnp.int64 if magnitude.dtype.itemsize == 8 else jnp.int32
    bits = lax.bitcast_convert_type(magnitude, integer)
    # A row that is split among devices is not reshaped: reshaping would move its parts.
    columns = _count_search if compiler_splits() else _count_search_on_cpu
    kth = lax.platform_dependent(bits, k, cpu=columns, default=_count_search)
    return lax.bitcast_convert_type(kth, magnitude.dtype)


def _count_search(bits: Array, k: Array) -> Array:
    # Floats are summed faster than integers, and exactly up to 2^24.
    dtype = jnp.float32 if bits.size < 2**24 else jnp.int32
    return _search(bits, k, lambda no_smaller: jnp.sum(no_smaller.astype(dtype)))


def _count_search_on_cpu(bits: Array, k: Array) -> Array:
    # A CPU adds rows of 32 marks with 16 bits each four times as fast as one long row.
    rows = -(-bits.size // 32)
    dtype = jnp.int16 if rows < 2**15 else jnp.int32
    bits = jnp.pad(bits, (0, 32 * rows - bits.size), constant_values=-1).reshape(rows, 32)

    def count(no_smaller):
        columns = jnp.sum(no_smaller.astype(dtype), 0, dtype=dtype)
        return jnp.sum(columns.astype(jnp.int32))

    return _search(bits, k, count)


def _search(bits: Array, k: Array, count: Callable[[Array], Array]) -> Array:
    """The largest integer t such that at least k entries of `bits` are >= t, built bit by bit."""
    top = bits.dtype.itemsize * 8 - 2

    def keep(i, kth):
        # i is an int32 index; in the dtype of the bits the shift needs no promotion.
        trial = kth | (jnp.ones_like(kth) << (top - jnp.asarray(i, kth.dtype)))
        number = count(bits >= trial)
        return jnp.where(number >= k.astype(number.dtype), trial, kth)

    return programs.fori_loop(0, top + 1, keep, jnp.zeros((), bits.dtype))


# Number of Newton steps. Newton's method for a convex function decreases to the root if it starts
# to the right of the root. The slowest p, near 1, needs 6 steps to reach the rounding of float64.
_NEWTON = 8


@checked
def power_threshold(v: ArrayLike, theta: ArrayLike, p: float) -> Array:
    r"""The proximal map of theta norm(x, p)^p, entry by entry.

    .. math:: \arg\min_x (x - v)^2 / 2 + \theta |x|^p, \qquad 0 < p \le 1.

    For p = 1 the map is soft thresholding. For p < 1 let s = (2 theta (1 - p))^(1 / (2 - p)). The
    map is 0 for abs(v) up to s (2 - p) / (2 (1 - p)), jumps there to s, and approaches v for large
    abs(v). At the jump, where both 0 and s are minima, the map returns 0. The map is computed in
    closed form for p = 1/2 and 2/3, and by Newton's method to the rounding of the dtype for any
    other p.

    Args:
        v: any shape.
        theta: threshold, broadcast against `v`; non-negative.
        p: a static number in (0, 1].

    Returns:
        An array with the broadcast shape of v and theta.

    Raises:
        TypeError: p is traced or not a number.
        ValueError: p is outside (0, 1], or a known theta is negative or NaN.

    Reference: Krishnan, Fergus (2009) for 1/2 and 2/3; Xu, Chang, Xu, Zhang (2012) for 1/2.

    Example:
        >>> print(ur.activations.power_threshold(jnp.array([-3.0, 1.4, 2.0]), 1.0, 0.5).round(2))
        [-2.7   0.    1.61]
    """
    p = as_power(p, "power_threshold")
    if p == 1:
        return shrink(v, theta)
    checks.nonnegative(theta, "theta", "power_threshold")
    v = checks.as_float(v, "v", "power_threshold")
    checks.broadcast("power_threshold", v=v, theta=theta)
    return _power_threshold(v, theta, p)


@program("p")
def _power_threshold(v: Array, theta: ArrayLike, p: float) -> Array:
    wide = widened(v)
    theta = jnp.asarray(theta, wide.dtype)
    some = theta > 0
    least = (2 * (1 - p) * jnp.where(some, theta, 1)) ** (1 / (2 - p))
    # In units of the least nonzero magnitude, the map is a function of one variable.
    c, edge = p / (2 * (1 - p)), (2 - p) / (2 * (1 - p))
    far = (c / float(jnp.finfo(wide.dtype).eps)) ** (1 / (2 - p))  # from here on x rounds to w
    w = jnp.abs(wide) / least
    x = jnp.sign(wide) * least * _root_of(p)(jnp.clip(w, edge, far))
    x = jnp.where(w <= edge, 0 * wide, jnp.where(some & (w < far), x, wide))
    return jnp.where(some, x, wide).astype(v.dtype)


def as_power(p: float, where: str) -> float:
    """p as a static number in (0, 1].

    Raises:
        TypeError: p is traced, or not a number.
        ValueError: p is outside (0, 1].

    Example:
        >>> ur.activations.as_power(1, "caller")
        1.0
    """
    power = checks.as_number(p, "p", where)
    if not 0 < power <= 1:
        raise ValueError(f"{where}: p must be in (0, 1], got {p}")
    return power


def _root_of(p: float) -> Callable[[Array], Array]:
    """The map from w >= edge to the larger root of x - w + c x^(p - 1), c = p / (2 (1 - p))."""
    c = p / (2 * (1 - p))
    closed = next((f for q, f in _CLOSED.items() if math.isclose(p, q)), None)

    def root(w: Array) -> Array:
        x = w if closed is None else closed(w)
        for _ in range(_NEWTON if closed is None else 1):  # 1 step removes the rounding
            x = x - (x - w + c * x ** (p - 1)) / (1 - c * (1 - p) * x ** (p - 2))
        return x

    return root


def _half(w: Array) -> Array:
    """The root for p = 1/2: a cubic in sqrt(x), solved by cosines."""
    angle = jnp.arccos((w / 3) ** -1.5 / 4)
    return 2 / 3 * w * (1 + jnp.cos(2 / 3 * (jnp.pi - angle)))


def _two_thirds(w: Array) -> Array:
    """The root for p = 2/3: a quartic in x^(1/3), solved by its resolvent cubic and the cosh."""
    a = 2 / 3**0.25 * jnp.sqrt(jnp.cosh(jnp.arccosh(27 / 16 * 3**-1.5 * w**2) / 3))
    return ((a + jnp.sqrt(2 * w / a - a**2)) / 2) ** 3


_CLOSED = {1 / 2: _half, 2 / 3: _two_thirds}
