"""Gated LISTA (Wu, Guo, Li, Zhang 2020): gains where magnitudes are too small, overshoot where
steps are too short.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.dictionaries import as_dictionary, spread
from unrolled.layers._ista import lipschitz
from unrolled.layers._lista import repeat
from unrolled.layers._support import select_or_shrink, support_schedule
from unrolled.layers._unroll import Layer, Unrolled, factory, make_layer


class Gated(NamedTuple):
    """One step of GLISTA."""

    W: Any  # (m, d)
    theta: Array  # (), (d,) or one per filter
    gain: Array  # () how much small entries are amplified
    slope: Array  # (d,) how fast that fades with the magnitude of an entry
    overshoot: Array  # () how far a step goes beyond its end


class Gates(NamedTuple):
    """The state: the code, and the threshold by which each of its entries was shrunk in the step
    before.
    """

    x: Array  # (d,)
    shrunk_by: Array  # (d,)


# As in the published code: keeps the overshoot finite where an entry does not move.
_SOFTENING = 0.1


@factory
def glista(
    depth: int,
    *,
    support: tuple[float, float] | None = None,
    lam: float = 0.1,
    gain: float = 0.0,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps of LISTA-CP from an amplified code, each carried a little beyond its end.

    .. math::
        u &= g \odot x, \qquad g = 1 + a_k \, relu(1 - relu(b_k |x|)), \\
        \tilde x &= \mathrm{shrink}(u + W_k'(y - D u), \theta_k), \\
        x &\leftarrow x + o \odot (\tilde x - x), \qquad o = 1 + c_k \tau / (|\tilde x - x| + 0.1),

    with tau the threshold by which the entry was shrunk in the step before, 0 where it passed
    unshrunk.

    Params: steps (W, theta, gain = a, slope = b, overshoot = c). `init` is ISTA with slope 1,
    overshoot 0 and the given `gain` (the published code starts at 5); with gain = overshoot = 0 a
    step is that of `lista_cp`.

    Args:
        support: (rate, largest), support selection as in `alista`.

    Reference: Wu, Guo, Li, Zhang (2020), with the ReLU gain. Their code writes the overshoot with
    the opposite sign.
    """
    fractions = support_schedule(support, depth, "glista")

    def init(key, D):
        D = as_dictionary(D, "glista")
        L, d = lipschitz(D, "glista"), D.shape[1]
        theta, slope = jnp.full(depth, lam / L, D.dtype), jnp.ones((depth, d), D.dtype)
        return Unrolled(
            None,
            Gated(
                repeat(D / L, depth),
                theta,
                jnp.full(depth, gain, D.dtype),
                slope,
                jnp.zeros(depth, D.dtype),
            ),
        )

    def start(D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return Gates(zero, zero)

    def step(shared, p, D, y, state, fraction=None):
        x, theta = state.x, spread(D, p.theta)
        u = x * (1 + p.gain * jax.nn.relu(1 - jax.nn.relu(p.slope * jnp.abs(x))))
        v = u + (y - D @ u) @ p.W
        end = select_or_shrink(v, theta, fraction, activation)
        o = 1 + p.overshoot * state.shrunk_by / (jnp.abs(end - x) + _SOFTENING)
        return Gates(x + o * (end - x), jnp.where(end == v, 0, theta))

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer(
        "glista", depth, (((), Gated._fields),), init, start, step, fractions, **options
    )
