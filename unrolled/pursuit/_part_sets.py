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

import numpy as np

from unrolled._base.numbers import host_exponent
from unrolled.pursuit._compiled import cached, compiled, factor, solve
from unrolled.pursuit._many import Answers, Units, share

_FIRST = 16  # parts that join in a round; half as many as there are nonzero parts, if larger
_ROUNDS = 100
# The matrix A'A is shared if it takes no longer than those of sets of so many parts, or of m atoms.
_USUAL, _LARGEST = 100, 8192  # the largest number of atoms for it
_TOGETHER = 8  # signals that go through the rounds in one thread
# The gap on a set falls to this share of tol, or to _COARSE of the last gap if that is larger; the
# share is taken again, so often at most, if the code is the best on its set and the gap above tol.
_SHARE, _AGAIN, _COARSE = 0.3, 3, 0.1
_OFTEN = 5  # sweeps between two accelerations, which combine as many iterates
_STEPS, _TINY = 30, 1e-16  # of Newton's method for a part, and the least step, relative to the root
# A step of Newton's method for all nonzero parts takes the time of (their atoms) T^2 / _PRICE
# sweeps. It is made shorter at most so often, and its system has at most so many rows.
_PRICE, _SHORTER, _ROWS, _RIDGE = 24, 12, 4096, 1e-12
_ALIKE = 1e-10  # the ridge of an acceleration, relative to its system, as _RIDGE
_DENSE = 4  # the most atoms in a start, relative to m
_LEAST = np.finfo(float).tiny


class Parts(NamedTuple):
    """A matrix near 1, whose columns come in parts."""

    p: int  # the columns of a part
    atoms: np.ndarray  # (d, m), the columns turned to be orthogonal in each part
    turns: np.ndarray | None  # (n, p, p): the columns of part i of A are turns[i] times its atoms
    norms: np.ndarray  # (n,), of the parts as vectors
    gram: np.ndarray | None  # (d, d), the products of `atoms`; None if each set has its own

    @classmethod
    def of(cls, A: np.ndarray, p: int, a: int, k: int) -> "Parts":
        """The parts of p columns of A, divided by 2^a, for k signals."""
        m = len(A)
        atoms = np.ldexp(A.T.astype(float), -a).reshape(-1, p, m)
        gram, turns = atoms @ atoms.transpose(0, 2, 1), None
        squares = np.trace(gram, axis1=1, axis2=2)
        apart = np.abs(gram * (1 - np.eye(p))).max((1, 2))
        if (apart > 4 * m * np.finfo(float).eps * squares).any():
            turns = np.linalg.eigh(gram)[1]
            atoms = turns.transpose(0, 2, 1) @ atoms
        atoms = atoms.reshape(-1, m)
        shared = len(atoms) <= _LARGEST and len(atoms) ** 2 <= k * max(_USUAL * p, m) ** 2
        return cls(p, atoms, turns, np.sqrt(squares), atoms @ atoms.T if shared else None)

    def products(self, R: np.ndarray) -> np.ndarray:
        """A'R of the turned A for every signal, (k, d, T), for R (k, T, m)."""
        return np.ascontiguousarray((R @ self.atoms.T).transpose(0, 2, 1))

    def residuals(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """y - A x, (k, T, m), for turned codes (k, d, T)."""
        return y - z.transpose(0, 2, 1) @ self.atoms

    def sizes(self, z: np.ndarray) -> np.ndarray:
        """The norms of parts, (k, n), of codes or products, (k, d, T)."""
        parts = z.reshape(len(z), len(self.norms), -1)
        return np.sqrt(np.einsum("kni,kni->kn", parts, parts))

    def turned(self, x: np.ndarray, back: bool = False) -> np.ndarray:
        """Codes in the turned columns, (k, d, T), or codes of A from these."""
        if self.turns is None:
            return x
        turns = self.turns if back else self.turns.transpose(0, 2, 1)
        return (turns @ x.reshape(len(x), -1, self.p, x.shape[2])).reshape(x.shape)

    def square(self, rows: np.ndarray) -> np.ndarray:
        """The products of some atoms."""
        if self.gram is not None:
            return self.gram[rows[:, None], rows]
        return self.atoms[rows] @ self.atoms[rows].T


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
        y = np.where(finite[:, None], y, 0).reshape(-1, m, T).transpose(0, 2, 1)
        products = of.products(y)
        weights = np.maximum(units.penalties(rows, b, of.sizes(products)), _LEAST)
        weights = np.broadcast_to(weights, (len(y), d // p))
        some = np.intersect1d(units.codable(y.reshape(len(y), -1), weights), np.flatnonzero(finite))
        if len(some):
            b, which = b[some, 0], rows.start + some
            first = units.starts(which, b)
            x = np.zeros((len(some), d, T)) if first is None else first.reshape(-1, d, T)
            x[(of.sizes(x) > 0).sum(1) * p > _DENSE * m] = 0  # its set would be large
            block = Block.of(of, y[some], products[some], weights[some], x, units.finest + a - b)
            code(of, units, block)
            codes, size = block.x.reshape(len(some), -1), np.linalg.norm(block.r, axis=(1, 2))
            units.store(answers, which, b, codes, block.gap, size, block.sweeps, block.margin)

    share(work, len(Y), _TOGETHER)
    return answers


@dataclass
class Block:
    """Signals that go through the rounds together, near 1, and what is known of their codes."""

    y: np.ndarray  # (k, T, m)
    products: np.ndarray  # (k, d, T), of y
    lam: np.ndarray  # (k, n)
    x: np.ndarray  # (k, d, T), the codes, rounded
    z: np.ndarray  # (k, d, T), the codes in the turned columns
    finest: np.ndarray  # (k,), as in `_active_set.minimise`
    r: np.ndarray  # (k, T, m), y - A x
    inside: np.ndarray  # (k, n), whether a part is in the set
    sweeps: np.ndarray  # (k,)
    gap: np.ndarray  # (k,), relative to half of norm(y)^2
    margin: np.ndarray  # (k,)

    @classmethod
    def of(
        cls,
        of: Parts,
        y: np.ndarray,
        products: np.ndarray,
        lam: np.ndarray,
        x: np.ndarray,
        finest: np.ndarray,
    ) -> "Block":
        """Signals whose sets are the nonzero parts of x."""
        z, k = of.turned(x), len(y)
        numbers = np.zeros(k, np.int64), np.ones(k), np.zeros(k)
        return cls(y, products, lam, x, z, finest, of.residuals(y, z), of.sizes(x) > 0, *numbers)


def code(of: Parts, units: Units, block: Block) -> None:
    """The codes of finite signals, by rounds that each take one product with A."""
    k, n = block.lam.shape
    live, stuck = np.arange(k), np.zeros(k, int)
    half = np.maximum(np.sum(block.y**2, (1, 2)) / 2, _LEAST)
    for turn in range(_ROUNDS):
        if turn or block.inside.any():
            goal = np.maximum(_SHARE ** (1 + stuck) * units.tol, _COARSE * block.gap)
            _refine(of, units, block, live, goal, half)
        before = block.gap[live]
        ratios = _judge(of, units, block, live, half)
        joins = (ratios > 1) & ~block.inside[live]
        gap = block.gap[live]
        stuck[live] += ~joins.any(1) & (gap > before / 2)  # rounding keeps the gap above tol
        going = (gap > units.tol) & (block.sweeps[live] < units.max_steps) & (stuck[live] <= _AGAIN)
        with np.errstate(over="ignore"):
            excess = (ratios - 1) * block.lam[live] / np.where(of.norms > 0, of.norms, 1)
        live, joins, excess = live[going], joins[going], excess[going]
        if not len(live):
            return
        support = int((of.sizes(block.z[live]) > 0).sum(1).max())
        some = min(max(_FIRST, support // 2), n)
        first = np.argpartition(np.where(joins, -excess, 0), some - 1, axis=1)[:, :some]
        block.inside[live[:, None], first] |= np.take_along_axis(joins, first, 1)


def _refine(
    of: Parts, units: Units, block: Block, live: np.ndarray, goal: np.ndarray, half: np.ndarray
) -> None:
    """Minimise some signals over their sets."""
    columns = np.arange(of.p)
    for i in live:
        own = np.flatnonzero(block.inside[i])
        rows = (own[:, None] * of.p + columns).ravel()
        z, gram, weights = block.z[i][rows], of.square(rows), block.lam[i][own]
        left = units.max_steps - block.sweeps[i]
        numbers = units.ridge, of.p, z, goal[i], half[i], left
        block.sweeps[i] += descend(gram, block.products[i][rows], weights, *numbers)
        block.z[i][rows] = z
    x = of.turned(block.z[live], back=True)
    unit = np.maximum(np.frexp(x)[1] - units.digits, block.finest[live, None, None]).astype(int)
    block.x[live] = np.ldexp(np.rint(np.ldexp(x, -unit)), unit)
    block.z[live] = of.turned(block.x[live])
    block.r[live] = of.residuals(block.y[live], block.z[live])


def _judge(of: Parts, units: Units, block: Block, live: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Write gaps and margins of some signals; return the ratios |g_i| / lam_i, (live, n)."""
    z, r, lam = block.z[live], block.r[live], block.lam[live]
    g = of.products(r) - units.ridge * z
    with np.errstate(over="ignore"):  # lam may be tiny
        size, ratios = of.sizes(z), of.sizes(g) / lam
    s = 1 / np.maximum(ratios.max(1), 1)
    products = np.einsum("kdt,kdt->k", z, g)
    energy = np.sum(r**2, (1, 2)) + units.ridge * np.sum(z**2, (1, 2))
    penalty = np.maximum(np.sum(lam * size, 1) - s * products, 0)
    block.gap[live] = (penalty + (1 - s) ** 2 * energy / 2) / half[live]
    on, most = size > 0, size.max(1, keepdims=True)
    shares = np.where(on, size / np.where(most > 0, most, 1), 1).min(1)
    block.margin[live] = np.maximum(np.minimum(shares, 1 - np.where(on, 0, ratios).max(1)), 0)
    return ratios


@cached(error_model="numpy")
def descend(gram, c, lam, l2, p, z, goal, half, most):
    """Change z, (d, T), until its gap is at most goal * half; return the number of sweeps.

    Here c = B'y and gram = B'B for the atoms B of a set. The energy in the gap is at most `half`,
    the objective of the code 0; a worse z becomes 0.
    """
    d, T = z.shape
    g, other, slope = np.empty((d, T)), np.empty((d, T)), np.empty((d, T))
    past, sizes, count, spent = np.empty((_OFTEN + 1, d, T)), np.empty(len(lam)), 0, 0
    _gradient(gram, c, z, g)
    if not _objective(z, c, g, lam, l2, p, half) <= 0:
        _clear(z)
        _copy(g, c)
    while True:
        if _gap(z, g, lam, l2, p, half) <= goal * half or count >= most:
            return count
        for turn in range(_OFTEN):
            _copy(past[turn], z)
            _sweep(gram, lam, l2, p, z, g)
        _copy(past[_OFTEN], z)
        count, spent = count + _OFTEN, spent + _OFTEN
        _combine(past, other)
        _try(gram, c, lam, l2, p, half, other, slope, z, g)
        on = 0
        for k in range(len(lam)):
            sizes[k] = _norm(z, k, p)
            on += sizes[k] > 0
        if spent >= on * p * T**2 / _PRICE and on * p * T <= _ROWS:
            spent, step = 0, _newton(gram, lam, l2, p, z, g, sizes, on)
            f, reach = 1.0, 0.25
            for k in range(len(lam)):  # the first part to be 0 along the step
                if sizes[k] > 0:
                    reach = min(reach, sizes[k] / max(_norm(step, k, p), sizes[k]))
            for _ in range(_SHORTER):
                _copy(other, z)
                _add(other, f, step)
                if _try(gram, c, lam, l2, p, half, other, slope, z, g):
                    break
                f = min(f / 4, reach)


@compiled
def _clear(z):
    """z = 0."""
    for j in range(len(z)):
        for t in range(z.shape[1]):
            z[j, t] = 0.0


@compiled
def _copy(out, x):
    """out = x."""
    for j in range(len(x)):
        for t in range(x.shape[1]):
            out[j, t] = x[j, t]


@compiled
def _add(out, f, x):
    """out += f x."""
    for j in range(len(x)):
        for t in range(x.shape[1]):
            out[j, t] += f * x[j, t]


@compiled
def _gradient(gram, c, z, g):
    """g = c - gram z."""
    _copy(g, c)
    for j in range(len(z)):
        some = False
        for t in range(z.shape[1]):
            some |= z[j, t] != 0
        if some:
            _subtract(g, gram[j], z[j])


@compiled
def _subtract(g, a, x):
    """g -= a x'."""
    if len(x) == 1:
        for j in range(len(a)):
            g[j, 0] -= a[j] * x[0]
    else:
        for j in range(len(a)):
            for t in range(len(x)):
                g[j, t] -= a[j] * x[t]


@compiled
def _norm(z, k, p):
    """The norm of part k."""
    total = 0.0
    for j in range(k * p, k * p + p):
        for t in range(z.shape[1]):
            total += z[j, t] ** 2
    return np.sqrt(total)


@compiled
def _sweep(gram, lam, l2, p, z, g):
    """Minimise over one part after the other; g = c - gram z."""
    T = z.shape[1]
    squares, energy, change = np.empty(p), np.empty(p), np.empty(T)
    for k in range(len(lam)):
        total = 0.0
        for a in range(p):
            j = k * p + a
            squares[a], energy[a] = gram[j, j] + l2, 0.0
            for t in range(T):
                energy[a] += (g[j, t] + gram[j, j] * z[j, t]) ** 2
            total += energy[a]
        s = _size(energy, squares, total, lam[k]) if total > lam[k] ** 2 else 0.0
        for a in range(p):
            j, moved = k * p + a, False
            scale = s / (squares[a] * s + lam[k])
            for t in range(T):
                new = scale * (g[j, t] + gram[j, j] * z[j, t])
                change[t], z[j, t] = new - z[j, t], new
                moved |= change[t] != 0
            if moved:
                _subtract(g, gram[j], change)


@compiled
def _size(energy, squares, total, lam):
    """s with sum_a energy_a / (squares_a s + lam)^2 = 1, by Newton's method from the left.

    The root of the inverse of the sum is a concave function of s, so no step passes the root.
    """
    most = 0.0
    for a in range(len(squares)):
        most = max(most, squares[a])
    s = (np.sqrt(total) - lam) / most
    for _ in range(_STEPS):
        sum2 = sum3 = 0.0
        for a in range(len(energy)):
            size = squares[a] * s + lam
            sum2 += energy[a] / size**2
            sum3 += energy[a] * squares[a] / size**3
        step = sum2 * (np.sqrt(sum2) - 1) / sum3
        if not step > _TINY * s:
            break
        s += step
    return s


@compiled
def _combine(past, out):
    """The combination of the last iterates, with sum 1, whose steps have the least norm."""
    n, d, T = len(past) - 1, past.shape[1], past.shape[2]
    K, L, weights = np.empty((n, n)), np.empty((n, n)), np.empty(n)
    trace = total = 0.0
    for i in range(n):
        weights[i] = 1.0
        for k in range(i + 1):
            product = 0.0
            for j in range(d):
                for t in range(T):
                    step = past[i + 1, j, t] - past[i, j, t]
                    product += step * (past[k + 1, j, t] - past[k, j, t])
            K[i, k] = K[k, i] = product
        trace += K[i, i]
    for i in range(n):
        K[i, i] += _ALIKE * trace
    if not factor(K, L, n, 0.0):
        _copy(out, past[n])
        return
    solve(L, weights, n)
    for i in range(n):
        total += weights[i]
    _clear(out)
    for i in range(n):
        _add(out, weights[i] / total, past[i + 1])


@compiled
def _try(gram, c, lam, l2, p, half, other, slope, z, g):
    """Replace z by another code, and g, if the objective falls; return whether it did."""
    _gradient(gram, c, other, slope)
    value = _objective(other, c, slope, lam, l2, p, half)
    if not value < _objective(z, c, g, lam, l2, p, half):
        return False
    _copy(z, other)
    _copy(g, slope)
    return True


@compiled
def _newton(gram, lam, l2, p, z, g, sizes, on):
    """The step of Newton's method for the nonzero parts."""
    d, T = z.shape
    q, rows = p * T, np.empty(on * p, np.int64)
    H, L = np.zeros((on * q, on * q)), np.empty((on * q, on * q))
    b, step, i = np.empty(on * q), np.zeros((d, T)), 0
    for k in range(len(lam)):
        if sizes[k] > 0:
            bend, first = lam[k] / sizes[k], i * p
            for j in range(k * p, k * p + p):
                rows[i * p + j - k * p] = j
            for e in range(q):
                j, t = rows[first + e // T], e % T
                H[i * q + e, i * q + e] += bend + l2
                b[i * q + e] = g[j, t] - (bend + l2) * z[j, t]
                for f in range(q):
                    along = z[j, t] * z[rows[first + f // T], f % T] / sizes[k] ** 2
                    H[i * q + e, i * q + f] -= bend * along
            i += 1
    for i in range(len(rows)):
        for j in range(i + 1):
            for t in range(T):
                H[i * T + t, j * T + t] += gram[rows[i], rows[j]]
    for e in range(len(b)):
        H[e, e] *= 1 + _RIDGE
    if factor(H, L, len(b), 0.0):
        solve(L, b, len(b))
        for i in range(len(rows)):
            for t in range(T):
                step[rows[i], t] = b[i * T + t]
    return step


@compiled
def _objective(z, c, g, lam, l2, p, half):
    """The objective of z less that of 0, for g = c - gram z; inf where rounding would decide."""
    penalty = value = 0.0
    for k in range(len(lam)):
        penalty += lam[k] * _norm(z, k, p)
    if penalty > half:
        return np.inf  # the objective of 0 is half
    for j in range(len(z)):
        for t in range(z.shape[1]):
            value += z[j, t] * (l2 * z[j, t] - c[j, t] - g[j, t]) / 2
    return penalty + value


@compiled
def _gap(z, g, lam, l2, p, half):
    """The duality gap on a set, with `half` for the energy of the residual."""
    penalty = products = 0.0
    top = 1.0
    for k in range(len(lam)):
        size = 0.0
        for j in range(k * p, k * p + p):
            for t in range(z.shape[1]):
                h = g[j, t] - l2 * z[j, t]
                products += z[j, t] * h
                size += h**2
        penalty += lam[k] * _norm(z, k, p)
        top = max(top, np.sqrt(size) / lam[k])
    s = 1 / top
    return penalty - s * products + (1 - s) ** 2 * half
