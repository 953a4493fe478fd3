"""Weights certified as they are stored, and the schedules of blocks and chains that rest on them."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled.activations import Activation, by_name, relu
from unrolled.dictionaries import as_dictionary, column_norms, unit_atoms
from unrolled.theory import (
    ActivationSchedule,
    AtomSchedule,
    Plan,
    Schedule,
    activation_schedule,
    as_chain,
    atom_coherence,
    atom_schedule,
    coherence,
    diagonal,
    frobenius_weights,
    noise_gain,
    rounding_guard,
    schedule,
)
from unrolled.theory import plan as plan_blocks


class HypothesisWarning(UserWarning):
    """The theory does not cover this dictionary and sparsity: its thresholds do not contract."""


class Certified(NamedTuple):
    """Weights in hand and what the theory sees of them, in float64 from the stored arrays."""

    W: object  # (m, d)
    mu_W: float  # rounded up
    C_W: float
    eta: float  # max abs(1 - w_i . d_i)
    guard: float  # rounding guard per unit of s B
    omega: float  # max norm(w_i, 2), rounded up


def certify(D, W=None) -> Certified:
    """The numbers of W against D; None takes D or `frobenius_weights(D)`, whichever has the smaller
    mu_W.

    Raises:
        ValueError: atoms of D off unit norm, a zero atom, shapes that differ.
    """
    D = as_dictionary(D, "certify")
    unit_atoms(D, "certify")
    if W is None:
        return min((certify(D, W) for W in (D, frobenius_weights(D))), key=lambda c: c.mu_W)
    W = _checks.cast(as_dictionary(W, "certify"), D.dtype)
    if W.shape != D.shape:
        raise ValueError(
            f"certify: W has shape {W.shape} but D has shape {D.shape}; they must agree"
        )
    guard = rounding_guard(W, D, sparsity=1, bound=1.0)
    with jax.enable_x64(True):
        W64, D64 = _checks.cast(W, np.float64), _checks.cast(D, np.float64)
        mu, C = (float(v) for v in coherence(W64, D64))
        eta = float(jnp.abs(1 - diagonal(W64, D64)).max())
        omega = noise_gain(W64)
    return Certified(W, mu * (1 + 1e-9), C, eta, guard, omega * (1 + 1e-9))


def plan(Ds, *, sparsities, bounds, noises=None, Ws=None, tol: float) -> Plan:
    """Depths of the blocks of a chain, the fewest steps in all, after which its last code is
    certified to `tol` in l1.

    Arguments as in `dsc`; see `theory.plan`. Pass the depths on to `dsc`.
    """
    Ds, Ws, certified = _chain(
        Ds, Ws, "analytic.plan", sparsities=sparsities, bounds=bounds, noises=noises
    )
    return plan_blocks(
        [c.mu_W for c in certified],
        [c.C_W for c in certified],
        sparsities=sparsities,
        bounds=bounds,
        noises=noises,
        guards=[c.guard * s * B for c, s, B in zip(certified, sparsities, bounds)],
        etas=[c.eta for c in certified],
        tol=tol,
    )


def block_schedule(
    D,
    W=None,
    activation: Activation = relu,
    *,
    depth,
    sparsity,
    bound,
    noise=0.0,
    noise_norm="l1",
    per_atom=False,
) -> tuple[Certified, Schedule | ActivationSchedule | AtomSchedule]:
    """The schedule behind `lista_cp` and `alista`, and the certified weights."""
    D, activation = as_dictionary(D, "analytic"), by_name(activation)
    c = certify(D, W)
    _check_sparsity(D, sparsity)
    if noise_norm not in ("l1", "l2"):
        raise ValueError(f'analytic: unknown noise_norm {noise_norm!r}; expected "l1" or "l2"')
    problem = dict(sparsity=sparsity, bound=bound, depth=depth)
    if not per_atom:
        # In l2 omega stands for C_W: the l1 noise that enters as much.
        return c, _schedule(
            D,
            c,
            activation,
            noise=noise * c.omega / c.C_W if noise_norm == "l2" else noise,
            **problem,
        )
    if activation != relu:
        raise ValueError(
            f"analytic: thresholds per atom are certified for ReLU alone, got {activation}"
        )
    with jax.enable_x64(True):
        D64, W64 = _checks.cast(D, np.float64), _checks.cast(c.W, np.float64)
        mus, C_Ws = atom_coherence(W64, D64)
        C_Ws = column_norms(W64) * (1 + 1e-9) if noise_norm == "l2" else C_Ws
    mus, guard = np.asarray(mus) * (1 + 1e-9), c.guard * sparsity * bound

    def at(sparsity, depth):
        options = dict(
            sparsity=sparsity, bound=bound, noise=noise, depth=depth, guard=guard, eta=c.eta
        )
        return atom_schedule(mus, C_Ws, **options)

    return c, _told(at(sparsity, depth), sparsity, at, D)


def chain_schedules(
    Ds, *, depths, sparsities, bounds, noises=None, Ws=None, activations=None
) -> tuple[tuple[Certified, ...], tuple[Schedule | ActivationSchedule, ...]]:
    """The schedules behind `dsc`, block by block, and the certified weights: what a block leaves is
    noise to the next.
    """
    columns = dict(
        depths=depths, sparsities=sparsities, bounds=bounds, noises=noises, activations=activations
    )
    Ds, Ws, certified = _chain(Ds, Ws, "analytic.dsc", **columns)
    noises = (0.0,) * len(Ds) if noises is None else noises
    activations = (relu,) * len(Ds) if activations is None else tuple(map(by_name, activations))
    schedules, inherited = [], 0.0
    for D, c, rho, s, B, delta, K in zip(
        Ds, certified, activations, sparsities, bounds, noises, depths
    ):
        schedules.append(
            _schedule(D, c, rho, sparsity=s, bound=B, noise=delta + inherited, depth=K)
        )
        inherited = float(schedules[-1].error[-1])
    return certified, tuple(schedules)


def _chain(Ds, Ws, where: str, **columns):
    """The dictionaries of a chain, checked against each other and the arguments, and their
    certified weights.
    """
    Ds = as_chain(Ds, where)
    Ws = (None,) * len(Ds) if Ws is None else Ws
    for name, column in {**columns, "Ws": Ws}.items():
        if column is not None and len(column) != len(Ds):
            raise ValueError(
                f"{where}: {name} has length {len(column)}; expected {len(Ds)}, one per dictionary"
            )
    for D, s in zip(Ds, columns["sparsities"]):
        _check_sparsity(D, s)
    return Ds, Ws, tuple(certify(D, W) for D, W in zip(Ds, Ws))


def _schedule(
    D, c: Certified, activation, *, sparsity, bound, noise, depth
) -> Schedule | ActivationSchedule:
    """The schedule of one block with its rounding guard; warns where it certifies nothing."""
    guard = c.guard * sparsity * bound

    def at(sparsity, depth):
        options = dict(
            sparsity=sparsity, bound=bound, noise=noise, depth=depth, guard=guard, eta=c.eta
        )
        if activation == relu:
            return schedule(c.mu_W, c.C_W, **options)
        return activation_schedule(activation, c.mu_W, c.C_W, d=D.shape[1], **options)

    found = at(sparsity, depth)
    if activation != relu:
        # The codes are off the support too: the guard must cover s B + max E_O, which it moves
        # itself.
        for _ in range(100):
            needed = c.guard * (sparsity * bound + found.off_support.max())
            if not needed > guard or not math.isfinite(needed):
                break
            guard = needed * (1 + 1e-3)
            found = at(sparsity, depth)
    return _told(found, sparsity, at, D, activation)


def _check_sparsity(D, sparsity) -> None:
    s = _checks.as_index(sparsity, "sparsity", "analytic")
    if s > D.shape[1]:
        raise ValueError(f"analytic: sparsity {s} exceeds the number of atoms {D.shape[1]}")


def _told(found, sparsity: int, at: Callable, D, activation=relu):
    """`found`, after a warning if it does not hold; `at(sparsity, depth)` are the schedules of
    other sparsities.
    """
    if not found.holds:
        covered = itertools.takewhile(lambda s: at(s, 0).holds, range(D.shape[1] + 1))
        name = "" if activation == relu else f" with {activation}"
        _checks.warn(
            f"the theory does not cover s = {sparsity}{name}: contraction a = {found.contraction:.4g} (expected < 1); the "
            f"largest admissible s is {max(covered, default=0)}. The thresholds come back but do not contract; try "
            "analytic.calibrate on a sample, or training",
            HypothesisWarning,
        )
    return found
