"""What the pursuits of a chain share: their result, their units, and the gap of the chain."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import exponent, ldexp, norm, power_of_two, wide_dtype
from unrolled.dictionaries import Dictionary, as_chain, operands, spectral_norm
from unrolled.pursuit._options import per_atom
from unrolled.pursuit._problem import in_range

Codes = tuple[Array, ...]


class DeepPursuit(NamedTuple):
    """The codes of a chain of dictionaries, and how good they are; in float32 at least."""

    xs: Codes  # x_j, (d_j,) each, with x_{j-1} = D_j x_j for j > 1
    gap: Array  # () duality gap, relative to norm(y)^2 / 2; inf where no bound is known
    residual: Array  # () norm(y - D_1 x_1)
    steps: Array  # () steps taken
    converged: Array  # () the aim of the pursuit is met, and xs are in the range of the dtype


class Chain(NamedTuple):
    """A chain in units in which products of its numbers stay in the range of the dtype.

    D_j is divided by 2^a_j and y by 2^b, exactly. Then x_j is divided by 2^(b - a_1 - ... - a_j)
    and lam_j by 2^(b + a_1 + ... + a_j).
    """

    Ds: tuple[Dictionary, ...]
    y: Array  # (m,)
    lams: tuple[Array, ...]  # () or (d_j,) each
    sizes: tuple[Array, ...]  # norm(D_j, 2)
    b: Array  # the exponent of y
    up: tuple[Array, ...]  # the exponents of x_j

    @property
    def end(self) -> int:
        """The length of x_J."""
        return self.Ds[-1].shape[1]


def as_problem(where: str, Ds: Sequence[Dictionary], y: ArrayLike, lams: Any) -> Chain:
    """The checked chain in its units, in float32 at least.

    Args:
        where: the name of the caller, which messages begin with.
        Ds, y: as in the pursuits.
        lams: a tuple with one penalty per layer, zeros where the pursuit has no penalties.

    Raises:
        TypeError: operands that are not real numbers.
        ValueError: shapes that do not fit, another number of penalties, a penalty that is negative
            or not finite, or a dictionary that is zero.
    """
    Ds = as_chain(Ds, where)
    lams = one_per_layer(lams, "lams", len(Ds), where)
    for j, lam in enumerate(lams, start=1):
        _checks.nonnegative(lam, f"lam_{j}", where)
        _checks.finite(lam, f"lam_{j}", where)
    _, y, Ds = operands(Ds[0], y, where, params=Ds)
    # JAX has no decompositions in half precision.
    dtype = wide_dtype(y.dtype)
    y, Ds = y.astype(dtype), _checks.cast(Ds, dtype)
    sizes = tuple(map(spectral_norm, Ds))
    for j, size in enumerate(sizes, start=1):
        if _checks.is_concrete(size) and not size > 0:
            raise ValueError(f"{where}: D_{j} is zero, so its step size is undefined")
    b, total = exponent(y), jnp.zeros((), jnp.int32)
    scaled, units, up, weights = [], [], [], []
    for j, (D, size) in enumerate(zip(Ds, sizes), start=1):
        a = exponent(size)
        total = total + a
        scaled.append(D * power_of_two(-a, y.dtype))
        units.append(ldexp(size, -a))
        up.append(b - total)
        lam = ldexp(per_atom(D, y, lams[j - 1], f"lam_{j}", where), -(b + total))
        # A penalty above the range of the dtype in these units acts like the largest in it.
        weights.append(jnp.minimum(lam, float(jnp.finfo(y.dtype).max)).astype(y.dtype))
    return Chain(tuple(scaled), ldexp(y, -b), tuple(weights), tuple(units), b, tuple(up))


def one_per_layer(values: Any, name: str, J: int, where: str) -> tuple:
    """`values` as a tuple of one value per layer."""
    if not isinstance(values, (tuple, list)) or len(values) != J:
        got = len(values) if isinstance(values, (tuple, list)) else type(values).__name__
        raise ValueError(f"{where}: expected a tuple of {J} {name}, one per layer, got {got}")
    return tuple(values)


def as_start(chain: Chain, start: ArrayLike | None, where: str) -> Array:
    """x_J to begin from, in the units of the chain; zero without a start."""
    d, dtype = chain.end, chain.y.dtype
    if start is None:
        return jnp.zeros(d, dtype)
    start = _checks.as_float(start, "start", where)
    if start.shape != (d,):
        raise ValueError(f"{where}: start has shape {start.shape}; expected x_J, ({d},)")
    _checks.finite(start, "start", where)
    return ldexp(start.astype(dtype), -chain.up[-1])


def codes_of(Ds: Sequence[Any], x: Array) -> Codes:
    """(x_1, ..., x_J) from x = x_J, by x_{j-1} = D_j x_j."""
    xs: Codes = (x,)
    for D in reversed(Ds[1:]):
        xs = (D @ xs[0], *xs)
    return xs


def sweep(
    Ds: Sequence[Any], y: Array, x: Array, update: Callable[[int, Array, Array, Array], Array]
) -> Codes:
    r"""One sweep through a chain: down from x_J, and up again with a new code in every layer.

    .. math::
        x_{j-1} &= D_j x_j, \quad j = J, \dots, 1, \\
        \hat x_j &= update(j, \hat x_{j-1}, x_j, x_{j-1}), \quad j = 1, \dots, J,
        \quad \hat x_0 = y.

    ML-ISTA and the networks that unroll it differ in `update` alone.

    Args:
        Ds: J dictionaries, or anything with `D @ x` and `r @ D`.
        y, x: (m,) and (d_J,), or what the dictionaries take.
        update: takes the index of the layer, from 0, the new code before it, its code x_j, and
            D_j x_j.

    Returns:
        The new codes, (d_j,) each.

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> def shrunk(j, before, x, Dx):
        ...     return ur.shrink(before, 1.0)
        >>> [x.tolist() for x in ur.pursuit.sweep((D, D), y, y, shrunk)]
        [[2.0, 0.0], [1.0, 0.0]]
    """
    xs = codes_of(Ds, x)
    below = (Ds[0] @ xs[0], *xs)
    before, found = y, []
    for j, code in enumerate(xs):
        before = update(j, before, code, below[j])
        found.append(before)
    return tuple(found)


def chain_gap(
    Ds: Sequence[Dictionary],
    y: Array,
    xs: Codes,
    lams: Sequence[Array],
    multipliers: Callable[[int, Array], Array],
) -> Array:
    r"""An upper bound of F(x_J) - F* for the penalised chain, from any multipliers.

    The primal and the dual problem are

    .. math::
        \min_{x_J} \; & \|y - D_1 x_1\|^2 / 2 + \sum_j lam_j \|x_j\|_1, \quad x_{j-1} = D_j x_j, \\
        \max_{z_0, \dots, z_{J-1}} \; & z_0' y - \|z_0\|^2 / 2 :
        |D_j' z_{j-1} - z_j| \le lam_j, \quad z_J = 0.

    With z_0 = y - D_1 x_1 and |U_j| <= lam_j, the choice z_j = D_j' z_{j-1} - U_j meets all
    constraints but the last, U_J = D_J' z_{J-1}. A factor s <= 1 makes it meet that too, and

    .. math:: gap = (1 - s)^2 \|z_0\|^2 / 2 + \sum_j \sum_i (lam_j |x_j| - s U_j x_j)_i,

    a sum of non-negative terms, accurate in float32.

    Args:
        Ds, y, xs, lams: of a `Chain`; xs obey x_{j-1} = D_j x_j.
        multipliers: (index of the layer, from 0, D_j' z_{j-1}) -> U_j, for j < J.

    Returns:
        The gap, ().
    """
    r = z = y - Ds[0] @ xs[0]
    Us: list[Array] = []
    for j, D in enumerate(Ds):
        c = z @ D
        Us.append(multipliers(j, c) if j + 1 < len(Ds) else c)
        z = c - Us[-1]
    over = jnp.abs(Us[-1]) > lams[-1]
    s = jnp.min(jnp.where(over, lams[-1] / jnp.where(over, jnp.abs(Us[-1]), 1), 1))
    terms = (jnp.maximum(lam * jnp.abs(x) - s * x * U, 0) for lam, U, x in zip(lams, Us, xs))
    return (1 - s) ** 2 * jnp.sum(r**2) / 2 + sum(map(jnp.sum, terms))


def result(
    chain: Chain,
    xs: Codes,
    gap: Array,
    steps: Array,
    met: Array,
    *,
    zeros: Sequence[Array] | None = None,
) -> DeepPursuit:
    """The result in the units of the caller, from codes in those of the chain.

    `zeros` marks entries that are zero up to rounding.
    """
    residual = ldexp(norm(chain.y - chain.Ds[0] @ xs[0]), chain.b)
    if zeros is not None:
        xs = tuple(jnp.where(zero, 0, x) for zero, x in zip(zeros, xs))
    found = tuple(ldexp(x, k) for x, k in zip(xs, chain.up))
    for code, x, k in zip(found, xs, chain.up):
        met = met & in_range(code, x, k)
    return DeepPursuit(found, gap, residual, steps, met)
