"""LAMP (Borgerding, Schniter, Rangan 2017): LISTA with the Onsager correction."""

import math
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array, Key
from unrolled._numbers import exponent, norm, power_of_two, times_power
from unrolled._program import program
from unrolled.activations import relu
from unrolled.dictionaries import Dictionary, as_dictionary, column_norms
from unrolled.layers._layer import Acting, Recipe
from unrolled.layers._records import RELATIVE, Matrix, Shape, Unrolled, magnitude, repeat
from unrolled.layers._shrinking import Shrinking
from unrolled.records import option
from unrolled.theory import MessagePassing

# Multiples of stable weights where message passing diverges, as for ill-conditioned or coherent D.
DAMPED = (1.0, 2.0, 2.6)


class Message(NamedTuple):
    """One step of LAMP."""

    W: Matrix
    alpha: Annotated[Array, Shape("", "d", role=RELATIVE)]  # per unit of the noise level


class Corrected(NamedTuple):
    """The state: the code, and the residual with the Onsager correction."""

    x: Array  # (d,)
    v: Array  # (m,)


def message_passing(D: Dictionary, alpha: float, depth: int, where: str) -> Unrolled:
    """W = D and alpha for unit atoms; for atoms of another size the same in their units."""
    norms = column_norms(D)
    nonzero(norms, where)
    return _message_passing(D, norms, alpha, depth)


@program("depth")
def _message_passing(D: Dictionary, norms: Array, alpha: float, depth: int) -> Unrolled:
    k = exponent(norms)
    size = jnp.mean(times_power(norms, -k) ** 2)  # the mean square of the norms, over 2^(2 k)
    alphas = jnp.full(depth, times_power(alpha / jnp.sqrt(size), -k), D.dtype)
    scale = power_of_two(-k, D.dtype)
    return Unrolled(None, Message(repeat(D * scale / size * scale, depth), alphas))


def nonzero(norms: Array, where: str) -> None:
    """Raise ValueError if all atoms of a known D are zero."""
    if _checks.is_concrete(norms) and not (np.asarray(norms) > 0).any():
        raise ValueError(f"{where}: D is zero; expected a dictionary with atoms")


class lamp(Shrinking):
    r"""K steps of learned approximate message passing.

    .. math::
        v_k = y - D x_k + \frac{\|x_k\|_0}{m} v_{k-1}, \qquad
        x_{k+1} = \mathrm{shrink}(x_k + W_k' v_k, \; \alpha_k \|v_k\|_2 / \sqrt m).

    Params: steps (W, alpha), of which the magnitude of alpha counts. `init` is approximate message
    passing: W = D and the given `alpha` for unit atoms, the same in the units of D for others. The
    count norm(x, 0) carries no gradient.

    It knows no lam, and a signal c y has c times the code of y, as no LASSO with a fixed lam has
    it: in that objective the start can be above ISTA at the same depth.

    Reference: Borgerding, Schniter, Rangan (2017), LAMP-l1. Not claimed: convergence for other than
    Gaussian D; for a coherent one the start can diverge.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.lamp(8), 2 * D[:, 3] - D[:, 7]
        >>> jnp.flatnonzero(jnp.abs(layer.apply(layer.init(None, D), D, y)) > 0.1).tolist()
        [3, 7]
    """

    alpha: float = option(
        default=1.1, least=0, help="threshold at the start, per unit of the estimated noise level"
    )

    forms = (Unrolled(None, Message),)
    recipe = Recipe(rate=1e-4, damped=DAMPED)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        return message_passing(as_dictionary(D, self.family), self.alpha, self.depth, self.family)

    def start(self, D, y):
        return Corrected(jnp.zeros(D.shape[1], y.dtype), jnp.zeros_like(y))

    def step(self, shared, p, D, y, state):
        m = y.shape[0]
        v = y - D @ state.x + jnp.sum(state.x != 0, dtype=y.dtype) / m * state.v
        theta = magnitude(p.alpha) * (norm(v) / math.sqrt(m))
        return Corrected(self.shrink(state.x + v @ p.W, theta), v)

    def weights(self, shared, p, D):
        return Acting(p.W)

    def message_passing(self):
        return MessagePassing("amp", "soft", "alpha") if self.activation == relu else None
