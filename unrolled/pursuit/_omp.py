"""Orthogonal matching pursuit: atoms chosen one by one, with a growing Cholesky factor."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import exponent, ldexp, norm, power_of_two, wide_dtype, widened
from unrolled.dictionaries import Dictionary, column_norms, operands
from unrolled.pursuit._gap import half_energy
from unrolled.pursuit._grids import flat_signal, on_grid
from unrolled.pursuit._problem import Pursuit, in_range


class Chosen(NamedTuple):
    """The atoms chosen so far, as many as `size`, in arrays of the largest number k."""

    atoms: Array  # (k,) their indices, 0 beyond size
    L: Array  # (k, k) the Cholesky factor of their Gram matrix, continued by I
    x: Array  # (d,) the code
    r: Array  # (m,) y - D x
    size: Array  # ()
    ended: Array  # () whether no further atom helps


def omp(
    D: Dictionary,
    y: ArrayLike,
    sparsity: int | None = None,
    tol: ArrayLike | None = None,
) -> Pursuit:
    r"""Orthogonal matching pursuit: at most `sparsity` atoms, or down to a residual of `tol`.

    .. math:: j = \arg\max_i |d_i' r|, \quad S \leftarrow S \cup \{j\}, \quad
        x_S = \arg\min_u \|y - D_S u\|, \quad r = y - D x.

    It needs products with D alone. It ends early where the residual is zero to rounding, or no atom
    is correlated with it, or the next atom depends on the chosen ones: of equal atoms the first is
    chosen, and a zero atom never. Half precision is computed in float32 and rounded at the end.
    Traceable, with a static sparsity.

    Args:
        D: (m, d). The choice does not normalise: atoms of unequal norm are favoured by their norms.
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        sparsity: the most atoms, in 0..d; the default, with a tol, is min(m, d).
        tol: stop at norm(y - D x) <= tol, in the units of y. (scikit-learn's `orthogonal_mp` takes
            the square of it.)

    Returns:
        Pursuit. `steps` counts the atoms. `gap` is how far x is from the least squares code of its
        own support, in 1/2 norm(y - D x)^2 relative to norm(y)^2 / 2: rounding, and no measure of
        how good the support is. `converged` is True if x is that code to rounding, and with a tol
        the residual is at most tol.

    Raises:
        TypeError: operands that are not real numbers, or a sparsity that is not a static integer.
        ValueError: shapes that do not fit, neither sparsity nor tol, sparsity outside 0..d, or tol
            negative, not finite or not one number.

    Reference: Pati, Rezaiifar, Krishnaprasad (1993); Rubinstein, Zibulevsky, Elad (2008) for the
    Cholesky factor.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> found = ur.pursuit.omp(D, D[:, 3] - 0.5 * D[:, 20], sparsity=2)
        >>> jnp.flatnonzero(found.x).tolist(), found.x[jnp.array([3, 20])].tolist()
        ([3, 20], [1.0, -0.5])
    """
    y, grid = flat_signal(D, y, "omp")
    D, y, _ = operands(D, y, "omp")
    if sparsity is None and tol is None:
        raise ValueError("omp: expected sparsity, tol or both, got neither")
    m, d = D.shape
    most = min(m, d)
    if sparsity is not None:
        most = _checks.as_index(sparsity, "sparsity", "omp")
        if most > d:
            raise ValueError(f"omp: sparsity {most} exceeds the number of atoms {d}")
    if tol is not None:
        _checks.nonnegative(tol, "tol", "omp")
        _checks.finite(tol, "tol", "omp")
        tol = _checks.as_float(tol, "tol", "omp").astype(wide_dtype(y.dtype))
        if tol.shape:
            raise ValueError(f"omp: tol has shape {tol.shape}; expected one number")
    # In half precision the rounding of m products is no small number.
    dtype = y.dtype
    D, y = _checks.cast(D, wide_dtype(dtype)), widened(y)
    norms = column_norms(D)
    a, b = exponent(norms), exponent(y)
    near = D * power_of_two(-a, y.dtype), ldexp(y, -b), ldexp(norms, -a)
    level = None if tol is None else ldexp(tol, -b)
    x, gap, residual, steps, converged = _omp(*near, level, min(most, m), dtype)
    found, residual = ldexp(x, b - a).astype(dtype), ldexp(residual, b).astype(dtype)
    converged = converged & in_range(found, x, b - a)
    return on_grid(Pursuit(found, gap.astype(dtype), residual, steps, converged), grid)


@partial(jax.jit, static_argnums=(4, 5))
def _omp(
    D: Dictionary, y: Array, norms: Array, tol: Array | None, most: int, dtype: np.dtype
) -> Pursuit:
    """OMP for D and y near 1; the residual is that of the code in the dtype."""
    stop = jnp.zeros((), y.dtype) if tol is None else tol
    with jax.default_matmul_precision("highest"):
        found = match(D, y, norms, most, stop)
        # norm(P r)^2 for the projector P on the chosen atoms, by the factor of their Gram matrix.
        inside = _solve(found.L, _held(found, found.r @ D))
        gap = jnp.sum(inside**2) / 2 / half_energy(y)
        rounded = found.x.astype(dtype).astype(y.dtype)
        residual = norm(found.r if dtype == y.dtype else y - D @ rounded)
    known = jnp.isfinite(residual)
    converged = known & (gap <= _rounding(D, y)) & ((tol is None) | (residual <= stop))
    return Pursuit(found.x, jnp.where(known, gap, jnp.inf), residual, found.size, converged)


def match(
    D: Dictionary,
    y: Array,
    norms: Array,
    most: int,
    stop: ArrayLike,
    admits: Callable[[Array], Array] | None = None,
) -> Chosen:
    """Atoms one by one, at most `most`, until norm(r) <= stop, for D and y near 1.

    Args:
        D, y: (m, d) and (m,).
        norms: those of the atoms, (d,).
        most, stop: when to end.
        admits: whether a code may be the result; the first that may not ends the choice before it.
    """
    slots = max(1, most)
    start = Chosen(
        jnp.zeros(slots, int),
        jnp.eye(slots, dtype=y.dtype),
        jnp.zeros(D.shape[1], y.dtype),
        y,
        jnp.zeros((), int),
        jnp.zeros((), bool),
    )

    def body(s):
        grown, helps = _grown(D, y, norms, s)
        helps = helps if admits is None else helps & admits(grown.x)
        return jax.tree.map(partial(jnp.where, helps), grown, s._replace(ended=jnp.asarray(True)))

    return lax.while_loop(lambda s: (s.size < most) & ~s.ended & (norm(s.r) > stop), body, start)


def _rounding(D: Dictionary, y: Array) -> float:
    """An atom depends on the others, and a correlation is zero, below the rounding of m products.

    A pivot is a difference of squares, so this is the square of the distance it stands for.
    """
    return 4 * D.shape[0] * float(jnp.finfo(y.dtype).eps)


def _grown(D: Dictionary, y: Array, norms: Array, s: Chosen) -> tuple[Chosen, Array]:
    """The choice with one more atom, and whether that helps."""
    rounding = _rounding(D, y)
    slots, d = jnp.arange(len(s.atoms)), D.shape[1]
    taken = jnp.zeros(d, bool).at[s.atoms].max(slots < s.size)
    g = jnp.where(taken, 0, jnp.abs(s.r @ D))
    j = jnp.argmax(g)
    column = (D @ (jnp.arange(d) == j).astype(y.dtype)) @ D
    row = _solve(s.L, _held(s, column))
    pivot = norms[j] ** 2 - jnp.sum(row**2)
    helps = (g[j] > rounding * norms[j] * norm(y)) & (pivot > rounding * norms[j] ** 2)
    root = jnp.sqrt(jnp.where(helps, pivot, 1))
    L = jnp.where((slots == s.size)[:, None], row[None, :], s.L).at[s.size, s.size].set(root)
    grown = s._replace(atoms=s.atoms.at[s.size].set(j), L=L, size=s.size + 1)
    # From the last code, which is already solved: the error of the factor does not stay in x.
    x = s.x
    for _ in range(2):
        correction = _solve(L, _solve(L, _held(grown, (y - D @ x) @ D)), transposed=True)
        x = x.at[grown.atoms].add(jnp.where(slots <= s.size, correction, 0))
    return grown._replace(x=x, r=y - D @ x), helps


def _held(s: Chosen, v: Array) -> Array:
    """The entries of v, (d,), at the chosen atoms, (k,), and 0 beyond their number."""
    return jnp.where(jnp.arange(len(s.atoms)) < s.size, v[s.atoms], 0)


def _solve(L: Array, b: Array, transposed: bool = False) -> Array:
    """L^-1 b, or L'^-1 b, for a lower triangular L."""
    return lax.linalg.triangular_solve(
        L, b[:, None], left_side=True, lower=True, transpose_a=transposed
    )[:, 0]
