"""Dictionaries that are hard for the linear programs, and HiGHS to solve these again."""

from functools import cache

import numpy as np
from scipy.optimize import linprog

from unrolled import dictionaries


def unit(D):
    return D / np.linalg.norm(D, axis=0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _ones(seed, m, d):
    A = (np.random.default_rng(seed).random((m, d)) < 0.2).astype(float)
    A[0, ~A.any(0)] = 1
    return unit(A)


def _bumps(n):
    t = np.linspace(0, 1, n)
    return unit(
        np.hstack([np.exp(-((t[:, None] - t) ** 2) / (2 * width**2)) for width in (0.03, 0.06)])
    )


def _with(*columns):
    """A Gaussian 8x14 dictionary and these columns, made from it."""
    G = normal(6, 8, 14)
    return unit(np.column_stack([G, *(column(G) for column in columns)]))


DICTIONARIES = {
    "gaussian 8x16": lambda: unit(normal(0, 8, 16)),
    "gaussian 5x20": lambda: unit(normal(0, 5, 20)),
    "gaussian 10x11": lambda: unit(normal(0, 10, 11)),
    "gaussian 3x30": lambda: unit(normal(0, 3, 30)),
    "gaussian 20x60": lambda: unit(normal(0, 20, 60)),
    "signs": lambda: unit(np.random.default_rng(1).choice([-1.0, 1.0], (10, 24))),
    "zeros and ones": lambda: _ones(2, 14, 28),
    "positive": lambda: unit(normal(3, 10, 20) + 4),
    "rank 6 of 12": lambda: unit(normal(4, 12, 6) @ normal(5, 6, 18)),
    "duplicate and antiparallel": lambda: _with(lambda G: G[:, 0], lambda G: -G[:, 1]),
    "near duplicate": lambda: _with(lambda G: G[:, 0] + 1e-6 * normal(7, 8)),
    "rows from 1e-6 to 1": lambda: unit(np.logspace(-6, 0, 10)[:, None] * normal(8, 10, 20)),
    "vandermonde": lambda: unit(np.vander(np.linspace(-1, 1, 24), 10).T),
    "bumps": lambda: _bumps(24),
    "dct 64x256": lambda: np.asarray(dictionaries.dct((8, 8), (16, 16))),
    "paley": lambda: np.asarray(dictionaries.paley(13)),
    "identity and hadamard": lambda: np.asarray(dictionaries.identity_hadamard(8)),
    "one independent atom": lambda: unit(
        np.block([[normal(6, 8, 14), np.zeros((8, 1))], [np.zeros(14), 1]])
    ),
    "square": lambda: unit(normal(9, 7, 7)),
    "tall": lambda: unit(normal(9, 9, 5)),
    "two atoms": lambda: unit(normal(1, 4, 2)),
    "one atom": lambda: unit(normal(1, 4, 1)),
    "one row": lambda: np.array([[1.0, -1.0, 1.0, 1.0]]),
    "one entry": lambda: np.ones((1, 1)),
}

# Equal or opposite atoms: solutions are sets.
WITH_TWINS = {"signs", "duplicate and antiparallel", "one row"}

# HiGHS keeps constraints to 1e-10, which moves its values by as much again times the size of w: up
# to 600 and 3e5 here.
HIGHS = {"vandermonde": 1e-6, "rows from 1e-6 to 1": 1e-6}


def agreement(name):
    """The relative accuracy of HiGHS on a dictionary."""
    return HIGHS.get(name, 1e-7)


@cache
def matrix(name):
    A = DICTIONARIES[name]()
    A.setflags(write=False)
    return A


def sampled(name, n=16):
    """At most n atoms of a dictionary: all of a small one, and always the first and the last."""
    d = matrix(name).shape[1]
    return np.unique(np.linspace(0, d - 1, min(n, d)).round().astype(int))


def _solve(cost, **program):
    options = dict(primal_feasibility_tolerance=1e-10, dual_feasibility_tolerance=1e-10)
    return linprog(cost, bounds=(None, None), options=options, **program)


def _both(rows, t):
    """+-rows . w <= t, or <= 0 with a column for t."""
    return np.hstack([np.vstack([rows, -rows]), np.full((2 * len(rows), 1), t)])


def least_coherence(A, i):
    """min max_j |w . a_j| : w . a_i = 1."""
    others = np.delete(A, i, axis=1).T
    if not len(others):
        return 0.0
    cost, own = np.append(np.zeros(len(A)), 1.0), np.append(A[:, i], 0.0)
    found = _solve(
        cost, A_ub=_both(others, -1), b_ub=np.zeros(2 * len(others)), A_eq=own[None], b_eq=[1.0]
    )
    assert found.status == 0
    return found.fun


def least_l1(A, y):
    """min norm(v, 1) : A v = y, and such a v; inf where there is none."""
    d = A.shape[1]
    if not d:
        return np.inf, None
    options = dict(primal_feasibility_tolerance=1e-10, dual_feasibility_tolerance=1e-10)
    found = linprog(np.ones(2 * d), A_eq=np.hstack([A, -A]), b_eq=y, options=options)
    return (found.fun, found.x[:d] - found.x[d:]) if found.status == 0 else (np.inf, None)


def least_coherence_by_duality(A, i):
    """1 / min norm(v, 1) : sum of v_j a_j over j != i is a_i."""
    return 1 / least_l1(np.delete(A, i, axis=1), A[:, i])[0]


def least_entry(A, i, level):
    """min max_k |w_k| : w . a_i = 1, |w . a_j| <= level; inf where there is none."""
    m, others = len(A), np.delete(A, i, axis=1).T
    rows, bound = (
        np.vstack([_both(others, 0), _both(np.eye(m), -1)]),
        np.zeros(2 * (len(others) + m)),
    )
    bound[: 2 * len(others)] = level
    cost, own = np.append(np.zeros(m), 1.0), np.append(A[:, i], 0.0)
    found = _solve(cost, A_ub=rows, b_ub=bound, A_eq=own[None], b_eq=[1.0])
    return found.fun if found.status == 0 else np.inf


class LazyProjection:
    """A uniformly random projection of rank m in d dimensions, drawn as far as it is asked.

    What is known of it is an orthonormal basis of vectors that it keeps or takes to 0. The part of
    a new vector outside of it, of length 1, has a projection whose squared length is
    Beta((m - k) / 2, (d - m - l) / 2), where k and l directions are known, and whose part across
    is uniformly random: Lu (2021), Householder dice.
    """

    def __init__(self, rng, m, d):
        self.rng, self.m, self.d = rng, m, d
        self.kept, self.lost = np.zeros((0, d)), np.zeros((0, d))

    def __call__(self, v):
        """The projection of v, (d,) -> (d,)."""
        known = self.kept.T @ (self.kept @ v)
        w = self._outside(v)
        length = np.linalg.norm(w)
        if length < 1e-12 * np.linalg.norm(v):
            return known
        w = w / length
        across = self._outside(self.rng.normal(size=self.d))
        across = across - w * (w @ across)
        across /= np.linalg.norm(across)
        a = (self.m - len(self.kept)) / 2, (self.d - self.m - len(self.lost)) / 2
        share = self.rng.beta(*a)
        fresh = share * w + np.sqrt(share * (1 - share)) * across
        self.kept, self.lost = self._with(self.kept, fresh), self._with(self.lost, w - fresh)
        return known + length * fresh

    def _outside(self, v):
        for _ in range(2):  # once more for what rounding leaves
            v = v - self.kept.T @ (self.kept @ v) - self.lost.T @ (self.lost @ v)
        return v

    @staticmethod
    def _with(basis, v):
        return np.vstack([basis, v / np.linalg.norm(v)])
