r"""The LASSO of many signals in one dictionary, every code certified.

A few steps of ADMM in float32 nearly find the support and the signs of a code. Given these the code
solves a small linear system, in float64; a wrong guess is corrected by the signs and the violated
constraints that its solution shows, and only signals without a certificate go on to further steps.
Everything is numpy on the host, where threads share the signals; every product is a matrix product.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._interior_point import lapack
from unrolled._numbers import exponent, ldexp, wide_dtype
from unrolled._threads import Threads, threads
from unrolled.dictionaries import Dictionary, as_dictionary, dense, spread
from unrolled.pursuit._grids import flat_code, flat_signal, on_grid
from unrolled.pursuit._ista import Pursuit, in_range, static_tol
from unrolled.pursuit._lasso import given_penalty, ridge
from unrolled.pursuit._line import least_between

# ADMM: over-relaxation; penalties rho over the mean squared norm of an atom, and steps with each.
# A well-conditioned support is found soonest with rho near 1, a coherent one with less.
_RELAXATION = 1.8
_RHO = (1.0, 0.25, 0.15)
_STEPS = (14, 30, 40)
# The second stage keeps the penalty of the first for fewer signals than this share: to factorise
# for another one would take longer than their steps.
_FEW = 0.1
# Later stages alternate between the last two penalties, each half as long again as the one before.
_GROWTH = 1.5
# Stages in float32, whose rounding no longer matters once a support is found; then float64.
_SINGLE = 5
# Guesses of the support at the end of a stage, each from the solution of the last; and of stages in
# float64, where they are the steps of an active set method.
_GUESSES, _PIVOTS = 2, 50
# Signals whose arrays stay in the cache of a core; whose linear systems are padded to one size;
# whose arrays are in memory at a time.
_CHUNK, _SYSTEMS, _BLOCK = 256, 32, 4096
# Added to the diagonal of a system, in units of its largest entry: dependent atoms share a change.
_RIDGE = 1e-12


def lasso_batch(
    D: Dictionary,
    Y: ArrayLike,
    lam: ArrayLike | None = None,
    *,
    ratio: ArrayLike | None = None,
    tol: float = 1e-6,
    nonnegative: bool = False,
    l2: ArrayLike = 0.0,
    start: ArrayLike | None = None,
    max_steps: int = 10_000,
) -> Pursuit:
    r"""`lasso` for many signals with one dictionary, by an algorithm of its own.

    .. math:: \min_x \tfrac12 \|y - D x\|^2 + \sum_i lam_i |x_i| + \tfrac{l2}{2} \|x\|^2
        \quad \text{for every row } y \text{ of } Y.

    ADMM in float32 guesses supports, linear systems in float64 solve on them, and a duality gap in
    float64 certifies every code. It runs on the host. Traceable; it has no derivative, for which
    see `lasso` under `vmap`.

    Args:
        D: (m, d). Structured dictionaries are made dense; for one that is too large for a matrix
            use `lasso` under `vmap`.
        Y: (batch, m), or a batch of signal grids of a `Conv`; then codes have the shape
            `D.code_grid`. The batch may be empty.
        lam: penalty weight: one number, one per atom (d,), one per filter of a `Conv`, one per
            signal (batch, 1), or all of them (batch, d).
        ratio: in place of lam, lam / lam_max(D, y) of every signal, in the shapes of lam.
        tol, nonnegative, l2: as in `lasso`.
        start: (batch, d), codes to start from.
        max_steps: the most steps of ADMM for a signal.

    Returns:
        Pursuit with a leading axis of signals in every field; `steps` counts those of ADMM, and
        `gap` is that of the code before it is rounded to the dtype of Y.

    Raises:
        TypeError, ValueError: as in `lasso`.

    Reference: Boyd et al. (2011), section 6.4, for ADMM; Lee et al. (2007) for solving on a support
    and its signs.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> found = ur.pursuit.lasso_batch(D, (D[:, 3:5] - 0.5 * D[:, 20:22]).T, ratio=0.1)
        >>> found.converged.tolist(), [jnp.flatnonzero(x).tolist() for x in found.x]
        ([True, True], [[3, 20], [4, 21]])
    """
    where = "lasso_batch"
    Y, grid = flat_signal(D, Y, where, batch=1)
    D, Y = as_dictionary(D, where), _checks.as_float(Y, "Y", where)
    m, d = D.shape
    if Y.ndim != 2 or Y.shape[1] != m:
        raise ValueError(f"{where}: Y has shape {Y.shape}; expected (batch, {m}), signals in rows")
    dtype = _checks.common_dtype(D, Y)
    matrix, Y = dense(_checks.cast(D, dtype)), Y.astype(dtype)
    if _checks.is_concrete(matrix) and not matrix.any():
        raise ValueError(f"{where}: D is zero")
    tol, max_steps = static_tol(tol, where), _checks.as_index(max_steps, "max_steps", where)
    lam = _weights(D, matrix, Y, lam, ratio, nonnegative, where)
    X = _start(D, Y, start, where)
    a, b = exponent(matrix), exponent(Y, 1)
    top = float(jnp.finfo(dtype).max)
    near = (
        ldexp(matrix, -a),
        ldexp(Y, -b),
        jnp.minimum(ldexp(lam, -(a + b)), top),
        jnp.minimum(ldexp(ridge(l2, Y, where), -2 * a), top),
        ldexp(X, a - b),
    )
    host = partial(
        _solve, tol=tol, nonnegative=nonnegative, max_steps=max_steps, warm=start is not None
    )
    if _checks.is_concrete(near):
        answers = tuple(map(jnp.asarray, host(*map(np.asarray, near))))
    else:
        n, integer = len(Y), jnp.zeros((), int).dtype
        shapes = [jax.ShapeDtypeStruct((n, d), dtype)] + [
            jax.ShapeDtypeStruct((n,), kind) for kind in (dtype, dtype, integer, bool)
        ]
        answers = jax.pure_callback(host, shapes, *near, vmap_method="sequential")
    x, gap, residual, steps, converged = answers
    found, residual = ldexp(x, b - a), ldexp(residual, b[:, 0])
    converged = converged & _in_range(found, x, (b - a)[:, 0])
    return on_grid(Pursuit(found, gap, residual, steps, converged), grid)


_in_range = jax.jit(jax.vmap(in_range))


def _weights(
    D: Dictionary,
    matrix: Array,
    Y: Array,
    lam: ArrayLike | None,
    ratio: ArrayLike | None,
    nonnegative: bool,
    where: str,
) -> Array:
    """lam, or ratio times lam_max of every signal, checked: (batch, 1) or (batch, d)."""
    value, name = given_penalty(lam, ratio, where)
    each = spread(D, jnp.asarray(flat_code(D, value), wide_dtype(Y.dtype)))
    n, d = len(Y), D.shape[1]
    if each.shape not in ((), (d,), (n, 1), (n, d)):
        raise ValueError(
            f"{where}: {name} has shape {each.shape}; expected (), ({d},), ({n}, 1) or ({n}, {d})"
        )
    each = jnp.broadcast_to(each, (n, d if each.shape[-1:] == (d,) else 1))
    if ratio is None:
        return each.astype(Y.dtype)
    with jax.default_matmul_precision("highest"):
        g = Y @ matrix
    size = jnp.max(jax.nn.relu(g) if nonnegative else jnp.abs(g), 1, keepdims=True, initial=0)
    return (each * size.astype(each.dtype)).astype(Y.dtype)


def _start(D: Dictionary, Y: Array, start: ArrayLike | None, where: str) -> Array:
    """The codes to start from, checked: (batch, d); (batch, 1) of zeros if there are none."""
    if start is None:
        return jnp.zeros((len(Y), 1), Y.dtype)
    X = _checks.as_float(flat_code(D, start), "start", where)
    if X.shape != (len(Y), D.shape[1]):
        raise ValueError(f"{where}: start has shape {X.shape}; expected ({len(Y)}, {D.shape[1]})")
    _checks.finite(X, "start", where)
    return X.astype(Y.dtype)


class _Problem(NamedTuple):
    """What all signals share, in float64."""

    D: np.ndarray  # (m, d)
    gram: np.ndarray  # (d + 1, d + 1), with zeros in the last row and column
    l2: float
    ridge: float
    tol: float
    nonnegative: bool


class _Signals(NamedTuple):
    """Some signals, their penalties, the state of ADMM, and the best codes so far."""

    Y: np.ndarray  # (n, m)
    products: np.ndarray  # (n, d) D'y
    lam: np.ndarray  # (n, 1) or (n, d)
    unit: np.ndarray  # (n,) norm(y)^2 / 2, the unit of the gap
    z: np.ndarray  # (n, d) sparse iterates
    w: np.ndarray  # (n, d) their subgradients, within lam
    x: np.ndarray  # (n, d)
    gap: np.ndarray  # (n,) relative to unit
    residual: np.ndarray  # (n,) norm(y - D x)
    steps: np.ndarray  # (n,)


def _solve(D, Y, lam, l2, start, *, tol, nonnegative, max_steps, warm):
    """x, gap, residual, steps and converged of every signal."""
    dtype, wide = Y.dtype, (np.asarray(v, np.float64) for v in (D, Y, lam, start))
    D, Y, lam, start = wide
    n, d = len(Y), D.shape[1]
    x, steps = np.zeros((n, d), dtype), np.zeros(n, int)
    gap, residual = np.full(n, np.inf), np.full(n, np.nan)
    known = np.flatnonzero(np.isfinite(Y).all(1) & np.isfinite(lam).all(1))
    if np.isfinite(D).all() and D.any():
        with threads() as team:
            gram = np.pad(D.T @ D, (0, 1))
            problem = _Problem(D, gram, float(l2), _RIDGE * gram.max(), tol, nonnegative)
            steppers = _Steppers(problem)
            for first in range(0, len(known), _BLOCK):
                some = known[first : first + _BLOCK]
                signals = _empty(Y[some], lam[some], d)
                first_codes = start[some] if warm else None
                begin = partial(_begin, problem, signals, first_codes)
                team.share(begin, _parts(np.arange(len(some)), team.cores))
                _run(problem, steppers, signals, max_steps, team)
                x[some], gap[some] = signals.x, signals.gap
                residual[some], steps[some] = signals.residual, signals.steps
    integer = jnp.zeros((), int).dtype
    return (
        x,
        gap.astype(dtype),
        residual.astype(dtype),
        steps.astype(integer),
        gap <= tol,
    )


def _parts(rows: np.ndarray, cores: int) -> list[np.ndarray]:
    """Rows in chunks of one size, as many for every core; none is empty."""
    return np.array_split(rows, min(len(rows), cores * -(-len(rows) // (cores * _CHUNK))))


def _empty(Y: np.ndarray, lam: np.ndarray, d: int) -> _Signals:
    """Signals at the code 0."""
    n, unit = len(Y), np.sum(Y**2, 1) / 2
    single, double = np.zeros((2, n, d), np.float32), np.zeros((2, n, d))
    return _Signals(
        Y,
        double[0],
        lam,
        np.where(unit > 0, unit, 1),
        single[0],
        single[1],
        double[1],
        np.full(n, np.inf),
        np.sqrt(2 * unit),
        np.zeros(n, int),
    )


def _begin(
    problem: _Problem, signals: _Signals, start: np.ndarray | None, part: np.ndarray
) -> None:
    """D'y and the gap of the code 0; then, of given codes and the supports that they suggest."""
    signals.products[part] = signals.Y[part] @ problem.D
    s = _dual_scale(problem, signals.lam[part], signals.products[part])[:, 0]
    signals.gap[part] = (1 - s) ** 2
    left = part[signals.gap[part] > problem.tol]
    if start is None or not len(left):
        return
    z = np.maximum(start[left], 0) if problem.nonnegative else start[left]
    gap, g = _keep(problem, signals, left, z)
    lam = signals.lam[left]
    signals.z[left], signals.w[left] = z, np.clip(g, -lam, lam)
    _finish(problem, signals, left[gap > problem.tol])


def _run(
    problem: _Problem, steppers: "_Steppers", signals: _Signals, max_steps: int, team: Threads
) -> None:
    """Stages of ADMM, each followed by a finish, until every signal has its certificate."""
    stage, length, done = 0, 0.0, 0
    while done < max_steps and len(left := np.flatnonzero(~(signals.gap <= problem.tol))):
        if stage < len(_RHO):
            few = stage == 1 and len(left) < _FEW * len(signals.gap)
            rho, length = _RHO[0 if few else stage], float(_STEPS[stage])
        else:
            rho, length = _RHO[-2 + stage % 2], length * _GROWTH
        count = min(int(length), max_steps - done)
        if stage == _SINGLE:
            signals = signals._replace(z=signals.z.astype(float), w=signals.w.astype(float))
        step = steppers(rho, signals.z.dtype.type)

        def work(part, signals=signals, step=step, count=count, late=stage >= _SINGLE):
            _advance(problem, step, signals, part, count)
            _finish(problem, signals, part, late)

        team.share(work, _parts(left, team.cores))
        stage, done = stage + 1, done + count


class _Stepper(NamedTuple):
    """ADMM with one penalty: x = argmin of the smooth part + rho/2 norm(x - q)^2, relaxed."""

    rho: float
    share: float  # alpha rho / (rho + l2), the factor of q in alpha x
    K: np.ndarray  # (m, d) y -> its part in alpha x
    E: np.ndarray  # (d, d) the whole linear map of q, or (r, d) with alpha x = share q - E'E q


class _Steppers:
    """The steppers of a dictionary, made as they are asked for."""

    def __init__(self, problem: _Problem):
        self.problem = problem
        self.size = np.trace(problem.gram) / problem.D.shape[1]
        self.made: dict[tuple, _Stepper] = {}

    def __call__(self, rho: float, dtype: type) -> _Stepper:
        if (rho, dtype) not in self.made:
            self.made[rho, dtype] = self._make(rho * self.size, dtype)
        return self.made[rho, dtype]

    def _make(self, rho: float, dtype: type) -> _Stepper:
        D: np.ndarray = self.problem.D.astype(dtype)
        damped = rho + self.problem.l2
        m, d = D.shape
        share = _RELAXATION * rho / damped
        if d < 2 * m:  # one product with a square matrix, else two thin ones
            gram: np.ndarray = self.problem.gram[:d, :d].astype(dtype)
            half = _inverse_factor(gram + damped * np.eye(d, dtype=dtype))
            inverse = half @ half.T
            E = share * damped * inverse + (1 - _RELAXATION) * np.eye(d, dtype=dtype)
            K = _RELAXATION * D @ inverse
        else:
            half = _inverse_factor(D @ D.T + damped * np.eye(m, dtype=dtype))
            E = np.sqrt(share) * (half.T @ D)
            K = _RELAXATION / np.sqrt(share) * (half @ E)
        return _Stepper(rho, share, K.astype(dtype), E.astype(dtype))


def _inverse_factor(A: np.ndarray) -> np.ndarray:
    """The upper triangular H with H H' the inverse of a positive definite A = U'U."""
    factor, invert = (
        (lapack().spotrf, lapack().strtri)
        if A.dtype == np.float32
        else (lapack().dpotrf, lapack().dtrtri)
    )
    return invert(factor(A)[0])[0]


def _advance(
    problem: _Problem, stepper: _Stepper, signals: _Signals, part: np.ndarray, count: int
) -> None:
    r"""`count` steps of over-relaxed ADMM for some signals.

    With v = alpha x + (1 - alpha) z + u, z = shrink(v, lam / rho) and the next u = v - z, a step is
    a map of q = z - u = v - 2 u: v <- alpha x(q) + (1 - alpha) q + (2 - alpha) u.
    """
    rho, share, K, E = stepper
    dtype = K.dtype
    lam = signals.lam[part].astype(dtype) / dtype.type(rho)
    low = dtype.type(-np.inf) if problem.nonnegative else -lam
    u = signals.w[part].astype(dtype) / dtype.type(rho)
    v = signals.z[part].astype(dtype) + u
    c = signals.Y[part].astype(dtype) @ K
    q, half = np.empty_like(v), np.empty((len(v), len(E)), dtype)
    square = len(E) == E.shape[1]
    beyond, kept = dtype.type(2 - _RELAXATION), dtype.type(share + 1 - _RELAXATION)
    for step in range(count):
        if step:
            np.minimum(v, lam, out=u)
            np.maximum(u, low, out=u)
        np.subtract(v, u, out=q)
        q -= u
        if step == 0 and not q.any():  # a start at 0: so is the product
            v[:] = 0
        elif square:
            np.matmul(q, E, out=v)
        else:
            np.matmul(np.matmul(q, E.T, out=half), E, out=v)
            q *= kept
            np.subtract(q, v, out=v)
        u *= beyond
        v += u
        v += c
    np.minimum(v, lam, out=u)
    np.maximum(u, low, out=u)
    signals.z[part], signals.w[part] = v - u, u * dtype.type(rho)
    signals.steps[part] += count


def _finish(problem: _Problem, signals: _Signals, part: np.ndarray, late: bool = False) -> None:
    """Keep the best codes: z, or those solved on its support and on better guesses that follow.

    A guess adds all atoms whose constraint is violated. Late, they begin at the best code, and add
    the one that is violated most once the code is nearly optimal on its support, so that the
    objective falls with each.
    """
    rows, x = np.arange(len(part)), signals.z[part].astype(np.float64)
    if late:
        _keep(problem, signals, part, x)
        rows = np.flatnonzero(~(signals.gap[part] <= problem.tol))
        x = signals.x[part[rows]]
    signs = np.sign(x)
    most = problem.D.shape[1] if problem.l2 > 0 or late else min(problem.D.shape)
    for _ in range(_PIVOTS if late else _GUESSES):
        small = np.count_nonzero(signs, axis=1) <= most
        if not small.all():
            rows, x, signs = rows[small], x[small], signs[small]
        if not len(rows):
            break
        _solve_on_supports(problem, signals, part[rows], x, signs)
        if problem.nonnegative:
            np.maximum(x, 0, out=x)
        gap, g = _keep(problem, signals, part[rows], x)
        left = ~(gap <= problem.tol)
        rows, x, g = rows[left], x[left], g[left]
        excess = (g if problem.nonnegative else np.abs(g)) - signals.lam[part[rows]]
        violated = (x == 0) & (excess > 0)
        if late:
            inside = np.where(x != 0, np.abs(g - signals.lam[part[rows]] * np.sign(x)), 0)
            outside = np.where(violated, excess, 0).max(1, keepdims=True)
            violated &= (excess == outside) & (outside > 2 * inside.max(1, keepdims=True))
        signs = np.where(violated, np.sign(g), np.sign(x))
    rest = np.flatnonzero(signals.gap[part] > problem.tol)
    if len(rest) and not late:
        _keep(problem, signals, part[rest], signals.z[part[rest]].astype(np.float64))


def _solve_on_supports(
    problem: _Problem, signals: _Signals, part: np.ndarray, x: np.ndarray, signs: np.ndarray
) -> None:
    """Move the codes x, in place, towards the minimisers with these signs on their supports."""
    d, sizes = x.shape[1], np.count_nonzero(signs, axis=1)
    by_size = np.argsort(sizes)
    for rows in np.array_split(by_size, -(-len(part) // _SYSTEMS)):
        k, n = int(sizes[rows[-1]]), len(rows)
        i, atom = np.nonzero(signs[rows])
        slot = np.arange(len(i)) - np.repeat(np.cumsum(sizes[rows]) - sizes[rows], sizes[rows])
        atoms = np.full((n, k), d)  # where the Gram matrix has zeros
        atoms[i, slot] = atom
        A = problem.gram.ravel().take(atoms[:, :, None] * (d + 1) + atoms[:, None, :], mode="clip")
        A[:, np.arange(k), np.arange(k)] += problem.l2
        own, s, p, lam, b = rows[i], *np.zeros((4, n, k))
        s[i, slot], p[i, slot] = signs[own, atom], x[own, atom]
        weight = signals.lam[part[own]]
        lam[i, slot] = weight[:, 0] if weight.shape[1] == 1 else weight[np.arange(len(i)), atom]
        b[i, slot] = signals.products[part[own], atom]
        b -= lam * s
        slope = b[..., None] - A @ p[..., None]
        A[:, np.arange(k), np.arange(k)] += np.where(atoms < d, problem.ridge, 1)
        try:
            change = np.linalg.solve(A, slope)
        except np.linalg.LinAlgError:  # these codes stay where they are
            continue
        x[own, atom] = least_between(np, p, change[..., 0], slope[..., 0], lam, s)[i, slot]


def _dual_scale(problem: _Problem, lam: np.ndarray, g: np.ndarray) -> np.ndarray:
    """min(1, min_i lam_i / |g_i|), (n, 1): the factor that makes r feasible for the dual."""
    if lam.shape[1] == 1:
        top = g.max(1, keepdims=True)
        if not problem.nonnegative:
            np.maximum(top, -g.min(1, keepdims=True), out=top)
    else:
        top = g if problem.nonnegative else np.abs(g)
    return np.divide(lam, top, out=np.ones_like(top), where=top > lam).min(1, keepdims=True)


def _keep(
    problem: _Problem, signals: _Signals, part: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take the codes x that are better than the best so far; their relative gaps, D'r - l2 x.

    The gap is that of `penalized_gap`.
    """
    D, l2, lam = problem.D, problem.l2, signals.lam[part]
    r = x @ D.T
    np.subtract(signals.Y[part], r, out=r)
    h = r @ D
    g = h - l2 * x if l2 else h
    s = _dual_scale(problem, lam, g)
    squares = np.einsum("ij,ij->i", r, r)
    energy = squares + l2 * np.einsum("ij,ij->i", x, x) if l2 else squares
    penalty = np.abs(x)
    penalty *= lam
    terms = x * g
    terms *= -s
    terms += penalty
    gap = (1 - s[:, 0]) ** 2 * energy / 2 + np.maximum(terms, 0, out=terms).sum(1)
    if l2:
        within = np.clip(h, -np.inf if problem.nonnegative else -lam, lam)
        terms = l2 / 2 * (x - (h - within) / l2) ** 2 + np.maximum(penalty - x * within, 0)
        gap = np.fmin(gap, terms.sum(1))
    gap /= signals.unit[part]
    better = gap < signals.gap[part]
    rows = part[better]
    signals.x[rows], signals.gap[rows] = x[better], gap[better]
    signals.residual[rows] = np.sqrt(squares[better])
    return gap, g
