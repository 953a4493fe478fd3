"""LFISTA (Moreau, Bruna 2017): FISTA whose matrices are learned, with memory of one step."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary, spread
from unrolled.layers._ista import lipschitz
from unrolled.layers._layer import Acting
from unrolled.layers._lista import ista_matrices
from unrolled.layers._options import option
from unrolled.layers._records import Matrix, Square, Theta, Unrolled, repeat
from unrolled.layers._shrinking import Shrinking


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


class lfista(Shrinking):
    r"""K steps x_{k+1} = shrink(B_k'y + S_k x_k + M_k x_{k-1}, theta_k).

    Params: steps (B, S, M, theta). `init` is FISTA without restart: S_k = (1 + m_k) (I - D'D / L),
    M_k = -m_k (I - D'D / L), B = D / L, theta = lam / L, with its momentum m_0 = 0,
    m_k = (t_{k-1} - 1) / t_k.

    Reference: Moreau, Bruna (2017), section 4.
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO at the start")

    forms = (Unrolled(None, MomentumMatrices),)

    def init(self, key, D):
        D, K = as_dictionary(D, self.family), self.depth
        L, t = lipschitz(D, self.family), [1.0]
        for _ in range(K):
            t.append((1 + np.sqrt(1 + 4 * t[-1] ** 2)) / 2)
        momentum = jnp.asarray([0.0, *((a - 1) / b for a, b in zip(t, t[1:]))][:K], D.dtype)
        B, S = repeat(ista_matrices(D, L), K)
        scaled, theta = momentum[:, None, None] * S, jnp.full(K, self.lam / L, D.dtype)
        return Unrolled(None, MomentumMatrices(B, S + scaled, -scaled, theta))

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return TwoCodes(zero, zero)

    def step(self, shared, p, D, y, state):
        u = y @ p.B + p.S @ state.x + p.M @ state.before
        return TwoCodes(self.shrink(u, spread(D, p.theta)), state.x)

    def weights(self, shared, p, D):
        return Acting(p.B, S=p.S + p.M)
