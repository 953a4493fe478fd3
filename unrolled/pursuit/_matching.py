r"""Matching pursuit of many signals in one dictionary, compiled by numba.

Each step adds the atom with the largest score, which is |d_i . r| times a factor or, for least
squares, (d_i . r)^2 over the squared distance of d_i from the span of the chosen atoms. The
Cholesky factor of the Gram matrix of the chosen atoms grows by one row, and the code is the least
squares code on these atoms. If codes are non-negative, the code moves towards the least squares
code as in the method of Lawson and Hanson: where an entry becomes 0, its atom leaves.

`with_gram` takes all correlations from the Gram matrix of the dictionary. `grow` adds one atom to
the code of every signal; its caller computes the correlations of all signals by one product.

This file imports numba, so other files import this file only inside functions.

Reference: Rubinstein, Zibulevsky, Elad (2008); Chen, Billings, Luo (1989) for least squares;
Lawson, Hanson (1974), chapter 23, and Bruckstein, Elad, Zibulevsky (2008) for codes x >= 0.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import carray, njit, types

from unrolled.pursuit._active_set import entry, operand, pointer
from unrolled.pursuit._compiled import border, clear, compiled, copy, extend, subtract
from unrolled.pursuit._omp import CHOICES

# Divisions by squared distances may be reciprocals; scores that are not finite are not read.
_finite = njit(error_model="numpy", fastmath=True)

_BLOCK = 64  # scores whose maximum is taken together

# All scores are computed anew in float64 if rounding may change the largest one by more than this
# share of it. The scores near the largest one are, if rounding may change their order.
_UNSURE = 1e-2
_TINY = 1e-300


class Codes(NamedTuple):
    """Sparse codes of n signals with at most k atoms each; slots beyond `counts` are not in use."""

    atoms: np.ndarray  # (n, k)
    values: np.ndarray  # (n, k)
    counts: np.ndarray  # (n,)
    steps: np.ndarray  # (n,) choices of atoms or parts
    inside: np.ndarray  # (n,) squared norm of the part of y - D x in the span of the atoms
    margins: np.ndarray  # (n,) least distance of the score of a choice from the next one, in [0, 1]

    @classmethod
    def empty(cls, n: int, k: int) -> "Codes":
        counts, steps = np.zeros((2, n), np.int64)
        atoms, values = np.zeros((n, k), np.int64), np.zeros((n, k))
        return cls(atoms, values, counts, steps, np.zeros(n), np.ones(n))


class Rule(NamedTuple):
    """How atoms are chosen, and when a code is complete."""

    most: int  # maximum number of atoms (or parts) in a code
    # The correlation of a normalised atom with the residual counts as zero if it is at most this
    # share of the norm of the signal.
    least: float
    # An atom counts as dependent if its squared distance from the span of the chosen atoms is at
    # most this share of its squared norm.
    depends: float
    by_fit: bool  # whether to choose the atom that leaves the smallest residual
    nonnegative: bool  # whether codes are non-negative


def with_gram(
    D: np.ndarray,
    gram: np.ndarray,
    Y: np.ndarray,
    products: np.ndarray,
    factors: np.ndarray,
    rule: Rule,
) -> Codes:
    """The codes of n signals; the function releases the GIL of Python.

    Correlations come from the Gram matrix in its dtype; the code on the chosen atoms is computed in
    float64, from the atoms.

    Args:
        D: (d, m), the atoms in rows, in float64 with entries near 1.
        gram: (d, d), the Gram matrix in float32 or float64.
        Y: (n, m), the signals in float64 with entries near 1.
        products: (n, d), Y D' in the dtype of the Gram matrix.
        factors: (d,), factors of |d_i . r| in the choice; for `by_fit`, the squared distances at
            which atoms count as dependent.
        rule: the rule.
    """
    (n, d), m, k, kind = products.shape, Y.shape[1], max(rule.most, 1), gram.dtype
    codes, rows = Codes.empty(n, rule.most), np.empty((6, max(d, k)), kind)
    rows[0, :d] = factors
    scratch = rows, _as_bits(rows[3]), np.arange(k), np.empty(m), np.zeros(_length(k))
    near = _pointers(kind)
    signature = types.void(
        _FLOATS, near, _FLOATS, near, *_CODES, near, _bits(kind), _INTEGERS, *[_FLOATS] * 2,
        *[types.int64] * 3, *_RULE,
    )  # fmt: skip
    entry(_with_gram, signature)(
        *(operand(D), operand(gram, kind), operand(Y), operand(products, kind)),
        *map(pointer, (*codes, *scratch)),
        *(n, m, d, *rule),
    )
    return codes


class Growing(NamedTuple):
    """The state of n codes that grow step by step, with copies of the chosen atoms."""

    columns: np.ndarray  # (n, k, m) the chosen atoms, times the roots of the weights
    numbers: np.ndarray  # (n, ...) Gram matrices, Cholesky factors and vectors
    r: np.ndarray  # (n, m) residuals
    q: np.ndarray  # (n, m) unit vectors by which the spans grew in the last step
    news: np.ndarray  # (n,) 0 if the code has ended, 1 if it has grown, 2 if an atom has left

    @classmethod
    def of(cls, Y: np.ndarray, k: int) -> "Growing":
        """Start with the code 0 for signals in float64."""
        n, m = Y.shape
        columns, numbers = np.zeros((n, k, m)), np.zeros((n, _length(k)))
        return cls(columns, numbers, Y.copy(), np.zeros((n, m)), np.ones(n, np.int64))

    def inverses(self) -> np.ndarray:
        """The inverse Gram matrices of the chosen atoms, (n, k, k)."""
        n, k, _ = self.columns.shape
        return self.numbers[:, k * k : 2 * k * k].reshape(n, k, k)


def grow(
    state: Growing,
    codes: Codes,
    Y: np.ndarray,
    chosen: np.ndarray,
    columns: np.ndarray,
    margins: np.ndarray,
    rule: Rule,
) -> None:
    """Add the atoms of a part, (n, block), to the code of every signal that has not ended.

    Args:
        state, codes: changed in place.
        Y: (n, m), signals in float64.
        chosen: (n, block), the indices of the atoms.
        columns: (n, block, m), these atoms.
        margins: (n,), distance of the score of this choice from the next one.
        rule: the rule; `most` counts parts.
    """
    (n, k, m), block = state.columns.shape, chosen.shape[1]
    kinds = [_FLOATS, _INTEGERS, *[_FLOATS] * 6, _INTEGERS, *_CODES, _INTEGERS]
    inputs = operand(Y), operand(chosen, np.int64), operand(columns), operand(margins)
    grow_all = entry(_grow, types.void(*kinds, *[types.int64] * 4, *_RULE))
    grow_all(*inputs, *map(pointer, (*state, *codes, np.arange(k))), *(n, k, m, block, *rule))


def finish(state: Growing, codes: Codes) -> None:
    """Write the least squares codes on the chosen atoms."""
    n, k, _ = state.columns.shape
    signature = types.void(_FLOATS, *_CODES, _INTEGERS, *[types.int64] * 2)
    entry(_finish, signature)(*map(pointer, (state.numbers, *codes, np.arange(k))), n, k)


def choose(
    products: np.ndarray, factors: np.ndarray, apart: np.ndarray, rule: Rule
) -> tuple[np.ndarray, np.ndarray]:
    """The atom with the largest score for each signal, and its distance from the next score.

    Args:
        products: (n, d), correlations; 0 for atoms that are not to be chosen.
        factors: (1, d) or (n, d), as in `with_gram`.
        apart: for `by_fit`, (n, d), squared distances of the atoms from the span of the chosen
            atoms; else not read.
        rule: the rule.
    """
    (n, d), kind = products.shape, products.dtype
    best, margins = np.zeros(n, np.int64), np.ones(n)
    signature = types.void(
        *[_pointers(kind)] * 4, _bits(kind), _INTEGERS, _FLOATS, *[types.int64] * 3, *_RULE[-2:]
    )
    scores = np.empty(d, kind)
    entry(_choose, signature)(
        *(operand(v, kind) for v in (products, factors, apart)),
        *map(pointer, (scores, _as_bits(scores), best, margins)),
        *(n, d, len(factors), rule.by_fit, rule.nonnegative),
    )
    return best, margins


def residuals(D: np.ndarray, Y: np.ndarray, codes: Codes, values: np.ndarray) -> np.ndarray:
    """norm(y - D x) for codes with other values, (n, k); D has the atoms in rows."""
    (n, m), k, sizes = Y.shape, values.shape[1], np.empty(len(Y))
    signature = types.void(*[_FLOATS] * 2, *[_INTEGERS] * 2, *[_FLOATS] * 3, *[types.int64] * 4)
    inputs = operand(D), operand(Y), pointer(codes.atoms), pointer(codes.counts), operand(values)
    entry(_residuals, signature)(*inputs, pointer(np.empty(m)), pointer(sizes), n, m, k, len(D))
    return sizes


_FLOATS, _INTEGERS = types.CPointer(types.float64), types.CPointer(types.int64)
_CODES = (_INTEGERS, _FLOATS, _INTEGERS, _INTEGERS, _FLOATS, _FLOATS)  # the pointers of `Codes`
_RULE = (types.int64, types.float64, types.float64, types.boolean, types.boolean)


def _pointers(dtype: np.dtype) -> types.Type:
    return types.CPointer(types.float32 if dtype == np.float32 else types.float64)


def _bits(dtype: np.dtype) -> types.Type:
    return types.CPointer(types.int32 if dtype == np.float32 else types.int64)


def _as_bits(scores: np.ndarray) -> np.ndarray:
    """A view of floats as integers of the same width."""
    return scores.view(np.int32 if scores.dtype == np.float32 else np.int64)


def _length(k: int) -> int:
    """The number of floats that `_code` needs for at most k atoms."""
    return 2 * k * k + 4 * k


# The choice of an atom


def _choose(products, factors, apart, scores, bits, best, margins, n, d, rows, by_fit, nonnegative):
    """The compiled part of `choose`."""
    products, factors = carray(products, (n, d)), carray(factors, (rows, d))
    apart, scores = (
        carray(apart, (n if by_fit else 1, d)),
        (carray(scores, (d,)), carray(bits, (d,))),
    )
    best, margins = carray(best, (n,)), carray(margins, (n,))
    for i in range(n):
        row, own = factors[i if rows > 1 else 0], apart[i if by_fit else 0]
        best[i], margins[i] = _best(products[i], row, own, scores, by_fit, nonnegative)


@compiled
def _best(g, factors, apart, scores, by_fit, nonnegative):
    """The first atom with the largest score, -1 if no score is positive, and 1 - second / largest.

    The scores come with a view of their bits as integers, which have the same order if they are
    positive, and whose maximum the compiler takes in vector registers.
    """
    scores, bits = scores
    if by_fit:
        _score_by_fit(g, factors, apart, scores, nonnegative)
    else:
        _score(g, factors, scores, nonnegative)
    top, second, at = bits[0] * 0, bits[0] * 0, -1
    for first in range(0, len(bits), _BLOCK):
        largest = _largest(bits, first, min(first + _BLOCK, len(bits)))
        if largest > top:
            top, second, at = largest, top, first
        else:
            second = max(second, largest)
    if at < 0:
        return -1, 1.0
    e = -1
    for i in range(at, min(at + _BLOCK, len(bits))):
        if e < 0 and bits[i] == top:
            e = i
        else:
            second = max(second, bits[i])
    best = scores[e]
    bits[e] = second
    share = scores[e] / best
    return e, 1.0 - (math.sqrt(share) if by_fit else share)


@compiled
def _largest(bits, first, end):
    top = bits[0] * 0
    for i in range(first, end):
        top = max(top, bits[i])
    return top


@compiled
def _score(g, factors, scores, nonnegative):
    """Scores are correlations times factors."""
    if nonnegative:
        for i in range(len(g)):
            scores[i] = g[i] * factors[i]
    else:
        for i in range(len(g)):
            scores[i] = abs(g[i]) * factors[i]


@_finite
def _score_by_fit(g, low, apart, scores, nonnegative):
    """Scores are the falls of the squared residual."""
    zero = g[0] * 0
    for i in range(len(g)):
        score = g[i] * g[i] / apart[i]
        score = score if apart[i] > low[i] else zero
        scores[i] = zero if nonnegative and g[i] < zero else score


# All correlations from the Gram matrix


def _with_gram(
    D, near, Y, products, atoms, values, counts, steps, inside, margins, rows, bits, order, r,
    numbers, n, m, d, most, least, depends, by_fit, nonnegative,
):  # fmt: skip
    """The compiled part of `with_gram`."""
    k = max(most, 1)
    D, near = carray(D, (d, m)), carray(near, (d, d))
    Y, products = carray(Y, (n, m)), carray(products, (n, d))
    atoms, values = carray(atoms, (n, most)), carray(values, (n, most))
    counts, steps = carray(counts, (n,)), carray(steps, (n,))
    inside, margins, rows = (
        carray(inside, (n,)),
        carray(margins, (n,)),
        carray(rows, (6, max(d, k))),
    )
    # The factors, g, squared distances, scores; two workspaces, and the residual.
    factors, g, apart, scores = (
        rows[0, :d],
        rows[1, :d],
        rows[2, :d],
        (rows[3, :d], carray(bits, (d,))),
    )
    own = (factors, g, apart, scores, rows[4, :d], rows[5, :k], carray(r, (m,)))
    code = _code(carray(numbers, (2 * k * k + 4 * k,)), carray(order, (k,)), k)
    rule = (most, least, depends, by_fit, nonnegative)
    for i in range(n):
        counts[i], steps[i], margins[i] = _one(
            D, near, Y[i], products[i], rule, own, code, atoms[i]
        )
        inside[i] = _refined(code, counts[i])
        for j in range(counts[i]):
            values[i, j] = code[3][j]


@compiled
def _one(D, near, y, products, rule, own, code, atoms):
    """Choose the atoms of a signal; return their number, the number of choices and the margin."""
    most, least, depends, by_fit, nonnegative = rule
    factors, g, apart, scores = own[:4]
    A, b = code[0], code[2]
    k = steps = np.int64(0)
    margin, size, unit = 1.0, math.sqrt(_dot(y, y)), _unit(products, len(y))
    noise = unit * size
    for i in range(len(g)):
        g[i], apart[i] = products[i], near[i, i]
    while k < most and steps < CHOICES * most:
        e, distance = _best(g, factors, apart, scores, by_fit, nonnegative)
        error = _error(e, near, own, noise, unit, by_fit)
        if error > min(_UNSURE, distance / 2):
            _score_again(D, y, own, code, atoms, k, by_fit, e, min(error, 1.0))
            e, distance = _best(g, factors, apart, scores, by_fit, nonnegative)
            if error > _UNSURE:
                noise = 0.0
        if e < 0 or abs(g[e]) <= least * size * math.sqrt(near[e, e]):
            break
        atoms[k], b[k] = e, _dot(D[e], y)
        for j in range(k + 1):
            A[k, j] = A[j, k] = _dot(D[e], D[atoms[j]])
        pivot = _enter(code, k, depends)
        if pivot == 0:
            break
        k, steps, margin = k + 1, steps + 1, min(margin, distance)
        grown = k
        if nonnegative:
            k = _descend(code, atoms, D[:, :0], k)
        if k == most or (k < grown and (k == 0 or atoms[k - 1] != e)):  # rounding has removed e
            break
        if by_fit and k == grown:
            noise += unit * _extended(near, own, code, atoms, k - 1, pivot)
        else:
            noise = unit * (size + _renewed(near, products, own, code, atoms, k, by_fit))
        for j in range(k):
            g[atoms[j]] = 0
    return k, steps, margin


@compiled
def _extended(near, own, code, atoms, k, pivot):
    """Subtract the part of the correlations along atom k, and the part of the distances.

    Return a size, in whose units of rounding the error is small.
    """
    _, g, apart, _, along, h, _ = own
    x, u = code[3], code[4]
    size = _norms(near, atoms, u, h, k) + math.sqrt(near[atoms[k], atoms[k]])
    subtract(along, near[atoms[k]], near, atoms, h, k, len(g))
    step, inverse = g[0] * 0 + x[k], g[0] * 0 + 1 / pivot
    for i in range(len(g)):
        g[i] -= step * along[i]
        apart[i] -= inverse * along[i] * along[i]
    return abs(x[k]) * size


@compiled
def _renewed(near, products, own, code, atoms, k, by_fit):
    """Correlations, and distances for `by_fit`, from the code; return a size as `_extended`."""
    _, g, apart, _, along, h, _ = own
    M, x = code[1], code[3]
    size = _norms(near, atoms, x, h, k)
    subtract(g, products, near, atoms, h, k, len(g))
    if by_fit:
        for i in range(len(g)):
            apart[i] = near[i, i]
        for j in range(k):
            for i in range(k):
                h[i] = -M[j, i]
            clear(along, len(along))
            subtract(along, along, near, atoms, h, k, len(g))
            for i in range(len(g)):
                apart[i] -= near[atoms[j], i] * along[i]
    return size


@compiled
def _norms(near, atoms, x, h, k):
    """Copy x to h; return the sum of |x_j| times the norms of the atoms."""
    size = 0.0
    for j in range(k):
        h[j] = x[j]
        size += abs(x[j]) * math.sqrt(near[atoms[j], atoms[j]])
    return size


@compiled
def _unit(products, m):
    """The usual error of an inner product of unit vectors with m entries."""
    return math.sqrt(m) * (6e-8 if products.itemsize == 4 else 1.1e-16)


@compiled
def _error(e, near, own, noise, unit, by_fit):
    """The share by which rounding may change the score of atom e, or its root for `by_fit`."""
    _, g, apart, _, _, _, _ = own
    if noise == 0:
        return 0.0
    if e < 0 or g[e] == 0:
        return np.inf
    error = noise * math.sqrt(near[e, e]) / abs(g[e])
    return error + unit * near[e, e] / apart[e] / 2 if by_fit else error


@compiled
def _score_again(D, y, own, code, atoms, k, by_fit, e, error):
    """Compute anew in float64: correlations, and distances for `by_fit`.

    If the error is small, only atoms with scores near the second largest one change; `_best` leaves
    that score in the place of atom e.
    """
    _, g, apart, (scores, _), _, _, r = own
    M, u = code[1], code[4]
    least = scores[e] * max(1 - 8 * error, 0.0) if error <= _UNSURE else scores[0] * 0
    subtract(r, y, D, atoms, code[3], k, len(r))
    for i in range(len(g)):
        if scores[i] < least:
            continue
        g[i] = _dot(D[i], r)
        if by_fit:
            far = _dot(D[i], D[i])
            for j in range(k):
                u[j] = _dot(D[i], D[atoms[j]])
            for j in range(k):
                for c in range(k):
                    far -= u[j] * M[j, c] * u[c]
            apart[i] = far
    for j in range(k):
        g[atoms[j]] = 0


# One atom more, with copies of the chosen atoms


def _grow(
    Y, chosen, news, margins_of_step, columns, numbers, r, q, state, atoms, values, counts, steps,
    inside, margins, order, n, k, m, block, most, least, depends, by_fit, nonnegative,
):  # fmt: skip
    """The compiled part of `grow`."""
    Y, r, q = carray(Y, (n, m)), carray(r, (n, m)), carray(q, (n, m))
    chosen, news = carray(chosen, (n, block)), carray(news, (n, block, m))
    margins_of_step, columns = carray(margins_of_step, (n,)), carray(columns, (n, k, m))
    numbers, state = carray(numbers, (n, 2 * k * k + 4 * k)), carray(state, (n,))
    atoms, counts, steps = carray(atoms, (n, k)), carray(counts, (n,)), carray(steps, (n,))
    margins = carray(margins, (n,))
    for i in range(n):
        if state[i] == 0:
            continue
        code = _code(numbers[i], carray(order, (k,)), k)
        count, state[i] = _grown(
            *(code, Y[i], r[i], q[i], chosen[i], news[i], columns[i], atoms[i], counts[i]),
            *(least, depends, nonnegative),
        )
        if state[i]:
            steps[i] += 1
            margins[i] = min(margins[i], margins_of_step[i])
            subtract(r[i], Y[i], columns[i], code[6], code[3], count, m)
        counts[i] = count
        if count + block > k or steps[i] >= (CHOICES * most if nonnegative else most):
            state[i] = 0


@compiled
def _grown(code, y, r, q, chosen, news, columns, atoms, k, least, depends, nonnegative):
    """Add atoms to a code; return their number, and 0 if none has entered, 2 if one has left."""
    A, _, b, _, u, _, order = code
    grown, squares = k, 0.0
    for column in news:
        along = _dot(column, r)
        squares += along**2 / max(_dot(column, column), _TINY)
    if chosen[0] < 0 or math.sqrt(squares) <= least * math.sqrt(_dot(y, y)):
        return k, 0
    for e in range(len(chosen)):
        atoms[grown], b[grown] = chosen[e], _dot(news[e], y)
        copy(columns[grown], news[e])
        for j in range(grown + 1):
            A[grown, j] = A[j, grown] = _dot(columns[j], news[e])
        pivot = _enter(code, grown, depends)
        if pivot > 0:
            subtract(q, news[e], columns, order, u, grown, len(q))
            size = math.sqrt(pivot)
            for i in range(len(q)):
                q[i] /= size
            grown += 1
    if grown == k:
        return k, 0
    if nonnegative:
        left = _descend(code, atoms, columns, grown)
        absent = left < grown and (left == 0 or atoms[left - 1] != chosen[0])  # by rounding
        return left, 0 if absent else (1 if left == grown else 2)
    return grown, 1


@compiled
def _dot(a, b):
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


def _finish(numbers, atoms, values, counts, steps, inside, margins, order, n, k):
    """The compiled part of `finish`."""
    numbers, values = carray(numbers, (n, 2 * k * k + 4 * k)), carray(values, (n, k))
    counts, inside = carray(counts, (n,)), carray(inside, (n,))
    for i in range(n):
        code = _code(numbers[i], carray(order, (k,)), k)
        inside[i] = _refined(code, counts[i])
        for j in range(counts[i]):
            values[i, j] = code[3][j]


def _residuals(D, Y, atoms, counts, values, r, sizes, n, m, k, d):
    """The compiled part of `residuals`."""
    D, Y, r, sizes = carray(D, (d, m)), carray(Y, (n, m)), carray(r, (m,)), carray(sizes, (n,))
    atoms, counts, values = carray(atoms, (n, k)), carray(counts, (n,)), carray(values, (n, k))
    for i in range(n):
        subtract(r, Y[i], D, atoms[i], values[i], counts[i], m)
        squares = 0.0
        for value in r:
            squares += value**2
        sizes[i] = math.sqrt(squares)


# The code on the chosen atoms: A x = b


@compiled
def _code(numbers, order, k):
    """Of at most k atoms: A, its inverse M, b, the code x, two workspaces and 0, 1, ..., k - 1.

    The first workspace holds the code of the last atom in the earlier atoms.
    """
    A, M = numbers[: k * k].reshape(k, k), numbers[k * k : 2 * k * k].reshape(k, k)
    V = numbers[2 * k * k :].reshape(4, k)
    return A, M, V[0], V[1], V[2], V[3], order


@compiled
def _enter(code, k, depends):
    """Extend the code by atom k; return its squared distance from the others, 0 if it depends."""
    A, M, b, x, u, _, order = code
    pivot, rest = border(A, M, u, order, k), b[k]
    if pivot <= depends * A[k, k]:
        return 0.0
    for j in range(k):
        rest -= A[k, j] * x[j]
    x[k] = rest / pivot
    for j in range(k):
        x[j] -= x[k] * u[j]
    extend(M, u, pivot, k)
    return pivot


@compiled
def _refined(code, k):
    """Correct the rounding errors of x; return (b - A x)' M (b - A x)."""
    A, M, b, x, u, t, order = code
    inside = 0.0
    for corrected in range(3):
        subtract(t, b, A, order, x, k, k)
        clear(u, k)
        subtract(u, u, M, order, t, k, k)
        inside = 0.0
        for j in range(k):
            inside -= u[j] * t[j]
        if corrected < 2:
            for j in range(k):
                x[j] -= u[j]
    return max(inside, 0.0)


@compiled
def _descend(code, atoms, columns, k):
    """Move from x >= 0 to the least squares code; atoms whose entries become 0 leave.

    The code x is the least squares code with a new last atom. Return the number of atoms.
    """
    x, u, start = code[3], code[4], code[5]
    for i in range(k - 1):
        start[i] = x[i] + x[k - 1] * u[i]
    start[k - 1] = 0.0
    while True:
        far, leaving = 1.0, k
        for i in range(k):
            if x[i] <= 0:
                part = start[i] / (start[i] - x[i]) if start[i] > 0 else 0.0
                if part < far:
                    far, leaving = part, i
        if leaving == k:
            return k
        for i in range(k):
            start[i] += far * (x[i] - start[i])
        _remove(code, atoms, columns, leaving, k)
        k -= 1


@compiled
def _remove(code, atoms, columns, i, k):
    """Remove atom i; x becomes the least squares code of the other atoms."""
    A, M, b, x, u, start, _ = code
    for j in range(k):
        u[j] = M[i, j]
    share, ratio = x[i] / u[i], 1 / u[i]
    for j in range(k):
        x[j] -= share * u[j]
        for c in range(k):
            M[j, c] -= ratio * u[j] * u[c]
    for j in range(i, k - 1):
        atoms[j], b[j], x[j], start[j] = atoms[j + 1], b[j + 1], x[j + 1], start[j + 1]
        copy(columns[j], columns[j + 1])
        for c in range(k):
            A[j, c], M[j, c] = A[j + 1, c], M[j + 1, c]
    for j in range(k - 1):
        for c in range(i, k - 1):
            A[j, c], M[j, c] = A[j, c + 1], M[j, c + 1]
