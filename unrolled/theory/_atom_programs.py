"""The linear programs of generalized coherence, one per atom: solve, certify and cache them."""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import linear_programs as lp
from unrolled._base import checks, threads
from unrolled._base.doors import DTypeLike, host_function
from unrolled._base.files import CheckpointError, check_writable, whole_file
from unrolled.dictionaries import Dictionary, Operator, Structured, as_dictionary

__all__ = []


# If a singular value is exactly zero, the float64 decomposition may return up to this number times
# max(m, d) eps of the largest singular value. Long computations of D leave errors of the same size.
# The pseudo-inverse cuts at 10 min(m, d) eps.
_COMPUTED = 10


def numerical_range(A: np.ndarray, dtype: DTypeLike) -> tuple[np.ndarray | None, int]:
    """An orthonormal basis U, (m, r), of the range of a matrix rounded to `dtype`, and the rank r.

    A singular value counts as zero if it is at most eps norm(A, "fro"), with the eps of `dtype`.
    Rounding of the entries changes a singular value of zero to at most half of this level. A
    singular value also counts as zero if it is at most 10 max(m, d) eps of the largest singular
    value, with the float64 eps.

    Args:
        A: (m, d), in float64.
        dtype: the dtype to which the entries were rounded.

    Returns:
        (U, r); (None, min(m, d)) for a matrix of full rank; (None, 0) if an entry is not finite.
    """
    if not np.isfinite(A).all():
        return None, 0
    stored, computed = (float(jnp.finfo(kind).eps) for kind in (dtype, np.float64))
    with threads.one_thread():
        S = np.linalg.svd(A, compute_uv=False)
        least = max(stored * np.linalg.norm(S), _COMPUTED * max(A.shape) * computed * S[0])
        rank = max(1, int(np.sum(S > least)))
        if rank == len(S):
            return None, rank
        return np.linalg.svd(A, full_matrices=False)[0][:, :rank], rank


@host_function
def in_float64(D: Dictionary, dtype: DTypeLike | None = None) -> Operator:
    """D in float64, without the directions that rounding of entries adds. Host function.

    Rounding moves atoms slightly out of a subspace, for example the subspace of zero-mean patches.
    In float64 the rounding errors look like one more direction of the range, and weights along this
    direction have norms near 1 / eps.

    Args:
        D: (m, d), atoms whose norms do not differ by orders of magnitude.
        dtype: the dtype to which the entries were rounded; None for the dtype of D.

    Returns:
        D if it has full rank, otherwise the projection of D on its numerical range. Structured
        dictionaries keep their structure and are not projected.

    Raises:
        TypeError: D is traced.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 16)
        >>> D = ur.dictionaries.normalize(D - D.mean(0))[0].astype(jnp.float32)
        >>> [int(np.linalg.matrix_rank(np.float64(A))) for A in (D, ur.theory.in_float64(D))]
        [8, 7]
    """
    with jax.enable_x64(True):
        D = as_dictionary(D, "in_float64")
        wide = checks.cast(D, np.float64)
        if isinstance(wide, Structured):
            return wide
        U, _ = numerical_range(np.asarray(wide), D.dtype if dtype is None else dtype)
        return wide if U is None else jnp.asarray(U @ (U.T @ np.asarray(wide)))


# A coherence of zero has no relative gap, so absolute gaps and products up to this level count as
# rounding.
ROUNDING = 1e-12
# Iterations of the first-order method. For a Gaussian dictionary of 250 x 500, 200 iterations leave
# about six pivots per atom. For 1000 x 2000, where a pivot costs more, 400 iterations leave 21
# pivots per atom and 200 iterations leave 48. If only the maximum is wanted, few atoms need pivots,
# so fewer iterations pay off.
_ITERATIONS, _ITERATIONS_PER_ROW = 200, 0.4
_ITERATIONS_FOR_MAXIMUM = 60
# Atoms of leverage h have separate programs if sqrt(h (1 - h)) is below this.
_NEARLY_INDEPENDENT = 1e-3
# A dual vector v that misses its atom by more than this gives no bound.
_MISSED = 1e-11
# The errors of numpy and zipfile on an absent or damaged file.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)

# The largest number of bytes of a cache file in addition to its two arrays.
_HEADERS = 2**14

Progress = Callable[[int, int], None]
# (primal, dual, tried) -> index of the next program to finish, None to stop
Choice = Callable[[np.ndarray, np.ndarray, np.ndarray], int | None]


def solve_atoms(
    A: np.ndarray,
    *,
    chosen: np.ndarray,
    tol: float,
    choose: Choice | None,
    quick: bool = False,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Upper and lower bounds, (n,), weights W, (m, n), and dual vectors V, (d, n), of n atoms."""
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
        solution = lp.basis_pursuit(
            lp.whiten(A[:, rest]) if alone.any() else whitened,
            A[:, chosen[own]],
            banned=np.searchsorted(rest, chosen[own]),
            tol=tol,
            choose=choose,
            iterations=(
                _ITERATIONS_FOR_MAXIMUM if quick else max(_ITERATIONS, int(_ITERATIONS_PER_ROW * m))
            ),
            progress=progress,
        )
        W[:, own], V[np.ix_(rest, own)] = solution.Z, solution.V
    for k in np.flatnonzero(nearly[chosen]):
        others = rest[rest != chosen[k]]
        W[:, k], V[others, k] = _apart(A[:, chosen[k]], A[:, others], tol)
    W -= P @ (A[:, alone].T @ W * ~alone[chosen])
    W, upper = certified(A, W, chosen)
    plain, mu = certified(A, A[:, chosen], chosen)
    W, upper = np.where(mu < upper, plain, W), np.minimum(mu, upper)
    return upper, np.minimum(_lower_bounds(A, whitened, V, chosen), upper), W, V


def _independent(Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the atoms that are independent of the others, and of the nearly independent atoms.

    For these atoms sqrt(h (1 - h)) is small, where h is the leverage of the atom. For h above 1/2,
    where 1 - h may cancel, the function computes this number as the norm of the products with the
    other atoms, which is accurate to eps. The leverages sum to r, so fewer than 2 r atoms have h
    above 1/2, and no array has the shape (d, d).
    """
    leverage = np.sum(Q**2, 0)
    high = np.flatnonzero(leverage > 1 / 2)
    products = np.abs(Q.T @ Q[:, high])
    products[high, np.arange(len(high))] = 0
    ties = np.sqrt(leverage * np.clip(1 - leverage, 0, None))
    ties[high] = np.linalg.norm(products, axis=0)
    return ties < ROUNDING, (ties >= ROUNDING) & (ties < _NEARLY_INDEPENDENT)


def _apart(atom: np.ndarray, others: np.ndarray, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """The w and v of one nearly independent atom, by a separate program.

    Rounding in the shared program would lose the part of the atom outside the span of the other
    atoms.
    """
    solution = lp.basis_pursuit(lp.whiten(others), atom[:, None], tol=tol)
    z, v = solution.Z[:, 0], solution.V[:, 0]
    missed = atom - others @ v
    # If the other atoms cannot represent the atom, the remainder is orthogonal to all of them.
    return (missed, np.zeros_like(v)) if np.linalg.norm(missed) > ROUNDING else (z, v)


def _lower_bounds(
    A: np.ndarray, whitened: lp.Whitened, V: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    r"""Lower bounds (1 - sqrt(d) |rho|) / |v|_1, or 0 if v misses its atom.

    rho is the residual of v in whitened coordinates. In these coordinates every relevant w has
    |w| <= sqrt(d), because |w|^2 is the sum over j of (w . a_j)^2, and each term is at most 1.
    """
    missed = A[:, chosen] - A @ V
    off = np.linalg.norm(whitened.into @ missed, axis=0) * np.sqrt(A.shape[1])
    size = np.abs(V).sum(0)
    hits = (np.linalg.norm(missed, axis=0) <= _MISSED) & (size > 0) & (off < 1)
    return np.where(hits, (1 - off) / np.where(hits, size, 1), 0)


def certified(A: np.ndarray, W: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W scaled to w_i . a_i = 1, and the coherence of every w_i, by products with A."""
    atoms, columns = A[:, chosen], np.arange(len(chosen))
    own = np.sum(W * atoms, 0)
    W = np.where(own > 0, W, atoms)  # the atom replaces a w that cannot be scaled
    W = W / np.sum(W * atoms, 0)
    products = np.abs(A.T @ W)
    products[chosen, columns] = 0
    return W, products.max(0)


def is_closed(upper, lower, tol: float, only_maximum: bool):
    """Whether the relative gap of every atom, or of the maximum, is at most tol (traceable)."""
    if only_maximum:
        upper, lower = upper.max(), lower.max()
    gap = upper - lower
    return ((gap <= tol * upper) | (gap <= ROUNDING)).all()


def cached(
    solve: Callable, folder: Path, chosen: np.ndarray, mode: tuple[float, bool], A: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The result of `solve(A)`, read from `folder` if a stored result is valid, else stored there.

    A stored result is certified against A again when it is read, so a wrong file only costs time.
    """
    A = np.asarray(A, np.float64)
    key = hashlib.sha256(
        repr((A.shape, chosen.tolist(), mode)).encode() + np.ascontiguousarray(A).tobytes()
    )
    path = folder / f"coherence-{key.hexdigest()}.npz"
    stored = _read(path, A.shape, len(chosen))
    if stored is not None:
        upper, lower, W, V = _recertified(A, *stored, chosen)
        if np.isfinite(upper).all() and is_closed(upper, lower, *mode):
            return upper, lower, W, V
    upper, lower, W, V = solve(A)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(file, W=W, V=V)
    except OSError as error:  # such as a full disk; the result is valid without the copy
        checks.warn(f"generalized_coherence: {path}: not stored ({error.strerror})")
    return upper, lower, W, V


def check_cache(folder: Path, where: str) -> None:
    """Raise CheckpointError, before any work, if results cannot be stored in the folder."""
    try:
        check_writable(folder)
    except OSError as error:
        raise CheckpointError(
            f"{where}: the cache {folder} cannot be written ({error.strerror or error})"
        ) from error


def _read(path: Path, shape: tuple[int, int], n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """W (m, n) and V (d, n) of a cache file; None if the file is absent, damaged or different."""
    most = 8 * sum(shape) * n + _HEADERS
    try:
        if path.stat().st_size > most:
            return None
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            if sum(entry.file_size for entry in arrays.zip.infolist()) > most:
                return None
            W, V = arrays["W"], arrays["V"]
    except _UNREADABLE:
        return None
    fits = (
        W.shape == (shape[0], n) and V.shape == (shape[1], n) and W.dtype == V.dtype == np.float64
    )
    return (W, V) if fits and np.isfinite(W).all() and np.isfinite(V).all() else None


def _recertified(
    A: np.ndarray, W: np.ndarray, V: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The bounds that W and V give, computed again."""
    with np.errstate(all="ignore"):  # an overflow gives no bound
        W, upper = certified(A, W, chosen)
        upper = np.where(np.isfinite(upper), upper, np.inf)
        V[chosen, np.arange(len(chosen))] = 0
        lower = _lower_bounds(A, lp.whiten(A), V, chosen)
    return upper, np.minimum(lower, upper), W, V
