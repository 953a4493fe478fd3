"""Projection pursuit: codes of a whole chain from one pursuit in its effective dictionary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import norm
from unrolled.dictionaries import Composed, Dictionary, Operator, as_chain, column_norms, magnitudes
from unrolled.pursuit._door import deep, one_per_layer, static_steps, static_tol
from unrolled.pursuit._ista import Accelerated
from unrolled.pursuit._omp import atom_by_atom
from unrolled.pursuit._problem import Answer, Codes, DeepPursuit, Form, Problem, run

# An entry counts as zero below so many roundings of the sum of magnitudes that it is computed from.
_ROUNDING = 8


def project(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    *,
    sparsity: int | Sequence[int] | None = None,
    lam: ArrayLike | None = None,
    tol: float = 1e-6,
    max_steps: int = 10_000,
) -> DeepPursuit:
    r"""A signal onto the model of the chain: x_{j-1} = D_j x_j in every layer, to rounding.

    .. math:: \min_{x_J} \|y - D_{[1,J]} x_J\|^2, \; \|x_j\|_0 \le s_j
        \quad or \quad \min_{x_J} \|y - D_{[1,J]} x_J\|^2 / 2 + lam \|x_J\|_1,
        \qquad D_{[1,J]} = D_1 \cdots D_J.

    The deepest code is found in the effective dictionary, the others by multiplication. So the
    errors of the layers do not add up, as those of layered pursuits do.

    With `sparsity`, orthogonal matching pursuit takes one atom of D_[1,J] after the other: the one
    whose normalised inner product with the residual is largest. It stops at s_J atoms, at an exact
    fit, where no independent atom is left, or before a code exceeds its s_j. With `lam`, FISTA
    solves the LASSO in D_[1,J]. One layer is that pursuit itself. There is no derivative in reverse
    mode.

    Args:
        Ds: J dictionaries (d_{j-1}, d_j).
        y: (m,).
        sparsity: s_J, or a tuple with one s_j per layer. Entries of x_j that are the rounding of
            their product count as zero.
        lam: penalty weight, one number, one per atom of D_J, or one per filter of a `Conv`.
        tol, max_steps: of FISTA, as in `fista`.

    Returns:
        DeepPursuit. With `sparsity`, `steps` is the number of atoms, `gap` is inf, since nothing
        bounds the excess of a greedy choice, and `converged` says that all is finite. With `lam`,
        all fields are as from `fista`.

    Raises:
        TypeError: operands that are not real numbers, or a sparsity that is not static integers.
        ValueError: both or none of sparsity and lam, a sparsity above d_j, shapes that do not fit,
            lam < 0 or D_j = 0 (where known), or tol <= 0.

    Not claimed: the least residual under the sparsities, which is NP-hard to find. Where the model
    is unique, `theory.product_stability` bounds the error of its codes.

    Reference: Sulam, Papyan, Romano, Elad (2018).

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), jnp.eye(32)[:, ::2]
        >>> result = ur.pursuit.project(Ds, 2 * Ds[0][:, 4], sparsity=1)
        >>> int(result.xs[1].argmax()), result.xs[0].max().round(3).tolist()
        (2, 2.0)
    """
    where = "project"
    if (sparsity is None) == (lam is None):
        raise ValueError(f"{where}: expected sparsity or lam, and not both")
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    Ds = as_chain(Ds, where)
    zeros = (0.0,) * (len(Ds) - 1)
    if lam is not None:
        _checks.nonnegative(lam, "lam", where)
        _checks.finite(lam, "lam", where)
        return deep(Relaxed(Accelerated(tol, max_steps)), where, Ds, y, (*zeros, lam))
    bounds = _sparsities(sparsity, [D.shape[1] for D in Ds], where)
    return deep(Greedy(bounds), where, Ds, y, (*zeros, 0.0))


def _sparsities(sparsity: Any, sizes: list[int], where: str) -> tuple[int, ...]:
    """One bound per layer; d_j, of `sizes`, where there is none."""
    if not isinstance(sparsity, (tuple, list)):
        sparsity = (*sizes[:-1], sparsity)
    bounds = []
    for j, (s, d) in enumerate(
        zip(one_per_layer(sparsity, "sparsities", len(sizes), where), sizes), start=1
    ):
        s = _checks.as_index(s, f"s_{j}", where)
        if s > d:
            raise ValueError(f"{where}: s_{j} is {s} but D_{j} has {d} atoms; expected at most {d}")
        bounds.append(s)
    return tuple(bounds)


@dataclass(frozen=True)
class Relaxed:
    """The LASSO in the effective dictionary, by FISTA."""

    method: Accelerated

    def __call__(self, problem: Problem, x: Array) -> Answer:
        y, lam = problem.y, problem.lams[-1]
        form, effective = Form(np.dtype(y.dtype)), (Composed(*problem.Ds),)
        (x,), gap, _, steps, met = run(self.method, form, effective, y, (lam,), None, None, None)
        return Answer(x, gap, steps, met)


@dataclass(frozen=True)
class Greedy:
    """Matching pursuit in the effective dictionary, with the most nonzeros of every layer."""

    bounds: tuple[int, ...]

    def __call__(self, problem: Problem, x: Array) -> Answer:
        Ds, y = problem.Ds, problem.y
        D = Composed(*Ds)
        norms, sizes = column_norms(D), column_norms(magnitudes(D))
        # An atom that is the rounding of its product is zero.
        norms = jnp.where(norms > _ROUNDING * float(jnp.finfo(y.dtype).eps) * sizes, norms, 0)
        inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)

        def is_sparse(x):
            xs = _sparse_codes(Ds, inverse * x)
            return jnp.stack([jnp.count_nonzero(x) <= s for x, s in zip(xs, self.bounds)]).all()

        unit, ones = D.scale_columns(inverse), (norms > 0).astype(y.dtype)
        chosen = atom_by_atom(unit, y, ones, min(self.bounds[-1], len(y)), 0.0, is_sparse)
        xs = _sparse_codes(Ds, inverse * chosen.x)
        finite = jnp.isfinite(norm(y - Ds[0] @ xs[0]))
        gap = jnp.full((), jnp.inf, y.dtype)
        return Answer(xs, gap, chosen.size, finite)


def _sparse_codes(Ds: Sequence[Operator], x: Array) -> Codes:
    """(x_1, ..., x_J) from x_J, where entries that are the rounding of their product are zero."""
    tiny = _ROUNDING * float(jnp.finfo(x.dtype).eps)
    xs: Codes = (x,)
    for D in reversed(Ds[1:]):
        x, size = D @ x, magnitudes(D) @ jnp.abs(x)
        x = jnp.where(jnp.abs(x) > tiny * size, x, 0)
        xs = (x, *xs)
    return xs
