"""LFISTA (Moreau, Bruna 2017): FISTA whose matrices are learned, with memory of one step."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled._checks import Array
from unrolled.activations import relu, shrink
from unrolled.dictionaries import as_dictionary, spread
from unrolled.layers._ista import lipschitz
from unrolled.layers._lista import ista_matrices, repeat
from unrolled.layers._unroll import Layer, Unrolled, factory, make_layer


class MomentumMatrices(NamedTuple):
    """One step of LFISTA."""

    B: Array  # (m, d), applied to y as B'y
    S: Array  # (d, d), applied to x
    M: Array  # (d, d), applied to the code before x
    theta: Array  # (), (d,) or one per filter


class TwoCodes(NamedTuple):
    """The state: the code and the one before it."""

    x: Array  # (d,)
    before: Array  # (d,)


@factory
def lfista(
    depth: int,
    *,
    lam: float = 0.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps x_{k+1} = shrink(B_k'y + S_k x_k + M_k x_{k-1}, theta_k).

    Params: steps (B, S, M, theta). `init` is FISTA without restart: S_k = (1 + m_k) (I - D'D / L),
    M_k = -m_k (I - D'D / L), B = D / L, theta = lam / L, with its momentum m_0 = 0, m_k = (t_{k-1}
    - 1) / t_k.

    Reference: Moreau, Bruna (2017), section 4.
    """

    def init(key, D):
        D = as_dictionary(D, "lfista")
        L, t = lipschitz(D, "lfista"), [1.0]
        for _ in range(depth):
            t.append((1 + np.sqrt(1 + 4 * t[-1] ** 2)) / 2)
        momentum = jnp.asarray([0.0, *((a - 1) / b for a, b in zip(t, t[1:]))][:depth], D.dtype)
        B, S = repeat(ista_matrices(D, L), depth)
        scaled = momentum[:, None, None] * S
        return Unrolled(
            None, MomentumMatrices(B, S + scaled, -scaled, jnp.full(depth, lam / L, D.dtype))
        )

    def start(D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return TwoCodes(zero, zero)

    def step(shared, p, D, y, state):
        u = y @ p.B + p.S @ state.x + p.M @ state.before
        return TwoCodes(shrink(u, spread(D, p.theta), activation), state.x)

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer(
        "lfista", depth, (((), MomentumMatrices._fields),), init, start, step, **options
    )
