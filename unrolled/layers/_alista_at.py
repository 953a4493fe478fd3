"""ALISTA with thresholds that follow the residual (ALISTA-AT), and its Onsager correction."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array, Key
from unrolled._numbers import norm
from unrolled._program import program
from unrolled.activations import relu
from unrolled.dictionaries import Dictionary, as_dictionary, column_norms
from unrolled.layers._closed_form import lasso_weights, stable_step
from unrolled.layers._layer import Acting, Recipe, selecting
from unrolled.layers._records import RELATIVE, Fixed, Gamma, Number, Shape, Unrolled, magnitude
from unrolled.layers._shrinking import PUBLISHED_SUPPORT, Selecting, support_option
from unrolled.records import option
from unrolled.theory import MessagePassing

# A step that leaves more than twice the least residual is not taken. Under noise the residual of
# good codes rises by some percent.
_GROWTH = 2
# The share of nonzeros that the correction sees at most: its factor a / (1 - a) stays below 9.
_MOST_NONZEROS = 0.9


class Adapting(NamedTuple):
    """One step: its size, the threshold per mean magnitude, and the weight of the last term."""

    gamma: Gamma
    theta: Annotated[Array, Shape("", role=RELATIVE)]
    beta: Number


class Followed(NamedTuple):
    """The state: the code, where the next step begins, and what is left of the signal there."""

    x: Array  # (d,)
    z: Array  # (d,)
    r: Array  # (m,), y - D z
    limit: Array  # the residual above which a step is not taken
    refused: Array  # how many steps were not taken, an integer


class alista_at(Selecting):
    r"""K steps of ALISTA whose thresholds follow the residual; 3 K numbers are learned.

    .. math::
        r = y - D z, \qquad u = z + \gamma_k W'r, \qquad
        x \leftarrow \mathrm{shrink}(u, \; \theta_k \|W'r\|_1 / d), \qquad
        z \leftarrow x + \beta_k (x - x_{\mathrm{before}}),

    or with `onsager` the correction of message passing, a being the share of nonzeros in x:

    .. math:: z \leftarrow x + \beta_k \frac{a}{1 - a} (x - u).

    A scaled signal has a scaled code. A step that leaves a residual above that of y, or above twice
    the least one, is not taken: the next begins where it began. The field `refused` of the last
    state, `layer.run(params, D, y)[0]`, says how many were not.

    Params: shared W, which carries no gradient; steps (gamma, theta, beta). The magnitude of theta
    counts; it is a threshold per mean magnitude, which `analytic.calibrate` sets with gamma. `init`
    takes W in closed form, gamma = min(1, 2 / rho(W'D)), and beta = 0, or 1 with `onsager`. a
    carries no gradient. For noisy signals try a `ridge` of 0.2 to 1.

    It knows no lam, and a signal c y has c times the code of y, as no LASSO with a fixed lam has
    it: in that objective the start can be above ISTA at the same depth.

    Reference: Kim, Park (2020), adaptive thresholds; Chen, Liu, Wang, Yin (2018), support
    selection; Ma, Ping (2017), the correction. Not claimed: a bound on the error, or convergence;
    with `onsager`, more than zero codes for ill-conditioned dictionaries with noise at the start.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.alista_at(8, onsager=True), 2 * D[:, 3] - D[:, 7]
        >>> state, _ = layer.run(layer.init(None, D), D, y)
        >>> jnp.flatnonzero(jnp.abs(state.x) > 0.1).tolist(), int(state.refused)
        ([3, 7], 0)
    """

    by: str = option(
        default="code",
        choices=("code", "residual"),
        help='what sets the thresholds: "code", the mean magnitude of W\'r; "residual", that of r',
    )
    onsager: bool = option(default=False, help="use the correction of message passing, no momentum")
    theta: float = option(
        default=1.5, least=0, help="threshold per mean magnitude at the start, times gamma"
    )
    ridge: float = option(
        default=0.0,
        least=0,
        help="ridge of the closed form, in units of norm(D, 2)^2, for noisy signals",
    )
    support: tuple[float, float] | None = support_option(PUBLISHED_SUPPORT)

    forms = (Unrolled(Fixed, Adapting),)
    recipe = Recipe(rate=2e-3, options=selecting, calibrated=True, weighted=True)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        return _start(self, lasso_weights(D, self.ridge), D)

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return Followed(zero, zero, y, norm(y), jnp.zeros((), jnp.int32))

    def step(self, shared, p, D, y, state, fraction=None):
        g = state.r @ lax.stop_gradient(shared.W)
        u = state.z + p.gamma * g
        size = jnp.mean(jnp.abs(g if self.by == "code" else state.r))
        x = self.shrink(u, magnitude(p.theta) * size, fraction)
        if self.onsager:
            a = jnp.minimum(jnp.mean(x != 0, dtype=y.dtype), _MOST_NONZEROS)
            z = x + p.beta * a / (1 - a) * (x - u)
        else:
            z = x + p.beta * (x - state.x)
        r = y - D @ z
        taken = Followed(x, z, r, jnp.minimum(state.limit, _GROWTH * norm(r)), state.refused)
        return _unless(norm(r) > state.limit, state, taken)

    def weights(self, shared, p, D):
        return Acting(lax.stop_gradient(shared.W), p.gamma)

    def message_passing(self):
        plain = self.by == "code" and self.activation == relu and self.ridge == 0
        if self.onsager and plain:
            return MessagePassing("oamp", "select", "theta", fractions=self.schedule)
        return None


def _unless(refused: Array, before: Followed, after: Followed) -> Followed:
    """`after`, or `before` with one refusal more; of a residual that is nan, `after`."""
    unchanged = before._replace(refused=before.refused + 1)
    return Followed(*(jnp.where(refused, old, new) for old, new in zip(unchanged, after)))


@program("layer")
def _start(layer: alista_at, W: Dictionary, D: Dictionary) -> Unrolled:
    gamma = stable_step(W, D)
    unit = jnp.mean(column_norms(W)) if layer.by == "residual" else 1  # r is in units of y
    numbers = gamma, layer.theta * gamma * unit, float(layer.onsager)
    return Unrolled(Fixed(W), Adapting(*(jnp.full(layer.depth, v, D.dtype) for v in numbers)))
