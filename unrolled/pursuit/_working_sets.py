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
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numba import types

from unrolled._base import checks
from unrolled._base.numbers import host_exponent, wide_dtype
from unrolled.dictionaries import column_norms, inner_terms
from unrolled.pursuit import _active_set, _products
from unrolled.pursuit._compiled import cached
from unrolled.pursuit._many import Answers, Units, share

_MORE = 32  # the number of atoms that may join in a round; half of the nonzeros if larger
_ROUNDS = 100
_BYTES, _ATOMS = 2**25, 2**24  # of the products of a block, and numbers in the state of its sets
_ROWS, _SMALLEST = 512, 1e-30  # of D in a sum of squares, whose rounding error is below 1e-4
_SLACK = 1e-11  # as in `lasso_batch`


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
        slots = _slots(products, weights, m)
        block = Block.of(y, weights, units.finest + a - b[:, 0], known, slots)

        def store(which: np.ndarray, own: np.ndarray, x: np.ndarray, *numbers: Any) -> None:
            order, of = np.argsort(own, 1), rows.start + some[which]
            own, x = (np.take_along_axis(v, order, 1) for v in (own, x))
            units.store(answers, of, b[which, 0], x, *numbers, atoms=own)  # type: ignore[misc]

        code(task, block, products, first, store)

    rows = int(np.clip(_BYTES // (d * wide.itemsize), 16, 256))
    if isinstance(atoms, Matrix):
        share(work, len(Y), rows)
    else:  # the threads of JAX share the products
        for first in range(0, len(Y), rows):
            work(slice(first, min(first + rows, len(Y))))
    return answers


def _slots(products: np.ndarray, lam: np.ndarray, m: int) -> int:
    """The number of slots at first: a guess that saves copies of sets that outgrow their slots."""
    violated = np.count_nonzero(np.abs(products) > lam, axis=1)
    fit = (math.sqrt(m * m + 12 * _ATOMS / len(lam)) - m) / 6  # w (m + 3 w) numbers for a signal
    return 2 * _MORE + int(min(violated.mean() / 5, max(fit - 2 * _MORE, 0)))


class Sets(NamedTuple):
    """The working sets of some signals, (n, w) each, with -1 and 0 in unused slots."""

    atoms: np.ndarray
    x: np.ndarray  # the code on the set, rounded as it is returned
    g: np.ndarray  # D'(y - D x) - l2 x on the set, in float64
    lam: np.ndarray  # penalties, 1 in unused slots


class Held(NamedTuple):
    """The state of n signals that each have their own dictionary, of at most w atoms, in slots.

    A call of `_resume` continues where the last call ended, with the atoms that came in between.
    """

    used: np.ndarray  # (n,), the numbers of slots in use, which are the first slots
    D: np.ndarray  # (n, w, m), atoms in rows
    gram: np.ndarray  # (n, w, w)
    inverse: np.ndarray  # (n, w), as in `Problem`
    products: np.ndarray  # (n, w)
    lam: np.ndarray  # (n, w), 1 in unused slots
    x: np.ndarray  # (n, w), rounded
    squares: np.ndarray  # the workspaces
    vectors: np.ndarray
    lists: np.ndarray
    sizes: np.ndarray  # (n, 3), as in `_active_set._one`

    @classmethod
    def empty(cls, n: int, w: int, m: int) -> "Held":
        """The state of signals without atoms."""
        zeros = partial(np.zeros, (n, w))
        workspace = _active_set.workspace(n, m, w)
        arrays = np.empty((n, w, m)), np.empty((n, w, w)), zeros(), zeros(), zeros() + 1, zeros()
        return cls(np.zeros(n, np.int64), *arrays, *workspace, np.zeros((n, 3), np.int64))

    def at(self, rows: np.ndarray, w: int) -> "Held":
        """The state of some signals, in w slots, not fewer than before."""
        n, m = len(rows), self.D.shape[2]
        some = Held.empty(n, w, m)
        for new, old in zip(some, self):
            if old.ndim < 3:
                new[(slice(None), *map(slice, old.shape[1:]))] = old[rows]
        for i, row in enumerate(rows):
            used, (active, inside, _) = self.used[row], self.sizes[row]
            for new, old, *kept in (
                (some.D, self.D, used),
                (some.gram, self.gram, used, used),
                (some.squares, self.squares, 1, inside, inside),
                (some.squares[:, 1:], self.squares[:, 1:], 1, active, active),
                (some.vectors, self.vectors, _active_set.VECTORS, max(used, m)),
                (some.lists, self.lists, _active_set.LISTS, used),
            ):
                part = tuple(map(slice, kept))
                new[i][part] = old[row][part]
        return some

    def residuals(self, m: int) -> np.ndarray:
        """y - D x, (n, m)."""
        return self.vectors[:, _active_set.RESIDUAL, :m]

    def gradients(self, w: int) -> np.ndarray:
        """D'(y - D x) - l2 x, (n, w)."""
        return self.vectors[:, _active_set.GRADIENT, :w]


@dataclass
class Block:
    """Signals that go through the rounds together, near 1."""

    rows: np.ndarray  # (n,)
    y: np.ndarray  # (n, m)
    lam: np.ndarray  # penalties, (n, 1) or (n, d), all positive
    finest: np.ndarray  # (n,), as in `_active_set.minimise`
    known: np.ndarray | None  # (n, m), 1 for the entries that the code fits; else 0, as y
    r: np.ndarray  # (n, m), y - D x
    moves: np.ndarray  # (n,)
    atoms: np.ndarray  # (n, w), -1 in unused slots
    held: Held  # with w slots

    @classmethod
    def of(cls, y: np.ndarray, lam: np.ndarray, finest: np.ndarray, known: Any, w: int) -> "Block":
        """Signals with empty working sets."""
        y, (n, m) = np.ascontiguousarray(y), y.shape
        sets = -np.ones((n, w), int), Held.empty(n, w, m)
        return cls(np.arange(n), y, lam, finest, known, y.copy(), np.zeros(n, int), *sets)

    def wider(self, some: np.ndarray, more: int) -> list["Block"]:
        """Some of the signals with room for more atoms, in parts that fit into memory."""
        w, m = self.atoms.shape[1] + max(more, self.atoms.shape[1] // 2), self.y.shape[1]
        size = max(1, _ATOMS // (w * (m + 3 * w)))
        return [self._at(some[i : i + size], w) for i in range(0, len(some), size)]

    def _at(self, rows: np.ndarray, w: int) -> "Block":
        known = None if self.known is None else self.known[rows]
        atoms = -np.ones((len(rows), w), int)
        atoms[:, : self.atoms.shape[1]] = self.atoms[rows]
        y, r = self.y[rows], self.r[rows]
        numbers = self.lam[rows], self.finest[rows], known, r, self.moves[rows]
        return Block(self.rows[rows], y, *numbers, atoms, self.held.at(rows, w))

    def sets(self, rows: np.ndarray) -> Sets:
        """The sets of some signals."""
        held, w = self.held, int(self.held.used[rows].max(initial=0))
        whole = self.atoms, held.x, held.gradients(w), held.lam
        return Sets(*(v[rows, :w] for v in whole))


# Receives the rows of finished signals, their sets, gaps, residuals, moves and margins.
Store = Callable[..., None]


def code(task: Task, block: Block, products: np.ndarray, start: Any, store: Store) -> None:
    """The codes of finite signals, by rounds.

    Args:
        task: what all signals share.
        block: the signals.
        products: Y D, (n, d).
        start: (n, d), codes to start from, or None.
        store: receives the codes.
    """
    live, fresh = np.arange(len(block.rows)), np.zeros((0, 0), int)
    if start is not None:
        fresh = _supports(start, block.y.shape[1])
    if not fresh.size:
        start, (live, fresh) = None, _judged(task, block, live, products, store)
    _rounds(task, block, live, fresh, start, store)


def _rounds(
    task: Task, block: Block, live: np.ndarray, fresh: np.ndarray, start: Any, store: Store
) -> None:
    """Let fresh atoms, (len(live), k), join the sets of the signals `live`, until all are stored.

    Each round takes one product.
    """
    for turn in range(_ROUNDS if len(live) else 0):
        more = int((block.held.used[live] + (fresh >= 0).sum(1)).max()) - block.atoms.shape[1]
        if more > 0:
            parts = block.wider(live, more)
            if len(parts) > 1:
                for part in parts:
                    n, own = len(part.rows), np.isin(block.rows[live], part.rows)
                    first = None if start is None else start[live[own]]
                    _rounds(task, part, np.arange(n), fresh[own], first, store)
                return
            (block,), live = parts, np.arange(len(live))
        _refine(task, block, live, fresh, start)
        start, products = None, task.atoms.products(block.r[live])
        live, fresh = _judged(task, block, live, products, store, last=turn == _ROUNDS - 1)
        if not len(live):
            return


def _judged(
    task: Task,
    block: Block,
    live: np.ndarray,
    products: np.ndarray,
    store: Store,
    last: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Store what is finished; return the other signals, and the atoms that join their sets."""
    now, r = block.sets(live), block.r[live]
    size = np.linalg.norm(r, axis=1)
    most = np.maximum(_MORE, np.count_nonzero(now.x, axis=1) // 2)
    fresh, tops = _violated(products, block.lam[live], task, now.atoms, task.gamma * size, most)
    half = np.maximum(np.sum(block.y[live] ** 2, 1) / 2, np.finfo(float).tiny)
    gap, moves = _gaps(task, now, r, tops) / half, block.moves[live]
    going = (gap > task.units.tol) & (fresh >= 0).any(1) & (moves < task.units.max_steps)
    going &= not last
    numbers = gap, size, moves, _margins(task, now, tops)
    end = ~going
    if end.any():
        finished = (v[end] for v in (now.atoms, now.x, *numbers))
        store(block.rows[live[end]], *finished)
    return live[going], fresh[going]


def _supports(start: np.ndarray, most: int) -> np.ndarray:
    """The indices of the nonzeros of each row, (n, w), filled with -1.

    A row with more than `most` nonzeros has none: its set would be large, and its atoms dependent.
    """
    order = np.argsort(start == 0, axis=1, kind="stable")
    count = np.count_nonzero(start, axis=1)
    count[count > most] = 0
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
    # The atoms of a set separate ranges of other atoms.
    ends = np.append(np.sort(sets, 1), np.full((len(sets), 1), products.shape[1]), 1)
    _scan(products, lam, task.units.sizes, ends, error, most, task.units.nonnegative, fresh, tops)
    return fresh[:, : (fresh >= 0).sum(1).max(initial=0)], tops


@cached(error_model="numpy", fastmath={"nnan", "nsz"})
def _scan(products, lam, norms, ends, error, most, nonnegative, fresh, tops):
    """The compiled part of `_violated`: the largest excesses, by insertion."""
    several, excess = lam.shape[1] > 1, np.zeros(fresh.shape[1])
    for i in range(len(products)):
        joined, first = 0, 0
        for end in ends[i]:
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


@cached(error_model="numpy", fastmath={"nnan", "nsz"})
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


@cached(
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


def _refine(
    task: Task, block: Block, live: np.ndarray, fresh: np.ndarray, start: np.ndarray | None
) -> None:
    """Let fresh atoms join the sets of some signals, and minimise over these sets."""
    units, held = task.units, block.held
    atoms = task.atoms.columns(fresh)
    if block.known is not None:
        atoms *= block.known[live, None]
    several = block.lam.shape[1] > 1
    lam = np.take_along_axis(block.lam[live], np.maximum(fresh, 0) if several else 0 * fresh, 1)
    _join(*held[:6], block.atoms, block.y, live, fresh, atoms, lam, units.ridge)
    first = None
    if start is not None:
        first = np.zeros(block.atoms.shape)
        values = np.take_along_axis(start[live], np.maximum(fresh, 0), 1)
        first[live, : fresh.shape[1]] = np.where(fresh >= 0, values, 0)
    block.moves += _resume(
        *(held, block.y, _SLACK * np.linalg.norm(block.y, axis=1), live),
        l2=units.ridge,
        nonnegative=units.nonnegative,
        tol=units.tol / 2,
        moves=units.max_steps,
        digits=units.digits,
        finest=block.finest,
        start=first,
    )
    block.r[live] = held.residuals(block.y.shape[1])[live]


def _resume(
    held: Held,
    Y: np.ndarray,
    slack: np.ndarray,
    which: np.ndarray,
    *,
    l2: float,
    nonnegative: bool,
    tol: float,
    moves: int,
    digits: int,
    finest: np.ndarray,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """`minimise` for signals that each have their own dictionary; return the moves, (n,).

    Args:
        held: the state of n signals, which the function changes.
        Y, slack, finest: as in `minimise`, for all n signals.
        which: the signals that continue.
        l2, nonnegative: as in `Problem`.
        tol, moves, digits: as in `minimise`.
        start: (n, w), as in `minimise`.
    """
    n, w, m = held.D.shape
    counts, sizes = np.zeros((2, n), np.int64), np.zeros((3, n))
    floats = held.gram, held.D, held.inverse, Y, held.products, held.lam, slack, finest
    first = np.zeros((0, w)) if start is None else start
    results = held.x, sizes[0], sizes[1], counts[0], counts[1], sizes[2]
    _active_set.entry(_active_set.many, _active_set.MANY)(
        *map(_active_set.operand, (*floats, first, np.zeros((0, m)))),
        *map(_active_set.pointer, (*results, *held[-4:], held.used, which)),
        *(
            len(which),
            n,
            m,
            w,
            w,
            len(first),
            0,
            True,
            moves,
            _active_set.FEWEST,
            _active_set.UNBOUNDED,
        ),
        *(l2, nonnegative, tol, digits),
    )
    return counts[0]


@cached(error_model="numpy")
def _join(used, D, gram, inverse, products, lam, indices, y, live, fresh, atoms, weights, ridge):
    """Write the fresh atoms, (len(live), k, m), and their products into the next slots."""
    for t in range(len(live)):
        i, k = live[t], np.sum(fresh[t] >= 0)
        w = used[i]
        end = w + k
        for a in range(k):
            indices[i, w + a], lam[i, w + a] = fresh[t, a], weights[t, a]
            for row in range(len(y[i])):
                D[i, w + a, row] = atoms[t, a, row]
        own, square = D[i][:end], gram[i]
        rows = np.dot(own[w:], own.T)
        for a in range(w, end):
            for c in range(end):
                square[a, c] = square[c, a] = rows[a - w, c]
            square[a, a] += ridge
            inverse[i, a] = 1 / np.sqrt(square[a, a]) if square[a, a] > 0 else 0.0
        correlations = np.dot(own[w:], y[i])
        for a in range(k):
            products[i, w + a] = correlations[a]
        used[i] = end
