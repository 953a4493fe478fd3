"""Message passing: LAMP, TISTA, and VAMP, which can learn the distribution of the codes."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, checked, program
from unrolled._base.numbers import (
    energy,
    exponent,
    ldexp,
    norm,
    power_of_two,
    times_power,
    wide_dtype,
    widened,
)
from unrolled.activations import relu
from unrolled.dictionaries import Dictionary, as_dictionary, column_norms, dense
from unrolled.layers._ista import Step
from unrolled.layers._layer import Acting, Law, Layer, Prepared, Recipe
from unrolled.layers._records import (
    RELATIVE,
    Fixed,
    Matrix,
    Number,
    Shape,
    Unrolled,
    magnitude,
    repeat,
)
from unrolled.layers._shrinking import Shrinking
from unrolled.pursuit import State
from unrolled.records import option
from unrolled.theory import MessagePassing, pseudo_inverse

__all__ = [
    "Belief",
    "Estimating",
    "Message",
    "Spectrum",
    "bernoulli_gaussian_mean",
    "lamp",
    "lamp_bg",
    "tista",
    "vamp_bg",
]


# Multiples of stable weights to try if message passing diverges, as for a coherent D.
DAMPED = (1.0, 2.0, 2.6)


class Message(NamedTuple):
    """One step of LAMP."""

    W: Matrix
    alpha: Annotated[Array, Shape("", "d", role=RELATIVE)]  # threshold per unit of the noise level


class Corrected(NamedTuple):
    """The state: the code, and the residual with the Onsager correction."""

    x: Array  # (d,)
    v: Array  # (m,)
    divergence: Array | None = None  # None stands for norm(x, 0)


def message_passing(D: Dictionary, alpha: float, depth: int, where: str) -> Unrolled:
    """W = D and alpha for unit atoms; for other atoms W and alpha in the units of D."""
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
    """Raise ValueError if all atoms of D are zero and D is not traced."""
    if checks.is_concrete(norms) and not (np.asarray(norms) > 0).any():
        raise ValueError(f"{where}: D is zero; expected a dictionary with atoms")


class lamp(Shrinking):
    r"""K steps of learned approximate message passing.

    .. math::
        v_k = y - D x_k + \frac{\|x_k\|_0}{m} v_{k-1}, \qquad
        x_{k+1} = \mathrm{shrink}(x_k + W_k' v_k, \; \alpha_k \|v_k\|_2 / \sqrt m).

    For codes in parts, the divergence of the shrinkage, `Penalty.divergence`, replaces norm(x, 0).

    Params: steps (W, alpha); the sign of alpha has no effect. `init` gives approximate message
    passing: W = D and the option `alpha` for unit atoms; for other atoms W and alpha are in the
    units of D. The count norm(x, 0) has no gradient.

    The layer has no lam: the code of c y is c times the code of y. LASSO codes with a fixed lam do
    not scale with y. Before training, the LASSO objective of the codes of this layer can be above
    the LASSO objective of the codes of ISTA at the same depth.

    Args:
        alpha: threshold at the start, per unit of the estimated noise level.

    Reference: Borgerding, Schniter, Rangan (2017), LAMP-l1. Not claimed: convergence if D is not
    Gaussian. If D is coherent, the steps with the params from `init` can diverge.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.lamp(8), 2 * D[:, 3] - D[:, 7]
        >>> jnp.flatnonzero(jnp.abs(layer.apply(layer.init(None, D), D, y)) > 0.1).tolist()
        [3, 7]
    """

    alpha: float = option(default=1.1, least=0)

    forms = (Unrolled(None, Message),)
    recipe = Recipe(rate=1e-4, damped=DAMPED)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        return message_passing(as_dictionary(D, self.family), self.alpha, self.depth, self.family)

    def start(self, D, y):
        nothing = None if self.penalty(D).counts else jnp.zeros((), y.dtype)
        return Corrected(jnp.zeros(D.shape[1], y.dtype), jnp.zeros_like(y), nothing)

    def step(self, shared, p, D, y, state):
        m, penalty, before = y.shape[0], self.penalty(D), state.divergence
        if before is None:
            before = penalty.divergence(state.x, state.x)
        v = y - D @ state.x + before / m * state.v
        theta = magnitude(p.alpha) * (norm(v) / math.sqrt(m))
        u = state.x + v @ p.W
        x = self.shrink(D, u, theta)
        return Corrected(x, v, None if state.divergence is None else penalty.divergence(u, x))

    def weights(self, shared, p, D):
        return Acting(p.W)

    def message_passing(self):
        plain = self.activation == relu and self.is_soft
        return MessagePassing("amp", "soft", "alpha") if plain else None


@checked
def bernoulli_gaussian_mean(
    r: Array, tau2: ArrayLike, *, probability: float, variance: float
) -> Array:
    r"""E[x | x + n = r], where x is N(0, variance) with `probability`, else 0, and n is N(0, tau2).

    .. math::
        \frac{v}{v + \tau^2} r \; \sigma\Big(\ln \frac{p}{1-p}
        + \tfrac12 \ln \frac{\tau^2}{v + \tau^2}
        + \frac{r^2}{2} \Big(\frac{1}{\tau^2} - \frac{1}{v + \tau^2}\Big)\Big).

    Args:
        r: any shape.
        tau2: noise variance, positive, broadcast against r.
        probability: p, in (0, 1).
        variance: v, positive.

    Returns:
        The estimate, in the shape of r.

    Example:
        >>> r, prior = jnp.array([0.1, 2.0]), dict(probability=0.1, variance=1.0)
        >>> [round(float(x), 3) for x in ur.layers.bernoulli_gaussian_mean(r, 0.01, **prior)]
        [0.002, 1.98]
    """
    probability = checks.as_fraction(probability, "probability", "bernoulli_gaussian_mean")
    log_odds = math.log(probability) - math.log1p(-probability)
    r = checks.as_float(r, "r", "bernoulli_gaussian_mean")
    checks.broadcast("bernoulli_gaussian_mean", r=r, tau2=tau2)
    return _bernoulli_gaussian_mean(r, tau2, log_odds, variance)


@program()
def _bernoulli_gaussian_mean(r: Array, tau2: Any, log_odds: float, variance: float) -> Array:
    # In half precision, r / tau2 would overflow, and the slope of the estimate would be nan.
    wide, tau2 = widened(r), jnp.asarray(tau2, wide_dtype(r.dtype))
    share, mean = posterior(wide, tau2, log_odds, variance)
    return (mean * share).astype(r.dtype)


def posterior(r: Array, tau2: Any, log_odds: Any, variance: Any) -> tuple[Array, Array]:
    """The probability that x is nonzero given x + n = r, and the mean of x if it is nonzero."""
    tau2 = jnp.minimum(tau2, float(jnp.finfo(r.dtype).max) / 2)  # tau2 may overflow
    total = variance + tau2
    odds = log_odds + jnp.log(tau2 / total) / 2
    # r^2 / 2 (1 / tau2 - 1 / total), in a form that computes neither difference nor square.
    share = jax.nn.sigmoid(odds + (r / tau2) * (r / total) * variance / 2)
    return share, variance / total * r


class Estimating(Layer):
    """A family whose steps end in `self.estimate(r, tau2)`, for codes with a known distribution.

    Args:
        probability: probability that an entry of the code is nonzero.
        variance: variance of the nonzeros of the code.

    Example:
        >>> layer = ur.layers.tista(3, probability=0.1, variance=1.0)
        >>> [round(float(x), 3) for x in layer.estimate(jnp.array([0.1, 2.0]), 0.01)]
        [0.002, 1.98]
    """

    probability: float = option(default=0.1, above=0, below=1)
    variance: float = option(default=1.0, above=0)

    def estimate(self, r: Array, tau2: Any) -> Array:
        """`bernoulli_gaussian_mean` with the options of the layer."""
        prior = dict(probability=self.probability, variance=self.variance)
        return bernoulli_gaussian_mean(r, tau2, **prior)


# The least noise variance, as a part of the variance of the codes, for finite odds: -100 dB.
_LEAST_NOISE = 1e-10


class Estimated(NamedTuple):
    """The state: the code, the corrected residual v, and the factor b of v in the next v."""

    x: Array  # (d,)
    v: Array  # (m,)
    memory: Array  # ()


class lamp_bg(Estimating):
    r"""K steps of LAMP whose shrinkage is the posterior mean of a Bernoulli-Gaussian code.

    .. math::
        v_k = y - D x_k + b_k v_{k-1}, \qquad \tau_k = \alpha_k \|v_k\|_2 / \sqrt m, \qquad
        u = x_k + W_k' v_k, \\
        x_{k+1} = \eta(u; \tau_k), \qquad b_{k+1} = \tfrac1m \sum_i \eta'(u_i; \tau_k), \qquad
        \eta(u; \tau) = E[x | x + \tau n = u].

    Params: steps (W, alpha); the sign of alpha has no effect. `init` gives approximate message
    passing: W = D and alpha = 1 for unit atoms; for other atoms W and alpha are in the units of D.
    The noise level is estimated from the residual.

    The layer has no lam; its options describe the law of the codes. Before training, the LASSO
    objective of the codes of this layer can be above the LASSO objective of the codes of ISTA at
    the same depth.

    Reference: Borgerding, Schniter, Rangan (2017) for the shrinkage eta_bg, whose prior they also
    learn; Donoho, Maleki, Montanari (2009) for the initial params. Not claimed: sparse codes,
    because entries are small but not zero; convergence if D is not Gaussian.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.lamp_bg(8, probability=0.02), 2 * D[:, 3] - D[:, 7]
        >>> jnp.flatnonzero(jnp.abs(layer.apply(layer.init(None, D), D, y)) > 0.1).tolist()
        [3, 7]
    """

    forms = (Unrolled(None, Message),)
    recipe = Recipe(rate=1e-4, options=lambda law, chosen: law.prior, damped=DAMPED)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        return message_passing(as_dictionary(D, self.family), 1.0, self.depth, self.family)

    def start(self, D, y):
        return Estimated(jnp.zeros(D.shape[1], y.dtype), jnp.zeros_like(y), jnp.zeros((), y.dtype))

    def step(self, shared, p, D, y, state):
        m = y.shape[0]
        v = y - D @ state.x + state.memory * state.v
        least = max(_LEAST_NOISE * self.variance, float(jnp.finfo(y.dtype).tiny))
        (e, k), j = energy(v), exponent(p.alpha)  # squares may overflow or underflow
        tau2 = ldexp(times_power(widened(p.alpha), -j) ** 2 * e / m, 2 * (j + k))
        tau2 = jnp.maximum(tau2, least)
        u = state.x + v @ p.W
        x, slope = jax.jvp(lambda u: self.estimate(u, tau2), (u,), (jnp.ones_like(u),))
        return Estimated(x, v, jnp.sum(slope) / m)

    def weights(self, shared, p, D):
        return Acting(p.W)

    def message_passing(self):
        return MessagePassing("amp", "bayes", None, self.probability, self.variance)


# The least estimate of the error, as in the paper, which keeps tau positive.
_LEAST_ERROR = 1e-9
# The least estimate with the correction, as a part of the variance of the codes.
_LEAST_CORRECTED = 1e-13
_LARGEST_SLOPE = 0.9  # the largest a in the correction


class Projection(NamedTuple):
    """The weights of the steps, and the sums of squares (e, k), e 2^(2 k), of D and of W."""

    W: Array  # (m, d)
    energy_D: tuple[Array, Array]
    energy_W: tuple[Array, Array]


class Freed(NamedTuple):
    """The state: the code, and the point z from which the next step starts."""

    x: Array  # (d,)
    z: Array  # (d,)


class tista(Estimating):
    r"""K steps of ISTA for codes with a known distribution; K step sizes are learned.

    .. math::
        r = x + \gamma_k D^+ (y - D x), \qquad x \leftarrow E[x^* | x^* + \tau_k n = r], \qquad
        \tau_k^2 = \frac{v}{d} (d + (\gamma_k^2 - 2 \gamma_k) \min(m, d))
        + \frac{\gamma_k^2 \sigma^2}{d} \|D^+\|_F^2,

    where v = max((norm(y - D x)^2 - m sigma^2) / norm(D, "fro")^2, 1e-9) estimates the mean square
    error. With `onsager`, the next step starts from z instead of x, with the same formulas,

    .. math:: z = \frac{x - a r}{1 - a},

    where a is the mean derivative of the estimate. The errors of z and r are then uncorrelated, as
    the formula for tau_k assumes.

    Params: shared W = (D^+)', which is fixed, and steps gamma. `init` sets gamma = d / min(m, d),
    for which the errors of r are unbiased. Without `onsager`, `init` sets gamma to at most 2,
    because longer steps can diverge.

    The layer has no lam; its options describe the law of the codes. Before training, the LASSO
    objective of the codes of this layer can be above the LASSO objective of the codes of ISTA at
    the same depth.

    Reference: Ito, Takabe, Wadayama (2019); Ma, Ping (2017) for the correction.
    `theory.state_evolution` predicts the error. Not claimed: sparse codes, because entries are
    small but not zero.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.tista(8, probability=0.02), 2 * D[:, 3] - D[:, 7]
        >>> jnp.flatnonzero(jnp.abs(layer.apply(layer.init(None, D), D, y)) > 0.1).tolist()
        [3, 7]
    """

    noise: float = option(default=0.0, least=0, help="variance sigma^2 of the noise per entry of y")
    onsager: bool = option(default=False, help="use the correction of message passing")

    forms = (Unrolled(Fixed, Step),)
    recipe = Recipe(rate=1e-2, options=lambda law, chosen: law.prior | {"noise": law.noise})

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        nonzero(column_norms(D), self.family)
        gamma = D.shape[1] / min(D.shape)
        return _unbiased(D, gamma if self.onsager else min(gamma, 2.0), self.depth)

    def prepare(self, params, D):
        W = lax.stop_gradient(params.shared.W)
        # Each sum of squares is divided by a power of 4, because the sum may overflow or underflow.
        return Prepared(params._replace(shared=Projection(W, energy(dense(D)), energy(W))), D)

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return Freed(zero, zero) if self.onsager else State(zero)

    def step(self, shared, p, D, y, state):
        W, (E, i), (w, k) = shared
        (m, d), gamma = D.shape, p.gamma
        least = _LEAST_CORRECTED * self.variance if self.onsager else _LEAST_ERROR
        z = state.z if self.onsager else state.x
        residual = y - D @ z
        e, j = energy(residual)
        noise, n = math.frexp(self.noise)
        excess = ldexp(e / E, 2 * (j - i)) - m * ldexp(noise / E, n - 2 * i)
        v, g = jnp.maximum(excess, least), widened(gamma)
        tau2 = v / d * (d + (g**2 - 2 * g) * min(m, d))  # the rank of D, if it is full
        tau2 = tau2 + g**2 / d * ldexp(noise * w, n + 2 * k)
        tau2 = jnp.maximum(tau2, least)
        r = z + gamma * (residual @ W)
        if not self.onsager:
            return State(self.estimate(r, tau2))
        x, slope = jax.jvp(lambda r: self.estimate(r, tau2), (r,), (jnp.ones_like(r),))
        a = jnp.minimum(jnp.mean(slope), _LARGEST_SLOPE)
        return Freed(x, (x - a * r) / (1 - a))

    def weights(self, shared, p, D):
        return Acting(shared.W, p.gamma)

    def message_passing(self):
        step = "oamp" if self.onsager else "projected"
        prior = self.probability, self.variance
        return MessagePassing(step, "bayes", None, *prior, noise=self.noise)


@program("depth")
def _unbiased(D: Dictionary, gamma: float, depth: int) -> Unrolled:
    return Unrolled(Fixed(pseudo_inverse(D).T), Step(jnp.full(depth, gamma, D.dtype)))


# Variances and energies stay above this part of the signal's energy, for finite quotients.
_LEAST = 1e-13
# Bounds on the mean slope a of the estimate, because a message has the divisor 1 - a.
_SLOPES = 1e-4, 0.95
# A residual has grown if its norm exceeds the least norm so far by this factor. If a residual has
# grown, the share of the new message is halved, but not below the least share. After all other
# steps the share rises by a tenth.
_GROWTH = 1.1
_HALF, _RISE, _LEAST_SHARE = 0.5, 1.1, 0.2
# The least number of degrees of freedom of the noise, as a part of m.
_LEAST_FREEDOM = 0.2
_MOST_DAMPED = 0.95
_MOST_PROBABLE = 0.6
# The ratio of the energies of noise and signal that is assumed for signals without noise.
_NOISELESS = 1e-10


class Spectrum(NamedTuple):
    """D = U diag(s) V; s has the min(m, d) singular values of D, and then zeros."""

    U: Annotated[Array, Shape("m,m")]  # left singular vectors of D
    s: Annotated[Array, Shape("m")]  # singular values
    V: Annotated[Array, Shape("m,d")]  # right singular vectors


class Belief(NamedTuple):
    """The assumptions of a step about codes and noise, and the share of the old message to keep."""

    log_odds: Number  # log odds that an entry of the code is nonzero
    log_variance: Number  # log variance of a nonzero, in units of the option `variance`
    log_noise: Number  # log ratio of the energies of noise and signal
    damping: Number  # the share of the old message that a step keeps


class Assumed(NamedTuple):
    """The assumptions about codes and noise, in the units of one signal."""

    log_odds: ArrayLike
    variance: Array
    noise: Array  # variance of the noise in an entry of y


class Decomposed(NamedTuple):
    """D = 2^exponent U diag(s) V, with s near 1."""

    U: Array  # (m, m)
    s: Array  # (m,)
    V: Array  # (m, d)
    exponent: Array


class Passed(NamedTuple):
    """The state: the code, the message about the code, and the history of the residual.

    The signal y U is in units of a power of 2, in which its entries are near 1.
    """

    x: Array  # (d,)
    r: Array  # (d,), the message
    z: Array  # (m,), V r
    tau: Array  # the variance of the message; 0 before the first step
    assumed: Assumed
    limit: Array  # the energy above which a residual has grown
    share: Array  # the share of the new message
    grew: Array  # number of steps with a grown residual, an integer
    y: Array  # (m,), y U


def _assumed(law: Law, chosen: Mapping[str, Any]) -> dict[str, float]:
    """The options that describe the law; with `em` the layer learns the law of each signal."""
    if chosen.get("em"):
        return {}
    return law.prior | {"noise_ratio": max(law.noise / law.signal, _NOISELESS)}


class vamp_bg(Layer):
    r"""K steps of vector approximate message passing for Bernoulli-Gaussian codes.

    .. math::
        u = r + \tfrac1c D'(D D' + \tfrac{\sigma^2}{\tau} I)^{-1} (y - D r), \qquad
        \tau_u = \tau \frac{1 - c}{c}, \\
        x = E[x^* | x^* + \sqrt{\tau_u} n = u], \qquad
        r \leftarrow \frac{x - a u}{1 - a}, \qquad \tau \leftarrow \tau_u \frac{a}{1 - a},

    where c is the mean of the eigenvalues of D'(D D' + sigma^2/tau I)^-1 D and a is the mean slope
    of the estimate. With D = U S V, the inverse becomes a division, and a step takes two matrix
    products, as many as a step of ISTA.

    With `em` the layer needs no prior. Each step estimates the probability and the variance of the
    nonzeros from its code, by expectation-maximisation, and the noise from its residual. Each
    signal has its own estimates. If m > d, the first estimate of the noise is the part of y outside
    of the range of D. The code scales with the signal, unless `variance` is given.

    If the norm of the residual exceeds norm(y), or exceeds the least norm so far by more than a
    tenth, the layer keeps the previous code and damps later messages. The field `grew` of the last
    state, `layer.run(params, D, y)[0]`, counts these events. If `grew` is not 0, the code of the
    signal may be far from the best code.

    Params: shared U, S and V, which are fixed and computed from the D of `init`; steps (log_odds,
    log_variance, log_noise, damping), which `init` sets to the options. `apply` uses U, S and V,
    and only the shape of its argument D. With `em`, only the first step uses log_odds, log_variance
    and, if m <= d, log_noise.

    The layer has no lam: the code of c y is c times the code of y. LASSO codes with a fixed lam do
    not scale with y. Before training, the LASSO objective of the codes of this layer can be above
    the LASSO objective of the codes of ISTA at the same depth.

    Args:
        em: learn probability, variance and noise for each signal.
        probability: probability that an entry of the code is nonzero.
        variance: variance of the nonzeros; None estimates it from the energy of the signal.
        noise_ratio: assumed energy of the noise, divided by the energy of the signal: 1e-4 at 40
            dB.
        damping: share of the old message that a step keeps.

    Reference: Rangan, Schniter, Fletcher (2019); Fletcher, Schniter (2017) for `em`. Not claimed:
    sparse codes, because entries are small but not zero; convergence if the law of D is not
    rotation invariant, as with correlated columns or parts of transforms; accuracy of `em` for
    noisy signals with m near d. If m <= d, set `noise_ratio` for such signals, because their first
    code otherwise fits the noise.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.vamp_bg(8, em=True), 2 * D[:, 3] - D[:, 7]
        >>> state, _ = layer.run(layer.init(None, D), D, y)
        >>> jnp.flatnonzero(jnp.abs(state.x) > 0.1).tolist(), int(state.grew)
        ([3, 7], 0)
    """

    em: bool = option(default=False)
    probability: float = option(default=0.1, above=0, below=1)
    variance: float | None = option(default=None, above=0)
    noise_ratio: float = option(default=_NOISELESS, above=0)
    damping: float = option(default=0.0, least=0, below=1)

    forms = (Unrolled(Fixed[Spectrum], Belief),)
    recipe = Recipe(rate=0, options=_assumed)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        nonzero(column_norms(D), self.family)
        return _decomposed(self, D)

    def prepare(self, params, D):
        U, s, V = jax.tree.map(widened, lax.stop_gradient(params.shared.W))
        i = exponent(s)
        return Prepared(params, Decomposed(U, times_power(s, -i), V, i))

    def start(self, D, y):
        m, d = D.V.shape
        wide = wide_dtype(y.dtype)
        y_U = times_power(widened(y), -exponent(y)) @ D.U
        zero, nothing = jnp.zeros((), wide), Assumed(*(jnp.zeros((), wide),) * 3)
        x, count = jnp.zeros(d, y.dtype), jnp.zeros((), jnp.int32)
        r, z = jnp.zeros(d, wide), jnp.zeros(m, wide)
        return Passed(x, r, z, zero, nothing, zero, zero, count, y_U)

    def step(self, shared, p, D, y, state):
        s, V, y_U, (m, d) = D.s, D.V, state.y, D.V.shape
        p, i, k = jax.tree.map(widened, p), D.exponent, exponent(y)
        signal = jnp.sum(y_U**2)
        signal = jnp.where(signal > 0, signal, 1)
        power = signal / jnp.sum(s**2)  # the power of an entry of the code
        first, least = state.tau == 0, _LEAST * power
        assumed = self._assumed(p, power, signal / m, k - i)
        if self.em:
            if m > d:  # the part of y outside of the range of D is noise
                outside = jnp.sum(y_U[d:] ** 2) / (m - d)
                assumed = assumed._replace(noise=jnp.maximum(outside, _LEAST * signal / m))
            pairs = zip(assumed, state.assumed)
            assumed = Assumed(*(jnp.where(first, now, before) for now, before in pairs))
        tau = jnp.where(first, power, state.tau)
        u, z_u, tau_u = _linear(s, V, y_U, state, tau, assumed.noise)
        tau_u = jnp.maximum(tau_u, least)
        share, mean = posterior(u, tau_u, *assumed[:2])
        x, gain = share * mean, assumed.variance / (assumed.variance + tau_u)
        a = jnp.clip(jnp.mean(gain * share + x * u * gain / tau_u * (1 - share)), *_SLOPES)
        z = V @ x
        residual = y_U - s * z
        energy = lax.stop_gradient(jnp.sum(residual**2))
        limit = jnp.where(first, signal, state.limit)
        grew = energy > limit
        turned = _turned(first, grew, state.share)
        new = turned * (1 - jnp.clip(p.damping, 0, _MOST_DAMPED))
        new = jnp.where(first, 1, new)
        if self.em:
            noise = _noise(residual, s, a * tau_u, assumed.noise, d * a / m)
            noise = jnp.maximum(noise, _LEAST * signal / m)
            assumed = _prior(share, mean, gain * tau_u, noise)
        return Passed(
            jnp.where(grew, state.x, ldexp(x, k - i).astype(y.dtype)),
            new * (x - a * u) / (1 - a) + (1 - new) * state.r,
            new * (z - a * z_u) / (1 - a) + (1 - new) * state.z,
            new * jnp.maximum(tau_u * a / (1 - a), least) + (1 - new) * tau,
            assumed,
            jnp.minimum(limit, _GROWTH**2 * energy),
            turned,
            state.grew + grew.astype(jnp.int32),
            y_U,
        )

    def message_passing(self):
        assumed = () if self.em else (self.probability, self.variance, self.noise_ratio)
        return MessagePassing("vamp", "bayes", None, *assumed)

    def _assumed(self, p: Belief, power: Array, noise: Array, scale: Array) -> Assumed:
        """The assumptions in the params; 2^scale is the unit of codes."""
        if self.variance is None:
            variance = power / self.probability
        else:
            variance = ldexp(jnp.asarray(self.variance, power.dtype), -2 * scale)
        return Assumed(p.log_odds, variance * jnp.exp(p.log_variance), noise * jnp.exp(p.log_noise))


@program("layer")
def _decomposed(layer: vamp_bg, D: Dictionary) -> Unrolled:
    m, A = D.shape[0], dense(D)
    with jax.enable_x64(True):
        U, s, V = jnp.linalg.svd(A.astype(jnp.float64), full_matrices=False)
        if m > len(s):  # the columns for the part of y that is only noise
            U = jnp.linalg.qr(U, mode="complete")[0].at[:, : len(s)].set(U)
        s = jnp.where(s > min(A.shape) * float(jnp.finfo(A.dtype).eps) * s[0], s, 0)
        spectrum = Spectrum(*(leaf.astype(A.dtype) for leaf in (U, s, V)))
    missing = m - len(spectrum.s)  # positive if D has more rows than atoms
    s, V = (jnp.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) for v in spectrum[1:])
    p = layer.probability
    belief = math.log(p) - math.log1p(-p), 0.0, math.log(layer.noise_ratio), layer.damping
    return Unrolled(
        Fixed(Spectrum(spectrum.U, s, V)),
        Belief(*(jnp.full(layer.depth, v, D.dtype) for v in belief)),
    )


def _linear(s, V, y_U, state: Passed, tau: Array, noise: Array) -> tuple[Array, Array, Array]:
    """u, V u and tau_u: the best linear estimate from y, without the part from the message."""
    gain = s / (s**2 + noise / tau)
    c = jnp.sum(gain * s) / V.shape[1]
    shift = gain * (y_U - s * state.z) / c
    return state.r + shift @ V, state.z + shift, tau * (1 - c) / c


def _noise(residual, s, error: Array, noise: Array, spent: Array) -> Array:
    """The variance of the noise, from a residual whose entries have variance noise + s^2 error."""
    weights = 1 / (1 + s**2 * error / noise) ** 2
    mean = jnp.sum(weights * residual**2) / jnp.sum(weights)
    return mean / jnp.maximum(1 - spent, _LEAST_FREEDOM)


def _prior(share: Array, mean: Array, spread: Array, noise: Array) -> Assumed:
    """The probability and the variance of the nonzeros that maximise the expected likelihood."""
    count, d = jnp.sum(share), len(share)
    p = jnp.clip(count / d, 0.5 / d, _MOST_PROBABLE)
    variance = jnp.sum(share * mean**2) / count + spread
    return Assumed(jnp.log(p / (1 - p)), variance, noise)


def _turned(first: Array, grew: Array, share: Array) -> Array:
    """The share of the new message: half of `share` if the residual grew, else a tenth more."""
    share = jnp.where(first, 1, share)
    return jnp.where(grew, jnp.maximum(_HALF * share, _LEAST_SHARE), jnp.minimum(_RISE * share, 1))
