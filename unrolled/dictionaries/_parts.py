"""Dictionaries whose codes come in parts: `Complex`, and `Joint` for several measurements."""

import math
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
from unrolled.dictionaries._base import (
    DENSE_LIMIT,
    Dictionary,
    Operator,
    Structured,
    column_norms,
    dense,
    scale_columns,
)
from unrolled.dictionaries._operands import (
    as_dictionary,
    block_of,
    cuts_atoms,
    entries,
    inner_terms,
    is_complex,
    magnitudes,
    normalized,
    refuse_parts,
    spectral_norm,
    spread,
)
from unrolled.dictionaries._pairs import to_pairs

__all__ = ["Complex", "Joint"]


@_base.pytree(data=("real", "imag"))
@dataclass(frozen=True, eq=False, init=False)
class Complex(Structured):
    r"""A complex dictionary A, (m, n), as a dictionary (2 m, 2 n) of real numbers.

    Signals and codes hold complex numbers as pairs of real numbers (`to_pairs`). A part of a code
    is one complex number, and the size of the part is the modulus |x_i|. Hence the LASSO is

    .. math:: \min_x \tfrac12 \|y - A x\|^2 + \sum_i lam_i |x_i|, \qquad x \in C^n,

    and shrinkage keeps the phase. For a complex signal (m,), a layer or a pursuit returns a complex
    code (n,); for pairs (2 m,), it returns pairs. A threshold or a penalty is one number for all
    atoms, or one number per atom, (n,). `r @ D` is A^H r.

    Args:
        real, imag: (m, n) each, plain or structured; use `Complex.of(A)` for a complex matrix A.

    Raises:
        ValueError: the shapes differ, or `as_dictionary` refuses a part.

    Example:
        >>> D = ur.dictionaries.Complex.of(np.complex64([[1, 0], [0, 1j]]))
        >>> D.shape, D.groups, D.block
        ((4, 4), (2,), 2)
        >>> ur.pursuit.lasso(D, np.complex64([3j, 0.5]), 1.0).x.round(3).tolist()
        [2j, 0j]
    """

    real: Any  # an Operator; for `of`, an Array
    imag: Any

    def __init__(self, real: Dictionary | ArrayLike, imag: Dictionary | ArrayLike):
        parts: Any = as_dictionary(real, "Complex", "real"), as_dictionary(imag, "Complex", "imag")
        if parts[0].shape != parts[1].shape:
            raise ValueError(
                f"Complex: real has shape {parts[0].shape} but imag has shape {parts[1].shape}; "
                "they must agree"
            )
        for part in parts:
            refuse_parts(part, "Complex", "expected real dictionaries")
        real, imag = checks.cast(parts, checks.common_dtype(parts))
        vars(self).update(real=real, imag=imag)

    @classmethod
    def of(cls, A: ArrayLike) -> "Complex":
        """The dictionary of a complex matrix A, (m, n); the imaginary part of a real A is 0."""
        A = A if isinstance(A, jax.Array) else np.asarray(A)
        if not jnp.issubdtype(A.dtype, jnp.complexfloating):
            checks.as_float(A, "A", "Complex")  # raises with the reason
        return cls(A.real, A.imag)

    @property
    def is_complex(self) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.real.shape[-2:]
        return 2 * m, 2 * n

    @property
    def ndim(self) -> int:
        return max(self.real.ndim, self.imag.ndim)

    def synthesize(self, x: Array) -> Array:
        x = x.reshape(-1, 2)
        return _turned(self.real @ x, self.imag @ x)

    def analyze(self, r: Array) -> Array:
        r = r.reshape(-1, 2).T
        return _turned((r @ self.real).T, -(r @ self.imag).T)

    @property
    def T(self) -> "Complex":
        return Complex._of(_transposed(self.real), _transposed(self.imag) * -1)

    def scale(self, c: ArrayLike) -> "Complex":
        return Complex._of(self.real * c, self.imag * c)

    def scale_parts(self, c: Array) -> "Complex":
        """The dictionary with the atoms of part i multiplied by c_i, with c of shape (n,)."""
        return Complex._of(scale_columns(self.real, c), scale_columns(self.imag, c))

    def normalized(self) -> tuple["Complex", Array]:
        norms = self.column_norms()
        unit = self.scale_parts(1 / norms[::2])
        return unit, jnp.where(1 / norms > 0, norms, jnp.inf)  # as in `Structured`

    def column_norms(self) -> Array:
        both = jnp.stack([column_norms(self.real), column_norms(self.imag)])
        return jnp.repeat(norm(both, 0), 2)

    def spectral_norm(self) -> Array:
        """norm(A, 2); for large structured parts the bound norm(real, 2) + norm(imag, 2)."""
        if self._is_matrix or math.prod(self.shape) <= DENSE_LIMIT:
            return super().spectral_norm()
        return spectral_norm(self.real) + spectral_norm(self.imag)

    def entries(self) -> Array:
        return jnp.concatenate([entries(part).reshape(-1) for part in (self.real, self.imag)])

    def magnitudes(self) -> Operator:
        if self._is_matrix:
            return super().magnitudes()
        real, imag = (dense(magnitudes(part)) for part in (self.real, self.imag))
        return jnp.kron(real, jnp.eye(2, dtype=real.dtype)) + jnp.kron(
            imag, jnp.eye(2, dtype=imag.dtype)[::-1]
        )

    @property
    def inner_terms(self) -> int:
        return max(inner_terms(self.real), inner_terms(self.imag))

    @property
    def cuts_atoms(self) -> bool:
        return cuts_atoms(self.real) or cuts_atoms(self.imag)

    @property
    def _is_matrix(self) -> bool:
        return not isinstance(self.real, Structured) and not isinstance(self.imag, Structured)


def _transposed(D: Operator) -> Operator:
    return D.T if isinstance(D, Structured) else D.mT


def _turned(a: Array, b: Array) -> Array:
    """a + i b in pairs, for a and b with pairs in their rows."""
    return jnp.stack([a[:, 0] - b[:, 1], a[:, 1] + b[:, 0]], 1).reshape(-1)


def in_pairs(Ds: tuple[Any, ...]) -> tuple[Any, ...]:
    """The dictionaries; if one is complex, a real one maps real and imaginary parts: `Joint(D, 2)`.

    Example:
        >>> from unrolled.dictionaries._parts import in_pairs
        >>> C = ur.dictionaries.Complex.of(jnp.ones((3, 4)))
        >>> [D.shape for D in in_pairs((jnp.ones((2, 3)), C))]
        [(4, 6), (6, 8)]
    """
    if not any(map(is_complex, Ds)):
        return Ds
    return tuple(D if block_of(D) == 2 else Joint(D, 2) for D in Ds)


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
    returns flat codes. If D is complex, signals and codes are complex, and a part is a row of g
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
        if block_of(base) > 1 and not is_complex(base):
            raise ValueError(
                f"Joint: codes of {type(base).__name__} already come in parts of {base.block} "
                "entries; expected a base without parts, or a complex one"
            )
        g = checks.as_index(measurements, "measurements", "Joint", least=1)
        vars(self).update(base=base, measurements=g)

    @property
    def _pairs(self) -> bool:
        return is_complex(self.base)

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
        return Joint._of(_transposed(self.base), self.measurements)

    def scale(self, c: ArrayLike) -> "Joint":
        return Joint._of(self.base * c, self.measurements)

    def scale_parts(self, c: Array) -> "Joint":
        """The dictionary with the atoms of part i multiplied by c_i, with one c_i per part."""
        base = self.base
        if isinstance(base, Complex):
            return Joint._of(base.scale_parts(c), self.measurements)
        base = scale_columns(base, jnp.asarray(spread(base, c)))
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
