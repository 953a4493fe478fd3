"""LISTA-CP (Chen, Liu, Wang, Yin 2018): LISTA with the coupling that convergence needs, S = I -
W'D.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.dictionaries import as_dictionary, spread
from unrolled.layers._ista import lipschitz, zero_state
from unrolled.layers._lista import Threshold, repeat
from unrolled.layers._support import select_or_shrink, support_schedule
from unrolled.layers._unroll import Layer, Unrolled, Weights, factory, make_layer
from unrolled.pursuit import State


class WeightsAndThreshold(NamedTuple):
    """One step of an untied LISTA-CP."""

    W: Any  # (m, d), plain or structured
    theta: Array  # (), (d,) or one per filter


FORMS = ((Weights._fields, Threshold._fields), ((), WeightsAndThreshold._fields))


@factory
def lista_cp(
    depth: int,
    *,
    tied: bool = True,
    support: tuple[float, float] | None = None,
    lam: float = 0.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps x <- shrink(x + W_k'(y - D x), theta_k): the iteration (23) of the paper, for k = 0,
    1, ...

    Params: tied, shared W and steps theta; untied, steps (W, theta). `apply` takes either form; W
    may be structured. `init` is ISTA: W = D / L, theta = lam / L. `analytic.lista_cp` sets W and
    theta from theory.

    Args:
        support: (rate, largest), support selection as in `alista`: with it this is LISTA-CPSS. The
            theorems are about the layer without.

    Reference: Li, Feng, Zhou (2024), (23), (33); Chen, Liu, Wang, Yin (2018), equation (15).
    """
    fractions = support_schedule(support, depth, "lista_cp")

    def init(key, D):
        D = as_dictionary(D, "lista_cp")
        L = lipschitz(D, "lista_cp")
        theta = jnp.full(depth, lam / L, D.dtype)
        if tied:
            return Unrolled(Weights(D / L), Threshold(theta))
        return Unrolled(None, WeightsAndThreshold(repeat(D / L, depth), theta))

    def step(shared, p, D, y, state, fraction=None):
        W = p.W if shared is None else shared.W
        return State(
            select_or_shrink(
                state.x + (y - D @ state.x) @ W, spread(D, p.theta), fraction, activation
            )
        )

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("lista_cp", depth, FORMS, init, zero_state, step, fractions, **options)


def lista_cpss(depth: int, *, support: tuple[float, float] = (0.012, 0.13), **options) -> Layer:
    """LISTA-CP with support selection: `lista_cp(depth, support=support, **options)` (Chen, Liu,
    Wang, Yin 2018).
    """
    return lista_cp(depth, support=support, **options)
