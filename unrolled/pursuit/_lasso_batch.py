"""The LASSO of many signals in one dictionary, in stages, every code certified.

A few steps of ADMM in float32 nearly find the support and the signs of a code. Given these the code
solves a small linear system, in float64; a wrong guess is corrected by the signs and the violated
constraints that its solution shows, and only signals without a certificate take further steps.
Everything is numpy on the host, where threads share the signals; every product is a matrix product.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.interior_point import lapack
from unrolled._base.numbers import exponent, ldexp, norm, times_power, wide_dtype
from unrolled._base.threads import Threads, threads
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    as_dictionary,
    dense,
    spread,
    threshold_shapes,
)
from unrolled.pursuit import _problem
from unrolled.pursuit._gap import least_between
from unrolled.pursuit._lasso import one_penalty
from unrolled.pursuit._problem import Grid, Pursuit, bounded, flat_code, is_held, rounded

__all__ = ["lasso_batch"]


# ADMM: penalties rho over the mean squared norm of an atom, and steps with each. A well-conditioned
# support is found soonest with rho near 1, a coherent one with less.
_RHO = (1.0, 0.25, 0.15)
_STEPS = (14, 30, 40)
# The second stage keeps the penalty of the first for fewer signals than this share: to factorise
# for another one would take longer than their steps.
_FEW = 0.1
# Later stages alternate between the last two penalties, each half as long again as the one before.
_GROWTH = 1.5
# Stages in float32, whose rounding no longer matters once a support is found; then float64.
_SINGLE = 5
# Signals that a thread takes at once, enough for its products to be fast; whose arrays are in
# memory at a time.
_CHUNK, BLOCK = 512, 4096
# Added to the diagonal of a system, in units of its largest entry: dependent atoms share a change.
_RIDGE = 1e-12
# Guesses of the support at the end of a stage, each from the solution of the last; and of stages in
# float64, where they are the steps of an active set method.
_GUESSES, _PIVOTS = 2, 50
# Signals whose linear systems are padded to one size.
_SYSTEMS = 64
_RELAXATION = 1.8  # over-relaxation of ADMM


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
            `D.code_grid`. The batch may be empty. One that `np.load(path, mmap_mode="r")` returns
            is read in chunks, to the same codes; these are in memory together, for which see
            `unrolled encode`.
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
        >>> result = ur.pursuit.lasso_batch(D, (D[:, 3:5] - 0.5 * D[:, 20:22]).T, ratio=0.1)
        >>> result.converged.tolist(), [jnp.flatnonzero(x).tolist() for x in result.x]
        ([True, True], [[3, 20], [4, 21]])
    """
    where = "lasso_batch"
    D, signals, dtype, grid = operands_of_many(D, Y, where)
    if _problem.is_zero(D):
        raise ValueError(f"{where}: D is zero")
    wide = wide_dtype(dtype)
    host = partial(
        lasso_in_stages,
        relative=lam is None,
        tol=_problem.static_tol(tol, where),
        nonnegative=checks.as_bool(nonnegative, "nonnegative", where),
        max_steps=_problem.static_steps(max_steps, where),
        warm=start is not None,
    )
    value, name = one_penalty(lam, ratio, where)
    weight = _problem.penalty(D, value, name, where, wide, batch=len(signals))
    _problem.check_number(l2, "l2", where)
    checks.in_range(l2, wide, "l2", where)
    X = _problem.as_start(D, start, "", where, (len(signals),))
    several = np.shape(weight) not in (*threshold_shapes(D), getattr(D, "code_grid", ()))

    def solved(Y: Array, rows: slice | None) -> Pursuit:
        weights = weight[rows] if several and rows else weight
        first = X[rows] if X is not None and rows else X
        operands, (a, b) = _scaled(
            wide, lam is None, D, Y, weights, _problem.as_operand(l2, wide), first
        )
        answers = on_the_host(host, operands, D.shape[1])
        return batch_result(dtype, grid, answers, a, b, *operands[:2])

    return in_chunks(solved, signals, where)


def operands_of_many(D: Dictionary, Y: Any, where: str) -> tuple[Operator, Any, np.dtype, Grid]:
    """D, signals in rows, the dtype of the result and the grid of a code, checked.

    Signals of a file that is mapped into memory stay there if they are more than a chunk.
    """
    mapped = isinstance(Y, np.memmap) and Y.ndim > 1 and len(Y) > BLOCK
    some, grid = _problem.flat_signal(D, Y[:1] if mapped else Y, where, batch=1)
    D, some = as_dictionary(D, where), checks.as_float(some, "Y", where)
    if some.ndim != 2 or some.shape[1] != D.shape[0]:
        shape = Y.shape if mapped else some.shape
        raise ValueError(
            f"{where}: Y has shape {shape}; expected (batch, {D.shape[0]}), signals in rows"
            f"{checks.flattened('Y', shape)}"
        )
    return D, Y.reshape(len(Y), -1) if mapped else some, checks.common_dtype(D, some), grid


def in_chunks(solve: Callable[[Array, slice | None], Pursuit], Y: Any, where: str) -> Pursuit:
    """The result of all signals, or of a mapped file chunk by chunk.

    Args:
        solve: it takes some signals and which rows of all they are, None for all.
        Y: as `operands_of_many` returns them.
        where: the name of the caller, which messages begin with.
    """
    if not isinstance(Y, np.memmap):
        return solve(Y, None)
    fields: list[np.ndarray] = []
    for first in range(0, len(Y), BLOCK):
        rows = slice(first, min(first + BLOCK, len(Y)))
        signals = checks.as_float(np.array(Y[rows]), f"Y[{first}:{rows.stop}]", where)
        result = solve(signals, rows)
        if not checks.is_concrete(result):  # the program of a caller holds all signals
            return solve(checks.as_float(np.array(Y), "Y", where), None)
        parts = list(map(np.asarray, result))
        fields = fields or [np.empty((len(Y), *part.shape[1:]), part.dtype) for part in parts]
        for field, part in zip(fields, parts):
            field[rows] = part
    return Pursuit(*map(jnp.asarray, fields))


def on_the_host(host: Any, operands: Any, d: int) -> tuple:
    """x, gap, residual, steps and converged of every signal, by a function of numpy.

    Args:
        host: called with `operands` as arrays of numpy.
        operands: its arguments, with D first and the signals second.
        d: the length of a code.
    """

    def answers(*operands):
        return host(*map(np.asarray, operands))

    if checks.is_concrete(operands):
        return answers(*operands)
    n, dtype = len(operands[1]), operands[1].dtype
    kinds = (dtype, dtype, jax.dtypes.canonicalize_dtype(int), bool)
    shapes = [jax.ShapeDtypeStruct((n, d), dtype)]
    shapes += [jax.ShapeDtypeStruct((n,), kind) for kind in kinds]
    return jax.pure_callback(answers, shapes, *operands, vmap_method="sequential")


@programs.on_auto_axes
@partial(jax.jit, static_argnums=(0, 1))
def _scaled(
    dtype: np.dtype, relative: bool, D: Operator, Y: Array, weight: Any, l2: Any, start: Any
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    """D, Y, the weights, l2 and the start near 1; and the exponents of D and of every signal."""
    matrix, Y = dense(checks.cast(D, dtype)), Y.astype(dtype)
    a, b = exponent(matrix), exponent(Y, 1)
    weight = spread(D, flat_code(D, jnp.asarray(weight, dtype)))
    columns = D.shape[1] if weight.shape[-1:] == D.shape[1:] else 1
    weight = jnp.broadcast_to(weight, (len(Y), columns))
    if not relative:
        weight = bounded(ldexp(weight, -(a + b)))
    # Without a start, zeros that nobody reads.
    X = jnp.zeros((len(Y), 1)) if start is None else start
    ridge, X = bounded(ldexp(jnp.asarray(l2, dtype), -2 * a)), ldexp(X.astype(dtype), a - b)
    return (times_power(matrix, -a), times_power(Y, -b), weight, ridge, X), (a, b)


@programs.on_auto_axes
@partial(jax.jit, static_argnums=(0, 1))
def batch_result(
    dtype: np.dtype, grid: Grid, answers: tuple[Array, ...], a: Array, b: Array, *signals: Array
) -> Pursuit:
    """The answers in the dtype of the caller, and in units: of D with 2^a, of signals with 2^b.

    With D and the signals in these units, the residual becomes that of codes in half precision.
    """
    x, gap, residual, steps, converged = answers
    if signals and dtype != x.dtype:
        D, Y = signals
        with jax.default_matmul_precision("highest"):
            residual = norm(Y - rounded(x, dtype) @ D.T, 1)
    codes, k = ldexp(x, b - a).astype(dtype), (b - a)[:, 0]
    converged = converged & jax.vmap(is_held)(codes, x, k)
    if grid is not None:
        codes = codes.reshape(-1, *grid)
    residual = times_power(residual, b[:, 0]).astype(dtype)
    return Pursuit(codes, gap.astype(dtype), residual, steps, converged)


class Problem(NamedTuple):
    """What all signals share, in float64."""

    D: np.ndarray  # (m, d)
    gram: np.ndarray  # (d + 1, d + 1), with zeros in the last row and column
    l2: float
    ridge: float
    tol: float
    nonnegative: bool
    relative: bool  # lam is given in units of lam_max


class Signals(NamedTuple):
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
    zero: np.ndarray  # (n, 1) |d_i . (y - D x)| up to it is 0, for atoms without a penalty


class Stepper(NamedTuple):
    """ADMM with one penalty: x = argmin of the smooth part + rho/2 norm(x - q)^2, relaxed."""

    rho: float
    share: float  # alpha rho / (rho + l2), the factor of q in alpha x
    K: np.ndarray  # (m, d) y -> its part in alpha x
    E: np.ndarray  # (d, d) the whole linear map of q, or (r, d) with alpha x = share q - E'E q


class Steppers:
    """The steppers of a dictionary, made as they are asked for."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.size = float(np.trace(problem.gram)) / problem.D.shape[1]
        self.made: dict[tuple, Stepper] = {}

    def __call__(self, rho: float, dtype: type) -> Stepper:
        if (rho, dtype) not in self.made:
            self.made[rho, dtype] = self._make(rho * self.size, dtype)
        return self.made[rho, dtype]

    def _make(self, rho: float, dtype: type) -> Stepper:
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
            E = math.sqrt(share) * (half.T @ D)
            K = _RELAXATION / math.sqrt(share) * (half @ E)
        return Stepper(rho, share, K, E)


def lasso_in_stages(D, Y, lam, l2, start, *, relative, tol, nonnegative, max_steps, warm):
    """x, gap, residual, steps and converged of every signal."""
    dtype, wide = Y.dtype, (np.asarray(v, np.float64) for v in (D, Y, lam, start))
    D, Y, lam, start = wide
    n, d = len(Y), D.shape[1]
    x, steps = np.zeros((n, d), dtype), np.zeros(n, int)
    gap, residual = np.full(n, np.inf), np.full(n, np.nan)
    finite = np.isfinite(Y).all(1) & np.isfinite(lam).all(1)
    if np.isfinite(D).all() and D.any():
        with threads() as team:
            problem = _problem_of(D, float(l2), tol, nonnegative, relative)
            steppers = Steppers(problem)
            for first in range(0, n, BLOCK):
                some = first + np.flatnonzero(finite[first : first + BLOCK])
                if not len(some):
                    continue
                signals = empty(Y[some], lam[some], d)
                signals = signals._replace(zero=_zero_of_free(problem, signals))
                first_codes = start[some] if warm else None
                begin = partial(_begin, problem, signals, first_codes)
                team.share(begin, _parts(np.arange(len(some)), team.cores))
                _run_stages(problem, steppers, signals, max_steps, team)
                x[some], gap[some] = signals.x, signals.gap
                residual[some], steps[some] = signals.residual, signals.steps
    integer = jax.dtypes.canonicalize_dtype(int)
    return (x, gap.astype(dtype), residual.astype(dtype), steps.astype(integer), gap <= tol)


def rough_codes(
    D: np.ndarray, Y: np.ndarray, lam: float, *, within: float, steps: int, looks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes by ADMM in float32 alone, (n, d), and whose relative gap is not `within` in the end.

    Args:
        D, Y: (m, d) and (n, m), signals and atoms of norms near 1.
        lam: penalty weight.
        within, steps, looks: a bound on the gap, the steps between two looks at it, and looks.
    """
    problem = _problem_of(D.astype(np.float32), 0.0, within, False, False)
    signals = empty(Y.astype(np.float32), np.full((len(Y), 1), lam, np.float32), D.shape[1])
    step = Steppers(problem)(_RHO[0], np.float32)

    def work(part: np.ndarray) -> None:
        for _ in range(looks):
            z, w = advance(problem, step, signals, part, steps)
            far = ~(keep(problem, signals, part, z)[0] <= within)
            part = part[far]
            if not len(part):
                break
            signals.z[part], signals.w[part] = z[far], w[far]

    with threads() as team:
        team.share(work, _parts(np.arange(len(Y)), team.cores))
    return signals.x, ~(signals.gap <= within)


def _problem_of(D: np.ndarray, l2: float, tol: float, nonnegative: bool, relative: bool) -> Problem:
    d = D.shape[1]
    gram = np.zeros((d + 1, d + 1), D.dtype)
    np.matmul(D.T, D, out=gram[:d, :d])
    return Problem(D, gram, l2, _RIDGE * gram.max(), tol, nonnegative, relative)


def _begin(problem: Problem, signals: Signals, start: np.ndarray | None, part: np.ndarray) -> None:
    """D'y, lam, the gap of the code 0; then, of given codes and the supports that they suggest."""
    rows = slice(part[0], part[-1] + 1)  # neighbours: views of them need no copies
    products = np.matmul(signals.Y[rows], problem.D, out=signals.products[rows])
    if problem.relative:
        signals.lam[rows] *= np.maximum(largest(problem, products), 0)
    s = dual_scale(problem, signals.lam[rows], products, signals.zero[rows])[:, 0]
    signals.gap[part] = (1 - s) ** 2
    left = part[signals.gap[part] > problem.tol]
    if start is None or not len(left):
        return
    z = np.maximum(start[left], 0) if problem.nonnegative else start[left]
    gap, g = keep(problem, signals, left, z)
    lam = signals.lam[left]
    signals.z[left], signals.w[left] = z, np.clip(g, -lam, lam)
    rest = gap > problem.tol
    finish(problem, signals, left[rest], z[rest])


def _run_stages(
    problem: Problem, steppers: Steppers, signals: Signals, max_steps: int, team: Threads
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
            z, w = advance(problem, step, signals, part, count)
            finish(problem, signals, part, z, late)
            rest = ~(signals.gap[part] <= problem.tol)
            signals.z[part[rest]], signals.w[part[rest]] = z[rest], w[rest]

        team.share(work, _parts(left, team.cores))
        stage, done = stage + 1, done + count


def _parts(rows: np.ndarray, cores: int) -> list[np.ndarray]:
    """Rows in chunks of one size, as many for every core; none is empty."""
    return np.array_split(rows, min(len(rows), cores * -(-len(rows) // (cores * _CHUNK))))


def empty(Y: np.ndarray, lam: np.ndarray, d: int) -> Signals:
    """Signals at the code 0."""
    n, unit = len(Y), np.sum(Y**2, 1) / 2
    z, w = np.zeros((2, n, d), np.float32)
    return Signals(
        Y,
        np.empty((n, d)),
        lam,
        np.where(unit > 0, unit, 1),
        z,
        w,
        np.zeros((n, d)),
        np.full(n, np.inf),
        np.sqrt(2 * unit),
        np.zeros(n, int),
        np.zeros((n, 1)),
    )


def _zero_of_free(problem: Problem, signals: Signals) -> np.ndarray:
    """The rounding of d_i . (y - D x), (n, 1), or less where it would hide an excess of tol / 2.

    With |D_f'r| <= e an r is e / sigma off the vectors that the free atoms D_f do not see.
    """
    D, n = problem.D, len(signals.Y)
    masks, which = np.unique(signals.lam == 0, axis=0, return_inverse=True)
    level = np.zeros(len(masks))
    for i in np.flatnonzero(masks.any(1)):
        atoms = D[:, np.broadcast_to(masks[i], D.shape[1:])]
        rounding = max(D.shape) * np.finfo(float).eps
        s = np.linalg.svd(atoms, compute_uv=False)
        sigma = s[s > rounding * s[0]].min(initial=np.inf)
        level[i] = min(rounding * s[0], problem.tol * sigma / (4 * math.sqrt(atoms.shape[1])))
    return (level[which.reshape(n)] * np.linalg.norm(signals.Y, axis=1))[:, None]


def largest(problem: Problem, g: np.ndarray) -> np.ndarray:
    """The largest |g_i|, or g_i for codes that are non-negative: (n, 1)."""
    top = g.max(1, keepdims=True)
    return top if problem.nonnegative else np.maximum(top, -g.min(1, keepdims=True))


def dual_scale(problem: Problem, lam: np.ndarray, g: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """min(1, min_i lam_i / |g_i|), (n, 1): the factor that makes r feasible for the dual.

    Without a penalty g_i is 0 where the code is optimal, up to `zero`.
    """
    if lam.shape[1] == 1:
        top = largest(problem, g)
    else:
        top = g if problem.nonnegative else np.abs(g)
    if zero.any():
        top = np.where((lam == 0) & (top <= zero), 0, top)
    return np.divide(lam, top, out=np.ones_like(top), where=top > lam).min(1, keepdims=True)


def keep(
    problem: Problem, signals: Signals, part: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take the codes x that are better than the best so far; their relative gaps, D'r - l2 x.

    The gap is that of `elastic_gap`, without arrays between, which would take longer than the sums.
    """
    D, l2, lam = problem.D, problem.l2, signals.lam[part]
    r = x @ D.T
    np.subtract(signals.Y[part], r, out=r)
    h = r @ D
    g = h - l2 * x if l2 else h
    s = dual_scale(problem, lam, g, signals.zero[part])
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


def finish(
    problem: Problem, signals: Signals, part: np.ndarray, z: np.ndarray, late: bool = False
) -> None:
    """Keep the best codes: z, or those solved on its support and on better guesses that follow.

    A guess adds all atoms whose constraint is violated. Late, they begin at the best code, and add
    the one that is violated most once the code is nearly optimal on its support, so that the
    objective falls with each.
    """
    rows, x = np.arange(len(part)), z.astype(np.float64)
    if late:
        keep(problem, signals, part, x)
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
        gap, g = keep(problem, signals, part[rows], x)
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
        keep(problem, signals, part[rest], z[rest].astype(np.float64))


def _solve_on_supports(
    problem: Problem, signals: Signals, part: np.ndarray, x: np.ndarray, signs: np.ndarray
) -> None:
    """Move the codes x, in place, towards the minimisers with these signs on their supports."""
    d, on = x.shape[1], signs != 0
    sizes = np.count_nonzero(on, axis=1)
    by_size = np.argsort(sizes)
    for rows in np.array_split(by_size, -(-len(part) // _SYSTEMS)):
        k, n = int(sizes[rows[-1]]), len(rows)
        i, atom = np.nonzero(on[rows])
        slot = np.arange(len(i)) - np.repeat(np.cumsum(sizes[rows]) - sizes[rows], sizes[rows])
        atoms = np.full((n, k), d)  # where the Gram matrix has zeros
        atoms[i, slot] = atom
        A = problem.gram[atoms[:, :, None], atoms[:, None, :]]
        diagonal = np.einsum("ijj->ij", A)  # a view
        diagonal += problem.l2
        own, s, p, lam, b = rows[i], *np.zeros((4, n, k))
        s[i, slot], p[i, slot] = signs[own, atom], x[own, atom]
        weight = signals.lam[part[own]]
        lam[i, slot] = weight[:, 0] if weight.shape[1] == 1 else weight[np.arange(len(i)), atom]
        b[i, slot] = signals.products[part[own], atom]
        b -= lam * s
        slope = b[..., None] - A @ p[..., None]
        diagonal += np.where(atoms < d, problem.ridge, 1)
        try:
            change = np.linalg.solve(A, slope)[..., 0]
        except np.linalg.LinAlgError:  # these codes stay where they are
            continue
        to = p + change
        turns = (to * s < 0).any(1)  # an entry changes its sign on the way
        if turns.any():
            way = (v[turns] for v in (p, change, slope[..., 0], lam, s))
            to[turns] = least_between(np, *way)
        x[own, atom] = to[i, slot]


def advance(
    problem: Problem, stepper: Stepper, signals: Signals, part: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""z and w of some signals after `count` more steps of over-relaxed ADMM.

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
    beyond, weight = dtype.type(2 - _RELAXATION), dtype.type(share + 1 - _RELAXATION)
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
            q *= weight
            np.subtract(q, v, out=v)
        u *= beyond
        v += u
        v += c
    np.minimum(v, lam, out=u)
    np.maximum(u, low, out=u)
    signals.steps[part] += count
    return v - u, u * dtype.type(rho)


def _inverse_factor(A: np.ndarray) -> np.ndarray:
    """The upper triangular H with H H' the inverse of a positive definite A = U'U."""
    factor, invert = (
        (lapack().spotrf, lapack().strtri)
        if A.dtype == np.float32
        else (lapack().dpotrf, lapack().dtrtri)
    )
    return invert(factor(A)[0])[0]
