r"""The LASSO of many signals whose codes come in parts, by working sets of parts.

.. math:: \min_X \tfrac12 \|Y - A X\|^2 + \sum_i lam_i \|X_i\| + \tfrac{l2}{2} \|X\|^2, \qquad
    X_i \in R^{p \times T}.

Part i has p columns of the matrix A, (m, d), and the signal Y is (m, T): a complex atom has p = 2
and T = 1, g measurements have p = 1 and T = g, and a group of g atoms has p = g and T = 1. The
columns of a part are turned to be orthogonal, which changes no norm. Let mu be the squared norms of
its columns, plus l2, and c the products of its columns with the residual of the other parts. Then
the minimum over the part is

.. math:: X_i = \frac{s}{\mu s + lam_i} c, \quad s = \|X_i\|, \qquad \text{or } X_i = 0
    \text{ if } \|c\| \le lam_i.

Newton's method finds s in a few steps. All signals of a block go through the same rounds: one
product of all residuals with A gives the gap of every signal and the parts that violate their
constraints, which join the set of the signal. On its set, a signal is minimised part after part,
with Anderson acceleration.

Reference: Tseng (2001) for descent by blocks; Massias, Gramfort, Salmon (2018) for working sets;
Bertrand, Massias (2021) for the acceleration.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled._base.numbers import host_exponent, wide_dtype
from unrolled.pursuit._compiled import cached, factor, round_to, solve
from unrolled.pursuit._many import Answers, Units, share
from unrolled.pursuit._working_sets import Matrix

_FIRST = 16  # parts that join in a round; half as many as there are nonzero parts, if larger
_ROUNDS = 100
# The matrix A'A is shared if it takes no longer than those of sets of so many parts, or of m atoms.
_USUAL, _LARGEST = 100, 8192  # the largest number of atoms for it
_BYTES = 2**24  # of the products of a block
# The gap on a set falls to this share of tol, or to _COARSE of the last gap if that is larger; the
# share is taken again, so often at most, if the code is the best on its set and the gap above tol.
_SHARE, _AGAIN, _COARSE = 0.3, 3, 0.1
_OFTEN = 5  # sweeps between two accelerations, which combine as many iterates
_STEPS, _TINY = 30, 1e-16  # of Newton's method, and the least step, relative to the root
_PRICE, _SHORTER, _RIDGE = 24, 12, 1e-12  # of steps for all nonzero parts
_LEAST = np.finfo(float).tiny
_ALIKE = 1e-10  # the ridge of an acceleration, relative to its system


class Parts(NamedTuple):
    """A matrix near 1, whose columns come in parts."""

    matrix: Matrix  # A in its dtype, for products
    gamma: float  # bound on the rounding of a product, relative to the norms
    p: int  # the columns of a part
    atoms: np.ndarray  # (d, m), the columns turned to be orthogonal in each part, in float64
    turns: np.ndarray  # (n, p, p): the columns of part i of A are turns[i] times its `atoms`
    norms: np.ndarray  # (n,), of the parts as vectors
    gram: np.ndarray  # (d, d), the products of `atoms`; (0, 0) if the sets have their own

    @classmethod
    def of(cls, A: np.ndarray, p: int, a: int, k: int) -> "Parts":
        """The parts of p columns of A, divided by 2^a, for k signals."""
        wide, m = A.astype(wide_dtype(A.dtype), copy=False), len(A)
        atoms = np.ldexp(A.T.astype(float), -a).reshape(-1, p, m)
        gram = atoms @ atoms.transpose(0, 2, 1)
        squares = np.trace(gram, axis1=1, axis2=2)
        turns = np.broadcast_to(np.eye(p), gram.shape)
        apart = np.abs(gram * (1 - np.eye(p))).max((1, 2))
        if (apart > 4 * m * np.finfo(float).eps * squares).any():
            turns = np.linalg.eigh(gram)[1]
            atoms = turns.transpose(0, 2, 1) @ atoms
        gamma = (m + 2) * float(jnp.finfo(wide.dtype).eps) / 2
        atoms, norms = np.ascontiguousarray(atoms.reshape(-1, m)), np.sqrt(squares)
        shared = len(atoms) <= _LARGEST and len(atoms) ** 2 <= k * max(_USUAL * p, m) ** 2
        gram = atoms @ atoms.T if shared else np.empty((0, 0))
        numbers = Matrix(wide, a), gamma / (1 - gamma), p
        return cls(*numbers, atoms, np.ascontiguousarray(turns), norms, gram)

    def sizes(self, R: np.ndarray) -> np.ndarray:
        """The norms of the parts of A'R for every signal, (signals, n), for R (signals, T, m)."""
        products = self.matrix.products(R.reshape(-1, R.shape[2]))
        products = products.reshape(*R.shape[:2], -1, self.p)
        return np.sqrt(np.einsum("stip,stip->si", products, products, dtype=float))


def lasso_by_parts(
    A: np.ndarray,
    Y: np.ndarray,
    lam: np.ndarray,
    l2: float = 0.0,
    start: np.ndarray | None = None,
    *,
    parts: tuple[int, int],
    dtype: Any = np.float64,
    into: Any = None,
    **options: Any,
) -> Answers:
    """The codes of the rows of Y; `steps` counts sweeps over the set of a signal.

    Args:
        A: (m, d).
        Y: (k, m T), signals (m, T) in rows.
        lam: (1, 1), (1, n), (k, 1) or (k, n), positive.
        l2: a number.
        start: (k, d T) or None.
        parts: p and T; n = d / p.
        dtype, into, options: as in `lasso_of_rows`.
    """
    (m, d), (p, T) = A.shape, parts
    answers = Answers.empty(len(Y), d * T, dtype, into)
    if not (np.isfinite(A).all() and A.any()):
        return answers
    a = int(host_exponent(A))
    of = Parts.of(A, p, a, len(Y))
    units = Units(Y, lam, float(l2), start, None, np.dtype(dtype), a, of.norms, **options)

    def work(rows: slice) -> None:
        y, b, _ = units.signals(rows)
        finite = np.isfinite(y).all(1)
        y = np.ascontiguousarray(y.reshape(-1, m, T).transpose(0, 2, 1))
        sizes = of.sizes(np.where(finite[:, None, None], y, 0))
        weights = np.maximum(units.penalties(rows, b, sizes), _LEAST)  # 0 is lam_max of y = 0
        weights = np.broadcast_to(weights, sizes.shape)
        some = units.codable(y.reshape(len(y), -1), weights)
        if len(some):
            b, which = b[some, 0], rows.start + some
            first = units.starts(which, b)
            x = np.zeros((len(some), d * T)) if first is None else np.ascontiguousarray(first)
            codes = x.reshape(len(some), -1, p, T)
            block = Block.of(y[some], weights[some], codes, units.finest + a - b)
            code(of, units, block)
            size = np.linalg.norm(block.r, axis=(1, 2))
            units.store(answers, which, b, x, block.gap, size, block.sweeps, block.margins())

    share(work, len(Y), int(np.clip(_BYTES // (8 * d * T), 1, 256)))
    return answers


@dataclass
class Block:
    """Signals that go through the rounds together, near 1, and what is known of their codes."""

    y: np.ndarray  # (k, T, m)
    lam: np.ndarray  # (k, n)
    codes: np.ndarray  # (k, n, p, T), rounded
    finest: np.ndarray  # (k,), as in `_active_set.minimise`
    r: np.ndarray  # (k, T, m), y - A x
    inside: np.ndarray  # (k, n), whether a part is in the set
    sweeps: np.ndarray  # (k,)
    sums: np.ndarray  # (k, 5), of the sets, as `_sums` writes them
    tops: np.ndarray  # (k,), bounds on the ratios |g_i| / lam_i outside of the sets
    gap: np.ndarray  # (k,), relative to half

    @classmethod
    def of(cls, y: np.ndarray, lam: np.ndarray, codes: np.ndarray, finest: np.ndarray) -> "Block":
        k, sums = len(y), np.zeros((len(y), 5))
        sums[:, 2] = np.sum(y**2, (1, 2))
        numbers = np.zeros(k, np.int64), sums, np.zeros(k), np.ones(k)
        return cls(y, lam, codes, finest, y.copy(), _nonzero(codes), *numbers)

    def margins(self) -> np.ndarray:
        """The least of |x_i| / max |x| on the support, and of 1 - |g_i| / lam_i off the support."""
        size = np.linalg.norm(self.codes, axis=(2, 3))
        most = size.max(1, keepdims=True)
        shares = np.where(size > 0, size / np.where(most > 0, most, 1), 1).min(1)
        return np.maximum(np.minimum(shares, 1 - np.maximum(self.sums[:, 4], self.tops)), 0)


def code(of: Parts, units: Units, block: Block) -> None:
    """The codes of finite signals, by rounds that each take one product with A."""
    k, n = block.lam.shape
    live, stuck = np.arange(k), np.zeros(k, int)
    half = np.maximum(block.sums[:, 2] / 2, _LEAST)
    for turn in range(_ROUNDS):
        if turn or block.inside.any():
            goal = np.maximum(_SHARE ** (1 + stuck) * units.tol, _COARSE * block.gap)
            _minimise(
                *(of.atoms, of.gram, of.turns, block.y, block.lam, units.ridge, live, block.inside),
                *(goal, half, units.max_steps, units.digits, block.finest),
                *(block.codes, block.r, block.sweeps, block.sums),
            )
        lam, r, before = block.lam[live], block.r[live], block.gap[live]
        error = of.gamma * np.linalg.norm(r, axis=(1, 2))[:, None] * of.norms
        ratios = np.where(block.inside[live], 0, (of.sizes(r) + error) / lam)
        block.tops[live] = ratios.max(1)
        block.gap[live] = gap = _gaps(block.sums[live], block.tops[live]) / half[live]
        joins = ratios > 1
        stuck[live] += ~joins.any(1) & (gap > before / 2)  # rounding keeps the gap above tol
        going = (gap > units.tol) & (block.sweeps[live] < units.max_steps) & (stuck[live] <= _AGAIN)
        excess = (ratios - 1) * lam / np.maximum(of.norms, _LEAST)
        live, joins, excess = live[going], joins[going], excess[going]
        if not len(live):
            return
        support = int(_nonzero(block.codes[live]).sum(1).max())
        some = min(max(_FIRST, support // 2), n)
        first = np.argpartition(np.where(joins, -excess, 0), some - 1, axis=1)[:, :some]
        block.inside[live[:, None], first] |= np.take_along_axis(joins, first, 1)


def _nonzero(codes: np.ndarray) -> np.ndarray:
    """Whether a part of a code is nonzero, (k, n)."""
    return np.asarray(codes.any((2, 3)))


def _gaps(sums: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """The duality gaps at s r, with the sums of a set and bounds on the ratios outside of it."""
    penalty, products, energy, inside = sums.T[:4]
    s = 1 / np.maximum(np.maximum(inside, tops), 1)
    return np.maximum(penalty - s * products, 0) + (1 - s) ** 2 * energy / 2


@cached(error_model="numpy")
def _minimise(
    atoms, shared, turns, y, lam, l2, live, inside, goal, half, most, digits, finest,
    codes, r, sweeps, sums,
):  # fmt: skip
    """Minimise some signals over their sets; write codes, residuals, sweeps and sums."""
    (T, m), p = y.shape[1:], turns.shape[1]
    for i in live:
        own = np.flatnonzero(inside[i])
        w = len(own)
        B, z, weights = np.empty((w * p, m)), np.empty((w, p, T)), lam[i][own]
        for k in range(w):
            part = own[k]
            B[k * p : k * p + p] = atoms[part * p : part * p + p]
            _turn(turns[part], codes[i, part], z[k])
        gram = _within(shared, own, p) if len(shared) else np.dot(B, B.T)
        c = np.dot(B, y[i].T).reshape(w, p, T)
        sweeps[i] += _descend(gram, c, weights, l2, z, goal[i], half[i], most - sweeps[i])
        for k in range(w):
            x = codes[i, own[k]]
            _turn(turns[own[k]].T, z[k], x)
            for a in range(p):
                round_to(x[a], x[a], T, digits, finest[i])
            _turn(turns[own[k]], x, z[k])
        r[i] = y[i] - np.dot(z.reshape(w * p, T).T, B)
        _sums(z, c - np.dot(gram, z.reshape(w * p, T)).reshape(w, p, T), weights, l2, sums[i])
        sums[i, 2] = np.sum(r[i] ** 2) + l2 * np.sum(z**2)


@cached(error_model="numpy")
def _within(shared, own, p):
    """The products of the columns of some parts with each other."""
    gram = np.empty((len(own) * p, len(own) * p))
    for i in range(len(own)):
        for a in range(p):
            row = shared[own[i] * p + a]
            for j in range(len(own)):
                for b in range(p):
                    gram[i * p + a, j * p + b] = row[own[j] * p + b]
    return gram


@cached(error_model="numpy")
def _turn(V, x, out):
    """out = V'x."""
    p, T = x.shape
    for a in range(p):
        for t in range(T):
            out[a, t] = 0.0
        for b in range(p):
            for t in range(T):
                out[a, t] += V[b, a] * x[b, t]


@cached(error_model="numpy")
def _descend(gram, c, lam, l2, z, goal, half, most):
    """Change z until its gap on the set is at most goal * half; return the number of sweeps.

    The energy in the gap is at most `half`, the objective of the code 0; a worse z becomes 0.
    """
    p, T = z.shape[1:]
    g = c - np.dot(gram, z.reshape(len(gram), -1)).reshape(z.shape)
    if not _objective(z, c, g, lam, l2, half) <= 0:
        z[:], g[:] = 0, c
    past, sums, count, spent = np.empty((_OFTEN + 1, z.size)), np.empty(5), 0, 0
    while True:
        _sums(z, g, lam, l2, sums)
        s = 1 / max(sums[3], 1.0)
        if sums[0] - s * sums[1] + (1 - s) ** 2 * half <= goal * half or count >= most:
            return count
        for turn in range(_OFTEN):
            past[turn] = z.ravel()
            _sweep(gram, lam, l2, z, g)
        past[_OFTEN] = z.ravel()
        count, spent = count + _OFTEN, spent + _OFTEN
        _try(gram, c, lam, l2, half, _combined(past).reshape(z.shape), z, g)
        on = np.flatnonzero(_norms(z))
        if spent >= len(on) * p * T**2 / _PRICE:  # a step of Newton's method takes as long
            step, spent = _newton(gram, lam, l2, z, g, on), 0
            for _ in range(_SHORTER):
                if _try(gram, c, lam, l2, half, z + step, z, g):
                    break
                step /= 4


@cached(error_model="numpy")
def _sweep(gram, lam, l2, z, g):
    """Minimise over one part after the other; g = c - gram z."""
    w, p, T = z.shape
    squares, energy, change, flat = np.empty(p), np.empty(p), np.empty(T), g.reshape(w * p, T)
    for k in range(w):
        total = 0.0
        for a in range(p):
            mu = gram[k * p + a, k * p + a]
            squares[a], energy[a] = mu + l2, 0.0
            for t in range(T):
                energy[a] += (g[k, a, t] + mu * z[k, a, t]) ** 2
            total += energy[a]
        s = _size(energy, squares, lam[k]) if total > lam[k] ** 2 else 0.0
        for a in range(p):
            row, moved = k * p + a, False
            scale = s / (squares[a] * s + lam[k])
            for t in range(T):
                new = scale * (g[k, a, t] + gram[row, row] * z[k, a, t])
                change[t], z[k, a, t] = new - z[k, a, t], new
                moved |= change[t] != 0
            if moved:
                _subtract(flat, gram[row], change)


@cached(error_model="numpy")
def _subtract(g, a, x):
    """g -= a x'."""
    if len(x) == 1:
        for j in range(len(a)):
            g[j, 0] -= a[j] * x[0]
    else:
        for j in range(len(a)):
            for t in range(len(x)):
                g[j, t] -= a[j] * x[t]


@cached(error_model="numpy")
def _size(energy, squares, lam):
    """s with sum_a energy_a / (squares_a s + lam)^2 = 1, by Newton's method from the left.

    The root of the inverse of the sum is a concave function of s, so no step passes the root.
    """
    s = (np.sqrt(np.sum(energy)) - lam) / np.max(squares)
    for _ in range(_STEPS):
        sum2 = sum3 = 0.0
        for a in range(len(energy)):
            size = squares[a] * s + lam
            sum2 += energy[a] / size**2
            sum3 += energy[a] * squares[a] / size**3
        step = (sum2**1.5 - sum2) / sum3
        if not step > _TINY * s:
            break
        s += step
    return s


@cached(error_model="numpy")
def _combined(past):
    """The combination of the last iterates, with sum 1, whose steps have the least norm."""
    steps = past[1:] - past[:-1]
    K = np.dot(steps, steps.T)
    ridge = _ALIKE * np.trace(K)
    if not ridge > 0:
        return past[-1]
    weights = np.linalg.solve(K + ridge * np.eye(len(K)), np.ones(len(K)))
    return np.dot(weights / np.sum(weights), past[1:])


@cached(error_model="numpy")
def _try(gram, c, lam, l2, half, other, z, g):
    """Replace z by another code, and g, if the objective falls; return whether it did."""
    slope = c - np.dot(gram, other.reshape(len(gram), -1)).reshape(z.shape)
    if not _objective(other, c, slope, lam, l2, half) < _objective(z, c, g, lam, l2, half):
        return False
    z[:], g[:] = other, slope
    return True


@cached(error_model="numpy")
def _newton(gram, lam, l2, z, g, on):
    """The step of Newton's method for the nonzero parts; 0 if its matrix is singular."""
    (p, T), size = z.shape[1:], _norms(z)
    q, step = p * T, np.zeros(z.shape)
    H, L = np.zeros((len(on) * q, len(on) * q)), np.empty((len(on) * q, len(on) * q))
    right = np.empty(len(H))
    for i in range(len(on)):
        for j in range(i + 1):
            for a in range(p):
                for b in range(p):
                    value = gram[on[i] * p + a, on[j] * p + b]
                    for t in range(T):
                        H[i * q + a * T + t, j * q + b * T + t] = value
        part, bend = z[on[i]].ravel() / size[on[i]], lam[on[i]] / size[on[i]]
        for a in range(q):
            H[i * q + a, i * q + a] += bend + l2
            for b in range(q):
                H[i * q + a, i * q + b] -= bend * part[a] * part[b]
        right[i * q : i * q + q] = (g[on[i]] - (bend + l2) * z[on[i]]).ravel()
    for a in range(len(H)):
        H[a, a] *= 1 + _RIDGE
    if factor(H, L, len(H), 0.0):
        solve(L, right, len(H))
        for i in range(len(on)):
            step[on[i]] = right[i * q : i * q + q].reshape(p, T)
    return step


@cached(error_model="numpy")
def _norms(z):
    """The norms of parts."""
    sizes = np.empty(len(z))
    for k in range(len(z)):
        sizes[k] = np.sqrt(np.sum(z[k] ** 2))
    return sizes


@cached(error_model="numpy")
def _objective(z, c, g, lam, l2, half):
    """The objective of z less that of 0, for g = c - gram z; inf where rounding would decide."""
    penalty = np.sum(lam * _norms(z))
    if penalty > half:
        return np.inf  # the objective of 0 is half
    return penalty + l2 / 2 * np.sum(z**2) - np.sum(z * (c + g)) / 2


@cached(error_model="numpy")
def _sums(z, g, lam, l2, sums):
    """The sums of lam_i |x_i| and of x h, the largest |h_i| / lam_i, and that off the support.

    Here h = g - l2 x, and the third sum is left to the caller.
    """
    sums[0] = sums[1] = sums[3] = sums[4] = 0.0
    for k in range(len(z)):
        h = g[k] - l2 * z[k]
        size, slope = np.sqrt(np.sum(z[k] ** 2)), np.sqrt(np.sum(h**2)) / lam[k]
        sums[0] += lam[k] * size
        sums[1] += np.sum(z[k] * h)
        sums[3] = max(sums[3], slope)
        if size == 0:
            sums[4] = max(sums[4], slope)
