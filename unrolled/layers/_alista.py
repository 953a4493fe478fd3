"""ALISTA (Liu, Chen, Wang, Yin 2019): the weights come from theory, only step sizes and thresholds are learned."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from unrolled.activations import relu, select_support, shrink
from unrolled.dictionaries._base import as_dictionary, spread
from unrolled.layers._ista import StepAndThreshold, support_schedule, zero_state
from unrolled.layers._unroll import Fixed, Layer, Unrolled, factory, make_layer
from unrolled.pursuit._ista import State
from unrolled.theory._weights import frobenius_weights

FORMS = ((Fixed._fields, StepAndThreshold._fields),)


@factory
def alista(
    depth: int,
    *,
    theta: float = 0.1,
    support: tuple[float, float] | None = None,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps x <- shrink(x + gamma_k W'(y - D x), theta_k) with W fixed; 2 K numbers are learned.

    Params: shared W (never trained: no gradient passes, and `fit` leaves it alone), steps (gamma, theta). `init` takes the
    closed-form `frobenius_weights(D)`, gamma = 1 and the given `theta`.

    Args:
        support: (rate, largest): at step k = 1..K the largest min(k rate, largest) share of the entries pass
            unshrunk where they exceed theta (support selection). The benchmark uses about (0.012, 0.13).
    """
    fractions = support_schedule(support, depth, "alista")

    def init(key, D):
        D = as_dictionary(D, "alista")
        steps = StepAndThreshold(jnp.ones(depth, D.dtype), jnp.full(depth, theta, D.dtype))
        return Unrolled(Fixed(frobenius_weights(D)), steps)

    def step(shared, p, D, y, state, fraction=None):
        u = state.x + p.gamma * ((y - D @ state.x) @ lax.stop_gradient(shared.W))
        theta = spread(D, p.theta)
        if fraction is None:
            return State(shrink(u, theta, activation))
        return State(select_support(u, theta, fraction, activation))

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("alista", depth, FORMS, init, zero_state, step, fractions, **options)
