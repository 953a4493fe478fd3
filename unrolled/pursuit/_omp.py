"""Orthogonal matching pursuit, which chooses atoms one by one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import (
    exponent,
    ldexp,
    norm,
    power_of_two,
    times_power,
)
from unrolled.activations import relu
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    block_of,
    column_norms,
    refuse_parts,
    scale_columns,
)
from unrolled.penalties import L1, NONNEGATIVE, Penalty
from unrolled.pursuit import _problem
from unrolled.pursuit._gap import half_energy
from unrolled.pursuit._lasso import Penalized, on_branch, slope
from unrolled.pursuit._problem import Found, Problem, Pursuit

__all__ = ["omp"]

# The largest number of choices for each atom that a non-negative code may have.
CHOICES = 3


def negligible(m: int, dtype: np.dtype) -> float:
    """The relative error of a sum of m products, if rounding errors have random signs.

    The correlation of a normalised atom with a residual counts as zero if it is below this share of
    the norm of the signal. An atom counts as dependent if its pivot is below this share of its
    squared norm. A pivot is a difference of squares, so a code on atoms with smaller pivots would
    have few correct digits.
    """
    return 4 * math.sqrt(m) * float(np.finfo(dtype).eps)


class Chosen(NamedTuple):
    """The `size` atoms chosen so far, in arrays of length k, the maximum number of atoms."""

    atoms: Array  # (k,) indices, 0 beyond size; d for a dependent atom of a part
    L: Array  # (k, k) the Cholesky factor of the Gram matrix of these atoms, extended by I
    x: Array  # (d,) the code
    r: Array  # (m,) y - D x
    size: Array  # ()
    steps: Array  # () number of parts chosen so far
    ended: Array  # () whether no further atom helps
    apart: Array | None  # (d,) squared distances of all atoms from their span, if by_fit


def omp(
    D: Dictionary,
    y: ArrayLike,
    sparsity: int | None = None,
    tol: ArrayLike | None = None,
    *,
    selection: str = "correlation",
    nonnegative: bool = False,
) -> Pursuit:
    r"""Orthogonal matching pursuit: at most `sparsity` atoms, or a residual of at most `tol`.

    .. math:: j = \arg\max_i |d_i' r|, \quad S \leftarrow S \cup \{j\}, \quad
        x_S = \arg\min_u \|y - D_S u\|, \quad r = y - D x.

    `omp` needs only products with D. It ends early if the residual is zero to rounding, no atom is
    correlated with the residual, or the next atom depends on the chosen atoms. If several atoms
    tie, `omp` chooses the first of them; it never chooses a zero atom. In half precision, `omp`
    computes in float32 and rounds the result. The function is traceable if sparsity is static. If
    the codes of D come in parts, each step adds all atoms of the part whose D_i' r has the largest
    norm. So `omp` is simultaneous OMP for several measurements, and complex OMP for complex
    signals.

    Args:
        D: (m, d). The choice does not divide by the norms of the atoms, so it favours atoms with
            larger norms.
        y: (m,), or a signal grid of a `Conv`, whose code has the shape `D.code_grid`.
        sparsity: maximum number of atoms, in 0..d. If tol is given, the default is min(m, d). If
            codes come in parts, sparsity and `steps` count parts, and the default is the number of
            whole parts in min(m, d) atoms.
        tol: stop at norm(y - D x) <= tol, in the units of y. (scikit-learn's `orthogonal_mp` takes
            tol^2.)
        selection: "correlation", or "least_squares" to add the atom that leaves the smallest
            residual, whatever the norms of the atoms (orthogonal least squares). Codes in parts
            admit only "correlation".
        nonnegative: whether to minimise over codes x >= 0. Then `omp` chooses the atom with the
            largest d_i . r, x_S is the non-negative least squares code on S, and atoms whose
            entries become 0 leave S. `steps` counts choices, at most 3 sparsity. Codes in parts
            are not admitted.

    Returns:
        Pursuit. `steps` counts the atoms. `gap` is the excess of norm(y - D x)^2 over the least
        squares value on the same support, relative to norm(y)^2. The gap measures rounding errors,
        also the rounding of x to half precision; it does not judge the support. `converged` is True
        if x is the least squares code to the rounding of its dtype and, with a tol, the residual is
        at most tol.

    Raises:
        TypeError: an operand is not real, or sparsity is not a static integer.
        ValueError: shapes do not fit, neither sparsity nor tol is given, sparsity is outside 0..d,
            tol is negative, not finite or not one number, or `selection` is unknown.

    Reference: Pati, Rezaiifar, Krishnaprasad (1993); Rubinstein, Zibulevsky, Elad (2008) for the
    Cholesky factor; Tropp, Gilbert, Strauss (2006) for parts; Chen, Billings, Luo (1989) for
    orthogonal least squares; Bruckstein, Elad, Zibulevsky (2008) for codes x >= 0.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.omp(D, D[:, 3] - 0.5 * D[:, 20], sparsity=2)
        >>> jnp.flatnonzero(result.x).tolist(), result.x[jnp.array([3, 20])].tolist()
        ([3, 20], [1.0, -0.5])
    """
    if sparsity is None and tol is None:
        raise ValueError("omp: expected sparsity, tol or both, got neither")
    if tol is not None:
        _problem.check_number(tol, "tol", "omp")
    form, arrays = _problem.checked_single("omp", D, y, level=tol, size=column_norms, parts=True)
    (checked,), *_ = arrays
    fewest = min(checked.shape) // block_of(checked)
    most = most_atoms(fewest if sparsity is None else sparsity, checked, "omp")
    nonnegative = checks.as_bool(nonnegative, "nonnegative", "omp")
    by_fit = is_by_fit(selection, nonnegative, checked, "omp")
    (x,), *rest = _problem.run(Matching(most, by_fit, nonnegative), form, *arrays)
    return Pursuit(x, *rest)


def is_by_fit(selection: Any, nonnegative: bool, D: Dictionary, where: str) -> bool:
    """Whether `selection` is "least_squares"; raise ValueError unless D admits the options."""
    if not isinstance(selection, str) or selection not in ("correlation", "least_squares"):
        raise ValueError(
            f"{where}: unknown selection {selection!r}; expected correlation or least_squares"
        )
    if selection == "least_squares":
        refuse_parts(D, where, 'try selection="correlation"')
    if nonnegative:
        refuse_parts(D, where, "try nonnegative=False")
    return selection == "least_squares"


def most_atoms(sparsity: Any, D: Dictionary, where: str) -> int:
    """The maximum number of atoms (or parts) of a code: the smaller of the sparsity and m."""
    most, block = checks.as_index(sparsity, "sparsity", where), block_of(D)
    m, n = D.shape[0], D.shape[1] // block
    if most > n:
        what = "atoms" if block == 1 else "parts"
        raise ValueError(f"{where}: sparsity {most} exceeds the number of {what} {n}")
    return min(most, m)


@dataclass(frozen=True)
class Matching:
    """The method of `omp`."""

    most: int
    by_fit: bool
    nonnegative: bool = False

    def __call__(self, problem: Problem, x: Array) -> Found:
        (D,), y, *_ = problem
        stop = jnp.zeros((), y.dtype) if problem.level is None else problem.level
        # The atoms are scaled near 1, so that their squares are in the range; `favour` restores
        # their norms in the choice.
        k = exponent(problem.sizes[0][None], 0)[0]
        D, favour = scale_columns(D, power_of_two(-k, y.dtype)), power_of_two(k, y.dtype)
        norms = times_power(problem.sizes[0], -k)
        fixed_D, fixed_y, norms, stop = lax.stop_gradient((D, y, norms, stop))
        penalty = (NONNEGATIVE if self.nonnegative else L1).of(D)
        options: dict[str, Any] = dict(penalty=penalty, favour=favour, by_fit=self.by_fit)
        chosen = atom_by_atom(fixed_D, fixed_y, norms, self.most, stop, **options)
        finite = jnp.isfinite(norm(chosen.r))

        def excess(r):
            # norm(P r)^2 for the projector P on the span of the chosen atoms, computed from the
            # factor of their Gram matrix.
            inside = _solve_L(chosen.L, _at_chosen(chosen, r @ fixed_D))
            return jnp.where(finite, jnp.sum(inside**2) / 2 / half_energy(fixed_y), jnp.inf)

        gap = excess(chosen.r)
        zero = jnp.zeros((), y.dtype)
        free = Penalized(D, y, zero, zero)
        x = on_branch(slope, 10 * min(D.shape), free, chosen.x, penalty)
        rounding = 4 * D.shape[0] * float(jnp.finfo(y.dtype).eps)
        # No atom in the range helps, but an atom below the range might help.
        short = problem.lost[0].any() & (chosen.size < self.most * penalty.block)
        short &= norm(chosen.r) > jnp.maximum(stop, rounding * norm(fixed_y))
        met = finite & (gap <= rounding) & ~short

        def judge(x):  # rounding moves the gap, but x is still the least squares code to rounding
            return excess(fixed_y - fixed_D @ lax.stop_gradient(ldexp(x, k))), met

        return Found(ldexp(x, -k), gap, chosen.steps, met, allowed=problem.level, judge=judge)


def atom_by_atom(
    D: Operator,
    y: Array,
    norms: Array,
    most: int,
    stop: ArrayLike,
    admits: Callable[[Array], Array] | None = None,
    penalty: Penalty = L1,
    favour: ArrayLike = 1.0,
    by_fit: bool = False,
) -> Chosen:
    """Choose atoms one by one, at most `most`, until norm(r) <= stop, for D and y near 1.

    Args:
        D, y: (m, d) and (m,).
        norms: (d,), the norms of the atoms.
        most, stop: the maximum number of atoms, and the norm of the residual at which to stop.
        admits: function of a code that returns whether the code may be the result. The choice ends
            before the first inadmissible code.
        penalty: the penalty that defines the parts, and whether codes are non-negative; `most`
            counts parts.
        favour: () or (d,), factors by which the choice multiplies d_i . r.
        by_fit: whether to choose the atom that leaves the smallest residual, and to ignore
            `favour`.
    """
    choices = CHOICES * most if penalty.nonnegative else most
    most *= penalty.block
    slots = max(1, most)
    start = Chosen(
        jnp.zeros(slots, int),
        jnp.eye(slots, dtype=y.dtype),
        jnp.zeros(D.shape[1], y.dtype),
        y,
        jnp.zeros((), int),
        jnp.zeros((), int),
        jnp.zeros((), bool),
        norms**2 if by_fit else None,
    )

    def body(s):
        grown, helps = _grown(D, y, norms, s, penalty, favour)
        helps = helps if admits is None else helps & admits(grown.x)
        return jax.tree.map(partial(jnp.where, helps), grown, s._replace(ended=jnp.asarray(True)))

    return programs.while_loop(
        lambda s: (s.size < most) & (s.steps < choices) & ~s.ended & (norm(s.r) > stop), body, start
    )


def _grown(
    D: Operator, y: Array, norms: Array, s: Chosen, penalty: Penalty, favour: ArrayLike
) -> tuple[Chosen, Array]:
    """The chosen atoms with the atoms of one more part, and whether this part helps."""
    rounding = negligible(D.shape[0], y.dtype)
    slots, d, block = jnp.arange(len(s.atoms)), D.shape[1], penalty.block
    chosen = jnp.zeros(d, int).at[s.atoms].max((slots < s.size).astype(int), mode="drop")
    taken = penalty.support(chosen)
    g: Any = s.r @ D
    sizes = penalty.dual_sizes
    score = penalty.entries(sizes(favour * g))
    if s.apart is not None:
        far = s.apart > rounding * norms**2
        score = jnp.where(far, sizes(g) / jnp.sqrt(jnp.where(far, s.apart, 1)), 0)
    first = jnp.argmax(jnp.where(taken, 0, score))

    def add(s, j):
        column = (D @ (jnp.arange(d) == j).astype(y.dtype)) @ D
        row = _solve_L(s.L, _at_chosen(s, column))
        pivot = norms[j] ** 2 - jnp.sum(row**2)
        new = pivot > rounding * norms[j] ** 2
        row = jnp.where(new, row, 0)
        L = jnp.where((slots == s.size)[:, None], row[None, :], s.L)
        L = L.at[s.size, s.size].set(jnp.sqrt(jnp.where(new, pivot, 1)))
        atoms = s.atoms.at[s.size].set(jnp.where(new, j, d))
        return s._replace(atoms=atoms, L=L, size=s.size + 1), new

    if block == 1:
        grown, new = add(s, first)
    else:
        grown, new = programs.scan(add, s, first + jnp.arange(block))
    size, of = (sizes(v)[first // block] for v in (norms, g))
    helps = ~taken[first] & (of > rounding * size * norm(y)) & new.any()
    grown = grown._replace(steps=s.steps + 1)
    if penalty.nonnegative:
        return _descended(D, y, s, grown, helps, norms)
    if s.apart is not None:  # the span has grown by the unit vector q
        q = _orthonormal(D, grown, grown.size - 1)
        grown = grown._replace(apart=s.apart - (q @ D) ** 2)
    return _corrected(D, y, grown), helps


def _corrected(D: Operator, y: Array, s: Chosen) -> Chosen:
    """The least squares code on the chosen atoms.

    The last code is corrected by its residual, so that errors of the factor do not stay in x.
    """
    x, slots = s.x, jnp.arange(len(s.atoms))
    for _ in range(2):
        correction = _solve_L(s.L, _solve_L(s.L, _at_chosen(s, (y - D @ x) @ D)), transposed=True)
        x = x.at[s.atoms].add(jnp.where(slots < s.size, correction, 0), mode="drop")
    return s._replace(x=x, r=y - D @ x)


def _orthonormal(D: Operator, s: Chosen, i: ArrayLike) -> Array:
    """The unit vector by which atom i extends the span of the atoms before it."""
    v = _solve_L(s.L, (jnp.arange(len(s.atoms)) == i).astype(s.L.dtype), transposed=True)
    return D @ jnp.zeros(D.shape[1], s.L.dtype).at[s.atoms].add(v, mode="drop")


def _descended(
    D: Operator, y: Array, s: Chosen, grown: Chosen, helps: Array, norms: Array
) -> tuple[Chosen, Array]:
    """The non-negative least squares code on the chosen atoms, and whether the new atom stays.

    The code moves from s.x to the least squares code; where an entry becomes 0, its atom leaves.
    """
    slots, fresh = jnp.arange(len(s.atoms)), grown.atoms[s.size]
    A, b = grown.L @ grown.L.T, _at_chosen(grown, y @ D)

    def least_squares(active):
        L = jnp.linalg.cholesky(
            jnp.where(active[None] & active[:, None], A, jnp.eye(len(A), dtype=A.dtype))
        )
        z = _solve_L(L, _solve_L(L, jnp.where(active, b, 0)), transposed=True)
        return L, jnp.where(active, z, 0)

    def is_outside(carry):
        active, _, (_, z) = carry
        return (active & (z <= 0)).any()

    def body(carry):
        active, u, (_, z) = carry
        parts = jnp.where(active & (z <= 0), u / jnp.where(u > z, u - z, 1), jnp.inf)
        leaving, part = jnp.argmin(parts), jnp.min(parts)
        active = active & (slots != leaving)
        u = jnp.where(active, u + part * (z - u), 0)
        return active, u, least_squares(active)

    active = slots < grown.size
    start = active, _at_chosen(s, s.x), least_squares(active)
    active, _, (L, z) = programs.while_loop(is_outside, body, start)
    order = jnp.argsort(~active, stable=True)  # the factor of the other atoms is the identity
    atoms, z, size = grown.atoms[order], z[order], jnp.sum(active)
    x = jnp.zeros_like(s.x).at[atoms].add(jnp.where(slots < size, z, 0))
    L = jnp.linalg.cholesky((L @ L.T)[order][:, order])
    after = _corrected(D, y, grown._replace(atoms=atoms, L=L, size=size, x=x))
    x = relu(after.x)
    if s.apart is not None:
        rows = jax.vmap(lambda i: _orthonormal(D, after, i) @ D)(slots)
        rows = jnp.where((slots < size)[:, None], rows, 0)
        after = after._replace(apart=norms**2 - jnp.sum(rows**2, 0))
    return after._replace(x=x, r=y - D @ x), helps & (x[fresh] > 0)


def _at_chosen(s: Chosen, v: Array) -> Array:
    """The entries of v, (d,), at the chosen atoms, as (k,) with 0 in the unused slots."""
    values = v.at[s.atoms].get(mode="fill", fill_value=0)
    return jnp.where(jnp.arange(len(s.atoms)) < s.size, values, 0)


def _solve_L(L: Array, b: Array, transposed: bool = False) -> Array:
    """L^-1 b, or L'^-1 b, for a lower triangular L."""
    return lax.linalg.triangular_solve(
        L, b[:, None], left_side=True, lower=True, transpose_a=transposed
    )[:, 0]
