"""Proofs that steps with residual thresholds find all codes on given supports."""

import math
from typing import Any

import jax
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Result, host_function
from unrolled.dictionaries import Dictionary
from unrolled.theory._parts import signed_products, spectral_norms, without_measurements
from unrolled.theory._rounding import sum_error

__all__ = ["Supports", "certify_supports"]


# The number of entries of the products of supports that are formed at once.
_PRODUCTS = 2**22


class Supports(Result):
    """The proofs that steps with residual thresholds find all codes on each of n supports."""

    ratio: np.ndarray  # (n,) c(S): no product off S exceeds this share of the largest product on S
    contraction: np.ndarray  # (n,) kappa(S), the largest row sum of abs(W_S'D_S - I)
    sparsity: int  # s

    def bound(self, k: int, ratio: float = 0.95) -> np.ndarray:
        r"""A bound on the max norm of the error of `layers.alista_rt` after k steps, (n,).

        .. math:: (c + \kappa)^{\min(s-1, k)} \kappa^{\max(k-s+1, 0)} \frac{1 + \kappa}{1 - \kappa}.

        The bound is relative to max abs(x), and holds for signals without noise and without
        rounding. The result is inf unless c(S) <= c < 1 and kappa < 1.

        Args:
            k: number of steps.
            ratio: c, the ratio of the layer.

        Example:
            >>> D = ur.dictionaries.identity_hadamard(16)
            >>> proof = ur.theory.certify_supports(D, D, [[0, 1], [2, 20]])
            >>> proof.bound(20).round(6).tolist()
            [0.0, 0.0]
        """
        where = "Supports.bound"
        k = checks.as_index(k, "k", where)
        c, kappa, s = checks.as_fraction(ratio, "ratio", where), self.contraction, self.sparsity
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            taking = (c + kappa) ** min(max(s - 1, 0), k) * kappa ** max(k - s + 1, 0)
            bound = taking * (1 + kappa) / (1 - kappa)
        return np.where(self.proved(c), bound, np.inf)

    def proved(self, c: float = 0.95) -> np.ndarray:
        """Whether `layers.alista_rt` with the ratio c finds all codes on each support, (n,).

        On these supports c(S) <= c and kappa(S) < 1, so that no step takes a wrong entry, and the
        codes converge. c is in (0, 1); the default is the default of the layer.

        Example:
            >>> D = ur.dictionaries.identity_hadamard(16)
            >>> ur.theory.certify_supports(D, D, [[0, 1], [2, 20]]).proved(0.4).tolist()
            [False, True]
        """
        c = checks.as_fraction(c, "c", "Supports.proved")
        return (self.ratio <= c) & (self.contraction < 1)

    def __repr__(self) -> str:
        """The number of supports on which the default layer finds all codes, and the maxima."""
        n, s = len(self.ratio), self.sparsity
        text = f"Supports: all codes on {int(self.proved().sum())} of {n} supports of {s} atoms"
        if not n:
            return text
        ratio, kappa = self.ratio.max(), self.contraction.max()
        return f"{text} at c = 0.95, the largest ratio {ratio:.4g}, the largest kappa {kappa:.4g}"


@host_function
def certify_supports(W: Dictionary, D: Dictionary, supports: ArrayLike) -> Supports:
    r"""Prove, support by support, that steps with residual thresholds never take a wrong entry.

    Let B = W'D. For a support S,

    .. math::
        c(S) = \max_{i \notin S} \|B_{iS} B_{SS}^{-1}\|_1, \qquad
        \kappa(S) = \max_{i \in S} \sum_{j \in S} |B_{SS} - I|_{ij}.

    `layers.alista_rt` takes an entry, and keeps it, if abs(g_i) > c max abs(g), with
    g = W'(y - D x). If c >= c(S), no step takes an entry off S, for every code on S, with any
    magnitudes and any signs. If also c < 1 and kappa(S) < 1 (`Supports.proved`), the steps converge
    to the code, at the rate of `Supports.bound`. The function forms the products of all atoms of
    the supports with all other atoms at once; these products are a d x d matrix if every atom is in
    a support.

    If codes come in parts (`D.block`), S consists of parts, and norm(A_ij, 2) of a block replaces
    abs(A_ij) in both sums. Let Q = B_iS B_SS^-1, and let g be the products of x* - x on S. Then
    abs(g_i) = abs(sum_j Q_ij g_j) <= sum_j norm(Q_ij, 2) max abs(g_j). The remaining proof holds
    with sizes of parts instead of magnitudes.

    Args:
        W: (m, d), weights with w_i . d_i = 1, for example `frobenius_weights(D)`.
        D: (m, d).
        supports: (n, s), indices of atoms, or of parts, distinct within each row.

    Returns:
        Supports, computed in float64 and rounded up. A support whose atoms depend on each other has
        the ratio inf.

    Raises:
        TypeError: an argument is traced, or an index is not an integer.
        ValueError: an index is out of range or repeated within a row, or shapes do not fit.

    Not claimed: that the steps fail on a support with c(S) >= 1. With W = D, c(S) is the exact
    recovery coefficient of Tropp (2004). For a class of supports, apply `tolerance_bound` to the
    ratios of a sample.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 100, 200)
        >>> W = ur.theory.frobenius_weights(D)
        >>> supports = [[3, 50, 77, 120], [0, 1, 2, 3]]
        >>> ur.theory.certify_supports(W, D, supports).proved(0.95).tolist()
        [True, True]
    """
    where = "certify_supports"
    W, D = dictionaries.as_dictionary(W, where, "W"), dictionaries.as_dictionary(D, where)
    if W.shape != D.shape:
        raise ValueError(f"{where}: W has shape {W.shape} and D {D.shape}; expected the same")
    checks.finite((W, D), "W or D", where)
    W, D, g = without_measurements(W, D, dictionaries.block_of(D))
    S = _indices(supports, D.shape[1] // g, where)
    n, s = S.shape
    with jax.enable_x64(True):
        W, D = checks.cast((W, D), np.float64)
        at_once = max(1, _PRODUCTS // max(1, s * g * D.shape[1]))
        norms = (float(np.max(np.asarray(dictionaries.column_norms(A)), initial=0)) for A in (W, D))
        terms = D.shape[0] + dictionaries.inner_terms(W) + dictionaries.inner_terms(D) + 2
        error = sum_error(terms, float(np.finfo(float).eps)) * math.prod(norms)
        parts = [_of_supports(W, D, S[i : i + at_once], g, error) for i in range(0, n, at_once)]
    ratio, contraction = np.concatenate([np.zeros((2, 0)), *parts], axis=1)
    return Supports(ratio, contraction, s)


def _indices(supports: Any, d: int, where: str) -> np.ndarray:
    S = np.asarray(supports)
    if S.ndim != 2:
        raise ValueError(f"{where}: supports have shape {S.shape}; expected (n, s), one a row")
    if S.dtype.kind not in "iu" and S.size:
        raise TypeError(f"{where}: supports must be indices of atoms, got dtype {S.dtype}")
    if S.size and not (0 <= S.min() and S.max() < d):
        raise ValueError(
            f"{where}: supports must be indices in 0..{d - 1}, got {S.min()}..{S.max()}"
        )
    if (np.diff(np.sort(S, 1), axis=1) == 0).any():
        raise ValueError(f"{where}: a support names an atom twice")
    return S.astype(int)


def _of_supports(W: Any, D: Any, S: np.ndarray, g: int, error: float) -> np.ndarray:
    """The ratios and contractions of some supports of parts of g entries, (2, n).

    `error` bounds the rounding of the float64 products of W and D.
    """
    n, s = S.shape
    entries = (S[:, :, None] * g + np.arange(g)).reshape(n, s * g)
    used, place = np.unique(entries, return_inverse=True)
    B = signed_products(W, D, used)  # (d, used)
    R = np.moveaxis(B[:, place.reshape(entries.shape)], 0, 1)  # (n, d, s g)
    each = np.arange(n)[:, None]
    A = R[each, entries]  # B_SS
    inverse = _inverses(A)
    with np.errstate(invalid="ignore"):
        Q = R @ inverse
        # Q (I + E) = R A^-1 accounts for the remainder R - Q A, which is a rounding error.
        left = np.abs(R - Q @ A).sum(2) * np.abs(inverse).sum(2).max(1, initial=0)[:, None]
        sums = _sizes_of_blocks(np.where(np.isnan(Q), np.inf, Q), g).sum(2)
        sums = sums + left.reshape(n, -1, g).sum(2)
    sums = np.where(np.isnan(sums), np.inf, sums)
    sums[each, S] = 0
    up = 1 + 4 * s * g * np.finfo(float).eps
    kappa = _sizes_of_blocks(A - np.eye(s * g), g).sum(2).max(1, initial=0)
    # Entries of B err by at most `error`, so that |B_SS e| = z moves each product by at most
    # error |e|_1, with |e|_1 <= |B_SS^-1|_1 z in sums over all entries.
    with np.errstate(invalid="ignore", over="ignore"):
        moved = error * np.abs(inverse).sum((1, 2)) * up
        ratio = (sums.max(1, initial=0) + moved) / (1 - moved)
    ratio = np.where(moved < 1, ratio, np.inf)  # also for nan
    return np.stack([ratio, kappa + error * s * g]) * up


def _sizes_of_blocks(A: np.ndarray, g: int) -> np.ndarray:
    """norm(A_ij, 2) of the g x g blocks of matrices; inf for a block that is not finite."""
    if g == 1:
        return np.abs(A)
    n, rows, columns = A.shape
    blocks = A.reshape(n, rows // g, g, columns // g, g).swapaxes(2, 3)
    finite = np.isfinite(blocks).all((3, 4))
    sizes = spectral_norms(np.where(finite[..., None, None], blocks, 0))
    return np.where(finite, sizes, np.inf)


def _inverses(A: np.ndarray) -> np.ndarray:
    """The inverses of matrices, nan for singular matrices."""
    try:
        return np.linalg.inv(A)
    except np.linalg.LinAlgError:
        if len(A) == 1:
            return np.full_like(A, np.nan)
        return np.concatenate([_inverses(one) for one in np.array_split(A, 2)])
