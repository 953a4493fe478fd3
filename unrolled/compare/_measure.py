"""What a comparison measures of the codes of a method, step by step."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import metrics
from unrolled._checks import Array
from unrolled._numbers import largest
from unrolled.compare._comparison import Curve, Divergence
from unrolled.dictionaries import Dictionary
from unrolled.pursuit import fista, lasso_objective

# The quantiles of the errors of single signals that a `Curve` holds.
QUANTILES = (0.1, 0.5, 0.9)
# The most steps of FISTA to the optimum of the LASSO.
_MAX_STEPS = 3000
# What rounding may add to the error of the zero code: in dB, and as a share of F*.
_ROUNDING = 1e-3


class Sample(NamedTuple):
    """What all methods run on, layer by layer."""

    Ds: tuple[Dictionary, ...]
    Y: Array
    Xs: tuple[Array, ...]
    lams: tuple[Any, ...]  # None without gaps to the optimum
    optima: tuple[Any, ...]  # F* of every signal

    @property
    def pairs(self) -> list[tuple[Array, Array]]:
        """The signals and the codes of every layer."""
        return list(zip((self.Y, *self.Xs), self.Xs))


class Measured(NamedTuple):
    errors: dict[str, Array]  # the fields of a `Curve`
    gap: Array | None
    zero_gap: Array | None  # of the zero code
    silent: Array


@partial(jax.jit, static_argnames="model")
def measure(model: Any, params: Any, D: Any, sample: Sample) -> list[Measured]:
    """`measure_codes` of a model; compiled once for all of its params."""
    paths = jax.vmap(model.iterates, (None, None, 0), out_axes=1)(params, D, sample.Y)
    return measure_codes(paths if isinstance(paths, tuple) else (paths,), sample)


@jax.jit
def measure_codes(paths: tuple[Array, ...], sample: Sample) -> list[Measured]:
    """The codes of every layer, (steps, batch, d), against the true ones."""
    found = []
    for path, D, (Y, X), lam, optimum in zip(
        paths, sample.Ds, sample.pairs, sample.lams, sample.optima
    ):
        gap = zero_gap = None
        if lam is not None:
            measured = partial(_objective_gap, D, Y, lam=lam, optimum=optimum)
            gap, zero_gap = jax.lax.map(measured, path), measured(jnp.zeros_like(X))
        silent = ~(path[-1] != 0).any() & (X != 0).any()
        found.append(Measured(jax.lax.map(partial(_errors, X), path), gap, zero_gap, silent))
    return found


def _errors(X: Array, x: Array) -> dict[str, Array]:
    return dict(
        nmse=metrics.nmse(x, X),
        mean_nmse=metrics.mean_nmse(x, X),
        quantiles=jnp.nanquantile(metrics.signal_nmse(x, X), jnp.asarray(QUANTILES, x.dtype)),
        failure_rate=metrics.failure_rate(x, X),
        largest_l1=largest(jnp.abs(x - X).sum(-1)),
        **metrics.support_scores(x, X)._asdict(),
    )


def _objective_gap(D, Y, x, lam, optimum) -> Array:
    objective = jax.vmap(lasso_objective, (None, 0, 0, None))(D, Y, x, jnp.asarray(lam, Y.dtype))
    excess = jnp.sum(objective - optimum)
    # Without any excess there is no gap, also where the optimum of every signal is 0.
    return jnp.where(excess == 0, 0, excess / jnp.sum(optimum))


def lasso_optima(D, Y, lam) -> Array:
    """F* of every signal, to a relative duality gap of 1e-6 of its energy where float32 allows."""
    solve = jax.jit(
        jax.vmap(lambda y: lasso_objective(D, y, fista(D, y, lam, max_steps=_MAX_STEPS).x, lam))
    )
    return solve(Y)


def divergence(curve: Curve, zero_gap: Any) -> Divergence | None:
    """How the codes end worse than the zero code, where every method starts; None if they do not.

    Codes without any error are no worse, also where the true codes are all zero.
    """
    error = curve.nmse[-1]
    if step := _worse_from(~((curve.nmse <= _ROUNDING) | (curve.largest_l1 == 0))):
        if not np.isfinite(error):
            return Divergence(step, f"its error is not finite from step {step} on")
        ends = f"its error ends {error:.1f} dB above that of the zero code"
        return Divergence(step, f"{ends}, and is above it from step {step} on")
    if curve.gap is None:
        return None
    most = float(zero_gap) + _ROUNDING
    if step := _worse_from(~(curve.gap <= most)):
        ends = f"(F - F*) / F* ends at {curve.gap[-1]:.3g}, above the {float(zero_gap):.3g} of"
        return Divergence(step, f"{ends} the zero code, and is above it from step {step} on")
    return None


def _worse_from(worse: np.ndarray) -> int:
    """The step from which on all are worse, counted from 1; 0 if the last is not."""
    good = np.flatnonzero(~worse)
    first = good[-1] + 2 if len(good) else 1
    return int(first) if first <= len(worse) else 0
