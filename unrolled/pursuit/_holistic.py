"""Holistic pursuit: the zeros of the codes between help to find the deepest one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled import _checks, _lax
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import pseudo_inverse
from unrolled.activations import shrink
from unrolled.dictionaries import Dictionary, as_chain
from unrolled.pursuit._door import door, one_per_layer, static_steps, static_tol
from unrolled.pursuit._gap import dual_gap, half_energy
from unrolled.pursuit._problem import Answer, Codes, DeepPursuit, Problem, codes_of, run, solve
from unrolled.pursuit._splitting import admm, null_space


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
    r"""Holistic pursuit: a sparse deepest code whose codes above have zeros, too.

    .. math:: \min_{x_J} \|y - D_1 x_1\|^2 / 2 + lam \|x_J\|_1, \qquad
        (x_j)_i = 0 \; \text{for} \; i \in C_j, \; j < J, \qquad x_{j-1} = D_j x_j.

    The cosupports C_j begin empty. Each time the problem is solved, the entry between that is the
    smallest joins its C_j (relative to the largest of its layer), until C_j has `zeros[j]` indices.
    At the end the codes are fitted to y by least squares, with the zeros held and with the support
    of x_J, or its `sparsity` largest entries.

    It helps where the zeros it picks are true: the expected error of least squares with them is
    below that of `project`, in the ratio of `theory.oracle_errors`. This takes a high
    signal-to-noise ratio. In noise the smallest entries are often not zeros, and there is no gain.

    Args:
        Ds: J dictionaries (d_{j-1}, d_j). Structured ones are made dense for a singular value
            decomposition per zero.
        y: (m,).
        lam: penalty weight, one number, one per atom of D_J, or one per filter of a `Conv`.
        zeros: how many zeros each of x_1, ..., x_{J-1} has at least; one number for all. With 0 it
            is the LASSO in D_1 ... D_J and a fit to its support.
        sparsity: the most nonzeros of x_J; None for those that the penalty leaves.
        tol: relative duality gap of every problem.
        max_steps: the most steps of ADMM in one problem, rounded up to a multiple of 10.

    Returns:
        DeepPursuit. `gap` is the largest of all problems, before the fit, relative to norm(y)^2 /
        2; `converged` says that it is at most tol. `steps` are those of all problems. With more
        zeros than x_J has freedom, all codes are 0.

    Raises:
        TypeError: operands that are not real numbers, or zeros that are not static integers.
        ValueError: shapes that do not fit, zeros above d_j, lam < 0 or D_j = 0 (where known), or
            tol <= 0.

    Not claimed: the true cosupports; the choice is greedy and is never taken back.

    Reference: Aberdam, Sulam, Elad (2019), for two layers.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> x = jnp.zeros(30).at[jnp.array([3, 7])].set(jnp.array([1.0, -2.0]))
        >>> result = ur.pursuit.holistic((D, jnp.eye(30)), D @ x, lam=0.01, zeros=10, tol=1e-4)
        >>> bool(result.converged), jnp.flatnonzero(jnp.abs(result.xs[1]) > 0.1).tolist()
        (True, [3, 7])
    """
    where = "holistic"
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    Ds = as_chain(Ds, where)
    sizes = tuple(D.shape[1] for D in Ds)
    form, arrays = door(where, Ds, y, (*(0.0,) * (len(Ds) - 1), lam))
    most = sizes[-1] if sparsity is None else _checks.as_index(sparsity, "sparsity", where)
    if most > sizes[-1]:
        raise ValueError(f"{where}: sparsity is {most} but x_J has {sizes[-1]} entries")
    method = Holistic(_counts(zeros, sizes[:-1], where), most, tol, max_steps)
    return DeepPursuit(*run(method, form, *arrays))


def _counts(zeros: Any, sizes: tuple[int, ...], where: str) -> tuple[int, ...]:
    """One number for each of x_1, ..., x_{J-1}, whose lengths are `sizes`."""
    zeros = zeros if isinstance(zeros, (tuple, list)) else (zeros,) * len(sizes)
    counts = []
    for j, n in enumerate(one_per_layer(zeros, "zeros", len(sizes), where)):
        n = _checks.as_index(n, f"zeros[{j}]", where)
        if n > sizes[j]:
            raise ValueError(
                f"{where}: zeros[{j}] is {n} but x_{j + 1} has {sizes[j]} entries; expected at "
                "most as many"
            )
        counts.append(n)
    return tuple(counts)


class _State(NamedTuple):
    """The zeros chosen so far, and the solution that has them."""

    zeros: Codes  # (d_j,) bool each; none of x_J while the cosupports grow
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

    def __call__(self, problem: Problem, x: Array) -> Answer:
        Ds, y, d = problem.Ds, problem.y, problem.end
        # D_{j+1} ... D_J for all j: their rows are the constraints of the zeros.
        A, *below = codes_of((Ds[0], *Ds), jnp.eye(d, dtype=y.dtype))

        def constraints(zeros):
            return jnp.concatenate(
                [jnp.where(zero[:, None], B, 0) for B, zero in zip(below, zeros)]
            )

        def solved(state):
            rows = constraints(state.zeros)
            return _lasso_on_rows(problem, A, rows, self.tol, self.max_steps, state)

        def body(_, state):
            zeros = _one_more(state.zeros, codes_of(Ds, state.x), (*self.counts, 0))
            return solved(state._replace(zeros=zeros))

        nothing = _State(
            zeros=tuple(jnp.zeros(len(B), bool) for B in below),
            x=x,
            support=jnp.zeros(d, bool),
            gap=jnp.zeros((), y.dtype),
            steps=jnp.zeros((), int),
        )
        last = _lax.fori_loop(0, sum(self.counts), body, solved(nothing))
        rank = jnp.argsort(jnp.argsort(-jnp.abs(last.x)))  # 0 for the largest entry
        zeros = (*last.zeros[:-1], ~last.support | (rank >= self.most))
        N, _ = null_space(constraints(zeros))
        x = N @ (pseudo_inverse(A @ N) @ y)
        return Answer(x, last.gap, last.steps, last.gap <= self.tol, zeros=zeros)


def _one_more(zeros: Codes, codes: Codes, counts: Sequence[int]) -> Codes:
    """The zeros with the smallest entry of the layers that may have one more."""
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
    """The LASSO in A = D_1 ... D_J with rows x = 0, from the last code."""
    y, lam = problem.y, problem.lams[-1]
    N, _ = null_space(rows)
    AN = A @ N
    w, Q = jnp.linalg.eigh(AN.T @ AN)
    T = N @ Q
    c = (y @ A) @ T

    def minimise(b, rho):
        return T @ ((c + rho * (b @ T)) / (jnp.maximum(w, 0) + rho))

    def feasible(state):
        return N @ (state.v @ N)

    def gap(state):
        # A'r less any combination of the rows is a dual point, once scaled into the box.
        x, U = feasible(state), state.rho * state.u
        r = y - A @ x
        g = U + N @ ((r @ A - U) @ N)
        return dual_gap(jnp.sum(r**2), (lam,), (x,), (g,)) / half_energy(y)

    step, start = admm(minimise, lambda x: x, lambda v, rho: shrink(v, lam / rho), last.x)
    state, steps, least = solve(step, start, gap, tol=tol, max_steps=max_steps)
    largest = jnp.maximum(last.gap, least)
    return _State(last.zeros, feasible(state), state.v != 0, largest, last.steps + steps)
