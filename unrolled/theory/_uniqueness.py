"""Uniqueness of the codes of a chain: by coherence (Theorems 1, 2) and on supports (equation 7)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, checked, host_function, program
from unrolled._base.numbers import UP, norm, up, wide_dtype
from unrolled.dictionaries import Dictionary, Operator, Structured
from unrolled.theory import _coherence
from unrolled.theory._models import effective, host_chain, layer_counts, of_length
from unrolled.theory._parts import part_products
from unrolled.theory._schedules import host_numbers, times

__all__ = [
    "OracleErrors",
    "SupportRecovery",
    "Uniqueness",
    "oracle_errors",
    "recover_on_supports",
    "uniqueness",
]


# Singular values up to this share of the largest count as zero.
_RANK_TOL = 1e-10
# The rounding of a zero singular value, as a multiple of |S_J| eps sigma_max; in float32 this level
# is above `_RANK_TOL`.
_RANK_ROUNDING = 16


class Uniqueness(Result):
    """The layers of a chain with at most one code, and the products that certify these layers."""

    unique: np.ndarray  # (J,) whether x_j is the only code, by its own layer or by a deeper layer
    # (J,) the best (1 + 1/mu) / 2, inf at mu = 0, 0 if no product can be measured
    bounds: np.ndarray
    slack: np.ndarray  # (J,) bounds minus the sparsities, or minus their mean with the counts
    # (J,) the j for which D_[j,j0] gave the bound of layer j0 (j = j0: one layer), 0 for none
    path: np.ndarray
    l1: np.ndarray  # (J,) whether basis pursuit, layer after layer, finds x_1, ..., x_j
    holds: bool  # whether the codes of all layers are unique


@host_function
def uniqueness(
    Ds: Sequence[Dictionary],
    sparsities: Sequence[int],
    *,
    counts: Sequence[int] | None = None,
    coherence: Callable[..., ArrayLike] = _coherence.mutual_coherence,
) -> Uniqueness:
    r"""Whether the chain x_{j-1} = D_j x_j, x_0 = y, has at most one sparse solution, for every y.

    A solution is sparse if norm(x_j, 0) <= s_j for all j. Layer j0 is certified if

    .. math::
        s_{j_0} < (1 + 1/\mu(D_{[j,j_0]})) / 2, \qquad
        D_{[j,j_0]} = D_j D_{j+1} \cdots D_{j_0},

    for some j <= j0 for which x_{j-1} is unique; j = j0 is Theorem 1 for one layer. A certified
    x_{j0} determines all x_i = D_[i+1,j0] x_{j0}, i < j0, so all layers up to the deepest certified
    layer are unique.

    For a given solution, pass its norm(x_j, 0) as `counts`. The solution is then the only solution
    with the given sparsities if norm(x_j, 0) + s_j < 1 + 1/mu. A bound on norm(x_j, 0) alone does
    not exclude other codes with s_j nonzeros.

    `l1` says whether the inequality holds for each layer i <= j by itself. In this case basis
    pursuit finds x_1, ..., x_j one after the other (Theorem 2, DSC_1). The inequality must be
    strict, as a duplicate atom shows. If norms of atoms differ within the tolerance for unit atoms,
    the difference counts against `l1`, not against uniqueness.

    If codes of D_j come in parts, s_j counts parts, and `l1` refers to the pursuit that minimises
    the sum of the sizes of parts. Let D_i be the unit atoms of part i. Then
    mu = max_{i != j} norm(D_i'D_j, 2) / (1 - max_i norm(I - D_i'D_i, 2)). Proof: D h = 0 gives
    h_i = (I - D_i'D_i) h_i - sum_{j != i} D_i'D_j h_j, so abs(h_i) <= mu sum_{j != i} abs(h_j). The
    remaining proof is the same as for entries.

    Args:
        Ds: J dictionaries with unit atoms. Products are normalised before they are measured; a
            product is not used if a column vanishes, or cancels to 1e-6 of its terms.
        sparsities: J integers s_j (the paper's lambda_j), at most d_j.
        counts: J integers, the nonzeros of a given solution; None for any solution.
        coherence: a function D -> number: `mutual_coherence`, or the mu_W of any weights with
            w_i . d_i = 1. The generalized coherence certifies larger sparsities; `l1` is then the
            condition of Juditsky and Nemirovski (2011). Codes in parts require the default.

    Raises:
        TypeError: a dictionary is traced.
        ValueError: shapes or lengths do not fit, a count is negative or above d_j, or an atom is
            off unit norm.

    Not claimed: that a solution exists, or that a layer without a certificate has several codes.

    Reference: Li, Feng, Zhou (2024), Theorems 1 and 2 and equation (6), corrected; Donoho, Elad
    (2003).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> result = ur.theory.uniqueness([D], sparsities=[4])
        >>> result.bounds.tolist(), result.holds
        ([4.5], True)
    """
    where = "uniqueness"
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where, parts=True)
        if coherence is not _coherence.mutual_coherence:
            for D in Ds:
                _coherence.without_parts(D, where)
        s = bounded_counts(sparsities, Ds, where)
        nonzeros = s if counts is None else bounded_counts(counts, Ds, where, "counts")
        for D in Ds:
            dictionaries.unit_atoms(D, where)

        @functools.cache
        def mu(j: int, j0: int) -> float:
            """The coherence of D_[j,j0], inf if a column vanishes."""
            D, norms = effective(Ds[j - 1 : j0])
            if not (norms > 0).all():
                return math.inf
            if (g := dictionaries.block_of(Ds[j0 - 1])) > 1:
                return _mu_of_parts(dictionaries.normalized(D)[0], g)
            value = (
                _coherence.measured(D)[0]
                if coherence is _coherence.mutual_coherence
                else coherence(dictionaries.normalized(D)[0])
            )
            number, rounding = host_numbers(where, coherence=value)[0], up(value)
            return number * rounding if rounding > UP else number  # for float32 and narrower

        first, best, path = _visit(
            mu, nonzeros + s, [D.shape[1] // dictionaries.block_of(D) for D in Ds]
        )
        alone = [
            _admits(_weighted(mu(j, j), D), 2 * n, D.shape[1] // dictionaries.block_of(D))
            for j, (n, D) in enumerate(zip(nonzeros, Ds), start=1)
        ]
    unique, l1 = np.arange(len(Ds)) < first, np.logical_and.accumulate(alone)
    bounds = np.array([_coherence.sparsity_bound(m) if m < math.inf else 0.0 for m in best])
    return Uniqueness(unique, bounds, bounds - (nonzeros + s) / 2, path, l1, bool(unique.all()))


def _mu_of_parts(D: Operator, g: int) -> float:
    """A mu' with abs(h_i) <= mu' sum_{j != i} abs(h_j) for the parts of all h in ker D."""
    products = part_products(D, D, g)
    mu = float(products.mu.max())
    own = 1 - float(products.drift(np.ones(len(products.mu))).max())
    return mu / own if own > 0 else math.inf


def _visit(
    mu: Callable[[int, int], float], pairs: np.ndarray, sizes: Sequence[int]
) -> tuple[int, list[float], np.ndarray]:
    """The number of unique layers (the first ones), and the least coherence and path per layer."""
    first, best, path = 0, [math.inf] * len(pairs), np.zeros(len(pairs), int)
    # The second pass starts from all layers that the first pass found unique.
    for _ in range(2):
        for j0, (pair, d) in enumerate(zip(pairs, sizes), start=1):
            best[j0 - 1], j = min((mu(j, j0), j) for j in range(1, min(j0, first + 1) + 1))
            path[j0 - 1] = j if best[j0 - 1] < math.inf else 0
            if _admits(best[j0 - 1], pair, d):
                first = max(first, j0)
    return first, best, path


def _admits(mu: float, pair: int, d: int) -> bool:
    """Whether two codes with `pair` nonzeros together and the same product must be equal.

    The condition is pair < 1 + 1/mu, with the guard of `max_sparsity` against rounding.
    """
    # 1 + 1/mu is the sparsity bound of mu / (2 + mu).
    return pair == 0 or (
        mu < math.inf and int(pair) <= _coherence.max_sparsity(mu / (2 + mu), 2 * d)
    )


def _weighted(mu: float, D: Dictionary) -> float:
    """The mu' with mu' / (1 + mu') = r mu / (1 + mu), for the ratio r of the extreme atom norms.

    For h in ker D and the norms n_i, abs(n_i h_i) <= mu / (1 + mu) sum_k n_k abs(h_k).
    """
    if not mu < math.inf:
        return math.inf
    norms = np.asarray(dictionaries.column_norms(D))
    share = float(norms.max() / norms.min()) * mu / (1 + mu)
    return share / (1 - share) if share < 1 else math.inf


def bounded_counts(
    values: Sequence[int], Ds: Sequence[Dictionary], where: str, name: str = "sparsities"
) -> np.ndarray:
    """One integer per layer, (J,), between 0 and d_j, or the number of parts of the code."""
    counts = layer_counts(values, len(Ds), where, name)
    for j, (s, D) in enumerate(zip(counts, Ds), start=1):
        g = dictionaries.block_of(D)
        if s > D.shape[1] // g:
            what = "atoms" if g == 1 else f"parts of {g} atoms"
            raise ValueError(
                f"{where}: {name}[{j - 1}] is {s} but D_{j} has {D.shape[1] // g} {what}; expected "
                "at most as many"
            )
    return counts


class SupportRecovery(Result):
    """The codes of a chain on given supports."""

    xs: tuple[Array, ...]  # x_j, (d_j,), zero off S_j
    unique: Array  # () bool, whether there are no other codes on these supports
    # () integer, |S_J| - rank K, the dimension of the space of all z that keep all supports
    kernel_dim: Array
    # () the smallest singular value of stack[(D_[1,J])_{S_J}; K], inf for an empty S_J
    sigma_min: Array
    residual: Array  # () norm(y - D_1 x_1)


@checked
def recover_on_supports(
    y: ArrayLike, Ds: Sequence[Dictionary], supports: Sequence[ArrayLike | Sequence[int]]
) -> SupportRecovery:
    r"""Codes x_j on the supports S_j with x_{j-1} = D_j x_j for j > 1, and D_1 x_1 nearest to y.

    .. math::
        \min_z \|y - (D_{[1,J]})_{S_J} z\|_2 : K z = 0, \qquad
        K = \mathrm{stack}_{j<J} (D_{[j+1,J]})_{S_j^c, S_J}, \qquad x_J = z \text{ on } S_J.

    The codes are unique iff M = stack[(D_[1,J])_{S_J}; K] has full column rank. Equation (7) as
    printed contains only K, and the null space of K does not depend on y. The rank test is
    sigma_min(M) > cut sigma_max(M) + rounding. Here cut is the larger of 1e-10 and 16 |S_J| eps of
    the dtype, and rounding covers products that cancel. If the codes are not unique, z is the
    solution of least norm. The codes solve the chain exactly if `residual` is at the level of
    rounding. For an empty S_J the only solution is 0, and sigma_min = inf.

    Traceable in y and the dictionaries, differentiable in y; the supports are static.

    Args:
        y: (m,).
        Ds: J dictionaries.
        supports: J sequences of distinct integers in [0, d_j).

    Raises:
        TypeError: a support is traced, or an index is not an integer.
        ValueError: shapes or lengths do not fit, or an index is out of range or repeated.

    Reference: Li, Feng, Zhou (2024), equation (7), completed; Aberdam, Sulam, Elad (2019).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> x = jnp.zeros(128).at[jnp.array([3, 70])].set(jnp.array([1.0, -2.0]))
        >>> result = ur.theory.recover_on_supports(D @ x, [D], [[3, 70]])
        >>> bool(result.unique), result.xs[0][jnp.array([3, 70])].round(3).tolist()
        (True, [1.0, -2.0])
    """
    where = "recover_on_supports"
    Ds = dictionaries.as_chain(Ds, where)
    for D in Ds:
        _coherence.without_parts(D, where)
    supports = as_supports(supports, Ds, where)
    _, y, Ds = dictionaries.operands(Ds[0], y, where, params=Ds)
    return _recovered(tuple(Ds), y, *_on_and_off(Ds, supports))


@program()
def _recovered(Ds: tuple[Dictionary, ...], y: Array, supports: Any, others: Any) -> SupportRecovery:
    dtype, wide = y.dtype, wide_dtype(y.dtype)  # JAX has no decompositions in half precision
    with jax.default_matmul_precision("highest"):
        Ds = checks.cast(Ds, wide)
        E, K, rounding = _constraints(Ds, supports, others)
        spectrum = singular_values(E[0], K)
        cut = rank_cut(spectrum) + rounding
        z, kernel_dim = _constrained_least_squares(E[0], K, y.astype(wide), cut)
        residual = norm(y.astype(wide) - E[0] @ z)
    # Entries off the support are only rounding errors.
    xs = [(A @ z).at[other].set(0) for A, other in zip(E[1:], others)]
    xs.append(jnp.zeros(Ds[-1].shape[1], wide).at[supports[-1]].set(z))
    sigma_min = spectrum[-1] if len(z) else jnp.asarray(math.inf, wide)
    unique = sigma_min > cut
    return SupportRecovery(
        *checks.cast((tuple(xs), unique, kernel_dim, sigma_min, residual), dtype)
    )


class OracleErrors(Result):
    """Expected squared errors of least squares on known supports, layer by layer."""

    projection: np.ndarray  # (J,) if only S_J is known; inf if S_J does not determine the codes
    holistic: np.ndarray  # (J,) if all supports are known
    freedom: int  # |S_J| - rank K


@host_function
def oracle_errors(
    Ds: Sequence[Dictionary], supports: Sequence[ArrayLike | Sequence[int]], sigma: ArrayLike = 1.0
) -> OracleErrors:
    r"""Expected errors of least squares on known supports, for white noise of variance sigma^2.

    .. math::
        \mathrm{E} \|x_j - \hat x_j\|^2 = \sigma^2 \mathrm{tr}(E_j (A'A)^{-1} E_j'), \qquad
        \mathrm{E} \|x_j - \hat x_j\|^2 = \sigma^2 \mathrm{tr}(E_j N (N'A'A N)^{-1} N'E_j').

    Here A = (D_[1,J])_{S_J}, E_j = (D_[j+1,J])_{S_J} (E_J = I), and N is an orthonormal basis of
    the null space of the K of `recover_on_supports`. The first formula is the error of the
    projection oracle, which knows only S_J; the second formula is the error of the holistic oracle,
    which knows all supports. The holistic error is never larger than the projection error, because
    the zeros of x_1, ..., x_{J-1} leave |S_J| - rank K of |S_J| degrees of freedom.

    Args:
        Ds: J dictionaries.
        supports: J sequences of distinct integers in [0, d_j).
        sigma: standard deviation of the noise.

    Raises:
        TypeError: an argument is traced, or an index is not an integer.
        ValueError: shapes or lengths do not fit, an index is out of range or repeated, or sigma is
            negative or NaN.

    Not claimed: that a pursuit finds the supports.

    Reference: Aberdam, Sulam, Elad (2019).

    Example:
        >>> D_2 = jnp.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
        >>> result = ur.theory.oracle_errors([jnp.eye(2), D_2], [[0], [0, 1]])
        >>> result.projection.round(3).tolist(), result.holistic.round(3).tolist(), result.freedom
        ([2.0, 2.0], [1.0, 1.0], 1)
    """
    where = "oracle_errors"
    (sigma,) = host_numbers(where, sigma=sigma)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where)
        E, K, rounding = constraints(Ds, as_supports(supports, Ds, where))
        cut = float(rank_cut(np.asarray(singular_values(E[0], K)))) + rounding
        A, *maps = (*map(np.asarray, E), np.eye(E[0].shape[1]))
        _, values, V = np.linalg.svd(np.asarray(_triangle(K)))
    N = V[values <= cut].T
    projection, holistic = (
        np.array([_error_of(A @ basis, B @ basis, cut, sigma) for B in maps])
        for basis in (np.eye(A.shape[1]), N)
    )
    return OracleErrors(projection, holistic, N.shape[1])


def _error_of(A: np.ndarray, B: np.ndarray, cut: float, sigma: float) -> float:
    """sigma^2 tr(B (A'A)^-1 B'), inf for any sigma unless A has full column rank."""
    if not A.shape[1]:
        return 0.0
    U, values, V = np.linalg.svd(A, full_matrices=False)
    if len(values) < A.shape[1] or values[-1] <= cut:
        return math.inf
    return times(sigma * sigma, float(np.sum((B @ V.T / values) ** 2)))


def constraints(
    Ds: Sequence[Dictionary], supports: Sequence[np.ndarray]
) -> tuple[list[Array], Array, float]:
    """(D_[j,J])_{S_J} for j = 1..J, of shapes (d_{j-1}, |S_J|), K, and a bound on the rounding.

    K has one row for every entry of a code that the support of the code forbids.
    """
    with jax.default_matmul_precision("highest"):
        E, K, rounding = _constraints(tuple(Ds), *_on_and_off(Ds, supports))
        return E, K, float(rounding)


def _on_and_off(
    Ds: Sequence[Dictionary], supports: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The supports, and the entries off the supports of all codes but the last."""
    sizes = [D.shape[1] for D in Ds[:-1]]
    return list(supports), [np.setdiff1d(np.arange(d), S) for d, S in zip(sizes, supports)]


@program()
def _constraints(
    Ds: tuple[Dictionary, ...], supports: Any, others: Any
) -> tuple[list[Array], Array, Array]:
    """The products, K, and a bound on the norm of the rounding in M.

    Each of the n terms of a sum errs by at most eps times its magnitude; n = 0 for columns of one
    matrix.
    """
    E, K = _products(Ds, supports, others)
    structured = [D for D in Ds if isinstance(D, Structured)]
    plain = [D for D in Ds[:-1] if not isinstance(D, Structured)]
    n = sum(max(D.shape) for D in structured) + sum(D.shape[1] for D in plain)
    sizes, rows = _products(tuple(map(dictionaries.magnitudes, Ds)), supports, others)
    size = jnp.hypot(norm(sizes[0].ravel()), norm(rows.ravel()))
    return E, K, n * float(jnp.finfo(K.dtype).eps) * size


def _products(Ds: tuple[Dictionary, ...], supports: Any, others: Any) -> tuple[list[Array], Array]:
    E: list[Array] = []
    S, d = supports[-1], Ds[-1].shape[1]
    columns: Any = jnp.zeros((d, len(S)), Ds[-1].dtype).at[S, jnp.arange(len(S))].set(1)
    for D in reversed(Ds):
        columns = D @ columns
        E.insert(0, columns)
    forbidden = [A[other] for other, A in zip(others, E[1:])]
    return E, jnp.concatenate([*forbidden, jnp.zeros((0, columns.shape[1]), columns.dtype)])


@program()
def singular_values(A: Array, K: Array) -> Array:
    """Singular values of M = stack[A; K] in descending order, padded by 0 to one per column."""
    k, M = A.shape[1], jnp.concatenate([A, _triangle(K)])
    # JAX allocates U even if it does not compute U: full matrices would be (m, m).
    values = jnp.linalg.svd(M, full_matrices=False, compute_uv=False)[:k]
    lacking = max(0, k - len(A) - len(K))
    return values.at[k - lacking :].set(0.0)


@program()
def _triangle(K: Array) -> Array:
    """The triangular factor R of K, (k, k), with R'R = K'K."""
    k = K.shape[1]
    return jnp.linalg.qr(jnp.pad(K, ((0, max(0, k - len(K))), (0, 0))), mode="r")


def rank_cut(spectrum: Any) -> Any:
    """The level up to which singular values count as zero."""
    rounding = _RANK_ROUNDING * len(spectrum) * float(jnp.finfo(spectrum.dtype).eps)
    return max(_RANK_TOL, rounding) * spectrum.max(initial=0.0)


def _constrained_least_squares(A: Array, K: Array, y: Array, cut: Array) -> tuple[Array, Array]:
    """Minimise norm(y - A z) subject to K z = 0; return the z of least norm, and dim null(K)."""
    _, values, V = jnp.linalg.svd(_triangle(K))
    null = values <= cut
    N = jnp.where(null[None, :], V.T, 0)
    U, values, V = jnp.linalg.svd(A @ N, full_matrices=False)
    inverse = jnp.where(values > cut, 1 / jnp.where(values > cut, values, 1), 0)
    return N @ (V.T @ (inverse * (y @ U))), jnp.sum(null)


def as_supports(
    supports: Sequence[ArrayLike | Sequence[int]], Ds: Sequence[Dictionary], where: str
) -> list[np.ndarray]:
    """J arrays of distinct indices, each into the code of its layer."""
    of_length(supports, "supports", len(Ds), where)
    if not checks.is_concrete(supports):
        raise TypeError(f"{where}: supports must be static, got traced values; close over them")
    arrays = []
    for j, (support, D) in enumerate(zip(supports, Ds), start=1):
        S = np.asarray(support)
        if S.size and not np.issubdtype(S.dtype, np.integer):
            raise TypeError(
                f"{where}: S_{j} has dtype {S.dtype}; expected integers, or try "
                "np.flatnonzero(mask)"
            )
        S, d = S.astype(int), D.shape[1]
        if S.ndim != 1 or (S < 0).any() or (S >= d).any() or len(np.unique(S)) < len(S):
            raise ValueError(
                f"{where}: S_{j} is {S.tolist()}; expected distinct indices in [0, {d}), one "
                "dimension"
            )
        arrays.append(S)
    return arrays
