r"""The LASSO of many signals by working sets: D'D is never formed.

All signals of a block go through the same rounds. A round takes one product of all residuals with D
(matrix times matrix), from which come the duality gap of every signal and the atoms that violate
their constraints. These atoms join the working set of the signal, tens of atoms, over which the
active set method minimises. The method needs only products r @ D and single columns of D.

The product may run in float32. Its rounding error is at most

.. math:: \gamma_{m + 2} \|d_i\| \|r\|, \qquad \gamma_k = k u / (1 - k u),

so an atom outside of the set whose product is this near to its bound joins, too, and the gap of the
code allows for the error. Products with atoms of the set are computed in float64.

Reference: Massias, Gramfort, Salmon (2018) for working sets; Higham (2002), section 3.1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numba import njit, types

from unrolled._base import checks
from unrolled._base.numbers import host_exponent, wide_dtype
from unrolled.dictionaries import column_norms, inner_terms
from unrolled.pursuit import _active_set, _products
from unrolled.pursuit._many import Answers, Units, share

# The numbers of atoms that join in the first round and, at least, in a later round.
_FIRST, _MORE = 64, 32
_ROUNDS = 100
_BYTES, _ATOMS = 2**25, 2**24  # of the products of a block, and of the atoms of some of its sets
_ROWS, _SMALLEST = 512, 1e-30  # of D in a sum of squares, whose rounding error is below 1e-4
_KEPT = 0.98  # an atom with x_i = 0 stays in the set if |d_i . r| is above this share of lam_i
_SLACK = 1e-11  # as in `lasso_batch`


def _compiled(signatures: Any = None, **options: Any) -> Callable:
    """`njit` without the GIL; the machine code is cached on disk if a folder is writable."""

    def decorated(function: Callable) -> Callable:
        try:
            return njit(signatures, nogil=True, cache=True, **options)(function)
        except (RuntimeError, OSError):
            return njit(signatures, nogil=True, **options)(function)

    return decorated


class Matrix(NamedTuple):
    """A matrix D whose products run on the host, as if it were divided by 2^a."""

    D: np.ndarray  # (m, d), float32 or float64
    a: int

    def products(self, R: np.ndarray) -> np.ndarray:
        """R D, (n, d)."""
        first = self.a if abs(self.a) < 32 else self.a // 2  # no factor leaves the range
        products = (R * 2.0**-first).astype(self.D.dtype) @ self.D
        return products if first == self.a else np.ldexp(products, first - self.a)

    def columns(self, indices: np.ndarray) -> np.ndarray:
        """Some atoms, (n, w, m), in float64; 0 for an index of -1."""
        flat, atoms = indices.ravel(), np.empty((indices.size, len(self.D)))
        _gather(self.D, flat, np.argsort(flat), math.ldexp(1, -self.a), atoms)
        return atoms.reshape(*indices.shape, -1)


def _norms(D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f, rounded up by a thousandth, and k, (d,) each: the norms of the atoms are f 2^k."""
    parts = (D[first : first + _ROWS] for first in range(0, len(D), _ROWS))
    squares = sum(np.einsum("ij,ij->j", part, part).astype(float) for part in parts)
    f, k = np.frexp(np.sqrt(squares))
    # The squares of large entries overflow, and those of small entries lose digits.
    odd = np.flatnonzero(~((squares > len(D) * _SMALLEST) & (squares < np.inf)))
    if len(odd):
        atoms = D[:, odd].astype(float)
        c = host_exponent(atoms, 0)[0]
        f[odd], k[odd] = np.frexp(np.linalg.norm(np.ldexp(atoms, -c), axis=0))
        k[odd] += c
    return 1.001 * f, k


class Products(NamedTuple):
    """A dictionary by its products, which run where its arrays are, divided by 2^a."""

    D: Any
    a: int

    def products(self, R: np.ndarray) -> np.ndarray:
        """R D, (n, d)."""
        return _products.products(self.D, np.ldexp(R, -self.a))

    def columns(self, indices: np.ndarray) -> np.ndarray:
        """Some atoms, (n, w, m), in float64; 0 for an index of -1."""
        which, back = np.unique(indices, return_inverse=True)
        atoms = np.ldexp(_products.columns(self.D, np.maximum(which, 0)), -self.a)
        atoms[which < 0] = 0
        return atoms[back.reshape(indices.shape)]


class Task(NamedTuple):
    """The products, the bound on their rounding, and the arguments of a call."""

    atoms: Any  # `Matrix` or `Products`
    gamma: float  # bound on the rounding of a product, relative to the norms
    units: Units


def lasso_by_sets(
    D, Y, lam, l2=0.0, start=None, masks=None, *, dtype=np.float64, into=None, **options
):
    """`lasso_of_rows` by working sets; D may be a dictionary of any kind, or on a device."""
    (m, d), wide = D.shape, wide_dtype(D.dtype)
    answers, terms = Answers.empty(len(Y), d, dtype, into), m + 2
    if isinstance(D, np.ndarray):
        f, k = _norms(D := D.astype(wide, copy=False))
        if not (np.isfinite(f).all() and f.any()):
            return answers
        a = int(k[f > 0].max()) - 1
        atoms: Any = Matrix(D, a)
        norms = np.ldexp(f, k - a)
    else:
        D = checks.cast(D, wide)
        terms += inner_terms(D)
        norms = np.asarray(column_norms(D), float)
        a = int(host_exponent(norms))
        atoms, norms = Products(D, a), np.ldexp(norms, -a)
    units = Units(Y, lam, float(l2), start, masks, np.dtype(dtype), a, norms, **options)
    gamma = terms * float(jnp.finfo(wide).eps) / 2
    task = Task(atoms, gamma / (1 - gamma), units)

    def work(rows: slice) -> None:
        y, b, known = units.signals(rows)
        if masks is not None and masks.ndim == 1:
            known = np.broadcast_to(masks, y.shape)
        finite = np.isfinite(y).all(1)
        products = atoms.products(np.where(finite[:, None], y, 0))
        weights = units.penalties(rows, b, products)
        some = units.codable(y, weights)
        if not len(some):
            return
        known = None if known is None else known[some].astype(float)
        first = units.starts(rows.start + some, b[some, 0])
        if len(some) < len(y):
            y, weights, products, b = y[some], weights[some], products[some], b[some]
        finest = units.finest + a - b[:, 0]
        coded = codes_of(task, y, weights, products, finest, first, known)
        order = np.argsort(coded.sets.atoms, 1)
        own, codes = (np.take_along_axis(v, order, 1) for v in coded.sets[:2])
        units.store(answers, rows.start + some, b[:, 0], codes, *coded[1:], atoms=own)

    rows = int(np.clip(_BYTES // (d * wide.itemsize), 16, 256))
    if isinstance(atoms, Matrix):
        share(work, len(Y), rows)
    else:  # the threads of JAX share the products
        for first in range(0, len(Y), rows):
            work(slice(first, min(first + rows, len(Y))))
    return answers


class Sets(NamedTuple):
    """The working sets of some signals, (n, w) each, with -1 and 0 in unused slots."""

    atoms: np.ndarray
    x: np.ndarray  # the code on the set, rounded as it is returned
    g: np.ndarray  # D'(y - D x) - l2 x on the set, in float64
    lam: np.ndarray  # penalties, 1 in unused slots

    @classmethod
    def empty(cls, n: int, w: int) -> "Sets":
        """Sets without atoms."""
        return cls(-np.ones((n, w), int), np.zeros((n, w)), np.zeros((n, w)), np.ones((n, w)))

    def at(self, rows: np.ndarray) -> "Sets":
        """The sets of some signals."""
        return Sets(*(v[rows] for v in self))

    def put(self, rows: np.ndarray, some: "Sets") -> "Sets":
        """The sets with those of some signals replaced."""
        n, w = len(self.atoms), max(self.atoms.shape[1], some.atoms.shape[1])
        whole = Sets.empty(n, w)
        for v, old, new, nothing in zip(whole, self, some, (-1, 0, 0, 1)):
            v[:, : old.shape[1]] = old
            v[rows] = nothing
            v[rows, : new.shape[1]] = new
        return whole


class Coded(NamedTuple):
    """Sparse codes of a block, and their accuracy and cost."""

    sets: Sets
    gap: np.ndarray  # (n,)
    residual: np.ndarray
    moves: np.ndarray
    margin: np.ndarray  # as in `_active_set.minimise`


def codes_of(
    task: Task,
    y: np.ndarray,
    lam: np.ndarray,
    products: np.ndarray,
    finest: np.ndarray,
    start: np.ndarray | None = None,
    known: np.ndarray | None = None,
) -> Coded:
    """The codes of finite signals with entries near 1, (n, m).

    Args:
        task: what all signals share.
        lam: penalties, (n, 1) or (n, d), all positive.
        products: Y D, (n, d).
        finest: (n,), as in `_active_set.minimise`.
        start: (n, d), codes to start from.
        known: (n, m), 1 for the entries that the code fits, and 0 for others, where y is 0.
    """
    n, tol, most_moves = len(y), task.units.tol, task.units.max_steps
    half = np.maximum(np.sum(y**2, 1) / 2, np.finfo(float).tiny)
    gap, moves, r, sets = np.full(n, np.inf), np.zeros(n, int), y.copy(), Sets.empty(n, 0)
    margin = np.zeros(n)
    todo = np.arange(n)
    if start is not None:
        fresh = _supports(start)
        sets, r, moves = _refined(task, sets, fresh, y, lam, finest, known, start)
        products = task.atoms.products(r)
    for turn in range(_ROUNDS):
        now = sets.at(todo)
        error = task.gamma * np.linalg.norm(r[todo], axis=1)
        most = np.maximum(_MORE if turn or start is not None else _FIRST, (now.x != 0).sum(1) // 2)
        fresh, tops = _violated(products, lam[todo], task, now.atoms, error, most)
        gap[todo] = _gaps(task, now, r[todo], tops) / half[todo]
        margin[todo] = _margins(task, now, tops)
        going = (gap[todo] > tol) & (fresh >= 0).any(1) & (moves[todo] < most_moves)
        todo, fresh = todo[going], fresh[going]
        if not len(todo):
            break
        part = None if known is None else known[todo]
        some, r[todo], more = _refined(
            task, sets.at(todo), fresh, y[todo], lam[todo], finest[todo], part
        )
        sets, moves[todo] = sets.put(todo, some), moves[todo] + more
        products = task.atoms.products(r[todo])
    return Coded(sets, gap, np.linalg.norm(r, axis=1), moves, margin)


def _supports(start: np.ndarray) -> np.ndarray:
    """The indices of the nonzeros of each row, (n, w), filled with -1."""
    order = np.argsort(start == 0, axis=1, kind="stable")
    count = np.count_nonzero(start, axis=1)
    order = order[:, : count.max(initial=0)]
    return np.where(np.arange(order.shape[1]) < count[:, None], order, -1)


def _gaps(task: Task, sets: Sets, r: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """The duality gaps at s r, where `tops` bounds the ratios |g_i| / lam_i outside of the sets."""
    sizes = sets.g if task.units.nonnegative else np.abs(sets.g)
    s = 1 / np.maximum((sizes / sets.lam).max(1, initial=1), tops)
    terms = sets.lam * np.abs(sets.x) - s[:, None] * sets.x * sets.g
    energy = np.sum(r**2, 1) + task.units.ridge * np.sum(sets.x**2, 1)
    return np.maximum(terms, 0).sum(1) + (1 - s) ** 2 * energy / 2


def _margins(task: Task, sets: Sets, tops: np.ndarray) -> np.ndarray:
    """The least of |x_i| / max |x| on the support, and of 1 - |g_i| / lam_i off the support."""
    size, on = np.abs(sets.x), sets.x != 0
    most = size.max(1, initial=0, keepdims=True)
    shares = np.where(on, size / np.where(most > 0, most, 1), np.inf).min(1, initial=1)
    g = sets.g if task.units.nonnegative else np.abs(sets.g)
    ratios = np.where(on, 0, g / sets.lam).max(1, initial=0)
    return np.maximum(np.minimum(shares, 1 - np.maximum(ratios, tops)), 0)


def _violated(
    products: np.ndarray,
    lam: np.ndarray,
    task: Task,
    sets: np.ndarray,
    error: np.ndarray,
    most: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The atoms that join each set, (n, most), and bounds on the ratios outside of the sets."""
    fresh, tops = -np.ones((len(lam), most.max()), int), np.zeros(len(lam))
    _scan(products, lam, task.units.sizes, sets, error, most, task.units.nonnegative, fresh, tops)
    return fresh[:, : (fresh >= 0).sum(1).max(initial=0)], tops


@_compiled(error_model="numpy", fastmath={"nnan", "nsz"})
def _scan(products, lam, norms, sets, error, most, nonnegative, fresh, tops):
    """The compiled part of `_violated`: the largest excesses, by insertion."""
    d, several, excess = len(norms), lam.shape[1] > 1, np.zeros(fresh.shape[1])
    for i in range(len(products)):
        joined, first = 0, 0
        for end in np.append(np.sort(sets[i]), d):  # the atoms of the set separate ranges of others
            if end < first:
                continue
            top = _top(products[i], lam[i], norms, error[i], nonnegative, first, end)
            tops[i] = max(tops[i], top)
            for j in range(first, end if top > 1 else first):
                size = products[i, j] if nonnegative else abs(products[i, j])
                weight = lam[i, j if several else 0]
                if size + error[i] * norms[j] <= weight:
                    continue
                over = (size - weight) / norms[j]
                if joined == most[i] and over <= excess[joined - 1]:
                    continue
                place = min(joined, most[i] - 1)
                while place > 0 and excess[place - 1] < over:
                    excess[place], fresh[i, place] = excess[place - 1], fresh[i, place - 1]
                    place -= 1
                excess[place], fresh[i, place] = over, j
                joined = min(joined + 1, most[i])
            first = end + 1


@_compiled(error_model="numpy", fastmath={"nnan", "nsz"})
def _top(products, lam, norms, error, nonnegative, first, end):
    """The largest bound on |g_i| / lam_i of a range of atoms."""
    top, several = 0.0, len(lam) > 1
    for j in range(first, end):
        size = products[j] if nonnegative else abs(products[j])
        ratio = size + error * norms[j]
        if several:
            ratio /= lam[j]
        if ratio > top:
            top = ratio
    return top if several else top / lam[0]


_MATRICES = [types.Array(number, 2, "A", readonly=True) for number in (types.f4, types.f8)]


@_compiled(
    [types.void(D, types.i8[::1], types.i8[::1], types.f8, types.f8[:, ::1]) for D in _MATRICES]
)
def _gather(D, indices, order, scale, atoms):
    """atoms = scale * D[:, indices].T in the given order; 0 for an index of -1."""
    m = len(D)
    for first in range(0, m, 16):  # so few rows stay in the cache
        end = min(first + 16, m)
        for i in order:
            j = indices[i]
            for row in range(first, end):
                atoms[i, row] = scale * D[row, j] if j >= 0 else 0.0


def _refined(
    task: Task,
    sets: Sets,
    fresh: np.ndarray,
    y: np.ndarray,
    lam: np.ndarray,
    finest: np.ndarray,
    known: np.ndarray | None,
    start: np.ndarray | None = None,
) -> tuple[Sets, np.ndarray, np.ndarray]:
    """The sets with fresh atoms and the minimisers over them, the residuals, and the moves."""
    units, sets = task.units, _grown(task, sets, fresh, lam)
    if start is not None:
        x = np.take_along_axis(start, np.maximum(sets.atoms, 0), 1)
        sets = sets._replace(x=np.where(sets.atoms >= 0, x, 0))
    n, w = sets.atoms.shape
    r, moves = np.empty_like(y), np.zeros(n, int)
    step = max(1, _ATOMS // (8 * max(w, 1) * y.shape[1]))
    for first in range(0, n, step):
        rows = slice(first, first + step)
        own, used = Sets(*(v[rows] for v in sets)), sets.atoms[rows] >= 0
        B = task.atoms.columns(own.atoms)
        if known is not None:
            B *= known[rows, None]
        gram = B @ B.transpose(0, 2, 1)
        gram[:, np.arange(w), np.arange(w)] += units.ridge * used
        squares = np.diagonal(gram, axis1=1, axis2=2)
        inverse = _active_set.inverse_roots(squares)
        problem = _active_set.Problem(B, B, gram, inverse, units.ridge, units.nonnegative)
        P = np.matmul(B, y[rows, :, None])[..., 0]
        minimised = _active_set.minimise(
            *(problem, y[rows], P, own.lam, _SLACK * np.linalg.norm(y[rows], axis=1)),
            tol=units.tol / 2,
            moves=units.max_steps,
            start=own.x if own.x.any() else None,
            digits=units.digits,
            finest=finest[rows],
        )
        own.x[:] = minimised.x
        own.g[:] = P - np.matmul(gram, minimised.x[..., None])[..., 0]
        r[rows] = y[rows] - np.matmul(minimised.x[:, None], B)[:, 0]
        moves[rows] = minimised.moves
    return sets, r, moves


def _grown(task: Task, sets: Sets, fresh: np.ndarray, lam: np.ndarray) -> Sets:
    """The sets without atoms that are far from their bounds, and with the fresh atoms."""
    sizes = sets.g if task.units.nonnegative else np.abs(sets.g)
    keep = (sets.atoms >= 0) & ((sets.x != 0) | (sizes > _KEPT * sets.lam))
    order, k = np.argsort(~keep, axis=1, kind="stable"), keep.sum(1)
    counts = (fresh >= 0).sum(1)
    grown = Sets.empty(len(k), int((k + counts).max(initial=0)))
    old = min(grown.atoms.shape[1], order.shape[1])
    kept = np.take_along_axis(keep, order, 1)[:, :old]
    for v, own in zip(grown[:2], sets[:2]):
        values = np.take_along_axis(own, order, 1)[:, :old]
        v[:, :old] = np.where(kept, values, v[:, :old])
    rows, places = np.nonzero(np.arange(fresh.shape[1]) < counts[:, None])
    grown.atoms[rows, k[rows] + places] = fresh[rows, places]
    of = np.maximum(grown.atoms, 0) if lam.shape[1] > 1 else np.zeros_like(grown.atoms)
    weights = np.take_along_axis(lam, of, 1)
    grown.lam[:] = np.where(grown.atoms >= 0, weights, 1)
    return grown
