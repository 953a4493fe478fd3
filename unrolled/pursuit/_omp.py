"""Orthogonal matching pursuit, which chooses atoms one by one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import (
    exponent,
    host_exponent,
    ldexp,
    norm,
    power_of_two,
    times_power,
    wide_dtype,
)
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    block_of,
    column_norms,
    dense,
    refuse_parts,
    scale_columns,
)
from unrolled.penalties import L1, Penalty
from unrolled.pursuit._gap import half_energy
from unrolled.pursuit._lasso import Penalized, on_branch, slope
from unrolled.pursuit._many import Answers, on_the_host, operands_of_many, rows_of, share
from unrolled.pursuit._problem import (
    Found,
    Problem,
    Pursuit,
    as_operand,
    check_number,
    checked_single,
    least_of,
    run,
)

__all__ = ["omp", "omp_batch"]


_CHUNK = 128  # number of signals whose arrays stay in the cache of a core


def negligible(m: int, dtype: np.dtype) -> float:
    """The relative error of a sum of m products, if rounding errors have random signs.

    The correlation of a normalised atom with a residual counts as zero if it is below this share of
    the norm of the signal. An atom counts as dependent if its pivot is below this share of its
    squared norm. A pivot is a difference of squares, so a code on atoms with smaller pivots would
    have few correct digits.
    """
    return 4 * math.sqrt(m) * float(np.finfo(dtype).eps)


def match(
    D: np.ndarray,
    Y: np.ndarray,
    sparsity: int,
    V: np.ndarray | None = None,
    favour: np.ndarray | None = None,
    judged: tuple[np.ndarray, np.ndarray] | None = None,
    block: int = 1,
    by_fit: bool = False,
) -> np.ndarray:
    r"""The codes of the rows of Y by matching pursuit, an array of shape (n, d).

    .. math:: j = \arg\max_i favour_i |d_i' V r| / \sqrt{d_i' V d_i}, \quad
        x_S = \arg\min_u (y - D_S u)' V (y - D_S u), \quad r = y - D x.

    Args:
        D: (m, d).
        Y: (n, m).
        sparsity: maximum number of atoms in a code.
        V: (n, m), the diagonal of V for each signal; None for ones.
        favour: (d,), factors by which the choice multiplies the correlations; None for ones.
        judged: two arrays (n,) for results: the number of atoms of each code, and the squared norm
            of the part of r in the span of these atoms, which is a rounding error.
        block: the number of atoms of a part; these atoms enter together. If codes come in parts,
            `sparsity` and `judged` count parts, and the choice maximises the norm of a part.
        by_fit: whether to choose the atom that leaves the smallest residual, and to ignore
            `favour`; block must be 1.
    """
    X, m = np.zeros((len(Y), D.shape[1]), Y.dtype), len(D)
    D, k = _near_one(D)
    if V is None and block == 1:
        from unrolled.pursuit import _active_set  # imports numba

        wide, problem = Y.astype(float), _active_set.problem_of(D)
        choice = problem.inverse * (1.0 if favour is None else favour)
        of_part = partial(
            _active_set.match,
            problem,
            favour=choice,
            most=sparsity,
            least=negligible(m, Y.dtype),
            by_fit=by_fit,
        )

        def work(part: slice) -> None:
            X[part], counts, inside = of_part(wide[part], wide[part] @ problem.D)
            if judged is not None:
                judged[0][part], judged[1][part] = counts, inside

    else:
        root = np.ones_like(Y) if V is None else np.sqrt(V)
        atoms, squares = np.ascontiguousarray(D.T), D * D

        def work(part: slice) -> None:
            w = root[part]
            signals, norms = w * Y[part], np.sqrt((w * w) @ squares)
            X[part], counts, Q = _match(
                D, atoms, norms, signals, sparsity, w, favour, block, by_fit
            )
            if judged is not None:
                r = signals - w * (X[part] @ atoms)
                judged[0][part], judged[1][part] = (
                    counts,
                    np.sum(np.matmul(Q, r[..., None]) ** 2, (1, 2)),
                )

    share(work, len(Y), _CHUNK)
    return np.ldexp(X, -k)


def _near_one(D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Atoms divided by 2^k, so that their squares are in the range of the dtype; and k, (d,)."""
    k = np.frexp(np.abs(D).max(0, initial=0))[1]
    return np.ldexp(D, -k), k


def _match(
    D: np.ndarray,
    atoms: np.ndarray,
    norms: np.ndarray,
    Y: np.ndarray,
    sparsity: int,
    w: np.ndarray,
    favour: np.ndarray | None,
    block: int,
    by_fit: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The codes of weighted signals, their numbers of parts, and Q.

    A row of `w` is the diagonal of W for one signal. The chosen atoms are W D_S = Q' L', where the
    rows q_1, q_2, ... of Q are orthonormal. Each step removes the component of r along one q. At
    the end x_S solves L' x_S = Q y. If an atom depends on earlier atoms but its part does not, its
    q is 0 and its entry of the code is 0.
    """
    (n, m), rows, slots = Y.shape, np.arange(len(Y)), sparsity * block
    rounding = negligible(m, Y.dtype)
    R, Q = Y.copy(), np.zeros((n, slots, m), Y.dtype)
    L, b = np.zeros((n, slots, slots), Y.dtype), np.zeros((n, slots), Y.dtype)
    S = np.zeros((n, slots), int)
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    least = rounding * np.linalg.norm(Y, axis=1)
    active, counts, used = np.ones(n, bool), np.zeros(n, int), slice(0, 0)
    apart = norms**2  # squared distances of the atoms from the span of the chosen atoms
    for first in range(0, slots, block):
        products = (R * w) @ D
        np.abs(products, out=products)
        products *= inverse
        products[rows[:, None], S[:, :first]] = 0
        score = _sizes(products if favour is None else products * favour, block)
        if by_fit:
            far = apart > rounding * norms**2
            score = np.divide(
                products * norms,
                np.sqrt(apart, where=far, out=np.ones_like(apart)),
                out=np.zeros_like(apart),
                where=far,
            )
        part = score.argmax(1)
        correlated = active & (_sizes(products, block)[rows, part] > least)
        active, used = np.zeros(n, bool), slice(0, first + block)
        for k in range(first, first + block):
            j = block * part + k - first
            v, h = _orthogonal(atoms[j] * w, Q[:, :k])
            size, length = np.linalg.norm(v, axis=1), norms[rows, j]
            new = correlated & (size * size > rounding * length * length)
            q = np.where(new, 1 / np.where(new, size, 1), 0)[:, None] * v
            b[:, k] = np.einsum("ij,ij->i", q, R)
            R -= b[:, k, None] * q
            Q[:, k], S[:, k] = q, np.where(correlated, j, S[:, 0])
            L[:, k, :k], L[:, k, k] = np.where(new[:, None], h, 0), np.where(new, size, 1)
            active |= new
            if by_fit:
                apart -= ((w * q) @ D) ** 2
        counts += active
        if not active.any():
            break
    values = np.linalg.solve(L[:, used, used].transpose(0, 2, 1), b[:, used, None])[..., 0]
    X = np.zeros((n, D.shape[1]), Y.dtype)
    for chosen, value in zip(S.T, values.T):
        X[rows, chosen] += value
    return X, counts, Q


def _sizes(v: np.ndarray, block: int) -> np.ndarray:
    """The norms of the parts of each row of v >= 0."""
    return (
        v if block == 1 else np.linalg.norm(v.reshape(len(v), v.shape[1] // block, block), axis=2)
    )


def _orthogonal(a: np.ndarray, Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a minus their projections on the rows of Q, and the coefficients.

    If the remainder is short, the projection is repeated once, which is enough.
    """
    h = np.matmul(Q, a[:, :, None])[..., 0]
    v = a - np.matmul(h[:, None], Q)[:, 0]
    again = np.flatnonzero(np.sum(v * v, 1) < 0.25 * np.sum(a * a, 1))
    if len(again):
        more = np.matmul(Q[again], v[again, :, None])[..., 0]
        v[again] -= np.matmul(more[:, None], Q[again])[:, 0]
        h[again] += more
    return v, h


class Chosen(NamedTuple):
    """The `size` atoms chosen so far, in arrays of length k, the maximum number of atoms."""

    atoms: Array  # (k,) indices, 0 beyond size; d for a dependent atom of a part
    L: Array  # (k, k) the Cholesky factor of the Gram matrix of these atoms, extended by I
    x: Array  # (d,) the code
    r: Array  # (m,) y - D x
    size: Array  # ()
    ended: Array  # () whether no further atom helps
    apart: Array | None  # (d,) squared distances of all atoms from their span, if by_fit


def omp(
    D: Dictionary,
    y: ArrayLike,
    sparsity: int | None = None,
    tol: ArrayLike | None = None,
    *,
    selection: str = "correlation",
) -> Pursuit:
    r"""Orthogonal matching pursuit: at most `sparsity` atoms, or a residual of at most `tol`.

    .. math:: j = \arg\max_i |d_i' r|, \quad S \leftarrow S \cup \{j\}, \quad
        x_S = \arg\min_u \|y - D_S u\|, \quad r = y - D x.

    `omp` needs only products with D. It ends early if the residual is zero to rounding, no atom is
    correlated with the residual, or the next atom depends on the chosen atoms. If several atoms
    tie, `omp` chooses the first of them; it never chooses a zero atom. In half precision, `omp`
    computes in float32 and rounds the result. The function is traceable if sparsity is static. If
    the codes of D come in parts, each step adds all atoms of the part whose D_i' r has the largest
    norm. So `omp` is simultaneous OMP for several measurements, and complex OMP for complex
    signals.

    Args:
        D: (m, d). The choice does not divide by the norms of the atoms, so it favours atoms with
            larger norms.
        y: (m,), or a signal grid of a `Conv`, whose code has the shape `D.code_grid`.
        sparsity: maximum number of atoms, in 0..d. If tol is given, the default is min(m, d). If
            codes come in parts, sparsity and `steps` count parts, and the default is the number of
            whole parts in min(m, d) atoms.
        tol: stop at norm(y - D x) <= tol, in the units of y. (scikit-learn's `orthogonal_mp` takes
            tol^2.)
        selection: "correlation", or "least_squares" to add the atom that leaves the smallest
            residual, whatever the norms of the atoms (orthogonal least squares). Codes in parts
            admit only "correlation".

    Returns:
        Pursuit. `steps` counts the atoms. `gap` is the excess of norm(y - D x)^2 over the least
        squares value on the same support, relative to norm(y)^2. The gap measures rounding errors;
        it does not judge the support. `converged` is True if x is the least squares code to
        rounding and, with a tol, the residual is at most tol.

    Raises:
        TypeError: an operand is not real, or sparsity is not a static integer.
        ValueError: shapes do not fit, neither sparsity nor tol is given, sparsity is outside 0..d,
            tol is negative, not finite or not one number, or `selection` is unknown.

    Reference: Pati, Rezaiifar, Krishnaprasad (1993); Rubinstein, Zibulevsky, Elad (2008) for the
    Cholesky factor; Tropp, Gilbert, Strauss (2006) for parts; Chen, Billings, Luo (1989) for
    orthogonal least squares.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.omp(D, D[:, 3] - 0.5 * D[:, 20], sparsity=2)
        >>> jnp.flatnonzero(result.x).tolist(), result.x[jnp.array([3, 20])].tolist()
        ([3, 20], [1.0, -0.5])
    """
    if sparsity is None and tol is None:
        raise ValueError("omp: expected sparsity, tol or both, got neither")
    if tol is not None:
        check_number(tol, "tol", "omp")
    form, arrays = checked_single("omp", D, y, level=tol, size=column_norms, parts=True)
    (checked,), *_ = arrays
    fewest = min(checked.shape) // block_of(checked)
    most = _most(fewest if sparsity is None else sparsity, checked, "omp")
    (x,), *rest = run(Matching(most, _is_by_fit(selection, checked, "omp")), form, *arrays)
    return Pursuit(x, *rest)


def _is_by_fit(selection: Any, D: Dictionary, where: str) -> bool:
    """Whether `selection` is "least_squares"; raise ValueError unless D admits the selection."""
    if not isinstance(selection, str) or selection not in ("correlation", "least_squares"):
        raise ValueError(
            f"{where}: unknown selection {selection!r}; expected correlation or least_squares"
        )
    if selection == "least_squares":
        refuse_parts(D, where, 'try selection="correlation"')
    return selection == "least_squares"


def _most(sparsity: Any, D: Dictionary, where: str) -> int:
    """The maximum number of atoms (or parts) of a code: the smaller of the sparsity and m."""
    most, block = checks.as_index(sparsity, "sparsity", where), block_of(D)
    m, n = D.shape[0], D.shape[1] // block
    if most > n:
        what = "atoms" if block == 1 else "parts"
        raise ValueError(f"{where}: sparsity {most} exceeds the number of {what} {n}")
    return min(most, m)


def omp_batch(
    D: Dictionary,
    Y: ArrayLike,
    sparsity: int,
    weights: ArrayLike | None = None,
    *,
    selection: str = "correlation",
) -> Pursuit:
    r"""`omp` for many signals with one dictionary, computed by another algorithm.

    For every row y of Y, with its own diagonal V or with V = I, `omp_batch` repeats

    .. math:: j = \arg\max_i |d_i' V r| \, \frac{\|d_i\|}{\sqrt{d_i' V d_i}}, \quad
        S \leftarrow S \cup \{j\}, \quad x_S = \arg\min_u (y - D_S u)' V (y - D_S u), \quad
        r = y - D x.

    As in `omp`, the choice favours atoms in proportion to their norms, not to their weighted norms.

    If the codes of D come in parts, the maximised numbers form one vector per part, and each step
    adds all atoms of the part whose vector has the largest norm.

    The algorithm runs on the host, where threads share the signals. It updates the inverse Gram
    matrix of the chosen atoms or, with weights or parts, an orthonormal basis of their span. The
    function is traceable. For a derivative, use `omp` under `vmap`.

    Args:
        D: (m, d). Structured dictionaries are converted to matrices; if the matrix would be too
            large, use `omp` under `vmap`.
        Y: (batch, m). Y may also be a batch of signal grids of a `Conv` (the codes then have the
            shape `D.code_grid`), of complex signals of a `Complex` D, or of signals of a `Joint` D
            (the codes then have the same form as the signals). The batch may be empty. If Y comes
            from `np.load(path, mmap_mode="r")`, the function reads Y in chunks and returns the same
            codes.
        sparsity: maximum number of atoms (or parts) in a code, in 0..d.
        weights: (batch, m) or (m,), the diagonal of V for each flat signal; non-negative, and 0 for
            an unknown entry of Y.
        selection: "correlation", or "least_squares" to add the atom that leaves the smallest
            residual, whatever the norms of the atoms (orthogonal least squares). Codes in parts
            admit only "correlation".

    Returns:
        Pursuit with a leading axis of signals in every field, as from `omp`. With weights,
        `residual` is the root of (y - D x)' V (y - D x), and `gap` compares the squares of such
        residuals. A signal that is not finite has the code 0, the gap inf and `converged` False.

    Raises:
        TypeError: an operand is not real, or sparsity is not a static integer.
        ValueError: shapes do not fit, sparsity is outside 0..d, weights are negative or not finite,
            or `selection` is unknown.

    Reference: Pati, Rezaiifar, Krishnaprasad (1993); Rubinstein, Zibulevsky, Elad (2008); Chen,
    Billings, Luo (1989) for orthogonal least squares.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.omp_batch(D, (D[:, 3:5] - 0.5 * D[:, 20:22]).T, 2)
        >>> result.converged.tolist(), [jnp.flatnonzero(x).tolist() for x in result.x]
        ([True, True], [[3, 20], [4, 21]])
    """
    where = "omp_batch"
    D, signals, dtype, grid = operands_of_many(D, Y, where)
    (m, d), most = D.shape, _most(sparsity, D, where)
    by_fit = _is_by_fit(selection, D, where)
    if weights is not None:
        checks.nonnegative(weights, "weights", where)
        checks.finite(weights, "weights", where)
        if (shape := np.shape(weights)) not in ((m,), signals.shape):
            raise ValueError(
                f"{where}: weights have shape {shape}; expected ({m},) or {signals.shape}"
            )
    options: dict[str, Any] = dict(dtype=np.dtype(dtype), block=block_of(D), by_fit=by_fit)
    V = as_operand(weights, wide_dtype(dtype))
    host = partial(_matched, most=most, **options)
    return on_the_host(host, (dense(D), signals, V), d, dtype, grid)


def _matched(
    D: np.ndarray,
    Y: np.ndarray,
    V: np.ndarray | None,
    *,
    most: int,
    dtype: np.dtype,
    block: int,
    by_fit: bool,
) -> Answers:
    """The codes of the rows of Y, and the residuals of the codes as they are returned."""
    answers, wide = Answers.empty(len(Y), D.shape[1], dtype), wide_dtype(dtype)
    if not np.isfinite(D).all():
        return answers
    D = D.astype(wide)
    a, k = int(host_exponent(D)), host_exponent(D, 0)
    lost = D.any(0) & (np.abs(np.ldexp(D, -a)).max(0) < least_of(wide))
    D, k = np.ldexp(D, -k), k[0] - a
    norms = np.ldexp(np.linalg.norm(D, axis=0), k)
    rounding = 4 * D.shape[0] * np.finfo(wide).eps

    def work(rows: slice) -> None:
        y = rows_of(Y, rows, dtype, "omp_batch").astype(wide)
        weights, c = None, 0
        if V is not None:
            weights = np.broadcast_to(V[rows] if V.ndim == 2 else V, y.shape).astype(wide)
            c = host_exponent(weights, 1) // 2
            weights = np.ldexp(weights, -2 * c)
            y = np.where(weights > 0, y, 0)
        root = 1 if weights is None else np.sqrt(weights)
        finite = np.isfinite(y).all(1)
        y = np.where(finite[:, None], y, 0)
        b = host_exponent(root * y, 1)
        y = np.ldexp(y, -b)
        counts, inside = np.zeros(len(y), int), np.zeros(len(y), wide)
        x = match(D, y, most, weights, norms, (counts, inside), block, by_fit)
        unit = b - a - k
        with np.errstate(over="ignore", invalid="ignore"):
            codes = np.ldexp(x, unit).astype(dtype)
            kept = np.ldexp(codes.astype(wide), -unit)
            size = np.abs(np.ldexp(x, -k)).max(1, initial=0, keepdims=True)
            missed = np.abs(np.ldexp(kept - x, -k))
        residual = np.linalg.norm(root * (y - kept @ D.T), axis=1)
        energy = np.sum((root * y) ** 2, 1)
        gap = np.where(finite, inside / np.where(energy > 0, energy, 1), np.inf)
        # No atom in the range helps, but an atom below the range might help.
        short = lost.any() & (counts < most) & (residual > rounding * np.sqrt(energy))
        held = (missed <= 2 * float(jnp.finfo(dtype).eps) * size).all(1) & np.isfinite(codes).all(1)
        converged = (gap <= rounding) & ~short & held
        residual = np.where(finite, np.ldexp(residual[:, None], b + c)[:, 0], np.nan)
        for field, values in zip(answers, (codes, gap, residual, counts, converged)):
            field[rows] = values

    share(work, len(Y), _CHUNK)
    return answers


@dataclass(frozen=True)
class Matching:
    """The method of `omp`."""

    most: int
    by_fit: bool

    def __call__(self, problem: Problem, x: Array) -> Found:
        (D,), y, *_ = problem
        stop = jnp.zeros((), y.dtype) if problem.level is None else problem.level
        # The atoms are scaled near 1, so that their squares are in the range; `favour` restores
        # their norms in the choice.
        k = exponent(problem.sizes[0][None], 0)[0]
        D, favour = scale_columns(D, power_of_two(-k, y.dtype)), power_of_two(k, y.dtype)
        norms = times_power(problem.sizes[0], -k)
        fixed_D, fixed_y, norms, stop = lax.stop_gradient((D, y, norms, stop))
        penalty = L1.of(D)
        most, by_fit = self.most, self.by_fit
        chosen = atom_by_atom(
            fixed_D, fixed_y, norms, most, stop, penalty=penalty, favour=favour, by_fit=by_fit
        )
        # norm(P r)^2 for the projector P on the span of the chosen atoms, computed from the factor
        # of their Gram matrix.
        inside = _solve_L(chosen.L, _at_chosen(chosen, chosen.r @ fixed_D))
        gap = jnp.sum(inside**2) / 2 / half_energy(fixed_y)
        zero = jnp.zeros((), y.dtype)
        free = Penalized(D, y, zero, zero)
        x = on_branch(slope, 10 * min(D.shape), free, chosen.x, penalty)
        finite = jnp.isfinite(norm(chosen.r))
        rounding = 4 * D.shape[0] * float(jnp.finfo(y.dtype).eps)
        # No atom in the range helps, but an atom below the range might help.
        short = problem.lost[0].any() & (chosen.size < self.most * penalty.block)
        short &= norm(chosen.r) > jnp.maximum(stop, rounding * norm(fixed_y))
        met = finite & (gap <= rounding) & ~short
        gap = jnp.where(finite, gap, jnp.inf)
        steps = chosen.size // penalty.block
        return Found(ldexp(x, -k), gap, steps, met, allowed=problem.level)


def atom_by_atom(
    D: Operator,
    y: Array,
    norms: Array,
    most: int,
    stop: ArrayLike,
    admits: Callable[[Array], Array] | None = None,
    penalty: Penalty = L1,
    favour: ArrayLike = 1.0,
    by_fit: bool = False,
) -> Chosen:
    """Choose atoms one by one, at most `most`, until norm(r) <= stop, for D and y near 1.

    Args:
        D, y: (m, d) and (m,).
        norms: (d,), the norms of the atoms.
        most, stop: the maximum number of atoms, and the norm of the residual at which to stop.
        admits: function of a code that returns whether the code may be the result. The choice ends
            before the first inadmissible code.
        penalty: the penalty that defines the parts; `most` counts parts.
        favour: () or (d,), factors by which the choice multiplies d_i . r.
        by_fit: whether to choose the atom that leaves the smallest residual, and to ignore
            `favour`.
    """
    most *= penalty.block
    slots = max(1, most)
    start = Chosen(
        jnp.zeros(slots, int),
        jnp.eye(slots, dtype=y.dtype),
        jnp.zeros(D.shape[1], y.dtype),
        y,
        jnp.zeros((), int),
        jnp.zeros((), bool),
        norms**2 if by_fit else None,
    )

    def body(s):
        grown, helps = _grown(D, y, norms, s, penalty, favour)
        helps = helps if admits is None else helps & admits(grown.x)
        return jax.tree.map(partial(jnp.where, helps), grown, s._replace(ended=jnp.asarray(True)))

    return programs.while_loop(
        lambda s: (s.size < most) & ~s.ended & (norm(s.r) > stop), body, start
    )


def _grown(
    D: Operator, y: Array, norms: Array, s: Chosen, penalty: Penalty, favour: ArrayLike
) -> tuple[Chosen, Array]:
    """The chosen atoms with the atoms of one more part, and whether this part helps."""
    rounding = negligible(D.shape[0], y.dtype)
    slots, d, block = jnp.arange(len(s.atoms)), D.shape[1], penalty.block
    chosen = jnp.zeros(d, int).at[s.atoms].max((slots < s.size).astype(int), mode="drop")
    taken = penalty.support(chosen)
    g: Any = s.r @ D
    score = penalty.entries(penalty.sizes(favour * g))
    if s.apart is not None:
        far = s.apart > rounding * norms**2
        score = jnp.where(far, jnp.abs(g) / jnp.sqrt(jnp.where(far, s.apart, 1)), 0)
    first = jnp.argmax(jnp.where(taken, 0, score))

    def add(s, j):
        column = (D @ (jnp.arange(d) == j).astype(y.dtype)) @ D
        row = _solve_L(s.L, _at_chosen(s, column))
        pivot = norms[j] ** 2 - jnp.sum(row**2)
        new = pivot > rounding * norms[j] ** 2
        row = jnp.where(new, row, 0)
        L = jnp.where((slots == s.size)[:, None], row[None, :], s.L)
        L = L.at[s.size, s.size].set(jnp.sqrt(jnp.where(new, pivot, 1)))
        atoms = s.atoms.at[s.size].set(jnp.where(new, j, d))
        return s._replace(atoms=atoms, L=L, size=s.size + 1), new

    if block == 1:
        grown, new = add(s, first)
    else:
        grown, new = programs.scan(add, s, first + jnp.arange(block))
    size, of = (penalty.sizes(v)[first // block] for v in (norms, g))
    helps = ~taken[first] & (of > rounding * size * norm(y)) & new.any()
    # Correct the last code by its residual, so that errors of the factor do not stay in x.
    x, L, at = s.x, grown.L, grown.atoms
    if s.apart is not None:  # the span has grown by the unit vector q
        v = _solve_L(L, (slots == s.size).astype(y.dtype), transposed=True)
        q = D @ jnp.zeros(d, y.dtype).at[at].add(v, mode="drop")
        grown = grown._replace(apart=s.apart - (q @ D) ** 2)
    for _ in range(2):
        correction = _solve_L(L, _solve_L(L, _at_chosen(grown, (y - D @ x) @ D)), transposed=True)
        x = x.at[at].add(jnp.where(slots < grown.size, correction, 0), mode="drop")
    return grown._replace(x=x, r=y - D @ x), helps


def _at_chosen(s: Chosen, v: Array) -> Array:
    """The entries of v, (d,), at the chosen atoms, as (k,) with 0 in the unused slots."""
    values = v.at[s.atoms].get(mode="fill", fill_value=0)
    return jnp.where(jnp.arange(len(s.atoms)) < s.size, values, 0)


def _solve_L(L: Array, b: Array, transposed: bool = False) -> Array:
    """L^-1 b, or L'^-1 b, for a lower triangular L."""
    return lax.linalg.triangular_solve(
        L, b[:, None], left_side=True, lower=True, transpose_a=transposed
    )[:, 0]
