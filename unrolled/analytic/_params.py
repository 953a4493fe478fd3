"""Params from theory, one function per family, with leaves in the dtype of D."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import layers
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, DTypeLike, checked, host_function
from unrolled.activations import Activation, relu
from unrolled.analytic import _schedules
from unrolled.analytic._schedules import HypothesisWarning
from unrolled.dictionaries import Dictionary, Operator, as_dictionary
from unrolled.layers import Unrolled, ista_params
from unrolled.theory import state_evolution, stored_up

__all__ = [
    "alista",
    "alista_at",
    "dsc",
    "hyperlista",
    "ista",
    "lamp",
    "lista_cp",
]


@checked
def ista(D: Dictionary, lam: float, depth: int) -> Unrolled:
    """Params of `layers.ista` and `layers.fista`: gamma = 1 / L, theta = lam / L, L = norm(D, 2)^2.

    Args:
        D: (m, d).
        lam: weight of the LASSO.
        depth: K.

    Returns:
        params with steps (gamma, theta), (K,) each.

    Raises:
        TypeError: depth is not an integer.
        ValueError: lam < 0, D = 0, depth is negative, or lam / L is infinite in the dtype of D.

    Example:
        >>> ur.analytic.ista(2 * jnp.eye(3), 1.0, 2).steps.gamma.round(3).tolist()
        [0.25, 0.25]
    """
    D = as_dictionary(D, "analytic.ista")
    checks.nonnegative(lam, "lam", "analytic.ista")
    depth = checks.as_depth(depth, "depth", "analytic.ista")
    return ista_params(D, lam, depth, "analytic.ista")


@host_function
def lista_cp(
    D: Dictionary,
    *,
    depth: int,
    sparsity: int,
    bound: ArrayLike | Any,
    noise: float = 0.0,
    W: Dictionary | None = None,
    activation: Activation | Callable | str = relu,
    tied: bool = True,
    noise_norm: str | Any = "l1",
    per_atom: bool = False,
) -> Unrolled:
    """Params of `layers.lista_cp`: weights W, and thresholds that certify a bound on the error.

    Args:
        D: (m, d), unit atoms.
        depth: K.
        sparsity, bound, noise: s, B and delta. Codes have at most s nonzeros of magnitude at most
            B, and the noise has an l1 norm of at most delta. Pass codes (n, d) as `bound` to take
            the size of their largest entry; `bound_remark` says which share of codes exceeds B.
        W: (m, d), weights with w_i . d_i near 1; by default D or `frobenius_weights(D)`, whichever
            has the smaller mu_W.
        activation: the activation of the layer.
        tied: if False, repeat W at every step, to train an untied network.
        noise_norm: "l1", or "l2" if `noise` bounds the l2 norm of the noise; with "l2", omega = max
            norm(w_i, 2) replaces C_W.
        per_atom: if True, use the thresholds of `theory.atom_schedule`, (K, d). These thresholds
            are smaller, require ReLU, and certify only a bound on the l1 error.

    Returns:
        params, with one W or with one W per step, as `tied` says.

    Warns:
        HypothesisWarning: (2s-1) mu_W >= 1, no theorem covers the activation, or codes of this size
            may leave the range of the dtype. In these cases nothing is certified.

    Raises:
        ValueError: atoms are off unit norm, an atom is zero, sparsity is above d, or a number is
            negative or NaN.

    Reference: Li, Feng, Zhou (2024), Theorem 12 for ReLU, Theorems 15 and 10 for other activations.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> params = ur.analytic.lista_cp(D, depth=3, sparsity=1, bound=1.0)
        >>> print(params.steps.theta.round(2))  # mu_W E_k, with mu_W = 1/4 and E_k = 4^-k
        [0.25 0.06 0.02]
    """
    class_of = dict(sparsity=sparsity, bound=bound, noise=noise, noise_norm=noise_norm)
    W, theta = _weights_and_thresholds(D, W, activation, depth, per_atom, **class_of)
    return layers.lista_cp(depth, tied=tied).from_theory(W, theta)


@host_function
def alista(
    D: Dictionary,
    *,
    depth: int,
    sparsity: int,
    bound: ArrayLike | Any,
    noise: float = 0.0,
    W: Dictionary | None = None,
    activation: Activation | Callable | str = relu,
    noise_norm: str | Any = "l1",
    per_atom: bool = False,
) -> Unrolled:
    """Params of `layers.alista`: the params of `lista_cp`, with gamma = 1 and with W held fixed.

    Arguments, warnings and errors are as in `lista_cp`.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> params = ur.analytic.alista(D, depth=3, sparsity=1, bound=1.0)
        >>> type(params.shared).__name__, params.steps.gamma.tolist()
        ('Fixed', [1.0, 1.0, 1.0])
    """
    class_of = dict(sparsity=sparsity, bound=bound, noise=noise, noise_norm=noise_norm)
    W, theta = _weights_and_thresholds(D, W, activation, depth, per_atom, **class_of)
    return layers.alista(depth).from_theory(W, theta)


def hyperlista(D: Dictionary) -> Unrolled:
    """Params of `layers.hyperlista` for any depth: closed-form weights and three scalars.

    The three scalars suit the standard benchmark. For other dictionaries and codes, choose the
    scalars on a sample with `training.search`.

    Args:
        D: (m, d), unit atoms.

    Returns:
        params with shared (analytic, threshold, momentum, selection) and without steps.

    Raises:
        ValueError: an atom is zero, or atoms are off unit norm.

    Example:
        >>> params = ur.analytic.hyperlista(ur.dictionaries.identity_hadamard(16))
        >>> round(float(params.shared.analytic.W.mu_W), 3)
        0.25
    """
    return layers.hyperlista(0).init(None, D)


@host_function
def dsc(
    Ds: Sequence[Dictionary],
    *,
    depths: Sequence[int],
    sparsities: Sequence[int],
    bounds: Sequence[ArrayLike | Any],
    noises: Sequence[float] | None = None,
    Ws: Sequence[Dictionary | None] | None = None,
    activations: Sequence[Activation | Callable | str] | None = None,
) -> tuple[Unrolled, ...]:
    """Params of a chain of LISTA-CP blocks, one block per dictionary, which are certified together.

    Args:
        Ds: the dictionaries of the J blocks, (d_{j-1}, d_j).
        depths, sparsities, bounds, noises, Ws, activations: one value per block, as in `lista_cp`;
            by default noises are zero and activations are ReLU. If codes come in parts, sparsities
            and bounds refer to the sizes of the parts, and noises bound the l2 norm.

    Returns:
        Params of `networks.dsc` with J layers `lista_cp`.

    Warns, Raises: as in `lista_cp`; also ValueError if the sequences differ in length.

    Reference: Li, Feng, Zhou (2024), Theorem 6, corrected.

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), jnp.eye(32)
        >>> classes = dict(sparsities=(1, 1), bounds=(1.0, 1.0))
        >>> params = ur.analytic.dsc(Ds, depths=(3, 2), **classes)
        >>> [p.steps.theta.shape for p in params]
        [(3,), (2,)]
    """
    classes: dict[str, Any] = dict(sparsities=sparsities, bounds=bounds, noises=noises)
    certified, schedules = _schedules.chain_schedules(
        Ds, depths=depths, Ws=Ws, activations=activations, **classes
    )
    return tuple(
        layers.lista_cp(len(schedule.theta)).from_theory(
            c.W, stored_thresholds(schedule.theta, c.W.dtype)
        )
        for c, schedule in zip(certified, schedules)
    )


def _weights_and_thresholds(
    D, W, activation, depth, per_atom, **class_of
) -> tuple[Operator, Array]:
    certified, schedule = _schedules.block_schedule(
        D, W, activation, depth=depth, per_atom=per_atom, **class_of
    )
    return certified.W, stored_thresholds(schedule.theta, certified.W.dtype)


@host_function
def stored_thresholds(theta: np.ndarray, dtype: DTypeLike) -> Array:
    """Thresholds of a schedule in the dtype of D, rounded up, but finite also if they diverge.

    Example:
        >>> ur.analytic.stored_thresholds(np.array([0.5, np.inf]), "float16").tolist()
        [0.5, 16376.0]
    """
    largest = float(jnp.finfo(dtype).max) * _schedules.LARGEST_SHARE
    return jax.device_put(np.minimum(stored_up(theta, dtype), largest).astype(dtype))


# The default support selection of a layer.
_SUPPORT = layers.alista_at(0).support


@host_function
def lamp(
    D: Dictionary,
    depth: int,
    *,
    probability: float,
    variance: float = 1.0,
    noise: float = 0.0,
    margin: float = 1.5,
) -> Unrolled:
    """Params of `layers.lamp` for Bernoulli-Gaussian codes, computed without a sample; W = D.

    Each alpha minimises the error after its step, as predicted by `theory.state_evolution`.

    Args:
        D: (m, d), an array with unit atoms.
        depth: K.
        probability, variance: probability that an entry is nonzero, and variance of the nonzeros.
        noise: sigma^2, the variance of the noise per entry of y.
        margin: the thresholds suit codes with `margin` times as many nonzeros as `probability`
            says, because the signals with the most nonzeros dominate an error that is a ratio of
            sums.

    Returns:
        params with steps (W, alpha).

    Warns:
        HypothesisWarning: `theory.state_evolution` does not hold.

    Raises:
        TypeError, ValueError: as in `theory.state_evolution`; ValueError also if margin < 1.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> [f"{a:.1f}" for a in ur.analytic.lamp(D, 3, probability=0.1).steps.alpha]
        ['1.4', '1.3', '1.2']
    """
    D, layer = as_dictionary(D, "analytic.lamp"), layers.lamp(depth)
    options = dict(probability=probability, variance=variance, noise=noise)
    alpha = _thresholds(layer, D, margin, "analytic.lamp", options)
    params = layer.init(None, D)
    return params._replace(steps=params.steps._replace(alpha=alpha))


@host_function
def alista_at(
    D: Dictionary,
    depth: int,
    *,
    probability: float,
    variance: float = 1.0,
    noise: float = 0.0,
    margin: float = 1.5,
    support: tuple[float, float] | None = _SUPPORT,
) -> Unrolled:
    """Params of `layers.alista_at(onsager=True)` for Bernoulli-Gaussian codes, without a sample.

    W has the closed form, and gamma is 1. Each theta minimises the error after its step, as
    predicted by `theory.state_evolution`. With margin 1 instead of the default, the error of the
    typical signal is smaller, and the error as a ratio of sums is larger.

    Args:
        D, depth, probability, variance, noise, margin: as in `lamp`.
        support: support selection of the layer.

    Returns:
        params with shared W and steps (gamma, theta, beta).

    Warns:
        HypothesisWarning: `theory.state_evolution` does not hold.

    Raises:
        TypeError, ValueError: as in `theory.state_evolution`; ValueError also if margin < 1.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> params = ur.analytic.alista_at(D, 3, probability=0.1)
        >>> [f"{theta:.1f}" for theta in params.steps.theta], params.steps.gamma.tolist()
        (['1.3', '1.1', '1.1'], [1.0, 1.0, 1.0])
    """
    D = as_dictionary(D, "analytic.alista_at")
    layer = layers.alista_at(depth, onsager=True, support=support)
    options = dict(probability=probability, variance=variance, noise=noise)
    theta = _thresholds(layer, D, margin, "analytic.alista_at", options)
    params = layer.init(None, D)
    gamma = jax.device_put(np.ones(depth, theta.dtype))
    return params._replace(steps=params.steps._replace(gamma=gamma, theta=theta))


def _thresholds(layer, D: Dictionary, margin: float, where: str, options: dict):
    """The best thresholds for `margin` times the probability of nonzeros, in the dtype of D."""
    if not margin >= 1:
        raise ValueError(f"{where}: margin must be at least 1, got {margin}")
    p = options["probability"]
    more = min(margin * p, (1 + p) / 2) if 0 < p < 1 else p  # `state_evolution` refuses other p
    evolution = state_evolution(layer, D, **options | dict(probability=more))
    if not evolution.holds:
        checks.warn(
            f"{where}: state evolution does not hold, as {evolution.reason}; message passing may "
            "diverge, try layers.vamp_bg, or analytic.calibrate on a sample",
            HypothesisWarning,
        )
    return jax.device_put(np.asarray(evolution.thresholds, D.dtype))
