"""Theory to params: one function per family, returning what training returns.

Host functions: coherences and schedules are computed in float64 from D and W as they are stored, and the leaves have the
dtype of D. If the hypotheses of the theory fail, params come back all the same and a `HypothesisWarning` says by how much.
"""

import itertools
import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._calibrate import calibrate as calibrate
from unrolled.activations import Activation, by_name, relu
from unrolled.dictionaries._base import as_dictionary, unit_atoms
from unrolled.layers._ista import StepAndThreshold, ista_params
from unrolled.layers._lista import Threshold, repeat
from unrolled.layers._lista_cp import WeightsAndThreshold
from unrolled.layers._unroll import Fixed, Unrolled, Weights
from unrolled.theory import (
    ActivationSchedule,
    Schedule,
    activation_schedule,
    coherence,
    deep_schedule,
    diagonal,
    max_sparsity,
    rounding_guard,
)
from unrolled.theory._weights import frobenius_weights as frobenius_weights


class HypothesisWarning(UserWarning):
    """The theory does not cover this dictionary and sparsity: its thresholds do not contract."""


class Certified(NamedTuple):
    """Weights in hand and what the theory sees of them, in float64 from the stored arrays."""

    W: object  # (m, d)
    mu_W: float  # rounded up
    C_W: float
    eta: float  # max abs(1 - w_i . d_i)
    guard: float  # rounding guard per unit of s B


def certify(D, W=None) -> Certified:
    """The numbers of W against D; None takes D or `frobenius_weights(D)`, whichever has the smaller mu_W.

    Raises:
        ValueError: atoms of D off unit norm, a zero atom, shapes that differ.
    """
    D = as_dictionary(D, "certify")
    unit_atoms(D, "certify")
    if W is None:
        return min((certify(D, W) for W in (D, frobenius_weights(D))), key=lambda c: c.mu_W)
    W = _checks.cast(as_dictionary(W, "certify"), D.dtype)
    if W.shape != D.shape:
        raise ValueError(f"certify: W has shape {W.shape} but D has shape {D.shape}; they must agree")
    guard = rounding_guard(W, D, sparsity=1, bound=1.0)
    with jax.enable_x64(True):
        W64, D64 = _checks.cast(W, np.float64), _checks.cast(D, np.float64)
        mu, C = (float(v) for v in coherence(W64, D64))
        eta = float(jnp.abs(1 - diagonal(W64, D64)).max())
    return Certified(W, mu * (1 + 1e-9), C, eta, guard)


def ista(D, lam: float, depth: int) -> Unrolled:
    """Params of `layers.ista` and `layers.fista`: gamma = 1 / L, theta = lam / L, with L = norm(D, 2)^2.

    Raises:
        ValueError: lam < 0, D = 0, or a negative depth. TypeError: a depth that is not an integer.
    """
    D = as_dictionary(D, "analytic.ista")
    _checks.nonnegative(lam, "lam", "analytic.ista")
    return ista_params(D, lam, _checks.as_index(depth, "depth", "analytic.ista"))


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
    """Params of `layers.lista_cp` from theory: W as given and the thresholds of Theorem 12 (15 or 10 for other rho).

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
    W, theta = _weights_and_thresholds(D, W, activation, depth=depth, sparsity=sparsity, bound=bound, noise=noise)
    if tied:
        return Unrolled(Weights(W), Threshold(theta))
    return Unrolled(None, WeightsAndThreshold(repeat(W, len(theta)), theta))


def alista(
    D, *, depth: int, sparsity: int, bound: float, noise: float = 0.0, W=None, activation: Activation = relu
) -> Unrolled:
    """Params of `layers.alista` from theory: as `lista_cp`, with gamma = 1 and W held fixed."""
    W, theta = _weights_and_thresholds(D, W, activation, depth=depth, sparsity=sparsity, bound=bound, noise=noise)
    return Unrolled(Fixed(W), StepAndThreshold(jnp.ones_like(theta), theta))


def dsc(Ds, *, depths, sparsities, bounds, noises=None, Ws=None) -> tuple[Unrolled, ...]:
    """Params of a chain of LISTA-CP blocks, one per dictionary, certified together (Theorem 6, corrected).

    Arguments are sequences over the J blocks, each as in `lista_cp`; noises default to zeros.
    """
    certified, schedules = chain_schedules(
        Ds, depths=depths, sparsities=sparsities, bounds=bounds, noises=noises, Ws=Ws
    )
    return tuple(
        Unrolled(Weights(c.W), Threshold(jnp.asarray(found.theta, c.W.dtype))) for c, found in zip(certified, schedules)
    )


def block_schedule(
    D, W=None, activation: Activation = relu, *, depth, sparsity, bound, noise=0.0
) -> tuple[Certified, Schedule | ActivationSchedule]:
    """The schedule behind `lista_cp` and `alista`, and the certified weights."""
    activation = by_name(activation)
    if activation == relu:
        certified, schedules = chain_schedules(
            (D,), depths=(depth,), sparsities=(sparsity,), bounds=(bound,), noises=(noise,), Ws=(W,)
        )
        return certified[0], schedules[0]
    D = as_dictionary(D, "analytic")
    c = certify(D, W)
    _check_sparsity(D, sparsity)

    def with_guard(guard, s=sparsity, depth=depth):
        options = dict(d=D.shape[1], depth=depth, sparsity=s, bound=bound, noise=noise, guard=guard, eta=c.eta)
        return activation_schedule(activation, c.mu_W, c.C_W, **options)

    # The codes are off the support too: the guard must cover s B + max E_O, which it moves itself.
    guard = c.guard * sparsity * bound
    for _ in range(100):
        found = with_guard(guard)
        needed = c.guard * (sparsity * bound + found.off_support.max())
        if not needed > guard or not math.isfinite(needed):
            break
        guard = needed * (1 + 1e-3)
    covered = itertools.takewhile(lambda s: with_guard(0.0, s, 0).holds, range(max_sparsity(c.mu_W, D.shape[1]) + 1))
    _warn_unless_holds(found, sparsity, max(covered, default=0), activation)
    return c, found


def chain_schedules(
    Ds, *, depths, sparsities, bounds, noises=None, Ws=None
) -> tuple[tuple[Certified, ...], tuple[Schedule, ...]]:
    """The schedules behind `dsc`, block by block, and the certified weights."""
    Ds = tuple(as_dictionary(D, "analytic") for D in Ds)
    for j, (left, right) in enumerate(zip(Ds, Ds[1:]), start=1):
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"analytic.dsc: D_{j} has shape {left.shape} but D_{j + 1} has shape {right.shape}")
    Ws = (None,) * len(Ds) if Ws is None else Ws
    for name, column in {"depths": depths, "sparsities": sparsities, "bounds": bounds, "Ws": Ws}.items():
        if len(column) != len(Ds):
            raise ValueError(f"analytic.dsc: {name} has length {len(column)}; expected {len(Ds)}, one per dictionary")
    certified = tuple(certify(D, W) for D, W in zip(Ds, Ws))
    for D, s in zip(Ds, sparsities):
        _check_sparsity(D, s)
    schedules = deep_schedule(
        [c.mu_W for c in certified],
        [c.C_W for c in certified],
        sparsities=sparsities,
        bounds=bounds,
        noises=noises,
        depths=depths,
        guards=[c.guard * s * B for c, s, B in zip(certified, sparsities, bounds)],
        etas=[c.eta for c in certified],
    )
    for D, s, c, found in zip(Ds, sparsities, certified, schedules):
        _warn_unless_holds(found, s, max_sparsity(c.mu_W, D.shape[1]))
    return certified, schedules


def _weights_and_thresholds(D, W, activation, **problem):
    certified, found = block_schedule(D, W, activation, **problem)
    return certified.W, _stored(found.theta, certified.W.dtype)


def _stored(theta: np.ndarray, dtype) -> jax.Array:
    """Thresholds in the dtype of D; those of a schedule that does not contract stop short of its largest number."""
    return jnp.asarray(np.minimum(theta, float(jnp.finfo(dtype).max) / 4), dtype)


def _check_sparsity(D, sparsity) -> None:
    s = _checks.as_index(sparsity, "sparsity", "analytic")
    if s > D.shape[1]:
        raise ValueError(f"analytic: sparsity {s} exceeds the number of atoms {D.shape[1]}")


def _warn_unless_holds(found, sparsity: int, largest: int, activation=relu) -> None:
    if found.holds:
        return
    name = "" if activation == relu else f" with {activation}"
    warnings.warn(
        f"the theory does not cover s = {sparsity}{name}: contraction a = {found.contraction:.4g} (expected < 1); the "
        f"largest admissible s is {largest}. The thresholds come back but do not contract; try analytic.calibrate on a "
        "sample, or training",
        HypothesisWarning,
        stacklevel=4,
    )
