"""The penalty of a code: its shrinkage, its value in an objective, its bound on a dual point."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, program
from unrolled._base.numbers import exponent, norm, times_power
from unrolled.activations import nonnegative_threshold, relu, select_support, selected, shrink
from unrolled.dictionaries import Dictionary, block_of

__all__ = ["L1", "NONNEGATIVE", "Penalty"]


@dataclass(frozen=True)
class Penalty:
    r"""sum_i lam_i |x_i| over the parts of a code: single entries, or groups of `block` entries.

    The steps of layers and pursuits, objectives, duality gaps and the derivative of a solution all
    use this record. If a part has several entries, |x_i| is the norm of the part: the modulus of a
    complex number, or the norm of a row of many measurements. The dual of the LASSO with this
    penalty is

    .. math:: \max_\nu \|y\|^2 / 2 - \|y - \nu\|^2 / 2 : |(D'\nu)_i| \le lam_i,

    where the bound is on (D'nu)_i itself if x >= 0. With a finite `bend` the penalty is the minimax
    concave penalty, which is constant beyond |x_i| = bend lam_i,

    .. math:: \sum_i lam_i |x_i| - |x_i|^2 / (2 bend) \text{ to there}, \qquad bend \, lam_i^2 / 2
        \text{ beyond},

    so large parts pass unshrunk. The minimax concave penalty is not convex: duals, gaps and
    pursuits have no bend. Below, a code has length d and n = d / block parts; lam and theta are one
    number, or arrays of shape (d,) whose entries are equal within a part.

    Attributes:
        block: the number of entries of a part, `block` of a dictionary.
        nonnegative: whether codes satisfy x >= 0, which requires parts of one entry.
        bend: the size, in thresholds, from which a part passes unshrunk; it is above 1.

    Raises:
        TypeError: block is not an integer, or `nonnegative` is not a bool.
        ValueError: block is below 1, parts have several entries although `nonnegative` is True, or
            bend is at most 1.

    Reference: Yuan, Lin (2006), the group LASSO; Zhang (2010) and Gao, Bruce (1997) for the bend.

    Example:
        >>> penalty = ur.penalties.Penalty(block=2)
        >>> print(penalty.shrink(jnp.array([3.0, 4.0, 0.1, 0.1]), 1.0).round(1))
        [2.4 3.2 0.  0. ]
        >>> float(penalty.value(jnp.array([3.0, 4.0, 0.0, 0.0]), 2.0))
        10.0
        >>> ur.penalties.Penalty(nonnegative=True).shrink(jnp.array([3.0, -3.0]), 1.0).tolist()
        [2.0, 0.0]
        >>> ur.penalties.Penalty(bend=2.0).shrink(jnp.array([3.0, -1.5]), 1.0).tolist()
        [3.0, -1.0]
    """

    block: int = 1
    nonnegative: bool = False
    bend: float = math.inf

    def __post_init__(self):
        checks.as_index(self.block, "block", "Penalty", least=1)
        checks.as_bool(self.nonnegative, "nonnegative", "Penalty")
        if self.nonnegative and self.block > 1:
            raise ValueError(
                f"Penalty: parts of {self.block} entries have no sign; expected nonnegative=False"
            )
        if not checks.as_number(self.bend, "bend", "Penalty") > 1:
            raise ValueError(f"Penalty: bend must be above 1, got {self.bend}")

    def of(self, D: Dictionary) -> "Penalty":
        """The same penalty, for parts as in the codes of D."""
        return self if block_of(D) == self.block else replace(self, block=block_of(D))

    def parts(self, v: Array) -> Array:
        """The entries of the parts, as an array of shape (n, block)."""
        return v.reshape(-1, self.block)

    def entries(self, values: Array) -> Array:
        """Repeat the values of the parts, an array of shape (n,), for each of the d entries."""
        return jnp.repeat(values, self.block) if self.block > 1 else values

    def of_parts(self, values: Array) -> Array:
        """One value per part, from an array of shape (d,) that is constant within a part.

        The result has shape (n,); a number stays unchanged.
        """
        return self.parts(values)[:, 0] if self.block > 1 and values.ndim else values

    def sums(self, v: Array) -> Array:
        """The sum of the entries of each part, an array of shape (n,)."""
        return jnp.sum(self.parts(v), 1) if self.block > 1 else v

    def sizes(self, v: Array) -> Array:
        """|v_i| for each part, an array of shape (n,)."""
        return norm(self.parts(v), 1) if self.block > 1 else jnp.abs(v)

    def dual_sizes(self, g: Array) -> Array:
        """The sizes that lam_i bounds, for g = D'nu: |g_i|, or max(g_i, 0) for x >= 0."""
        return relu(g) if self.nonnegative else self.sizes(g)

    def support(self, x: Array) -> Array:
        """Whether each entry belongs to a nonzero part, an array of shape (d,)."""
        return self.entries((self.parts(x) != 0).any(1)) if self.block > 1 else x != 0

    def directions(self, x: Array) -> Array:
        """The gradient of sum |x_i|, of shape (d,): x_i / |x_i|, or 0 where x_i is 0."""
        if self.block == 1:
            return jnp.sign(x)
        parts = self.parts(x)
        parts = times_power(parts, -exponent(parts, 1))
        sizes = norm(parts, 1)[:, None]
        zero = sizes == 0
        return jnp.where(zero, 0, parts / jnp.where(zero, 1, sizes)).reshape(-1)

    def value(self, x: Array, lam: ArrayLike) -> Array:
        """sum_i lam_i |x_i|, or the minimax concave penalty, as an array of shape ()."""
        sizes = self.sizes(x)
        if self.bend < math.inf:
            # lam size - size^2 / (2 bend), as a product that stays in the range.
            lam = self.of_parts(jnp.asarray(lam, sizes.dtype))
            sizes = jnp.minimum(sizes, self.bend * lam)
            return jnp.sum(sizes * (lam - sizes / (2 * self.bend)))
        if np.ndim(lam) == 0:
            return jnp.asarray(lam * jnp.sum(sizes))
        return jnp.sum(self.of_parts(jnp.asarray(lam)) * sizes)

    def shrink(
        self,
        v: Array,
        theta: ArrayLike,
        activation: Callable[[Array], Array] = relu,
        fraction: ArrayLike | None = None,
    ) -> Array:
        r"""The proximal map of sum theta_i |x_i| for ReLU; a share `fraction` may pass unshrunk.

        Another activation rho replaces ReLU in `activations.shrink`, or in
        `activations.nonnegative_threshold` for x >= 0. The activation acts on the size of a part,

        .. math:: x_i = v_i / |v_i| \, (\rho(|v_i| - \theta_i) - \rho(-|v_i| - \theta_i)).

        `activations.select_support` says which entries pass unshrunk; parts with the largest sizes
        pass. With a bend, the map is the firm threshold: it keeps the direction of x_i and changes
        its size to min(bend / (bend - 1) |x_i|, |v_i|).
        """
        if self == L1:
            if fraction is None:
                return shrink(v, theta, activation)
            return select_support(v, theta, fraction, activation)
        if self.nonnegative:
            x = nonnegative_threshold(v, theta, activation)
        elif self.block == 1:
            x = shrink(v, theta, activation)
        else:
            theta = self.of_parts(jnp.asarray(theta, v.dtype))
            x = _shrink_parts(self.parts(v), theta, activation).reshape(-1)
            theta = lax.stop_gradient(theta)
        x = self._bent(v, x)
        if fraction is None:
            return x
        sizes = lax.stop_gradient(self.dual_sizes(v))
        return jnp.where(self.entries(selected(sizes, theta, fraction)), v, x)

    def _bent(self, v: Array, x: Array) -> Array:
        """The firm threshold of v from the soft threshold x; without a bend, x itself."""
        if self.bend == math.inf:
            return x
        x = self.bend / (self.bend - 1) * x
        if self.nonnegative:
            return jnp.minimum(x, relu(v))
        if self.block == 1:
            return jnp.clip(x, -jnp.abs(v), jnp.abs(v))
        return jnp.where(self.entries(self.sizes(x) > self.sizes(v)), v, x)

    @property
    def counts(self) -> bool:
        """Whether `divergence` is the number of nonzeros, so that x alone gives it."""
        return self.block == 1 and self.bend == math.inf

    def divergence(self, u: Array, x: Array) -> Array:
        r"""The trace of the derivative of x = shrink(u, theta) with ReLU, an array of shape ().

        .. math:: \sum_{x_i \ne 0} (a_i + (block - 1) |x_i| / |u_i|),

        where a_i = 1, but a_i = bend / (bend - 1) for a part that the bend changes, that is, if
        |x_i| < |u_i|. If parts are single entries and there is no bend, the trace is the number of
        nonzeros. The trace carries no gradient.
        """
        if self.counts:
            return jnp.sum(x != 0, dtype=x.dtype)
        sizes, of_u = self.sizes(x), self.sizes(u)
        kept = sizes / jnp.where(sizes > 0, of_u, 1)
        slope = jnp.ones_like(sizes)
        if self.bend < math.inf:
            slope = jnp.where(sizes < of_u, self.bend / (self.bend - 1), slope)
        terms = jnp.where(sizes > 0, slope + (self.block - 1) * kept, 0)
        return lax.stop_gradient(jnp.sum(terms))

    def within(self, g: Array, lam: Array) -> Array:
        """The point nearest to g with dual sizes of at most lam, an array of shape (d,)."""
        if self.nonnegative:
            return jnp.minimum(g, lam)
        if self.block == 1:
            return jnp.clip(g, -lam, lam)
        sizes, lam = self.sizes(g), self.of_parts(lam)
        over = sizes > lam
        return g * self.entries(jnp.where(over, lam / jnp.where(over, sizes, 1), 1))

    def excess(self, x: Array, g: Array, lam: Array, s: ArrayLike = 1) -> Array:
        """lam_i |x_i| - s x_i . g_i per part; not negative if lam bounds the dual sizes of s g."""
        return self.of_parts(lam) * self.sizes(x) - self.sums(jnp.asarray(s * x * g))


L1 = Penalty()  # the sum of abs(x_i)
NONNEGATIVE = Penalty(nonnegative=True)  # the sum of x_i, over x >= 0


@program("activation")
def _shrink_parts(v: Array, theta: Array, activation: Callable[[Array], Array]) -> Array:
    """The parts v, of shape (n, g), shrunk by theta, of shape () or (n,)."""
    theta = jnp.broadcast_to(theta, v.shape[:1])[:, None]
    if activation == relu:
        return _soft_parts(v, theta)

    def along(size):
        return activation(size - theta) - activation(-size - theta)

    size = norm(v, 1)[:, None]
    zero = size == 0
    at_zero = jax.jvp(along, (jnp.zeros_like(size),), (jnp.ones_like(size),))[1]
    return v * jnp.where(zero, at_zero, along(size) / jnp.where(zero, 1, size))


@jax.custom_jvp
def _soft_parts(v: Array, theta: Array) -> Array:
    """(1 - theta / |v_i|) v_i, or 0 where |v_i| <= theta, for v (n, g) and theta (n, 1)."""
    size = norm(v, 1)[:, None]
    under = size <= theta  # False for nan
    return jnp.where(under, jnp.zeros_like(v), v * ((size - theta) / jnp.where(under, 1, size)))


@_soft_parts.defjvp
def _soft_parts_jvp(primals, tangents):
    theta, (dv, dtheta) = primals[1], tangents
    x = _soft_parts(*primals)
    # Read off the result, as in `activations.shrink`: |v_i| = |x_i| + theta.
    size = norm(x, 1)[:, None]
    zero = size == 0
    u = x / jnp.where(zero, 1, size)
    kept = size / jnp.where(zero, 1, size + theta)
    along = jnp.sum(u * dv, 1, keepdims=True)
    return x, jnp.where(zero, jnp.zeros_like(x), kept * dv + (1 - kept) * u * along - u * dtheta)
