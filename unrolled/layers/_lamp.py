"""LAMP (Borgerding, Schniter, Rangan 2017): LISTA with the Onsager correction of approximate
message passing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.activations import relu, shrink
from unrolled.dictionaries import as_dictionary, column_norms
from unrolled.layers._lista import repeat
from unrolled.layers._unroll import Layer, Unrolled, factory, magnitude, make_layer


class Message(NamedTuple):
    """One step of LAMP."""

    W: Any  # (m, d)
    alpha: Array  # () threshold per unit of the estimated noise level


class Corrected(NamedTuple):
    """The state: the code, and the residual that remembers the one before it."""

    x: Array  # (d,)
    v: Array  # (m,)


@factory
def lamp(
    depth: int,
    *,
    alpha: float = 1.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps of learned approximate message passing.

    .. math::
        v_k = y - D x_k + \frac{\|x_k\|_0}{m} v_{k-1}, \qquad
        x_{k+1} = \mathrm{shrink}(x_k + W_k' v_k, \; \alpha_k \|v_k\|_2 / \sqrt m).

    Params: steps (W, alpha), alpha used as abs(alpha). `init` is approximate message passing, W = D
    and the given `alpha` for unit atoms, the same in the units of D for others. The count norm(x,
    0) carries no gradient.

    Not claimed: convergence for other than Gaussian D; at the start the steps can diverge for a
    coherent one.

    Reference: Borgerding, Schniter, Rangan (2017), LAMP-l1.
    """

    def init(key, D):
        D = as_dictionary(D, "lamp")
        size = jnp.mean(column_norms(D) ** 2)
        return Unrolled(
            None, Message(repeat(D / size, depth), jnp.full(depth, alpha / jnp.sqrt(size), D.dtype))
        )

    def start(D, y):
        return Corrected(jnp.zeros(D.shape[1], y.dtype), jnp.zeros_like(y))

    def step(shared, p, D, y, state):
        m = y.shape[0]
        v = y - D @ state.x + jnp.sum(state.x != 0, dtype=y.dtype) / m * state.v
        theta = magnitude(p.alpha) * jnp.sqrt(jnp.sum(v**2) / m + jnp.finfo(y.dtype).tiny)
        return Corrected(shrink(state.x + v @ p.W, theta, activation), v)

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("lamp", depth, (((), Message._fields),), init, start, step, **options)
