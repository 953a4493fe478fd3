"""ALISTA (Liu, Chen, Wang, Yin 2019): the weights come from theory; and its variants with learned
or recomputed weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.dictionaries import as_dictionary, spread
from unrolled.layers._ista import StepAndThreshold, lipschitz, zero_state
from unrolled.layers._support import select_or_shrink, support_schedule
from unrolled.layers._unroll import Fixed, Layer, Unrolled, Weights, factory, make_layer
from unrolled.pursuit import State
from unrolled.theory import frobenius_weights

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

    Params: shared W (never trained: no gradient passes, and `fit` leaves it alone), steps (gamma,
    theta). `init` takes the closed-form `frobenius_weights(D)`, gamma = 1 and the given `theta`.

    Args:
        support: (rate, largest): at step k = 1..K the largest min(k rate, largest) share of the
            entries pass unshrunk where they exceed theta (support selection). The benchmark uses
            about (0.012, 0.13).
    """
    fractions = support_schedule(support, depth, "alista")

    def init(key, D):
        D = as_dictionary(D, "alista")
        steps = StepAndThreshold(jnp.ones(depth, D.dtype), jnp.full(depth, theta, D.dtype))
        return Unrolled(Fixed(frobenius_weights(D)), steps)

    def step(shared, p, D, y, state, fraction=None):
        u = state.x + p.gamma * ((y - D @ state.x) @ lax.stop_gradient(shared.W))
        return State(select_or_shrink(u, spread(D, p.theta), fraction, activation))

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("alista", depth, FORMS, init, zero_state, step, fractions, **options)


@factory
def tilista(
    depth: int,
    *,
    support: tuple[float, float] | None = None,
    lam: float = 0.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps x <- shrink(x + gamma_k W'(y - D x), theta_k) with one trained W: ALISTA whose
    weights are learned, TiLISTA.

    Params: shared W, steps (gamma, theta): m d + 2 K numbers. `init` is ISTA: W = D / L, gamma = 1,
    theta = lam / L. Params of `alista` become its own with `Unrolled(Weights(params.shared.W),
    params.steps)`.

    Args:
        support: (rate, largest), support selection as in `alista`.

    Reference: Liu, Chen, Wang, Yin (2019), equation (15).
    """
    fractions = support_schedule(support, depth, "tilista")

    def init(key, D):
        D = as_dictionary(D, "tilista")
        L = lipschitz(D, "tilista")
        steps = StepAndThreshold(jnp.ones(depth, D.dtype), jnp.full(depth, lam / L, D.dtype))
        return Unrolled(Weights(D / L), steps)

    def step(shared, p, D, y, state, fraction=None):
        u = state.x + p.gamma * ((y - D @ state.x) @ shared.W)
        return State(select_or_shrink(u, spread(D, p.theta), fraction, activation))

    forms = ((Weights._fields, StepAndThreshold._fields),)
    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("tilista", depth, forms, init, zero_state, step, fractions, **options)


class WithWeights(NamedTuple):
    """The state: the code, and the weights of the dictionary in use."""

    x: Array  # (d,)
    W: Any  # (m, d)


@factory
def robust_alista(
    depth: int,
    *,
    theta: float = 0.1,
    support: tuple[float, float] | None = None,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""ALISTA with W(D) computed afresh for the D of each call: K steps x <- shrink(x + gamma_k
    W(D)'(y - D x), theta_k).

    Params: steps (gamma, theta), none shared; `init` as in `alista`. W is the closed form
    `frobenius_weights(D)`, one pseudo-inverse a dictionary (codes of a traced D with a zero atom
    are nan), and gradients pass through it to D. For dictionaries that are perturbed from signal to
    signal map over both, `jax.vmap(layer.apply, (None, 0, 0))(params, Ds, Y)`, and let the sampler
    of `fit` return (Y, X, Ds).

    Args:
        support: (rate, largest), support selection as in `alista`.

    Reference: Liu, Chen, Wang, Yin (2019), section 4, where a network of four layers approximates
    W(D).
    """
    fractions = support_schedule(support, depth, "robust_alista")

    def init(key, D):
        D = as_dictionary(D, "robust_alista")
        return Unrolled(
            None, StepAndThreshold(jnp.ones(depth, D.dtype), jnp.full(depth, theta, D.dtype))
        )

    def start(D, y):
        return WithWeights(jnp.zeros(D.shape[1], y.dtype), frobenius_weights(D))

    def step(shared, p, D, y, state, fraction=None):
        u = state.x + p.gamma * ((y - D @ state.x) @ state.W)
        return state._replace(x=select_or_shrink(u, spread(D, p.theta), fraction, activation))

    options = dict(precision=precision, unroll=unroll, remat=remat)
    forms = (((), StepAndThreshold._fields),)
    return make_layer("robust_alista", depth, forms, init, start, step, fractions, **options)
