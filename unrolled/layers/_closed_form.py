"""Families that start with weights in closed form: the weights, the step size, the thresholds."""

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Array
from unrolled._numbers import exponent, ldexp, power_of_two, times_power
from unrolled._program import program
from unrolled.dictionaries import (
    Conv,
    Dictionary,
    Operator,
    as_dictionary,
    column_norms,
    spectral_norm,
)
from unrolled.layers._ista import StepAndThreshold
from unrolled.layers._layer import Layer
from unrolled.records import option
from unrolled.theory import frobenius_weights, spectral_radius


def stable_step(W: Dictionary, D: Dictionary) -> Array:
    """min(1, 2 / rho) with the spectral radius rho of W'D: beyond it x + gamma W'(y - D x) expands.

    Example:
        >>> D = jnp.eye(2)
        >>> [round(float(ur.layers.stable_step(W, D)), 3) for W in (D, 4 * D)]
        [1.0, 0.5]
    """
    return _stable_step(as_dictionary(W, "stable_step", "W"), as_dictionary(D, "stable_step"))


@program()
def _stable_step(W: Dictionary, D: Dictionary) -> Array:
    return jnp.minimum(1, 2 / spectral_radius(W, D))


@checked
def lasso_weights(D: Dictionary, ridge: float) -> Operator:
    r"""Weights between those of least norm(W'D, "fro") and the D of ISTA.

    .. math:: w_i \propto (D D' + ridge \|D\|_2^2 \, I)^{-1} d_i, \qquad
        w_i \cdot d_i = \|d_i\|^2 / \tfrac1d \sum_j \|d_j\|^2.

    For unit atoms w_i . d_i = 1, and ridge = 0 gives `theory.frobenius_weights`; as ridge -> inf, W
    tends to a multiple of D, whose steps are those of ISTA. The norm(D, 2) of a `Conv` is a bound.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 16)
        >>> W = ur.layers.lasso_weights(D, 0.0)
        >>> bool(jnp.allclose(W, ur.theory.frobenius_weights(D), atol=1e-5))
        True
    """
    W = _lasso_weights(D, None if _checks.is_concrete(ridge) and ridge == 0 else ridge)
    if _checks.is_concrete(W) and any(np.isnan(np.asarray(A)).any() for A in jax.tree.leaves(W)):
        scaled = _scaled(D)[0]
        frobenius_weights(scaled, ridge * spectral_norm(scaled) ** 2)  # says which atoms have none
    return W


def _scaled(D: Dictionary) -> tuple[Dictionary, Array]:
    """D 2^-k, whose squares are in the range of the dtype, and 2^-k."""
    factor = power_of_two(-exponent(spectral_norm(D)), D.dtype)
    return D * factor, factor


@program()
def _lasso_weights(D: Dictionary, ridge: float | None) -> Operator:
    scaled, factor = _scaled(D)
    W = frobenius_weights(scaled, 0.0 if ridge is None else ridge * spectral_norm(scaled) ** 2)
    squares = column_norms(scaled) ** 2
    squares = squares / jnp.mean(squares)
    if isinstance(W, Conv):  # all positions of a filter have one norm
        filters = squares.reshape(len(W.filters), -1)[:, 0]
        return W.scale(filters.reshape(-1, *(1,) * (W.filters.ndim - 1)) * factor)
    return W * squares[None, :] * factor


class FromClosedForm(Layer):
    """A family that starts with `lasso_weights`, gamma = 1 / rho(W'D) and theta = gamma lam.

    The steps descend, as those of ISTA do, in a norm in which small singular values of D count for
    more. (For atoms that are not unit, lam counts per mean square of their norms, as in ISTA.)

    Example:
        >>> layer, D = ur.alista(2, lam=0.1), jnp.eye(3)
        >>> gamma, theta = layer.closed_form_steps(layer.closed_form(D), D)
        >>> print(gamma.round(3), theta.round(3))
        [1. 1.] [0.1 0.1]
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO at the start")
    theta: float | None = option(
        default=None, least=0, help="threshold at the start; None takes gamma lam"
    )
    ridge: float = option(
        default=0.2,
        least=0,
        absent=0.0,
        help="ridge of the closed form, in units of norm(D, 2)^2; 0 gives the weights of the paper",
    )

    def closed_form(self, D: Dictionary) -> Operator:
        """The weights for a dictionary, (m, d)."""
        return lasso_weights(D, self.ridge)

    def closed_form_steps(self, W: Dictionary, D: Dictionary) -> StepAndThreshold:
        """The step sizes and thresholds to start with, (K,) each."""
        return _closed_form_steps(self, W, D)


@program("layer")
def _closed_form_steps(layer: FromClosedForm, W: Dictionary, D: Dictionary) -> StepAndThreshold:
    gamma = (1 / spectral_radius(W, D)).astype(D.dtype)
    norms = column_norms(D)
    k = exponent(norms)
    size = jnp.mean(times_power(norms, -k) ** 2)  # the mean square of the norms, over 2^(2 k)
    theta = ldexp(gamma * layer.lam / size, -2 * k) if layer.theta is None else layer.theta
    return StepAndThreshold(jnp.full(layer.depth, gamma), jnp.full(layer.depth, theta, D.dtype))
