"""Shrinkage by two activations, the other thresholds, and support selection."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks, _lax
from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import widened
from unrolled._program import program
from unrolled._sharded import compiler_splits
from unrolled.activations._pointwise import relu


@checked
def shrink(v: ArrayLike, theta: ArrayLike, activation: Callable[[Array], Array] = relu) -> Array:
    r"""Shrinkage by two activations: rho(v - theta) - rho(-v - theta).

    With ReLU it is the soft threshold sign(v) max(abs(v) - theta, 0), with derivative 0 at the
    kink. Its derivative is read off the result, in forward and reverse mode and at any order, so
    that a backward pass stores nothing but x.

    Args:
        v: any shape.
        theta: threshold, broadcast against `v`; non-negative.
        activation: rho.

    Returns:
        The shape of v and theta, broadcast.

    Raises:
        ValueError: a known theta is negative or NaN. A traced one is not checked: theta < 0 expands
            instead of shrinking.

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
    v = _checks.as_float(v, "v", where)
    real = _real(theta, v, "theta", where)
    _checks.broadcast(where, v=v, theta=real)
    _checks.nonnegative(theta, "theta", where)  # as given: inside of jit the other may be traced
    return v, real


def _real(theta: ArrayLike, v: Array, name: str, where: str) -> ArrayLike:
    """A threshold in floating point: numbers and integer arrays take the dtype of v."""
    if isinstance(theta, bool | int | float):
        return float(theta)
    integer = not jnp.issubdtype(getattr(theta, "dtype", float), jnp.floating)
    theta = _checks.as_float(theta, name, where)
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
    """v where abs(v) > theta, else 0: a proximal map of theta^2/2 norm(x, 0). NaN stays.

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
def firm_threshold(v: ArrayLike, theta: ArrayLike, upper: ArrayLike) -> Array:
    """0 up to theta, v from `upper` on, linear in between; the soft threshold as upper -> inf.

    Raises:
        ValueError: known thresholds without 0 <= theta < upper.

    Reference: Gao, Bruce (1997).

    Example:
        >>> ur.activations.firm_threshold(jnp.array([0.5, 1.5, 3.0]), 1.0, 2.0).tolist()
        [0.0, 1.0, 3.0]
    """
    v, theta = _operands(v, theta, "firm_threshold")
    _checks.broadcast("firm_threshold", v=v, upper=upper)
    if _checks.is_concrete((theta, upper)) and not np.all(np.asarray(theta) < np.asarray(upper)):
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

    An entry passes if it exceeds theta and is one of the round(fraction d) largest magnitudes. The
    comparison with the next magnitude is strict, so that ties with it are shrunk. The selection
    carries no gradient.

    Args:
        v: (d,).
        theta: () or (d,), non-negative.
        fraction: share of the entries, in [0, 1]; may be traced.
        activation: rho of the shrinkage.

    Returns:
        (d,).

    Raises:
        ValueError: v of another shape, a known fraction outside [0, 1], or a known theta that is
            negative or NaN.

    Reference: Chen, Liu, Wang, Yin (2018), section 2.3.

    Example:
        >>> ur.activations.select_support(jnp.array([-3.0, 0.5, 2.0, 1.5]), 1.0, 0.5).tolist()
        [-3.0, 0.0, 2.0, 0.5]
    """
    _checks.one_number(fraction, "fraction", "select_support")
    if _checks.is_concrete(fraction) and not 0 <= float(np.asarray(fraction)) <= 1:
        raise ValueError(f"select_support: fraction must be in [0, 1], got {fraction}")
    v, theta = _operands(v, theta, "select_support")
    _checks.vector(v, "v", "select_support")
    return _select_support(v, theta, fraction, activation)


@program("activation")
def _select_support(
    v: Array, theta: ArrayLike, fraction: ArrayLike, activation: Callable[[Array], Array]
) -> Array:
    d = v.shape[-1]
    magnitude = lax.stop_gradient(jnp.abs(v))
    count = jnp.round(jnp.asarray(fraction, jnp.float32) * d).astype(jnp.int32)
    # For count = d there is no next magnitude, and every entry that exceeds theta passes.
    border = jnp.where(
        count < d, kth_largest(magnitude, jnp.minimum(count + 1, d)), -jnp.ones((), v.dtype)
    )
    passes = (magnitude > border) & (magnitude > lax.stop_gradient(theta))
    return jnp.where(passes, v, shrink(v, theta, activation))


def kth_largest(magnitude: Array, k: ArrayLike) -> Array:
    r"""The k-th largest of non-negative numbers, exactly, by a binary search over the bit pattern.

    Non-negative floats are ordered as their bits are, so the answer is built bit by bit from the
    top: a bit stays if at least k entries are no smaller. About 30 passes of compare-and-count,
    many times faster than a sort.

    Args:
        magnitude: (d,), non-negative.
        k: integer in 1..d; may be traced.

    Returns:
        (), in the dtype of `magnitude`.

    Raises:
        TypeError: k is no integer. ValueError: magnitudes of another shape, or a known k outside
            1..d.

    Example:
        >>> float(ur.activations.kth_largest(jnp.array([3.0, 1.0, 2.0]), 2))
        2.0
    """
    magnitude = _checks.as_float(magnitude, "magnitude", "kth_largest")
    _checks.vector(magnitude, "magnitude", "kth_largest")
    _checks.integer(k, "k", "kth_largest")
    if _checks.is_concrete(k) and not 1 <= int(np.asarray(k)) <= magnitude.size:
        raise ValueError(f"kth_largest: k must be in 1..{magnitude.size}, got {k}")
    return _kth_largest(magnitude, k).astype(magnitude.dtype)


@program()
def _kth_largest(magnitude: Array, k: ArrayLike) -> Array:
    magnitude, k = widened(magnitude), jnp.asarray(k).astype(jnp.int32)
    integer = jnp.int64 if magnitude.dtype.itemsize == 8 else jnp.int32
    bits = lax.bitcast_convert_type(magnitude, integer)
    # A row that is split among devices is not reshaped: its parts would travel.
    columns = _in_a_row if compiler_splits() else _in_columns
    kth = lax.platform_dependent(bits, k, cpu=columns, default=_in_a_row)
    return lax.bitcast_convert_type(kth, magnitude.dtype)


def _in_a_row(bits: Array, k: Array) -> Array:
    # Floats are summed faster than integers, and exactly up to 2^24.
    dtype = jnp.float32 if bits.size < 2**24 else jnp.int32
    return _search(bits, k, lambda no_smaller: jnp.sum(no_smaller.astype(dtype)))


def _in_columns(bits: Array, k: Array) -> Array:
    # A processor adds whole rows of 32 marks in 16 bits each, four times as fast as one long row.
    rows = -(-bits.size // 32)
    dtype = jnp.int16 if rows < 2**15 else jnp.int32
    bits = jnp.pad(bits, (0, 32 * rows - bits.size), constant_values=-1).reshape(rows, 32)

    def count(no_smaller):
        columns = jnp.sum(no_smaller.astype(dtype), 0, dtype=dtype)
        return jnp.sum(columns.astype(jnp.int32))

    return _search(bits, k, count)


def _search(bits: Array, k: Array, count: Callable[[Array], Array]) -> Array:
    """The largest integer that at least k of the bits are no smaller than, bit by bit."""
    top = bits.dtype.itemsize * 8 - 2

    def keep(i, kth):
        # i is an int32 index; in the dtype of the bits the shift needs no promotion.
        trial = kth | (jnp.ones_like(kth) << (top - jnp.asarray(i, kth.dtype)))
        number = count(bits >= trial)
        return jnp.where(number >= k.astype(number.dtype), trial, kth)

    return _lax.fori_loop(0, top + 1, keep, jnp.zeros((), bits.dtype))
