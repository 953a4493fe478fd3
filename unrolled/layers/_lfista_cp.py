"""LFISTA-CP: FISTA with learned weights in place of D', coupled as in LISTA-CP."""

from typing import NamedTuple

import jax.numpy as jnp

from unrolled.dictionaries import Structured, spread
from unrolled.layers._layer import Acting
from unrolled.layers._lfista import TwoCodes, fista_momentum
from unrolled.layers._records import Matrix, Number, Theta, Unrolled, repeat
from unrolled.layers._shrinking import FromISTA, Shrinking


class WeightsAndMomentum(NamedTuple):
    """One step of LFISTA-CP."""

    W: Matrix  # plain or structured
    theta: Theta
    beta: Number


class lfista_cp(FromISTA, Shrinking):
    r"""K steps of FISTA with a W of their own, which also holds a step size for every atom.

    .. math::
        z = x_k + \beta_k (x_k - x_{k-1}), \qquad
        x_{k+1} = \mathrm{shrink}(z + W_k'(y - D z), \; \theta_k).

    Params: steps (W, theta, beta), where theta has a threshold for every atom, or for every filter
    of a `Conv`. `init` is FISTA without restart: W = D / L, theta = lam / L and its momentum. Train
    with `training.lasso(lam)`, without codes, at a rate that falls to zero: on patches of pictures,
    16 steps then come nearer to the optimum than 32 of FISTA (benchmarks/README.md).

    Reference: Chen, Liu, Wang, Yin (2018) for the coupling, Moreau, Bruna (2017) for the momentum.
    Not claimed: a theorem of either.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> ours, fista = (
        ...     layer.apply(layer.init(None, D), D, D[:, 1])
        ...     for layer in (ur.layers.lfista_cp(3), ur.layers.fista(3))
        ... )
        >>> bool(jnp.allclose(ours, fista, atol=1e-5))
        True
    """

    forms = (Unrolled(None, WeightsAndMomentum),)

    def init(self, key, D):
        return self.start_at_ista(D)

    def at_ista(self, D, L, theta):
        groups = D.groups if isinstance(D, Structured) else ()
        thresholds = jnp.tile(theta[:, None], groups or D.shape[1])
        beta = jnp.asarray(fista_momentum(self.depth), D.dtype)
        return Unrolled(None, WeightsAndMomentum(repeat(D / L, self.depth), thresholds, beta))

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return TwoCodes(zero, zero)

    def step(self, shared, p, D, y, state):
        z = state.x + p.beta * (state.x - state.before)
        return TwoCodes(self.shrink(z + (y - D @ z) @ p.W, spread(D, p.theta)), state.x)

    def weights(self, shared, p, D):
        return Acting(p.W)
