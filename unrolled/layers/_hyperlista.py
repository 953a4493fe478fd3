"""HyperLISTA (Chen, Liu, Wang, Yin 2021): three numbers for all steps, the rest is computed from
the signal in hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array
from unrolled.activations import relu, select_support
from unrolled.dictionaries import as_dictionary, dense
from unrolled.layers._unroll import Fixed, Layer, Unrolled, factory, magnitude, make_layer
from unrolled.theory import frobenius_weights, pseudo_inverse, weights_coherence


class Analytic(NamedTuple):
    """What theory gives: the closed-form weights, their coherence, and d_i . (D D')^+ d_i, so that
    D^+ r = leverage W'r.

    (For a `Conv`, whose weights are filters, the last is an approximation: norm(D^+ r, 1) only sets
    the scale of thresholds.)
    """

    W: Any  # (m, d)
    leverage: Array  # (d,)
    mu_W: Array  # ()


class Hyper(NamedTuple):
    """The params of HyperLISTA; training moves the three numbers alone."""

    analytic: Fixed  # of Analytic
    threshold: Array  # () c_1
    momentum: Array  # () c_2
    selection: Array  # () c_3


class Adaptive(NamedTuple):
    """The state: the code, the one before it, and norm(D^+ y, 1)."""

    x: Array  # (d,)
    before: Array  # (d,)
    initial: Array  # ()


def analytic_part(D) -> Fixed:
    """The fixed part of the params, from D alone."""
    W = frobenius_weights(D)
    with jax.default_matmul_precision("highest"):
        leverage = jnp.sum(pseudo_inverse(D).T * dense(D), axis=0)
        return Fixed(Analytic(W, leverage, weights_coherence(W, D).mu_W))


@factory
def hyperlista(
    depth: int,
    *,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps that set their own thresholds, momentum and support from the residual; three numbers
    are learned or tuned.

    .. math::
        \rho_k = \|D^+ (y - D x_k)\|_1, \qquad
        x_{k+1} = \eta(x_k + W'(y - D x_k) + \beta_k (x_k - x_{k-1}); \; \theta_k, p_k), \\
        \theta_k = c_1 \mu_W \rho_k, \qquad \beta_k = c_2 \mu_W \|x_k\|_0, \qquad p_k = c_3 \ln(\rho_0 / \rho_k) / d,

    where eta lets the largest share p_k of the entries, clipped to [0, 1], pass unshrunk
    (`select_support`).

    Params: shared (analytic, threshold = c_1, momentum = c_2, selection = c_3), no steps. `init`
    (and `analytic.hyperlista`) takes the closed-form weights and three numbers that suit
    Bernoulli(0.1) codes of a Gaussian 250 x 500 dictionary at depth 16; for others try
    `training.search`. c_3 carries no gradient: training moves the other two.

    Reference: Chen, Liu, Wang, Yin (2021), with unit step size and estimates by D^+ in place of the
    true code. Not claimed: a bound on the error.
    """

    def init(key, D):
        D = as_dictionary(D, "hyperlista")
        c_1, c_2, c_3 = (jnp.asarray(c, D.dtype) for c in (0.035, 0.015, 12.0))
        return Unrolled(Hyper(analytic_part(D), c_1, c_2, c_3), None)

    def start(D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return Adaptive(zero, zero, jnp.zeros((), y.dtype))

    def step(shared, p, D, y, state):
        W, leverage, mu_W = lax.stop_gradient(shared.analytic.W)
        x, d = state.x, D.shape[1]
        g = (y - D @ x) @ W
        rho = jnp.sum(jnp.abs(leverage * g))
        initial = jnp.where(state.initial > 0, state.initial, rho)
        beta = shared.momentum * mu_W * jnp.sum(x != 0, dtype=y.dtype)
        theta = magnitude(shared.threshold) * mu_W * rho
        tiny = jnp.finfo(y.dtype).tiny
        ratio = jnp.maximum(initial, tiny) / jnp.maximum(rho, tiny)
        fraction = lax.stop_gradient(jnp.clip(shared.selection * jnp.log(ratio) / d, 0, 1))
        return Adaptive(
            select_support(x + g + beta * (x - state.before), theta, fraction, activation),
            x,
            initial,
        )

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("hyperlista", depth, ((Hyper._fields, ()),), init, start, step, **options)
