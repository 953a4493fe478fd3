"""Search over a grid: for the families that few numbers rule, where training is not needed."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks, metrics
from unrolled._checks import Array
from unrolled.dictionaries import Dictionary, as_dictionary, check_batch
from unrolled.layers import Layer, Unrolled, names_with_role


class Search(NamedTuple):
    """What a grid search found."""

    params: Any  # with the best values, by `nmse`
    values: dict[str, float]  # the best values
    axes: dict[str, np.ndarray]  # the values tried, in the order of the axes of the tables
    nmse: np.ndarray  # dB, ratio of sums; one axis per field; nan where a code was not finite
    mean_nmse: np.ndarray  # dB, mean of the decibels of the signals


def search(
    layer: Layer,
    params: Unrolled,
    D: Dictionary,
    Y: Array,
    X: Array,
    *,
    chunk: int = 8,
    **values: Any,
) -> Search:
    """Try all combinations of values of scalar fields of the params, in one compiled call.

    Args:
        layer, params, D: as for `layer.apply`.
        Y: (batch, m), signals.
        X: (batch, d), their true codes. Few signals mislead: on 64 the best values overfit by 15 dB,
            so take 512 or more.
        chunk: combinations at a time; memory grows with chunk times batch.
        values: for each field the values to try, such as threshold=[0.02, 0.04]. A field of
            `params.shared` is a scalar; one of the stacked `params.steps` gets the same value at all
            steps.

    Raises:
        ValueError: shapes that do not fit, values that are no vector or not finite, a negative
            threshold, a field that is not a scalar, no combination with finite codes.
        TypeError: no values, a field that the params do not have.

    Not claimed: the best values off the grid. The signals must resemble those to be coded: hold some
    back to test.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(8)
        >>> found = ur.training.search(layer, layer.init(None, D), D, Y, X, theta=[0.001, 0.01, 1.0])
        >>> found.nmse.shape, found.values["theta"] < 1
        ((3,), True)
    """
    D, chunk = as_dictionary(D, "search"), _checks.as_index(chunk, "chunk", "search", least=1)
    check_batch(D, Y, X, "search")
    Y, X = _checks.as_float(Y, "Y", "search"), _checks.as_float(X, "X", "search")
    axes = {name: _axis(params, name, tried) for name, tried in values.items()}
    if not axes:
        raise TypeError(
            "search: there are no values to try; expected such as threshold=[0.02, 0.04]"
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
    return Search(with_values(params, chosen), chosen, axes, nmse, mean_nmse)


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


def with_values(params: Unrolled, values) -> Unrolled:
    """The params with the named fields of `shared` or `steps` set to one value each."""
    for name, value in values.items():
        part = "shared" if hasattr(params.shared, name) else "steps"
        fields = getattr(params, part)
        old = jnp.asarray(getattr(fields, name))
        new = jnp.broadcast_to(jnp.asarray(value).astype(old.dtype), old.shape)
        params = params._replace(**{part: fields._replace(**{name: new})})
    return params


def _axis(params: Unrolled, name: str, tried) -> np.ndarray:
    """The values to try of a field, checked."""
    if not isinstance(params, Unrolled):
        raise TypeError(
            f"search: params must be Unrolled(shared, steps), got {type(params).__name__}"
        )
    fields = [*getattr(params.shared, "_fields", ()), *getattr(params.steps, "_fields", ())]
    in_shared = name in getattr(params.shared, "_fields", ())
    if name not in fields:
        hint = "; try layers.stack" if type(params.steps) is tuple else ""
        raise TypeError(f"search: params have no field {name!r}; expected one of {fields}{hint}")
    field = getattr(params.shared if in_shared else params.steps, name)
    if len(jax.tree.leaves(field)) != 1 or np.ndim(jax.tree.leaves(field)[0]) != (
        0 if in_shared else 1
    ):
        raise ValueError(
            f"search: {name} is not one number{'' if in_shared else ' per step'}, so it has no grid"
        )
    tried = np.asarray(tried, float)
    if tried.ndim != 1 or not len(tried):
        raise ValueError(
            f"search: {name} has values of shape {tried.shape}; expected a vector of values to try"
        )
    _checks.finite(tried, name, "search")
    if name in names_with_role(params.shared if in_shared else params.steps, "threshold"):
        _checks.nonnegative(tried, name, "search")
    return tried
