"""NA-ALISTA (Behrens, Sauder, Jung 2021): step size and threshold from an LSTM on the residual."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array, Key
from unrolled._numbers import exponent, times_power
from unrolled._program import program
from unrolled.dictionaries import Dictionary, as_dictionary
from unrolled.layers._closed_form import stable_step
from unrolled.layers._layer import Recipe, selecting
from unrolled.layers._records import Fixed, Unrolled
from unrolled.layers._shrinking import Selecting
from unrolled.records import option
from unrolled.theory import frobenius_weights

# The scale of the random matrices at the start, times 1 / sqrt(n): so small that the biases of the
# head decide gamma and tau.
_SMALL = 0.1


class Recurrent(NamedTuple):
    """Weights from theory, an LSTM of n units, and the head that reads its memory."""

    analytic: Fixed  # of W, (m, d)
    kernel: Array  # (2 + n, 4 n), (input, hidden) to the gates (input, forget, candidate, output)
    bias: Array  # (4 n,)
    middle: Array  # (n, n) of the head
    middle_bias: Array  # (n,)
    head: Array  # (n, 2)
    head_bias: Array  # (2,)


class Remembered(NamedTuple):
    """The state: the code, and the state of the LSTM."""

    x: Array  # (d,)
    hidden: Array  # (n,)
    memory: Array  # (n,)


class na_alista(Selecting):
    r"""K steps of ALISTA; an LSTM reads their step size and threshold from the residual.

    .. math::
        r = y - D x, \qquad
        (\gamma, \tau) = \mathrm{head}(\mathrm{LSTM}(\ln (a / c), \ln (b / c))), \qquad
        x \leftarrow \mathrm{shrink}(x + \gamma W'r, \; \tau b),

    where a = norm(r, 1) / m and b = norm(W'r, 1) / d are mean magnitudes, and c = norm(y, 1) / m is
    that of the first residual, which is y.

    Params: shared `Recurrent`, no steps: the LSTM runs along the K steps. `init` takes W in closed
    form (never trained), small random matrices from `key`, and biases that make gamma near 1, or
    near 2 / rho(W'D) where that is less, and tau near `threshold` gamma at the start.

    It knows no lam, and a signal c y has c times the code of y, as no LASSO with a fixed lam has
    it: in that objective the start can be above ISTA at the same depth.

    Reference: Behrens, Sauder, Jung (2021), Algorithm 1. There tau is the threshold itself, and the
    first batch standardises the inputs. Here tau is in units of the residual, and the inputs in
    units of the signal: neither needs data, and a scaled signal has a scaled code, also after
    training.

    Example:
        >>> layer, D = ur.layers.na_alista(4, units=8), ur.dictionaries.identity_hadamard(16)
        >>> params = layer.init(jax.random.key(0), D)
        >>> params.shared.kernel.shape, layer.apply(params, D, D[:, 3]).shape
        ((10, 32), (32,))
    """

    units: int = option(
        default=32, least=1, help="number of units of the LSTM; the paper uses 32 to 256"
    )
    threshold: float = option(
        default=3.0, above=0, help="tau per gamma at the start, in units of the residual"
    )

    forms = (Unrolled(Recurrent, None),)
    recipe = Recipe(rate=5e-3, steps=1000, options=selecting, weighted=True)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        return self.from_weights(key, frobenius_weights(D), D)

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        if key is None:
            raise TypeError(
                f"{self.family}: init draws random matrices; expected a key, got None, "
                "try jax.random.key(0)"
            )
        return _drawn(self, _checks.as_key(key, self.family), D, W)

    def check(self, params, D):
        super().check(params, D)
        n = self.units
        shapes = dict(kernel=(2 + n, 4 * n), bias=(4 * n,), middle=(n, n), middle_bias=(n,))
        for name, expected in (shapes | dict(head=(n, 2), head_bias=(2,))).items():
            got = jnp.shape(getattr(params.shared, name))
            if got != expected:
                raise ValueError(
                    f"{self.family}: {name} has shape {got}; expected {expected} for {n} units"
                )

    def start(self, D, y):
        nothing = jnp.zeros(self.units, y.dtype)
        return Remembered(jnp.zeros(D.shape[1], y.dtype), nothing, nothing)

    def step(self, shared, p, D, y, state, fraction=None):
        W = lax.stop_gradient(shared.analytic.W)
        r = y - D @ state.x
        g = r @ W
        first, *sizes = (jnp.mean(jnp.abs(v)) for v in (y, r, g))
        k = -exponent(first)  # the derivative of a quotient squares what it divides by
        one = jnp.where(first > 0, times_power(first, k), 1)
        relative = times_power(jnp.stack(sizes), k) / one
        hidden, memory = _lstm(shared, jnp.log(relative + jnp.finfo(y.dtype).tiny), state)
        middle = jax.nn.relu(memory @ shared.middle + shared.middle_bias)
        gamma, tau = jax.nn.softplus(middle @ shared.head + shared.head_bias)
        x = self.shrink(state.x + gamma * g, tau * sizes[1], fraction)
        return Remembered(x, hidden, memory)


@program("layer")
def _drawn(layer: na_alista, key: Array, D: Dictionary, W: Dictionary) -> Unrolled:
    n = layer.units
    shapes = ((2 + n, 4 * n), (n, n), (n, 2))
    kernel, middle, head = (
        jax.random.normal(k, shape, D.dtype) * (_SMALL / math.sqrt(n))
        for k, shape in zip(jax.random.split(key, 3), shapes)
    )
    no_bias, no_middle_bias = jnp.zeros(4 * n, D.dtype), jnp.zeros(n, D.dtype)
    at_start = stable_step(W, D) * jnp.asarray([1.0, layer.threshold], D.dtype)
    # The inverse of softplus, in a form that holds where exp(threshold) overflows.
    head_bias = at_start + jnp.log(-jnp.expm1(-at_start))
    return Unrolled(
        Recurrent(Fixed(W), kernel, no_bias, middle, no_middle_bias, head, head_bias), None
    )


def _lstm(p: Recurrent, u: Array, state: Remembered) -> tuple[Array, Array]:
    """One step of an LSTM: its new hidden state and memory."""
    gates = jnp.concatenate([u, state.hidden]) @ p.kernel + p.bias
    write, keep, candidate, show = jnp.split(gates, 4)
    memory = jax.nn.sigmoid(keep) * state.memory + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return jax.nn.sigmoid(show) * jnp.tanh(memory), memory
