"""Dictionaries made of dictionaries: products, unions, sparse combinations of atoms, [I, F]."""

import functools
import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import norm
from unrolled.dictionaries import _base
from unrolled.dictionaries._base import (
    Dictionary,
    Operator,
    Structured,
    column_norms,
    dense,
    scale_columns,
)
from unrolled.dictionaries._conv import Conv
from unrolled.dictionaries._operands import (
    as_chain,
    as_dictionary,
    cuts_atoms,
    inner_terms,
    magnitudes,
    normalized,
    spectral_norm,
)

# Up to this many entries (64 MiB in float32) the norm of a product is that of its matrix; above,
# the product of the norms bounds it.
_DENSE_LIMIT = 2**24


@_base.pytree(data=("factors",))
@dataclass(frozen=True, eq=False, init=False)
class Composed(Structured):
    """D_1 D_2 ... D_J, never multiplied out: the effective dictionary of a chain.

    The paper writes D_[1,J] for it.

    Args:
        factors: D_1, ..., D_J, plain or structured, (d_{j-1}, d_j) each.

    Raises:
        ValueError: no factor, or neighbouring shapes that do not meet.

    Example:
        >>> D = ur.dictionaries.Composed(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> D.shape, (D @ jnp.ones(4)).tolist()
        ((2, 4), [12.0, 12.0])
    """

    factors: tuple[Operator, ...]

    def __init__(self, *factors: Dictionary):
        factors = as_chain(factors, "Composed")
        object.__setattr__(self, "factors", checks.cast(factors, checks.common_dtype(factors)))

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors[0].shape[-2], self.factors[-1].shape[-1]

    @property
    def ndim(self) -> int:
        return max(D.ndim for D in self.factors)

    def synthesize(self, x: Array) -> Array:
        for D in reversed(self.factors):
            x = D @ x
        return x

    def analyze(self, r: Array) -> Array:
        for D in self.factors:
            r = r @ D
        return r

    def scale(self, c: ArrayLike) -> "Composed":
        return Composed(self.factors[0] * c, *self.factors[1:])

    def scale_columns(self, c: Array) -> "Composed":
        return Composed(*self.factors[:-1], scale_columns(self.factors[-1], c))

    def spectral_norm(self) -> Array:
        if math.prod(self.shape) <= _DENSE_LIMIT:
            return spectral_norm(dense(self))
        return functools.reduce(jnp.multiply, map(spectral_norm, self.factors))

    def magnitudes(self) -> "Composed":
        return Composed(*map(magnitudes, self.factors))

    @property
    def inner_terms(self) -> int:
        return sum(map(inner_terms, self.factors)) + sum(D.shape[1] for D in self.factors[:-1])


@_base.pytree(data=("parts",))
@dataclass(frozen=True, eq=False, init=False)
class Concatenated(Structured):
    """[D_1, D_2, ...]: the union of the atoms; the code is the concatenation of the codes.

    Args:
        parts: D_1, D_2, ..., plain or structured, (m, d_j) each.

    Raises:
        ValueError: no part, or parts of different signal length.

    Example:
        >>> D = ur.dictionaries.Concatenated(jnp.eye(3), ur.dictionaries.dct(3, 4))
        >>> D.shape
        (3, 7)
    """

    parts: tuple[Operator, ...]

    def __init__(self, *parts: Dictionary):
        parts = tuple(as_dictionary(D, "Concatenated") for D in parts)
        if not parts:
            raise ValueError("Concatenated: expected at least one dictionary, got none")
        if len({D.shape[0] for D in parts}) > 1:
            raise ValueError(
                f"Concatenated: parts have shapes {[D.shape for D in parts]}; expected one number "
                "of rows"
            )
        object.__setattr__(self, "parts", checks.cast(parts, checks.common_dtype(parts)))

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape[-2], sum(D.shape[-1] for D in self.parts)

    @property
    def ndim(self) -> int:
        return max(D.ndim for D in self.parts)

    def _split(self, x: Array) -> list[Array]:
        ends = np.cumsum([D.shape[1] for D in self.parts])[:-1]
        return jnp.split(x, ends)

    def synthesize(self, x: Array) -> Array:
        return jnp.asarray(sum(D @ part for D, part in zip(self.parts, self._split(x))))

    def analyze(self, r: Array) -> Array:
        return jnp.concatenate([r @ D for D in self.parts])

    def scale(self, c: ArrayLike) -> "Concatenated":
        return Concatenated(*(D * c for D in self.parts))

    def scale_columns(self, c: Array) -> "Concatenated":
        return Concatenated(
            *(scale_columns(D, part) for D, part in zip(self.parts, self._split(c)))
        )

    def normalized(self) -> tuple[Structured, Array]:
        if any(map(cuts_atoms, self.parts)):  # whose own forms have atoms below 1
            return super().normalized()
        parts, norms = zip(*map(normalized, self.parts))
        return Concatenated(*parts), jnp.concatenate(norms)

    def column_norms(self) -> Array:
        return jnp.concatenate([column_norms(D) for D in self.parts])

    def spectral_norm(self) -> Array:
        """The upper bound norm([A, B])^2 <= norm(A)^2 + norm(B)^2, exact for orthonormal parts."""
        return norm(jnp.stack([spectral_norm(D) for D in self.parts]))

    def magnitudes(self) -> "Concatenated":
        return Concatenated(*map(magnitudes, self.parts))

    @property
    def inner_terms(self) -> int:
        return max(map(inner_terms, self.parts))


@_base.pytree(data=("base", "indices", "values"))
@dataclass(frozen=True, eq=False, init=False)
class Sparse(Structured):
    """Phi A with sparse columns in A ("double sparsity"): atoms that combine a few base atoms.

    A is stored column by column, padded to the largest count k: `indices` and `values`, (k, d).

    Args:
        base: Phi, (m, p), plain or structured.
        atoms: A, a concrete (p, d) matrix.

    Raises:
        TypeError: `atoms` is traced (its zeros decide the shapes).
        ValueError: shapes that do not meet.

    Reference: Rubinstein, Zibulevsky, Elad (2010).

    Example:
        >>> D = ur.dictionaries.Sparse(ur.dictionaries.dct(4, 4), jnp.eye(4)[:, :2])
        >>> D.shape, D.values.shape
        ((4, 2), (1, 2))
    """

    base: Operator
    indices: Array
    values: Array

    def __init__(self, base: Dictionary, atoms: ArrayLike):
        base = as_dictionary(base, "Sparse")
        if not checks.is_concrete(atoms):
            raise TypeError(
                "Sparse: atoms must be concrete, got a traced array; build it outside jit"
            )
        atoms = np.asarray(as_dictionary(atoms, "Sparse"))
        if base.shape[1] != atoms.shape[0]:
            raise ValueError(
                f"Sparse: base has shape {base.shape} but atoms have shape {atoms.shape}"
            )
        largest = max(1, int(np.count_nonzero(atoms, axis=0).max()))
        indices = np.argsort(atoms == 0, axis=0, kind="stable")[:largest]
        values = jnp.asarray(np.take_along_axis(atoms, indices, 0))
        base, values = checks.cast((base, values), checks.common_dtype(base, values))
        vars(self).update(base=base, indices=jnp.asarray(indices, jnp.int32), values=values)

    @classmethod
    def _of(cls, base: Operator, indices: Array, values: Array) -> "Sparse":
        self = object.__new__(cls)
        vars(self).update(base=base, indices=indices, values=values)
        return self

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape[-2], self.values.shape[-1]

    @property
    def ndim(self) -> int:
        return self.values.ndim

    def synthesize(self, x: Array) -> Array:
        coefficients = (
            jnp.zeros(self.base.shape[1], x.dtype).at[self.indices].add(self.values * x[None, :])
        )
        return self.base @ coefficients

    def analyze(self, r: Array) -> Array:
        return jnp.sum(self.values * (r @ self.base)[self.indices], axis=0)

    def scale(self, c: ArrayLike) -> "Sparse":
        return Sparse._of(self.base, self.indices, self.values * c)

    def scale_columns(self, c: Array) -> "Sparse":
        return Sparse._of(self.base, self.indices, self.values * c[None, :])

    def magnitudes(self) -> "Sparse":
        return Sparse._of(magnitudes(self.base), self.indices, jnp.abs(self.values))

    @property
    def inner_terms(self) -> int:
        return inner_terms(self.base) + self.base.shape[1]


@_base.pytree(data=("F",))
@dataclass(frozen=True, eq=False, init=False)
class WithIdentity(Structured):
    """[I, F], of shape (m, m + d), where the identity is neither stored nor multiplied.

    Analysis is (r, F'r): with a `Conv` F of as many positions as samples, the channels of a signal
    and the feature maps of F, one after the other, as a dense connection has them.

    Args:
        F: (m, d), plain or structured.

    Raises:
        TypeError, ValueError: as for any dictionary.

    Reference: Zhang, Zhang (2021), the dictionary of MSD-CSC.

    Example:
        >>> D = ur.dictionaries.WithIdentity(jnp.array([[1.0], [2.0]]))
        >>> ur.dictionaries.dense(D).tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]
    """

    F: Operator

    def __init__(self, F: Dictionary):
        object.__setattr__(self, "F", as_dictionary(F, "WithIdentity"))

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self.F.shape[-2:]
        return m, m + d

    @property
    def ndim(self) -> int:
        return self.F.ndim

    def synthesize(self, x: Array) -> Array:
        m = self.shape[0]
        return x[:m] + self.F @ x[m:]

    def analyze(self, r: Array) -> Array:
        return jnp.concatenate([r, r @ self.F])

    def scale(self, c: ArrayLike) -> _base.Rescaled:
        return _base.Rescaled(self, jnp.full(self.shape[1], c, self.dtype))

    def normalized(self) -> tuple["WithIdentity", Array]:
        """[I, F] with unit atoms in F, and all norms."""
        F, norms = normalized(self.F)
        return WithIdentity(F), self._after_ones(norms)

    def column_norms(self) -> Array:
        return self._after_ones(column_norms(self.F))

    def spectral_norm(self) -> Array:
        """sqrt(1 + norm(F)^2), exact where the norm of F is."""
        norm = spectral_norm(self.F)
        return jnp.hypot(jnp.ones_like(norm), norm)

    def magnitudes(self) -> "WithIdentity":
        return WithIdentity(magnitudes(self.F))

    @property
    def inner_terms(self) -> int:
        return inner_terms(self.F)

    @property
    def cuts_atoms(self) -> bool:
        return cuts_atoms(self.F)

    @property
    def groups(self) -> tuple[int, ...]:
        """(channels + filters,) with a `Conv` F, whose maps these are."""
        if not isinstance(self.F, Conv):
            return ()
        return (self.F.signal_grid[0] + self.F.code_grid[0],)

    def spread(self, theta: ArrayLike) -> Array:
        """One value per channel and per filter, repeated over the positions of each."""
        theta = jnp.asarray(theta)
        if not isinstance(self.F, Conv) or theta.shape != self.groups:
            return theta
        channels, samples = self.F.signal_grid[0], math.prod(self.F.signal_shape)
        own = jnp.broadcast_to(theta[:channels, None], (channels, samples)).reshape(-1)
        return jnp.concatenate([own, self.F.spread(theta[channels:])])

    def _after_ones(self, norms: Array) -> Array:
        return jnp.concatenate([jnp.ones(self.shape[0], norms.dtype), norms])
