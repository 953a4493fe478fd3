"""LFISTA (Moreau, Bruna 2017): FISTA with learned matrices and a memory of one step."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled._checks import Array, Key
from unrolled.dictionaries import Dictionary, spread
from unrolled.layers._layer import Acting, Recipe
from unrolled.layers._lista import announce_squares, coupled_matrices, ista_matrices
from unrolled.layers._records import Matrix, Square, Theta, Unrolled, repeat
from unrolled.layers._shrinking import FromISTA, Shrinking


class MomentumMatrices(NamedTuple):
    """One step of LFISTA."""

    B: Matrix  # applied to y as B'y
    S: Square  # applied to x
    M: Square  # applied to the code before x
    theta: Theta


class TwoCodes(NamedTuple):
    """The state: the code and the one before it."""

    x: Array  # (d,)
    before: Array  # (d,)


def fista_momentum(depth: int) -> list[float]:
    """m_0 = 0 and m_k = (t_{k-1} - 1) / t_k, with t_k = (1 + sqrt(1 + 4 t_{k-1}^2)) / 2."""
    t = [1.0]
    for _ in range(depth):
        t.append((1 + np.sqrt(1 + 4 * t[-1] ** 2)) / 2)
    return [0.0, *((a - 1) / b for a, b in zip(t, t[1:]))][:depth]


class lfista(FromISTA, Shrinking):
    r"""K steps x_{k+1} = shrink(B_k'y + S_k x_k + M_k x_{k-1}, theta_k).

    Params: steps (B, S, M, theta). `init` is FISTA without restart: B = D / L, theta = lam / L,
    S_k = (1 + m_k) (I - D'D / L) and M_k = -m_k (I - D'D / L), with its momentum m_0 = 0,
    m_k = (t_{k-1} - 1) / t_k.

    Reference: Moreau, Bruna (2017), section 4.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> ours, fista = (
        ...     layer.apply(layer.init(None, D), D, D[:, 1])
        ...     for layer in (ur.layers.lfista(3), ur.layers.fista(3))
        ... )
        >>> bool(jnp.allclose(ours, fista, atol=1e-5))
        True
    """

    forms = (Unrolled(None, MomentumMatrices),)

    recipe = Recipe(rate=1e-4, calibrated=True, weighted=True)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        announce_squares(D, self.depth, self.family)
        return self.start_at_ista(D)

    def at_ista(self, D, L, theta):
        momentum = jnp.asarray(fista_momentum(self.depth), D.dtype)
        B, S = ista_matrices(D, L, self.depth)
        scaled = momentum[:, None, None] * S
        return Unrolled(None, MomentumMatrices(B, S + scaled, -scaled, theta))

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        B, S = repeat(coupled_matrices(W, D), self.depth)
        steps = MomentumMatrices(B, S, jnp.zeros_like(S), self.init(key, D).steps.theta)
        return Unrolled(None, steps)

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return TwoCodes(zero, zero)

    def step(self, shared, p, D, y, state):
        u = y @ p.B + p.S @ state.x + p.M @ state.before
        return TwoCodes(self.shrink(u, spread(D, p.theta)), state.x)

    def weights(self, shared, p, D):
        return Acting(p.B, S=p.S + p.M)
