"""Vector approximate message passing for Bernoulli-Gaussian codes; it can learn their prior."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._base.checks import Array, ArrayLike, Key
from unrolled._base.numbers import exponent, ldexp, times_power, wide_dtype, widened
from unrolled._base.programs import program
from unrolled.dictionaries import Dictionary, as_dictionary, column_norms, dense
from unrolled.layers._lamp import nonzero, posterior
from unrolled.layers._layer import Law, Layer, Recipe
from unrolled.layers._records import Fixed, Number, Shape, Unrolled
from unrolled.records import option
from unrolled.theory import MessagePassing

# Variances and energies stay above this part of those of the signal: quotients stay finite.
_LEAST = 1e-13
# The mean slope of the estimate stays between these: a message is (x - a r) / (1 - a).
_SLOPES = 1e-4, 0.95
# A residual grows where its norm exceeds the least one by this factor. Then the share of the new
# message is halved, down to the least share; after every other step it rises by a tenth.
_GROWTH = 1.1
_HALF, _RISE, _LEAST_SHARE = 0.5, 1.1, 0.2
# Degrees of freedom that are left to the noise, at least, as a part of m.
_LEAST_FREEDOM = 0.2
_MOST_DAMPED = 0.95
_MOST_PROBABLE = 0.6
# Energy of the noise over that of the signal, of signals without noise.
_NOISELESS = 1e-10


class Spectrum(NamedTuple):
    """D = U diag(s) V: the first min(m, d) singular values, and zeros."""

    U: Annotated[Array, Shape("m,m")]  # left singular vectors of D
    s: Annotated[Array, Shape("m")]  # singular values
    V: Annotated[Array, Shape("m,d")]  # right singular vectors


class Belief(NamedTuple):
    """What a step assumes of the codes and the noise, and how much of the old message it keeps."""

    log_odds: Number  # of a nonzero
    log_variance: Number  # of a nonzero, over that of the options
    log_noise: Number  # of the energy of the noise over that of the signal
    damping: Number  # share of the message before that a step keeps


class Assumed(NamedTuple):
    """The belief in the units of one signal."""

    log_odds: ArrayLike
    variance: Array
    noise: Array  # variance per entry of y


class Passed(NamedTuple):
    """The state: the code, the message about it, and what the residual showed."""

    x: Array  # (d,)
    r: Array  # (d,), the message
    z: Array  # (m,), V r
    tau: Array  # its variance; 0 before the first step
    assumed: Assumed
    limit: Array  # energy above which a residual has grown
    share: Array  # of the new message
    grew: Array  # how many steps left a residual that grew, an integer


def _assumed(law: Law, chosen: Mapping[str, Any]) -> dict[str, float]:
    """The law as the options say it; with `em` each signal tells its own."""
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

    where c is the mean of the eigenvalues of D'(D D' + sigma^2/tau I)^-1 D and a the mean slope of
    the estimate. With D = U S V the inverse is a division, and a step has two products, as ISTA.

    With `em` nothing need be known: the probability and the variance of the nonzeros are those of
    each step's own estimate, by expectation-maximisation, and the noise is that of its residual,
    each signal by itself; for m > d it begins as that of y outside of the range of D. A scaled
    signal has a scaled code, unless `variance` is given.

    Where the norm of the residual grows by a tenth, the code of the step before stays, and from
    then on messages are damped. The field `grew` of the last state, `layer.run(params, D, y)[0]`,
    says how often: codes of a signal where it is not 0 may be far from the best ones.

    Params: shared U, S and V of the D of `init`, fixed; steps (log_odds, log_variance, log_noise,
    damping), which start at the options. `apply` takes all that it needs of D from them. With `em`
    the first step alone reads what they say of the codes and, for m <= d, of the noise.

    It knows no lam, and a signal c y has c times the code of y, as no LASSO with a fixed lam has
    it: in that objective the start can be above ISTA at the same depth.

    Reference: Rangan, Schniter, Fletcher (2019); Fletcher, Schniter (2017) for `em`. Not claimed:
    sparse codes, entries are small but not zero; convergence where D is not rotation invariant, as
    with correlated columns or parts of transforms; `em` for noisy signals of m near d, whose first
    code fits the noise: give it their `noise_ratio`.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> layer, y = ur.layers.vamp_bg(8, em=True), 2 * D[:, 3] - D[:, 7]
        >>> state, _ = layer.run(layer.init(None, D), D, y)
        >>> jnp.flatnonzero(jnp.abs(state.x) > 0.1).tolist(), int(state.grew)
        ([3, 7], 0)
    """

    em: bool = option(default=False, help="learn probability, variance and noise for each signal")
    probability: float = option(
        default=0.1, above=0, below=1, help="probability that an entry of the code is nonzero"
    )
    variance: float | None = option(
        default=None,
        above=0,
        help="variance of the nonzeros; None takes that of codes with the energy of the signal",
    )
    noise_ratio: float = option(
        default=_NOISELESS,
        above=0,
        help="energy of the noise over that of the signal, as it is assumed: 1e-4 at 40 dB",
    )
    damping: float = option(
        default=0.0, least=0, below=1, help="share of the message before that a step keeps"
    )

    forms = (Unrolled(Fixed[Spectrum], Belief),)
    recipe = Recipe(rate=0, options=_assumed)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        nonzero(column_norms(D), self.family)
        return _start(self, D)

    def start(self, D, y):
        m, d = D.shape
        wide = wide_dtype(y.dtype)
        zero, nothing = jnp.zeros((), wide), Assumed(*(jnp.zeros((), wide),) * 3)
        x, count = jnp.zeros(d, y.dtype), jnp.zeros((), jnp.int32)
        r, z = jnp.zeros(d, wide), jnp.zeros(m, wide)
        return Passed(x, r, z, zero, nothing, zero, zero, count)

    def step(self, shared, p, D, y, state):
        U, s, V = jax.tree.map(widened, lax.stop_gradient(shared.W))
        p, (m, d) = jax.tree.map(widened, p), V.shape
        # In units of powers of two, in which neither D nor y has a scale.
        i, k = exponent(s), exponent(y)
        s, y_U = times_power(s, -i), times_power(widened(y), -k) @ U
        signal = jnp.sum(y_U**2)
        signal = jnp.where(signal > 0, signal, 1)
        power = signal / jnp.sum(s**2)  # of an entry of the code
        first, least = state.tau == 0, _LEAST * power
        assumed = self._assumed(p, power, signal / m, k - i)
        if self.em:
            if m > d:  # what no code explains is noise
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
        )

    def message_passing(self):
        assumed = () if self.em else (self.probability, self.variance, self.noise_ratio)
        return MessagePassing("vamp", "bayes", None, *assumed)

    def _assumed(self, p: Belief, power: Array, noise: Array, scale: Array) -> Assumed:
        """What the params say, in units of 2^scale for codes."""
        if self.variance is None:
            variance = power / self.probability
        else:
            variance = ldexp(jnp.asarray(self.variance, power.dtype), -2 * scale)
        return Assumed(p.log_odds, variance * jnp.exp(p.log_variance), noise * jnp.exp(p.log_noise))


@program("layer")
def _start(layer: vamp_bg, D: Dictionary) -> Unrolled:
    m, A = D.shape[0], dense(D)
    with jax.enable_x64(True):
        U, s, V = jnp.linalg.svd(A.astype(jnp.float64), full_matrices=False)
        if m > len(s):  # the part of y that is noise alone
            U = jnp.linalg.qr(U, mode="complete")[0].at[:, : len(s)].set(U)
        s = jnp.where(s > min(A.shape) * float(jnp.finfo(A.dtype).eps) * s[0], s, 0)
        spectrum = Spectrum(*(leaf.astype(A.dtype) for leaf in (U, s, V)))
    missing = m - len(spectrum.s)  # of a dictionary with more rows than atoms
    U, s, V = spectrum.U, *(jnp.pad(v, pad) for v, pad in zip(spectrum[1:], _pads(missing)))
    p = layer.probability
    belief = math.log(p) - math.log1p(-p), 0.0, math.log(layer.noise_ratio), layer.damping
    return Unrolled(
        Fixed(Spectrum(U, s, V)), Belief(*(jnp.full(layer.depth, v, D.dtype) for v in belief))
    )


def _pads(missing: int) -> tuple:
    """Where zeros go in s and V."""
    return (0, missing), ((0, missing), (0, 0))


def _linear(s, V, y_U, state: Passed, tau: Array, noise: Array) -> tuple[Array, Array, Array]:
    """u, V u and tau_u: what y says beyond the message, in the best linear estimate."""
    gain = s / (s**2 + noise / tau)
    c = jnp.sum(gain * s) / V.shape[1]
    shift = gain * (y_U - s * state.z) / c
    return state.r + shift @ V, state.z + shift, tau * (1 - c) / c


def _noise(residual, s, error: Array, noise: Array, spent: Array) -> Array:
    """The variance of the noise, from a residual whose entries have noise + s^2 error."""
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
    """The share of the new message: halved where the residual grew, else a tenth more."""
    share = jnp.where(first, 1, share)
    return jnp.where(grew, jnp.maximum(_HALF * share, _LEAST_SHARE), jnp.minimum(_RISE * share, 1))
