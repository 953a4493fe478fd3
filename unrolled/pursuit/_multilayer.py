"""Pursuits of the whole multi-layer model: multi-layer basis pursuit and holistic pursuit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import pseudo_inverse, widened
from unrolled.activations import shrink
from unrolled.dictionaries import Dictionary, Operator, as_chain, spectral_norm
from unrolled.pursuit import _problem
from unrolled.pursuit._admm import PERIOD, admm, begin
from unrolled.pursuit._gap import chain_gap, dual_gap, half_energy
from unrolled.pursuit._problem import Codes, DeepPursuit, Found, Problem

__all__ = ["holistic", "ml_basis_pursuit"]


# Steps of ADMM between two computations of a vertex; a vertex costs a singular value decomposition.
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
    r"""Solve the multi-layer basis pursuit problem up to a duality gap.

    .. math::
        \min_{x_J} \|y - D_1 D_2 \cdots D_J x_J\|^2 / 2 + \sum_j lam_j \|x_j\|_1,
        \qquad x_{j-1} = D_j x_j.

    The problem is convex in its single variable x_J: the penalty is a synthesis penalty in the
    deepest layer, and an analysis penalty in the other layers. ADMM runs until the gap is at most
    tol. A linear system for the zeros and signs of the result of ADMM then gives the codes to
    rounding; this solution is returned if it lowers the gap. With one layer, the problem is the
    LASSO. The function has no derivative in reverse mode; for such a derivative, use `ml_fista`
    with tol=None.

    Args:
        Ds: J dictionaries of shapes (d_{j-1}, d_j). Structured dictionaries are converted to
            matrices for one eigenvalue decomposition of a d_J x d_J matrix.
        y: (m,).
        lams: J penalties, each one number, one per atom, or one per filter of a `Conv`. lam_J must
            be positive for the gap to close.
        tol: relative duality gap to stop at. In float32, gaps below 1e-5 are seldom reached.
        max_steps: maximum number of steps of ADMM, rounded up to a multiple of 500.
        start: the x_J to start from, of shape (d_J,); zero by default.

    Returns:
        DeepPursuit. `gap` bounds the excess of the objective, relative to norm(y)^2 / 2, and
        `converged` says that the gap is at most tol. If the solution of the linear system is
        returned, zeros in xs are exact.

    Raises:
        TypeError: an operand is not real, or tol or max_steps is traced.
        ValueError: shapes do not fit, the number of lams is not J, lam_j < 0, D_j = 0 (if known),
            or tol <= 0.

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
    method = MultiLayer(_problem.static_tol(tol, where), _problem.static_steps(max_steps, where))
    return _problem.deep(method, where, Ds, y, lams, start=start)


class _Best(NamedTuple):
    """The best point so far."""

    x: Array  # (d_J,)
    zeros: Codes  # where the codes are zero up to rounding
    multipliers: Codes
    gap: Array  # ()


@dataclass(frozen=True)
class MultiLayer:
    """The method of `ml_basis_pursuit`."""

    tol: float
    max_steps: int

    def __call__(self, problem: Problem, x: Array) -> Found:
        Ds, y, lams, *_ = problem
        A, below = _products(Ds, y)
        units = tuple(1 / spectral_norm(B) for B in below)  # give all splits the same norm

        def forward(x):
            return tuple(c * v for c, v in zip(units, _problem.codes_of(Ds, x)))

        def prox(v, rho):
            return tuple(shrink(a, lam / (c * rho)) for a, lam, c in zip(v, lams, units))

        def gap(x, Us):
            bounded = [jnp.clip(U, -lam, lam) for U, lam in zip(Us, lams)]
            return chain_gap(problem, _problem.codes_of(Ds, x), lambda j, _: bounded[j])

        def pair(state):
            """x_J and the multipliers."""
            return state.v[-1] / units[-1], tuple(c * u * state.rho for c, u in zip(units, state.u))

        def best(state):
            """The point of ADMM or the vertex near it, whichever has the smaller gap."""
            x, Us = pair(state)
            vertex, theirs, zeros = _vertex(A, below, y, lams, state.v, Us)
            gaps = gap(x, Us), gap(vertex, theirs)
            exact = gaps[1] <= gaps[0]
            zeros = tuple(zero & exact for zero in zeros)
            multipliers = tuple(jnp.where(exact, V, U) for U, V in zip(Us, theirs))
            least = jnp.where(exact, gaps[1], gaps[0])
            return _Best(jnp.where(exact, vertex, x), zeros, multipliers, least)

        root = jnp.linalg.cholesky(sum((c * B).T @ (c * B) for c, B in zip(units, below)))
        T = jax.scipy.linalg.solve_triangular(root.T, jnp.eye(len(root), dtype=y.dtype))
        minimise, state = _minimiser(A, y, T), begin(forward(x))
        limits: Any = dict(tol=self.tol, max_steps=_ROUND, period=PERIOD)
        back = partial(programs.adjoint, forward, x)
        advance = admm(lambda w, rho: forward(minimise(back(w), rho)), prox)

        def body(carry):
            state, *_ = _problem.solve(advance, carry[0], lambda s: gap(*pair(s)), **limits)
            return state, best(state)

        def not_done(carry):
            return (carry[1].gap > self.tol) & (carry[0].steps < self.max_steps)

        state, (x, zeros, Us, least) = programs.while_loop(not_done, body, (state, best(state)))

        def judge(x):
            least = gap(x, Us)
            return least, least <= self.tol

        return Found(x, least, state.steps, least <= self.tol, zeros=zeros, judge=judge)


def _products(Ds: Sequence[Operator], y: Array) -> tuple[Array, Codes]:
    """D_1 ... D_J, and D_{j+1} ... D_J for j = 1..J; the last product is the identity."""
    A, *below = _problem.codes_of((Ds[0], *Ds), jnp.eye(Ds[-1].shape[1], dtype=y.dtype))
    return A, tuple(below)


def _minimiser(A: Array, y: Array, T: Array) -> Callable[[Array, Array], Array]:
    """(b, rho) -> argmin norm(y - A x)^2 / 2 + rho (x'G x / 2 - b'x), for x in the range of T.

    On this range T'G T = I. The function rotates T so that T'A'A T = diag(w), for use with every
    rho.
    """
    w, Q = jnp.linalg.eigh((A @ T).T @ (A @ T))
    T = T @ Q
    c = (y @ A) @ T
    return lambda b, rho: T @ ((c + rho * (b @ T)) / (jnp.maximum(w, 0) + rho))


def _vertex(
    A: Array, below: Codes, y: Array, lams: Sequence[Array], v: Codes, Us: Codes
) -> tuple[Array, Codes, Codes]:
    """x_J and the multipliers from the optimality conditions, given the zeros and signs of v.

    The conditions are A'(y - A x) = sum_j below_j' U_j, with U_j = lam_j sign(v_j) off the zeros
    and below_j x = 0 on the zeros. The function also returns the zeros.
    """
    B, signs = jnp.concatenate(below), jnp.sign(jnp.concatenate(v))
    lam = jnp.concatenate([jnp.broadcast_to(w, a.shape) for w, a in zip(lams, v)])
    zero, fixed = signs == 0, lam * signs
    N, pseudo = null_space(jnp.where(zero[:, None], B, 0))
    P = pseudo_inverse(A @ N)
    x = N @ (P @ (y - ((fixed @ B) @ N) @ P))
    U = jnp.where(zero, jnp.concatenate(Us), fixed)
    # The multipliers on the zeros change as little as the conditions allow.
    U = U + (((y - A @ x) @ A) - U @ B) @ pseudo
    ends = np.cumsum([len(a) for a in v])[:-1]
    Us, zeros = (tuple(jnp.split(a, ends)) for a in (U, zero))
    return jnp.where(zeros[-1], 0, x), Us, zeros


def holistic(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    *,
    lam: ArrayLike,
    zeros: Sequence[int] | int,
    sparsity: int | None = None,
    tol: float = 1e-6,
    max_steps: int = 10_000,
) -> DeepPursuit:
    r"""Holistic pursuit: a sparse deepest code, with zeros also in the codes of the other layers.

    .. math:: \min_{x_J} \|y - D_1 x_1\|^2 / 2 + lam \|x_J\|_1, \qquad
        (x_j)_i = 0 \; \text{for} \; i \in C_j, \; j < J, \qquad x_{j-1} = D_j x_j.

    The cosupports C_j are empty at first. After each solution of the problem, one more index joins
    a C_j. This index belongs to the entry of the codes x_j, j < J, that is smallest relative to the
    largest entry of its layer. A cosupport C_j is complete when it has `zeros[j]` indices. At the
    end, the codes are fitted to y by least squares, with these zeros. The support of x_J in this
    fit is the support of the last solution or, if `sparsity` is given, at most its `sparsity`
    largest entries.

    Holistic pursuit helps if its zeros are correct: the expected error of the least squares fit is
    then smaller than the expected error of `project`; `theory.oracle_errors` returns both. Correct
    zeros require a high signal-to-noise ratio. In strong noise, the smallest entries often belong
    to nonzeros of the true codes, and holistic pursuit gains nothing.

    Args:
        Ds: J dictionaries of shapes (d_{j-1}, d_j). Structured dictionaries are converted to
            matrices for one singular value decomposition per zero.
        y: (m,).
        lam: penalty weight: one number, one per atom of D_J, or one per filter of a `Conv`.
        zeros: minimum numbers of zeros in x_1, ..., x_{J-1}, or one number for all these codes.
            With 0, the result is the code of the LASSO in D_1 ... D_J, followed by a fit on its
            support.
        sparsity: maximum number of nonzeros of x_J; None for all nonzeros that the penalty leaves.
        tol: relative duality gap of every problem.
        max_steps: maximum number of steps of ADMM in one problem, rounded up to a multiple of 10.

    Returns:
        DeepPursuit. `gap` is the largest gap of all problems, before the fit, relative to norm(y)^2
        / 2; `converged` says that the gap is at most tol. `steps` counts the steps of all problems.
        If x_J = 0 is the only code with these zeros, all codes are 0.

    Raises:
        TypeError: an operand is not real, or zeros are not static integers.
        ValueError: shapes do not fit, zeros exceed d_j, lam < 0 or D_j = 0 (if known), or
            tol <= 0.

    Not claimed: recovery of the true cosupports; the choice is greedy and never revised.

    Reference: Aberdam, Sulam, Elad (2019), for two layers.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> x = jnp.zeros(30).at[jnp.array([3, 7])].set(jnp.array([1.0, -2.0]))
        >>> result = ur.pursuit.holistic((D, jnp.eye(30)), D @ x, lam=0.01, zeros=10, tol=1e-4)
        >>> bool(result.converged), jnp.flatnonzero(jnp.abs(result.xs[1]) > 0.1).tolist()
        (True, [3, 7])
    """
    where = "holistic"
    tol, max_steps = _problem.static_tol(tol, where), _problem.static_steps(max_steps, where)
    Ds = as_chain(Ds, where)
    sizes = tuple(D.shape[1] for D in Ds)
    form, arrays = _problem.checked_chain(where, Ds, y, (*(0.0,) * (len(Ds) - 1), lam))
    most = sizes[-1] if sparsity is None else checks.as_index(sparsity, "sparsity", where)
    if most > sizes[-1]:
        raise ValueError(f"{where}: sparsity is {most} but x_J has {sizes[-1]} entries")
    method = Holistic(_counts(zeros, sizes[:-1], where), most, tol, max_steps)
    return DeepPursuit(*_problem.run(method, form, *arrays))


def _counts(zeros: Any, sizes: tuple[int, ...], where: str) -> tuple[int, ...]:
    """One number for each of x_1, ..., x_{J-1}, which have the lengths `sizes`."""
    zeros = zeros if isinstance(zeros, (tuple, list)) else (zeros,) * len(sizes)
    counts = []
    for j, n in enumerate(_problem.one_per_layer(zeros, "zeros", len(sizes), where)):
        n = checks.as_index(n, f"zeros[{j}]", where)
        if n > sizes[j]:
            raise ValueError(
                f"{where}: zeros[{j}] is {n} but x_{j + 1} has {sizes[j]} entries; expected at "
                "most as many"
            )
        counts.append(n)
    return tuple(counts)


def null_space(B: Array) -> tuple[Array, Array]:
    """N, (d, d), whose nonzero columns are an orthonormal basis of {x : B x = 0}; and B^+, (d, n).

    B is (n, d) with n >= d. Singular values within the rounding error of the largest singular value
    count as zero; the bound does not grow with n beyond n = 10 d.
    """
    wide = widened(B)
    U, values, V = jnp.linalg.svd(wide, full_matrices=False)
    n, d = B.shape
    cut = min(n, 10 * d) * float(jnp.finfo(B.dtype).eps) * jnp.max(values)
    large = values > cut
    inverse = jnp.where(large, 1 / jnp.where(large, values, 1), 0)
    N, pseudo = jnp.where(large[None, :], 0, V.T), (V.T * inverse[None, :]) @ U.T
    return N.astype(B.dtype), pseudo.astype(B.dtype)


class _State(NamedTuple):
    """The zeros chosen so far, and the solution with these zeros."""

    zeros: Codes  # (d_j,) bool each; no zeros in x_J while the cosupports grow
    x: Array  # (d_J,) zero off its support up to rounding and the gap
    support: Array  # (d_J,) bool
    gap: Array  # () the largest so far
    steps: Array  # ()


@dataclass(frozen=True)
class Holistic:
    """The method of `holistic`."""

    counts: tuple[int, ...]
    most: int
    tol: float
    max_steps: int

    def __call__(self, problem: Problem, x: Array) -> Found:
        Ds, y, d = problem.Ds, problem.y, problem.end
        A, below = _products(Ds, y)  # rows of `below` are the constraints of the zeros

        def constraints(zeros):
            return jnp.concatenate(
                [jnp.where(zero[:, None], B, 0) for B, zero in zip(below, zeros)]
            )

        def solved(state):
            rows = constraints(state.zeros)
            return _lasso_on_rows(problem, A, rows, self.tol, self.max_steps, state)

        def body(_, state):
            zeros = _one_more(state.zeros, _problem.codes_of(Ds, state.x), (*self.counts, 0))
            return solved(state._replace(zeros=zeros))

        nothing = _State(
            zeros=tuple(jnp.zeros(len(B), bool) for B in below),
            x=x,
            support=jnp.zeros(d, bool),
            gap=jnp.zeros((), y.dtype),
            steps=jnp.zeros((), int),
        )
        last = programs.fori_loop(0, sum(self.counts), body, solved(nothing))
        rank = jnp.argsort(jnp.argsort(-jnp.abs(last.x)))  # 0 for the largest entry
        zeros = (*last.zeros[:-1], ~last.support | (rank >= self.most))
        N, _ = null_space(constraints(zeros))
        x = N @ (pseudo_inverse(A @ N) @ y)
        return Found(x, last.gap, last.steps, last.gap <= self.tol, zeros=zeros)


def _one_more(zeros: Codes, codes: Codes, counts: Sequence[int]) -> Codes:
    """The zeros with one more zero: the smallest entry of the layers that still need zeros."""
    scores = []
    for zero, x, n in zip(zeros, codes, counts):
        largest = jnp.max(jnp.abs(x))
        share = jnp.abs(x) / jnp.where(largest > 0, largest, 1)
        scores.append(jnp.where(zero | (jnp.count_nonzero(zero) >= n), jnp.inf, share))
    flat = jnp.concatenate(zeros).at[jnp.argmin(jnp.concatenate(scores))].set(True)
    return tuple(jnp.split(flat, np.cumsum([len(zero) for zero in zeros])[:-1]))


def _lasso_on_rows(
    problem: Problem, A: Array, rows: Array, tol: float, max_steps: int, last: _State
) -> _State:
    """The LASSO in A = D_1 ... D_J under `rows` x = 0, started from the last code."""
    y, lam = problem.y, problem.lams[-1]
    N, _ = null_space(rows)

    def feasible(state):
        return N @ (state.v @ N)

    def gap(state):
        # A'r minus any combination of the rows is a dual point, after scaling into the box.
        x, U = feasible(state), state.rho * state.u
        r = y - A @ x
        g = U + N @ ((r @ A - U) @ N)
        return dual_gap(jnp.sum(r**2), (lam,), (x,), (g,)) / half_energy(y)

    advance = admm(_minimiser(A, y, N), lambda v, rho: shrink(v, lam / rho))
    state, steps, least = _problem.solve(
        advance, begin(last.x), gap, tol=tol, max_steps=max_steps, period=PERIOD
    )
    largest = jnp.maximum(last.gap, least)
    return _State(last.zeros, feasible(state), state.v != 0, largest, last.steps + steps)
