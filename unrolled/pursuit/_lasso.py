"""The LASSO and the elastic net for one signal, to a duality gap, with implicit derivatives."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import exponent, largest, ldexp, norm, power_of_two, widened
from unrolled.activations import relu, shrink
from unrolled.dictionaries import Dictionary, operands, spectral_norm
from unrolled.pursuit._gap import half_energy
from unrolled.pursuit._grids import flat_code, flat_signal, on_grid
from unrolled.pursuit._ista import Momentum, extrapolated
from unrolled.pursuit._line import least_between
from unrolled.pursuit._options import in_dtype, per_atom, static_steps, static_tol
from unrolled.pursuit._problem import Pursuit, in_range

# Steps of FISTA between two evaluations of the gap.
_BLOCK = 10
# Blocks between two finishes by conjugate gradients, at most.
_OFTEN = 16


class Penalized(NamedTuple):
    """1/2 norm(y - D x)^2 + lam norm(x, 1) + l2/2 norm(x)^2, all numbers near 1."""

    D: Dictionary
    y: Array  # (m,)
    lam: Array  # () or (d,)
    l2: Array  # ()


def lasso(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike | None = None,
    *,
    ratio: ArrayLike | None = None,
    tol: float = 1e-6,
    nonnegative: bool = False,
    l2: ArrayLike = 0.0,
    start: ArrayLike | None = None,
    max_steps: int = 10_000,
) -> Pursuit:
    r"""The LASSO, or the elastic net, to a duality gap.

    .. math:: \min_x \tfrac12 \|y - D x\|^2 + \sum_i lam_i |x_i| + \tfrac{l2}{2} \|x\|^2.

    FISTA with restart finds the support, conjugate gradients solve on it. Both need products with D
    alone, so D may be a dictionary of any kind and size. Traceable. Differentiable in D, y, lam and
    l2, in forward and in reverse mode, with the support held fixed: the derivative is that of the
    solution where this is unique and its support does not change nearby.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        lam: penalty weight: one number, one per atom, or one per filter of a `Conv`;
            `lam_of_paper` converts a lambda that stands on the data term.
        ratio: in place of lam, lam / lam_max(D, y).
        tol: duality gap to stop at, relative to norm(y)^2 / 2.
        nonnegative: minimise over x >= 0.
        l2: weight of the squared norm, at least 0.
        start: the code to start from, as of a problem nearby; 0 by default.
        max_steps: the most steps of FISTA, rounded up to a multiple of 10.

    Returns:
        Pursuit; `steps` counts those of FISTA. lam >= lam_max gives x = 0 without a step. Atoms
        with lam = 0 have the certificate s = 0, which is loose unless D x = y or l2 > 0.
        `duality_gap` says what rounding leaves of the bound.

    Raises:
        TypeError: operands that are not real numbers, or a traced tol or max_steps.
        ValueError: shapes that do not fit, not one of lam and ratio, a lam, ratio or l2 that is
            negative or beyond the range of the dtype, D = 0 (where known), or tol <= 0.

    Reference: Beck, Teboulle (2009); Zou, Hastie (2005) for the elastic net; Bertrand et al. (2020)
    for the implicit derivative.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> found = ur.pursuit.lasso(D, D[:, 3] - 0.5 * D[:, 20], ratio=0.1)
        >>> bool(found.converged), jnp.flatnonzero(found.x).tolist()
        (True, [3, 20])
    """
    y, grid = flat_signal(D, y, "lasso")
    D, y, _ = operands(D, y, "lasso")
    tol, max_steps = static_tol(tol, "lasso"), static_steps(max_steps, "lasso")
    nonnegative = _checks.as_bool(nonnegative, "nonnegative", "lasso")
    weight = per_atom(D, y, *given_penalty(lam, ratio, "lasso"), "lasso")
    near = near_one(Penalized(D, y, weight, ridge(l2, y, "lasso")), "lasso")
    if ratio is not None:
        near = with_penalty(near, share_of_largest(near, weight, nonnegative))
    x = start_code(D, y, start, "lasso")
    return on_grid(_solved(near, x, tol, max_steps, nonnegative), grid)


def lam_max(D: Dictionary, y: ArrayLike, *, nonnegative: bool = False) -> Array:
    """The least lam whose LASSO has the code 0: max abs(D'y), or max(D'y, 0) for x >= 0.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`.
        nonnegative: as in `lasso`.

    Raises:
        TypeError: operands that are not real numbers.
        ValueError: shapes that do not fit, or a lam beyond the range of the dtype (where known).

    Example:
        >>> float(ur.pursuit.lam_max(jnp.eye(2), jnp.array([3.0, -4.0])))
        4.0
    """
    D, y, _ = operands(D, flat_signal(D, y, "lam_max")[0], "lam_max")
    nonnegative = _checks.as_bool(nonnegative, "nonnegative", "lam_max")
    b = exponent(y)
    near = largest_product(D, ldexp(y, -b), nonnegative)
    return in_dtype(widened(near), b, y.dtype, "lam_max")


def largest_product(D: Dictionary, y: Array, nonnegative: bool) -> Array:
    """max abs(D'y), or max(D'y, 0), for D and y whose products stay in the range."""
    with jax.default_matmul_precision("highest"):
        g = y @ D
    return largest(relu(g) if nonnegative else jnp.abs(g))


def lam_of_paper(weight: ArrayLike) -> Array:
    r"""Our lam for a lambda on the data term, as Li, Feng and Zhou write the problem P_1.

    .. math:: \min_x \|x\|_1 + \lambda \|y - D x\|^2 \iff lam = 1 / (2 \lambda).

    Args:
        weight: lambda, positive.

    Raises:
        ValueError: a known weight that is not positive.

    Reference: Li, Feng, Zhou (2024), section 2.

    Example:
        >>> float(ur.pursuit.lam_of_paper(2.0))
        0.25
    """
    weight = _checks.as_float(weight, "weight", "lam_of_paper")
    _checks.nonnegative(weight, "weight", "lam_of_paper")
    if _checks.is_concrete(weight) and not weight.all():
        raise ValueError(
            "lam_of_paper: weight is 0, which stands for an infinite lam; expected a positive one"
        )
    return 1 / (2 * weight)


def given_penalty(
    lam: ArrayLike | None, ratio: ArrayLike | None, where: str
) -> tuple[ArrayLike, str]:
    """The one of lam and ratio that is given, with its name; non-negative and finite."""
    if (lam is None) == (ratio is None):
        raise ValueError(f"{where}: expected one of lam and ratio, got lam={lam}, ratio={ratio}")
    value, name = (lam, "lam") if lam is not None else (ratio, "ratio")
    assert value is not None
    _checks.nonnegative(value, name, where)
    _checks.finite(value, name, where)
    return value, name


def start_code(D: Dictionary, y: Array, start: ArrayLike | None, where: str) -> Array:
    """The code to start from, checked: (d,)."""
    if start is None:
        return jnp.zeros(D.shape[1], y.dtype)
    x = _checks.as_float(flat_code(D, start), "start", where)
    if x.shape != (D.shape[1],):
        raise ValueError(f"{where}: start has shape {x.shape}; expected a code, ({D.shape[1]},)")
    _checks.finite(x, "start", where)
    return x.astype(y.dtype)


def ridge(l2: ArrayLike, y: Array, where: str) -> Array:
    """l2, checked: ()."""
    _checks.nonnegative(l2, "l2", where)
    _checks.finite(l2, "l2", where)
    _checks.in_range(l2, y.dtype, "l2", where)
    l2 = jnp.asarray(l2, y.dtype)
    if l2.shape:
        raise ValueError(f"{where}: l2 has shape {l2.shape}; expected one number")
    return l2


class Near(NamedTuple):
    """A problem in units in which squares and products of its numbers stay in the range."""

    problem: Penalized
    size: Array  # () norm(D, 2)
    exponents: tuple[Array, Array]  # D is divided by 2^a and y by 2^b, so x by 2^(b - a)


def near_one(problem: Penalized, where: str) -> Near:
    """The problem in such units; lam may have an axis of several penalties before its own."""
    D, y, lam, l2 = problem
    size = spectral_norm(lax.stop_gradient(D))
    if _checks.is_concrete(size) and not size > 0:
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    a, b = exponent(size), exponent(y)
    scaled = Penalized(
        D * power_of_two(-a, y.dtype),
        ldexp(y, -b),
        _bounded(ldexp(lam, -(a + b)), y.dtype),
        _bounded(ldexp(l2, -2 * a), y.dtype),
    )
    return Near(scaled, ldexp(size, -a), (a, b))


def share_of_largest(near: Near, ratio: Array, nonnegative: bool) -> Array:
    """ratio lam_max in the units of `near`, in which its products are in the range."""
    D, y, *_ = near.problem
    return ratio * largest_product(D, y, nonnegative).astype(ratio.dtype)


def with_penalty(near: Near, lam: Array) -> Near:
    """The problem with lam, in its units."""
    return near._replace(problem=near.problem._replace(lam=_bounded(lam, near.problem.y.dtype)))


def _bounded(lam: Array, dtype: DTypeLike) -> Array:
    """lam in the dtype; above its range it acts like the largest in it."""
    return jnp.minimum(lam, float(jnp.finfo(dtype).max)).astype(dtype)


# Compiled once per shape and options: an eager loop would be at every call.
@partial(jax.jit, static_argnums=(2, 3, 4))
def _solved(near: Near, start: Array, tol: float, max_steps: int, nonnegative: bool) -> Pursuit:
    a, b = near.exponents
    start = lax.stop_gradient(ldexp(start, a - b))
    with jax.default_matmul_precision("highest"):
        return result(near, *code(nonnegative, tol, max_steps, near.problem, start, near.size), tol)


def result(near: Near, x: Array, gap: Array, steps: Array, tol: float) -> Pursuit:
    """The code x of a problem near 1, in the units of its signal."""
    (D, y, *_), _, (a, b) = near
    found = ldexp(x, b - a)
    residual = ldexp(norm(y - D @ x), b)
    return Pursuit(found, gap, residual, steps, (gap <= tol) & in_range(found, x, b - a))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def code(
    nonnegative: bool, tol: float, max_steps: int, problem: Penalized, start: Array, size: Array
) -> tuple[Array, Array, Array]:
    """x, its relative gap, and the steps taken, from the code `start`; size is norm(D, 2)."""
    D, y, lam, l2 = problem
    unit, gamma = half_energy(y), 1 / (size**2 + l2)

    def relative_gap(x):
        return penalized_gap(problem, x, nonnegative) / unit

    def step(state, _):
        v = state.z + gamma * ((y - D @ state.z) @ D)
        x = relu(v - gamma * lam) if nonnegative else shrink(v, gamma * lam)
        return extrapolated(state, x / (1 + gamma * l2), True), None

    def body(carry):
        state, steps, _ = carry
        state, steps = lax.scan(step, state, length=_BLOCK)[0], steps + _BLOCK
        gap = relative_gap(state.x)
        # After 1, 2, 4, ... blocks, then every 16: as many products as for the steps, or fewer.
        blocks = steps // _BLOCK
        due = (blocks & (blocks - 1) == 0) | (blocks % _OFTEN == 0)
        limit = jnp.minimum(steps, _OFTEN * _BLOCK)
        due = due & (gap > tol)
        x = on_support(problem, state.x, jnp.where(due, limit, 0))
        x = relu(x) if nonnegative else x
        state = jax.tree.map(partial(jnp.where, due), _rest(x), state)
        return state, steps, jnp.where(due, relative_gap(x), gap)

    zero = jnp.zeros_like(start)
    start = relu(start) if nonnegative else start
    start = jnp.where(relative_gap(zero) <= tol, zero, start)
    state, steps, gap = lax.while_loop(
        lambda carry: (carry[2] > tol) & (carry[1] < max_steps),
        body,
        (_rest(start), jnp.zeros((), int), relative_gap(start)),
    )
    return state.x, gap, steps


@code.defjvp
def _derivative(nonnegative, tol, max_steps, primals, tangents):
    problem, moved = primals[0], tangents[0]
    x, gap, steps = code(nonnegative, tol, max_steps, *primals)
    with jax.default_matmul_precision("highest"):
        _, change = jax.jvp(lambda problem: _slope(problem, x), (problem,), (moved,))
        limit = 10 * min(problem.D.shape)
        dx = lax.custom_linear_solve(
            partial(_curvature, problem, jnp.sign(x)),
            change,
            lambda A, b: conjugate_residuals(A, b, limit),
            symmetric=True,
        )
    return (x, gap, steps), (dx, jnp.zeros_like(gap), jnp.zeros((), jax.dtypes.float0))


def _rest(x: Array) -> Momentum:
    return Momentum(x, x, jnp.ones((), x.dtype))


def on_support(problem: Penalized, x: Array, limit: Array) -> Array:
    """The least objective from x towards the minimiser on its support, `limit` steps at most."""
    signs, slope = jnp.sign(x), _slope(problem, x)
    change = conjugate_gradients(partial(_curvature, problem, signs), slope, limit)
    lam = jnp.broadcast_to(problem.lam, x.shape)
    return least_between(jnp, *(v[None] for v in (x, change, slope, lam, signs)))[0]


def _slope(problem: Penalized, x: Array) -> Array:
    """The negative gradient of the objective in the entries of the support of x, (d,)."""
    D, y, lam, l2 = problem
    signs = jnp.sign(x)
    return jnp.where(signs != 0, (y - D @ x) @ D - l2 * x - lam * signs, 0)


def _curvature(problem: Penalized, signs: Array, v: Array) -> Array:
    """(D_S' D_S + l2) v on the support S of the signs, v elsewhere."""
    held = jnp.where(signs != 0, v, 0)
    return jnp.where(signs != 0, (problem.D @ held) @ problem.D + problem.l2 * held, v)


def conjugate_gradients(A: Callable[[Array], Array], b: Array, limit: ArrayLike) -> Array:
    """v with A v = b, for a symmetric positive semidefinite A, in at most `limit` steps from 0.

    A is near 1. Where it is singular, rounding leaves a part of b outside of its range: the steps
    end in a direction whose curvature is rounding.
    """
    eps = float(jnp.finfo(b.dtype).eps)
    least = eps**2 * jnp.vdot(b, b)

    def body(carry):
        v, r, p, size, k, _ = carry
        q = A(p)
        curvature = jnp.vdot(p, q)
        curved = curvature > eps * jnp.vdot(p, p)
        step = jnp.where(curved, size / jnp.where(curved, curvature, 1), 0)
        r = r - step * q
        smaller = jnp.vdot(r, r)
        return v + step * p, r, r + smaller / size * p, smaller, k + 1, curved

    def goes_on(carry):
        *_, size, k, curved = carry
        return (size > least) & (k < limit) & curved

    none, curved = jnp.zeros((), int), jnp.ones((), bool)
    start = jnp.zeros_like(b), b, b, jnp.vdot(b, b), none, curved
    return lax.while_loop(goes_on, body, start)[0]


def conjugate_residuals(A: Callable[[Array], Array], b: Array, limit: ArrayLike) -> Array:
    """v with the least norm(A v - b), where A may be singular: atoms of a support may depend.

    Conjugate gradients need a b in the range of A. Here its part outside stays in the residual r,
    until A r is the rounding of r. A derivative b has any scale, so it is first divided by a power
    of two near it.
    """
    eps, scale = float(jnp.finfo(b.dtype).eps), exponent(b)
    b = ldexp(b, -scale)
    least = eps**2 * jnp.vdot(b, b)

    def goes_on(carry):
        _, r, Ar, _, _, k = carry
        singular = jnp.vdot(Ar, Ar) <= (8 * eps) ** 2 * jnp.vdot(r, r)
        return (jnp.vdot(r, r) > least) & ~singular & (k < limit)

    def body(carry):
        v, r, Ar, p, Ap, k = carry
        size, curvature = jnp.vdot(r, Ar), jnp.vdot(Ap, Ap)
        step = size / curvature
        v, r = v + step * p, r - step * Ap
        Ar = A(r)
        ratio = jnp.vdot(r, Ar) / size
        return v, r, Ar, r + ratio * p, Ar + ratio * Ap, k + 1

    Ab = A(b)
    start = jnp.zeros_like(b), b, Ab, b, Ab, jnp.zeros((), int)
    return ldexp(lax.while_loop(goes_on, body, start)[0], scale)


def penalized_gap(problem: Penalized, x: Array, nonnegative: bool) -> Array:
    r"""An upper bound of F(x) - F*, by sums of non-negative terms.

    The elastic net is the LASSO of D over sqrt(l2) I, whose dual point s r has s = min(1, min_i
    lam_i / |g_i|), g = D'r - l2 x; see `duality_gap`. With l2 > 0, r itself has the dual value of
    the Fenchel conjugate, and the gap sum_i l2/2 (x_i - e_i / l2)^2 + lam_i |x_i| - x_i (h_i - e_i)
    with h = D'r and e its excess over lam. The smaller gap counts.
    """
    D, y, lam, l2 = problem
    r = y - D @ x
    h = r @ D
    g = h - l2 * x
    size = g if nonnegative else jnp.abs(g)
    s = jnp.min(jnp.where(size > lam, lam / jnp.where(size > lam, size, 1), 1))
    energy = jnp.sum(r**2) + l2 * jnp.sum(x**2)
    scaled = (1 - s) ** 2 * energy / 2 + jnp.sum(jnp.maximum(lam * jnp.abs(x) - s * x * g, 0))
    within = jnp.minimum(h, lam) if nonnegative else jnp.clip(h, -lam, lam)
    ridge = jnp.where(l2 > 0, l2, 1)
    conjugate = ridge / 2 * (x - (h - within) / ridge) ** 2
    direct = jnp.sum(conjugate + jnp.maximum(lam * jnp.abs(x) - x * within, 0))
    return jnp.where((l2 > 0) & (direct < scaled), direct, scaled)
