"""Over-relaxed ADMM for many signals in one dictionary, with few products and in place."""

import math
from typing import NamedTuple

import numpy as np

from unrolled._interior_point import lapack
from unrolled.pursuit._batch_state import Problem, Signals

_RELAXATION = 1.8  # over-relaxation


class Stepper(NamedTuple):
    """ADMM with one penalty: x = argmin of the smooth part + rho/2 norm(x - q)^2, relaxed."""

    rho: float
    share: float  # alpha rho / (rho + l2), the factor of q in alpha x
    K: np.ndarray  # (m, d) y -> its part in alpha x
    E: np.ndarray  # (d, d) the whole linear map of q, or (r, d) with alpha x = share q - E'E q


class Steppers:
    """The steppers of a dictionary, made as they are asked for."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.size = float(np.trace(problem.gram)) / problem.D.shape[1]
        self.made: dict[tuple, Stepper] = {}

    def __call__(self, rho: float, dtype: type) -> Stepper:
        if (rho, dtype) not in self.made:
            self.made[rho, dtype] = self._make(rho * self.size, dtype)
        return self.made[rho, dtype]

    def _make(self, rho: float, dtype: type) -> Stepper:
        D: np.ndarray = self.problem.D.astype(dtype)
        damped = rho + self.problem.l2
        m, d = D.shape
        share = _RELAXATION * rho / damped
        if d < 2 * m:  # one product with a square matrix, else two thin ones
            gram: np.ndarray = self.problem.gram[:d, :d].astype(dtype)
            half = _inverse_factor(gram + damped * np.eye(d, dtype=dtype))
            inverse = half @ half.T
            E = share * damped * inverse + (1 - _RELAXATION) * np.eye(d, dtype=dtype)
            K = _RELAXATION * D @ inverse
        else:
            half = _inverse_factor(D @ D.T + damped * np.eye(m, dtype=dtype))
            E = math.sqrt(share) * (half.T @ D)
            K = _RELAXATION / math.sqrt(share) * (half @ E)
        return Stepper(rho, share, K, E)


def advance(
    problem: Problem, stepper: Stepper, signals: Signals, part: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""z and w of some signals after `count` more steps of over-relaxed ADMM.

    With v = alpha x + (1 - alpha) z + u, z = shrink(v, lam / rho) and the next u = v - z, a step is
    a map of q = z - u = v - 2 u: v <- alpha x(q) + (1 - alpha) q + (2 - alpha) u.
    """
    rho, share, K, E = stepper
    dtype = K.dtype
    lam = signals.lam[part].astype(dtype) / dtype.type(rho)
    low = dtype.type(-np.inf) if problem.nonnegative else -lam
    u = signals.w[part].astype(dtype) / dtype.type(rho)
    v = signals.z[part].astype(dtype) + u
    c = signals.Y[part].astype(dtype) @ K
    q, half = np.empty_like(v), np.empty((len(v), len(E)), dtype)
    square = len(E) == E.shape[1]
    beyond, kept = dtype.type(2 - _RELAXATION), dtype.type(share + 1 - _RELAXATION)
    for step in range(count):
        if step:
            np.minimum(v, lam, out=u)
            np.maximum(u, low, out=u)
        np.subtract(v, u, out=q)
        q -= u
        if step == 0 and not q.any():  # a start at 0: so is the product
            v[:] = 0
        elif square:
            np.matmul(q, E, out=v)
        else:
            np.matmul(np.matmul(q, E.T, out=half), E, out=v)
            q *= kept
            np.subtract(q, v, out=v)
        u *= beyond
        v += u
        v += c
    np.minimum(v, lam, out=u)
    np.maximum(u, low, out=u)
    signals.steps[part] += count
    return v - u, u * dtype.type(rho)


def _inverse_factor(A: np.ndarray) -> np.ndarray:
    """The upper triangular H with H H' the inverse of a positive definite A = U'U."""
    factor, invert = (
        (lapack().spotrf, lapack().strtri)
        if A.dtype == np.float32
        else (lapack().dpotrf, lapack().dtrtri)
    )
    return invert(factor(A)[0])[0]
