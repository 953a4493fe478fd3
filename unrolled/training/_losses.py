"""Losses of a batch, `loss(codes, X, D, Y) -> scalar`, and the l1 penalty on features."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike, TypeAliasType
from unrolled._base.numbers import energy, widened
from unrolled._base.programs import program
from unrolled.dictionaries import signal_axes
from unrolled.pursuit import lasso_objective
from unrolled.training._types import Loss

__all__ = [
    "deep",
    "lasso_loss",
    "log_nmse",
    "reconstruction",
    "sparse_feature_penalty",
    "supervised",
]


# Codes have shape (K, batch, d) for a layer; a network has one array per block. X has no step axis.
Codes = TypeAliasType("Codes", Array | Sequence[Array])


def _of_last(loss: Loss) -> Loss:
    """Mark a loss that needs only the code of the last step."""
    loss.of_last = True  # type: ignore[attr-defined]
    return loss


@checked
@_of_last
def supervised(codes: Codes, X: Codes | None, D: Any, Y: Array | None) -> Array:
    """The mean over the batch of 1/2 norm(x_K - x)^2.

    Args:
        codes, X, D, Y: as for `Loss`; D and Y are not used.

    Raises:
        ValueError: X is None.

    Example:
        >>> codes, X = jnp.ones((3, 2, 4)), jnp.zeros((2, 4))  # K = 3, two signals, d = 4
        >>> float(ur.training.supervised(codes, X, None, None))
        2.0
    """
    return _supervised(codes, true_codes(codes, X, "supervised"))


@program()
def _supervised(codes, X):
    return jnp.mean(jnp.sum((codes[-1] - X) ** 2, -1)) / 2


@checked
@_of_last
def log_nmse(codes: Codes, X: Codes | None, D: Any, Y: Array | None) -> Array:
    """ln(sum norm(x_K - x)^2 / sum norm(x)^2): the NMSE in decibels, times ln(10) / 10.

    The gradient does not vanish as the error falls.

    Args:
        codes, X, D, Y: as for `Loss`; D and Y are not used.

    Raises:
        ValueError: X is None.

    Example:
        >>> codes, X = 1.1 * jnp.ones((3, 2, 4)), jnp.ones((2, 4))
        >>> round(float(ur.training.log_nmse(codes, X, None, None) * 10 / np.log(10)), 3)  # dB
        -20.0
    """
    return _log_nmse(codes, true_codes(codes, X, "log_nmse"))


@program()
def _log_nmse(codes, target):
    (e, j), (energy_of_target, k) = energy(codes[-1] - target), energy(target)
    return jnp.log(e) - jnp.log(energy_of_target) + 2 * math.log(2) * (j - k).astype(e.dtype)


@checked
def lasso_loss(lam: ArrayLike, *, relative: bool = False) -> Loss:
    """Unsupervised loss: the mean over the batch of 1/2 norm(y - D x_K)^2 + lam norm(x_K, 1).

    For a network the loss is the sum over the blocks; the signal of a block is the code of the
    previous block.

    Args:
        lam: weight of the l1 norm.
        relative: whether to divide the objective of each signal by 1/2 norm(y)^2, the objective of
            the zero code, so that large signals do not outweigh small signals.

    Raises:
        ValueError: lam is negative or NaN, and not traced.

    Example:
        >>> loss = ur.training.lasso_loss(0.1)
        >>> float(loss(jnp.zeros((3, 1, 2)), None, jnp.eye(2), jnp.array([[3.0, 1.0]])))
        5.0
    """
    checks.nonnegative(lam, "lam", "lasso_loss")
    return _Lasso(lam, relative)


@dataclass(frozen=True, eq=False)
class _Lasso:
    """The loss of `lasso_loss`; the ISTA with which a run is compared has the same lam."""

    lam: ArrayLike
    relative: bool = False
    of_last = True

    def __call__(self, codes: Any, X: Any, D: Any, Y: Array) -> Array:
        return _lasso(codes, D, Y, self.lam, self.relative)


@program("relative")
def _lasso(codes, D, Y, lam, relative):
    blocks = zip(D, (Y, *codes), codes) if isinstance(D, tuple) else [(D, Y, codes[-1])]
    return sum(jnp.mean(objectives_of(D, Y, x, lam, relative)) for D, Y, x in blocks)


def objectives_of(D, Y, x, lam, relative):
    """The objectives of codes, or their shares of the objectives of zero codes."""
    values = _objective(D)(D, Y, x, jnp.asarray(lam, x.dtype))
    zero = jnp.sum(jnp.square(Y), axis=-1) / 2
    return values / jnp.where(zero > 0, zero, 1) if relative else values


def _objective(D):
    return jax.vmap(lasso_objective, (signal_axes(D), 0, 0, None))


@checked
@_of_last
def reconstruction(codes: Codes, X: Any, D: Any, Y: Array) -> Array:
    """Unsupervised loss: the mean over the batch of 1/2 norm(y - D x_K)^2.

    For a network the residual is y - D_1 ... D_J x_J.

    Args:
        codes, X, D, Y: as for `Loss`; X is not used.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> codes, Y = jnp.zeros((3, 1, 2)), jnp.array([[3.0, 1.0]])
        >>> float(ur.training.reconstruction(codes, None, jnp.eye(2), Y))
        5.0
    """
    last = _last_shape(codes, "reconstruction")
    checks.arrays(D, "D", "reconstruction")
    try:
        shape = jax.eval_shape(_signals, codes, D).shape
    except (TypeError, ValueError):  # not a dictionary, or sizes do not fit
        shape = None
    if shape != np.shape(Y):
        products = "no product" if shape is None else f"products of shape {shape}"
        raise ValueError(
            f"reconstruction: the last codes, {last}, have {products} with D, and Y has shape "
            f"{np.shape(Y)}; expected codes (batch, d), D (m, d) and Y (batch, m)"
        )
    return _reconstruction(codes, D, Y)


@program()
def _reconstruction(codes, D, Y):
    return jnp.mean(jnp.sum((Y - _signals(codes, D)) ** 2, -1)) / 2


def _signals(codes, D):
    """The signals of the last codes, (batch, m)."""
    signals = codes[-1]
    for Dj in reversed(D if isinstance(D, tuple) else (D,)):
        signals = jax.vmap(lambda D, x: D @ x, (signal_axes(Dj), 0))(Dj, signals)
    return signals


@checked
def deep(loss: Loss, weights: ArrayLike | Sequence[float] | None = None) -> Loss:
    """Deep supervision: the weighted sum of a loss over all steps of a layer, or blocks of a chain.

    Args:
        loss: the loss of one step or block. For a layer, the loss gets the code of the step,
            (1, batch, d). For a network, the loss gets the codes, X and D of all blocks up to the
            block.
        weights: (K,), or (J,) for a network; None gives all steps or blocks equal weights that sum
            to 1.

    Raises:
        ValueError: raised by the returned loss if weights have another length, or if X of a network
            is neither None nor a tuple.

    Example:
        >>> codes, X = jnp.arange(3.0)[:, None, None], jnp.zeros((1, 1))  # the codes 0, 1, 2
        >>> loss = ur.training.deep(ur.training.supervised, weights=[0.0, 0.5, 1.0])
        >>> float(loss(codes, X, None, None))  # 0.5 * 1/2 + 1.0 * 4/2
        2.25
    """
    return _Deep(loss, weights)


@dataclass(frozen=True, eq=False)
class _Deep:
    """The loss of `deep`."""

    loss: Loss
    weights: ArrayLike | Sequence[float] | None

    @property
    def lam(self) -> ArrayLike | None:
        """The lam of the loss of one step."""
        return getattr(self.loss, "lam", None)

    def __call__(self, codes: Any, X: Any, D: Any, Y: Array) -> Array:
        if isinstance(codes, tuple) and not (X is None or isinstance(X, tuple)):
            raise ValueError("deep: a network has one code per block; expected a tuple X, or None")
        if self.weights is None:
            return _deep(self.loss, None, codes, X, D, Y)
        if np.shape(self.weights) != (len(codes),):
            raise ValueError(
                f"deep: weights have shape {np.shape(self.weights)}; "
                f"expected {(len(codes),)}, one per step"
            )
        weights = self.weights if hasattr(self.weights, "shape") else np.asarray(self.weights)
        return _deep(self.loss, weights, codes, X, D, Y)


@program("loss")
def _deep(loss, weights, codes, X, D, Y):
    if isinstance(codes, tuple):
        ends = range(1, len(codes) + 1)
        losses = jnp.stack([loss(codes[:j], X and X[:j], D and D[:j], Y) for j in ends])
    else:
        losses = jax.vmap(lambda x: loss(x[None], X, D, Y))(codes)
    if weights is None:
        return jnp.mean(losses)
    return jnp.sum(jnp.asarray(weights, losses.dtype) * losses)


def true_codes(codes, X, where):
    """The true codes of the last block, one per signal."""
    shape = _last_shape(codes, where)
    if X is None:
        raise ValueError(
            f"{where}: this loss compares with true codes, but X = None; try "
            "training.lasso_loss(lam), or signals with their codes, (Y, X)"
        )
    X = checks.as_float(X[-1] if isinstance(X, tuple) else X, "X", where)
    if shape != X.shape:
        raise ValueError(
            f"{where}: the last codes have shape {shape} but X has shape {X.shape}; expected "
            "(batch, d) of both"
        )
    return X


def _last_shape(codes, where):
    """The shape of the codes of the last step or block, (batch, d)."""
    last = np.shape(codes[-1]) if isinstance(codes, tuple | list) else np.shape(codes)[1:]
    if len(last) < 2:
        raise ValueError(
            f"{where}: the last codes have shape {last}; expected codes (K, batch, d), or a tuple "
            "of (batch, d)"
        )
    return last


_WHERE = "sparse_feature_penalty"


def sparse_feature_penalty(
    features: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    weights: Mapping[str, Any] | Sequence[Any] | ArrayLike | None = None,
) -> Array:
    r"""The weighted sum over layers of the mean absolute activation.

    .. math:: \sum_j w_j \frac{1}{N \dim x_j} \sum_{n=1}^{N} \|x_j^{(n)}\|_1,

    where dim x_j is the number of elements of x_j in one sample. The gradient is
    :math:`w_j\,\mathrm{sign}(x_j) / (N \dim x_j)`, and 0 where a feature is 0. Add this penalty,
    times a weight, to your loss.

    Args:
        features: one array (N, ...) per layer, with the activations after the nonlinearity.
        weights: one non-negative number per layer: a dict if the features are a dict, else a
            sequence in the same order. None gives every layer the weight 1.

    Returns:
        The penalty, an array of shape () in float32 or wider.

    Raises:
        TypeError: features or weights have a wrong type, or activations are not real floating-point
            numbers.
        ValueError: there are no features, an array has no batch axis or no elements, the batches
            differ in size, weights do not match the features, or a weight that is not traced is
            negative, NaN or infinite.

    The paper (Section 4) prints the sum of norm(x_j, 1) / dim(x_j) for one sample. We assume that
    x_j is taken after the nonlinearity, and that the penalty is averaged over a batch.

    Example:
        >>> features = {"conv1": jnp.array([[1.0, -3.0], [0.0, 4.0]]), "conv2": jnp.ones((2, 5))}
        >>> float(ur.training.sparse_feature_penalty(features))
        3.0
        >>> float(ur.training.sparse_feature_penalty(features, {"conv1": 0.5, "conv2": 0.0}))
        1.0
    """
    layers = _layers(features)
    chosen = _weights(weights, features, layers)
    # Lists instead of dicts, because jit sorts the keys of dicts.
    return _penalty(list(layers.values()), [chosen[name] for name in layers])


@program()
def _penalty(layers: list[Array], weights: list[ArrayLike]) -> Array:
    # First the mean over each sample, in float32 or wider, then the mean over the samples.
    means = [jnp.mean(jnp.mean(_absolute(widened(x)), range(1, x.ndim))) for x in layers]
    dtype = checks.common_dtype(means)
    return sum(
        (jnp.asarray(w, dtype) * mean.astype(dtype) for w, mean in zip(weights, means)),
        start=jnp.zeros((), dtype),
    )


@jax.custom_jvp
def _absolute(x):
    return jnp.abs(x)


# The derivative of jnp.abs at 0 is 1, but the penalty must not change a feature that is 0.
_absolute.defjvps(lambda tangent, _, x: jnp.sign(x) * tangent)


def _layers(features: Any) -> dict[Any, Array]:
    """The features by name, or by position in a sequence, checked."""
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
    return checks.as_float(x, name, _WHERE)


def _weights(weights: Any, features: Any, layers: dict[Any, Array]) -> dict[Any, Any]:
    """The weights by the names of the layers."""
    if weights is None:
        return dict.fromkeys(layers, 1.0)
    if isinstance(weights, Mapping) != isinstance(features, Mapping):
        # jit sorts the keys of a dict, so a dict has no order.
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
        checks.nonnegative(weight, f"weights[{name!r}]", _WHERE)
        checks.finite(weight, f"weights[{name!r}]", _WHERE)
    return chosen
