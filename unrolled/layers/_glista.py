"""Gated LISTA (Wu, Guo, Li, Zhang 2020): gains for small entries, overshoot for short steps."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from unrolled._checks import Array, Key
from unrolled.dictionaries import Dictionary, spread
from unrolled.layers._layer import Acting, Recipe, selecting
from unrolled.layers._records import Matrix, Shape, Theta, Unrolled, repeat
from unrolled.layers._shrinking import FromISTA, Selecting
from unrolled.records import option

Gate = Annotated[Array, Shape("", "d")]

# As in the published code: the overshoot stays finite where an entry does not move.
_SOFTENING = 0.1


class Gated(NamedTuple):
    """One step of GLISTA."""

    W: Matrix
    theta: Theta
    gain: Gate  # how much small entries are amplified
    slope: Gate  # how fast that fades with the magnitude of an entry
    overshoot: Gate  # how far a step goes beyond its end


class Gates(NamedTuple):
    """The state: the code, and the threshold by which each of its entries was shrunk last."""

    x: Array  # (d,)
    shrunk_by: Array  # (d,)


class glista(FromISTA, Selecting):
    r"""K steps of LISTA-CP, each from an amplified code and carried a little beyond its end.

    .. math::
        u &= g \odot x, \qquad g = 1 + a_k \, relu(1 - relu(b_k |x|)), \\
        \tilde x &= \mathrm{shrink}(u + W_k'(y - D u), \theta_k), \\
        x &\leftarrow x + o \odot (\tilde x - x), \qquad o = 1 + c_k \tau / (|\tilde x - x| + 0.1),

    where tau is the threshold by which the step before shrank the entry, 0 if it passed unshrunk.

    Params: steps (W, theta, gain = a, slope = b, overshoot = c). `init` is ISTA with slope 1,
    overshoot 0 and the given `gain`. With gain = overshoot = 0 a step is that of `lista_cp`.

    Reference: Wu, Guo, Li, Zhang (2020), with the ReLU gain. Their code starts at gain 5 and writes
    the overshoot with the opposite sign.

    Example:
        >>> layer, D = ur.layers.glista(3, gain=0.5), ur.dictionaries.identity_hadamard(4)
        >>> params = layer.init(None, D)
        >>> params.steps.gain.tolist(), layer.apply(params, D, D[:, 1]).shape
        ([0.5, 0.5, 0.5], (8,))
    """

    gain: float = option(default=0.0, least=0, help="gain of the gate at the start")

    forms = (Unrolled(None, Gated),)
    recipe = Recipe(rate=5e-4, options=selecting, calibrated=True, weighted=True)

    def at_ista(self, D, L, theta):
        gain, overshoot = jnp.full_like(theta, self.gain), jnp.zeros_like(theta)
        slope = jnp.ones((self.depth, D.shape[1]), D.dtype)
        return Unrolled(None, Gated(repeat(D / L, self.depth), theta, gain, slope, overshoot))

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        start = self.init(key, D)
        return start._replace(steps=start.steps._replace(W=repeat(W, self.depth)))

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return Gates(zero, zero)

    def step(self, shared, p, D, y, state, fraction=None):
        x, theta = state.x, spread(D, p.theta)
        u = x * (1 + p.gain * jax.nn.relu(1 - jax.nn.relu(p.slope * jnp.abs(x))))
        v = u + (y - D @ u) @ p.W
        end = self.shrink(v, theta, fraction)
        o = 1 + p.overshoot * state.shrunk_by / (jnp.abs(end - x) + _SOFTENING)
        return Gates(x + o * (end - x), jnp.where(end == v, 0, theta))

    def weights(self, shared, p, D):
        return Acting(p.W)
