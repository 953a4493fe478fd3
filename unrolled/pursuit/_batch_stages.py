r"""The LASSO of many signals in one dictionary, in stages, every code certified.

A few steps of ADMM in float32 nearly find the support and the signs of a code. Given these the code
solves a small linear system, in float64; a wrong guess is corrected by the signs and the violated
constraints that its solution shows, and only signals without a certificate go on to further steps.
Everything is numpy on the host, where threads share the signals; every product is a matrix product.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from unrolled._threads import Threads, threads
from unrolled.pursuit._batch_admm import Steppers, advance
from unrolled.pursuit._batch_state import Problem, Signals, dual_scale, empty, keep, largest
from unrolled.pursuit._batch_supports import finish

# ADMM: penalties rho over the mean squared norm of an atom, and steps with each. A well-conditioned
# support is found soonest with rho near 1, a coherent one with less.
_RHO = (1.0, 0.25, 0.15)
_STEPS = (14, 30, 40)
# The second stage keeps the penalty of the first for fewer signals than this share: to factorise
# for another one would take longer than their steps.
_FEW = 0.1
# Later stages alternate between the last two penalties, each half as long again as the one before.
_GROWTH = 1.5
# Stages in float32, whose rounding no longer matters once a support is found; then float64.
_SINGLE = 5
# Signals that a thread takes at once, enough for its products to be fast; whose arrays are in
# memory at a time.
_CHUNK, _BLOCK = 512, 4096
# Added to the diagonal of a system, in units of its largest entry: dependent atoms share a change.
_RIDGE = 1e-12


def solve(D, Y, lam, l2, start, *, relative, tol, nonnegative, max_steps, warm):
    """x, gap, residual, steps and converged of every signal."""
    dtype, wide = Y.dtype, (np.asarray(v, np.float64) for v in (D, Y, lam, start))
    D, Y, lam, start = wide
    n, d = len(Y), D.shape[1]
    x, steps = np.zeros((n, d), dtype), np.zeros(n, int)
    gap, residual = np.full(n, np.inf), np.full(n, np.nan)
    known = np.flatnonzero(np.isfinite(Y).all(1) & np.isfinite(lam).all(1))
    if np.isfinite(D).all() and D.any():
        with threads() as team:
            gram = np.zeros((d + 1, d + 1))
            np.matmul(D.T, D, out=gram[:d, :d])
            problem = Problem(D, gram, float(l2), _RIDGE * gram.max(), tol, nonnegative, relative)
            steppers = Steppers(problem)
            for first in range(0, len(known), _BLOCK):
                some = known[first : first + _BLOCK]
                signals = empty(Y[some], lam[some], d)
                first_codes = start[some] if warm else None
                begin = partial(_begin, problem, signals, first_codes)
                team.share(begin, _parts(np.arange(len(some)), team.cores))
                _run(problem, steppers, signals, max_steps, team)
                x[some], gap[some] = signals.x, signals.gap
                residual[some], steps[some] = signals.residual, signals.steps
    integer = jnp.zeros((), int).dtype
    return (
        x,
        gap.astype(dtype),
        residual.astype(dtype),
        steps.astype(integer),
        gap <= tol,
    )


def _begin(problem: Problem, signals: Signals, start: np.ndarray | None, part: np.ndarray) -> None:
    """D'y, lam, the gap of the code 0; then, of given codes and the supports that they suggest."""
    rows = slice(part[0], part[-1] + 1)  # neighbours: views of them need no copies
    products = np.matmul(signals.Y[rows], problem.D, out=signals.products[rows])
    if problem.relative:
        signals.lam[rows] *= np.maximum(largest(problem, products), 0)
    s = dual_scale(problem, signals.lam[rows], products)[:, 0]
    signals.gap[part] = (1 - s) ** 2
    left = part[signals.gap[part] > problem.tol]
    if start is None or not len(left):
        return
    z = np.maximum(start[left], 0) if problem.nonnegative else start[left]
    gap, g = keep(problem, signals, left, z)
    lam = signals.lam[left]
    signals.z[left], signals.w[left] = z, np.clip(g, -lam, lam)
    rest = gap > problem.tol
    finish(problem, signals, left[rest], z[rest])


def _run(
    problem: Problem, steppers: Steppers, signals: Signals, max_steps: int, team: Threads
) -> None:
    """Stages of ADMM, each followed by a finish, until every signal has its certificate."""
    stage, length, done = 0, 0.0, 0
    while done < max_steps and len(left := np.flatnonzero(~(signals.gap <= problem.tol))):
        if stage < len(_RHO):
            few = stage == 1 and len(left) < _FEW * len(signals.gap)
            rho, length = _RHO[0 if few else stage], float(_STEPS[stage])
        else:
            rho, length = _RHO[-2 + stage % 2], length * _GROWTH
        count = min(int(length), max_steps - done)
        if stage == _SINGLE:
            signals = signals._replace(z=signals.z.astype(float), w=signals.w.astype(float))
        step = steppers(rho, signals.z.dtype.type)

        def work(part, signals=signals, step=step, count=count, late=stage >= _SINGLE):
            z, w = advance(problem, step, signals, part, count)
            finish(problem, signals, part, z, late)
            rest = ~(signals.gap[part] <= problem.tol)
            signals.z[part[rest]], signals.w[part[rest]] = z[rest], w[rest]

        team.share(work, _parts(left, team.cores))
        stage, done = stage + 1, done + count


def _parts(rows: np.ndarray, cores: int) -> list[np.ndarray]:
    """Rows in chunks of one size, as many for every core; none is empty."""
    return np.array_split(rows, min(len(rows), cores * -(-len(rows) // (cores * _CHUNK))))
