"""Projection pursuit: codes of a whole chain from one pursuit in its effective dictionary."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import norm
from unrolled.dictionaries import Composed, Dictionary, as_chain, column_norms, magnitudes, operands
from unrolled.pursuit._deep import (
    Chain,
    Codes,
    DeepPursuit,
    as_problem,
    codes_of,
    one_per_layer,
    result,
)
from unrolled.pursuit._ista import fista, per_atom

# Relative to the norm of an atom, or of the signal, in units of the rounding of one product.
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
        return _by_fista(Ds, y, lam, tol, max_steps)
    chain = as_problem(where, Ds, y)
    return _by_matching(chain, _sparsities(sparsity, chain, where))


def _by_fista(
    Ds: Sequence[Dictionary], y: ArrayLike, lam: ArrayLike, tol: float, max_steps: int
) -> DeepPursuit:
    where = "project"
    Ds = as_chain(Ds, where)
    _checks.nonnegative(lam, "lam", where)
    _, y, Ds = operands(Ds[0], y, where, params=Ds)
    each = per_atom(Ds[-1], y, lam, "lam", where)
    found = fista(Composed(*Ds), y, each, tol=tol, max_steps=max_steps)
    with jax.default_matmul_precision("highest"):
        xs = codes_of(Ds, found.x)
    return DeepPursuit(xs, found.gap, found.residual, found.steps, found.converged)


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


class _Matching(NamedTuple):
    """The state of orthogonal matching pursuit: chosen = Q R, and the residual of y."""

    Q: Array  # (m, s)
    R: Array  # (s, s), the identity beyond the atoms taken
    atoms: Array  # (s,) integers
    free: Array  # (d,) atoms that may still be taken
    x: Array  # (d,)
    r: Array  # (m,) y - D x
    taken: Array  # () how many atoms
    goes_on: Array  # ()


# Compiled once per shape and options, as in `ista`.
@partial(jax.jit, static_argnums=1)
def _by_matching(chain: Chain, bounds: tuple[int, ...]) -> DeepPursuit:
    D, y = Composed(*chain.Ds), chain.y
    most = min(bounds[-1], len(y))
    with jax.default_matmul_precision("highest"):
        norms = column_norms(D)
        inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)

        def body(state):
            after = _with_next_atom(D, inverse, y, state)
            xs = _sparse_codes(chain.Ds, after.x)
            met = jnp.stack([jnp.count_nonzero(x) <= s for x, s in zip(xs, bounds)]).all()
            last = state._replace(goes_on=jnp.asarray(False))
            return jax.tree.map(partial(jnp.where, met), after, last)

        state = lax.while_loop(
            lambda state: state.goes_on & (state.taken < most),
            body,
            _nothing_taken(y, chain.end, max(most, 1), norms > 0),
        )
        xs = _sparse_codes(chain.Ds, state.x)
        known = jnp.isfinite(norm(y - chain.Ds[0] @ xs[0]))
        gap = jnp.full((), jnp.inf, y.dtype)
        return result(chain, xs, gap, state.taken, known)


def _nothing_taken(y: Array, d: int, width: int, free: Array) -> _Matching:
    return _Matching(
        Q=jnp.zeros((len(y), width), y.dtype),
        R=jnp.eye(width, dtype=y.dtype),
        atoms=jnp.zeros(width, jnp.int32),
        free=free,
        x=jnp.zeros(d, y.dtype),
        r=y,
        taken=jnp.zeros((), jnp.int32),
        goes_on=free.any() & (norm(y) > 0),
    )


def _with_next_atom(D: Dictionary, inverse: Array, y: Array, state: _Matching) -> _Matching:
    """The state with the best free atom; one that depends on those taken only stops being free."""
    Q, R, atoms, free, x, r, k, _ = state
    j = jnp.argmax(jnp.where(free, jnp.abs(r @ D) * inverse, -1))
    free = free.at[j].set(False)
    atom = D @ jnp.zeros_like(x).at[j].set(inverse[j])
    first = atom @ Q
    q = atom - Q @ first
    second = q @ Q  # once is not enough for an orthogonal Q
    q = q - Q @ second
    size, tiny = norm(q), _ROUNDING * len(y) * float(jnp.finfo(y.dtype).eps)
    fresh = size > tiny
    column = (first + second).at[k].set(size)
    R = jnp.where(fresh, R.at[:, k].set(column), R)
    Q = jnp.where(fresh, Q.at[:, k].set(q / jnp.where(fresh, size, 1)), Q)
    atoms = jnp.where(fresh, atoms.at[k].set(j.astype(atoms.dtype)), atoms)
    k = k + fresh.astype(k.dtype)
    c = y @ Q
    r = y - Q @ c
    c = jax.scipy.linalg.solve_triangular(R, c)
    x = jnp.zeros_like(x).at[atoms].add(c * inverse[atoms])
    return _Matching(Q, R, atoms, free, x, r, k, free.any() & (norm(r) > tiny * norm(y)))


def _sparse_codes(Ds: Sequence[Dictionary], x: Array) -> Codes:
    """(x_1, ..., x_J) from x_J, where entries that are the rounding of their product are zero."""
    tiny = _ROUNDING * float(jnp.finfo(x.dtype).eps)
    xs: Codes = (x,)
    for D in reversed(Ds[1:]):
        x, size = D @ x, magnitudes(D) @ jnp.abs(x)
        x = jnp.where(jnp.abs(x) > tiny * size, x, 0)
        xs = (x, *xs)
    return xs
