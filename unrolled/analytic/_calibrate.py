"""Calibration: thresholds and step sizes chosen on a sample, step by step, without gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import Dictionary, as_dictionary, check_batch
from unrolled.layers import Layer, Unrolled, names_with_role, stack, unstack

# A search tries every pair of a threshold and a step size on a grid, then on two finer grids around
# the best pair.
_ROUNDS = 3
_THETAS = 24
_GAMMAS = 9
# Half-widths of the first grid, in logarithms: theta runs from 1e-5 of the largest entry up to it,
# gamma from a third of its start to three times that.
_THETA_SPAN = 5.75
_GAMMA_SPAN = 1.1


def calibrate(layer: Layer, params: Unrolled, D: Dictionary, Y: Array, X: Array) -> Unrolled:
    """Choose thresholds (and step sizes) step by step, to minimise the error on a sample.

    A grid search over the whole sample chooses step k with the steps before it fixed. It is for
    problems where the hypotheses of the theory fail, and needs no gradients. It sets the fields
    whose role is "threshold" or "step size" (theta and gamma) and leaves all others as they are. A
    field with several entries gets one value.

    Args:
        layer: any family whose steps have a threshold, such as `ista`, `lista_cp` or `alista`.
        params: of the layer.
        D: (m, d).
        Y: (batch, m), the signals.
        X: (batch, d), their true codes.

    Returns:
        params of the same form.

    Raises:
        TypeError: a family whose steps have no threshold.
        ValueError: shapes that do not fit, or an empty or all-zero sample.

    Not claimed: the best thresholds for the last step; the choice is greedy.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(4)
        >>> start = layer.init(None, D)
        >>> found = ur.analytic.calibrate(layer, start, D, Y, X)
        >>> errors = [ur.metrics.nmse(jax.vmap(layer.apply, (None, None, 0))(p, D, Y), X)
        ...           for p in (start, found)]
        >>> bool(errors[1] < errors[0])
        True
    """
    D = as_dictionary(D, "calibrate")
    Y, X = _sample(D, Y, X)
    dtype = _checks.common_dtype(params, D, X, Y)
    params, D, X, Y = (_checks.cast(tree, dtype) for tree in (params, D, X, Y))
    layer.check(params, D)
    steps = unstack(params).steps
    if steps is None or not all(names_with_role(p, "threshold") for p in steps):
        raise TypeError(
            "calibrate: expected steps with a threshold, such as theta; this family has none"
        )
    schedule = layer.schedule or (None,) * len(steps)
    state = jax.vmap(lambda y: layer.start(D, y))(Y)
    chosen = []
    for p, constant in zip(steps, schedule):
        constants = () if constant is None else (jnp.asarray(constant, jnp.float32),)
        p, state = _search(layer, params.shared, p, D, Y, X, state, constants)
        chosen.append(p)
    calibrated = Unrolled(params.shared, tuple(chosen))
    return calibrated if type(params.steps) is tuple else stack(calibrated)


@partial(jax.jit, static_argnames="layer")
def _search(layer, shared, p, D, Y, X, state, constants):
    """The params of one step with the best threshold and step size, and the states after it."""
    sizes = names_with_role(p, "step size")

    def after(theta, gamma):
        trial = _with(p, theta, gamma)
        return jax.vmap(lambda y, s: layer.step(shared, trial, D, y, s, *constants))(Y, state)

    def error(theta, gamma):
        return jnp.sum((after(theta, gamma).x - X) ** 2)

    one = jnp.ones((), Y.dtype)
    gamma = jnp.mean(getattr(p, sizes[0])).astype(Y.dtype) if sizes else one
    at = [jnp.log(jnp.max(jnp.abs(X)).astype(Y.dtype)) - _THETA_SPAN, jnp.log(_positive(gamma))]
    widths = [_THETA_SPAN * one, (_GAMMA_SPAN if sizes else 0.0) * one]
    counts = [_THETAS, _GAMMAS if sizes else 1]
    with jax.default_matmul_precision("highest"):
        for _ in range(_ROUNDS):
            thetas, gammas = (
                jnp.exp(a + w * jnp.linspace(-1, 1, n, dtype=Y.dtype))
                for a, w, n in zip(at, widths, counts)
            )
            errors = lax.map(partial(jax.vmap(error, (0, None)), thetas), gammas)
            i, j = jnp.unravel_index(jnp.nanargmin(errors), errors.shape)
            at = [jnp.log(thetas[j]), jnp.log(gammas[i])]
            widths = [2 * w / (n - 1) for w, n in zip(widths, (_THETAS, _GAMMAS))]
        theta, gamma = (jnp.exp(a) for a in at)
        return _with(p, theta, gamma), after(theta, gamma)


def _positive(gamma: Array) -> Array:
    """gamma, or 1 where it is not positive."""
    return jnp.where(gamma > 0, gamma, 1)


def _with(p, theta, gamma):
    """Step params with one threshold, and one step size where there is one."""
    values = dict.fromkeys(names_with_role(p, "threshold"), theta)
    values |= dict.fromkeys(names_with_role(p, "step size"), gamma)
    return p._replace(**{name: jnp.full_like(getattr(p, name), v) for name, v in values.items()})


def _sample(D, Y, X) -> tuple[Array, Array]:
    check_batch(D, Y, X, "calibrate")
    _checks.finite((Y, X), "the sample", "calibrate")
    if not np.any(np.asarray(X)):
        raise ValueError("calibrate: all codes of the sample are zero; expected some signal to fit")
    return _checks.as_float(Y, "Y", "calibrate"), _checks.as_float(X, "X", "calibrate")
