"""Dictionaries whose codes come in parts: `Complex`, and `Joint` for several measurements."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import norm
from unrolled.dictionaries import _base
from unrolled.dictionaries._base import Operator, Structured, column_norms, scale_columns
from unrolled.dictionaries._operands import (
    as_dictionary,
    cuts_atoms,
    inner_terms,
    magnitudes,
    normalized,
    spectral_norm,
    spread,
)

__all__ = ["Complex", "Joint", "from_pairs", "to_pairs"]


def to_pairs(z: ArrayLike) -> Any:
    """Complex numbers, (..., n), as pairs (real, imaginary) of real numbers, (..., 2 n).

    If z is a numpy array, the result is a numpy array.

    Example:
        >>> ur.dictionaries.to_pairs(np.array([1 + 2j, 3j])).tolist()
        [1.0, 2.0, 0.0, 3.0]
    """
    xp: Any = jnp if isinstance(z, jax.Array) else np
    try:
        numbers: Any = z if xp is jnp else np.asarray(z)
    except ValueError:  # ragged
        numbers = np.array(None)
    if not (jnp.issubdtype(numbers.dtype, np.number) or numbers.dtype == bool):
        raise TypeError(
            f"to_pairs: z is {type(z).__name__}; expected an array of numbers, (..., n)"
        )
    if not numbers.ndim:
        raise ValueError("to_pairs: z has shape (); expected an array of numbers, (..., n)")
    pairs = xp.stack([numbers.real, numbers.imag], -1)
    return pairs.reshape(*numbers.shape[:-1], 2 * numbers.shape[-1])


def from_pairs(v: ArrayLike) -> Array:
    """Complex numbers, (..., n), from pairs of real numbers, (..., 2 n); the inverse of `to_pairs`.

    Raises:
        TypeError: the numbers are in half precision, which has no complex numbers.
        ValueError: the number of real numbers is odd.

    Example:
        >>> ur.dictionaries.from_pairs(jnp.array([1.0, 2.0, 0.0, 3.0])).tolist()
        [(1+2j), 3j]
    """
    v = checks.as_float(v, "v", "from_pairs")
    if not v.ndim or v.shape[-1] % 2:
        raise ValueError(f"from_pairs: v has shape {v.shape}; expected pairs, (..., 2 n)")
    if v.dtype.itemsize < 4:
        raise TypeError(f"from_pairs: v is {v.dtype}; expected float32 or float64")
    return _from_pairs(v)


@jax.jit
def _from_pairs(v: Array) -> Array:
    return lax.complex(v[..., 0::2], v[..., 1::2])


@_base.pytree(data=("real", "imag"))
@dataclass(frozen=True, eq=False, init=False)
class Complex(Structured):
    r"""A complex matrix A, (m, n), as a dictionary (2 m, 2 n) of real numbers.

    Signals and codes hold complex numbers as pairs of real numbers (`to_pairs`). A part of a code
    is one complex number, and the size of the part is the modulus |x_i|. Hence the LASSO is

    .. math:: \min_x \tfrac12 \|y - A x\|^2 + \sum_i lam_i |x_i|, \qquad x \in C^n,

    and shrinkage keeps the phase. For a complex signal (m,), a layer or a pursuit returns a complex
    code (n,); for pairs (2 m,), it returns pairs. A threshold or a penalty is one number for all
    atoms, or one number per atom, (n,). `r @ D` is A^H r.

    Args:
        real, imag: (m, n) each; use `Complex.of(A)` for a complex A.

    Raises:
        ValueError: the shapes differ, or `as_dictionary` refuses a part.

    Example:
        >>> D = ur.dictionaries.Complex.of(np.complex64([[1, 0], [0, 1j]]))
        >>> D.shape, D.groups, D.block
        ((4, 4), (2,), 2)
        >>> ur.pursuit.lasso(D, np.complex64([3j, 0.5]), 1.0).x.round(3).tolist()
        [2j, 0j]
    """

    real: Array
    imag: Array

    def __init__(self, real: ArrayLike, imag: ArrayLike):
        if isinstance(real, Structured) or isinstance(imag, Structured):
            raise TypeError("Complex: real and imag must be arrays; try dictionaries.dense")
        parts: Any = as_dictionary(real, "Complex", "real"), as_dictionary(imag, "Complex", "imag")
        if parts[0].shape != parts[1].shape:
            raise ValueError(
                f"Complex: real has shape {parts[0].shape} but imag has shape {parts[1].shape}; "
                "they must agree"
            )
        real, imag = checks.cast(parts, checks.common_dtype(parts))
        vars(self).update(real=real, imag=imag)

    @classmethod
    def of(cls, A: ArrayLike) -> "Complex":
        """The dictionary of a complex matrix A, (m, n); the imaginary part of a real A is 0."""
        A = A if isinstance(A, jax.Array) else np.asarray(A)
        if not jnp.issubdtype(A.dtype, jnp.complexfloating):
            checks.as_float(A, "A", "Complex")  # raises with the reason
        return cls(A.real, A.imag)

    @classmethod
    def _of(cls, real: Array, imag: Array) -> "Complex":
        self = object.__new__(cls)
        vars(self).update(real=real, imag=imag)
        return self

    @property
    def block(self) -> int:
        return 2

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.real.shape[-2:]
        return 2 * m, 2 * n

    @property
    def ndim(self) -> int:
        return self.real.ndim

    @property
    def groups(self) -> tuple[int, ...]:
        return self.real.shape[-1:]

    def spread(self, theta: ArrayLike) -> ArrayLike:
        return jnp.repeat(jnp.asarray(theta), 2) if np.shape(theta) == self.groups else theta

    def synthesize(self, x: Array) -> Array:
        return _turned(self.real, self.imag, x)

    def analyze(self, r: Array) -> Array:
        return _turned(self.real.T, -self.imag.T, r)

    @property
    def T(self) -> "Complex":
        return Complex._of(self.real.mT, -self.imag.mT)

    def scale(self, c: ArrayLike) -> "Complex":
        return Complex._of(self.real * c, self.imag * c)

    def scale_parts(self, c: Array) -> "Complex":
        """The dictionary with the atoms of part i multiplied by c_i, with c of shape (n,)."""
        return self.scale(c[None, :])

    def normalized(self) -> tuple["Complex", Array]:
        norms = self.column_norms()
        unit = self.scale_parts(1 / norms[::2])
        return unit, jnp.where(1 / norms > 0, norms, jnp.inf)  # as in `Structured`

    def column_norms(self) -> Array:
        return jnp.repeat(norm(jnp.concatenate([self.real, self.imag]), 0), 2)

    def entries(self) -> Array:
        return jnp.stack([self.real, self.imag])

    def view(self, y: Any, batch: int = 0) -> tuple[Any, Callable[[Array], Array]] | None:
        """Complex numbers in pairs, and `from_pairs`; None for real numbers."""
        dtype = getattr(y, "dtype", None)
        dtype = np.asarray(y).dtype if dtype is None else dtype
        return (to_pairs(y), from_pairs) if jnp.issubdtype(dtype, jnp.complexfloating) else None


def _turned(real: Array, imag: Array, v: Array) -> Array:
    """(real + i imag) v in pairs, for v in pairs: two products with two columns each."""
    v = v.reshape(-1, 2)
    a, b = real @ v, imag @ v
    return jnp.stack([a[:, 0] - b[:, 1], a[:, 1] + b[:, 0]], 1).reshape(-1)


@dataclass(frozen=True)
class _Rows:
    """A code as rows of g numbers, or of g complex numbers if `pairs` is set."""

    g: int
    pairs: bool

    def __call__(self, x: Array) -> Array:
        if not self.pairs:
            return x.reshape(*x.shape[:-1], x.shape[-1] // self.g, self.g)
        x = x.reshape(*x.shape[:-1], x.shape[-1] // (2 * self.g), 2, self.g)
        return lax.complex(x[..., 0, :], x[..., 1, :])


@_base.pytree(data=("base",), static=("measurements",))
@dataclass(frozen=True, eq=False, init=False)
class Joint(Structured):
    r"""D for g signals at once, whose codes are nonzero in the same entries: Y = D X.

    The dictionary is the Kronecker product of D and I_g, (m g, d g). A part of a code is a row of
    X, (d, g), and the size of the part is the norm of the row. Hence the LASSO is

    .. math:: \min_X \tfrac12 \|Y - D X\|_F^2 + \sum_i lam_i \|X_i\|_2.

    For signals Y, (m, g), a layer or a pursuit returns codes (d, g); for flat signals, (m g,), it
    returns flat codes. If D is `Complex`, signals and codes are complex, and a part is a row of g
    complex numbers. A threshold or a penalty is one number for all atoms, or one number per group
    of atoms of D (one per atom if D has no groups).

    Args:
        base: D, plain or structured, (m, d).
        measurements: g, at least 1.

    Raises:
        ValueError: g is below 1, or the base is already a `Joint`.

    Reference: Cotter, Rao, Engan, Kreutz-Delgado (2005); Yuan, Lin (2006) for the penalty.

    Example:
        >>> D = ur.dictionaries.Joint(jnp.eye(2), 3)
        >>> Y = jnp.array([[3.0, 0.0, 4.0], [0.1, 0.1, 0.1]])
        >>> print(ur.pursuit.lasso(D, Y, 1.0).x.round(1))
        [[2.4 0.  3.2]
         [0.  0.  0. ]]
    """

    base: Operator
    measurements: int  # g

    def __init__(self, base: Any, measurements: int):
        base = as_dictionary(base, "Joint", "base")
        if isinstance(base, Structured) and base.block > 1 and not isinstance(base, Complex):
            raise ValueError(
                f"Joint: codes of {type(base).__name__} already come in parts of {base.block} "
                "entries; expected a base without parts, or a Complex one"
            )
        g = checks.as_index(measurements, "measurements", "Joint", least=1)
        vars(self).update(base=base, measurements=g)

    @classmethod
    def _of(cls, base: Operator, measurements: int) -> "Joint":
        self = object.__new__(cls)
        vars(self).update(base=base, measurements=measurements)
        return self

    @property
    def _pairs(self) -> bool:
        return isinstance(self.base, Complex)

    @property
    def block(self) -> int:
        return self.measurements * (2 if self._pairs else 1)

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self.base.shape[-2:]
        return m * self.measurements, d * self.measurements

    @property
    def ndim(self) -> int:
        return self.base.ndim

    @property
    def groups(self) -> tuple[int, ...]:
        own = self.base.groups if isinstance(self.base, Structured) else ()
        return own or (self.base.shape[-1],)

    def spread(self, theta: ArrayLike) -> ArrayLike:
        if np.shape(theta) != self.groups:
            return theta
        return jnp.repeat(jnp.asarray(spread(self.base, theta)), self.measurements)

    def synthesize(self, x: Array) -> Array:
        return (self.base @ x.reshape(-1, self.measurements)).reshape(-1)

    def analyze(self, r: Array) -> Array:
        return (r.reshape(-1, self.measurements).T @ self.base).T.reshape(-1)

    @property
    def T(self) -> "Joint":
        base = self.base.T if isinstance(self.base, Structured) else self.base.mT
        return Joint._of(base, self.measurements)

    def scale(self, c: ArrayLike) -> "Joint":
        return Joint._of(self.base * c, self.measurements)

    def scale_parts(self, c: Array) -> "Joint":
        """The dictionary with the atoms of part i multiplied by c_i, with one c_i per part."""
        base = self.base
        base = base.scale_parts(c) if isinstance(base, Complex) else scale_columns(base, c)
        return Joint._of(base, self.measurements)

    def normalized(self) -> tuple["Joint", Array]:
        unit, norms = normalized(self.base)
        return Joint._of(unit, self.measurements), jnp.repeat(norms, self.measurements)

    def column_norms(self) -> Array:
        return jnp.repeat(column_norms(self.base), self.measurements)

    def spectral_norm(self) -> Array:
        return spectral_norm(self.base)

    def magnitudes(self) -> "Joint":
        return Joint._of(magnitudes(self.base), self.measurements)

    @property
    def inner_terms(self) -> int:
        return inner_terms(self.base)

    @property
    def cuts_atoms(self) -> bool:
        return cuts_atoms(self.base)

    def view(self, y: Any, batch: int = 0) -> tuple[Any, Callable[[Array], Array]] | None:
        """Flattened signals (m, g) or codes (d, g), and the inverse map; None for other shapes."""
        shape, g = np.shape(y), self.measurements
        rows = [n // (2 if self._pairs else 1) for n in self.base.shape]
        if len(shape) != batch + 2 or shape[-1] != g or shape[-2] not in rows:
            return None
        y = y if isinstance(y, jax.Array) else np.asarray(y)
        if jnp.issubdtype(y.dtype, jnp.complexfloating) != self._pairs:
            return None
        if self._pairs:
            y = to_pairs(y.swapaxes(-1, -2)).swapaxes(-1, -2)  # (..., 2 m, g)
        return y.reshape(*shape[:batch], y.shape[-2] * g), _Rows(g, self._pairs)
