"""The passes of a calibration: step by step, then one factor; and the weights they begin with."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array
from unrolled._numbers import exponent, times_power
from unrolled._program import program
from unrolled.dictionaries import Dictionary, column_norms
from unrolled.layers import Layer, Unrolled, names_with_role
from unrolled.theory import spectral_radius

Loss = Callable[..., Array]  # of (codes, X, D, Y), as those of training

# A search tries every pair of a threshold and a step size on a grid, then on two finer grids around
# the best pair.
_ROUNDS = 3
_THETAS = 24
_GAMMAS = 9
# Half-widths of the first grid, in logarithms: theta runs from 1e-5 of the largest entry up to it,
# gamma from a third of its start to three times that.
_THETA_SPAN = 5.75
_GAMMA_SPAN = 1.1
# A threshold per unit of the residual runs from 1/50 of its start to 50 times that.
_RELATIVE_SPAN = math.log(50)
# The second pass multiplies all thresholds by one factor: first of 17 from 1/8 to 8.
_FACTOR_ROUNDS = 2
_FACTORS = 17
_FACTOR_SPAN = math.log(8)


def squared(codes: Any, X: Array, D: Any, Y: Array) -> Array:
    """The squared error of the last codes, in a unit in which squares stay in the range."""
    return jnp.sum(jnp.sum(times_power(codes[-1] - X, -exponent(X)) ** 2, axis=1))


def codes_of(model: Any, params: Any, D: Any, Y: Array) -> Any:
    """The codes of a network, or the last ones of a layer, (1, batch, d), as a loss takes them."""
    codes = jax.vmap(model.apply, (None, None, 0))(params, D, Y)
    return codes if isinstance(codes, tuple) else codes[None]


def threshold_names(p) -> list[str]:
    """The names of the thresholds among the params of a step, absolute or relative."""
    return names_with_role(p, "threshold", "relative threshold")


def greedy(
    layer: Layer, params: Unrolled, D: Dictionary, Y: Array, X: Any, loss: Loss = squared
) -> Unrolled:
    """Every step, of stacked params, with the threshold and step size of least loss after it."""

    def choose(state, step):
        p, state = _search(layer, loss, params.shared, step[0], D, Y, X, state, step[1:])
        return state, p

    schedule = () if layer.schedule is None else (jnp.asarray(layer.schedule, jnp.float32),)
    start = jax.vmap(lambda y: layer.start(D, y))(Y)
    return params._replace(steps=lax.scan(choose, start, (params.steps, *schedule))[1])


def _search(layer, loss, shared, p, D, Y, X, state, constants):
    """The params of one step with the best threshold and step size, and the states after it."""
    sizes = names_with_role(p, "step size")

    def after(theta, gamma):
        trial = _with(p, theta, gamma)
        return jax.vmap(lambda y, s: layer.step(shared, trial, D, y, s, *constants))(Y, state)

    def error(theta, gamma):
        return loss(after(theta, gamma).x[None], X, D, Y)

    one = jnp.ones((), Y.dtype)
    gamma = jnp.mean(getattr(p, sizes[0])).astype(Y.dtype) if sizes else one
    if relative := names_with_role(p, "relative threshold"):
        theta = jnp.mean(jnp.abs(getattr(p, relative[0]))).astype(Y.dtype)
        middle, width = jnp.log(_positive(theta)), _RELATIVE_SPAN
    else:
        middle, width = jnp.log(_largest_entry(D, Y, X)) - _THETA_SPAN, _THETA_SPAN
    at = [middle, jnp.log(_positive(gamma))]
    widths = [width * one, (_GAMMA_SPAN if sizes else 0.0) * one]
    counts = [_THETAS, _GAMMAS if sizes else 1]

    def finer(_, window):
        at, widths = window
        thetas, gammas = (
            jnp.exp(a + w * jnp.linspace(-1, 1, n, dtype=Y.dtype))
            for a, w, n in zip(at, widths, counts)
        )
        # In turn: one pair at a time stays in the cache of a processor, and the compiler takes
        # the products, which no threshold changes, out of the loop.
        errors = lax.map(lambda gamma: lax.map(lambda t: error(t, gamma), thetas), gammas)
        i, j = jnp.unravel_index(jnp.nanargmin(errors), errors.shape)
        at = [jnp.log(thetas[j]), jnp.log(gammas[i])]
        return at, [2 * w / (n - 1) for w, n in zip(widths, (_THETAS, _GAMMAS))]

    with jax.default_matmul_precision("highest"):
        at, _ = lax.fori_loop(0, _ROUNDS, finer, (at, widths))
        theta, gamma = (jnp.exp(a) for a in at)
        return _with(p, theta, gamma), after(theta, gamma)


def _largest_entry(D: Dictionary, Y: Array, X: Any) -> Array:
    """The largest entry of the codes; where they are not known, of codes of single atoms."""
    if X is not None:
        return jnp.max(jnp.abs(X)).astype(Y.dtype)
    norms = column_norms(D)
    norms = jnp.where(norms > 0, norms, jnp.inf)
    codes = jax.vmap(lambda y: (y @ D) / norms / norms)(Y)  # norms^2 may leave the range
    return jnp.max(jnp.abs(codes)).astype(Y.dtype)


def _positive(value: Array) -> Array:
    """The value, or 1 where it is not positive."""
    return jnp.where(value > 0, value, 1)


def _with(p, theta, gamma):
    """Step params with one threshold, and one step size where there is one."""
    values = dict.fromkeys(threshold_names(p), theta)
    values |= dict.fromkeys(names_with_role(p, "step size"), gamma)
    return p._replace(**{name: jnp.full_like(getattr(p, name), v) for name, v in values.items()})


def with_factor(layer, params, D, Y, X, loss=squared):
    """The params with all thresholds times the factor of least loss after the last step."""
    names = threshold_names(params.steps)

    def scaled(log_t):
        thetas = {name: getattr(params.steps, name) * jnp.exp(log_t) for name in names}
        return params._replace(steps=params.steps._replace(**thetas))

    def error(log_t):
        return loss(codes_of(layer, scaled(log_t), D, Y), X, D, Y)

    def finer(_, window):
        best, width = window
        # The middle of an odd grid is the best so far: the greedy choice is left for a better one.
        tried = best + width * jnp.linspace(-1, 1, _FACTORS, dtype=Y.dtype)
        return tried[jnp.nanargmin(lax.map(error, tried))], 2 * width / (_FACTORS - 1)

    one = jnp.ones((), Y.dtype)
    return scaled(lax.fori_loop(0, _FACTOR_ROUNDS, finer, (0 * one, _FACTOR_SPAN * one))[0])


def scaled_weights(layer: Layer, params: Unrolled, D: Dictionary) -> list[Unrolled]:
    """The stacked params with c W, if their steps have no step size and one of them expands."""
    unguarded = dataclasses.replace(layer, guard=None)  # a guard changes no step
    if not unguarded.is_coupled or names_with_role(params.steps, "step size"):
        return []
    scaled, radius = _scaled(unguarded, params, D)
    rounding = D.shape[0] * float(jnp.finfo(radius.dtype).eps)  # of a product with one column
    return [scaled] if float(radius) > 2 * (1 + rounding) else []


@program("layer")
def _scaled(layer: Layer, params: Unrolled, D: Dictionary) -> tuple[Unrolled, Array]:
    """The params with c W, c = min(1, 2 / rho), and the largest spectral radius rho of W'D."""

    def scaled(p):
        radius = spectral_radius(layer.weights(params.shared, p, D).W, D)
        return _times(p, jnp.minimum(1, 2 / radius)), radius

    steps, radii = lax.map(scaled, params.steps)
    return Unrolled(_times(params.shared, jnp.minimum(1, 2 / radii[0])), steps), jnp.max(radii)


def _times(record, c: Array):
    """A record with its weights times c."""
    weights = {name: getattr(record, name) for name in names_with_role(record, "weights")}
    weights = {name: W * c.astype(W.dtype) for name, W in weights.items()}
    return record._replace(**weights) if weights else record
