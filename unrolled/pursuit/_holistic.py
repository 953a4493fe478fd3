"""Holistic pursuit: the zeros of the codes between help to find the deepest one."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import shrink
from unrolled.dictionaries import Dictionary, as_chain
from unrolled.pursuit._deep import (
    Chain,
    Codes,
    DeepPursuit,
    as_problem,
    codes_of,
    one_per_layer,
    result,
)
from unrolled.pursuit._gap import half_energy
from unrolled.pursuit._options import static_steps, static_tol
from unrolled.pursuit._problem import solve
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
        >>> found = ur.pursuit.holistic((D, jnp.eye(30)), D @ x, lam=0.01, zeros=10, tol=1e-4)
        >>> bool(found.converged), jnp.flatnonzero(jnp.abs(found.xs[1]) > 0.1).tolist()
        (True, [3, 7])
    """
    where = "holistic"
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    Ds = as_chain(Ds, where)
    chain = as_problem(where, Ds, y, (*(0.0,) * (len(Ds) - 1), lam))
    most = _most(sparsity, chain.end, where)
    return _holistic(chain, _counts(zeros, chain, where), most, tol, max_steps)


def _most(sparsity: int | None, d: int, where: str) -> int:
    most = d if sparsity is None else _checks.as_index(sparsity, "sparsity", where)
    if most > d:
        raise ValueError(f"{where}: sparsity is {most} but x_J has {d} entries")
    return most


def _counts(zeros: Any, chain: Chain, where: str) -> tuple[int, ...]:
    """One number for each of x_1, ..., x_{J-1}."""
    sizes = [D.shape[1] for D in chain.Ds[:-1]]
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


class _Held(NamedTuple):
    """The zeros held so far, and the solution that has them."""

    zeros: Codes  # (d_j,) bool each; none of x_J while the cosupports grow
    x: Array  # (d_J,) zero off its support up to rounding and the gap
    support: Array  # (d_J,) bool
    gap: Array  # () the largest so far
    steps: Array  # ()


# Compiled once per shape and options, as in `ista`.
@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _holistic(
    chain: Chain, counts: tuple[int, ...], most: int, tol: float, max_steps: int
) -> DeepPursuit:
    Ds, y, d = chain.Ds, chain.y, chain.end
    with jax.default_matmul_precision("highest"):
        # D_{j+1} ... D_J for all j: their rows are the constraints of the zeros.
        A, *below = codes_of((Ds[0], *Ds), jnp.eye(d, dtype=y.dtype))

        def held_at(zeros):
            return jnp.concatenate(
                [jnp.where(zero[:, None], B, 0) for B, zero in zip(below, zeros)]
            )

        def solved(held):
            return _solved(chain, A, held_at(held.zeros), tol, max_steps, held)

        def body(_, held):
            zeros = _one_more(held.zeros, codes_of(Ds, held.x), (*counts, 0))
            return solved(held._replace(zeros=zeros))

        nothing = _Held(
            zeros=tuple(jnp.zeros(len(B), bool) for B in below),
            x=jnp.zeros(d, y.dtype),
            support=jnp.zeros(d, bool),
            gap=jnp.zeros((), y.dtype),
            steps=jnp.zeros((), int),
        )
        held = lax.fori_loop(0, sum(counts), body, solved(nothing))
        rank = jnp.argsort(jnp.argsort(-jnp.abs(held.x)))  # 0 for the largest entry
        zeros = (*held.zeros[:-1], ~held.support | (rank >= most))
        N, _ = null_space(held_at(zeros))
        x = N @ (jnp.linalg.pinv(A @ N) @ y)
        return result(chain, codes_of(Ds, x), held.gap, held.steps, held.gap <= tol, zeros=zeros)


def _one_more(zeros: Codes, codes: Codes, counts: Sequence[int]) -> Codes:
    """The zeros with the smallest entry of the layers that may have one more."""
    scores = []
    for zero, x, n in zip(zeros, codes, counts):
        largest = jnp.max(jnp.abs(x))
        share = jnp.abs(x) / jnp.where(largest > 0, largest, 1)
        scores.append(jnp.where(zero | (jnp.count_nonzero(zero) >= n), jnp.inf, share))
    flat = jnp.concatenate(zeros).at[jnp.argmin(jnp.concatenate(scores))].set(True)
    return tuple(jnp.split(flat, np.cumsum([len(zero) for zero in zeros])[:-1]))


def _solved(chain: Chain, A: Array, rows: Array, tol: float, max_steps: int, held: _Held) -> _Held:
    """The LASSO in A = D_1 ... D_J with rows x = 0, from the code held."""
    y, lam = chain.y, chain.lams[-1]
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
        over = jnp.abs(g) > lam
        s = jnp.min(jnp.where(over, lam / jnp.where(over, jnp.abs(g), 1), 1))
        terms = jnp.sum(jnp.maximum(lam * jnp.abs(x) - s * x * g, 0))
        return ((1 - s) ** 2 * jnp.sum(r**2) / 2 + terms) / half_energy(y)

    step, start = admm(minimise, lambda x: x, lambda v, rho: shrink(v, lam / rho), held.x)
    state, steps = solve(step, start, gap, tol=tol, max_steps=max_steps)
    largest = jnp.maximum(held.gap, gap(state))
    return _Held(held.zeros, feasible(state), state.v != 0, largest, held.steps + steps)
