"""Calibration: thresholds and step sizes chosen on a sample, step by step, without gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary
from unrolled.layers import Layer, Unrolled, stack, unstack

# One search looks at every pair of a threshold and a step size on a grid, then twice on finer grids
# around the best.
_ROUNDS = 3
_THETAS = 24
_GAMMAS = 9


def calibrate(layer: Layer, params: Unrolled, D, X: Array, Y: Array) -> Unrolled:
    """Choose theta (and gamma, where the family has one) step by step, to minimise the error on a
    sample.

    Step k is chosen with the steps before it fixed, by a grid search over all signals of the sample
    at once: the honest middle between theory, whose hypotheses rarely hold in practice, and
    training. Other params stay as they are; a theta or gamma with several entries gets one value.

    Args:
        layer, params: any family whose steps have `theta`, such as `ista`, `lista`, `lista_cp`,
            `alista`.
        D: (m, d).
        X: (batch, d), the true codes.
        Y: (batch, m), their signals.

    Returns:
        params of the same form.

    Raises:
        ValueError: shapes that do not fit, an empty or all-zero sample.
        TypeError: a family without theta.

    Not claimed: the best thresholds for the last step; the choice is greedy.
    """
    D = as_dictionary(D, "calibrate")
    _check_sample(D, X, Y)
    X, Y = _checks.as_float(X, "X", "calibrate"), _checks.as_float(Y, "Y", "calibrate")
    dtype = _checks.common_dtype(params, D, X, Y)
    params, D, X, Y = (_checks.cast(tree, dtype) for tree in (params, D, X, Y))
    steps = unstack(params).steps
    if steps is None or not all(hasattr(p, "theta") for p in steps):
        raise TypeError("calibrate: expected steps with a field theta; this family has none")
    jax.eval_shape(
        layer.apply, params, D, Y[0]
    )  # the layer's own checks of the params and their depth
    schedule = layer.schedule or (None,) * len(steps)
    state = jax.vmap(lambda y: layer.start(D, y))(Y)
    chosen = []
    for p, constant in zip(steps, schedule):
        constants = () if constant is None else (jnp.asarray(constant, jnp.float32),)
        p, state = _search(layer.step, params.shared, p, D, Y, X, state, constants)
        chosen.append(p)
    calibrated = Unrolled(params.shared, tuple(chosen))
    return calibrated if type(params.steps) is tuple else stack(calibrated)


@partial(jax.jit, static_argnames="step")
def _search(step, shared, p, D, Y, X, state, constants):
    """The best theta and gamma of one step, and the states after it."""

    def after(theta, gamma):
        trial = _with(p, theta, gamma)
        return jax.vmap(lambda y, s: step(shared, trial, D, y, s, *constants))(Y, state)

    def error(theta, gamma):
        return jnp.sum((after(theta, gamma).x - X) ** 2)

    peak = jnp.max(jnp.abs(X)).astype(Y.dtype)
    has_gamma = hasattr(p, "gamma")
    gamma = jnp.mean(p.gamma).astype(Y.dtype) if has_gamma else jnp.ones((), Y.dtype)
    gamma = jnp.where(gamma > 0, gamma, 1)
    # In logarithms: theta from 1e-5 of the largest entry up to it; gamma from a third to three
    # times its value.
    theta_at, theta_width = jnp.log(peak) - 5.75, jnp.asarray(5.75, Y.dtype)
    gamma_at, gamma_width = jnp.log(gamma), jnp.asarray(1.1 if has_gamma else 0.0, Y.dtype)
    with jax.default_matmul_precision("highest"):
        for _ in range(_ROUNDS):
            thetas = jnp.exp(theta_at + theta_width * jnp.linspace(-1, 1, _THETAS, dtype=Y.dtype))
            gammas = jnp.exp(
                gamma_at
                + gamma_width * jnp.linspace(-1, 1, _GAMMAS if has_gamma else 1, dtype=Y.dtype)
            )
            errors = lax.map(partial(jax.vmap(error, (0, None)), thetas), gammas)
            i, j = jnp.unravel_index(jnp.nanargmin(errors), errors.shape)
            theta_at, gamma_at = jnp.log(thetas[j]), jnp.log(gammas[i])
            theta_width, gamma_width = (
                2 * theta_width / (_THETAS - 1),
                2 * gamma_width / (_GAMMAS - 1),
            )
        best = _with(p, jnp.exp(theta_at), jnp.exp(gamma_at))
        return best, after(jnp.exp(theta_at), jnp.exp(gamma_at))


def _with(p, theta, gamma):
    """Step params with one theta, and one gamma where there is that field."""
    p = p._replace(theta=jnp.full_like(p.theta, theta))
    return p._replace(gamma=jnp.full_like(p.gamma, gamma)) if hasattr(p, "gamma") else p


def _check_sample(D, X, Y) -> None:
    m, d = D.shape
    if (
        np.ndim(X) != 2
        or np.ndim(Y) != 2
        or X.shape[1] != d
        or Y.shape[1] != m
        or len(X) != len(Y)
        or not len(X)
    ):
        raise ValueError(
            f"calibrate: X has shape {np.shape(X)} and Y {np.shape(Y)}; expected (batch, {d}) and (batch, {m})"
        )
    _checks.finite((X, Y), "the sample", "calibrate")
    if not np.any(np.asarray(X)):
        raise ValueError("calibrate: all codes of the sample are zero; expected some signal to fit")
