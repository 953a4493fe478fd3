"""NA-ALISTA (Behrens, Sauder, Jung 2021): a small recurrent network sets step size and threshold
from the residual in hand.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.dictionaries import as_dictionary
from unrolled.layers._support import select_or_shrink, support_schedule
from unrolled.layers._unroll import Fixed, Layer, Unrolled, factory, make_layer
from unrolled.theory import frobenius_weights


class Recurrent(NamedTuple):
    """The params of NA-ALISTA: weights from theory, an LSTM of n units, and the head that reads its
    memory.
    """

    analytic: Fixed  # of W, (m, d)
    kernel: (
        Array  # (2 + n, 4 n) from (input, hidden) to the gates (input, forget, candidate, output)
    )
    bias: Array  # (4 n,)
    middle: Array  # (n, n) of the head
    middle_bias: Array  # (n,)
    head: Array  # (n, 2)
    head_bias: Array  # (2,)


class Remembered(NamedTuple):
    """The state: the code, and that of the LSTM."""

    x: Array  # (d,)
    hidden: Array  # (n,)
    memory: Array  # (n,)


@factory
def na_alista(
    depth: int,
    *,
    units: int = 32,
    threshold: float = 3.0,
    support: tuple[float, float] | None = None,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps of ALISTA whose step size and threshold an LSTM reads from the signal's own
    residual.

    .. math::
        r = y - D x, \qquad (\gamma, \tau) = \mathrm{head}(\mathrm{LSTM}(\ln |r|_1 / m, \ln |W'r|_1 / d)), \\
        x \leftarrow \mathrm{shrink}(x + \gamma W'r, \; \tau |W'r|_1 / d).

    Params: shared `Recurrent`, no steps: the LSTM runs along the K steps. `init` takes the
    closed-form W (never trained), small random matrices from `key`, and biases that make gamma near
    1 and tau near `threshold` at the start.

    Args:
        units: n, of the LSTM; published with 32 to 256.
        threshold: tau at the start, positive.
        support: (rate, largest), support selection as in `alista`.

    Reference: Behrens, Sauder, Jung (2021), Algorithm 1. There tau is the threshold itself and the
    inputs are standardised by the first batch; in units of the residual neither needs data, and the
    layer follows a scaled signal.
    """
    units = _checks.as_index(units, "units", "na_alista", least=1)
    if not 0 < threshold < math.inf:
        raise ValueError(f"na_alista: threshold must be positive and finite, got {threshold}")
    fractions = support_schedule(support, depth, "na_alista")

    def init(key, D):
        D, n = as_dictionary(D, "na_alista"), units
        shapes = ((2 + n, 4 * n), (n, n), (n, 2))
        kernel, middle, head = (
            jax.random.normal(k, shape, D.dtype) * (0.1 / math.sqrt(n))
            for k, shape in zip(jax.random.split(key, 3), shapes)
        )
        no_bias, no_middle_bias = jnp.zeros(4 * n, D.dtype), jnp.zeros(n, D.dtype)
        at_start = jnp.asarray([1.0, threshold], D.dtype)
        head_bias = at_start + jnp.log(
            -jnp.expm1(-at_start)
        )  # softplus undone, also where exp(threshold) overflows
        W = Fixed(frobenius_weights(D))
        return Unrolled(
            Recurrent(W, kernel, no_bias, middle, no_middle_bias, head, head_bias), None
        )

    def start(D, y):
        nothing = jnp.zeros(units, y.dtype)
        return Remembered(jnp.zeros(D.shape[1], y.dtype), nothing, nothing)

    def step(shared, p, D, y, state, fraction=None):
        if shared.kernel.shape != (2 + units, 4 * units):
            got = shared.kernel.shape
            raise ValueError(
                f"na_alista: kernel has shape {got}; expected {(2 + units, 4 * units)} for {units} units"
            )
        W = lax.stop_gradient(shared.analytic.W)
        r = y - D @ state.x
        g = r @ W
        sizes = jnp.stack([jnp.mean(jnp.abs(r)), jnp.mean(jnp.abs(g))])
        hidden, memory = _lstm(shared, jnp.log(sizes + jnp.finfo(y.dtype).tiny), state)
        middle = jax.nn.relu(memory @ shared.middle + shared.middle_bias)
        gamma, tau = jax.nn.softplus(middle @ shared.head + shared.head_bias)
        x = select_or_shrink(state.x + gamma * g, tau * sizes[1], fraction, activation)
        return Remembered(x, hidden, memory)

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer(
        "na_alista", depth, ((Recurrent._fields, ()),), init, start, step, fractions, **options
    )


def _lstm(p: Recurrent, u: Array, state: Remembered) -> tuple[Array, Array]:
    """One step of an LSTM: what it shows, and what it remembers."""
    gates = jnp.concatenate([u, state.hidden]) @ p.kernel + p.bias
    write, keep, candidate, show = jnp.split(gates, 4)
    memory = jax.nn.sigmoid(keep) * state.memory + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return jax.nn.sigmoid(show) * jnp.tanh(memory), memory
