"""Projection pursuit: codes of a whole chain from one pursuit in its effective dictionary."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import norm
from unrolled.dictionaries import Composed, Dictionary, as_chain, column_norms, magnitudes
from unrolled.pursuit._deep import (
    Chain,
    Codes,
    DeepPursuit,
    as_problem,
    codes_of,
    one_per_layer,
    result,
)
from unrolled.pursuit._ista import fista
from unrolled.pursuit._omp import match
from unrolled.pursuit._options import static_steps, static_tol

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
    solves the LASSO in D_[1,J]. One layer is that pursuit itself.

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
        >>> found = ur.pursuit.project(Ds, 2 * Ds[0][:, 4], sparsity=1)
        >>> int(found.xs[1].argmax()), found.xs[0].max().round(3).tolist()
        (2, 2.0)
    """
    where = "project"
    if (sparsity is None) == (lam is None):
        raise ValueError(f"{where}: expected sparsity or lam, and not both")
    if lam is not None:
        tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
        _checks.nonnegative(lam, "lam", where)
        _checks.finite(lam, "lam", where)
    zeros = (0.0,) * (len(as_chain(Ds, where)) - 1)
    chain = as_problem(where, Ds, y, (*zeros, 0.0 if lam is None else lam))
    if lam is not None:
        return _by_fista(chain, tol, max_steps)
    return _by_matching(chain, _sparsities(sparsity, chain, where))


def _by_fista(chain: Chain, tol: float, max_steps: int) -> DeepPursuit:
    lam = chain.lams[-1]
    found = fista(Composed(*chain.Ds), chain.y, lam, tol=tol, max_steps=max_steps)
    with jax.default_matmul_precision("highest"):
        xs = codes_of(chain.Ds, found.x)
        return result(chain, xs, found.gap, found.steps, found.converged)


def _sparsities(sparsity: Any, chain: Chain, where: str) -> tuple[int, ...]:
    """One bound per layer; d_j where there is none."""
    sizes = [D.shape[1] for D in chain.Ds]
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


# Compiled once per shape and options, as in `ista`.
@partial(jax.jit, static_argnums=1)
def _by_matching(chain: Chain, bounds: tuple[int, ...]) -> DeepPursuit:
    D, y = Composed(*chain.Ds), chain.y
    with jax.default_matmul_precision("highest"):
        norms, sizes = column_norms(D), column_norms(magnitudes(D))
        # An atom that is the rounding of its product is zero.
        norms = jnp.where(norms > _ROUNDING * float(jnp.finfo(y.dtype).eps) * sizes, norms, 0)
        inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)

        def is_sparse(x):
            xs = _sparse_codes(chain.Ds, inverse * x)
            return jnp.stack([jnp.count_nonzero(x) <= s for x, s in zip(xs, bounds)]).all()

        unit, ones = D.scale_columns(inverse), (norms > 0).astype(y.dtype)
        found = match(unit, y, ones, min(bounds[-1], len(y)), 0.0, is_sparse)
        xs = _sparse_codes(chain.Ds, inverse * found.x)
        known = jnp.isfinite(norm(y - chain.Ds[0] @ xs[0]))
        gap = jnp.full((), jnp.inf, y.dtype)
        return result(chain, xs, gap, found.size, known)


def _sparse_codes(Ds: Sequence[Dictionary], x: Array) -> Codes:
    """(x_1, ..., x_J) from x_J, where entries that are the rounding of their product are zero."""
    tiny = _ROUNDING * float(jnp.finfo(x.dtype).eps)
    xs: Codes = (x,)
    for D in reversed(Ds[1:]):
        x, size = D @ x, magnitudes(D) @ jnp.abs(x)
        x = jnp.where(jnp.abs(x) > tiny * size, x, 0)
        xs = (x, *xs)
    return xs
