"""The l1 penalty on the features of a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import widened
from unrolled._program import program

_WHERE = "sparse_feature_penalty"


def sparse_feature_penalty(
    features: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    weights: Mapping[str, Any] | Sequence[Any] | ArrayLike | None = None,
) -> Array:
    r"""The weighted sum over layers of the mean absolute activation.

    .. math:: \sum_j w_j \frac{1}{N \dim x_j} \sum_{n=1}^{N} \|x_j^{(n)}\|_1,

    where dim x_j counts the elements of one sample. The gradient is :math:`w_j\,\mathrm{sign}(x_j)
    / (N \dim x_j)`, and 0 where a feature is 0. A loss takes gamma times this penalty.

    Args:
        features: an array (N, ...) per layer, activations after their nonlinearity.
        weights: one non-negative number per layer, by name if the features have names, else in
            their order; None weighs every layer by 1.

    Returns:
        The penalty, (), in float32 or wider.

    Raises:
        TypeError: features or weights of another kind, or activations that are no real
            floating-point numbers.
        ValueError: no features, an array without a batch axis or without elements, batches of
            several sizes, weights that do not match the features, or one known to be negative, NaN
            or infinite.

    The paper (Section 4) prints the sum of norm(x_j, 1) / dim(x_j) for one sample; that x_j stands
    after the nonlinearity, and that a batch is averaged, is our reading.

    Example:
        >>> features = {"conv1": jnp.array([[1.0, -3.0], [0.0, 4.0]]), "conv2": jnp.ones((2, 5))}
        >>> float(ur.training.sparse_feature_penalty(features))
        3.0
        >>> float(ur.training.sparse_feature_penalty(features, {"conv1": 0.5, "conv2": 0.0}))
        1.0
    """
    layers = _layers(features)
    chosen = _weights(weights, features, layers)
    # Not as dicts, whose keys jit sorts.
    return _penalty(list(layers.values()), [chosen[name] for name in layers])


@program()
def _penalty(layers: list[Array], weights: list[ArrayLike]) -> Array:
    means = [jnp.mean(_sample_means(x)) for x in layers]
    dtype = _checks.common_dtype(means)
    return sum(
        (jnp.asarray(w, dtype) * mean.astype(dtype) for w, mean in zip(weights, means)),
        start=jnp.zeros((), dtype),
    )


def _sample_means(x: Array) -> Array:
    """mean |x| of each sample, in float32 at least."""
    return jnp.mean(_absolute(widened(x)), axis=range(1, x.ndim))


@jax.custom_jvp
def _absolute(x):
    return jnp.abs(x)


# The derivative of jnp.abs at 0 is 1; a feature that is switched off must not be pushed.
_absolute.defjvps(lambda tangent, _, x: jnp.sign(x) * tangent)


def _layers(features: Any) -> dict[Any, Array]:
    """The features by name, or by their place in a sequence, checked."""
    if isinstance(features, Mapping):
        layers = dict(features)
    elif isinstance(features, Sequence) and not isinstance(features, str):
        layers = dict(enumerate(features))
    else:
        raise TypeError(
            f"{_WHERE}: features must be a dict or a sequence of arrays, got "
            f"{type(features).__name__}; try [x] for one layer"
        )
    if not layers:
        raise ValueError(f"{_WHERE}: there are no features; expected one array (N, ...) per layer")
    layers = {name: _activations(x, f"features[{name!r}]") for name, x in layers.items()}
    sizes = {name: len(x) for name, x in layers.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{_WHERE}: the layers have batches of several sizes, {sizes}")
    return layers


def _activations(x: Any, name: str) -> Array:
    if not isinstance(x, jax.Array | np.ndarray) or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{_WHERE}: {name} is {getattr(x, 'dtype', type(x).__name__)}; expected an array of "
            "real floating-point numbers"
        )
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"{_WHERE}: {name} has shape {x.shape}; expected (N, ...), a batch of samples with "
            "elements; try x[None] for one sample"
        )
    return _checks.as_float(x, name, _WHERE)


def _weights(weights: Any, features: Any, layers: dict[Any, Array]) -> dict[Any, Any]:
    """The weights by the names of the layers."""
    if weights is None:
        return dict.fromkeys(layers, 1.0)
    if isinstance(weights, Mapping) != isinstance(features, Mapping):
        # The order of a dict is not kept by jit, which sorts its keys.
        raise TypeError(
            f"{_WHERE}: features are a {type(features).__name__} and weights a "
            f"{type(weights).__name__}; expected two dicts, or two sequences"
        )
    if not isinstance(weights, Mapping | Sequence) and np.ndim(weights) != 1:
        raise ValueError(f"{_WHERE}: weights have shape {np.shape(weights)}; expected one a layer")
    chosen = dict(weights) if isinstance(weights, Mapping) else dict(enumerate(weights))
    if chosen.keys() != layers.keys():
        raise ValueError(
            f"{_WHERE}: weights are for {list(chosen)}, features are {list(layers)}; expected one "
            "weight for each"
        )
    for name, weight in chosen.items():
        if np.shape(weight) != ():
            raise ValueError(
                f"{_WHERE}: weights[{name!r}] has shape {np.shape(weight)}; expected a number"
            )
        _checks.nonnegative(weight, f"weights[{name!r}]", _WHERE)
        _checks.finite(weight, f"weights[{name!r}]", _WHERE)
    return chosen
