"""Multi-layer basis pursuit, the convex problem that ML-ISTA solves nearly, to a duality gap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _lax
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import pseudo_inverse
from unrolled.activations import shrink
from unrolled.dictionaries import Dictionary, Operator, spectral_norm
from unrolled.pursuit._door import deep, static_steps, static_tol
from unrolled.pursuit._gap import chain_gap
from unrolled.pursuit._problem import Answer, Codes, DeepPursuit, Problem, codes_of, solve
from unrolled.pursuit._splitting import admm, null_space

# Steps of ADMM between two looks at the vertex, which costs a singular value decomposition.
_ROUND = 500


def ml_basis_pursuit(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Sequence[ArrayLike],
    *,
    tol: float = 1e-6,
    max_steps: int = 10_000,
    start: ArrayLike | None = None,
) -> DeepPursuit:
    r"""The multi-layer basis pursuit problem, to a duality gap.

    .. math::
        \min_{x_J} \|y - D_1 D_2 \cdots D_J x_J\|^2 / 2 + \sum_j lam_j \|x_j\|_1,
        \qquad x_{j-1} = D_j x_j.

    Convex, with x_J as its one variable: sparse synthesis at the deepest layer, sparse analysis in
    the others. ADMM runs to the gap. A linear system for the zeros and signs that it found then
    gives the codes to rounding, if that lowers the gap. One layer is the LASSO. There is no
    derivative in reverse mode; `ml_fista` with tol=None has one.

    Args:
        Ds: J dictionaries (d_{j-1}, d_j). Structured ones are made dense for one eigenvalue
            decomposition of d_J x d_J.
        y: (m,).
        lams: J penalties, one number, one per atom, or one per filter of a `Conv` each. lam_J must
            be positive for the gap to close.
        tol: relative duality gap to stop at. In float32, gaps below 1e-5 are seldom reached.
        max_steps: the most steps of ADMM, rounded up to a multiple of 500.
        start: x_J to begin from, (d_J,); zero by default.

    Returns:
        DeepPursuit. `gap` bounds the excess of the objective, relative to norm(y)^2 / 2, and
        `converged` says that it is at most tol. Entries of xs are exactly zero where the linear
        system was solved.

    Raises:
        TypeError: operands that are not real numbers, or a traced tol or max_steps.
        ValueError: shapes that do not fit, another number of lams, lam_j < 0, D_j = 0 (where
            known), or tol <= 0.

    Reference: Sulam, Aberdam, Beck, Elad (2020), equation (5), for the problem; Boyd et al. (2011)
    for ADMM. The dual problem is in `chain_gap`.

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), ur.dictionaries.dct(32, 32)
        >>> exact = ur.pursuit.ml_basis_pursuit(Ds, Ds[0][:, 3], (0.01, 0.01), tol=1e-5)
        >>> ista = ur.pursuit.ml_ista(Ds, Ds[0][:, 3], (0.01, 0.01))
        >>> bool(exact.converged), bool(exact.gap < ista.gap)
        (True, True)
    """
    where = "ml_basis_pursuit"
    method = MultiLayer(static_tol(tol, where), static_steps(max_steps, where))
    return deep(method, where, Ds, y, lams, start=start)


class _Matrices(NamedTuple):
    """The products of the chain as matrices, all with d_J columns."""

    A: Array  # D_1 ... D_J
    below: tuple[Array, ...]  # D_{j+1} ... D_J for j = 1..J, the last one the identity
    units: tuple[Array, ...]  # 1 / norm(D_{j+1} ... D_J, 2): the splits are of one size


class _Best(NamedTuple):
    """The best point so far."""

    x: Array  # (d_J,)
    zeros: Codes  # where the codes are zero up to rounding
    gap: Array  # ()


@dataclass(frozen=True)
class MultiLayer:
    """The method of `ml_basis_pursuit`."""

    tol: float
    max_steps: int

    def __call__(self, problem: Problem, x: Array) -> Answer:
        Ds, y, lams, *_ = problem
        matrices = _products(Ds, y)
        units = matrices.units

        def forward(x):
            return tuple(c * v for c, v in zip(units, codes_of(Ds, x)))

        def prox(v, rho):
            return tuple(shrink(a, lam / (c * rho)) for a, lam, c in zip(v, lams, units))

        def gap(x, Us):
            bounded = [jnp.clip(U, -lam, lam) for U, lam in zip(Us, lams)]
            return chain_gap(problem, codes_of(Ds, x), lambda j, _: bounded[j])

        def pair(state):
            """x_J and the multipliers."""
            return state.v[-1] / units[-1], tuple(c * u * state.rho for c, u in zip(units, state.u))

        def best(state):
            """Of the point of ADMM and the vertex near it, the one with the smaller gap."""
            x, Us = pair(state)
            vertex, theirs, zeros = _vertex(matrices, y, lams, state.v, Us)
            gaps = gap(x, Us), gap(vertex, theirs)
            exact = gaps[1] <= gaps[0]
            zeros = tuple(zero & exact for zero in zeros)
            return _Best(jnp.where(exact, vertex, x), zeros, jnp.where(exact, gaps[1], gaps[0]))

        step, state = admm(_minimiser(matrices, y), forward, prox, x)

        def body(carry):
            state, *_ = solve(
                step, carry[0], lambda s: gap(*pair(s)), tol=self.tol, max_steps=_ROUND
            )
            return state, best(state)

        def goes_on(carry):
            return (carry[1].gap > self.tol) & (carry[0].steps < self.max_steps)

        state, (x, zeros, least) = _lax.while_loop(goes_on, body, (state, best(state)))
        return Answer(x, least, state.steps, least <= self.tol, zeros=zeros)


def _products(Ds: Sequence[Operator], y: Array) -> _Matrices:
    below = [jnp.eye(Ds[-1].shape[1], dtype=y.dtype)]
    for D in reversed(Ds):
        below.insert(0, D @ below[0])
    A, *below = below
    return _Matrices(A, tuple(below), tuple(1 / spectral_norm(B) for B in below))


def _minimiser(matrices: _Matrices, y: Array) -> Callable[[Array, Array], Array]:
    """(b, rho) -> argmin norm(y - A x)^2 / 2 + rho (x'G x / 2 - b'x), G = K'K.

    T with T'G T = 1 and T'A'A T = diag(w) serves every rho.
    """
    A, below, units = matrices
    gram = sum((c * B).T @ (c * B) for c, B in zip(units, below))
    root = jnp.linalg.cholesky(gram)
    w, Q = jnp.linalg.eigh(_divided(root, _divided(root, A.T @ A).T))
    T = jax.scipy.linalg.solve_triangular(root.T, Q)
    c = (y @ A) @ T
    return lambda b, rho: T @ ((c + rho * (b @ T)) / (jnp.maximum(w, 0) + rho))


def _divided(root: Array, B: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(root, B, lower=True)


def _vertex(
    matrices: _Matrices, y: Array, lams: Sequence[Array], v: Codes, Us: Codes
) -> tuple[Array, Codes, Codes]:
    """x_J and the multipliers by the optimality conditions, given the zeros and signs of v.

    A'(y - A x) = sum_j below_j' U_j, with U_j = lam_j sign(v_j) off the zeros and (below_j x) = 0
    on them. Returns the zeros, too.
    """
    A, below, _ = matrices
    B, signs = jnp.concatenate(below), jnp.sign(jnp.concatenate(v))
    lam = jnp.concatenate([jnp.broadcast_to(w, a.shape) for w, a in zip(lams, v)])
    zero, fixed = signs == 0, lam * signs
    N, pseudo = null_space(jnp.where(zero[:, None], B, 0))
    P = pseudo_inverse(A @ N)
    x = N @ (P @ (y - ((fixed @ B) @ N) @ P))
    U = jnp.where(zero, jnp.concatenate(Us), fixed)
    # The multipliers of the zeros take up what is left, with the least change.
    U = U + (((y - A @ x) @ A) - U @ B) @ pseudo
    ends = np.cumsum([len(a) for a in v])[:-1]
    Us, zeros = (tuple(jnp.split(a, ends)) for a in (U, zero))
    return jnp.where(zeros[-1], 0, x), Us, zeros
