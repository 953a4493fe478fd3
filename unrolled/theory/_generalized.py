"""Generalized coherence (Definition 7) with certificates, and the weights with the least entries at
it (Definition 8).
"""

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled import linear_programs as lp
from unrolled._checks import Array
from unrolled._interior_point import least_entries, one_thread
from unrolled.dictionaries import (
    as_dictionary,
    dense,
    replicate,
    representatives,
    spread,
    unit_atoms,
)
from unrolled.theory._coherence import _host, _refuse_cut_atoms

# A relative gap says nothing of a coherence that is zero: this much is rounding.
_ROUNDING = 1e-12


class GeneralizedCoherence(NamedTuple):
    """mu~ between two certified values, and weights that attain the upper one."""

    upper: Array  # () coherence of W
    lower: Array  # () no weights have less
    per_atom_upper: Array  # (n,)
    per_atom_lower: Array  # (n,)
    W: Array  # (m, n), w_i . d_i = 1; a `Conv` for a shift-invariant circular one
    holds: Array  # () the relative gaps are at most tol


def generalized_coherence(
    D,
    tol: float = 1e-6,
    *,
    atoms: Sequence[int] | None = None,
    only_maximum: bool = False,
    progress: Callable | None = None,
    cache: str | os.PathLike | None = None,
) -> GeneralizedCoherence:
    r"""mu~ = max_i mu~_i between certified bounds, and the weights W that attain the upper one.

    .. math:: \tilde\mu_i = \min_w \max_{j \ne i} |w \cdot d_j| : w \cdot d_i = 1, \qquad
        1 / \tilde\mu_i = \min \|v\|_1 : \sum_{j \ne i} v_j d_j = d_i.

    The upper value of an atom is the coherence of its w_i, the lower one comes from a feasible v.
    Linear programs are solved together, in float64 on the host; results have the dtype of D, the
    bounds rounded outwards. Atoms that are independent of the rest have mu~_i = 0, duplicates 1. A
    circular `Conv` whose stride divides the signal needs one program per filter.

    Args:
        D: (m, d), unit atoms.
        tol: relative gap of every atom, or of the maximum.
        atoms: solve for these n atoms only; None for all of them.
        only_maximum: settle mu~ alone: atoms whose w is already known to stay below it keep that w.
            `W` is then optimal for max_i, not atom by atom, and `holds` speaks of the maximum.
        progress: called as progress(settled, total) on long runs.
        cache: a folder that keeps results by the sha256 of D; its entries are certified again when
            they are read.

    Traceable. `upper` and `lower` are differentiable in D by the envelope theorem,
    d mu~_i = -mu~_i w_i . (d(d_i) - sum_j v_j d(d_j)), where the solutions are unique; W carries no
    derivative. For a float32 D the returned W is rounded after it was certified. A traced D with
    NaN or a zero atom gives upper = inf, holds = False.

    Raises:
        ValueError: atoms off unit norm or zero, NaN, atoms out of range, tol not positive. (A
            program that ends above the gap is not an error: its bounds come back with holds =
            False.)

    Reference: Li, Feng, Zhou (2024), Definition 7; Chen et al. (2018). The bounds are float64, not
    interval arithmetic.
    """
    where = "generalized_coherence"
    D = _unit_dictionary(D, where)
    _positive(tol, where)
    m, d = D.shape
    chosen = representatives(D) if atoms is None else _indices(atoms, d, where)

    def highest(primal, dual, tried):
        return _highest(dual, tried, (1 + tol) / primal.min())

    choose = highest if only_maximum else None
    solve = partial(
        _solve, chosen=chosen, tol=tol, choose=choose, quick=only_maximum, progress=progress
    )
    if cache is not None:
        solve = partial(_cached, solve, Path(cache), chosen, (tol, only_maximum))
    upper, lower, W = _differentiable(solve, chosen)(dense(D))
    top, bottom = jnp.max(upper), jnp.max(lower)
    holds = jnp.isfinite(top) & _is_closed(upper, lower, tol, only_maximum)
    if atoms is None:
        W, upper, lower = replicate(D, W), spread(D, upper), spread(D, lower)
    return GeneralizedCoherence(top, bottom, upper, lower, W, holds)


def minimax_weights(D, tol: float = 1e-6):
    """W of the generalized coherence: every w_i of least max |w_i . d_j|, j != i (linear programs).

    The least mu_W there is, so the largest sparsity and the fastest rate that theory can certify;
    norm(W) and C_W are larger than those of the closed form. Traceable.
    `theory.generalized_coherence` gives the certificate as well.
    """
    return generalized_coherence(D, tol).W


class AtMost(NamedTuple):
    """Whether mu~ <= level, and the bounds that decided it."""

    answer: bool | None  # None: the level lies between the bounds, which are within tol
    upper: float
    lower: float


def coherence_at_most(D, level: float, tol: float = 1e-6) -> AtMost:
    """Is mu~(D) at most `level`? Answered as soon as one atom is above it, or all are certified
    below it.

    Host function, arguments as in `generalized_coherence`.
    """
    A = _on_host(D, "coherence_at_most")
    _positive(tol, "coherence_at_most")
    level = _host(level, "level", "coherence_at_most")
    if not level >= 0:
        raise ValueError(f"coherence_at_most: level must be non-negative, got {level}")

    def choose(primal, dual, tried):
        return None if 1 / primal.min() > level else _highest(dual, tried, level)

    upper, lower, _, _ = _solve(A, chosen=np.arange(A.shape[1]), tol=tol, choose=choose, quick=True)
    upper, lower = float(upper.max()), float(lower.max())
    if lower > level:
        return AtMost(False, upper, lower)
    return AtMost(True if upper <= max(level, _ROUNDING) else None, upper, lower)


class MinimalEntryWeights(NamedTuple):
    """Weights of least largest entry C_W at a given coherence, between certified bounds."""

    W: np.ndarray  # (m, d)
    upper: float  # max abs(W_ij) = C_W
    lower: float
    per_atom_upper: np.ndarray  # (d,)
    per_atom_lower: np.ndarray  # (d,)
    coherence: float  # the level that every w_i keeps
    holds: bool  # feasible, and the relative gaps are at most tol


def minimal_entry_weights(
    D,
    coherence: float | GeneralizedCoherence | None = None,
    tol: float = 1e-6,
    *,
    progress: Callable | None = None,
) -> MinimalEntryWeights:
    r"""W in X(D): w_i of least largest entry with w_i . d_i = 1 and |w_i . d_j| <= mu, at one mu
    for all atoms.

    Noise enters the thresholds through C_W = max |W_ij|, so among the weights of one coherence
    these have the lowest floor.

    Args:
        D: (m, d), unit atoms. Structured ones are made dense.
        coherence: the level mu, or the result of `generalized_coherence` (or None to compute it),
            whose W to start from and whose upper value, times 1 + 1e-6 and at least 1e-9, is the
            level.
        tol: relative gap of every atom.

    Returns:
        MinimalEntryWeights, in float64. A level below mu~ has no such W: upper is inf for those
        atoms, holds False.

    Raises:
        TypeError: traced arguments. ValueError: as in `generalized_coherence`, or a negative level.

    Reference: Li, Feng, Zhou (2024), Definition 8.
    """
    where = "minimal_entry_weights"
    A, start = _on_host(D, where), coherence
    _positive(tol, where)
    d, given = A.shape[1], coherence is not None and not isinstance(coherence, GeneralizedCoherence)
    if not isinstance(start, GeneralizedCoherence):
        with jax.enable_x64(True):
            # A level of the caller's may lie between the values of the atoms: each then needs its
            # own.
            start = generalized_coherence(A, tol, only_maximum=not given)
    _checks.on_host(start, where, "coherence")
    W = np.array(dense(start.W), np.float64)
    if W.shape != A.shape:
        raise ValueError(
            f"{where}: the weights of `coherence` have shape {W.shape}; expected {A.shape}, all atoms"
        )
    W, reached = _certified(A, W, np.arange(d))
    level = (
        _host(coherence, "coherence", where)
        if given
        else max(float(reached.max()) * (1 + 1e-6), 1e-9)
    )
    if not level >= 0:
        raise ValueError(f"{where}: coherence must be non-negative, got {level}")
    upper, lower = np.full(d, np.inf), np.zeros(d)
    feasible = np.flatnonzero(reached <= level + _ROUNDING)
    level = max(level, reached[feasible].max(initial=0.0))
    with one_thread():
        for i in feasible:
            W[:, i], upper[i], lower[i] = least_entries(A, i, level, W[:, i], tol)
            if progress is not None:
                progress(int(i) + 1, d)
    holds = bool(np.all(np.isfinite(upper) & (upper - lower <= tol * upper)))
    return MinimalEntryWeights(
        W, float(upper.max()), float(lower.max()), upper, lower, level, holds
    )


def _unit_dictionary(D, where: str):
    D = as_dictionary(D, where)
    _refuse_cut_atoms(D, where)
    unit_atoms(D, where)
    return D


def _positive(tol, where: str) -> None:
    if not tol > 0:
        raise ValueError(f"{where}: tol must be positive, got {tol}")


def _on_host(D, where: str) -> np.ndarray:
    """The matrix of a unit dictionary in float64; a tracer is a TypeError that says so."""
    _checks.on_host(D, where, "D")
    with jax.enable_x64(True):
        return np.asarray(dense(_unit_dictionary(D, where)), np.float64)


def _indices(atoms, d: int, where: str) -> np.ndarray:
    chosen = np.array([_checks.as_index(i, "atoms", where) for i in atoms], int)
    if not len(chosen) or chosen.max() >= d:
        raise ValueError(f"{where}: atoms must be some of 0..{d - 1}, got {list(atoms)[:8]}")
    return chosen


def _highest(dual, tried, level):
    """The untried program with the largest certified coherence 1 / dual, if that is above `level`;
    else None.
    """
    k = int(np.argmin(np.where(tried, np.inf, dual)))
    return k if not tried[k] and dual[k] * level < 1 else None


def _is_closed(upper, lower, tol, only_maximum):
    """The relative gap of every atom, or of the maximum, is at most tol."""
    if only_maximum:
        upper, lower = upper.max(), lower.max()
    gap = upper - lower
    return ((gap <= tol * upper) | (gap <= _ROUNDING)).all()


def _solve(A, *, chosen, tol, choose, quick=False, progress=None):
    """upper (n,), lower (n,), W (m, n) and V (d, n) of the chosen atoms, in float64."""
    A = np.asarray(A, np.float64)
    (m, d), n = A.shape, len(chosen)
    W, V = np.zeros((m, n)), np.zeros((d, n))
    if not np.isfinite(A).all() or not np.abs(A).max(0).all():
        return np.full(n, np.inf), np.zeros(n), W, V
    whitened = lp.whiten(A)
    alone, nearly = _independent(whitened.Q)
    # p_k . a_k = 1 and p_k . a_j = 0 for independent atoms k
    P = whitened.lift @ whitened.Q[:, alone]
    rest, own = np.flatnonzero(~alone), ~alone[chosen] & ~nearly[chosen]
    W[:, alone[chosen]] = P[:, np.searchsorted(np.flatnonzero(alone), chosen[alone[chosen]])]
    if own.any():
        found = lp.basis_pursuit(
            lp.whiten(A[:, rest]) if alone.any() else whitened,
            A[:, chosen[own]],
            banned=np.searchsorted(rest, chosen[own]),
            tol=tol,
            choose=choose,
            iterations=60 if quick else 200,
            progress=progress,
        )
        W[:, own], V[np.ix_(rest, own)] = found.Z, found.V
    for k in np.flatnonzero(nearly[chosen]):
        others = rest[rest != chosen[k]]
        W[:, k], V[others, k] = _apart(A[:, chosen[k]], A[:, others], tol)
    W -= P @ (A[:, alone].T @ W * ~alone[chosen])
    W, upper = _certified(A, W, chosen)
    plain, mu = _certified(A, A[:, chosen], chosen)
    W, upper = np.where(mu < upper, plain, W), np.minimum(mu, upper)
    return upper, np.minimum(_lower_bounds(A, whitened, V, chosen), upper), W, V


def _independent(Q):
    """Which atoms are independent of the others, and which nearly: sqrt(h (1 - h)) of their
    leverages h is small.

    It is had from the other atoms, to eps; 1 - h itself would be lost.
    """
    ties = np.abs(Q.T @ Q)
    np.fill_diagonal(ties, 0)
    ties = np.linalg.norm(ties, axis=0)
    return ties < _ROUNDING, (ties >= _ROUNDING) & (ties < 1e-3)


def _apart(atom, others, tol):
    """w and v of one atom by a program of its own: what the others leave of it drowns in the
    rounding of the shared one.
    """
    found = lp.basis_pursuit(lp.whiten(others), atom[:, None], tol=tol)
    z, v = found.Z[:, 0], found.V[:, 0]
    missed = atom - others @ v
    # Where the others do not make it, what they leave sees it alone.
    return (missed, np.zeros_like(v)) if np.linalg.norm(missed) > _ROUNDING else (z, v)


def _lower_bounds(A, whitened, V, chosen):
    r"""(1 - sqrt(d) |rho|) / |v|_1 with rho what v misses of its atom, in whitened coordinates; 0
    for a v that misses it.

    There |w| <= sqrt(d) for every w that matters, since norm(w)^2 is the sum of the (w . a_j)^2, at
    most 1 each.
    """
    missed = A[:, chosen] - A @ V
    off = np.linalg.norm(whitened.into @ missed, axis=0) * np.sqrt(A.shape[1])
    size = np.abs(V).sum(0)
    made = (np.linalg.norm(missed, axis=0) <= 1e-11) & (size > 0) & (off < 1)
    return np.where(made, (1 - off) / np.where(made, size, 1), 0)


def _certified(A, W, chosen):
    """W scaled to w_i . a_i = 1, and the coherence of every w_i: the certificate looks at A itself."""
    atoms, columns = A[:, chosen], np.arange(len(chosen))
    own = np.sum(W * atoms, 0)
    W = np.where(
        own > 0, W, atoms
    )  # a w that does not see its atom is no start: the atom itself is
    W = W / np.sum(W * atoms, 0)
    products = np.abs(A.T @ W)
    products[chosen, columns] = 0
    return W, products.max(0)


def _differentiable(solve, chosen):
    """A -> (upper, lower, W) in the dtype of A, by the host function `solve`, with the derivatives
    of the bounds.
    """
    n = len(chosen)

    def host(A):
        upper, lower, W, V = solve(np.asarray(A))
        return (*_outwards(upper, lower, A.dtype), W.astype(A.dtype), V.astype(A.dtype))

    def call(A):
        if _checks.is_concrete(A):
            return tuple(map(jnp.asarray, host(A)))
        (m, d), of = A.shape, partial(jax.ShapeDtypeStruct, dtype=A.dtype)
        return jax.pure_callback(
            host, (of((n,)), of((n,)), of((m, n)), of((d, n))), A, vmap_method="sequential"
        )

    @jax.custom_jvp
    def values(A):
        return call(A)[:3]

    @values.defjvp
    def derivative(primals, tangents):
        (A,), (dA,) = primals, tangents
        upper, lower, W, V = call(A)
        with jax.default_matmul_precision("highest"):
            slope = -upper * jnp.sum(W * (dA[:, chosen] - dA @ V), axis=0)
        return (upper, lower, W), (slope, slope, jnp.zeros_like(W))

    return values


def _outwards(upper, lower, dtype):
    """Bounds in `dtype`, the upper one rounded up and the lower one down."""
    high, low = upper.astype(dtype), lower.astype(dtype)
    high = np.where(high < upper, np.nextafter(high, np.array(np.inf, dtype)), high)
    low = np.where(low > lower, np.nextafter(low, np.array(0, dtype)), low)
    return high, low


def _cached(solve, folder: Path, chosen, mode, A):
    """`solve(A)`, kept in `folder`: what is read back is certified against A again, so a wrong file
    is only a slow one.
    """
    A = np.asarray(A, np.float64)
    key = hashlib.sha256(
        repr((A.shape, chosen.tolist(), mode)).encode() + np.ascontiguousarray(A).tobytes()
    )
    path = folder / f"coherence-{key.hexdigest()}.npz"
    kept = _read(path, A.shape, len(chosen))
    if kept is not None:
        upper, lower, W, V = _recertified(A, *kept, chosen)
        if np.isfinite(upper).all() and _is_closed(upper, lower, *mode):
            return upper, lower, W, V
    upper, lower, W, V = solve(A)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, W=W, V=V)
    part.replace(path)
    return upper, lower, W, V


def _read(path: Path, shape, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """W (m, n) and V (d, n) of a file of the cache; None where it is absent, damaged or holds
    something else.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            W, V = kept["W"], kept["V"]
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
    ):
        return None
    fits = (
        W.shape == (shape[0], n) and V.shape == (shape[1], n) and W.dtype == V.dtype == np.float64
    )
    return (W, V) if fits and np.isfinite(W).all() and np.isfinite(V).all() else None


def _recertified(A, W, V, chosen):
    """Bounds of W and V as they are."""
    with np.errstate(all="ignore"):  # what overflows bounds nothing either
        W, upper = _certified(A, W, chosen)
        upper = np.where(np.isfinite(upper), upper, np.inf)
        V[chosen, np.arange(len(chosen))] = 0
        lower = _lower_bounds(A, lp.whiten(A), V, chosen)
    return upper, np.minimum(lower, upper), W, V
