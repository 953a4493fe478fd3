"""Search over a grid, in place of training: for families with few parameters."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks, metrics
from unrolled.dictionaries import Dictionary, as_dictionary, check_batch
from unrolled.layers import Layer, Unrolled, names_with_role

_ROUNDING = 1e-3  # dB


class Search(NamedTuple):
    """The result of a grid search."""

    params: Unrolled  # with the best values, by `nmse`
    values: dict[str, float]  # the best values
    axes: dict[str, np.ndarray]  # the values tried, in the order of the axes of the tables
    nmse: np.ndarray  # dB, ratio of sums; one axis per field; nan where a code was not finite
    mean_nmse: np.ndarray  # dB, mean of the decibels of the signals

    @property
    def worsened(self) -> bool:
        """Whether the best values are worse than zero codes, whose NMSE is 0 dB."""
        return bool(np.nanmin(self.nmse) > _ROUNDING)


def search(
    layer: Layer,
    params: Unrolled,
    D: Dictionary,
    Y: ArrayLike,
    X: ArrayLike,
    *,
    chunk: int = 8,
    **values: ArrayLike | Sequence[float],
) -> Search:
    """Try all combinations of values of scalar fields of the params, in one compiled call.

    Args:
        layer, params, D: as for `layer.apply`.
        Y: (batch, m), signals.
        X: (batch, d), their true codes. Take 512 or more: on 64, the best values overfit by 15 dB.
        chunk: combinations at a time; memory grows with chunk times batch.
        values: for each field, the values to try, such as threshold=[0.02, 0.04]. A field of
            `params.shared` is a scalar; a field of the stacked `params.steps` gets the same value
            at all steps.

    Warns:
        UserWarning: the best values are worse than zero codes, see `Search.worsened`.

    Raises:
        ValueError: shapes that do not fit, values that are no vector or not finite, a negative
            threshold, a field that is not a scalar, no combination with finite codes.
        TypeError: Y or X are no arrays, no values, a field that the params do not have.

    Not claimed: the best values between the points of the grid. The signals must resemble those to
    be coded: keep some apart to test on.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(8)
        >>> start, theta = layer.init(None, D), [0.001, 0.01, 1.0]
        >>> found = ur.training.search(layer, start, D, Y, X, theta=theta)
        >>> found.nmse.shape, found.values["theta"] < 1
        ((3,), True)
    """
    D, chunk = as_dictionary(D, "search"), _checks.as_index(chunk, "chunk", "search", least=1)
    Y, X = _checks.as_float(Y, "Y", "search"), _checks.as_float(X, "X", "search")
    check_batch(D, Y, X, "search")
    axes = {name: _axis(params, name, tried) for name, tried in values.items()}
    if not axes:
        raise TypeError(
            "search: there are no values to try; expected a field, as in threshold=[0.02, 0.04]"
        )
    grids = [grid.ravel() for grid in np.meshgrid(*axes.values(), indexing="ij")]
    shape = [len(tried) for tried in axes.values()]
    points = dict(zip(axes, grids))
    found = _errors(layer, params, D, Y, X, points, chunk)
    nmse, mean_nmse = (np.asarray(error, float).reshape(shape) for error in found)
    if np.isnan(nmse).all():
        raise ValueError("search: no combination of values gives finite codes; try smaller values")
    best = np.unravel_index(np.nanargmin(nmse), shape)
    chosen = {name: float(tried[i]) for (name, tried), i in zip(axes.items(), best)}
    result = Search(with_values(params, chosen), chosen, axes, nmse, mean_nmse)
    if result.worsened:
        _checks.warn(
            f"search: the best codes are worse than zero codes: their NMSE is {nmse[best]:.1f} dB. "
            "Try other values, smaller weights or step sizes"
        )
    return result


@partial(jax.jit, static_argnames=("layer", "chunk"))
def _errors(layer, params, D, Y, X, points, chunk):
    """Both errors at every point, nan where a code is not finite."""

    def one(point):
        codes = jax.vmap(layer.apply, (None, None, 0))(with_values(params, point), D, Y)
        finite = jnp.isfinite(codes).all()
        return [
            jnp.where(finite, error(codes, X), jnp.nan)
            for error in (metrics.nmse, metrics.mean_nmse)
        ]

    return lax.map(one, points, batch_size=chunk)


def with_values(params: Unrolled, values: Mapping[str, ArrayLike]) -> Unrolled:
    """The params with each named field of `shared` or `steps` set to one value."""
    for name, value in values.items():
        part = "shared" if name in getattr(params.shared, "_fields", ()) else "steps"
        fields = getattr(params, part)
        old = jnp.asarray(getattr(fields, name))
        new = jnp.broadcast_to(jnp.asarray(value).astype(old.dtype), old.shape)
        params = params._replace(**{part: fields._replace(**{name: new})})
    return params


def _axis(params: Unrolled, name: str, tried: ArrayLike | Sequence[float]) -> np.ndarray:
    """The values to try of a field, checked."""
    if not isinstance(params, Unrolled):
        raise TypeError(
            f"search: params must be Unrolled(shared, steps), got {type(params).__name__}"
        )
    shared, steps = (getattr(part, "_fields", ()) for part in params)
    if name not in (*shared, *steps):
        hint = "; try layers.stack" if type(params.steps) is tuple else ""
        raise TypeError(
            f"search: params have no field {name!r}; expected one of {[*shared, *steps]}{hint}"
        )
    record, ndim = (params.shared, 0) if name in shared else (params.steps, 1)
    leaves = jax.tree.leaves(getattr(record, name))
    if len(leaves) != 1 or np.ndim(leaves[0]) != ndim:
        each = " per step" if ndim else ""
        raise ValueError(f"search: {name} is not one number{each}, so it has no grid")
    try:
        tried = np.asarray(tried, float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"search: {name} must be numbers to try, got {tried!r}") from error
    if tried.ndim != 1 or not len(tried):
        raise ValueError(
            f"search: {name} has values of shape {tried.shape}; expected a vector of values to try"
        )
    _checks.finite(tried, name, "search")
    if name in names_with_role(record, "threshold"):
        _checks.nonnegative(tried, name, "search")
    return tried
