"""LAMP with the Bernoulli-Gaussian estimator (Borgerding, Schniter, Rangan 2017): for codes whose
distribution is known.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary, column_norms
from unrolled.layers._lamp import Message
from unrolled.layers._lista import repeat
from unrolled.layers._tista import bernoulli_gaussian_mean, check_prior
from unrolled.layers._unroll import Layer, Unrolled, factory, make_layer


class Estimated(NamedTuple):
    """The state: the code, the residual that remembers the one before it, and how much of that to
    keep.
    """

    x: Array  # (d,)
    v: Array  # (m,)
    memory: Array  # ()


@factory
def lamp_bg(
    depth: int,
    *,
    probability: float = 0.1,
    variance: float = 1.0,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps of learned approximate message passing whose shrinkage is the best estimate of a
    Bernoulli-Gaussian code.

    .. math::
        v_k = y - D x_k + b_k v_{k-1}, \qquad \tau_k = \alpha_k \|v_k\|_2 / \sqrt m, \qquad u = x_k + W_k' v_k, \\
        x_{k+1} = \eta(u; \tau_k), \qquad b_{k+1} = \tfrac1m \sum_i \eta'(u_i; \tau_k), \qquad
        \eta(u; \tau) = E[x | x + \tau n = u].

    Params: steps (W, alpha), alpha used as abs(alpha). `init` is approximate message passing, W = D
    and alpha = 1 for unit atoms, the same in the units of D for others; the noise level is
    estimated from the residual.

    Args:
        probability, variance: of the nonzeros of the code.

    Reference: Borgerding, Schniter, Rangan (2017), the shrinkage eta_bg, whose prior they learn
    too; Donoho, Maleki, Montanari (2009) for the start. Not claimed: sparse codes, entries are
    small but not zero; convergence for other than Gaussian D.
    """
    check_prior(probability, variance, "lamp_bg")

    def init(key, D):
        D = as_dictionary(D, "lamp_bg")
        size = jnp.mean(column_norms(D) ** 2)
        return Unrolled(
            None, Message(repeat(D / size, depth), jnp.full(depth, 1 / jnp.sqrt(size), D.dtype))
        )

    def start(D, y):
        return Estimated(jnp.zeros(D.shape[1], y.dtype), jnp.zeros_like(y), jnp.zeros((), y.dtype))

    def step(shared, p, D, y, state):
        m = y.shape[0]
        v = y - D @ state.x + state.memory * state.v
        # Bounded below: at -100 dB nothing is left to estimate, and the odds stay finite.
        tau2 = jnp.maximum(
            p.alpha**2 * jnp.sum(v**2) / m, max(1e-10 * variance, float(jnp.finfo(y.dtype).tiny))
        )
        eta = partial(
            bernoulli_gaussian_mean, tau2=tau2, probability=probability, variance=variance
        )
        u = state.x + v @ p.W
        x, slope = jax.jvp(eta, (u,), (jnp.ones_like(u),))
        return Estimated(x, v, jnp.sum(slope) / m)

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("lamp_bg", depth, (((), Message._fields),), init, start, step, **options)
