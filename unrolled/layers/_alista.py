"""ALISTA and its variants: weights in closed form, with thresholds and step sizes that are learned
or that follow the residual.
"""

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, Key, checked, program
from unrolled._base.numbers import exponent, ldexp, norm, power_of_two, times_power
from unrolled.activations import relu
from unrolled.dictionaries import (
    Complex,
    Conv,
    Dictionary,
    Joint,
    Operator,
    as_dictionary,
    column_norms,
    spectral_norm,
)
from unrolled.layers._ista import StepAndThreshold
from unrolled.layers._layer import Acting, Layer, Recipe, selecting
from unrolled.layers._records import (
    RELATIVE,
    Fixed,
    Gamma,
    Number,
    Shape,
    Unrolled,
    Weights,
    magnitude,
)
from unrolled.layers._shrinking import (
    PUBLISHED_SUPPORT,
    Coupled,
    FromISTA,
    Selecting,
    support_option,
)
from unrolled.records import option
from unrolled.theory import MessagePassing, frobenius_weights, spectral_radius

__all__ = [
    "Adapting",
    "FromClosedForm",
    "Recurrent",
    "alista",
    "alista_at",
    "na_alista",
    "robust_alista",
    "tilista",
]


def stable_step(W: Dictionary, D: Dictionary) -> Array:
    """The largest gamma, at most 1, for which the map x -> x + gamma W'(y - D x) does not expand.

    This gamma is min(1, 2 / rho), where rho is the spectral radius of W'D.

    Example:
        >>> D = jnp.eye(2)
        >>> [round(float(ur.layers.stable_step(W, D)), 3) for W in (D, 4 * D)]
        [1.0, 0.5]
    """
    return _stable_step(as_dictionary(W, "stable_step", "W"), as_dictionary(D, "stable_step"))


@program()
def _stable_step(W: Dictionary, D: Dictionary) -> Array:
    return jnp.minimum(1, 2 / spectral_radius(W, D))


@checked
def lasso_weights(D: Dictionary, ridge: float) -> Operator:
    r"""Weights between the W that minimises norm(W'D, "fro") and the weights W = D of ISTA.

    .. math:: w_i \propto (D D' + ridge \|D\|_2^2 \, I)^{-1} d_i, \qquad
        w_i \cdot d_i = \|d_i\|^2 / \tfrac1d \sum_j \|d_j\|^2.

    For unit atoms w_i . d_i = 1, and ridge = 0 gives `theory.frobenius_weights`. As ridge -> inf, W
    tends to a multiple of D, and a step tends to a step of ISTA. For a `Conv`, an upper bound
    replaces norm(D, 2).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 16)
        >>> W = ur.layers.lasso_weights(D, 0.0)
        >>> bool(jnp.allclose(W, ur.theory.frobenius_weights(D), atol=1e-5))
        True
    """
    W = _lasso_weights(D, None if checks.is_concrete(ridge) and ridge == 0 else ridge)
    if checks.is_concrete(W) and any(np.isnan(np.asarray(A)).any() for A in jax.tree.leaves(W)):
        scaled = _scaled(D)[0]
        frobenius_weights(scaled, ridge * spectral_norm(scaled) ** 2)  # names the fault
    return W


def _scaled(D: Dictionary) -> tuple[Dictionary, Array]:
    """D 2^-k and 2^-k, with a k for which squares stay in the range of the dtype."""
    factor = power_of_two(-exponent(spectral_norm(D)), D.dtype)
    return D * factor, factor


@program()
def _lasso_weights(D: Dictionary, ridge: float | None) -> Operator:
    scaled, factor = _scaled(D)
    W = frobenius_weights(scaled, 0.0 if ridge is None else ridge * spectral_norm(scaled) ** 2)
    squares = column_norms(scaled) ** 2
    squares = squares / jnp.mean(squares)
    if isinstance(W, Conv):  # all positions of a filter have the same norm
        filters = squares.reshape(len(W.filters), -1)[:, 0]
        return W.scale(filters.reshape(-1, *(1,) * (W.filters.ndim - 1)) * factor)
    if isinstance(W, Complex | Joint):  # all entries of a part have the same norm
        return W.scale_parts(squares[:: W.block] * factor)
    return W * squares[None, :] * factor


class FromClosedForm(Layer):
    """A family that starts with `lasso_weights`, gamma = 1 / rho(W'D) and theta = gamma lam.

    Like the steps of ISTA, these steps are descent steps, but they measure the residual in a norm
    that gives small singular values of D more weight. If atoms do not have norm 1, lam is divided
    by the mean square of their norms, as in ISTA.

    Args:
        lam: weight of the LASSO at the start.
        theta: threshold at the start; None means gamma lam.
        ridge: ridge of the closed form, in units of norm(D, 2)^2; 0 gives the paper's weights.

    Example:
        >>> layer, D = ur.alista(2, lam=0.1), jnp.eye(3)
        >>> gamma, theta = layer.closed_form_steps(layer.closed_form(D), D)
        >>> print(gamma.round(3), theta.round(3))
        [1. 1.] [0.1 0.1]
    """

    lam: float = option(default=0.1, least=0)
    theta: float | None = option(default=None, least=0)
    ridge: float = option(default=0.2, least=0, absent=0.0)

    def closed_form(self, D: Dictionary) -> Operator:
        """The weights in closed form for a dictionary, (m, d)."""
        return lasso_weights(D, self.ridge)

    def closed_form_steps(self, W: Dictionary, D: Dictionary) -> StepAndThreshold:
        """The step sizes and the thresholds at the start, (K,) each."""
        return _closed_form_steps(self, W, D)


@program("layer")
def _closed_form_steps(layer: FromClosedForm, W: Dictionary, D: Dictionary) -> StepAndThreshold:
    gamma = (1 / spectral_radius(W, D)).astype(D.dtype)
    norms = column_norms(D)
    k = exponent(norms)
    size = jnp.mean(times_power(norms, -k) ** 2)  # the mean square of the norms, divided by 2^(2 k)
    theta = ldexp(gamma * layer.lam / size, -2 * k) if layer.theta is None else layer.theta
    return StepAndThreshold(jnp.full(layer.depth, gamma), jnp.full(layer.depth, theta, D.dtype))


def with_unit_steps(theta: Array) -> StepAndThreshold:
    """The thresholds of K steps with gamma = 1."""
    return StepAndThreshold(jnp.asarray(np.ones(len(theta)), theta.dtype), theta)


class alista(Coupled, FromClosedForm, Selecting):
    r"""K steps x <- shrink(x + gamma_k W'(y - D x), theta_k) with fixed W; 2 K numbers are learned.

    Params: shared W, which has no gradient and which `fit` does not change; steps (gamma, theta).
    In your own optax loop, mask W by `training.trainable`; otherwise weight decay changes W. `init`
    sets weights in closed form with a `ridge`, gamma = 1 / rho(W'D) and theta = gamma lam. With the
    default ridge, the LASSO objective of the codes before training is at most the objective of the
    codes of ISTA at the same depth, or exceeds that objective by at most 2 % if ISTA has converged.
    We measured these objectives on smooth, correlated, ill-conditioned and noisy problems and on
    learned dictionaries (benchmarks/README.md). Ridge 0 gives the paper's weights. With the paper's
    weights, the LASSO objective of the codes before training can be far above the objective of the
    codes of ISTA; `fit` then warns if it trains with `training.lasso_loss`. For planted codes
    without noise, training reaches lower errors with the paper's weights, from `analytic.alista` or
    ridge 0. We claim neither result with `support`, because selected entries pass unshrunk.

    Reference: Liu, Chen, Wang, Yin (2019), who set `support` to about (0.012, 0.13).

    Example:
        >>> layer, D = ur.alista(16, support=(0.012, 0.12)), ur.dictionaries.dct(8, 16)
        >>> layer.depth, layer.support, layer is ur.alista(16, support=(0.012, 0.12))
        (16, (0.012, 0.12), True)
        >>> layer.apply(layer.init(None, D), D, D[:, 3]).shape
        (16,)
    """

    forms = (Unrolled(Fixed, StepAndThreshold),)
    recipe = Recipe(rate=2e-3, options=selecting, calibrated=True, weighted=True)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        W = self.closed_form(D)
        return Unrolled(Fixed(W), self.closed_form_steps(W, D))

    def weights(self, shared, p, D):
        return Acting(lax.stop_gradient(shared.W), p.gamma)

    def from_theory(self, W, theta):
        return Unrolled(Fixed(W), with_unit_steps(theta))


class tilista(Coupled, FromISTA, Selecting):
    r"""K steps x <- shrink(x + gamma_k W'(y - D x), theta_k) with one trained W: TiLISTA.

    Params: shared W and steps (gamma, theta), m d + 2 K numbers. `init` gives ISTA: W = D / L,
    gamma = 1, theta = lam / L. To start from params of `alista`, pass
    `Unrolled(Weights(params.shared.W), params.steps)`.

    Reference: Liu, Chen, Wang, Yin (2019), equation (15).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> shared, steps = ur.alista(2).init(None, D)
        >>> params = ur.layers.Unrolled(ur.layers.Weights(shared.W), steps)
        >>> ur.layers.tilista(2).apply(params, D, D[:, 1]).shape
        (8,)
    """

    forms = (Unrolled(Weights, StepAndThreshold),)
    recipe = alista.recipe._replace(rate=5e-4)

    def at_ista(self, D, L, theta):
        return self.from_theory(D / L, theta)

    def weights(self, shared, p, D):
        return Acting(shared.W, p.gamma)

    def from_theory(self, W, theta):
        return Unrolled(Weights(W), with_unit_steps(theta))


class WithWeights(NamedTuple):
    """The state: the code, and the weights of the dictionary in use."""

    x: Array  # (d,)
    W: Any  # (m, d)


class robust_alista(FromClosedForm, Selecting):
    r"""K steps x <- shrink(x + gamma_k W(D)'(y - D x), theta_k) with W(D) in closed form.

    Params: steps (gamma, theta); no params are shared. `init` is as in `alista`, and W(D) is
    computed for the D of each call. Each dictionary needs one matrix inverse; gradients pass
    through the inverse to D. If a traced D has a zero atom, the codes are nan. If every signal has
    its own dictionary, map over dictionaries and signals with `jax.vmap(layer.apply, (None, 0,
    0))(params, Ds, Y)`, and let the sampler of `fit` return (Y, X, Ds).

    Reference: Liu, Chen, Wang, Yin (2019), section 4, where a network of four layers approximates
    W(D).

    Example:
        >>> layer, Ds = ur.layers.robust_alista(2), jnp.stack([jnp.eye(3), -jnp.eye(3)])
        >>> params = layer.init(None, Ds[0])
        >>> print(jax.vmap(layer.apply, (None, 0, 0))(params, Ds, jnp.eye(3)[:2]).round(2))
        [[ 0.9  0.   0. ]
         [ 0.  -0.9  0. ]]
    """

    forms = (Unrolled(None, StepAndThreshold),)
    recipe = alista.recipe

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        return Unrolled(None, self.closed_form_steps(self.closed_form(D), D))

    def start(self, D, y):
        return WithWeights(jnp.zeros(D.shape[1], y.dtype), self.closed_form(D))

    def step(self, shared, p, D, y, state, fraction=None):
        u = state.x + p.gamma * ((y - D @ state.x) @ state.W)
        return state._replace(x=self.shrink(D, u, p.theta, fraction))

    def weights(self, shared, p, D):
        return Acting(self.closed_form(D), p.gamma)


# The layer rejects a step if the norm of the residual after the step exceeds twice the least norm
# so far. For noisy signals, the residual of good codes rises by a few percent.
_GROWTH = 2
# The largest share of nonzeros in the correction, so that its factor a / (1 - a) stays below 9.
_MOST_NONZEROS = 0.9


class Adapting(NamedTuple):
    """One step: its step size, threshold per mean magnitude, and weight of the last term."""

    gamma: Gamma
    theta: Annotated[Array, Shape("", role=RELATIVE)]
    beta: Number


class Followed(NamedTuple):
    """The state: the code, the point z at which the next step begins, and the residual at z."""

    x: Array  # (d,)
    z: Array  # (d,)
    r: Array  # (m,), y - D z
    limit: Array  # the largest norm of a residual that is accepted
    refused: Array  # number of rejected steps, an integer


class alista_at(Selecting):
    r"""K steps of ALISTA whose thresholds follow the residual; 3 K numbers are learned.

    .. math::
        r = y - D z, \qquad u = z + \gamma_k W'r, \qquad
        x \leftarrow \mathrm{shrink}(u, \; \theta_k \|W'r\|_1 / d), \qquad
        z \leftarrow x + \beta_k (x - x_{\mathrm{before}}),

    or, with `onsager`, the correction of message passing, where a is the share of nonzeros in x:

    .. math:: z \leftarrow x + \beta_k \frac{a}{1 - a} (x - u).

    The code scales with the signal. The layer rejects a step if the norm of the residual after the
    step exceeds norm(y) or twice the least norm so far. The next step then starts from the same z.
    The field `refused` of the last state, `layer.run(params, D, y)[0]`, counts the rejected steps.

    Params: shared W, which has no gradient; steps (gamma, theta, beta). theta is a threshold per
    mean magnitude, and the sign of theta has no effect. `analytic.calibrate` sets theta and gamma.
    `init` sets W in closed form, gamma = min(1, 2 / rho(W'D)), and beta = 0, or beta = 1 with
    `onsager`. The share a has no gradient. For noisy signals try a `ridge` of 0.2 to 1.

    The layer has no lam: the code of c y is c times the code of y. LASSO codes with a fixed lam do
    not scale with y. Before training, the LASSO objective of the codes of this layer can be above
    the LASSO objective of the codes of ISTA at the same depth.

    Args:
        by: thresholds follow the mean magnitude of W'r ("code") or of r ("residual").
        onsager: use the correction of message passing instead of momentum.
        theta: threshold per mean magnitude at the start, times gamma.
        ridge: ridge of the closed form, in units of norm(D, 2)^2, for noisy signals.

    Reference: Kim, Park (2020) for adaptive thresholds; Chen, Liu, Wang, Yin (2018) for support
    selection; Ma, Ping (2017) for the correction. Not claimed: a bound on the error, or
    convergence; with `onsager`, that codes before training are nonzero if D is ill-conditioned and
    signals are noisy.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.alista_at(8, onsager=True), 2 * D[:, 3] - D[:, 7]
        >>> state, _ = layer.run(layer.init(None, D), D, y)
        >>> jnp.flatnonzero(jnp.abs(state.x) > 0.1).tolist(), int(state.refused)
        ([3, 7], 0)
    """

    by: str = option(default="code", choices=("code", "residual"))
    onsager: bool = option(default=False)
    theta: float = option(default=1.5, least=0)
    ridge: float = option(default=0.0, least=0)
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
        size = jnp.mean(self.penalty(D).sizes(g) if self.by == "code" else jnp.abs(state.r))
        x = self.shrink(D, u, magnitude(p.theta) * size, fraction)
        if self.onsager:
            penalty, share = self.penalty(D), jnp.mean(x != 0, dtype=y.dtype)
            if not penalty.counts:
                share = penalty.divergence(u, x) / len(x)
            a = jnp.minimum(share, _MOST_NONZEROS)
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
        if self.onsager and plain and self.is_soft:
            return MessagePassing("oamp", "select", "theta", fractions=self.schedule)
        return None


def _unless(refused: Array, before: Followed, after: Followed) -> Followed:
    """`before` with one more refused step if `refused`, else `after`; a nan is not refused."""
    unchanged = before._replace(refused=before.refused + 1)
    return Followed(*(jnp.where(refused, old, new) for old, new in zip(unchanged, after)))


@program("layer")
def _start(layer: alista_at, W: Dictionary, D: Dictionary) -> Unrolled:
    gamma = stable_step(W, D)
    unit = jnp.mean(column_norms(W)) if layer.by == "residual" else 1  # r has the units of y
    numbers = gamma, layer.theta * gamma * unit, float(layer.onsager)
    return Unrolled(Fixed(W), Adapting(*(jnp.full(layer.depth, v, D.dtype) for v in numbers)))


# The scale of the random matrices in `init`, times 1 / sqrt(n). With this small scale, gamma and
# tau before training depend almost only on the biases of the head.
_SMALL = 0.1


class Recurrent(NamedTuple):
    """Weights from theory, an LSTM of n units, and a head that maps memory to gamma and tau."""

    analytic: Fixed  # holds W, (m, d)
    kernel: Array  # (2 + n, 4 n), from (input, hidden) to gates (input, forget, candidate, output)
    bias: Array  # (4 n,)
    middle: Array  # (n, n), the hidden layer of the head
    middle_bias: Array  # (n,)
    head: Array  # (n, 2)
    head_bias: Array  # (2,)


class Remembered(NamedTuple):
    """The state: the code, and the state of the LSTM."""

    x: Array  # (d,)
    hidden: Array  # (n,)
    memory: Array  # (n,)


class na_alista(Selecting):
    r"""K steps of ALISTA whose step size and threshold an LSTM computes from the residual.

    .. math::
        r = y - D x, \qquad
        (\gamma, \tau) = \mathrm{head}(\mathrm{LSTM}(\ln (a / c), \ln (b / c))), \qquad
        x \leftarrow \mathrm{shrink}(x + \gamma W'r, \; \tau b),

    where a = norm(r, 1) / m and b = norm(W'r, 1) / d are mean magnitudes, and c = norm(y, 1) / m is
    the value of a at the first step.

    Params: shared `Recurrent`; no params per step, because one LSTM runs along the K steps. `init`
    sets W in closed form and draws small random matrices from `key`. Training never changes W.
    Before training, the biases from `init` keep gamma near min(1, 2 / rho(W'D)) and tau near
    `threshold` times gamma.

    The layer has no lam: the code of c y is c times the code of y. LASSO codes with a fixed lam do
    not scale with y. Before training, the LASSO objective of the codes of this layer can be above
    the LASSO objective of the codes of ISTA at the same depth.

    Args:
        units: number of units of the LSTM; the paper uses 32 to 256.
        threshold: tau per gamma at the start, in units of the residual.

    Reference: Behrens, Sauder, Jung (2021), Algorithm 1. In the paper, tau is the threshold itself,
    and the inputs are standardised with the first batch. Here tau is in units of the residual and
    the inputs are in units of the signal. Hence `init` needs no data, and the code scales with the
    signal, also after training.

    Example:
        >>> layer, D = ur.layers.na_alista(4, units=8), ur.dictionaries.identity_hadamard(16)
        >>> params = layer.init(jax.random.key(0), D)
        >>> params.shared.kernel.shape, layer.apply(params, D, D[:, 3]).shape
        ((10, 32), (32,))
    """

    units: int = option(default=32, least=1)
    threshold: float = option(default=3.0, above=0)

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
        return _drawn(self, checks.as_key(key, self.family), D, W)

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
        first, *sizes = map(jnp.mean, (jnp.abs(y), jnp.abs(r), self.penalty(D).sizes(g)))
        k = -exponent(first)  # because the derivative of a quotient squares the divisor
        one = jnp.where(first > 0, times_power(first, k), 1)
        relative = times_power(jnp.stack(sizes), k) / one
        hidden, memory = _lstm(shared, jnp.log(relative + jnp.finfo(y.dtype).tiny), state)
        middle = jax.nn.relu(memory @ shared.middle + shared.middle_bias)
        gamma, tau = jax.nn.softplus(middle @ shared.head + shared.head_bias)
        x = self.shrink(D, state.x + gamma * g, tau * sizes[1], fraction)
        return Remembered(x, hidden, memory)


@program("layer")
def _drawn(layer: na_alista, key: Array, D: Dictionary, W: Dictionary) -> Unrolled:
    n = layer.units
    checks.check_memory((4 * n, n), D.dtype, "the LSTM", layer.family)
    shapes = ((2 + n, 4 * n), (n, n), (n, 2))
    kernel, middle, head = (
        jax.random.normal(k, shape, D.dtype) * (_SMALL / math.sqrt(n))
        for k, shape in zip(jax.random.split(key, 3), shapes)
    )
    no_bias, no_middle_bias = jnp.zeros(4 * n, D.dtype), jnp.zeros(n, D.dtype)
    at_start = stable_step(W, D) * jnp.asarray([1.0, layer.threshold], D.dtype)
    # The inverse of softplus, in a form that is finite even if exp(threshold) overflows.
    head_bias = at_start + jnp.log(-jnp.expm1(-at_start))
    return Unrolled(
        Recurrent(Fixed(W), kernel, no_bias, middle, no_middle_bias, head, head_bias), None
    )


def _lstm(p: Recurrent, u: Array, state: Remembered) -> tuple[Array, Array]:
    """One step of an LSTM: the new hidden state and memory."""
    gates = jnp.concatenate([u, state.hidden]) @ p.kernel + p.bias
    write, keep, candidate, show = jnp.split(gates, 4)
    memory = jax.nn.sigmoid(keep) * state.memory + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return jax.nn.sigmoid(show) * jnp.tanh(memory), memory
