"""LASSO codes as good as learning needs them: a few steps of ADMM in float32, for many signals."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._matching import share
from unrolled.pursuit import lasso, lasso_batch

# Relative duality gap of a code. The atoms move by more from batch to batch, the objective is far
# nearer to its minimum than this, and a smaller gap does not lead to better atoms.
TOL = 5e-2
# Steps between two looks at the gap, and looks; what is left then goes to `lasso_batch`.
_STEPS, _LOOKS = 15, 10
_CHUNK = 256  # signals whose arrays stay in the cache of a core
_RELAXATION = np.float32(1.8)


def lasso_codes(D: np.ndarray, Y: np.ndarray, lam: float, V: np.ndarray | None) -> np.ndarray:
    r"""The codes of signals near 1 with unit atoms, each with a relative duality gap below `TOL`.

    .. math:: \min_x \tfrac12 (y - D x)' V (y - D x) + lam \|x\|_1.

    Args:
        D: (m, d).
        Y: (n, m).
        lam: penalty weight.
        V: (n, m), the diagonals of V; None for ones.

    Returns:
        X, (n, d).
    """
    if V is not None:
        root = np.sqrt(V)
        return np.asarray(_weighted(D, root * Y, root, np.asarray(lam, D.dtype)))
    stepper = _stepper(D)
    X, left = np.zeros((len(Y), D.shape[1]), np.float32), np.zeros(len(Y), bool)
    Y32, lam32 = Y.astype(np.float32), np.float32(lam)

    def work(part: slice) -> None:
        X[part], left[part] = _admm(stepper, Y32[part], lam32)

    share(work, len(Y), _CHUNK)
    X = X.astype(Y.dtype)
    if left.any():
        X[left] = lasso_batch(jnp.asarray(D), Y[left], lam, tol=TOL, start=X[left]).x
    return X


@jax.jit
def _weighted(D: jax.Array, Y: jax.Array, root: jax.Array, lam: jax.Array) -> jax.Array:
    return jax.vmap(lambda y, w: lasso(w[:, None] * D, y, lam, tol=TOL).x)(Y, root)


class _Stepper(NamedTuple):
    """ADMM with penalty 1: alpha x(q) = c + alpha q - q E'E, with c = y K."""

    D: np.ndarray  # (m, d)
    atoms: np.ndarray  # (d, m) D'
    K: np.ndarray  # (m, d)
    E: np.ndarray  # (m, d)
    turned: np.ndarray  # (d, m) E'


def _stepper(D: np.ndarray) -> _Stepper:
    D = D.astype(float)
    L = np.linalg.cholesky(D @ D.T + np.eye(len(D)))
    half = np.linalg.solve(L, D)
    E, K = np.sqrt(_RELAXATION) * half, _RELAXATION * np.linalg.solve(L.T, half)
    return _Stepper(*(np.ascontiguousarray(A, np.float32) for A in (D, D.T, K, E, E.T)))


def _admm(stepper: _Stepper, Y: np.ndarray, lam: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The codes, and which of them have too large a gap in the end."""
    c = Y @ stepper.K
    v, X = np.zeros_like(c), np.zeros_like(c)
    left = np.arange(len(Y))
    for _ in range(_LOOKS):
        v = _admm_steps(stepper, v, c[left], lam)
        x = v - np.clip(v, -lam, lam)
        X[left] = x
        far = _gap(stepper, Y[left], x, lam) > TOL
        left, v = left[far], v[far]
        if not len(left):
            break
    unsolved = np.zeros(len(Y), bool)
    unsolved[left] = True
    return X, unsolved


def _admm_steps(stepper: _Stepper, v: np.ndarray, c: np.ndarray, lam: np.float32) -> np.ndarray:
    """Steps of over-relaxed ADMM, as a map of v = alpha x + (1 - alpha) z + u.

    With u = clip(v) and q = v - 2 u, v <- alpha x(q) + (1 - alpha) q + (2 - alpha) u.
    """
    v = v.copy()
    u, q = np.empty_like(v), np.empty_like(v)
    for _ in range(_STEPS):
        np.clip(v, -lam, lam, out=u)
        np.subtract(v, u, out=q)
        q -= u
        np.matmul(q @ stepper.turned, stepper.E, out=v)
        np.subtract(q, v, out=v)
        u *= 2 - _RELAXATION
        v += u
        v += c
    return v


def _gap(stepper: _Stepper, Y: np.ndarray, x: np.ndarray, lam: np.float32) -> np.ndarray:
    """The duality gaps, relative to norm(y)^2 / 2."""
    r = Y - x @ stepper.atoms
    g = r @ stepper.D
    top = np.abs(g).max(1)
    s = np.where(top > lam, lam / np.where(top > lam, top, 1), 1)[:, None]
    unit = np.sum(Y * Y, 1) / 2
    # lam norm(x, 1) - s x'g and (1 - s)^2 norm(r)^2 / 2: both are non-negative.
    terms = lam * np.sum(np.abs(x), 1) - np.sum(x * (s * g), 1)
    gap = (1 - s[:, 0]) ** 2 * np.sum(r * r, 1) / 2 + terms
    return gap / np.where(unit > 0, unit, 1)
