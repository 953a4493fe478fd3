"""Layered pursuits: every code is a pursuit of the code before, in the next dictionary."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.dictionaries import Dictionary, as_chain, operands
from unrolled.pursuit._basis_pursuit import basis_pursuit
from unrolled.pursuit._deep import Codes, one_per_layer
from unrolled.pursuit._ista import fista
from unrolled.pursuit._problem import Pursuit
from unrolled.pursuit._threshold import thresholded


@jax.tree_util.register_pytree_node_class
class Layered(tuple[Pursuit, ...]):
    """The pursuits of a chain, one per layer.

    Each is judged as a pursuit of the code before it, so that D_j x_j is only near x_{j-1}.

    Example:
        >>> Ds = jnp.eye(2), jnp.eye(2)
        >>> found = ur.pursuit.layered_thresholding(Ds, jnp.ones(2), (0.5, 0.25))
        >>> [x.tolist() for x in found.xs], found.residual.shape, len(found)
        ([[0.5, 0.5], [0.25, 0.25]], (2,), 2)
    """

    @property
    def xs(self) -> Codes:
        """The codes (x_1, ..., x_J)."""
        return tuple(found.x for found in self)

    @property
    def gap(self) -> Array:
        """The gaps of the layers, (J,)."""
        return jnp.stack([found.gap for found in self], -1)

    @property
    def residual(self) -> Array:
        """norm(x_{j-1} - D_j x_j), (J,)."""
        return jnp.stack([found.residual for found in self], -1)

    @property
    def steps(self) -> Array:
        """The steps of the layers, (J,)."""
        return jnp.stack([found.steps for found in self], -1)

    @property
    def converged(self) -> Array:
        """Whether all layers have converged, ()."""
        return jnp.stack([found.converged for found in self], -1).all(-1)

    def tree_flatten(self) -> tuple[tuple[Pursuit, ...], None]:
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, _: None, layers: Any) -> "Layered":
        return cls(layers)


def layered_thresholding(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    thetas: Sequence[ArrayLike],
    *,
    nonnegative: bool = False,
    activation: Callable[[Array], Array] = relu,
    tol: float = 1e-6,
) -> Layered:
    r"""Layered thresholding: the forward pass of a CNN, with x_0 = y.

    .. math:: x_j = shrink(D_j' x_{j-1}, \theta_j) \quad or \quad
        x_j = \rho(D_j' x_{j-1} - \theta_j) \; \text{for nonnegative codes}.

    With `nonnegative` and ReLU, a chain of `Conv` is a CNN with biases -theta_j.

    Args:
        Ds: J dictionaries (d_{j-1}, d_j).
        y: (m,).
        thetas: J thresholds, one number, one per atom, or one per filter of a `Conv` each.
        nonnegative: one rectifier in place of the two of a shrinkage.
        activation: replaces ReLU.
        tol: relative duality gap up to which a layer counts as converged.

    Returns:
        Layered. The gaps judge the layers as solutions of the LASSO, over x >= 0 if nonnegative,
        which they are if the atoms are orthonormal; that of a code out of x >= 0 is inf.

    Raises:
        TypeError: operands that are not real numbers, or a traced tol.
        ValueError: shapes that do not fit, another number of thetas, theta_j < 0 (where known), or
            tol <= 0.

    Not claimed: that the codes are those of the model. `theory.layered_thresholds` gives thresholds
    without false positives, and the error that they leave even without noise.

    Reference: Papyan, Romano, Elad (2017).

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), jnp.eye(32)
        >>> found = ur.pursuit.layered_thresholding(Ds, Ds[0][:, 3], (0.5, 0.25))
        >>> [jnp.flatnonzero(x).tolist() for x in found.xs], float(found.xs[1].max())
        ([[3], [3]], 0.25)
    """
    where = "layered_thresholding"
    Ds, y, thetas = _problem(Ds, y, thetas, "thetas", where)

    def layer(D, y, theta):
        return thresholded(where, D, y, theta, activation, tol, nonnegative)

    return _chained(layer, Ds, y, thetas)


def layered_basis_pursuit(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Sequence[ArrayLike] | None = None,
    *,
    tol: float | None = None,
    max_steps: int = 10_000,
) -> Layered:
    r"""Layered basis pursuit, with penalties, or DSC_1 without; x_0 = y.

    .. math::
        x_j = \arg\min_x \|x_{j-1} - D_j x\|^2 / 2 + lam_j \|x\|_1 \quad or \quad
        x_j = \arg\min_x \|x\|_1 : D_j x = x_{j-1}.

    Under Assumption 1 (strict, with mu or the generalized coherence) the codes of DSC_1 are those
    of the DSC problem (Theorem 2, `theory.uniqueness`). Penalties admit noise; those of
    `theory.layered_penalties` have no false positives and an error in proportion to the noise.

    Args:
        Ds: J dictionaries (d_{j-1}, d_j), d_0 = m.
        y: (m,).
        lams: J penalties, one number, one per atom, or one per filter of a `Conv` each; None for
            the equality constraints.
        tol: relative duality gap of every layer, 1e-6 with penalties and 1e-9 without by default.
        max_steps: the most steps of `fista` in a layer with a penalty.

    Returns:
        Layered, with the pursuits of `fista` or `basis_pursuit`. Without penalties `converged` is
        False for a layer whose input is not in the range of its dictionary.

    Raises:
        TypeError: operands that are not real numbers.
        ValueError: no dictionary, shapes that do not meet, another number of lams, lam_j < 0 (where
            known), or tol not positive.

    Reference: Li, Feng, Zhou (2024), Definition 4; Papyan, Romano, Elad (2017).

    Example:
        >>> Ds = ur.dictionaries.paley(5), jnp.eye(6)
        >>> found = ur.pursuit.layered_basis_pursuit(Ds, Ds[0][:, 2])
        >>> [x.round(3).tolist()[2] for x in found.xs]
        [1.0, 1.0]
        >>> noisy = ur.pursuit.layered_basis_pursuit(Ds, Ds[0][:, 2] + 0.01, (0.05, 0.05))
        >>> bool(noisy.converged), [jnp.flatnonzero(x > 0.5).tolist() for x in noisy.xs]
        (True, [[2], [2]])
    """
    where = "layered_basis_pursuit"
    Ds = as_chain(Ds, where)
    if lams is None:
        least = 1e-9 if tol is None else tol
        return _chained(lambda D, y, _: basis_pursuit(D, y, tol=least), Ds, y, (None,) * len(Ds))
    Ds, y, lams = _problem(Ds, y, lams, "lams", where)
    gap = 1e-6 if tol is None else tol
    return _chained(lambda D, y, lam: fista(D, y, lam, tol=gap, max_steps=max_steps), Ds, y, lams)


def _chained(
    layer: Callable[[Dictionary, Any, Any], Pursuit],
    Ds: Sequence[Dictionary],
    y: Any,
    options: Sequence[Any],
) -> Layered:
    found = []
    for D, option in zip(Ds, options):
        found.append(layer(D, y, option))
        y = found[-1].x
    return Layered(found)


def _problem(Ds: Any, y: Any, values: Any, name: str, where: str) -> tuple[Any, Array, tuple]:
    Ds = as_chain(Ds, where)
    values = one_per_layer(values, name, len(Ds), where)
    for j, value in enumerate(values, start=1):
        _checks.nonnegative(value, f"{name[:-1]}_{j}", where)
    _, y, Ds = operands(Ds[0], y, where, params=Ds)
    return Ds, y, values
