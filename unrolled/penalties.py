"""The penalty of a code: what shrinks it, what an objective adds up, what bounds a dual point."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike
from unrolled.activations import nonnegative_threshold, relu, select_support, selected, shrink

__all__ = ["L1", "NONNEGATIVE", "Penalty"]


@dataclass(frozen=True)
class Penalty:
    r"""sum_i lam_i |x_i|, over all codes or over x >= 0.

    Whatever reads a penalty reads this record: the steps of layers and pursuits, objectives,
    duality gaps, and the derivative of a solution. The dual of the LASSO with this penalty is

    .. math:: \max_\nu \|y\|^2 / 2 - \|y - \nu\|^2 / 2 : |(D'\nu)_i| \le lam_i,

    where over x >= 0 the bound is one on (D'nu)_i itself.

    Attributes:
        nonnegative: whether codes are x >= 0.

    Raises:
        TypeError: `nonnegative` is not a bool.

    Example:
        >>> penalty = ur.penalties.Penalty(nonnegative=True)
        >>> penalty.shrink(jnp.array([3.0, -3.0]), 1.0).tolist()
        [2.0, 0.0]
        >>> float(penalty.value(jnp.array([2.0, 0.0]), 1.0))
        2.0
    """

    nonnegative: bool = False

    def __post_init__(self):
        checks.as_bool(self.nonnegative, "nonnegative", "Penalty")

    def sizes(self, v: Array) -> Array:
        """|v_i|, (d,)."""
        return jnp.abs(v)

    def dual_sizes(self, g: Array) -> Array:
        """What lam_i bounds of a dual point, where g = D'nu: |g_i|, or max(g_i, 0) for x >= 0."""
        return relu(g) if self.nonnegative else self.sizes(g)

    def directions(self, x: Array) -> Array:
        """The gradient of sum |x_i| where no x_i is 0, and 0 elsewhere, (d,)."""
        return jnp.sign(x)

    def value(self, x: Array, lam: ArrayLike) -> Array:
        """sum_i lam_i |x_i|, (), for one lam or one per entry, (d,)."""
        sizes = self.sizes(x)
        total = jnp.sum(lam * sizes) if np.ndim(lam) else lam * jnp.sum(sizes)
        return jnp.asarray(total)

    def shrink(
        self,
        v: Array,
        theta: ArrayLike,
        activation: Callable[[Array], Array] = relu,
        fraction: ArrayLike | None = None,
    ) -> Array:
        """With ReLU the proximal map of sum theta_i |x_i|; a share `fraction` may pass unshrunk.

        Any other activation takes its place in `activations.shrink`, or for x >= 0 in
        `activations.nonnegative_threshold`; `activations.select_support` says what passes.
        """
        if self == L1:
            if fraction is None:
                return shrink(v, theta, activation)
            return select_support(v, theta, fraction, activation)
        x = nonnegative_threshold(v, theta, activation)
        if fraction is None:
            return x
        return jnp.where(selected(lax.stop_gradient(self.dual_sizes(v)), theta, fraction), v, x)

    def within(self, g: Array, lam: Array) -> Array:
        """The point nearest to g whose dual sizes are at most lam, (d,)."""
        return jnp.minimum(g, lam) if self.nonnegative else jnp.clip(g, -lam, lam)

    def excess(self, x: Array, g: Array, lam: Array, s: ArrayLike = 1) -> Array:
        """lam_i |x_i| - s x_i g_i, (d,); it is not negative if lam bounds the dual sizes of s g."""
        return lam * self.sizes(x) - s * x * g


L1, NONNEGATIVE = Penalty(), Penalty(nonnegative=True)
