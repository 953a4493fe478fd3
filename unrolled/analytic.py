"""Theory to params: one function per family, returning what training returns.

Host functions: coherences and schedules are computed in float64, from D and W as they are stored, and the leaves have the
dtype of D. If the hypotheses of the theory fail, params come back all the same and a `HypothesisWarning` says by how much.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import Activation, by_name, relu
from unrolled.dictionaries._base import as_dictionary, unit_atoms
from unrolled.layers._ista import StepAndThreshold, ista_params
from unrolled.layers._lista import Threshold, repeat
from unrolled.layers._lista_cp import WeightsAndThreshold
from unrolled.layers._unroll import Fixed, Unrolled, Weights
from unrolled.theory import activation_schedule, coherence, diagonal, max_sparsity, rounding_guard, schedule
from unrolled.theory._weights import frobenius_weights as frobenius_weights


class HypothesisWarning(UserWarning):
    """The theory does not cover this dictionary and sparsity: its thresholds do not contract."""


class Certificate(NamedTuple):
    """What the theory sees of weights in hand, in float64."""

    mu_W: float  # rounded up
    C_W: float
    eta: float  # max abs(1 - w_i . d_i)
    guard: float  # per unit of s B: 4 eps max_ij (|W|' |D|)_ij


def certificate(W, D) -> Certificate:
    """mu_W, C_W, eta and the unit rounding guard of W against D, in float64 from the stored arrays."""
    eps_guard = rounding_guard(W, D, sparsity=1, bound=1.0)
    with jax.enable_x64(True):
        W, D = _checks.cast(W, np.float64), _checks.cast(D, np.float64)
        mu, C = (float(v) for v in coherence(W, D))
        eta = float(jnp.abs(1 - diagonal(W, D)).max())
    # An exact unit diagonal comes out at the rounding of m products; the guard already covers that much.
    return Certificate(mu * (1 + 1e-9), C, eta if eta > 1e-12 else 0.0, eps_guard)


def best_weights(D):
    """D itself or `frobenius_weights(D)`, whichever has the smaller mu_W (and so certifies more nonzeros)."""
    W = frobenius_weights(D)
    return D if coherence(D, D).mu_W <= coherence(W, D).mu_W else W


def block_schedule(D, W, *, depth, sparsity, bound, noise=0.0, activation=relu):
    """The certified schedule of one LISTA-CP block with weights W in hand (None takes `best_weights`), and W.

    Returns:
        `theory.Schedule`, or `theory.ActivationSchedule` if the activation is not ReLU, and W.
    """
    where = "analytic"
    D = as_dictionary(D, where)
    unit_atoms(D, where)
    W = best_weights(D) if W is None else as_dictionary(W, where)
    c = certificate(W, D)
    options = dict(sparsity=sparsity, bound=bound, noise=noise, depth=depth, eta=c.eta)
    s = _checks.as_index(sparsity, "sparsity", where)
    if s > D.shape[1]:
        raise ValueError(f"{where}: sparsity {s} exceeds the number of atoms {D.shape[1]}")
    if activation == relu:
        found = schedule(c.mu_W, c.C_W, guard=c.guard * s * bound, **options)
    else:
        found = _guarded(activation, c, D.shape[1], s * bound, options)
    if not found.holds:
        _warn(found.contraction, s, max_sparsity(c.mu_W, D.shape[1]), activation)
    return found, W


def _guarded(activation, c: Certificate, d: int, energy: float, options):
    """Codes are off the support too: the guard covers s B + max E_O, which it moves itself; a few turns settle it."""
    guard = c.guard * energy
    for _ in range(100):
        found = activation_schedule(activation, c.mu_W, c.C_W, d=d, guard=guard, **options)
        needed = c.guard * (energy + found.off_support.max())
        if not needed > guard:
            break
        guard = needed * (1 + 1e-3)
    return found


def _warn(a: float, s: int, largest: int, activation) -> None:
    name = "" if activation == relu else f" with {activation}"
    warnings.warn(
        f"the theory does not cover s = {s}{name}: contraction a = {a:.4g} (expected < 1); the largest admissible s is "
        f"{largest}. The thresholds come back but do not contract; try analytic.calibrate on a sample, or training",
        HypothesisWarning,
        stacklevel=4,
    )


def ista(D, lam: float, depth: int) -> Unrolled:
    """Params of `layers.ista` and `layers.fista`: gamma = 1 / L, theta = lam / L, with L = norm(D, 2)^2.

    Raises:
        ValueError: lam < 0, D = 0 or a depth that is not a non-negative integer.
    """
    D = as_dictionary(D, "analytic.ista")
    _checks.nonnegative(lam, "lam", "analytic.ista")
    params = ista_params(D, float(lam), _checks.as_index(depth, "depth", "analytic.ista"))
    if _checks.is_concrete(params) and not np.isfinite(np.asarray(params.steps.gamma)).all():
        raise ValueError("analytic.ista: D is zero, so the step size 1 / norm(D)^2 is undefined")
    return params


def lista_cp(
    D,
    *,
    depth: int,
    sparsity: int,
    bound: float,
    noise: float = 0.0,
    W=None,
    activation: Activation = relu,
    tied: bool = True,
) -> Unrolled:
    """Params of `layers.lista_cp` from theory: W as given and the thresholds of Theorem 12 (9, 10, 15 for other rho).

    Args:
        D: (m, d), unit atoms.
        depth: K.
        sparsity, bound, noise: s, B, delta: at most s nonzeros of magnitude at most B, noise of l1 norm at most delta.
        W: any weights with w_i . d_i = 1; None takes D or `frobenius_weights(D)`, whichever has the smaller mu_W.
        activation: as in the layer.
        tied: False repeats W at every step, for training an untied network.

    Warns:
        HypothesisWarning: (2s-1) mu_W >= 1, or no theorem covers the activation: nothing is certified.

    Raises:
        ValueError: atoms off unit norm, a zero atom, sparsity above d, negative or NaN numbers.
    """
    found, W = block_schedule(
        D, W, depth=depth, sparsity=sparsity, bound=bound, noise=noise, activation=by_name(activation)
    )
    theta = jnp.asarray(found.theta, W.dtype)
    if tied:
        return Unrolled(Weights(W), Threshold(theta))
    return Unrolled(None, WeightsAndThreshold(repeat(W, len(theta)), theta))


def alista(
    D, *, depth: int, sparsity: int, bound: float, noise: float = 0.0, W=None, activation: Activation = relu
) -> Unrolled:
    """Params of `layers.alista` from theory: as `lista_cp`, with gamma = 1 and W held fixed."""
    found, W = block_schedule(
        D, W, depth=depth, sparsity=sparsity, bound=bound, noise=noise, activation=by_name(activation)
    )
    theta = jnp.asarray(found.theta, W.dtype)
    return Unrolled(Fixed(W), StepAndThreshold(jnp.ones_like(theta), theta))


def deep_schedules(Ds, *, depths, sparsities, bounds, noises=None, Ws=None):
    """Schedules and weights of a chain: the certified error of a block enters the thresholds of the next (Theorem 6).

    Returns:
        a tuple of `theory.Schedule` and a tuple of W, one per dictionary.
    """
    J = len(Ds)
    noises = (0.0,) * J if noises is None else noises
    Ws = (None,) * J if Ws is None else Ws
    columns = {"depths": depths, "sparsities": sparsities, "bounds": bounds, "noises": noises, "Ws": Ws}
    for name, column in columns.items():
        if len(column) != J:
            raise ValueError(f"analytic.dsc: {name} has length {len(column)}; expected {J}, one per dictionary")
    for j, (left, right) in enumerate(zip(Ds, Ds[1:]), start=1):
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"analytic.dsc: D_{j} has shape {left.shape} but D_{j + 1} has shape {right.shape}")
    found, inherited = [], 0.0
    for D, K, s, B, delta, W in zip(Ds, *columns.values()):
        found.append(block_schedule(D, W, depth=K, sparsity=s, bound=B, noise=delta + inherited))
        inherited = found[-1][0].error[-1]
    return tuple(zip(*found))


def dsc(Ds, *, depths, sparsities, bounds, noises=None, Ws=None) -> tuple[Unrolled, ...]:
    """Params of a chain of LISTA-CP blocks, one per dictionary, certified together (Theorem 6, corrected).

    Arguments are sequences over the J blocks, each as in `lista_cp`; noises default to zeros.
    """
    schedules, weights = deep_schedules(Ds, depths=depths, sparsities=sparsities, bounds=bounds, noises=noises, Ws=Ws)
    return tuple(
        Unrolled(Weights(W), Threshold(jnp.asarray(found.theta, W.dtype))) for found, W in zip(schedules, weights)
    )
