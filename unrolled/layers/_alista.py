"""ALISTA (Liu, Chen, Wang, Yin 2019): weights from theory, trained, or recomputed for each D."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._checks import Array, Key
from unrolled.dictionaries import Dictionary, as_dictionary, spread
from unrolled.layers._closed_form import FromClosedForm
from unrolled.layers._ista import StepAndThreshold
from unrolled.layers._layer import Acting, Recipe, selecting
from unrolled.layers._records import Fixed, Unrolled, Weights
from unrolled.layers._shrinking import Coupled, FromISTA, Selecting


def with_unit_steps(theta: Array) -> StepAndThreshold:
    """The thresholds of K steps with gamma = 1."""
    return StepAndThreshold(jnp.asarray(np.ones(len(theta)), theta.dtype), theta)


class alista(Coupled, FromClosedForm, Selecting):
    r"""K steps x <- shrink(x + gamma_k W'(y - D x), theta_k) with W fixed; 2 K numbers are learned.

    Params: shared W, which carries no gradient and which `fit` leaves alone; steps (gamma, theta).
    In an optax loop of one's own, weight decay would move W: mask it by `training.trainable`.
    `init` takes weights in closed form with a `ridge`, gamma = 1 / rho(W'D) and theta = gamma lam.

    With the default ridge the objective of the LASSO at the start is at most that of ISTA at the
    same depth, or within 2 % of it where ISTA has converged: so on smooth, correlated,
    ill-conditioned and noisy problems (tests/test_starts.py) and on learned dictionaries
    (benchmarks/README.md). With ridge = 0, the weights of the paper, it can be far above. `fit`
    warns of a start above ISTA. For planted codes without noise training goes further with the
    weights of the paper, which `analytic.alista` and ridge = 0 give. Not claimed: either with
    `support`, which lets entries pass that the LASSO would shrink.

    Reference: Liu, Chen, Wang, Yin (2019). Their support selection is about (0.012, 0.13).

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

    Params: shared W, steps (gamma, theta): m d + 2 K numbers. `init` is ISTA: W = D / L, gamma = 1,
    theta = lam / L. To start from params of `alista` take
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

    Params: steps (gamma, theta), none shared; `init` and W(D) as in `alista`, for the D of each
    call: one inverse per dictionary, and gradients pass through it to D.
    The codes of a traced D with a zero atom are nan. For dictionaries that change from signal to
    signal map over both, `jax.vmap(layer.apply, (None, 0, 0))(params, Ds, Y)`, and let the sampler
    of `fit` return (Y, X, Ds).

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
        return state._replace(x=self.shrink(u, spread(D, p.theta), fraction))

    def weights(self, shared, p, D):
        return Acting(self.closed_form(D), p.gamma)
