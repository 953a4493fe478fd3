"""The numerical range of a dictionary: what its columns span beyond the rounding of its entries."""

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks, _threads
from unrolled._checks import DTypeLike
from unrolled._program import host_function
from unrolled.dictionaries import Dictionary, Operator, Structured, as_dictionary

# The decomposition in float64 leaves this many max(m, d) eps of the largest singular value where a
# zero belongs, and long computations of D leave as much. The pseudo-inverse cuts there, too.
_COMPUTED = 10


def numerical_range(A: np.ndarray, dtype: DTypeLike) -> tuple[np.ndarray | None, int]:
    """An orthonormal basis U, (m, r), of the range of a matrix rounded to `dtype`; and its rank r.

    Singular values count as zero up to eps norm(A, "fro"), twice what rounding the entries can make
    of a zero, and up to 10 max(m, d) eps of the largest in float64.

    Args:
        A: (m, d), in float64.
        dtype: in which the entries were rounded.

    Returns:
        (None, min(m, d)) for a matrix of full rank. (None, 0) where entries are not finite.
    """
    if not np.isfinite(A).all():
        return None, 0
    stored, computed = (float(jnp.finfo(kind).eps) for kind in (dtype, np.float64))
    with _threads.one_thread():
        S = np.linalg.svd(A, compute_uv=False)
        least = max(stored * np.linalg.norm(S), _COMPUTED * max(A.shape) * computed * S[0])
        rank = max(1, int(np.sum(S > least)))
        if rank == len(S):
            return None, rank
        return np.linalg.svd(A, full_matrices=False)[0][:, :rank], rank


@host_function
def in_float64(D: Dictionary, dtype: DTypeLike | None = None) -> Operator:
    """D in float64, without what the rounding of its entries adds to its range. Host function.

    Atoms that lie in a subspace, such as patches without their mean, leave it by the rounding of
    their entries. In float64 that passes for a direction of its own, with weights of norm 1 / eps.

    Args:
        D: (m, d), atoms of norms that do not differ by orders of magnitude.
        dtype: in which the entries were rounded; None for the dtype of D.

    Returns:
        A D of full rank as it is, otherwise its projection on its numerical range; Dictionaries
        with a structure keep it, and are not projected.

    Raises:
        TypeError: a traced D.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 16)
        >>> D = ur.dictionaries.normalize(D - D.mean(0))[0].astype(jnp.float32)
        >>> [int(np.linalg.matrix_rank(np.float64(A))) for A in (D, ur.theory.in_float64(D))]
        [8, 7]
    """
    with jax.enable_x64(True):
        D = as_dictionary(D, "in_float64")
        wide = _checks.cast(D, np.float64)
        if isinstance(wide, Structured):
            return wide
        U, _ = numerical_range(np.asarray(wide), D.dtype if dtype is None else dtype)
        return wide if U is None else jnp.asarray(U @ (U.T @ np.asarray(wide)))
