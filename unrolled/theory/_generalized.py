"""Generalized coherence (Definition 7) with certificates, and weights of least entries."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks, interior_point, programs, threads
from unrolled._base.doors import Array, ArrayLike, Result, checked, host_function, program
from unrolled._base.numbers import largest
from unrolled.dictionaries import Dictionary, Operator
from unrolled.theory import _atom_programs
from unrolled.theory._atom_programs import (
    ROUNDING,
    Progress,
    cached,
    certified,
    in_float64,
    numerical_range,
    solve_atoms,
)
from unrolled.theory._coherence import host_float, refuse_cut_atoms, without_parts

__all__ = [
    "AtMost",
    "GeneralizedCoherence",
    "MinimalEntryWeights",
    "coherence_at_most",
    "generalized_coherence",
    "minimal_entry_weights",
    "minimax_weights",
]


# The default level of Definition 8 exceeds the coherence of the initial weights by a share
# `_LEVEL_SLACK`, and is at least `_LEAST_LEVEL`. So the initial weights are strictly feasible, also
# for the atoms that attain the coherence.
_LEVEL_SLACK = 1e-6
_LEAST_LEVEL = 1e-9
# The relative gap of programs for atoms that look infeasible at a given level.
_REFINED = 1e-12


class GeneralizedCoherence(Result):
    """Two certified bounds on mu~, and weights that attain the upper bound."""

    upper: Array  # () the coherence of W
    lower: Array  # () a bound: no weights have a smaller coherence
    per_atom_upper: Array  # (n,)
    per_atom_lower: Array  # (n,)
    W: Operator  # (m, n), w_i . d_i = 1; a `Conv` if D is a shift-invariant circular `Conv`
    holds: Array  # () whether relative gaps are at most tol, and the rounded W attains `upper`
    rank: Array  # () rank of D in its dtype, an integer; W lies in a space of this dimension


@checked
def generalized_coherence(
    D: Dictionary,
    tol: float = 1e-6,
    *,
    atoms: Sequence[int] | None = None,
    only_maximum: bool = False,
    progress: Progress | None = None,
    cache: str | os.PathLike | None = None,
) -> GeneralizedCoherence:
    r"""Certified bounds on mu~ = max_i mu~_i, and weights W that attain the upper bound.

    .. math:: \tilde\mu_i = \min_w \max_{j \ne i} |w \cdot d_j| : w \cdot d_i = 1, \qquad
        1 / \tilde\mu_i = \min \|v\|_1 : \sum_{j \ne i} v_j d_j = d_i.

    The upper bound of an atom is the coherence of its w_i; the lower bound comes from a feasible v.
    The linear programs are solved together, in float64 on the host. Results have the dtype of D,
    with bounds rounded outwards. An atom that is independent of the other atoms has mu~_i = 0, and
    a duplicate atom has mu~_i = 1. If D is a circular `Conv` whose stride divides the length of the
    signal, the function solves only one program per filter.

    The programs work in the numerical range of D. Rounding moves atoms slightly out of a subspace,
    for example the subspace of zero-mean patches, and weights that exploit this rounding are as
    large as 1 / eps. So a singular value counts as zero if it is at most eps norm(D, "fro"), with
    the eps of the dtype of D, or at most 10 max(m, d) eps of the largest singular value, with the
    float64 eps. W has no part along the singular vectors of these values, `lower` is a bound for
    weights without such a part, and `rank` counts the other singular values.

    Traceable. `upper` and `lower` are differentiable in D by the envelope theorem,
    d mu~_i = -mu~_i w_i . (d(d_i) - sum_j v_j d(d_j)), if the solutions are unique; W carries no
    derivative. A traced D with NaN or a zero atom gives upper = inf and holds = False. If D is
    nearly rank-deficient, its weights are large, and rounding W to float32 may invalidate the
    certificate: holds is False if the coherence of the rounded W exceeds (1 + sqrt(eps)) `upper`,
    with the eps of the dtype. In this case, use float64.

    The programs of n atoms hold a few (d, n) arrays in float64, so the programs of all atoms hold
    d x d arrays.

    Args:
        D: (m, d), unit atoms.
        tol: the largest relative gap allowed for each atom, or, with `only_maximum`, for the
            maximum.
        atoms: the n atoms to solve for; None for all atoms.
        only_maximum: compute only mu~. An atom keeps its w_i once the coherence of w_i is certified
            to stay below mu~. So W is optimal for the maximum, but not for each atom, and `holds`
            refers to the maximum.
        progress: called as progress(settled, total) on long runs.
        cache: a folder that stores results by the sha256 of D; a stored result is certified again
            when it is read.

    Returns:
        GeneralizedCoherence. If a program ends with a gap above tol, the function does not raise an
        error: it returns the bounds with holds = False.

    Raises:
        ValueError: an atom is off unit norm, zero or NaN, an index of `atoms` is out of range, or
            tol is not positive and finite.
        CheckpointError: the cache folder cannot be written.

    Not claimed: bounds by interval arithmetic; the bounds are computed in float64.

    Reference: Li, Feng, Zhou (2024), Definition 7; Chen et al. (2018).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> coherence = ur.theory.generalized_coherence(D)
        >>> round(float(ur.theory.mutual_coherence(D)), 2), round(float(coherence.upper), 2)
        (0.63, 0.34)
    """
    where = "generalized_coherence"
    D = _unit_dictionary(D, where)
    _positive(tol, where)
    m, d = D.shape
    chosen = dictionaries.representatives(D) if atoms is None else _chosen_atoms(atoms, d, where)
    _announce(d, len(chosen), where)

    def highest(primal: np.ndarray, dual: np.ndarray, tried: np.ndarray) -> int | None:
        return _highest(dual, tried, (1 + tol) / primal.min())

    choose = highest if only_maximum else None
    solve = partial(
        solve_atoms, chosen=chosen, tol=tol, choose=choose, quick=only_maximum, progress=progress
    )
    if cache is not None:
        _atom_programs.check_cache(Path(cache), where)
        solve = partial(cached, solve, Path(cache), chosen, (tol, only_maximum))
    solved = _differentiable(solve, chosen)(dictionaries.dense(D))
    return _settled(D if atoms is None else None, solved, tol, only_maximum)


@program("only_maximum")
def _settled(
    D: Dictionary | None, solved: tuple[Array, ...], tol: float, only_maximum: bool
) -> GeneralizedCoherence:
    """The result from (upper, lower, reached, W, rank), for all atoms of D or for chosen atoms."""
    upper, lower, reached, W, rank = solved
    top, bottom = largest(upper), largest(lower)
    holds = jnp.isfinite(top) & _atom_programs.is_closed(upper, lower, tol, only_maximum)
    holds &= _attained(upper, reached, only_maximum)
    if D is None:
        return GeneralizedCoherence(top, bottom, upper, lower, W, holds, rank)
    upper, lower = dictionaries.spread(D, upper), dictionaries.spread(D, lower)
    return GeneralizedCoherence(
        top, bottom, upper, lower, dictionaries.replicate(D, W), holds, rank
    )


@checked
def minimax_weights(D: Dictionary, tol: float = 1e-6) -> Operator:
    r"""The weights W that attain the generalized coherence, by linear programs.

    .. math:: w_i = \arg\min_w \max_{j \ne i} |w \cdot d_j| : w \cdot d_i = 1.

    No weights have a smaller mu_W, so with these weights the theorems certify the largest sparsity
    and the fastest rate. norm(W) and C_W are larger than for `frobenius_weights`. Traceable.
    `generalized_coherence` returns the same weights and their certificate. The programs hold d x d
    arrays.

    Args and Raises: as in `generalized_coherence`.

    Returns:
        W, (m, d).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> W = ur.theory.minimax_weights(D)
        >>> round(float(ur.theory.coherence(W, D).mu_W), 2)
        0.34
    """
    return generalized_coherence(D, tol).W


class AtMost(Result):
    """Whether mu~ <= level, and the bounds that decide this."""

    answer: bool | None  # None if the level lies between the bounds, which are within tol
    upper: float  # upper bound of mu~
    lower: float  # lower bound of mu~


@host_function
def coherence_at_most(D: Dictionary, level: ArrayLike, tol: float = 1e-6) -> AtMost:
    """Whether mu~(D) <= level, decided as early as possible.

    The search stops once the coherence mu~_i of one atom is certified to be above the level, or the
    coherences of all atoms are certified to be at most the level. Host function. The programs hold
    d x d arrays.

    Args:
        D, tol: as in `generalized_coherence`.
        level: the value with which mu~ is compared.

    Raises:
        TypeError: an argument is traced.
        ValueError: as in `generalized_coherence`; also if the level is negative.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> ur.theory.coherence_at_most(D, 0.5).answer, ur.theory.coherence_at_most(D, 0.2).answer
        (True, False)
    """
    A, dtype = _on_host(D, "coherence_at_most")
    _announce(A.shape[1], A.shape[1], "coherence_at_most")
    _positive(tol, "coherence_at_most")
    level = host_float(level, "level", "coherence_at_most")
    if not level >= 0:
        raise ValueError(f"coherence_at_most: level must be non-negative, got {level}")

    def choose(primal: np.ndarray, dual: np.ndarray, tried: np.ndarray) -> int | None:
        return None if 1 / primal.min() > level else _highest(dual, tried, level)

    solve = partial(solve_atoms, chosen=np.arange(A.shape[1]), tol=tol, choose=choose, quick=True)
    (uppers, lowers, _, _), _ = _in_range(solve, A, dtype)
    upper, lower = float(uppers.max()), float(lowers.max())
    if lower > level:
        return AtMost(False, upper, lower)
    return AtMost(True if upper <= max(level, ROUNDING) else None, upper, lower)


class MinimalEntryWeights(Result):
    """Weights with the least C_W at a given coherence, between certified bounds."""

    W: np.ndarray  # (m, d)
    upper: float  # max abs(W_ij) = C_W
    lower: float  # lower bound of the largest entry
    per_atom_upper: np.ndarray  # (d,)
    per_atom_lower: np.ndarray  # (d,)
    coherence: float  # the level; no w_i has a larger coherence
    holds: bool  # whether W is feasible and the relative gaps are at most tol


@host_function
def minimal_entry_weights(
    D: Dictionary,
    coherence: ArrayLike | GeneralizedCoherence | None = None,
    tol: float = 1e-6,
    *,
    progress: Progress | None = None,
) -> MinimalEntryWeights:
    r"""Weights that minimise the largest entry, subject to one coherence mu for all atoms.

    .. math:: w_i = \arg\min_w \|w\|_\infty : w \cdot d_i = 1, \; |w \cdot d_j| \le \mu, j \ne i.

    Noise enters the thresholds through C_W = max |W_ij|. So, among weights of the same coherence,
    these weights give the lowest floor of the error. The function forms d x d products.

    Args:
        D: (m, d), unit atoms. Structured dictionaries are made dense.
        coherence: the level mu, or a result of `generalized_coherence`. If `coherence` is None, the
            function computes this result. With a result, the programs start from its W, and the
            level is the upper bound of the result times 1 + 1e-6, but at least 1e-9.
        tol: the largest relative gap allowed for each atom.
        progress: called as progress(settled, total).

    Returns:
        MinimalEntryWeights, in float64. If the level is below mu~, atoms without a feasible w
        have upper = inf, and holds is False.

    Raises:
        TypeError: an argument is traced.
        ValueError: as in `generalized_coherence`; also if the level is negative.

    Reference: Li, Feng, Zhou (2024), Definition 8.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 10, 20)
        >>> coherence = ur.theory.generalized_coherence(D)
        >>> least = ur.theory.minimal_entry_weights(D, coherence)
        >>> least.holds, bool(least.upper <= jnp.abs(coherence.W).max())
        (True, True)
    """
    where = "minimal_entry_weights"
    A, dtype = _on_host(D, where)
    _positive(tol, where)
    d = A.shape[1]
    if coherence is None or isinstance(coherence, GeneralizedCoherence):
        start, level = coherence, None
    else:
        start, level = None, host_float(coherence, "coherence", where)
    if start is None:
        with jax.enable_x64(True):
            # For a given level, `_start_of` refines the atoms that this result leaves undecided.
            start = generalized_coherence(in_float64(jnp.asarray(A), dtype), tol, only_maximum=True)
    W, reached = _start_of(A, start, level, where)
    if level is None:
        level = max(float(reached.max()) * (1 + _LEVEL_SLACK), _LEAST_LEVEL)
    if not level >= 0:
        raise ValueError(f"{where}: coherence must be non-negative, got {level}")
    upper, lower = np.full(d, np.inf), np.zeros(d)
    feasible = np.flatnonzero(reached <= level + ROUNDING)
    level = max(level, reached[feasible].max(initial=0.0))
    with threads.one_thread():
        for i in feasible.tolist():
            W[:, i], upper[i], lower[i] = interior_point.least_entries(A, i, level, W[:, i], tol)
            if progress is not None:
                progress(i + 1, d)
    holds = bool(np.all(np.isfinite(upper) & (upper - lower <= tol * upper)))
    return MinimalEntryWeights(
        W, float(upper.max()), float(lower.max()), upper, lower, level, holds
    )


def _start_of(
    A: np.ndarray, start: GeneralizedCoherence, level: float | None, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a result and their coherences, refined if the level is between the bounds."""
    W = np.array(dictionaries.dense(start.W), np.float64)
    if W.shape != A.shape:
        raise ValueError(
            f"{where}: the weights of `coherence` have shape {W.shape}; expected {A.shape}, all "
            "atoms"
        )
    W, reached = certified(A, W, np.arange(A.shape[1]))
    if level is not None:
        # Weights within tol of the optimum may look infeasible at a feasible level.
        allowed = np.asarray(start.per_atom_lower, np.float64) <= level
        unsure = np.flatnonzero(allowed & (reached > level + ROUNDING))
        if len(unsure):
            upper, _, finer, _ = solve_atoms(A, chosen=unsure, tol=_REFINED, choose=None)
            better = upper < reached[unsure]
            W[:, unsure[better]], reached[unsure[better]] = finer[:, better], upper[better]
    return W, reached


def _unit_dictionary(D: Dictionary, where: str) -> Operator:
    """D in floating point, checked for unit atoms and for atoms cut at a border."""
    D = without_parts(dictionaries.as_dictionary(D, where), where)
    refuse_cut_atoms(D, where)
    dictionaries.unit_atoms(D, where)
    return D


def _announce(d: int, n: int, where: str) -> None:
    checks.announce((d, n), np.float64, "the solution of all programs", where)


def _positive(tol: float, where: str) -> None:
    if not 0 < tol < np.inf:
        raise ValueError(f"{where}: tol must be positive and finite, got {tol}")


def _on_host(D: Dictionary, where: str) -> tuple[np.ndarray, np.dtype]:
    """The matrix of a unit dictionary in float64, and its dtype; TypeError if D is traced."""
    checks.on_host(D, where, "D")
    with jax.enable_x64(True):
        D = _unit_dictionary(D, where)
        return np.asarray(dictionaries.dense(D), np.float64), D.dtype


def _chosen_atoms(atoms: Sequence[int], d: int, where: str) -> np.ndarray:
    """The indices of the chosen atoms, checked to be in [0, d)."""
    chosen = np.array([checks.as_index(i, "atoms", where) for i in atoms], int)
    if not len(chosen) or chosen.max() >= d:
        raise ValueError(f"{where}: atoms must be some of 0..{d - 1}, got {list(atoms)[:8]}")
    return chosen


def _highest(dual: np.ndarray, tried: np.ndarray, level: float) -> int | None:
    """The untried program with the largest coherence 1 / dual; None if this is below `level`."""
    k = int(np.argmin(np.where(tried, np.inf, dual)))
    return k if not tried[k] and dual[k] * level < 1 else None


def _attained(upper: Array, reached: Array, only_maximum: bool) -> Array:
    """Whether rounded weights attain every upper bound, or the largest, to half of the digits."""
    if only_maximum:
        upper, reached = largest(upper), largest(reached)
    eps = float(jnp.finfo(upper.dtype).eps)
    # A coherence of zero has no digits: products of at most a few eps are rounding errors.
    return jnp.all(reached <= upper * (1 + eps**0.5) + max(16 * eps, ROUNDING))


def _in_range(solve: Callable, A: np.ndarray, dtype: np.dtype) -> tuple[tuple, int]:
    """(upper, lower, W, V) by `solve` in the numerical range of A, and the rank of A.

    Args:
        solve: a function of a float64 matrix.
        A: the matrix of D, in float64.
        dtype: the dtype of D.
    """
    U, rank = numerical_range(A, dtype)
    if U is None:
        return solve(A), rank
    upper, lower, W, V = solve(U.T @ A)
    return (upper, lower, U @ W, V), rank


def _differentiable(solve: Callable, chosen: np.ndarray) -> Callable[[Array], tuple[Array, ...]]:
    """A -> (upper, lower, reached, W, rank) in the dtype of A, by the host function `solve`.

    `reached` is the coherence of the rounded W. The bounds carry derivatives; W carries no
    derivatives.
    """
    n = len(chosen)

    def host(A):
        wide = np.asarray(A, np.float64)
        (upper, lower, W, V), rank = _in_range(solve, wide, A.dtype)
        W, bounds, reached = W.astype(A.dtype), _outwards(upper, lower, A.dtype), upper
        if np.isfinite(upper).all():
            _, reached = certified(wide, W.astype(np.float64), chosen)
        return *bounds, reached.astype(A.dtype), W, np.int32(rank), V.astype(A.dtype)

    def call(A):
        if checks.is_concrete(A):
            return tuple(map(jax.device_put, host(A)))  # `asarray` compiles for each shape
        (m, d), of = A.shape, partial(jax.ShapeDtypeStruct, dtype=A.dtype)
        *floats, last = map(of, ((n,), (n,), (n,), (m, n), (d, n)))
        kinds = (*floats, jax.ShapeDtypeStruct((), np.int32), last)
        return programs.host_callback(host, kinds, A, vmap_method="sequential")

    @jax.custom_jvp
    def values(A):
        return call(A)[:5]

    @values.defjvp
    def derivative(primals, tangents):
        (A,), (dA,) = primals, tangents
        upper, lower, reached, W, rank, V = call(A)
        with jax.default_matmul_precision("highest"):
            slope = -upper * jnp.sum(W * (dA[:, chosen] - dA @ V), axis=0)
        none = (*map(jnp.zeros_like, (reached, W)), np.zeros((), jax.dtypes.float0))
        return (upper, lower, reached, W, rank), (slope, slope, *none)

    return values


def _outwards(
    upper: np.ndarray, lower: np.ndarray, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds in `dtype`, the upper bound rounded up and the lower bound rounded down."""
    high, low = upper.astype(dtype), lower.astype(dtype)
    high = np.where(high < upper, np.nextafter(high, np.array(np.inf, dtype)), high)
    low = np.where(low > lower, np.nextafter(low, np.array(0, dtype)), low)
    return high, low
