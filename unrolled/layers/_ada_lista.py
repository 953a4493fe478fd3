"""Ada-LISTA (Aberdam, Golts, Elad 2021): the learned matrices act on signals, so one network serves
many dictionaries.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.activations import relu, shrink
from unrolled.dictionaries import as_dictionary, spread
from unrolled.layers._ista import StepAndThreshold, ista_params, zero_state
from unrolled.layers._unroll import Layer, Unrolled, factory, make_layer
from unrolled.pursuit import State


class SignalMatrices(NamedTuple):
    """The matrices of Ada-LISTA, shared by all steps and all dictionaries."""

    P: Array  # (m, m), applied to y as P'y
    Q: Array  # (m, m), applied to D x as Q'Q


@factory
def ada_lista(
    depth: int,
    *,
    lam: float = 0.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps x <- shrink(x + gamma_k D'(P'y - Q'Q D x), theta_k): D may differ from signal to
    signal.

    Params: shared (P, Q), steps (gamma, theta). `init` is ISTA: P = Q = I, gamma = 1 / L, theta =
    lam / L. For signals with dictionaries of their own map over both, `jax.vmap(layer.apply, (None,
    0, 0))(params, Ds, Y)`, and let the sampler of `fit` return (Y, X, Ds).

    Reference: Aberdam, Golts, Elad (2021), equation (5); their W_1 and W_2 are our P and Q.
    """

    def init(key, D):
        D = as_dictionary(D, "ada_lista")
        identity = jnp.eye(D.shape[0], dtype=D.dtype)
        return Unrolled(SignalMatrices(identity, identity), ista_params(D, lam, depth).steps)

    def step(shared, p, D, y, state):
        r = y @ shared.P - (shared.Q @ (D @ state.x)) @ shared.Q
        return State(shrink(state.x + p.gamma * (r @ D), spread(D, p.theta), activation))

    forms = ((SignalMatrices._fields, StepAndThreshold._fields),)
    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("ada_lista", depth, forms, init, zero_state, step, **options)
