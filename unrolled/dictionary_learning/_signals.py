"""Signals with their weights, checked, and atoms made from them: the start, and replacements."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled import _checks
from unrolled._checks import ArrayLike
from unrolled._numbers import wide_dtype
from unrolled.dictionaries import Dictionary, as_dictionary, dct, dense, normalize
from unrolled.dictionary_learning._learning import fingerprint

# Atoms whose inner product exceeds this are duplicates.
PARALLEL = 0.99


class Signals(NamedTuple):
    """Signals and weights near 1 in magnitude: Y 2^exponent and V 2^scale are those given."""

    Y: np.ndarray  # (n, m), zero where unknown
    V: np.ndarray | None  # (n, m) weights of the squared errors, the largest in (1/2, 1]; or ones
    exponent: int
    dtype: np.dtype  # of the result
    scale: int = 0

    def objective(self, R: np.ndarray) -> float:
        """The mean of 1/2 sum_i v_i r_i^2 over residuals R, in the units of the signals given."""
        squares = R * R if self.V is None else self.V * R * R
        return self.in_units(np.sum(squares, dtype=float) / (2 * len(R)))

    def in_units(self, objective: Any) -> float:
        """An objective of these in the units of those given; inf beyond the largest float."""
        return in_units(objective, 2 * self.exponent + self.scale)

    def errors(self, R: np.ndarray) -> np.ndarray:
        """sum_i v_i r_i^2 for every residual in R, (n,)."""
        return np.sum(R * R if self.V is None else self.V * R * R, 1)

    def target(self, R: np.ndarray) -> np.ndarray:
        """v y + (1 - v) D x, for R = Y - X D' and weights divided by the largest.

        The error of atoms for it, without weights, is at least the weighted one; equal for D.
        """
        return self.Y if self.V is None else self.Y - (1 - self.V / self.V.max()) * R

    def weighted(self, R: np.ndarray) -> np.ndarray:
        """v R, for weights divided by the largest: `target(R)` minus D x."""
        return R if self.V is None else self.V / self.V.max() * R

    def fingerprint(self) -> str:
        """A text that differs for different signals or weights."""
        if self.V is None:
            return fingerprint(self.Y)
        with np.errstate(over="ignore"):
            weights = np.ldexp(self.V, self.scale)
        inside = np.isfinite(weights).all()
        return fingerprint(self.Y, *((weights,) if inside else (self.V, np.array(self.scale))))

    def rescaled(self, exponent: int) -> "Signals":
        """The same signals, divided by 2^exponent."""
        return self._replace(Y=np.ldexp(self.Y, self.exponent - exponent), exponent=exponent)

    def filled(self, R: np.ndarray) -> np.ndarray:
        """The signals, with their approximation Y - R where they are unknown."""
        return self.Y if self.V is None else np.where(self.V > 0, self.Y, self.Y - R)


def as_signals(
    Y: ArrayLike,
    where: str,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    name: str = "Y",
    *,
    unknown: bool = False,
) -> Signals:
    """The signals and weights that a caller gives, checked.

    Weights that are all zero are an error unless `unknown` says that there may be nothing known.
    """
    _checks.on_host((Y, weights, mask), where, f"{name}, weights or mask")
    rows = _checks.as_float(Y, name, where)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{where}: {name} has shape {rows.shape}; expected (signals, m), signals in rows"
            f"{_checks.flattened(name, rows.shape)}"
        )
    Y = np.asarray(rows).astype(wide_dtype(rows.dtype))
    V, scale = _weights(Y.shape, Y.dtype, weights, mask, where)
    if V is not None and not V.any() and not unknown:
        raise ValueError(f"{where}: all weights are zero")
    finite = np.isfinite(Y) if V is None else np.isfinite(Y) | (V == 0)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"{where}: {name} has NaN or infinite entries, the first at ({row}, {column}); "
            "leave such signals out, or give the known entries as `mask`, where there is one"
        )
    if V is not None:
        Y = np.where(V > 0, Y, 0)
    exponent = int(np.frexp(np.abs(Y).max())[1])
    return Signals(np.ldexp(Y, -exponent), V, exponent, rows.dtype, scale)


def _weights(
    shape: tuple[int, ...],
    dtype: np.dtype,
    weights: ArrayLike | None,
    mask: ArrayLike | None,
    where: str,
) -> tuple[np.ndarray | None, int]:
    """(V, k), where weights times mask are V 2^k, (n, m); None for ones.

    The largest of V is in (1/2, 1]: squares times weights are then in the range of the dtype.
    """
    if weights is None and mask is None:
        return None, 0
    V = np.ones(shape)
    for value, name in ((weights, "weights"), (mask, "mask")):
        if value is None:
            continue
        value = np.asarray(value)
        value = value[:, None] if value.shape == shape[:1] else value
        if value.shape not in (shape, (shape[0], 1)):
            raise ValueError(
                f"{where}: {name} has shape {value.shape}; expected {shape} or ({shape[0]},)"
            )
        if name == "mask" and value.dtype != bool:
            raise TypeError(f"{where}: mask has dtype {value.dtype}; expected bool, True for known")
        _checks.nonnegative(value, name, where)
        _checks.finite(value, name, where)
        V *= value.astype(float)
    part, k = np.frexp(V.max())
    k = int(k) - int(part == 0.5)
    return np.ldexp(V, -k).astype(dtype), k


def atom_count(d: int, n: int, where: str) -> int:
    """The number of atoms that a caller gives, for n signals, checked."""
    d = _checks.as_index(d, "d", where, least=1)
    if d > n:
        raise ValueError(f"{where}: d is {d} but there are {n} signals; expected at most as many")
    return d


def in_units(objective: Any, exponent: int) -> float:
    """An objective times 2^exponent; inf beyond the largest float."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(float(objective), exponent))


def near_one(lam: float, exponent: int) -> float:
    """lam for signals near 1; at most 2^100, which no correlation of theirs reaches."""
    with np.errstate(over="ignore"):
        return min(float(np.ldexp(lam, -exponent)), 2.0**100)


def as_lam(lam: Any, where: str) -> float:
    """A penalty weight as a positive number."""
    value = _checks.as_number(lam, "lam", where)
    if not 0 < value < math.inf:
        raise ValueError(f"{where}: lam must be positive and finite, got {lam}")
    return value


def unit_rows(A: np.ndarray) -> np.ndarray:
    """Rows divided by their norms, whose squares may leave the range; zero rows stay."""
    A = np.ldexp(A, -np.frexp(np.abs(A).max(1, keepdims=True, initial=0))[1])
    norms = np.linalg.norm(A, axis=1, keepdims=True)
    return A / np.where(norms > 0, norms, 1)


def correction(X: np.ndarray, R: np.ndarray) -> np.ndarray:
    """The least C, (m, d), that minimises norm(R - X C'), for codes and residuals in rows.

    Atoms D that leave R = Y - X D' are best as D + C. Codes of one atom may be much smaller than
    those of another, so least is meant for columns of X that are divided by their norms; none of
    them is zero.
    """
    peaks = np.abs(X).max(0)  # squares of the columns themselves may leave the range
    U = X / peaks
    sizes = np.linalg.norm(U, axis=0)
    U /= sizes
    rounding = U.shape[1] * np.finfo(U.dtype).eps
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the error
        return R.T @ U @ np.linalg.pinv(U.T @ U, rcond=rounding, hermitian=True) / sizes / peaks


def start_atoms(
    start: str | Dictionary, signals: Signals, d: int, rng: np.random.Generator, where: str
) -> np.ndarray:
    """Unit atoms to start from, (m, d): random signals, cosines, or those given."""
    Y = signals.Y
    n, m = Y.shape
    if isinstance(start, str):
        if start == "data":
            return distinct(Y[rng.permutation(n)], np.zeros((m, 0), Y.dtype), d, rng).T
        if start == "dct":
            return _cosines(m, d).astype(Y.dtype)
        raise ValueError(f'{where}: unknown start {start!r}; expected "data", "dct" or a D')
    _checks.on_host(start, where, "start")
    D = as_dictionary(start, where)
    if D.shape != (m, d):
        raise ValueError(f"{where}: start has shape {D.shape}; expected ({m}, {d})")
    return np.array(dense(normalize(D)[0]), Y.dtype)


def _cosines(m: int, d: int) -> np.ndarray:
    """The first d atoms of a cosine dictionary; of square patches where m is a square."""
    root = math.isqrt(m)
    square = root > 1 and root * root == m
    side = max(root, math.isqrt(max(d, 1) - 1) + 1)
    with jax.enable_x64(True):
        D = dct((root, root), (side, side)) if square else dct(m, max(m, d))
        return np.asarray(D)[:, :d]


def distinct(
    candidates: np.ndarray, D: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` unit rows, no two parallel, nor parallel to an atom of D: candidates, then noise."""
    rows = unit_rows(candidates)
    rows = rows[np.abs(rows).max(1) > 0]
    taken = np.concatenate([D.T, np.zeros((count, len(D)), D.dtype)])
    size = D.shape[1]

    def offer(row: np.ndarray) -> None:
        nonlocal size
        if size < len(taken) and np.abs(taken[:size] @ row).max(initial=0) < PARALLEL:
            taken[size] = row
            size += 1

    for row in rows:
        if size == len(taken):
            break
        offer(row)
    for row in unit_rows(rng.standard_normal((len(taken) - size, len(D))).astype(D.dtype)):
        taken[size] = row  # in one or two dimensions there may be none that is not parallel
        size += 1
    return taken[D.shape[1] :]


def duplicates(D: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Indices of the atoms that are parallel to one that is used more, or that stands before."""
    G = np.abs(D.T @ D) > PARALLEL
    order = np.argsort(-use, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return np.flatnonzero((G & (rank[None, :] < rank[:, None])).any(1))
