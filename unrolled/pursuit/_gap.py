"""The objective of the LASSO, a bound on its excess over the minimum, and its line search."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, checked
from unrolled._base.numbers import exponent, ldexp, norm, power_of_two
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    as_flat,
    column_norms,
    inner_terms,
    scale_columns,
)
from unrolled.penalties import L1, Penalty
from unrolled.pursuit import _problem
from unrolled.pursuit._problem import Codes, Problem

__all__ = ["duality_gap", "lasso_objective"]


@checked
def lasso_objective(D: Dictionary, y: ArrayLike | Any, x: ArrayLike | Any, lam: ArrayLike) -> Array:
    """The objective 1/2 norm(y - D x)^2 + sum_i lam_i |x_i|, an array of shape ().

    Args:
        D: (m, d).
        y, x: (m,) and (d,), or the forms that `lasso` takes and returns: grids for a `Conv`,
            complex vectors for a `Complex` D, (m, g) and (d, g) for a `Joint` D. Both y and x may
            also be flat.
        lam: penalty weight: one number, one per atom, or one per filter of a `Conv`.

    Raises:
        ValueError: the shape of y, x or lam does not fit D.

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> float(ur.pursuit.lasso_objective(D, y, jnp.array([2.0, 0.0]), 1.0))
        2.625
    """
    y, x = _as_operands(D, y, x, lam, "lasso_objective")
    return _objective(D, y, x, lam)


@jax.jit
def _objective(D: Operator, y: Array, x: Array, lam: ArrayLike) -> Array:
    r = y - D @ x
    misfit = jnp.sum(r * (r / 2))  # r^2 may leave the range, r^2/2 does not
    return misfit + L1.of(D).value(x, _problem.per_atom(D, lam))


@checked
def duality_gap(D: Dictionary, y: ArrayLike | Any, x: ArrayLike | Any, lam: ArrayLike) -> Array:
    r"""An upper bound on F(x) - F* for the LASSO, computed without F*.

    The bound comes from the dual point s r, with r = y - D x and s = min(1, min_i lam_i / |D'r|_i).
    It is a sum of non-negative terms, without cancellation:

    .. math:: gap = (1 - s)^2 \|r\|^2 / 2 + \sum_i (lam_i |x_i| - s x_i (D'r)_i).

    An atom with lam_i = 0 requires d_i . r = 0. So r is first replaced by r', its projection on the
    vectors orthogonal to these atoms. The replacement adds norm(r - r')^2 / 2, and norm(y) times
    the rounding error of r', to the gap.

    A vector r that differs from y - D x by e also gives a bound, up to norm(e) (norm(e) + sqrt(2
    gap)), so the rounding of r hardly matters. The rounding of D'r changes the gap: for unit atoms,
    the change is about eps norm(r) (2 norm(x, 1) + sqrt(2 gap) norm(r) / lam). If you compute the
    gap of a float32 code again in float64, r changes. If atoms are nearly dependent, the new gap
    may then be much larger.

    If the codes of D come in parts, |v|_i is the norm of part i, such as the modulus of a complex
    number.

    Args:
        D: (m, d).
        y, x, lam: as for `lasso_objective`.

    Returns:
        The gap, an array of shape (), in the units of norm(y)^2.

    Raises:
        ValueError: the shape of y, x or lam does not fit D.

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> float(ur.pursuit.duality_gap(D, y, jnp.array([2.0, 0.0]), 1.0))
        0.0
        >>> D = ur.dictionaries.Complex.of(jnp.eye(2))
        >>> found = ur.pursuit.lasso(D, np.complex64([3j, 0.5]), 1.0)
        >>> float(ur.pursuit.duality_gap(D, np.complex64([3j, 0.5]), found.x, 1.0)) < 1e-5
        True
    """
    y, x = _as_operands(D, y, x, lam, "duality_gap")
    return _duality_gap(D, y, x, _problem.one_by_one(D, lam))


def _as_operands(D: Dictionary, y: Any, x: Any, lam: ArrayLike, where: str) -> tuple[Any, Any]:
    """The flat y, (m,), and x, (d,); raise ValueError unless y, x and lam fit D."""
    m, d = D.shape
    for name, value in {"y": y, "x": x}.items():
        try:
            np.shape(value)
        except ValueError:  # rows of different lengths
            checks.as_numbers(value, name, where)
    flat = {"y": _problem.flat_signal(D, y, where)[0], "x": _problem.flat_code(D, as_flat(D, x)[0])}
    if [*map(np.shape, flat.values())] != [(m,), (d,)]:
        raise ValueError(
            f"{where}: D has shape {(m, d)} but y has shape {np.shape(y)} and x {np.shape(x)}; "
            f"expected ({m},) and ({d},)"
        )
    _problem.check_weights(D, lam, "lam", where)
    y, x = (
        jnp.asarray(checks.within_float32(checks.as_numbers(v, name, where), name, where))
        for name, v in flat.items()
    )
    return y, x


@jax.jit
def _duality_gap(D: Operator, y: Array, x: Array, lam: ArrayLike) -> Array:
    # After division by a power of two near y or D x, all terms are in the range if their sum is.
    r = y - D @ x
    k = exponent(jnp.stack([jnp.asarray(y, r.dtype), r]))
    y, x, weight = (ldexp(jnp.asarray(v, r.dtype), -k) for v in (y, x, _problem.per_atom(D, lam)))
    return ldexp(_gap(D, y, weight, x, penalty=L1.of(D)), 2 * k)


def dual_factor(lam: Array, size: Array) -> Array:
    """min(1, lam / size), entry by entry, for size >= 0: the factors of a feasible dual point."""
    over = size > lam
    return jnp.where(over, lam / jnp.where(over, size, 1), 1)


def dual_gap(
    squares: Array,
    lams: Sequence[Array],
    xs: Sequence[Array],
    gs: Sequence[Array],
    penalty: Penalty = L1,
) -> Array:
    r"""The duality gap of the LASSO and of penalised chains, for numbers near 1.

    .. math:: (1 - s)^2 squares / 2 + \sum_j \sum_i (lam_j |x_j| - s x_j g_j)_i,
        \qquad s = \min(1, \min_i lam_J / |g_J|_i).

    The gap is a sum of non-negative terms. For all j but the last, |g_j| is at most lam_j.

    Args:
        squares: (), norm(r)^2 of the residual r.
        lams, xs, gs: one per layer, (d_j,) or a shape that broadcasts to (d_j,).
        penalty: the penalty of a single layer, or L1. If the penalty requires x >= 0, a code with a
            negative entry has the gap inf.
    """
    s = jnp.min(dual_factor(penalty.of_parts(lams[-1]), penalty.dual_sizes(gs[-1])))
    terms = [penalty.excess(x, g, lam, s) for lam, x, g in zip(lams, xs, gs)]
    # On a CPU, XLA's maximum loses NaN if it is fused with a sum.
    excess = sum(jnp.sum(jnp.where(t < 0, 0, t)) for t in terms)
    gap = (1 - s) ** 2 * squares / 2 + excess
    return jnp.where((xs[-1] < 0).any(), jnp.inf, gap) if penalty.nonnegative else gap


def elastic_gap(
    squares: Array, lam: Array, l2: Array, x: Array, h: Array, penalty: Penalty
) -> Array:
    r"""`dual_gap` of 1/2 norm(y - D x)^2 + lam norm(x, 1) + l2/2 norm(x)^2, with h = D'(y - D x).

    The elastic net is the LASSO in D stacked on sqrt(l2) I, with g = h - l2 x. If l2 > 0, the
    Fenchel conjugate gives a dual value at r itself. The gap for this value is sum_i l2/2 (x_i -
    e_i / l2)^2 + lam_i |x_i| - x_i (h_i - e_i), where e is the excess of h over lam. The function
    returns the smaller of the two gaps.
    """
    energy = squares + l2 * jnp.sum(x**2)
    scaled = dual_gap(energy, (lam,), (x,), (h - l2 * x,), penalty)
    within = penalty.within(h, lam)
    ridge = jnp.where(l2 > 0, l2, 1)
    conjugate = ridge / 2 * (x - (h - within) / ridge) ** 2
    direct = jnp.sum(penalty.sums(conjugate) + jnp.maximum(penalty.excess(x, within, lam), 0))
    return jnp.where((l2 > 0) & (direct < scaled), direct, scaled)


def relative_gap(
    D: Operator,
    y: Array,
    lam: Array,
    x: Array,
    l2: Array | None = None,
    penalty: Penalty = L1,
) -> Array:
    """The gap of the LASSO or the elastic net over norm(y)^2 / 2, for numbers near 1."""
    return _gap(D, y, lam, x, l2, penalty) / half_energy(y)


def proved_gap(
    D: Operator,
    y: Array,
    lam: Array,
    x: Array,
    l2: Array | None = None,
    penalty: Penalty = L1,
) -> Array:
    r"""`relative_gap` of the LASSO plus a bound on all rounding; `l2` is not used.

    Let r be the computed y - D x, which is off by e, and nu = s r a dual point. Without rounding,

    .. math:: F(x) - F^* \le \|(1 - s) r - e\|^2 / 2 + \sum_i (lam_i |x_i| - s x_i d_i'r),

    and nu is feasible if s |d_i'r| <= lam_i. With the unit roundoff u, gamma_k = k u / (1 - k u)
    and n nonzeros in x, the roundings of r and of a computed product g_i = d_i'r are at most

    .. math:: \|e\| \le \gamma_{n + 3} (\|y\| + \sum_i |x_i| \|d_i\|), \qquad
        |g_i - d_i'r| \le \epsilon_i = \gamma_{m + 3} \|d_i\| \|r\|,

    in any order of the sums. So s = min_i lam_i / (|g_i| + eps_i) is feasible, and the products add
    at most s sum_i |x_i| eps_i. A last factor covers the rounding of the bound itself, whose terms
    are not negative. The least gap that can be proved is about 4 gamma_m norm(r) norm(x, 1) /
    norm(y)^2 for unit atoms.

    Assumed: D x and D'r are sums of products, as for a matrix; operations round to nearest.

    Reference: Higham (2002), section 3.1.
    """
    unit, (m, d), inner = float(jnp.finfo(y.dtype).eps) / 2, D.shape, inner_terms(D)
    nonzeros = jnp.count_nonzero(penalty.support(x)).astype(y.dtype)
    r, size = y - D @ x, jnp.abs(x)
    g, norms = r @ D, column_norms(D) * (1 + _gamma(m + inner + 3, unit))
    length, energy = norm(r), half_energy(y)
    e = _gamma(nonzeros + inner + 3, unit) * (norm(y) + jnp.sum(size * norms))
    off = _gamma(m + inner + 3, unit) * length * norms + m * float(jnp.finfo(y.dtype).tiny)
    s = jnp.min(dual_factor(penalty.of_parts(lam), penalty.dual_sizes(g) + penalty.sizes(off)))
    s = s * (1 - 8 * unit)
    excess = jnp.maximum(penalty.excess(x, g, lam, s), 0)
    rounding = s * jnp.sum(size * off) + 4 * (penalty.block + 1) * unit * penalty.value(x, lam)
    gap = ((1 - s) * length + e) ** 2 / 2 + jnp.sum(excess) + rounding
    gap = gap / energy * (1 + _gamma(2 * (m + d + inner) + 32, unit))
    return jnp.where((x < 0).any(), jnp.inf, gap) if penalty.nonnegative else gap


def _gamma(terms: Any, unit: float) -> Any:
    """gamma_k = k u / (1 - k u) of a sum of k products, for k u < 1 / 2."""
    return terms * unit / (1 - terms * unit)


def gap_at(
    D: Operator, y: Array, lam: Array, x: Array, nu: Array, l2: Array, penalty: Penalty = L1
) -> Array:
    r"""The relative gap of a code x with the dual point s nu, s = min(1, min_i lam_i / |g|_i).

    .. math:: gap = \|y - D x - s \nu\|^2 / 2 + l2 (1 - s)^2 \|x\|^2 / 2
        + \sum_i (lam_i |x_i| - s x_i g_i), \qquad g = D'\nu - l2 \, x.

    If some lam_i is 0 and g_i is not, s is 0: the bound is valid, but loose.
    """
    g = nu @ D - l2 * x
    s = jnp.min(dual_factor(penalty.of_parts(lam), penalty.dual_sizes(g)))
    terms = penalty.excess(x, g, lam, s)
    gap = jnp.sum((y - D @ x - s * nu) ** 2) / 2 + l2 * (1 - s) ** 2 * jnp.sum(x**2) / 2
    return (gap + jnp.sum(jnp.where(terms < 0, 0, terms))) / half_energy(y)


def _gap(
    D: Operator,
    y: Array,
    lam: Array,
    x: Array,
    l2: Array | None = None,
    penalty: Penalty = L1,
) -> Array:
    r = y - D @ x
    h, nu, beside = r @ D, r, 0.0
    if lam.ndim:  # a single weight for all atoms is hardly ever 0
        free = (lam == 0) & (l2 is None or l2 == 0)
        # Over x >= 0 an unused atom bounds d_i . r only from above.
        in_use = free & (x > 0) if penalty.nonnegative else free
        branches = partial(freed, D, in_use), lambda r, h: (r, h, jnp.zeros((), r.dtype))
        nu, h, off = programs.cond(free.any(), *branches, r, h)
        beside = jnp.sum((r - nu) ** 2) / 2 + off * jnp.sqrt(jnp.sum(y**2))
    squares = jnp.sum(nu**2)
    if l2 is None:
        return beside + dual_gap(squares, (lam,), (x,), (h,), penalty)
    return beside + elastic_gap(squares, lam, l2, x, h, penalty)


def chain_gap(problem: Problem, xs: Codes, multipliers: Callable[[int, Array], Array]) -> Array:
    r"""An upper bound on F(x_J) - F* for the penalised chain, from any multipliers.

    The primal and the dual problem are

    .. math::
        \min_{x_J} \; & \|y - D_1 x_1\|^2 / 2 + \sum_j lam_j \|x_j\|_1, \quad x_{j-1} = D_j x_j, \\
        \max_{z_0, \dots, z_{J-1}} \; & z_0' y - \|z_0\|^2 / 2 :
        |D_j' z_{j-1} - z_j| \le lam_j, \quad z_J = 0.

    With z_0 = y - D_1 x_1 and |U_j| <= lam_j, the choice z_j = D_j' z_{j-1} - U_j meets all
    constraints except the last one. Let U_J = D_J' z_{J-1}. After multiplication by a factor
    s <= 1, the choice also meets the last constraint, and

    .. math:: gap = (1 - s)^2 \|z_0\|^2 / 2 + \sum_j \sum_i (lam_j |x_j| - s U_j x_j)_i.

    The gap is a sum of non-negative terms, and therefore accurate in float32.

    Args:
        problem, xs: the chain, and codes with x_{j-1} = D_j x_j.
        multipliers: (index of the layer, from 0, D_j' z_{j-1}) -> U_j, for j < J.

    Returns:
        The gap divided by norm(y)^2 / 2, an array of shape ().
    """
    Ds, y, lams, *_ = problem
    r = z = y - Ds[0] @ xs[0]
    Us: list[Array] = []
    for j, D in enumerate(Ds):
        c = z @ D
        Us.append(multipliers(j, c) if j + 1 < len(Ds) else c)
        z = c - Us[-1]
    return dual_gap(jnp.sum(r**2), lams, xs, Us) / half_energy(y)


def half_energy(y: Array) -> Array:
    """norm(y)^2 / 2, or 1 for y = 0: the unit of the gap."""
    energy = jnp.sum(y**2) / 2
    return jnp.where(energy > 0, energy, 1)


def least_between(x: Array, d: Array, slope: Array, lam: Array, signs: Array) -> Array:
    """The minimiser of the objective among x + t d, 0 <= t <= 1.

    If x + d is the minimiser with the signs of x, the objective is -f t + f t^2 / 2 up to a
    constant, with f = slope . d. When entry i changes its sign, the derivative rises by 2 lam_i
    abs(d_i). If the search stops at a sign change, the entry that changes its sign is exactly 0.

    Args:
        x: (k,), a code.
        d: (k,), the change to the minimiser.
        slope: (k,), the negative gradient at x.
        lam: (k,).
        signs: (k,), -1, 0 or 1.

    Example:
        >>> from unrolled.pursuit._gap import least_between
        >>> x, d = jnp.array([1.0, 2.0]), jnp.array([-4.0, 4.0])  # f = 8, the first rise is 2
        >>> least_between(x, d, d / 4, jnp.full(2, 0.25), jnp.ones(2)).tolist()
        [-2.0, 5.0]
    """
    crosses = (x + d) * signs < 0
    size = jnp.abs(d)
    t = jnp.where(crosses, jnp.abs(x) / jnp.where(crosses, size, 1), jnp.inf)
    order = jnp.argsort(t)
    times, rises = t[order], jnp.where(crosses, 2 * lam * size, 0)[order]
    after = jnp.cumsum(rises)
    f = jnp.maximum(jnp.sum(d * slope), float(jnp.finfo(x.dtype).tiny))
    passed = jnp.sum(after < f * (1 - times))
    # The first crossing that the search does not pass, and the rises before it.
    before, limit = jnp.append(0, after)[passed], jnp.append(times, jnp.inf)[passed]
    step = jnp.minimum(1 - before / f, limit)
    return jnp.where(t == step, 0, x + step * d)


def freed(D: Operator, free: Array, r: Array, h: Array) -> tuple[Array, Array, Array]:
    """r minus its part in the span of the free atoms, D' times this r, and a bound on its rounding.

    If |D_f'r| = e for the free atoms D_f, the rounding error of r is at most e / sigma, where sigma
    is the least singular value of D_f. The function estimates sigma from the least squares code, in
    D_f, of a fixed probe vector.
    """
    m, d = D.shape
    # The span does not depend on the norms of the atoms, and products with atoms near 1 are in the
    # range.
    k = exponent(column_norms(D)[None], 0)[0]
    given, D = D, scale_columns(D, power_of_two(-k, r.dtype))
    fixed_D, fixed_r = lax.stop_gradient((D, r))
    level = m * float(jnp.finfo(r.dtype).eps) * column_norms(fixed_D) * norm(fixed_r)
    once = partial(_least_squares, fixed_D, free)
    c = programs.fori_loop(
        0, 2, lambda _, c: c + once(fixed_r - fixed_D @ c, level, 2 * min(m, d)), jnp.zeros_like(h)
    )
    nu = r - D @ c
    probe = jnp.cos(jnp.arange(1, m + 1, dtype=r.dtype) ** 2)
    inverse = norm(once(probe, jnp.zeros_like(level), 2 * jnp.count_nonzero(free) + 8))
    seen = norm(jnp.where(free, nu @ D, 0))
    # If products are below the range of the dtype, no step is taken, and sigma is unknown.
    off = jnp.where(inverse > 0, seen * inverse * math.sqrt(m) / norm(probe), jnp.inf)
    return nu, jnp.where(free, 0, nu @ given), jnp.where(seen > 0, off, 0)


def _least_squares(D: Operator, free: Array, r: Array, level: Array, limit: ArrayLike) -> Array:
    """The code of r in the free atoms, by conjugate gradients until |D'r| <= level (CGLS)."""

    def not_done(s):
        *_, g, size, k = s
        return (jnp.abs(g) > level).any() & (size > 0) & (k < limit)

    def body(s):
        c, nu, p, g, size, k = s
        q = D @ p
        curvature = jnp.sum(q**2)
        step = jnp.where(curvature > 0, size / jnp.where(curvature > 0, curvature, 1), 0)
        c, nu = c + step * p, nu - step * q
        g = jnp.where(free, nu @ D, 0)
        smaller = jnp.sum(g**2)
        return c, nu, g + smaller / size * p, g, smaller, k + 1

    g = jnp.where(free, r @ D, 0)
    start = jnp.zeros_like(g), r, g, g, jnp.sum(g**2), jnp.zeros((), int)
    return programs.while_loop(not_done, body, start)[0]
