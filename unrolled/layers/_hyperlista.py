"""HyperLISTA (Chen, Liu, Wang, Yin 2021): steps set by three learned numbers and the residual."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._base.doors import Array, Key, program
from unrolled.dictionaries import Dictionary, as_dictionary, dense
from unrolled.layers._layer import Acting, Recipe
from unrolled.layers._records import Fixed, Matrix, Number, Shape, Unrolled, magnitude
from unrolled.layers._shrinking import Shrinking
from unrolled.theory import frobenius_weights, pseudo_inverse, spectral_radius, weights_coherence

__all__ = ["Analytic", "Hyper", "hyperlista"]


# (c_1, c_2, c_3) for Bernoulli(0.1) codes of a Gaussian 250 x 500 dictionary at depth 16, chosen by
# `training.search` on 512 signals (benchmarks/lista.py).
_NUMBERS = (0.035, 0.015, 12.0)
# Multiples of these three numbers to try for other codes and dictionaries.
_MULTIPLES = {
    "threshold": (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0),
    "momentum": (0.0, 0.5, 1.0, 1.5, 2.0),
    "selection": (0.1, 0.25, 0.5, 0.75, 1.0, 1.4, 2.0),
}
# For a Gaussian 250 x 500 dictionary rho(W'D) is 2.1, and thresholds and selection keep the steps
# stable.
_TAMED = 2.5


class Analytic(NamedTuple):
    """The params from theory: c W, mu_W and d_i . (D D')^+ d_i / c, with W in closed form.

    If rho(W'D) is above 2.5, c is 2 / rho(W'D), because the steps have no step size to reduce.
    Otherwise c is 1. Hence D^+ r = leverage (c W)'r. For a `Conv`, whose weights are filters, the
    equation holds only approximately. The approximation suffices, because norm(D^+ r, 1) only sets
    the scale of the thresholds.
    """

    W: Matrix
    leverage: Annotated[Array, Shape("d")]  # d_i . (D D')^+ d_i / c for every atom
    mu_W: Number


class Hyper(NamedTuple):
    """The params of HyperLISTA: a fixed part from theory, and three numbers."""

    analytic: Fixed[Analytic]  # the part from theory
    threshold: Number  # c_1
    momentum: Number  # c_2
    selection: Number  # c_3


class Adaptive(NamedTuple):
    """The state: the code, the code before the last step, and norm(D^+ y, 1)."""

    x: Array  # (d,)
    before: Array  # (d,)
    initial: Array  # ()


def analytic_part(D: Dictionary) -> Fixed[Analytic]:
    """The fixed part of the params, computed from D."""
    return _analytic(D, frobenius_weights(D))


@program()
def _analytic(D: Dictionary, W: Dictionary) -> Fixed[Analytic]:
    radius = spectral_radius(W, D)
    c = jnp.where(radius <= _TAMED, 1, 2 / radius)
    with jax.default_matmul_precision("highest"):
        leverage = jnp.sum(pseudo_inverse(D).T * dense(D), axis=0)
        return Fixed(Analytic(W * c, leverage / c, weights_coherence(W, D).mu_W))


class hyperlista(Shrinking):
    r"""K steps whose threshold, momentum and support follow the residual; 3 numbers are learned.

    .. math::
        \rho_k = \|D^+ (y - D x_k)\|_1, \qquad
        x_{k+1} = \eta(x_k + W'(y - D x_k) + \beta_k (x_k - x_{k-1}); \; \theta_k, p_k), \\
        \theta_k = c_1 \mu_W \rho_k, \qquad \beta_k = c_2 \mu_W \|x_k\|_0, \qquad
        p_k = c_3 \ln(\rho_0 / \rho_k) / d,

    where eta shrinks all entries except the entries above theta_k that are among the p_k d entries
    of largest magnitude (`select_support`), and p_k is clipped to [0, 1].

    Params: shared (analytic, threshold = c_1, momentum = c_2, selection = c_3); no params per step.
    `init` and `analytic.hyperlista` set weights in closed form and three numbers that suit
    Bernoulli(0.1) codes of a Gaussian 250 x 500 dictionary at depth 16. For other problems try
    `training.search`, which sets all three numbers. The sign of c_1 has no effect. c_3 has no
    gradient, so `fit` changes only c_1 and c_2; an optimiser with weight decay also changes c_3
    unless `trainable` freezes c_3.

    The layer has no lam: the code of c y is c times the code of y. LASSO codes with a fixed lam do
    not scale with y. Before training, the LASSO objective of the codes of this layer can be above
    the LASSO objective of the codes of ISTA at the same depth.

    Reference: Chen, Liu, Wang, Yin (2021), with unit step size and with estimates by D^+ instead of
    the true code. Not claimed: a bound on the error.

    Example:
        >>> layer, D = ur.layers.hyperlista(4), ur.dictionaries.identity_hadamard(16)
        >>> params = layer.init(None, D)
        >>> print(jnp.stack(params.shared[1:]), layer.apply(params, D, D[:, 3]).shape)
        [ 0.035  0.015 12.   ] (32,)
    """

    forms = (Unrolled(Hyper, None),)
    recipe = Recipe(rate=0, searched=_MULTIPLES)
    starts_from_theory = True

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        return Unrolled(Hyper(analytic_part(D), *(jnp.asarray(c, D.dtype) for c in _NUMBERS)), None)

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return Adaptive(zero, zero, jnp.zeros((), y.dtype))

    @property
    def takes_parts(self) -> bool:
        """False, because c_2 and c_3 refer to numbers of single entries."""
        return False

    def step(self, shared, p, D, y, state):
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
        u = x + g + beta * (x - state.before)
        return Adaptive(self.shrink(D, u, theta, fraction), x, initial)

    def weights(self, shared, p, D):
        return Acting(shared.analytic.W.W)
