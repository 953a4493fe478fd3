"""Losses of a batch, `loss(codes, X, D, Y) -> scalar`; the arguments are those of `Loss`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike, TypeAliasType
from unrolled._numbers import energy
from unrolled._program import program
from unrolled.pursuit import lasso_objective
from unrolled.training._records import Loss

# Of a layer (K, batch, d), of a network one array for each block; X without the steps.
Codes = TypeAliasType("Codes", Array | Sequence[Array])


def _of_last(loss: Loss) -> Loss:
    """A loss that says that it sees the code of the last step alone."""
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
    return _supervised(codes, _target(codes, X, "supervised"))


@program()
def _supervised(codes, X):
    return jnp.mean(jnp.sum((codes[-1] - X) ** 2, -1)) / 2


@checked
@_of_last
def log_nmse(codes: Codes, X: Codes | None, D: Any, Y: Array | None) -> Array:
    """ln(sum norm(x_K - x)^2 / sum norm(x)^2): the NMSE in decibels, up to a factor.

    Its gradient does not fade as the error falls.

    Args:
        codes, X, D, Y: as for `Loss`; D and Y are not used.

    Raises:
        ValueError: X is None.

    Example:
        >>> codes, X = 1.1 * jnp.ones((3, 2, 4)), jnp.ones((2, 4))
        >>> round(float(ur.training.log_nmse(codes, X, None, None) * 10 / np.log(10)), 3)  # dB
        -20.0
    """
    return _log_nmse(codes, _target(codes, X, "log_nmse"))


@program()
def _log_nmse(codes, target):
    (e, j), (energy_of_target, k) = energy(codes[-1] - target), energy(target)
    return jnp.log(e) - jnp.log(energy_of_target) + 2 * math.log(2) * (j - k).astype(e.dtype)


@checked
def lasso(lam: ArrayLike) -> Loss:
    """Unsupervised: the mean of 1/2 norm(y - D x_K)^2 + lam norm(x_K, 1).

    For a network it is the sum over the blocks, each with the code before it as its signal.

    Args:
        lam: weight of the l1 norm.

    Raises:
        ValueError: a known lam is negative or NaN.

    Example:
        >>> loss = ur.training.lasso(0.1)
        >>> float(loss(jnp.zeros((3, 1, 2)), None, jnp.eye(2), jnp.array([[3.0, 1.0]])))
        5.0
    """
    _checks.nonnegative(lam, "lam", "lasso")
    return _Lasso(lam)


@dataclass(frozen=True, eq=False)
class _Lasso:
    """The loss of `lasso`; its lam is that of the ISTA beside which a run is judged."""

    lam: ArrayLike
    of_last = True

    def __call__(self, codes: Any, X: Any, D: Any, Y: Array) -> Array:
        return _lasso(codes, D, Y, self.lam)


@program()
def _lasso(codes, D, Y, lam):
    blocks = zip(D, (Y, *codes), codes) if isinstance(D, tuple) else [(D, Y, codes[-1])]
    return sum(jnp.mean(_objective(D)(D, Y, x, jnp.asarray(lam, x.dtype))) for D, Y, x in blocks)


def _objective(D):
    return jax.vmap(lasso_objective, (_batch_axis(D), 0, 0, None))


def is_lasso(loss: Any) -> bool:
    """Whether a loss is that of `lasso`."""
    return isinstance(loss, _Lasso)


@checked
@_of_last
def reconstruction(codes: Codes, X: Any, D: Any, Y: Array) -> Array:
    """Unsupervised: the mean of 1/2 norm(y - D x_K)^2; for a network y - D_1 ... D_J x_J.

    Args:
        codes, X, D, Y: as for `Loss`; X is not used.

    Example:
        >>> codes, Y = jnp.zeros((3, 1, 2)), jnp.array([[3.0, 1.0]])
        >>> float(ur.training.reconstruction(codes, None, jnp.eye(2), Y))
        5.0
    """
    _last_shape(codes, "reconstruction")
    _checks.arrays(D, "D", "reconstruction")
    return _reconstruction(codes, D, Y)


@program()
def _reconstruction(codes, D, Y):
    signals = codes[-1]
    for Dj in reversed(D if isinstance(D, tuple) else (D,)):
        signals = jax.vmap(lambda D, x: D @ x, (_batch_axis(Dj), 0))(Dj, signals)
    return jnp.mean(jnp.sum((Y - signals) ** 2, -1)) / 2


@checked
def deep(loss: Loss, weights: ArrayLike | Sequence[float] | None = None) -> Loss:
    """Deep supervision: the weighted sum of a loss over all steps (or blocks).

    Args:
        loss: of the codes up to one step, as if that step were the last.
        weights: (K,), or (J,) for a network; None weighs all equally, with sum 1.

    Raises:
        ValueError: when called, weights of another length, or a network with codes that are neither
            None nor a tuple.

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
        """That of the loss of one step."""
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
        losses = jnp.stack([loss(codes[:j], X and X[:j], D[:j], Y) for j in ends])
    else:
        losses = jax.vmap(lambda x: loss(x[None], X, D, Y))(codes)
    if weights is None:
        return jnp.mean(losses)
    return jnp.sum(jnp.asarray(weights, losses.dtype) * losses)


def _batch_axis(D) -> int | None:
    """The batch axis of dictionaries (batch, m, d), one per signal; None for a shared one."""
    return 0 if getattr(D, "ndim", 2) == 3 else None


def _target(codes, X, where):
    """The true codes of the last block, one for each code of its last step."""
    shape = _last_shape(codes, where)
    if X is None:
        raise ValueError(
            f"{where}: this loss compares with true codes, but X = None; try training.lasso(lam), "
            "or signals with their codes, (Y, X)"
        )
    X = _checks.as_float(X[-1] if isinstance(X, tuple) else X, "X", where)
    if shape != X.shape:
        raise ValueError(
            f"{where}: the last codes have shape {shape} but X has shape {X.shape}; expected "
            "(batch, d) of both"
        )
    return X


def _last_shape(codes, where):
    """The shape of the codes of the last step or block, (batch, d)."""
    last = np.shape(codes[-1]) if isinstance(codes, tuple | list) else codes.shape[1:]
    if len(last) < 2:
        raise ValueError(
            f"{where}: the last codes have shape {last}; expected codes (K, batch, d), or a tuple "
            "of (batch, d)"
        )
    return last
