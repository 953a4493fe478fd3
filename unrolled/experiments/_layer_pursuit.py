"""One more pursuit: how far the forward codes of a layer are from those that minimise."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from unrolled import _checks, pursuit
from unrolled._checks import Array
from unrolled._numbers import norm
from unrolled.dictionaries import Conv
from unrolled.experiments._layer_dictionary import LayerDictionary

# Least penalty of the equivalent problem, in units of the largest threshold or entry of a code: the
# certificate of the pursuit divides by the penalties.
_LEAST_PENALTY = 0.01
_LEAST_GAP = 1e-12  # to ask for, relative to half the energy of the signal
_INFEASIBLE = 1e-9  # norm of the residual, at most 1, below which no shift is feasible


class Pursued(NamedTuple):
    """Forward codes x beside the codes x* of a pursuit; arrays are (images,).

    x* minimises J(x) = 1/2 norm(y - D x)^2 + sum_i theta_i x_i over x >= 0. The forward code is one
    step of ISTA from zero with step size 1. The next layer makes up for any scale, so the code is
    also judged at its best multiple.
    """

    bounded: bool  # whether J is, as far as `features` can tell; else all arrays but scale are nan
    negative: float  # share of the filters whose threshold is negative, a reward
    scale: np.ndarray  # c that minimises J(c x); 0 where x = 0
    gap: np.ndarray  # (J(c x) - J(x*)) / (J(0) - J(x*)): 0 for the code of the pursuit, 1 for none
    change: np.ndarray  # norm(x* - x) / norm(x*)
    scaled_change: np.ndarray  # least norm(x* - c x) / norm(x*) over c
    overlap: np.ndarray  # nonzeros in both supports over those in either
    nonzeros: np.ndarray  # of x*
    explained: np.ndarray  # 1 - norm(y - D x*)^2 / norm(y)^2
    certificate: np.ndarray  # how much J(x*) may exceed the minimum, in the units of `gap`


def pursued(layer: LayerDictionary, Y: Array, tol: float, max_steps: int) -> Pursued:
    """In float64: where a code explains little of a signal, the gap is a small difference."""
    wide = [np.asarray(part, np.float64) for part in (layer.theta, Y, jax.nn.relu(layer.codes(Y)))]
    with jax.enable_x64(True):
        D = _checks.cast(layer.D, np.float64)
        theta, Y, X = map(jnp.asarray, wide)
        least = _LEAST_PENALTY * max(np.abs(wide[0]).max(), wide[2].max())
        negative, shifted = float(np.mean(wide[0] < 0)), _shifted(D, wide[0], least)
        scale, decrease = _best_multiples(D, theta, Y, X)
        if shifted is None:
            return Pursued(False, negative, np.asarray(scale), *[np.full(len(Y), np.nan)] * 7)
        e, lam = shifted
        half = np.sum((wide[1] + e) ** 2, 1) / 2
        shares = np.asarray(decrease) / half
        tight = max(tol * shares[shares > 0].min(initial=1.0), _LEAST_GAP)
        tight = 10.0 ** math.floor(math.log10(tight))  # static: another value compiles again
        problem = D, jnp.asarray(lam), jnp.asarray(e)
        best, gap = _pursue(*problem, Y, scale, X, tol=tight, max_steps=max_steps)
        compared = _compare(D, theta, Y, X, decrease, best, gap * jnp.asarray(half))
        return Pursued(True, negative, *map(np.asarray, (scale, *compared)))


@partial(jax.jit, static_argnames=("tol", "max_steps"))
def _pursue(
    D: Conv, lam: Array, e: Array, Y: Array, scale: Array, X: Array, *, tol: float, max_steps: int
) -> tuple[Array, Array]:
    """Codes x*, and their gaps relative to norm(y + e)^2 / 2, from c x on."""

    def one(y, c, x):
        options: dict[str, Any] = dict(nonnegative=True, tol=tol, max_steps=max_steps)
        result = pursuit.lasso(D, y + e, lam, start=c * x, **options)
        return result.x, result.gap

    return jax.vmap(one)(Y, scale, X)


def _parts(D: Conv, theta: Array, y: Array, x: Array) -> tuple[Array, Array, Array]:
    """a, b and D x with J(0) - J(c x) = c a - c^2 b / 2."""
    with jax.default_matmul_precision("highest"):
        fitted = D @ x
        return jnp.vdot(x, y @ D - D.spread(theta)), jnp.vdot(fitted, fitted), fitted


@jax.jit
def _best_multiples(D: Conv, theta: Array, Y: Array, X: Array) -> tuple[Array, Array]:
    """The c that minimises J(c x), and J(0) - J(c x); (N,) each."""

    def one(y, x):
        a, b, _ = _parts(D, theta, y, x)
        c = _ratio(jax.nn.relu(a), b)
        return c, c * a / 2

    return jax.vmap(one)(Y, X)


@jax.jit
def _compare(
    D: Conv, theta: Array, Y: Array, X: Array, decrease: Array, best: Array, excess: Array
) -> tuple[Array, ...]:
    """The arrays of `Pursued` from `gap` on."""

    def one(y, x, forward, best, excess):
        a, b, fitted = _parts(D, theta, y, best)
        most = a - b / 2  # J(0) - J(x*)
        closest = _ratio(jnp.vdot(x, best), jnp.vdot(x, x))
        either = jnp.sum((x > 0) | (best > 0))
        both = jnp.sum((x > 0) & (best > 0))
        return (
            _ratio(most - forward, most),
            _ratio(norm(best - x), norm(best)),
            _ratio(norm(best - closest * x), norm(best)),
            jnp.where(either > 0, both / jnp.maximum(either, 1), 1),
            jnp.sum(best > 0),
            1 - _ratio(norm(y - fitted), norm(y)) ** 2,
            _ratio(excess, most),
        )

    return jax.vmap(one)(Y, X, decrease, best, excess)


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _shifted(D: Conv, theta: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray] | None:
    """A small shift e (m,) of signals with penalties theta + D'e of at least `least`, and these.

    The shift repeats itself with the stride, so D'e has one value per filter. If there is none,
    there are codes of equal maps with D x = 0, but for the border, and theta' x negative (Farkas):
    minimisers, where they exist, live on the border.
    """
    n_atoms, channels = D.code_grid[0], D.signal_grid[0]
    t, filters = D.stride, np.asarray(D.filters, np.float64)
    room = [(0, -n % t) for n, t in zip(D.kernel, D.stride)]
    whole = np.pad(filters, [(0, 0), (0, 0), *room])
    height, width = whole.shape[2:]
    phases = whole.reshape(n_atoms, channels, height // t[0], t[0], width // t[1], t[1])
    sums = phases.sum(axis=(2, 4)).reshape(n_atoms, -1)
    c = _least_norm(sums, least - theta)
    if c is None:  # without rewards J >= 0, but the certificate is loose where a threshold is 0
        return (np.zeros(D.shape[0]), theta) if (theta >= 0).all() else None
    times = [-(-N // t) for N, t in zip(D.signal_shape, t)]
    e = np.tile(c.reshape(channels, *t), (1, *times))[:, : D.signal_shape[0], : D.signal_shape[1]]
    return e.reshape(-1), theta + sums @ c


def _least_norm(S: np.ndarray, h: np.ndarray) -> np.ndarray | None:
    """The c of least norm with S c >= h, by nonnegative least squares; None if there is none.

    Reference: Lawson, Hanson (1974), chapter 23, least distance programming.
    """
    stacked = np.vstack([S.T, h])
    target = np.eye(len(stacked))[-1]
    residual = stacked @ optimize.nnls(stacked, target)[0] - target
    if np.linalg.norm(residual) < _INFEASIBLE:
        return None
    return -residual[:-1] / residual[-1]
