"""Search over a grid, in place of training: for families with few parameters."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import metrics
from unrolled._base import checks, programs
from unrolled._base.arguments import checked
from unrolled._base.checks import ArrayLike
from unrolled.dictionaries import Dictionary, as_dictionary, check_batch
from unrolled.layers import Layer, Unrolled, names_with_role
from unrolled.networks import codes_of_ista, exceeds, lam_of, loss_of, worse_than_zero
from unrolled.training._records import Loss


class Search(NamedTuple):
    """The result of a grid search; a table has one axis per field, nan where a code was not finite.

    The loss decides, or the NMSE where none was given.
    """

    params: Unrolled  # with the best values
    values: dict[str, float]  # the best values
    axes: dict[str, np.ndarray]  # the values tried, in the order of the axes of the tables
    nmse: np.ndarray | None  # dB, ratio of sums; None without codes
    mean_nmse: np.ndarray | None  # dB, mean of the decibels of the signals; None without codes
    loss: np.ndarray | None = None  # None where none was given
    zero: float = 0.0  # that of zero codes, in what decides
    ista: float = np.nan  # that of ISTA at the same depth, with the lam of the loss, or the layer

    def __repr__(self) -> str:
        """What was tried, the best values, and how good they are."""
        tried = " x ".join(f"{len(axis)} of {name}" for name, axis in self.axes.items())
        best = ", ".join(f"{name} = {value:.6g}" for name, value in self.values.items())
        measure, unit = ("NMSE", " dB") if self.loss is None else ("loss", "")
        beside = {"zero codes": self.zero, "ISTA": self.ista}
        of = [f", of {name} {value:.6g}{unit}" for name, value in beside.items() if value == value]
        return f"Search of {tried}: {best} with {measure} {self.lowest:.6g}{unit}{''.join(of)}"

    @property
    def lowest(self) -> float:
        """What decided, of the best values."""
        table: Any = self.nmse if self.loss is None else self.loss
        return float(np.nanmin(table))

    @property
    def worsened(self) -> bool:
        """Whether the best values are worse than zero codes."""
        if self.loss is not None:
            return exceeds(self.lowest, self.zero)
        return exceeds(10 ** (self.lowest / 10), 1.0)  # decibels of a ratio


@checked
@programs.takes_sharded
def search(
    layer: Layer,
    params: Unrolled | Any,
    D: Dictionary,
    Y: ArrayLike,
    X: ArrayLike | None = None,
    *,
    loss: Loss | None = None,
    chunk: int = 8,
    **values: ArrayLike | Sequence[float],
) -> Search:
    """Try all combinations of values of scalar fields of the params, in one compiled call.

    Args:
        layer, params, D: as for `layer.apply`.
        Y: (batch, m), signals.
        X: (batch, d), their true codes. Take 512 or more: on 64, the best values overfit by 15 dB.
            None where they are not known; that needs a loss.
        loss: `loss(codes, X, D, Y)`, as in `fit`, such as `training.lasso(lam)`, by which the best
            values are chosen; None takes the NMSE.
        chunk: combinations at a time; memory grows with chunk times batch.
        values: for each field, the values to try, such as threshold=[0.02, 0.04]. A field of
            `params.shared` is a scalar; a field of the stacked `params.steps` gets the same value
            at all steps.

    Warns:
        UserWarning: the best values are worse than zero codes, see `Search.worsened`.

    Raises:
        ValueError: shapes that do not fit, values that are no vector or not finite, a negative
            threshold, a field that is not a scalar, no combination with finite codes.
            Neither codes nor a loss, or a loss that needs codes where there are none.
        TypeError: Y or X are no arrays, integers without codes, no values, a field that the params
            do not have, a loss that is no function.

    Not claimed: the best values between the points of the grid. The signals must resemble those to
    be coded: keep some apart to test on.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(8)
        >>> start, theta = layer.init(None, D), [0.001, 0.01, 1.0]
        >>> searched = ur.training.search(layer, start, D, Y, X, theta=theta)
        >>> searched.nmse.shape, searched.values["theta"] < 1
        ((3,), True)
    """
    D, chunk = as_dictionary(D, "search"), checks.as_index(chunk, "chunk", "search", least=1)
    own = X is None
    Y = checks.as_signals(Y, "Y", "search") if own else checks.as_float(Y, "Y", "search")
    X = None if own else checks.as_float(X, "X", "search")
    check_batch(D, Y, X, "search")
    aim = loss_of(loss, X, "search")
    axes = {name: _tried(params, name, tried) for name, tried in values.items()}
    if not axes:
        raise TypeError(
            "search: there are no values to try; expected a field, as in threshold=[0.02, 0.04]"
        )
    grids = [grid.ravel() for grid in np.meshgrid(*axes.values(), indexing="ij")]
    shape = [len(tried) for tried in axes.values()]
    points = dict(zip(axes, grids))
    errors = _errors(layer, aim, params, D, Y, X, points, chunk)
    tables: dict[str, Any] = {
        name: np.asarray(error, float).reshape(shape) for name, error in errors.items()
    }
    decides = tables["nmse" if aim is None else "loss"]
    if np.isnan(decides).all():
        raise ValueError("search: no combination of values gives finite codes; try smaller values")
    best = np.unravel_index(np.nanargmin(decides), shape)
    chosen = {name: float(tried[i]) for (name, tried), i in zip(axes.items(), best)}
    zero, of_ista = map(float, _beside_zero_and_ista(layer, aim, lam_of(loss, layer), D, Y, X))
    tables = {"nmse": None, "mean_nmse": None, **tables}
    result = Search(with_values(params, chosen), chosen, axes, **tables, zero=zero, ista=of_ista)
    if result.worsened:
        measure, unit = ("NMSE", " dB") if aim is None else ("loss", "")
        numbers = result.lowest, result.zero, result.ista
        rule = worse_than_zero("the best codes are", measure, *numbers, unit)
        checks.warn(f"search: {rule}. Try other values, smaller weights or step sizes")
    return result


@partial(jax.jit, static_argnums=(0, 1, 2))
def _beside_zero_and_ista(layer, aim, lam, D, Y, X) -> tuple[Any, Any]:
    """What decides, of zero codes and of ISTA at the depth of the layer."""
    path = jnp.zeros((1, len(Y), D.shape[1]), Y.dtype)
    zero = 0.0 if aim is None else aim(path, X, D, Y)
    if lam is None or not layer.depth:
        return zero, jnp.nan
    path = codes_of_ista(D, lam, layer.depth, Y, "search")
    return zero, metrics.nmse(path[-1], X) if aim is None else aim(path, X, D, Y)


@partial(jax.jit, static_argnames=("layer", "aim", "chunk"))
def _errors(layer, aim, params, D, Y, X, points, chunk):
    """The errors at every point by name, nan where a code is not finite."""

    def one(point):
        paths = jax.vmap(layer.iterates, (None, None, 0), out_axes=1)
        path = paths(with_values(params, point), D, Y)
        errors = {} if aim is None else {"loss": aim(path, X, D, Y)}
        if X is not None:
            errors |= {"nmse": metrics.nmse(path[-1], X)}
            errors |= {"mean_nmse": metrics.mean_nmse(path[-1], X)}
        finite = jnp.isfinite(path[-1]).all()
        return {name: jnp.where(finite, error, jnp.nan) for name, error in errors.items()}

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


def _tried(params: Unrolled, name: str, tried: ArrayLike | Sequence[float]) -> np.ndarray:
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
    checks.finite(tried, name, "search")
    if name in names_with_role(record, "threshold"):
        checks.nonnegative(tried, name, "search")
    return tried
