"""LFISTA-CP: FISTA with learned weights in place of D', coupled as in LISTA-CP, and a guard."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from unrolled._checks import Array, Key
from unrolled.dictionaries import Dictionary, Structured, spread
from unrolled.layers._layer import Acting, Law, Recipe
from unrolled.layers._lfista import fista_momentum
from unrolled.layers._records import Matrix, Number, Theta, Unrolled, repeat
from unrolled.layers._shrinking import FromISTA, Shrinking
from unrolled.records import option


class WeightsAndMomentum(NamedTuple):
    """One step of LFISTA-CP."""

    W: Matrix  # plain or structured
    theta: Theta
    beta: Number


class Followed(NamedTuple):
    """The state: the best code so far, and where the next step begins."""

    x: Array  # (d,), the code with the least objective
    objective: Array  # of x
    last: Array  # (d,), the code of the last step
    before: Array  # (d,), of the step before it
    signal: Array  # (m,), D times the last code
    signal_before: Array  # (m,)


def _judging(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Where codes are known the residual judges, and lam breaks ties."""
    return {"lam": law.lams(0.02)[0]}


class lfista_cp(FromISTA, Shrinking):
    r"""K steps of FISTA with a W of their own, which also holds a step size for every atom.

    .. math::
        z = x_k + \beta_k (x_k - x_{k-1}), \qquad
        x_{k+1} = \mathrm{shrink}(z + W_k'(y - D z), \; \theta_k).

    The code is that of x_0 = 0, ..., x_K with the least objective of the LASSO with the weight
    `lam`: whatever the params and the signal, it is no worse than the zero code. That takes no more
    products than the steps alone, for D z = D x_k + beta_k (D x_k - D x_{k-1}).

    Params: steps (W, theta, beta), where theta has a threshold for every atom, or for every filter
    of a `Conv`. `init` is FISTA without restart: W = D / L, theta = lam / L and its momentum. Train
    with `training.lasso(lam)`, without codes, at a rate that falls to zero: on patches of pictures,
    16 steps then come nearer to the optimum than 32 of FISTA (benchmarks/README.md).

    Reference: Chen, Liu, Wang, Yin (2018) for the coupling, Moreau, Bruna (2017) for the momentum.
    Not claimed: a theorem of either.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> layer, fista = ur.layers.lfista_cp(3), ur.layers.fista(3)
        >>> ours, theirs = (each.apply(each.init(None, D), D, D[:, 1]) for each in (layer, fista))
        >>> bool(jnp.allclose(ours, theirs, atol=1e-5))
        True
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO that judges the codes")

    forms = (Unrolled(None, WeightsAndMomentum),)
    recipe = Recipe(5e-4, options=_judging, calibrated=True, weighted=True)

    def at_ista(self, D, L, theta):
        groups = D.groups if isinstance(D, Structured) else ()
        thresholds = jnp.tile(theta[:, None], groups or D.shape[1])
        beta = jnp.asarray(fista_momentum(self.depth), D.dtype)
        return Unrolled(None, WeightsAndMomentum(repeat(D / L, self.depth), thresholds, beta))

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        steps = self.init(key, D).steps
        beta = jnp.zeros_like(steps.beta)  # that of FISTA is for steps along D
        return Unrolled(None, steps._replace(W=repeat(W, self.depth), beta=beta))

    def start(self, D, y):
        x, signal = jnp.zeros(D.shape[1], y.dtype), jnp.zeros_like(y)
        return Followed(x, self.objective(x, y), x, x, signal, signal)

    def step(self, shared, p, D, y, state):
        z = state.last + p.beta * (state.last - state.before)
        r = y - state.signal - p.beta * (state.signal - state.signal_before)
        x = self.shrink(z + r @ p.W, spread(D, p.theta))
        signal = D @ x
        objective = self.objective(x, y - signal)
        # Where y is not finite, its code is not to be either.
        keep = ~(objective <= state.objective) & jnp.isfinite(state.objective)
        best = jnp.where(keep, state.x, x), jnp.where(keep, state.objective, objective)
        return Followed(*best, x, state.last, signal, state.signal)

    def objective(self, x: Array, r: Array) -> Array:
        """norm(r)^2 / 2 + lam norm(x, 1) of a code and its residual."""
        return jnp.sum(r**2) / 2 + self.lam * jnp.sum(jnp.abs(x))

    def weights(self, shared, p, D):
        return Acting(p.W)
