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

from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import exponent, ldexp, norm, times_power, wide_dtype
from unrolled._base.threads import threads
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    as_dictionary,
    as_flat,
    block_of,
    dense,
    known_entries,
    known_part,
    shared_part,
    signal_axes,
    spread,
    threshold_shapes,
)
from unrolled.penalties import Penalty
from unrolled.pursuit import _problem
from unrolled.pursuit._lasso import Lasso, one_penalty
from unrolled.pursuit._problem import (
    Grid,
    Pursuit,
    StaticPart,
    bounded,
    fixed_norm,
    flat_code,
    is_held,
    least_of,
    one_by_one,
    out_of_range,
    rounded,
    run,
)

__all__ = ["lasso_batch"]


# The largest and the smallest number of signals in a chunk of a thread, and the number of signals
# whose arrays are in memory together. Ctrl-C can stop a thread only between its chunks, so
# _PRODUCTS limits a chunk to seconds, even if every code has min(m, d) nonzeros and takes about
# min(m, d)^2 d products.
_CHUNK, _FEWEST, BLOCK = 256, 16, 4096
_PRODUCTS = 2**30
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
) -> Pursuit:
    r"""`lasso` for many signals with one dictionary, by an active set method.

    .. math:: \min_x \tfrac12 \|y - D x\|^2 + \sum_i lam_i |x_i| + \tfrac{l2}{2} \|x\|^2
        \quad \text{for every row } y \text{ of } Y.

    The method moves towards the minimiser and stops at the first code whose duality gap, computed
    in float64, is at most tol. It runs on the host, compiled by numba: the first call takes seconds
    unless an earlier process has saved the machine code. The function is traceable. For a
    derivative, use `lasso` under `vmap`. If the codes of D come in parts, `lasso_batch` itself runs
    `lasso` under `vmap`. Then |x_i| is the norm of a part, the gap has the precision of the dtype,
    and `steps` counts steps of FISTA.

    Args:
        D: (m, d). Structured dictionaries without parts are converted to matrices; if the matrix
            would be too large, use `lasso` under `vmap`.
        Y: (batch, m). Y may also be a batch of signal grids of a `Conv` (the codes then have the
            shape `D.code_grid`), of complex signals of a `Complex` D, or of signals of a `Joint` D
            (the codes then have the same form as the signals). The batch may be empty. If Y comes
            from `np.load(path, mmap_mode="r")`, the function reads Y in chunks and returns the same
            codes. All codes must fit in memory; to write codes to a file, use `unrolled encode`.
        lam: penalty weight: one number, one per atom (d,), one per filter of a `Conv`, one per
            signal (batch, 1), or one per signal and atom (batch, d). If codes come in parts, lam
            has one number per part instead of one per atom.
        ratio: lam / lam_max(D, y) for every signal, which may be given instead of lam, in the same
            shapes.
        tol, nonnegative, l2: as in `lasso`.
        start: (batch, d), codes to start from.
        max_steps: maximum number of moves for a signal; in a move, an atom becomes active or
            inactive.
        mask: array of bool, in the shape of Y or (m,) for all signals, True where an entry is
            known. The codes fit only the known entries, as with `dictionaries.Masked`; unknown
            entries may be NaN. `ratio`, `gap` and `residual` then refer to the known entries.

    Returns:
        Pursuit with a leading axis of signals in every field; `steps` counts moves, and `gap`
        belongs to the code before the code is rounded to the dtype of Y. A signal that is not
        finite has the code 0 and the gap inf. A signal also has this result if two ratios of some
        atom are both below 1e-31 in float32 or 1e-146 in float64. The first ratio is the largest
        entry of the atom over the largest entry of D. The second ratio is the penalty of the atom
        over the product of the largest entries of D and of the signal.

    Raises:
        TypeError, ValueError: as in `lasso`, and if mask is not bool or has another shape.

    Reference: Lawson, Hanson (1974), chapter 23; Lee et al. (2007) for the signs.

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
    wide, tol = wide_dtype(dtype), _problem.static_tol(tol, where)
    nonnegative = checks.as_bool(nonnegative, "nonnegative", where)
    max_steps = _problem.static_steps(max_steps, where)
    value, name = one_penalty(lam, ratio, where)
    weight = _problem.penalty(D, value, name, where, wide, batch=len(signals))
    _problem.check_number(l2, "l2", where)
    checks.in_range(l2, wide, "l2", where)
    X = _problem.as_start(D, start, "", where, (len(signals),))
    known: Any = None if mask is None else known_entries(D, mask, len(signals), where)
    several = np.shape(weight) not in (*threshold_shapes(D), getattr(D, "code_grid", ()))
    options = dict(relative=lam is None, tol=tol, nonnegative=nonnegative, max_steps=max_steps)
    host = partial(lasso_of_many, warm=start is not None, **options)

    def part(Y: Array, rows: slice | None) -> tuple[Any, ...]:
        """D, signals, weights and starts of some rows."""
        weights = weight[rows] if several and rows else weight
        masks = known[rows] if np.ndim(known) == 2 and rows else known
        return *known_part(D, Y, masks), weights, X[rows] if X is not None and rows else X

    def by_parts(Y: Array, rows: slice | None) -> Pursuit:
        penalty = Penalty(block_of(D), nonnegative)
        method = Lasso(tol, max_steps, penalty)
        form = StaticPart(np.dtype(dtype), grid, fixed_norm, relative=lam is None, kind=penalty)
        own, Y, weights, first = part(Y, rows)
        weights = weights if several else one_by_one(D, weights)
        ridge = _problem.as_operand(l2, wide)
        own, Y = checks.cast((own, Y), dtype)
        result = _together(method, form, several, own, Y, weights, ridge, first)
        return result.replace(gap=jnp.where(jnp.isfinite(Y).all(1), result.gap, jnp.inf))

    def solved(Y: Array, rows: slice | None) -> Pursuit:
        own, Y, weights, first = part(Y, rows)
        operands, (a, b) = _scaled(
            wide, lam is None, own, Y, weights, _problem.as_operand(l2, wide), first
        )
        answers = on_the_host(host, operands, D.shape[1])
        return batch_result(dtype, grid, answers, a, b, *operands[:2], *operands[5:])

    return in_chunks(by_parts if block_of(D) > 1 else solved, signals, where)


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
    """`lasso` under `vmap`; `several` says whether lam has a row for every signal."""

    def one(D, y, lam, start):
        lam = lam[0] if np.shape(lam) == (1,) else lam
        (x,), *rest = run(method, form, (D,), y, (lam,), l2, None, start)
        return Pursuit(x, *rest)

    axes = signal_axes(D), 0, 0 if several else None, None if start is None else 0
    return jax.vmap(one, axes)(D, Y, lam, start)


def operands_of_many(D: Dictionary, Y: Any, where: str) -> tuple[Operator, Any, np.dtype, Grid]:
    """Checked arguments: D, signals in rows, the dtype of the result and the grid of a code.

    The signals of a mapped file stay in the file if there are more than `BLOCK` of them. If codes
    of D come in parts, the signals must also be real and flat to stay in the file.
    """
    mapped = isinstance(Y, np.memmap) and Y.ndim > 1 and len(Y) > BLOCK
    mapped = mapped and as_flat(D, Y[:1], 1)[1] is None
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
    """The result for all signals; the signals of a mapped file are solved chunk by chunk.

    Args:
        solve: function of some signals and the slice of their rows; the slice is None for all rows.
        Y: as `operands_of_many` returns them.
        where: the name of the caller, with which messages begin.
    """
    if not isinstance(Y, np.memmap):
        return solve(Y, None)
    fields: list[np.ndarray] = []
    for first in blocks_of(Y):
        rows = slice(first, min(first + BLOCK, len(Y)))
        signals = checks.as_float(np.array(Y[rows]), f"Y[{first}:{rows.stop}]", where)
        result = solve(signals, rows)
        if not checks.is_concrete(result):  # the caller's program holds all signals
            return solve(checks.as_float(np.array(Y), "Y", where), None)
        parts = list(map(np.asarray, jax.tree.leaves(result)))
        fields = fields or [np.empty((len(Y), *part.shape[1:]), part.dtype) for part in parts]
        for field, part in zip(fields, parts):
            field[rows] = part
    return jax.tree.unflatten(jax.tree.structure(result), map(jnp.asarray, fields))


def on_the_host(host: Any, operands: Any, d: int) -> tuple:
    """x, gap, residual, steps and converged of every signal, computed by a numpy function.

    Args:
        host: function that takes the operands as numpy arrays.
        operands: D, the signals, and further arguments.
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
    """D, Y, weights, l2 and start, scaled near 1, and the exponents of D and of every signal.

    If every signal has its own mask, the masks follow the start in the first tuple.
    """
    whole: Any = D
    masks = () if shared_part(D) is D else (whole.mask.astype(dtype),)
    matrix, Y = dense(checks.cast(shared_part(D), dtype)), Y.astype(dtype)
    a, b = exponent(matrix), exponent(Y, 1)
    weight = spread(D, flat_code(D, jnp.asarray(weight, dtype)))
    columns = D.shape[1] if weight.shape[-1:] == D.shape[1:] else 1
    weight = jnp.broadcast_to(weight, (len(Y), columns))
    if not relative:
        weight = bounded(ldexp(weight, -(a + b)))
    # Without a start, X is an array that nothing reads.
    X = jnp.zeros((len(Y), 1)) if start is None else start
    ridge, X = bounded(ldexp(jnp.asarray(l2, dtype), -2 * a)), ldexp(X.astype(dtype), a - b)
    near, Y = times_power(matrix, -a), times_power(Y, -b)
    # An atom that is below the range in these units may belong to the code if its penalty is also
    # below the range. The function then marks the signal with NaN, so that it gets no code.
    least = max(least_of(dtype), math.sqrt(least_of(np.dtype(float))))  # D'D has squares
    lost = out_of_range(matrix, a, least)[None] & (weight < least)
    Y = jnp.where(lost.any(1, keepdims=True), jnp.nan, Y)
    return (near, Y, weight, ridge, X, *masks), (a, b)


@programs.on_auto_axes
@partial(jax.jit, static_argnums=(0, 1))
def batch_result(
    dtype: np.dtype, grid: Grid, answers: tuple[Array, ...], a: Array, b: Array, *signals: Array
) -> Pursuit:
    """The answers in the caller's dtype and units; D was divided by 2^a and the signals by 2^b.

    Given D, the signals and their masks in these units, the function computes the residual of the
    codes after rounding to half precision.
    """
    x, gap, residual, steps, converged = answers
    if signals and dtype != x.dtype:
        D, Y, *masks = signals
        with jax.default_matmul_precision("highest"):
            left = Y - rounded(x, dtype) @ D.T
        residual = norm(masks[0] * left if masks else left, 1)
    codes, k = ldexp(x, b - a).astype(dtype), (b - a)[:, 0]
    converged = converged & jax.vmap(is_held)(codes, x, k)
    if grid is not None:
        codes = grid(codes) if callable(grid) else codes.reshape(-1, *grid)
    residual = times_power(residual, b[:, 0]).astype(dtype)
    return Pursuit(codes, gap.astype(dtype), residual, steps, converged)


def lasso_of_many(
    D, Y, lam, l2=0.0, start=None, masks=None, *, relative=False, tol=1e-6, nonnegative=False,
    max_steps=10_000, warm=False,
):  # fmt: skip
    """x, gap, residual, steps and converged of every signal, in numpy.

    Args:
        D, Y, lam, l2, start: as in `lasso_batch`, scaled near 1; lam is (n, 1) or (n, d).
        masks: (n, m), 0 where an entry of a signal is not known, else 1.
        relative: whether lam is a ratio to lam_max of every signal.
        tol, nonnegative, max_steps: as in `lasso_batch`.
        warm: whether start holds codes.
    """
    dtype, (D, Y, lam) = Y.dtype, (np.asarray(v, np.float64) for v in (D, Y, lam))
    finite = np.isfinite(Y).all(1) & np.isfinite(lam).all(1) & np.isfinite(D).all() & D.any()
    x, gap, residual, steps, _ = minima(
        *(D, Y, lam, l2, start if warm else None, finite),
        masks=masks,
        relative=relative,
        nonnegative=nonnegative,
        slack=slack_of(D, Y, lam, tol, masks) if finite.any() else np.zeros(0),
        tol=tol,
        moves=max_steps,
    )
    integer = jax.dtypes.canonicalize_dtype(int)
    numbers = (x.astype(dtype), gap.astype(dtype), residual.astype(dtype), steps.astype(integer))
    return *numbers, gap <= tol


def minima(
    D: np.ndarray,
    Y: np.ndarray,
    lam: np.ndarray,
    l2: float,
    start: np.ndarray | None,
    finite: np.ndarray,
    *,
    masks: np.ndarray | None = None,
    relative: bool = False,
    nonnegative: bool,
    slack: np.ndarray,
    **limits: Any,
) -> tuple[np.ndarray, ...]:
    """x, gap, residual, moves and rounds of the active set method, for every signal.

    Args:
        D, Y, lam, l2, start, masks, relative, nonnegative: as in `lasso_of_many`, in float64.
        finite: (n,), whether to code a signal; otherwise its code is zero and its gap is infinite.
        slack: (n,), the largest violation, relative to the norm of the atom, at which a constraint
            counts as met.
        limits: the limits of `_active_set.minimise`.
    """
    from unrolled.pursuit import _active_set  # imports numba

    n, d = len(Y), D.shape[1]
    results = np.zeros((n, d)), np.full(n, np.inf), np.full(n, np.nan), *np.zeros((2, n), int)
    if not finite.any():
        return results
    problem = _active_set.problem_of(D, float(l2), nonnegative)

    def work(part: np.ndarray) -> None:
        signals, weights = Y[part], np.ascontiguousarray(lam[part])
        products = signals @ D
        if relative:
            top = products if nonnegative else np.abs(products)
            weights = weights * np.maximum(top.max(1, keepdims=True), 0)
        first = None if start is None else start[part].astype(np.float64)
        own = None if masks is None else masks[part].astype(np.float64)
        operands = (problem, signals, products, weights, slack[part])
        minimised = _active_set.minimise(*operands, start=first, masks=own, **limits)
        for result, some in zip(results, minimised):
            result[part] = some

    parts = _parts(finite, D.shape)
    if len(parts) == 1:
        work(parts[0])
        return results
    with threads() as team:
        team.share(work, parts)
    return results


def _parts(finite: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Chunks of the finite rows; no chunk crosses a block, because files are read by blocks."""
    m, d = shape
    size = min(max(_PRODUCTS // (min(m, d) ** 2 * d), _FEWEST), _CHUNK)
    blocks = (first + np.flatnonzero(finite[first : first + BLOCK]) for first in blocks_of(finite))
    return [rows[i : i + size] for rows in blocks for i in range(0, len(rows), size)]


def blocks_of(rows: Any) -> range:
    """The first rows of the blocks; only the arrays of one block are in memory."""
    return range(0, len(rows), BLOCK)


def slack_of(
    D: np.ndarray, Y: np.ndarray, lam: np.ndarray, tol: float, masks: np.ndarray | None = None
) -> np.ndarray:
    """The slack of every signal, (n,), as described in `minima`.

    For a free atom, which has no penalty, |d_i . r| counts as 0 up to the slack. The slack is
    reduced if it could otherwise hide an excess of tol / 2. Let sigma be the least nonzero singular
    value of the k free unit atoms u_i. If |u_i . r| <= e for all i, the distance of r from the
    vectors orthogonal to these atoms is at most e sqrt(k) / sigma.
    """
    sizes, free = np.linalg.norm(Y, axis=1), lam == 0
    if not free.any():
        return _SLACK * sizes
    known = np.ones((1, len(D))) if masks is None else masks
    pairs = np.hstack([np.broadcast_to(v, (len(Y), v.shape[1])) for v in (known > 0, free)])
    pairs, which = np.unique(pairs, axis=0, return_inverse=True)
    level = np.full(len(pairs), _SLACK)
    for i, (rows, is_free) in enumerate(zip(pairs[:, : len(D)], pairs[:, len(D) :])):
        A = D[rows]
        norms = np.linalg.norm(A, axis=0)
        atoms = np.broadcast_to(is_free, norms.shape) & (norms > 0)
        if atoms.any():
            s = np.linalg.svd(A[:, atoms] / norms[atoms], compute_uv=False)
            sigma = s[s > max(D.shape) * np.finfo(float).eps * s[0]].min()
            level[i] = min(_SLACK, tol * sigma / (4 * math.sqrt(atoms.sum())))
    return level[which.reshape(len(Y))] * sizes


def weights_of_many(D: Dictionary, lam: ArrayLike, n: int, where: str) -> np.ndarray:
    """The penalties of n signals, checked, in float64: (n, 1) or (n, d)."""
    weight = spread(
        D, flat_code(D, _problem.penalty(D, lam, "lam", where, np.dtype(float), batch=n))
    )
    weight = np.asarray(weight, np.float64)
    columns = D.shape[1] if weight.shape[-1:] == D.shape[1:] else 1
    return np.broadcast_to(weight, (n, columns))
