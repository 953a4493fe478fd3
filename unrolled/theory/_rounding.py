"""The rounding of a step x + gamma W'(y - D x): one bound, proved, for every certificate."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import Array, DTypeLike
from unrolled._base.numbers import UP, host_energy, norm
from unrolled.activations import Activation
from unrolled.dictionaries import Functions, block_of, column_norms, inner_terms

__all__: list[str] = []

# The relative error with which an accelerator reads the factors of float32 products at a precision.
PRECISIONS = {
    "default": 2.0**-8,
    "bfloat16": 2.0**-8,
    "high": 2.0**-11,
    "tensorfloat32": 2.0**-11,
    "bfloat16_3x": 2.0**-11,
}
# The unit roundoff of the host, which computes the bounds in float64.
_HOST = 2.0**-53
# The roundings that no sum contains: the subtraction from y, the multiplication by gamma, the
# rounding of y, the addition of x and the subtraction of theta.
_SINGLE = 5
# The additional roundings of the size of a part of g entries, and of the part divided by its size.
_OF_PARTS = 16
# A computed value of an activation errs by at most this times u times the sizes of the argument and
# of the value, as `activations.check` allows.
_VALUE = 32
# The largest number of a step, as a share of the largest number of the dtype.
_REACH = 0.25


def sum_error(terms: Any, unit: float) -> Any:
    r"""The relative error of a sum of products, gamma_k = k u / (1 - k u); inf if k u >= 1.

    .. math:: |fl(\sum_j a_j b_j) - \sum_j a_j b_j| \le \gamma_k \sum_j |a_j| |b_j|

    holds for k terms, in any order of the sum, with or without fused operations. Reference: Higham
    (2002), section 3.1.

    Example:
        >>> from unrolled.theory._rounding import sum_error
        >>> round(float(sum_error(1000, 2.0**-24)) * 2**24, 1)
        1000.1
    """
    of_terms = np.asarray(terms * unit, np.float64)
    return np.where(of_terms < 1, of_terms / np.where(of_terms < 1, 1 - of_terms, 1), math.inf)[()]


def share(rate: Any, size: Any) -> Any:
    """rate times size, and 0 where the size is 0, also if the rate is inf."""
    with np.errstate(invalid="ignore"):
        return np.where(size == 0, 0.0, np.multiply(rate, size))


class Rounding(NamedTuple):
    r"""A bound on the rounding of a step, for weights W, a dictionary D and a dtype.

    Let u be the unit roundoff, gamma_k as in `sum_error`, n the number of nonzeros of x,
    r = y - D x, and f = fl(D x) - D x. Zeros add exactly, so abs(f) <= gamma_n |D||x|. The computed
    residual is (r - f)(1 + t), abs(t) <= u. The sum over its m entries adds gamma_m. Hence the
    computed product g differs from W'r, entry by entry, by at most

    .. math:: \gamma_{m+1} |W|'|r| + (1 + \gamma_{m+1}) \gamma_n |W|'|D||x|.

    If y = D x* + v + e with the noise e, and v is the rounding of y, then r = D (x* - x) + v + e,
    and abs(v) <= gamma_{s+1} |D||x*| + u |e| if y was computed from D and x* in the same dtype, or
    more precisely. Let E bound abs(x* - x), let G = gamma max (|W|'|D|)_ij, and let h = gamma_m
    with a term for each other rounding of the step. Then the argument of the shrinkage differs from
    its exact value without noise by at most

    .. math:: (1 + h) \nu_i + G (h + (1 + h) \gamma_n) \|E\|_1
        + G (1 + h) (\gamma_n + \gamma_{s+1}) \|x^*\|_1,

    where nu_i bounds gamma |w_i|'|e|. The first two terms vanish with the noise and the error; only
    the last term is a floor. The addition of x and the subtraction of theta round by
    2 u (abs(x*_i) + A_i) on the support, which two more roundings in each sum cover if G >= 1.

    Assumed: D x and W'r are sums of products, each of which is complete before y or x is added;
    operations round to nearest. At a lower precision of float32 products, the factors round first,
    and sums round by at most eps. Numbers below the least normal number may count as 0.
    """

    unit: float
    factors: float  # the relative error of the factors of a product
    rows: int  # the number of terms of W'r
    atoms: int
    inner: int  # the number of terms of D x in excess of the nonzeros of x
    part: int  # the number of entries of a part that one sum of D x contains
    block: int  # the number of entries of a part
    atom: float  # the largest norm of an atom
    least: float  # smaller numbers may count as 0
    most: float  # larger numbers may overflow
    proved: bool  # whether D x and W'r are sums of products

    @classmethod
    def of(
        cls,
        W: Any,
        D: Any,
        dtype: DTypeLike,
        precision: str | None = None,
        width: int | None = None,
        norms: Any = None,
    ) -> "Rounding":
        """The rounding of products of W and D.

        `width` is the number of entries of a part, and `norms` are the norms of the atoms in
        float64; None takes both from D.
        """
        info, g = jnp.finfo(dtype), block_of(D) if width is None else width
        measurements = getattr(D, "measurements", 1)
        shared = measurements if measurements == getattr(W, "measurements", 1) else 1
        unit, factors = unit_of(dtype, precision)
        m, d = D.shape
        least = info.smallest_subnormal if info.dtype == jnp.float16 else info.tiny
        if norms is None:
            norms = _column_norms(checks.cast_on_host(D, np.float64))
        atom = float(np.max(np.asarray(norms), initial=0))
        return cls(
            unit,
            factors,
            m // shared + inner_terms(W),
            d,
            inner_terms(D),
            g // shared,
            g,
            atom * UP,
            float(least),
            float(info.max) * _REACH,
            not any(isinstance(leaf, Functions) for leaf in _nodes((W, D))),
        )

    def sum(self, terms: Any) -> Any:
        """The relative error of a sum of products, with the rounding of the factors."""
        return (1 + self.factors) ** 2 * (1 + sum_error(terms, self.unit)) - 1

    @property
    def relative(self) -> float:
        """h, which also covers the float64 products and sums of the bound itself."""
        extra = _SINGLE + (2 * self.block + _OF_PARTS if self.block > 1 else 0)
        return self.sum(self.rows + extra) + sum_error(self.rows + self.atoms + extra, _HOST)

    def of_noise(self) -> float:
        """The rounding per unit of noise in the argument."""
        return self.relative * math.sqrt(self.block)

    def of_error(self, nonzeros: Any) -> Any:
        """The rounding per unit of G norm(E, 1), for codes x with this number of nonzero parts."""
        return self.relative + (1 + self.relative) * self._of_codes(nonzeros)

    def of_code(self, nonzeros: Any) -> Any:
        """The rounding per unit of G norm(x*, 1)."""
        return (1 + self.relative) * 2 * self._of_codes(nonzeros)

    def _of_codes(self, nonzeros: Any) -> Any:
        extra = 2 * self.block + _OF_PARTS if self.block > 1 else 2
        return self.sum(nonzeros * self.part + self.inner + extra)

    def of_values(self, activation: Activation, argument: Any) -> Any:
        """The rounding of rho(a) - rho(b) for arguments of at most this size."""
        gap, slope = activation.relu_gap, 1.0
        if gap == math.inf:  # rho(0) = 0, as in leaky_relu
            gap, slope = 0.0, max(1.0, activation.tail_lipschitz)
        return 2 * _VALUE * self.unit * ((1 + slope) * argument + gap)

    def lost(
        self, gain: float, C: float, G: float, nonzeros: Any, size: Any, noise: Any = 0.0
    ) -> Any:
        """What underflow adds to the argument; inf if numbers of the step may overflow.

        Every product and every sum of D x and W'r, and each factor below the least normal number,
        may count as 0.

        Args:
            gain: the largest abs(gamma).
            C: the largest size of an entry of W, or of W_i.
            G: the largest size of an entry of |W|'|D|, or of a block.
            nonzeros: the number of nonzero parts of a code.
            size: bound on norm(x, 1) + norm(x*, 1), in sizes of parts.
            noise: bound on the l1 norm of the noise.
        """
        rows = self.rows * self.block
        l1, column = rows * C, math.sqrt(rows) * self.atom
        entries = 2 * (nonzeros * self.part + self.inner + rows + 2)
        codes = math.sqrt(self.block) * size
        least = self.least * (1 + gain) * (1 + l1) * (entries + (1 + column) * codes + noise)
        largest = (1 + self.atom + (1 + gain) * G) * codes + (1 + (1 + gain) * C) * noise
        return np.where(largest <= self.most, least * math.sqrt(self.block), math.inf)


def _column_norms(D: Any) -> Any:
    """The norms of the atoms of a dictionary of numpy arrays; a matrix needs no program."""
    if isinstance(D, np.ndarray):
        e, k = host_energy(D, 0)
        return np.ldexp(np.sqrt(e), k)
    with jax.enable_x64(True):
        return column_norms(D)


def _nodes(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Functions))


def unit_of(dtype: DTypeLike, precision: str | None) -> tuple[float, float]:
    """u of the sums, and the relative error of the factors of products."""
    eps = float(jnp.finfo(dtype).eps)
    coarse = PRECISIONS.get(precision or "", 0.0) if jnp.dtype(dtype) == np.float32 else 0.0
    return (eps, coarse) if coarse else (eps / 2, 0.0)


# The rounding of y that `residual_error` allows for, in u norm(y).
OF_SIGNAL = 8


def residual_error(
    W: Any, D: Any, y: Array, r: Array, size: Array, nonzeros: Array, precision: str | None = None
) -> Array:
    r"""A bound on the rounding of (y - D x) @ W, after the computation, for each entry; traceable.

    .. math:: \max \|w_i\| (\gamma_{m+1} \|r\| + 8 u \|y\|)
        + \max \|w_i\| \max \|d_j\| \gamma_n \|x\|_1.

    This is the bound of `Rounding` in terms of the computed residual r, and of a y that was rounded
    by at most 8 u norm(y). In half precision gamma_{m+1} may be infinite, so that no entry would
    exceed the bound; there, the bound is only 8 u max norm(w_i) max norm(d_j) norm(x, 1), an
    estimate.

    Args:
        W, D: (m, d).
        y: (m,), the signal.
        r: (m,), the computed residual.
        size: norm(x, 1), in sizes of parts.
        nonzeros: the number of nonzero entries of x.
        precision: the precision of the products.
    """
    unit, factors = unit_of(y.dtype, precision)
    weight, atom = (jnp.max(column_norms(A)).astype(y.dtype) for A in (W, D))
    g, pair = block_of(D), weight * atom
    parts = g + 1 if g > 1 else 1
    if y.dtype.itemsize < 4:
        return parts * OF_SIGNAL * unit * pair * size
    # The comparison and the bound itself round as well; a computed norm errs by m u.
    rows = 2 * (D.shape[0] + inner_terms(W)) + 16
    of_sum = (1 + factors) ** 2 * (1 + float(sum_error(rows, unit))) - 1
    terms = (nonzeros + (inner_terms(D) + 4)) * unit
    of_code = jnp.where(terms < 1, terms / jnp.where(terms < 1, 1 - terms, 1), jnp.inf)
    of_code = of_code + 2 * factors * (1 + factors)
    lost = float(jnp.finfo(y.dtype).tiny) * rows
    products = weight * (of_sum * norm(r) + OF_SIGNAL * unit * norm(y) + lost)
    return parts * (products + pair * of_code * size + lost) * (1 + of_sum)
