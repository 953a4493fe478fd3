"""Families whose steps use D itself as weights: ISTA and FISTA cut after K steps, and Ada-LISTA."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, checked, program
from unrolled.dictionaries import Dictionary, as_dictionary, dense
from unrolled.layers._layer import Acting, Recipe, penalties
from unrolled.layers._records import Gamma, Shape, Theta, Unrolled, magnitude
from unrolled.layers._shrinking import Coupled, FromISTA, Shrinking
from unrolled.pursuit import Momentum, State, fista_step, ista_step, lipschitz
from unrolled.records import option

__all__ = [
    "SignalMatrices",
    "Step",
    "StepAndThreshold",
    "ada_lista",
    "fista",
    "ista",
    "step_lista",
]


class StepAndThreshold(NamedTuple):
    """The step size and the threshold of one step."""

    gamma: Gamma
    theta: Theta


class Step(NamedTuple):
    """The step size of one step."""

    gamma: Gamma


@checked
def ista_params(D: Dictionary, lam: ArrayLike, depth: int, where: str) -> Unrolled:
    """gamma = 1 / L and theta = lam / L at every step, with L = norm(D, 2)^2.

    Example:
        >>> print(ur.layers.ista_params(2 * jnp.eye(3), 0.1, 2, "caller").steps.theta.round(3))
        [0.025 0.025]
    """
    with np.errstate(over="ignore"):
        weight = lam if isinstance(lam, jax.Array) else np.asarray(lam, D.dtype)
    params, usable = _ista_params(D, weight, depth)
    if not checks.may_hold(usable):
        lipschitz(D, where)  # raises unless lam is the reason
        raise ValueError(
            f"{where}: lam is {lam}, and the threshold lam / norm(D)^2 is infinite in {D.dtype}"
        )
    return params


@program("depth")
def _ista_params(D: Dictionary, lam: ArrayLike, depth: int) -> tuple[Unrolled, Array]:
    L = lipschitz(D, "ista_params")
    gamma = jnp.full(depth, 1 / L, D.dtype)
    usable = (L > 0) & (1 / L > 0) & jnp.isfinite(lam / L).all()
    return Unrolled(None, StepAndThreshold(gamma, gamma * lam)), usable


class ista(Coupled, FromISTA, Shrinking):
    r"""K steps x <- shrink(x + gamma_k D'(y - D x), theta_k).

    Params: steps (gamma, theta); no params are shared. `init` sets gamma = 1 / L and theta = lam /
    L; the steps are then the steps of the solver `pursuit.ista`.

    Reference: Daubechies, Defrise, De Mol (2004).

    Example:
        >>> layer, D = ur.layers.ista(10, lam=0.1), ur.dictionaries.identity_hadamard(4)
        >>> x = layer.apply(layer.init(None, D), D, D[:, 1])
        >>> solver = ur.pursuit.ista(D, D[:, 1], 0.1, tol=None, max_steps=10)
        >>> bool(jnp.allclose(x, solver.x, atol=1e-6))
        True
    """

    forms = (Unrolled(None, StepAndThreshold),)
    recipe = Recipe(rate=0, tried=penalties)
    starts_from_theory = True

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        return ista_params(as_dictionary(D, self.family), self.lam, self.depth, self.family)

    def weights(self, shared, p, D):
        return Acting(D, p.gamma)


class step_lista(FromISTA, Shrinking):
    r"""K steps x <- shrink(x + gamma_k D'(y - D x), gamma_k lam): ISTA with learned step sizes.

    Params: steps gamma; the sign of gamma has no effect. `init` sets gamma = 1 / L; the steps are
    then the steps of `pursuit.ista`. For all nonzero step sizes, a fixed point of a step solves the
    LASSO with the weight `lam`, an option that is not trained. Train with
    `training.lasso_loss(lam)`.

    Reference: Ablin, Moreau, Massias, Gramfort (2019).

    Example:
        >>> layer, D = ur.layers.step_lista(2, lam=0.1), 2 * jnp.eye(3)
        >>> layer.init(None, D).steps.gamma.round(3).tolist()
        [0.25, 0.25]
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO, at every step")

    forms = (Unrolled(None, Step),)
    recipe = Recipe(rate=5e-3, tried=lambda law: {"lam": law.lams(0.02, 0.05, 0.1, 0.2)})
    starts_from_theory = True

    def at_ista(self, D, L, theta):
        return Unrolled(None, Step(jnp.full_like(theta, 1 / L)))

    def step(self, shared, p, D, y, state):
        gamma = magnitude(p.gamma)  # a threshold must not be negative
        return State(
            ista_step(D, y, state.x, gamma, gamma * self.lam, self.activation, self.penalty(D))
        )

    def weights(self, shared, p, D):
        return Acting(D, magnitude(p.gamma))


class fista(FromISTA, Shrinking):
    r"""K steps of FISTA without restart: ISTA steps at z, each followed by momentum without params.

    Params: as for `ista`. With gamma = 1 / L and theta = lam / L, the objective after step k is
    within 2 L norm(x*)^2 / (k + 1)^2 of the optimum.

    Reference: Beck, Teboulle (2009), Theorem 4.4.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> layers, y = (ur.layers.ista(10, lam=0.1), ur.layers.fista(10, lam=0.1)), D[:, 1]
        >>> slow, fast = (layer.apply(layer.init(None, D), D, y) for layer in layers)
        >>> [round(float(ur.pursuit.lasso_objective(D, y, x, 0.1)), 3) for x in (slow, fast)]
        [0.114, 0.095]
    """

    forms = ista.forms
    recipe = ista.recipe._replace(without_codes=(3e-4, 1e-3, 2e-3, 5e-3))
    starts_from_theory = True
    weights = ista.weights

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        return ista_params(as_dictionary(D, self.family), self.lam, self.depth, self.family)

    def start(self, D, y):
        x = jnp.zeros(D.shape[1], y.dtype)
        return Momentum(x, x, jnp.ones((), y.dtype))

    def step(self, shared, p, D, y, state):
        return fista_step(D, y, state, p.gamma, p.theta, self.activation, penalty=self.penalty(D))


OnSignals = Annotated[Array, Shape("m,m")]


class SignalMatrices(NamedTuple):
    """The matrices of Ada-LISTA, shared by all steps and all dictionaries."""

    P: OnSignals  # applied to y as P'y
    Q: OnSignals  # applied to D x as Q'Q D x


class ada_lista(FromISTA, Shrinking):
    r"""K steps x <- shrink(x + gamma_k D'(P'y - Q'Q D x), theta_k): D may differ between signals.

    Params: shared (P, Q), steps (gamma, theta). `init` gives ISTA: P = Q = I, gamma = 1 / L, theta
    = lam / L. If every signal has its own dictionary, map over dictionaries and signals with
    `jax.vmap(layer.apply, (None, 0, 0))(params, Ds, Y)`, and let the sampler of `fit` return (Y, X,
    Ds).

    Reference: Aberdam, Golts, Elad (2021), equation (5); their W_1 and W_2 are our P and Q.

    Example:
        >>> layer, Ds = ur.layers.ada_lista(8), jnp.stack([jnp.eye(3), -jnp.eye(3)])
        >>> params = layer.init(None, Ds[0])
        >>> print(jax.vmap(layer.apply, (None, 0, 0))(params, Ds, jnp.eye(3)[:2]).round(2))
        [[ 0.9  0.   0. ]
         [ 0.  -0.9  0. ]]
    """

    forms = (Unrolled(SignalMatrices, StepAndThreshold),)
    recipe = Recipe(rate=1e-3, calibrated=True)

    def at_ista(self, D, L, theta):
        identity = jnp.eye(D.shape[0], dtype=D.dtype)
        gamma = jnp.full(self.depth, 1 / L, D.dtype)
        return Unrolled(
            SignalMatrices(identity, identity), StepAndThreshold(gamma, gamma * self.lam)
        )

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        """Params with P = Q'Q = (D D')^-1: ALISTA's steps if all atoms have the same leverage."""
        return _whitened(D, self.init(key, D))

    def step(self, shared, p, D, y, state):
        r = y @ shared.P - (shared.Q @ (D @ state.x)) @ shared.Q
        return State(self.shrink(D, state.x + p.gamma * (r @ D), p.theta))

    def weights(self, shared, p, D):
        A, gamma = dense(D), jnp.reshape(p.gamma, (-1, 1))
        S = jnp.eye(A.shape[1], dtype=A.dtype) - gamma * (A.T @ (shared.Q.T @ (shared.Q @ A)))
        return Acting(shared.P @ A, p.gamma, S)


@program()
def _whitened(D: Dictionary, params: Unrolled) -> Unrolled:
    m, d = D.shape
    with jax.default_matmul_precision("highest"):
        A = dense(D)
        values, vectors = jnp.linalg.eigh(A @ A.T)
        least = m * jnp.finfo(A.dtype).eps * values[-1]  # smaller eigenvalues are rounding errors
        inverse = jnp.where(values > least, 1 / jnp.maximum(values, least), 0)
        P, Q = ((vectors * scale[None, :]) @ vectors.T for scale in (inverse, jnp.sqrt(inverse)))
    rank = jnp.sum(values > least, dtype=A.dtype)  # the trace of D'P D with unit weights
    gamma = jnp.full_like(params.steps.gamma, d / rank)
    return Unrolled(SignalMatrices(P, Q), params.steps._replace(gamma=gamma))
