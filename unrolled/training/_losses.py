"""Losses of a batch, `loss(codes, X, D, Y) -> scalar`; the arguments are those of `Loss`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import energy
from unrolled._program import program
from unrolled.pursuit import lasso_objective
from unrolled.training._records import Loss


def _of_last(loss: Loss) -> Loss:
    """A loss that says that it sees the code of the last step alone."""
    loss.of_last = True  # type: ignore[attr-defined]
    return loss


@_of_last
@program()
def supervised(codes: Any, X: Any, D: Any, Y: Array) -> Array:
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
    return jnp.mean(jnp.sum((codes[-1] - _last(X)) ** 2, -1)) / 2


@_of_last
@program()
def log_nmse(codes: Any, X: Any, D: Any, Y: Array) -> Array:
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
    target = _last(X)
    (e, j), (energy_of_target, k) = energy(codes[-1] - target), energy(target)
    return jnp.log(e) - jnp.log(energy_of_target) + 2 * math.log(2) * (j - k).astype(e.dtype)


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


@_of_last
@program()
def reconstruction(codes: Any, X: Any, D: Any, Y: Array) -> Array:
    """Unsupervised: the mean of 1/2 norm(y - D x_K)^2; for a network y - D_1 ... D_J x_J.

    Args:
        codes, X, D, Y: as for `Loss`; X is not used.

    Example:
        >>> codes, Y = jnp.zeros((3, 1, 2)), jnp.array([[3.0, 1.0]])
        >>> float(ur.training.reconstruction(codes, None, jnp.eye(2), Y))
        5.0
    """
    signals = codes[-1]
    for Dj in reversed(D if isinstance(D, tuple) else (D,)):
        signals = jax.vmap(lambda D, x: D @ x, (_batch_axis(Dj), 0))(Dj, signals)
    return jnp.mean(jnp.sum((Y - signals) ** 2, -1)) / 2


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


def _last(X):
    if X is None:
        raise ValueError(
            "loss: this loss compares with true codes, but X = None; try training.lasso(lam), or "
            "signals with their codes, (Y, X)"
        )
    return X[-1] if isinstance(X, tuple) else X
