"""Codes from guesses of their supports and signs, each the solution of a small linear system."""

import numpy as np

from unrolled.pursuit._batch_state import Problem, Signals, keep
from unrolled.pursuit._line import least_between

# Guesses of the support at the end of a stage, each from the solution of the last; and of stages in
# float64, where they are the steps of an active set method.
_GUESSES, _PIVOTS = 2, 50
# Signals whose linear systems are padded to one size.
_SYSTEMS = 64


def finish(
    problem: Problem, signals: Signals, part: np.ndarray, z: np.ndarray, late: bool = False
) -> None:
    """Keep the best codes: z, or those solved on its support and on better guesses that follow.

    A guess adds all atoms whose constraint is violated. Late, they begin at the best code, and add
    the one that is violated most once the code is nearly optimal on its support, so that the
    objective falls with each.
    """
    rows, x = np.arange(len(part)), z.astype(np.float64)
    if late:
        keep(problem, signals, part, x)
        rows = np.flatnonzero(~(signals.gap[part] <= problem.tol))
        x = signals.x[part[rows]]
    signs = np.sign(x)
    most = problem.D.shape[1] if problem.l2 > 0 or late else min(problem.D.shape)
    for _ in range(_PIVOTS if late else _GUESSES):
        small = np.count_nonzero(signs, axis=1) <= most
        if not small.all():
            rows, x, signs = rows[small], x[small], signs[small]
        if not len(rows):
            break
        _solve_on_supports(problem, signals, part[rows], x, signs)
        if problem.nonnegative:
            np.maximum(x, 0, out=x)
        gap, g = keep(problem, signals, part[rows], x)
        left = ~(gap <= problem.tol)
        rows, x, g = rows[left], x[left], g[left]
        excess = (g if problem.nonnegative else np.abs(g)) - signals.lam[part[rows]]
        violated = (x == 0) & (excess > 0)
        if late:
            inside = np.where(x != 0, np.abs(g - signals.lam[part[rows]] * np.sign(x)), 0)
            outside = np.where(violated, excess, 0).max(1, keepdims=True)
            violated &= (excess == outside) & (outside > 2 * inside.max(1, keepdims=True))
        signs = np.where(violated, np.sign(g), np.sign(x))
    rest = np.flatnonzero(signals.gap[part] > problem.tol)
    if len(rest) and not late:
        keep(problem, signals, part[rest], z[rest].astype(np.float64))


def _solve_on_supports(
    problem: Problem, signals: Signals, part: np.ndarray, x: np.ndarray, signs: np.ndarray
) -> None:
    """Move the codes x, in place, towards the minimisers with these signs on their supports."""
    d, on = x.shape[1], signs != 0
    sizes = np.count_nonzero(on, axis=1)
    by_size = np.argsort(sizes)
    for rows in np.array_split(by_size, -(-len(part) // _SYSTEMS)):
        k, n = int(sizes[rows[-1]]), len(rows)
        i, atom = np.nonzero(on[rows])
        slot = np.arange(len(i)) - np.repeat(np.cumsum(sizes[rows]) - sizes[rows], sizes[rows])
        atoms = np.full((n, k), d)  # where the Gram matrix has zeros
        atoms[i, slot] = atom
        A = problem.gram[atoms[:, :, None], atoms[:, None, :]]
        diagonal = np.einsum("ijj->ij", A)  # a view
        diagonal += problem.l2
        own, s, p, lam, b = rows[i], *np.zeros((4, n, k))
        s[i, slot], p[i, slot] = signs[own, atom], x[own, atom]
        weight = signals.lam[part[own]]
        lam[i, slot] = weight[:, 0] if weight.shape[1] == 1 else weight[np.arange(len(i)), atom]
        b[i, slot] = signals.products[part[own], atom]
        b -= lam * s
        slope = b[..., None] - A @ p[..., None]
        diagonal += np.where(atoms < d, problem.ridge, 1)
        try:
            change = np.linalg.solve(A, slope)[..., 0]
        except np.linalg.LinAlgError:  # these codes stay where they are
            continue
        to = p + change
        turns = (to * s < 0).any(1)  # an entry changes its sign on the way
        if turns.any():
            way = (v[turns] for v in (p, change, slope[..., 0], lam, s))
            to[turns] = least_between(np, *way)
        x[own, atom] = to[i, slot]
