"""ALISTA with residual thresholds: a step adds the entries whose products are near the largest."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from unrolled._base.checks import Array, Key
from unrolled.dictionaries import Dictionary, as_dictionary
from unrolled.layers._layer import Acting, Layer, Recipe
from unrolled.layers._records import Fixed, Number, Unrolled, magnitude
from unrolled.penalties import L1
from unrolled.records import option
from unrolled.theory import frobenius_weights, residual_error

__all__ = ["alista_rt"]


_MULTIPLES = {"ratio": (0.3, 0.5, 0.7, 0.85, 1.0, 1.05)}


class Ratio(NamedTuple):
    """The params of ALISTA with residual thresholds."""

    analytic: Fixed  # the weights from theory
    ratio: Number  # c


class Taken(NamedTuple):
    """The state: the code, and the set A of entries."""

    x: Array  # (d,)
    active: Array  # (d,) of bool


class alista_rt(Layer):
    r"""K steps that add entries to a set A; no entry leaves A.

    .. math::
        g = W'(y - D x), \qquad
        A \leftarrow A \cup \{i : |g_i| > c \max |g| + (1 + c) \nu\}, \qquad
        x_i \leftarrow x_i + g_i \text{ for } i \in A, \quad 0 \text{ elsewhere}.

    Entry i joins A if its product abs(g_i) exceeds the share c of the largest product by more than
    (1 + c) nu. One number, c, sets all thresholds. If c(S) <= c for a support S, no step adds
    an entry outside of S, whatever the signs and magnitudes of the code on S. If also c < 1 and
    kappa(S) < 1, the codes converge. `theory.certify_supports` computes c(S) and kappa(S). The
    option `noise` is nu, a bound on the noise in a product. The layer adds to nu a proved bound on
    the rounding of each step, and on a rounding of y by at most 8 u norm(y) in l2 norm, where u is
    the unit roundoff. In half precision this bound is an estimate.

    Params: shared (analytic, ratio = c); no params per step. `init` sets W in closed form. The sign
    of c has no effect. c has no gradient; use `training.search` to set c.

    For codes in parts, abs(g_i) is the size of a part, and A consists of whole parts.

    The layer has no lam: if `noise` is 0, the code of s y is s times the code of y for every number
    s. LASSO codes with a fixed lam do not scale with y. Before training, the LASSO objective of the
    codes of this layer can be above the LASSO objective of the codes of ISTA at the same depth.

    Not claimed: a bound if c(S) > c; no test of the signal detects this case. A residual of 0 shows
    that the code is right if the atoms of S are independent.

    Args:
        ratio: initial c, the share of the largest product to exceed.
        noise: nu, a bound on the part of each product w_i . y that is noise.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.alista_rt(30), 2 * D[:, 3] - D[:, 7]
        >>> x = layer.apply(layer.init(None, D), D, y)
        >>> jnp.flatnonzero(x).tolist(), x[jnp.array([3, 7])].round(4).tolist()
        ([3, 7], [2.0, -1.0])
    """

    ratio: float = option(default=0.95, least=0)
    noise: float = option(default=0.0, least=0)

    forms = (Unrolled(Ratio, None),)
    recipe = Recipe(rate=0, searched=_MULTIPLES)
    starts_from_theory = True

    @property
    def takes_parts(self) -> bool:
        """True, because the steps compare the sizes of parts."""
        return True

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        return self.from_weights(key, frobenius_weights(D), D)

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        return Unrolled(Ratio(Fixed(W), jnp.asarray(self.ratio, D.dtype)), None)

    def start(self, D, y):
        return Taken(jnp.zeros(D.shape[1], y.dtype), jnp.zeros(D.shape[1], bool))

    def step(self, shared, p, D, y, state):
        W = lax.stop_gradient(shared.analytic.W)
        x, active = state
        r = y - D @ x
        g = r @ W
        penalty = L1.of(D)
        # Neither the choice of entries nor the compared values have a gradient.
        size, c = lax.stop_gradient((penalty.sizes(g), magnitude(shared.ratio)))
        nonzeros = jnp.sum(x != 0, dtype=y.dtype)
        of_code = jnp.sum(penalty.sizes(x))
        rounding = residual_error(W, D, y, r, of_code, nonzeros, self.precision)
        nu = lax.stop_gradient(self.noise + rounding)
        taken = size > c * jnp.max(size, initial=0) + (1 + c) * nu
        active = active | penalty.entries(taken)
        return Taken(jnp.where(active, x + g, 0 * g), active)  # nan if the signal is not finite

    def weights(self, shared, p, D):
        return Acting(lax.stop_gradient(shared.analytic.W))
