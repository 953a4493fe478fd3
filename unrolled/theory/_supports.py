"""What theory proves of every code on a support, whatever its signs and magnitudes."""

from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import ArrayLike
from unrolled._base.programs import host_function
from unrolled.dictionaries import Dictionary, as_dictionary
from unrolled.theory._certificates import signed_products

# Entries of the products that are made at once.
_AT_ONCE = 2**22


class Supports(NamedTuple):
    """What is proved of all codes on each of n supports, by steps with residual thresholds."""

    ratio: np.ndarray  # (n,) c(S): off S no product exceeds this part of the largest on S
    contraction: np.ndarray  # (n,) kappa(S), the largest row sum of abs(W_S'D_S - I)
    sparsity: int  # s

    def bound(self, k: int, ratio: float = 0.95) -> np.ndarray:
        r"""The error after k steps of `layers.alista_rt`, in max norm, per max abs(x), (n,).

        .. math:: (c + \kappa)^{\min(s-1, k)} \kappa^{\max(k-s+1, 0)} \frac{1 + \kappa}{1 - \kappa},

        without noise, where c(S) <= c < 1 and kappa < 1; elsewhere inf.

        Args:
            k: number of steps.
            ratio: c, of the layer.

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
        return np.where((self.ratio <= c) & (kappa < 1), bound, np.inf)

    def __repr__(self) -> str:
        """How many are proved, and the largest ratio."""
        n, proved = len(self.ratio), int((self.ratio < 1).sum())
        largest = f", the largest ratio {self.ratio.max():.4g}" if n else ""
        return f"Supports: all codes on {proved} of {n} supports of {self.sparsity} atoms{largest}"


@host_function
def certify_supports(W: Dictionary, D: Dictionary, supports: ArrayLike) -> Supports:
    r"""Prove support by support that steps with residual thresholds take no wrong entry.

    With B = W'D and a support S,

    .. math::
        c(S) = \max_{i \notin S} \|B_{iS} B_{SS}^{-1}\|_1, \qquad
        \kappa(S) = \max_{i \in S} \sum_{j \in S} |B_{SS} - I|_{ij}.

    `layers.alista_rt` takes an entry where abs(g_i) > c max abs(g), g = W'(y - D x). If c >= c(S),
    it takes none off S at any step, for every code on S: all magnitudes, all signs. If c < 1 and
    kappa(S) < 1 too, it converges to the code, at the rate that `Supports.bound` says.

    Args:
        W: (m, d), weights with w_i . d_i = 1, for example `frobenius_weights(D)`.
        D: (m, d).
        supports: (n, s), indices of atoms, distinct in a row.

    Returns:
        Supports, in float64 and rounded up. A support whose atoms depend on each other has the
        ratio inf.

    Raises:
        TypeError: a traced argument, or indices that are not integers.
        ValueError: indices out of range or twice in a row, or shapes that do not fit.

    Not claimed: that codes on a support with c(S) >= 1 are lost. With W = D, c(S) is the exact
    recovery coefficient of Tropp (2004); of fresh supports a sample says something, by
    `tolerance_bound` of the ratios.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 100, 200)
        >>> W = ur.theory.frobenius_weights(D)
        >>> supports = [[3, 50, 77, 120], [0, 1, 2, 3]]
        >>> (ur.theory.certify_supports(W, D, supports).ratio < 0.95).tolist()
        [True, True]
    """
    where = "certify_supports"
    W, D = as_dictionary(W, where, "W"), as_dictionary(D, where)
    if W.shape != D.shape:
        raise ValueError(f"{where}: W has shape {W.shape} and D {D.shape}; expected the same")
    checks.finite((W, D), "W or D", where)
    S = _indices(supports, D.shape[1], where)
    n, s = S.shape
    with jax.enable_x64(True):
        W, D = checks.cast((W, D), np.float64)
        at_once = max(1, _AT_ONCE // max(1, s * D.shape[1]))
        parts = [_of_supports(W, D, S[i : i + at_once]) for i in range(0, n, at_once)]
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


def _of_supports(W: Any, D: Any, S: np.ndarray) -> np.ndarray:
    """The ratios and contractions of some supports, (2, n)."""
    n, s = S.shape
    used, place = np.unique(S, return_inverse=True)
    place = place.reshape(S.shape)
    B = signed_products(W, D, used)  # (d, used)
    R = np.moveaxis(B[:, place], 0, 1)  # (n, d, s)
    each = np.arange(n)[:, None]
    A = R[each, S]  # B_SS
    inverse = _inverses(A)
    with np.errstate(invalid="ignore"):
        Q = R @ inverse
        # Q (I + E) = R A^-1 for what rounding leaves of R - Q A.
        left = np.abs(R - Q @ A).sum(2) * np.abs(inverse).sum(2).max(1, initial=0)[:, None]
        sums = np.abs(Q).sum(2) + left
    sums = np.where(np.isnan(sums), np.inf, sums)
    sums[each, S] = 0
    up = 1 + 4 * s * np.finfo(float).eps
    kappa = np.abs(A - np.eye(s)).sum(2).max(1, initial=0)
    return np.stack([sums.max(1, initial=0), kappa]) * up


def _inverses(A: np.ndarray) -> np.ndarray:
    """The inverses of matrices, nan for singular ones."""
    try:
        return np.linalg.inv(A)
    except np.linalg.LinAlgError:
        if len(A) == 1:
            return np.full_like(A, np.nan)
        return np.concatenate([_inverses(one) for one in np.array_split(A, 2)])
