"""The LASSO of many signals in one dictionary, by an active set method that certifies every code.

The method runs in float64 on the host; threads share the signals.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import host_exponent, wide_dtype
from unrolled.dictionaries import (
    Dictionary,
    Masked,
    Operator,
    Structured,
    as_flat,
    block_of,
    dense,
    known_entries,
    known_part,
    matrix_of_parts,
    shared_part,
    spread,
    threshold_shapes,
)
from unrolled.penalties import Penalty
from unrolled.pursuit import _problem
from unrolled.pursuit._derivative import Conditions
from unrolled.pursuit._lasso import ADMM, FISTA, Lasso, one_penalty
from unrolled.pursuit._many import (
    Answers,
    Units,
    destination,
    in_numpy,
    on_the_host,
    operands_of_many,
    share,
)
from unrolled.pursuit._problem import (
    Pursuit,
    StaticPart,
    fixed_norm,
    flat_code,
    one_by_one,
    run,
    told,
)
from unrolled.pursuit._torus import is_convolution

__all__ = ["lasso_batch"]


# The largest and the smallest number of signals in a chunk of a thread. Ctrl-C can stop a thread
# only between its chunks, so _PRODUCTS limits a chunk to seconds, even if every code has min(m, d)
# nonzeros and takes about min(m, d)^2 d products.
_CHUNK, _FEWEST = 256, 16
_PRODUCTS = 2**30
# The number of signals of a file whose codes in parts are computed together.
_PARTS = 4096
# The largest number of entries in the codes of a convolution that are computed together: more
# entries do not fit in the cache of a processor.
_ENTRIES = 2**17
# The methods. With `GRAM`, all signals share D'D; with `SETS`, a signal has the Gram matrix of its
# working set. As measured (benchmarks/exact_codes.py), `GRAM` takes less time for up to FEW atoms,
# and if D'D has at most GRAMS times as many entries as the matrices of all sets; it needs d^2
# numbers, for up to LARGEST atoms. A set has at least 32 atoms, and about 1.2 times as many as the
# code has nonzeros.
GRAM, SETS = "gram", "working sets"
FEW, GRAMS, LARGEST = 512, 3, 8192
_LEAST_SET, _USUAL_SET, _SPARE = 32, 52, 1.2
_SAMPLE, _ROUGH = 8, 1e-3  # signals that tell the number of nonzeros, and the tol of their codes
# A constraint counts as met if its violation, relative to the product of the norms of the atom and
# the signal, is at most this value.
_SLACK = 1e-11


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
    mask: ArrayLike | None = None,
    sparse: bool = False,
    out: np.ndarray | None = None,
) -> Pursuit:
    r"""`lasso` for many signals with one dictionary, by an active set method.

    .. math:: \min_x \tfrac12 \|y - D x\|^2 + \sum_i lam_i |x_i| + \tfrac{l2}{2} \|x\|^2
        \quad \text{for every row } y \text{ of } Y.

    The method moves towards the minimiser and stops at the first code whose duality gap, computed
    in float64, is at most tol. If D has few atoms for the number of signals and of nonzeros (as
    eight of the signals tell), all signals share D'D, and `how` of the result is "gram". Otherwise
    `how` is "working sets": all signals of a block go through the same rounds. One product of all
    residuals with D gives the gap of every signal and the atoms that violate their constraints, and
    each signal is then minimised over its own tens of atoms. No matrix D'D is formed, and
    structured dictionaries and arrays on an accelerator are used only through products r @ D, which
    run where the arrays are, and single columns. The products may run in float32: the gap allows
    for their rounding errors.

    The rest of the method runs on the host, compiled by numba: the first call takes seconds unless
    an earlier process has saved the machine code. The function is traceable, and differentiable
    once, in reverse mode, in D, Y, lam, ratio and l2, with each support held fixed; the derivative
    solves one k x k system for a code with k nonzeros. If `margin` is below the root of tol, the
    minimiser may have another support.

    If the codes of D come in parts, |x_i| is the norm of a part. A `Complex`, `Joint` or `Grouped`
    matrix has working sets of parts, each of them minimised part after part; `steps` counts the
    sweeps over a set. In all other cases with parts (an operator, a mask for each signal or of a
    `Joint`, a penalty of 0, traced arguments), and if D is a `Conv` of stride 1 with more than 512
    atoms, `lasso_batch` runs `lasso` for each signal. Then `how` of the result is "fista" or
    "admm", the gap has the precision of the dtype, `steps` counts steps, and there is no margin.

    Args:
        D: (m, d). A structured dictionary without parts becomes a matrix if it has few atoms for
            the number of signals, or if an argument is traced. An array of numpy is read where it
            is; it may be a memmap.
        Y: (batch, m). Y may also be a batch of signal grids of a `Conv` (the codes then have the
            shape `D.code_grid`), of complex signals of a `Complex` D, or of signals of a `Joint` D
            (the codes then have the same form as the signals). The batch may be empty. If Y comes
            from `np.load(path, mmap_mode="r")`, the function reads Y in chunks and returns the same
            codes.
        lam: penalty weight: one number, one per atom (d,), one per filter of a `Conv`, one per
            signal (batch, 1), or one per signal and atom (batch, d). If codes come in parts, lam
            has one number per part instead of one per atom.
        ratio: lam / lam_max(D, y) for every signal, which may be given instead of lam, in the same
            shapes.
        tol, nonnegative, l2: as in `lasso`.
        start: (batch, d), codes to start from, such as those of a trained network. Near the
            minimiser, the whole support changes in each of a few steps, for one Cholesky factor.
        max_steps: maximum number of moves for a signal; in a move, an atom becomes active or
            inactive, or the support of a start changes.
        mask: array of bool, in the shape of Y or (m,) for all signals, True where an entry is
            known. The codes fit only the known entries, as with `dictionaries.Masked`; unknown
            entries may be NaN. `ratio`, `gap` and `residual` then refer to the known entries.
        sparse: whether `x` is a record with the indices and the values of the nonzeros, and the
            methods `dense()`, `scipy()` and `D @ x`. Only the nonzeros of finished codes are in
            memory.
        out: numpy array (batch, d) in the dtype of the codes, such as a memmap, to write the codes
            into; `x` is this array.

    Returns:
        Pursuit with a leading axis of signals in every field; `steps` counts moves. `margin` is the
        least of |x_i| / max |x| on the support and of 1 - |d_i . r| / lam_i off the support (free
        atoms do not count). The code has the dtype of D and Y, and `gap`, `residual` and
        `converged` belong to the code in this dtype: if the dtype cannot reach tol, `converged` is
        False (float32 reaches about 1e-7; cast half precision to float32 first). A signal that is
        not finite has the code 0 and the gap inf. A signal also has this result if two ratios of
        some atom are both below 1e-31 in float32 or 1e-146 in float64. The first ratio is the
        largest entry of the atom over the largest entry of D. The second ratio is the penalty of
        the atom over the product of the largest entries of D and of the signal.

    Raises:
        TypeError, ValueError: as in `lasso`, and if mask is not bool or has another shape, or if
            D has more than 8,192 atoms and some of them have no penalty.
        MemoryError: the array of codes needs more than the memory of this machine.

    Reference: Lawson, Hanson (1974), chapter 23; Lee et al. (2007) for the signs; Massias,
    Gramfort, Salmon (2018) for working sets; Hintermueller, Ito, Kunisch (2002) for the starts.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.lasso_batch(D, (D[:, 3:5] - 0.5 * D[:, 20:22]).T, ratio=0.1)
        >>> result.converged.tolist(), [jnp.flatnonzero(x).tolist() for x in result.x]
        ([True, True], [[3, 20], [4, 21]])
    """
    where = "lasso_batch"
    D, signals, dtype, grid = operands_of_many(D, Y, where, viewed=block_of(D) > 1)
    if _problem.is_zero(D):
        raise ValueError(f"{where}: D is zero")
    tol, nonnegative = (
        _problem.static_tol(tol, where),
        checks.as_bool(nonnegative, "nonnegative", where),
    )
    max_steps, n = _problem.static_steps(max_steps, where), len(signals)
    value, name = one_penalty(lam, ratio, where)
    weight = _penalties(D, value, name, where, wide_dtype(dtype), n)
    _problem.check_number(l2, "l2", where)
    checks.in_range(l2, wide_dtype(dtype), "l2", where)
    X = _problem.as_start(D, start, "", where, (n,))
    known: Any = None if mask is None else known_entries(D, mask, n, where)
    options: dict[str, Any] = dict(
        relative=lam is None, tol=tol, nonnegative=nonnegative, max_steps=max_steps
    )
    into = destination(D, signals, sparse, out, dtype, grid, where)
    convolved = is_convolution(D) and D.shape[1] > FEW
    if block_of(D) > 1 or convolved:
        result = _one_by_one(D, signals, weight, l2, X, known, dtype=dtype, grid=grid, **options)
        if into is None:
            return result
        into[np.arange(n)] = np.asarray(result.x)
        return told(result.replace(x=into.codes() if sparse else into), result.how)
    weight = as_rows(spread(D, flat_code(D, weight)))
    operands = signals, weight, _problem.as_operand(l2, np.dtype(float)), X, known
    options["dtype"] = np.dtype(dtype)
    how = _method(D, weight, n, where, partial(_nonzeros, D, *operands, **options))
    host = partial(lasso_of_rows if how == GRAM else _by_sets, into=into, **options)
    given, conditions = (D, signals, weight, l2), None
    if not checks.is_concrete(given):
        conditions = _conditions(*given, known, lam is None, nonnegative)
    whole: Any = dense(D) if how == GRAM and isinstance(D, Structured) else D
    result = on_the_host(host, (whole, *operands), D.shape[1], dtype, grid, conditions, into)
    return told(result, how)


def _conditions(
    D: Operator, Y: Any, lam: Any, l2: Any, known: Any, relative: bool, nonnegative: bool
) -> Conditions:
    """The arguments on which the codes depend; `relative` as in `lasso_of_rows`."""
    Y = jnp.asarray(Y if known is None else jnp.where(known, Y, 0))
    if relative:
        products = Y @ D
        top = products if nonnegative else jnp.abs(products)
        lam = lam * jnp.maximum(jnp.max(top, 1, keepdims=True), 0)
    return Conditions(D, Y, lam, l2, None if known is None else jnp.asarray(known, Y.dtype))


def _one_by_one(
    D: Operator,
    Y: Any,
    weight: Any,
    l2: Any,
    start: Any,
    known: Any,
    *,
    dtype: np.dtype,
    grid: Any,
    relative: bool,
    tol: float,
    nonnegative: bool,
    max_steps: int,
) -> Pursuit:
    """The codes by working sets of parts, or by `lasso`; the signals of a file chunk by chunk."""
    penalty = Penalty(block_of(D), nonnegative)
    method = Lasso(tol, max_steps, penalty)
    form = StaticPart(np.dtype(dtype), grid, fixed_norm, relative=relative, kind=penalty)
    several = np.shape(weight) not in (*threshold_shapes(D), getattr(D, "code_grid", ()))
    weight = weight if several else one_by_one(D, weight)
    ridge = _problem.as_operand(l2, wide_dtype(dtype))
    plain = checks.is_concrete((D, Y, weight, l2, start, known)) and np.ndim(known) < 2
    own = known_part(D, 0.0, known)[0] if plain else D
    matrix, *parts = matrix_of_parts(own) if plain and np.all(weight) else (None,)
    options = dict(parts=parts, relative=relative, tol=tol, max_steps=max_steps, dtype=dtype)

    def solved(rows: slice, signals: Any) -> Pursuit:
        lam = weight[rows] if several else weight
        if matrix is not None:
            signals = signals if known is None else np.where(known, signals, 0)
            signals = signals[:, : len(matrix) * parts[1]]  # without the padding of `Grouped`
            operands = matrix, signals, as_rows(lam), ridge, None if start is None else start[rows]
            return on_the_host(partial(_by_parts, **options), operands, D.shape[1], dtype, grid)
        mask = known[rows] if np.ndim(known) > 1 else known
        own, signals = known_part(D, jnp.asarray(signals), mask)
        own, signals = checks.cast((own, signals), dtype)
        first = None if start is None else start[rows]
        result = _together(method, form, several, own, signals, lam, ridge, first)
        return result.replace(gap=jnp.where(jnp.isfinite(signals).all(1), result.gap, jnp.inf))

    how = SETS if matrix is not None else ADMM if block_of(D) == 1 else FISTA
    if not isinstance(Y, np.memmap):
        return told(solved(slice(None), Y), how)
    size = _PARTS if checks.is_concrete((D, weight, l2, start, known)) else len(Y)
    chunks = []
    for rows in (slice(first, first + size) for first in range(0, len(Y), size)):
        flat, _ = as_flat(D, np.array(Y[rows]), 1)
        name = f"Y[{rows.start}:{rows.stop}]"
        chunks.append(solved(rows, checks.on_host_or_device(flat, name, "lasso_batch")))
    return told(jax.tree.map(lambda *fields: jnp.concatenate(fields), *chunks), how)


@programs.on_auto_axes
@partial(jax.jit, static_argnums=(0, 1, 2))
def _together(
    method: Lasso,
    form: StaticPart,
    several: bool,
    D: Operator,
    Y: Array,
    lam: Any,
    l2: Any,
    start: Any,
) -> Pursuit:
    """`lasso` for some signals at a time; `several`: whether lam has a row for every signal."""

    base = shared_part(D)

    def one(row):
        mask, y, own, start = row
        weight = own if several else lam
        weight = weight[0] if np.shape(weight) == (1,) else weight
        of_signal = base if mask is None else Masked._of(base, mask)
        (x,), *rest = run(method, form, (of_signal,), y, (weight,), l2, None, start)
        return Pursuit(x, *rest)

    masks = None if base is D else D.mask  # type: ignore[union-attr]
    rows = masks, Y, lam if several else None, start
    size = max(1, _ENTRIES // D.shape[1])
    if is_convolution(base) and size < len(Y):
        return lax.map(one, rows, batch_size=size)
    return jax.vmap(one)(rows)


def _method(D: Operator, lam: Any, n: int, where: str, nonzeros: Callable[[], float | None]) -> str:
    """The method for n signals: `GRAM`, or `SETS` if D is large or the sets are small.

    Args:
        D, lam, where: as in `lasso_batch`.
        n: the number of signals.
        nonzeros: function that returns the mean number of nonzeros of some codes, or None if the
            arguments are traced.

    Raises:
        ValueError: some atoms have no penalty, so that only `GRAM` would do, and D is too large.
    """
    d = D.shape[1]
    free = checks.is_concrete(lam) and not np.asarray(lam).all()
    if free and d > LARGEST:
        raise ValueError(
            f"{where}: D has {d} atoms and some of them have lam 0; expected at most {LARGEST} "
            "atoms with free ones, try a small lam, or lasso under vmap"
        )

    def shared(size: float) -> bool:
        return d * d <= GRAMS * n * size**2

    if free or d <= min(FEW, LARGEST):
        return GRAM
    if d > LARGEST or not shared(_SPARE * min(D.shape)):
        return SETS
    if shared(_LEAST_SET):
        return GRAM
    count = nonzeros()
    size = _USUAL_SET if count is None else max(_LEAST_SET, _SPARE * count)
    return GRAM if shared(size) else SETS


def _nonzeros(*operands: Any, tol: float, **options: Any) -> float | None:
    """The mean number of nonzeros of the codes of some signals, or of a start.

    Starts that are 0, or that have more nonzeros than a signal has entries, do not count. For
    traced operands the number is None.
    """
    if not checks.is_concrete(operands):
        return None
    D, Y, lam, l2, start, known = operands
    n = len(Y)
    if start is not None:
        counts = np.count_nonzero(in_numpy(start), axis=1)
        if len(counts := counts[(counts > 0) & (counts <= D.shape[0])]):
            return float(counts.mean())
    rows = np.unique(np.linspace(0, n - 1, _SAMPLE).astype(int))

    def some(v: Any) -> Any:
        return v[rows] if np.ndim(v) == 2 and len(v) == n else v

    part = (in_numpy(some(v)) for v in (Y, lam, l2, start, known))
    codes = _by_sets(in_numpy(D), *part, tol=max(tol, _ROUGH), **options).x
    return np.count_nonzero(codes) / len(rows)


def _by_sets(*operands: Any, **options: Any) -> Answers:
    """`lasso_by_sets`, whose file imports numba."""
    from unrolled.pursuit import _working_sets

    return _working_sets.lasso_by_sets(*operands, **options)


def _by_parts(*operands: Any, **options: Any) -> Answers:
    """`lasso_by_parts`, whose file imports numba."""
    from unrolled.pursuit import _part_sets

    return _part_sets.lasso_by_parts(*operands, **options)


def lasso_of_rows(
    D, Y, lam, l2=0.0, start=None, masks=None, *, dtype=np.float64, into=None, **options
):
    """The codes of the rows of Y, with the gap and the residual of the codes as they are returned.

    Args:
        D, Y, l2, start: as in `lasso_batch`, arrays of numpy.
        lam: (1, 1), (1, d), (n, 1) or (n, d).
        masks: (m,) or (n, m), whether an entry of a signal is known.
        dtype: the dtype of the codes.
        into: array to write the codes into; None for a new one.
        options: relative, tol, nonnegative, max_steps, as in `Units`.
    """
    from unrolled.pursuit import _active_set  # imports numba

    answers = Answers.empty(len(Y), D.shape[1], dtype, into)
    D = np.asarray(D, float)
    D = D if masks is None or masks.ndim > 1 else D * masks[:, None]
    if not (np.isfinite(D).all() and D.any()):
        return answers
    a = int(host_exponent(D))
    near = np.ldexp(D, -a)
    sizes = np.abs(near).max(0)
    units = Units(Y, lam, float(l2), start, masks, np.dtype(dtype), a, sizes, **options)
    ridge, nonnegative = units.ridge, units.nonnegative
    problem = _active_set.problem_of(near, ridge, nonnegative)
    levels: dict[bytes, float] = {}

    def work(rows: slice) -> None:
        y, b, known = units.signals(rows)
        products = y @ near
        lam = units.penalties(rows, b, products)
        some = units.codable(y, lam)
        y, lam, b = y[some], lam[some], b[some, 0]
        known = None if known is None else known[some]
        codes = _active_set.minimise(
            *(problem, y, products[some], lam, slack_of(near, y, lam, units.tol, known, levels)),
            tol=units.tol,
            moves=units.max_steps,
            start=units.starts(rows.start + some, b),
            masks=None if known is None else known.astype(float),
            digits=units.digits,
            finest=units.finest + a - b,
        )
        if units.digits < 53:  # a rounded code has no r that is orthogonal to the free atoms
            for i in np.flatnonzero((lam == 0).any(1)):
                A = near if known is None else near * known[i][:, None]
                codes.gap[i] = gap_beside_free_atoms(
                    A, y[i], codes.x[i], lam[i], ridge, nonnegative
                )
        units.store(answers, rows.start + some, b, *codes[:4], codes.margin)

    share(work, len(Y), _chunk(D.shape))
    return answers


def gap_beside_free_atoms(
    D: np.ndarray, y: np.ndarray, x: np.ndarray, lam: np.ndarray, l2: float, nonnegative: bool
) -> float:
    """`duality_gap`, relative to norm(y)^2 / 2, of a code with free atoms (lam 0), in float64.

    The residual of the dual point has no part in the span of the free atoms; with l2 > 0, the
    conjugate of the penalty gives a dual value at the residual itself.
    """
    r = y - D @ x
    half = y @ y / 2 or 1.0
    if l2 > 0:
        h = r @ D
        within = np.minimum(h, lam) if nonnegative else np.clip(h, -lam, lam)
        excess = np.maximum(lam * np.abs(x) - x * within, 0)
        return float(np.sum(l2 / 2 * (x - (h - within) / l2) ** 2 + excess)) / half
    free = np.broadcast_to(lam == 0, x.shape)
    span, values, _ = np.linalg.svd(
        D[:, free & (x > 0) if nonnegative else free], full_matrices=False
    )
    span = span[:, values > max(D.shape) * np.finfo(float).eps * values.max(initial=0)]
    nu = r - span @ (r @ span)
    g = nu @ D
    size = (g if nonnegative else np.abs(g))[~free]
    if nonnegative and (g[free & (x == 0)] > _SLACK * np.linalg.norm(y)).any():
        return float(np.sum(r**2) / 2 + np.sum(lam * np.abs(x))) / half  # the dual point 0
    paid = np.broadcast_to(lam, x.shape)[~free]
    s = min(1.0, float((paid / np.maximum(size, paid)).min(initial=1)))
    excess = np.maximum(paid * np.abs(x[~free]) - s * x[~free] * g[~free], 0)
    return float(np.sum((r - nu) ** 2) / 2 + (1 - s) ** 2 * np.sum(nu**2) / 2 + excess.sum()) / half


def minima(
    D: np.ndarray,
    Y: np.ndarray,
    lam: np.ndarray,
    l2: float,
    start: np.ndarray,
    finite: np.ndarray,
    *,
    nonnegative: bool,
    slack: np.ndarray,
    **limits: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The codes and the rounds of the active set method, for signals scaled near 1.

    Args:
        D, Y, lam, l2, start, nonnegative: as in `lasso_of_rows`, in float64.
        finite: (n,), whether to code a signal; otherwise its code is zero.
        slack, limits: operands of `_active_set.minimise`.
    """
    from unrolled.pursuit import _active_set  # imports numba

    x, rounds = np.zeros((len(Y), D.shape[1])), np.zeros(len(Y), int)
    problem, rows = _active_set.problem_of(D, float(l2), nonnegative), np.flatnonzero(finite)

    def work(part: slice) -> None:
        some = rows[part]
        signals = Y[some]
        operands = problem, signals, signals @ D, np.ascontiguousarray(lam[some]), slack[some]
        codes = _active_set.minimise(*operands, start=start[some], **limits)
        x[some], rounds[some] = codes.x, codes.rounds

    if len(rows):
        share(work, len(rows), _chunk(D.shape))
    return x, rounds


def _chunk(shape: tuple[int, ...]) -> int:
    """The number of signals in a chunk of a thread."""
    m, d = shape
    return min(max(_PRODUCTS // (min(m, d) ** 2 * d), _FEWEST), _CHUNK)


def slack_of(
    D: np.ndarray,
    Y: np.ndarray,
    lam: np.ndarray,
    tol: float,
    masks: np.ndarray | None,
    levels: dict[bytes, float],
) -> np.ndarray:
    """The largest violation, (n,), relative to the norm of the atom, at which a constraint is met.

    For a free atom, which has no penalty, |d_i . r| counts as 0 up to the slack. The slack is
    reduced if it could otherwise hide an excess of tol / 2. Let sigma be the least nonzero singular
    value of the k free unit atoms u_i. If |u_i . r| <= e for all i, the distance of r from the
    vectors orthogonal to these atoms is at most e sqrt(k) / sigma. `levels` keeps the slack of each
    pair of a mask and free atoms.
    """
    sizes, free = np.linalg.norm(Y, axis=1), lam == 0
    if not free.any():
        return _SLACK * sizes
    known = np.ones((1, len(D)), bool) if masks is None else masks

    def level(rows: np.ndarray, is_free: np.ndarray) -> float:
        A = D[rows]
        norms = np.linalg.norm(A, axis=0)
        atoms = np.broadcast_to(is_free, norms.shape) & (norms > 0)
        if not atoms.any():
            return _SLACK
        s = np.linalg.svd(A[:, atoms] / norms[atoms], compute_uv=False)
        sigma = s[s > max(D.shape) * np.finfo(float).eps * s[0]].min()
        return min(_SLACK, tol * sigma / (4 * math.sqrt(atoms.sum())))

    for i in range(len(Y)):
        rows, is_free = known[i % len(known)], free[i]
        if (key := rows.tobytes() + is_free.tobytes()) not in levels:
            levels[key] = level(rows, is_free)
        sizes[i] *= levels[key]
    return sizes


def _penalties(
    D: Dictionary, lam: ArrayLike, name: str, where: str, dtype: np.dtype, n: int
) -> Any:
    """The checked penalties of n signals; known numbers keep the digits that the caller gave."""
    checked = _problem.penalty(D, lam, name, where, dtype, batch=n)
    return np.asarray(lam, float) if isinstance(checked, np.ndarray) else checked


def as_rows(weight: Any) -> Any:
    """One penalty, or one for each atom, as one row; an array that is not traced in numpy."""
    return np.atleast_2d(weight) if checks.is_concrete(weight) else jnp.atleast_2d(weight)


def weights_of_many(D: Dictionary, lam: ArrayLike, n: int, where: str) -> np.ndarray:
    """The penalties of n signals, checked, in float64: (n, 1) or (n, d)."""
    weight = as_rows(spread(D, flat_code(D, _penalties(D, lam, "lam", where, np.dtype(float), n))))
    return np.broadcast_to(weight, (n, weight.shape[1])).astype(float)
