"""Ada-LISTA (Aberdam, Golts, Elad 2021): one network for many dictionaries."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from unrolled._base.checks import Array, Key
from unrolled._base.programs import program
from unrolled.dictionaries import Dictionary, dense, spread
from unrolled.layers._ista import StepAndThreshold
from unrolled.layers._layer import Acting, Recipe
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
    recipe = Recipe(rate=1e-3, calibrated=True)

    def at_ista(self, D, L, theta):
        identity = jnp.eye(D.shape[0], dtype=D.dtype)
        gamma = jnp.full(self.depth, 1 / L, D.dtype)
        return Unrolled(
            SignalMatrices(identity, identity), StepAndThreshold(gamma, gamma * self.lam)
        )

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        """With P = Q'Q = (D D')^-1, whose steps are those of ALISTA, for atoms of one leverage."""
        return _whitened(D, self.init(key, D))

    def step(self, shared, p, D, y, state):
        r = y @ shared.P - (shared.Q @ (D @ state.x)) @ shared.Q
        return State(self.shrink(state.x + p.gamma * (r @ D), spread(D, p.theta)))

    def weights(self, shared, p, D):
        A, gamma = dense(D), jnp.reshape(p.gamma, (-1, 1))
        S = jnp.eye(A.shape[1], dtype=A.dtype) - gamma * (A.T @ (shared.Q.T @ (shared.Q @ A)))
        return Acting(shared.P @ A, p.gamma, S)


@program()
def _whitened(D: Dictionary, params: Unrolled) -> Unrolled:
    m, d = D.shape
    with jax.default_matmul_precision("highest"):
        A = dense(D)
        values, vectors = jnp.linalg.eigh(A @ A.T)
        least = m * jnp.finfo(A.dtype).eps * values[-1]  # below it a value is rounding
        inverse = jnp.where(values > least, 1 / jnp.maximum(values, least), 0)
        P, Q = ((vectors * scale[None, :]) @ vectors.T for scale in (inverse, jnp.sqrt(inverse)))
    rank = jnp.sum(values > least, dtype=A.dtype)  # the trace of D'P D, which has unit weights
    gamma = jnp.full_like(params.steps.gamma, d / rank)
    return Unrolled(SignalMatrices(P, Q), params.steps._replace(gamma=gamma))
