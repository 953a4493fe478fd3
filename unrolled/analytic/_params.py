"""Theory to params, one function per family, with leaves in the dtype of D."""

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks, layers
from unrolled.activations import Activation, relu
from unrolled.analytic._schedules import block_schedule, chain_schedules
from unrolled.dictionaries import as_dictionary
from unrolled.layers import Unrolled, ista_params


def ista(D, lam: float, depth: int) -> Unrolled:
    """Params of `layers.ista` and `layers.fista`: gamma = 1 / L, theta = lam / L, with L = norm(D,
    2)^2.

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
    noise_norm: str = "l1",
    per_atom: bool = False,
) -> Unrolled:
    """Params of `layers.lista_cp` from theory: W as given and the thresholds of Theorem 12 (15 or
    10 for other rho).

    Args:
        D: (m, d), unit atoms.
        depth: K.
        sparsity, bound, noise: s, B, delta: at most s nonzeros of magnitude at most B, noise of l1
            norm at most delta.
        W: any weights with w_i . d_i = 1; None takes D or `frobenius_weights(D)`, whichever has the
            smaller mu_W.
        activation: as in the layer.
        tied: False repeats W at every step, for training an untied network.
        noise_norm: "l1", or "l2" where `noise` bounds norm(e, 2): omega = max norm(w_i, 2) then
            stands for C_W.
        per_atom: thresholds of `theory.atom_schedule`, (K, d): smaller, and certified in l1 alone.
            ReLU only.

    Warns:
        HypothesisWarning: (2s-1) mu_W >= 1, or no theorem covers the activation: nothing is
            certified.

    Raises:
        ValueError: atoms off unit norm, a zero atom, sparsity above d, negative or NaN numbers.
    """
    problem = dict(
        depth=depth,
        sparsity=sparsity,
        bound=bound,
        noise=noise,
        noise_norm=noise_norm,
        per_atom=per_atom,
    )
    W, theta = _weights_and_thresholds(D, W, activation, **problem)
    return layers.lista_cp(depth, tied=tied).from_theory(W, theta)


def alista(
    D,
    *,
    depth: int,
    sparsity: int,
    bound: float,
    noise: float = 0.0,
    W=None,
    activation: Activation = relu,
    noise_norm: str = "l1",
    per_atom: bool = False,
) -> Unrolled:
    """Params of `layers.alista` from theory: as `lista_cp`, with gamma = 1 and W held fixed."""
    problem = dict(
        depth=depth,
        sparsity=sparsity,
        bound=bound,
        noise=noise,
        noise_norm=noise_norm,
        per_atom=per_atom,
    )
    W, theta = _weights_and_thresholds(D, W, activation, **problem)
    return layers.alista(depth).from_theory(W, theta)


def hyperlista(D) -> Unrolled:
    """Params of `layers.hyperlista`, of any depth: the closed-form weights, and three numbers that
    suit the standard benchmark.

    For other dictionaries and codes choose the numbers on a sample by `training.search`.

    Raises:
        ValueError: a zero atom, or atoms off unit norm.
    """
    return layers.hyperlista(0).init(None, D)


def dsc(
    Ds, *, depths, sparsities, bounds, noises=None, Ws=None, activations=None
) -> tuple[Unrolled, ...]:
    """Params of a chain of LISTA-CP blocks, one per dictionary, certified together (Theorem 6,
    corrected).

    Arguments are sequences over the J blocks, each as in `lista_cp`; noises default to zeros,
    activations to ReLU.
    """
    problem = dict(
        depths=depths,
        sparsities=sparsities,
        bounds=bounds,
        noises=noises,
        Ws=Ws,
        activations=activations,
    )
    certified, schedules = chain_schedules(Ds, **problem)
    return tuple(
        layers.lista_cp(len(found.theta)).from_theory(
            c.W, stored_thresholds(found.theta, c.W.dtype)
        )
        for c, found in zip(certified, schedules)
    )


def _weights_and_thresholds(D, W, activation, **problem):
    certified, found = block_schedule(D, W, activation, **problem)
    return certified.W, stored_thresholds(found.theta, certified.W.dtype)


def stored_thresholds(theta: np.ndarray, dtype) -> jax.Array:
    """Thresholds in the dtype of D; those of a schedule that does not contract stop short of its
    largest number.
    """
    return jnp.asarray(np.minimum(theta, float(jnp.finfo(dtype).max) / 4), dtype)
