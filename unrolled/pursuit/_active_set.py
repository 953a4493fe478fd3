r"""The LASSO of many signals in one dictionary, compiled by numba.

For each signal, the LASSO code minimises, over all codes or over codes x >= 0,

.. math:: \tfrac12 \|y - D x\|^2 + \sum_i lam_i |x_i| + \tfrac{l2}{2} \|x\|^2.

In each round, the atoms whose constraints are violated most join a working set. On the working set,
the method of Lawson and Hanson, extended to signed entries, minimises the objective. In each move,
one atom becomes active, and the code moves towards the minimiser that has the signs of the active
atoms. At the first change of a sign, the move stops, and the atom of this entry becomes inactive.
The objective falls with every move. Rank-one changes update the inverse Gram matrix of the active
atoms. The gradient is computed anew before every move, so that rounding errors do not accumulate.
An atom that is linearly dependent on the active atoms replaces one of them.

This file imports numba, so other files import this file only inside functions.

Reference: Lawson, Hanson (1974), chapter 23; Lee et al. (2007) for the signs.
"""

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import carray, cfunc, types

from unrolled.pursuit._compiled import (
    border,
    clear,
    compiled,
    extend,
    factor,
    name,
    solve,
    subtract,
    swap_in,
)

# The number of atoms that may join a working set in a round; the number of active atoms if larger.
FEWEST = 10
# Without a start, the penalty falls from lam_max to lam, by this factor per round.
_FALL = 0.4
_DEPENDENT = 1e-10  # largest squared sine of the angle of a dependent atom to the span
_POLISH = 3  # maximum number of successive moves that only correct rounding
_PAD = 8  # extra columns of a square workspace, as rows of 2^k entries would share cache lines
VECTORS, LISTS = 12, 6  # numbers of vectors and lists in a workspace
GRADIENT, RESIDUAL = 8, 10  # two of the vectors
UNBOUNDED = 2**62
_LOWEST = -(2**12)  # an exponent below all exponents of float64
_SHARE = 1 / 64  # of tol, at which moves end if a code missed tol only after it was rounded
_FINEST = 1e-3  # while the gap is above tol, the slack falls to about this share of its first value


class Problem(NamedTuple):
    """The data that all signals share, in float64."""

    D: np.ndarray  # (m, d)
    atoms: np.ndarray  # (d, m) D'
    gram: np.ndarray  # (d, d) D'D + l2
    inverse: np.ndarray  # (d,) inverse square roots of the diagonal of gram, 0 for zero atoms
    l2: float
    nonnegative: bool


def problem_of(D: np.ndarray, l2: float = 0.0, nonnegative: bool = False) -> Problem:
    """The problem of a dictionary with entries near 1."""
    D = np.ascontiguousarray(D, np.float64)
    gram, d = D.T @ D, D.shape[1]
    gram.flat[:: d + 1] += l2
    inverse = inverse_roots(np.diag(gram))
    return Problem(D, np.ascontiguousarray(D.T), gram, inverse, float(l2), bool(nonnegative))


def inverse_roots(squares: np.ndarray) -> np.ndarray:
    """The inverse square roots; 0 for a square of 0."""
    return np.divide(1, np.sqrt(squares), out=np.zeros(squares.shape), where=squares > 0)


class Minima(NamedTuple):
    """Codes, and their accuracy and cost."""

    x: np.ndarray  # (n, d)
    gap: np.ndarray  # (n,) duality gaps over norm(y)^2 / 2
    residual: np.ndarray  # (n,) norm(y - D x)
    moves: np.ndarray  # (n,)
    rounds: np.ndarray  # (n,) number of times that atoms joined the working set
    margin: np.ndarray  # (n,) distance of the code from a change of its support


def minimise(
    problem: Problem,
    Y: np.ndarray,
    products: np.ndarray,
    lam: np.ndarray,
    slack: np.ndarray,
    *,
    tol: float,
    moves: int,
    start: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    fewest: int = FEWEST,
    rounds: int = UNBOUNDED,
    digits: int = 53,
    finest: Any = _LOWEST,
) -> Minima:
    """The codes of finite signals with entries near 1; the function releases the GIL of Python.

    Codes are rounded to `digits` binary digits, and gap and residual are those of the rounded code.
    If the gap of a code is at most tol before it is rounded, but not afterwards, the moves continue
    until it is at most tol times `_SHARE`.

    The gap is computed at the dual point s r, with r = y - D x and the largest feasible s <= 1; D'r
    comes from the Gram matrix. In the gap, the gradient of a free atom (lam 0) counts as zero if it
    is within the slack.

    Args:
        problem: the problem of the dictionary.
        Y, products: the signals, (n, m), and Y D, (n, d).
        lam: (n, 1) or (n, d), non-negative.
        slack: (n,), the largest violation, relative to the norm of the atom, at which a constraint
            counts as met.
        tol: the gap at which to stop; -1 to continue to the minimisers.
        moves: maximum number of moves for a signal.
        start: (n, d), codes to start from; their signs are the first signs of the active atoms.
        masks: (n, m), 1 for the entries of a signal that the code fits, 0 for the other entries,
            where Y must be 0.
        fewest: minimum number of atoms that join in a round, if at least as many constraints are
            violated.
        rounds: maximum number of rounds for a signal.
        digits, finest: binary digits of an entry of a code, and the exponent, () or (n,), of the
            smallest difference of two entries.
    """
    (d, m), n = problem.atoms.shape, len(Y)
    counts, sizes = np.zeros((2, n), np.int64), np.zeros((3, n))
    result = Minima(np.zeros((n, d)), sizes[0], sizes[1], counts[0], counts[1], sizes[2])
    # With masks, `gram` is a workspace for the Gram matrix of one signal at a time, whose rows are
    # computed as atoms join.
    gram, inverse = problem.gram, problem.inverse
    if masks is not None:
        gram, inverse = np.zeros_like(gram), inverse_roots(masks @ problem.D**2 + problem.l2)
    finest = np.broadcast_to(np.asarray(finest, float), n)
    floats = (gram, problem.atoms, inverse, Y, products, lam, slack, finest)
    first, known = (np.zeros((0, v)) if of is None else of for of, v in ((start, d), (masks, m)))
    sizes, used = np.zeros((1, 3), np.int64), np.array([d])
    entry(many, MANY)(
        *map(operand, (*floats, first, known)),
        *map(pointer, (*result, *workspace(1, m, d), sizes, used, np.arange(n))),
        *(n, n, m, d, lam.shape[1], len(first), len(known), False, moves, fewest, rounds),
        *(problem.l2, problem.nonnegative, tol, digits),
    )
    return result


def workspace(n: int, m: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The square matrices, vectors and lists of indices of n workspaces."""
    vectors, lists = np.zeros((n, VECTORS, max(m, d))), np.zeros((n, LISTS, d), np.int64)
    return np.empty((n, 2, d, d + _PAD)), vectors, lists


# Calls from Python


_FLOATS, _INTEGERS = types.CPointer(types.float64), types.CPointer(types.int64)
_KINDS: dict[np.dtype, Any] = {
    np.dtype(np.float32): ctypes.c_float,
    np.dtype(np.float64): ctypes.c_double,
    np.dtype(np.int32): ctypes.c_int32,
    np.dtype(np.int64): ctypes.c_int64,
}


def operand(array: np.ndarray, dtype: Any = np.float64) -> Any:
    """A pointer to the first entry of an input, which is copied if its layout or dtype differs."""
    return pointer(np.require(array, dtype, ("C", "A")))


def pointer(array: np.ndarray) -> Any:
    """A pointer to the first entry of an array of a kernel; the pointer keeps the array alive.

    Raises:
        ValueError: the array is not C-contiguous and aligned, or its dtype is unknown to kernels.
    """
    flags, kind = array.flags, _KINDS.get(array.dtype)
    if kind is None or not (flags.c_contiguous and flags.aligned):
        raise ValueError(
            f"pointer: got an array of {array.dtype} with strides {array.strides}; expected a "
            f"C-contiguous, aligned array of {', '.join(map(str, _KINDS))}, try operand(array)"
        )
    return array.ctypes.data_as(ctypes.POINTER(kind))


@functools.cache
def entry(function: Callable, signature: Any) -> Callable:
    """The compiled function; its machine code is cached on disk if the folder is writable.

    The compiled function takes pointers and converts them to arrays without reference counts,
    because counting would take as long as the arithmetic of a code with few nonzeros.
    """
    name(function)
    try:
        return cfunc(signature, cache=True)(function).ctypes
    except (RuntimeError, OSError):
        return cfunc(signature)(function).ctypes


MANY = types.void(
    *[_FLOATS] * 13, *[_INTEGERS] * 2, *[_FLOATS] * 3, *[_INTEGERS] * 4,
    *[types.int64] * 11, types.float64, types.boolean, types.float64, types.int64,
)  # fmt: skip


@compiled
def _arrays(S, V, I, m, d):
    """The workspace of a signal: arrays for the active and working sets, and for all d atoms."""
    for i in range(d):
        I[1, i] = i
    # The Gram matrix and the inverse; x, g, sign, b, lam, scale, change, u; atoms, order, blocked.
    work = (S[0], S[1], V[0], V[1], V[2], V[3], V[4], V[5], V[6], V[7], I[0], I[1], I[2])
    # D'r - l2 x, lam, r and the largest excesses; whether an atom is in the set, and which join.
    own = (V[GRADIENT, :d], V[9, :d], V[RESIDUAL, :m], V[11, :d], I[3, :d], I[4])
    return work, own


# One signal


def many(
    gram, atoms, inverse, Y, products, lams, slacks, finest, first, known, X, gaps, residuals,
    moved, rounds, margins, squares, vectors, lists, sizes, used, which, some, n, m, w, columns,
    warm, masked, stacked, budget, fewest, most, l2, nonnegative, tol, digits,
):  # fmt: skip
    """The compiled part of `minimise` and `resume`."""
    problems = n if stacked else 1
    gram, atoms = carray(gram, (problems, w, w)), carray(atoms, (problems, w, m))
    inverse = carray(inverse, (n if masked else problems, w))
    Y, products, lams = carray(Y, (n, m)), carray(products, (n, w)), carray(lams, (n, columns))
    slacks, first, X = carray(slacks, (n,)), carray(first, (warm, w)), carray(X, (n, w))
    finest, which = carray(finest, (n,)), carray(which, (some,))
    gaps, residuals, known = carray(gaps, (n,)), carray(residuals, (n,)), carray(known, (masked, m))
    moved, rounds, margins = carray(moved, (n,)), carray(rounds, (n,)), carray(margins, (n,))
    squares = carray(squares, (problems, 2, w, w + _PAD))
    vectors = carray(vectors, (problems, VECTORS, max(m, w)))
    lists, sizes = carray(lists, (problems, LISTS, w)), carray(sizes, (problems, 3))
    used = carray(used, (problems,))
    for i in which:
        p = i if stacked else 0
        d = used[p]
        work, own = _arrays(squares[p], vectors[p], lists[p], m, d)
        limits = (tol, budget, fewest, most, digits, finest[i])
        mask = known[i if masked else 0 : i + 1 if masked else 0]
        shared = (gram[p], atoms[p], inverse[i if masked else p, :d], l2, nonnegative, mask)
        for j in range(d):
            own[1][j] = lams[i, j if columns > 1 else 0]
        start = first[i if warm else 0 : i + 1 if warm else 0]
        sizes[p] *= stacked
        gaps[i], residuals[i], moved[i], rounds[i], margins[i] = _one(
            shared, Y[i], products[i], start, slacks[i], limits, work, own, sizes[p], X[i]
        )


@compiled
def _one(shared, y, products, start, slack, limits, work, own, sizes, out):
    """Compute the code of a signal, its gap, residual, moves, rounds and margin.

    `sizes` are the numbers of active atoms and of atoms in the working set of a state that the
    function resumes if some atom is active, and 1 if the inverse is to be computed.
    """
    gram, D, inverse, l2, nonnegative, mask = shared
    tol, budget, fewest, most, digits, finest = limits
    x, lam, atoms, rounded = work[2], work[6], work[10], work[9]
    full, weight, r, excess, inside, fresh = own
    k, w, factored, begun = sizes[0], sizes[1], sizes[2] > 0, False
    moves = rounds = idle = 0
    level, least, goal = 1.0, _FINEST * slack, tol  # `level` is the penalty divided by lam
    if k == 0:
        level, w = np.inf, 0
        clear(inside, len(inside))
    while True:
        gap, squares, top = _judged(shared, x, k, y, products, slack, work, own)
        room = min(max(fewest, k), len(inside) - w)
        joined = _violated(full, weight, inverse, excess, inside, fresh, nonnegative, slack, room)
        idle = 0 if joined or level > 1 else idle + 1  # the second round unblocks atoms
        if idle > 1 and gap > goal >= 0 and slack > least:  # for codes much larger than y
            slack, idle = slack / 10, 0
            continue
        reached, spent = gap <= goal, joined and rounds >= most and level < np.inf
        if reached or moves >= budget or idle > 1 or spent:
            if _round(rounded, x, k, digits, finest):
                gap, squares, top = _judged(shared, rounded, k, y, products, slack, work, own)
            if reached and gap > tol and goal == tol:
                goal, idle = _SHARE * tol, 0
                continue
            break
        if level == np.inf and len(start) and not begun:
            k, w, moves, factored = _begun(shared, start[0], products, slack, budget, work, own)
            level, begun = 1.0 if w > 0 else np.inf, True
            continue
        if factored:
            k, factored = _rebuild(work, k, w), False
        _rows(gram, D, l2, mask, fresh, joined, inside, work[9])
        w = _join(work, gram, products, weight, inverse, fresh, joined, inside, w)
        rounds += joined > 0
        if level == np.inf:
            level = top if top < np.inf else 1.0
        level = max(1.0, level * _FALL)
        for i in range(w):
            lam[i] = level * weight[atoms[i]]
        k, more = _minimise(work, k, w, nonnegative, slack, budget - moves)
        moves += more
    sizes[0], sizes[1], sizes[2] = k, w, factored
    clear(out, len(out))
    for i in range(k):
        out[atoms[i]] = rounded[i]
    return gap, math.sqrt(squares), moves, rounds, _margin(rounded, own, atoms, k, nonnegative)


@compiled
def _judged(shared, x, k, y, products, slack, work, own):
    """The relative gap of a code, norm(r)^2, and the larger of 1 and max |g_i| / lam_i."""
    gram, D, inverse, l2, nonnegative, mask = shared
    full, weight, r, atoms = own[0], own[1], own[2], work[10]
    subtract(full, products, gram, atoms, x, k, len(full))
    subtract(r, y, D, atoms, x, k, len(y))
    half = 0.0
    for i in range(len(y)):
        half += y[i] ** 2 / 2
    if len(mask):
        for i in range(len(y)):
            r[i] *= mask[0, i]
    squares, top = _sizes(r, full, weight, inverse, nonnegative, slack)
    gap = _gap(x, full, weight, atoms, k, l2, squares, 1 / top)
    return gap / (half if half > 0 else 1.0), squares, top


@compiled
def _margin(x, own, atoms, k, nonnegative):
    """The least of |x_i| / max |x| on the support, and of 1 - |d_i . r| / lam_i off the support."""
    full, weight, _, _, inside, _ = own
    margin, largest = 1.0, 0.0
    for i in range(k):
        inside[atoms[i]] = 2
        largest = max(largest, abs(x[i]))
    for i in range(k):
        if largest > 0 and (nonnegative or weight[atoms[i]] > 0):
            margin = min(margin, abs(x[i]) / largest)
    for i in range(len(full)):
        size = full[i] if nonnegative else abs(full[i])
        if weight[i] > 0 and inside[i] < 2:
            margin = min(margin, 1 - size / weight[i])
        inside[i] = min(inside[i], 1)
    return max(margin, 0.0)


@compiled
def _round(out, x, k, digits, finest):
    """Round to so many binary digits and to multiples of 2^finest; return whether x changed."""
    changed = False
    for i in range(k):
        unit = max(math.frexp(x[i])[1] - digits, int(finest))
        out[i] = math.ldexp(np.rint(math.ldexp(x[i], -unit)), unit)
        changed |= out[i] != x[i]
    return changed


@compiled
def _begun(shared, start, products, slack, budget, work, own):
    """Start from a code: change its support as long as each step breaks fewer constraints.

    A step of the primal-dual active set computes the stationary point on the support for its signs.
    An atom leaves if the sign of its entry is wrong, and joins if its constraint is violated; free
    atoms stay. If the steps end early, the moves of `_minimise` lead from the code to the
    minimiser, or from 0 if the atoms of the code are dependent because they are too many.

    Returns:
        The numbers of active atoms, of atoms in the working set and of changes of the support, and
        whether the matrix of the inverse holds the Cholesky factor instead.

    Reference: Hintermueller, Ito, Kunisch (2002).
    """
    (d, m), l2 = shared[1].shape, shared[3]
    w, steps = _given(shared, start, products, work, own), np.int64(0)
    if w > m and l2 == 0:
        clear(own[4], d)
        return np.int64(0), np.int64(0), steps, False
    least = max(w, 1) + 1
    while steps < budget and (w <= m or l2 > 0) and factor(work[0], work[1], w, _DEPENDENT):
        _to_stationary(work, w)
        broken = _broken(shared, products, slack, work, own, w)
        if broken == 0:
            return w, w, steps, True
        if broken >= least:
            break
        least, steps = broken, steps + 1
        w = _assemble(shared, start, products, work, own)
    w = _given(shared, start, products, work, own)
    return _rebuild(work, w, w), w, steps, False


@compiled
def _given(shared, start, products, work, own):
    """Make the atoms of a code the working set, with its signs; free atoms have the side 2."""
    _, _, inverse, _, nonnegative, _ = shared
    weight, side = own[1], own[3]
    for i in range(len(side)):
        is_free = weight[i] == 0 and inverse[i] > 0 and not nonnegative
        given = start[i] != 0 and not (nonnegative and start[i] < 0)
        side[i] = 2.0 if is_free else np.sign(start[i]) if given else 0.0
    return _assemble(shared, start, products, work, own)


@compiled
def _assemble(shared, start, products, work, own):
    """Make the atoms with a side the working set, free ones first; return their number."""
    gram, D, inverse, l2, _, mask = shared
    _, weight, _, side, inside, fresh = own
    x, sign, atoms = work[2], work[4], work[10]
    count = np.int64(0)
    for free in range(2):
        for i in range(len(side)):
            if side[i] != 0 and (side[i] == 2) == (free == 0):
                fresh[count], count = i, count + 1
    _rows(gram, D, l2, mask, fresh, count, inside, work[9])
    clear(inside, len(inside))
    _join(work, gram, products, weight, inverse, fresh, count, inside, np.int64(0))
    for i in range(count):
        j = atoms[i]
        sign[i] = side[j] if side[j] != 2 else 0.0
        x[i] = start[j] if sign[i] * start[j] >= 0 else 0.0
    return count


@compiled
def _to_stationary(work, k):
    """x, the point where the gradient on k atoms is 0 for their signs, by their Cholesky factor."""
    A, M, x, sign, b, lam = work[0], work[1], work[2], work[4], work[5], work[6]
    u, order = work[9], work[11]
    for _ in range(2):  # the second step corrects the rounding of the first one
        subtract(u, b, A, order, x, k, k)
        for i in range(k):
            u[i] -= lam[i] * sign[i]
        solve(M, u, k)
        for i in range(k):
            x[i] += u[i]


@compiled
def _broken(shared, products, slack, work, own, k):
    """Remove the sides of atoms whose signs are wrong, and give sides to atoms that violate.

    Returns:
        The number of changes.
    """
    gram, _, inverse, _, nonnegative, _ = shared
    full, weight, _, side, inside, _ = own
    x, sign, atoms = work[2], work[4], work[10]
    subtract(full, products, gram, atoms, x, k, len(full))
    changes = np.int64(0)
    for i in range(k):
        if sign[i] * x[i] < 0:
            side[atoms[i]], changes = 0, changes + 1
    for i in range(len(full)):
        size = full[i] if nonnegative else abs(full[i])
        if not inside[i] and (size - weight[i]) * inverse[i] > slack:
            side[i], changes = np.sign(full[i]), changes + 1
    return changes


@compiled
def _sizes(r, full, weight, inverse, nonnegative, slack):
    """norm(r)^2, and the larger of 1 and max |g_i| / lam_i."""
    squares, top = 0.0, 1.0
    for value in r:
        squares += value**2
    for i in range(len(full)):
        size = full[i] if nonnegative else abs(full[i])
        if size > weight[i] * top:
            if weight[i] > 0:
                top = size / weight[i]
            elif size * inverse[i] > slack:
                top = np.inf
    return squares, top


@compiled
def _gap(x, full, weight, atoms, k, l2, squares, s):
    """The duality gap of a code, with the dual point s r."""
    bound, ridge = 0.0, 0.0
    for i in range(k):
        bound += max(weight[atoms[i]] * abs(x[i]) - s * x[i] * full[atoms[i]], 0.0)
        ridge += x[i] ** 2
    return bound + (1 - s) ** 2 * (squares + l2 * ridge) / 2


@compiled
def _violated(full, weight, inverse, excess, inside, fresh, nonnegative, slack, most):
    """Choose the atoms whose constraints are violated most, in order; return their number."""
    joined, floor = 0, slack
    for i in range(len(inverse)):
        size = full[i] if nonnegative else abs(full[i])
        over = (size - weight[i]) * inverse[i]
        if over > floor and not inside[i]:
            place = min(joined, most - 1)
            while place > 0 and excess[place - 1] < over:
                excess[place], fresh[place] = excess[place - 1], fresh[place - 1]
                place -= 1
            excess[place], fresh[place] = over, i
            joined = min(joined + 1, most)
            floor = excess[joined - 1] if joined == most else slack
    return joined


@compiled
def _minimise(work, k, w, nonnegative, slack, budget):
    """Minimise over a working set of w atoms, with k active atoms; return k and the moves."""
    A, M, x, g, sign, b, lam, scale, change, u, atoms, order, blocked = work
    clear(blocked, w)
    polished, moves = 0, 0
    while moves < budget:
        subtract(g, b, A, order, x, k, w)
        worst = 0.0
        for i in range(k):
            g[i] -= lam[i] * sign[i]
            worst = max(worst, abs(g[i]) * scale[i])
        if worst > slack and polished < _POLISH:
            if polished == _POLISH - 1:  # the inverse has become inaccurate
                before, k = k, _rebuild(work, k, w)
                if k < before:
                    continue
            clear(change, k)
            subtract(change, change, M, order, g, k, k)
            k, stopped = _move(work, k, w)
            polished, moves = 0 if stopped else polished + 1, moves + 1
            continue
        best, entering = slack, w
        for i in range(k, w):
            size = g[i] if nonnegative else abs(g[i])
            over = (size - lam[i]) * scale[i]
            if over > best and not blocked[i]:
                best, entering = over, i
        if entering == w:
            break
        _swap(work, entering, k, w)
        k, joined, exchanged = _enter(work, k, w, nonnegative)
        moves, polished = moves + 1, 0 if joined else polished
        if joined and not exchanged:  # after an exchange, the next pass moves
            for i in range(k):
                change[i] = -M[k - 1, i] * g[k - 1]
            k, _ = _move(work, k, w)
    return k, moves


@compiled
def _enter(work, k, w, nonnegative):
    """Make atom k active, and remove atoms on which it depends; if this fails, block atom k.

    Returns:
        The number of active atoms, whether atom k is active, and whether other atoms have left.
    """
    A, M, x, g, sign, b, lam, scale, change, u, atoms, order, blocked = work
    side, slope = (1.0 if g[k] > 0 else -1.0), abs(g[k]) - lam[k]
    pivot, exchanged = border(A, M, u, order, k), False
    while pivot <= _DEPENDENT * A[k, k]:  # replace the first atom whose entry becomes 0
        leaving, far = k, np.inf
        for i in range(k):
            if sign[i] * u[i] * side > 0 and x[i] / (u[i] * side) < far:
                leaving, far = i, x[i] / (u[i] * side)
        if leaving == k or slope <= pivot * far / 2:
            break
        for i in range(k):
            x[i] -= far * side * u[i]
        x[k] += far * side
        k = _leave(work, leaving, k, w)
        _swap(work, k, k + 1, w)
        pivot, exchanged = border(A, M, u, order, k), True
    if pivot <= _DEPENDENT * A[k, k]:
        x[k], blocked[k] = 0.0, 1
        return k, False, exchanged
    sign[k] = _constraint(side, lam[k], nonnegative)
    extend(M, u, pivot, k)
    g[k] -= lam[k] * sign[k]
    return k + 1, True, exchanged


@compiled
def _move(work, k, w):
    """Move from x to x - change; stop at the first change of a sign, where that atom leaves."""
    x, sign, change, blocked = work[2], work[4], work[8], work[12]
    far, leaving = 1.0, k
    for i in range(k):
        if sign[i] * (x[i] - change[i]) < 0:
            part = max(x[i] / change[i], 0.0)
            if part < far:
                far, leaving = part, i
    for i in range(k):
        x[i] -= far * change[i]
    if leaving == k:
        return k, False
    blocked[leaving] = far == 0
    return _leave(work, leaving, k, w), True


@compiled
def _constraint(value, lam, nonnegative):
    """The sign that an active entry must keep; 0 for a free entry."""
    if nonnegative:
        return 1.0
    return np.sign(value) if lam > 0 else 0.0


# The working set, and the inverse Gram matrix of its active atoms


@compiled
def _join(work, gram, products, weight, inverse, fresh, joined, inside, w):
    """Add atoms to the working set as inactive atoms; return the size of the set."""
    A, M, x, g, sign, b, lam, scale, change, u, atoms, order, blocked = work
    for i in range(joined):
        j = fresh[i]
        atoms[w], inside[j], x[w], sign[w] = j, 1, 0.0, 0.0
        b[w], lam[w], scale[w] = products[j], weight[j], inverse[j]
        for other in range(w + 1):
            A[w, other] = gram[j, atoms[other]]
            A[other, w] = A[w, other]
        w += 1
    return w


@compiled
def _rows(gram, D, l2, mask, fresh, joined, inside, known):
    """Compute the Gram matrix rows of masked atoms that join; without a mask all rows exist."""
    for i in range(joined if len(mask) else 0):
        j = fresh[i]
        if inside[j]:
            continue
        for c in range(D.shape[1]):
            known[c] = mask[0, c] * D[j, c]
        for other in range(len(D)):
            product = 0.0
            for c in range(D.shape[1]):
                product += known[c] * D[other, c]
            gram[j, other] = product
        gram[j, j] += l2


@compiled
def _swap(work, i, j, w):
    """Swap atoms i and j of a working set of w atoms."""
    A, _, x, g, sign, b, lam, scale, change, u, atoms, order, blocked = work
    if i == j:
        return
    atoms[i], atoms[j] = atoms[j], atoms[i]
    blocked[i], blocked[j] = blocked[j], blocked[i]
    for v in (x, g, sign, b, lam, scale):
        v[i], v[j] = v[j], v[i]
    swap_in(A, i, j, w)


@compiled
def _leave(work, i, k, w):
    """Remove active atom i: it becomes the first inactive atom."""
    M, x, sign = work[1], work[2], work[4]
    q = k - 1
    if i < q:
        _swap(work, i, q, w)
        swap_in(M, i, q, k)
    x[q] = sign[q] = 0.0
    for row in range(q):
        f = M[q, row] / M[q, q]
        for j in range(q):
            M[row, j] -= f * M[q, j]
    return q


@compiled
def _rebuild(work, count, w):
    """Compute the inverse Gram matrix of the first `count` atoms; dependent atoms leave."""
    A, M, x, sign, u, order = work[0], work[1], work[2], work[4], work[9], work[11]
    k = np.int64(0)
    for _ in range(count):
        pivot = border(A, M, u, order, k)
        if pivot > _DEPENDENT * A[k, k]:
            extend(M, u, pivot, k)
            k += 1
        else:
            count -= 1
            x[k] = sign[k] = 0.0
            _swap(work, k, count, w)
    return k
