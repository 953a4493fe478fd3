"""Ada-LISTA (Aberdam, Golts, Elad 2021): one network for many dictionaries."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.dictionaries import dense, spread
from unrolled.layers._ista import StepAndThreshold
from unrolled.layers._layer import Acting
from unrolled.layers._records import Shape, Unrolled
from unrolled.layers._shrinking import FromISTA, Shrinking
from unrolled.pursuit import State

OnSignals = Annotated[Array, Shape("m,m")]


class SignalMatrices(NamedTuple):
    """The matrices of Ada-LISTA, shared by all steps and all dictionaries."""

    P: OnSignals  # applied to y as P'y
    Q: OnSignals  # applied to D x as Q'Q


class ada_lista(FromISTA, Shrinking):
    r"""K steps x <- shrink(x + gamma_k D'(P'y - Q'Q D x), theta_k): D may differ between signals.

    Params: shared (P, Q), steps (gamma, theta). `init` is ISTA: P = Q = I, gamma = 1 / L,
    theta = lam / L. For signals with dictionaries of their own, map over both:
    `jax.vmap(layer.apply, (None, 0, 0))(params, Ds, Y)`, and let the sampler of `fit` return
    (Y, X, Ds).

    Reference: Aberdam, Golts, Elad (2021), equation (5); their W_1 and W_2 are our P and Q.

    Example:
        >>> layer, Ds = ur.layers.ada_lista(8), jnp.stack([jnp.eye(3), -jnp.eye(3)])
        >>> params = layer.init(None, Ds[0])
        >>> print(jax.vmap(layer.apply, (None, 0, 0))(params, Ds, jnp.eye(3)[:2]).round(2))
        [[ 0.9  0.   0. ]
         [ 0.  -0.9  0. ]]
    """

    forms = (Unrolled(SignalMatrices, StepAndThreshold),)

    def init(self, key, D):
        return self.start_at_ista(D)

    def at_ista(self, D, L, theta):
        identity = jnp.eye(D.shape[0], dtype=D.dtype)
        gamma = jnp.full(self.depth, 1 / L, D.dtype)
        return Unrolled(
            SignalMatrices(identity, identity), StepAndThreshold(gamma, gamma * self.lam)
        )

    def step(self, shared, p, D, y, state):
        r = y @ shared.P - (shared.Q @ (D @ state.x)) @ shared.Q
        return State(self.shrink(state.x + p.gamma * (r @ D), spread(D, p.theta)))

    def weights(self, shared, p, D):
        A, gamma = dense(D), jnp.reshape(p.gamma, (-1, 1))
        S = jnp.eye(A.shape[1], dtype=A.dtype) - gamma * (A.T @ (shared.Q.T @ (shared.Q @ A)))
        return Acting(shared.P @ A, p.gamma, S)
